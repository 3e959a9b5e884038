//! The report for a terminal.

use crate::command::report::Told;
use crate::command::watch::view::{fit, fit_place};
use crate::command::{Failure, Output};
use crate::violation::report::CountedBy;

/// The most that is listed.
const LISTED: usize = 50;
/// Into how many columns it fits.
const WIDE: usize = 100;

/// Writes it.
pub fn write(told: &Told, output: &mut Output) -> Result<(), Failure> {
    let report = &told.report;
    output.say(&format!("{} packets were refused from {} to {}", report.total, report.since, report.until))?;
    if !report.violations.is_empty() {
        output.say(&format!("\n{:>9}  {:<7}  {:<5}  {:<16}  {:<38}  last", "count", "way", "proto", "who", "where"))?;
    }
    for violation in report.violations.iter().take(LISTED) {
        let mark = if violation.counted_by == CountedBy::Watch { "~" } else { "" };
        let tuple = &violation.tuple;
        let line = format!(
            "{:>9}  {:<7}  {:<5}  {}  {}  {}",
            format!("{mark}{}", violation.count),
            tuple.direction.word(),
            tuple.protocol.to_string(),
            column(&told.who(violation), 16),
            padded(&fit_place(&clean(&told.place(violation)), 38), 38),
            clock(&violation.last.to_string()),
        );
        output.say(line.trim_end())?;
        let program = told.program(violation);
        if !program.is_empty() {
            output.say(&format!("{:>9}  by {}", "", cut(&program, WIDE - 14)))?;
        }
        match told.suggestion(violation) {
            // Whole, however long it is: it is there to be copied.
            Some(line) => output.say(&format!("{:>9}  to allow: {line}", ""))?,
            None => output.say(&format!("{:>9}  no line of a policy allows it", ""))?,
        }
    }
    let more = report.violations.len().saturating_sub(LISTED);
    if more > 0 {
        let rest: u64 = report.violations.iter().skip(LISTED).map(|violation| violation.count).sum();
        output.say(&format!("… and {more} more with {rest} packets; `--json` has them all"))?;
    }
    if report.violations.iter().any(|violation| violation.counted_by == CountedBy::Watch) {
        output.say("~ counted by watch, which sees a part of many: the kernel had no room to count these by destination")?;
    }
    for remark in told.remarks() {
        output.say(&remark)?;
    }
    Ok(())
}

/// The text in this many columns.
fn column(text: &str, width: usize) -> String {
    padded(&cut(text, width), width)
}

fn padded(text: &str, width: usize) -> String {
    let missing = width.saturating_sub(text.chars().count());
    format!("{text}{}", " ".repeat(missing))
}

fn cut(text: &str, width: usize) -> String {
    fit(&clean(text), width)
}

fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// Month, day and time of an RFC 3339 time.
fn clock(time: &str) -> String {
    time.get(5..16).map_or_else(|| time.to_string(), |part| part.replace('T', " "))
}
