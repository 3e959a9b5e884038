//! One record of a book: what it says, how it is written, and how it is read again without copying.
//!
//! docs/violations.md describes the fields for other programs. What is read may be anything: a line that is no record is `None`, and a
//! record of a kind that is not known here is passed over.

use std::borrow::Cow;
use std::cell::RefCell;
use std::fmt;
use std::net::IpAddr;

use serde::de::{Deserializer, MapAccess, Visitor};
use serde::ser::Serializer;
use serde::{Deserialize, Serialize};

use crate::base::net::Protocol;
use crate::base::packet::Direction;
use crate::base::time::Timestamp;
use crate::violation::{Tuple, Who};

/// What a record says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Kind {
    /// Ledger: the kernel's counts begin at nothing, because of another boot, network namespace or table.
    Began(Began),
    /// Ledger: what one harvest found more than the one before.
    Count(Count),
    /// Ledger: what was refused, with no room left to count it under a destination.
    Overflow(Overflow),
    /// Ledger: somebody cut the whole host off.
    Cut {
        /// The file in which it stands what the host was doing; none where it could not be written.
        #[serde(skip_serializing_if = "Option::is_none")]
        evidence: Option<String>,
    },
    /// Ledger: somebody let go again.
    Release {
        /// The one user who was let go; everybody else.
        #[serde(skip_serializing_if = "Option::is_none")]
        uid: Option<u32>,
    },
    /// Watch: packets of one sender to one destination that were seen within a short time.
    Seen(Box<Seen>),
    /// Watch: so many packets were not seen, because they came faster than they were read.
    Lost {
        /// How many.
        count: u64,
    },
    /// Watch: so many packets were seen and are told as a number only, because there were too many of different senders and
    /// destinations at a time.
    Other {
        /// How many.
        count: u64,
    },
    /// Watch: reading began.
    Started {},
    /// Watch: reading ended.
    Stopped {},
    /// Watch: the policy's alert command was run.
    Alert {
        /// For how many violations.
        count: u64,
        /// What became of it, in words.
        outcome: String,
    },
    /// Both: the book was damaged where it is written on.
    Mended(Mended),
}

/// The kernel's counts begin at nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Began {
    /// When the counts before were read for the last time; what was counted after that and before they began anew is not known.
    #[serde(with = "optional_time", skip_serializing_if = "Option::is_none")]
    pub from: Option<Timestamp>,
    /// The boot and network namespace.
    pub place: String,
    /// The kernel's handle of the table: no other table of this namespace has it in this boot.
    pub table: u64,
}

/// What one harvest found more than the one before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Count {
    /// When the harvest before was.
    #[serde(with = "time")]
    pub from: Timestamp,
    /// When this harvest was.
    #[serde(with = "time")]
    pub to: Timestamp,
    /// Who and where.
    #[serde(flatten)]
    pub tuple: TupleFields,
    /// Packets.
    pub packets: u64,
    /// Octets, with all headers from the network layer on.
    pub bytes: u64,
    /// When the last of the packets came; unknown where the kernel does not tell.
    #[serde(with = "optional_time", skip_serializing_if = "Option::is_none")]
    pub last: Option<Timestamp>,
    /// The kernel had forgotten what it had counted before, and counted from nothing again.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub anew: bool,
}

/// What was refused with no room left to count it under a destination.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Overflow {
    /// When the harvest before was.
    #[serde(with = "time")]
    pub from: Timestamp,
    /// When this harvest was.
    #[serde(with = "time")]
    pub to: Timestamp,
    /// Which way.
    #[serde(with = "direction")]
    pub direction: Direction,
    /// Packets.
    pub packets: u64,
    /// Octets.
    pub bytes: u64,
}

/// Packets that were seen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Seen {
    /// The first of them.
    #[serde(with = "time")]
    pub first: Timestamp,
    /// The last of them.
    #[serde(with = "time")]
    pub last: Timestamp,
    /// How many.
    pub count: u64,
    /// Which way.
    #[serde(with = "direction")]
    pub direction: Direction,
    /// What they carried.
    #[serde(with = "protocol")]
    pub protocol: Protocol,
    /// From where; of several ports the last.
    pub source: IpAddr,
    /// The source port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source_port: Option<u16>,
    /// Where to.
    pub destination: IpAddr,
    /// The destination port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// The name that the destination last was a pin of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The user whose socket they left.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// The user's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// The program.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub process: Option<Process>,
    /// The systemd unit or container.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// The id of the rule or default that refused them.
    pub rule: String,
    /// The line of the policy that it stands in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub line: Option<u32>,
}

/// A program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Process {
    /// It was found.
    Known(KnownProcess),
    /// It had ended before it could be looked at. Written as the word `gone`.
    Gone,
}

/// A program that was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct KnownProcess {
    /// Its number.
    pub pid: u32,
    /// The file that it runs.
    pub executable: String,
    /// Its command line, shortened.
    pub command: String,
    /// What started it: executable and number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parent: Option<String>,
}

impl Serialize for Process {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Process::Known(known) => known.serialize(serializer),
            Process::Gone => serializer.serialize_str("gone"),
        }
    }
}

/// The book was damaged where it is written on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Mended {
    /// How many octets of a torn last line were cut off.
    pub bytes: u64,
    /// How many records at the end are missing that were written once.
    pub missing: u64,
    /// Whether there was no head file, so that nobody knows whether records are missing.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub headless: bool,
}

/// A [`Tuple`] as it is written: `direction`, `protocol`, then what is known of `destination`, `port`, `uid` and `source`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct TupleFields {
    #[serde(with = "direction")]
    direction: Direction,
    #[serde(with = "protocol")]
    protocol: Protocol,
    #[serde(skip_serializing_if = "Option::is_none")]
    destination: Option<IpAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    port: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    uid: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    source: Option<IpAddr>,
}

impl From<Tuple> for TupleFields {
    fn from(tuple: Tuple) -> TupleFields {
        let Tuple { direction, who, destination, protocol, port } = tuple;
        let (uid, source) = match who {
            Who::User(uid) => (Some(uid), None),
            Who::Source(source) => (None, Some(source)),
            Who::Anybody => (None, None),
        };
        TupleFields { direction, protocol, destination, port, uid, source }
    }
}

impl From<TupleFields> for Tuple {
    fn from(fields: TupleFields) -> Tuple {
        let TupleFields { direction, protocol, destination, port, uid, source } = fields;
        Tuple { direction, who: who(uid, source), destination, protocol, port }
    }
}

/// Who it was, of what is written. A socket's user says more than its address.
fn who(uid: Option<u32>, source: Option<IpAddr>) -> Who {
    match (uid, source) {
        (Some(uid), _) => Who::User(uid),
        (None, Some(source)) => Who::Source(source),
        (None, None) => Who::Anybody,
    }
}

impl Seen {
    /// Under which tuple the ledger counts these packets.
    pub fn tuple(&self) -> Tuple {
        seen_tuple(self.direction, self.uid, self.source, self.destination, self.protocol, self.port)
    }
}

fn seen_tuple(direction: Direction, uid: Option<u32>, source: IpAddr, destination: IpAddr, protocol: Protocol, port: Option<u16>) -> Tuple {
    let (who, destination) = match direction {
        Direction::In => (Who::Anybody, None),
        Direction::Out => (who(uid, Some(source)), Some(destination)),
        Direction::Forward => (Who::Source(source), Some(destination)),
    };
    Tuple { direction, who, destination, protocol, port: port.filter(|_| protocol.has_ports()) }
}

/// A record as it stands in a book, with every field of every kind, borrowed from the line wherever nothing is escaped in it.
#[derive(Debug, Clone, Deserialize)]
pub struct Line<'a> {
    /// Its number: the first of a book is 1.
    pub seq: u64,
    /// When it was written.
    #[serde(deserialize_with = "time::deserialize")]
    pub at: Timestamp,
    /// What it is: see [`Kind`].
    #[serde(borrow)]
    pub kind: Cow<'a, str>,
    /// See [`Count::from`] and [`Began::from`].
    #[serde(default, deserialize_with = "optional_time::deserialize")]
    pub from: Option<Timestamp>,
    /// See [`Count::to`].
    #[serde(default, deserialize_with = "optional_time::deserialize")]
    pub to: Option<Timestamp>,
    /// See [`Seen::first`].
    #[serde(default, deserialize_with = "optional_time::deserialize")]
    pub first: Option<Timestamp>,
    /// See [`Seen::last`] and [`Count::last`].
    #[serde(default, deserialize_with = "optional_time::deserialize")]
    pub last: Option<Timestamp>,
    /// See [`Began::place`].
    #[serde(default, borrow)]
    pub place: Option<Cow<'a, str>>,
    /// See [`Began::table`].
    #[serde(default)]
    pub table: Option<u64>,
    /// See [`Seen::direction`].
    #[serde(default, deserialize_with = "direction::optional")]
    pub direction: Option<Direction>,
    /// See [`Seen::protocol`].
    #[serde(default, deserialize_with = "protocol::optional")]
    pub protocol: Option<Protocol>,
    /// See [`Seen::source`].
    #[serde(default)]
    pub source: Option<IpAddr>,
    /// See [`Seen::source_port`].
    #[serde(default)]
    pub source_port: Option<u16>,
    /// See [`Seen::destination`].
    #[serde(default)]
    pub destination: Option<IpAddr>,
    /// See [`Seen::port`].
    #[serde(default)]
    pub port: Option<u16>,
    /// See [`Seen::uid`].
    #[serde(default)]
    pub uid: Option<u32>,
    /// See [`Seen::count`].
    #[serde(default)]
    pub count: Option<u64>,
    /// See [`Count::packets`].
    #[serde(default)]
    pub packets: Option<u64>,
    /// See [`Count::bytes`] and [`Mended::bytes`].
    #[serde(default)]
    pub bytes: Option<u64>,
    /// See [`Count::anew`].
    #[serde(default)]
    pub anew: bool,
    /// See [`Mended::missing`].
    #[serde(default)]
    pub missing: Option<u64>,
    /// See [`Mended::headless`].
    #[serde(default)]
    pub headless: bool,
    /// See [`Seen::name`].
    #[serde(default, borrow)]
    pub name: Option<Cow<'a, str>>,
    /// See [`Seen::user`].
    #[serde(default, borrow)]
    pub user: Option<Cow<'a, str>>,
    /// See [`Seen::process`].
    #[serde(default, borrow)]
    pub process: Option<ProcessLine<'a>>,
    /// See [`Seen::service`].
    #[serde(default, borrow)]
    pub service: Option<Cow<'a, str>>,
    /// See [`Seen::rule`].
    #[serde(default, borrow)]
    pub rule: Option<Cow<'a, str>>,
    /// See [`Seen::line`].
    #[serde(default)]
    pub line: Option<u32>,
    /// See [`Kind::Alert`].
    #[serde(default, borrow)]
    pub outcome: Option<Cow<'a, str>>,
    /// See [`Kind::Cut`].
    #[serde(default, borrow)]
    pub evidence: Option<Cow<'a, str>>,
}

/// A [`Process`] as it stands in a line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProcessLine<'a> {
    /// It was found.
    Known(KnownProcessLine<'a>),
    /// It had ended.
    Gone,
}

/// A [`KnownProcess`] as it stands in a line.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct KnownProcessLine<'a> {
    /// See [`KnownProcess::pid`].
    pub pid: u32,
    /// See [`KnownProcess::executable`].
    #[serde(borrow)]
    pub executable: Cow<'a, str>,
    /// See [`KnownProcess::command`].
    #[serde(borrow)]
    pub command: Cow<'a, str>,
    /// See [`KnownProcess::parent`].
    #[serde(default, borrow)]
    pub parent: Option<Cow<'a, str>>,
}

impl<'de: 'a, 'a> Deserialize<'de> for ProcessLine<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = ProcessLine<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a process, or `gone`")
            }

            fn visit_str<E: serde::de::Error>(self, word: &str) -> Result<Self::Value, E> {
                match word {
                    "gone" => Ok(ProcessLine::Gone),
                    _ => Err(E::custom("neither a process nor `gone`")),
                }
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
                KnownProcessLine::deserialize(serde::de::value::MapAccessDeserializer::new(map)).map(ProcessLine::Known)
            }
        }
        deserializer.deserialize_any(Either)
    }
}

impl<'a> Line<'a> {
    /// Reads a line; nothing when it is no record.
    pub fn parse(line: &'a [u8]) -> Option<Line<'a>> {
        match std::str::from_utf8(line) {
            // Checked as a whole, it need not be checked word by word.
            Ok(line) => serde_json::from_str(line).ok(),
            Err(_) => serde_json::from_slice(line).ok(),
        }
    }

    /// Under which tuple the ledger counts what this `count` or `seen` is about.
    pub fn tuple(&self) -> Option<Tuple> {
        let (direction, protocol) = (self.direction?, self.protocol?);
        match &*self.kind {
            "count" => Some(Tuple { direction, who: who(self.uid, self.source), destination: self.destination, protocol, port: self.port }),
            "seen" => Some(seen_tuple(direction, self.uid, self.source?, self.destination?, protocol, self.port)),
            _ => None,
        }
    }

    /// What it says; nothing when it is of a kind that is not known here, or lacks a field.
    pub fn kind(&self) -> Option<Kind> {
        let owned = |text: &Option<Cow<'a, str>>| text.as_ref().map(|text| text.to_string());
        Some(match &*self.kind {
            "began" => Kind::Began(Began { from: self.from, place: owned(&self.place)?, table: self.table? }),
            "count" => Kind::Count(Count {
                from: self.from?,
                to: self.to?,
                tuple: self.tuple()?.into(),
                packets: self.packets?,
                bytes: self.bytes?,
                last: self.last,
                anew: self.anew,
            }),
            "overflow" => Kind::Overflow(Overflow {
                from: self.from?,
                to: self.to?,
                direction: self.direction?,
                packets: self.packets?,
                bytes: self.bytes?,
            }),
            "seen" => Kind::Seen(Box::new(Seen {
                first: self.first?,
                last: self.last?,
                count: self.count?,
                direction: self.direction?,
                protocol: self.protocol?,
                source: self.source?,
                source_port: self.source_port,
                destination: self.destination?,
                port: self.port,
                name: owned(&self.name),
                uid: self.uid,
                user: owned(&self.user),
                process: self.process.as_ref().map(|process| match process {
                    ProcessLine::Gone => Process::Gone,
                    ProcessLine::Known(known) => Process::Known(KnownProcess {
                        pid: known.pid,
                        executable: known.executable.to_string(),
                        command: known.command.to_string(),
                        parent: owned(&known.parent),
                    }),
                }),
                service: owned(&self.service),
                rule: owned(&self.rule)?,
                line: self.line,
            })),
            "cut" => Kind::Cut { evidence: owned(&self.evidence) },
            "release" => Kind::Release { uid: self.uid },
            "lost" => Kind::Lost { count: self.count? },
            "other" => Kind::Other { count: self.count? },
            "started" => Kind::Started {},
            "stopped" => Kind::Stopped {},
            "alert" => Kind::Alert { count: self.count?, outcome: owned(&self.outcome)? },
            "mended" => Kind::Mended(Mended { bytes: self.bytes?, missing: self.missing?, headless: self.headless }),
            _ => return None,
        })
    }
}

/// Points in time as RFC 3339 in UTC.
mod time {
    use super::*;

    pub fn serialize<S: Serializer>(time: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(time)
    }

    thread_local! {
        /// The last time that was read. Times of a record, and of records that stand together, are mostly the same.
        static LAST: RefCell<(String, Timestamp)> = const { RefCell::new((String::new(), Timestamp(0))) };
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Timestamp, D::Error> {
        Word::read(deserializer, |text| {
            LAST.with_borrow_mut(|(known, time)| {
                if known != text || text.is_empty() {
                    *time = Timestamp::parse(text)?;
                    known.clear();
                    known.push_str(text);
                }
                Some(*time)
            })
        })
    }
}

mod optional_time {
    use super::*;

    // serde asks for a reference to the field itself.
    #[allow(clippy::ref_option)]
    pub fn serialize<S: Serializer>(time: &Option<Timestamp>, serializer: S) -> Result<S::Ok, S::Error> {
        time.map(|time| time.to_string()).serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Timestamp>, D::Error> {
        time::deserialize(deserializer).map(Some)
    }
}

/// Directions by the words of the packet spelling.
mod direction {
    use super::*;

    pub fn serialize<S: Serializer>(direction: &Direction, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(direction.word())
    }

    pub fn optional<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Direction>, D::Error> {
        Word::read(deserializer, Direction::of_word).map(Some)
    }
}

/// Protocols by the words of the packet spelling; those without a word by their number, as text.
mod protocol {
    use super::*;

    pub fn serialize<S: Serializer>(protocol: &Protocol, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(protocol)
    }

    pub fn optional<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Protocol>, D::Error> {
        Word::read(deserializer, Protocol::of_word).map(Some)
    }
}

/// Reads a text into something without copying it.
struct Word<T>(fn(&str) -> Option<T>);

impl<T> Word<T> {
    fn read<'de, D: Deserializer<'de>>(deserializer: D, parse: fn(&str) -> Option<T>) -> Result<T, D::Error> {
        deserializer.deserialize_str(Word(parse))
    }
}

impl<T> Visitor<'_> for Word<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a word")
    }

    fn visit_str<E: serde::de::Error>(self, word: &str) -> Result<T, E> {
        (self.0)(word).ok_or_else(|| E::custom("not a word that is known here"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(kind: &Kind) -> String {
        let text = serde_json::to_string(kind).unwrap();
        format!("{{\"seq\":7,\"at\":\"2026-11-24T03:52:00Z\",{}", &text[1..])
    }

    fn seen() -> Seen {
        Seen {
            first: Timestamp(1_795_492_320),
            last: Timestamp(1_795_492_321),
            count: 3,
            direction: Direction::Out,
            protocol: Protocol::TCP,
            source: "192.0.2.1".parse().unwrap(),
            source_port: Some(40_000),
            destination: "203.0.113.7".parse().unwrap(),
            port: Some(443),
            name: Some("a.example".into()),
            uid: Some(1000),
            user: Some("bäck\"end\n".into()),
            process: Some(Process::Known(KnownProcess {
                pid: 4711,
                executable: "/usr/bin/curl".into(),
                command: "curl \u{1b}[2J".into(),
                parent: Some("sh (4000)".into()),
            })),
            service: Some("a.service".into()),
            rule: "refuse-out".into(),
            line: Some(3),
        }
    }

    #[test]
    fn every_kind_reads_back_as_it_was_written() {
        let tuple = |who, destination: Option<&str>, port| Tuple {
            direction: Direction::Forward,
            who,
            destination: destination.map(|address| address.parse().unwrap()),
            protocol: Protocol(47),
            port,
        };
        let (from, to) = (Timestamp(1_795_492_260), Timestamp(1_795_492_320));
        let count = |tuple: Tuple, last| {
            Kind::Count(Count { from, to, tuple: tuple.into(), packets: u64::MAX, bytes: 0, last, anew: last.is_none() })
        };
        for kind in [
            Kind::Began(Began { from: None, place: "boot 3".into(), table: 9 }),
            Kind::Began(Began { from: Some(from), place: String::new(), table: 0 }),
            count(tuple(Who::User(0), Some("2001:db8::1"), Some(0)), Some(to)),
            count(tuple(Who::Source("10.0.0.1".parse().unwrap()), Some("10.0.0.2"), None), None),
            count(tuple(Who::Anybody, None, Some(65_535)), Some(from)),
            Kind::Overflow(Overflow { from, to, direction: Direction::In, packets: 1, bytes: 2 }),
            Kind::Seen(Box::new(seen())),
            Kind::Seen(Box::new(Seen { process: Some(Process::Gone), name: None, uid: None, user: None, line: None, ..seen() })),
            Kind::Cut { evidence: None },
            Kind::Cut { evidence: Some("evidence-1.json".into()) },
            Kind::Release { uid: None },
            Kind::Release { uid: Some(0) },
            Kind::Lost { count: 12 },
            Kind::Other { count: 3 },
            Kind::Started {},
            Kind::Stopped {},
            Kind::Alert { count: 2, outcome: "done".into() },
            Kind::Mended(Mended { bytes: 17, missing: 0, headless: false }),
            Kind::Mended(Mended { bytes: 0, missing: 0, headless: true }),
        ] {
            let text = written(&kind);
            let line = Line::parse(text.as_bytes()).unwrap_or_else(|| panic!("{text}"));
            assert_eq!(line.kind(), Some(kind), "{text}");
        }
    }

    #[test]
    fn what_is_seen_is_keyed_as_the_ledger_counts_it() {
        let out = seen().tuple();
        assert_eq!((out.who, out.destination), (Who::User(1000), Some(seen().destination)));
        let kernels = Seen { uid: None, ..seen() }.tuple();
        assert_eq!(kernels.who, Who::Source(seen().source));
        let incoming = Seen { direction: Direction::In, ..seen() }.tuple();
        assert_eq!((incoming.who, incoming.destination), (Who::Anybody, None));
        let forwarded = Seen { direction: Direction::Forward, ..seen() }.tuple();
        assert_eq!(forwarded.who, Who::Source(seen().source));
        let text = written(&Kind::Seen(Box::new(seen())));
        assert_eq!(Line::parse(text.as_bytes()).unwrap().tuple(), Some(out));
    }

    #[test]
    fn what_is_no_record_and_what_is_of_another_time_is_passed_over() {
        for text in ["", "{}", "[]", "{\"seq\":1}", "{\"seq\":-1,\"at\":\"2026-11-24T03:52:00Z\",\"kind\":\"x\"}", "\0\0\0", "{\"seq\":1,"]
        {
            assert!(Line::parse(text.as_bytes()).is_none(), "{text}");
        }
        let later = "{\"seq\":1,\"at\":\"2026-11-24T03:52:00Z\",\"kind\":\"dreamt\",\"of\":{\"sheep\":[1,2]}}";
        assert_eq!(Line::parse(later.as_bytes()).unwrap().kind(), None);
        let lacking = "{\"seq\":1,\"at\":\"2026-11-24T03:52:00Z\",\"kind\":\"count\"}";
        assert_eq!(Line::parse(lacking.as_bytes()).unwrap().kind(), None);
        let strange = "{\"seq\":1,\"at\":\"2026-11-24T03:52:00Z\",\"kind\":\"seen\",\"process\":\"came\"}";
        assert!(Line::parse(strange.as_bytes()).is_none());
    }
}
