//! `test`: a policy's own tests, run against its compiled rules. Needs no root, no network and no state.

use std::fmt::Write;

use serde_json::{Value, json};

use crate::command::arguments::TestArguments;
use crate::command::{Exit, Failure, Output, source, verdict};
use crate::judge::{TestOutcome, is_placeholder, policy_tests};
use crate::pins::Pins;
use crate::policy::{Expectation, Policy};
use crate::ruleset::compile::Facts;
use crate::world::World;

/// Runs `test`.
pub fn test(arguments: &TestArguments, world: &mut World, output: &mut Output) -> Result<Exit, Failure> {
    let policy = source::load(&arguments.policy.policy, world.documents, output)?.policy;
    let pins = match &arguments.pins {
        Some(path) => source::pins(path, world.documents)?,
        None => Pins::default(),
    };
    let outcomes = policy_tests(&policy, &pins, &source::symbolic_facts(&policy));
    let failed = outcomes.iter().filter(|outcome| !outcome.ok).count();
    let passed = outcomes.len() - failed;
    if arguments.json {
        let tests: Vec<Value> = outcomes.iter().map(outcome_json).collect();
        output.json(&json!({"schema": "egressguard.test/1", "passed": passed, "failed": failed, "tests": tests}))?;
    } else {
        for outcome in &outcomes {
            output.say(&describe(&policy, outcome))?;
        }
        output.say(&format!("{passed} passed, {failed} failed"))?;
    }
    Ok(if failed == 0 { Exit::Done } else { Exit::No })
}

/// The failing tests of a policy, each with its trace; `None` when all hold.
pub fn failing(policy: &Policy, pins: &Pins, facts: &Facts) -> Option<String> {
    let failed: Vec<String> =
        policy_tests(policy, pins, facts).iter().filter(|outcome| !outcome.ok).map(|outcome| describe(policy, outcome)).collect();
    (!failed.is_empty()).then(|| failed.join("\n"))
}

fn describe(policy: &Policy, outcome: &TestOutcome) -> String {
    let sign = if outcome.ok { "ok  " } else { "FAIL" };
    let mut text = format!("{sign} {}:{}: {}: {}", policy.file, outcome.line.0, word(outcome.expect), outcome.packet);
    match &outcome.decisive {
        Some((packet, trace)) if !outcome.ok => {
            let (got, by) = (verdict::word(trace.verdict), verdict::place(&trace.rule, Some(policy)));
            // A name without pins is asked about as a whole.
            let asked = if is_placeholder(&packet.destination) { outcome.packet.to_string() } else { packet.spec().to_string() };
            let _ = write!(text, "\n     `{asked}` gets: {got}, by rule {by}");
            for step in verdict::steps(trace, "       ") {
                let _ = write!(text, "\n{step}");
            }
        }
        None => text.push_str("\n     no packet can be like this"),
        Some(_) => {}
    }
    text
}

fn outcome_json(outcome: &TestOutcome) -> Value {
    let (got, rule) = outcome.decisive.as_ref().map(|(_, trace)| (verdict::word(trace.verdict), trace.rule.clone())).unzip();
    json!({
        "line": outcome.line.0,
        "expect": word(outcome.expect),
        "packet": outcome.packet.to_string(),
        "verdict": got,
        "rule": rule,
        "ok": outcome.ok,
    })
}

fn word(expect: Expectation) -> &'static str {
    match expect {
        Expectation::Allow => "allow",
        Expectation::Deny => "deny",
    }
}
