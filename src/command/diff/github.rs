//! A comparison as annotations of a GitHub workflow: what widens is an error, what narrows a warning, the rest a notice, at the
//! lines of the new policy. GitHub shows ten of each kind for a step; the log has all.

use std::fmt::Write;

use crate::command::diff::{Report, effect, kind, verdict};
use crate::policy::Line;

/// How many boxes of a change are said.
const MOST: usize = 4;

/// All annotations.
pub fn write(report: &Report) -> String {
    let mut out = String::new();
    if report.is_same() {
        let said = format!("{} and {} allow the same packets", report.old, report.new);
        annotation(&mut out, "notice", report, None, "policy: same", &said);
    }
    for told in &report.changes {
        let change = &told.change;
        let (sentences, more) = report.packets(told, MOST);
        let more = if more > 0 { format!("\nand {more} more") } else { String::new() };
        let said = format!(
            "{} was {} by {}, is {} by {}\n{}: {}{more}",
            told.witness(),
            verdict(&change.before),
            told.before.rule,
            verdict(&change.after),
            told.after.rule,
            told.directions(),
            sentences.join("\n")
        );
        annotation(&mut out, level(kind(change.kind)), report, told.look_at, &format!("policy: {}", kind(change.kind)), &said);
    }
    for setting in &report.settings {
        let said = |value: &Option<String>| value.clone().unwrap_or_else(|| "none".to_string());
        let text = format!("{}: {}, now {}: {}", setting.name, said(&setting.before), said(&setting.after), setting.because);
        let title = if effect(setting.effect) == "neither" { "setting" } else { effect(setting.effect) };
        annotation(&mut out, level(effect(setting.effect)), report, None, &format!("policy: {title}"), &text);
    }
    out
}

fn level(kind: &str) -> &'static str {
    match kind {
        "widens" => "error",
        "narrows" => "warning",
        _ => "notice",
    }
}

fn annotation(out: &mut String, level: &str, report: &Report, line: Option<Line>, title: &str, said: &str) {
    let mut properties = Vec::new();
    if let Some(file) = &report.file {
        properties.push(format!("file={}", property(file)));
        properties.extend(line.map(|line| format!("line={}", line.0)));
    }
    properties.push(format!("title={}", property(title)));
    let _ = writeln!(out, "::{level} {}::{}", properties.join(","), data(said));
}

/// What stands behind the second `::`, escaped as GitHub's own toolkit does (`escapeData` of actions/toolkit).
fn data(text: &str) -> String {
    text.replace('%', "%25").replace('\r', "%0D").replace('\n', "%0A")
}

/// A value between the two (`escapeProperty`).
fn property(text: &str) -> String {
    data(text).replace(':', "%3A").replace(',', "%2C")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_a_file_is_called_ends_the_annotation() {
        assert_eq!(property("a,b:c%d\r\ne"), "a%2Cb%3Ac%25d%0D%0Ae");
        assert_eq!(data("a,b:c%d\ne"), "a,b:c%25d%0Ae");
    }
}
