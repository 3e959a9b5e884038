//! Bad days: what the binary says and does when files are damaged or full, rights or the kernel are missing, and others interfere.
//! One test each, against a real kernel in namespaces of the test's own. Needs root, `nft`, `ip`, `strace` and `dnsmasq`.

#[path = "fault/arena.rs"]
mod arena;
#[path = "fault/listing.rs"]
mod listing;
#[path = "fault/policies.rs"]
mod policies;
#[path = "fault/trace.rs"]
mod trace;

use std::fs;
use std::io::{self, Write};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use arena::{Arena, BOTH, NEW, OLD, Ran, STRANGER, assert_clean_words, cannot_run, finish, names, run, start};
use listing::Listing;
use trace::{Fault, interrupted, record, transaction};

/// Skips the test where the kernel or a program is missing.
macro_rules! or_skip {
    ($($program:literal),*) => {
        if cannot_run(&[$($program),*]) {
            return;
        }
    };
}

// Files.

#[test]
fn damaged_pins_close_what_needs_them_and_an_apply_mends_it() {
    or_skip!();
    let arena = applied();
    let pins = arena.state().join(pins_name(&arena));
    let whole = fs::read_to_string(&pins).expect("pins are saved");
    for damaged in [&whole[..whole.len() / 2], "", "\0\u{1}not pins at all", &whole.replace("both.test", "both test")] {
        fs::write(&pins, damaged).expect("the directory is ours");
        boot(&arena);
        let restored = arena.run(&["restore"]).refuses_with(&["pins-", "damaged", "egressguard apply"]);
        let there = arena.host.listing().unwrap_or_else(|| panic!("nothing is loaded: {restored}"));
        assert!(there.says("chain output") && !there.says(BOTH) && !there.says(OLD), "{there}");
        assert_eq!(arena.reach(&[STRANGER, BOTH]), [false, false], "{damaged}");
    }
    let again = apply_old(&arena).expect(0);
    assert!(again.err.contains("starting without earlier pins"), "{again}");
    assert_eq!(arena.reach(&[STRANGER, BOTH, OLD]), [false, true, true]);
}

#[test]
fn a_refresh_with_damaged_pins_asks_dns_for_all_of_them() {
    or_skip!("dnsmasq");
    let mut arena = Arena::new();
    arena.serve_dns(&policies::hosts_before());
    let policy = arena.write("policy.yaml", &policies::resolved());
    arena.run(&["apply", "--force", &policy]).expect(0);
    fs::write(arena.state().join(pins_name(&arena)), "egressguard pins 1\nname both.test\n").expect("the directory is ours");
    boot(&arena);
    arena.run(&["restore"]).refuses_with(&["damaged"]);
    assert_eq!(arena.reach(&[STRANGER, BOTH]), [false, false]);
    let refreshed = arena.run(&["refresh"]).expect(0);
    assert!(refreshed.err.contains("damaged"), "{refreshed}");
    assert_eq!(arena.reach(&[STRANGER, BOTH, OLD]), [false, true, true]);
    arena.run(&["refresh"]).expect(0);
    boot(&arena);
    arena.run(&["restore"]).expect(0);
    assert_eq!(arena.reach(&[STRANGER, BOTH, OLD]), [false, true, true]);
}

#[test]
fn a_damaged_record_or_policy_or_name_of_the_generation_closes_the_host() {
    or_skip!();
    for (file, content) in [("state-1.json", "{\"generation\":"), ("policy-1.yaml", "version: 1\nname: forged\n"), ("current", "many\n")] {
        let arena = applied();
        fs::write(arena.state().join(file), content).expect("the directory is ours");
        boot(&arena);
        arena.run(&["restore"]).refuses_with(&[file, "damaged", "the host is closed"]);
        assert_eq!(arena.reach(&[STRANGER, BOTH, OLD]), [false, false, false], "{file}");
        apply_old(&arena).expect(0);
        assert_eq!(arena.reach(&[STRANGER, BOTH, OLD]), [false, true, true], "{file}");
    }
}

#[test]
fn a_missing_file_of_the_generation_closes_the_host() {
    or_skip!();
    for file in ["state-1.json", "policy-1.yaml", "pins-1"] {
        let arena = applied();
        fs::remove_file(arena.state().join(file)).expect("it is there");
        boot(&arena);
        arena.run(&["restore"]).refuses_with(&["missing", "the host is closed"]);
        assert_eq!(arena.reach(&[STRANGER, BOTH]), [false, false], "{file}");
    }
}

#[test]
fn a_wrong_policy_is_wrong_whether_anybody_reads_it_or_not() {
    let directory = tempfile::tempdir().expect("a directory");
    let policy = directory.path().join("wrong.yaml");
    fs::write(&policy, "version: 1\nbogus: 1\n").expect("the directory is ours");
    let (reader, writer) = nix::unistd::pipe().expect("a pipe");
    drop(reader);
    let mut check = std::process::Command::new(env!("CARGO_BIN_EXE_egressguard"));
    let status = check.arg("check").arg(&policy).stderr(std::process::Stdio::from(writer)).status().expect("it runs");
    assert_eq!(status.code(), Some(2));
}

#[test]
fn a_damaged_pins_file_of_the_user_is_the_wrong_question() {
    or_skip!();
    let arena = applied();
    let before = arena.host.listing();
    let policy = arena.write("new.yaml", &policies::new());
    let whole = policies::pins_of(&policies::NEW_NAMES);
    let pins = arena.write("cut.pins", &whole[..whole.len() - 8]);
    let ran = arena.run(&["apply", "--force", &policy, "--pins", &pins]).expect(2);
    assert!(ran.err.contains("cut.pins:") && ran.err.contains("cut off") && ran.err.contains("help: "), "{ran}");
    assert_eq!(arena.host.listing(), before);
}

#[test]
fn a_read_only_state_directory_refuses_an_apply_and_still_restores() {
    or_skip!("unshare");
    let arena = applied();
    let before = arena.host.listing();
    let read_only = "mount --bind \"$S\" \"$S\" && mount -o remount,ro,bind \"$S\"";
    in_mounts(&arena, read_only, &new_policy(&arena)).refuses_with(&["cannot open", "lock", "(EROFS)", "--state-dir"]);
    assert_eq!(arena.host.listing(), before);
    in_mounts(&arena, read_only, &words(&["refresh"])).refuses_with(&["(EROFS)"]);
    assert_eq!(arena.host.listing(), before);
    boot(&arena);
    let restored = in_mounts(&arena, read_only, &words(&["restore"])).expect(0);
    assert!(restored.err.contains("going on without the lock"), "{restored}");
    assert_eq!(arena.host.listing(), before);
}

#[test]
fn a_full_state_directory_refuses_an_apply_and_keeps_what_was_saved() {
    or_skip!("unshare");
    let arena = applied();
    let before = arena.host.listing();
    // Room for none, one, two and more further files.
    for room in [0, 4096, 8192, 12288, 16384] {
        let full = format!(
            "cp -a \"$S\" \"$S.copy\" && mount -t tmpfs -o size=1m none \"$S\" && cp -a \"$S.copy/.\" \"$S/\" && rm -r \"$S.copy\" && \
             head -c {room} /dev/zero > \"$S/room\"; cat /dev/zero > \"$S/fill\" 2>/dev/null; rm \"$S/room\"; true"
        );
        let ran = in_mounts(&arena, &full, &new_policy(&arena));
        let there = arena.host.listing();
        if ran.code == Some(0) {
            continue;
        }
        let ran = ran.refuses_with(&["no space left on device", "(ENOSPC)"]);
        // Between the transaction and its note for the next boot there is nothing to take back: that is said.
        let said = ran.err.contains("a boot would load the one before");
        assert!(there == before || said, "room for {room}: {ran}");
        if said {
            continue;
        }
        // With the same full disk, what was saved is still whole.
        let script = format!(
            "{full}; \"$@\" >/dev/null 2>&1; ls \"$S\" | grep -c -e new -e '-2'; nft() {{ :; }}; set -- {}",
            arena.arguments(&["restore"]).join(" ")
        );
        let restored = in_mounts(&arena, &script, &new_policy(&arena)).expect(0);
        assert!(restored.out.starts_with("0\n"), "half a generation is left: {restored}");
        assert_eq!(arena.host.listing(), before);
    }
}

#[test]
fn a_state_directory_that_is_a_file_is_said() {
    or_skip!();
    let arena = Arena::new();
    fs::remove_dir(arena.state()).expect("it is empty");
    arena.write("state", "not a directory");
    for arguments in [new_policy(&arena), words(&["refresh"])] {
        arena.run(&as_str(&arguments)).refuses_with(&["state"]);
    }
    assert_eq!(arena.host.listing(), None);
}

#[test]
fn a_policy_that_is_a_directory_or_is_missing_is_said() {
    or_skip!();
    let arena = applied();
    let before = arena.host.listing();
    arena.run(&["apply", "--force", &arena.file("state")]).refuses_with(&["cannot read", "(EISDIR)"]);
    arena.run(&["apply", "--force", &arena.file("nowhere.yaml")]).refuses_with(&["cannot read", "(ENOENT)", "builtin:"]);
    assert_eq!(arena.host.listing(), before);
}

#[test]
fn a_policy_can_come_from_standard_input() {
    or_skip!();
    let arena = Arena::new();
    let pins = arena.write("new.pins", &policies::pins_of(&policies::NEW_NAMES));
    let arguments = arena.arguments(&["apply", "--force", "-", "--pins", &pins]);
    let given = fed(&arguments, policies::new().as_bytes()).expect(0);
    assert!(given.out.contains("applied policy `new`"), "{given}");
    assert_eq!(arena.reach(&[STRANGER, BOTH, NEW]), [false, true, true]);
    boot(&arena);
    arena.run(&["restore"]).expect(0);
    assert_eq!(arena.reach(&[STRANGER, BOTH, NEW]), [false, true, true]);
    let nothing = fed(&arguments, b"").expect(2);
    assert!(nothing.err.contains("`-`"), "{nothing}");
}

#[test]
fn nobody_who_reads_on_is_no_reason_to_stop() {
    or_skip!();
    let arena = Arena::new();
    // A policy with a warning, so that both streams are written to.
    let policy = arena.write("new.yaml", &policies::new().replace("- to: both.test", "- to: both.test\n  - to: both.test\n    id: twice"));
    let pins = arena.write("new.pins", &policies::pins_of(&policies::NEW_NAMES));
    let arguments = arena.arguments(&["apply", "--force", &policy, "--pins", &pins]);
    for json in [false, true] {
        let _ = arena.host.try_nft(&["delete", "table", "inet", "egressguard"]);
        let mut arguments = arguments.clone();
        arguments.extend(json.then(|| "--json".to_string()));
        let mut command = arena::command(&arguments);
        let status = unread(&mut command);
        assert_eq!(status, Some(0));
        assert_eq!(arena.reach(&[STRANGER, BOTH, NEW]), [false, true, true]);
    }
    // The answer is still the answer.
    arena.host.nft(&["flush", "chain", "inet", "egressguard", "outbound"]);
    assert_eq!(unread(&mut arena::command(&arena.arguments(&["status"]))), Some(1));
}

#[test]
fn an_answer_that_cannot_be_written_is_said_after_the_rules_are_loaded() {
    or_skip!();
    let arena = Arena::new();
    let mut command = arena::command(&arena.arguments(&as_str(&new_policy(&arena))));
    let full = fs::OpenOptions::new().write(true).open("/dev/full").expect("/dev/full is there");
    let output = command
        .stdin(Stdio::null())
        .stdout(full)
        .stderr(Stdio::piped())
        .spawn()
        .and_then(|child| child.wait_with_output())
        .expect("it runs");
    let err = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{err}");
    assert!(err.contains("cannot write the answer"), "{err}");
    assert_clean_words(&err);
    assert_eq!(arena.reach(&[STRANGER, BOTH, NEW]), [false, true, true]);
    arena.run(&["refresh"]);
    assert_eq!(arena.reach(&[STRANGER, BOTH, NEW]), [false, true, true]);
}

// Rights and the kernel.

#[test]
fn without_cap_net_admin_the_help_names_it() {
    or_skip!("setpriv");
    let arena = applied();
    let before = arena.host.listing();
    let saved = names(&arena.state());
    let without = ["setpriv", "--bounding-set", "-net_admin", "--inh-caps", "-net_admin"].map(String::from).to_vec();
    for arguments in [new_policy(&arena), words(&["refresh"]), words(&["restore"]), words(&["status"]), words(&["remove", "--yes"])] {
        let ran = run(&[without.clone(), arena.arguments(&as_str(&arguments))].concat());
        ran.refuses_with(&["EPERM", "CAP_NET_ADMIN"]);
        assert_eq!(arena.host.listing(), before, "{arguments:?}");
    }
    assert_eq!(names(&arena.state()), saved);
    boot(&arena);
    arena.run(&["restore"]).expect(0);
    assert_eq!(arena.host.listing(), before);
}

#[test]
fn a_kernel_without_nf_tables_is_named() {
    or_skip!("strace");
    let arena = applied();
    let before = arena.host.listing();
    let new = new_policy(&arena);
    let without = ["strace", "-qq", "-o", "/dev/null", "-e", "trace=socket", "-e", "inject=socket:error=EPROTONOSUPPORT"];
    for arguments in [words(&["status"]), new] {
        let ran = run(&[without.map(String::from).to_vec(), arena.arguments(&as_str(&arguments))].concat());
        ran.refuses_with(&["nf_tables", "modprobe"]);
    }
    assert_eq!(arena.host.listing(), before);
}

#[test]
fn an_unknown_user_is_named_with_file_and_line() {
    or_skip!();
    let arena = applied();
    let before = arena.host.listing();
    let policy =
        arena.write("scoped.yaml", &policies::new().replace("- to: both.test", "- to: both.test\n    for: {user: nobody-of-this-name}"));
    let line = format!("{policy}:4: user `nobody-of-this-name`");
    arena.run(&["apply", "--force", &policy, "--pins", &arena.file("old.pins")]).refuses_with(&[&line]);
    assert_eq!(arena.host.listing(), before);
    assert_eq!(names(&arena.state()).iter().filter(|name| name.starts_with("policy-")).count(), 1);
}

#[test]
fn an_unknown_namespace_is_said() {
    or_skip!();
    let binary = env!("CARGO_BIN_EXE_egressguard");
    let in_namespace = |name: &str| run(&[binary, "--netns", name, "--state-dir", "/nonexistent/state", "status"].map(String::from));
    in_namespace("egf-nobody-made-it").refuses_with(&["`egf-nobody-made-it`", "ip netns"]);
    for name in ["../mnt", "", "..", "a/b"] {
        let ran = in_namespace(name).expect(2);
        assert!(ran.err.contains("not the name of a network namespace"), "{ran}");
    }
}

// Others.

#[test]
fn a_table_of_our_name_that_is_not_ours_is_not_touched() {
    or_skip!();
    let arena = applied();
    boot(&arena);
    arena.host.nft(&["add table inet egressguard; add chain inet egressguard theirs; add rule inet egressguard theirs counter accept"]);
    let theirs = arena.host.nft(&["list", "ruleset"]);
    for arguments in
        [new_policy(&arena), words(&["refresh"]), words(&["refresh", "--repair"]), words(&["restore"]), words(&["remove", "--yes"])]
    {
        arena.run(&as_str(&arguments)).refuses_with(&["egressguard did not make", "nft list table"]);
        assert_eq!(arena.host.nft(&["list", "ruleset"]), theirs, "{arguments:?}");
    }
    // A removal that was refused removes nothing of what a boot loads either.
    arena.host.nft(&["delete", "table", "inet", "egressguard"]);
    arena.run(&["restore"]).expect(0);
    assert_eq!(arena.reach(&[STRANGER, BOTH]), [false, true]);
}

#[test]
fn a_flush_by_others_between_read_and_commit_is_noticed() {
    or_skip!("strace");
    let arena = applied();
    let new = new_policy(&arena);
    let before = arena.state();
    arena::copy_directory(&before, &arena.path("start"));
    let batch = transaction(&record(&arena, &as_str(&new)).1);
    let expected = arena.host.listing();
    arena.host.nft(&["add table ip theirs; add chain ip theirs c { type filter hook input priority 0; }"]);
    for foreign in ["delete table inet egressguard", "flush chain inet egressguard outbound", "add rule ip theirs c counter"] {
        boot(&arena);
        arena::copy_directory(&arena.path("start"), &arena.state());
        arena.run(&["restore"]).expect(0);
        let child = start(&interrupted(&arena, &as_str(&new), &batch, Fault::Delay(700_000)));
        thread::sleep(Duration::from_millis(450));
        arena.host.nft(&[foreign]);
        finish(child).expect(0);
        assert_eq!(shown(&arena), expected.as_ref().map(ToString::to_string), "{foreign}");
        assert_eq!(arena.reach(&[STRANGER, BOTH, OLD, NEW]), [false, true, false, true], "{foreign}");
    }
    assert!(arena.host.nft(&["list", "table", "ip", "theirs"]).contains("counter"), "what others have loaded stays");
}

#[test]
fn rules_that_others_flushed_are_reported_by_a_refresh_and_repaired_when_asked() {
    or_skip!("dnsmasq");
    let mut arena = Arena::new();
    arena.serve_dns(&policies::hosts_before());
    let policy = arena.write("policy.yaml", &policies::resolved());
    arena.run(&["apply", "--force", &policy]).expect(0);
    let whole = arena.host.listing();
    arena.host.nft(&["flush chain inet egressguard outbound"]);
    let found = arena.run(&["refresh"]).expect(1);
    assert!(found.out.contains("drift: chain `outbound`") && found.err.contains("--repair"), "{found}");
    arena.run(&["refresh", "--repair"]).expect(0);
    assert_eq!(arena.host.listing(), whole);
    arena.run(&["refresh"]).expect(0);
    boot(&arena);
    arena.run(&["refresh", "--repair"]).expect(0);
    assert_eq!(arena.host.listing(), whole);
}

#[test]
fn others_who_never_stop_changing_the_rules_are_named_as_the_reason() {
    or_skip!();
    let arena = applied();
    arena.host.nft(&["add table ip theirs; add chain ip theirs c"]);
    let until = Instant::now() + Duration::from_secs(3);
    thread::scope(|scope| {
        let busy = scope.spawn(|| {
            while Instant::now() < until {
                arena.host.nft(&["add rule ip theirs c counter"]);
            }
        });
        let ran = arena.run(&as_str(&new_policy(&arena)));
        match ran.code {
            Some(0) => assert_eq!(arena.reach(&[STRANGER, BOTH, OLD, NEW]), [false, true, false, true]),
            _ => {
                ran.refuses_with(&["changed by somebody else"]);
                assert_eq!(arena.reach(&[STRANGER, BOTH]), [false, true]);
            }
        }
        busy.join().expect("nft goes on");
    });
}

#[test]
fn of_two_applies_at_once_the_second_waits() {
    or_skip!("strace");
    let arena = applied();
    let new = new_policy(&arena);
    let batch = transaction(&record(&arena, &as_str(&new)).1);
    apply_old(&arena).expect(0);
    let first = start(&interrupted(&arena, &as_str(&new), &batch, Fault::Delay(1_200_000)));
    thread::sleep(Duration::from_millis(500));
    let begun = Instant::now();
    apply_old(&arena).expect(0);
    assert!(begun.elapsed() > Duration::from_millis(500), "it did not wait");
    finish(first).expect(0);
    assert_eq!(arena.reach(&[STRANGER, BOTH, OLD, NEW]), [false, true, true, false]);
    boot(&arena);
    arena.run(&["restore"]).expect(0);
    assert_eq!(arena.reach(&[STRANGER, BOTH, OLD, NEW]), [false, true, true, false]);
}

#[test]
fn who_holds_the_lock_for_too_long_is_named() {
    or_skip!("strace", "flock");
    let arena = applied();
    let new = new_policy(&arena);
    let batch = transaction(&record(&arena, &as_str(&new)).1);
    apply_old(&arena).expect(0);
    let first = start(&interrupted(&arena, &as_str(&new), &batch, Fault::Delay(12_500_000)));
    // Somebody who does not say who he is, in another arena at the same time.
    let other = applied();
    let lock = other.state().join("lock");
    let silent = start(&["flock", lock.to_str().expect("text"), "sleep", "12.5"].map(String::from));
    thread::sleep(Duration::from_millis(600));
    thread::scope(|scope| {
        scope.spawn(|| apply_old(&arena).refuses_with(&["`egressguard apply` (pid ", "holds the lock", "10 s", "wait until it has ended"]));
        scope.spawn(|| {
            let ran = apply_old(&other).refuses_with(&["holds the lock"]);
            assert!(ran.err.contains("error: another process holds"), "{ran}");
        });
    });
    finish(first).expect(0);
    finish(silent);
    assert_eq!(arena.reach(&[STRANGER, BOTH, OLD, NEW]), [false, true, false, true]);
}

#[test]
fn an_interface_that_vanishes_takes_no_rule_with_it() {
    or_skip!("dnsmasq");
    let mut arena = Arena::new();
    arena.serve_dns(&policies::hosts_before());
    let policy = arena.write("policy.yaml", &policies::resolved());
    arena.run(&["apply", "--force", &policy]).expect(0);
    let before = arena.host.listing();
    arena.host.within(|| assert!(Command::new("ip").args(["link", "del", "cable"]).status().expect("ip runs").success()));
    assert_eq!(arena.host.listing(), before);
    let refreshed = arena.run(&["refresh"]).expect(0);
    assert!(refreshed.err.contains("both.test") && refreshed.err.contains("its pins stay until they expire"), "{refreshed}");
    assert_eq!(arena.host.listing(), before);
    arena.run(&["apply", "--force", &policy]).expect(0);
    assert_eq!(arena.host.listing(), before);
}

#[test]
fn without_dns_a_first_apply_blocks_the_names_and_a_refresh_keeps_the_pins() {
    or_skip!("dnsmasq");
    let mut arena = Arena::new();
    let policy = arena.write("policy.yaml", &policies::resolved());
    let blocked = arena.run(&["apply", "--force", &policy]).expect(1);
    assert!(blocked.err.contains("both.test") && blocked.err.contains("it has no pin and is blocked"), "{blocked}");
    assert_eq!(arena.reach(&[STRANGER, BOTH, OLD]), [false, false, false]);
    arena.serve_dns(&policies::hosts_before());
    arena.run(&["refresh"]).expect(0);
    assert_eq!(arena.reach(&[STRANGER, BOTH, OLD]), [false, true, true]);
    let whole = arena.host.listing();
    arena.stop_dns();
    let kept = arena.run(&["refresh"]).expect(0);
    assert!(kept.err.contains("its pins stay until they expire"), "{kept}");
    assert_eq!(arena.host.listing(), whole);
}

// What these tests are made of.

/// An arena where the old policy is applied.
fn applied() -> Arena {
    let arena = Arena::new();
    policies::apply_old(&arena);
    arena
}

fn apply_old(arena: &Arena) -> Ran {
    arena.run(&["apply", "--force", &arena.file("old.yaml"), "--pins", &arena.file("old.pins")])
}

/// The words that apply the new policy.
fn new_policy(arena: &Arena) -> Vec<String> {
    let policy = arena.write("new.yaml", &policies::new());
    let pins = arena.write("new.pins", &policies::pins_of(&policies::NEW_NAMES));
    ["apply", "--force", &policy, "--pins", &pins].map(String::from).to_vec()
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(ToString::to_string).collect()
}

fn as_str(words: &[String]) -> Vec<&str> {
    words.iter().map(String::as_str).collect()
}

/// What a reboot leaves of the rules: nothing.
fn boot(arena: &Arena) {
    let _ = arena.host.try_nft(&["delete", "table", "inet", "egressguard"]);
}

fn shown(arena: &Arena) -> Option<String> {
    arena.host.listing().as_ref().map(Listing::to_string)
}

/// The newest pins file of the state directory.
fn pins_name(arena: &Arena) -> String {
    let names = names(&arena.state());
    names.into_iter().rfind(|name| name.starts_with("pins-")).expect("pins are saved")
}

/// Runs the binary in mounts of its own that a script prepares; `$S` is the state directory.
fn in_mounts(arena: &Arena, script: &str, arguments: &[String]) -> Ran {
    let script = format!("set -e; S={}; set +e; {script}; exec \"$@\"", arena.file("state"));
    let prefix = ["unshare", "-m", "sh", "-c", &script, "sh"].map(String::from);
    run(&[prefix.to_vec(), arena.arguments(&as_str(arguments))].concat())
}

/// Runs a program that is fed this.
fn fed(words: &[String], input: &[u8]) -> Ran {
    let mut command = arena::command(words);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
    let _ = child.stdin.take().expect("a pipe").write_all(input);
    finish(child)
}

/// The exit code of a program whose output nobody reads.
fn unread(command: &mut Command) -> Option<i32> {
    let (out_reader, out) = io::pipe().expect("a pipe");
    let (err_reader, err) = io::pipe().expect("a pipe");
    drop((out_reader, err_reader));
    command.stdin(Stdio::null()).stdout(out).stderr(err).status().expect("it runs").code()
}
