//! The live view on a terminal: a table that updates in place, the newest and worst first, as wide and high as the window.
//!
//! What it writes is its own: moves of the cursor and colours; every text in between has been made harmless. It works on the
//! terminal's second screen and gives the first one back as it was.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::base::time::Timestamp;
use crate::command::Style;
use crate::command::watch::view::{clock, fit, fit_place, place, way, who};
use crate::violation::attribute::inert;
use crate::violation::record::{Kind, Seen};

/// How many rows are remembered.
const ROWS_MAX: usize = 1024;
/// What came within this long is newer than everything else.
const NEW: Duration = Duration::from_secs(10);

/// What the terminal is told at the beginning, and at the end: the second screen, and no cursor.
pub const ENTER: &str = "\x1b[?1049h\x1b[?25l";
/// The first screen again, with its cursor, whatever colour was left on.
pub const LEAVE: &str = "\x1b[0m\x1b[?25h\x1b[?1049l";

/// A row: everything of one sender to one destination.
#[derive(Debug)]
struct Row {
    last: Timestamp,
    seen: Duration,
    count: u64,
    text: [String; 5],
}

/// The rows, and what is said above them.
#[derive(Debug, Default)]
pub struct Table {
    rows: BTreeMap<[String; 5], Row>,
    packets: u64,
    lost: u64,
    /// Packets of rows that found no room.
    unlisted: u64,
}

impl Table {
    /// Adds a record.
    pub fn add(&mut self, kind: &Kind, passed: Duration) {
        match kind {
            Kind::Seen(seen) => self.seen(seen, passed),
            Kind::Lost { count } => self.lost += count,
            Kind::Other { count } => (self.packets, self.unlisted) = (self.packets + count, self.unlisted + count),
            _ => {}
        }
    }

    fn seen(&mut self, seen: &Seen, passed: Duration) {
        self.packets += seen.count;
        let rule = inert(seen.rule.as_bytes(), 63);
        let text = [way(seen.direction).to_string(), seen.protocol.to_string(), place(seen), rule, who(seen)];
        if self.rows.len() >= ROWS_MAX && !self.rows.contains_key(&text) {
            // The one that was seen longest ago makes room.
            let oldest = self.rows.iter().min_by_key(|(_, row)| row.seen).map(|(key, _)| key.clone());
            let oldest = oldest.and_then(|key| self.rows.remove(&key));
            self.unlisted += oldest.map_or(0, |row| row.count);
        }
        let row = self.rows.entry(text.clone()).or_insert_with(|| Row { last: seen.last, seen: passed, count: 0, text });
        (row.last, row.seen, row.count) = (seen.last, passed, row.count + seen.count);
    }

    /// The rows, the newest and worst first.
    fn sorted(&self, passed: Duration) -> Vec<&Row> {
        let mut rows: Vec<&Row> = self.rows.values().collect();
        let is_old = |row: &Row| passed.saturating_sub(row.seen) > NEW;
        rows.sort_by(|a, b| is_old(a).cmp(&is_old(b)).then(b.count.cmp(&a.count)).then(b.seen.cmp(&a.seen)).then(a.text.cmp(&b.text)));
        rows
    }

    /// The whole screen, from its upper left corner.
    pub fn screen(&self, title: &str, (columns, rows): (u16, u16), passed: Duration, style: Style) -> String {
        let (columns, rows) = (usize::from(columns.max(20)), usize::from(rows.max(3)));
        let lost = if self.lost > 0 { format!(", {} lost", self.lost) } else { String::new() };
        let shown = self.sorted(passed);
        let more = (shown.len() + 2).saturating_sub(rows);
        let more = if more > 0 { format!(", {} rows below", more + 1) } else { String::new() };
        let head = format!("{title}: {} packets{lost}{more}   ctrl-c ends", self.packets);
        let widths = widths(columns);
        let mut lines = vec![
            (Look::Plain, head),
            (Look::Heading, written(&widths, "last", "count", &["way", "proto", "where", "rule", "who"].map(str::to_string))),
        ];
        for row in &shown {
            let look = if passed.saturating_sub(row.seen) > NEW { Look::Old } else { Look::New };
            lines.push((look, written(&widths, &clock(row.last), &row.count.to_string(), &row.text)));
        }
        if self.rows.is_empty() {
            lines.push((Look::Old, "nothing was refused yet".to_string()));
        }
        lines.truncate(rows);
        let mut screen = "\x1b[H".to_string();
        let last = lines.len() - 1;
        for (number, (look, line)) in lines.iter().enumerate() {
            let (before, after) = if style == Style::Coloured { look.colour() } else { ("", "") };
            // No line feed after the last row: it would move the screen up.
            let end = if number == last { "" } else { "\r\n" };
            screen.push_str(&format!("{before}{}{after}\x1b[K{end}", fit(line, columns)));
        }
        screen.push_str("\x1b[J");
        screen
    }

    /// What stays on the first screen at the end.
    pub fn summary(&self) -> String {
        let lost = if self.lost > 0 { format!("; {} more were lost", self.lost) } else { String::new() };
        format!(
            "{} packets of {} senders and destinations were refused{lost}; `egressguard report` tells more",
            self.packets,
            self.rows.len()
        )
    }
}

/// How a line looks.
#[derive(Debug, Clone, Copy)]
enum Look {
    Plain,
    Heading,
    New,
    Old,
}

impl Look {
    fn colour(self) -> (&'static str, &'static str) {
        match self {
            Look::Plain => ("\x1b[1m", "\x1b[0m"),
            Look::Heading => ("\x1b[4m", "\x1b[0m"),
            Look::New => ("\x1b[31m", "\x1b[0m"),
            Look::Old => ("", ""),
        }
    }
}

/// Widths of where, rule and who: what is left after the others, shared out.
fn widths(columns: usize) -> [usize; 3] {
    let left = columns.saturating_sub(8 + 2 + 7 + 2 + 3 + 2 + 5 + 2 + 2 + 2);
    let rule = if left >= 50 { 14 } else { 10.min(left / 4) };
    let place = ((left - rule) / 2).clamp(0, 48);
    [place, rule, left - rule - place]
}

fn written([place, rule, who]: &[usize; 3], last: &str, count: &str, [way, protocol, at, by, person]: &[String; 5]) -> String {
    let (at, by, person) = (fit_place(at, *place), fit(by, *rule), fit(person, *who));
    format!("{last:<8}  {count:>7}  {way:<3}  {protocol:<5}  {at:<place$}  {by:<rule$}  {person}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::net::Protocol;
    use crate::base::packet::Direction;

    fn seen(last_octet: u8, count: u64) -> Kind {
        Kind::Seen(Box::new(Seen {
            first: Timestamp(0),
            last: Timestamp(1_795_492_320),
            count,
            direction: Direction::Out,
            protocol: Protocol::UDP,
            source: "203.0.113.10".parse().unwrap(),
            source_port: Some(1),
            destination: std::net::IpAddr::from([198, 51, 100, last_octet]),
            port: Some(53),
            name: Some("a-very-long-name.of-a-very-long-domain.example".into()),
            uid: Some(1000),
            user: Some("wörker".into()),
            process: None,
            service: None,
            rule: "refuse-out".into(),
            line: None,
        }))
    }

    /// The lines as a terminal would show them.
    fn shown(screen: &str) -> Vec<String> {
        let plain = screen.replace("\x1b[H", "").replace("\x1b[K", "").replace("\x1b[J", "");
        plain.split("\r\n").map(str::to_string).collect()
    }

    #[test]
    fn the_table_fits_every_window_and_never_moves_the_screen() {
        let mut table = Table::default();
        (0..200).for_each(|octet| table.add(&seen(octet, 1), Duration::from_secs(1)));
        for (columns, rows) in [(1, 1), (20, 3), (40, 10), (80, 24), (100, 50), (300, 500)] {
            let lines = shown(&table.screen("openai", (columns, rows), Duration::from_secs(2), Style::Terminal));
            assert!(lines.len() <= usize::from(rows.max(3)), "{columns}x{rows}: {} lines", lines.len());
            let longest = lines.iter().map(|line| line.chars().count()).max().unwrap();
            assert!(longest <= usize::from(columns.max(20)), "{columns}x{rows}: {longest}");
            assert!(lines.iter().all(|line| !line.contains(|c: char| c.is_control())), "{lines:?}");
            assert!(columns < 60 || lines[2..].iter().all(|line| line.contains(":53 ")), "the port is cut off: {lines:?}");
        }
    }

    #[test]
    fn the_newest_and_worst_come_first_and_the_same_again_is_the_same_row() {
        let mut table = Table::default();
        table.add(&seen(1, 900), Duration::from_secs(1));
        table.add(&seen(2, 5), Duration::from_secs(60));
        table.add(&seen(3, 7), Duration::from_secs(61));
        table.add(&seen(2, 5), Duration::from_secs(62));
        let lines = shown(&table.screen("openai", (160, 24), Duration::from_secs(63), Style::Terminal));
        let counts: Vec<&str> = lines[2..].iter().map(|line| line.split_whitespace().nth(1).unwrap()).collect();
        assert_eq!(counts, ["10", "7", "900"]);
        assert!(lines[0].contains("917 packets"), "{}", lines[0]);
    }

    #[test]
    fn a_flood_of_rows_takes_bounded_room() {
        let mut table = Table::default();
        for number in 0..50_000u32 {
            let Kind::Seen(mut one) = seen(1, 1) else { return };
            one.destination = std::net::IpAddr::from(number.to_be_bytes());
            table.add(&Kind::Seen(one), Duration::from_secs(u64::from(number)));
        }
        assert_eq!((table.rows.len(), table.packets, table.unlisted), (ROWS_MAX, 50_000, 50_000 - ROWS_MAX as u64));
    }
}
