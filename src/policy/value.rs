//! Single values of the language from their text: networks, destinations, DNS servers, ports, periods, paths.
//! Pure functions that know neither YAML nor where the text stands.

use std::net::{IpAddr, Ipv4Addr};

use crate::base::diagnostic::said;
use crate::base::name::DnsName;
use crate::base::net::{Family, IpNet};
use crate::base::port::PortRange;
use crate::base::time::Period;
use crate::policy::{DnsServer, Target};

/// What is wrong with a text, and the next step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Complaint {
    /// Lower case, the user's words in backticks, no full stop.
    pub message: String,
    /// What to write instead.
    pub help: Option<String>,
}

impl Complaint {
    pub fn new(message: impl Into<String>) -> Complaint {
        Complaint { message: message.into(), help: None }
    }

    pub fn help(mut self, help: impl Into<String>) -> Complaint {
        self.help = Some(help.into());
        self
    }
}

/// A name, an address or a network, as it stands under `to:`.
pub(super) fn target(text: &str) -> Result<Target, Complaint> {
    if looks_like_network(text) {
        return network(text).map(Target::Net);
    }
    if let Some((scheme, rest)) = text.split_once("://") {
        let host = rest.split(['/', ':', '?', '#']).next().unwrap_or("");
        let complaint = Complaint::new(format!("{} is a URL, not a host name", said(text)));
        return Err(match DnsName::parse(host) {
            Ok(name) if matches!(scheme, "http" | "https" | "wss" | "ws") => complaint.help(format!("write the host name alone: `{name}`")),
            _ => complaint.help("write the host name alone"),
        });
    }
    if let Some((host, port)) = text.rsplit_once(':') {
        let host = host.trim_matches(['[', ']']);
        let is_host = DnsName::parse(host).is_ok() || host.parse::<IpAddr>().is_ok();
        if is_host && !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()) {
            let help = format!("write `to: {host}` and `port: {port}`");
            return Err(Complaint::new(format!("{} has a port in it", said(text))).help(help));
        }
    }
    match text {
        "any" | "all" => {
            let help = "name each destination; every address of a family is `0.0.0.0/0` or `::/0`";
            return Err(Complaint::new(format!("{} is not a destination", said(text))).help(help));
        }
        "localhost" => {
            let help = "take it away: loopback is always allowed";
            return Err(Complaint::new("`localhost` is this host itself").help(help));
        }
        _ => {}
    }
    name(text).map(Target::Name)
}

/// A host name.
pub(super) fn name(text: &str) -> Result<DnsName, Complaint> {
    DnsName::parse(text).map_err(|error| Complaint { message: error.to_string(), help: error.help() })
}

/// Whether a text can only have been meant as an address or a network.
fn looks_like_network(text: &str) -> bool {
    let address = text.split_once('/').map_or(text, |(address, _)| address);
    let digits_and_dots = !address.is_empty() && address.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    let hexadecimal = address.bytes().filter(|byte| *byte == b':').count() >= 2
        && address.split('%').next().unwrap_or("").bytes().all(|byte| byte.is_ascii_hexdigit() || b":.".contains(&byte));
    digits_and_dots || hexadecimal
}

/// An address or a network in CIDR notation, without host bits.
pub(super) fn network(text: &str) -> Result<IpNet, Complaint> {
    let (address, length) = match text.split_once('/') {
        Some((address, length)) => (address, Some(length)),
        None => (text, None),
    };
    let Ok(parsed) = address.parse::<IpAddr>() else { return Err(not_an_address(text, address)) };
    if let IpAddr::V6(v6) = parsed
        && let Some(v4) = v6.to_ipv4_mapped()
    {
        let complaint = Complaint::new(format!("{} is an IPv4 address written as IPv6", said(text)));
        return Err(complaint.help(format!("write `{v4}`; packets to it are IPv4")));
    }
    let Some(length) = length else { return Ok(IpNet::from(parsed)) };
    let bits = Family::of(&parsed).bits();
    let plain = length.bytes().all(|byte| byte.is_ascii_digit()) && (length.len() == 1 || !length.starts_with('0'));
    let Some(length) = length.parse::<u8>().ok().filter(|length| plain && *length <= bits) else {
        let complaint = Complaint::new(format!("{} is not a prefix length", said(length)));
        return Err(match mask_length(length) {
            Some(prefix) => complaint.help(format!("write `{address}/{prefix}`")),
            None => complaint.help(format!("from 0 to {bits}")),
        });
    };
    let net = IpNet::new(parsed, length).map_err(|_| not_an_address(text, address))?;
    if net.addr() != net.network() {
        let help = format!("the network is `{}`, the address alone is `{}`", net.trunc(), parsed);
        return Err(Complaint::new(format!("{} has bits set behind its prefix", said(text))).help(help));
    }
    Ok(net)
}

fn not_an_address(text: &str, address: &str) -> Complaint {
    let complaint = Complaint::new(format!("{} is not an address or a network", said(text)));
    if address.contains('%') {
        return Complaint::new(format!("{} names an interface", said(text))).help("write the address without `%` and what follows");
    }
    if DnsName::parse(text).is_ok() {
        return complaint.help("host names stand under `to:` and `ntp:` only");
    }
    let parts: Vec<&str> = address.split('.').collect();
    let without_zeros: Option<Vec<u8>> = parts.iter().map(|part| part.parse().ok()).collect();
    match without_zeros.as_deref() {
        Some([a, b, c, d]) => complaint.help(format!("write `{}`, without leading zeros", Ipv4Addr::new(*a, *b, *c, *d))),
        Some(parts) if parts.len() < 4 => complaint.help("write all four numbers, as in `10.0.0.0/8`"),
        _ => complaint.help("for example `203.0.113.0/24` or `2001:db8::/32`"),
    }
}

/// The prefix length that a dotted mask stands for.
fn mask_length(mask: &str) -> Option<u32> {
    let bits = u32::from(mask.parse::<Ipv4Addr>().ok()?);
    (bits.leading_ones() + bits.trailing_zeros() == 32 || bits == 0).then(|| bits.leading_ones())
}

/// `system`, an address with or without a port, or `tls://ADDRESS[:PORT]#NAME`.
pub(super) fn dns_server(text: &str) -> Result<DnsServer, Complaint> {
    if text == "system" {
        return Ok(DnsServer::System);
    }
    if let Some(rest) = text.strip_prefix("tls://") {
        let Some((address, name)) = rest.split_once('#') else {
            let help = format!("write `{text}#` and the name that its certificate proves");
            return Err(Complaint::new("a server asked over TLS needs a name").help(help));
        };
        let (address, port) = server_address(address)?;
        return Ok(DnsServer::Tls { address, port: port.unwrap_or(853), name: self::name(name)? });
    }
    if text.contains("://") {
        return Err(Complaint::new(format!("{} is no way to ask DNS", said(text)))
            .help("over UDP and TCP: `192.0.2.53`; over TLS: `tls://192.0.2.53#name`"));
    }
    if text.contains('#') {
        return Err(Complaint::new("only a server asked over TLS has a name").help(format!("write `tls://{text}`")));
    }
    let (address, port) = server_address(text)?;
    Ok(DnsServer::Plain { address, port: port.unwrap_or(53) })
}

fn server_address(text: &str) -> Result<(IpAddr, Option<u16>), Complaint> {
    let (address, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((inside, "")) => (inside, None),
        Some((inside, after)) => (inside, Some(after.strip_prefix(':').unwrap_or(after))),
        None => match text.split_once(':') {
            Some((address, port)) if !port.contains(':') => (address, Some(port)),
            _ => (text, None),
        },
    };
    let Ok(parsed) = address.parse::<IpAddr>() else {
        let complaint = Complaint::new(format!("{} is not the address of a server", said(address)));
        return Err(if DnsName::parse(address).is_ok() {
            complaint.help("a name cannot be asked for before there is a server: write its address, or `system`")
        } else {
            complaint.help("`system`, an address, or `tls://ADDRESS#NAME`")
        });
    };
    if parsed.is_unspecified() || parsed.is_multicast() {
        return Err(Complaint::new(format!("{} is no address of one host", said(address))));
    }
    port.map(self::port).transpose().map(|port| (parsed, port))
}

/// A port from 1 to 65535, in decimal without leading zeros.
pub(super) fn port(text: &str) -> Result<u16, Complaint> {
    let complaint = || Complaint::new(format!("{} is not a port", said(text)));
    if !text.bytes().all(|byte| byte.is_ascii_digit()) || text.is_empty() {
        return Err(complaint().help("a number from 1 to 65535"));
    }
    if text.starts_with('0') && text.len() > 1 {
        return Err(complaint().help(format!("write `{}`, without leading zeros", text.trim_start_matches('0'))));
    }
    text.parse().ok().filter(|port| *port > 0).ok_or_else(|| complaint().help("a number from 1 to 65535"))
}

/// A range `FIRST-LAST`.
pub(super) fn port_range(text: &str) -> Result<PortRange, Complaint> {
    let Some((first, last)) = text.split_once('-') else {
        let complaint = Complaint::new(format!("{} is neither a port nor a range", said(text)));
        return Err(if text.contains(',') {
            complaint.help(format!("a list stands between brackets: `[{text}]`"))
        } else if text.contains(':') {
            complaint.help(format!("a range is written `{}`", text.replace(':', "-")))
        } else {
            complaint.help("a port is a number, a range is written `8000-8080`")
        });
    };
    let (first, last) = (port(first.trim_end())?, port(last.trim_start())?);
    PortRange::new(first, last)
        .ok_or_else(|| Complaint::new(format!("the range {} runs backwards", said(text))).help(format!("write `{last}-{first}`")))
}

/// A period of at least one second.
pub(super) fn period(text: &str) -> Result<Period, Complaint> {
    let complaint = Complaint::new(format!("{} is not a period", said(text)));
    match Period::parse(text) {
        Some(period) if period.seconds() > 0 => Ok(period),
        Some(_) => Err(Complaint::new("a period is at least one second")),
        None if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) => {
            Err(Complaint::new(format!("{} has no unit", said(text))).help(format!("for seconds write `{text}s`")))
        }
        None => Err(complaint.help("one number with one unit, at most ten years: `90s`, `15m`, `24h`, `7d`")),
    }
}

/// The absolute path of a program, without arguments.
pub(super) fn program(text: &str) -> Result<String, Complaint> {
    if text.contains('\0') {
        return Err(Complaint::new("a path has no NUL in it"));
    }
    if !text.starts_with('/') {
        return Err(Complaint::new(format!("{} is not an absolute path", said(text))).help("write the whole path, from `/`"));
    }
    if text.chars().any(|c| c.is_whitespace() || c.is_control()) {
        let complaint = Complaint::new("a program is run by its path alone, without arguments");
        return Err(complaint.help("put the arguments into a script, and write the path of that"));
    }
    if text.ends_with('/') || text.split('/').any(|part| part == "..") {
        return Err(Complaint::new(format!("{} is not the path of a program", said(text))));
    }
    Ok(text.to_string())
}

/// The networks in order, without those that lie inside another.
pub(super) fn outermost(nets: &[IpNet]) -> Vec<IpNet> {
    let mut sorted = nets.to_vec();
    sorted.sort();
    let mut kept: Vec<IpNet> = Vec::new();
    for net in sorted {
        // In this order a network follows every network that it lies in, and only its insides stand between.
        if !kept.last().is_some_and(|wider| wider.contains(&net)) {
            kept.push(net);
        }
    }
    kept
}

/// The families of which the networks together hold every address.
pub(super) fn whole_families(nets: &[IpNet]) -> Vec<Family> {
    let together = IpNet::aggregate(&nets.to_vec());
    Family::BOTH.into_iter().filter(|family| together.iter().any(|net| net.prefix_len() == 0 && Family::of_net(net) == *family)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nets(texts: &[&str]) -> Vec<IpNet> {
        texts.iter().map(|text| network(text).unwrap()).collect()
    }

    #[test]
    fn a_network_inside_another_is_dropped_and_the_rest_is_sorted() {
        let kept = outermost(&nets(&["10.1.0.0/16", "192.0.2.1", "10.0.0.0/8", "10.0.0.0/8", "2001:db8::/32", "10.255.0.0/16"]));
        assert_eq!(kept, nets(&["10.0.0.0/8", "192.0.2.1", "2001:db8::/32"]));
    }

    #[test]
    fn halves_of_a_family_are_the_whole_family() {
        assert_eq!(whole_families(&nets(&["0.0.0.0/1", "128.0.0.0/2", "192.0.0.0/2"])), [Family::V4]);
        assert_eq!(whole_families(&nets(&["::/0", "0.0.0.0/0"])), [Family::V4, Family::V6]);
        assert_eq!(whole_families(&nets(&["0.0.0.0/1", "8000::/1"])), []);
    }

    #[test]
    fn servers_are_read_with_and_without_ports() {
        let plain = |address: &str, port| Ok(DnsServer::Plain { address: address.parse().unwrap(), port });
        assert_eq!(dns_server("192.0.2.53"), plain("192.0.2.53", 53));
        assert_eq!(dns_server("192.0.2.53:5353"), plain("192.0.2.53", 5353));
        assert_eq!(dns_server("2001:db8::53"), plain("2001:db8::53", 53));
        assert_eq!(dns_server("[2001:db8::53]:5353"), plain("2001:db8::53", 5353));
        let name = DnsName::parse("cloudflare-dns.com").unwrap();
        let tls = |address: &str, port| Ok(DnsServer::Tls { address: address.parse().unwrap(), port, name: name.clone() });
        assert_eq!(dns_server("tls://1.1.1.1#cloudflare-dns.com"), tls("1.1.1.1", 853));
        assert_eq!(dns_server("tls://[2001:db8::53]:8853#Cloudflare-DNS.com"), tls("2001:db8::53", 8853));
        for bad in ["dns.google", "tls://1.1.1.1", "https://1.1.1.1/dns-query", "1.1.1.1#x.com", "1.1.1.1:0", "::", "[::1", "[::1]x", ""] {
            assert!(dns_server(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_address_is_never_taken_for_a_name() {
        for text in ["10.0.0.1", "10.0.0.0/8", "2001:db8::1", "::/0"] {
            assert!(matches!(target(text), Ok(Target::Net(_))), "{text}");
        }
        for text in ["10.0.0", "10.0.0.256", "010.0.0.1", "1.2.3.4/33", "fe80::1%eth0", "::ffff:1.2.3.4", "10.0.0.1/8", "1.2.3.4:443"] {
            assert!(target(text).is_err(), "{text}");
        }
    }
}
