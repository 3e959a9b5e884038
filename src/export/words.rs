//! The one table of how iptables looks at what a rule can look at, and how ipset keeps it in a key.
//!
//! A new field is a new row: the match has no default. Options and values are spelt as `iptables-save` prints them, because what was
//! loaded is read back and compared as text.

use crate::base::net::{Family, Protocol};
use crate::ruleset::field::{DIRECTION_REPLY, Field, LOOPBACK, NO_USER, Notation, STATUS_DNAT, ct_state};
use crate::ruleset::rule::{Operator, Test};

/// Which way an address or a port of a packet points.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Way {
    /// Where it comes from.
    Source,
    /// Where it goes to.
    Destination,
}

impl Way {
    /// ipset's word for it.
    pub fn keyword(self) -> &'static str {
        match self {
            Way::Source => "src",
            Way::Destination => "dst",
        }
    }
}

/// What a field is in the key of a set that rules fill.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyPart {
    /// One of the addresses.
    Address(Way),
    /// The protocol, which ipset keeps together with a port.
    Protocol,
    /// The port.
    Port(Way),
    /// The whole host: no set of ipset has such a key, but `recent` with an empty mask has.
    Everybody,
    /// No set of ipset has such a key.
    Owner,
    /// Never part of a key here.
    Nothing,
}

/// How iptables looks at a field.
#[derive(Debug, Clone, Copy)]
enum Look {
    /// `-i` or `-o`, by name.
    Interface(fn(String) -> Piece),
    /// The table itself: there is one for each family.
    Family,
    /// `-p`.
    Protocol,
    /// `-s` or `-d`, or a set of addresses.
    Address(Way),
    /// A port: module, option.
    Port(&'static str, &'static str),
    /// `--ctstate`.
    State,
    /// What `--ctstate` says of translated addresses.
    Status,
    /// `--ctdir`.
    Direction,
    /// A number of a match: module, option.
    Number(&'static str, &'static str),
    /// `--tcp-flags`.
    Flags,
    /// The owner of the packet's socket.
    Owner(&'static str),
    /// The control group of the packet's socket.
    Cgroup,
    /// What `recent` remembers.
    Everybody,
    /// Nothing asks for it alone.
    KeyOnly,
}

/// The table.
fn row(field: Field) -> (Look, KeyPart) {
    match field {
        Field::InputInterface => (Look::Interface(Piece::Input), KeyPart::Nothing),
        Field::OutputInterface => (Look::Interface(Piece::Output), KeyPart::Nothing),
        Field::NetworkFamily => (Look::Family, KeyPart::Nothing),
        Field::L4Protocol => (Look::Protocol, KeyPart::Protocol),
        Field::Everybody => (Look::Everybody, KeyPart::Everybody),
        Field::SocketUser => (Look::Owner("--uid-owner"), KeyPart::Owner),
        Field::SocketGroup => (Look::Owner("--gid-owner"), KeyPart::Owner),
        Field::SocketCgroup(_) => (Look::Cgroup, KeyPart::Owner),
        Field::ConntrackState => (Look::State, KeyPart::Nothing),
        Field::ConntrackDirection => (Look::Direction, KeyPart::Nothing),
        Field::ConntrackStatus => (Look::Status, KeyPart::Nothing),
        Field::OriginalDestinationPort => (Look::Number("conntrack", "--ctorigdstport"), KeyPart::Nothing),
        Field::SourceAddress(_) => (Look::Address(Way::Source), KeyPart::Address(Way::Source)),
        Field::DestinationAddress(_) => (Look::Address(Way::Destination), KeyPart::Address(Way::Destination)),
        Field::SourcePort(Protocol::UDP) => (Look::Port("udp", "--sport"), KeyPart::Port(Way::Source)),
        Field::SourcePort(_) => (Look::Port("tcp", "--sport"), KeyPart::Port(Way::Source)),
        Field::DestinationPort(Protocol::UDP) => (Look::Port("udp", "--dport"), KeyPart::Port(Way::Destination)),
        Field::DestinationPort(_) => (Look::Port("tcp", "--dport"), KeyPart::Port(Way::Destination)),
        Field::TransportDestinationPort => (Look::KeyOnly, KeyPart::Port(Way::Destination)),
        Field::TcpFlags => (Look::Flags, KeyPart::Nothing),
        Field::IcmpType => (Look::Number("icmp", "--icmp-type"), KeyPart::Nothing),
        Field::Icmpv6Type => (Look::Number("icmp6", "--icmpv6-type"), KeyPart::Nothing),
        Field::HopLimit => (Look::Number("hl", "--hl-eq"), KeyPart::Nothing),
    }
}

/// What a field is in a key.
pub fn key_part(field: Field) -> KeyPart {
    row(field).1
}

/// One match of an iptables rule: `-m MODULE [!] OPTION VALUE`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Match {
    /// The module.
    pub module: &'static str,
    /// Whether the opposite is asked for.
    pub negated: bool,
    /// The option.
    pub option: &'static str,
    /// Its value, and further options that go with it.
    pub value: String,
}

impl Match {
    /// A match that asks for what it says.
    pub fn new(module: &'static str, option: &'static str, value: impl Into<String>) -> Match {
        Match { module, negated: false, option, value: value.into() }
    }

    /// The opposite.
    pub fn not(self) -> Match {
        Match { negated: !self.negated, ..self }
    }
}

/// What one test becomes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// Nothing: it holds for every packet of this family.
    Always,
    /// No packet of this family meets it.
    Never,
    /// `-i`.
    Input(String),
    /// `-o`.
    Output(String),
    /// `-s`.
    Source(String),
    /// `-d`.
    Destination(String),
    /// `! -s`.
    NotSource(String),
    /// `! -d`.
    NotDestination(String),
    /// `-p`, by number.
    Protocol(u8),
    /// `! -p`, by number.
    NotProtocol(u8),
    /// A match of a module.
    Match(Match),
    /// A look-up: in which set, by which way.
    Lookup(String, Way),
    /// A look-up of a number: one of the set's members, by this module and option.
    Numbers(String, &'static str, &'static str),
    /// A look-up of the socket's control group.
    Cgroup(String),
    /// A look-up of the whole host.
    Everybody(String),
    /// iptables has no words for it.
    Unsayable,
}

/// What a test becomes in the table of this family.
pub fn piece(test: &Test, family: Family) -> Piece {
    let field = test.field;
    if let Field::SourceAddress(of) | Field::DestinationAddress(of) = field
        && of != family
    {
        return Piece::Never;
    }
    match (row(field).0, &test.operator) {
        (Look::Interface(piece), Operator::Is(LOOPBACK)) => piece("lo".to_string()),
        (Look::Family, Operator::Is(number)) => when(*number == u128::from(family.nfproto())),
        (Look::Family, Operator::IsNot(number)) => when(*number != u128::from(family.nfproto())),
        (Look::Protocol, Operator::Is(number)) => octet(*number).map_or(Piece::Never, Piece::Protocol),
        (Look::Protocol, Operator::IsNot(number)) => octet(*number).map_or(Piece::Always, Piece::NotProtocol),
        (Look::Address(way), Operator::Is(value) | Operator::IsNot(value)) => {
            let address = format!("{}/{}", field.write(*value), family.bits());
            match (way, &test.operator) {
                (Way::Source, Operator::IsNot(_)) => Piece::NotSource(address),
                (Way::Source, _) => Piece::Source(address),
                (Way::Destination, Operator::IsNot(_)) => Piece::NotDestination(address),
                (Way::Destination, _) => Piece::Destination(address),
            }
        }
        (Look::Address(way), Operator::In(set)) => Piece::Lookup(set.clone(), way),
        (Look::Port(module, option), Operator::Is(port)) => Piece::Match(Match::new(module, option, port.to_string())),
        // iptables prints nothing for the whole range, and asks for nothing.
        (Look::Port(..), Operator::Within(0, high)) if *high >= u128::from(u16::MAX) => Piece::Always,
        (Look::Port(module, option), Operator::Within(low, high)) => Piece::Match(Match::new(module, option, format!("{low}:{high}"))),
        (Look::State, Operator::HasAny(bits)) => {
            bit_names(*bits, &STATES).map_or(Piece::Unsayable, |names| Piece::Match(Match::new("conntrack", "--ctstate", names)))
        }
        (Look::Status, Operator::HasAny(STATUS_DNAT)) => Piece::Match(Match::new("conntrack", "--ctstate", "DNAT")),
        (Look::Direction, Operator::Is(value)) => {
            let name = if *value == DIRECTION_REPLY { "REPLY" } else { "ORIGINAL" };
            Piece::Match(Match::new("conntrack", "--ctdir", name))
        }
        (Look::Number(module, option), Operator::Is(number)) => Piece::Match(Match::new(module, option, number.to_string())),
        (Look::Number(module, option), Operator::In(set)) => Piece::Numbers(set.clone(), module, option),
        (Look::Flags, Operator::HasAny(bits)) => flags(field, *bits).map_or(Piece::Unsayable, |flags| Piece::Match(flags.not())),
        (Look::Flags, Operator::HasNone(bits)) => flags(field, *bits).map_or(Piece::Unsayable, Piece::Match),
        // The highest number is nobody's: iptables does not take it, and no packet has it.
        (Look::Owner(_), Operator::Is(NO_USER)) => Piece::Never,
        (Look::Owner(option), Operator::Is(number)) => Piece::Match(Match::new("owner", option, number.to_string())),
        // All numbers that somebody can have. `--socket-exists` would not do: sockets of the kernel itself exist and have no user.
        (Look::Owner(option), Operator::IsNot(NO_USER)) => Piece::Match(Match::new("owner", option, format!("0-{}", NO_USER - 1))),
        (Look::Owner(option), Operator::IsNamed(name)) if is_plain(name) => Piece::Match(Match::new("owner", option, name.clone())),
        (Look::Cgroup, Operator::In(set)) => Piece::Cgroup(set.clone()),
        (Look::Everybody, Operator::In(set)) => Piece::Everybody(set.clone()),
        _ => Piece::Unsayable,
    }
}

/// Conntrack's states in the order in which iptables prints them.
const STATES: [(u128, &str); 4] =
    [(ct_state::INVALID, "INVALID"), (ct_state::NEW, "NEW"), (ct_state::RELATED, "RELATED"), (ct_state::ESTABLISHED, "ESTABLISHED")];

/// The names of all bits, with commas; `None` when one has no name.
fn bit_names(bits: u128, names: &[(u128, &str)]) -> Option<String> {
    let named: Vec<&str> = names.iter().filter(|name| bits & name.0 != 0).map(|name| name.1).collect();
    let known = names.iter().fold(0, |known, name| known | name.0);
    (bits != 0 && bits & !known == 0).then(|| named.join(","))
}

/// None of these flags is set.
fn flags(field: Field, bits: u128) -> Option<Match> {
    let Notation::Named(names) = field.row().notation else { return None };
    let upper: Vec<(u128, String)> = names.iter().map(|name| (name.0, name.1.to_uppercase())).collect();
    let names: Vec<(u128, &str)> = upper.iter().map(|(bit, name)| (*bit, name.as_str())).collect();
    bit_names(bits, &names).map(|names| Match::new("tcp", "--tcp-flags", format!("{names} NONE")))
}

fn when(holds: bool) -> Piece {
    if holds { Piece::Always } else { Piece::Never }
}

fn octet(number: u128) -> Option<u8> {
    u8::try_from(number).ok()
}

/// Whether iptables takes the name for a name, and not for a number, a range or an option.
fn is_plain(name: &str) -> bool {
    let mut octets = name.bytes();
    octets.next().is_some_and(|first| first.is_ascii_alphabetic() || first == b'_')
        && octets.all(|octet| octet.is_ascii_alphanumeric() || matches!(octet, b'_' | b'.' | b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ruleset::field::{TCP_ACK, TCP_RST};
    use crate::ruleset::rule::{has_any, in_set, is, is_not};

    fn words(test: &Test) -> String {
        match piece(test, Family::V4) {
            Piece::Match(found) => format!("{}{} {}", if found.negated { "! " } else { "" }, found.option, found.value),
            other => format!("{other:?}"),
        }
    }

    #[test]
    fn tests_become_what_iptables_save_prints() {
        assert_eq!(words(&is(Field::DestinationPort(Protocol::TCP), 443u16)), "--dport 443");
        assert_eq!(words(&has_any(Field::TcpFlags, TCP_RST | TCP_ACK)), "! --tcp-flags RST,ACK NONE");
        assert_eq!(words(&has_any(Field::ConntrackState, ct_state::ESTABLISHED | ct_state::RELATED)), "--ctstate RELATED,ESTABLISHED");
        assert_eq!(words(&is_not(Field::SocketUser, NO_USER)), "--uid-owner 0-4294967294");
        assert_eq!(words(&is(Field::DestinationAddress(Family::V4), u32::MAX)), "Destination(\"255.255.255.255/32\")");
    }

    #[test]
    fn what_only_the_other_family_has_is_never_met() {
        assert_eq!(piece(&in_set(Field::SourceAddress(Family::V6), "s"), Family::V4), Piece::Never);
        assert_eq!(piece(&is(Field::NetworkFamily, Family::V4.nfproto()), Family::V6), Piece::Never);
        assert_eq!(piece(&is(Field::NetworkFamily, Family::V4.nfproto()), Family::V4), Piece::Always);
    }

    #[test]
    fn what_iptables_has_no_words_for_is_said_to_be_so() {
        let named = |name: &str| Test { field: Field::SocketUser, operator: Operator::IsNamed(name.to_string()) };
        assert_eq!(words(&named("back-end_1")), "--uid-owner back-end_1");
        for test in [
            named("1000"),
            named("a b"),
            named("-j"),
            is(Field::InputInterface, 2u8),
            is_not(Field::SocketUser, 7u8),
            has_any(Field::ConntrackState, 64),
            is(Field::TransportDestinationPort, 53u16),
            in_set(Field::SocketUser, "users"),
            is_not(Field::DestinationPort(Protocol::TCP), 443u16),
        ] {
            assert_eq!(piece(&test, Family::V4), Piece::Unsayable, "{test:?}");
        }
    }
}
