//! A comparison for people: at most 100 columns wide.

use std::fmt::Write;

use crate::command::diff::{Place, Report, Told, effect, kind, verdict};
use crate::judge::compare::{Decision, Kind};

/// The widest line.
const COLUMNS: usize = 100;
/// Where what is said of a change begins.
const INDENT: usize = 10;
/// How many boxes of a change are said.
const MOST: usize = 6;

/// The whole text.
pub fn write(report: &Report) -> String {
    if report.is_same() {
        return format!("same: {} and {} allow the same packets\n", report.old, report.new);
    }
    let mut out = format!("{} -> {}\n", report.old, report.new);
    let counts = [
        (report.widens(), "widens"),
        (report.narrows(), "narrows"),
        (report.count(Kind::Reroutes), "reroutes"),
        (report.settings.len(), "settings"),
    ];
    let counts: Vec<String> = counts.iter().map(|(count, what)| format!("{what} {count}")).collect();
    let _ = writeln!(out, "{}", counts.join(", "));
    for told in &report.changes {
        out.push('\n');
        change(&mut out, report, told);
    }
    for setting in &report.settings {
        let said = |value: &Option<String>| value.clone().unwrap_or_else(|| "none".to_string());
        out.push('\n');
        entry(&mut out, "setting", &format!("{}: {}, now {}", setting.name, said(&setting.before), said(&setting.after)));
        entry(&mut out, "", &format!("{}: {}", words_of(effect(setting.effect)), setting.because));
    }
    out
}

fn words_of(effect: &str) -> &str {
    if effect == "neither" { "neither widens nor narrows" } else { effect }
}

fn change(out: &mut String, report: &Report, told: &Told) {
    entry(out, kind(told.change.kind), &told.witness());
    let before = decision(&told.change.before, &told.before, &report.old);
    let after = decision(&told.change.after, &told.after, &report.new);
    entry(out, "", &format!("{before} before, now {after}"));
    let (sentences, more) = report.packets(told, MOST);
    for sentence in sentences {
        entry(out, "", &format!("{}: {sentence}", told.directions()));
    }
    if more > 0 {
        entry(out, "", &format!("and {more} more such sets of packets, which --json lists"));
    }
}

/// `allowed by RULE (FILE:LINE)`.
fn decision(decision: &Decision, place: &Place, file: &str) -> String {
    let line = place.line.map(|line| format!(" ({file}:{})", line.0)).unwrap_or_default();
    match place.rule.as_str() {
        "" => format!("{} by a rule without a name", verdict(decision)),
        rule => format!("{} by `{rule}`{line}", verdict(decision)),
    }
}

/// Adds a word and what is said of it, broken between words where it is too wide.
fn entry(out: &mut String, word: &str, said: &str) {
    let mut line = format!("{word:<INDENT$}");
    let mut begun = false;
    for word in said.split(' ') {
        if begun && line.chars().count() + 1 + word.chars().count() > COLUMNS {
            let _ = writeln!(out, "{line}");
            line = format!("{:<width$}", "", width = INDENT + 2);
            begun = false;
        }
        if begun {
            line.push(' ');
        }
        line.push_str(word);
        begun = true;
    }
    let _ = writeln!(out, "{line}");
}
