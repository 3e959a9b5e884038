//! The report as Markdown, for an issue or a mail.

use std::fmt::Write;

use crate::command::diff::markdown::code;
use crate::command::report::Told;
use crate::violation::report::CountedBy;

/// The whole report.
pub fn write(told: &Told) -> String {
    let report = &told.report;
    let mut page = String::new();
    let _ = writeln!(page, "# Refused packets\n\n**{}** packets from {} to {}.\n", report.total, report.since, report.until);
    if !report.violations.is_empty() {
        page.push_str("| count | way | protocol | who | where | program | last | to allow |\n|--:|---|---|---|---|---|---|---|\n");
    }
    for violation in &report.violations {
        let mark = if violation.counted_by == CountedBy::Watch { "~" } else { "" };
        let allow = told.suggestion(violation).map_or_else(String::new, |line| code(&line));
        let _ = writeln!(
            page,
            "| {mark}{} | {} | {} | {} | {} | {} | {} | {allow} |",
            violation.count,
            violation.tuple.direction.word(),
            violation.tuple.protocol,
            plain(&told.who(violation)),
            plain(&told.place(violation)),
            plain(&told.program(violation)),
            violation.last,
        );
    }
    for remark in told.remarks() {
        let _ = write!(page, "\n{}\n", plain(&remark));
    }
    page
}

/// Text in which nothing is markup.
fn plain(text: &str) -> String {
    let mut written = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            c if c.is_control() => written.push(' '),
            '&' => written.push_str("&amp;"),
            '<' => written.push_str("&lt;"),
            '>' => written.push_str("&gt;"),
            '\\' | '`' | '*' | '_' | '{' | '}' | '[' | ']' | '(' | ')' | '#' | '!' | '|' | '~' | '@' => {
                written.push('\\');
                written.push(c);
            }
            c => written.push(c),
        }
    }
    written
}
