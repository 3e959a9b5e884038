//! Which addresses no public name should answer with, and which RFC says so: the IANA special-purpose registries for IPv4 and
//! IPv6, the multicast ranges, and the metadata services of cloud providers. Whether an address is reachable is not asked here.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// What becomes of answers in special-purpose ranges.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SpecialAnswers {
    /// They are refused, with the reason.
    Refuse,
    /// They become pins, as long as packets to them can leave the host towards one machine.
    Allow,
}

/// Why an address of an answer does not become a pin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Refusal {
    /// The range that holds the address, or the address inside it, as `192.168.0.0/16`.
    pub range: &'static str,
    /// What the range is for.
    pub purpose: &'static str,
    /// Where that is written: an RFC, or a provider's documentation.
    pub source: &'static str,
    /// Whether `refresh.private: allow` would let it in.
    pub strict: Strict,
}

/// Whether a refusal can be lifted by the policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Strict {
    /// `refresh.private: allow` lets such answers in.
    Liftable,
    /// Never: the address means this very host, nobody, or many machines at once, so a pin on it would permit what the name
    /// cannot mean. Loopback and the unspecified address reach this host's own services; multicast and broadcast reach
    /// everybody on the link.
    Never,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is {} ({})", self.range, self.purpose, self.source)?;
        match self.strict {
            Strict::Liftable => f.write_str("; `refresh.private: allow` would let it in"),
            Strict::Never => f.write_str(" and is never pinned"),
        }
    }
}

/// Why the address is refused; `None`: it may become a pin.
///
/// An IPv6 address that carries an IPv4 address (mapped `::ffff:0:0/96`, NAT64 `64:ff9b::/96`) is judged by the one it carries.
pub fn refuse(address: &IpAddr, special: SpecialAnswers) -> Option<Refusal> {
    let refusal = match address {
        IpAddr::V4(v4) => row_of_v4(*v4),
        IpAddr::V6(v6) => match carried_v4(*v6) {
            Some(v4) => row_of_v4(v4),
            None => row_of_v6(*v6),
        },
    }?;
    match (refusal.strict, special) {
        (Strict::Liftable, SpecialAnswers::Allow) => None,
        _ => Some(refusal),
    }
}

/// The IPv4 address that a mapped or NAT64 address stands for.
fn carried_v4(v6: Ipv6Addr) -> Option<Ipv4Addr> {
    match v6.segments() {
        [0, 0, 0, 0, 0, 0xffff, high, low] | [0x64, 0xff9b, 0, 0, 0, 0, high, low] => {
            let [a, b] = high.to_be_bytes();
            let [c, d] = low.to_be_bytes();
            Some(Ipv4Addr::new(a, b, c, d))
        }
        _ => None,
    }
}

fn row_of_v4(v4: Ipv4Addr) -> Option<Refusal> {
    let bits = u32::from(v4);
    V4.iter().find(|row| (bits ^ row.base) >> (32 - row.length) == 0).map(|row| row.refusal)
}

fn row_of_v6(v6: Ipv6Addr) -> Option<Refusal> {
    let bits = u128::from(v6);
    V6.iter().find(|row| (bits ^ row.base) >> (128 - row.length) == 0).map(|row| row.refusal)
}

/// One range. `length` is 1 to the width of `base`.
struct Row<Bits> {
    base: Bits,
    length: u32,
    refusal: Refusal,
}

const fn v4(octets: [u8; 4], length: u32, range: &'static str, purpose: &'static str, source: &'static str, strict: Strict) -> Row<u32> {
    Row { base: u32::from_be_bytes(octets), length, refusal: Refusal { range, purpose, source, strict } }
}

const fn v6(base: u128, length: u32, range: &'static str, purpose: &'static str, source: &'static str, strict: Strict) -> Row<u128> {
    Row { base, length, refusal: Refusal { range, purpose, source, strict } }
}

use Strict::{Liftable, Never};

/// ORDER: the first row that holds an address names it, so narrow ranges precede the wide ones around them.
const V4: &[Row<u32>] = &[
    v4([0, 0, 0, 0], 32, "0.0.0.0/32", "the unspecified address", "RFC 1122", Never),
    v4([0, 0, 0, 0], 8, "0.0.0.0/8", "this network", "RFC 791", Never),
    v4([10, 0, 0, 0], 8, "10.0.0.0/8", "private use", "RFC 1918", Liftable),
    v4([100, 100, 100, 200], 32, "100.100.100.200/32", "a cloud metadata service", "Alibaba Cloud documentation", Liftable),
    v4([100, 64, 0, 0], 10, "100.64.0.0/10", "shared address space of carriers", "RFC 6598", Liftable),
    v4([127, 0, 0, 0], 8, "127.0.0.0/8", "loopback", "RFC 1122", Never),
    v4([169, 254, 169, 254], 32, "169.254.169.254/32", "the cloud metadata service", "RFC 3927, cloud providers", Liftable),
    v4([169, 254, 0, 0], 16, "169.254.0.0/16", "link-local", "RFC 3927", Liftable),
    v4([172, 16, 0, 0], 12, "172.16.0.0/12", "private use", "RFC 1918", Liftable),
    v4([192, 0, 0, 0], 24, "192.0.0.0/24", "protocol assignments", "RFC 6890", Liftable),
    v4([192, 0, 2, 0], 24, "192.0.2.0/24", "documentation", "RFC 5737", Liftable),
    v4([192, 31, 196, 0], 24, "192.31.196.0/24", "AS112 service", "RFC 7535", Liftable),
    v4([192, 52, 193, 0], 24, "192.52.193.0/24", "automatic multicast tunnelling", "RFC 7450", Liftable),
    v4([192, 88, 99, 0], 24, "192.88.99.0/24", "deprecated 6to4 relays", "RFC 7526", Liftable),
    v4([192, 168, 0, 0], 16, "192.168.0.0/16", "private use", "RFC 1918", Liftable),
    v4([192, 175, 48, 0], 24, "192.175.48.0/24", "AS112 service", "RFC 7534", Liftable),
    v4([198, 18, 0, 0], 15, "198.18.0.0/15", "benchmarking", "RFC 2544", Liftable),
    v4([198, 51, 100, 0], 24, "198.51.100.0/24", "documentation", "RFC 5737", Liftable),
    v4([203, 0, 113, 0], 24, "203.0.113.0/24", "documentation", "RFC 5737", Liftable),
    v4([224, 0, 0, 0], 4, "224.0.0.0/4", "multicast", "RFC 5771", Never),
    v4([255, 255, 255, 255], 32, "255.255.255.255/32", "limited broadcast", "RFC 8190", Never),
    v4([240, 0, 0, 0], 4, "240.0.0.0/4", "reserved", "RFC 1112", Liftable),
];

/// ORDER: as above.
const V6: &[Row<u128>] = &[
    v6(0, 128, "::/128", "the unspecified address", "RFC 4291", Never),
    v6(1, 128, "::1/128", "loopback", "RFC 4291", Never),
    v6(0, 96, "::/96", "deprecated IPv4-compatible addresses", "RFC 4291", Liftable),
    v6(0x0064_ff9b_0001 << 80, 48, "64:ff9b:1::/48", "translation of local use", "RFC 8215", Liftable),
    v6(0x0064_ff9b << 96, 32, "64:ff9b::/32", "translation without a known form", "RFC 6052", Liftable),
    v6(0x0100 << 112, 64, "100::/64", "discard only", "RFC 6666", Liftable),
    v6(0x0100_0000_0000_0001 << 64, 64, "100:0:0:1::/64", "the dummy prefix", "RFC 9780", Liftable),
    v6(0x2001 << 112, 32, "2001::/32", "Teredo", "RFC 4380", Liftable),
    v6(0x2001_0db8 << 96, 32, "2001:db8::/32", "documentation", "RFC 3849", Liftable),
    v6(0x2001 << 112, 23, "2001::/23", "protocol assignments", "RFC 2928", Liftable),
    v6(0x2002 << 112, 16, "2002::/16", "6to4", "RFC 3056", Liftable),
    v6(0x2620_004f_8000 << 80, 48, "2620:4f:8000::/48", "AS112 service", "RFC 7534", Liftable),
    v6(0x3fff << 112, 20, "3fff::/20", "documentation", "RFC 9637", Liftable),
    v6(0x5f00 << 112, 16, "5f00::/16", "segment routing", "RFC 9602", Liftable),
    v6((0xfd00_0ec2 << 96) | 0x254, 128, "fd00:ec2::254/128", "a cloud metadata service", "Amazon EC2 documentation", Liftable),
    v6(0xfc00 << 112, 7, "fc00::/7", "unique local", "RFC 4193", Liftable),
    v6(0xfe80 << 112, 10, "fe80::/10", "link-local", "RFC 4291", Liftable),
    v6(0xfec0 << 112, 10, "fec0::/10", "deprecated site-local", "RFC 3879", Liftable),
    v6(0xff00 << 112, 8, "ff00::/8", "multicast", "RFC 4291", Never),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn range_of(address: &str) -> Option<&'static str> {
        refuse(&address.parse().unwrap(), SpecialAnswers::Refuse).map(|refusal| refusal.range)
    }

    #[test]
    fn addresses_of_the_public_internet_are_taken() {
        for address in ["1.1.1.1", "8.8.8.8", "172.15.255.255", "172.32.0.0", "100.63.255.255", "100.128.0.0", "223.255.255.255"] {
            assert_eq!(range_of(address), None, "{address}");
        }
        for address in ["2606:4700::1111", "2a00:1450:4001::200e", "2001:4860:4860::8888", "2001:200::1", "64:ff9b::8.8.8.8"] {
            assert_eq!(range_of(address), None, "{address}");
        }
    }

    #[test]
    fn every_special_purpose_range_is_refused_at_both_its_ends() {
        for row in V4 {
            let last = row.base | u32::MAX.checked_shr(row.length).unwrap_or(0);
            for bits in [row.base, last] {
                assert!(refuse(&IpAddr::from(Ipv4Addr::from(bits)), SpecialAnswers::Refuse).is_some(), "{}", row.refusal.range);
            }
        }
        for row in V6 {
            let last = row.base | u128::MAX.checked_shr(row.length).unwrap_or(0);
            for bits in [row.base, last] {
                assert!(refuse(&IpAddr::from(Ipv6Addr::from(bits)), SpecialAnswers::Refuse).is_some(), "{}", row.refusal.range);
            }
        }
    }

    #[test]
    fn every_row_says_the_range_it_holds_and_holds_no_bit_beyond_it() {
        let printed_v4 = V4.iter().map(|row| (format!("{}/{}", Ipv4Addr::from(row.base), row.length), row.refusal.range));
        let printed_v6 = V6.iter().map(|row| (format!("{}/{}", Ipv6Addr::from(row.base), row.length), row.refusal.range));
        for (printed, said) in printed_v4.chain(printed_v6) {
            assert_eq!(printed, said);
            let net: crate::base::net::IpNet = said.parse().unwrap();
            assert_eq!(net, net.trunc(), "{said}");
        }
    }

    #[test]
    fn the_narrowest_range_names_the_address() {
        for (address, range) in [
            ("169.254.169.254", "169.254.169.254/32"),
            ("169.254.1.1", "169.254.0.0/16"),
            ("fd00:ec2::254", "fd00:ec2::254/128"),
            ("fd00::1", "fc00::/7"),
            ("2001:db8::1", "2001:db8::/32"),
            ("2001:0:1::", "2001::/32"),
            ("2001:20::1", "2001::/23"),
            ("255.255.255.255", "255.255.255.255/32"),
        ] {
            assert_eq!(range_of(address), Some(range), "{address}");
        }
    }

    #[test]
    fn an_address_that_carries_an_ipv4_address_is_judged_by_it() {
        for (address, range) in [
            ("::ffff:127.0.0.1", Some("127.0.0.0/8")),
            ("::ffff:10.1.2.3", Some("10.0.0.0/8")),
            ("::ffff:8.8.8.8", None),
            ("64:ff9b::169.254.169.254", Some("169.254.169.254/32")),
            ("64:ff9b::192.168.0.1", Some("192.168.0.0/16")),
            ("64:ff9b:1::8.8.8.8", Some("64:ff9b:1::/48")),
            ("64:ff9b:2::8.8.8.8", Some("64:ff9b::/32")),
        ] {
            assert_eq!(range_of(address), range, "{address}");
        }
    }

    #[test]
    fn allowing_special_answers_still_refuses_this_host_nobody_and_everybody() {
        for address in ["10.0.0.1", "169.254.169.254", "192.0.2.1", "fd00::1", "fe80::1", "2001:db8::1", "100.64.0.1", "240.0.0.1"] {
            assert_eq!(refuse(&address.parse().unwrap(), SpecialAnswers::Allow), None, "{address}");
        }
        let never = ["0.0.0.0", "127.0.0.1", "127.255.0.3", "224.0.0.1", "255.255.255.255", "::", "::1", "ff02::1", "::ffff:127.0.0.1"];
        for address in never {
            let refusal = refuse(&address.parse().unwrap(), SpecialAnswers::Allow).unwrap();
            assert!(refusal.to_string().ends_with("and is never pinned"), "{address}: {refusal}");
        }
    }
}
