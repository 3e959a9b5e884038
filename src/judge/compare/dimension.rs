//! What a packet can differ in, as dimensions whose values are numbers: the axes along which two rulesets are compared.

use std::net::IpAddr;

use crate::base::net::{Family, Protocol};
use crate::base::packet::{Direction, State};
use crate::judge::compare::values::Values;
use crate::judge::packet::{Link, Packet, value};
use crate::ruleset::field::{Field, NO_USER, STATUS_DNAT, ct_state};

pub use crate::judge::packet::number;

/// An axis of the packet space. They are cut in this order, so that what depends on another comes after it: a port is looked at
/// where the protocol is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Dimension {
    /// The family, as `NFPROTO_*`.
    Family,
    /// What the packet carries.
    Protocol,
    /// What connection tracking says: a bit of `ct state`.
    State,
    /// 1 when the destination of the packet's connection was translated, as that of a published container port is.
    Translated,
    /// 1 when the packet answers.
    Sender,
    /// 1 when a socket sends it; packets that the kernel makes by itself have none.
    Socket,
    /// Type of an ICMP message.
    IcmpType,
    /// Type of an ICMPv6 message.
    Icmpv6Type,
    /// Hop limit of IPv6.
    HopLimit,
    /// Destination port.
    DestinationPort,
    /// Destination port before translation. Where nothing was translated it is the destination port.
    OriginalPort,
    /// Source port.
    SourcePort,
    /// Octet 13 of the TCP header.
    TcpFlags,
    /// The systemd unit: 0 none that is known, otherwise its place in [`Units`] from 1.
    Unit,
    /// The group of the socket.
    Group,
    /// The user of the socket.
    User,
    /// IPv4 source address.
    SourceV4,
    /// IPv6 source address.
    SourceV6,
    /// IPv4 destination address.
    DestinationV4,
    /// IPv6 destination address.
    DestinationV6,
}

/// A systemd unit and the control group that stands for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unit {
    /// Its name.
    pub name: String,
    /// How deep its control group lies; 1 is directly below the root.
    pub level: u8,
    /// The id of its control group.
    pub id: u64,
}

/// Every unit that one of the rulesets names. A packet is of one of them or of none.
pub type Units = [Unit];

/// Where a packet can be, apart from everything that the rules ask: its hook, its interface, and the addresses that go with both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Place {
    /// At this hook, by an interface that is not loopback. Loopback addresses are to be met there only in passing.
    Wire(Direction),
    /// By loopback, to one of its addresses.
    LoopbackTo(Direction),
    /// By loopback, from one of its addresses to another address of this host.
    LoopbackFrom(Direction),
}

impl Place {
    /// All of them.
    pub const ALL: [Place; 7] = [
        Place::Wire(Direction::Out),
        Place::Wire(Direction::In),
        Place::Wire(Direction::Forward),
        Place::LoopbackTo(Direction::Out),
        Place::LoopbackFrom(Direction::Out),
        Place::LoopbackTo(Direction::In),
        Place::LoopbackFrom(Direction::In),
    ];

    /// The hook.
    pub fn direction(self) -> Direction {
        match self {
            Place::Wire(direction) | Place::LoopbackTo(direction) | Place::LoopbackFrom(direction) => direction,
        }
    }

    /// The interface.
    pub fn link(self) -> Link {
        match self {
            Place::Wire(_) => Link::Other,
            Place::LoopbackTo(_) | Place::LoopbackFrom(_) => Link::Loopback,
        }
    }

    /// Whether the packet is at this place.
    pub fn holds(self, packet: &Packet) -> bool {
        let here = self.direction() == packet.direction && self.link() == packet.link;
        here && match self {
            Place::Wire(_) => true,
            Place::LoopbackTo(_) => packet.destination.is_loopback(),
            Place::LoopbackFrom(_) => !packet.destination.is_loopback(),
        }
    }

    /// The values that the dimension has here.
    pub fn domain(self, dimension: Dimension) -> Values {
        let loopback = match dimension {
            Dimension::SourceV4 | Dimension::DestinationV4 => LOOPBACK_V4,
            Dimension::SourceV6 | Dimension::DestinationV6 => LOOPBACK_V6,
            _ => return dimension.domain(),
        };
        let loopback = Values::new([loopback]);
        let is_source = matches!(dimension, Dimension::SourceV4 | Dimension::SourceV6);
        match (self, is_source) {
            (Place::Wire(Direction::Forward), _) | (Place::LoopbackTo(_), true) => dimension.domain(),
            (Place::Wire(_), _) | (Place::LoopbackFrom(_), false) => dimension.domain().without(&loopback),
            (Place::LoopbackTo(_), false) | (Place::LoopbackFrom(_), true) => loopback,
        }
    }
}

/// 127.0.0.0/8.
const LOOPBACK_V4: (u128, u128) = (0x7f00_0000, 0x7fff_ffff);
/// ::1.
const LOOPBACK_V6: (u128, u128) = (1, 1);

impl Dimension {
    /// All of them, in order.
    pub const ALL: [Dimension; 20] = [
        Dimension::Family,
        Dimension::Protocol,
        Dimension::State,
        Dimension::Translated,
        Dimension::Sender,
        Dimension::Socket,
        Dimension::IcmpType,
        Dimension::Icmpv6Type,
        Dimension::HopLimit,
        Dimension::DestinationPort,
        Dimension::OriginalPort,
        Dimension::SourcePort,
        Dimension::TcpFlags,
        Dimension::Unit,
        Dimension::Group,
        Dimension::User,
        Dimension::SourceV4,
        Dimension::SourceV6,
        Dimension::DestinationV4,
        Dimension::DestinationV6,
    ];

    /// Those of addresses.
    pub const ADDRESSES: [Dimension; 4] = [Dimension::SourceV4, Dimension::SourceV6, Dimension::DestinationV4, Dimension::DestinationV6];

    /// The dimension that a field cuts; `None` for fields that a [`Place`] settles.
    pub fn of(field: Field) -> Option<Dimension> {
        Some(match field {
            Field::InputInterface | Field::OutputInterface | Field::Everybody => return None,
            Field::NetworkFamily => Dimension::Family,
            Field::L4Protocol => Dimension::Protocol,
            Field::SocketUser => Dimension::User,
            Field::SocketGroup => Dimension::Group,
            Field::SocketCgroup(_) => Dimension::Unit,
            Field::ConntrackState => Dimension::State,
            Field::ConntrackDirection => Dimension::Sender,
            Field::ConntrackStatus => Dimension::Translated,
            Field::OriginalDestinationPort => Dimension::OriginalPort,
            Field::SourceAddress(Family::V4) => Dimension::SourceV4,
            Field::SourceAddress(Family::V6) => Dimension::SourceV6,
            Field::DestinationAddress(Family::V4) => Dimension::DestinationV4,
            Field::DestinationAddress(Family::V6) => Dimension::DestinationV6,
            Field::SourcePort(_) => Dimension::SourcePort,
            Field::DestinationPort(_) | Field::TransportDestinationPort => Dimension::DestinationPort,
            Field::TcpFlags => Dimension::TcpFlags,
            Field::IcmpType => Dimension::IcmpType,
            Field::Icmpv6Type => Dimension::Icmpv6Type,
            Field::HopLimit => Dimension::HopLimit,
        })
    }

    /// Every value it can have.
    pub fn domain(self) -> Values {
        let up_to = |last: u128| Values::new([(0, last)]);
        match self {
            Dimension::Family => Values::points(Family::BOTH.map(|family| family.nfproto().into())),
            Dimension::State => Values::points([ct_state::INVALID, ct_state::ESTABLISHED, ct_state::RELATED, ct_state::NEW]),
            Dimension::Translated | Dimension::Sender | Dimension::Socket => up_to(1),
            Dimension::Protocol | Dimension::IcmpType | Dimension::Icmpv6Type | Dimension::HopLimit | Dimension::TcpFlags => up_to(255),
            Dimension::DestinationPort | Dimension::OriginalPort | Dimension::SourcePort => up_to(u16::MAX.into()),
            // The highest number is that of no user.
            Dimension::User => up_to(NO_USER - 1),
            Dimension::Group | Dimension::SourceV4 | Dimension::DestinationV4 => up_to(u32::MAX.into()),
            // More units than this could not be told apart by their levels and ids either.
            Dimension::Unit => up_to(u32::MAX.into()),
            Dimension::SourceV6 | Dimension::DestinationV6 => up_to(u128::MAX),
        }
    }

    /// The values it can have in packets of these families: ICMP runs over its own family.
    pub fn domain_in(self, families: &Values) -> Values {
        let foreign = |family: Family, protocol: Protocol| {
            let alone = *families == Values::one(family.nfproto().into());
            alone.then(|| Values::one(protocol.0.into()))
        };
        let foreign = foreign(Family::V4, Protocol::ICMPV6).or(foreign(Family::V6, Protocol::ICMP));
        match foreign.filter(|_| self == Dimension::Protocol) {
            Some(foreign) => self.domain().without(&foreign),
            None => self.domain(),
        }
    }

    /// The packet's value; `None` where it has none.
    pub fn read(self, packet: &Packet, units: &Units) -> Option<u128> {
        let protocol = packet.payload.protocol();
        match self {
            Dimension::Family => value(Field::NetworkFamily, packet),
            Dimension::Protocol => value(Field::L4Protocol, packet),
            Dimension::State => value(Field::ConntrackState, packet),
            Dimension::Translated => value(Field::ConntrackStatus, packet).map(|status| u128::from(status & STATUS_DNAT != 0)),
            Dimension::Sender => value(Field::ConntrackDirection, packet),
            Dimension::Socket => Some(packet.socket.is_some().into()),
            Dimension::IcmpType => value(Field::IcmpType, packet),
            Dimension::Icmpv6Type => value(Field::Icmpv6Type, packet),
            Dimension::HopLimit => value(Field::HopLimit, packet),
            Dimension::DestinationPort => value(Field::DestinationPort(protocol), packet),
            Dimension::OriginalPort => value(Field::OriginalDestinationPort, packet),
            Dimension::SourcePort => value(Field::SourcePort(protocol), packet),
            Dimension::TcpFlags => value(Field::TcpFlags, packet),
            Dimension::Unit => packet.socket.as_ref().map(|socket| {
                let is_of = |unit: &Unit| socket.cgroups.get(&unit.level) == Some(&unit.id);
                units.iter().position(is_of).map_or(0, |at| at as u128 + 1)
            }),
            Dimension::Group => value(Field::SocketGroup, packet),
            Dimension::User => value(Field::SocketUser, packet),
            Dimension::SourceV4 => value(Field::SourceAddress(Family::V4), packet),
            Dimension::SourceV6 => value(Field::SourceAddress(Family::V6), packet),
            Dimension::DestinationV4 => value(Field::DestinationAddress(Family::V4), packet),
            Dimension::DestinationV6 => value(Field::DestinationAddress(Family::V6), packet),
        }
    }
}

/// The bit of a state.
pub fn state_bit(state: State) -> u128 {
    match state {
        State::New => ct_state::NEW,
        State::Established => ct_state::ESTABLISHED,
        State::Related => ct_state::RELATED,
        State::Invalid => ct_state::INVALID,
    }
}

/// The address of a value.
pub fn address(family: Family, value: u128) -> IpAddr {
    match family {
        Family::V4 => IpAddr::V4((u32::try_from(value).unwrap_or(u32::MAX)).into()),
        Family::V6 => IpAddr::V6(value.into()),
    }
}
