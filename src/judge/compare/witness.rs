//! A packet out of a box: the plainest there is, and how it is spelt.

use std::net::IpAddr;

use crate::base::name::DnsName;
use crate::base::net::{Family, Protocol};
use crate::base::packet::{Direction, Owner, PacketSpec, Peer, State};
use crate::judge::compare::dimension::{Dimension, Place, address, number, state_bit};
use crate::judge::compare::gather::Part;
use crate::judge::compare::symbol::{Symbol, Symbols};
use crate::judge::compare::values::Values;
use crate::judge::packet::{Packet, Payload, STRANGER, Sender};
use crate::ruleset::field::{STATUS_DNAT, TCP_ACK};

/// A packet that shows a difference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Witness {
    /// The packet.
    pub packet: Packet,
    /// Its spelling.
    pub spec: PacketSpec,
    /// What it is besides, in words, where the spelling has none for it.
    pub besides: Vec<String>,
}

/// The flag that begins a connection.
const TCP_SYN: u128 = 0x02;
/// Types of echo requests.
const ECHO: [u128; 2] = [8, 128];
/// Ports that people know.
const KNOWN_PORTS: [u128; 4] = [443, 80, 53, 22];
/// The source port where none is said, as a packet's spelling has it.
const SOURCE_PORT: u128 = 49152;
/// An address of each family that stands for anybody (RFC 5737, RFC 3849).
const ANYBODY: [u128; 2] = [0xc633_6407, (0x2001_0db8 << 96) | 7];

impl Witness {
    /// The plainest packet of these boxes: one that can be spelt whole, if there is one.
    pub fn of(parts: &[Part], symbols: &Symbols) -> Witness {
        let tried = parts.iter().flat_map(|part| {
            let places = part.places.iter().map(move |place| (part, *place));
            places.flat_map(|(part, place)| {
                Family::BOTH.into_iter().filter(|family| part.has(*family)).map(move |family| (part, place, family))
            })
        });
        let mut best: Option<Witness> = None;
        for (part, place, family) in tried {
            let witness = Choice { part, place, family, symbols, besides: Vec::new() }.witness();
            let found = oddness(&witness);
            if best.as_ref().is_none_or(|best| found < oddness(best)) {
                best = Some(witness);
            }
            if found == (0, 0) {
                break;
            }
        }
        // A group has a box, and a box a family and a place.
        best.unwrap_or_else(|| {
            let part = Part { places: Vec::new(), bounds: Vec::new() };
            Choice { part: &part, place: Place::Wire(Direction::Out), family: Family::V4, symbols, besides: Vec::new() }.witness()
        })
    }
}

struct Choice<'a> {
    part: &'a Part,
    place: Place,
    family: Family,
    symbols: &'a Symbols,
    besides: Vec<String>,
}

impl Choice<'_> {
    fn witness(mut self) -> Witness {
        let direction = self.place.direction();
        let [from, to] = self.addresses();
        let payload = self.payload();
        let mut packet = Packet::between(direction, (from, to), payload.0);
        packet.tracking.state = payload.1;
        self.tracking(&mut packet);
        self.socket(&mut packet);
        let hop_limit = self.pick(Dimension::HopLimit, &[64]);
        if self.family == Family::V6 && hop_limit != 64 {
            self.besides.push(format!("hop limit {hop_limit}"));
        }
        packet.hop_limit = u8::try_from(hop_limit).unwrap_or(u8::MAX);
        let spec = self.spell(&packet);
        Witness { packet, spec, besides: self.besides }
    }

    /// The first of these values that the box holds, or its lowest.
    fn pick(&self, dimension: Dimension, wanted: &[u128]) -> u128 {
        let Some(values) = self.part.bound(dimension) else {
            // What is wanted is always a value that there is.
            return wanted.first().copied().unwrap_or_default();
        };
        let wanted = wanted.iter().copied().find(|value| values.contains(*value));
        wanted.or_else(|| values.first()).unwrap_or_default()
    }

    fn addresses(&self) -> [IpAddr; 2] {
        let (source, destination, anybody) = match self.family {
            Family::V4 => (Dimension::SourceV4, Dimension::DestinationV4, ANYBODY[0]),
            Family::V6 => (Dimension::SourceV6, Dimension::DestinationV6, ANYBODY[1]),
        };
        let values = |dimension: Dimension| self.part.bound(dimension).cloned().unwrap_or_else(|| self.place.domain(dimension));
        let open = |values: &Values| values.contains(0).then_some(0);
        let (sources, destinations) = (values(source), values(destination));
        let said = |values: &Values| values.contains(anybody).then_some(anybody).or_else(|| plain(values));
        let (from, to) = match self.place.direction() {
            Direction::In => (said(&sources), open(&destinations).or_else(|| plain(&destinations))),
            Direction::Out | Direction::Forward => {
                let named = self.named(&destinations);
                (open(&sources).or_else(|| plain(&sources)), named.or_else(|| said(&destinations)))
            }
        };
        [from, to].map(|value| address(self.family, value.unwrap_or_default()))
    }

    /// The address that stands for the first name among the values; the system's servers come last.
    fn named(&self, values: &Values) -> Option<u128> {
        if values.contains(ANYBODY[usize::from(self.family == Family::V6)]) {
            return None;
        }
        let ranges = values.intervals().iter().map(|(first, last)| address(self.family, *first)..=address(self.family, *last));
        let held = ranges.flat_map(|range| self.symbols.addresses.range(range)).filter(|(at, _)| Family::of(at) == self.family);
        held.min_by_key(|(_, symbol)| *symbol).map(|(at, _)| number(at))
    }

    /// What it carries, and its state, which for TCP go together: a spelt packet begins a connection or belongs to one.
    fn payload(&mut self) -> (Payload, State) {
        let echo = ECHO[usize::from(self.family == Family::V6)];
        let [icmp, foreign] = match self.family {
            Family::V4 => [Protocol::ICMP, Protocol::ICMPV6],
            Family::V6 => [Protocol::ICMPV6, Protocol::ICMP],
        };
        let protocols = self.part.values(Dimension::Protocol).without(&Values::one(foreign.0.into()));
        let known = [Protocol::TCP, Protocol::UDP, icmp].into_iter().find(|protocol| protocols.contains(protocol.0.into()));
        let protocol = known.unwrap_or_else(|| Protocol(protocols.first().and_then(|value| u8::try_from(value).ok()).unwrap_or_default()));
        let states = [State::New, State::Invalid, State::Related, State::Established];
        let states: Vec<State> =
            states.into_iter().filter(|state| self.part.values(Dimension::State).contains(state_bit(*state))).collect();
        let flags = self.part.values(Dimension::TcpFlags);
        let spelt = |state: &State| if *state == State::New { TCP_SYN } else { TCP_ACK };
        let fitting = states.iter().find(|state| protocol != Protocol::TCP || flags.contains(spelt(state)));
        let state = fitting.or(states.first()).copied().unwrap_or_default();
        let port = |number: u128| u16::try_from(number).unwrap_or(u16::MAX);
        let octet = |number: u128| u8::try_from(number).unwrap_or(u8::MAX);
        let source = port(self.pick(Dimension::SourcePort, &[SOURCE_PORT]));
        let destination = port(self.pick(Dimension::DestinationPort, &KNOWN_PORTS));
        let payload = match protocol {
            Protocol::TCP => {
                let flags = if fitting.is_some() { spelt(&state) } else { flags.first().unwrap_or_default() };
                if fitting.is_none() {
                    self.besides.push(format!("TCP flags {flags:#04x}"));
                }
                Payload::Tcp { source, destination, flags: octet(flags) }
            }
            Protocol::UDP => Payload::Udp { source, destination },
            Protocol::ICMP | Protocol::ICMPV6 => {
                let dimension = if protocol == Protocol::ICMP { Dimension::IcmpType } else { Dimension::Icmpv6Type };
                let kind = self.pick(dimension, &[echo]);
                if kind != echo {
                    self.besides.push(format!("type {kind}"));
                }
                if protocol == Protocol::ICMP { Payload::Icmp(octet(kind)) } else { Payload::Icmpv6(octet(kind)) }
            }
            other => Payload::Other(other),
        };
        (payload, state)
    }

    fn tracking(&mut self, packet: &mut Packet) {
        if packet.tracking.state == State::Invalid {
            return;
        }
        if self.pick(Dimension::Sender, &[0]) == 1 {
            packet.tracking.sender = Sender::Reply;
            self.besides.push("an answer".to_string());
        }
        if self.pick(Dimension::Translated, &[0]) == 1 {
            packet.tracking.status = u32::try_from(STATUS_DNAT).unwrap_or_default();
            let port = packet.payload.destination_port().map(u128::from);
            let original = port.map(|port| self.pick(Dimension::OriginalPort, &[&[port], KNOWN_PORTS.as_slice()].concat()));
            packet.tracking.original_port = original.and_then(|port| u16::try_from(port).ok());
            self.besides.push(match original {
                Some(port) => format!("translated from port {port}"),
                None => "translated".to_string(),
            });
        }
    }

    fn socket(&mut self, packet: &mut Packet) {
        let Some(mut socket) = packet.socket.take() else { return };
        if self.pick(Dimension::Socket, &[1]) == 0 {
            self.besides.push("made by the kernel itself".to_string());
            return;
        }
        let [user, group] = [Dimension::User, Dimension::Group].map(|dimension| self.pick(dimension, &[STRANGER.into()]));
        socket.user = u32::try_from(user).unwrap_or(STRANGER);
        socket.group = u32::try_from(group).unwrap_or(STRANGER);
        if socket.group != STRANGER {
            self.besides.push(match self.symbols.groups.get(&socket.group) {
                Some(name) => format!("group {name}"),
                None => format!("gid {}", socket.group),
            });
        }
        let unit = self.pick(Dimension::Unit, &[0]);
        if let Some(unit) = unit.checked_sub(1).and_then(|at| self.symbols.units.get(usize::try_from(at).ok()?)) {
            socket.unit = Some(unit.name.clone());
            socket.cgroups.insert(unit.level, unit.id);
        }
        packet.socket = Some(socket);
    }

    /// The packet's spelling, with what it stands for instead of the numbers that stand for it.
    fn spell(&mut self, packet: &Packet) -> PacketSpec {
        let mut spec = packet.spec();
        match self.symbols.addresses.get(&packet.destination) {
            Some(Symbol::Name(name)) => {
                spec.to = Peer::Name(name.clone());
                let other = Family::BOTH.into_iter().find(|family| *family != self.family);
                if other.is_some_and(|other| !self.holds_name(other, name)) {
                    self.besides.push(if self.family == Family::V4 { "over IPv4" } else { "over IPv6" }.to_string());
                }
            }
            Some(Symbol::SystemServers) => {
                spec.to = Peer::Any;
                self.besides.push("to one of the system's DNS servers".to_string());
            }
            None => {}
        }
        if let Owner::Uid(number) = spec.owner
            && let Some(name) = self.symbols.users.get(&number)
        {
            spec.owner = Owner::User(name.clone());
        }
        // A spelling without any address stands for packets of both families.
        if spec.from == Peer::Any && spec.to == Peer::Any && !self.symbols.addresses.contains_key(&packet.destination) {
            let open = Family::BOTH.into_iter().all(|family| self.part.has(family));
            let is_icmp = [Protocol::ICMP, Protocol::ICMPV6].contains(&spec.protocol);
            if !open && !is_icmp {
                self.besides.push(if self.family == Family::V4 { "over IPv4" } else { "over IPv6" }.to_string());
            }
        }
        spec
    }

    /// Whether the box holds this name in that family too.
    fn holds_name(&self, family: Family, name: &DnsName) -> bool {
        let dimension = if family == Family::V4 { Dimension::DestinationV4 } else { Dimension::DestinationV6 };
        let leases = self.symbols.pins.names.get(name).into_iter().flat_map(|pins| pins.leases.keys());
        let mut there = leases.filter(|at| Family::of(at) == family);
        self.part.has(family) && there.all(|at| self.part.bound(dimension).is_none_or(|values| values.contains(number(at))))
    }
}

/// How far a packet is from the first of a connection that can be spelt whole.
fn oddness(witness: &Witness) -> (usize, usize) {
    (witness.besides.len(), usize::from(witness.spec.state != State::New))
}

/// An address that a person would take: not the first of a network, which names the network itself.
fn plain(values: &Values) -> Option<u128> {
    let (first, last) = values.intervals().first()?;
    Some(if last - first >= 3 { first + 1 } else { *first })
}
