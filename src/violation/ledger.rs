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
//! count that is lower, or that is the same while its last packet is another one. Where more was counted since than before, in 24 hours
//! without any harvest, only the difference is found here; the rest is in the total of its direction and becomes part of `overflow`.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

use crate::base::net::Protocol;
use crate::base::packet::Direction;
use crate::base::time::{Period, Timestamp};
use crate::ruleset::compile::refuse::{LEDGER_LIVES, Ledger};
use crate::ruleset::program::{Counts, Element, KeyType};
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

    /// Whether the totals alone show that nothing was counted since. `totals` are the sets [`crate::ruleset::compile::refuse::LEDGER_ALL`].
    pub fn is_up_to_date(&self, totals: &Counts, place: &str, now: Moment) -> bool {
        let directions = totals.sets.iter().filter(|set| matches!(Ledger::of_set(&set.def.name), Some(Ledger::All(_)))).count();
        let same = |set: &crate::ruleset::program::CountingSet| {
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
    let reborn = seen.packets == before.packets
        && before.last.is_some_and(|last| now.awake + SLACK >= last + LEDGER_LIVES.seconds())
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

/// How long the kernel keeps what no packet renews: after as long without a harvest, counts may have begun anew unseen.
pub const FORGETS_AFTER: Period = LEDGER_LIVES;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ruleset::program::{CountingSet, Elements, SetDef};
    use crate::violation::book;

    const HERE: &str = "boot:1";

    fn moment(second: u64) -> Moment {
        Moment { wall: Timestamp(1_000_000 + second as i64), awake: second }
    }

    /// What the kernel holds: refused packets of uid 7 to 192.0.2.1 by port, and all that were refused; the last of each came just now.
    fn counts(table: u64, all: u64, ports: &[(u16, u64)]) -> Counts {
        let element = |packets: u64| Element {
            timeout_ms: Some(86_400_000),
            expires_ms: Some(86_400_000),
            counted: Some((packets, packets * 60)),
            ..Element::default()
        };
        let set = |name: &str, key: Vec<KeyType>, elements: Elements| CountingSet {
            def: SetDef::plain(name.to_string(), key),
            handle: 9,
            elements,
            whole: true,
        };
        let key = |port: u16| [&7u32.to_ne_bytes()[..], &[192, 0, 2, 1], &[6, 0, 0, 0], &port.to_be_bytes(), &[0, 0]].concat();
        let each = ports.iter().map(|(port, packets)| (key(*port), element(*packets))).collect();
        let total = |packets: u64| match packets {
            0 => Elements::new(),
            packets => Elements::from([(vec![0; 4], element(packets))]),
        };
        let types = vec![KeyType::Uid, KeyType::Ipv4Addr, KeyType::InetProto, KeyType::InetService];
        Counts {
            table,
            sets: vec![
                set("ledger_all_forward", vec![KeyType::Mark], total(0)),
                set("ledger_all_in", vec![KeyType::Mark], total(0)),
                set("ledger_all_out", vec![KeyType::Mark], total(all)),
                set("ledger_user_v4", types, each),
            ],
        }
    }

    /// Packets by port that these records tell, and those without a place.
    fn told(kinds: &[Kind]) -> (Vec<(u16, u64)>, u64) {
        let mut ports = Vec::new();
        let mut overflow = 0;
        for kind in kinds {
            match kind {
                Kind::Count(count) => ports.push((Tuple::from(count.tuple).port.unwrap_or(0), count.packets)),
                Kind::Overflow(more) => overflow += more.packets,
                _ => {}
            }
        }
        ports.sort_unstable();
        (ports, overflow)
    }

    /// The baseline after a harvest, as the next run reads it.
    fn kept(harvest: Harvest) -> Baseline {
        Baseline::parse(&harvest.baseline.print()).expect("what was written can be read")
    }

    #[test]
    fn each_packet_is_told_once() {
        let first = Baseline::of_a_book().harvest(&counts(1, 5, &[(25, 3), (80, 2)]), HERE, moment(10));
        assert!(matches!(first.kinds.first(), Some(Kind::Began(_))));
        assert_eq!(told(&first.kinds), (vec![(25, 3), (80, 2)], 0));
        let baseline = kept(first);
        assert!(baseline.is_up_to_date(&counts(1, 5, &[]), HERE, moment(20)));
        assert!(!baseline.is_up_to_date(&counts(1, 6, &[]), HERE, moment(20)));
        let second = baseline.harvest(&counts(1, 9, &[(25, 7), (80, 2)]), HERE, moment(20));
        assert_eq!(told(&second.kinds), (vec![(25, 4)], 0));
        assert_eq!(told(&kept(second).harvest(&counts(1, 9, &[(25, 7), (80, 2)]), HERE, moment(30)).kinds), (vec![], 0));
    }

    #[test]
    fn what_a_full_set_left_out_is_told_as_overflow_and_once() {
        let first = Baseline::of_a_book().harvest(&counts(1, 10, &[(25, 3)]), HERE, moment(10));
        assert_eq!(told(&first.kinds), (vec![(25, 3)], 7));
        let second = kept(first).harvest(&counts(1, 12, &[(25, 4)]), HERE, moment(20));
        assert_eq!(told(&second.kinds), (vec![(25, 1)], 1));
    }

    #[test]
    fn records_of_a_harvest_that_died_before_its_baseline_are_not_told_again() {
        let first = Baseline::of_a_book().harvest(&counts(1, 3, &[(25, 3)]), HERE, moment(10));
        let (written, head) = book::append(&book::Head::default(), moment(10).wall, &first.kinds);
        let baseline = kept(first).knowing(head.seq);
        // The second harvest writes its records and dies.
        let second = baseline.harvest(&counts(1, 8, &[(25, 6), (80, 2)]), HERE, moment(20));
        let (more, _) = book::append(&head, moment(20).wall, &second.kinds);
        let book = [written, more].concat();
        let replayed = |mut baseline: Baseline| {
            book::Lines::new(book.as_slice()).records(|line| baseline.replay(&line)).expect("a slice can be read");
            baseline
        };
        let third = replayed(baseline).harvest(&counts(1, 9, &[(25, 7), (80, 2)]), HERE, moment(30));
        assert_eq!(told(&third.kinds), (vec![(25, 1)], 0));
        // Neither is what a baseline knew that was lost.
        let third = replayed(Baseline::of_a_book()).harvest(&counts(1, 9, &[(25, 7), (80, 2)]), HERE, moment(30));
        assert_eq!(told(&third.kinds), (vec![(25, 1)], 0));
    }

    #[test]
    fn another_boot_table_or_set_counts_from_nothing() {
        let first = kept(Baseline::of_a_book().harvest(&counts(1, 5, &[(25, 5)]), HERE, moment(10)));
        for (place, table) in [("boot:2", 1), (HERE, 2)] {
            let next = first.harvest(&counts(table, 6, &[(25, 6)]), place, moment(20));
            assert!(matches!(next.kinds.first(), Some(Kind::Began(_))), "{place} {table}");
            assert_eq!(told(&next.kinds), (vec![(25, 6)], 0), "{place} {table}");
        }
        let mut other_sets = counts(1, 6, &[(25, 6)]);
        other_sets.sets.iter_mut().for_each(|set| set.handle = 10);
        assert_eq!(told(&first.harvest(&other_sets, HERE, moment(20)).kinds), (vec![(25, 6)], 0));
    }

    #[test]
    fn what_the_kernel_has_forgotten_and_counts_again_is_counted_whole() {
        let first = kept(Baseline::of_a_book().harvest(&counts(1, 5, &[(25, 5)]), HERE, moment(10)));
        // Lower: it began anew. The same with another last packet, a day later: it did, too.
        assert_eq!(told(&first.harvest(&counts(1, 2, &[(25, 2)]), HERE, moment(20)).kinds), (vec![(25, 2)], 0));
        assert_eq!(told(&first.harvest(&counts(1, 5, &[(25, 5)]), HERE, moment(90_000)).kinds), (vec![(25, 5)], 0));
        assert_eq!(told(&first.harvest(&counts(1, 5, &[(25, 5)]), HERE, moment(11)).kinds), (vec![], 0));
    }

    #[test]
    fn a_wall_clock_that_is_set_back_tells_nothing_twice() {
        let first = kept(Baseline::of_a_book().harvest(&counts(1, 5, &[(25, 5)]), HERE, moment(1000)));
        let earlier = Moment { wall: Timestamp(5), awake: 1010 };
        assert_eq!(told(&first.harvest(&counts(1, 5, &[(25, 5)]), HERE, earlier).kinds), (vec![], 0));
        assert_eq!(told(&first.harvest(&counts(1, 6, &[(25, 6)]), HERE, earlier).kinds), (vec![(25, 1)], 0));
    }

    #[test]
    fn a_damaged_baseline_is_none() {
        let printed = Baseline::of_a_book().harvest(&counts(1, 5, &[(25, 5)]), HERE, moment(10)).baseline.print();
        assert!(Baseline::parse(&printed).is_some());
        for cut in [0, 1, printed.len() / 2, printed.len() - 1] {
            assert_eq!(Baseline::parse(&printed[..cut]), None, "{cut}");
        }
    }
}
