//! The line of a policy that would allow one violation: what a report says beside it.

use crate::base::name::{DnsName, account};
use crate::base::net::Protocol;
use crate::base::packet::Direction;
use crate::policy::quoted;
use crate::violation::report::Violation;
use crate::violation::{Tuple, Who};

/// The line that would allow it; `None` where the language has none for it. Names may be anything that a book holds: one that is no name of
/// the language is not said, and one that could be taken for something else stands between quotes.
pub fn suggestion(violation: &Violation, user: Option<&str>) -> Option<String> {
    let Tuple { direction, who, destination, protocol, port } = violation.tuple;
    let transport = match protocol {
        Protocol::TCP => "tcp",
        Protocol::UDP => "udp",
        _ => return None,
    };
    let port = port.filter(|port| *port > 0)?;
    if direction == Direction::In {
        return Some(match transport {
            "tcp" => format!("inbound: {{port: {port}}}"),
            _ => format!("inbound: {{port: {port}, protocol: {transport}}}"),
        });
    }
    // IPv4 inside IPv6 cannot be said in a policy.
    let destination = destination.filter(|address| address.to_canonical() == *address)?;
    let name = violation.name.as_deref().and_then(|name| DnsName::parse(name).ok());
    let to = name.as_ref().map_or_else(|| destination.to_string(), ToString::to_string);
    let mut words = vec![format!("to: {}", quoted(&to))];
    if name.is_none() || port != 443 || transport != "tcp" {
        words.push(format!("port: {port}"));
        words.push(format!("protocol: {transport}"));
    }
    match (who, user.filter(|user| account(user).is_ok())) {
        (Who::User(uid), None) if uid > u32::MAX - 2 => return None,
        (Who::User(_), Some(user)) => words.push(format!("for: {{user: {}}}", quoted(user))),
        (Who::User(uid), None) => words.push(format!("for: {{uid: {uid}}}")),
        _ => {}
    }
    Some(match words.as_slice() {
        [one] => format!("- {one}"),
        many => format!("- {{{}}}", many.join(", ")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::time::Timestamp;
    use crate::policy;
    use crate::violation::report::CountedBy;

    fn out(uid: u32, address: &str, port: u16) -> Tuple {
        let destination = Some(address.parse().unwrap());
        Tuple { direction: Direction::Out, who: Who::User(uid), destination, protocol: Protocol::TCP, port: Some(port) }
    }

    #[test]
    fn every_suggestion_is_a_line_of_the_language_and_allows_what_was_refused() {
        let of = |tuple: Tuple, name: Option<&str>| Violation {
            tuple,
            count: 1,
            cut_off: 0,
            bytes: None,
            counted_by: CountedBy::Kernel,
            first: Timestamp(0),
            last: Timestamp(0),
            name: name.map(str::to_string),
            user: None,
            process: None,
            service: None,
            rule: None,
        };
        let udp = |tuple: Tuple| Tuple { protocol: Protocol::UDP, ..tuple };
        let (v4, v6) = (out(7, "198.51.100.1", 5432), out(7, "2001:db8::1", 443));
        let forward = Tuple { direction: Direction::Forward, who: Who::Source("10.0.0.2".parse().unwrap()), ..v4 };
        let inward = Tuple { direction: Direction::In, who: Who::Anybody, destination: None, ..v4 };
        let cases = [
            (of(v4, None), None, "- {to: 198.51.100.1, port: 5432, protocol: tcp, for: {uid: 7}}"),
            (of(v4, Some("db.example.com")), Some("backend"), "- {to: db.example.com, port: 5432, protocol: tcp, for: {user: backend}}"),
            (of(out(7, "198.51.100.1", 443), Some("a.example.com")), Some("root"), "- {to: a.example.com, for: {user: root}}"),
            (of(v6, None), None, "- {to: \"2001:db8::1\", port: 443, protocol: tcp, for: {uid: 7}}"),
            (of(udp(v4), None), None, "- {to: 198.51.100.1, port: 5432, protocol: udp, for: {uid: 7}}"),
            (of(forward, None), None, "- {to: 198.51.100.1, port: 5432, protocol: tcp}"),
            (of(inward, None), None, "inbound: {port: 5432}"),
            (of(udp(inward), None), None, "inbound: {port: 5432, protocol: udp}"),
            (of(v4, Some("on")), Some("null"), "- {to: \"on\", port: 5432, protocol: tcp, for: {user: \"null\"}}"),
            (of(v4, Some("a}: #b")), Some("x}#y"), "- {to: 198.51.100.1, port: 5432, protocol: tcp, for: {uid: 7}}"),
            (of(v4, None), Some("12345"), "- {to: 198.51.100.1, port: 5432, protocol: tcp, for: {uid: 7}}"),
            (of(v4, None), Some("a@b$"), "- {to: 198.51.100.1, port: 5432, protocol: tcp, for: {user: \"a@b$\"}}"),
        ];
        for (violation, user, expected) in cases {
            let line = suggestion(&violation, user).unwrap();
            assert_eq!(line, expected);
            let text = match violation.tuple.direction {
                Direction::In => format!("version: 1\n{line}\n"),
                _ => format!("version: 1\noutbound:\n  {line}\n"),
            };
            assert!(policy::parse_bytes(text.as_bytes(), "policy.yaml").is_ok(), "{text}");
        }
        assert_eq!(suggestion(&of(out(7, "::ffff:192.0.2.1", 443), None), None), None);
        let ping = of(Tuple { protocol: Protocol::ICMP, port: None, ..v4 }, None);
        assert_eq!(suggestion(&ping, None), None);
        assert_eq!(suggestion(&of(out(7, "198.51.100.1", 0), None), None), None, "no port is called 0");
        assert_eq!(suggestion(&of(out(u32::MAX, "198.51.100.1", 443), None), None), None, "no account has this number");
    }
}
