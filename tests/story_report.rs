//! Stories of the report: who tried what is told from the kernel's counts and from what watch saw, in every format, without root.

mod support;

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use egressguard::base::net::Protocol;
use egressguard::base::packet::Direction;
use egressguard::base::time::Timestamp;
use egressguard::violation::book::{self, Head};
use egressguard::violation::record::{Count, Kind};
use egressguard::violation::{Tuple, Who};
use serde_json::Value;
use support::{STRANGER_V4, STRANGER_V6, World, eventually, is_refused};

fn json(output: &support::Output) -> Value {
    serde_json::from_str(&output.stdout).unwrap_or_else(|error| panic!("{error}: {}", output.stdout))
}

fn refuse_some(world: &World) {
    world.egressguard(&["apply", "builtin:openai"]).exits(0);
    for _ in 0..3 {
        is_refused(world.udp(STRANGER_V4, 53));
    }
    is_refused(world.tcp(STRANGER_V6, 4444));
}

#[test]
fn what_was_refused_is_reported_with_no_service_running_and_before_any_harvest() {
    let Some(world) = World::new() else { return };
    world.egressguard(&["report"]).exits(0).says(&["0 packets were refused", "nothing was ever harvested here"]);
    refuse_some(&world);
    let text = world.egressguard(&["report"]).exits(1).says(&[
        "packets were refused from",
        "out      udp    root",
        &format!("{STRANGER_V4} port 53"),
        &format!("to allow: - {{to: {STRANGER_V4}, port: 53, protocol: udp, for: {{user: root}}}}"),
    ]);
    assert!(text.stdout.lines().all(|line| line.chars().count() <= 100), "{}", text.stdout);
    let answer = json(&world.egressguard(&["report", "--json"]).exits(1));
    assert_eq!(answer["schema"], "egressguard.report/1");
    let of = |answer: &Value, port: u16| answer["violations"].as_array().unwrap().iter().find(|found| found["port"] == port).cloned();
    let dns = of(&answer, 53).unwrap();
    assert_eq!((&dns["count"], &dns["user"], &dns["counted_by"]), (&3.into(), &"root".into(), &"kernel".into()));
    // Looking writes nothing; the harvest changes nothing but who may see it.
    assert!(!world.state().join("ledger.jsonl").exists());
    world.egressguard(&["refresh"]).exits(0);
    let after = json(&world.egressguard(&["report", "--json"]).exits(1));
    assert_eq!((&after["total"], of(&after, 53).unwrap()["count"].clone()), (&answer["total"], 3.into()));
    assert_eq!(after["by_time"].as_array().unwrap().iter().filter_map(Value::as_u64).sum::<u64>(), after["total"].as_u64().unwrap());

    // Filters.
    world.egressguard(&["report", "--to", &format!("{STRANGER_V4}/24"), "--user", "root"]).exits(1).says(&[STRANGER_V4]);
    world.egressguard(&["report", "--user", "4100000"]).exits(0).says(&["0 packets"]);
    world.egressguard(&["report", "--direction", "forward"]).exits(0);
    world.egressguard(&["report", "--until", "1h"]).exits(0);
    for wrong in ["198.51.100.0/33", "198.51.100,66", "", "*.example.com"] {
        world.egressguard(&["report", "--to", wrong]).exits(2).says(&["--to", "neither an address"]);
    }
    for wrong in [&["report", "--since", "yesterday"][..], &["report", "--direction", "up"], &["report", "--since", "1h", "--until", "2h"]]
    {
        world.egressguard(wrong).exits(2);
    }
    world.egressguard(&["report", "--check-journal"]).exits(0).says(&["ledger  whole"]);
}

#[test]
fn records_from_before_the_clock_was_set_back_are_not_passed_over_in_silence() {
    let Some(world) = World::new() else { return };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as i64;
    let later = Timestamp(now + 40 * 86_400);
    let tuple = Tuple {
        direction: Direction::Out,
        who: Who::User(0),
        destination: STRANGER_V4.parse().ok(),
        protocol: Protocol::UDP,
        port: Some(53),
    };
    let count = Count { from: Timestamp(later.0 - 60), to: later, tuple: tuple.into(), packets: 3, bytes: 180, last: None, anew: false };
    let (octets, _) = book::append(&Head::default(), later, &[Kind::Count(count)]);
    fs::create_dir_all(world.state()).unwrap();
    fs::write(world.state().join("ledger.jsonl"), octets).unwrap();
    world.egressguard(&["report"]).exits(0).says(&["0 packets", "1 record of refused packets is later than now", "set back"]);
    assert_eq!(json(&world.egressguard(&["report", "--json"]).exits(0))["later"], 1);
    let earlier = world.egressguard(&["report", "--until", "1h"]).exits(0);
    assert!(!earlier.stdout.contains("later than now"), "{}", earlier.stdout);
    world.egressguard(&["report", "--until", &Timestamp(later.0 + 1).to_string()]).exits(1).says(&["3 packets"]);
}

#[test]
fn names_of_programs_and_users_are_inert_in_every_format() {
    let Some(world) = World::new() else { return };
    world.egressguard(&["apply", "builtin:openai"]).exits(0);
    let directory = Path::new(&world.state()).parent().unwrap().join("programs");
    fs::create_dir_all(&directory).unwrap();
    let program = directory.join("x\x1b[31m<script>alert(1)|`*\n");
    fs::copy("/usr/bin/python3", &program).unwrap();
    let mut watching = world.started_inside(&["env"], &["watch", "--service"]);
    eventually("the watch writes its book", || world.state().join("watch/watch.jsonl").exists());
    let send = format!(
        "import socket,time; s=socket.socket(socket.AF_INET,socket.SOCK_DGRAM)\ntry: s.sendto(b'x',('{STRANGER_V4}',53))\nexcept OSError: pass\ntime.sleep(9)"
    );
    let mut sender = world.inside(&program).args(["-c", &send]).spawn().unwrap();
    eventually("the program is seen", || {
        fs::read_to_string(world.state().join("watch/watch.jsonl")).is_ok_and(|book| book.contains("<script>"))
    });
    let _ = sender.kill();
    let _ = sender.wait();
    let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(watching.id() as i32), nix::sys::signal::Signal::SIGTERM);
    let _ = watching.wait();
    let page = world.egressguard(&["report", "--format", "html"]).exits(1).stdout;
    assert!(page.contains("&lt;script&gt;alert") && !page.contains("<script>"), "{page}");
    assert!(!page.contains("http://") && !page.contains("https://") && !page.contains("src="), "nothing comes from elsewhere");
    let markdown = world.egressguard(&["report", "--format", "markdown"]).exits(1).stdout;
    assert!(!markdown.contains("<script>") && !markdown.contains('\x1b'), "{markdown}");
    let rows = markdown.lines().filter(|line| line.starts_with("| "));
    let cells = |line: &str| line.replace("\\|", "").matches('|').count();
    assert!(rows.map(cells).all(|cells| cells == 9), "{markdown}");
    let text = world.egressguard(&["report"]).exits(1).stdout;
    assert!(!text.contains('\x1b'), "{text}");
    json(&world.egressguard(&["report", "--json"]).exits(1));
}

#[test]
fn a_book_that_somebody_has_edited_shows_where() {
    let Some(world) = World::new() else { return };
    refuse_some(&world);
    world.egressguard(&["refresh"]).exits(0);
    is_refused(world.udp(STRANGER_V4, 54));
    world.egressguard(&["refresh"]).exits(0);
    let book = world.state().join("ledger.jsonl");
    let text = fs::read_to_string(&book).unwrap();
    fs::write(&book, text.replacen("\"packets\":3", "\"packets\":1", 1)).unwrap();
    world.egressguard(&["report", "--check-journal"]).exits(1).says(&["tampered with", "ledger.jsonl:", "edited"]);
    let answer = json(&world.egressguard(&["report", "--check-journal", "--json"]).exits(1));
    assert_eq!((&answer["whole"], &answer["books"][0]["book"]), (&false.into(), &"ledger".into()));
    let lines: Vec<&str> = text.lines().collect();
    fs::write(&book, format!("{}\n", lines[..lines.len() - 1].join("\n"))).unwrap();
    world.egressguard(&["report", "--check-journal"]).exits(1).says(&["at the end"]);
    fs::write(&book, &text).unwrap();
    world.egressguard(&["report", "--check-journal"]).exits(0);

    // The head goes with the end: the baseline of the next harvest knows better, and that there was none stays visible.
    fs::write(&book, format!("{}\n", lines[..lines.len() - 1].join("\n"))).unwrap();
    fs::remove_file(world.state().join("ledger.head")).unwrap();
    world.egressguard(&["report", "--check-journal"]).exits(1).says(&["at the end"]);
    is_refused(world.udp(STRANGER_V4, 55));
    world.egressguard(&["refresh", "--harvest"]).exits(0);
    world.egressguard(&["report", "--check-journal"]).says(&["the head file was missing when this was written"]);
    for name in ["ledger.jsonl", "ledger.head"] {
        fs::remove_file(world.state().join(name)).unwrap();
    }
    world.egressguard(&["report", "--check-journal"]).exits(1).says(&["at the end"]);
    fs::remove_file(world.state().join("ledger.json")).unwrap();
    // A pipe in the place of a file keeps nobody waiting.
    nix::unistd::mkfifo(&world.state().join("ledger.head"), nix::sys::stat::Mode::S_IRUSR).unwrap();
    world.egressguard(&["report", "--check-journal"]).exits(3).says(&["no regular file"]);
}

#[test]
fn whoever_may_read_the_state_needs_no_root_for_a_report() {
    let Some(world) = World::new() else { return };
    refuse_some(&world);
    world.egressguard(&["refresh"]).exits(0);
    let open = |directory: &Path| fs::set_permissions(directory, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    open(world.state().parent().unwrap());
    open(&world.state());
    for entry in fs::read_dir(world.state()).unwrap().flatten() {
        fs::set_permissions(entry.path(), std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    }
    let output = Command::new("setpriv")
        .args(["--reuid", "65534", "--regid", "65534", "--clear-groups", env!("CARGO_BIN_EXE_egressguard"), "report", "--state-dir"])
        .arg(world.state())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{said}{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.contains(STRANGER_V4), "{said}");
}
