//! What a run does to the world, system call by system call, and the same run with one of them interrupted.
#![allow(dead_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use crate::arena::{Arena, Ran, run};

/// The system calls by which a run touches the world or learns from it.
const CALLS: &str = "openat,write,fsync,fdatasync,rename,renameat,renameat2,unlink,unlinkat,mkdir,mkdirat,ftruncate,flock,getdents64,\
                     socket,bind,sendto,sendmsg,recvfrom,recvmsg,read,close,clone,clone3,fork,vfork,setns,exit_group";

/// Calls that are interrupted every time they are made; of the others only [`SAMPLED`].
const ALWAYS: [&str; 19] = [
    "fsync",
    "fdatasync",
    "rename",
    "renameat",
    "renameat2",
    "unlink",
    "unlinkat",
    "mkdir",
    "mkdirat",
    "ftruncate",
    "flock",
    "sendto",
    "sendmsg",
    "clone",
    "clone3",
    "fork",
    "vfork",
    "setns",
    "exit_group",
];
/// How many calls of one kind are interrupted, spread evenly.
const SAMPLED: usize = 5;

/// One system call of a run.
#[derive(Debug, Clone)]
pub struct Step {
    /// Its name.
    pub call: String,
    /// How many of this name were made before it in the same process, and itself.
    pub number: usize,
    /// How it was made.
    pub text: String,
    /// Whether it is about a netlink socket.
    pub netlink: bool,
    /// What it returned; 0 when it is not known.
    pub returned: u64,
}

impl std::fmt::Display for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} number {}: {}", self.call, self.number, self.text)
    }
}

/// What becomes of the call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The process is killed before it is made.
    Kill,
    /// It is not made and fails with this errno.
    Error(&'static str),
    /// It is made this many microseconds later.
    Delay(u32),
}

/// Every step of a run after the program has started: from the first that names the state directory or enters the namespace.
pub fn record(arena: &Arena, arguments: &[&str]) -> (Ran, Vec<Step>) {
    let log = arena.file("trace");
    let words = ["strace", "-f", "-y", "-qq", "-s", "100", "-o", &log, "-e", &format!("trace={CALLS}")].map(String::from);
    let ran = run(&[words.to_vec(), arena.arguments(arguments)].concat());
    let text = fs::read_to_string(&log).expect("strace has written");
    let mut first = None;
    let mut counted: BTreeMap<String, usize> = BTreeMap::new();
    let mut steps = Vec::new();
    let mut begun = false;
    let mut sockets = BTreeSet::new();
    for line in text.lines() {
        let Some((pid, made)) = line.split_once(' ') else { continue };
        // Other processes and threads of the run count for themselves; theirs are reached through the one that makes them.
        if *first.get_or_insert(pid) != pid {
            continue;
        }
        let made = made.trim_start();
        let Some((call, _)) = made.split_once('(').filter(|(call, _)| call.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')) else {
            continue;
        };
        let number = counted.entry(call.to_string()).or_insert(0);
        *number += 1;
        let returned = made.rsplit_once(" = ").map_or(0, |(_, result)| leading_number(result));
        let descriptor = leading_number(&made[call.len() + 1..]);
        // The namespace of the run is not strace's own, so that it cannot say this by itself.
        let netlink = match call {
            "socket" if made.contains("AF_NETLINK") => sockets.insert(returned),
            "close" => sockets.remove(&descriptor),
            "socket" => false,
            _ => sockets.contains(&descriptor),
        };
        begun = begun || call == "setns" || made.contains(arena.file("state").as_str());
        if begun {
            steps.push(Step { call: call.to_string(), number: *number, text: made.chars().take(160).collect(), netlink, returned });
        }
    }
    assert!(!steps.is_empty(), "nothing was traced: {ran}");
    (ran, steps)
}

/// The number that a text begins with; 0 when it begins with none.
fn leading_number(text: &str) -> u64 {
    text.trim_start().split(|c: char| !c.is_ascii_digit()).next().and_then(|digits| digits.parse().ok()).unwrap_or(0)
}

/// The step that sends the transaction: the longest message to the kernel.
pub fn transaction(steps: &[Step]) -> Step {
    let sent = steps.iter().filter(|step| step.netlink && ["sendto", "sendmsg"].contains(&step.call.as_str()));
    let longest = sent.max_by_key(|step| step.returned).filter(|step| step.returned > 500);
    longest.unwrap_or_else(|| panic!("no transaction is sent: {steps:#?}")).clone()
}

/// The steps at which a run is interrupted.
pub fn chosen(steps: &[Step]) -> Vec<Step> {
    let mut by_call: BTreeMap<&str, Vec<&Step>> = BTreeMap::new();
    for step in steps {
        by_call.entry(&step.call).or_default().push(step);
    }
    let mut chosen = Vec::new();
    for (call, steps) in by_call {
        let every = if ALWAYS.contains(&call) { 1 } else { steps.len().div_ceil(SAMPLED) };
        chosen.extend(steps.into_iter().step_by(every.max(1)).cloned());
    }
    chosen
}

/// The same run with one step interrupted.
pub fn interrupt(arena: &Arena, arguments: &[&str], step: &Step, fault: Fault) -> Ran {
    run(&interrupted(arena, arguments, step, fault))
}

/// The command of that run.
pub fn interrupted(arena: &Arena, arguments: &[&str], step: &Step, fault: Fault) -> Vec<String> {
    let what = match fault {
        Fault::Kill => "signal=SIGKILL".to_string(),
        Fault::Error(errno) => format!("error={errno}"),
        Fault::Delay(time) => format!("delay_enter={time}"),
    };
    let inject = format!("inject={}:{what}:when={}", step.call, step.number);
    let words = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", &format!("trace={}", step.call), "-e", &inject].map(String::from);
    [words.to_vec(), arena.arguments(arguments)].concat()
}
