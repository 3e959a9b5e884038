//! A comparison as a comment for a pull request.

use std::fmt::Write;

use crate::command::diff::{Place, Report, effect, kind, verdict};
use crate::judge::compare::{Decision, Kind};

/// How many boxes of a change are said.
const MOST: usize = 4;

/// The whole comment.
pub fn write(report: &Report) -> String {
    let mut out = format!("### Policy diff: {} → {}\n\n", code(&report.old), code(&report.new));
    if report.is_same() {
        out.push_str("Same: both allow the same packets.\n");
        return out;
    }
    let counts = [
        ("widens", report.widens()),
        ("narrows", report.narrows()),
        ("reroutes", report.count(Kind::Reroutes)),
        ("settings", report.settings.len()),
    ];
    let counts: Vec<String> = counts
        .iter()
        .map(|(what, count)| if *what == "widens" && *count > 0 { format!("**{what} {count}**") } else { format!("{what} {count}") })
        .collect();
    let _ = writeln!(out, "{}", counts.join(" · "));
    if !report.changes.is_empty() {
        out.push_str("\n| | for example | before | now | which packets |\n|---|---|---|---|---|\n");
    }
    for told in &report.changes {
        let (sentences, more) = report.packets(told, MOST);
        let mut packets: Vec<String> = sentences.iter().map(|sentence| code(&format!("{}: {sentence}", told.directions()))).collect();
        if more > 0 {
            packets.push(format!("and {more} more"));
        }
        let _ = writeln!(
            out,
            "| {} | {} | {} | {} | {} |",
            bold(kind(told.change.kind)),
            code(&told.witness()),
            decision(&told.change.before, &told.before),
            decision(&told.change.after, &told.after),
            packets.join("<br>")
        );
    }
    if !report.settings.is_empty() {
        out.push_str("\n| | setting | before | now | |\n|---|---|---|---|---|\n");
    }
    for setting in &report.settings {
        let said = |value: &Option<String>| value.as_deref().map_or("none".to_string(), code);
        let (before, after) = (said(&setting.before), said(&setting.after));
        let _ = writeln!(out, "| {} | {} | {before} | {after} | {} |", bold(effect(setting.effect)), code(setting.name), setting.because);
    }
    out
}

fn bold(kind: &str) -> String {
    if kind == "widens" { format!("**{kind}**") } else { kind.to_string() }
}

fn decision(decision: &Decision, place: &Place) -> String {
    let line = place.line.map(|line| format!(", line {}", line.0)).unwrap_or_default();
    format!("{} by {}{line}", verdict(decision), code(&place.rule))
}

/// The text as code that can stand in a cell of a table: fenced by more backticks than it has in a row, without line ends, and with
/// its bars escaped, which tables read before code (GitHub Flavored Markdown, 4.10).
pub fn code(text: &str) -> String {
    let plain: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let plain = plain.replace('|', "\\|");
    let longest = plain.split(|c| c != '`').map(str::len).max().unwrap_or(0);
    let fence = "`".repeat(longest + 1);
    let room = if longest > 0 { " " } else { "" };
    format!("{fence}{room}{plain}{room}{fence}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_a_file_is_called_leaves_its_cell() {
        assert_eq!(code("a|b"), "`a\\|b`");
        assert_eq!(code("`a``b`"), "``` `a``b` ```");
        assert_eq!(code("a\nb"), "`a b`");
    }
}
