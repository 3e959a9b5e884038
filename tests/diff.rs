//! `diff` as people and CI run it: two files, standard input, a revision of a git repository, and the files of `docs/ci`. No root, no
//! network, no state.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use tempfile::TempDir;

const OLD: &str = "version: 1\noutbound:\n  - to: api.openai.com\n";
const NEW: &str = "version: 1\noutbound:\n  - to: api.openai.com\n  - to: api.anthropic.com\n";

/// A directory, empty unless said.
struct Place(TempDir);

impl Place {
    fn new() -> Place {
        Place(tempfile::tempdir().expect("a temporary directory"))
    }

    /// A repository whose branch `main` holds the old policy, in a directory of its own.
    fn repository() -> Place {
        let place = Place::new();
        fs::create_dir(place.path("host")).unwrap();
        place.write("host/policy.yaml", OLD);
        place.git(&["init", "--quiet", "--initial-branch=main"]);
        place.git(&["add", "."]);
        place.git(&["commit", "--quiet", "-m", "old"]);
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).expect("a temporary file can be written");
    }

    fn git(&self, arguments: &[&str]) {
        let mut git = Command::new("git");
        git.args(["-c", "user.name=t", "-c", "user.email=t@example.com", "-c", "commit.gpgsign=false"]).args(arguments);
        let output = alone(&mut git).current_dir(self.0.path()).output().expect("git runs");
        assert!(output.status.success(), "git {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_egressguard"));
        command.args(arguments).current_dir(self.0.path());
        alone(&mut command);
        command
    }

    #[track_caller]
    fn diff(&self, arguments: &[&str], code: i32) -> String {
        said(self.command(&[&["diff"], arguments].concat()).output().expect("the program runs"), code)
    }
}

/// Without what git keeps in the environment of hooks, or in a home.
fn alone(command: &mut Command) -> &mut Command {
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("GIT_")) {
        command.env_remove(name);
    }
    command.env("GIT_CONFIG_GLOBAL", "/dev/null").env("GIT_CONFIG_SYSTEM", "/dev/null").stdin(Stdio::null())
}

#[track_caller]
fn said(output: Output, code: i32) -> String {
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(code), "{text}");
    text
}

#[track_caller]
fn holds(text: &str, words: &[&str]) {
    for word in words {
        assert!(text.contains(word), "nothing is said of `{word}`:\n{text}");
    }
}

#[test]
fn two_files_need_nothing_else() {
    let place = Place::new();
    place.write("old.yaml", OLD);
    place.write("new.yaml", NEW);
    holds(&place.diff(&["old.yaml", "new.yaml"], 1), &["widens 2", "tcp to api.anthropic.com:443", "new.yaml:4"]);
    holds(&place.diff(&["new.yaml", "old.yaml"], 1), &["narrows 2", "new.yaml:4"]);
    place.diff(&["new.yaml", "old.yaml", "--fail-on", "widens"], 0);
    place.diff(&["old.yaml", "new.yaml", "--fail-on", "widens"], 1);
    holds(&place.diff(&["old.yaml", "old.yaml"], 0), &["same"]);
    holds(&place.diff(&["builtin:lockdown", "builtin:openai"], 1), &["api.openai.com", "in tcp"]);
    assert_eq!(place.diff(&["old.yaml", "new.yaml", "--quiet"], 1), "");
}

#[test]
fn one_of_two_policies_may_come_from_standard_input() {
    let place = Place::new();
    place.write("old.yaml", OLD);
    let mut child = place
        .command(&["diff", "old.yaml", "-", "--json"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program runs");
    child.stdin.take().expect("a pipe").write_all(NEW.as_bytes()).expect("the program listens");
    holds(&said(child.wait_with_output().expect("the program ends"), 1), &["\"new\": \"-\"", "api.anthropic.com"]);
    holds(&place.diff(&["-", "-"], 2), &["standard input can be read once", "help:"]);
}

#[test]
fn a_wrong_question_is_told_apart_from_a_world_that_refuses() {
    let place = Place::new();
    place.write("old.yaml", OLD);
    place.write("wrong.yaml", "version: 1\noutbund: []\n");
    holds(&place.diff(&["old.yaml", "wrong.yaml"], 2), &["wrong.yaml:2", "outbound"]);
    holds(&place.diff(&["wrong.yaml", "old.yaml"], 2), &["wrong.yaml:2"]);
    holds(&place.diff(&["old.yaml", "absent.yaml"], 3), &["absent.yaml", "ENOENT", "help:"]);
    place.diff(&["old.yaml", "old.yaml", "old.yaml"], 2);
    holds(&place.diff(&["old.yaml", "old.yaml", "--git", "main"], 2), &["--git"]);
    holds(&place.diff(&["builtin:openai", "--git", "main"], 2), &["no file"]);
}

#[test]
fn a_file_is_compared_with_what_it_was() {
    let place = Place::repository();
    holds(&place.diff(&["--git", "main", "host/policy.yaml"], 0), &["same: main:host/policy.yaml"]);
    place.write("host/policy.yaml", NEW);
    holds(&place.diff(&["--git", "HEAD", "host/policy.yaml"], 1), &["widens 2", "api.anthropic.com", "host/policy.yaml:4"]);
    // From another directory, by an absolute path, and at a commit that is named by a number.
    let elsewhere = Place::new();
    let absolute = place.path("host/policy.yaml").display().to_string();
    holds(&elsewhere.diff(&["--git", "main", &absolute], 1), &["widens 2"]);
    place.git(&["commit", "--quiet", "-am", "new"]);
    place.diff(&["--git", "main", "host/policy.yaml"], 0);
    holds(&place.diff(&["--git", "main~1", "host/policy.yaml"], 1), &["widens 2"]);
}

#[test]
fn what_git_cannot_answer_is_said_with_the_next_step() {
    let place = Place::repository();
    for revision in ["absent", "--help", "", "main:host", "HEAD~7"] {
        holds(&place.diff(&[&format!("--git={revision}"), "host/policy.yaml"], 3), &["has no revision", "help:"]);
    }
    place.write("host/other.yaml", NEW);
    holds(&place.diff(&["--git", "main", "host/other.yaml"], 3), &["`host/other.yaml` is not part of revision `main`", "help:"]);
    let outside = Place::new();
    outside.write("policy.yaml", OLD);
    let mut command = outside.command(&["diff", "--git", "main", "policy.yaml"]);
    // Temporary directories may lie inside somebody's repository.
    command.env("GIT_CEILING_DIRECTORIES", outside.0.path().parent().unwrap());
    holds(&said(command.output().unwrap(), 3), &["lies in no git repository", "help:"]);
    let empty = Place::new();
    let mut command = place.command(&["diff", "--git", "main", "host/policy.yaml"]);
    holds(&said(command.env("PATH", empty.0.path()).output().unwrap(), 3), &["git is not to be found", "ENOENT", "help:"]);
}

fn ci(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/ci").join(name)
}

#[test]
fn the_script_for_any_ci_checks_tests_and_compares() {
    let place = Place::repository();
    let check = |arguments: &[&str], code: i32| {
        let mut script = Command::new(ci("check-policy"));
        script.args(arguments).current_dir(place.0.path()).env("EGRESSGUARD", env!("CARGO_BIN_EXE_egressguard"));
        said(alone(&mut script).output().expect("the script runs"), code)
    };
    holds(&check(&["host/policy.yaml", "main"], 0), &["ok: host/policy.yaml", "0 failed", "same"]);
    place.write("host/policy.yaml", NEW);
    holds(&check(&["host/policy.yaml", "main"], 1), &["widens 2", "api.anthropic.com"]);
    place.write("host/policy.yaml", "version: 1\noutbound: []\n");
    holds(&check(&["host/policy.yaml", "main"], 0), &["narrows 4"]);
    holds(&check(&["host/policy.yaml", "main", "any"], 1), &["narrows 4"]);
    place.write("host/policy.yaml", &format!("{OLD}tests:\n  - allow: tcp to api.anthropic.com:443\n"));
    holds(&check(&["host/policy.yaml", "main"], 1), &["FAIL"]);
    place.write("host/policy.yaml", &OLD.replace("api.openai.com", "0.0.0.0/0\n    port: 443"));
    holds(&check(&["host/policy.yaml", "main"], 2), &["wider than"]);
    place.write("host/new.yaml", NEW);
    holds(&check(&["host/new.yaml", "main"], 1), &["is not part of main", "widens"]);
    holds(&check(&["host/new.yaml", "absent"], 3), &["has no revision `absent`"]);
}

/// GitHub is not here to try it on; that it is one YAML document with the parts a workflow has can be known.
#[test]
fn the_workflow_for_github_is_a_workflow() {
    let text = fs::read_to_string(ci("github.yml")).unwrap();
    let events: Vec<_> = granit_parser::Parser::new_from_str(&text).map(|event| event.expect("YAML").0).collect();
    let documents = events.iter().filter(|event| matches!(event, granit_parser::Event::DocumentStart(..))).count();
    assert_eq!(documents, 1);
    let top: Vec<&str> = text.lines().filter(|line| line.starts_with(char::is_alphabetic)).collect();
    assert_eq!(top, ["name: egressguard", "on:", "permissions:", "env:", "jobs:"]);
    // Every command of it is one that the program takes.
    let place = Place::repository();
    for line in text.lines().map(str::trim).filter_map(|line| line.split_once("egressguard diff ").map(|(_, rest)| rest)) {
        let words = line.split('>').next().unwrap_or(line).replace("\"${against[@]}\"", "--git \"$BASE\"");
        let words = words.split_whitespace().map(|word| match word.trim_matches('"') {
            "$BASE" => "main",
            "$POLICY" => "host/policy.yaml",
            "$FAIL_ON" => "widens",
            word => word,
        });
        place.diff(&words.collect::<Vec<_>>(), 0);
    }
}
