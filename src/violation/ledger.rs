//! What the kernel counted since it was read last: each packet once.
//!
//! The kernel counts by itself, in sets that rules fill ([`crate::ruleset::compile::refuse`]). A harvest reads them, takes away what the
//! harvests before have found, and writes the difference into the book `ledger`. What was read is the baseline of the next harvest.
//!
//! # Once, whatever dies in between
//!
//! Records are written first and the baseline after them. A baseline names the last record that it knows; what the book holds beyond
//! that was written by a harvest that died, and is added to the baseline again before anything else ([`Baseline::replay`]): every record says
//! how much it counted. So records that were written are never written again, those that were not are found by the next harvest, and a
//! baseline that was lost is made of the book. The handles of table and sets, which no other table or set has had in this boot, say
//! whether the counts are still those that the baseline knows.
//!
//! # What is not known
//!
//! An element that no packet has renewed for 24 hours is forgotten by the kernel, and its next packet counts from 1. That is told by a
//! count that is lower, or that is the same while its last packet is another one. Where it has counted more since than before, within the
//! time between two harvests, only the difference is found under its destination. The rest becomes part of `overflow`, for the total of a
//! direction is not forgotten.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

use crate::base::net::Protocol;
use crate::base::packet::Direction;
use crate::base::time::Timestamp;
use crate::ruleset::compile::refuse::{LEDGER_LIVES, Ledger};
use crate::ruleset::program::{CountingSet, Counts, Element, KeyType};
use crate::violation::record::{Began, Count, Kind, Line, Overflow};
use crate::violation::{Tuple, Who};

/// Two readings of the same moment may differ by so many seconds.
const SLACK: u64 = 3;

/// A moment by both clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    /// What the wall clock shows.
    pub wall: Timestamp,
    /// For how many seconds of this boot the machine was awake: the clock that the kernel's timeouts go by.
    pub awake: u64,
}

/// What the kernel had counted when it was read last.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Baseline {
    /// Which boot and network namespace; `None` as long as nothing is known.
    place: Option<String>,
    /// The handle of the table.
    table: u64,
    /// The handles of its sets; one that is not known is taken for the same.
    sets: BTreeMap<String, u64>,
    /// When that was.
    at: Option<Timestamp>,
    /// The last record of the book that it knows.
    seq: u64,
    /// All packets of each direction.
    totals: BTreeMap<Direction, Before>,
    /// By who and where.
    each: HashMap<Tuple, Before>,
    /// What was counted of each direction and is in no record yet. Below nothing where more was recorded, because a set was read after
    /// the total.
    owed: BTreeMap<Direction, Owed>,
    /// Whether some elements were not told: then nothing can be said of what is missing.
    partial: bool,
    /// Whether it was made of the book, which does not tell whether totals began anew.
    rebuilt: bool,
}

/// What one element had counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Before {
    packets: u64,
    bytes: u64,
    /// When its last packet came, in seconds that the machine was awake.
    last: Option<u64>,
}

/// Packets and octets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Owed {
    packets: i128,
    bytes: i128,
}

impl Owed {
    fn add(&mut self, packets: u64, bytes: u64) {
        self.packets += i128::from(packets);
        self.bytes += i128::from(bytes);
    }

    fn take(&mut self, packets: u64, bytes: u64) {
        self.packets -= i128::from(packets);
        self.bytes -= i128::from(bytes);
    }
}

/// What an element has counted since.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct More {
    packets: u64,
    bytes: u64,
    anew: bool,
}

/// What a harvest found.
#[derive(Debug, Clone, PartialEq)]
pub struct Harvest {
    /// What is to be written.
    pub kinds: Vec<Kind>,
    /// What is known once it is written, except for the number of the last record.
    pub baseline: Baseline,
}

impl Baseline {
    /// When the kernel was read last.
    pub fn at(&self) -> Option<Timestamp> {
        self.at
    }

    /// The last record of the book that it knows.
    pub fn seq(&self) -> u64 {
        self.seq
    }

    /// The same, knowing the book up to this record.
    pub fn knowing(self, seq: u64) -> Baseline {
        Baseline { seq, ..self }
    }

    /// The same, with a later time of the last reading, which found nothing.
    pub fn read_at(self, at: Timestamp) -> Baseline {
        Baseline { at: Some(at), ..self }
    }

    /// The baseline before the first record of a book, to be made of all of them.
    pub fn of_a_book() -> Baseline {
        Baseline { rebuilt: true, ..Baseline::default() }
    }

    /// Adds a record that the baseline does not know yet.
    pub fn replay(&mut self, line: &Line<'_>) {
        if line.seq <= self.seq {
            return;
        }
        self.seq = line.seq;
        match line.kind() {
            Some(Kind::Began(Began { from, place, table })) => {
                let (seq, rebuilt) = (self.seq, self.rebuilt);
                *self = Baseline { place: Some(place), table, at: from, seq, rebuilt, ..Baseline::default() };
            }
            Some(Kind::Count(Count { to, tuple, packets, bytes, anew, .. })) => {
                let tuple = Tuple::from(tuple);
                let before = self.each.entry(tuple).or_default();
                let (packets_before, bytes_before) = if anew { (0, 0) } else { (before.packets, before.bytes) };
                let (now, more) = (packets_before.saturating_add(packets), bytes_before.saturating_add(bytes));
                *before = Before { packets: now, bytes: more, last: None };
                self.owed.entry(tuple.direction).or_default().take(packets, bytes);
                self.at = Some(to);
            }
            Some(Kind::Overflow(Overflow { to, direction, packets, bytes, .. })) => {
                self.owed.entry(direction).or_default().take(packets, bytes);
                self.at = Some(to);
            }
            _ => {}
        }
    }

    /// Whether the totals alone show that nothing was counted since. `totals` are the sets whose names begin with
    /// [`LEDGER_ALL`](crate::ruleset::compile::refuse::LEDGER_ALL).
    pub fn is_up_to_date(&self, totals: &Counts, place: &str, now: Moment) -> bool {
        let directions = totals.sets.iter().filter(|set| matches!(Ledger::of_set(&set.def.name), Some(Ledger::All(_)))).count();
        let same = |set: &CountingSet| {
            let Some(Ledger::All(direction)) = Ledger::of_set(&set.def.name) else { return true };
            let before = self.totals.get(&direction).copied();
            self.sets.get(&set.def.name) == Some(&set.handle)
                && set.whole
                && set.elements.values().all(|element| before.is_some() && more(before, element, now).is_none())
        };
        let is_known = self.place.as_deref() == Some(place) && self.table == totals.table && !self.partial && !self.rebuilt;
        is_known && directions == 3 && totals.sets.iter().all(same)
    }

    /// What these counts say beyond this baseline.
    pub fn harvest(&self, counts: &Counts, place: &str, now: Moment) -> Harvest {
        let is_same = self.place.as_deref().is_none_or(|known| known == place) && (self.place.is_none() || self.table == counts.table);
        // A book whose beginning is gone does not say where its counts are from: they are taken to be from here, lest they count twice.
        let known_here = is_same && (self.place.is_some() || !self.each.is_empty());
        let mut kinds = Vec::new();
        let mut next = Baseline {
            place: Some(place.to_string()),
            table: counts.table,
            at: Some(now.wall),
            seq: self.seq,
            owed: if known_here { self.owed.clone() } else { BTreeMap::new() },
            ..Baseline::default()
        };
        if !known_here {
            kinds.push(Kind::Began(Began { from: self.at, place: place.to_string(), table: counts.table }));
        }
        let from = self.at.filter(|_| known_here).unwrap_or(now.wall);
        let mut incomplete: Vec<Direction> = Vec::new();
        for set in &counts.sets {
            let Some(ledger) = Ledger::of_set(&set.def.name) else { continue };
            next.sets.insert(set.def.name.clone(), set.handle);
            let is_same_set = known_here && self.sets.get(&set.def.name).is_none_or(|handle| *handle == set.handle);
            let (Ledger::All(direction) | Ledger::Each(direction)) = ledger;
            if !set.whole {
                incomplete.push(direction);
            }
            for (key, element) in &set.elements {
                let seen = Before::of(element, now);
                if let Ledger::All(direction) = ledger {
                    let before = self.totals.get(&direction).filter(|_| is_same_set).copied();
                    let more = more(before, element, now).unwrap_or(More { packets: 0, bytes: 0, anew: false });
                    next.owed.entry(direction).or_default().add(more.packets, more.bytes);
                    next.totals.insert(direction, seen);
                    continue;
                }
                let Some(tuple) = tuple_of(direction, &set.def.key, key) else { continue };
                let known = self.each.get(&tuple).filter(|_| known_here).copied();
                let before = known.filter(|_| is_same_set);
                if let Some(More { packets, bytes, anew }) = more(before, element, now) {
                    let anew = anew || (known.is_some() && before.is_none());
                    let last = seen.last.map(|last| now.before(last));
                    next.owed.entry(direction).or_default().take(packets, bytes);
                    kinds.push(Kind::Count(Count { from, to: now.wall, tuple: tuple.into(), packets, bytes, last, anew }));
                }
                next.each.insert(tuple, seen);
            }
        }
        next.partial = !incomplete.is_empty();
        if next.partial && known_here {
            // What was not told is there still, as far as is known.
            for (tuple, before) in &self.each {
                next.each.entry(*tuple).or_insert(*before);
            }
        }
        for (direction, owed) in &mut next.owed {
            if self.rebuilt {
                owed.packets = owed.packets.max(0);
                owed.bytes = owed.bytes.max(0);
            }
            let (Ok(packets @ 1..), false) = (u64::try_from(owed.packets), incomplete.contains(direction)) else { continue };
            let bytes = u64::try_from(owed.bytes).unwrap_or(0);
            owed.take(packets, bytes);
            kinds.push(Kind::Overflow(Overflow { from, to: now.wall, direction: *direction, packets, bytes }));
        }
        Harvest { kinds, baseline: next }
    }
}

impl Moment {
    /// The wall clock's time of an earlier moment of this boot.
    fn before(self, awake: u64) -> Timestamp {
        Timestamp(self.wall.0.saturating_sub_unsigned(self.awake.saturating_sub(awake)))
    }
}

impl Before {
    fn of(element: &Element, now: Moment) -> Before {
        let (packets, bytes) = element.counted.unwrap_or_default();
        let idle = element.timeout_ms.zip(element.expires_ms).map(|(lives, left)| lives.saturating_sub(left) / 1000);
        Before { packets, bytes, last: idle.map(|idle| now.awake.saturating_sub(idle)) }
    }
}

/// What an element has counted more than before; nothing when that is nothing.
fn more(before: Option<Before>, element: &Element, now: Moment) -> Option<More> {
    let seen = Before::of(element, now);
    let Some(before) = before else {
        return (seen.packets > 0).then_some(More { packets: seen.packets, bytes: seen.bytes, anew: false });
    };
    let lower = seen.packets < before.packets || seen.bytes < before.bytes;
    // It can have been forgotten meanwhile, and its last packet is another one.
    let lives = element.timeout_ms.map_or(LEDGER_LIVES.seconds(), |lives| lives / 1000);
    let reborn = seen.packets == before.packets
        && before.last.is_some_and(|last| now.awake + SLACK >= last.saturating_add(lives))
        && seen.last.zip(before.last).is_some_and(|(seen, before)| seen > before + SLACK);
    if lower || reborn {
        return (seen.packets > 0).then_some(More { packets: seen.packets, bytes: seen.bytes, anew: true });
    }
    let packets = seen.packets - before.packets;
    (packets > 0).then_some(More { packets, bytes: seen.bytes - before.bytes, anew: false })
}

/// Who and where an element counts.
fn tuple_of(direction: Direction, key: &[KeyType], octets: &[u8]) -> Option<Tuple> {
    let mut tuple = Tuple { direction, who: Who::Anybody, destination: None, protocol: Protocol(0), port: None };
    let mut rest = octets;
    let mut addresses: Vec<IpAddr> = Vec::new();
    for kind in key {
        let len = kind.octets() as usize;
        let field = rest.get(..len)?;
        // Fields of a concatenation are padded to four octets.
        rest = rest.get(if key.len() > 1 { len.next_multiple_of(4) } else { len }..)?;
        match kind {
            KeyType::Uid => tuple.who = Who::User(u32::from_ne_bytes(field.try_into().ok()?)),
            KeyType::Ipv4Addr => addresses.push(Ipv4Addr::from(<[u8; 4]>::try_from(field).ok()?).into()),
            KeyType::Ipv6Addr => addresses.push(Ipv6Addr::from(<[u8; 16]>::try_from(field).ok()?).into()),
            KeyType::InetProto => tuple.protocol = Protocol(*field.first()?),
            KeyType::InetService => tuple.port = Some(u16::from_be_bytes(field.try_into().ok()?)),
            _ => return None,
        }
    }
    tuple.destination = addresses.pop();
    if let Some(source) = addresses.pop() {
        tuple.who = Who::Source(source);
    }
    Some(tuple)
}

/// A baseline as it is written: one row for each element.
#[derive(Debug, Serialize, Deserialize)]
struct Written {
    place: Option<String>,
    table: u64,
    sets: BTreeMap<String, u64>,
    at: Option<i64>,
    seq: u64,
    partial: bool,
    totals: Vec<(String, u64, u64, Option<u64>)>,
    owed: Vec<(String, i64, i64)>,
    each: Vec<(Row, u64, u64, Option<u64>)>,
}

/// A tuple: direction, user, source, destination, protocol, port.
type Row = (String, Option<u32>, Option<IpAddr>, Option<IpAddr>, u8, Option<u16>);

impl Baseline {
    /// The baseline as JSON.
    pub fn print(&self) -> Vec<u8> {
        let row = |tuple: &Tuple| -> Row {
            let (uid, source) = match tuple.who {
                Who::User(uid) => (Some(uid), None),
                Who::Source(source) => (None, Some(source)),
                Who::Anybody => (None, None),
            };
            (tuple.direction.word().to_string(), uid, source, tuple.destination, tuple.protocol.0, tuple.port)
        };
        let clamp = |number: i128| i64::try_from(number).unwrap_or(if number < 0 { i64::MIN } else { i64::MAX });
        let mut each: Vec<(&Tuple, &Before)> = self.each.iter().collect();
        each.sort_unstable_by_key(|(tuple, _)| **tuple);
        let written = Written {
            place: self.place.clone(),
            table: self.table,
            sets: self.sets.clone(),
            at: self.at.map(|at| at.0),
            seq: self.seq,
            partial: self.partial,
            totals: self.totals.iter().map(|(way, total)| (way.word().to_string(), total.packets, total.bytes, total.last)).collect(),
            owed: self.owed.iter().map(|(way, owed)| (way.word().to_string(), clamp(owed.packets), clamp(owed.bytes))).collect(),
            each: each.into_iter().map(|(tuple, before)| (row(tuple), before.packets, before.bytes, before.last)).collect(),
        };
        serde_json::to_vec(&written).unwrap_or_default()
    }

    /// Reads it again; nothing when it is damaged.
    pub fn parse(content: &[u8]) -> Option<Baseline> {
        let written: Written = serde_json::from_slice(content).ok()?;
        let way = |word: &String| Direction::of_word(word);
        let tuple = |(direction, uid, source, destination, protocol, port): Row| -> Option<Tuple> {
            let who = match (uid, source) {
                (Some(uid), _) => Who::User(uid),
                (None, Some(source)) => Who::Source(source),
                (None, None) => Who::Anybody,
            };
            Some(Tuple { direction: way(&direction)?, who, destination, protocol: Protocol(protocol), port })
        };
        let totals = written
            .totals
            .iter()
            .map(|(word, packets, bytes, last)| Some((way(word)?, Before { packets: *packets, bytes: *bytes, last: *last })));
        let owed = written
            .owed
            .iter()
            .map(|(word, packets, bytes)| Some((way(word)?, Owed { packets: (*packets).into(), bytes: (*bytes).into() })));
        let each = written.each.into_iter().map(|(row, packets, bytes, last)| Some((tuple(row)?, Before { packets, bytes, last })));
        Some(Baseline {
            place: written.place,
            table: written.table,
            sets: written.sets,
            at: written.at.map(Timestamp),
            seq: written.seq,
            totals: totals.collect::<Option<_>>()?,
            each: each.collect::<Option<_>>()?,
            owed: owed.collect::<Option<_>>()?,
            partial: written.partial,
            rebuilt: false,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ruleset::program::{Elements, SetDef};
    use crate::violation::book;

    const HOUR: u64 = 3600;
    const LIVES: u64 = 24 * HOUR;

    /// The sets of one direction, as the kernel keeps them, and what was really sent.
    struct Kernel {
        table: u64,
        size: usize,
        whole: bool,
        awake: u64,
        all: Option<(u64, u64)>,
        /// Packets and when the last came, by destination.
        each: BTreeMap<u8, (u64, u64)>,
        sent: u64,
    }

    impl Kernel {
        fn new() -> Kernel {
            Kernel { table: 1, size: 100, whole: true, awake: 1000, all: None, each: BTreeMap::new(), sent: 0 }
        }

        fn send(&mut self, to: u8, packets: u64) {
            self.forget();
            self.sent += packets;
            let all = self.all.map_or(0, |all| all.0);
            self.all = Some((all + packets, self.awake));
            if self.each.contains_key(&to) || self.each.len() < self.size {
                let known = self.each.entry(to).or_default();
                *known = (known.0 + packets, self.awake);
            }
        }

        fn forget(&mut self) {
            self.each.retain(|_, (_, last)| self.awake < *last + LIVES);
        }

        fn pass(&mut self, seconds: u64) {
            self.awake += seconds;
            self.forget();
        }

        fn now(&self) -> Moment {
            Moment { wall: Timestamp(1_795_000_000 + self.awake as i64), awake: self.awake }
        }

        fn counts(&self) -> Counts {
            let element = |(packets, last): (u64, u64), lives: u64| Element {
                timeout_ms: Some(lives * 1000),
                expires_ms: Some((last + lives - self.awake) * 1000),
                counted: Some((packets, packets * 60)),
                ..Element::default()
            };
            let set = |name: &str, handle, key: &[KeyType], elements: Elements, whole| CountingSet {
                def: SetDef { timeout: true, dynamic: true, ..SetDef::plain(name, key) },
                handle,
                elements,
                whole,
            };
            let all = self.all.map(|all| (vec![0; 4], element(all, 365 * LIVES))).into_iter().collect();
            let none = Elements::new;
            let key = [KeyType::Uid, KeyType::Ipv4Addr, KeyType::InetProto, KeyType::InetService];
            let of = |to: &u8| [&1000u32.to_ne_bytes()[..], &[192, 0, 2, *to], &[6, 0, 0, 0], &[1, 187, 0, 0]].concat();
            let each = self.each.iter().map(|(to, counted)| (of(to), element(*counted, LIVES))).collect();
            let sets = vec![
                set("ledger_all_forward", 1, &[KeyType::Mark], none(), true),
                set("ledger_all_in", 2, &[KeyType::Mark], none(), true),
                set("ledger_all_out", 3, &[KeyType::Mark], all, true),
                set("ledger_user_v4", 4, &key, each, self.whole),
            ];
            Counts { table: self.table, sets }
        }

        fn totals(&self) -> Counts {
            let mut counts = self.counts();
            counts.sets.retain(|set| set.def.name.starts_with("ledger_all_"));
            counts
        }
    }

    /// What records say that was counted: under destinations, and without one.
    fn recorded(kinds: &[Kind]) -> (u64, u64) {
        kinds.iter().fold((0, 0), |(counted, overflow), kind| match kind {
            Kind::Count(count) => (counted + count.packets, overflow),
            Kind::Overflow(more) => (counted, overflow + more.packets),
            _ => (counted, overflow),
        })
    }

    /// A book with these records after those that are there, up to `written` of them.
    fn write(book: &mut Vec<Kind>, kinds: &[Kind], written: usize) {
        book.extend_from_slice(&kinds[..written.min(kinds.len())]);
    }

    /// The baseline that is made of what the book holds and `baseline` does not know.
    fn replayed(mut baseline: Baseline, book: &[Kind]) -> Baseline {
        let (lines, _) = book::append(&book::Head::default(), Timestamp(0), book);
        book::Lines::new(&*lines).records(|line| baseline.replay(&line)).unwrap();
        baseline
    }

    #[test]
    fn each_packet_is_counted_once_and_under_who_and_where() {
        let mut kernel = Kernel::new();
        kernel.send(7, 3);
        let first = Baseline::default().harvest(&kernel.counts(), "here", kernel.now());
        assert!(matches!(&first.kinds[0], Kind::Began(began) if began.from.is_none()));
        let Kind::Count(count) = &first.kinds[1] else { panic!("{first:?}") };
        let tuple = Tuple {
            direction: Direction::Out,
            who: Who::User(1000),
            destination: Some("192.0.2.7".parse().unwrap()),
            protocol: Protocol::TCP,
            port: Some(443),
        };
        assert_eq!((Tuple::from(count.tuple), count.packets, count.bytes, first.kinds.len()), (tuple, 3, 180, 2));
        kernel.pass(60);
        assert!(first.baseline.is_up_to_date(&kernel.totals(), "here", kernel.now()));
        assert_eq!(first.baseline.harvest(&kernel.counts(), "here", kernel.now()).kinds, []);
        kernel.send(7, 2);
        kernel.pass(30);
        assert!(!first.baseline.is_up_to_date(&kernel.totals(), "here", kernel.now()));
        let second = first.baseline.harvest(&kernel.counts(), "here", kernel.now());
        let Kind::Count(count) = &second.kinds[0] else { panic!("{second:?}") };
        let ago = |seconds: i64| Timestamp(kernel.now().wall.0 - seconds);
        assert_eq!((count.packets, count.from, count.last, count.anew), (2, ago(90), Some(ago(30)), false));
    }

    #[test]
    fn another_boot_namespace_or_table_begins_at_nothing() {
        let mut kernel = Kernel::new();
        kernel.send(7, 3);
        let before = Baseline::default().harvest(&kernel.counts(), "here", kernel.now()).baseline;
        for (table, place) in [(1, "there"), (2, "here")] {
            kernel.table = table;
            let harvest = before.harvest(&kernel.counts(), place, kernel.now());
            assert!(matches!(&harvest.kinds[0], Kind::Began(began) if began.from == before.at() && began.table == table));
            assert_eq!(recorded(&harvest.kinds), (3, 0));
            assert!(!before.is_up_to_date(&kernel.totals(), place, kernel.now()));
        }
    }

    #[test]
    fn what_the_kernel_forgot_and_counted_again_is_not_missed() {
        for again in [1, 2, 3, 9] {
            let mut kernel = Kernel::new();
            kernel.send(7, 3);
            let first = Baseline::default().harvest(&kernel.counts(), "here", kernel.now());
            kernel.pass(LIVES - 60);
            let second = first.baseline.harvest(&kernel.counts(), "here", kernel.now());
            kernel.pass(120);
            kernel.send(7, again);
            let third = second.baseline.harvest(&kernel.counts(), "here", kernel.now());
            // That it counted anew cannot be told when it has counted more than before; nothing is missing even then.
            let expected = if again <= 3 { (again, 0) } else { (again - 3, 3) };
            assert_eq!((second.kinds.len(), recorded(&third.kinds)), (0, expected), "{again}");
        }
    }

    #[test]
    fn what_a_full_set_leaves_out_is_overflow_once() {
        let mut kernel = Kernel { size: 2, ..Kernel::new() };
        (0..10).for_each(|to| kernel.send(to, 1));
        let first = Baseline::default().harvest(&kernel.counts(), "here", kernel.now());
        assert_eq!(recorded(&first.kinds), (2, 8));
        assert_eq!(first.baseline.harvest(&kernel.counts(), "here", kernel.now()).kinds, []);
        kernel.send(9, 5);
        let second = first.baseline.harvest(&kernel.counts(), "here", kernel.now());
        assert_eq!(recorded(&second.kinds), (0, 5));
    }

    #[test]
    fn elements_that_were_not_told_are_no_overflow_and_are_found_later() {
        let mut kernel = Kernel::new();
        (0..10).for_each(|to| kernel.send(to, 1));
        let first = Baseline::default().harvest(&kernel.counts(), "here", kernel.now());
        (0..10).for_each(|to| kernel.send(to, 1));
        let mut half = kernel.counts();
        let hidden: Vec<_> = half.sets[3].elements.keys().take(5).cloned().collect();
        hidden.iter().for_each(|key| drop(half.sets[3].elements.remove(key)));
        half.sets[3].whole = false;
        let second = first.baseline.harvest(&half, "here", kernel.now());
        assert_eq!(recorded(&second.kinds), (5, 0));
        assert!(!second.baseline.is_up_to_date(&kernel.totals(), "here", kernel.now()));
        let third = second.baseline.harvest(&kernel.counts(), "here", kernel.now());
        assert_eq!(recorded(&third.kinds), (5, 0));
    }

    #[test]
    fn a_set_that_is_read_after_its_total_owes_nothing_twice() {
        let mut kernel = Kernel::new();
        kernel.send(7, 3);
        let early = kernel.totals();
        kernel.send(7, 4);
        let mut torn = kernel.counts();
        torn.sets[..3].clone_from_slice(&early.sets);
        let first = Baseline::default().harvest(&torn, "here", kernel.now());
        assert_eq!(recorded(&first.kinds), (7, 0));
        assert_eq!(recorded(&first.baseline.harvest(&kernel.counts(), "here", kernel.now()).kinds), (0, 0));
    }

    #[test]
    fn a_harvest_that_died_anywhere_is_counted_once() {
        for written in 0..8 {
            let mut kernel = Kernel { size: 4, ..Kernel::new() };
            let (mut book, mut baseline) = (Vec::new(), Baseline::default());
            (0..6).for_each(|to| kernel.send(to, 2));
            let first = baseline.harvest(&kernel.counts(), "here", kernel.now());
            write(&mut book, &first.kinds, usize::MAX);
            baseline = first.baseline.knowing(book.len() as u64);
            (0..6).for_each(|to| kernel.send(to, 1));
            kernel.pass(5);
            let second = baseline.harvest(&kernel.counts(), "here", kernel.now());
            // It dies before the baseline is written, with so many of its records done.
            write(&mut book, &second.kinds, written);
            kernel.send(1, 10);
            kernel.send(77, 1);
            let third = replayed(baseline, &book).harvest(&kernel.counts(), "here", kernel.now());
            write(&mut book, &third.kinds, usize::MAX);
            let (counted, overflow) = recorded(&book);
            assert_eq!((counted, counted + overflow), (4 * 3 + 10, kernel.sent), "{written}: {book:?}");
        }
    }

    #[test]
    fn a_baseline_that_was_lost_is_made_of_the_book() {
        let mut kernel = Kernel { size: 4, ..Kernel::new() };
        (0..6).for_each(|to| kernel.send(to, 2));
        let first = Baseline::default().harvest(&kernel.counts(), "here", kernel.now());
        let mut book = first.kinds;
        kernel.send(2, 1);
        let second = replayed(Baseline::of_a_book(), &book).harvest(&kernel.counts(), "here", kernel.now());
        assert_eq!(recorded(&second.kinds), (1, 0));
        write(&mut book, &second.kinds, usize::MAX);
        // Its beginning was rotated away: that it counts from here is believed, lest it count twice.
        let late = replayed(Baseline::of_a_book(), &book[1..]).harvest(&kernel.counts(), "here", kernel.now());
        assert_eq!(recorded(&late.kinds), (0, 0));
    }

    #[test]
    fn a_first_harvest_that_died_begins_once() {
        let mut kernel = Kernel::new();
        kernel.send(7, 3);
        kernel.send(8, 1);
        let first = Baseline::default().harvest(&kernel.counts(), "here", kernel.now());
        for written in 0..=first.kinds.len() {
            let mut book = first.kinds[..written].to_vec();
            let next = replayed(Baseline::of_a_book(), &book).harvest(&kernel.counts(), "here", kernel.now());
            write(&mut book, &next.kinds, usize::MAX);
            let began = book.iter().filter(|kind| matches!(kind, Kind::Began(_))).count();
            assert_eq!((recorded(&book), began), ((4, 0), 1), "{written}");
        }
    }

    #[test]
    fn a_clock_that_is_set_back_changes_no_count() {
        let mut kernel = Kernel::new();
        kernel.send(7, 3);
        let first = Baseline::default().harvest(&kernel.counts(), "here", kernel.now());
        kernel.pass(60);
        kernel.send(7, 1);
        let early = Moment { wall: Timestamp(1000), ..kernel.now() };
        let second = first.baseline.harvest(&kernel.counts(), "here", early);
        assert_eq!(recorded(&second.kinds), (1, 0));
        assert!(second.baseline.is_up_to_date(&kernel.totals(), "here", early));
    }

    #[test]
    fn a_baseline_reads_back_as_it_was_written_and_a_damaged_one_does_not() {
        let mut kernel = Kernel { size: 2, whole: false, ..Kernel::new() };
        (0..6).for_each(|to| kernel.send(to, 2));
        let baseline = Baseline::default().harvest(&kernel.counts(), "here", kernel.now()).baseline.knowing(7);
        let written = baseline.print();
        assert_eq!(Baseline::parse(&written), Some(baseline));
        assert_eq!(Baseline::parse(&written[..written.len() / 2]), None);
        assert_eq!(Baseline::parse(b""), None);
    }

    /// Long random lives of the kernel's sets, with harvests that die: at the end every packet is in the book once.
    #[test]
    fn whatever_is_sent_whenever_it_is_harvested_the_book_has_it_once() {
        for seed in 1..60u64 {
            let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let mut random = |below: u64| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                state % below
            };
            let mut kernel = Kernel { size: 6, ..Kernel::new() };
            let (mut book, mut baseline) = (Vec::new(), Baseline::of_a_book());
            for _ in 0..60 {
                for _ in 0..random(4) {
                    kernel.send(random(9) as u8, 1 + random(3));
                }
                kernel.pass(random(LIVES));
                let harvest = replayed(baseline.clone(), &book).harvest(&kernel.counts(), "here", kernel.now());
                if random(3) == 0 {
                    write(&mut book, &harvest.kinds, random(harvest.kinds.len() as u64 + 1) as usize);
                } else {
                    write(&mut book, &harvest.kinds, usize::MAX);
                    baseline = harvest.baseline.knowing(book.len() as u64);
                }
            }
            let last = replayed(baseline, &book).harvest(&kernel.counts(), "here", kernel.now());
            write(&mut book, &last.kinds, usize::MAX);
            let (counted, overflow) = recorded(&book);
            assert_eq!(counted + overflow, kernel.sent, "seed {seed}");
        }
    }
}
