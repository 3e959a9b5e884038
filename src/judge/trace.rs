//! What the rules make of one packet, and why: the kernel's way through the chains, walked as values.
//!
//! Every set holds what the ruleset says it holds, so sets that rules fill are empty unless the caller puts members into them.
//! No rate is ever exceeded, and a set that rules fill always has room.

use std::collections::HashMap;
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
    walk(ruleset, packet, Telling::Everything)
}

/// What [`judge`] says becomes of the packet, without the way there: for many packets at once, for putting the way into words costs
/// more than going it.
pub fn verdict(ruleset: &Ruleset, packet: &Packet) -> Verdict {
    decide(ruleset, packet).verdict
}

/// What [`judge`] says, without the steps.
pub fn decide(ruleset: &Ruleset, packet: &Packet) -> Trace {
    walk(ruleset, packet, Telling::Nothing)
}

/// A ruleset that thousands of packets are asked of: where its sets are is found out once.
pub struct Prepared<'a> {
    ruleset: &'a Ruleset,
    sets: HashMap<&'a str, &'a Set>,
}

impl<'a> Prepared<'a> {
    /// Finds out where the sets are.
    pub fn new(ruleset: &'a Ruleset) -> Prepared<'a> {
        Prepared { ruleset, sets: ruleset.sets.iter().map(|(name, set)| (name.as_str(), set)).collect() }
    }

    /// What [`decide`] says.
    pub fn decide(&self, packet: &Packet) -> Trace {
        walk_with(self.ruleset, &|name| self.sets.get(name).copied(), packet, Telling::Nothing)
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

fn walk(ruleset: &Ruleset, packet: &Packet, telling: Telling) -> Trace {
    walk_with(ruleset, &|name| ruleset.sets.get(name), packet, telling)
}

fn walk_with<'a>(ruleset: &'a Ruleset, sets: &'a dyn Fn(&str) -> Option<&'a Set>, packet: &'a Packet, telling: Telling) -> Trace {
    let mut walk = Walk { ruleset, sets, packet, telling, steps: Vec::new() };
    let hooks = hooks(packet.direction);
    let met = |chain| base_at(hooks, chain);
    let mut bases: Vec<_> = ruleset.chains.iter().filter_map(met).collect();
    bases.sort_by_key(|(hook, _, base)| (*hook, base.priority));
    // An accept ends only its own base chain; a refusal ends all.
    let mut last = None;
    for (_, chain, base) in bases {
        let end = walk.chain(chain, 0).unwrap_or_else(|| {
            let verdict = if base.accepts { Verdict::Allow } else { Verdict::Deny { how: Refusal::Drop } };
            End { verdict, rule: "policy".to_string(), target: None, chain: chain.def.name.clone() }
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

/// A base chain that hangs at one of these hooks, and which of them it is.
fn base_at<'a>(hooks: &[Hook], chain: &'a Chain) -> Option<(usize, &'a Chain, &'a Base)> {
    let base = chain.def.base.as_ref()?;
    Some((hooks.iter().position(|hook| *hook == base.hook)?, chain, base))
}

/// Where the walk ends.
struct End {
    verdict: Verdict,
    rule: String,
    target: Option<String>,
    chain: String,
}

struct Walk<'a> {
    ruleset: &'a Ruleset,
    sets: &'a dyn Fn(&str) -> Option<&'a Set>,
    packet: &'a Packet,
    telling: Telling,
    steps: Vec<Step>,
}

impl<'a> Walk<'a> {
    /// Goes through a chain; `None` when it decides nothing.
    fn chain(&mut self, chain: &'a Chain, depth: usize) -> Option<End> {
        for rule in &chain.rules {
            let met = match self.matches(rule) {
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
                    let Some(next) = self.ruleset.chain(name).filter(|_| depth < DEPTH) else {
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
    fn matches(&self, rule: &Rule) -> Result<Option<&'a Member>, String> {
        let mut met = None;
        for test in &rule.tests {
            self.guards(test.field)?;
            met = self.test(test)?.or(met);
        }
        for statement in &rule.statements {
            self.statement(statement)?;
        }
        Ok(met)
    }

    fn guards(&self, field: Field) -> Result<(), String> {
        for guard in field.row().guards {
            let (field, number) = guard.test();
            self.test(&Test { field, operator: Operator::Is(number) })?;
        }
        Ok(())
    }

    fn test(&self, test: &Test) -> Result<Option<&'a Member>, String> {
        let field = test.field;
        let Some(found) = value(field, self.packet) else {
            return Err(self.say(|| format!("`{}`: the packet has {}", write_test(test), nothing(field))));
        };
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
            Operator::In(set) => match (self.sets)(set).and_then(|set| set.find(&field.encode(found))) {
                Some((_, member)) => return Ok(Some(member)),
                None => return Err(self.say(|| format!("`{}`: {} is not in it", write_test(test), self.write(field, found)))),
            },
        };
        match holds {
            true => Ok(None),
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
