//! Questions about rules: what becomes of a packet and why, whether a policy keeps its own promises, in what two rulesets differ,
//! what has to change in a kernel, and which flows are no longer allowed. Values in, values out.

pub mod compare;
pub mod drift;
pub mod flow;
pub mod packet;
pub mod plan;
pub mod revoke;
pub mod surroundings;
pub mod trace;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::base::name::DnsName;
use crate::base::net::Protocol;
use crate::base::packet::PacketSpec;
use crate::base::time::Timestamp;
use crate::pins::{Lease, NamePins, Pins};
use crate::policy::{Expectation, Line, Mode, Policy, Scope, Target};
use crate::ruleset::Ruleset;
use crate::ruleset::compile::{Facts, compile};
use crate::ruleset::field::Field;
use crate::ruleset::rule::Operator;

pub use packet::Packet;
pub use trace::{Outcome, Prepared, Refusal, Step, Trace, Verdict, judge};

/// How one of the policy's own tests ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TestOutcome {
    /// Where the test stands.
    pub line: Line,
    /// What it expects.
    pub expect: Expectation,
    /// Of which packet.
    pub packet: PacketSpec,
    /// Whether every packet that the spelling stands for met the expectation.
    pub ok: bool,
    /// The first packet that did not, or else the first of all; absent when the spelling stands for no packet.
    pub decisive: Option<(Packet, Trace)>,
}

/// Runs the policy's own tests. They ask what the policy means, so a policy that only observes is judged as if it enforced, and
/// what this host does not know is a symbol: see [`symbolic`].
pub fn policy_tests(policy: &Policy, pins: &Pins, facts: &Facts) -> Vec<TestOutcome> {
    let (pins, facts) = symbolic(policy, pins, facts);
    let enforced = Policy { mode: Mode::Enforce, ..policy.clone() };
    let ruleset = compile(&enforced, &pins, &facts, 1);
    policy
        .tests
        .iter()
        .map(|test| {
            let mut judged = traces(&ruleset, &test.packet, &pins, &facts);
            let contradiction = judged.iter().position(|(_, trace)| !meets(test.expect, trace.verdict));
            let ok = contradiction.is_none() && !judged.is_empty();
            let at = contradiction.unwrap_or(0);
            let decisive = (at < judged.len()).then(|| judged.swap_remove(at));
            TestOutcome { line: test.line, expect: test.expect, packet: test.packet.clone(), ok, decisive }
        })
        .collect()
}

/// Judges every packet that a spelling stands for.
pub fn traces(ruleset: &Ruleset, spec: &PacketSpec, pins: &Pins, facts: &Facts) -> Vec<(Packet, Trace)> {
    let rules = Prepared::new(ruleset);
    let judged = |packet: Packet| {
        let trace = rules.judge(&packet);
        (packet, trace)
    };
    with_ports(ruleset, spec).iter().flat_map(|spec| Packet::from_spec(spec, pins, facts)).map(judged).collect()
}

/// The spelling with a destination port of every kind that these rules tell apart: one that says no port means any.
pub fn with_ports(ruleset: &Ruleset, spec: &PacketSpec) -> Vec<PacketSpec> {
    if spec.to_port.is_some() || ![Protocol::TCP, Protocol::UDP].contains(&spec.protocol) {
        return vec![spec.clone()];
    }
    let of_kind = |(first, last): (u16, u16)| PacketSpec { to_port: Some(if first == 0 { last.min(1) } else { first }), ..spec.clone() };
    port_kinds(ruleset).into_iter().map(of_kind).collect()
}

/// All ports, in ranges within which no rule tells two destination ports apart.
pub fn port_kinds(ruleset: &Ruleset) -> Vec<(u16, u16)> {
    let mut firsts = BTreeSet::from([0u32]);
    for test in ruleset.chains.iter().flat_map(|chain| &chain.rules).flat_map(|rule| &rule.tests) {
        if !matches!(test.field, Field::DestinationPort(_) | Field::TransportDestinationPort | Field::OriginalDestinationPort) {
            continue;
        }
        let mut cut = |first: u128, last: u128| firsts.extend([first, last + 1].map(|port| u32::try_from(port).unwrap_or(u32::MAX)));
        match &test.operator {
            Operator::Is(port) | Operator::IsNot(port) => cut(*port, *port),
            Operator::Within(first, last) => cut(*first, *last),
            Operator::In(set) => {
                for (key, member) in ruleset.sets.get(set).into_iter().flat_map(|set| &set.members) {
                    cut(number(key), number(member.last.as_ref().unwrap_or(key)));
                }
            }
            Operator::HasAny(_) | Operator::HasNone(_) | Operator::IsNamed(_) => {}
        }
    }
    let firsts: Vec<u16> = firsts.into_iter().filter_map(|port| u16::try_from(port).ok()).collect();
    let lasts = firsts.iter().skip(1).map(|next| next - 1).chain([u16::MAX]);
    firsts.iter().copied().zip(lasts).collect()
}

fn number(octets: &[u8]) -> u128 {
    octets.iter().take(2).fold(0, |number, octet| number << 8 | u128::from(*octet))
}

/// Pins and facts in which everything that the policy names stands for something: a name without pins has one placeholder address
/// of each family, a unit that does not run has a placeholder control group. A question about a name is then answered without
/// asking DNS, and the answer is the one that any pins would give, unless they share an address with another name.
///
/// Placeholders are never loaded: they are addresses that no packet has as its destination, of 0.0.0.0/8 (RFC 1122) and of the
/// discard prefix 100::/64 (RFC 6666), and ids at the far end of their range.
pub fn symbolic(policy: &Policy, pins: &Pins, facts: &Facts) -> (Pins, Facts) {
    let (mut pins, mut facts) = (pins.clone(), facts.clone());
    let outbound = policy.outbound.iter().flat_map(|entry| &entry.to);
    let mut next = 0;
    for destination in outbound.chain(&policy.host.ntp) {
        let Target::Name(name) = &destination.target else { continue };
        if pins.names.get(name).is_none_or(|pins| pins.leases.is_empty()) {
            next += 1;
            place(&mut pins, name, next);
        }
    }
    for entry in &policy.outbound {
        if let Some(Scope::Service(unit)) = &entry.scope {
            let id = u64::MAX - facts.units.len() as u64;
            facts.units.entry(unit.to_string()).or_insert_with(|| (format!("system.slice/{unit}"), id));
        }
    }
    (pins, facts)
}

/// Whether an address is a placeholder of [`symbolic`].
pub fn is_placeholder(address: &IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.octets()[0] == 0 && !v4.is_unspecified(),
        IpAddr::V6(v6) => v6.segments()[..4] == [0x100, 0, 0, 0],
    }
}

/// Gives a name its placeholders, the `number`th of all, from 1.
fn place(pins: &mut Pins, name: &DnsName, number: u32) {
    let v4 = IpAddr::V4(Ipv4Addr::from_bits(number & 0x00ff_ffff));
    let v6 = IpAddr::V6(Ipv6Addr::from_bits((0x0100 << 112) | u128::from(number)));
    let leases = BTreeMap::from([(v4, lasting()), (v6, lasting())]);
    pins.names.insert(name.clone(), NamePins { leases, ..NamePins::default() });
}

/// The lease of a placeholder.
fn lasting() -> Lease {
    // The last second that RFC 3339 can write.
    let (never, always) = (Timestamp(0), Timestamp(253_402_300_799));
    Lease { server: String::new(), ttl: 0, first_seen: never, last_seen: never, expires: always }
}

fn meets(expect: Expectation, verdict: Verdict) -> bool {
    match expect {
        Expectation::Allow => verdict == Verdict::Allow,
        Expectation::Deny => verdict != Verdict::Allow,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::name::Slug;
    use crate::base::net::Family;
    use crate::base::packet::{Direction, Owner, Peer, State};
    use crate::base::port::PortSet;
    use crate::base::time::Period;
    use crate::policy::{
        Destination, DnsServer, Forward, Host, Inbound, Outbound, PolicyTest, PrivateAnswers, RawFrames, Refresh, Sources, Transport,
        Violations,
    };

    fn host_name(text: &str) -> DnsName {
        DnsName::parse(text).unwrap()
    }

    fn way(id: &str, target: Target, scope: Option<Scope>) -> Outbound {
        Outbound {
            id: Slug::parse(id).unwrap(),
            to: vec![Destination { target, line: Line(9) }],
            ports: PortSet::single(443),
            protocol: Transport::Tcp,
            scope,
            line: Line(9),
        }
    }

    fn policy(outbound: Vec<Outbound>) -> Policy {
        Policy {
            name: Slug::parse("t").unwrap(),
            file: "t.yaml".into(),
            sha256: "0".repeat(64),
            mode: Mode::Enforce,
            inbound: Some(Inbound { port: 443, protocol: Transport::Tcp, from: Sources::Any, line: Line(3) }),
            management: None,
            outbound,
            dns: vec![DnsServer::System],
            dns_line: None,
            refresh: Refresh { every: Period::from_seconds(60), keep: Period::from_seconds(86400), private: PrivateAnswers::Refuse },
            host: Host { dhcp: true, ntp: vec![], ntp_line: None, ping: false, raw_frames: RawFrames::Allow, forward: Forward::Contain },
            violations: Violations::default(),
            tests: vec![],
        }
    }

    fn tcp(to: Peer, port: u16) -> PacketSpec {
        PacketSpec {
            direction: Direction::Out,
            protocol: Protocol::TCP,
            from: Peer::Any,
            from_port: None,
            to,
            to_port: Some(port),
            owner: Owner::Unsaid,
            service: None,
            state: State::New,
        }
    }

    fn outcomes(policy: &mut Policy, tests: Vec<(Expectation, PacketSpec)>) -> Vec<bool> {
        policy.tests = tests.into_iter().map(|(expect, packet)| PolicyTest { expect, packet, line: Line(20) }).collect();
        policy_tests(policy, &Pins::default(), &Facts::default()).into_iter().map(|outcome| outcome.ok).collect()
    }

    #[test]
    fn a_name_without_pins_is_answered_without_asking_anybody() {
        let mut policy = policy(vec![way("api", Target::Name(host_name("api.example.com")), None)]);
        let api = || Peer::Name(host_name("api.example.com"));
        let tests = vec![
            (Expectation::Allow, tcp(api(), 443)),
            (Expectation::Deny, tcp(api(), 80)),
            (Expectation::Deny, tcp(Peer::Name(host_name("other.example.com")), 443)),
            (Expectation::Deny, tcp(Peer::Any, 443)),
            (Expectation::Allow, PacketSpec { direction: Direction::In, ..tcp(Peer::Any, 443) }),
            (Expectation::Deny, PacketSpec { direction: Direction::In, ..tcp(Peer::Any, 22) }),
            (Expectation::Allow, PacketSpec { direction: Direction::Forward, ..tcp(api(), 443) }),
            (Expectation::Allow, PacketSpec { state: State::Established, ..tcp(Peer::Any, 25) }),
        ];
        assert_eq!(outcomes(&mut policy, tests), [true; 8]);
        policy.mode = Mode::Observe;
        let denied = vec![(Expectation::Deny, tcp(Peer::Any, 443)), (Expectation::Allow, tcp(Peer::Any, 443))];
        assert_eq!(outcomes(&mut policy, denied), [true, false], "a policy that only observes is asked what it means");
    }

    #[test]
    fn a_name_with_pins_must_be_allowed_at_each_of_them() {
        let api = host_name("api.example.com");
        let mut policy = policy(vec![way("api", Target::Name(api.clone()), None)]);
        policy.tests = vec![PolicyTest { expect: Expectation::Allow, packet: tcp(Peer::Name(api.clone()), 443), line: Line(20) }];
        let mut pins = Pins::default();
        place(&mut pins, &api, 7);
        let outcome = policy_tests(&policy, &pins, &Facts::default()).remove(0);
        assert!(outcome.ok);
        assert_eq!(traces(&compile(&policy, &pins, &Facts::default(), 1), &policy.tests[0].packet, &pins, &Facts::default()).len(), 2);
        let (packet, trace) = outcome.decisive.unwrap();
        assert_eq!((packet.family(), trace.rule.as_str(), trace.target.as_deref()), (Family::V4, "api", Some("api.example.com")));
    }

    #[test]
    fn users_and_units_that_this_host_does_not_know_are_symbols() {
        let api = host_name("api.example.com");
        let scopes = [Scope::User("backend".into()), Scope::Service("worker.service".into())];
        for scope in scopes {
            let mut policy = policy(vec![way("api", Target::Name(api.clone()), Some(scope.clone()))]);
            let plain = tcp(Peer::Name(api.clone()), 443);
            let (owner, service) = match &scope {
                Scope::User(name) => (Owner::User(name.to_string()), None),
                _ => (Owner::Unsaid, Some("worker.service".to_string())),
            };
            let theirs = PacketSpec { owner, service, ..plain.clone() };
            let others = PacketSpec { owner: Owner::User("mallory".into()), service: Some("other.service".into()), ..plain.clone() };
            let tests = vec![(Expectation::Allow, theirs), (Expectation::Deny, plain), (Expectation::Deny, others)];
            assert_eq!(outcomes(&mut policy, tests), [true; 3], "{scope:?}");
        }
    }

    #[test]
    fn a_spelling_that_no_packet_can_have_meets_no_expectation() {
        let mut policy = policy(vec![]);
        let from = Peer::Address("192.0.2.1".parse().unwrap());
        let impossible = PacketSpec { from, ..tcp(Peer::Address("2001:db8::1".parse().unwrap()), 443) };
        assert_eq!(outcomes(&mut policy, vec![(Expectation::Deny, impossible)]), [false]);
    }

    #[test]
    fn a_packet_keeps_its_spelling() {
        let spec =
            PacketSpec { from_port: Some(40000), owner: Owner::Uid(1000), ..tcp(Peer::Address("2001:db8::1".parse().unwrap()), 443) };
        let packets = Packet::from_spec(&spec, &Pins::default(), &Facts::default());
        assert_eq!(packets.iter().map(Packet::spec).collect::<Vec<_>>(), [spec]);
    }

    #[test]
    fn loopback_is_an_interface_and_not_an_address_of_somebody() {
        let mut policy = policy(vec![]);
        let local = || Peer::Address("127.0.0.1".parse().unwrap());
        let tests = vec![
            (Expectation::Allow, tcp(local(), 5432)),
            (Expectation::Allow, PacketSpec { direction: Direction::In, from: local(), ..tcp(local(), 5432) }),
            (Expectation::Deny, PacketSpec { direction: Direction::Forward, ..tcp(local(), 5432) }),
        ];
        assert_eq!(outcomes(&mut policy, tests), [true; 3]);
    }
}
