//! How a verdict and the way to it are told, in text and in JSON. Shared by everything that judges packets for people.

use serde_json::{Value, json};

use crate::judge::{Outcome, Refusal, Trace, Verdict};
use crate::policy::Policy;

/// The two words of every answer.
pub fn word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Allow => "allow",
        Verdict::Deny { .. } => "deny",
    }
}

/// How a refusal is made.
pub fn refusal(verdict: Verdict) -> Option<&'static str> {
    match verdict {
        Verdict::Allow => None,
        Verdict::Deny { how: Refusal::Drop } => Some("drop"),
        Verdict::Deny { how: Refusal::Reset } => Some("reset"),
        Verdict::Deny { how: Refusal::Prohibit } => Some("prohibit"),
    }
}

/// What the sender of a refused packet learns.
pub fn learns(verdict: Verdict) -> Option<&'static str> {
    match verdict {
        Verdict::Allow => None,
        Verdict::Deny { how: Refusal::Drop } => Some("the sender hears nothing"),
        Verdict::Deny { how: Refusal::Reset } => Some("the sender gets a TCP reset"),
        Verdict::Deny { how: Refusal::Prohibit } => Some("the sender gets \"administratively prohibited\""),
    }
}

/// The rule that decided and where it stands: `` `api`, policy.yaml:6 ``.
pub fn place(rule: &str, policy: Option<&Policy>) -> String {
    let name = if rule.is_empty() { "a rule without a comment".to_string() } else { format!("`{rule}`") };
    match policy.and_then(|policy| Some((policy, policy.rule_line(rule)?))) {
        Some((policy, line)) => format!("{name}, {}:{}", policy.file, line.0),
        None => match built_in(rule) {
            Some(why) => format!("{name}, built in: {why}"),
            None => name,
        },
    }
}

/// What a rule is for that no line of a policy asks for.
fn built_in(rule: &str) -> Option<&'static str> {
    Some(match rule {
        "loopback" => "what stays inside the host is not filtered",
        "established" => "it belongs to a connection that was allowed",
        "related" => "it is an error about a connection that was allowed",
        "neighbour" => "neighbours have to find each other",
        "dhcp" => "the host has to renew its lease",
        "ping" => "the policy says `host.ping: true`",
        "resolver" => "the DNS servers of the host",
        "late-answer" => "an answer on a connection that is not known any more, which is no violation",
        "invalid" => "it fits no connection, which is no violation",
        "refuse-out" => "nothing lets it out",
        "refuse-in" => "nothing lets it in",
        "refuse-forward" => "nothing lets it through",
        "policy" => "the end of the chain",
        "trial" => "before the policy on trial everything passed",
        "no-rules" => "no rules are loaded where it passes",
        _ => return None,
    })
}

/// Every rule that was tried, a line each, in columns.
pub fn steps(trace: &Trace, indent: &str) -> Vec<String> {
    let rows: Vec<[String; 4]> = trace
        .steps
        .iter()
        .map(|step| {
            let outcome = match &step.outcome {
                Outcome::Missed => "no".to_string(),
                Outcome::Matched => "yes".to_string(),
                Outcome::Entered { chain } => format!("to {chain}"),
                Outcome::Returned => "returns".to_string(),
                Outcome::Decided(verdict) => word(*verdict).to_string(),
            };
            [step.chain.clone(), step.rule.clone(), outcome, step.because.clone()]
        })
        .collect();
    let wide = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0).min(28);
    let (chain, rule, outcome) = (wide(0), wide(1), wide(2));
    rows.iter().map(|row| format!("{indent}{:<chain$}  {:<rule$}  {:<outcome$}  {}", row[0], row[1], row[2], row[3])).collect()
}

/// The same as JSON.
pub fn steps_json(trace: &Trace) -> Vec<Value> {
    let step = |step: &crate::judge::Step| {
        let (outcome, into) = match &step.outcome {
            Outcome::Missed => ("missed", None),
            Outcome::Matched => ("matched", None),
            Outcome::Entered { chain } => ("entered", Some(chain)),
            Outcome::Returned => ("returned", None),
            Outcome::Decided(verdict) => (word(*verdict), None),
        };
        let mut value = json!({"chain": step.chain, "rule": step.rule, "outcome": outcome, "because": step.because});
        if let Some(into) = into {
            value["into"] = json!(into);
        }
        value
    };
    trace.steps.iter().map(step).collect()
}
