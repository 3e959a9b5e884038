//! The command line of what needs no kernel: what is data and what are words, exit codes, JSON, completions and manuals. Run as the
//! program itself, without root, without a state directory, and without a socket.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use clap::CommandFactory;
use egressguard::command::arguments::Arguments;
use egressguard::policy::BUILTIN_NAMES;
use serde_json::Value;

/// Three mistakes, in three blocks.
const WRONG: &str = "version: 1\nmode: observ\ninbound: {port: 70000}\noutbound:\n  - {to: a.example, prot: 443}\n";
/// Nothing wrong, and one thing odd.
const ODD: &str = "version: 1\ninbound: {port: 443}\n";
/// A policy that keeps one of its two promises.
const UNTRUE: &str = "version: 1\noutbound: [{to: a.example}]\ntests:\n  - allow: tcp to a.example:443\n  - allow: tcp to 192.0.2.7:443\n";
const PINS: &str = "egressguard pins 1\n\nname a.example\n  confirmed 2026-11-24T03:52:00Z\n  address 192.0.2.1 ttl 300 server \
                    192.0.2.53:53 first 2026-11-24T03:52:00Z expires 2026-11-25T03:52:00Z\n\nend 1\n";

/// How the program ended and what it said.
struct Ran {
    code: Option<i32>,
    out: String,
    err: String,
}

impl Ran {
    #[track_caller]
    fn exits(self, code: i32) -> Ran {
        assert_eq!(self.code, Some(code), "--- stdout\n{}--- stderr\n{}", self.out, self.err);
        self
    }

    #[track_caller]
    fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {}", self.out))
    }
}

/// A directory with the policies above, in which the program is run.
struct Desk(tempfile::TempDir);

impl Desk {
    fn new() -> Desk {
        let desk = Desk(tempfile::tempdir().unwrap());
        for (name, text) in [("wrong.yaml", WRONG), ("odd.yaml", ODD), ("untrue.yaml", UNTRUE), ("pins", PINS)] {
            fs::write(desk.0.path().join(name), text).unwrap();
        }
        desk
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_egressguard"));
        command.args(arguments).current_dir(self.0.path()).env("EGRESSGUARD_STATE_DIR", "/nonexistent/state").env_remove("NO_COLOR");
        command
    }

    fn run(&self, arguments: &[&str]) -> Ran {
        self.fed(arguments, "")
    }

    fn fed(&self, arguments: &[&str], input: &str) -> Ran {
        let mut command = self.command(arguments);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
        let output = child.wait_with_output().unwrap();
        let text = |octets: &[u8]| String::from_utf8(octets.to_vec()).unwrap();
        Ran { code: output.status.code(), out: text(&output.stdout), err: text(&output.stderr) }
    }
}

#[test]
fn check_shows_every_error_at_once_on_standard_error() {
    let ran = Desk::new().run(&["check", "wrong.yaml"]).exits(2);
    assert_eq!(ran.out, "");
    for place in ["wrong.yaml:2:7", "wrong.yaml:3:17", "wrong.yaml:5:21"] {
        assert!(ran.err.contains(place), "{}", ran.err);
    }
    assert!(ran.err.contains("did you mean `observe`?") && ran.err.contains("^^^^^^"), "{}", ran.err);
    assert!(ran.err.ends_with("3 errors in `wrong.yaml`\n"), "{}", ran.err);
}

#[test]
fn an_address_whose_end_looks_like_a_port_is_told_apart() {
    let desk = Desk::new();
    let asked = |packet: &str| desk.run(&["explain", packet, "builtin:openai"]);
    let said = asked("tcp to 2001:db8::1:443");
    assert!(said.err.contains("port 443 of another is written `[2001:db8::1]:443`"), "{}", said.err);
    assert!(asked("tcp to 2001:db8::443").err.contains("`[2001:db8::]:443`"));
    for clear in ["tcp to [2001:db8::1]:443", "tcp to 2001:db8::1", "tcp to 2001:db8::a443", "icmpv6 to 2001:db8::443"] {
        assert_eq!(asked(clear).err, "", "{clear}");
    }
}

#[test]
fn a_warning_is_an_error_to_a_strict_check_only() {
    let desk = Desk::new();
    let lax = desk.run(&["check", "odd.yaml"]).exits(0);
    assert!(lax.err.contains("warning: ") && lax.out.contains("ok with one warning"), "{}{}", lax.out, lax.err);
    let strict = desk.run(&["check", "--strict", "odd.yaml"]).exits(2);
    assert!(strict.err.contains("one error in `odd.yaml`, warnings counted as errors"), "{}", strict.err);
    assert_eq!(desk.run(&["check", "--strict", "builtin:openai"]).exits(0).out, "ok: builtin:openai\n");
}

#[test]
fn check_answers_with_one_json_object_whatever_it_finds() {
    let desk = Desk::new();
    let ran = desk.run(&["check", "--json", "wrong.yaml"]).exits(2);
    assert_eq!(ran.err, "");
    let answer = ran.json();
    assert_eq!(answer["schema"], "egressguard.check/1");
    let findings = answer["findings"].as_array().unwrap();
    assert_eq!(findings.len(), 3);
    let expected = serde_json::json!({
        "severity": "error", "line": 2, "column": 7, "message": "`observ` is no mode", "help": "did you mean `observe`?"
    });
    assert_eq!(findings[0], expected);
    let warned = desk.run(&["check", "--json", "odd.yaml"]).exits(0).json();
    assert_eq!(warned["findings"][0]["severity"], "warning");
    desk.run(&["check", "--json", "--strict", "odd.yaml"]).exits(2);
    assert_eq!(desk.run(&["check", "--json", "builtin:openai"]).exits(0).json()["findings"], serde_json::json!([]));
}

#[test]
fn a_failing_policy_test_is_the_answer_no_with_the_rule_and_the_reason() {
    let desk = Desk::new();
    let ran = desk.run(&["test", "untrue.yaml"]).exits(1);
    assert!(ran.out.contains("ok   untrue.yaml:4: allow: tcp to a.example:443"), "{}", ran.out);
    assert!(ran.out.contains("FAIL untrue.yaml:5: allow: tcp to 192.0.2.7:443") && ran.out.contains("by rule `refuse-out`"), "{}", ran.out);
    assert!(ran.out.ends_with("1 passed, 1 failed\n"), "{}", ran.out);
    let answer = desk.run(&["test", "--json", "untrue.yaml"]).exits(1).json();
    assert_eq!((&answer["schema"], &answer["passed"], &answer["failed"]), (&"egressguard.test/1".into(), &1.into(), &1.into()));
    assert_eq!((&answer["tests"][1]["line"], &answer["tests"][1]["verdict"]), (&5.into(), &"deny".into()));
    desk.run(&["test", "wrong.yaml"]).exits(2);
}

#[test]
fn every_shipped_policy_passes_its_own_tests() {
    let desk = Desk::new();
    for name in BUILTIN_NAMES {
        let ran = desk.run(&["test", &format!("builtin:{name}")]).exits(0);
        assert!(ran.out.ends_with(" passed, 0 failed\n") && !ran.out.starts_with("0 passed"), "{}", ran.out);
    }
}

#[test]
fn the_same_input_renders_to_the_same_text() {
    let desk = Desk::new();
    for arguments in [&["render", "untrue.yaml", "--pins", "pins"][..], &["render", "--json", "untrue.yaml"], &["render", "builtin:openai"]]
    {
        let first = desk.run(arguments).exits(0);
        assert_eq!(first.out, desk.run(arguments).exits(0).out, "{arguments:?}");
    }
}

#[test]
fn rendered_rules_have_the_addresses_of_the_pins_file_and_without_one_none() {
    let desk = Desk::new();
    let with = desk.run(&["render", "untrue.yaml", "--pins", "pins"]).exits(0).out;
    assert!(with.contains("192.0.2.1 timeout 86400s") && with.contains("comment \"a.example\""), "{with}");
    let without = desk.run(&["render", "untrue.yaml"]).exits(0).out;
    assert!(!without.contains("192.0.2.1") && without.contains("set tcp_443_v4"), "{without}");
    for text in [with, without] {
        assert!(text.contains("table inet egressguard") && text.contains("policy drop"), "{text}");
    }
}

#[test]
fn the_rules_as_json_are_the_rules_as_text() {
    let desk = Desk::new();
    let ran = desk.run(&["render", "--format", "json", "untrue.yaml", "--pins", "pins"]).exits(0);
    assert_eq!(ran.out, desk.run(&["render", "--json", "untrue.yaml", "--pins", "pins"]).exits(0).out);
    let answer = ran.json();
    assert_eq!((&answer["schema"], &answer["table"]), (&"egressguard.render/1".into(), &"inet egressguard".into()));
    let text = desk.run(&["render", "untrue.yaml", "--pins", "pins"]).exits(0).out;
    let (chains, sets) = (answer["chains"].as_array().unwrap(), answer["sets"].as_array().unwrap());
    assert_eq!((chains.len(), sets.len()), (text.matches("\n\tchain ").count(), text.matches("\n\tset ").count()), "{text}");
    let pinned = sets.iter().find(|set| set["name"] == "tcp_443_v4").unwrap();
    let expected = serde_json::json!([{"element": "192.0.2.1", "timeout": 86400, "comment": "a.example"}]);
    assert_eq!(pinned["elements"], expected);
    // Every rule of the JSON stands in the text, word by word.
    for rule in chains.iter().flat_map(|chain| chain["rules"].as_array().unwrap()) {
        let words = ["tests", "statements"].into_iter().flat_map(|part| rule[part].as_array().unwrap());
        for word in words.map(|word| word.as_str().unwrap()) {
            assert!(text.contains(word), "`{word}` is not in\n{text}");
        }
    }
}

#[test]
fn a_policy_comes_from_a_file_from_standard_input_or_from_the_program() {
    let desk = Desk::new();
    assert_eq!(desk.fed(&["check", "-"], "version: 1\n").exits(0).out, "ok: -\n");
    assert!(desk.fed(&["check", "-"], WRONG).exits(2).err.contains("-:2:7"));
    let unknown = desk.run(&["check", "builtin:opnai"]).exits(2);
    for name in BUILTIN_NAMES {
        desk.run(&["check", &format!("builtin:{name}")]).exits(0);
        assert!(unknown.err.contains(&format!("`builtin:{name}`")), "{}", unknown.err);
    }
    let missing = desk.run(&["check", "nowhere.yaml"]).exits(3);
    assert!(missing.err.contains("nowhere.yaml") && missing.err.contains("(ENOENT)") && missing.err.contains("help: "), "{}", missing.err);
    let help = desk.run(&["check", "--help"]).exits(0);
    assert!(help.out.contains("/etc/egressguard/policy.yaml"), "{}", help.out);
}

#[test]
fn a_wrong_command_line_is_a_wrong_question_and_help_is_none() {
    let desk = Desk::new();
    for arguments in [
        &["aply"][..],
        &["check", "--strct"],
        &["check", "a", "b"],
        &["render", "--format", "pf"],
        &["completions", "tcsh"],
        &["-q", "-v", "status"],
        &[],
    ] {
        let ran = desk.run(arguments).exits(2);
        assert_eq!(ran.out, "", "{arguments:?}");
        assert!(ran.err.contains("--help") || ran.err.contains("Usage: "), "{arguments:?}: {}", ran.err);
    }
    assert!(desk.run(&["aply"]).err.contains("'apply'"), "the nearest command is named");
    for arguments in [&["--help"][..], &["--version"], &["apply", "--help"]] {
        assert_eq!(desk.run(arguments).exits(0).err, "", "{arguments:?}");
    }
}

/// Every command as the program itself lists them.
fn commands() -> BTreeSet<String> {
    let mut whole = Arguments::command();
    whole.build();
    whole.get_subcommands().map(|command| command.get_name().to_string()).filter(|name| name != "help").collect()
}

#[test]
fn completions_know_every_command_in_every_shell() {
    let desk = Desk::new();
    for shell in ["bash", "zsh", "fish"] {
        let script = desk.run(&["completions", shell]).exits(0).out;
        for command in commands() {
            assert!(script.contains(&command), "{shell}: {command}");
        }
        assert!(script.contains("state-dir") && script.contains("netns"), "{shell}");
    }
}

#[test]
fn every_command_has_a_manual_page_that_names_its_options() {
    let desk = Desk::new();
    assert!(desk.run(&["man"]).exits(0).out.contains(".TH egressguard 1"));
    fs::create_dir(desk.0.path().join("man")).unwrap();
    desk.run(&["man", "--output-dir", "man"]).exits(0);
    let pages = fs::read_dir(desk.0.path().join("man")).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let expected = commands().into_iter().map(|command| format!("egressguard-{command}.1")).chain(["egressguard.1".to_string()]);
    assert_eq!(pages.collect::<BTreeSet<_>>(), expected.collect());
    let mut whole = Arguments::command();
    whole.build();
    for command in whole.get_subcommands().filter(|command| command.get_name() != "help") {
        let page = fs::read_to_string(desk.0.path().join(format!("man/egressguard-{}.1", command.get_name()))).unwrap();
        // troff wants hyphens escaped.
        let page = page.replace("\\-", "-");
        for option in command.get_arguments().filter_map(clap::Arg::get_long) {
            assert!(page.contains(&format!("--{option}")), "{}: --{option}", command.get_name());
        }
    }
}

#[test]
fn colour_is_for_terminals_and_for_those_who_ask() {
    let desk = Desk::new();
    assert!(!desk.run(&["check", "wrong.yaml"]).err.contains('\x1b'), "a pipe is no terminal");
    assert!(desk.run(&["--color", "always", "check", "wrong.yaml"]).err.contains('\x1b'));
    // `script` gives the program a terminal to write to.
    let on_terminal = |no_colour: Option<&str>| {
        let program = env!("CARGO_BIN_EXE_egressguard");
        let mut command = Command::new("script");
        command.args(["-qec", &format!("{program} check wrong.yaml"), "/dev/null"]).current_dir(desk.0.path());
        command.env_remove("NO_COLOR").envs(no_colour.map(|value| ("NO_COLOR", value))).stdin(Stdio::null());
        String::from_utf8(command.output().expect("`script` of bsdutils runs").stdout).unwrap()
    };
    assert!(on_terminal(None).contains("\x1b["));
    let plain = on_terminal(Some("1"));
    assert!(plain.contains("did you mean") && !plain.contains("\x1b[3"), "{plain:?}");
}

#[test]
fn quiet_says_errors_only() {
    let desk = Desk::new();
    let quiet = desk.run(&["-q", "test", "odd.yaml"]).exits(0);
    assert_eq!((quiet.out.as_str(), quiet.err.as_str()), ("", ""));
    assert!(desk.run(&["-q", "check", "wrong.yaml"]).exits(2).err.contains("3 errors"));
}

#[test]
fn what_needs_no_kernel_opens_no_socket_and_makes_no_state() {
    if Command::new("strace").arg("-V").output().is_err() {
        assert!(std::env::var_os("EGRESSGUARD_REQUIRE_KERNEL").is_none(), "install the package `strace`");
        return println!("skipped: strace is missing");
    }
    let desk = Desk::new();
    let log = desk.0.path().join("trace");
    for arguments in [
        &["check", "builtin:openai"][..],
        &["test", "builtin:openai"],
        &["render", "untrue.yaml", "--pins", "pins"],
        &["schema"],
        &["completions", "bash"],
        &["man"],
    ] {
        let state = desk.0.path().join("state");
        let program = env!("CARGO_BIN_EXE_egressguard");
        let mut command = Command::new("strace");
        command.args(["-f", "-e", "trace=socket,exit_group", "-o"]).arg(&log).arg(program).args(arguments);
        let output = command.current_dir(desk.0.path()).env("EGRESSGUARD_STATE_DIR", &state).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        let trace = fs::read_to_string(&log).unwrap();
        assert!(trace.contains("exit_group(0)") && !trace.contains("socket("), "{arguments:?}: {trace}");
        assert!(!state.exists(), "{arguments:?}");
    }
}

#[test]
fn the_readme_names_no_command_that_does_not_exist() {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).unwrap();
    let known = commands();
    let mut seen = BTreeSet::new();
    // Commands stand in blocks of code and between backticks.
    for said in text.split("egressguard ").skip(1).filter_map(|rest| rest.split([' ', '`', '\n']).next()) {
        if known.contains(said) {
            seen.insert(said);
        }
    }
    for (before, _) in text.match_indices("`egressguard ") {
        let word = text[before + "`egressguard ".len()..].split([' ', '`']).next().unwrap_or_default();
        assert!(known.contains(word), "README.md speaks of `egressguard {word}`");
    }
    assert!(seen.len() >= 6, "{seen:?}");
}
