//! A packet in the one spelling that policy tests, `explain`, witnesses, reports and errors share.
//! Printing and parsing are inverses. Nothing here looks at the network.
//!
//! ```text
//! [in|out|forward] tcp|udp|icmp|icmpv6|NUMBER [from [ADDR][:PORT]] [to [ADDR|NAME][:PORT]]
//!     [user NAME|uid N] [service UNIT] [state new|established|related|invalid]
//! ```

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use thiserror::Error;

use crate::base::diagnostic::{nearest, said};
use crate::base::name::{DnsName, account, unit};
use crate::base::net::{Family, Protocol};

/// Which way a packet crosses this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Direction {
    /// Made by a program of this host, or by its kernel.
    #[default]
    Out,
    /// Addressed to this host.
    In,
    /// Passing through, from a container or a virtual machine.
    Forward,
}

impl Direction {
    /// Its word in the spelling.
    pub fn word(self) -> &'static str {
        match self {
            Direction::Out => "out",
            Direction::In => "in",
            Direction::Forward => "forward",
        }
    }

    /// The direction of a word.
    pub fn of_word(word: &str) -> Option<Direction> {
        [Direction::Out, Direction::In, Direction::Forward].into_iter().find(|direction| direction.word() == word)
    }
}

/// What connection tracking says of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[allow(missing_docs)]
pub enum State {
    #[default]
    New,
    Established,
    Related,
    Invalid,
}

/// Where a packet goes to or comes from, as far as it was said.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Peer {
    /// Any address: the question leaves it open.
    #[default]
    Any,
    /// One address.
    Address(IpAddr),
    /// Each pin of this name in turn. Only as a destination.
    Name(DnsName),
}

/// Who made a packet, as far as it was said.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Owner {
    /// Not said.
    #[default]
    Unsaid,
    /// A user by name.
    User(String),
    /// A user by number.
    Uid(u32),
}

/// A packet as a person writes it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PacketSpec {
    /// Which way it goes.
    pub direction: Direction,
    /// What it carries.
    pub protocol: Protocol,
    /// Its source: [`Peer::Name`] never stands here.
    pub from: Peer,
    /// Its source port.
    pub from_port: Option<u16>,
    /// Its destination.
    pub to: Peer,
    /// Its destination port.
    pub to_port: Option<u16>,
    /// The user whose socket it leaves.
    pub owner: Owner,
    /// The systemd unit whose control group it leaves.
    pub service: Option<String>,
    /// What connection tracking says of it.
    pub state: State,
}

impl fmt::Display for PacketSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.direction {
            Direction::Out => {}
            Direction::In => f.write_str("in ")?,
            Direction::Forward => f.write_str("forward ")?,
        }
        write!(f, "{}", self.protocol)?;
        end(f, "from", &self.from, self.from_port)?;
        end(f, "to", &self.to, self.to_port)?;
        match &self.owner {
            Owner::Unsaid => {}
            Owner::User(name) => write!(f, " user {name}")?,
            Owner::Uid(uid) => write!(f, " uid {uid}")?,
        }
        if let Some(service) = &self.service {
            write!(f, " service {service}")?;
        }
        match self.state {
            State::New => Ok(()),
            State::Established => f.write_str(" state established"),
            State::Related => f.write_str(" state related"),
            State::Invalid => f.write_str(" state invalid"),
        }
    }
}

fn end(f: &mut fmt::Formatter<'_>, word: &str, peer: &Peer, port: Option<u16>) -> fmt::Result {
    match (peer, port) {
        (Peer::Any, None) => Ok(()),
        (Peer::Any, Some(port)) => write!(f, " {word} :{port}"),
        (Peer::Address(address), None) => write!(f, " {word} {address}"),
        (Peer::Address(address), Some(port)) => write!(f, " {word} {}", SocketAddr::new(*address, port)),
        (Peer::Name(name), None) => write!(f, " {word} {name}"),
        (Peer::Name(name), Some(port)) => write!(f, " {word} {name}:{port}"),
    }
}

/// Why a text is no packet: a sentence about one word of it.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{message}")]
pub struct PacketError {
    /// Octets from the start of the text to the culprit; the length of the text when something is missing at its end.
    pub offset: usize,
    /// Octets of the culprit; 0 when something is missing.
    pub len: usize,
    /// What is wrong: lower case, the user's words in backticks, no full stop.
    pub message: String,
    /// What to write instead.
    pub help: Option<String>,
}

const CLAUSES: [&str; 6] = ["from", "to", "user", "uid", "service", "state"];
const DIRECTIONS: [&str; 3] = ["in", "out", "forward"];
const PROTOCOLS: [&str; 4] = ["tcp", "udp", "icmp", "icmpv6"];
const STATES: [&str; 4] = ["new", "established", "related", "invalid"];

/// How many of these words, from the first, are a packet's: a direction, a protocol, and clauses as far as they go. A word where a
/// clause may begin, and that is none, is somebody else's.
pub fn spelt(words: &[String]) -> usize {
    let is = |position: usize, known: &[&str]| words.get(position).is_some_and(|word| known.contains(&word.as_str()));
    // Whatever stands for the protocol is meant to be one.
    let mut next = if is(0, &DIRECTIONS) { 2 } else { 1 };
    while is(next, &CLAUSES) {
        next += 2;
    }
    next.min(words.len())
}

/// One word of the text and where it stands.
#[derive(Clone, Copy)]
struct Word<'t> {
    text: &'t str,
    offset: usize,
}

impl Word<'_> {
    fn wrong(self, message: impl Into<String>) -> PacketError {
        PacketError { offset: self.offset, len: self.text.len(), message: message.into(), help: None }
    }

    /// Wrong, and perhaps a misspelling of one of these.
    fn not_one_of(self, what: &str, known: &[&str]) -> PacketError {
        let help = match nearest(self.text, known.iter().copied()) {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("one of {}", listed(known)),
        };
        self.wrong(format!("{} is not {what}", said(self.text))).with_help(help)
    }
}

impl PacketError {
    fn with_help(mut self, help: impl Into<String>) -> PacketError {
        self.help = Some(help.into());
        self
    }
}

impl FromStr for PacketSpec {
    type Err = PacketError;

    /// Reads the spelling at the top of this file. Clauses may come in any order, each once; they are printed in one order.
    fn from_str(text: &str) -> Result<PacketSpec, PacketError> {
        let missing = |message: String| PacketError { offset: text.len(), len: 0, message, help: None };
        let mut words = words(text).peekable();
        let Some(mut first) = words.next() else {
            return Err(missing("a packet has at least a protocol".into()).with_help("for example `tcp to api.openai.com:443`"));
        };
        let direction = match first.text {
            "in" => Direction::In,
            "out" => Direction::Out,
            "forward" => Direction::Forward,
            _ => Direction::default(),
        };
        if DIRECTIONS.contains(&first.text) {
            first = words.next().ok_or_else(|| missing(format!("a protocol belongs after `{}`", first.text)))?;
        }
        let mut spec = PacketSpec {
            direction,
            protocol: protocol(first)?,
            from: Peer::Any,
            from_port: None,
            to: Peer::Any,
            to_port: None,
            owner: Owner::Unsaid,
            service: None,
            state: State::New,
        };
        let mut seen: Vec<&str> = Vec::new();
        while let Some(clause) = words.next() {
            if !CLAUSES.contains(&clause.text) {
                let protocols = [DIRECTIONS.as_slice(), PROTOCOLS.as_slice()].concat();
                if protocols.contains(&clause.text) {
                    let help = "the direction and the protocol come first, each once";
                    return Err(clause.wrong(format!("{} stands in the wrong place", said(clause.text))).with_help(help));
                }
                return Err(clause.not_one_of("a part of a packet", &CLAUSES));
            }
            let kind = if clause.text == "uid" { "user" } else { clause.text };
            if seen.contains(&kind) {
                let twice = if kind == "user" { "a packet has one owner".into() } else { format!("`{kind}` is said twice") };
                return Err(clause.wrong(twice));
            }
            seen.push(kind);
            let value = words.next().ok_or_else(|| missing(format!("something belongs after `{}`", clause.text)))?;
            spec.take(clause.text, value)?;
        }
        Ok(spec)
    }
}

impl PacketSpec {
    fn take(&mut self, clause: &str, value: Word<'_>) -> Result<(), PacketError> {
        match clause {
            "from" => {
                let (peer, port) = peer(value)?;
                if matches!(peer, Peer::Name(_)) {
                    let help = "a name stands under `to` only; write an address";
                    return Err(value.wrong(format!("{} is a name, and a source has none", said(value.text))).with_help(help));
                }
                self.check_end(value, &peer, port, &self.to)?;
                (self.from, self.from_port) = (peer, port);
            }
            "to" => {
                let (peer, port) = peer(value)?;
                self.check_end(value, &peer, port, &self.from)?;
                (self.to, self.to_port) = (peer, port);
            }
            "user" => {
                let name = account(value.text).map_err(|message| {
                    let error = value.wrong(message);
                    if value.text.parse::<u32>().is_ok() { error.with_help(format!("write `uid {}`", value.text)) } else { error }
                })?;
                self.owner = Owner::User(name);
            }
            "uid" => {
                let uid = number(value.text).ok_or_else(|| {
                    value.wrong(format!("{} is not the number of a user", said(value.text))).with_help("a name is written `user NAME`")
                })?;
                self.owner = Owner::Uid(uid);
            }
            "service" => self.service = Some(unit(value.text).map_err(|message| value.wrong(message))?),
            _ => {
                self.state = match value.text {
                    "new" => State::New,
                    "established" => State::Established,
                    "related" => State::Related,
                    "invalid" => State::Invalid,
                    _ => return Err(value.not_one_of("a state", &STATES)),
                }
            }
        }
        Ok(())
    }

    /// Whether such an end fits the protocol and the other end.
    fn check_end(&self, value: Word<'_>, peer: &Peer, port: Option<u16>, other: &Peer) -> Result<(), PacketError> {
        if port.is_some() && !self.protocol.has_ports() {
            return Err(value.wrong(format!("`{}` has no ports", self.protocol)));
        }
        let Peer::Address(address) = peer else { return Ok(()) };
        let family = Family::of(address);
        let wanted = match self.protocol {
            Protocol::ICMP => Some(Family::V4),
            Protocol::ICMPV6 => Some(Family::V6),
            _ => None,
        };
        if wanted.is_some_and(|wanted| wanted != family) {
            let (other, number) = if family == Family::V4 { ("icmp", 4) } else { ("icmpv6", 6) };
            let error = value.wrong(format!("`{}` does not run over IPv{number}", self.protocol));
            return Err(error.with_help(format!("write `{other}`")));
        }
        if let Peer::Address(other) = other
            && Family::of(other) != family
        {
            return Err(value.wrong(format!("{} and `{other}` are of different families", said(value.text))));
        }
        Ok(())
    }
}

fn words(text: &str) -> impl Iterator<Item = Word<'_>> {
    let start = text.as_ptr() as usize;
    text.split_ascii_whitespace().map(move |word| Word { text: word, offset: word.as_ptr() as usize - start })
}

fn protocol(word: Word<'_>) -> Result<Protocol, PacketError> {
    match word.text {
        "tcp" => return Ok(Protocol::TCP),
        "udp" => return Ok(Protocol::UDP),
        "icmp" => return Ok(Protocol::ICMP),
        "icmpv6" => return Ok(Protocol::ICMPV6),
        _ => {}
    }
    if word.text.bytes().all(|byte| byte.is_ascii_digit()) {
        return number(word.text)
            .map(Protocol)
            .ok_or_else(|| word.wrong(format!("{} is not a protocol number", said(word.text))).with_help("from 0 to 255"));
    }
    if CLAUSES.contains(&word.text) {
        return Err(word.wrong(format!("a protocol belongs before `{}`", word.text)).with_help("for example `tcp`"));
    }
    let mut error = word.not_one_of("a protocol", &PROTOCOLS);
    if nearest(word.text, PROTOCOLS).is_none() {
        if let Some(near) = nearest(word.text, DIRECTIONS) {
            error.help = Some(format!("did you mean `{near}`?"));
        } else {
            error.help = Some("one of `tcp`, `udp`, `icmp`, `icmpv6`, or a number".into());
        }
    }
    Err(error)
}

/// `ADDR`, `NAME`, `ADDR:PORT`, `[ADDR]:PORT`, `NAME:PORT` or `:PORT`.
fn peer(word: Word<'_>) -> Result<(Peer, Option<u16>), PacketError> {
    let text = word.text;
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok((Peer::Address(address), None));
    }
    if let Some(rest) = text.strip_prefix('[') {
        let Some((inside, after)) = rest.split_once(']') else {
            return Err(word.wrong("`]` is missing").with_help("IPv6 with a port is written `[2001:db8::1]:443`"));
        };
        let Ok(address) = inside.parse::<Ipv6Addr>() else {
            return Err(word.wrong(format!("{} is not an IPv6 address", said(inside))));
        };
        let port = match after.strip_prefix(':') {
            Some(digits) => Some(port(word, digits)?),
            None if after.is_empty() => None,
            None => return Err(word.wrong(format!("{} stands where `:PORT` belongs", said(after)))),
        };
        return Ok((Peer::Address(address.into()), port));
    }
    let (host, port) = match text.rsplit_once(':') {
        Some((host, digits)) if !host.contains(':') => (host, Some(port(word, digits)?)),
        Some(_) => {
            let error = word.wrong(format!("{} is not an IPv6 address", said(text)));
            return Err(error.with_help("IPv6 with a port is written `[2001:db8::1]:443`"));
        }
        None => (text, None),
    };
    if host.is_empty() {
        return Ok((Peer::Any, port));
    }
    if let Ok(address) = host.parse::<IpAddr>() {
        return Ok((Peer::Address(address), port));
    }
    if host == "any" {
        return Err(word.wrong("`any` is no address").with_help("leave the address out: `to :443`, or no `to` at all"));
    }
    if host.contains('/') {
        return Err(word.wrong("a packet has one address, not a network").with_help("write one address of it"));
    }
    match DnsName::parse(host) {
        Ok(name) => Ok((Peer::Name(name), port)),
        Err(error) => Err(PacketError { help: error.help(), ..word.wrong(error.to_string()) }),
    }
}

fn port(word: Word<'_>, digits: &str) -> Result<u16, PacketError> {
    let at = Word { text: digits, offset: word.offset + word.text.len() - digits.len() };
    // Port 0 cannot be opened, but a packet can carry it, and a witness may.
    number(digits).ok_or_else(|| at.wrong(format!("{} is not a port", said(digits))).with_help("from 0 to 65535"))
}

/// A decimal number without a sign or leading zeros.
fn number<N: FromStr>(digits: &str) -> Option<N> {
    let plain = digits.bytes().all(|byte| byte.is_ascii_digit()) && (digits.len() == 1 || !digits.starts_with('0'));
    plain.then(|| digits.parse().ok()).flatten()
}

fn listed(words: &[&str]) -> String {
    words.iter().map(|word| format!("`{word}`")).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_one_spelling_reads_and_prints_the_same() {
        for text in [
            "tcp",
            "tcp to api.openai.com:443",
            "in tcp from 198.51.100.9 to :443",
            "forward udp from 10.0.0.2:53 to 8.8.8.8:53",
            "udp to [2001:db8::1]:443",
            "tcp to 2001:db8::1",
            "icmpv6 to 2001:db8::1",
            "89 to 224.0.0.5",
            "tcp to 192.0.2.1:443 user backend service backend.service state established",
            "tcp to 192.0.2.1:443 uid 0 state invalid",
        ] {
            assert_eq!(text.parse::<PacketSpec>().map(|spec| spec.to_string()).as_deref(), Ok(text));
        }
    }

    #[test]
    fn other_spellings_print_as_the_one() {
        for (text, printed) in [
            ("  out   tcp to API.openai.com.:443  state new ", "tcp to api.openai.com:443"),
            ("6 to :443 from 192.0.2.1", "tcp from 192.0.2.1 to :443"),
            ("tcp to [2001:DB8::1] service backend", "tcp to 2001:db8::1 service backend.service"),
            ("tcp to ::443", "tcp to ::443"),
        ] {
            assert_eq!(text.parse::<PacketSpec>().map(|spec| spec.to_string()).as_deref(), Ok(printed), "{text}");
        }
    }

    #[test]
    fn an_error_points_at_the_culprit() {
        for (text, culprit, message) in [
            ("", "", "at least a protocol"),
            ("in", "", "after `in`"),
            ("tpc to 1.2.3.4", "tpc", "not a protocol"),
            ("to 1.2.3.4", "to", "before `to`"),
            ("tcp in", "in", "wrong place"),
            ("256", "256", "protocol number"),
            ("tcp too 1.2.3.4", "too", "not a part"),
            ("tcp to", "", "after `to`"),
            ("tcp to 1.2.3.4:", "", "not a port"),
            ("tcp to 1.2.3.4:65536", "65536", "not a port"),
            ("tcp to 1.2.3.4:0443", "0443", "not a port"),
            ("tcp to 2001:db8::1:99999", "2001:db8::1:99999", "IPv6"),
            ("tcp to [2001:db8::1:443", "[2001:db8::1:443", "`]`"),
            ("tcp to [1.2.3.4]:443", "[1.2.3.4]:443", "IPv6"),
            ("tcp to 10.0.0.0/8:443", "10.0.0.0/8:443", "network"),
            ("tcp to *.example.com:443", "*.example.com:443", "wildcard"),
            ("tcp from example.com:443", "example.com:443", "source"),
            ("tcp to any:443", "any:443", "`any`"),
            ("icmp to 1.2.3.4:5", "1.2.3.4:5", "no ports"),
            ("icmp to 2001:db8::1", "2001:db8::1", "IPv6"),
            ("tcp from 1.2.3.4 to 2001:db8::1", "2001:db8::1", "families"),
            ("tcp user a uid 1", "uid", "one owner"),
            ("tcp to :1 to :2", "to", "twice"),
            ("tcp uid root", "root", "number of a user"),
            ("tcp user 0", "0", "number alone"),
            ("tcp service a.timer", "a.timer", "no processes"),
            ("tcp state open", "open", "not a state"),
        ] {
            let error = text.parse::<PacketSpec>().unwrap_err();
            assert_eq!(&text[error.offset..error.offset + error.len], culprit, "{text}: {error}");
            assert!(error.message.contains(message), "{text}: {error}");
        }
    }

    #[test]
    fn a_packet_ends_where_no_clause_begins() {
        for (text, expected) in [
            ("tcp to 1.2.3.4:443", 3),
            ("in tcp from 192.0.2.1 to :443 policy.yaml", 6),
            ("udp policy.yaml", 1),
            ("forward", 1),
            ("tcp to", 2),
            ("tcp to to state", 4),
            ("tcp too 1.2.3.4:443", 1),
        ] {
            let words: Vec<String> = text.split(' ').map(str::to_string).collect();
            assert_eq!(spelt(&words), expected, "{text}");
        }
    }

    fn a_peer(v6: bool) -> impl Strategy<Value = Peer> {
        prop_oneof![
            Just(Peer::Any),
            any::<u128>().prop_map(move |bits| Peer::Address(if v6 {
                IpAddr::from(bits.to_be_bytes())
            } else {
                IpAddr::from((bits as u32).to_be_bytes())
            })),
        ]
    }

    prop_compose! {
        fn a_packet()(v6 in any::<bool>())(
            direction in prop_oneof![Just(Direction::Out), Just(Direction::In), Just(Direction::Forward)],
            number in prop_oneof![Just(6u8), Just(17), any::<u8>()],
            from in a_peer(v6),
            to in prop_oneof![3 => a_peer(v6), 1 => "[a-z]{1,9}(-[a-z0-9]{1,5})?\\.[a-z]{2,5}".prop_map(|name| {
                DnsName::parse(&name).map_or(Peer::Any, Peer::Name)
            })],
            ports in any::<(Option<u16>, Option<u16>)>(),
            owner in prop_oneof![
                Just(Owner::Unsaid),
                "[a-z_][a-z0-9_-]{0,12}".prop_map(Owner::User),
                any::<u32>().prop_map(Owner::Uid)
            ],
            service in proptest::option::of("[a-z][a-z0-9@_-]{0,12}\\.(service|slice)"),
            state in prop_oneof![Just(State::New), Just(State::Established), Just(State::Related), Just(State::Invalid)],
            v6 in Just(v6),
        ) -> PacketSpec {
            let protocol = match number {
                1 | 58 => if v6 { Protocol::ICMPV6 } else { Protocol::ICMP },
                number => Protocol(number),
            };
            let port = |port: Option<u16>| port.filter(|_| protocol.has_ports());
            PacketSpec {
                direction, protocol, from, from_port: port(ports.0), to, to_port: port(ports.1), owner, service, state,
            }
        }
    }

    proptest! {
        #[test]
        fn printing_and_parsing_are_inverses(packet in a_packet()) {
            prop_assert_eq!(packet.to_string().parse::<PacketSpec>(), Ok(packet));
        }

        #[test]
        fn any_text_is_a_packet_or_an_error_inside_the_text(text in "(in |out )?(tcp|udp|x)?( (from|to|user|uid|state|é)| \\PC{0,6}){0,6}") {
            match text.parse::<PacketSpec>() {
                Ok(packet) => prop_assert_eq!(packet.to_string().parse::<PacketSpec>(), Ok(packet)),
                Err(error) => prop_assert!(text.get(error.offset..error.offset + error.len).is_some()),
            }
        }
    }
}
