//! `explain` against the kernel: thousands of packets, each spelt as a person would spell it, are judged under random policies and then
//! sent for real between two namespaces, both families, TCP and UDP, in and out, by users and groups. Nothing may disagree.

mod attempts;
mod namespace;
mod policies;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use attempts::{Arena, Attempt, Material, Transport};
use egressguard::base::packet::{Direction, PacketSpec};
use egressguard::judge::{Packet, Trace, Verdict, judge};
use egressguard::pins::Pins;
use egressguard::ruleset::Ruleset;
use egressguard::ruleset::field::Field;
use namespace::load::load;
use namespace::pair::{HOST, Pair};
use namespace::{inside, kernel_is_there};
use policies::held::held;
use policies::{Case, NOW, cases};
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

/// How many policies.
const POLICIES: usize = 52;
/// How many packets of each, besides one for every way out.
const PACKETS: usize = 40;
/// How many pairs of namespaces at once: most of the time is waiting for silence.
const AT_ONCE: usize = 6;

/// Verdicts by direction, transport and family; those of packets that have a scope; and how many spellings held a name.
#[derive(Default)]
struct Counted {
    verdicts: BTreeMap<(String, bool), usize>,
    scoped: BTreeMap<bool, usize>,
    named: usize,
}

#[test]
fn thousands_of_packets_meet_what_explain_says() {
    if !kernel_is_there() {
        return;
    }
    let begun = Instant::now();
    let mut runner = TestRunner::new_with_rng(Config::default(), TestRng::from_seed(RngAlgorithm::ChaCha, &[29; 32]));
    let work: Vec<(Case, Ruleset, Vec<Attempt>)> = (0..POLICIES).map(|_| drawn(&mut runner)).collect();
    let (next, counted) = (AtomicUsize::new(0), Mutex::new(Counted::default()));
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while let Some((case, ruleset, attempts)) = work.get(next.fetch_add(1, Ordering::Relaxed)) {
                    inside(|| play(case, ruleset, attempts, &counted));
                }
            });
        }
    });
    let counted = counted.into_inner().unwrap();
    let total: usize = counted.verdicts.values().sum();
    println!(
        "{total} packets under {POLICIES} policies in {:.1} s, {} spelt by name, scopes {:?}: {:#?}",
        begun.elapsed().as_secs_f64(),
        counted.named,
        counted.scoped,
        counted.verdicts
    );
    assert!(total >= 2000, "{total} packets are too few");
    for direction in ["Out", "In"] {
        for transport in ["Tcp", "Udp"] {
            for family in ["v4", "v6"] {
                for verdict in [true, false] {
                    let kind = format!("{direction} {transport} {family}");
                    assert!(counted.verdicts.contains_key(&(kind.clone(), verdict)), "{kind} was never {verdict}");
                }
            }
        }
    }
    assert!(counted.scoped.len() == 2 && counted.named > 20, "{:?}, {}", counted.scoped, counted.named);
}

/// A random policy, its rules, and attempts on them.
fn drawn(runner: &mut TestRunner) -> (Case, Ruleset, Vec<Attempt>) {
    let mut case = cases().new_tree(runner).unwrap().current();
    // Being cut off has a test of its own; here every attempt stands for itself.
    case.policy.violations.quarantine = None;
    let ruleset = held(&case);
    let material = Material::of(&ruleset);
    let mut attempts = material.attempts(PACKETS, &[Direction::Out, Direction::Out, Direction::In]).new_tree(runner).unwrap().current();
    attempts.extend(material.permitted(&ruleset, any::<Index>().new_tree(runner).unwrap().current()));
    (case, ruleset, attempts)
}

fn play(case: &Case, ruleset: &Ruleset, attempts: &[Attempt], counted: &Mutex<Counted>) {
    let pair = Pair::new();
    load(ruleset, NOW);
    let arena = Arena::new(&pair, None, &attempts.iter().map(|attempt| attempt.port).collect::<BTreeSet<_>>());
    for attempt in attempts {
        let spelling = spelt(attempt, case);
        let trace = explained(&spelling, attempt, case, ruleset);
        let allowed = arena.meets(&trace, attempt) == Verdict::Allow;
        let family = if attempt.peer.is_ipv4() { 4 } else { 6 };
        let mut counted = counted.lock().unwrap();
        *counted.verdicts.entry((format!("{:?} {:?} v{family}", attempt.direction, attempt.transport), allowed)).or_default() += 1;
        if is_scoped(&trace, ruleset) {
            *counted.scoped.entry(allowed).or_default() += 1;
        }
        counted.named += usize::from(named(attempt, case).is_some());
    }
    arena.host.assert_quiet("the host");
    arena.world.assert_quiet("the world");
}

/// The packet as a person writes it: the user by name where the policy knows it, the destination by name where it is a pin.
fn spelt(attempt: &Attempt, case: &Case) -> String {
    let transport = if attempt.transport == Transport::Tcp { "tcp" } else { "udp" };
    let host: IpAddr = HOST[usize::from(attempt.peer.is_ipv6())].parse().unwrap();
    match attempt.direction {
        Direction::In => format!("in {transport} from {} to {}", attempt.peer, SocketAddr::new(host, attempt.port)),
        _ => {
            let user = case.facts.users.iter().find(|(_, number)| **number == attempt.user);
            let owner = user.map_or_else(|| format!("uid {}", attempt.user), |(name, _)| format!("user {name}"));
            let to = match named(attempt, case) {
                Some(name) => format!("{name}:{}", attempt.port),
                None => SocketAddr::new(attempt.peer, attempt.port).to_string(),
            };
            // A name stands for pins of both families, and a source is of one.
            let from = if named(attempt, case).is_some() { String::new() } else { format!(" from {host}") };
            format!("{transport}{from} to {to} {owner}")
        }
    }
}

/// The name that has the attempt's destination as a pin which still runs.
fn named<'a>(attempt: &Attempt, case: &'a Case) -> Option<&'a str> {
    let holds = |pins: &egressguard::pins::NamePins| pins.leases.get(&attempt.peer).is_some_and(|lease| lease.expires > NOW);
    let name = case.pins.names.iter().find(|(_, pins)| holds(pins))?.0;
    (attempt.direction == Direction::Out).then_some(name.as_str())
}

/// What `explain` says: the spelling is read, every packet that it stands for is judged, and the attempted one is among them.
fn explained(spelling: &str, attempt: &Attempt, case: &Case, ruleset: &Ruleset) -> Trace {
    let spec: PacketSpec = spelling.parse().unwrap_or_else(|why| panic!("`{spelling}`: {why}"));
    let mut pins: Pins = case.pins.clone();
    pins.names.values_mut().for_each(|pins| pins.leases.retain(|_, lease| lease.expires > NOW));
    let packets = Packet::from_spec(&spec, &pins, &case.facts);
    let meant = |packet: &Packet| attempt.direction == Direction::In || packet.destination == attempt.peer;
    let mut packet = packets.into_iter().find(meant).unwrap_or_else(|| panic!("`{spelling}` is no packet to {}", attempt.peer));
    if let Some(socket) = &mut packet.socket {
        // A spelling names users and no groups.
        socket.group = attempt.group;
    }
    judge(ruleset, &packet)
}

/// Whether a rule for somebody was met, or missed because the packet is somebody else's.
fn is_scoped(trace: &Trace, ruleset: &Ruleset) -> bool {
    let scoped = ruleset.chain("outbound_scoped").is_some_and(|chain| {
        let asks = |field: Field| matches!(field, Field::SocketUser | Field::SocketGroup | Field::SocketCgroup(_));
        chain.rules.iter().any(|rule| rule.tests.iter().any(|test| asks(test.field)))
    });
    let step = trace.steps.iter().rfind(|step| step.chain == "outbound_scoped");
    scoped && step.is_some_and(|step| trace.chain == "outbound_scoped" || step.because.contains("meta sk"))
}
