//! A rule as a value: tests, statements, an action. What can be said here can be written as text, told to the kernel, read back
//! and judged; nothing else can be said.

use crate::base::time::Period;
use crate::ruleset::field::{Field, Guard};
use crate::ruleset::set::cut;

/// One rule.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rule {
    /// The rule's id or, where one rule serves several ways out, what it serves. The kernel keeps it as the comment.
    pub id: String,
    /// All must hold. Never holds a test that a field of another test takes for granted: see [`Rule::new`].
    pub tests: Vec<Test>,
    /// What is done then, in order.
    pub statements: Vec<Statement>,
    /// What becomes of the packet.
    pub action: Action,
}

/// A field, an operator and a value.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Test {
    /// What is looked at.
    pub field: Field,
    /// What is asked of it.
    pub operator: Operator,
}

/// What is asked of a field.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Operator {
    /// It is this.
    Is(u128),
    /// It is not this.
    IsNot(u128),
    /// It lies between these, both included.
    Within(u128, u128),
    /// At least one of these bits is set.
    HasAny(u128),
    /// None of these bits is set.
    HasNone(u128),
    /// The set of this name holds it.
    In(String),
    /// It is the number of the user or group of this name, which is not known here. Text only: such a rule is never loaded.
    IsNamed(String),
}

/// Something that a rule does on the way to its action.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Statement {
    /// Goes on only below, or only over, a rate.
    Limit(Rate, Side),
    /// Puts the key into a set, renewing its time; goes on when the set took it and the element's own limit matches.
    Update {
        /// The set.
        set: String,
        /// The fields of the key.
        key: Vec<Field>,
        /// How long the element lives; nothing: for ever.
        lives: Period,
        /// What the element carries.
        carries: Carries,
    },
    /// Sends a record to the NFLOG group.
    Log {
        /// What the record begins with.
        prefix: String,
    },
}

/// What an element that a rule made carries.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Carries {
    /// Nothing.
    Nothing,
    /// A counter of packets and octets.
    Counter,
    /// A limit of its own that matches what is over it.
    Over(Rate),
}

/// Which packets a limit lets on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Side {
    /// Those below the rate.
    Below,
    /// Those over the rate.
    Over,
}

/// Packets per time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rate {
    /// How many packets …
    pub packets: u64,
    /// … in one second, minute, hour, day or week.
    pub unit: RateUnit,
    /// How many at once.
    pub burst: u32,
}

/// The units in which nft writes rates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs)]
pub enum RateUnit {
    Second,
    Minute,
    Hour,
    Day,
    Week,
}

impl RateUnit {
    /// All units, the shortest first.
    pub const ALL: [RateUnit; 5] = [RateUnit::Second, RateUnit::Minute, RateUnit::Hour, RateUnit::Day, RateUnit::Week];

    /// Its seconds.
    pub fn seconds(self) -> u64 {
        match self {
            RateUnit::Second => 1,
            RateUnit::Minute => 60,
            RateUnit::Hour => 3600,
            RateUnit::Day => 86400,
            RateUnit::Week => 604_800,
        }
    }

    /// nft's word for it.
    pub fn keyword(self) -> &'static str {
        match self {
            RateUnit::Second => "second",
            RateUnit::Minute => "minute",
            RateUnit::Hour => "hour",
            RateUnit::Day => "day",
            RateUnit::Week => "week",
        }
    }
}

impl Rate {
    /// `count` packets within a period, and as many at once; `None` when no unit makes it a whole number.
    pub fn within(count: u32, period: Period) -> Option<Rate> {
        RateUnit::ALL.into_iter().find_map(|unit| {
            let scaled = u64::from(count) * unit.seconds();
            let fits = period.seconds() > 0 && scaled >= period.seconds() && scaled.is_multiple_of(period.seconds());
            fits.then(|| Rate { packets: scaled / period.seconds(), unit, burst: count })
        })
    }
}

/// What becomes of a packet.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Action {
    /// The next rule decides.
    Continue,
    /// It passes.
    Accept,
    /// It is gone without a word.
    Drop,
    /// The sender is told: a TCP reset.
    Reset,
    /// The sender is told: administratively prohibited.
    Prohibit,
    /// Back to where the chain was jumped from.
    Return,
    /// Through that chain, then on.
    Jump(String),
    /// Through that chain, and no further.
    Goto(String),
}

impl Rule {
    /// A rule in its one form: a test that a field of the rule takes for granted is left out, because text and kernel program
    /// make it again; an id longer than the kernel keeps is cut.
    pub fn new(id: impl Into<String>, tests: Vec<Test>, statements: Vec<Statement>, action: Action) -> Rule {
        let mut rule = Rule { id: cut(&id.into()), tests, statements, action };
        let guards = rule.guards();
        rule.tests.retain(|test| {
            !guards.iter().any(|guard| {
                let (field, value) = guard.test();
                test.field == field && test.operator == Operator::Is(value)
            })
        });
        rule
    }

    /// What the rule's fields take for granted.
    pub fn guards(&self) -> Vec<Guard> {
        let keys = self.statements.iter().flat_map(|statement| match statement {
            Statement::Update { key, .. } => key.as_slice(),
            Statement::Limit(..) | Statement::Log { .. } => &[],
        });
        self.tests.iter().map(|test| &test.field).chain(keys).flat_map(|field| field.row().guards).copied().collect()
    }

    /// The sets it looks into.
    pub fn sets(&self) -> impl Iterator<Item = &str> {
        let looked = self.tests.iter().filter_map(|test| match &test.operator {
            Operator::In(set) => Some(set.as_str()),
            _ => None,
        });
        let updated = self.statements.iter().filter_map(|statement| match statement {
            Statement::Update { set, .. } => Some(set.as_str()),
            _ => None,
        });
        looked.chain(updated)
    }

    /// Whether the kernel can be told of it: it names no user or group that is not known.
    pub fn is_loadable(&self) -> bool {
        !self.tests.iter().any(|test| matches!(test.operator, Operator::IsNamed(_)))
    }
}

/// `field` is `value`.
pub fn is(field: Field, value: impl Into<u128>) -> Test {
    Test { field, operator: Operator::Is(value.into()) }
}

/// `field` is not `value`.
pub fn is_not(field: Field, value: impl Into<u128>) -> Test {
    Test { field, operator: Operator::IsNot(value.into()) }
}

/// `field` has one of these bits.
pub fn has_any(field: Field, bits: u128) -> Test {
    Test { field, operator: Operator::HasAny(bits) }
}

/// The set holds `field`.
pub fn in_set(field: Field, set: impl Into<String>) -> Test {
    Test { field, operator: Operator::In(set.into()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_exact_or_absent() {
        let rate = |count, seconds| Rate::within(count, Period::from_seconds(seconds)).map(|rate| (rate.packets, rate.unit));
        assert_eq!(rate(20, 60), Some((20, RateUnit::Minute)));
        assert_eq!(rate(20, 10), Some((2, RateUnit::Second)));
        assert_eq!(rate(20, 900), Some((80, RateUnit::Hour)));
        assert_eq!(rate(1, 7), Some((86400, RateUnit::Week)));
        assert_eq!(rate(1, 11), None);
        assert_eq!(rate(5, 0), None);
    }
}
