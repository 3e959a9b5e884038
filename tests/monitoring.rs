//! docs/monitoring: that Prometheus and Grafana can read what is there. That every figure they ask for is one that `metrics` prints is
//! held by `tests/story_watch.rs::metrics_are_served_and_the_command_prints_the_same`.

use std::process::{Command, Stdio};

use serde_json::Value;

const RULES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/monitoring/egressguard.rules.yml");
const DASHBOARD: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/monitoring/grafana.json");

/// The rules as JSON, read by a parser of the distribution; nothing, with a line that says so, where it is missing.
fn rules() -> Option<Value> {
    let script = "import json, sys, yaml; json.dump(yaml.safe_load(open(sys.argv[1])), sys.stdout)";
    let output = Command::new("/usr/bin/python3").args(["-c", script, RULES]).output();
    match output {
        Ok(output) if output.status.success() => Some(serde_json::from_slice(&output.stdout).expect("JSON")),
        other => {
            assert!(std::env::var_os("EGRESSGUARD_REQUIRE_KERNEL").is_none(), "python3-yaml is needed: {other:?}");
            eprintln!("skipped: no python3-yaml");
            None
        }
    }
}

/// Whether brackets and quotes of a query close.
fn closes(query: &str) -> bool {
    let mut open = Vec::new();
    let mut quoted = false;
    for c in query.chars() {
        match c {
            '"' => quoted = !quoted,
            _ if quoted => {}
            '(' | '[' | '{' => open.push(c),
            ')' if open.pop() != Some('(') => return false,
            ']' if open.pop() != Some('[') => return false,
            '}' if open.pop() != Some('{') => return false,
            _ => {}
        }
    }
    open.is_empty() && !quoted
}

#[test]
fn every_alert_rule_has_a_query_a_severity_and_words() {
    // Prometheus's own check, where it is installed, says more.
    if let Ok(output) = Command::new("promtool").args(["check", "rules", RULES]).stdin(Stdio::null()).output() {
        assert!(output.status.success(), "{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    }
    let Some(rules) = rules() else { return };
    let rules = rules["groups"][0]["rules"].as_array().expect("a list").clone();
    assert!(rules.len() >= 8);
    for rule in rules {
        let name = rule["alert"].as_str().unwrap_or_else(|| panic!("{rule}"));
        assert!(rule["expr"].as_str().is_some_and(closes), "{name}");
        assert!(["warning", "critical"].contains(&rule["labels"]["severity"].as_str().unwrap_or("")), "{name}");
        for word in ["summary", "description"] {
            assert!(rule["annotations"][word].as_str().is_some_and(|words| !words.is_empty()), "{name} has no {word}");
        }
    }
}

#[test]
fn every_panel_of_the_dashboard_has_its_own_place_and_a_query() {
    let dashboard: Value = serde_json::from_str(&std::fs::read_to_string(DASHBOARD).expect("it is there")).expect("JSON");
    let panels = dashboard["panels"].as_array().expect("panels");
    let mut taken = std::collections::BTreeSet::new();
    for panel in panels {
        let title = panel["title"].as_str().expect("a title");
        let number = |key: &str| panel["gridPos"][key].as_u64().unwrap_or_else(|| panic!("{title}: {key}"));
        assert!(number("x") + number("w") <= 24, "{title} is beyond the edge");
        for x in number("x")..number("x") + number("w") {
            for y in number("y")..number("y") + number("h") {
                assert!(taken.insert((x, y)), "{title} lies on another");
            }
        }
        let targets = panel["targets"].as_array().expect("queries");
        assert!(!targets.is_empty() && targets.iter().all(|target| target["expr"].as_str().is_some_and(closes)), "{title}");
    }
    assert!(panels.len() >= 10);
}
