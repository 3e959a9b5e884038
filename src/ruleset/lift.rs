//! From the kernel's program back to rules. Total: whatever is in the table is either understood whole or named as foreign.

use std::collections::BTreeMap;

use crate::base::name::Slug;
use crate::base::time::{Period, Timestamp};
use crate::policy::Mode;
use crate::ruleset::field::{Field, Guard};
use crate::ruleset::program::{Comparison, Element, Elements, Expr, Register, RuleProgram, TableDump, Verdict};
use crate::ruleset::rule::{Action, Carries, Operator, Rate, RateUnit, Rule, Side, Statement, Test};
use crate::ruleset::set::{Member, Set};
use crate::ruleset::{Chain, IDENTITY_CHAIN, Identity, LOG_GROUP, Ruleset, TABLE_COMMENT};

/// A table as it was found, in the ruleset's own types as far as it can be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Whose rules these are; `None` when the chain `identity` does not say.
    pub identity: Option<Identity>,
    /// Chains in the kernel's order.
    pub chains: Vec<FoundChain>,
    /// Sets by name.
    pub sets: BTreeMap<String, Set>,
    /// What is not understood, in words: rules, sets, objects, table flags.
    pub foreign: Vec<String>,
    /// Whether the table is switched off (`NFT_TABLE_F_DORMANT`).
    pub dormant: bool,
}

/// `NFT_TABLE_F_DORMANT`: the table is switched off.
pub const DORMANT: u32 = 1;

/// A chain as it was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundChain {
    /// The chain with the rules that are understood.
    pub chain: Chain,
    /// Whether some of its rules are not understood.
    pub has_foreign: bool,
    /// Those rules, in order.
    pub foreign: Vec<ForeignRule>,
}

/// A rule that is not understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForeignRule {
    /// How many of the rules of its chain that are understood stand before it.
    pub before: usize,
    /// Its comment.
    pub comment: String,
    /// What is not understood.
    pub why: String,
}

impl Found {
    /// The rules to be judged, with a rule of this action in the place of each that is not understood. What holds with `accept` and
    /// with `drop` in their places holds whatever they do.
    pub fn ruleset(&self, unknown: &Action) -> Ruleset {
        let nobody =
            || Identity { policy: Slug::nearest("unknown", "unknown"), sha256: "0".repeat(64), generation: 0, mode: Mode::Enforce };
        let chains = match self.dormant {
            // The kernel takes the hooks of a dormant table away: packets meet none of its chains.
            true => Vec::new(),
            false => self.chains.iter().map(|found| found.with(unknown, &self.sets)).collect(),
        };
        Ruleset { identity: self.identity.clone().unwrap_or_else(nobody), chains, sets: self.sets.clone() }
    }
}

impl FoundChain {
    fn with(&self, unknown: &Action, sets: &BTreeMap<String, Set>) -> Chain {
        let stand_in = |why: &str| Rule::new(format!("{NOT_UNDERSTOOD}{why}"), vec![], vec![], unknown.clone());
        let mut rules = Vec::new();
        if let Some(base) = self.chain.def.base.as_ref().filter(|base| base.kind != "filter") {
            // Not every packet meets a chain of another kind.
            rules.push(stand_in(&format!("a chain of kind {}", base.kind)));
        }
        let mut foreign = self.foreign.iter().peekable();
        for (position, rule) in self.chain.rules.iter().enumerate() {
            while let Some(ForeignRule { why, .. }) = foreign.next_if(|rule| rule.before <= position) {
                rules.push(stand_in(why));
            }
            // Elements that carry statements hold a packet only when those match.
            match rule
                .sets()
                .filter_map(|set| sets.get(set))
                .find_map(|set| set.def.foreign.as_ref().filter(|why| why.contains("statement")))
            {
                Some(why) => rules.push(stand_in(why)),
                None => rules.push(rule.clone()),
            }
        }
        rules.extend(foreign.map(|rule| stand_in(&rule.why)));
        Chain { def: self.chain.def.clone(), rules }
    }
}

/// How the id of a rule begins that stands in the place of one that is not understood.
pub const NOT_UNDERSTOOD: &str = "not understood: ";

/// Lifts a whole table read at `now`.
pub fn lift(dump: &TableDump, now: Timestamp) -> Found {
    let mut found = lift_rules(dump);
    for (name, (def, elements)) in &dump.sets {
        found.sets.insert(name.clone(), Set { def: def.clone(), members: lift_elements(elements, now) });
    }
    found
}

/// Lifts everything but the sets, which are left out: they are most of a table, and can be compared as they are.
pub fn lift_rules(dump: &TableDump) -> Found {
    let mut foreign = dump.foreign.clone();
    if dump.table.comment != TABLE_COMMENT {
        foreign.push("the table's comment".to_string());
    }
    if dump.table.flags != 0 {
        foreign.push(format!("table flags {:#x}", dump.table.flags));
    }
    let mut chains = Vec::new();
    for (def, programs) in &dump.chains {
        let mut rules = Vec::new();
        let mut not_understood = Vec::new();
        for (position, program) in programs.iter().enumerate() {
            match lift_rule(program) {
                Ok(rule) => rules.push(rule),
                Err(why) => {
                    foreign.push(format!("rule {} of chain `{}`: {why}", position + 1, def.name));
                    not_understood.push(ForeignRule { before: rules.len(), comment: program.comment.clone(), why });
                }
            }
        }
        let has_foreign = !not_understood.is_empty();
        chains.push(FoundChain { chain: Chain { def: def.clone(), rules }, has_foreign, foreign: not_understood });
    }
    for (name, (def, _)) in &dump.sets {
        foreign.extend(def.foreign.as_ref().map(|why| format!("set `{name}`: {why}")));
    }
    let identity = dump.chains.iter().find(|(def, _)| def.name == IDENTITY_CHAIN);
    let identity = identity.and_then(|(_, rules)| Identity::from_comments(rules.iter().map(|rule| rule.comment.as_str())));
    Found { identity, chains, sets: BTreeMap::new(), foreign, dormant: dump.table.flags & DORMANT != 0 }
}

/// Elements with the time they end.
fn lift_elements(elements: &Elements, now: Timestamp) -> BTreeMap<Vec<u8>, Member> {
    let member = |element: &Element| Member { last: element.last.clone(), expires: end(element, now), comment: element.comment.clone() };
    elements.iter().map(|(key, element)| (key.clone(), member(element))).collect()
}

/// When an element that was read at `now` ends.
pub fn end(element: &Element, now: Timestamp) -> Option<Timestamp> {
    element.timeout_ms.map(|timeout| now.plus(Period::from_seconds(element.expires_ms.unwrap_or(timeout).div_ceil(1000))))
}

/// Lifts one rule, or says which expression is not understood.
pub fn lift_rule(program: &RuleProgram) -> Result<Rule, String> {
    let mut lifting = Lifting::default();
    let mut exprs = program.exprs.iter().peekable();
    while let Some(expr) = exprs.next() {
        if lifting.action.is_some() {
            return Err("an expression behind the verdict".to_string());
        }
        match expr {
            Expr::Meta { into, .. } | Expr::Ct { into, .. } | Expr::Payload { into, .. } | Expr::SocketCgroup { into, .. } => {
                lifting.load(*into, expr)?;
            }
            Expr::Bitwise { from, into, mask, xor } => lifting.bitwise(*from, *into, mask, xor)?,
            Expr::Compare { how: Comparison::GreaterOrEqual, from, data } => match exprs.next() {
                Some(Expr::Compare { how: Comparison::LessOrEqual, from: also, data: high }) if from == also => {
                    lifting.within(*from, data, high)?;
                }
                _ => return Err("a one-sided comparison".to_string()),
            },
            Expr::Range { inverted: false, from, low, high } => lifting.within(*from, low, high)?,
            Expr::Compare { how, from, data } => lifting.compare(*how, *from, data)?,
            Expr::Lookup { set, from, inverted: false } => lifting.lookup(set, *from)?,
            Expr::Update { set, operation: 1, from, timeout_ms, element } => lifting.update(set, *from, *timeout_ms, element)?,
            Expr::Limit { .. } => {
                lifting.nothing_unread()?;
                let (rate, side) = lift_limit(expr).ok_or("a limit of another kind")?;
                lifting.statements.push(Statement::Limit(rate, side));
            }
            Expr::Log { prefix, group, snaplen: 128, threshold: 1 } if *group == LOG_GROUP => {
                lifting.nothing_unread()?;
                lifting.statements.push(Statement::Log { prefix: prefix.clone() });
            }
            Expr::Verdict(verdict) => lifting.action = Some(lift_verdict(verdict)),
            Expr::Reject { kind: 1, code: 0 } => lifting.action = Some(Action::Reset),
            Expr::Reject { kind: 2, code: 3 } => lifting.action = Some(Action::Prohibit),
            Expr::Foreign(name) => return Err(format!("expression `{name}`")),
            other => return Err(format!("{other:?}")),
        }
    }
    lifting.nothing_unread()?;
    let action = lifting.action.unwrap_or(Action::Continue);
    let rule = Rule::new(program.comment.clone(), lifting.tests, lifting.statements, action);
    if lifting.late.iter().any(|test| rule.tests.contains(test)) {
        return Err("a test behind a statement".to_string());
    }
    Ok(rule)
}

#[derive(Default)]
struct Lifting<'a> {
    /// What each register holds: the loading expression and the mask laid over it.
    registers: BTreeMap<Register, (&'a Expr, Option<&'a [u8]>)>,
    tests: Vec<Test>,
    /// Tests that stand behind a statement: right only when they merely guard the key of a later one.
    late: Vec<Test>,
    statements: Vec<Statement>,
    action: Option<Action>,
}

impl<'a> Lifting<'a> {
    fn load(&mut self, into: Register, expr: &'a Expr) -> Result<(), String> {
        match self.registers.insert(into, (expr, None)) {
            Some((unread, _)) => Err(format!("nothing looks at {unread:?}")),
            None => Ok(()),
        }
    }

    /// A load that nothing looks at is a test all the same: the rule ends there for packets that do not have the value.
    fn nothing_unread(&self) -> Result<(), String> {
        match self.registers.values().next() {
            Some((unread, _)) => Err(format!("nothing looks at {unread:?}")),
            None => Ok(()),
        }
    }

    fn bitwise(&mut self, from: Register, into: Register, mask: &'a [u8], xor: &[u8]) -> Result<(), String> {
        let held =
            self.registers.get_mut(&from).filter(|held| held.1.is_none() && from == into).ok_or("a bitwise operation of another shape")?;
        if xor.iter().any(|octet| *octet != 0) {
            return Err("a bitwise exclusive or".to_string());
        }
        held.1 = Some(mask);
        Ok(())
    }

    /// What the tests so far confirm.
    fn holds(&self, guard: Guard) -> bool {
        let (field, value) = guard.test();
        self.tests.iter().any(|test| test.field == field && test.operator == Operator::Is(value))
    }

    /// The field that a register holds, with the mask that stays to be understood.
    fn field(&self, from: Register) -> Result<(Field, Option<&'a [u8]>), String> {
        let (expr, mask) = *self.registers.get(&from).ok_or("a register that nothing was loaded into")?;
        if let (Expr::Meta { key: 3, .. }, Some([0, 0, 0, 0])) = (expr, mask) {
            return Ok((Field::Everybody, None));
        }
        let field = Field::loaded_by(expr, |guard| self.holds(guard)).ok_or_else(|| format!("{expr:?}"))?;
        if field == Field::Everybody {
            return Err("the packet mark".to_string());
        }
        Ok((field, mask))
    }

    fn compare(&mut self, how: Comparison, from: Register, data: &[u8]) -> Result<(), String> {
        if let Some(fields) = self.merged(from, data.len()) {
            // nft loads neighbouring fields at once: taken apart again.
            let mut rest = data;
            for field in fields.into_iter().filter(|_| how == Comparison::Equal) {
                let (value, behind) = rest.split_at(field.octets());
                let value = field.decode(value).ok_or("a comparison of another length")?;
                self.test(field, Operator::Is(value))?;
                rest = behind;
            }
            return if rest.is_empty() { Ok(()) } else { Err("a comparison of several fields".to_string()) };
        }
        let (field, mask) = self.field(from)?;
        let value = field.decode(data).ok_or("a comparison of another length")?;
        let operator = match (how, mask) {
            (Comparison::Equal, None) => Operator::Is(value),
            (Comparison::NotEqual, None) => Operator::IsNot(value),
            (Comparison::Equal, Some(mask)) if value == 0 => Operator::HasNone(field.decode(mask).ok_or("a mask of another length")?),
            (Comparison::NotEqual, Some(mask)) if value == 0 => Operator::HasAny(field.decode(mask).ok_or("a mask of another length")?),
            _ => return Err("a comparison of another shape".to_string()),
        };
        self.test(field, operator)
    }

    /// The fields that one payload load covers end to end, two or more of them.
    fn merged(&self, from: Register, len: usize) -> Option<Vec<Field>> {
        let (Expr::Payload { base, offset, len: loaded, into }, None) = *self.registers.get(&from)? else { return None };
        if *loaded as usize != len {
            return None;
        }
        let (mut at, end) = (*offset, *offset + *loaded);
        let mut fields = Vec::new();
        while at < end {
            let field = (1..=end - at).rev().find_map(|len| {
                let part = Expr::Payload { base: *base, offset: at, len, into: *into };
                Field::loaded_by(&part, |guard| self.holds(guard))
            })?;
            at += field.octets() as u32;
            fields.push(field);
        }
        (fields.len() > 1).then_some(fields)
    }

    fn within(&mut self, from: Register, low: &[u8], high: &[u8]) -> Result<(), String> {
        match self.field(from)? {
            // The kernel compares octet by octet, which is the order of values only in network order or in one octet.
            (field, None) if !field.host_order() || field.octets() == 1 => {
                let bounds = field.decode(low).zip(field.decode(high)).ok_or("bounds of another length")?;
                self.test(field, Operator::Within(bounds.0, bounds.1))
            }
            _ => Err("bounds of another shape".to_string()),
        }
    }

    fn lookup(&mut self, set: &str, from: Register) -> Result<(), String> {
        match self.field(from)? {
            (field, None) if self.registers.len() == 1 => self.test(field, Operator::In(set.to_string())),
            _ => Err("a look-up of another shape".to_string()),
        }
    }

    fn test(&mut self, field: Field, operator: Operator) -> Result<(), String> {
        if self.registers.len() > 1 {
            return Err("a test beside a value that nothing looks at".to_string());
        }
        let test = Test { field, operator };
        if !self.statements.is_empty() {
            self.late.push(test.clone());
        }
        self.registers.clear();
        self.tests.push(test);
        Ok(())
    }

    fn update(&mut self, set: &str, from: Register, timeout_ms: u64, element: &[Expr]) -> Result<(), String> {
        let mut key = Vec::new();
        let mut slot = from.0;
        while self.registers.contains_key(&Register(slot)) {
            // A part of a key is never a protocol's own port: the protocol is a part of the key beside it.
            let field = match self.field(Register(slot))? {
                (Field::DestinationPort(_), None) => Field::TransportDestinationPort,
                (field, None) => field,
                (_, Some(_)) => return Err("a masked key".to_string()),
            };
            slot += field.octets().div_ceil(4) as u8;
            key.push(field);
        }
        let used = self.registers.len();
        if key.is_empty() || key.len() != used || timeout_ms % 1000 != 0 {
            return Err("a set update of another shape".to_string());
        }
        let carries = match element {
            [] => Carries::Nothing,
            [Expr::Counter] => Carries::Counter,
            [limit] => match lift_limit(limit) {
                Some((rate, Side::Over)) => Carries::Over(rate),
                _ => return Err("an element statement of another kind".to_string()),
            },
            _ => return Err("several element statements".to_string()),
        };
        self.registers.clear();
        self.statements.push(Statement::Update { set: set.to_string(), key, lives: Period::from_seconds(timeout_ms / 1000), carries });
        Ok(())
    }
}

fn lift_limit(expr: &Expr) -> Option<(Rate, Side)> {
    let Expr::Limit { rate, unit, burst, kind: 0, over } = expr else { return None };
    let unit = RateUnit::ALL.into_iter().find(|known| known.seconds() == *unit)?;
    Some((Rate { packets: *rate, unit, burst: *burst }, if *over { Side::Over } else { Side::Below }))
}

fn lift_verdict(verdict: &Verdict) -> Action {
    match verdict {
        Verdict::Accept => Action::Accept,
        Verdict::Drop => Action::Drop,
        Verdict::Continue => Action::Continue,
        Verdict::Return => Action::Return,
        Verdict::Jump(chain) => Action::Jump(chain.clone()),
        Verdict::Goto(chain) => Action::Goto(chain.clone()),
    }
}
