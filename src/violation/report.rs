//! What was refused in a time, added up by who and where: the counts of the ledger, with what watch saw of the same.
//!
//! The kernel's count is the truth. What watch saw names the program and the name, and counts only where the ledger has nothing: where its
//! sets were full.

use std::collections::{BTreeMap, HashMap};

use crate::base::net::IpNet;
use crate::base::packet::Direction;
use crate::base::time::Timestamp;
use crate::violation::record::{Kind, KnownProcessLine, Line, ProcessLine};
use crate::violation::{Tuple, Who};

/// Into how many parts a time is divided to show when it was.
pub const PARTS: usize = 48;

/// For so many seconds the kernel may be late with its answer, and a record with what it tells of.
pub const MOMENT: i64 = 5;

/// What stands in place of a program that had ended before it could be looked at.
const GONE: &str = "gone";

/// A violation's program, in words.
pub fn program_words(program: &str) -> &str {
    if program == GONE { "a process that had ended" } else { program }
}

/// What is asked about.
#[derive(Debug, Clone, PartialEq)]
pub struct Question {
    /// From when on.
    pub since: Timestamp,
    /// Until when.
    pub until: Timestamp,
    /// Only packets of this user.
    pub uid: Option<u32>,
    /// Only packets to here.
    pub to: Option<Place>,
    /// Only packets that went this way.
    pub direction: Option<Direction>,
}

/// Where packets were to go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// Addresses of a network.
    Net(IpNet),
    /// Addresses that were those of a name.
    Name(String),
}

/// Who counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum CountedBy {
    /// The kernel: every packet.
    Kernel,
    /// Watch, which sees a part of many: the kernel's sets had no room for these.
    Watch,
}

/// Packets of one sender to one destination.
#[derive(Debug, Clone, PartialEq)]
pub struct Violation {
    /// Who and where.
    pub tuple: Tuple,
    /// How many packets.
    pub count: u64,
    /// How many of them came while the whole host was cut off.
    pub cut_off: u64,
    /// How many octets; unknown where watch counted.
    pub bytes: Option<u64>,
    /// Who counted them.
    pub counted_by: CountedBy,
    /// The first of them, as closely as it is known.
    pub first: Timestamp,
    /// The last of them, as closely as it is known.
    pub last: Timestamp,
    /// The name that the destination was a pin of.
    pub name: Option<String>,
    /// The user's name, as watch found it.
    pub user: Option<String>,
    /// The program that was seen last: its executable, or `gone`.
    pub process: Option<String>,
    /// The systemd unit or container that was seen last.
    pub service: Option<String>,
    /// The rule or default that refused them.
    pub rule: Option<String>,
}

/// The answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    /// From when on.
    pub since: Timestamp,
    /// Until when.
    pub until: Timestamp,
    /// All packets.
    pub total: u64,
    /// The worst first.
    pub violations: Vec<Violation>,
    /// Packets of a direction that were counted under no destination.
    pub overflow: BTreeMap<Direction, u64>,
    /// Packets that watch saw and told as a number only.
    pub other: u64,
    /// Records that watch did not get.
    pub lost: u64,
    /// Times of which the kernel's counts are not known: they began anew in between.
    pub unknown: Vec<(Timestamp, Timestamp)>,
    /// When somebody cut the host off, or let go, in the order of the book.
    pub cuts: Vec<(Timestamp, Cut)>,
    /// Records of refused packets that are later than what was asked about. Where that ends now, the clock was set back.
    pub later: u64,
    /// When the ledger was harvested last; `None`: never.
    pub harvested: Option<Timestamp>,
    /// Packets by time, in [`PARTS`] equal parts.
    pub by_time: Vec<u64>,
}

/// What somebody did to the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cut {
    /// Cut it off; the file with the evidence.
    Off(Option<String>),
    /// Let it go, or this user alone.
    Released(Option<u32>),
}

#[derive(Debug, Clone, Default)]
struct Row {
    packets: u64,
    bytes: u64,
    seen: u64,
    /// Of `packets` and of `seen`, how many came while the host was cut off.
    cut_off: (u64, u64),
    first: Option<Timestamp>,
    last: Option<Timestamp>,
    /// When what follows was seen.
    at: Option<Timestamp>,
    name: Option<String>,
    user: Option<String>,
    process: Option<String>,
    service: Option<String>,
    rule: Option<String>,
}

/// Adds up records.
#[derive(Debug)]
pub struct Gathering {
    question: Question,
    rows: HashMap<Tuple, Row>,
    overflow: BTreeMap<Direction, u64>,
    other: u64,
    lost: u64,
    unknown: Vec<(Timestamp, Timestamp)>,
    cuts: Vec<(Timestamp, Cut)>,
    /// From when to when the whole host was cut off, whether it was asked about or not; the last may last.
    cut_off: Vec<(Timestamp, Option<Timestamp>)>,
    later: u64,
    harvested: Option<Timestamp>,
    by_time: Vec<(u64, u64)>,
}

impl Gathering {
    /// Nothing yet.
    pub fn new(question: Question) -> Gathering {
        let rows = HashMap::new();
        let by_time = vec![(0, 0); PARTS];
        Gathering {
            question,
            rows,
            overflow: BTreeMap::new(),
            other: 0,
            lost: 0,
            unknown: Vec::new(),
            cuts: Vec::new(),
            cut_off: Vec::new(),
            later: 0,
            harvested: None,
            by_time,
        }
    }

    /// Adds a record of the book `ledger`.
    pub fn ledger(&mut self, line: &Line<'_>) {
        match &*line.kind {
            "count" => {
                let (Some(from), Some(to), Some(tuple), Some(packets)) = (line.from, line.to, line.tuple(), line.packets) else { return };
                self.count(from, to, tuple, packets, line.bytes.unwrap_or(0), line.last);
            }
            "overflow" => {
                let (Some(from), Some(to), Some(direction), Some(packets)) = (line.from, line.to, line.direction, line.packets) else {
                    return;
                };
                self.overflowed(from, to, direction, packets);
            }
            "began" => {
                if let Some(from) = line.from.filter(|from| self.meets(*from, line.at)) {
                    self.unknown.push((from, line.at));
                }
            }
            // Who asks about one user or place is told of the host all the same.
            "cut" | "release" => {
                match (&*line.kind, line.uid, self.cut_off.last_mut()) {
                    // One that was begun again had no end that was written down.
                    ("cut", _, Some((_, None))) => {}
                    // It is written down a moment after it is done.
                    ("cut", ..) => self.cut_off.push((Timestamp(line.at.0.saturating_sub(MOMENT)), None)),
                    (_, None, Some((_, end @ None))) => *end = Some(line.at),
                    _ => {}
                }
                if self.holds(line.at) {
                    let cut = match &*line.kind {
                        "cut" => Cut::Off(line.evidence.as_ref().map(ToString::to_string)),
                        _ => Cut::Released(line.uid),
                    };
                    self.cuts.push((line.at, cut));
                }
                return;
            }
            _ => {}
        }
        self.harvested = self.harvested.max(Some(line.at));
    }

    /// Adds what the kernel has counted since the last harvest.
    pub fn pending(&mut self, kind: &Kind) {
        match kind {
            Kind::Count(count) => {
                let (to, last) = (self.not_late(count.to), count.last.map(|last| self.not_late(last)));
                self.count(count.from, to, count.tuple.into(), count.packets, count.bytes, last);
            }
            Kind::Overflow(more) => self.overflowed(more.from, more.to, more.direction, more.packets),
            _ => {}
        }
    }

    /// The kernel is asked a moment after the question was, and times are whole seconds: what is late by so little is in time.
    fn not_late(&self, at: Timestamp) -> Timestamp {
        if (0..=MOMENT).contains(&(at.0 - self.question.until.0)) { self.question.until } else { at }
    }

    fn count(&mut self, from: Timestamp, to: Timestamp, tuple: Tuple, packets: u64, bytes: u64, last: Option<Timestamp>) {
        let last = last.unwrap_or(to).min(to);
        self.note_later(last);
        // The last packet of those that were counted together tells best when they came.
        if !self.holds(last) || !self.asks(&tuple) {
            return;
        }
        let cut_off = if self.was_cut_off(last) { packets } else { 0 };
        let row = self.rows.entry(tuple).or_default();
        row.packets = row.packets.saturating_add(packets);
        row.cut_off.0 = row.cut_off.0.saturating_add(cut_off);
        row.bytes = row.bytes.saturating_add(bytes);
        row.first = earlier(row.first, from.min(last).max(self.question.since));
        row.last = row.last.max(Some(last));
        self.in_time(last, packets, 0);
    }

    fn overflowed(&mut self, from: Timestamp, to: Timestamp, direction: Direction, packets: u64) {
        self.note_later(from);
        let is_asked =
            self.question.direction.is_none_or(|asked| asked == direction) && self.question.uid.is_none() && self.question.to.is_none();
        if is_asked && self.meets(from, to) {
            let sum = self.overflow.entry(direction).or_default();
            *sum = sum.saturating_add(packets);
            self.in_time(to, packets, 0);
        }
    }

    /// Adds a record of the book `watch`.
    pub fn watch(&mut self, line: &Line<'_>) {
        let count = line.count.unwrap_or(0);
        match &*line.kind {
            "seen" => self.seen(line, count),
            "other" if self.holds(line.at) => self.other = self.other.saturating_add(count),
            "lost" if self.holds(line.at) => self.lost = self.lost.saturating_add(count),
            _ => {}
        }
    }

    fn seen(&mut self, line: &Line<'_>, count: u64) {
        let (Some(tuple), Some(first), Some(last)) = (line.tuple(), line.first, line.last) else { return };
        self.note_later(first);
        if !self.meets(first, last) || !self.asks_of(&tuple, line.name.as_deref()) {
            return;
        }
        let cut_off = if self.was_cut_off(last) { count } else { 0 };
        let row = self.rows.entry(tuple).or_default();
        row.seen = row.seen.saturating_add(count);
        row.cut_off.1 = row.cut_off.1.saturating_add(cut_off);
        row.first = earlier(row.first, first);
        row.last = row.last.max(Some(last));
        if row.at <= Some(last) {
            row.at = Some(last);
            let keep = |slot: &mut Option<String>, found: Option<&str>| {
                // Most records say what the one before said.
                if let Some(found) = found.filter(|found| slot.as_deref() != Some(found)) {
                    *slot = Some(found.to_string());
                }
            };
            keep(&mut row.name, line.name.as_deref());
            keep(&mut row.user, line.user.as_deref());
            keep(&mut row.service, line.service.as_deref());
            keep(&mut row.rule, line.rule.as_deref());
            match &line.process {
                Some(ProcessLine::Known(KnownProcessLine { executable, .. })) => keep(&mut row.process, Some(executable)),
                Some(ProcessLine::Gone) if row.process.is_none() => keep(&mut row.process, Some(GONE)),
                _ => {}
            }
        }
        self.in_time(last, 0, count);
    }

    /// The report. `name` says which name an address was a pin of, where watch did not see it.
    pub fn finish(self, name: impl Fn(&Tuple) -> Option<String>) -> Report {
        let Question { since, until, .. } = self.question;
        let place = self.question.to.clone();
        let violation = |(tuple, row): (Tuple, Row)| {
            let (count, cut_off, bytes, counted_by) = match row.packets {
                0 => (row.seen, row.cut_off.1, None, CountedBy::Watch),
                packets => (packets, row.cut_off.0, Some(row.bytes), CountedBy::Kernel),
            };
            let (first, last) = (row.first.unwrap_or(since), row.last.unwrap_or(until));
            let (name, user) = (row.name.or_else(|| name(&tuple)), row.user);
            Violation {
                tuple,
                count,
                cut_off,
                bytes,
                counted_by,
                first,
                last,
                name,
                user,
                process: row.process,
                service: row.service,
                rule: row.rule,
            }
        };
        let is_meant = |violation: &Violation| match &place {
            Some(Place::Name(name)) => violation.name.as_ref() == Some(name),
            _ => true,
        };
        let mut violations: Vec<Violation> =
            self.rows.into_iter().map(violation).filter(|found| found.count > 0 && is_meant(found)).collect();
        violations.sort_unstable_by_key(|violation| (std::cmp::Reverse(violation.count), violation.tuple));
        let has_ledger = violations.iter().any(|violation| violation.counted_by == CountedBy::Kernel) || !self.overflow.is_empty();
        // What watch saw and the ledger has no room for is part of the overflow, and not counted twice.
        let by_watch: u64 = violations.iter().filter(|found| found.counted_by == CountedBy::Watch).map(|found| found.count).sum();
        let by_kernel: u64 = violations.iter().filter(|found| found.counted_by == CountedBy::Kernel).map(|found| found.count).sum();
        let total = by_kernel.saturating_add(self.overflow.values().sum::<u64>().max(by_watch));
        Report {
            since,
            until,
            total,
            violations,
            overflow: self.overflow,
            other: self.other,
            lost: self.lost,
            unknown: self.unknown,
            cuts: self.cuts,
            later: self.later,
            harvested: self.harvested,
            by_time: self.by_time.into_iter().map(|(kernel, watch)| if has_ledger { kernel } else { watch }).collect(),
        }
    }

    fn in_time(&mut self, at: Timestamp, kernel: u64, watch: u64) {
        let whole = (self.question.until.0 - self.question.since.0).max(1) as u128;
        let part = (at.0 - self.question.since.0).max(0) as u128 * PARTS as u128 / whole;
        if let Some(sums) = self.by_time.get_mut((part as usize).min(PARTS - 1)) {
            *sums = (sums.0.saturating_add(kernel), sums.1.saturating_add(watch));
        }
    }

    fn note_later(&mut self, at: Timestamp) {
        self.later += u64::from(at.0.saturating_sub(self.question.until.0) > MOMENT);
    }

    /// Whether the whole host was cut off at this time, as far as the book has been read.
    fn was_cut_off(&self, at: Timestamp) -> bool {
        self.cut_off.iter().any(|(from, to)| *from <= at && to.is_none_or(|to| at <= to))
    }

    fn holds(&self, at: Timestamp) -> bool {
        (self.question.since..=self.question.until).contains(&at)
    }

    fn meets(&self, from: Timestamp, to: Timestamp) -> bool {
        from <= self.question.until && to >= self.question.since
    }

    fn asks(&self, tuple: &Tuple) -> bool {
        let is_user = self.question.uid.is_none_or(|uid| tuple.who == Who::User(uid));
        let is_place = match &self.question.to {
            Some(Place::Net(net)) => tuple.destination.is_some_and(|address| net.contains(&address)),
            // Names are told at the end.
            Some(Place::Name(_)) => tuple.destination.is_some(),
            None => true,
        };
        is_user && is_place && self.question.direction.is_none_or(|direction| tuple.direction == direction)
    }

    fn asks_of(&self, tuple: &Tuple, name: Option<&str>) -> bool {
        self.asks(tuple) && !matches!((&self.question.to, name), (Some(Place::Name(asked)), Some(name)) if asked != name)
    }
}

fn earlier(known: Option<Timestamp>, other: Timestamp) -> Option<Timestamp> {
    Some(known.map_or(other, |known| known.min(other)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::net::Protocol;
    use crate::violation::book::{self, Head, Lines};
    use crate::violation::record::{Count, Overflow, Process, Seen};

    const START: i64 = 1_700_000_000;

    fn at(second: i64) -> Timestamp {
        Timestamp(START + second)
    }

    fn question() -> Question {
        Question { since: at(0), until: at(4800), uid: None, to: None, direction: None }
    }

    fn out(uid: u32, address: &str, port: u16) -> Tuple {
        let destination = Some(address.parse().unwrap());
        Tuple { direction: Direction::Out, who: Who::User(uid), destination, protocol: Protocol::TCP, port: Some(port) }
    }

    fn count(from: i64, to: i64, tuple: Tuple, packets: u64) -> Kind {
        Kind::Count(Count { from: at(from), to: at(to), tuple: tuple.into(), packets, bytes: packets * 60, last: None, anew: false })
    }

    fn seen(second: i64, tuple: Tuple, count: u64, name: Option<&str>, process: Option<Process>) -> Kind {
        let Who::User(uid) = tuple.who else { panic!("only users here") };
        Kind::Seen(Box::new(Seen {
            first: at(second),
            last: at(second + 1),
            count,
            direction: tuple.direction,
            protocol: tuple.protocol,
            source: "192.0.2.1".parse().unwrap(),
            source_port: Some(50_000),
            destination: tuple.destination.unwrap(),
            port: tuple.port,
            name: name.map(str::to_string),
            uid: Some(uid),
            user: Some(format!("user{uid}")),
            process,
            service: None,
            rule: "refuse-out".to_string(),
            line: None,
        }))
    }

    /// The report of books with these records.
    fn report(question: Question, ledger: &[Kind], watch: &[Kind]) -> Report {
        let mut gathering = Gathering::new(question);
        let (octets, _) = book::append(&Head::default(), at(5000), ledger);
        Lines::new(octets.as_slice()).records(|line| gathering.ledger(&line)).unwrap();
        let (octets, _) = book::append(&Head::default(), at(100), watch);
        Lines::new(octets.as_slice()).records(|line| gathering.watch(&line)).unwrap();
        gathering.finish(|_| None)
    }

    fn counts(report: &Report) -> Vec<(Option<u16>, u64, CountedBy)> {
        report.violations.iter().map(|violation| (violation.tuple.port, violation.count, violation.counted_by)).collect()
    }

    #[test]
    fn the_kernel_counts_and_watch_names_and_the_worst_is_first() {
        let (few, many) = (out(7, "198.51.100.1", 25), out(7, "198.51.100.1", 80));
        let known = Process::Known(crate::violation::record::KnownProcess {
            pid: 1,
            executable: "/usr/bin/curl".to_string(),
            command: String::new(),
            parent: None,
        });
        let ledger = [count(0, 60, few, 3), count(0, 60, many, 100), count(60, 120, many, 20)];
        let report = report(question(), &ledger, &[seen(30, many, 5, Some("a.example.com"), Some(known))]);
        assert_eq!(counts(&report), [(Some(80), 120, CountedBy::Kernel), (Some(25), 3, CountedBy::Kernel)]);
        assert_eq!(report.total, 123);
        let worst = &report.violations[0];
        assert_eq!(worst.name.as_deref(), Some("a.example.com"));
        assert_eq!((worst.process.as_deref(), worst.user.as_deref()), (Some("/usr/bin/curl"), Some("user7")));
        assert_eq!((worst.first, worst.last), (at(0), at(120)));
    }

    #[test]
    fn what_only_watch_saw_is_part_of_the_overflow_and_not_counted_twice() {
        let (counted, seen_only) = (out(7, "198.51.100.1", 25), out(7, "198.51.100.1", 80));
        let more = Kind::Overflow(Overflow { from: at(0), to: at(60), direction: Direction::Out, packets: 50, bytes: 3000 });
        let report = report(question(), &[count(0, 60, counted, 3), more], &[seen(30, seen_only, 5, None, None)]);
        assert_eq!(counts(&report), [(Some(80), 5, CountedBy::Watch), (Some(25), 3, CountedBy::Kernel)]);
        assert_eq!((report.total, report.overflow.get(&Direction::Out)), (53, Some(&50)));
    }

    #[test]
    fn only_what_is_asked_about_is_told() {
        let ledger = [
            count(-200, -100, out(7, "198.51.100.1", 1), 1),
            count(0, 60, out(7, "198.51.100.1", 2), 2),
            count(0, 60, out(8, "203.0.113.1", 3), 3),
            count(4700, 4900, out(7, "198.51.100.1", 4), 4),
        ];
        let ports = |question: Question| -> Vec<u16> {
            let mut ports: Vec<u16> = report(question, &ledger, &[]).violations.iter().filter_map(|found| found.tuple.port).collect();
            ports.sort_unstable();
            ports
        };
        assert_eq!(ports(question()), [2, 3], "neither before nor after");
        assert_eq!(ports(Question { uid: Some(8), ..question() }), [3]);
        assert_eq!(ports(Question { to: Some(Place::Net("198.51.100.0/24".parse().unwrap())), ..question() }), [2]);
        assert_eq!(ports(Question { to: Some(Place::Name("other.example.com".to_string())), ..question() }), [0u16; 0]);
        assert_eq!(ports(Question { direction: Some(Direction::In), ..question() }), [0u16; 0]);
    }

    #[test]
    fn records_that_are_later_than_the_end_are_counted() {
        let tuple = out(7, "198.51.100.1", 25);
        let late = Kind::Overflow(Overflow { from: at(9000), to: at(9060), direction: Direction::Out, packets: 1, bytes: 60 });
        let ledger = [count(4700, 4760, tuple, 2), count(4780, 4804, tuple, 1), count(8000, 8060, tuple, 4), late];
        let report = report(question(), &ledger, &[seen(100, tuple, 2, None, None), seen(8000, tuple, 5, None, None)]);
        assert_eq!((report.total, report.later), (2, 3), "a moment is no later");
    }

    #[test]
    fn what_came_while_the_host_was_cut_off_is_told_apart() {
        let tuple = out(7, "198.51.100.1", 25);
        let mut gathering = Gathering::new(question());
        // Each record with the time at which it was written: the cut is older than what is asked about, and a user who is let go is not it.
        let records = [
            (-60, Kind::Cut { evidence: None }),
            (60, count(0, 60, tuple, 1)),
            (70, Kind::Release { uid: Some(7) }),
            (120, count(60, 110, tuple, 2)),
            (130, Kind::Release { uid: None }),
            (140, count(110, 125, tuple, 4)),
            (200, count(131, 200, tuple, 8)),
            (300, Kind::Cut { evidence: None }),
            (310, count(200, 297, tuple, 32)),
        ];
        for (second, kind) in records {
            let (octets, _) = book::append(&Head::default(), at(second), &[kind]);
            Lines::new(octets.as_slice()).records(|line| gathering.ledger(&line)).unwrap();
        }
        gathering.pending(&count(290, 400, tuple, 16));
        let (octets, _) = book::append(&Head::default(), at(100), &[seen(100, out(8, "198.51.100.1", 80), 5, None, None)]);
        Lines::new(octets.as_slice()).records(|line| gathering.watch(&line)).unwrap();
        let report = gathering.finish(|_| None);
        let of: Vec<_> = report.violations.iter().map(|violation| (violation.count, violation.cut_off)).collect();
        assert_eq!(of, [(63, 1 + 2 + 4 + 16 + 32), (5, 5)]);
    }

    #[test]
    fn what_the_kernel_tells_a_second_after_the_question_is_part_of_the_answer() {
        let mut gathering = Gathering::new(Question { until: at(60), ..question() });
        let Kind::Count(late) = count(0, 61, out(7, "198.51.100.1", 25), 5) else { panic!("it is a count") };
        gathering.pending(&Kind::Count(Count { last: Some(at(61)), ..late }));
        gathering.pending(&count(0, 600, out(7, "198.51.100.1", 25), 7));
        assert_eq!(gathering.finish(|_| None).total, 5, "and what came later is not");
    }

    #[test]
    fn records_in_any_order_and_clocks_set_back_are_added_up_alike() {
        let tuple = out(7, "198.51.100.1", 25);
        let mut ledger = vec![count(60, 120, tuple, 2), count(0, 60, tuple, 1), count(120, 30, tuple, 4)];
        let before = report(question(), &ledger, &[]);
        ledger.reverse();
        let after = report(question(), &ledger, &[]);
        assert_eq!((before.total, &before.violations, &before.by_time), (7, &after.violations, &after.by_time));
    }
}
