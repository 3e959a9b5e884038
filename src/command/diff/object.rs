//! A comparison for programs: `egressguard.diff/1`.

use serde::{Serialize, Serializer};
use serde_json::{Map, Value, json};

use crate::command::diff::{Place, Report, Told, effect, kind};
use crate::judge::Verdict;
use crate::judge::compare::{Fit, Kind, Setting, Space, Symbols, space};

/// The whole object. It is made piece by piece as it is written: of a large comparison it would be the larger half.
#[derive(Serialize)]
pub struct Object<'a> {
    schema: &'static str,
    same: bool,
    old: &'a str,
    new: &'a str,
    widens: usize,
    narrows: usize,
    reroutes: usize,
    changes: Changes<'a>,
    settings: Vec<Value>,
}

/// The changes of a report.
struct Changes<'a>(&'a Report);

impl<'a> Object<'a> {
    /// The object of a report.
    pub fn of(report: &'a Report) -> Object<'a> {
        Object {
            schema: "egressguard.diff/1",
            same: report.is_same(),
            old: &report.old,
            new: &report.new,
            widens: report.widens(),
            narrows: report.narrows(),
            reroutes: report.count(Kind::Reroutes),
            changes: Changes(report),
            settings: report.settings.iter().map(setting).collect(),
        }
    }
}

impl Serialize for Changes<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.changes.iter().map(|told| change(told, &self.0.symbols)))
    }
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
