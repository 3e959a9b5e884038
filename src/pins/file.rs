//! The pins file: pins as text that is sorted, commented and reviewed in version control. Reading and printing are inverses.
//!
//! ```text
//! egressguard pins 1
//!
//! # the model's API
//! name api.openai.com
//!   confirmed 2026-11-24T03:52:00Z
//!   cname api.openai.com.cdn.example
//!   address 162.159.140.245 ttl 300 server 9.9.9.9:53 first 2026-11-01T00:00:00Z expires 2026-11-25T03:52:00Z
//!
//! end 1
//! ```
//!
//! An address that is draining also says `last`, when it was last seen; without it that is when the name was confirmed, so
//! that a question that learns nothing changes one line of a block. The last line counts the names, and a file without it was
//! cut off. Comments belong to the name below them, inside a block to the block's name; a file without names keeps none.
//! Nothing is half-read: there are pins, or there is one error with its place and the next step.

use std::fmt::{self, Write as _};
use std::net::IpAddr;

use thiserror::Error;

use crate::base::name::DnsName;
use crate::base::time::Timestamp;
use crate::pins::{Lease, NamePins, Pins};

const HEADER: &str = "egressguard pins 1";
const ADDRESS_FORM: &str = "an address line is `address ADDRESS ttl SECONDS server SERVER first TIME [last TIME] expires TIME`";
const RESTORE: &str = "restore the file from version control, or write it anew with `egressguard resolve`";

/// Why a text is not a pins file.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("line {line}, column {column}: {message}")]
pub struct PinsError {
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// What is wrong: lower case, the file's words in backticks, no full stop.
    pub message: String,
    /// The next step.
    pub help: String,
}

/// Reads a pins file.
pub fn load(text: &str) -> Result<Pins, PinsError> {
    let mut reader = Reader::default();
    let mut last_line = 0;
    for (index, line) in text.lines().enumerate() {
        last_line = index + 1;
        reader.line(Line { number: index + 1, text: line })?;
    }
    match (reader.header, reader.ended) {
        (true, true) => Ok(reader.pins),
        (true, false) => Err(PinsError {
            line: last_line + 1,
            column: 1,
            message: "the file has no `end` line: it was cut off".to_string(),
            help: RESTORE.to_string(),
        }),
        (false, _) => Err(Line { number: 1, text: "" }.not_a_pins_file()),
    }
}

/// Prints pins. What a file cannot hold is replaced: control characters of comments by spaces, and in servers and chains
/// whatever is not visible ASCII by `?`; the resolver makes neither.
pub fn print(pins: &Pins) -> String {
    let mut out = String::with_capacity(64 + pins.names.values().map(|name| 200 + 160 * name.leases.len()).sum::<usize>());
    out.push_str(HEADER);
    out.push('\n');
    for (name, pins) in &pins.names {
        out.push('\n');
        print_name(&mut out, name, pins);
    }
    push(&mut out, format_args!("\nend {}\n", pins.names.len()));
    out
}

fn print_name(out: &mut String, name: &DnsName, pins: &NamePins) {
    for comment in &pins.comments {
        out.push('#');
        out.extend(comment.chars().map(|c| if is_damage(c) { ' ' } else { c }));
        out.push('\n');
    }
    push(out, format_args!("name {name}\n"));
    if let Some(confirmed) = pins.confirmed {
        push(out, format_args!("  confirmed {confirmed}\n"));
    }
    for owner in &pins.chain {
        push(out, format_args!("  cname {}\n", Visible(owner)));
    }
    for (address, lease) in &pins.leases {
        push(out, format_args!("  address {address} ttl {} server {} first {}", lease.ttl, Visible(&lease.server), lease.first_seen));
        if pins.confirmed != Some(lease.last_seen) {
            push(out, format_args!(" last {}", lease.last_seen));
        }
        push(out, format_args!(" expires {}\n", lease.expires));
    }
}

/// Appends. Writing to a `String` does not fail.
fn push(out: &mut String, what: fmt::Arguments<'_>) {
    let _ = out.write_fmt(what);
}

/// A text as one word of visible ASCII.
struct Visible<'text>(&'text str);

impl fmt::Display for Visible<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("?");
        }
        self.0.chars().try_for_each(|c| f.write_char(if c.is_ascii_graphic() { c } else { '?' }))
    }
}

/// What was read so far.
#[derive(Default)]
struct Reader {
    header: bool,
    ended: bool,
    pins: Pins,
    /// The name whose block is being read, and what belongs to it.
    name: Option<(DnsName, NamePins)>,
    /// Comments that wait for the line that says whose they are.
    comments: Vec<String>,
}

impl Reader {
    fn line(&mut self, line: Line<'_>) -> Result<(), PinsError> {
        if !self.header {
            self.header = line.text.trim_end() == HEADER;
            return if self.header { Ok(()) } else { Err(line.not_a_pins_file()) };
        }
        if let Some(comment) = line.text.trim_start().strip_prefix('#') {
            if self.ended {
                return Err(line.after_the_end());
            }
            if let Some(control) = comment.chars().find(|c| is_damage(*c)) {
                return Err(line.error(0, format!("{control:?} is not allowed in a comment"), RESTORE));
            }
            self.comments.push(comment.to_string());
            return Ok(());
        }
        let mut words = Words::of(line);
        let Some((at, keyword)) = words.next_word() else { return Ok(()) };
        if self.ended {
            return Err(line.after_the_end());
        }
        match keyword {
            "name" => self.begin_name(&mut words)?,
            "confirmed" => {
                let time = words.time("the time of the last answer")?;
                let pins = self.block(line, at, keyword)?;
                if pins.confirmed.replace(time).is_some() {
                    return Err(line.error(at, "a name has one `confirmed` line".to_string(), "remove one of them"));
                }
            }
            "cname" => {
                let owner = words.visible("a name")?.to_string();
                self.block(line, at, keyword)?.chain.push(owner);
            }
            "address" => {
                let (address_at, address) = words.address()?;
                let (lease, has_last) = words.lease()?;
                let pins = self.block(line, at, keyword)?;
                let last_seen = match (has_last, pins.confirmed) {
                    (Some(last), _) => last,
                    (None, Some(confirmed)) => confirmed,
                    (None, None) => {
                        let message = format!("`{address}` does not say when it was last seen, and its name was never confirmed");
                        return Err(line.error(at, message, "add `last TIME` before `expires`, or a `confirmed TIME` line above"));
                    }
                };
                if pins.leases.insert(address, Lease { last_seen, ..lease }).is_some() {
                    return Err(line.error(address_at, format!("`{address}` stands twice below its name"), "remove one of the lines"));
                }
            }
            "end" => self.end(line, &mut words)?,
            other => {
                let message = format!("`{other}` is no word of a pins file");
                return Err(line.error(at, message, "a line begins with `name`, `confirmed`, `cname`, `address`, `end` or `#`"));
            }
        }
        words.nothing_more()
    }

    fn begin_name(&mut self, words: &mut Words<'_>) -> Result<(), PinsError> {
        let (at, text) = words.word("a host name")?;
        let name = DnsName::parse(text)
            .map_err(|why| words.line.error(at, format!("`{text}` is no host name: {why}"), "write it as the policy does"))?;
        self.finish_name();
        if self.pins.names.contains_key(&name) {
            return Err(words.line.error(at, format!("`{name}` stands in the file twice"), "join the two blocks"));
        }
        let comments = std::mem::take(&mut self.comments);
        self.name = Some((name, NamePins { comments, ..NamePins::default() }));
        Ok(())
    }

    /// The block that a line belongs to. Comments before the line become the block's.
    fn block(&mut self, line: Line<'_>, at: usize, keyword: &str) -> Result<&mut NamePins, PinsError> {
        match &mut self.name {
            Some((_, pins)) => {
                pins.comments.append(&mut self.comments);
                Ok(pins)
            }
            None => Err(line.error(at, format!("`{keyword}` stands above the first name"), "put a `name` line before it")),
        }
    }

    fn end(&mut self, line: Line<'_>, words: &mut Words<'_>) -> Result<(), PinsError> {
        let (at, text) = words.word("the number of names")?;
        if let Some((_, pins)) = &mut self.name {
            pins.comments.append(&mut self.comments);
        }
        self.finish_name();
        self.ended = true;
        let there_are = self.pins.names.len();
        match text.parse::<usize>() {
            Ok(said) if said == there_are => Ok(()),
            Ok(said) => {
                let message = format!("the file says that it has {said} names, and it has {there_are}");
                Err(line.error(at, message, &format!("after an edit by hand write `end {there_are}`; otherwise {RESTORE}")))
            }
            Err(_) => Err(line.error(at, format!("`{text}` is no number of names"), &format!("write `end {there_are}`"))),
        }
    }

    fn finish_name(&mut self) {
        if let Some((name, pins)) = self.name.take() {
            self.pins.names.insert(name, pins);
        }
    }
}

/// One line of the file.
#[derive(Clone, Copy)]
struct Line<'text> {
    number: usize,
    text: &'text str,
}

impl Line<'_> {
    /// An error about what begins at this octet of the line.
    fn error(self, at: usize, message: String, help: &str) -> PinsError {
        let column = self.text.char_indices().take_while(|(index, _)| *index < at).count() + 1;
        PinsError { line: self.number, column, message, help: help.to_string() }
    }

    fn not_a_pins_file(self) -> PinsError {
        self.error(0, format!("the first line is not `{HEADER}`"), RESTORE)
    }

    fn after_the_end(self) -> PinsError {
        self.error(0, "there is text after the `end` line".to_string(), "move it above the `end` line, or remove it")
    }
}

/// The words of a line, each with the octet at which it begins.
struct Words<'text> {
    line: Line<'text>,
    /// Octets of the line that are read.
    at: usize,
}

impl<'text> Words<'text> {
    fn of(line: Line<'text>) -> Words<'text> {
        Words { line, at: 0 }
    }

    fn next_word(&mut self) -> Option<(usize, &'text str)> {
        let rest = self.line.text.get(self.at..)?;
        let word = rest.trim_start_matches(is_blank);
        let begin = self.at + rest.len() - word.len();
        let word = word.split(is_blank).next().filter(|word| !word.is_empty())?;
        self.at = begin + word.len();
        Some((begin, word))
    }

    fn word(&mut self, what: &str) -> Result<(usize, &'text str), PinsError> {
        self.next_word().ok_or_else(|| self.line.error(self.at, format!("{what} is missing"), RESTORE))
    }

    fn keyword(&mut self, expected: &str) -> Result<(), PinsError> {
        let (at, word) = self.word(&format!("`{expected}`"))?;
        if word == expected {
            return Ok(());
        }
        Err(self.line.error(at, format!("`{word}` stands where `{expected}` belongs"), ADDRESS_FORM))
    }

    fn time(&mut self, what: &str) -> Result<Timestamp, PinsError> {
        let (at, word) = self.word(what)?;
        // A time that RFC 3339 cannot write is printed as `@` and its seconds.
        let time = match word.strip_prefix('@') {
            Some(seconds) => seconds.parse().ok().map(Timestamp),
            None => Timestamp::parse(word),
        };
        time.ok_or_else(|| self.line.error(at, format!("`{word}` is no time"), "write it like `2026-11-24T03:52:00Z`"))
    }

    fn visible(&mut self, what: &str) -> Result<&'text str, PinsError> {
        let (at, word) = self.word(what)?;
        match word.chars().all(|c| c.is_ascii_graphic()) {
            true => Ok(word),
            false => Err(self.line.error(at, format!("{word:?} holds more than visible ASCII"), RESTORE)),
        }
    }

    fn address(&mut self) -> Result<(usize, IpAddr), PinsError> {
        let (at, word) = self.word("an address")?;
        match word.parse() {
            Ok(address) => Ok((at, address)),
            Err(_) => Err(self.line.error(at, format!("`{word}` is no address"), "write one IPv4 or IPv6 address, without a length")),
        }
    }

    /// The rest of an address line: the lease, and when it was last seen if the line says so.
    fn lease(&mut self) -> Result<(Lease, Option<Timestamp>), PinsError> {
        self.keyword("ttl")?;
        let (at, word) = self.word("a time to live")?;
        let ttl =
            word.parse().map_err(|_| self.line.error(at, format!("`{word}` is no time to live"), "write seconds, from 0 to 4294967295"))?;
        self.keyword("server")?;
        let server = self.visible("a server")?.to_string();
        self.keyword("first")?;
        let first_seen = self.time("the time it was first seen")?;
        let (at, word) = self.word("`expires`")?;
        let last = match word {
            "last" => {
                let last = self.time("the time it was last seen")?;
                self.keyword("expires")?;
                Some(last)
            }
            "expires" => None,
            other => return Err(self.line.error(at, format!("`{other}` stands where `last` or `expires` belongs"), ADDRESS_FORM)),
        };
        let expires = self.time("the time it expires")?;
        Ok((Lease { server, ttl, first_seen, last_seen: last.unwrap_or(first_seen), expires }, last))
    }

    fn nothing_more(&mut self) -> Result<(), PinsError> {
        match self.next_word() {
            None => Ok(()),
            Some((at, word)) => Err(self.line.error(at, format!("`{word}` is one word too many"), RESTORE)),
        }
    }
}

fn is_blank(c: char) -> bool {
    c == ' ' || c == '\t'
}

/// Whether a comment cannot hold this.
fn is_damage(c: char) -> bool {
    c.is_control() && c != '\t'
}
