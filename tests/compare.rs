//! The exact comparison against a reference that knows nothing of it: random pairs of policies, random packets that keep to the places
//! where something could change. A seed is a number, so a failure can be run again.
//!
//! A slice of it always runs. `EGRESSGUARD_COMPARE_PAIRS` and `EGRESSGUARD_COMPARE_PACKETS` (of each pair) make it larger, for example
//! `EGRESSGUARD_COMPARE_PAIRS=1000 EGRESSGUARD_COMPARE_PACKETS=100000 cargo test --release --test compare`;
//! `EGRESSGUARD_COMPARE_SEED` begins at another number.

mod policies;
mod reference;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use egressguard::base::net::{Family, IpNet, Protocol};
use egressguard::base::packet::{Direction, PacketSpec, State};
use egressguard::judge::compare::{Change, Effort, Fast, Fit, Kind, Symbols, Trouble, compare, compare_within, passed_by};
use egressguard::judge::packet::{Payload, STRANGER, Sender};
use egressguard::judge::{Packet, Verdict, judge};
use egressguard::policy::{DnsServer, Mode, Policy, Scope, Sources, Target};
use egressguard::ruleset::Ruleset;
use egressguard::ruleset::compile::Facts;
use egressguard::ruleset::field::Field;
use egressguard::ruleset::rule::{Action, Operator, Rule, Test};
use policies::cases;
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

/// A small generator of numbers (splitmix64): fast, and the same everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }

    fn one_in(&mut self, chances: usize) -> bool {
        self.below(chances) == 0
    }

    fn of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }
}

fn number(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).map_or(otherwise, |text| text.parse().unwrap_or_else(|_| panic!("{name} is no number: {text}")))
}

/// Two policies: any two, or one and what a few edits make of it.
fn pair(seed: u64) -> (Policy, Policy, Facts) {
    let mut octets = [0u8; 32];
    octets[..8].copy_from_slice(&seed.to_le_bytes());
    let mut runner = TestRunner::new_with_rng(Config::default(), TestRng::from_seed(RngAlgorithm::ChaCha, &octets));
    let mut draw = || cases().new_tree(&mut runner).expect("a policy").current();
    let (mut old, other) = (draw(), draw());
    let mut random = Random(seed);
    // One that only observes differs from every other in everything, which is worth trying less often.
    if random.one_in(2) {
        old.policy.mode = Mode::Enforce;
    }
    let facts = Facts { servers: vec![], ..old.facts };
    if random.one_in(3) {
        return (old.policy, other.policy, facts);
    }
    let mut new = old.policy.clone();
    for _ in 0..=random.below(3) {
        match random.below(9) {
            0 => new.inbound.clone_from(&other.policy.inbound),
            1 => new.management.clone_from(&other.policy.management),
            2 => new.dns.clone_from(&other.policy.dns),
            3 => new.host.clone_from(&other.policy.host),
            4 if random.one_in(4) => new.mode = other.policy.mode,
            5 if !new.outbound.is_empty() => drop(new.outbound.remove(random.below(new.outbound.len()))),
            6 if !new.outbound.is_empty() => {
                let way = random.below(new.outbound.len());
                if let Some(theirs) = other.policy.outbound.first() {
                    match random.below(3) {
                        0 => new.outbound[way].to.clone_from(&theirs.to),
                        1 => new.outbound[way].ports.clone_from(&theirs.ports),
                        _ => new.outbound[way].scope.clone_from(&theirs.scope),
                    }
                }
            }
            7 => new.outbound.reverse(),
            _ => {
                let known: BTreeSet<_> = new.outbound.iter().map(|way| way.id.clone()).collect();
                new.outbound.extend(other.policy.outbound.iter().find(|way| !known.contains(&way.id)).cloned());
            }
        }
    }
    (old.policy, new, facts)
}

/// Values at which something could change, and their neighbours.
struct Edges {
    addresses: BTreeMap<Family, Vec<IpAddr>>,
    ports: Vec<u16>,
    users: Vec<u32>,
    groups: Vec<u32>,
    units: Vec<(String, u8, u64)>,
}

impl Edges {
    fn of(policies: &[&Policy], symbols: &Symbols) -> Edges {
        let mut nets: BTreeSet<IpNet> = ["fe80::/10", "ff02::/16", "255.255.255.255/32", "127.0.0.0/8", "::1/128", "0.0.0.0/32", "::/128"]
            .iter()
            .map(|net| net.parse().unwrap())
            .collect();
        let mut ports: BTreeSet<u16> = [22, 53, 67, 68, 123, 443, 546, 547, 853].into();
        let (mut users, mut groups) = (BTreeSet::from([0, STRANGER]), BTreeSet::from([0, STRANGER]));
        for policy in policies {
            if let Some(inbound) = &policy.inbound {
                ports.insert(inbound.port);
                if let Sources::Nets(from) = &inbound.from {
                    nets.extend(from);
                }
            }
            if let Some(management) = &policy.management {
                ports.insert(management.port);
                nets.extend(&management.from);
            }
            for server in &policy.dns {
                if let DnsServer::Plain { address, port } | DnsServer::Tls { address, port, .. } = server {
                    nets.insert(IpNet::from(*address));
                    ports.insert(*port);
                }
            }
            for way in &policy.outbound {
                ports.extend(way.ports.ranges().iter().flat_map(|range| [range.first(), range.last()]));
                match &way.scope {
                    Some(Scope::Uid(number)) => drop(users.insert(*number)),
                    Some(Scope::Gid(number)) => drop(groups.insert(*number)),
                    _ => {}
                }
            }
            let destinations = policy.outbound.iter().flat_map(|way| &way.to).chain(&policy.host.ntp);
            nets.extend(destinations.filter_map(|to| if let Target::Net(net) = &to.target { Some(*net) } else { None }));
        }
        let mut addresses: BTreeMap<Family, BTreeSet<IpAddr>> = BTreeMap::new();
        for net in nets {
            let all = addresses.entry(Family::of_net(&net)).or_default();
            let (first, last) = (net.network(), net.broadcast());
            all.extend([first, last, beside(first, -1), beside(last, 1), beside(first, 1)]);
        }
        for address in symbols.addresses.keys() {
            addresses.entry(Family::of(address)).or_default().insert(*address);
        }
        users.extend(symbols.facts.users.values());
        groups.extend(symbols.facts.groups.values());
        let beside_port = |port: u16| [port, port.wrapping_add(1), port.wrapping_sub(1)];
        Edges {
            addresses: addresses.into_iter().map(|(family, all)| (family, all.into_iter().collect())).collect(),
            ports: ports.into_iter().flat_map(beside_port).collect(),
            // The highest number is that of no user.
            users: users.into_iter().flat_map(|user| [user, user.wrapping_add(1)]).filter(|user| *user != u32::MAX).collect(),
            groups: groups.into_iter().flat_map(|group| [group, group.wrapping_add(1)]).collect(),
            units: symbols.units.iter().map(|unit| (unit.name.clone(), unit.level, unit.id)).collect(),
        }
    }

    fn address(&self, family: Family, random: &mut Random) -> IpAddr {
        if random.one_in(8) {
            let bits = (u128::from(random.next()) << 64) | u128::from(random.next());
            return if family == Family::V4 { IpAddr::V4((bits as u32).into()) } else { IpAddr::V6(bits.into()) };
        }
        random.of(&self.addresses[&family])
    }

    fn port(&self, random: &mut Random) -> u16 {
        if random.one_in(8) { random.next() as u16 } else { random.of(&self.ports) }
    }

    fn packet(&self, random: &mut Random) -> Packet {
        let family = random.of(&Family::BOTH);
        let direction = random.of(&[Direction::Out, Direction::Out, Direction::In, Direction::Forward]);
        let (from, to) = (self.address(family, random), self.address(family, random));
        let (source, destination) = (self.port(random), self.port(random));
        let payload = match random.below(12) {
            0..6 => Payload::Tcp { source, destination, flags: random.of(&[0x02, 0x10, 0x04, 0x12, 0x00, 0xff]) },
            6..9 => Payload::Udp { source, destination },
            9..11 if family == Family::V4 => Payload::Icmp(random.of(&[8, 0, 3, 13])),
            9..11 => Payload::Icmpv6(random.of(&[128, 129, 130, 131, 132, 133, 134, 135, 136, 143, 1])),
            _ => Payload::Other(Protocol(random.of(&[0, 2, 47, 50, 89, 132, 255]))),
        };
        let mut packet = Packet::new(direction, from, to, payload).expect("addresses of one family");
        packet.hop_limit = random.of(&[64, 255, 254]);
        packet.tracking.state = random.of(&[State::New, State::New, State::New, State::Established, State::Related, State::Invalid]);
        if random.one_in(4) {
            packet.tracking.status = 0x20;
            packet.tracking.original_port = packet.payload.destination_port().map(|_| self.port(random));
        }
        packet.tracking.sender = if random.one_in(4) { Sender::Reply } else { Sender::Original };
        if random.one_in(16) {
            packet.socket = None;
        }
        if let Some(socket) = &mut packet.socket {
            socket.user = random.of(&self.users);
            socket.group = random.of(&self.groups);
            if !self.units.is_empty() && random.one_in(2) {
                let (name, level, id) = &self.units[random.below(self.units.len())];
                socket.unit = Some(name.clone());
                socket.cgroups.insert(*level, *id);
            }
        }
        packet
    }
}

/// The address a step further, or the same at the end of all.
fn beside(address: IpAddr, step: i32) -> IpAddr {
    match address {
        IpAddr::V4(v4) => IpAddr::V4(v4.to_bits().checked_add_signed(step).unwrap_or(v4.to_bits()).into()),
        IpAddr::V6(v6) => IpAddr::V6(v6.to_bits().checked_add_signed(step.into()).unwrap_or(v6.to_bits()).into()),
    }
}

/// One pair of policies, compared and held against the reference.
struct Compared {
    old: Policy,
    new: Policy,
    symbols: Symbols,
    rules: [Ruleset; 2],
    changes: Vec<Change>,
}

impl Compared {
    fn of(seed: u64) -> Compared {
        let (old, new, known) = pair(seed);
        let symbols = Symbols::new(&[&old, &new], &BTreeSet::new(), &known, None).unwrap_or_else(|why| panic!("seed {seed}: {why}"));
        let rules = [symbols.compile(&old), symbols.compile(&new)];
        let changes = compare(&rules[0], &rules[1], &symbols).unwrap_or_else(|why| panic!("seed {seed}: {why}"));
        Compared { old, new, symbols, rules, changes }
    }

    fn allowed(&self, packet: &Packet) -> (bool, bool) {
        let ask = |policy: &Policy| reference::allows(policy, &self.symbols.pins, &self.symbols.facts_of(policy), packet);
        (ask(&self.old), ask(&self.new))
    }

    fn kind(&self, packet: &Packet) -> Option<Kind> {
        match self.allowed(packet) {
            (false, true) => Some(Kind::Widens),
            (true, false) => Some(Kind::Narrows),
            _ => None,
        }
    }

    fn covering(&self, packet: &Packet) -> Vec<Kind> {
        self.changes.iter().filter(|change| change.covers(packet, &self.symbols.units)).map(|change| change.kind).collect()
    }
}

#[test]
fn the_reference_finds_exactly_the_differences_that_are_reported() {
    let (pairs, packets) = (number("EGRESSGUARD_COMPARE_PAIRS", 60), number("EGRESSGUARD_COMPARE_PACKETS", 600));
    let first = number("EGRESSGUARD_COMPARE_SEED", 0);
    let (mut differing, mut equal) = (0u64, 0u64);
    for seed in first..first + pairs {
        let case = Compared::of(seed);
        let edges = Edges::of(&[&case.old, &case.new], &case.symbols);
        let facts = [case.symbols.facts_of(&case.old), case.symbols.facts_of(&case.new)];
        let mut random = Random(seed ^ 0x5eed);
        for number in 0..packets {
            let packet = edges.packet(&mut random);
            let [before, after] = [(&case.old, &facts[0]), (&case.new, &facts[1])]
                .map(|(policy, facts)| reference::allows(policy, &case.symbols.pins, facts, &packet));
            let meant = match (before, after) {
                (false, true) => Some(Kind::Widens),
                (true, false) => Some(Kind::Narrows),
                _ => None,
            };
            let covering = case.covering(&packet);
            let (mut verdicts, reroutes): (Vec<Kind>, Vec<Kind>) = covering.into_iter().partition(|kind| *kind != Kind::Reroutes);
            verdicts.dedup();
            assert_eq!(verdicts, Vec::from_iter(meant), "seed {seed}, packet {number}: {packet:?}");
            assert!(reroutes.is_empty() || (before && after), "seed {seed}, packet {number}: {packet:?}");
            for change in case.changes.iter().filter(|change| change.hull.holds(&packet, &case.symbols.units)) {
                let told = match (change.fit, change.kind) {
                    (Fit::Exact, _) => change.covers(&packet, &case.symbols.units),
                    (Fit::Answered, _) if packet.tracking.state != State::Related => change.covers(&packet, &case.symbols.units),
                    (Fit::Filled | Fit::Answered, Kind::Narrows) => before,
                    (Fit::Filled | Fit::Answered, _) => after,
                    (Fit::Loose, _) => true,
                };
                assert!(told, "seed {seed}, packet {number}: {packet:?} in {:?}", change.hull);
            }
            if meant.is_some() { differing += 1 } else { equal += 1 }
        }
    }
    println!("{pairs} pairs, {packets} packets each: {differing} packets differ, {equal} do not");
    assert!(differing > pairs * packets / 100 && equal > pairs * packets / 100, "{differing} packets differ, {equal} do not");
}

#[test]
fn every_witness_differs_and_its_spelling_does() {
    let mut spelt = 0;
    for seed in 0..number("EGRESSGUARD_COMPARE_PAIRS", 60) {
        let case = Compared::of(seed);
        for change in &case.changes {
            let packet = &change.witness.packet;
            assert!(change.covers(packet, &case.symbols.units), "seed {seed}: {change:?}");
            assert!(change.hull.holds(packet, &case.symbols.units), "seed {seed}: {change:?}");
            let meant = if change.kind == Kind::Reroutes { None } else { Some(change.kind) };
            assert_eq!(case.kind(packet), meant, "seed {seed}: {}", change.witness.spec);
            let text = change.witness.spec.to_string();
            let spec: PacketSpec = text.parse().unwrap_or_else(|why| panic!("seed {seed}: `{text}`: {why}"));
            assert_eq!(spec, change.witness.spec);
            if !change.witness.besides.is_empty() {
                continue;
            }
            let packets = Packet::from_spec(&spec, &case.symbols.pins, &case.symbols.facts);
            assert!(!packets.is_empty(), "seed {seed}: `{text}` stands for nothing");
            spelt += 1;
            for packet in packets {
                let verdicts = [0, 1].map(|side| judge(&case.rules[side], &packet).verdict == Verdict::Allow);
                let (before, after) = (change.before.verdict == Verdict::Allow, change.after.verdict == Verdict::Allow);
                assert_eq!(verdicts, [before, after], "seed {seed}: `{text}`: {packet:?}");
            }
        }
    }
    assert!(spelt > 0);
}

#[test]
fn rules_laid_out_decide_as_the_judge_does() {
    for seed in 0..number("EGRESSGUARD_COMPARE_PAIRS", 60) {
        let case = Compared::of(seed);
        let edges = Edges::of(&[&case.old, &case.new], &case.symbols);
        let mut random = Random(seed ^ 0xfa57);
        let fast = case.rules.each_ref().map(|rules| Fast::new(rules, &case.symbols.units).unwrap());
        for _ in 0..number("EGRESSGUARD_COMPARE_PACKETS", 600).min(5000) {
            let packet = edges.packet(&mut random);
            let traces = case.rules.each_ref().map(|rules| judge(rules, &packet));
            for (fast, trace) in fast.iter().zip(&traces) {
                let rule = (trace.verdict == Verdict::Allow).then(|| passed_by(&trace.rule));
                assert_eq!(fast.allowing(&packet), rule, "seed {seed}: {packet:?}");
            }
        }
    }
}

#[test]
fn what_takes_too_long_is_out_of_reach_and_never_sampled() {
    let case = Compared::of(0);
    assert!(!case.changes.is_empty());
    let tired = compare_within(Effort(100), &case.rules[0], &case.rules[1], &case.symbols);
    assert!(matches!(tired, Err(Trouble::OutOfReach(_))), "{tired:?}");
}

#[test]
fn a_rule_that_cuts_no_interval_is_named() {
    let case = Compared::of(0);
    let mut strange = case.rules[1].clone();
    let test = Test { field: Field::SocketUser, operator: Operator::HasAny(6) };
    let output = strange.chains.iter_mut().find(|chain| chain.def.name == "output").unwrap();
    output.rules.insert(0, Rule::new("strange", vec![test], vec![], Action::Accept));
    let why = compare(&case.rules[0], &strange, &case.symbols).unwrap_err();
    assert!(matches!(&why, Trouble::NotUnderstood(what) if what.contains("`strange`") && what.contains("meta skuid")), "{why}");
}

#[test]
fn a_policy_does_not_differ_from_itself_and_a_change_turned_round_is_the_opposite() {
    for seed in 0..60 {
        let case = Compared::of(seed);
        assert_eq!(compare(&case.rules[0], &case.rules[0], &case.symbols), Ok(Vec::new()), "seed {seed}");
        let back = compare(&case.rules[1], &case.rules[0], &case.symbols).unwrap();
        let count = |changes: &[Change], kind: Kind| changes.iter().filter(|change| change.kind == kind).count();
        assert_eq!(count(&case.changes, Kind::Widens), count(&back, Kind::Narrows), "seed {seed}");
        assert_eq!(count(&case.changes, Kind::Narrows), count(&back, Kind::Widens), "seed {seed}");
    }
}
