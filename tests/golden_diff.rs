//! Every directory `tests/golden/diff/CASE` holds two policies, `old.yaml` and `new.yaml`, and what the program says of them, in
//! `expected.FORMAT` for each format. Adding a case is adding a directory; `UPDATE_GOLDEN=1` writes what is expected, for reading.

use std::fs::{read_dir, read_to_string, write};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

const FORMATS: [&str; 4] = ["text", "json", "markdown", "github"];

fn cases() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/diff");
    let mut cases: Vec<PathBuf> = read_dir(root).expect("the cases").map(|entry| entry.expect("a case").path()).collect();
    cases.sort();
    assert!(cases.len() >= 25, "only {} cases", cases.len());
    cases
}

/// Exit code and answer.
fn diff(case: &Path, arguments: &[&str]) -> (i32, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_egressguard"));
    let output = command.current_dir(case).args(["diff", "old.yaml", "new.yaml"]).args(arguments).output().expect("the program runs");
    let words = String::from_utf8_lossy(&output.stderr);
    let errors: Vec<&str> = words.lines().filter(|line| line.starts_with("error")).collect();
    assert!(errors.is_empty(), "{case:?}: {words}");
    (output.status.code().unwrap_or(-1), String::from_utf8(output.stdout).expect("text"))
}

#[test]
fn every_pair_of_policies_differs_as_a_person_has_read() {
    let mut wrong = Vec::new();
    for case in cases() {
        for format in FORMATS {
            let (_, found) = diff(&case, &["--format", format]);
            let path = case.join(format!("expected.{format}"));
            if std::env::var_os("UPDATE_GOLDEN").is_some() {
                write(&path, found).expect("the expectation can be written");
            } else if read_to_string(&path).unwrap_or_default() != found {
                wrong.push(format!("{}: found\n{found}", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}\n(UPDATE_GOLDEN=1 writes what was found, for reading)", wrong.join("\n"));
}

#[test]
fn the_exit_code_says_whether_something_differs_or_is_wider() {
    for case in cases() {
        let (any, json) = diff(&case, &["--json"]);
        let (wider, _) = diff(&case, &["--fail-on", "widens", "--quiet"]);
        let value: Value = serde_json::from_str(&json).expect("a JSON object");
        assert_eq!(any, i32::from(value["same"] != true), "{case:?}");
        assert_eq!(wider, i32::from(value["widens"] != 0), "{case:?}");
    }
}

#[test]
fn no_line_of_the_text_is_wider_than_a_terminal() {
    for case in cases() {
        let (_, text) = diff(&case, &[]);
        let wide = text.lines().find(|line| line.chars().count() > 100);
        assert_eq!(wide, None, "{case:?}");
    }
}

/// The shape that others build on: it may grow, and nothing of it may go.
#[test]
fn the_object_has_its_shape() {
    for case in cases() {
        let (_, json) = diff(&case, &["--json"]);
        let value: Value = serde_json::from_str(&json).expect("a JSON object");
        assert_eq!(value["schema"], "egressguard.diff/1");
        assert!(value["same"].is_boolean() && value["widens"].is_u64() && value["narrows"].is_u64(), "{case:?}");
        for change in value["changes"].as_array().expect("a list") {
            assert!(["widens", "narrows", "reroutes"].iter().any(|kind| change["kind"] == *kind), "{change}");
            assert!(["from", "to"].iter().all(|end| change[*end] == "allow" || change[*end] == "deny"), "{change}");
            assert!(change["witness"].is_string() && change["space"]["protocol"].is_string(), "{change}");
            for side in ["before", "after"] {
                assert!(change[side]["rule"].is_string() && (change[side]["line"].is_u64() || change[side]["line"].is_null()), "{change}");
            }
        }
    }
}
