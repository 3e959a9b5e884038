//! What was seen, as a policy: the one that was applied, and the smallest ways out and in that would have allowed the rest.
//!
//! Nothing is widened beyond what was seen: an address stays an address, a port a port, and a user's packets need a way of that user.
//! What no line of the language can allow is told, and so is what is better not opened by a program.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use crate::base::name::{DnsName, account};
use crate::base::net::Protocol;
use crate::base::packet::{Direction, Owner, PacketSpec, Peer, State};
use crate::base::port::{PortRange, PortSet};
use crate::base::time::Timestamp;
use crate::judge::{Packet, Prepared, Verdict};
use crate::pins::{Lease, Pins};
use crate::policy::{self, Destination, DnsServer, Forward, Inbound, Line, Mode, Outbound, Policy, Scope, Sources, Target, Transport};
use crate::ruleset::compile::{Facts, compile};
use crate::violation::denied::{Opened, denied};
use crate::violation::report::{Report, Violation};
use crate::violation::{Tuple, Who};

/// The most destinations that are added. Who sends to more than this needs no longer policy.
pub const MOST: usize = 5000;
/// The most programs of a way that are named.
const PROGRAMS: usize = 3;

/// What is known besides what was seen.
#[derive(Debug, Clone)]
pub struct Ground<'a> {
    /// The policy that was applied when it was seen.
    pub policy: &'a Policy,
    /// Its pins.
    pub pins: &'a Pins,
    /// What the host knows of the policy's words.
    pub facts: &'a Facts,
    /// Names of users by number.
    pub users: &'a HashMap<u32, String>,
    /// Names that addresses have, besides those that the policy gives them.
    pub names: &'a BTreeMap<IpAddr, DnsName>,
    /// Where programs of this host take what comes in from outside; `None` when that is not known.
    pub listening: Option<&'a BTreeSet<(Protocol, u16)>>,
}

/// A destination that was added, or the way in, with what it is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Added {
    /// Its way's place among the ways out of the suggested policy, and its own place in that way; `None`: it is the way in.
    pub way: Option<(usize, usize)>,
    /// How many packets it would have allowed.
    pub packets: u64,
    /// The last of them.
    pub last: Timestamp,
    /// Which programs sent them, at most three.
    pub programs: BTreeSet<String>,
    /// From where they came, when a program of this host did not send them.
    pub sources: BTreeSet<IpAddr>,
}

/// What was seen and is not allowed by the suggested policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Left {
    /// The packet.
    pub packet: PacketSpec,
    /// How many of them.
    pub packets: u64,
    /// Why.
    pub why: String,
}

/// A policy that allows what was seen.
#[derive(Debug, Clone, PartialEq)]
pub struct Suggestion {
    /// The policy. It enforces.
    pub policy: Policy,
    /// What is new in it.
    pub added: Vec<Added>,
    /// What it does not allow, the most packets first.
    pub left: Vec<Left>,
    /// Packets that the applied policy allows by now.
    pub covered: u64,
    /// Packets to ports of this host where nothing listens, and how many ports that are.
    pub knocks: (u64, usize),
}

/// What a destination is told apart by.
type Key = (Target, Transport, Option<Scope>);

#[derive(Debug, Default)]
struct Want {
    ports: BTreeSet<u16>,
    packets: u64,
    last: Timestamp,
    programs: BTreeSet<String>,
    sources: BTreeSet<IpAddr>,
}

impl Want {
    fn take(&mut self, violation: &Violation) {
        self.packets = self.packets.saturating_add(violation.count);
        self.last = self.last.max(violation.last);
        if let Some(program) = &violation.process
            && self.programs.len() < PROGRAMS
        {
            self.programs.insert(program.clone());
        }
        if let Who::Source(source) = violation.tuple.who {
            self.sources.insert(source);
        }
    }

    fn merge(&mut self, other: Want) {
        self.packets = self.packets.saturating_add(other.packets);
        self.last = self.last.max(other.last);
        self.programs.extend(other.programs);
        self.sources.extend(other.sources);
    }
}

/// Adds to the policy what was seen and it does not allow, with at most so many destinations.
pub fn suggest(report: &Report, ground: &Ground<'_>, most: usize) -> Suggestion {
    let applied = Policy { mode: Mode::Enforce, ..ground.policy.clone() };
    let rules = compile(&applied, ground.pins, ground.facts, 1);
    let rules = Prepared::new(&rules);
    let (mut wants, mut doors) = (BTreeMap::<Key, Want>::new(), BTreeMap::<(Transport, u16), Want>::new());
    let mut suggestion = Suggestion { policy: applied, added: Vec::new(), left: Vec::new(), covered: 0, knocks: (0, 0) };
    let mut closed = BTreeSet::new();
    // Names that seen addresses were pins of, and their users: what the check at the end needs to know.
    let (mut pins, mut facts) = (ground.pins.clone(), ground.facts.clone());
    let mut open: Vec<Violation> = Vec::new();
    for violation in &report.violations {
        if allows(&rules, violation, ground.facts) {
            suggestion.covered = suggestion.covered.saturating_add(violation.count);
            continue;
        }
        // Programs whose way is cut off try others, and nobody has seen them do that otherwise.
        if violation.cut_off > 0 {
            let cut_off = Violation { count: violation.cut_off, ..violation.clone() };
            suggestion.left.push(left(&cut_off, "it was refused while the whole host was cut off"));
        }
        let violation = Violation { count: violation.count.saturating_sub(violation.cut_off), ..violation.clone() };
        if violation.count == 0 {
            continue;
        }
        match want(&violation, ground).and_then(|wanted| untested(wanted, &violation, ground)) {
            Ok(Wanted::Way(key, port)) => {
                if let (Target::Name(name), Some(address)) = (&key.0, violation.tuple.destination) {
                    pins.names.entry(name.clone()).or_default().leases.entry(address).or_insert_with(lasting);
                }
                if let (Some(Scope::User(user)), Who::User(uid)) = (&key.2, violation.tuple.who) {
                    facts.users.insert(user.to_string(), uid);
                }
                let want = wants.entry(key).or_default();
                want.ports.insert(port);
                want.take(&violation);
                open.push(violation);
            }
            Ok(Wanted::Door(protocol, port)) => {
                doors.entry((protocol, port)).or_default().take(&violation);
                open.push(violation);
            }
            Ok(Wanted::Knock) => {
                suggestion.knocks.0 = suggestion.knocks.0.saturating_add(violation.count);
                closed.insert((violation.tuple.protocol, violation.tuple.port));
            }
            Err(why) => suggestion.left.push(left(&violation, why)),
        }
    }
    suggestion.knocks.1 = closed.len();
    add_door(&mut suggestion, doors);
    add_ways(&mut suggestion, narrowed(wants), most);
    // Who names no host asked nobody; who does asks the host's own servers.
    if suggestion.policy.dns.is_empty() && suggestion.policy.names_hosts() {
        suggestion.policy.dns.push(DnsServer::System);
    }
    // The answer is checked by the evaluator: what is still refused is told, whatever the reason.
    let rules = compile(&suggestion.policy, &pins, &facts, 1);
    let rules = Prepared::new(&rules);
    for violation in open.into_iter().filter(|violation| !allows(&rules, violation, &facts)) {
        let why = match violation.tuple.direction {
            Direction::In if ground.policy.inbound.is_some() => "at most one port accepts connections, and the policy has one",
            Direction::In => "at most one port accepts connections; `management` is the second, narrow one",
            _ if suggestion.added.iter().filter(|added| added.way.is_some()).count() >= most => {
                "there are too many destinations for a policy"
            }
            _ => "no line of a policy allows it",
        };
        suggestion.left.push(left(&violation, why));
    }
    suggestion.left.sort_by(|a, b| b.packets.cmp(&a.packets).then_with(|| a.packet.cmp(&b.packet)));
    suggestion
}

fn left(violation: &Violation, why: impl Into<String>) -> Left {
    Left { packet: spec(&violation.tuple, None), packets: violation.count, why: why.into() }
}

/// What a violation needs.
enum Wanted {
    Way(Key, u16),
    Door(Transport, u16),
    /// Nothing listens there, so nothing is missing.
    Knock,
}

/// What no test of the policy denies.
fn untested(wanted: Wanted, violation: &Violation, ground: &Ground<'_>) -> Result<Wanted, String> {
    let opened = match &wanted {
        Wanted::Way((target, _, scope), _) => Opened {
            name: if let Target::Name(name) = target { Some(name) } else { None },
            user: if let Some(Scope::User(user)) = scope { Some(user) } else { None },
            service: violation.service.as_deref(),
        },
        Wanted::Door(..) => Opened { name: None, user: None, service: None },
        Wanted::Knock => return Ok(wanted),
    };
    let is_pin = |name: &DnsName, address: IpAddr| {
        ground.names.get(&address) == Some(name) || ground.pins.names.get(name).is_some_and(|pins| pins.leases.contains_key(&address))
    };
    match denied(&ground.policy.tests, &violation.tuple, opened, is_pin) {
        Some(line) => Err(format!("the policy's own test at line {} denies it", line.0)),
        None => Ok(wanted),
    }
}

fn want(violation: &Violation, ground: &Ground<'_>) -> Result<Wanted, String> {
    let tuple = &violation.tuple;
    if let (Direction::Out, Who::Source(_)) = (tuple.direction, tuple.who) {
        return Err("the host's kernel sent it by itself: an answer or a reset, no program's work".to_string());
    }
    let transport = match tuple.protocol {
        Protocol::TCP => Transport::Tcp,
        Protocol::UDP => Transport::Udp,
        Protocol::ICMP | Protocol::ICMPV6 if tuple.direction == Direction::In => {
            return Err("`host.ping: true` answers echo requests, and nothing else of ICMP comes in".to_string());
        }
        _ => return Err("the language allows TCP and UDP only".to_string()),
    };
    let port = tuple.port.filter(|port| *port > 0).ok_or("it has no port that can be named")?;
    if tuple.direction == Direction::In {
        // Whoever may come in by these ports is allowed already.
        if ground.policy.inbound.as_ref().is_some_and(|inbound| (inbound.port, inbound.protocol) == (port, transport)) {
            return Err("the port is `inbound.port`, and its sender is outside of `inbound.from`".to_string());
        }
        if transport == Transport::Tcp && ground.policy.management.as_ref().is_some_and(|management| management.port == port) {
            return Err("the port is `management.port`, and its sender is outside of `management.from`".to_string());
        }
        return match ground.listening {
            Some(listening) if listening.contains(&(tuple.protocol, port)) => Ok(Wanted::Door(transport, port)),
            Some(_) => Ok(Wanted::Knock),
            None => Err("it is not known whether anything listens there".to_string()),
        };
    }
    if tuple.direction == Direction::Forward && ground.policy.host.forward == Forward::Deny {
        return Err("`host.forward: deny` lets nothing through".to_string());
    }
    let address = tuple.destination.filter(|address| address.to_canonical() == *address).ok_or("IPv4 inside IPv6 cannot be named")?;
    let named = violation.name.as_deref().and_then(|name| DnsName::parse(name).ok()).or_else(|| ground.names.get(&address).cloned());
    let target = match named {
        Some(name) => Target::Name(name),
        None => policy::destination(&address.to_string()).ok_or("its destination is no address of one host")?,
    };
    let scope = match tuple.who {
        Who::User(uid) if uid > u32::MAX - 2 => return Err("no account has its user's number".to_string()),
        Who::User(uid) => Some(match ground.users.get(&uid).or(violation.user.as_ref()).filter(|name| account(name).is_ok()) {
            Some(name) => Scope::User(name.as_str().into()),
            None => Scope::Uid(uid),
        }),
        Who::Source(_) | Who::Anybody => None,
    };
    Ok(Wanted::Way((target, transport, scope), port))
}

/// Without what another way allows already: who needs a way for everybody needs none for users.
fn narrowed(mut wants: BTreeMap<Key, Want>) -> BTreeMap<Key, Want> {
    let everybody: Vec<Key> = wants.keys().filter(|key| key.2.is_none()).cloned().collect();
    for key in everybody {
        let Some(open) = wants.get(&key).map(|want| want.ports.clone()) else { continue };
        let scoped: Vec<Key> =
            wants.keys().filter(|other| (&other.0, &other.1) == (&key.0, &key.1) && other.2.is_some()).cloned().collect();
        for other in scoped {
            let Some(want) = wants.get_mut(&other) else { continue };
            want.ports.retain(|port| !open.contains(port));
            if want.ports.is_empty()
                && let (Some(covered), Some(wide)) = (wants.remove(&other), wants.get_mut(&key))
            {
                wide.merge(covered);
            }
        }
    }
    wants
}

/// Destinations with the same ports, protocol and sender are one way out, which stands where the first of them would.
fn add_ways(suggestion: &mut Suggestion, wants: BTreeMap<Key, Want>, most: usize) {
    let mut wants: Vec<(Key, Want)> = wants.into_iter().collect();
    if wants.len() > most {
        wants.sort_by(|a, b| b.1.packets.cmp(&a.1.packets).then_with(|| a.0.cmp(&b.0)));
        wants.truncate(most);
        wants.sort_by(|a, b| a.0.cmp(&b.0));
    }
    let mut places = HashMap::new();
    for ((target, protocol, scope), want) in wants {
        let Want { ports, packets, last, programs, sources } = want;
        let ports = PortSet::new(ports.into_iter().map(PortRange::single));
        let ways = &mut suggestion.policy.outbound;
        let place = *places.entry((ports.clone(), protocol, scope.clone())).or_insert_with(|| {
            ways.push(Outbound { id: policy::derived_id(&target), to: Vec::new(), ports, protocol, scope, line: Line(0) });
            ways.len() - 1
        });
        let to = &mut ways[place].to;
        suggestion.added.push(Added { way: Some((place, to.len())), packets, last, programs, sources });
        to.push(Destination { target, line: Line(0) });
    }
}

/// One port can accept connections: the one that most packets came to, when the policy has none.
fn add_door(suggestion: &mut Suggestion, doors: BTreeMap<(Transport, u16), Want>) {
    if suggestion.policy.inbound.is_some() {
        return;
    }
    let Some(((protocol, port), want)) = doors.into_iter().max_by_key(|(_, want)| want.packets) else { return };
    let Want { packets, last, programs, sources, .. } = want;
    suggestion.added.push(Added { way: None, packets, last, programs, sources });
    suggestion.policy.inbound = Some(Inbound { port, protocol, from: Sources::Any, line: Line(0) });
}

/// Whether the rules let it pass.
fn allows(rules: &Prepared<'_>, violation: &Violation, facts: &Facts) -> bool {
    let service = violation.service.clone().filter(|service| facts.units.contains_key(service));
    let packets = Packet::from_spec(&spec(&violation.tuple, service), &Pins::default(), facts);
    !packets.is_empty() && packets.iter().all(|packet| rules.decide(packet).verdict == Verdict::Allow)
}

/// The packet in the one spelling.
fn spec(tuple: &Tuple, service: Option<String>) -> PacketSpec {
    let (from, owner) = match tuple.who {
        Who::User(uid) => (Peer::Any, Owner::Uid(uid)),
        // The kernel's own packets have the host's address, which no rule asks for.
        Who::Source(source) if tuple.direction == Direction::Forward => (Peer::Address(source), Owner::Unsaid),
        Who::Source(_) | Who::Anybody => (Peer::Any, Owner::Unsaid),
    };
    PacketSpec {
        direction: tuple.direction,
        protocol: tuple.protocol,
        from,
        from_port: None,
        to: tuple.destination.map_or(Peer::Any, Peer::Address),
        to_port: tuple.port,
        owner,
        service,
        state: State::New,
    }
}

/// A lease for the check: the address was the name's when it was seen.
fn lasting() -> Lease {
    let (never, always) = (Timestamp(0), Timestamp(i64::MAX));
    Lease { server: String::new(), ttl: 0, first_seen: never, last_seen: never, expires: always }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{Remarks, write};
    use crate::violation::report::CountedBy;

    const APPLIED: &str = "version: 1\nmode: observe\noutbound:\n  - to: api.example.com\n  - {to: 192.0.2.1, port: 5432}\n";

    fn at(second: i64) -> Timestamp {
        Timestamp(1_700_000_000 + second)
    }

    fn seen(direction: Direction, who: Who, to: &str, protocol: Protocol, port: u16, count: u64) -> Violation {
        Violation {
            tuple: Tuple { direction, who, destination: to.parse().ok(), protocol, port: (port > 0).then_some(port) },
            count,
            cut_off: 0,
            bytes: None,
            counted_by: CountedBy::Kernel,
            first: at(0),
            last: at(count as i64),
            name: None,
            user: None,
            process: None,
            service: None,
            rule: None,
        }
    }

    fn out(uid: u32, to: &str, port: u16, count: u64) -> Violation {
        seen(Direction::Out, Who::User(uid), to, Protocol::TCP, port, count)
    }

    fn inward(port: u16, count: u64) -> Violation {
        seen(Direction::In, Who::Anybody, "", Protocol::TCP, port, count)
    }

    fn suggested(applied: &str, violations: Vec<Violation>, listening: Option<&[u16]>) -> Suggestion {
        suggested_at_most(MOST, applied, violations, listening)
    }

    fn suggested_at_most(most: usize, applied: &str, violations: Vec<Violation>, listening: Option<&[u16]>) -> Suggestion {
        let policy = policy::parse(applied, "applied.yaml").unwrap().policy;
        let report = Report {
            since: at(0),
            until: at(1000),
            total: 0,
            violations,
            overflow: BTreeMap::new(),
            other: 0,
            lost: 0,
            unknown: Vec::new(),
            cuts: Vec::new(),
            later: 0,
            harvested: None,
            by_time: Vec::new(),
        };
        let listening: Option<BTreeSet<(Protocol, u16)>> = listening.map(|ports| ports.iter().map(|port| (Protocol::TCP, *port)).collect());
        let ground = Ground {
            policy: &policy,
            pins: &Pins::default(),
            facts: &Facts::default(),
            users: &HashMap::from([(7, "backend".to_string())]),
            names: &BTreeMap::from([("198.51.100.9".parse().unwrap(), DnsName::parse("db.example.com").unwrap())]),
            listening: listening.as_ref(),
        };
        suggest(&report, &ground, most)
    }

    /// The ways out that were added, as they are written.
    fn lines(suggestion: &Suggestion) -> Vec<String> {
        let text = write(&suggestion.policy, &Remarks::default());
        assert!(policy::parse(&text, "suggested.yaml").is_ok(), "{text}");
        let ways = text.split("outbound:\n").nth(1).unwrap_or_default().split("\n\n").next().unwrap_or_default();
        ways.replace("\n    ", " ")
            .replace("   - ", " ")
            .lines()
            .map(|line| line.trim_start_matches([' ', '-']).to_string())
            .skip(2)
            .collect()
    }

    #[test]
    fn each_packet_gets_the_narrowest_way_and_ways_to_one_place_are_one() {
        let named = Violation { name: Some("api.example.com".to_string()), ..out(7, "192.0.2.77", 80, 4) };
        let program = |name: &str, violation: Violation| Violation { process: Some(name.to_string()), ..violation };
        let seen = vec![
            program("/usr/bin/psql", out(7, "198.51.100.1", 5432, 10)),
            program("/usr/bin/curl", out(7, "198.51.100.1", 443, 5)),
            out(7, "198.51.100.9", 443, 3),
            out(8, "198.51.100.9", 443, 2),
            named,
            // Already allowed, so nothing is needed.
            out(9, "192.0.2.1", 5432, 99),
        ];
        let suggestion = suggested(APPLIED, seen, None);
        assert_eq!(
            lines(&suggestion),
            [
                "to: api.example.com port: 80 protocol: tcp for: {user: backend}",
                "to: db.example.com for: {user: backend}",
                "to: db.example.com for: {uid: 8}",
                "to: 198.51.100.1 port: [443, 5432] protocol: tcp for: {user: backend}",
            ]
        );
        assert_eq!((suggestion.covered, suggestion.left.len(), suggestion.policy.mode), (99, 0, Mode::Enforce));
        let database = &suggestion.added[3];
        assert_eq!((database.way, database.packets, database.last), (Some((5, 0)), 15, at(10)));
        assert_eq!(database.programs.iter().map(String::as_str).collect::<Vec<_>>(), ["/usr/bin/curl", "/usr/bin/psql"]);
    }

    #[test]
    fn destinations_with_the_same_ports_protocol_and_user_are_one_way() {
        let dns = |to: &str| seen(Direction::Out, Who::User(7), to, Protocol::UDP, 443, 4);
        let seen = vec![
            out(7, "198.51.100.1", 443, 5),
            out(7, "198.51.100.9", 443, 3),
            out(8, "198.51.100.2", 443, 1),
            dns("198.51.100.3"),
            out(7, "198.51.100.4", 443, 2),
            out(7, "198.51.100.5", 80, 6),
        ];
        let suggestion = suggested(APPLIED, seen, None);
        assert_eq!(
            lines(&suggestion),
            [
                "to: db.example.com 198.51.100.1 198.51.100.4 port: 443 protocol: tcp for: {user: backend}",
                "to: 198.51.100.2 port: 443 protocol: tcp for: {uid: 8}",
                "to: 198.51.100.3 port: 443 protocol: udp for: {user: backend}",
                "to: 198.51.100.5 port: 80 protocol: tcp for: {user: backend}",
            ]
        );
        let of: Vec<_> = suggestion.added.iter().map(|added| (added.way, added.packets)).collect();
        let expected = [((2, 0), 3), ((2, 1), 5), ((3, 0), 1), ((4, 0), 4), ((2, 2), 2), ((5, 0), 6)];
        assert_eq!(of, expected.map(|(way, packets)| (Some(way), packets)));
        assert!(suggestion.left.is_empty(), "{:?}", suggestion.left);
    }

    #[test]
    fn a_policy_that_asked_nobody_asks_for_the_name_that_it_gets() {
        let applied = "version: 1\nmode: observe\noutbound:\n  - {to: 192.0.2.1, port: 5432}\n  - {to: 192.0.2.2, port: 1}\n";
        let suggestion = suggested(applied, vec![out(7, "198.51.100.9", 443, 3)], None);
        assert_eq!(lines(&suggestion), ["port: 1 protocol: tcp", "to: db.example.com for: {user: backend}"][1..]);
        assert_eq!(suggestion.policy.dns, [DnsServer::System]);
    }

    #[test]
    fn a_way_for_everybody_makes_those_of_users_needless() {
        let through = seen(Direction::Forward, Who::Source("10.0.0.2".parse().unwrap()), "198.51.100.1", Protocol::TCP, 443, 4);
        let suggestion = suggested(APPLIED, vec![out(7, "198.51.100.1", 443, 5), out(7, "198.51.100.1", 80, 1), through], None);
        assert_eq!(
            lines(&suggestion),
            ["to: 198.51.100.1 port: 443 protocol: tcp", "to: 198.51.100.1 port: 80 protocol: tcp for: {user: backend}"]
        );
        assert!(suggestion.left.is_empty(), "{:?}", suggestion.left);
        let through = seen(Direction::Forward, Who::Source("10.0.0.2".parse().unwrap()), "198.51.100.1", Protocol::TCP, 443, 4);
        let denied = suggested(&format!("{APPLIED}host: {{forward: deny}}\n"), vec![through], None);
        assert_eq!((lines(&denied).len(), denied.left.len()), (0, 1));
    }

    #[test]
    fn one_port_may_come_in_and_only_where_something_listens() {
        let seen = || vec![inward(8080, 50), inward(443, 20), inward(23, 900), inward(2323, 1)];
        let suggestion = suggested(APPLIED, seen(), Some(&[443, 8080]));
        assert_eq!(suggestion.policy.inbound.as_ref().map(|inbound| inbound.port), Some(8080));
        assert_eq!(suggestion.knocks, (901, 2));
        let left: Vec<_> = suggestion.left.iter().map(|left| (left.packet.to_port, left.packets)).collect();
        assert_eq!(left, [(Some(443), 20)]);
        let has_one = suggested(&format!("{APPLIED}inbound: {{port: 9000}}\n"), seen(), Some(&[443, 8080]));
        assert_eq!((has_one.policy.inbound.map(|inbound| inbound.port), has_one.left.len()), (Some(9000), 2));
        let unknown = suggested(APPLIED, seen(), None);
        assert_eq!((unknown.policy.inbound, unknown.left.len()), (None, 4));
    }

    #[test]
    fn who_is_outside_of_the_networks_that_may_come_in_is_told_so() {
        let more = "inbound: {port: 8080, from: [192.0.2.0/24]}\nmanagement: {port: 22, from: [192.0.2.0/24]}\n";
        let udp = seen(Direction::In, Who::Anybody, "", Protocol::UDP, 22, 1);
        let suggestion =
            suggested(&format!("{APPLIED}{more}"), vec![inward(8080, 4), inward(22, 3), inward(443, 2), udp], Some(&[22, 443, 8080]));
        let whys: Vec<_> = suggestion.left.iter().map(|left| left.why.as_str()).collect();
        assert!(whys[0].contains("outside of `inbound.from`") && whys[1].contains("outside of `management.from`"), "{whys:?}");
        assert_eq!((&whys[2..], suggestion.knocks.0), (&["at most one port accepts connections, and the policy has one"][..], 1));
    }

    #[test]
    fn what_no_line_can_allow_is_told_with_its_reason() {
        let icmp = seen(Direction::Out, Who::User(7), "198.51.100.1", Protocol::ICMP, 0, 6);
        let ping = seen(Direction::In, Who::Anybody, "", Protocol::ICMP, 0, 3);
        let seen = vec![icmp, ping, out(7, "::ffff:192.0.2.1", 443, 2), out(u32::MAX, "198.51.100.1", 443, 1)];
        let suggestion = suggested(APPLIED, seen, Some(&[]));
        assert!(lines(&suggestion).is_empty());
        let whys: Vec<_> = suggestion.left.iter().map(|left| (left.packets, left.why.as_str())).collect();
        assert_eq!(whys.iter().map(|(packets, _)| *packets).collect::<Vec<_>>(), [6, 3, 2, 1]);
        assert!(whys[1].1.contains("host.ping") && whys[2].1.contains("IPv4 inside IPv6"), "{whys:?}");
    }

    #[test]
    fn what_a_test_of_the_policy_denies_is_not_opened() {
        let applied =
            format!("{APPLIED}tests:\n  - allow: tcp to 192.0.2.1:5432\n  - deny: tcp to 198.51.100.1:80\n  - deny: in tcp to :8080\n");
        let seen = vec![out(0, "198.51.100.1", 80, 3), out(0, "198.51.100.1", 443, 2), inward(8080, 1)];
        let suggestion = suggested(&applied, seen, Some(&[8080]));
        assert_eq!(lines(&suggestion), ["to: 198.51.100.1 port: 443 protocol: tcp for: {uid: 0}"]);
        assert_eq!(suggestion.policy.inbound, None);
        let whys: Vec<_> = suggestion.left.iter().map(|left| (left.packets, left.why.as_str())).collect();
        assert_eq!(whys, [(3, "the policy's own test at line 8 denies it"), (1, "the policy's own test at line 9 denies it")]);
    }

    #[test]
    fn neither_what_a_cut_refused_nor_what_the_kernel_sent_by_itself_is_opened() {
        let part = Violation { cut_off: 4, ..out(7, "198.51.100.1", 443, 10) };
        let whole = Violation { cut_off: 3, ..out(7, "198.51.100.2", 443, 3) };
        let covered = Violation { cut_off: 5, ..out(7, "192.0.2.1", 5432, 5) };
        let reset = seen(Direction::Out, Who::Source("192.0.2.10".parse().unwrap()), "198.51.100.3", Protocol::TCP, 50_123, 2);
        let suggestion = suggested(APPLIED, vec![part, whole, covered, reset], None);
        assert_eq!(lines(&suggestion), ["to: 198.51.100.1 port: 443 protocol: tcp for: {user: backend}"]);
        assert_eq!((suggestion.added[0].packets, suggestion.covered), (6, 5));
        let whys: Vec<_> = suggestion.left.iter().map(|left| (left.packets, left.why.as_str())).collect();
        let [cut, kernel] = ["it was refused while the whole host was cut off", "the host's kernel sent it by itself"];
        assert!(matches!(whys.as_slice(), [(4, a), (3, b), (2, c)] if *a == cut && *b == cut && c.starts_with(kernel)), "{whys:?}");
    }

    #[test]
    fn a_flood_of_destinations_makes_no_policy_that_nobody_can_read() {
        let address = |low: u32| std::net::Ipv4Addr::from_bits(0xc633_0000 + low).to_string();
        let seen = (0..250).map(|low| out(7, &address(low), 443, u64::from(low) + 1));
        let suggestion = suggested_at_most(200, APPLIED, seen.collect(), None);
        assert_eq!((lines(&suggestion).len(), suggestion.added.len(), suggestion.left.len()), (1, 200, 50));
        assert!(suggestion.left.iter().all(|left| left.packets <= 50 && left.why.contains("too many")), "the fewest are left out");
    }
}
