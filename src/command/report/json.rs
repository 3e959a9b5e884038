//! The report as JSON: `egressguard.report/1`.

use serde_json::{Value, json};

use crate::command::report::Told;
use crate::violation::Who;
use crate::violation::book::Findings;
use crate::violation::report::{CountedBy, Cut, Violation};

/// The whole report.
pub fn value(told: &Told) -> Value {
    let report = &told.report;
    json!({
        "schema": "egressguard.report/1",
        "since": report.since.to_string(),
        "until": report.until.to_string(),
        "policy": told.policy,
        "total": report.total,
        "violations": report.violations.iter().map(|violation| of(told, violation)).collect::<Vec<_>>(),
        "overflow": report.overflow.iter().map(|(direction, packets)| (direction.word().to_string(), (*packets).into())).collect::<serde_json::Map<_, _>>(),
        "other": report.other,
        "lost": report.lost,
        "unknown": report.unknown.iter().map(|(from, to)| json!({"from": from.to_string(), "to": to.to_string()})).collect::<Vec<_>>(),
        "cuts": report.cuts.iter().map(|(at, cut)| match cut {
            Cut::Off(evidence) => json!({"at": at.to_string(), "what": "cut", "evidence": evidence}),
            Cut::Released(uid) => json!({"at": at.to_string(), "what": "release", "uid": uid}),
        }).collect::<Vec<_>>(),
        "later": report.later,
        "harvested": report.harvested.map(|harvested| harvested.to_string()),
        "by_time": report.by_time,
    })
}

fn of(told: &Told, violation: &Violation) -> Value {
    let tuple = &violation.tuple;
    let (uid, source) = match tuple.who {
        Who::User(uid) => (Some(uid), None),
        Who::Source(source) => (None, Some(source.to_string())),
        Who::Anybody => (None, None),
    };
    json!({
        "direction": tuple.direction.word(),
        "protocol": tuple.protocol.to_string(),
        "destination": tuple.destination.map(|address| address.to_string()),
        "port": tuple.port,
        "name": violation.name,
        "user": uid.and_then(|uid| told.user(violation, uid)),
        "uid": uid,
        "source": source,
        "process": violation.process,
        "service": violation.service,
        "rule": violation.rule,
        "count": violation.count,
        "bytes": violation.bytes,
        "counted_by": match violation.counted_by { CountedBy::Kernel => "kernel", CountedBy::Watch => "watch" },
        "first": violation.first.to_string(),
        "last": violation.last.to_string(),
        "suggestion": told.suggestion(violation),
    })
}

/// What a check of the books found: `egressguard.journal/1`.
pub fn check(books: &[(&'static str, String, Findings)]) -> Value {
    let of = |(name, place, findings): &(&'static str, String, Findings)| {
        let listed = findings.findings.iter().map(|finding| json!({"file": finding.file, "line": finding.line, "what": finding.what.to_string(), "fault": finding.what.is_fault()}));
        json!({
            "book": name,
            "place": place,
            "records": findings.records,
            "whole": !findings.has_fault(),
            "findings": listed.collect::<Vec<_>>(),
            "more": findings.more,
        })
    };
    json!({"schema": "egressguard.journal/1", "whole": books.iter().all(|book| !book.2.has_fault()), "books": books.iter().map(of).collect::<Vec<_>>()})
}
