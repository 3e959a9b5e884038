//! What the rules make of one packet, and why: the kernel's way through the chains, walked as values.
//!
//! Every set holds what the ruleset says it holds, so sets that rules fill are empty unless the caller puts members into them.
//! No rate is ever exceeded, and a set that rules fill always has room.

use std::fmt::Write;

use crate::base::packet::Direction;
use crate::judge::packet::{Packet, STRANGER, value};
use crate::ruleset::field::{Field, LOOPBACK};
use crate::ruleset::program::{Base, Hook};
use crate::ruleset::rule::{Action, Carries, Operator, Rule, Side, Statement, Test};
use crate::ruleset::set::{Member, Set};
use crate::ruleset::text::{write_rule, write_test};
use crate::ruleset::{Chain, Ruleset};

/// What became of a packet, and the way there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trace {
    /// What became of it.
    pub verdict: Verdict,
    /// Who decided: the id of a rule of the policy, or of a built-in one. Where a rule serves several rules of the policy, the
    /// element that the packet met says which.
    pub rule: String,
    /// The name or network of the policy that the packet goes to, where an element says it.
    pub target: Option<String>,
    /// The chain in which it was decided.
    pub chain: String,
    /// Every rule that was tried, in order.
    pub steps: Vec<Step>,
}

/// What becomes of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verdict {
    /// It passes.
    Allow,
    /// It does not.
    Deny {
        /// What its sender learns of that.
        how: Refusal,
    },
}

/// What the sender of a refused packet learns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Refusal {
    /// Nothing.
    Drop,
    /// A TCP reset.
    Reset,
    /// An ICMP error: administratively prohibited.
    Prohibit,
}

/// A rule that was tried.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// In which chain.
    pub chain: String,
    /// Its id.
    pub rule: String,
    /// What came of it.
    pub outcome: Outcome,
    /// The first test that failed, or what the rule is, in words.
    pub because: String,
}

/// What came of trying a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// A test failed: the next rule.
    Missed,
    /// It matched and decides nothing: the next rule.
    Matched,
    /// It matched and sent the packet through another chain.
    Entered {
        /// Which.
        chain: String,
    },
    /// It matched and sent the packet back.
    Returned,
    /// It decided.
    Decided(Verdict),
}

/// More chains inside each other than the kernel's sixteen would be a loop, which it refuses to load.
const DEPTH: usize = 64;

/// The hooks that a packet meets, in order. A ruleset that we compiled hangs at the middle ones only; what others put into our table
/// may hang anywhere.
fn hooks(direction: Direction) -> &'static [Hook] {
    match direction {
        Direction::In => &[Hook::Prerouting, Hook::Input],
        Direction::Out => &[Hook::Output, Hook::Postrouting],
        Direction::Forward => &[Hook::Prerouting, Hook::Forward, Hook::Postrouting],
    }
}

/// Judges a packet under these rules. Total: what the kernel would refuse to load (a chain or set that does not exist, a loop)
/// ends in a drop or does not match.
pub fn judge(ruleset: &Ruleset, packet: &Packet) -> Trace {
    Prepared::new(ruleset).judge(packet)
}

/// A ruleset as packets walk through it: where its sets are is found out once for all of them.
pub struct Prepared<'a> {
    chains: Vec<PreparedChain<'a>>,
}

struct PreparedChain<'a> {
    chain: &'a Chain,
    rules: Vec<PreparedRule<'a>>,
}

struct PreparedRule<'a> {
    rule: &'a Rule,
    /// The set of each test that asks for one, in order; `None` where there is no such set.
    sets: Vec<Option<&'a Set>>,
}

impl<'a> Prepared<'a> {
    /// Finds out where the sets are.
    pub fn new(ruleset: &'a Ruleset) -> Prepared<'a> {
        let set = |test: &Test| match &test.operator {
            Operator::In(name) => Some(ruleset.sets.get(name)),
            _ => None,
        };
        let rule = |rule: &'a Rule| PreparedRule { rule, sets: rule.tests.iter().filter_map(set).collect() };
        let chain = |chain: &'a Chain| PreparedChain { chain, rules: chain.rules.iter().map(rule).collect() };
        Prepared { chains: ruleset.chains.iter().map(chain).collect() }
    }

    /// What [`judge`] says.
    pub fn judge(&self, packet: &Packet) -> Trace {
        self.walk(packet, Telling::Everything)
    }

    /// What [`judge`] says, without the steps: for many packets at once, for putting the way into words costs more than going it.
    pub fn decide(&self, packet: &Packet) -> Trace {
        self.walk(packet, Telling::Nothing)
    }

    fn walk(&self, packet: &Packet, telling: Telling) -> Trace {
        let mut walk = Walk { chains: &self.chains, packet, telling, steps: Vec::new() };
        let hooks = hooks(packet.direction);
        let mut bases: Vec<_> = self.chains.iter().filter_map(|chain| base_at(hooks, chain)).collect();
        bases.sort_by_key(|(hook, _, base)| (*hook, base.priority));
        // An accept ends only its own base chain; a refusal ends all.
        let mut last = None;
        for (_, chain, base) in bases {
            let end = walk.chain(chain, 0).unwrap_or_else(|| {
                let verdict = if base.accepts { Verdict::Allow } else { Verdict::Deny { how: Refusal::Drop } };
                End { verdict, rule: "policy".to_string(), target: None, chain: chain.chain.def.name.clone() }
            });
            let done = end.verdict != Verdict::Allow;
            last = Some(end);
            if done {
                break;
            }
        }
        let end = last.unwrap_or(End { verdict: Verdict::Allow, rule: "no-rules".to_string(), target: None, chain: String::new() });
        Trace { verdict: end.verdict, rule: end.rule, target: end.target, chain: end.chain, steps: walk.steps }
    }
}

/// How much is put into words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Telling {
    /// Every step.
    Everything,
    /// None: the trace has no steps.
    Nothing,
}

/// A base chain that hangs at one of these hooks, and which of them it is.
fn base_at<'p, 'a>(hooks: &[Hook], chain: &'p PreparedChain<'a>) -> Option<(usize, &'p PreparedChain<'a>, &'a Base)> {
    let base = chain.chain.def.base.as_ref()?;
    Some((hooks.iter().position(|hook| *hook == base.hook)?, chain, base))
}

/// Where the walk ends.
struct End {
    verdict: Verdict,
    rule: String,
    target: Option<String>,
    chain: String,
}

struct Walk<'p, 'a> {
    chains: &'p [PreparedChain<'a>],
    packet: &'p Packet,
    telling: Telling,
    steps: Vec<Step>,
}

impl<'p, 'a> Walk<'p, 'a> {
    /// Goes through a chain; `None` when it decides nothing.
    fn chain(&mut self, prepared: &'p PreparedChain<'a>, depth: usize) -> Option<End> {
        let chain = prepared.chain;
        for PreparedRule { rule, sets } in &prepared.rules {
            let met = match self.matches(rule, sets) {
                Ok(met) => met,
                Err(because) => {
                    self.step(chain, rule, || Outcome::Missed, because);
                    continue;
                }
            };
            let verdict = match &rule.action {
                Action::Continue => {
                    self.step(chain, rule, || Outcome::Matched, self.say(|| quoted(rule)));
                    continue;
                }
                Action::Return => {
                    self.step(chain, rule, || Outcome::Returned, self.say(|| quoted(rule)));
                    return None;
                }
                Action::Jump(name) | Action::Goto(name) => {
                    self.step(chain, rule, || Outcome::Entered { chain: name.clone() }, self.say(|| quoted(rule)));
                    let called = self.chains.iter().find(|called| called.chain.def.name == *name);
                    let Some(next) = called.filter(|_| depth < DEPTH) else {
                        return Some(self.end(chain, rule, Verdict::Deny { how: Refusal::Drop }, None));
                    };
                    let end = self.chain(next, depth + 1);
                    if end.is_some() || matches!(rule.action, Action::Goto(_)) {
                        return end;
                    }
                    continue;
                }
                Action::Accept => Verdict::Allow,
                Action::Drop => Verdict::Deny { how: Refusal::Drop },
                Action::Reset => Verdict::Deny { how: Refusal::Reset },
                Action::Prohibit => Verdict::Deny { how: Refusal::Prohibit },
            };
            let mut because = self.say(|| quoted(rule));
            if let Some(member) = met.filter(|member| self.telling == Telling::Everything && !member.comment.is_empty()) {
                let _ = write!(because, ": the packet meets `{}`", member.comment);
            }
            self.step(chain, rule, || Outcome::Decided(verdict), because);
            return Some(self.end(chain, rule, verdict, met));
        }
        None
    }

    /// The words, where they are wanted.
    fn say(&self, words: impl FnOnce() -> String) -> String {
        if self.telling == Telling::Everything { words() } else { String::new() }
    }

    fn step(&mut self, chain: &Chain, rule: &Rule, outcome: impl FnOnce() -> Outcome, because: String) {
        if self.telling == Telling::Nothing {
            return;
        }
        let outcome = outcome();
        self.steps.push(Step { chain: chain.def.name.clone(), rule: rule.id.clone(), outcome, because });
    }

    fn end(&self, chain: &Chain, rule: &Rule, verdict: Verdict, met: Option<&Member>) -> End {
        let source = met.and_then(|member| source(&member.comment));
        let (target, id) = source.unzip();
        End { verdict, rule: id.unwrap_or(&rule.id).to_string(), target: target.map(str::to_string), chain: chain.def.name.clone() }
    }

    /// The last element that the packet met, or why the rule does not match.
    fn matches(&self, rule: &Rule, sets: &[Option<&'a Set>]) -> Result<Option<&'a Member>, String> {
        let mut met = None;
        let mut sets = sets.iter();
        for test in &rule.tests {
            self.guards(test.field)?;
            let found = self.value(test)?;
            match test.operator {
                Operator::In(_) => met = Some(self.member(test, found, sets.next().copied().flatten())?),
                _ => self.holds(test, found)?,
            }
        }
        for statement in &rule.statements {
            self.statement(statement)?;
        }
        Ok(met)
    }

    fn guards(&self, field: Field) -> Result<(), String> {
        for guard in field.row().guards {
            let (field, number) = guard.test();
            if value(field, self.packet) != Some(number) {
                let test = Test { field, operator: Operator::Is(number) };
                return self.value(&test).and_then(|found| self.holds(&test, found));
            }
        }
        Ok(())
    }

    /// What the packet has where the test looks.
    fn value(&self, test: &Test) -> Result<u128, String> {
        let lacks = || self.say(|| format!("`{}`: the packet has {}", write_test(test), nothing(test.field)));
        value(test.field, self.packet).ok_or_else(lacks)
    }

    /// The element of the set that holds it.
    fn member(&self, test: &Test, found: u128, set: Option<&'a Set>) -> Result<&'a Member, String> {
        let (register, octets) = test.field.register(found);
        match set.and_then(|set| set.find(&register[..octets])) {
            Some((_, member)) => Ok(member),
            None => Err(self.say(|| format!("`{}`: {} is not in it", write_test(test), self.write(test.field, found)))),
        }
    }

    /// Whether a test that asks for no set holds.
    fn holds(&self, test: &Test, found: u128) -> Result<(), String> {
        let field = test.field;
        let holds = match &test.operator {
            Operator::Is(number) => found == *number,
            Operator::IsNot(number) => found != *number,
            Operator::Within(low, high) => (*low..=*high).contains(&found),
            Operator::HasAny(bits) => found & bits != 0,
            Operator::HasNone(bits) => found & bits == 0,
            // A packet's spelling names users and no groups, so a group whose number is not known has no packets.
            Operator::IsNamed(name) => {
                field == Field::SocketUser && self.packet.socket.as_ref().and_then(|socket| socket.user_name.as_ref()) == Some(name)
            }
            // A set is asked for its element.
            Operator::In(_) => false,
        };
        match holds {
            true => Ok(()),
            false => Err(self.say(|| format!("`{}`: the packet has {}", write_test(test), self.write(field, found)))),
        }
    }

    fn write(&self, field: Field, found: u128) -> String {
        let named = self.packet.socket.as_ref().and_then(|socket| socket.user_name.clone());
        match (field, named) {
            (Field::SocketUser, Some(name)) => format!("user {name}"),
            (Field::SocketUser | Field::SocketGroup, None) if found == u128::from(STRANGER) => "another".to_string(),
            (Field::InputInterface | Field::OutputInterface, _) if found != LOOPBACK => "another".to_string(),
            _ => field.write(found),
        }
    }

    fn statement(&self, statement: &Statement) -> Result<(), String> {
        match statement {
            Statement::Limit(_, Side::Below) | Statement::Log { .. } => Ok(()),
            Statement::Limit(_, Side::Over) => Err(self.say(|| "the rate is not exceeded".to_string())),
            Statement::Update { key, carries, .. } => {
                for field in key {
                    self.guards(*field)?;
                    if value(*field, self.packet).is_none() {
                        return Err(self.say(|| format!("`{}`: the packet has {}", field.row().keyword, nothing(*field))));
                    }
                }
                match carries {
                    Carries::Nothing | Carries::Counter => Ok(()),
                    Carries::Over(_) => Err(self.say(|| "the rate is not exceeded".to_string())),
                }
            }
        }
    }
}

/// The whole rule as nft writes it.
fn quoted(rule: &Rule) -> String {
    format!("`{}`", write_rule(&Rule { id: String::new(), ..rule.clone() }))
}

/// What it is that a packet lacks when the field has no value.
fn nothing(field: Field) -> &'static str {
    match field {
        Field::InputInterface | Field::OutputInterface => "no such interface",
        Field::SocketUser | Field::SocketGroup => "no socket",
        Field::SocketCgroup(_) => "no control group at this level",
        Field::ConntrackState | Field::ConntrackDirection | Field::ConntrackStatus | Field::OriginalDestinationPort => {
            "no tracked connection of this kind"
        }
        Field::SourcePort(_) | Field::DestinationPort(_) | Field::TransportDestinationPort => "no such port",
        _ => "no such field",
    }
}

/// The first source that an element's comment names: what the policy wrote, and the id of the rule that wrote it. See
/// [`crate::ruleset::set::comment`].
pub fn source(comment: &str) -> Option<(&str, &str)> {
    let first = comment.split(", ").next().filter(|first| !first.is_empty() && !first.ends_with("..."))?;
    Some(first.strip_suffix(']').and_then(|first| first.split_once(" [")).unwrap_or((first, first)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::name::Slug;
    use crate::judge::packet::Payload;
    use crate::policy::Mode;
    use crate::ruleset::Identity;
    use crate::ruleset::field::{NO_USER, ct_state};
    use crate::ruleset::rule::{has_any, in_set, is, is_not};
    use crate::ruleset::set::Set;

    fn ruleset(chains: Vec<Chain>) -> Ruleset {
        let identity = Identity { policy: Slug::nearest("t", "t"), sha256: "0".repeat(64), generation: 1, mode: Mode::Enforce };
        Ruleset { identity, chains, sets: Default::default() }
    }

    fn output(rules: Vec<Rule>) -> Chain {
        Chain::base(Hook::Output, Mode::Enforce, rules)
    }

    fn rule(id: &str, tests: Vec<Test>, action: Action) -> Rule {
        Rule::new(id, tests, vec![], action)
    }

    fn to(address: &str, port: u16) -> Packet {
        let destination: std::net::IpAddr = address.parse().unwrap();
        let source = crate::base::net::Family::of(&destination).unspecified();
        Packet::new(Direction::Out, source, destination, Payload::Tcp { source: 50000, destination: port, flags: 2 }).unwrap()
    }

    fn jump(chain: &str) -> Action {
        Action::Jump(chain.to_string())
    }

    fn goto(chain: &str) -> Action {
        Action::Goto(chain.to_string())
    }

    fn deny(how: Refusal) -> Verdict {
        Verdict::Deny { how }
    }

    const DPORT: Field = Field::DestinationPort(crate::base::net::Protocol::TCP);

    #[test]
    fn the_first_rule_whose_tests_all_hold_decides() {
        let rules = vec![
            rule("web", vec![is(DPORT, 443u16)], Action::Accept),
            rule("all", vec![], Action::Drop),
            rule("late", vec![], Action::Accept),
        ];
        let rules = ruleset(vec![output(rules)]);
        assert_eq!(judge(&rules, &to("192.0.2.1", 443)).rule, "web");
        let trace = judge(&rules, &to("192.0.2.1", 80));
        assert_eq!((trace.verdict, trace.rule.as_str(), trace.steps.len()), (deny(Refusal::Drop), "all", 2));
        assert_eq!(trace.steps[0].because, "`tcp dport 443`: the packet has 80");
    }

    #[test]
    fn what_a_field_takes_for_granted_is_asked_first() {
        let udp = Field::DestinationPort(crate::base::net::Protocol::UDP);
        let trace = judge(&ruleset(vec![output(vec![rule("dns", vec![is(udp, 53u16)], Action::Accept)])]), &to("192.0.2.1", 53));
        assert_eq!(trace.steps[0].because, "`meta l4proto udp`: the packet has tcp");
    }

    #[test]
    fn a_jump_comes_back_and_a_goto_does_not() {
        let called = || Chain::regular("called", vec![rule("back", vec![], Action::Return), rule("never", vec![], Action::Accept)]);
        let with = |action| ruleset(vec![output(vec![rule("go", vec![], action), rule("next", vec![], Action::Reset)]), called()]);
        assert_eq!(judge(&with(jump("called")), &to("192.0.2.1", 1)).rule, "next");
        let trace = judge(&with(goto("called")), &to("192.0.2.1", 1));
        assert_eq!((trace.verdict, trace.rule.as_str(), trace.chain.as_str()), (deny(Refusal::Drop), "policy", "output"));
    }

    #[test]
    fn a_goto_inside_a_jumped_chain_comes_back_to_where_that_was_jumped_from() {
        let rules = ruleset(vec![
            output(vec![rule("a", vec![], jump("first")), rule("after", vec![], Action::Prohibit)]),
            Chain::regular("first", vec![rule("b", vec![], goto("second")), rule("skipped", vec![], Action::Accept)]),
            Chain::regular("second", vec![]),
        ]);
        assert_eq!(judge(&rules, &to("2001:db8::1", 1)).rule, "after");
    }

    #[test]
    fn a_loop_or_a_missing_chain_opens_nothing() {
        let looped = ruleset(vec![output(vec![rule("a", vec![], jump("x"))]), Chain::regular("x", vec![rule("b", vec![], goto("x"))])]);
        assert_eq!(judge(&looped, &to("192.0.2.1", 1)).verdict, deny(Refusal::Drop));
        let missing = ruleset(vec![output(vec![rule("a", vec![], jump("nowhere")), rule("b", vec![], Action::Accept)])]);
        assert_eq!(judge(&missing, &to("192.0.2.1", 1)).verdict, deny(Refusal::Drop));
    }

    #[test]
    fn a_packet_without_a_socket_matches_no_test_on_its_user() {
        let rules = ruleset(vec![output(vec![
            rule("one", vec![is(Field::SocketUser, 1000u32)], Action::Accept),
            rule("any", vec![is_not(Field::SocketUser, NO_USER)], Action::Reset),
        ])]);
        let mut packet = to("192.0.2.1", 1);
        assert_eq!(judge(&rules, &packet).rule, "any");
        packet.socket = None;
        let trace = judge(&rules, &packet);
        assert_eq!(trace.rule, "policy");
        assert_eq!(trace.steps[1].because, format!("`meta skuid != {NO_USER}`: the packet has no socket"));
    }

    #[test]
    fn an_invalid_packet_has_a_state_and_no_connection() {
        let rules = ruleset(vec![output(vec![
            rule("nat", vec![Test { field: Field::ConntrackStatus, operator: Operator::HasNone(32) }], Action::Accept),
            rule("bad", vec![has_any(Field::ConntrackState, ct_state::INVALID)], Action::Drop),
        ])]);
        let mut packet = to("192.0.2.1", 1);
        assert_eq!(judge(&rules, &packet).rule, "nat");
        packet.tracking.state = crate::base::packet::State::Invalid;
        assert_eq!(judge(&rules, &packet).rule, "bad");
    }

    #[test]
    fn the_element_says_whose_rule_it_is() {
        let family = crate::base::net::Family::V4;
        let mut rules =
            ruleset(vec![output(vec![rule("outbound tcp 443", vec![in_set(Field::DestinationAddress(family), "s")], Action::Accept)])]);
        let mut set = Set::of_addresses("s".to_string(), family);
        for (address, comment) in
            [("192.0.2.1", "api.example.com, other.example.com [b]"), ("192.0.2.2", "eu.example.com [eu]"), ("192.0.2.3", "aaa...")]
        {
            set.add_address(&address.parse().unwrap(), Member { comment: comment.to_string(), ..Member::default() });
        }
        rules.sets.insert("s".to_string(), set);
        let decided = |address: &str| {
            let trace = judge(&rules, &to(address, 443));
            (trace.rule, trace.target)
        };
        assert_eq!(decided("192.0.2.1"), ("api.example.com".to_string(), Some("api.example.com".to_string())));
        assert_eq!(decided("192.0.2.2"), ("eu".to_string(), Some("eu.example.com".to_string())));
        assert_eq!(decided("192.0.2.3"), ("outbound tcp 443".to_string(), None));
        let missed = judge(&rules, &to("192.0.2.4", 443));
        assert_eq!(missed.steps[0].because, "`ip daddr @s`: 192.0.2.4 is not in it");
    }

    #[test]
    fn a_chain_that_others_hung_behind_ours_has_the_last_word() {
        let accept = || vec![rule("all", vec![], Action::Accept)];
        let mut behind = Chain::base(Hook::Postrouting, Mode::Enforce, vec![]);
        behind.def.name = "behind".to_string();
        let rules = ruleset(vec![behind, output(accept())]);
        let trace = judge(&rules, &to("192.0.2.1", 1));
        assert_eq!((trace.verdict, trace.chain.as_str()), (deny(Refusal::Drop), "behind"));
        let incoming = Packet { direction: Direction::In, ..to("192.0.2.1", 1) };
        assert_eq!(judge(&rules, &incoming).rule, "no-rules");
    }

    #[test]
    fn without_a_chain_at_the_hook_everything_passes() {
        assert_eq!(judge(&ruleset(vec![]), &to("192.0.2.1", 1)).verdict, Verdict::Allow);
    }
}
