//! What `explain` and `test` say, word for word. A case is a file in `tests/golden/explain`: a first line that says what it is about,
//! then lines that begin with `$`, each followed by what the program writes. Adding one touches no code; `UPDATE_GOLDEN=1` writes what
//! is found, for reading.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

#[test]
fn every_question_is_answered_in_the_words_that_a_person_has_read() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/explain");
    let mut cases: Vec<PathBuf> = fs::read_dir(&root).expect("the cases").map(|entry| entry.expect("a case").path()).collect();
    cases.retain(|path| path.extension().is_some_and(|extension| extension == "txt"));
    cases.sort();
    assert!(cases.len() >= 8, "cases are missing");
    let mut wrong = Vec::new();
    for path in cases {
        let expected = fs::read_to_string(&path).expect("a case can be read");
        let found = answered(&expected, &root);
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            fs::write(&path, found).expect("the expectation can be written");
        } else if expected != found {
            wrong.push(format!("{}\n--- expected\n{expected}--- found\n{found}", path.display()));
        }
    }
    assert!(wrong.is_empty(), "{}\n(UPDATE_GOLDEN=1 writes what was found, for reading)", wrong.join("\n"));
}

/// The text of a case with what the program says now.
fn answered(case: &str, root: &Path) -> String {
    let mut out = String::new();
    for line in case.lines() {
        if let Some(command) = line.strip_prefix("$ ") {
            let _ = write!(out, "{}{line}\n{}", if out.is_empty() { "" } else { "\n" }, run(command, root));
        } else if line.starts_with('#') && out.is_empty() {
            let _ = writeln!(out, "{line}");
        }
    }
    out
}

/// Runs one command line, in which double quotes keep words together.
fn run(line: &str, root: &Path) -> String {
    let words = line.split('"').enumerate().flat_map(|(part, text)| match part % 2 {
        0 => text.split_whitespace().map(str::to_string).collect(),
        _ => vec![text.to_string()],
    });
    let mut command = Command::new(env!("CARGO_BIN_EXE_egressguard"));
    command.args(words).args(["--state-dir", "/nonexistent", "--resolv-conf", "resolv.conf"]);
    let ran = command.current_dir(root).env("NO_COLOR", "1").env("COLUMNS", "100").stdin(Stdio::null()).output().expect("it runs");
    let mut out = String::from_utf8_lossy(&ran.stdout).into_owned();
    out.push_str(&String::from_utf8_lossy(&ran.stderr));
    let _ = writeln!(out, "[{}]", ran.status.code().unwrap_or(-1));
    out
}
