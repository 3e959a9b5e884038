//! What the trace says of a packet is what happens to a real socket: policies are loaded in a network namespace, and programs in it and
//! around it try to connect.

mod attempts;
mod namespace;
mod policies;

use std::collections::{BTreeMap, BTreeSet};

use attempts::{Arena, Attempt, Material, Transport};
use egressguard::base::packet::Direction;
use egressguard::judge::Verdict;
use egressguard::policy::{Quarantine, QuarantineScope, Violations};
use egressguard::ruleset::set::Member;
use namespace::load::load;
use namespace::pair::Pair;
use namespace::{inside, kernel_is_there};
use policies::held::held;
use policies::{NOW, cases};
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

#[test]
fn real_sockets_meet_what_the_trace_says() {
    if !kernel_is_there() {
        return;
    }
    let mut runner = TestRunner::new_with_rng(Config::default(), TestRng::from_seed(RngAlgorithm::ChaCha, &[11; 32]));
    let mut counted: BTreeMap<(String, Verdict), usize> = BTreeMap::new();
    for _ in 0..14 {
        let mut case = cases().new_tree(&mut runner).unwrap().current();
        // Being cut off has a test of its own; here every attempt stands for itself.
        case.policy.violations.quarantine = None;
        let ruleset = held(&case);
        let material = Material::of(&ruleset);
        let mut attempts = material.attempts(32, &[Direction::Out, Direction::Out, Direction::In]).new_tree(&mut runner).unwrap().current();
        attempts.extend(material.permitted(&ruleset, any::<Index>().new_tree(&mut runner).unwrap().current()));
        inside(|| {
            let pair = Pair::new();
            load(&ruleset, NOW);
            let arena = Arena::new(&pair, None, &attempts.iter().map(|attempt| attempt.port).collect());
            for attempt in &attempts {
                let verdict = arena.agrees(&ruleset, attempt);
                let kind = format!("{:?} {:?} v{}", attempt.direction, attempt.transport, if attempt.peer.is_ipv4() { 4 } else { 6 });
                *counted.entry((kind, verdict)).or_default() += 1;
            }
            arena.host.assert_quiet("the host");
            arena.world.assert_quiet("the world");
        });
    }
    let total: usize = counted.values().sum();
    println!("{total} attempts: {counted:#?}");
    assert!(total >= 300, "{total} attempts are too few");
    for direction in ["Out", "In"] {
        for transport in ["Tcp", "Udp"] {
            for family in ["v4", "v6"] {
                let kind = format!("{direction} {transport} {family}");
                let verdicts: BTreeSet<bool> = counted.keys().filter(|key| key.0 == kind).map(|key| key.1 == Verdict::Allow).collect();
                assert_eq!(verdicts.len(), 2, "{kind} was not both allowed and denied");
            }
        }
    }
}

#[test]
fn who_breaks_the_limit_is_cut_off_and_nobody_else() {
    if !kernel_is_there() {
        return;
    }
    for scope in [QuarantineScope::User, QuarantineScope::Host] {
        let mut case = policies::plain();
        case.policy.outbound = vec![policies::way("ok", "192.0.2.1/32", None)];
        let (within, lasts) = (policies::period(60), policies::period(3600));
        let quarantine = Quarantine { after: 3, within, lasts, scope, line: egressguard::policy::Line(7) };
        case.policy.violations = Violations { quarantine: Some(quarantine), alert: None };
        let ruleset = held(&case);
        // What the kernel will have done by itself.
        let mut cut_off = ruleset.clone();
        let (set, key) = match scope {
            QuarantineScope::User => ("quarantined_users", 1000u32),
            QuarantineScope::Host => ("quarantined_host", 0),
        };
        cut_off.sets.get_mut(set).unwrap().members.insert(key.to_ne_bytes().to_vec(), Member::default());
        inside(|| {
            let pair = Pair::new();
            load(&ruleset, NOW);
            let arena = Arena::new(&pair, None, &BTreeSet::from([443, 25]));
            let attempt = |peer: &str, port, user| Attempt {
                direction: Direction::Out,
                transport: Transport::Tcp,
                peer: peer.parse().unwrap(),
                port,
                user,
                group: 0,
            };
            assert_eq!(arena.agrees(&ruleset, &attempt("192.0.2.1", 443, 1000)), Verdict::Allow);
            for _ in 0..6 {
                assert_ne!(arena.agrees(&ruleset, &attempt("192.0.2.1", 25, 1000)), Verdict::Allow);
            }
            assert_ne!(arena.agrees(&cut_off, &attempt("192.0.2.1", 443, 1000)), Verdict::Allow);
            let others = arena.agrees(&cut_off, &attempt("192.0.2.1", 443, 1001));
            assert_eq!(others == Verdict::Allow, scope == QuarantineScope::User);
        });
    }
}

#[test]
fn a_full_ledger_takes_neither_the_trip_wire_nor_the_refusal_with_it() {
    if !kernel_is_there() {
        return;
    }
    let mut case = policies::plain();
    case.policy.outbound = vec![policies::way("ok", "192.0.2.1/32", None)];
    let (within, lasts) = (policies::period(60), policies::period(3600));
    let quarantine = Quarantine { after: 3, within, lasts, scope: QuarantineScope::User, line: egressguard::policy::Line(7) };
    case.policy.violations = Violations { quarantine: Some(quarantine), alert: None };
    let mut ruleset = held(&case);
    ruleset.sets.values_mut().filter(|set| set.def.name.starts_with("ledger_")).for_each(|set| set.def.size = Some(1));
    let mut cut_off = ruleset.clone();
    cut_off.sets.get_mut("quarantined_users").unwrap().members.insert(1000u32.to_ne_bytes().to_vec(), Member::default());
    inside(|| {
        let pair = Pair::new();
        let ports: BTreeSet<u16> = (1025..1035).chain([443]).collect();
        load(&ruleset, NOW);
        let arena = Arena::new(&pair, None, &ports);
        let attempt = |port, user| {
            let peer = "192.0.2.1".parse().unwrap();
            Attempt { direction: Direction::Out, transport: Transport::Tcp, peer, port, user, group: 0 }
        };
        // Somebody else has filled it.
        assert_ne!(arena.agrees(&ruleset, &attempt(1025, 7)), Verdict::Allow);
        assert_eq!(arena.agrees(&ruleset, &attempt(443, 1000)), Verdict::Allow);
        for port in 1026..1035 {
            assert_ne!(arena.agrees(&ruleset, &attempt(port, 1000)), Verdict::Allow);
        }
        let ledger = namespace::nft(&["list", "set", "inet", "egressguard", "ledger_user_v4"], "").unwrap();
        assert_eq!(ledger.matches("counter packets").count(), 1, "{ledger}");
        assert_ne!(arena.agrees(&cut_off, &attempt(443, 1000)), Verdict::Allow);
    });
}
