//! The script for hosts without nf_tables means what the rules mean: the same packets meet the same verdicts under nftables, under
//! iptables by nf_tables, and under iptables as it was before, and they are those of the trace.

mod attempts;
mod namespace;
mod policies;

use std::collections::{BTreeMap, BTreeSet};

use attempts::{Arena, Attempt, Material, Transport};
use egressguard::base::packet::Direction;
use egressguard::judge::Verdict;
use egressguard::policy::{Inbound, Line, Quarantine, QuarantineScope, Scope, Sources, Violations};
use egressguard::ruleset::Ruleset;
use egressguard::ruleset::compile::Facts;
use egressguard::ruleset::set::Member;
use namespace::behind::{BEHIND, Behind};
use namespace::iptables::{Programs, Variant};
use namespace::load::load;
use namespace::pair::{HOST, Pair};
use namespace::{inside, kernel_is_there, nft};
use policies::held::held;
use policies::{Case, NOW, cases};
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

/// Who judges.
enum Judge {
    Nftables,
    Iptables(Variant, Programs),
}

impl Judge {
    /// This iptables, if it is here.
    fn iptables(variant: Variant) -> Option<Judge> {
        let programs = kernel_is_there().then(|| Programs::find(variant)).flatten();
        programs.map(|programs| Judge::Iptables(variant, programs))
    }

    /// Everybody who is here: nftables, and every iptables.
    fn all() -> Vec<Judge> {
        let nftables = kernel_is_there().then_some(Judge::Nftables);
        nftables.into_iter().chain(Variant::BOTH.into_iter().filter_map(Judge::iptables)).collect()
    }

    fn load(&self, ruleset: &Ruleset) {
        match self {
            Judge::Nftables => load(ruleset, NOW),
            Judge::Iptables(_, programs) => programs.load(ruleset, &Facts::default(), NOW),
        }
    }

    fn name(&self) -> String {
        match self {
            Judge::Nftables => "nftables".to_string(),
            Judge::Iptables(variant, _) => format!("iptables {variant:?}"),
        }
    }
}

fn runner(seed: u8) -> TestRunner {
    TestRunner::new_with_rng(Config::default(), TestRng::from_seed(RngAlgorithm::ChaCha, &[seed; 32]))
}

/// The same packets for every judge.
fn meets_the_trace(judge: &Judge) {
    let mut runner = runner(23);
    let mut counted: BTreeMap<(String, bool), usize> = BTreeMap::new();
    for _ in 0..8 {
        let mut case = cases().new_tree(&mut runner).unwrap().current();
        // Being cut off has a test of its own, and so have units, which have to run.
        case.policy.violations.quarantine = None;
        case.facts.units.clear();
        let ruleset = held(&case);
        let material = Material::of(&ruleset);
        let directions = [Direction::Out, Direction::Out, Direction::In, Direction::Forward];
        let mut attempts = material.attempts(26, &directions).new_tree(&mut runner).unwrap().current();
        let permitted = material.permitted(&ruleset, any::<Index>().new_tree(&mut runner).unwrap().current());
        attempts.extend(permitted.iter().map(|attempt| Attempt { direction: Direction::Forward, ..attempt.clone() }));
        attempts.extend(permitted);
        inside(|| {
            let pair = Pair::new();
            let behind = Behind::new(&pair);
            judge.load(&ruleset);
            let arena = Arena::new(&pair, Some(&behind), &attempts.iter().map(|attempt| attempt.port).collect());
            for attempt in &attempts {
                let verdict = arena.agrees(&ruleset, attempt);
                let family = if attempt.peer.is_ipv4() { 4 } else { 6 };
                let kind = format!("{:?} {:?} v{family}", attempt.direction, attempt.transport);
                *counted.entry((kind, verdict == Verdict::Allow)).or_default() += 1;
            }
            arena.host.assert_quiet("the host");
            arena.world.assert_quiet("the world");
        });
    }
    println!("{} attempts: {counted:#?}", counted.values().sum::<usize>());
    for direction in ["Out", "In", "Forward"] {
        for transport in ["Tcp", "Udp"] {
            for family in ["v4", "v6"] {
                let kind = format!("{direction} {transport} {family}");
                let verdicts: BTreeSet<bool> = counted.keys().filter(|key| key.0 == kind).map(|key| key.1).collect();
                assert_eq!(verdicts.len(), 2, "{kind} was not both allowed and denied");
            }
        }
    }
}

#[test]
fn packets_meet_the_verdicts_of_the_trace_under_nftables() {
    if kernel_is_there() {
        meets_the_trace(&Judge::Nftables);
    }
}

#[test]
fn packets_meet_the_same_verdicts_under_iptables_by_nf_tables() {
    Judge::iptables(Variant::Nft).iter().for_each(meets_the_trace);
}

#[test]
fn packets_meet_the_same_verdicts_under_iptables_as_it_was_before() {
    Judge::iptables(Variant::Legacy).iter().for_each(meets_the_trace);
}

fn out(peer: &str, port: u16, user: u32) -> Attempt {
    Attempt { direction: Direction::Out, transport: Transport::Tcp, peer: peer.parse().unwrap(), port, user, group: 0 }
}

#[test]
fn what_is_for_a_user_or_a_group_is_for_nobody_else() {
    let judges = Judge::all();
    let mut case = policies::plain();
    case.policy.outbound = vec![
        policies::way("a", "192.0.2.1/32", Some(Scope::Uid(1000))),
        policies::way("b", "2001:db8::1/128", Some(Scope::Uid(1000))),
        policies::way("c", "192.0.2.2/32", Some(Scope::Gid(50))),
    ];
    let ruleset = held(&case);
    for judge in &judges {
        inside(|| {
            let pair = Pair::new();
            let behind = Behind::new(&pair);
            judge.load(&ruleset);
            let arena = Arena::new(&pair, Some(&behind), &BTreeSet::from([443]));
            for (peer, user, group, allowed) in [
                ("192.0.2.1", 1000, 0, true),
                ("192.0.2.1", 1001, 0, false),
                ("192.0.2.1", 0, 50, false),
                ("2001:db8::1", 1000, 0, true),
                ("2001:db8::1", 1001, 0, false),
                ("192.0.2.2", 1000, 50, true),
                ("192.0.2.2", 1000, 0, false),
            ] {
                let verdict = arena.agrees(&ruleset, &Attempt { group, ..out(peer, 443, user) });
                assert_eq!(verdict == Verdict::Allow, allowed, "{}: {peer} by {user}:{group}", judge.name());
            }
            // A container has no users of ours.
            let forwarded = Attempt { direction: Direction::Forward, ..out("192.0.2.1", 443, 1000) };
            assert_ne!(arena.agrees(&ruleset, &forwarded), Verdict::Allow);
        });
    }
}

#[test]
fn a_published_port_is_open_only_where_it_was_asked_for_by_the_inbound_port() {
    let judges = Judge::all();
    let mut case = policies::plain();
    case.policy.inbound = Some(Inbound { port: 443, protocol: egressguard::policy::Transport::Tcp, from: Sources::Any, line: Line(3) });
    let ruleset = held(&case);
    for judge in &judges {
        inside(|| {
            let pair = Pair::new();
            let behind = Behind::new(&pair);
            let published = |family: &str, to: &str| {
                format!(
                    "table {family} nat {{ chain pre {{ type nat hook prerouting priority -100;\n\
                     iif cable tcp dport 443 dnat to {to}\niif cable tcp dport 8443 dnat to {to}\n}}\n}}\n"
                )
            };
            let rules = published("ip", &format!("{}:8000", BEHIND[0])) + &published("ip6", &format!("[{}]:8000", BEHIND[1]));
            nft(&["-f", "-"], &rules).unwrap();
            let listeners: Vec<_> = behind
                .inside(|| BEHIND.iter().map(|address| std::net::TcpListener::bind((*address, 8000)).expect("a published port")).collect());
            judge.load(&ruleset);
            for host in HOST {
                let arrives = |port| pair.in_world(|| attempts::reaches((host.parse::<std::net::IpAddr>().unwrap(), port).into()));
                assert!(arrives(443), "{}: the inbound port of {host} was not published", judge.name());
                assert!(!arrives(8443), "{}: a second door of {host}", judge.name());
            }
            drop(listeners);
        });
    }
}

/// Rules under which the third refused packet cuts the host off.
fn cut_off_after_three() -> Case {
    let mut case = policies::plain();
    case.policy.outbound = vec![policies::way("ok", "192.0.2.1/32", None), policies::way("okay", "2001:db8::1/128", None)];
    let (within, lasts) = (policies::period(60), policies::period(3600));
    let quarantine = Quarantine { after: 3, within, lasts, scope: QuarantineScope::Host, line: Line(7) };
    case.policy.violations = Violations { quarantine: Some(quarantine), alert: None };
    case
}

#[test]
fn a_host_that_breaks_the_limit_is_cut_off_in_that_family() {
    let case = cut_off_after_three();
    let ruleset = held(&case);
    let mut cut_off = ruleset.clone();
    cut_off.sets.get_mut("quarantined_host").unwrap().members.insert(0u32.to_ne_bytes().to_vec(), Member::default());
    for judge in Judge::all().iter().filter(|judge| matches!(judge, Judge::Iptables(..))) {
        inside(|| {
            let pair = Pair::new();
            judge.load(&ruleset);
            let arena = Arena::new(&pair, None, &BTreeSet::from([443, 25]));
            assert_eq!(arena.agrees(&ruleset, &out("192.0.2.1", 443, 1000)), Verdict::Allow);
            for _ in 0..6 {
                assert_ne!(arena.agrees(&ruleset, &out("192.0.2.1", 25, 1000)), Verdict::Allow);
            }
            assert_ne!(arena.agrees(&cut_off, &out("192.0.2.1", 443, 1001)), Verdict::Allow);
            // Loading the rules again is no way out.
            judge.load(&ruleset);
            assert_ne!(arena.agrees(&cut_off, &out("192.0.2.1", 443, 1001)), Verdict::Allow);
            // A law that is weaker here, as docs/iptables.md says: the other family counts for itself.
            assert_eq!(arena.agrees(&ruleset, &out("2001:db8::1", 443, 1000)), Verdict::Allow);
        });
    }
}

#[test]
fn every_refused_packet_is_counted_where_it_belongs() {
    let ruleset = held(&policies::plain());
    for judge in Judge::all() {
        let Judge::Iptables(_, programs) = &judge else { continue };
        inside(|| {
            let pair = Pair::new();
            let behind = Behind::new(&pair);
            judge.load(&ruleset);
            let arena = Arena::new(&pair, Some(&behind), &BTreeSet::from([25, 53]));
            for _ in 0..3 {
                arena.agrees(&ruleset, &out("192.0.2.7", 25, 1000));
                arena.agrees(&ruleset, &Attempt { transport: Transport::Udp, ..out("2001:db8::7", 53, 1000) });
                arena.agrees(&ruleset, &Attempt { direction: Direction::Forward, ..out("192.0.2.8", 25, 0) });
                arena.agrees(&ruleset, &Attempt { direction: Direction::In, transport: Transport::Udp, ..out("192.0.2.9", 53, 0) });
            }
            let ledger = programs.sh("ipset save").unwrap();
            let counted = |set: &str, element: &str| {
                let line = ledger.lines().find(|line| line.starts_with(&format!("add EGRESSGUARD-{set} {element} ")));
                line.and_then(|line| line.split_once("packets ")).and_then(|(_, rest)| rest.split(' ').next()?.parse::<u64>().ok())
            };
            for (set, element) in [
                ("ledger_user_v4", "192.0.2.7,tcp:25"),
                ("ledger_user_v6", "2001:db8::7,udp:53"),
                ("ledger_forward_v4", "10.98.0.2,tcp:25,192.0.2.8"),
                ("ledger_in_v4", "10.99.0.1,udp:53"),
            ] {
                assert_eq!(counted(set, element), Some(3), "{}: {set} {element}\n{ledger}", judge.name());
            }
        });
    }
}

#[test]
fn other_peoples_rules_stay_and_have_the_last_word() {
    let mut case = policies::plain();
    case.policy.outbound = vec![policies::way("ok", "192.0.2.0/24", None)];
    let ruleset = held(&case);
    for judge in Judge::all() {
        let Judge::Iptables(_, programs) = &judge else { continue };
        inside(|| {
            let pair = Pair::new();
            let foreign = "iptables -N theirs\niptables -A theirs -d 192.0.2.66 -j DROP\niptables -A OUTPUT -j theirs\n\
                           iptables -P INPUT DROP\nip6tables -A FORWARD -j ACCEPT\niptables -t nat -N theirs\nipset create theirs hash:ip\n";
            programs.sh(foreign).unwrap();
            let saved = || programs.sh("iptables-save; ip6tables-save; ipset save").unwrap();
            let theirs = |saved: String| -> Vec<String> {
                let line = |line: &&str| !line.contains("EGRESSGUARD-") && !line.starts_with('#') && !line.is_empty();
                saved.lines().filter(line).map(|line| line.split(" [").next().unwrap_or_default().to_string()).collect()
            };
            let before = theirs(saved());
            judge.load(&ruleset);
            judge.load(&ruleset);
            let after = theirs(saved());
            assert_eq!(before.iter().collect::<BTreeSet<_>>(), after.iter().collect::<BTreeSet<_>>());
            // Ours are asked first, once, and what they allow is asked of the others.
            assert_eq!(programs.sh("iptables -S OUTPUT | sed -n 2p").unwrap().trim(), "-A OUTPUT -j EGRESSGUARD-output");
            assert_eq!(programs.sh("iptables -S OUTPUT | grep -c EGRESSGUARD").unwrap().trim(), "1");
            programs.sh("iptables -P INPUT ACCEPT").unwrap();
            let arena = Arena::new(&pair, None, &BTreeSet::from([443]));
            assert_eq!(arena.agrees(&ruleset, &out("192.0.2.1", 443, 0)), Verdict::Allow);
            assert!(!attempts::reaches("192.0.2.66:443".parse().unwrap()), "{}: a foreign DROP was overruled", judge.name());
        });
    }
}
