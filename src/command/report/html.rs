//! The report as one self-contained page: no script, nothing from elsewhere, light and dark as the reader has it.

use maud::{DOCTYPE, Markup, PreEscaped, html};

use crate::base::time::Timestamp;
use crate::command::harmless;
use crate::command::report::Told;
use crate::violation::report::{CountedBy, PARTS, Report, Violation};

const STYLE: &str = include_str!("report.css");
/// The most that is listed; more makes a page that no browser likes.
const LISTED: usize = 1000;

/// The whole page.
pub fn write(told: &Told) -> String {
    let report = &told.report;
    let most = report.violations.first().map_or(1, |violation| violation.count).max(1);
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'";
                title { "egressguard: refused packets" }
                style { (PreEscaped(STYLE)) }
            }
            body {
                header {
                    h1 { (report.total) " packets refused" }
                    p {
                        "from " time { (report.since) } " to " time { (report.until) }
                        @if let Some(policy) = &told.policy { ", policy " code { (harmless(policy)) } }
                    }
                }
                (timeline(report))
                @if report.violations.is_empty() {
                    p.none { "Nobody tried anything that the policy does not allow." }
                } @else {
                    (table(told, most))
                }
                @let remarks = told.remarks();
                @if !remarks.is_empty() {
                    ul.remarks { @for remark in &remarks { li { (harmless(remark)) } } }
                }
            }
        }
    };
    page.into_string()
}

/// Packets by time, as bars.
fn timeline(report: &Report) -> Markup {
    let most = report.by_time.iter().copied().max().unwrap_or(0).max(1);
    let step = (report.until.0 - report.since.0) / PARTS as i64;
    let height = |packets: u64| if packets == 0 { 0.0 } else { 2.0 + 78.0 * packets as f64 / most as f64 };
    html! {
        figure {
            svg viewBox="0 0 960 100" role="img" aria-label="packets by time" preserveAspectRatio="none" {
                line x1="0" y1="90" x2="960" y2="90" class="axis" {}
                @for (part, packets) in report.by_time.iter().enumerate().filter(|(_, packets)| **packets > 0) {
                    @let at = Timestamp(report.since.0 + step * part as i64);
                    rect x=(part * 20 + 2) y=(format!("{:.1}", 90.0 - height(*packets))) width="16" height=(format!("{:.1}", height(*packets))) {
                        title { (packets) " packets from " (at) }
                    }
                }
            }
            figcaption { span { (report.since) } span { "at most " (most) " in one bar" } span { (report.until) } }
        }
    }
}

fn table(told: &Told, most: u64) -> Markup {
    let report = &told.report;
    html! {
        table {
            thead { tr { th.number { "packets" } th { "who" } th { "where" } th { "when" } th { "a policy's line that would allow it" } } }
            tbody {
                @for violation in report.violations.iter().take(LISTED) { (row(told, violation, most)) }
            }
        }
        @if report.violations.len() > LISTED {
            p { "and " (report.violations.len() - LISTED) " more: " code { "egressguard report --json" } " has them all" }
        }
    }
}

fn row(told: &Told, violation: &Violation, most: u64) -> Markup {
    let program = told.program(violation);
    let width = (100.0 * violation.count as f64 / most as f64).max(1.0);
    html! {
        tr {
            td.number data-label="packets" {
                @if violation.counted_by == CountedBy::Watch { span title="counted by watch: the kernel's sets were full" { "~" } }
                (violation.count)
                svg.bar viewBox="0 0 100 6" preserveAspectRatio="none" aria-hidden="true" { rect width=(format!("{width:.1}")) height="6" {} }
            }
            td data-label="who" {
                (harmless(&told.who(violation)))
                @if !program.is_empty() { br; small { (harmless(&program)) } }
            }
            td data-label="where" {
                (harmless(&told.place(violation)))
                br; small { (violation.tuple.direction.word()) ", " (violation.tuple.protocol) @if let Some(rule) = &violation.rule { ", " (harmless(rule)) } }
            }
            td data-label="when" { time { (violation.first) } br; time { (violation.last) } }
            td data-label="to allow" {
                @match told.suggestion(violation) {
                    Some(line) => code { (harmless(&line)) },
                    None => small { "no line allows it" },
                }
            }
        }
    }
}
