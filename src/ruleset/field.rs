//! The one table of what rules can look at: a row says everything that is known about a field.
//!
//! Text, lower, lift and trace read the same row, so they cannot disagree. A new match is one variant and one row.
//! Numbers are those of `linux/netfilter/nf_tables.h` and `linux/netfilter/nf_conntrack_common.h`.

use crate::base::net::{Family, Protocol};
use crate::ruleset::program::{Expr, KeyType, Register};

/// Something about a packet that a rule can look at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs)]
pub enum Field {
    /// Index of the interface that the packet came in by; 1 is loopback in every network namespace.
    InputInterface,
    OutputInterface,
    /// The family, as `NFPROTO_*`.
    NetworkFamily,
    /// What the packet carries, behind extension headers.
    L4Protocol,
    /// The same value, 0, for every packet: the key of sets that say something about the whole host.
    Everybody,
    /// The user whose socket the packet leaves. Packets without a socket have no value: no test on it matches.
    SocketUser,
    /// The group of that socket; like [`Field::SocketUser`].
    SocketGroup,
    /// The id of the ancestor at this level of the socket's control group; like [`Field::SocketUser`].
    SocketCgroup(u8),
    ConntrackState,
    /// 0 original, 1 reply.
    ConntrackDirection,
    ConntrackStatus,
    /// The destination port before address translation.
    OriginalDestinationPort,
    SourceAddress(Family),
    DestinationAddress(Family),
    SourcePort(Protocol),
    DestinationPort(Protocol),
    /// Octets 2 and 3 of whatever the packet carries: a port only for protocols that have one, so a rule that uses it
    /// tests the protocol.
    TransportDestinationPort,
    TcpFlags,
    IcmpType,
    Icmpv6Type,
    HopLimit,
}

/// What a field takes for granted. A rule that loads it tests this first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Guard {
    /// The packet is of this family.
    Family(Family),
    /// The packet carries this protocol.
    Protocol(Protocol),
}

impl Guard {
    /// The field and the value that the guard asks for.
    pub fn test(self) -> (Field, u128) {
        match self {
            Guard::Family(family) => (Field::NetworkFamily, family.nfproto().into()),
            Guard::Protocol(protocol) => (Field::L4Protocol, protocol.0.into()),
        }
    }
}

/// How a value is put into a register.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Load {
    Meta(u32),
    /// A meta key of which no bit is kept.
    MetaNothing(u32),
    Ct(u32, Option<u8>),
    Network(u32),
    Transport(u32),
    Cgroup(u8),
}

/// How values of a field are written by people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Notation {
    /// As a number.
    Decimal,
    /// As an address.
    Address,
    /// By these names, and as a number where there is none.
    Named(&'static [(u128, &'static str)]),
}

/// What is known about a field.
#[derive(Debug, Clone, Copy)]
pub struct Row {
    /// How nft spells it.
    pub keyword: &'static str,
    load: Load,
    /// The type it has as a field of a set's key; its octets are the field's octets.
    pub key: KeyType,
    /// What it takes for granted.
    pub guards: &'static [Guard],
    /// How its values are written.
    pub notation: Notation,
}

/// `ct state` bits.
pub mod ct_state {
    #![allow(missing_docs)]
    pub const INVALID: u128 = 1;
    pub const ESTABLISHED: u128 = 2;
    pub const RELATED: u128 = 4;
    pub const NEW: u128 = 8;
}

/// `ct status` bit of a flow whose destination was translated (`IPS_DST_NAT`).
pub const STATUS_DNAT: u128 = 1 << 5;
/// `ct direction` of an answer.
pub const DIRECTION_REPLY: u128 = 1;
/// TCP flag bits, octet 13 of the header.
pub const TCP_RST: u128 = 0x04;
/// See [`TCP_RST`].
pub const TCP_ACK: u128 = 0x10;
/// The uid that no socket has; `!=` to it means "has a socket".
pub const NO_USER: u128 = u32::MAX as u128;
/// The index of the loopback interface, the first of every network namespace.
pub const LOOPBACK: u128 = 1;

const V4: &[Guard] = &[Guard::Family(Family::V4)];
const V6: &[Guard] = &[Guard::Family(Family::V6)];
const TCP: &[Guard] = &[Guard::Protocol(Protocol::TCP)];
const UDP: &[Guard] = &[Guard::Protocol(Protocol::UDP)];
const ICMP: &[Guard] = &[Guard::Family(Family::V4), Guard::Protocol(Protocol::ICMP)];
const ICMPV6: &[Guard] = &[Guard::Family(Family::V6), Guard::Protocol(Protocol::ICMPV6)];

/// A key type of a field that is never a set's key.
const fn plain(octets: u32) -> KeyType {
    KeyType::Foreign { number: 0, octets }
}

impl Field {
    /// The table.
    pub fn row(self) -> Row {
        use Notation::{Address, Decimal, Named};
        let row = |keyword, load, key, guards, notation| Row { keyword, load, key, guards, notation };
        match self {
            Field::InputInterface => row("iif", Load::Meta(4), plain(4), &[], Named(&[(LOOPBACK, "\"lo\"")])),
            Field::OutputInterface => row("oif", Load::Meta(5), plain(4), &[], Named(&[(LOOPBACK, "\"lo\"")])),
            Field::NetworkFamily => row("meta nfproto", Load::Meta(15), plain(1), &[], Named(&[(2, "ipv4"), (10, "ipv6")])),
            Field::L4Protocol => row(
                "meta l4proto",
                Load::Meta(16),
                KeyType::InetProto,
                &[],
                Named(&[(1, "icmp"), (6, "tcp"), (17, "udp"), (58, "ipv6-icmp")]),
            ),
            Field::Everybody => row("meta mark & 0x00000000", Load::MetaNothing(3), KeyType::Mark, &[], Decimal),
            Field::SocketUser => row("meta skuid", Load::Meta(10), KeyType::Uid, &[], Decimal),
            Field::SocketGroup => row("meta skgid", Load::Meta(11), KeyType::Gid, &[], Decimal),
            Field::SocketCgroup(level) => row(CGROUP_LEVELS[usize::from(level) % 16], Load::Cgroup(level), KeyType::CgroupV2, &[], Decimal),
            Field::ConntrackState => row(
                "ct state",
                Load::Ct(0, None),
                plain(4),
                &[],
                Named(&[
                    (ct_state::INVALID, "invalid"),
                    (ct_state::ESTABLISHED, "established"),
                    (ct_state::RELATED, "related"),
                    (ct_state::NEW, "new"),
                ]),
            ),
            Field::ConntrackDirection => row("ct direction", Load::Ct(1, None), plain(1), &[], Named(&[(0, "original"), (1, "reply")])),
            Field::ConntrackStatus => row("ct status", Load::Ct(2, None), plain(4), &[], Named(&[(STATUS_DNAT, "dnat")])),
            Field::OriginalDestinationPort => row("ct original proto-dst", Load::Ct(12, Some(0)), KeyType::InetService, &[], Decimal),
            Field::SourceAddress(Family::V4) => row("ip saddr", Load::Network(12), KeyType::Ipv4Addr, V4, Address),
            Field::SourceAddress(Family::V6) => row("ip6 saddr", Load::Network(8), KeyType::Ipv6Addr, V6, Address),
            Field::DestinationAddress(Family::V4) => row("ip daddr", Load::Network(16), KeyType::Ipv4Addr, V4, Address),
            Field::DestinationAddress(Family::V6) => row("ip6 daddr", Load::Network(24), KeyType::Ipv6Addr, V6, Address),
            Field::SourcePort(Protocol::UDP) => row("udp sport", Load::Transport(0), KeyType::InetService, UDP, Decimal),
            Field::SourcePort(_) => row("tcp sport", Load::Transport(0), KeyType::InetService, TCP, Decimal),
            Field::DestinationPort(Protocol::UDP) => row("udp dport", Load::Transport(2), KeyType::InetService, UDP, Decimal),
            Field::DestinationPort(_) => row("tcp dport", Load::Transport(2), KeyType::InetService, TCP, Decimal),
            Field::TransportDestinationPort => row("th dport", Load::Transport(2), KeyType::InetService, &[], Decimal),
            Field::TcpFlags => row("tcp flags", Load::Transport(13), plain(1), TCP, Named(&[(TCP_RST, "rst"), (TCP_ACK, "ack")])),
            Field::IcmpType => row("icmp type", Load::Transport(0), KeyType::IcmpType, ICMP, Named(&[(8, "echo-request")])),
            Field::Icmpv6Type => row(
                "icmpv6 type",
                Load::Transport(0),
                KeyType::Icmpv6Type,
                ICMPV6,
                Named(&[(128, "echo-request"), (130, "mld-listener-query")]),
            ),
            Field::HopLimit => row("ip6 hoplimit", Load::Network(7), plain(1), V6, Decimal),
        }
    }

    /// Every field that lift may meet, those with narrower guards first.
    pub const ALL: &'static [Field] = &[
        Field::InputInterface,
        Field::OutputInterface,
        Field::NetworkFamily,
        Field::L4Protocol,
        Field::Everybody,
        Field::SocketUser,
        Field::SocketGroup,
        Field::ConntrackState,
        Field::ConntrackDirection,
        Field::ConntrackStatus,
        Field::OriginalDestinationPort,
        Field::SourceAddress(Family::V4),
        Field::SourceAddress(Family::V6),
        Field::DestinationAddress(Family::V4),
        Field::DestinationAddress(Family::V6),
        Field::HopLimit,
        Field::SourcePort(Protocol::TCP),
        Field::SourcePort(Protocol::UDP),
        Field::DestinationPort(Protocol::TCP),
        Field::DestinationPort(Protocol::UDP),
        Field::TcpFlags,
        Field::IcmpType,
        Field::Icmpv6Type,
        Field::TransportDestinationPort,
    ];

    /// How many octets its value has.
    pub fn octets(self) -> usize {
        self.row().key.octets() as usize
    }

    /// Whether the register holds it in host order: everything that is not copied from the packet itself, as the kernel
    /// keeps it in an `int` or a `u64`.
    pub fn host_order(self) -> bool {
        !matches!(self.row().load, Load::Network(_) | Load::Transport(_) | Load::Ct(12, _))
    }

    /// The value as a register holds it.
    pub fn encode(self, value: u128) -> Vec<u8> {
        let (register, octets) = self.register(value);
        register[..octets].to_vec()
    }

    /// The same in a register's room, and how much of that it takes.
    pub fn register(self, value: u128) -> ([u8; 16], usize) {
        let octets = self.octets();
        let mut register = [0; 16];
        register[..octets].copy_from_slice(&value.to_be_bytes()[16 - octets..]);
        if self.host_order() && cfg!(target_endian = "little") {
            register[..octets].reverse();
        }
        (register, octets)
    }

    /// The value of what a register holds; `None` when the length is another.
    pub fn decode(self, data: &[u8]) -> Option<u128> {
        if data.len() != self.octets() {
            return None;
        }
        let value = |octets: &mut dyn Iterator<Item = &u8>| octets.fold(0u128, |value, octet| (value << 8) | u128::from(*octet));
        Some(if self.host_order() && cfg!(target_endian = "little") { value(&mut data.iter().rev()) } else { value(&mut data.iter()) })
    }

    /// The expressions that put it into a register.
    pub fn load(self, into: Register) -> Vec<Expr> {
        match self.row().load {
            Load::Meta(key) => vec![Expr::Meta { key, into }],
            Load::MetaNothing(key) => {
                vec![Expr::Meta { key, into }, Expr::Bitwise { from: into, into, mask: vec![0; 4], xor: vec![0; 4] }]
            }
            Load::Ct(key, direction) => vec![Expr::Ct { key, direction, into }],
            Load::Network(offset) => vec![Expr::Payload { base: 1, offset, len: self.octets() as u32, into }],
            Load::Transport(offset) => vec![Expr::Payload { base: 2, offset, len: self.octets() as u32, into }],
            Load::Cgroup(level) => vec![Expr::SocketCgroup { level: level.into(), into }],
        }
    }

    /// The field that one loading expression loads, among those whose guards `holds` confirms. `Everybody` is never the answer:
    /// it takes two expressions.
    pub fn loaded_by(expr: &Expr, holds: impl Fn(Guard) -> bool) -> Option<Field> {
        if let Expr::SocketCgroup { level, .. } = expr {
            return u8::try_from(*level).ok().filter(|level| (1..16).contains(level)).map(Field::SocketCgroup);
        }
        Field::ALL.iter().copied().filter(|field| field.row().guards.iter().all(|guard| holds(*guard))).find(|field| {
            match (field.row().load, expr) {
                (Load::Meta(ours), Expr::Meta { key, .. }) => ours == *key,
                (Load::Ct(ours, direction), Expr::Ct { key, direction: theirs, .. }) => ours == *key && direction == *theirs,
                (Load::Network(ours), Expr::Payload { base: 1, offset, len, .. }) => ours == *offset && field.octets() as u32 == *len,
                (Load::Transport(ours), Expr::Payload { base: 2, offset, len, .. }) => ours == *offset && field.octets() as u32 == *len,
                _ => false,
            }
        })
    }

    /// The value as nft writes it.
    pub fn write(self, value: u128) -> String {
        match self.row().notation {
            Notation::Decimal => value.to_string(),
            Notation::Address => {
                crate::base::net::from_octets(&self.encode(value)).map_or_else(|| value.to_string(), |address| address.to_string())
            }
            Notation::Named(names) => {
                names.iter().find(|name| name.0 == value).map_or_else(|| value.to_string(), |name| name.1.to_string())
            }
        }
    }
}

/// nft's spelling of a control group test by level. The kernel takes at most 255 levels; systemd units lie at level 2 or little
/// deeper.
const CGROUP_LEVELS: [&str; 16] = [
    "socket cgroupv2 level 0",
    "socket cgroupv2 level 1",
    "socket cgroupv2 level 2",
    "socket cgroupv2 level 3",
    "socket cgroupv2 level 4",
    "socket cgroupv2 level 5",
    "socket cgroupv2 level 6",
    "socket cgroupv2 level 7",
    "socket cgroupv2 level 8",
    "socket cgroupv2 level 9",
    "socket cgroupv2 level 10",
    "socket cgroupv2 level 11",
    "socket cgroupv2 level 12",
    "socket cgroupv2 level 13",
    "socket cgroupv2 level 14",
    "socket cgroupv2 level 15",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_is_found_again_by_its_load() {
        for field in Field::ALL.iter().copied().chain([Field::SocketCgroup(2), Field::SocketCgroup(5)]) {
            let loads = field.load(Register(0));
            if loads.len() == 1 {
                let guards = field.row().guards;
                assert_eq!(Field::loaded_by(&loads[0], |guard| guards.contains(&guard)), Some(field));
            }
        }
    }

    #[test]
    fn values_survive_their_register() {
        for field in Field::ALL.iter().copied() {
            let value = if field.octets() == 16 { u128::MAX - 7 } else { (1 << (8 * field.octets())) - 7 };
            assert_eq!(field.decode(&field.encode(value)), Some(value), "{field:?}");
        }
    }

    #[test]
    fn host_order_agrees_with_the_key_types() {
        for field in Field::ALL.iter().copied().filter(|field| !matches!(field.row().key, KeyType::Foreign { .. })) {
            assert!(field.octets() == 1 || field.host_order() == field.row().key.host_order(), "{field:?}");
        }
    }
}
