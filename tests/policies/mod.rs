//! Random policies with the pins and facts that go with them: whatever the language can say, within the promises that its types make.
#![allow(dead_code)]

pub mod held;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use egressguard::base::name::{DnsName, Slug};
use egressguard::base::net::IpNet;
use egressguard::base::port::{PortRange, PortSet};
use egressguard::base::time::{Period, Timestamp};
use egressguard::pins::{Lease, NamePins, Pins};
use egressguard::policy::{
    Alert, Destination, DnsServer, Forward, Host, Inbound, Line, Management, Mode, Outbound, Policy, PrivateAnswers, Quarantine,
    QuarantineScope, RawFrames, Refresh, Scope, Sources, Target, Transport, Violations,
};
use egressguard::ruleset::Ruleset;
use egressguard::ruleset::compile::{Facts, compile};
use proptest::collection::{btree_map, btree_set, vec};
use proptest::option;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};

/// A policy and what it is compiled with.
#[derive(Debug, Clone)]
pub struct Case {
    /// The policy.
    pub policy: Policy,
    /// Its pins; some names have none.
    pub pins: Pins,
    /// What the host knows; some users are not known.
    pub facts: Facts,
}

/// The time at which everything is lowered, lifted and written.
pub const NOW: Timestamp = Timestamp(1_800_000_000);

impl Case {
    /// Its rules.
    pub fn compile(&self) -> Ruleset {
        compile(&self.policy, &self.pins, &self.facts, 7)
    }
}

/// Any policy with pins and facts.
pub fn cases() -> impl Strategy<Value = Case> {
    (policies(), pins(), facts()).prop_map(|(policy, pins, mut facts)| {
        // System servers have been replaced by what they stand for.
        facts.servers.extend(policy.dns.iter().filter(|server| **server != DnsServer::System).cloned());
        Case { policy, pins, facts }
    })
}

fn policies() -> impl Strategy<Value = Policy> {
    let ways = vec((ways(), option::of(slugs())), 0..7);
    let parts = (option::of(inbound()), option::of(management()), ways, vec(dns_server(), 1..3), host(), violations());
    (slugs(), mode(), parts).prop_map(|(name, mode, (inbound, management, ways, dns, host, violations))| {
        let mut ids = BTreeSet::new();
        let outbound = ways.into_iter().map(|(way, said)| named(way, said, &mut ids)).collect();
        Policy {
            name,
            file: "policy.yaml".to_string(),
            sha256: "5e".repeat(32),
            mode,
            inbound,
            management,
            outbound,
            dns,
            dns_line: None,
            refresh: Refresh { every: Period::from_seconds(60), keep: Period::from_seconds(86_400), private: PrivateAnswers::Refuse },
            host,
            violations,
            tests: Vec::new(),
        }
    })
}

/// Gives a way out an id that no other has.
fn named(way: Outbound, said: Option<Slug>, ids: &mut BTreeSet<Slug>) -> Outbound {
    let derived = match &way.to[0].target {
        Target::Name(name) => name.to_string(),
        Target::Net(net) => net.to_string(),
    };
    let wanted = said.unwrap_or_else(|| Slug::nearest(&derived, "outbound"));
    let mut id = wanted.clone();
    while !ids.insert(id.clone()) {
        let number = ids.len();
        id = Slug::nearest(&format!("{}-{number}", &wanted.as_str()[..wanted.as_str().len().min(58)]), "outbound");
    }
    Outbound { id, ..way }
}

fn ways() -> impl Strategy<Value = Outbound> {
    (vec(target(), 1..5), port_set(), transport(), option::of(scope())).prop_map(|(to, ports, protocol, scope)| Outbound {
        id: Slug::nearest("replaced", "replaced"),
        to: to.into_iter().map(|target| Destination { target, line: Line(5) }).collect(),
        ports,
        protocol,
        scope,
        line: Line(5),
    })
}

fn target() -> impl Strategy<Value = Target> {
    prop_oneof![3 => names().prop_map(Target::Name), 2 => net().prop_map(Target::Net)]
}

const NAMES: [&str; 6] = [
    "api.openai.com",
    "eu.api.openai.com",
    "xn--bcher-kva.example",
    "a.example",
    "a-rather-long-label-that-goes-on-and-on-until-it-ends.another-rather-long-label-that-goes-on-too.yet-another-one.example.com",
    "time.cloudflare.com",
];

fn names() -> impl Strategy<Value = DnsName> {
    select(NAMES.as_slice()).prop_map(|name| DnsName::parse(name).unwrap())
}

fn slugs() -> impl Strategy<Value = Slug> {
    "[a-z0-9][a-z0-9._-]{0,62}".prop_map(|text| Slug::parse(&text).unwrap())
}

fn mode() -> impl Strategy<Value = Mode> {
    prop_oneof![4 => Just(Mode::Enforce), 1 => Just(Mode::Observe)]
}

fn transport() -> impl Strategy<Value = Transport> {
    prop_oneof![3 => Just(Transport::Tcp), 1 => Just(Transport::Udp)]
}

fn port() -> impl Strategy<Value = u16> {
    prop_oneof![select([22u16, 53, 80, 123, 443, 853, 5432, 8080, 1, 65535].as_slice()), 1u16..]
}

fn port_set() -> impl Strategy<Value = PortSet> {
    let range = prop_oneof![
        3 => port().prop_map(PortRange::single),
        1 => (port(), port()).prop_map(|(a, b)| PortRange::new(a.min(b), a.max(b)).unwrap()),
    ];
    let one = Just(PortSet::single(443));
    prop_oneof![3 => one, 3 => vec(range.clone(), 1..4).prop_map(PortSet::new), 1 => vec(range, 20..40).prop_map(PortSet::new)]
}

fn scope() -> impl Strategy<Value = Scope> {
    prop_oneof![
        select(["backend", "deploy", "nobody-here"].as_slice()).prop_map(|name| Scope::User(name.into())),
        any::<u32>().prop_map(Scope::Uid),
        select(["staff", "nogroup-here"].as_slice()).prop_map(|name| Scope::Group(name.into())),
        any::<u32>().prop_map(Scope::Gid),
        select(["backend.service", "worker@1.service", "a:b.service", "app-with\\x2descape.service"].as_slice())
            .prop_map(|name| Scope::Service(name.into())),
    ]
}

/// Any address, those of a few networks more often, so that they meet.
pub fn address() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        4 => (0u32..64).prop_map(|low| IpAddr::V4(Ipv4Addr::from_bits(0xc633_6400 + low))),
        4 => (0u128..64).prop_map(|low| IpAddr::V6(Ipv6Addr::from_bits((0x2001_0db8 << 96) + low))),
        1 => any::<u32>().prop_map(|bits| IpAddr::V4(Ipv4Addr::from_bits(bits))),
        1 => any::<u128>().prop_map(|bits| IpAddr::V6(Ipv6Addr::from_bits(bits))),
    ]
}

fn net() -> impl Strategy<Value = IpNet> {
    (address(), any::<u8>()).prop_map(|(address, length)| {
        let max = if address.is_ipv4() { 32 } else { 128 };
        IpNet::new(address, if length < 100 { max } else { length % (max + 1) }).unwrap().trunc()
    })
}

/// Networks as the policy keeps them: sorted, none inside another, and together not everybody.
fn nets() -> impl Strategy<Value = Vec<IpNet>> {
    vec(net(), 1..5).prop_map(|nets| {
        let narrow = nets.into_iter().filter(|net| net.prefix_len() > 4);
        let mut nets: Vec<IpNet> = IpNet::aggregate(&narrow.collect());
        if nets.is_empty() {
            nets.push("203.0.113.0/24".parse().unwrap());
        }
        nets.sort();
        nets
    })
}

fn inbound() -> impl Strategy<Value = Inbound> {
    let from = prop_oneof![Just(Sources::Any), nets().prop_map(Sources::Nets)];
    (port(), transport(), from).prop_map(|(port, protocol, from)| Inbound { port, protocol, from, line: Line(3) })
}

fn management() -> impl Strategy<Value = Management> {
    (port(), nets()).prop_map(|(port, from)| Management { port, from, line: Line(4) })
}

fn dns_server() -> impl Strategy<Value = DnsServer> {
    prop_oneof![
        Just(DnsServer::System),
        (address(), port()).prop_map(|(address, port)| DnsServer::Plain { address, port }),
        (address(), port(), names()).prop_map(|(address, port, name)| DnsServer::Tls { address, port, name }),
    ]
}

fn host() -> impl Strategy<Value = Host> {
    let forward = select([Forward::Contain, Forward::Deny].as_slice());
    (any::<bool>(), vec(target(), 0..3), any::<bool>(), forward).prop_map(|(dhcp, ntp, ping, forward)| Host {
        dhcp,
        ntp: ntp.into_iter().map(|target| Destination { target, line: Line(6) }).collect(),
        ntp_line: Some(Line(6)),
        ping,
        raw_frames: RawFrames::Allow,
        forward,
    })
}

fn violations() -> impl Strategy<Value = Violations> {
    let scope = select([QuarantineScope::User, QuarantineScope::Host].as_slice());
    let quarantine =
        (1u32..100, select([1u64, 10, 60, 3600].as_slice()), 1u64..100_000, scope).prop_map(|(after, within, lasts, scope)| {
            // Only counts and times that make an exact rate get past the policy's reader.
            let after = after * u32::try_from(within).unwrap();
            Quarantine { after, within: Period::from_seconds(within), lasts: Period::from_seconds(lasts), scope, line: Line(7) }
        });
    let alert = option::of(Just(Alert { run: "/usr/bin/page-me".to_string(), at_most_every: Period::from_seconds(60) }));
    (option::of(quarantine), alert).prop_map(|(quarantine, alert)| Violations { quarantine, alert })
}

fn pins() -> impl Strategy<Value = Pins> {
    let lease = prop_oneof![9 => 60i64..100_000, 1 => -100i64..1].prop_map(|left| Lease {
        server: "192.0.2.53:53".to_string(),
        ttl: 300,
        first_seen: Timestamp(NOW.0 - 1000),
        last_seen: NOW,
        expires: Timestamp(NOW.0 + left),
    });
    let of_name = btree_map(address(), lease, 0..5);
    (subsequence(NAMES.as_slice(), 0..=NAMES.len()), vec(of_name, NAMES.len())).prop_map(|(names, leases)| {
        let entry =
            |(name, leases): (&str, BTreeMap<IpAddr, Lease>)| (DnsName::parse(name).unwrap(), NamePins { leases, ..NamePins::default() });
        Pins { names: names.into_iter().zip(leases).map(entry).collect() }
    })
}

fn facts() -> impl Strategy<Value = Facts> {
    let users = btree_set(select([("backend", 1000u32), ("deploy", 1001)].as_slice()), 0..3);
    let groups = btree_set(Just(("staff", 50u32)), 0..2);
    let units = btree_map(
        select(
            [
                ("backend.service", "system.slice/backend.service"),
                ("worker@1.service", "system.slice/system-worker.slice/worker@1.service"),
            ]
            .as_slice(),
        ),
        any::<u64>(),
        0..3,
    );
    (users, groups, units, vec(address(), 0..2)).prop_map(|(users, groups, units, servers)| Facts {
        users: users.into_iter().map(|(name, number)| (name.to_string(), number)).collect(),
        groups: groups.into_iter().map(|(name, number)| (name.to_string(), number)).collect(),
        units: units.into_iter().map(|((unit, path), id)| (unit.to_string(), (path.to_string(), id))).collect(),
        servers: servers.into_iter().map(|address| DnsServer::Plain { address, port: 53 }).collect(),
        cut_off: None,
    })
}

/// A policy that says nothing but its name.
pub fn plain() -> Case {
    let policy = Policy {
        name: Slug::parse("plain").unwrap(),
        file: "policy.yaml".to_string(),
        sha256: "5e".repeat(32),
        mode: Mode::Enforce,
        inbound: None,
        management: None,
        outbound: Vec::new(),
        dns: vec![DnsServer::System],
        dns_line: None,
        refresh: Refresh { every: Period::from_seconds(60), keep: Period::from_seconds(86_400), private: PrivateAnswers::Refuse },
        host: Host { dhcp: true, ntp: Vec::new(), ntp_line: None, ping: false, raw_frames: RawFrames::Allow, forward: Forward::Contain },
        violations: Violations::default(),
        tests: Vec::new(),
    };
    Case { policy, pins: Pins::default(), facts: Facts::default() }
}

/// A way out to one network by TLS.
pub fn way(id: &str, net: &str, scope: Option<Scope>) -> Outbound {
    Outbound {
        id: Slug::parse(id).unwrap(),
        to: vec![Destination { target: Target::Net(net.parse().unwrap()), line: Line(5) }],
        ports: PortSet::single(443),
        protocol: Transport::Tcp,
        scope,
        line: Line(5),
    }
}

/// So many seconds.
pub fn period(seconds: u64) -> Period {
    Period::from_seconds(seconds)
}
