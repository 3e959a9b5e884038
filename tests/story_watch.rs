//! Stories of `watch`: the program itself against a real kernel, with real senders.

mod support;

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use support::{API, API_V4, HOST_V4, STRANGER_V4, STRANGER_V6, Side, World, eventually, is_refused};

/// A `watch` that runs, with the lines that it writes.
struct Watching {
    child: Child,
    lines: Receiver<String>,
    words: Receiver<String>,
}

impl Watching {
    fn start(world: &World, arguments: &[&str]) -> Watching {
        let watching = Watching::of(world.egressguard_started(&[&["watch"], arguments].concat()));
        // The log is bound once the program has the netlink socket open.
        eventually("the log is followed", || taken(world));
        watching
    }

    fn of(mut child: Child) -> Watching {
        let follow = |stream: Box<dyn std::io::Read + Send>| {
            let (sender, receiver) = channel();
            std::thread::spawn(move || BufReader::new(stream).lines().map_while(Result::ok).all(|line| sender.send(line).is_ok()));
            receiver
        };
        let lines = follow(Box::new(child.stdout.take().expect("a pipe")));
        let words = follow(Box::new(child.stderr.take().expect("a pipe")));
        Watching { child, lines, words }
    }

    /// The next line that holds these words; panics when none comes within five seconds.
    #[track_caller]
    fn line(&self, words: &[&str]) -> String {
        let start = Instant::now();
        let mut others = Vec::new();
        while start.elapsed() < Duration::from_secs(5) {
            match self.lines.recv_timeout(Duration::from_millis(100)) {
                Ok(line) if words.iter().all(|word| line.contains(word)) => return line,
                Ok(line) => others.push(line),
                Err(_) => {}
            }
        }
        let said: Vec<String> = self.words.try_iter().collect();
        panic!("no line with {words:?}; others were {others:#?}; words {said:#?}");
    }

    #[track_caller]
    fn record(&self, words: &[&str]) -> Value {
        let line = self.line(words);
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"))
    }

    /// Ends it as systemd does; its exit code and what it said.
    fn end(mut self) -> (i32, Vec<String>, Vec<String>) {
        let pid = Pid::from_raw(self.child.id() as i32);
        kill(pid, Signal::SIGTERM).expect("it runs");
        let code = self.child.wait().expect("it ends").code().unwrap_or(-1);
        (code, self.lines.iter().collect(), self.words.iter().collect())
    }

    /// The most memory it ever had resident, in KiB.
    fn peak(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("it runs");
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a peak");
        line.trim().trim_end_matches(" kB").parse().expect("a number")
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Whether somebody follows the packet log of the host.
fn taken(world: &World) -> bool {
    world.within(Side::Host, || egressguard::system::netlink::nflog::PacketLog::open().is_err())
}

/// A policy with one name, and what is to be added to it.
fn policy(world: &World, more: &str) -> String {
    world.policy(&format!("version: 1\nname: test\noutbound:\n  - to: {API}\n{more}"))
}

fn apply(world: &World, more: &str) {
    let policy = policy(world, more);
    world.egressguard(&["apply", &policy]).exits(0);
}

fn book(world: &World) -> PathBuf {
    world.state().join("watch/watch.jsonl")
}

fn records(world: &World) -> Vec<Value> {
    let text = std::fs::read_to_string(book(world)).unwrap_or_default();
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

#[test]
fn who_tried_what_is_told_with_rule_user_and_name() {
    let Some(world) = World::new() else { return };
    apply(&world, "");
    let watching = Watching::start(&world, &["--json"]);
    let udp = world.within(Side::Host, || {
        let socket = std::net::UdpSocket::bind(format!("{HOST_V4}:0")).expect("a socket");
        let _ = socket.send_to(b"x", (STRANGER_V4, 53));
        socket
    });
    let record = watching.record(&[STRANGER_V4, "udp"]);
    assert_eq!(
        (&record["schema"], &record["kind"], &record["rule"]),
        (&"egressguard.watch/1".into(), &"seen".into(), &"refuse-out".into())
    );
    assert_eq!((&record["direction"], &record["port"], &record["source"]), (&"out".into(), &53.into(), &HOST_V4.into()));
    assert_eq!((&record["uid"], &record["user"]), (&0.into(), &"root".into()));
    assert_eq!(record["process"]["pid"], std::process::id(), "{record}");
    drop(udp);
    // A name that the address has, on a port that is not allowed.
    is_refused(world.tcp(API_V4, 80));
    let record = watching.record(&[API_V4, "\"port\":80"]);
    assert_eq!((&record["name"], &record["protocol"]), (&API.into(), &"tcp".into()));
    is_refused(world.tcp(STRANGER_V6, 443));
    watching.record(&[STRANGER_V6, "\"port\":443"]);
    is_refused(world.attempt(Side::Net, support_way(), HOST_V4, 8080));
    let record = watching.record(&["refuse-in"]);
    assert_eq!((&record["direction"], &record["port"], &record["process"]), (&"in".into(), &8080.into(), &Value::Null));
    let (code, _, words) = watching.end();
    // Whether there is a tracer is said once, and nothing else.
    assert!(code == 0 && words.iter().all(|line| line.contains("tracepoint")) && words.len() < 2, "{code}: {words:?}");
}

fn support_way() -> egressguard::demo::attempt::Way {
    egressguard::demo::attempt::Way::Tcp
}

#[test]
fn a_burst_is_one_record_and_piped_lines_stand_under_their_heading() {
    let Some(world) = World::new() else { return };
    apply(&world, "");
    let watching = Watching::start(&world, &[]);
    world.within(Side::Host, || {
        let socket = std::net::UdpSocket::bind("0.0.0.0:0").expect("a socket");
        (0..30).for_each(|_| drop(socket.send_to(b"x", (STRANGER_V4, 9))));
    });
    let heading = watching.line(&["where"]);
    let line = watching.line(&[STRANGER_V4]);
    let column = |word: &str| heading.find(word).expect("a column");
    assert_eq!(line.find("refuse-out"), Some(column("rule")), "{heading}\n{line}");
    assert_eq!(line[column("count")..].split_whitespace().next(), Some("30"), "{line}");
    assert!(!line.contains('\x1b'), "{line}");
}

#[test]
fn the_service_writes_a_book_that_checks_and_ends_cleanly() {
    let Some(world) = World::new() else { return };
    apply(&world, "");
    let watching = Watching::start(&world, &["--service"]);
    is_refused(world.udp(STRANGER_V4, 53));
    eventually("the record is in the book", || records(&world).iter().any(|record| record["destination"] == STRANGER_V4));
    is_refused(world.udp(STRANGER_V4, 54));
    let (code, ..) = watching.end();
    assert_eq!(code, 0);
    let kinds: Vec<String> = records(&world).iter().map(|record| record["kind"].as_str().unwrap_or("").to_string()).collect();
    assert_eq!((kinds.first().map(String::as_str), kinds.last().map(String::as_str)), (Some("started"), Some("stopped")), "{kinds:?}");
    assert!(records(&world).iter().any(|record| record["port"] == 54), "what was open at the end is told");
    assert!(checked(&world).is_empty());
}

/// What a check of the book finds.
fn checked(world: &World) -> Vec<String> {
    let files = egressguard::system::files::StateDirectory::new(world.state().join("watch"));
    let findings = egressguard::state::books::check("watch", &files, 0).expect("the book can be read");
    findings.findings.iter().map(|finding| format!("{}: {}", finding.line, finding.what)).collect()
}

#[test]
fn a_service_that_is_killed_goes_on_with_a_whole_book() {
    let Some(world) = World::new() else { return };
    apply(&world, "");
    for round in 1..4u16 {
        let mut watching = Watching::start(&world, &["--service"]);
        is_refused(world.udp(STRANGER_V4, round));
        eventually("the record is in the book", || records(&world).iter().any(|record| record["port"] == round));
        watching.child.kill().expect("it runs");
        watching.child.wait().expect("it ends");
        // The torn end of a write that was interrupted.
        let torn = std::fs::OpenOptions::new().append(true).open(book(&world)).expect("the book is there");
        std::io::Write::write_all(&mut &torn, b"{\"seq\":99,\"at\":\"20").expect("it can be written");
        eventually("the kernel has ended the log", || !taken(&world));
    }
    let watching = Watching::start(&world, &["--service"]);
    assert_eq!(watching.end().0, 0);
    assert!(checked(&world).is_empty(), "{:?}", checked(&world));
    let mended = records(&world).iter().filter(|record| record["kind"] == "mended" && record["bytes"] == 18).count();
    assert_eq!(mended, 3, "{:#?}", records(&world));
}

#[test]
fn beside_the_service_a_person_follows_its_book_and_a_second_service_is_told() {
    let Some(world) = World::new() else { return };
    apply(&world, "");
    let service = Watching::start(&world, &["--service"]);
    eventually("the book is begun", || book(&world).exists());
    let person = Watching::of(world.egressguard_started(&["watch", "--json"]));
    let said = person.words.recv_timeout(Duration::from_secs(5)).expect("a word");
    assert!(said.contains("its book is followed instead"), "{said}");
    is_refused(world.udp(STRANGER_V4, 53));
    let record = person.record(&[STRANGER_V4]);
    assert_eq!((&record["kind"], &record["schema"]), (&"seen".into(), &"egressguard.watch/1".into()));
    world.egressguard(&["watch", "--service"]).exits(3).says(&["another program follows the packet log already", "egressguard-watch"]);
    assert_eq!((person.end().0, service.end().0), (0, 0));
}

#[test]
fn without_permission_it_says_what_is_missing() {
    let Some(world) = World::new() else { return };
    apply(&world, "");
    let without = ["setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin"];
    world
        .egressguard_through(&without, &["watch", "--json"])
        .exits(3)
        .says(&["not permitted to read the packet log (EPERM)", "CAP_NET_ADMIN"]);
}

#[test]
fn without_a_look_into_proc_records_come_without_the_process_and_that_is_said_once() {
    let Some(world) = World::new() else { return };
    apply(&world, "");
    // Another user, with the one capability that the log takes.
    let wrapper = [
        "setpriv",
        "--reuid",
        "65534",
        "--regid",
        "65534",
        "--clear-groups",
        "--inh-caps=-all,+net_admin",
        "--ambient-caps=-all,+net_admin",
        "--bounding-set=-all,+net_admin",
    ];
    // It cannot enter the namespace by name, so it is started inside.
    let child = world.started_inside(&wrapper, &["watch", "--json"]);
    let watching = Watching::of(child);
    eventually("the log is followed", || taken(&world));
    let sockets: Vec<std::net::UdpSocket> = world.within(Side::Host, || {
        let send = |port: u16| {
            let socket = std::net::UdpSocket::bind("0.0.0.0:0").expect("a socket");
            let _ = socket.send_to(b"x", (STRANGER_V4, port));
            socket
        };
        (1..4).map(send).collect()
    });
    for port in 1..4 {
        let record = watching.record(&[STRANGER_V4, &format!("\"port\":{port},")]);
        assert_eq!((&record["process"], &record["uid"]), (&Value::Null, &0.into()), "{record}");
    }
    drop(sockets);
    let (code, _, words) = watching.end();
    let said = words.iter().filter(|line| line.contains("CAP_SYS_PTRACE is missing")).count();
    assert_eq!((code, said), (0, 1), "{words:#?}");
}

#[test]
fn a_program_that_has_ended_is_gone_and_no_other_is_named_for_it() {
    let Some(world) = World::new() else { return };
    apply(&world, "");
    let watching = Watching::start(&world, &["--json"]);
    // Of one pid each, which ends as soon as its packet is sent; others come and go meanwhile.
    let sent: Vec<(u16, u32)> = (1..21)
        .map(|port| {
            let script = format!("echo x > /dev/udp/{STRANGER_V4}/{port}");
            let mut child =
                world.inside(std::path::Path::new("bash")).args(["-c", &script]).stderr(Stdio::null()).spawn().expect("bash runs");
            let _ = child.wait();
            (port, child.id())
        })
        .collect();
    let mut gone = 0;
    for (port, pid) in sent {
        let record = watching.record(&[STRANGER_V4, &format!("\"port\":{port},")]);
        let process = &record["process"];
        match process.as_str() {
            Some(word) => assert_eq!(word, "gone"),
            None => assert_eq!((&process["pid"], record["uid"].as_u64()), (&pid.into(), Some(0)), "{record}"),
        }
        gone += u32::from(process.is_string());
    }
    assert!(gone > 0, "not one of them was gone before it could be looked at, so nothing is shown here");
}

#[test]
fn a_flood_of_refused_packets_takes_bounded_memory_and_harms_nobody() {
    let Some(world) = World::new() else { return };
    apply(&world, "");
    // As many records as there are packets, which our rules do not make: a second table logs them all, to as many destinations.
    world.nft_load(
        "table inet flood {\nchain o {\ntype filter hook output priority -10\nudp dport 7 log prefix \"egressguard refuse-out \" group 4947 queue-threshold 64\n}\n}\n",
    );
    let watching = Watching::start(&world, &["--service"]);
    world.within(Side::Host, || {
        let socket = std::net::UdpSocket::bind("0.0.0.0:0").expect("a socket");
        for number in 0..100_000u32 {
            let [_, b, c, d] = number.to_be_bytes();
            let _ = socket.send_to(b"x", (std::net::Ipv4Addr::new(198, 18 + (b & 1), c, d), 7));
            if number % 20_000 == 0 {
                support::passes(world.tls(API_V4));
            }
        }
    });
    support::passes(world.tls(API_V4));
    let told = |records: &[Value]| -> u64 {
        let of = |record: &Value| {
            if record["kind"] == "seen" || record["kind"] == "other" || record["kind"] == "lost" { record["count"].as_u64() } else { None }
        };
        records.iter().filter_map(of).sum()
    };
    eventually("every packet is told or counted", || told(&records(&world)) >= 100_000);
    let peak = watching.peak();
    let size = std::fs::metadata(book(&world)).expect("the book").len();
    assert_eq!(watching.end().0, 0);
    assert!(peak < 64 << 10, "{peak} KiB");
    assert!(size < 16 << 20, "{size} octets");
    assert!(checked(&world).is_empty());
}

#[test]
fn hostile_names_of_processes_are_inert_in_every_format() {
    let Some(world) = World::new() else { return };
    apply(&world, "");
    let directory = tempfile::tempdir().expect("a directory");
    let evil = directory.path().join("<b>\u{1b}[2J\nx");
    std::fs::copy("/usr/bin/python3", &evil).expect("a copy");
    let send = format!(
        "import socket,time; s=socket.socket(socket.AF_INET,socket.SOCK_DGRAM)\ntry: s.sendto(b'x',('{STRANGER_V4}',53))\nexcept OSError: pass\ntime.sleep(8)"
    );
    for format in [&["--json"][..], &[]] {
        let watching = Watching::start(&world, format);
        let mut sender = world.inside(&evil).args(["-c", &send, "\u{1b}]0;owned\u{7}"]).stdout(Stdio::null()).spawn().expect("it starts");
        let line = watching.line(&[STRANGER_V4]);
        assert!(!line.contains(|c: char| c.is_control()), "{line:?}");
        if format.is_empty() {
            assert!(line.contains("u{1b}[2J\\u{a}x"), "{line}");
        } else {
            let record: Value = serde_json::from_str(&line).expect("one object on one line");
            let (executable, command) = (&record["process"]["executable"], &record["process"]["command"]);
            assert!(executable.as_str().is_some_and(|path| path.ends_with("<b>\\u{1b}[2J\\u{a}x")), "{record}");
            assert!(command.as_str().is_some_and(|line| line.contains("\\u{a}") && line.chars().count() <= 201), "{record}");
        }
        let _ = sender.kill();
        let _ = sender.wait();
    }
}

#[test]
fn the_alert_program_gets_the_record_and_is_not_run_again_before_its_time() {
    let Some(world) = World::new() else { return };
    let told = world.file("told");
    let program = world.file("page-me");
    std::fs::write(&program, format!("#!/bin/sh\nls -l /proc/$$/fd > {told}.open\ncat >> {told}\nexit 3\n")).expect("a program");
    let mut permissions = std::fs::metadata(&program).expect("a program").permissions();
    std::os::unix::fs::PermissionsExt::set_mode(&mut permissions, 0o755);
    std::fs::set_permissions(&program, permissions).expect("a program");
    apply(&world, &format!("violations:\n  alert: {{run: {program}, at-most-every: 3s}}\n"));
    let watching = Watching::start(&world, &["--service"]);
    let read = || -> Vec<Value> {
        let text = std::fs::read_to_string(&told).unwrap_or_default();
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    };
    is_refused(world.udp(STRANGER_V4, 1));
    eventually("the program was told", || read().len() == 1);
    let start = Instant::now();
    (2..6).for_each(|port| is_refused(world.udp(STRANGER_V4, port)));
    eventually("the program was told of the others", || read().len() == 2);
    assert!(start.elapsed() > Duration::from_millis(1500), "too early: {:?}", start.elapsed());
    let open = std::fs::read_to_string(format!("{told}.open")).expect("it was run");
    assert!(!open.contains("socket:"), "the service's sockets are the service's: {open}");
    let told = read();
    assert_eq!((&told[0]["schema"], &told[0]["port"], &told[0]["more"]), (&"egressguard.alert/1".into(), &1.into(), &0.into()));
    assert_eq!((&told[1]["port"], &told[1]["more"]), (&2.into(), &3.into()));
    eventually("the outcome is in the book", || records(&world).iter().filter(|record| record["kind"] == "alert").count() == 2);
    let (code, _, words) = watching.end();
    assert_eq!(code, 0);
    assert!(words.iter().any(|line| line.contains("the alert program ended with exit code 3")), "{words:#?}");
}

#[test]
fn a_full_disk_is_said_once_and_what_was_not_written_is_counted_when_there_is_room_again() {
    let Some(world) = World::new() else { return };
    apply(&world, "");
    let directory = world.state().join("watch");
    std::fs::create_dir_all(&directory).expect("a directory");
    let mounted = |arguments: &[&str]| assert!(Command::new("mount").args(arguments).status().expect("mount runs").success());
    mounted(&["-t", "tmpfs", "-o", "size=64k", "egressguard-test", &directory.display().to_string()]);
    let watching = Watching::start(&world, &["--service"]);
    let filler = directory.join("filler");
    let _ = std::fs::write(&filler, vec![0; 1 << 20]);
    (1..40).for_each(|port| is_refused(world.udp(STRANGER_V4, port)));
    std::thread::sleep(Duration::from_millis(1500));
    (1..20).for_each(|port| is_refused(world.udp(STRANGER_V4, port)));
    std::thread::sleep(Duration::from_millis(1500));
    std::fs::remove_file(&filler).expect("room again");
    is_refused(world.udp(STRANGER_V4, 99));
    eventually("the book is written again", || records(&world).iter().any(|record| record["port"] == 99));
    let records = records(&world);
    let findings = checked(&world);
    let (code, _, words) = watching.end();
    let _ = Command::new("umount").arg(&directory).status();
    assert!(records.iter().any(|record| record["kind"] == "other" && record["count"].as_u64() > Some(0)), "{records:#?}");
    assert!(findings.is_empty(), "{findings:?}");
    assert_eq!((code, words.iter().filter(|line| line.contains("no space left")).count()), (0, 1), "{words:#?}");
}

/// The page that a `watch` serves inside the host's namespace.
fn page(world: &World, port: u16) -> String {
    use std::io::{Read, Write};
    world.within(Side::Host, || {
        let mut stream = std::net::TcpStream::connect(("127.0.0.1", port)).expect("it listens");
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n").expect("it reads");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("it answers");
        answer.split_once("\r\n\r\n").expect("a head").1.to_string()
    })
}

/// The value of a row.
#[track_caller]
fn value(page: &str, row: &str) -> f64 {
    let line = page.lines().find_map(|line| line.strip_prefix(row)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no `{row}` in\n{page}")).parse().expect("a number")
}

/// Every name of a metric of ours in a text.
fn metrics(text: &str) -> std::collections::BTreeSet<String> {
    let words = text.split(|c: char| !(c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_'));
    words.filter(|word| word.starts_with("egressguard_")).map(str::to_string).collect()
}

#[test]
fn metrics_are_served_and_the_command_prints_the_same() {
    let Some(world) = World::new() else { return };
    apply(&world, "");
    world.egressguard(&["refresh"]).exits(0);
    world
        .egressguard(&["watch", "--service", "--metrics", "0.0.0.0:9477"])
        .exits(2)
        .says(&["not of the loopback", "--metrics-from-anywhere"]);
    let watching = Watching::start(&world, &["--service", "--metrics", "127.0.0.1:9477"]);
    // Somebody who connects and says nothing keeps nobody waiting.
    let idle = world.within(Side::Host, || std::net::TcpStream::connect("127.0.0.1:9477").expect("it listens"));
    for port in 1..4 {
        is_refused(world.udp(STRANGER_V4, port));
    }
    eventually("the records are told", || records(&world).len() >= 4);
    let served = page(&world, 9477);
    assert_eq!(value(&served, "egressguard_violations_seen_total{rule=\"refuse-out\",direction=\"out\"}"), 3.0);
    assert_eq!(value(&served, "egressguard_ledger_packets{sender=\"user\"}"), 3.0);
    assert_eq!(value(&served, "egressguard_ledger_packets{sender=\"forwarded\"}"), 0.0);
    let total = value(&served, "egressguard_violations_total{direction=\"out\"}");
    assert!(total >= 3.0 && value(&served, "egressguard_violations_bytes_total{direction=\"out\"}") >= 28.0 * total, "{served}");
    let took = value(&served, "egressguard_refresh_duration_seconds");
    assert!(took > 0.0 && took < 30.0, "{took}");
    assert_eq!(value(&served, "egressguard_nflog_lost_total"), 0.0);
    assert_eq!((value(&served, "egressguard_active"), value(&served, "egressguard_drift")), (1.0, 0.0));
    assert_eq!(value(&served, &format!("egressguard_pins{{name=\"{API}\"}}")), 2.0);
    let (refreshed, now) = (value(&served, "egressguard_refresh_timestamp_seconds"), std::time::SystemTime::now());
    let now = now.duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_secs_f64();
    assert!(now - refreshed < 60.0 && value(&served, &format!("egressguard_pin_expires_timestamp_seconds{{name=\"{API}\"}}")) > now);
    // What the alert rules and the dashboard ask for is what is served.
    let known = metrics(&served);
    for file in ["egressguard.rules.yml", "grafana.json"] {
        let text = std::fs::read_to_string(format!("{}/docs/monitoring/{file}", env!("CARGO_MANIFEST_DIR"))).expect("it is there");
        let asked = metrics(&text);
        assert!(asked.len() > 5, "{file}: {asked:?}");
        let unknown: Vec<_> = asked.difference(&known).collect();
        assert!(unknown.is_empty(), "{file} asks for {unknown:?}");
    }
    drop(idle);
    // The service leaves its counts for the command.
    eventually("the counts are left", || world.state().join("watch/counted.json").exists());
    let printed = world.egressguard(&["metrics"]).exits(0).stdout;
    let names = |page: &str| -> std::collections::BTreeSet<String> {
        page.lines().filter(|line| !line.starts_with('#')).map(|line| line.split(['{', ' ']).next().unwrap_or("").to_string()).collect()
    };
    assert_eq!(names(&printed), names(&served));
    world.nft(&["add", "rule", "inet", "egressguard", "output", "accept"]).exits(0);
    assert!(value(&page(&world, 9477), "egressguard_drift") > 0.0);
    assert_eq!(watching.end().0, 0);
    world.nft(&["delete", "table", "inet", "egressguard"]).exits(0);
    let printed = world.egressguard(&["metrics"]).exits(0).stdout;
    assert_eq!(value(&printed, "egressguard_active"), 0.0);
}

#[test]
fn on_a_terminal_it_is_a_table_that_updates_in_place_and_leaves_the_terminal_as_it_was() {
    use std::io::Read;
    let Some(world) = World::new() else { return };
    apply(&world, "");
    let size = nix::pty::Winsize { ws_row: 12, ws_col: 90, ws_xpixel: 0, ws_ypixel: 0 };
    let terminal = nix::pty::openpty(&size, None).expect("a terminal");
    let mut command = world.inside(std::path::Path::new(env!("CARGO_BIN_EXE_egressguard")));
    command.arg("watch").arg("--state-dir").arg(world.state()).stdin(Stdio::null()).stderr(Stdio::null());
    let mut child = command.stdout(terminal.slave).spawn().expect("the program runs");
    // The command holds the terminal open as long as it lives.
    drop(command);
    let (sender, receiver) = channel();
    let mut master = std::fs::File::from(terminal.master);
    std::thread::spawn(move || {
        let mut chunk = [0; 4096];
        while let Ok(length) = master.read(&mut chunk) {
            if length == 0 || sender.send(String::from_utf8_lossy(&chunk[..length]).into_owned()).is_err() {
                break;
            }
        }
    });
    eventually("the log is followed", || taken(&world));
    let mut shown = String::new();
    let mut until = |what: &str, word: &str| {
        eventually(what, || {
            shown.extend(receiver.try_iter());
            shown.contains(word)
        });
        shown.clone()
    };
    is_refused(world.udp(STRANGER_V4, 53));
    until("the first is shown", &format!("{STRANGER_V4}:53"));
    is_refused(world.udp(STRANGER_V4, 54));
    until("the second is shown", &format!("{STRANGER_V4}:54"));
    kill(Pid::from_raw(child.id() as i32), Signal::SIGINT).expect("it runs");
    assert_eq!(child.wait().expect("it ends").code(), Some(0));
    let all = until("the summary is said", "2 packets of 2 senders and destinations were refused");
    assert!(all.starts_with("\x1b[?1049h\x1b[?25l"), "{all:?}");
    let (screens, after) = all.split_once("\x1b[?25h\x1b[?1049l").expect("the first screen comes back");
    assert!(!after.contains('\x1b'), "{after:?}");
    // Every screen begins in the corner, is no higher than the window and no wider. The terminal adds carriage returns of its own.
    for screen in screens.split("\x1b[H").skip(1) {
        let lines: Vec<&str> = screen.split("\r\n").collect();
        assert!(lines.len() <= 12, "{screen:?}");
        let plain = |line: &str| {
            ["\x1b[K", "\x1b[J", "\x1b[0m", "\r"].iter().fold(line.to_string(), |line, code| line.replace(code, "")).chars().count()
        };
        assert!(lines.iter().all(|line| plain(line) <= 90), "{screen:?}");
    }
}

#[test]
fn the_service_manager_is_told_when_it_is_ready_alive_and_about_to_end() {
    let Some(world) = World::new() else { return };
    apply(&world, "");
    let place = world.file("notify");
    let listener = std::os::unix::net::UnixDatagram::bind(&place).expect("a socket");
    listener.set_read_timeout(Some(Duration::from_secs(5))).expect("an option");
    let heard = || {
        let mut datagram = [0; 512];
        let length = listener.recv(&mut datagram).expect("something is told");
        String::from_utf8_lossy(&datagram[..length]).into_owned()
    };
    let environment = ["env", &format!("NOTIFY_SOCKET={place}"), "WATCHDOG_USEC=3000000"];
    let watching = Watching::of(world.started_inside(&environment, &["watch", "--service"]));
    assert!(heard().starts_with("READY=1\n"));
    let start = Instant::now();
    let (first, second) = (heard(), heard());
    assert!(first.starts_with("WATCHDOG=1\n") && second.starts_with("WATCHDOG=1\n"), "{first} {second}");
    assert!(start.elapsed() < Duration::from_secs(4), "at rest it is alive too");
    assert_eq!(watching.end().0, 0);
    let last = std::iter::repeat_with(heard).find(|state| !state.starts_with("WATCHDOG"));
    assert_eq!(last.as_deref(), Some("STOPPING=1"));
}

#[test]
fn at_rest_it_takes_little_memory_and_next_to_no_time() {
    let Some(world) = World::new() else { return };
    apply(&world, "");
    let watching = Watching::start(&world, &["--service"]);
    let ticks = || -> u64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", watching.child.id())).expect("it runs");
        let fields: Vec<u64> = stat.rsplit_once(')').expect("a name").1.split_whitespace().filter_map(|field| field.parse().ok()).collect();
        fields[10] + fields[11]
    };
    let before = ticks();
    std::thread::sleep(Duration::from_secs(3));
    // A tick is 10 ms.
    assert!(ticks() - before <= 6, "{} ticks in three seconds", ticks() - before);
    assert!(watching.peak() < 40 << 10, "{} KiB, not optimized", watching.peak());
}
