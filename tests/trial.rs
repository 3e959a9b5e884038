//! Two rulesets in one table: while the gate is open each packet gets the verdict of the new rules, and after it that of the rules from
//! before. Random policies and packets say so, and what is loaded is read back as what was meant.

mod policies;

use std::net::IpAddr;

use egressguard::base::net::Protocol;
use egressguard::base::packet::{Direction, Owner, PacketSpec, Peer, State};
use egressguard::base::time::Timestamp;
use egressguard::judge::plan::plan;
use egressguard::judge::{Packet, Verdict, judge};
use egressguard::pins::Pins;
use egressguard::ruleset::Ruleset;
use egressguard::ruleset::compile::Facts;
use egressguard::ruleset::lift::lift;
use egressguard::ruleset::lower::lower;
use egressguard::ruleset::program::TABLE;
use egressguard::ruleset::trial::{TRIAL, on_trial};
use policies::{NOW, address, cases};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

const UNTIL: Timestamp = Timestamp(NOW.0 + 60);

/// Packets of every direction, to addresses and ports that policies speak of.
fn packets() -> impl Strategy<Value = Vec<PacketSpec>> {
    let direction = select([Direction::Out, Direction::In, Direction::Forward].as_slice());
    let protocol = select([Protocol::TCP, Protocol::UDP, Protocol::ICMP, Protocol::ICMPV6].as_slice());
    let port = select([22u16, 53, 80, 123, 443, 853, 5432, 8080, 1, 65535].as_slice());
    let state = select([State::New, State::New, State::Established, State::Related, State::Invalid].as_slice());
    let uid = select([0u32, 1000, 1001].as_slice());
    let packet = (direction, protocol, port, state, uid, address(), address());
    vec(packet, 1..60).prop_map(|packets| {
        let spec = |(direction, protocol, port, state, uid, from, to): (Direction, Protocol, u16, State, u32, IpAddr, IpAddr)| PacketSpec {
            direction,
            protocol,
            from: if from.is_ipv4() == to.is_ipv4() { Peer::Address(from) } else { Peer::Any },
            from_port: None,
            to: Peer::Address(to),
            to_port: Some(port),
            owner: if direction == Direction::Out { Owner::Uid(uid) } else { Owner::Unsaid },
            service: None,
            state,
        };
        packets.into_iter().map(spec).collect()
    })
}

/// The same table once the gate's time is over.
fn ended(rules: &Ruleset) -> Ruleset {
    let mut rules = rules.clone();
    rules.sets.get_mut(TRIAL).unwrap().members.clear();
    rules
}

fn verdicts(rules: &Ruleset, packets: &[PacketSpec]) -> Vec<Verdict> {
    let judged = packets.iter().flat_map(|spec| Packet::from_spec(spec, &Pins::default(), &Facts::default()));
    judged.map(|packet| judge(rules, &packet).verdict).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn while_the_gate_is_open_the_new_rules_count_and_after_it_those_from_before((new, before, packets) in (cases(), cases(), packets())) {
        let (new, before) = (new.compile().loadable(), before.compile().loadable());
        let tried = on_trial(new.clone(), Some(before.clone()), UNTIL);
        prop_assert_eq!(verdicts(&tried, &packets), verdicts(&new, &packets));
        prop_assert_eq!(verdicts(&ended(&tried), &packets), verdicts(&before, &packets));
        let alone = on_trial(new.clone(), None, UNTIL);
        prop_assert_eq!(verdicts(&alone, &packets), verdicts(&new, &packets));
        prop_assert!(verdicts(&ended(&alone), &packets).iter().all(|verdict| *verdict == Verdict::Allow), "nothing was there before");
    }

    #[test]
    fn rules_on_trial_come_back_from_the_kernels_program((new, before) in (cases(), cases())) {
        let tried = on_trial(new.compile().loadable(), Some(before.compile().loadable()), UNTIL);
        let program = lower(&tried, NOW);
        let found = lift(&program, NOW);
        prop_assert_eq!(found.foreign, Vec::<String>::new());
        prop_assert_eq!(found.identity, Some(tried.identity.clone()), "a trial is nobody's generation yet");
        prop_assert!(plan(Some(&program), &tried, NOW).unwrap().is_nothing());
        // After its time the kernel has dropped the element, and what is there is still what was meant.
        let later = Timestamp(UNTIL.0 + 5);
        let mut held = lower(&tried, later);
        held.sets.values_mut().for_each(|(_, elements)| elements.retain(|_, element| element.timeout_ms != Some(0)));
        prop_assert!(held.sets[TRIAL].1.is_empty());
        prop_assert!(plan(Some(&held), &tried, later).unwrap().is_nothing());
        // Every chain and set that is named is there.
        for rule in tried.chains.iter().flat_map(|chain| &chain.rules) {
            prop_assert!(rule.sets().all(|set| tried.sets.contains_key(set)), "{rule:?} of `{TABLE}`");
        }
        prop_assert!(tried.sets.iter().all(|(name, set)| *name == set.def.name));
        let mut names: Vec<_> = tried.chains.iter().map(|chain| &chain.def.name).collect();
        names.sort();
        names.dedup();
        prop_assert_eq!(names.len(), tried.chains.len());
    }
}

#[test]
fn what_was_counted_and_who_was_cut_off_is_of_both() {
    let (mut new, before) = (policies::plain(), policies::plain());
    new.policy.outbound = vec![policies::way("a", "192.0.2.1/32", None)];
    let tried = on_trial(new.compile(), Some(before.compile()), UNTIL);
    let counted: Vec<_> = tried.sets.keys().filter(|name| name.contains("ledger") || name.contains("quarantined")).collect();
    assert!(counted.len() >= 10 && counted.iter().all(|name| !name.starts_with("before_")), "{counted:?}");
}
