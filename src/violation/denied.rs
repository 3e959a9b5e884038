//! What the policy's own tests deny: no line is suggested that would make one of them fail.

use std::net::IpAddr;

use crate::base::name::DnsName;
use crate::base::packet::{Direction, Owner, PacketSpec, Peer, State};
use crate::policy::{Expectation, Line, PolicyTest};
use crate::violation::{Tuple, Who};

/// What is known of a packet that a line would be for, besides its tuple.
#[derive(Debug, Clone, Copy)]
pub struct Opened<'a> {
    /// The name that the line would say.
    pub name: Option<&'a DnsName>,
    /// The name of its user.
    pub user: Option<&'a str>,
    /// The systemd unit that it came from.
    pub service: Option<&'a str>,
}

/// The line of the test that denies what would allow a packet. `is_pin` says whether an address is a pin of a name.
///
/// A line looks at no source, so a test of one source speaks of all. What is for everybody is open to programs of the host, to whoever is
/// behind it, and to each user that a test may name. A test that names no user denies it to all users: that is what its writer means, though
/// the rules try it as nobody in particular.
pub fn denied(tests: &[PolicyTest], tuple: &Tuple, opened: Opened<'_>, is_pin: impl Fn(&DnsName, IpAddr) -> bool) -> Option<Line> {
    let speaks = |test: &&PolicyTest| {
        let PacketSpec { direction, protocol, to, to_port, owner, service, state, .. } = &test.packet;
        let is_for_all = !matches!(tuple.who, Who::User(_));
        let is_direction = match tuple.direction {
            Direction::In => *direction == Direction::In,
            Direction::Out | Direction::Forward => *direction == tuple.direction || is_for_all && *direction != Direction::In,
        };
        let is_there = tuple.direction == Direction::In
            || match to {
                Peer::Any => true,
                Peer::Address(address) => tuple.destination == Some(*address),
                Peer::Name(name) => opened.name == Some(name) || tuple.destination.is_some_and(|address| is_pin(name, address)),
            };
        let is_owner = is_for_all
            || match owner {
                Owner::Unsaid => true,
                Owner::Uid(uid) => tuple.who == Who::User(*uid),
                Owner::User(name) => opened.user == Some(name.as_str()),
            };
        let is_service = is_for_all || service.is_none() || service.as_deref() == opened.service;
        let is_port = to_port.is_none() || *to_port == tuple.port;
        let is_new = *state == State::New && test.expect == Expectation::Deny;
        is_new && is_direction && *protocol == tuple.protocol && is_port && is_there && is_owner && is_service
    };
    tests.iter().find(speaks).map(|test| test.line)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::net::Protocol;

    #[test]
    fn a_test_speaks_of_what_it_names_and_of_everybody_where_it_names_nobody() {
        let tuple = |who: Who, direction: Direction| Tuple {
            direction,
            who,
            destination: (direction != Direction::In).then(|| "192.0.2.53".parse().unwrap()),
            protocol: Protocol::UDP,
            port: Some(53),
        };
        let user = tuple(Who::User(7), Direction::Out);
        let through = tuple(Who::Source("10.0.0.2".parse().unwrap()), Direction::Forward);
        let inward = tuple(Who::Anybody, Direction::In);
        let name = DnsName::parse("ns.example.com").unwrap();
        let opened = Opened { name: None, user: Some("backend"), service: None };
        // The test, and whether it denies what a user sent, what passed through, what came in.
        let cases = [
            ("udp to 192.0.2.53:53", [true, true, false]),
            ("udp to :53", [true, true, false]),
            ("udp to 192.0.2.53", [true, true, false]),
            ("udp from 203.0.113.9 to 192.0.2.53:53", [true, true, false]),
            ("udp to ns.example.com:53", [true, true, false]),
            ("udp to other.example.com:53", [false, false, false]),
            ("udp to 192.0.2.53:53 user backend", [true, true, false]),
            ("udp to 192.0.2.53:53 uid 7", [true, true, false]),
            ("udp to 192.0.2.53:53 user root", [false, true, false]),
            ("udp to 192.0.2.53:53 uid 8", [false, true, false]),
            ("udp to 192.0.2.53:53 service a.service", [false, true, false]),
            ("udp to 192.0.2.53:53 state established", [false, false, false]),
            ("udp to 192.0.2.53:54", [false, false, false]),
            ("udp to 192.0.2.54:53", [false, false, false]),
            ("tcp to 192.0.2.53:53", [false, false, false]),
            ("forward udp to 192.0.2.53:53", [false, true, false]),
            ("in udp to :53", [false, false, true]),
            ("in udp from 203.0.113.9 to 192.0.2.1:53", [false, false, true]),
        ];
        for (text, expected) in cases {
            let test = |expect: Expectation| [PolicyTest { expect, packet: text.parse().unwrap(), line: Line(9) }];
            let of = |tuple: &Tuple, expect: Expectation| denied(&test(expect), tuple, opened, |asked, _| *asked == name);
            for (tuple, expected) in [user, through, inward].iter().zip(expected) {
                assert_eq!(of(tuple, Expectation::Deny), expected.then_some(Line(9)), "{text}: {tuple:?}");
                assert_eq!(of(tuple, Expectation::Allow), None);
            }
        }
    }
}
