//! Reads resolv.conf(5): which servers it names. Search domains and options are not ours, and neither is a program on the
//! loopback address that only hands questions on.

use std::net::{IpAddr, Ipv4Addr};

/// The addresses on which systemd-resolved answers (systemd-resolved.service(8)). Its real servers are in a file of its own.
const STUBS: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::new(127, 0, 0, 53)), IpAddr::V4(Ipv4Addr::new(127, 0, 0, 54))];

/// The servers of a resolv.conf, in its order, each once. Lines that are not understood are passed over, as the C library does.
///
/// A link-local address means a server only together with its interface (`fe80::1%eth0`), which rules by address cannot say;
/// such lines are passed over too.
pub fn servers(text: &str) -> Vec<IpAddr> {
    let mut servers = Vec::new();
    for line in text.lines() {
        // The C library wants the keyword at the very beginning of a line.
        let mut words = line.split([' ', '\t']).filter(|word| !word.is_empty());
        if !line.starts_with("nameserver") || words.next() != Some("nameserver") {
            continue;
        }
        let Some(Ok(address)) = words.next().map(str::parse::<IpAddr>) else { continue };
        if !is_link_local(&address) && !servers.contains(&address) {
            servers.push(address);
        }
    }
    servers
}

/// Whether these are nobody but the stub of systemd-resolved.
pub fn only_stub(servers: &[IpAddr]) -> bool {
    !servers.is_empty() && servers.iter().all(|server| STUBS.contains(server))
}

/// Without loopback servers, unless there are no others: a resolver of one's own on this host is a valid choice.
pub fn without_loopback(servers: Vec<IpAddr>) -> Vec<IpAddr> {
    let others: Vec<IpAddr> = servers.iter().copied().filter(|server| !server.is_loopback()).collect();
    if others.is_empty() { servers } else { others }
}

fn is_link_local(address: &IpAddr) -> bool {
    matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(servers: &[IpAddr]) -> Vec<String> {
        servers.iter().map(IpAddr::to_string).collect()
    }

    #[test]
    fn servers_are_read_in_order_and_once() {
        let text = "# made by dhclient\nsearch corp.example\nnameserver 192.0.2.1\noptions edns0\nnameserver\t2001:db8::53  # second\n\
                    nameserver 192.0.2.1\n";
        assert_eq!(texts(&servers(text)), ["192.0.2.1", "2001:db8::53"]);
    }

    #[test]
    fn junk_is_passed_over() {
        let text = "\0\u{feff}\n nameserver 192.0.2.9\nnameservers 192.0.2.8\nnameserver\nnameserver dns.example\nnameserver 192.0.2.300\n\
                    #nameserver 192.0.2.7\n;nameserver 192.0.2.6\nnameserver 192.0.2.1\r\n";
        assert_eq!(texts(&servers(text)), ["192.0.2.1"]);
    }

    #[test]
    fn a_server_that_needs_its_interface_is_passed_over() {
        assert_eq!(texts(&servers("nameserver fe80::1%eth0\nnameserver fe80::2\nnameserver 2001:db8::53\n")), ["2001:db8::53"]);
    }

    #[test]
    fn the_stub_is_told_from_a_resolver_of_ones_own() {
        let of = |text: &str| servers(text);
        assert!(only_stub(&of("nameserver 127.0.0.53\n")));
        assert!(!only_stub(&of("nameserver 127.0.0.1\n")));
        assert!(!only_stub(&of("nameserver 127.0.0.53\nnameserver 192.0.2.1\n")));
        assert!(!only_stub(&[]));
    }

    #[test]
    fn loopback_servers_count_only_alone() {
        assert_eq!(texts(&without_loopback(servers("nameserver 127.0.0.1\nnameserver 192.0.2.1\n"))), ["192.0.2.1"]);
        assert_eq!(texts(&without_loopback(servers("nameserver 127.0.0.1\nnameserver ::1\n"))), ["127.0.0.1", "::1"]);
    }
}
