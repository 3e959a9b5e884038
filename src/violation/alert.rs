//! When the policy's alert program is run, and what it is told: never more often than the policy says, and what came in between is
//! told as a number with the next. Pure; the time is an argument.

use std::time::Duration;

use serde_json::{Value, json};

use crate::base::time::Timestamp;
use crate::violation::record::{Kind, Seen};

/// The schema of what the program reads.
pub const SCHEMA: &str = "egressguard.alert/1";

/// What a run that ended well came to, in words.
pub const DONE: &str = "ended well";

/// Violations that the program is still to be told of.
#[derive(Debug, Default)]
pub struct Gate {
    /// When it was last run, on the clock that nobody sets.
    last: Option<Duration>,
    /// The violation that is told next: the first since the last run.
    next: Option<Box<Seen>>,
    /// How many packets are told with it.
    packets: u64,
    /// How many records came after it.
    more: u64,
}

/// One run of the program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    /// What it reads: one JSON object on one line.
    pub input: String,
    /// For how many records.
    pub count: u64,
}

impl Gate {
    /// Notes a violation.
    pub fn note(&mut self, seen: &Seen) {
        self.packets += seen.count;
        match self.next {
            None => self.next = Some(Box::new(seen.clone())),
            Some(_) => self.more += 1,
        }
    }

    /// What the program is to be told now; nothing when there is nothing, or it was run less than `every` ago.
    pub fn due(&mut self, passed: Duration, every: Duration, at: Timestamp) -> Option<Told> {
        if self.last.is_some_and(|last| passed.saturating_sub(last) < every) {
            return None;
        }
        let seen = self.next.take()?;
        let (more, packets) = (std::mem::take(&mut self.more), std::mem::take(&mut self.packets));
        self.last = Some(passed);
        let mut told = json!({"schema": SCHEMA, "at": at.to_string(), "more": more, "packets": packets});
        // A record is an object of its own fields.
        if let (Value::Object(told), Ok(Value::Object(record))) = (&mut told, serde_json::to_value(Kind::Seen(seen))) {
            told.extend(record);
        }
        Some(Told { input: format!("{told}\n"), count: more + 1 })
    }

    /// When [`Gate::due`] may say something; nothing as long as there is nothing to tell.
    pub fn next_due(&self, every: Duration) -> Option<Duration> {
        self.next.as_ref().map(|_| self.last.map_or(Duration::ZERO, |last| last + every))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::net::Protocol;
    use crate::base::packet::Direction;

    const MINUTE: Duration = Duration::from_secs(60);

    fn seen(port: u16) -> Seen {
        Seen {
            first: Timestamp(0),
            last: Timestamp(0),
            count: 3,
            direction: Direction::Out,
            protocol: Protocol::TCP,
            source: "203.0.113.10".parse().unwrap(),
            source_port: None,
            destination: "198.51.100.66".parse().unwrap(),
            port: Some(port),
            name: None,
            uid: Some(1000),
            user: None,
            process: None,
            service: None,
            rule: "refuse-out".into(),
            line: None,
        }
    }

    #[test]
    fn the_program_is_run_at_once_then_never_more_often_than_said_and_learns_what_came_between() {
        let mut gate = Gate::default();
        let due = |gate: &mut Gate, seconds: u64| gate.due(Duration::from_secs(seconds), MINUTE, Timestamp(0));
        assert_eq!((due(&mut gate, 0), gate.next_due(MINUTE)), (None, None));
        gate.note(&seen(1));
        let first = due(&mut gate, 5).unwrap();
        let value: Value = serde_json::from_str(&first.input).unwrap();
        assert_eq!(
            (&value["schema"], &value["port"], &value["more"], &value["packets"]),
            (&json!(SCHEMA), &json!(1), &json!(0), &json!(3))
        );
        assert_eq!((&value["kind"], first.input.lines().count(), first.count), (&json!("seen"), 1, 1));
        for port in 2..100 {
            gate.note(&seen(port));
            assert_eq!(due(&mut gate, 6), None);
        }
        assert_eq!(gate.next_due(MINUTE), Some(Duration::from_secs(65)));
        assert_eq!(due(&mut gate, 64), None);
        let second = due(&mut gate, 65).unwrap();
        let value: Value = serde_json::from_str(&second.input).unwrap();
        assert_eq!((&value["port"], &value["more"], &value["packets"], second.count), (&json!(2), &json!(97), &json!(294), 98));
        assert_eq!(due(&mut gate, 1000), None, "nothing is told twice");
    }
}
