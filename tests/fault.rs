//! The fault leg: `apply` and `refresh` of the real binary against a real kernel, interrupted at every step, by a kill and by
//! errors of the system. After each interruption the laws of the kernel hold:
//!
//! - the kernel has the old rules or the new ones, whole;
//! - a stranger is refused, and who is allowed by both is reached;
//! - `restore` after a reboot loads the old policy or the new one;
//! - the same command run again ends in the new state, and leaves nothing lying about;
//! - nothing is under way then that the new policy does not allow, and what it allows still is.
//!
//! Everything happens in namespaces of the test's own. Needs root, `strace`, `nft`, `ip` and `dnsmasq`.

#[path = "fault/arena.rs"]
mod arena;
#[path = "fault/listing.rs"]
mod listing;
#[path = "fault/policies.rs"]
mod policies;
#[path = "fault/trace.rs"]
mod trace;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs;
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::Command;

use arena::{
    Arena, BOTH, NEW, NEW_V6, OLD, OLD_V6, Ran, STRANGER, STRANGER_V6, assert_clean_words, cannot_run, copy_directory, in_fresh_namespace,
    names,
};
use listing::Listing;
use trace::{Fault, Step, chosen, interrupt, record};

/// Whom every policy of this file is asked about, in the order of [`Scenario::reach_before`].
const ASKED: [&str; 7] = [STRANGER, STRANGER_V6, BOTH, OLD, OLD_V6, NEW, NEW_V6];
const REACH_OLD: [bool; 7] = [false, false, true, true, true, false, false];
const REACH_NEW: [bool; 7] = [false, false, true, false, false, true, true];
/// Addresses that left DNS are still pins.
const REACH_ROTATED: [bool; 7] = [false, false, true, true, true, true, true];
/// Without any rules.
const REACH_ALL: [bool; 7] = [true; 7];

#[test]
fn a_first_apply_killed_anywhere_leaves_no_rules_or_all_of_them() {
    if cannot_run(&["strace"]) {
        return;
    }
    Scenario::first_apply().interrupt_by_kill();
}

#[test]
fn an_apply_killed_anywhere_leaves_the_old_policy_or_the_new_one() {
    if cannot_run(&["strace"]) {
        return;
    }
    Scenario::second_apply().interrupt_by_kill();
}

#[test]
fn an_apply_that_meets_an_error_of_its_files_leaves_the_old_policy_or_the_new_one() {
    if cannot_run(&["strace"]) {
        return;
    }
    Scenario::second_apply().interrupt_by_errors(&FILES);
}

#[test]
fn an_apply_that_cannot_speak_to_the_kernel_leaves_the_old_policy_or_the_new_one() {
    if cannot_run(&["strace"]) {
        return;
    }
    Scenario::second_apply().interrupt_by_errors(&SPEAKING);
}

#[test]
fn an_apply_that_cannot_hear_the_kernel_leaves_the_old_policy_or_the_new_one() {
    if cannot_run(&["strace"]) {
        return;
    }
    Scenario::second_apply().interrupt_by_errors(&HEARING);
}

#[test]
fn a_refresh_killed_anywhere_leaves_the_old_pins_or_the_new_ones() {
    if cannot_run(&["strace", "dnsmasq"]) {
        return;
    }
    Scenario::refresh().interrupt_by_kill();
}

#[test]
fn a_refresh_that_meets_an_error_anywhere_leaves_the_old_pins_or_the_new_ones() {
    if cannot_run(&["strace", "dnsmasq"]) {
        return;
    }
    Scenario::refresh().interrupt_by_errors(&[&FILES[..], &SPEAKING, &HEARING].concat());
}

#[test]
fn a_restore_killed_anywhere_leaves_no_rules_or_all_of_them() {
    if cannot_run(&["strace"]) {
        return;
    }
    Scenario::restore().interrupt_by_kill();
}

/// Calls, the errors that they can meet, and where.
type Errors = (&'static [&'static str], &'static [&'static str], Where);
const FILES: [Errors; 5] = [
    (&["fsync", "fdatasync"], &["ENOSPC"], Where::Anywhere),
    (&["rename", "renameat", "renameat2"], &["EIO"], Where::Anywhere),
    (&["write"], &["ENOSPC"], Where::State),
    (&["openat"], &["EACCES"], Where::State),
    (&["unlink", "unlinkat", "getdents64", "flock"], &["EIO"], Where::State),
];
const SPEAKING: [Errors; 2] =
    [(&["sendto", "sendmsg"], &["ENOBUFS", "EPERM"], Where::Netlink), (&["socket"], &["EPROTONOSUPPORT"], Where::Netlink)];
const HEARING: [Errors; 1] = [(&["recvfrom", "recvmsg"], &["ENOBUFS"], Where::Netlink)];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Where {
    Anywhere,
    /// On a path of the state directory, or a descriptor of one.
    State,
    /// On a netlink socket.
    Netlink,
}

/// A command, the world it starts from, and the worlds that may come of it.
struct Scenario {
    arena: Arena,
    arguments: Vec<String>,
    /// What is done to come back to the start.
    start: Start,
    before: Option<Listing>,
    after: Listing,
    reach_before: [bool; 7],
    reach_after: [bool; 7],
    /// What a reboot may load besides the rules before and after.
    lockdown: Option<Listing>,
    /// Connections that the old policy allows: one that the new one forbids, one that it allows.
    held: RefCell<Vec<TcpStream>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Start {
    /// No rules, nothing saved.
    Empty,
    /// No rules, the old policy saved: as after a boot.
    Booted,
    /// The old policy is applied.
    Old,
    /// The old policy was refreshed by what DNS then said; now it says something else.
    Rotated,
}

impl Scenario {
    fn first_apply() -> Scenario {
        let (arena, arguments) = new_policy();
        let lockdown = booted(&arena, &arena.state()).1;
        Scenario::of(arena, arguments, Start::Empty, lockdown)
    }

    fn second_apply() -> Scenario {
        let (arena, arguments) = new_policy();
        policies::apply_old(&arena);
        Scenario::of(arena, arguments, Start::Old, None)
    }

    fn refresh() -> Scenario {
        let mut arena = Arena::new();
        arena.serve_dns(&policies::hosts_before());
        let policy = arena.write("policy.yaml", &policies::resolved());
        arena.run(&["apply", "--force", &policy]).expect(0);
        Scenario::of(arena, vec!["refresh".to_string()], Start::Rotated, None)
    }

    fn restore() -> Scenario {
        let (arena, _) = new_policy();
        policies::apply_old(&arena);
        Scenario::of(arena, vec!["restore".to_string()], Start::Booted, None)
    }

    /// Takes the state directory as it is for the start, and learns from one run that nobody disturbs what is to come.
    fn of(arena: Arena, arguments: Vec<String>, start: Start, lockdown: Option<Listing>) -> Scenario {
        copy_directory(&arena.state(), &arena.path("start"));
        let nothing = Listing::of("");
        let mut scenario = Scenario {
            arena,
            arguments,
            start,
            before: None,
            after: nothing,
            reach_before: if matches!(start, Start::Empty | Start::Booted) { REACH_ALL } else { REACH_OLD },
            reach_after: match start {
                Start::Empty | Start::Old => REACH_NEW,
                Start::Booted => REACH_OLD,
                Start::Rotated => REACH_ROTATED,
            },
            lockdown,
            held: RefCell::default(),
        };
        scenario.before = match start {
            Start::Empty | Start::Booted => None,
            Start::Old | Start::Rotated => scenario.arena.host.listing(),
        };
        scenario.reset();
        scenario.arena.run(&scenario.words()).expect(0);
        scenario.after = scenario.arena.host.listing().expect("rules are loaded");
        assert_ne!(scenario.before.as_ref(), Some(&scenario.after), "the run changes nothing");
        assert_eq!(scenario.arena.reach(&ASKED), scenario.reach_after);
        if start == Start::Booted {
            scenario.lockdown = Some(scenario.after.clone());
        }
        scenario
    }

    fn words(&self) -> Vec<&str> {
        self.arguments.iter().map(String::as_str).collect()
    }

    /// Back to the start.
    fn reset(&self) {
        let _ = self.arena.host.try_nft(&["delete", "table", "inet", "egressguard"]);
        copy_directory(&self.arena.path("start"), &self.arena.state());
        if matches!(self.start, Start::Old | Start::Rotated) {
            self.arena.run(&["restore"]).expect(0);
        }
        if self.start == Start::Rotated {
            self.arena.change_dns(&policies::hosts_before());
            // Now it knows which generation of the kernel it left, and trusts it.
            self.arena.run(&["refresh"]).expect(0);
            self.arena.change_dns(&policies::hosts_after());
        }
        assert_eq!(self.arena.host.listing(), self.before, "the start is reached again");
        if self.start == Start::Old {
            self.held.replace(self.arena.hold(&[OLD, BOTH]));
        }
    }

    fn interrupt_by_kill(&self) {
        self.reset();
        let (ran, steps) = record(&self.arena, &self.words());
        ran.expect(0);
        let mut summary = Summary::default();
        for step in chosen(&steps) {
            self.reset();
            let ran = interrupt(&self.arena, &self.words(), &step, Fault::Kill);
            summary.count(&step.call, ran.signal.is_some());
            self.laws_hold(&step, Fault::Kill, &ran);
        }
        summary.tell();
        for call in ["fsync", "rename", "sendto", "sendmsg"] {
            let made = steps.iter().filter(|step| step.call == call).count();
            let hit = summary.hit.get(call).copied().unwrap_or(0);
            // A question to DNS may be asked once less or once more.
            let of_them: Vec<&str> = steps.iter().filter(|step| step.call == call).map(|step| step.text.as_str()).collect();
            assert!(hit + 4 >= made, "only {hit} of {made} `{call}` were interrupted: {of_them:#?}");
        }
    }

    fn interrupt_by_errors(&self, errors: &[Errors]) {
        self.reset();
        let (ran, steps) = record(&self.arena, &self.words());
        ran.expect(0);
        let mut summary = Summary::default();
        let state = self.arena.file("state");
        for (calls, errors, place) in errors {
            let meets = |step: &&Step| {
                calls.contains(&step.call.as_str())
                    && match place {
                        Where::Anywhere => true,
                        Where::State => step.text.contains(&state),
                        Where::Netlink => step.netlink,
                    }
            };
            for (step, errno) in steps.iter().filter(meets).flat_map(|step| errors.iter().map(move |errno| (step, *errno))) {
                self.reset();
                let fault = Fault::Error(errno);
                let ran = interrupt(&self.arena, &self.words(), step, fault);
                summary.count(&step.call, ran.code != Some(0));
                self.laws_hold(step, fault, &ran);
            }
        }
        summary.tell();
        assert!(summary.hit.values().sum::<usize>() >= 10, "hardly any error was met: {:?}", summary.hit);
    }

    /// The laws of this file, after this run.
    fn laws_hold(&self, step: &Step, fault: Fault, ran: &Ran) {
        let at = format!("{fault:?} at {step}\n{ran}");
        self.ended_well(fault, ran, &at);

        let there = self.arena.host.listing();
        let is_new = there.as_ref() == Some(&self.after);
        assert!(is_new || there == self.before, "neither the old rules nor the new ones: {at}\n{}", shown(there.as_ref()));
        let expected = if is_new { self.reach_after } else { self.reach_before };
        assert_eq!(self.arena.reach(&ASKED), expected, "who is reached of {ASKED:?}: {at}");

        self.restores(ran, is_new, &at);

        let again = self.arena.run(&self.words());
        assert_eq!(again.code, Some(0), "the next run fails: {again}\nafter {at}");
        assert!(self.arena.host.listing().as_ref() == Some(&self.after), "the next run does not end in the new state: {again}\nafter {at}");
        if self.start == Start::Old {
            assert_eq!(self.arena.under_way(OLD), 0, "what is forbidden is under way: {again}\nafter {at}");
            assert_ne!(self.arena.under_way(BOTH), 0, "what is allowed is not under way: {again}\nafter {at}");
        }
        let left = names(&self.arena.state());
        assert!(left.iter().all(|name| !name.contains(".new")), "left lying about: {left:?}\nafter {at}");
        let generations = left.iter().filter(|name| !name.starts_with("ledger.")).count();
        assert!(generations <= 3 + 2 * 3, "generations pile up: {left:?}\nafter {at}");
    }

    /// Killed, done, or refused with words: nothing else.
    fn ended_well(&self, fault: Fault, ran: &Ran, at: &str) {
        match ran.code {
            None => assert_eq!(fault, Fault::Kill, "{at}"),
            // What a kill meets may be a process of ours that nobody waits for, or a call that was not made this time.
            Some(0) => {}
            Some(3) => {
                assert!(matches!(fault, Fault::Error(_)), "{at}");
                assert!(ran.err.contains("error: ") && ran.err.contains("help: "), "{at}");
            }
            // `timeout` and `strace` pass a kill on as a code.
            Some(137) => assert_eq!(fault, Fault::Kill, "{at}"),
            Some(_) => panic!("{at}"),
        }
        assert_clean_words(&ran.err);
    }

    /// After a reboot `restore` loads the old policy or the new one.
    fn restores(&self, ran: &Ran, is_new: bool, at: &str) {
        let copy = self.arena.path("boot");
        copy_directory(&self.arena.state(), &copy);
        let (restored, loaded) = booted(&self.arena, &copy);
        assert_eq!(restored.code, Some(0), "restore fails: {restored}\nafter {at}");
        let loaded = loaded.unwrap_or_else(|| panic!("restore loads nothing: {restored}\nafter {at}"));
        let new = loaded == self.after;
        let old = Some(&loaded) == self.before.as_ref() || Some(&loaded) == self.lockdown.as_ref();
        assert!(new || old, "a reboot loads something else: {restored}\n{loaded}\nafter {at}");
        if ran.code == Some(0) && ran.signal.is_none() && is_new {
            assert!(new, "the run says it is done, and a reboot loads the old policy: {restored}\nafter {at}");
        }
    }
}

/// Which calls were interrupted, and how often the run felt it.
#[derive(Default)]
struct Summary {
    hit: BTreeMap<String, usize>,
    missed: usize,
}

impl Summary {
    fn count(&mut self, call: &str, felt: bool) {
        if felt {
            *self.hit.entry(call.to_string()).or_insert(0) += 1;
        } else {
            self.missed += 1;
        }
    }

    fn tell(&self) {
        println!("interrupted: {:?}; not felt: {}", self.hit, self.missed);
    }
}

/// An arena with the new policy, and the words that apply it.
fn new_policy() -> (Arena, Vec<String>) {
    let arena = Arena::new();
    let policy = arena.write("new.yaml", &policies::new());
    let pins = arena.write("new.pins", &policies::pins_of(&policies::NEW_NAMES));
    (arena, ["apply", "--force", &policy, "--pins", &pins].map(String::from).to_vec())
}

/// What a boot makes of a state directory: in a namespace that ends with it.
fn booted(arena: &Arena, state: &PathBuf) -> (Ran, Option<Listing>) {
    let directory = state.to_str().expect("paths here are text").to_string();
    let words = [env!("CARGO_BIN_EXE_egressguard").to_string(), "--state-dir".to_string(), directory, "restore".to_string()];
    let result = in_fresh_namespace(|| {
        let ran = arena::run_here(&words);
        let output = Command::new("nft").args(["-s", "list", "table", "inet", "egressguard"]).output().expect("nft can be run");
        (ran, output.status.success().then(|| Listing::of(&String::from_utf8_lossy(&output.stdout))))
    });
    if *state == arena.state() {
        // What was only tried leaves no trace.
        let _ = fs::remove_dir_all(state);
        fs::create_dir(state).expect("the parent is ours");
    }
    result
}

fn shown(listing: Option<&Listing>) -> String {
    listing.map_or_else(|| "no table".to_string(), ToString::to_string)
}
