//! From a ruleset to the tables of iptables and ip6tables and the sets of ipset, with the same meaning.
//!
//! iptables knows no accept that leaves other people's rules a say: ACCEPT ends the whole table. So an accept becomes RETURN to
//! iptables' own chain, whose other rules then decide, as other tables do in nftables. RETURN goes back one step only; therefore every
//! chain of ours is entered from iptables' own by one jump and by gotos, and a chain that is jumped to is written out where it is
//! jumped to from. Where nftables has the policy of a base chain, each chain of ours ends in a drop.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt::Write;

use crate::base::net::Family;
use crate::export::names::{self, SetNames};
use crate::export::rule::{Line, NoLine, Target};
use crate::export::set::IpSet;
use crate::export::statement::everybody;
use crate::export::unsayable::{Place, Unsayable};
use crate::export::words::{Match, Piece, piece};
use crate::ruleset::compile::Facts;
use crate::ruleset::field::Field;
use crate::ruleset::program::{Hook, KeyType};
use crate::ruleset::rule::{Action, Operator, Rule, Statement, Test};
use crate::ruleset::set::Set;
use crate::ruleset::{Chain, IDENTITY_CHAIN, Identity, Ruleset, text};

/// More chains inside each other would be a loop.
const DEPTH: usize = 16;

/// Everything of ours in the tables `filter`, and the sets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Firewall {
    /// Whose rules these are.
    pub identity: Identity,
    /// The table of iptables, then that of ip6tables.
    pub tables: [Table; 2],
    /// Sets by name.
    pub sets: BTreeMap<String, IpSet>,
    /// Sets that nothing fills, by what the rules call them: what asks for them is never met, and not written.
    pub never: BTreeSet<String>,
}

/// The part of a table `filter` that is ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// Whose packets.
    pub family: Family,
    /// Our chains; those that iptables' own jump to come first.
    pub chains: Vec<IpChain>,
}

impl Table {
    /// What makes our chains and fills them, as `iptables-restore` takes it: a chain that is there is emptied in the same step.
    pub fn write(&self) -> String {
        let mut out = String::new();
        for chain in &self.chains {
            let _ = writeln!(out, ":{} - [0:0]", chain.name);
        }
        for chain in &self.chains {
            for rule in &chain.rules {
                let _ = writeln!(out, "-A {} {rule}", chain.name);
            }
        }
        out
    }

    /// The jumps from iptables' own chains, as they stand behind `-A`, `-D` or, with a place, `-I`.
    pub fn jumps(&self) -> impl Iterator<Item = (&'static str, String)> {
        self.chains.iter().filter_map(|chain| Some((chain.hook?, format!("-j {}", chain.name))))
    }
}

/// A chain of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IpChain {
    /// Its name.
    pub name: String,
    /// iptables' own chain that jumps to it, if one does.
    pub hook: Option<&'static str>,
    /// Its rules, as `iptables-save` prints them behind `-A NAME`.
    pub rules: Vec<String>,
}

/// The same meaning in iptables, or everything that cannot be said there.
pub fn export(ruleset: &Ruleset, facts: &Facts) -> Result<Firewall, Vec<Unsayable>> {
    let mut filled = BTreeMap::new();
    for rule in ruleset.chains.iter().flat_map(|chain| &chain.rules) {
        for statement in &rule.statements {
            if let Statement::Update { set, lives, .. } = statement {
                let known: &mut u64 = filled.entry(set.as_str()).or_default();
                *known = lives.seconds().max(*known);
            }
        }
    }
    let names = SetNames::of(ruleset);
    let mut exporter =
        Exporter { ruleset, facts, names, filled, sets: BTreeMap::new(), never: BTreeSet::new(), unsayable: BTreeSet::new() };
    let tables = Family::BOTH.map(|family| exporter.table(family));
    if !exporter.unsayable.is_empty() {
        return Err(exporter.unsayable.into_iter().collect());
    }
    Ok(Firewall { identity: ruleset.identity.clone(), tables, sets: exporter.sets, never: exporter.never })
}

pub(super) struct Exporter<'a> {
    pub(super) ruleset: &'a Ruleset,
    facts: &'a Facts,
    pub(super) names: SetNames,
    /// Sets that rules fill, and how long elements live.
    filled: BTreeMap<&'a str, u64>,
    pub(super) sets: BTreeMap<String, IpSet>,
    never: BTreeSet<String>,
    unsayable: BTreeSet<Unsayable>,
}

/// A chain while it is written.
pub(super) struct Writing<'a> {
    pub(super) family: Family,
    /// The chain's name in the ruleset.
    pub(super) name: &'a str,
    lines: Vec<Line>,
    /// Chains of its own, for what one rule cannot ask.
    helpers: Vec<Vec<Line>>,
    /// Chains that are gone to.
    pub(super) targets: Vec<&'a str>,
}

impl<'a> Exporter<'a> {
    fn table(&mut self, family: Family) -> Table {
        let ruleset = self.ruleset;
        let accepts = ruleset.chains.iter().filter_map(|chain| chain.def.base.as_ref()).any(|base| base.accepts);
        let mut waiting: VecDeque<&Chain> = ruleset.chains.iter().filter(|chain| chain.def.base.is_some()).collect();
        let mut seen: BTreeSet<&str> = waiting.iter().map(|chain| chain.def.name.as_str()).collect();
        let mut chains = Vec::new();
        while let Some(chain) = waiting.pop_front() {
            let name = chain.def.name.as_str();
            let mut writing = Writing { family, name, lines: Vec::new(), helpers: Vec::new(), targets: Vec::new() };
            self.rules(chain, &[], &mut writing, 0);
            if !accepts && !writing.lines.last().is_some_and(Line::ends_all) {
                writing.lines.push(Line::default().to(Target::Drop, "policy"));
            }
            let hook = chain.def.base.as_ref().map(|base| self.hook(base.hook));
            chains.push(IpChain { name: names::chain(name), hook: hook.flatten(), rules: written(&writing.lines, family) });
            for (number, lines) in writing.helpers.iter().enumerate() {
                chains.push(IpChain { name: names::chain(&helper(name, number)), hook: None, rules: written(lines, family) });
            }
            for target in writing.targets {
                if seen.insert(target)
                    && let Some(chain) = ruleset.chain(target)
                {
                    waiting.push_back(chain);
                }
            }
        }
        let identity = ruleset.identity.comments();
        let lines: Vec<Line> = identity.iter().map(|comment| Line::default().to(Target::Return, comment)).collect();
        chains.push(IpChain { name: names::chain(IDENTITY_CHAIN), hook: None, rules: written(&lines, family) });
        Table { family, chains }
    }

    fn hook(&mut self, hook: Hook) -> Option<&'static str> {
        let built_in = names::built_in(hook);
        if built_in.is_none() {
            self.cannot("", format!("the hook `{}` has no chain in iptables' table `filter`", hook.keyword()), ELSEWHERE);
        }
        built_in
    }

    /// Writes the rules of a chain out, each under this context.
    fn rules(&mut self, chain: &'a Chain, context: &[Piece], writing: &mut Writing<'a>, depth: usize) {
        let mut context = context.to_vec();
        for rule in &chain.rules {
            let alternatives = self.alternatives(rule, writing.family);
            match &rule.action {
                Action::Jump(name) => {
                    let Some(next) = self.ruleset.chain(name).filter(|_| depth < DEPTH && rule.statements.is_empty()) else {
                        self.cannot(&rule.id, format!("`jump {name}` cannot be written out for iptables"), ELSEWHERE);
                        continue;
                    };
                    for pieces in alternatives {
                        self.rules(next, &[context.as_slice(), &pieces].concat(), writing, depth + 1);
                    }
                }
                Action::Return => match self.otherwise(rule, &alternatives, depth) {
                    Otherwise::Everybody => {}
                    Otherwise::Nobody => return,
                    Otherwise::Those(piece) => context.push(piece),
                },
                action => {
                    for pieces in alternatives {
                        self.rule(rule, action, &[context.as_slice(), &pieces].concat(), writing);
                    }
                }
            }
        }
    }

    /// Who does not go back: those for whom the rules behind a `return` are. A chain that is written out where it was jumped to has
    /// no place to go back to, so that is asked in every rule behind.
    fn otherwise(&mut self, rule: &Rule, alternatives: &[Vec<Piece>], depth: usize) -> Otherwise {
        match alternatives {
            [] => Otherwise::Everybody,
            [pieces] if depth > 0 && pieces.is_empty() => Otherwise::Nobody,
            [pieces] if depth > 0 && pieces.len() == 1 => match pieces.as_slice() {
                [Piece::Match(asked)] => Otherwise::Those(Piece::Match(asked.clone().not())),
                [Piece::Protocol(number)] => Otherwise::Those(Piece::NotProtocol(*number)),
                [Piece::NotProtocol(number)] => Otherwise::Those(Piece::Protocol(*number)),
                _ => self.no_return(rule),
            },
            _ => self.no_return(rule),
        }
    }

    fn no_return(&mut self, rule: &Rule) -> Otherwise {
        self.cannot(&rule.id, format!("`{}` cannot be written out for iptables", text::write_rule(rule)), ELSEWHERE);
        Otherwise::Nobody
    }

    /// What a rule asks, as alternatives of pieces that must all hold; none when no packet of this family is met.
    fn alternatives(&mut self, rule: &Rule, family: Family) -> Vec<Vec<Piece>> {
        let guards = rule.guards().into_iter().map(|guard| {
            let (field, value) = guard.test();
            Test { field, operator: Operator::Is(value) }
        });
        let mut alternatives = vec![Vec::new()];
        for test in guards.chain(rule.tests.iter().cloned()) {
            let choices = self.choices(rule, &test, family);
            alternatives = alternatives
                .into_iter()
                .flat_map(|pieces: Vec<Piece>| {
                    choices.iter().map(move |choice| {
                        let known = *choice == Piece::Always || pieces.contains(choice);
                        if known { pieces.clone() } else { [pieces.as_slice(), std::slice::from_ref(choice)].concat() }
                    })
                })
                .collect();
        }
        alternatives
    }

    /// What a test asks; several are alternatives, none is never met.
    fn choices(&mut self, rule: &Rule, test: &Test, family: Family) -> Vec<Piece> {
        let ruleset = self.ruleset;
        match piece(test, family) {
            Piece::Never => Vec::new(),
            Piece::Lookup(name, way) => {
                let Some(set) = self.lookup(&name) else { return Vec::new() };
                let Some(name) = self.set_of_ours(set, family) else { return Vec::new() };
                vec![Piece::Match(Match::new("set", "--match-set", format!("{name} {}", way.keyword())))]
            }
            Piece::Numbers(name, module, option) => {
                let members = self.lookup(&name).into_iter().flat_map(|set| set.members.keys());
                members.map(|key| Piece::Match(Match::new(module, option, text::write_key(&set_key(ruleset, &name), key, None)))).collect()
            }
            Piece::Cgroup(name) => {
                let Some(set) = self.lookup(&name) else { return Vec::new() };
                let ids: Vec<u64> =
                    set.members.keys().filter_map(|key| Some(u64::from_ne_bytes(key.as_slice().try_into().ok()?))).collect();
                let facts = self.facts;
                ids.iter()
                    .filter_map(|id| {
                        let path = facts.units.values().find(|(_, known)| known == id).map(|(path, _)| path.trim_matches('/'));
                        if path.is_none() {
                            self.cannot(&rule.id, format!("the path of control group {id} is not known"), "run `egressguard refresh`");
                        }
                        Some(Piece::Match(Match::new("cgroup", "--path", crate::export::rule::quoted(path?))))
                    })
                    .collect()
            }
            Piece::Everybody(name) => {
                if self.lookup(&name).is_none() {
                    return Vec::new();
                }
                let lives = self.filled.get(name.as_str()).copied().unwrap_or_default();
                vec![Piece::Match(Match::new("recent", "--rcheck", format!("--seconds {lives} {}", everybody(&name, family))))]
            }
            Piece::Unsayable => {
                if let Operator::In(name) = &test.operator
                    && self.lookup(name).is_none()
                {
                    return Vec::new();
                }
                self.cannot_test(rule, test);
                Vec::new()
            }
            piece => vec![piece],
        }
    }

    /// The set of this name, unless nothing is or comes into it.
    fn lookup(&mut self, name: &str) -> Option<&'a Set> {
        let set = self.ruleset.sets.get(name);
        let dead = set.is_none_or(|set| {
            let constant = set.def.dynamic || set.def.key == [KeyType::CgroupV2];
            constant && set.members.is_empty() && !self.filled.contains_key(name)
        });
        if dead {
            self.never.insert(name.to_string());
            return None;
        }
        set
    }

    /// The name of a set that we fill; it is made when it is first asked for.
    fn set_of_ours(&mut self, set: &Set, family: Family) -> Option<String> {
        let name = self.names.get(&names::meaning(set, family))?.to_string();
        if !self.sets.contains_key(&name) {
            match IpSet::of(set, name.clone(), family) {
                Ok(made) => drop(self.sets.insert(name.clone(), made)),
                Err(addresses) => {
                    for address in addresses {
                        self.unsayable.insert(Unsayable {
                            place: Place::Address(address),
                            what: format!("`{address}` cannot be said in iptables: ipset holds every address but that one"),
                            help: "take it out: no packet goes there".to_string(),
                        });
                    }
                }
            }
        }
        Some(name)
    }

    /// Writes one rule, or as many as iptables needs for it.
    fn rule(&mut self, rule: &'a Rule, action: &'a Action, pieces: &[Piece], writing: &mut Writing<'a>) {
        let mut line = match Line::of(pieces) {
            Ok(line) => line,
            Err(NoLine::Contradiction) => return,
            Err(NoLine::TooMany) => {
                self.cannot(&rule.id, format!("`{}` asks for more than one rule of iptables can", text::write_rule(rule)), ELSEWHERE);
                return;
            }
        };
        let Some(ends) = self.ends(rule, action, writing) else { return };
        let excluded = line.take_excluded();
        if excluded.is_empty() {
            writing.lines.extend(ends.into_iter().map(|end| end.onto(line.clone(), &rule.id)));
            return;
        }
        if *action != Action::Continue {
            self.cannot(&rule.id, format!("`{}` excludes more protocols than one rule of iptables can", text::write_rule(rule)), ELSEWHERE);
            return;
        }
        // A chain of its own, which those protocols leave.
        let mut lines: Vec<Line> = Vec::new();
        for number in excluded {
            lines.extend(Line::of(&[Piece::Protocol(number)]).map(|line| line.to(Target::Return, &rule.id)));
        }
        lines.extend(ends.into_iter().map(|end| end.onto(Line::default(), &rule.id)));
        let chain = names::chain(&helper(writing.name, writing.helpers.len()));
        writing.helpers.push(lines);
        writing.lines.push(line.to(Target::Jump(chain), &rule.id));
    }

    fn cannot_test(&mut self, rule: &Rule, test: &Test) {
        match (test.field, &test.operator) {
            (Field::SocketUser, Operator::In(_)) => self.cannot_quarantine(rule),
            (Field::SocketUser | Field::SocketGroup, Operator::IsNamed(name)) => {
                self.cannot(&rule.id, format!("the name `{name}` cannot be said in iptables"), "use its number: `uid` or `gid`");
            }
            _ => self.cannot(&rule.id, format!("`{}` cannot be said in iptables", text::write_test(test)), ELSEWHERE),
        }
    }

    pub(super) fn cannot_update(&mut self, rule: &Rule, key: &[Field]) {
        if key == [Field::SocketUser] {
            self.cannot_quarantine(rule);
        } else {
            self.cannot(&rule.id, format!("`{}` cannot be said in iptables", text::write_rule(rule)), ELSEWHERE);
        }
    }

    fn cannot_quarantine(&mut self, rule: &Rule) {
        self.cannot(
            &rule.id,
            "a quarantine of single users cannot be said in iptables: ipset has no set of users".to_string(),
            "use `scope: host`, or take `quarantine` out for hosts without nf_tables",
        );
    }

    pub(super) fn cannot(&mut self, rule: &str, what: String, help: &str) {
        self.unsayable.insert(Unsayable { place: Place::Rule(rule.to_string()), what, help: help.to_string() });
    }
}

/// What helps where iptables does not.
pub(super) const ELSEWHERE: &str = "nftables has words for it: use a host with nf_tables";

/// Who the rules behind a `return` are for.
enum Otherwise {
    Everybody,
    Nobody,
    Those(Piece),
}

fn helper(chain: &str, number: usize) -> String {
    format!("{chain}-{}", number + 1)
}

fn set_key(ruleset: &Ruleset, name: &str) -> Vec<KeyType> {
    ruleset.sets.get(name).map(|set| set.def.key.clone()).unwrap_or_default()
}

fn written(lines: &[Line], family: Family) -> Vec<String> {
    lines.iter().map(|line| line.write(family)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::name::Slug;
    use crate::base::net::Protocol;
    use crate::policy::Mode;
    use crate::ruleset::field::NO_USER;
    use crate::ruleset::rule::{has_any, in_set, is, is_not};

    fn ruleset(mode: Mode, output: Vec<Rule>, chains: Vec<Chain>) -> Ruleset {
        let identity = Identity { policy: Slug::nearest("t", "t"), sha256: "0".repeat(64), generation: 1, mode };
        let chains = [vec![Chain::base(Hook::Output, mode, output)], chains].concat();
        Ruleset { identity, chains, sets: BTreeMap::new() }
    }

    fn rule(id: &str, tests: Vec<Test>, action: Action) -> Rule {
        Rule::new(id, tests, vec![], action)
    }

    /// The IPv4 rules of the chain at the hook `output`, without comments.
    fn output(ruleset: &Ruleset) -> Vec<String> {
        let firewall = export(ruleset, &Facts::default()).unwrap();
        let comment = |rule: &String| match rule.split_once("-m comment --comment ") {
            Some((before, behind)) => format!("{before}{}", behind.split_once(' ').map_or("", |(_, rest)| rest)),
            None => rule.clone(),
        };
        firewall.tables[0].chains[0].rules.iter().map(comment).collect()
    }

    #[test]
    fn a_chain_that_decides_nothing_at_its_end_drops_unless_it_only_observes() {
        let rules = || vec![rule("a", vec![is(Field::L4Protocol, Protocol::TCP.0)], Action::Accept)];
        assert_eq!(output(&ruleset(Mode::Enforce, rules(), vec![])), ["-p tcp -j RETURN", "-j DROP"]);
        assert_eq!(output(&ruleset(Mode::Observe, rules(), vec![])), ["-p tcp -j RETURN"]);
    }

    #[test]
    fn a_chain_that_is_jumped_to_is_written_out_and_a_return_is_asked_behind_it() {
        let called = Chain::regular(
            "called",
            vec![
                rule("first", vec![is(Field::DestinationPort(Protocol::TCP), 1u8)], Action::Accept),
                rule("back", vec![is_not(Field::SocketUser, NO_USER)], Action::Return),
                rule("second", vec![is(Field::DestinationPort(Protocol::UDP), 2u8)], Action::Accept),
            ],
        );
        let only_tcp = vec![is(Field::L4Protocol, Protocol::TCP.0)];
        let rules = vec![rule("go", only_tcp, Action::Jump("called".into())), rule("end", vec![], Action::Prohibit)];
        let expected = ["-p tcp -m tcp --dport 1 -j RETURN", "-j REJECT --reject-with icmp-admin-prohibited"];
        assert_eq!(output(&ruleset(Mode::Enforce, rules, vec![called.clone()])), expected);
        let rules = vec![rule("go", vec![], Action::Jump("called".into())), rule("end", vec![], Action::Drop)];
        let asked = "-p udp -m owner ! --uid-owner 0-4294967294 -m udp --dport 2 -j RETURN";
        assert_eq!(output(&ruleset(Mode::Enforce, rules, vec![called])), ["-p tcp -m tcp --dport 1 -j RETURN", asked, "-j DROP"]);
    }

    #[test]
    fn an_accept_is_never_the_last_word() {
        let case = ruleset(Mode::Observe, vec![rule("a", vec![], Action::Goto("b".into()))], vec![Chain::regular("b", vec![])]);
        let written = export(&case, &Facts::default()).unwrap().tables[0].write();
        assert!(!written.contains("ACCEPT") && written.contains("-g EGRESSGUARD-b"), "{written}");
    }

    #[test]
    fn what_cannot_be_said_is_an_error_of_the_rule_that_asks_for_it() {
        let unsayable = |tests: Vec<Test>, action: Action| {
            let found = export(&ruleset(Mode::Enforce, vec![rule("it", tests, action)], vec![]), &Facts::default()).unwrap_err();
            assert_eq!(found.iter().map(|found| &found.place).collect::<BTreeSet<_>>(), BTreeSet::from([&Place::Rule("it".into())]));
            found.into_iter().map(|found| found.what).next().unwrap()
        };
        assert_eq!(unsayable(vec![is(Field::InputInterface, 7u8)], Action::Accept), "`iif 7` cannot be said in iptables");
        assert!(unsayable(vec![has_any(Field::ConntrackStatus, 1)], Action::Accept).starts_with("`ct status"));
        assert!(unsayable(vec![], Action::Jump("nowhere".into())).contains("`jump nowhere`"));
        assert!(unsayable(vec![], Action::Return).contains("`return"));
        let not = |number: Protocol| is_not(Field::L4Protocol, number.0);
        assert!(unsayable(vec![not(Protocol::TCP), not(Protocol::UDP)], Action::Accept).contains("more protocols"));
    }

    #[test]
    fn a_set_that_nothing_fills_is_not_asked_and_is_named() {
        let mut case = ruleset(Mode::Enforce, vec![rule("q", vec![in_set(Field::SocketUser, "cut_off")], Action::Drop)], vec![]);
        case.sets.insert("cut_off".into(), Set::dynamic("cut_off", vec![KeyType::Uid]));
        let firewall = export(&case, &Facts::default()).unwrap();
        assert_eq!(firewall.never, BTreeSet::from(["cut_off".to_string()]));
        assert_eq!(output(&case), ["-j DROP"]);
    }

    #[test]
    fn other_rules_look_into_other_sets_and_other_pins_into_the_same() {
        use crate::ruleset::set::Member;
        let case = |port: u16, address: &str| {
            let tests = vec![is(Field::DestinationPort(Protocol::TCP), port), in_set(Field::DestinationAddress(Family::V4), "s")];
            let mut case = ruleset(Mode::Enforce, vec![rule("a", tests, Action::Accept)], vec![]);
            let mut set = Set::of_addresses("s".into(), Family::V4);
            set.add_address(&address.parse().unwrap(), Member::default());
            case.sets.insert("s".into(), set);
            export(&case, &Facts::default()).unwrap().sets.into_keys().collect::<Vec<_>>()
        };
        assert_eq!(case(443, "192.0.2.1"), case(443, "192.0.2.2"));
        assert_ne!(case(443, "192.0.2.1"), case(444, "192.0.2.1"));
    }
}
