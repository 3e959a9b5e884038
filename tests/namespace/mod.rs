//! A fresh network namespace for a test, and the promise never to touch the one the tests were started in.
#![allow(dead_code)]

pub mod behind;
pub mod iptables;
pub mod load;
pub mod pair;

use std::fs::read_link;
use std::io::Write;
use std::process::{Command, Stdio};

use nix::sched::{CloneFlags, unshare};

/// Runs `body` in a thread of its own, inside a network namespace of its own that ends with the thread.
pub fn inside<T: Send>(body: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace of its own");
            assert_foreign();
            body()
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Panics in the network namespace that the tests were started in, where their first thread stays, and in that of process 1.
pub fn assert_foreign() {
    let here = read_link("/proc/thread-self/ns/net").expect("the thread's network namespace");
    let homes = ["/proc/self/ns/net", "/proc/1/ns/net"].map(read_link);
    assert!(homes[0].is_ok(), "the namespace that the tests were started in is not known");
    assert!(homes.into_iter().flatten().all(|home| home != here), "refusing to touch a packet filter that is not the test's own");
}

/// Whether kernel tests can run here. Says why not, and fails when the environment demands that they run.
pub fn kernel_is_there() -> bool {
    let tried = std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).map_err(|errno| format!("no network namespace: {errno}"))?;
        assert_foreign();
        nft(&["list", "tables"], "").map(|_| ()).map_err(|why| format!("nft does not run: {why}"))
    });
    let Err(why) = tried.join().unwrap_or_else(|_| Err("the attempt panicked".to_string())) else { return true };
    assert!(std::env::var_os("EGRESSGUARD_REQUIRE_KERNEL").is_none_or(|value| value != "1"), "skipped although required: {why}");
    eprintln!("skipped: {why}");
    false
}

/// Runs `nft` on this thread's namespace; its words when it fails.
pub fn nft(arguments: &[&str], input: &str) -> Result<String, String> {
    assert_foreign();
    run("nft", arguments, input)
}

/// Runs `ip` on this thread's namespace.
pub fn ip(arguments: &str) {
    assert_foreign();
    run("ip", &arguments.split(' ').collect::<Vec<_>>(), "").unwrap_or_else(|why| panic!("ip {arguments}: {why}"));
}

fn run(program: &str, arguments: &[&str], input: &str) -> Result<String, String> {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|error| error.to_string())?;
    let mut stdin = child.stdin.take().ok_or("no standard input")?;
    let text = input.to_string();
    let writer = std::thread::spawn(move || stdin.write_all(text.as_bytes()));
    let output = child.wait_with_output().map_err(|error| error.to_string())?;
    let _ = writer.join();
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    }
}
