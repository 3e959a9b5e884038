//! How a record is written for people: one line, the same columns for the plain list and for the table on a terminal.
//!
//! Whatever comes from outside is made harmless here once more: a book that is followed may hold anything.

use std::net::IpAddr;

use crate::base::packet::Direction;
use crate::base::time::Timestamp;
use crate::violation::attribute::inert;
use crate::violation::record::{Kind, Process, Seen};

/// The schema of a line of `watch --json`.
pub const SCHEMA: &str = "egressguard.watch/1";

/// Widths of the columns of the list; the last, who, takes what is left.
const WHERE: usize = 40;
const RULE: usize = 14;
/// The longest port with the colon before it.
const PORT: usize = 6;

/// A record as one line of JSON.
pub fn json(kind: &Kind, at: Timestamp) -> String {
    // A kind is an object with at least its own name in it.
    let kind = serde_json::to_string(kind).unwrap_or_else(|_| "{\"kind\":\"unknown\"}".to_string());
    format!("{{\"schema\":\"{SCHEMA}\",\"at\":\"{at}\",{}", kind.get(1..).unwrap_or("}"))
}

/// The line above the list.
pub fn heading() -> String {
    format!("{:<8}  {:<3}  {:<5}  {:<WHERE$}  {:>6}  {:<RULE$}  who", "time", "way", "proto", "where", "count", "rule")
}

/// A record as a line of the list; nothing for those that say nothing to people.
pub fn line(kind: &Kind, at: Timestamp) -> Option<String> {
    let time = clock(at);
    Some(match kind {
        Kind::Seen(seen) => format!(
            "{time}  {:<3}  {:<5}  {:<WHERE$}  {:>6}  {:<RULE$}  {}",
            way(seen.direction),
            seen.protocol.to_string(),
            fit_place(&place(seen), WHERE),
            seen.count,
            fit(&inert(seen.rule.as_bytes(), 63), RULE),
            who(seen),
        ),
        Kind::Lost { count } => {
            format!("{time}  {count} packets were logged faster than they were read, and are not shown; `egressguard report` has them")
        }
        Kind::Other { count } => format!("{time}  {count} more packets, of too many senders and destinations to be shown"),
        Kind::Alert { count, outcome } => format!("{time}  alert for {count}: {}", inert(outcome.as_bytes(), 100)),
        _ => return None,
    })
}

/// The time of the day, in UTC.
pub fn clock(at: Timestamp) -> String {
    let text = at.to_string();
    text.get(11..19).map_or(text.clone(), str::to_string)
}

/// The direction in at most three letters.
pub fn way(direction: Direction) -> &'static str {
    match direction {
        Direction::Out => "out",
        Direction::In => "in",
        Direction::Forward => "fwd",
    }
}

/// What was tried: the destination and its name; for what comes in, where it comes from and the port here.
pub fn place(seen: &Seen) -> String {
    let port = seen.port.map(|port| port.to_string());
    if seen.direction == Direction::In {
        return match port {
            Some(port) => format!("{} to :{port}", seen.source),
            None => seen.source.to_string(),
        };
    }
    let address = match (seen.destination, &port) {
        (IpAddr::V6(address), Some(port)) => format!("[{address}]:{port}"),
        (address, Some(port)) => format!("{address}:{port}"),
        (address, None) => address.to_string(),
    };
    match &seen.name {
        Some(name) => format!("{} {address}", inert(name.as_bytes(), 253)),
        None => address,
    }
}

/// Who it was, as far as it is known.
pub fn who(seen: &Seen) -> String {
    let mut words = Vec::new();
    match seen.direction {
        Direction::In => return String::new(),
        Direction::Forward => words.push(seen.source.to_string()),
        Direction::Out => words.push(match (&seen.user, seen.uid) {
            (Some(user), _) => inert(user.as_bytes(), 32),
            (None, Some(uid)) => format!("uid {uid}"),
            (None, None) => "the kernel".to_string(),
        }),
    }
    words.extend(seen.service.as_ref().map(|service| inert(service.as_bytes(), 64)));
    match &seen.process {
        Some(Process::Known(process)) => {
            let name = process.executable.rsplit('/').next().unwrap_or(&process.executable);
            words.push(format!("{}({})", inert(name.as_bytes(), 32), process.pid));
        }
        Some(Process::Gone) => words.push("(gone)".to_string()),
        None => {}
    }
    words.join(" ")
}

/// The text in at most so many characters, with a mark where something is missing.
pub fn fit(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        return text.to_string();
    }
    let kept: String = text.chars().take(most.saturating_sub(1)).collect();
    format!("{kept}…")
}

/// A place in at most so many characters, with a mark where something is missing: the port at its end stays, and as much of the address before
/// it as there is room for when the name has its third.
pub fn fit_place(place: &str, most: usize) -> String {
    let characters: Vec<char> = place.chars().collect();
    if characters.len() <= most {
        return place.to_string();
    }
    let room = most.saturating_sub(1);
    let end = (room * 2 / 3).max(PORT).min(room);
    let (head, tail) = (&characters[..room - end], &characters[characters.len() - end..]);
    head.iter().chain(&['…']).chain(tail).take(most).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::net::Protocol;
    use crate::violation::record::KnownProcess;

    pub fn seen() -> Seen {
        let process = KnownProcess { pid: 4711, executable: "/usr/bin/curl".into(), command: "curl x".into(), parent: None };
        Seen {
            first: Timestamp(1_795_492_320),
            last: Timestamp(1_795_492_321),
            count: 12,
            direction: Direction::Out,
            protocol: Protocol::TCP,
            source: "203.0.113.10".parse().unwrap(),
            source_port: Some(40_000),
            destination: "198.51.100.66".parse().unwrap(),
            port: Some(443),
            name: None,
            uid: Some(1000),
            user: Some("backend".into()),
            process: Some(Process::Known(process)),
            service: Some("api.service".into()),
            rule: "refuse-out".into(),
            line: None,
        }
    }

    #[test]
    fn a_line_says_when_where_how_often_why_and_who_under_its_heading() {
        let line = line(&Kind::Seen(Box::new(seen())), Timestamp(1_795_492_320)).unwrap();
        let words: Vec<&str> = line.split_whitespace().collect();
        assert_eq!(words, ["03:52:00", "out", "tcp", "198.51.100.66:443", "12", "refuse-out", "backend", "api.service", "curl(4711)"]);
        for (heading_word, word) in [("where", "198."), ("rule", "refuse"), ("who", "backend")] {
            assert_eq!(heading().find(heading_word), line.find(word), "{line}");
        }
        let longest =
            Seen { process: None, service: None, destination: "2001:db8:ffff:ffff:ffff:ffff:ffff:ffff".parse().unwrap(), ..seen() };
        assert!(super::line(&Kind::Seen(Box::new(longest)), Timestamp(0)).unwrap().chars().count() <= 100);
    }

    #[test]
    fn nothing_in_a_record_moves_the_cursor_or_ends_the_line() {
        let evil = "\x1b[2J\n\u{9b}31m\u{202e}<b>\r";
        let process = KnownProcess { pid: 1, executable: evil.into(), command: evil.into(), parent: Some(evil.into()) };
        let seen = Seen {
            name: Some(evil.into()),
            user: Some(evil.into()),
            service: Some(evil.into()),
            rule: evil.into(),
            process: Some(Process::Known(process)),
            ..seen()
        };
        let kind = Kind::Seen(Box::new(seen));
        let obeyed = |c: char| c.is_control() || c == '\u{202e}';
        let line = line(&kind, Timestamp(0)).unwrap();
        assert!(!line.contains(obeyed), "{line}");
        let json = json(&kind, Timestamp(0));
        assert_eq!(json.lines().count(), 1, "one object, one line");
        let read: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!((&read["schema"], &read["process"]["command"]), (&SCHEMA.into(), &evil.into()));
    }

    #[test]
    fn a_place_that_is_too_long_keeps_its_port() {
        let name = "a-very-long-name.of-a-very-long-domain.example";
        let v6 = "2001:db8:ffff:ffff:ffff:ffff:ffff:ffff";
        assert_eq!(fit_place("192.0.2.1:443", 13), "192.0.2.1:443");
        assert_eq!(fit_place(&format!("{name} 198.51.100.66:65535"), 40), "a-very-long-n…xample 198.51.100.66:65535");
        for place in [format!("{name} [{v6}]:65535"), format!("[{v6}]:65535"), format!("{v6} to :65535"), format!("{name} 192.0.2.1:65535")]
        {
            for most in 0..100 {
                let fitted = fit_place(&place, most);
                assert!(fitted.chars().count() <= most, "{fitted}");
                assert!(most < 7 || fitted.ends_with(":65535"), "{most}: {fitted}");
            }
        }
    }
}
