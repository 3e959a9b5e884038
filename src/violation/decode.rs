//! What the kernel says of one packet that it logged, understood: which rule logged it, where it came from and where it was to go.
//! Pure and total: any octets are read or found strange, none make it panic. Nothing is looked up here.

use std::net::IpAddr;

use crate::base::net::{Protocol, from_octets};
use crate::base::packet::Direction;

/// What the prefixes of our rules begin with; the id of the rule and a space follow.
pub const PREFIX: &str = "egressguard ";

/// The longest id that a rule can have, as [`crate::base::name::Slug`] says.
const RULE_MAX: usize = 63;
/// `enum nf_inet_hooks`, in the order of its numbers.
const LOCAL_IN: u8 = 1;
const FORWARD: u8 = 2;
const LOCAL_OUT: u8 = 3;
const POSTROUTING: u8 = 4;

/// Extension headers of IPv6 that say how long they are (RFC 8200, 4302, 6275, 7401, 5533).
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION_OPTIONS: u8 = 60;
const MOBILITY: u8 = 135;
const HOST_IDENTITY: u8 = 139;
const SHIM6: u8 = 140;

/// One record of the kernel's packet log as it came. The octets are those of the message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Logged<'a> {
    /// What the rule says, without its NUL.
    pub prefix: &'a [u8],
    /// Which hook the packet met (`enum nf_inet_hooks`).
    pub hook: u8,
    /// The user whose socket it leaves; `None` when it leaves none.
    pub uid: Option<u32>,
    /// The packet from its IP header on, cut off at the rule's `snaplen`.
    pub payload: &'a [u8],
}

/// A packet that a rule of ours logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet<'a> {
    /// The id of the rule that logged it.
    pub rule: &'a str,
    /// Which way it went.
    pub direction: Direction,
    /// Where it comes from. Of the same family as `destination`.
    pub source: IpAddr,
    /// Where it was to go.
    pub destination: IpAddr,
    /// What it carries.
    pub protocol: Protocol,
    /// Source and destination port; `None` where the protocol has none, or they are in another fragment, or were cut off.
    pub ports: Option<(u16, u16)>,
    /// The user whose socket it leaves.
    pub uid: Option<u32>,
}

/// Why a record is none of a packet that a rule of ours logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Strange {
    /// Its prefix is not one of ours: somebody else logs to the same group.
    Foreign,
    /// The packet has no whole IP header, or met no hook that is known.
    Unreadable,
}

/// Reads a record.
pub fn decode<'a>(logged: &Logged<'a>) -> Result<Packet<'a>, Strange> {
    let rule = rule(logged.prefix).ok_or(Strange::Foreign)?;
    let direction = match logged.hook {
        LOCAL_IN => Direction::In,
        FORWARD => Direction::Forward,
        LOCAL_OUT | POSTROUTING => Direction::Out,
        _ => return Err(Strange::Unreadable),
    };
    let Inner { source, destination, protocol, transport } = inner(logged.payload).ok_or(Strange::Unreadable)?;
    let ports = if protocol.has_ports() { transport.and_then(ports) } else { None };
    Ok(Packet { rule, direction, source, destination, protocol, ports, uid: logged.uid })
}

/// The id in `egressguard ID `.
fn rule(prefix: &[u8]) -> Option<&str> {
    let id = prefix.strip_prefix(PREFIX.as_bytes())?;
    let id = id.strip_suffix(b" ").unwrap_or(id);
    let fits = !id.is_empty() && id.len() <= RULE_MAX && id.iter().all(u8::is_ascii_graphic);
    std::str::from_utf8(id).ok().filter(|_| fits)
}

/// What an IP header says.
struct Inner<'a> {
    source: IpAddr,
    destination: IpAddr,
    protocol: Protocol,
    /// The header of the protocol, as far as it is there; `None` in a fragment that does not hold its beginning.
    transport: Option<&'a [u8]>,
}

fn inner(packet: &[u8]) -> Option<Inner<'_>> {
    match packet.first()? >> 4 {
        4 => v4(packet),
        6 => v6(packet),
        _ => None,
    }
}

fn v4(packet: &[u8]) -> Option<Inner<'_>> {
    let header = packet.get(..20)?;
    let length = usize::from(header[0] & 0x0f) * 4;
    let (source, destination) = (from_octets(&header[12..16])?, from_octets(&header[16..20])?);
    let fragment_offset = u16::from_be_bytes([header[6], header[7]]) & 0x1fff;
    // A header that says it is shorter than a header has its protocol behind what must be there.
    let transport = packet.get(length.max(20)..).filter(|_| fragment_offset == 0);
    Some(Inner { source, destination, protocol: Protocol(header[9]), transport })
}

fn v6(packet: &[u8]) -> Option<Inner<'_>> {
    let header = packet.get(..40)?;
    let (source, destination) = (from_octets(&header[8..24])?, from_octets(&header[24..40])?);
    let (mut next, mut rest) = (header[6], packet.get(40..));
    // INVARIANT: every turn takes at least eight octets off `rest`, or ends.
    while let Some(here) = rest {
        let (Some(&after), Some(&length)) = (here.first(), here.get(1)) else { break };
        let octets = match next {
            HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS | MOBILITY | HOST_IDENTITY | SHIM6 => (usize::from(length) + 1) * 8,
            AUTHENTICATION => (usize::from(length) + 2) * 4,
            FRAGMENT => {
                let Some(&[high, low]) = here.get(2..4) else { break };
                if u16::from_be_bytes([high, low]) >> 3 != 0 {
                    // What follows is the middle of something.
                    return Some(Inner { source, destination, protocol: Protocol(after), transport: None });
                }
                8
            }
            _ => break,
        };
        (next, rest) = (after, here.get(octets..));
    }
    Some(Inner { source, destination, protocol: Protocol(next), transport: rest })
}

fn ports(transport: &[u8]) -> Option<(u16, u16)> {
    let &[a, b, c, d] = transport.get(..4)? else { return None };
    Some((u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const OUT: Logged<'_> = Logged { prefix: b"egressguard refuse-out ", hook: LOCAL_OUT, uid: Some(1000), payload: &[] };

    fn v4_packet(protocol: u8, fragment: u16, options: &[u8], rest: &[u8]) -> Vec<u8> {
        assert!(options.len() % 4 == 0);
        let mut packet = vec![0x45 + (options.len() / 4) as u8, 0, 0, 0, 0, 0];
        packet.extend(fragment.to_be_bytes());
        packet.extend([64, protocol, 0, 0, 203, 0, 113, 10, 198, 51, 100, 66]);
        packet.extend(options);
        packet.extend(rest);
        packet
    }

    fn v6_packet(next: u8, rest: &[u8]) -> Vec<u8> {
        let mut packet = vec![0x60, 0, 0, 0, 0, 0, next, 64];
        packet.extend("2001:db8::10".parse::<std::net::Ipv6Addr>().unwrap().octets());
        packet.extend("2001:db8:bad::66".parse::<std::net::Ipv6Addr>().unwrap().octets());
        packet.extend(rest);
        packet
    }

    /// Ports 40000 and 443.
    const PORTS: [u8; 4] = [0x9c, 0x40, 0x01, 0xbb];

    #[track_caller]
    fn read(payload: &[u8]) -> (u8, Option<(u16, u16)>) {
        let packet = decode(&Logged { payload, ..OUT }).unwrap();
        (packet.protocol.0, packet.ports)
    }

    #[test]
    fn a_packet_is_read_with_its_rule_its_ends_and_its_user() {
        let payload = v4_packet(6, 0x4000, &[], &PORTS);
        let packet = decode(&Logged { payload: &payload, ..OUT }).unwrap();
        let (source, destination) = ("203.0.113.10".parse().unwrap(), "198.51.100.66".parse().unwrap());
        let expected = Packet {
            rule: "refuse-out",
            direction: Direction::Out,
            source,
            destination,
            protocol: Protocol::TCP,
            ports: Some((40000, 443)),
            uid: Some(1000),
        };
        assert_eq!(packet, expected);
    }

    #[test]
    fn the_hook_is_the_direction() {
        let payload = v4_packet(17, 0, &[], &PORTS);
        let of = |hook| decode(&Logged { payload: &payload, hook, ..OUT }).map(|packet| packet.direction);
        assert_eq!([1, 2, 3].map(of), [Ok(Direction::In), Ok(Direction::Forward), Ok(Direction::Out)]);
        assert_eq!(of(0), Err(Strange::Unreadable));
    }

    #[test]
    fn options_and_extension_headers_stand_between_address_and_port() {
        assert_eq!(read(&v4_packet(17, 0, &[1, 1, 1, 0], &PORTS)), (17, Some((40000, 443))));
        assert_eq!(read(&v6_packet(6, &PORTS)), (6, Some((40000, 443))));
        let mut chain = vec![ROUTING, 0, 0, 0, 0, 0, 0, 0]; // hop by hop, then
        chain.extend([DESTINATION_OPTIONS, 1].iter().chain(&[0; 14])); // routing of 16 octets
        chain.extend([FRAGMENT, 0, 0, 0, 0, 0, 0, 0]); // destination options
        chain.extend([AUTHENTICATION, 0, 0, 1, 0, 0, 0, 7]); // the first fragment
        chain.extend([17, 1].iter().chain(&[0; 10])); // authentication of 12 octets
        chain.extend(PORTS);
        assert_eq!(read(&v6_packet(HOP_BY_HOP, &chain)), (17, Some((40000, 443))));
    }

    #[test]
    fn a_later_fragment_has_a_protocol_and_no_ports() {
        assert_eq!(read(&v4_packet(17, 185, &[], &PORTS)), (17, None));
        let later = [&[17, 0, 0x05, 0xc8, 0, 0, 0, 7][..], &PORTS].concat();
        assert_eq!(read(&v6_packet(FRAGMENT, &later)), (17, None));
    }

    #[test]
    fn what_was_cut_off_is_left_out_and_not_made_up() {
        assert_eq!(read(&v4_packet(6, 0, &[], &PORTS[..3])), (6, None));
        assert_eq!(read(&v6_packet(17, &[])), (17, None));
        assert_eq!(read(&v6_packet(HOP_BY_HOP, &[17, 200, 0, 0])), (17, None));
        assert_eq!(read(&v4_packet(1, 0, &[], &[8, 0, 1, 2])), (1, None));
        let whole = v4_packet(6, 0, &[], &PORTS);
        assert_eq!(decode(&Logged { payload: &whole[..19], ..OUT }), Err(Strange::Unreadable));
        assert_eq!(decode(&Logged { payload: &[], ..OUT }), Err(Strange::Unreadable));
    }

    #[test]
    fn only_our_own_prefix_names_a_rule() {
        let payload = v4_packet(6, 0, &[], &PORTS);
        let of = |prefix: &'static [u8]| decode(&Logged { payload: &payload, prefix, ..OUT }).map(|packet| packet.rule);
        assert_eq!(of(b"egressguard quarantine "), Ok("quarantine"));
        for foreign in [&b""[..], b"egressguard ", b"egressguard a b ", b"ufw refuse-out ", b"egressguard \x1b[2J ", b"egressguard \xff "] {
            assert_eq!(of(foreign), Err(Strange::Foreign), "{foreign:?}");
        }
    }

    proptest! {
        #[test]
        fn no_octets_make_it_panic_and_none_are_read_beyond_the_packet(
            version in prop_oneof![Just(0x45u8), Just(0x60), any::<u8>()],
            mut payload in proptest::collection::vec(any::<u8>(), 0..160),
            headers in proptest::collection::vec(prop_oneof![Just(0u8), Just(43), Just(44), Just(51), Just(60), any::<u8>()], 0..8),
            hook in 0u8..6,
            prefix in prop_oneof![Just(b"egressguard refuse-in ".to_vec()), proptest::collection::vec(any::<u8>(), 0..40)],
        ) {
            if let Some(first) = payload.first_mut() {
                *first = version;
            }
            // Chains of extension headers are rare among random octets.
            for (at, header) in (0..).map(|turn| if turn == 0 { 6 } else { 32 + turn * 8 }).zip(headers) {
                if let Some(octet) = payload.get_mut(at) {
                    *octet = header;
                }
            }
            let read = decode(&Logged { prefix: &prefix, hook, uid: None, payload: &payload });
            // What is cut off later says the same or less, and nothing else.
            if let Ok(whole) = read {
                for length in 0..payload.len() {
                    if let Ok(part) = decode(&Logged { prefix: &prefix, hook, uid: None, payload: &payload[..length] }) {
                        prop_assert_eq!((part.source, part.destination), (whole.source, whole.destination));
                        prop_assert!(part.ports.is_none() || part.ports == whole.ports);
                    }
                }
            }
        }
    }
}
