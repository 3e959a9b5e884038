//! A concrete packet: everything that a rule can look at, and nothing else. Made from the spelling that people write.

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::base::name::DnsName;
use crate::base::net::{Family, Protocol};
use crate::base::packet::{Direction, Owner, PacketSpec, Peer, State};
use crate::pins::Pins;
use crate::ruleset::compile::Facts;
use crate::ruleset::field::{Field, LOOPBACK, TCP_ACK, ct_state};

/// One packet as it meets the rules of one hook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packet {
    /// Which hook it meets.
    pub direction: Direction,
    /// Which interface it crosses.
    pub link: Link,
    /// Where it comes from. Of the same family as `destination`.
    pub source: IpAddr,
    /// Where it goes to.
    pub destination: IpAddr,
    /// What it carries.
    pub payload: Payload,
    /// Hop limit, or time to live.
    pub hop_limit: u8,
    /// The socket it leaves. Packets that come in, pass through or are made by the kernel itself have none.
    pub socket: Option<Socket>,
    /// What connection tracking knows.
    pub tracking: Tracking,
}

/// An interface, as far as rules tell them apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Link {
    /// The loopback interface.
    Loopback,
    /// Any other.
    Other,
}

/// What a packet carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Payload {
    /// A TCP segment.
    Tcp {
        /// Its source port.
        source: u16,
        /// Its destination port.
        destination: u16,
        /// Octet 13 of its header.
        flags: u8,
    },
    /// A UDP datagram.
    Udp {
        /// Its source port.
        source: u16,
        /// Its destination port.
        destination: u16,
    },
    /// An ICMP message for IPv4, of this type.
    Icmp(u8),
    /// An ICMP message for IPv6, of this type.
    Icmpv6(u8),
    /// Anything else.
    Other(Protocol),
}

/// Who owns the socket that a packet leaves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Socket {
    /// The user; [`STRANGER`] when nobody in particular is meant.
    pub user: u32,
    /// The user's name, where a question gave a name whose number is not known. Matches rules for the user of that name only.
    pub user_name: Option<String>,
    /// The group; [`STRANGER`] when none in particular is meant.
    pub group: u32,
    /// The systemd unit, where a question gave one.
    pub unit: Option<String>,
    /// Ids of the socket's control group and its ancestors, by level; 1 is directly below the root.
    pub cgroups: BTreeMap<u8, u64>,
}

/// What connection tracking knows of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tracking {
    /// Its state. An invalid packet belongs to no entry: the other facts have no value then.
    pub state: State,
    /// Which side of its connection sent it.
    pub sender: Sender,
    /// `IPS_*` bits of the entry.
    pub status: u32,
    /// The destination port before address translation, where the protocol has ports.
    pub original_port: Option<u16>,
}

/// A side of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Sender {
    /// The one that sent the first packet.
    Original,
    /// The one that answers.
    Reply,
}

/// A user, or a group, that no rule is for: -2, which no account has because tools take it for an error or for nobody.
pub const STRANGER: u32 = u32::MAX - 1;

/// A source port where none is said: the first of the dynamic ports (RFC 6335).
const SOURCE_PORT: u16 = 49152;
/// The flag that begins a connection.
pub const TCP_SYN: u8 = 0x02;
/// Index of an interface that is not loopback.
const OTHER_INTERFACE: u128 = 2;

impl Packet {
    /// The first packet of a connection: from a socket of nobody in particular when it goes out, and not by loopback unless an
    /// address says so. `None` when the addresses are of two families.
    pub fn new(direction: Direction, source: IpAddr, destination: IpAddr, payload: Payload) -> Option<Packet> {
        (Family::of(&source) == Family::of(&destination)).then(|| Packet::between(direction, (source, destination), payload))
    }

    /// The same for a pair of addresses that are known to be of one family.
    pub(super) fn between(direction: Direction, (source, destination): (IpAddr, IpAddr), payload: Payload) -> Packet {
        let stranger = Socket { user: STRANGER, user_name: None, group: STRANGER, unit: None, cgroups: BTreeMap::new() };
        let local = direction != Direction::Forward && (source.is_loopback() || destination.is_loopback());
        Packet {
            direction,
            link: if local { Link::Loopback } else { Link::Other },
            source,
            destination,
            payload,
            hop_limit: 64,
            socket: (direction == Direction::Out).then_some(stranger),
            tracking: Tracking { state: State::New, sender: Sender::Original, status: 0, original_port: payload.destination_port() },
        }
    }

    /// The packets that a spelling stands for.
    ///
    /// An address that is not said is the unspecified one, which only rules for everybody hold; without any address there is a packet
    /// of each family. A name becomes each of its pins; one that has none, an address that no rule holds. A port that is not said
    /// is 0 as a destination. An ICMP message is an echo request. A user or unit that the facts do not know stays a symbol. Empty
    /// when source and destination can never meet in one packet.
    pub fn from_spec(spec: &PacketSpec, pins: &Pins, facts: &Facts) -> Vec<Packet> {
        let sources = addresses(&spec.from, pins);
        let destinations = addresses(&spec.to, pins);
        let pairs = destinations.iter().flat_map(|to| sources.iter().map(move |from| (from, to)));
        let fits = |family: Family| match spec.protocol {
            // Where both families are open, a protocol of one family settles it.
            Protocol::ICMP if spec.from == Peer::Any && spec.to == Peer::Any => family == Family::V4,
            Protocol::ICMPV6 if spec.from == Peer::Any && spec.to == Peer::Any => family == Family::V6,
            _ => true,
        };
        pairs.filter(|(from, _)| fits(Family::of(from))).filter_map(|(from, to)| Packet::of(spec, *from, *to, facts)).collect()
    }

    fn of(spec: &PacketSpec, source: IpAddr, destination: IpAddr, facts: &Facts) -> Option<Packet> {
        let mut packet = Packet::new(spec.direction, source, destination, Payload::of(spec))?;
        packet.tracking.state = spec.state;
        if let Some(socket) = &mut packet.socket {
            match &spec.owner {
                Owner::Unsaid => {}
                Owner::Uid(number) => socket.user = *number,
                Owner::User(name) => match facts.users.get(name) {
                    Some(number) => socket.user = *number,
                    None => socket.user_name = Some(name.clone()),
                },
            }
            socket.unit = spec.service.clone();
            if let Some((path, id)) = spec.service.as_ref().and_then(|unit| facts.units.get(unit)) {
                let level = path.split('/').filter(|part| !part.is_empty()).count();
                socket.cgroups.insert(u8::try_from(level).unwrap_or(u8::MAX), *id);
            }
        }
        Some(packet)
    }

    /// The spelling of the packet. What has no spelling (flags, types, hop limit) is left out.
    pub fn spec(&self) -> PacketSpec {
        let said = |address: IpAddr| if address.is_unspecified() { Peer::Any } else { Peer::Address(address) };
        let ports = match self.payload {
            Payload::Tcp { source, destination, .. } | Payload::Udp { source, destination } => (Some(source), Some(destination)),
            _ => (None, None),
        };
        PacketSpec {
            direction: self.direction,
            protocol: self.payload.protocol(),
            from: said(self.source),
            from_port: ports.0.filter(|port| *port != SOURCE_PORT),
            to: said(self.destination),
            to_port: ports.1.filter(|port| *port != 0),
            owner: match &self.socket {
                Some(Socket { user_name: Some(name), .. }) => Owner::User(name.clone()),
                Some(Socket { user, .. }) if *user != STRANGER => Owner::Uid(*user),
                _ => Owner::Unsaid,
            },
            service: self.socket.as_ref().and_then(|socket| socket.unit.clone()),
            state: self.tracking.state,
        }
    }

    /// Its family.
    pub fn family(&self) -> Family {
        Family::of(&self.destination)
    }
}

impl Payload {
    fn of(spec: &PacketSpec) -> Payload {
        let source = spec.from_port.unwrap_or(SOURCE_PORT);
        let destination = spec.to_port.unwrap_or(0);
        match spec.protocol {
            Protocol::TCP => {
                let flags = if spec.state == State::New { TCP_SYN } else { TCP_ACK as u8 };
                Payload::Tcp { source, destination, flags }
            }
            Protocol::UDP => Payload::Udp { source, destination },
            Protocol::ICMP => Payload::Icmp(8),
            Protocol::ICMPV6 => Payload::Icmpv6(128),
            other => Payload::Other(other),
        }
    }

    /// Its protocol.
    pub fn protocol(&self) -> Protocol {
        match self {
            Payload::Tcp { .. } => Protocol::TCP,
            Payload::Udp { .. } => Protocol::UDP,
            Payload::Icmp(_) => Protocol::ICMP,
            Payload::Icmpv6(_) => Protocol::ICMPV6,
            Payload::Other(protocol) => *protocol,
        }
    }

    /// Its destination port, when it has ports.
    pub fn destination_port(&self) -> Option<u16> {
        match self {
            Payload::Tcp { destination, .. } | Payload::Udp { destination, .. } => Some(*destination),
            Payload::Icmp(_) | Payload::Icmpv6(_) | Payload::Other(_) => None,
        }
    }

    /// Its source port, when it has ports.
    pub fn source_port(&self) -> Option<u16> {
        match self {
            Payload::Tcp { source, .. } | Payload::Udp { source, .. } => Some(*source),
            Payload::Icmp(_) | Payload::Icmpv6(_) | Payload::Other(_) => None,
        }
    }
}

/// What this field reads off this packet; `None` where the kernel finds no value and the rule does not match.
pub fn value(field: Field, packet: &Packet) -> Option<u128> {
    let interface = || match packet.link {
        Link::Loopback => LOOPBACK,
        Link::Other => OTHER_INTERFACE,
    };
    let socket = packet.socket.as_ref();
    let tracking = || Some(&packet.tracking).filter(|tracking| tracking.state != State::Invalid);
    match field {
        Field::InputInterface => (packet.direction != Direction::Out).then(interface),
        Field::OutputInterface => (packet.direction != Direction::In).then(interface),
        Field::NetworkFamily => Some(packet.family().nfproto().into()),
        Field::L4Protocol => Some(packet.payload.protocol().0.into()),
        Field::Everybody => Some(0),
        Field::SocketUser => socket.map(|socket| socket.user.into()),
        Field::SocketGroup => socket.map(|socket| socket.group.into()),
        Field::SocketCgroup(level) => socket.and_then(|socket| socket.cgroups.get(&level)).map(|id| (*id).into()),
        Field::ConntrackState => Some(match packet.tracking.state {
            State::New => ct_state::NEW,
            State::Established => ct_state::ESTABLISHED,
            State::Related => ct_state::RELATED,
            State::Invalid => ct_state::INVALID,
        }),
        Field::ConntrackDirection => tracking().map(|tracking| if tracking.sender == Sender::Original { 0 } else { 1 }),
        Field::ConntrackStatus => tracking().map(|tracking| tracking.status.into()),
        Field::OriginalDestinationPort => tracking().and_then(|tracking| tracking.original_port).map(u128::from),
        Field::SourceAddress(family) => (packet.family() == family).then(|| number(&packet.source)),
        Field::DestinationAddress(family) => (packet.family() == family).then(|| number(&packet.destination)),
        Field::SourcePort(protocol) => packet.payload.source_port().filter(|_| packet.payload.protocol() == protocol).map(u128::from),
        Field::DestinationPort(protocol) => {
            packet.payload.destination_port().filter(|_| packet.payload.protocol() == protocol).map(u128::from)
        }
        Field::TransportDestinationPort => packet.payload.destination_port().map(u128::from),
        Field::TcpFlags => match packet.payload {
            Payload::Tcp { flags, .. } => Some(flags.into()),
            _ => None,
        },
        Field::IcmpType => match packet.payload {
            Payload::Icmp(kind) => Some(kind.into()),
            _ => None,
        },
        Field::Icmpv6Type => match packet.payload {
            Payload::Icmpv6(kind) => Some(kind.into()),
            _ => None,
        },
        Field::HopLimit => (packet.family() == Family::V6).then_some(packet.hop_limit.into()),
    }
}

/// An address as a value.
pub fn number(address: &IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => v4.to_bits().into(),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

fn addresses(peer: &Peer, pins: &Pins) -> Vec<IpAddr> {
    match peer {
        Peer::Any => strangers(),
        Peer::Address(address) => vec![*address],
        Peer::Name(name) => pinned(name, pins),
    }
}

fn pinned(name: &DnsName, pins: &Pins) -> Vec<IpAddr> {
    let known: Vec<IpAddr> = pins.names.get(name).into_iter().flat_map(|pins| pins.leases.keys().copied()).collect();
    if known.is_empty() { strangers() } else { known }
}

fn strangers() -> Vec<IpAddr> {
    Family::BOTH.map(Family::unspecified).to_vec()
}
