//! From rules to the kernel's program: fields are loaded into registers, what they take for granted is tested first.

use std::collections::BTreeSet;

use crate::base::time::Timestamp;
use crate::ruleset::field::{Field, Guard};
use crate::ruleset::program::{Comparison, Element, Elements, Expr, Register, RuleProgram, TableDef, TableDump, Verdict};
use crate::ruleset::rule::{Action, Carries, Operator, Rate, Rule, Side, Statement, Test};
use crate::ruleset::set::{Member, Set};
use crate::ruleset::{LOG_GROUP, Ruleset, TABLE_COMMENT};

/// How many octets of a refused packet the kernel copies to the log: enough for every header that attribution reads.
const SNAPLEN: u32 = 128;
/// Records are sent one by one, so that the sender can still be found when its record is read.
const THRESHOLD: u16 = 1;
/// The first register.
const FIRST: Register = Register(0);

/// What the kernel should hold at this time. Rules that cannot be loaded are left out.
pub fn lower(ruleset: &Ruleset, now: Timestamp) -> TableDump {
    let chains = ruleset.chains.iter().map(|chain| (chain.def.clone(), chain.rules.iter().filter_map(lower_rule).collect())).collect();
    let sets = ruleset.sets.iter().map(|(name, set)| (name.clone(), (set.def.clone(), lower_members(set, now)))).collect();
    TableDump { table: TableDef { comment: TABLE_COMMENT.to_string(), flags: 0 }, chains, sets, foreign: Vec::new() }
}

/// The elements of a set; a member whose time has come is none.
pub fn lower_members(set: &Set, now: Timestamp) -> Elements {
    set.members.iter().filter_map(|(key, member)| Some((key.clone(), lower_member(member, now)?))).collect()
}

/// One element, with the time it has left.
pub fn lower_member(member: &Member, now: Timestamp) -> Option<Element> {
    let timeout_ms = match member.expires {
        Some(expires) if expires <= now => return None,
        Some(expires) => Some(expires.since(now).seconds() * 1000),
        None => None,
    };
    Some(Element { last: member.last.clone(), timeout_ms, expires_ms: None, comment: member.comment.clone(), counted: None })
}

/// The program of a rule; `None` when it names a user or group that is not known.
pub fn lower_rule(rule: &Rule) -> Option<RuleProgram> {
    let mut program = Lowering { exprs: Vec::new(), known: BTreeSet::new() };
    for test in &rule.tests {
        program.test(test)?;
    }
    for statement in &rule.statements {
        program.statement(statement);
    }
    program.action(&rule.action);
    Some(RuleProgram { exprs: program.exprs, comment: rule.id.clone() })
}

struct Lowering {
    exprs: Vec<Expr>,
    /// What has been tested already and need not be tested again.
    known: BTreeSet<Guard>,
}

impl Lowering {
    fn test(&mut self, test: &Test) -> Option<()> {
        let field = test.field;
        self.guard(field);
        self.exprs.extend(field.load(FIRST));
        let compare = |how, value| Expr::Compare { how, from: FIRST, data: field.encode(value) };
        match &test.operator {
            Operator::Is(value) => {
                self.exprs.push(compare(Comparison::Equal, *value));
                self.learn(field, *value);
            }
            Operator::IsNot(value) => self.exprs.push(compare(Comparison::NotEqual, *value)),
            Operator::Within(low, high) => {
                self.exprs.push(compare(Comparison::GreaterOrEqual, *low));
                self.exprs.push(compare(Comparison::LessOrEqual, *high));
            }
            Operator::HasAny(bits) => {
                self.mask(field, *bits);
                self.exprs.push(compare(Comparison::NotEqual, 0));
            }
            Operator::HasNone(bits) => {
                self.mask(field, *bits);
                self.exprs.push(compare(Comparison::Equal, 0));
            }
            Operator::In(set) => self.exprs.push(Expr::Lookup { set: set.clone(), from: FIRST, inverted: false }),
            Operator::IsNamed(_) => return None,
        }
        Some(())
    }

    fn statement(&mut self, statement: &Statement) {
        match statement {
            Statement::Limit(rate, side) => self.exprs.push(limit(*rate, *side)),
            Statement::Log { prefix } => {
                self.exprs.push(Expr::Log { prefix: prefix.clone(), group: LOG_GROUP, snaplen: SNAPLEN, threshold: THRESHOLD });
            }
            Statement::Update { set, key, lives, carries } => {
                for field in key {
                    self.guard(*field);
                }
                let mut slot = 0;
                for field in key {
                    self.exprs.extend(field.load(Register(slot)));
                    slot += field.octets().div_ceil(4) as u8;
                }
                let element = match carries {
                    Carries::Nothing => Vec::new(),
                    Carries::Counter => vec![Expr::Counter],
                    Carries::Over(rate) => vec![limit(*rate, Side::Over)],
                };
                self.exprs.push(Expr::Update { set: set.clone(), operation: 1, from: FIRST, timeout_ms: lives.seconds() * 1000, element });
            }
        }
    }

    fn action(&mut self, action: &Action) {
        let verdict = match action {
            Action::Continue => return,
            Action::Accept => Verdict::Accept,
            Action::Drop => Verdict::Drop,
            Action::Return => Verdict::Return,
            Action::Jump(chain) => Verdict::Jump(chain.clone()),
            Action::Goto(chain) => Verdict::Goto(chain.clone()),
            // NFT_REJECT_TCP_RST.
            Action::Reset => return self.exprs.push(Expr::Reject { kind: 1, code: 0 }),
            // NFT_REJECT_ICMPX_UNREACH with NFT_REJECT_ICMPX_ADMIN_PROHIBITED: the kernel picks the family's own code.
            Action::Prohibit => return self.exprs.push(Expr::Reject { kind: 2, code: 3 }),
        };
        self.exprs.push(Expr::Verdict(verdict));
    }

    /// Tests what the field takes for granted, unless that is known.
    fn guard(&mut self, field: Field) {
        for guard in field.row().guards {
            if self.known.insert(*guard) {
                let (field, value) = guard.test();
                self.exprs.extend(field.load(FIRST));
                self.exprs.push(Expr::Compare { how: Comparison::Equal, from: FIRST, data: field.encode(value) });
            }
        }
    }

    fn mask(&mut self, field: Field, bits: u128) {
        self.exprs.push(Expr::Bitwise { from: FIRST, into: FIRST, mask: field.encode(bits), xor: vec![0; field.octets()] });
    }

    /// An explicit test of a family or protocol serves the fields after it.
    fn learn(&mut self, field: Field, value: u128) {
        self.known.extend(guard_of(field, value));
    }
}

/// The guard that this test is, if it is one.
fn guard_of(field: Field, value: u128) -> Option<Guard> {
    use crate::base::net::{Family, Protocol};
    match field {
        Field::NetworkFamily => Family::BOTH.into_iter().find(|family| u128::from(family.nfproto()) == value).map(Guard::Family),
        Field::L4Protocol => u8::try_from(value).ok().map(|number| Guard::Protocol(Protocol(number))),
        _ => None,
    }
}

fn limit(rate: Rate, side: Side) -> Expr {
    Expr::Limit { rate: rate.packets, unit: rate.unit.seconds(), burst: rate.burst, kind: 0, over: side == Side::Over }
}
