//! A comparison for programs: `egressguard.diff/1`.

use serde::{Serialize, Serializer};
use serde_json::{Value, json};

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
        serializer.collect_seq(self.0.changes.iter().map(|told| Entry::of(told, &self.0.symbols)))
    }
}

/// A change.
#[derive(Serialize)]
struct Entry<'a> {
    kind: &'static str,
    from: &'static str,
    to: &'static str,
    witness: String,
    before: Decider<'a>,
    after: Decider<'a>,
    space: Words,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    witness_is: &'a [String],
    #[serde(skip_serializing_if = "Vec::is_empty")]
    parts: Vec<Words>,
}

/// Who decides.
#[derive(Serialize)]
struct Decider<'a> {
    rule: &'a str,
    line: Option<usize>,
}

/// A box in words, as an object.
struct Words(Space);

impl<'a> Entry<'a> {
    fn of(told: &'a Told, symbols: &Symbols) -> Entry<'a> {
        let change = &told.change;
        // Where the bounds are exact, there is one part, and it is the same.
        let parts = change.parts.iter().filter(|_| change.fit != Fit::Exact);
        let verdict = |verdict: Verdict| if verdict == Verdict::Allow { "allow" } else { "deny" };
        let decider = |place: &'a Place| Decider { rule: &place.rule, line: place.line.map(|line| line.0) };
        Entry {
            kind: kind(change.kind),
            from: verdict(change.before.verdict),
            to: verdict(change.after.verdict),
            witness: change.witness.spec.to_string(),
            before: decider(&told.before),
            after: decider(&told.after),
            space: Words(space(&change.hull, symbols)),
            witness_is: &change.witness.besides,
            parts: parts.map(|part| Words(space(part, symbols))).collect(),
        }
    }
}

impl Serialize for Words {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(name, words)| (name, words)))
    }
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
