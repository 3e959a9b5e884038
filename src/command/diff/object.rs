//! A comparison for programs: `egressguard.diff/1`.

use serde_json::{Map, Value, json};

use crate::command::diff::{Place, Report, Told, effect, kind};
use crate::judge::Verdict;
use crate::judge::compare::{Fit, Kind, Setting, Space, Symbols, space};

/// The whole object. Of a large comparison it is the larger half, so the report goes as the object grows.
pub fn write(report: Report) -> Value {
    let (same, widens, narrows, reroutes) = (report.is_same(), report.widens(), report.narrows(), report.count(Kind::Reroutes));
    let Report { old, new, changes, settings, symbols, .. } = report;
    let changes: Vec<Value> = changes.into_iter().map(|told| change(&told, &symbols)).collect();
    let mut object = json!({
        "schema": "egressguard.diff/1",
        "same": same,
        "old": old,
        "new": new,
        "widens": widens,
        "narrows": narrows,
        "reroutes": reroutes,
        "changes": null,
        "settings": settings.iter().map(setting).collect::<Vec<_>>(),
    });
    if let Value::Object(fields) = &mut object {
        // In its place, and not copied, as `json!` would.
        fields.insert("changes".to_string(), Value::Array(changes));
    }
    object
}

fn change(told: &Told, symbols: &Symbols) -> Value {
    // Where the bounds are exact, there is one part, and it is the same.
    let parts = told.change.parts.iter().filter(|_| told.change.fit != Fit::Exact);
    let parts: Vec<Value> = parts.map(|part| words(&space(part, symbols))).collect();
    let verdict = |verdict: Verdict| if verdict == Verdict::Allow { "allow" } else { "deny" };
    let place = |place: &Place| json!({"rule": place.rule, "line": place.line.map(|line| line.0)});
    let mut value = json!({
        "kind": kind(told.change.kind),
        "from": verdict(told.change.before.verdict),
        "to": verdict(told.change.after.verdict),
        "witness": told.change.witness.spec.to_string(),
        "before": place(&told.before),
        "after": place(&told.after),
        "space": words(&space(&told.change.hull, symbols)),
    });
    if let Value::Object(fields) = &mut value {
        if !told.change.witness.besides.is_empty() {
            fields.insert("witness_is".to_string(), json!(told.change.witness.besides));
        }
        if !parts.is_empty() {
            fields.insert("parts".to_string(), Value::Array(parts));
        }
    }
    value
}

fn words(space: &Space) -> Value {
    Value::Object(space.iter().map(|(name, value)| (name.to_string(), Value::String(value.clone()))).collect::<Map<_, _>>())
}

fn setting(setting: &Setting) -> Value {
    json!({
        "setting": setting.name,
        "before": setting.before,
        "after": setting.after,
        "kind": effect(setting.effect),
        "because": setting.because,
    })
}
