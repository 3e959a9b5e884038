//! A comparison for programs: `egressguard.diff/1`.

use serde_json::{Map, Value, json};

use crate::command::diff::{Place, Report, Told, effect, kind};
use crate::judge::Verdict;
use crate::judge::compare::{Kind, Setting, Space};

/// The whole object.
pub fn write(report: &Report) -> Value {
    json!({
        "schema": "egressguard.diff/1",
        "same": report.is_same(),
        "old": report.old,
        "new": report.new,
        "widens": report.widens(),
        "narrows": report.narrows(),
        "reroutes": report.count(Kind::Reroutes),
        "changes": report.changes.iter().map(change).collect::<Vec<_>>(),
        "settings": report.settings.iter().map(setting).collect::<Vec<_>>(),
    })
}

fn change(told: &Told) -> Value {
    let verdict = |verdict: Verdict| if verdict == Verdict::Allow { "allow" } else { "deny" };
    let place = |place: &Place| json!({"rule": place.rule, "line": place.line.map(|line| line.0)});
    let mut value = json!({
        "kind": kind(told.change.kind),
        "from": verdict(told.change.before.verdict),
        "to": verdict(told.change.after.verdict),
        "witness": told.change.witness.spec.to_string(),
        "before": place(&told.before),
        "after": place(&told.after),
        "space": space(&told.space),
    });
    if let Value::Object(fields) = &mut value {
        if !told.change.witness.besides.is_empty() {
            fields.insert("witness_is".to_string(), json!(told.change.witness.besides));
        }
        if !told.parts.is_empty() {
            fields.insert("parts".to_string(), told.parts.iter().map(space).collect());
        }
    }
    value
}

fn space(space: &Space) -> Value {
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
