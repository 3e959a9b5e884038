//! What becomes of packets that nothing allows: held against the trip-wire, counted in a ledger, logged, and refused.
//!
//! Each of the four is a rule of its own, because a rule whose set is full stops there and must not take the others with it.

use crate::base::net::{Family, Protocol};
use crate::base::packet::Direction;
use crate::base::time::Period;
use crate::policy::{Mode, QuarantineScope};
use crate::ruleset::Chain;
use crate::ruleset::compile::{Compiler, QUARANTINED_HOST, QUARANTINED_USERS, goto, quietly};
use crate::ruleset::field::{Field, NO_USER, STATUS_DNAT};
use crate::ruleset::program::KeyType;
use crate::ruleset::rule::{Action, Carries, Rate, RateUnit, Rule, Side, Statement, Test, has_any, is, is_not};
use crate::ruleset::set::{Set, address_type};

/// What the names of all sets begin with that count refused packets.
pub const LEDGER: &str = "ledger_";
/// What the names of those begin with that count all packets of a direction together; its word follows.
pub const LEDGER_ALL: &str = "ledger_all_";
/// How long the kernel keeps a count that no packet renews.
pub const LEDGER_LIVES: Period = Period::from_seconds(86_400);
/// The same for all packets of a direction: longer than any boot, so that their count never begins anew unseen.
const ALL_LIVES: Period = Period::from_seconds(365 * 86_400);

/// What a ledger counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ledger {
    /// All packets of this direction.
    All(Direction),
    /// Packets of this direction by who and where.
    Each(Direction),
}

impl Ledger {
    /// What the set of this name counts; nothing when it is no ledger.
    pub fn of_set(name: &str) -> Option<Ledger> {
        let rest = name.strip_prefix(LEDGER)?;
        if let Some(direction) = rest.strip_prefix("all_") {
            return Direction::of_word(direction).map(Ledger::All);
        }
        let direction = match Ledger::sender(name)? {
            "user" | "kernel" => Direction::Out,
            "forwarded" => Direction::Forward,
            _ => Direction::In,
        };
        Some(Ledger::Each(direction))
    }

    /// Whose packets the set of this name tells apart: `user`, `kernel`, `forwarded` or `outside`; nothing when it tells nobody apart.
    pub fn sender(name: &str) -> Option<&'static str> {
        Some(match name.strip_prefix(LEDGER)?.split('_').next()? {
            "user" => "user",
            "kernel" => "kernel",
            "forward" => "forwarded",
            "in" => "outside",
            _ => return None,
        })
    }
}

/// How many records a second the log takes from one chain; the ledger counts all.
const LOG_RATE: Rate = Rate { packets: 10, unit: RateUnit::Second, burst: 50 };

impl Compiler<'_> {
    /// The chains that end in a refusal, with their sets. A policy that only observes lets everything pass at their end, and has others
    /// for those who are cut off: whoever cuts off means it.
    pub(super) fn refusals(&mut self) -> Vec<Chain> {
        let mut chains = self.refusals_of("refuse", self.mode);
        if self.mode == Mode::Observe {
            chains.extend(self.refusals_of(self.cut(), Mode::Enforce));
        }
        chains
    }

    /// What the names of the chains begin with that refuse whoever is cut off.
    pub(super) fn cut(&self) -> &'static str {
        match self.mode {
            Mode::Enforce => "refuse",
            Mode::Observe => "cut",
        }
    }

    /// The four chains whose names begin like this.
    fn refusals_of(&mut self, name: &str, mode: Mode) -> Vec<Chain> {
        let named = |direction: &str| format!("{name}_{direction}");
        let mut users = vec![self.all(Direction::Out)];
        users.extend(self.ledger("user", Field::SocketUser, KeyType::Uid));
        users.extend(log_and_refuse("refuse-out", mode));

        let mut kernel = vec![Rule::new("refuse-out", vec![is_not(Field::SocketUser, NO_USER)], vec![], goto(&named("user")))];
        // What is left has no socket: answers that the kernel makes by itself. They are counted by the address they leave from.
        kernel.push(self.all(Direction::Out));
        kernel.extend(self.ledger_by_source("kernel"));
        kernel.extend(log_and_refuse("refuse-out", mode));

        let mut forward = vec![self.all(Direction::Forward)];
        forward.extend(self.ledger_by_source("forward"));
        forward.push(log("refuse-forward"));
        if mode == Mode::Enforce {
            // It came from outside to a published port: a scanner learns nothing.
            forward.push(Rule::new("refuse-forward", vec![has_any(Field::ConntrackStatus, STATUS_DNAT)], vec![], Action::Drop));
        }
        forward.extend(refuse("refuse-forward", mode));

        let mut incoming = vec![self.all(Direction::In)];
        incoming.extend(self.ledger_of_ports());
        incoming.push(log("refuse-in"));
        incoming.push(Rule::new("refuse-in", vec![], vec![], quietly(mode)));

        vec![
            Chain::regular(&named("out"), kernel),
            Chain::regular(&named("user"), users),
            Chain::regular(&named("forward"), forward),
            Chain::regular(&named("in"), incoming),
        ]
    }

    /// Counts by (who, destination, protocol, port), and by (who, destination, protocol) where there are no ports.
    fn ledger(&mut self, name: &str, who: Field, who_type: KeyType) -> Vec<Rule> {
        Family::BOTH.into_iter().flat_map(|family| self.ledger_of(name, family, who, who_type)).collect()
    }

    /// The same by source address.
    fn ledger_by_source(&mut self, name: &str) -> Vec<Rule> {
        let of = |family| (Field::SourceAddress(family), address_type(family));
        Family::BOTH.into_iter().flat_map(|family| self.ledger_of(name, family, of(family).0, of(family).1)).collect()
    }

    /// Counts all of a direction together.
    ///
    /// ORDER: before the ledgers that tell who and where. One of those that is full counts only whom it holds already; what it leaves out
    /// is the difference to this count.
    fn all(&mut self, direction: Direction) -> Rule {
        let set = format!("{LEDGER_ALL}{}", direction.word());
        self.add_set(Set::dynamic(&set, vec![KeyType::Mark]));
        Rule::new("ledger", vec![], vec![update(&set, &[Field::Everybody], ALL_LIVES, Carries::Counter)], Action::Continue)
    }

    fn ledger_of(&mut self, name: &str, family: Family, who: Field, who_type: KeyType) -> Vec<Rule> {
        let to = Field::DestinationAddress(family);
        let with_port = format!("ledger_{name}_{}", family.suffix());
        let without = format!("ledger_{name}_other_{}", family.suffix());
        let key = vec![who_type, address_type(family), KeyType::InetProto];
        self.add_set(Set::dynamic(&with_port, [key.as_slice(), &[KeyType::InetService]].concat()));
        self.add_set(Set::dynamic(&without, key));
        counted(&with_port, &[who, to, Field::L4Protocol, Field::TransportDestinationPort], &without, &[who, to, Field::L4Protocol])
    }

    /// Counts by (protocol, port): who knocked does not matter, and a scanner could fill any set of addresses.
    fn ledger_of_ports(&mut self) -> Vec<Rule> {
        self.add_set(Set::dynamic("ledger_in", vec![KeyType::InetProto, KeyType::InetService]));
        self.add_set(Set::dynamic("ledger_in_other", vec![KeyType::InetProto]));
        counted("ledger_in", &[Field::L4Protocol, Field::TransportDestinationPort], "ledger_in_other", &[Field::L4Protocol])
    }

    /// Cuts off whoever is over the policy's limit, within the packet that breaks it. It stands where packets are known to be
    /// refused and before they go there, so that whoever is cut off already does not pass it again. A policy that only observes has
    /// none: the day it enforces, nobody is cut off for what was seen before.
    pub(super) fn trip_wire(&mut self, here: &[QuarantineScope], of_host: Vec<Test>) -> Vec<Rule> {
        let quarantine = self.policy.violations.quarantine.clone().filter(|quarantine| here.contains(&quarantine.scope));
        let Some(quarantine) = quarantine.filter(|_| self.mode == Mode::Enforce) else { return Vec::new() };
        // The policy's reader accepts only counts and times that make an exact rate.
        let Some(rate) = Rate::within(quarantine.after, quarantine.within) else { return Vec::new() };
        let cut = |set: &str, field: Field| update(set, &[field], quarantine.lasts, Carries::Nothing);
        let (tests, statements) = match quarantine.scope {
            QuarantineScope::User => {
                self.add_set(Set::dynamic("over_users", vec![KeyType::Uid]));
                let over = update("over_users", &[Field::SocketUser], quarantine.within, Carries::Over(rate));
                (vec![], vec![over, cut(QUARANTINED_USERS, Field::SocketUser)])
            }
            QuarantineScope::Host => (of_host, vec![Statement::Limit(rate, Side::Over), cut(QUARANTINED_HOST, Field::Everybody)]),
        };
        vec![Rule::new("quarantine", tests, statements, Action::Continue)]
    }
}

fn log_and_refuse(id: &str, mode: Mode) -> Vec<Rule> {
    let mut rules = vec![log(id)];
    rules.extend(refuse(id, mode));
    rules
}

/// The end: a local program fails at once and with a reason.
fn refuse(id: &str, mode: Mode) -> Vec<Rule> {
    match mode {
        Mode::Observe => vec![Rule::new(id, vec![], vec![], Action::Accept)],
        Mode::Enforce => vec![
            Rule::new(id, vec![is(Field::L4Protocol, Protocol::TCP.0)], vec![], Action::Reset),
            Rule::new(id, vec![], vec![], Action::Prohibit),
        ],
    }
}

/// One ledger rule for each protocol that has ports, and one for all others.
fn counted(with_port: &str, key: &[Field], without: &str, short_key: &[Field]) -> Vec<Rule> {
    let ported = [Protocol::TCP, Protocol::UDP];
    let rule = |tests: Vec<Test>, set: &str, key: &[Field]| {
        Rule::new("ledger", tests, vec![update(set, key, LEDGER_LIVES, Carries::Counter)], Action::Continue)
    };
    let mut rules: Vec<Rule> = ported.iter().map(|protocol| rule(vec![is(Field::L4Protocol, protocol.0)], with_port, key)).collect();
    rules.push(rule(ported.iter().map(|protocol| is_not(Field::L4Protocol, protocol.0)).collect(), without, short_key));
    rules
}

fn update(set: &str, key: &[Field], lives: Period, carries: Carries) -> Statement {
    Statement::Update { set: set.to_string(), key: key.to_vec(), lives, carries }
}

fn log(id: &str) -> Rule {
    let statements = vec![Statement::Limit(LOG_RATE, Side::Below), Statement::Log { prefix: format!("egressguard {id} ") }];
    Rule::new(id, vec![], statements, Action::Continue)
}
