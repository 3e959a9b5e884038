//! Stories of `apply`, `restore` and `remove`: the program itself against a real kernel, real DNS and sockets that answer.

mod support;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use egressguard::demo::attempt::Way;
use support::{
    API, API_V4, API_V6, HOST_V4, HOST_V6, LATER_V4, NEIGHBOUR_V4, RESOLVER_V4, STRANGER_V4, STRANGER_V6, Side, World, is_refused, passes,
};

const DEFAULT: &[&str] = &["apply", "builtin:openai"];

#[test]
fn the_default_policy_lets_the_api_and_the_inbound_port_through_and_nothing_else() {
    let Some(world) = World::new() else { return };
    world.egressguard(DEFAULT).exits(0).says(&["applied", API_V4, API_V6]);
    [API_V4, API_V6].into_iter().for_each(|address| passes(world.tls(address)));
    [HOST_V4, HOST_V6].into_iter().for_each(|address| passes(world.attempt(Side::Net, Way::Tcp, address, 443)));
    passes(world.attempt(Side::Host, Way::DnsUdp { name: API.to_string() }, RESOLVER_V4, 53));
    passes(world.attempt(Side::Host, Way::DnsTcp { name: API.to_string() }, RESOLVER_V4, 53));
    passes(world.tcp("127.0.0.1", 8080));
    for stranger in [STRANGER_V4, STRANGER_V6] {
        [22, 80, 443, 4444].into_iter().for_each(|port| is_refused(world.tcp(stranger, port)));
        [123, 443, 5353].into_iter().for_each(|port| is_refused(world.udp(stranger, port)));
        is_refused(world.attempt(Side::Host, Way::DnsUdp { name: "ns".to_string() }, stranger, 53));
        is_refused(world.attempt(Side::Host, Way::DnsTcp { name: "ns".to_string() }, stranger, 53));
        is_refused(world.attempt(Side::Host, Way::Ping, stranger, 0));
    }
    [API_V4, API_V6].into_iter().for_each(|address| is_refused(world.tcp(address, 80)));
    [NEIGHBOUR_V4, LATER_V4].into_iter().for_each(|address| is_refused(world.tls(address)));
    for host in [HOST_V4, HOST_V6] {
        [22, 8080].into_iter().for_each(|port| is_refused(world.attempt(Side::Net, Way::Tcp, host, port)));
        is_refused(world.attempt(Side::Net, Way::Ping, host, 0));
    }
    assert_eq!(world.addresses("tcp_443_v4"), [API_V4]);
    assert_eq!(world.addresses("tcp_443_v6"), [API_V6]);
}

#[test]
fn every_stranger_answers_while_nothing_is_applied() {
    let Some(world) = World::new() else { return };
    for stranger in [STRANGER_V4, STRANGER_V6] {
        [22, 80, 443, 4444, 53].into_iter().for_each(|port| {
            let way = if port == 53 { Way::DnsTcp { name: "ns".to_string() } } else { Way::Tcp };
            passes(world.attempt(Side::Host, way, stranger, port));
        });
        [123, 443, 5353].into_iter().for_each(|port| passes(world.udp(stranger, port)));
        passes(world.attempt(Side::Host, Way::DnsUdp { name: "ns".to_string() }, stranger, 53));
        passes(world.attempt(Side::Host, Way::Ping, stranger, 0));
    }
    [API_V4, API_V6, NEIGHBOUR_V4, LATER_V4].into_iter().for_each(|address| passes(world.tls(address)));
    [API_V4, API_V6].into_iter().for_each(|address| passes(world.tcp(address, 80)));
    for host in [HOST_V4, HOST_V6] {
        [22, 443, 8080].into_iter().for_each(|port| passes(world.attempt(Side::Net, Way::Tcp, host, port)));
        passes(world.attempt(Side::Net, Way::Ping, host, 0));
    }
}

#[test]
fn what_leaves_is_refused_with_a_reason_and_what_knocks_is_dropped_in_silence() {
    let Some(world) = World::new() else { return };
    world.egressguard(DEFAULT).exits(0);
    for stranger in [STRANGER_V4, STRANGER_V6] {
        assert_eq!(world.tcp(stranger, 443).to_string(), "ECONNREFUSED");
        assert_ne!(world.udp(stranger, 443).to_string(), "no answer");
    }
    assert_eq!(world.attempt(Side::Net, Way::Tcp, HOST_V4, 8080).to_string(), "no answer");
}

#[test]
fn a_second_apply_changes_nothing_and_says_so() {
    let Some(world) = World::new() else { return };
    world.egressguard(DEFAULT).exits(0);
    let (generation, rules) = (world.generation(), world.rules());
    world.egressguard(DEFAULT).exits(0).says(&["unchanged"]);
    assert_eq!(world.generation(), generation, "nothing was written to the kernel");
    assert_eq!(world.rules(), rules);
}

#[test]
fn an_apply_is_one_transaction_whether_rules_were_there_or_not() {
    let Some(world) = World::new() else { return };
    let generation = world.generation();
    world.egressguard(DEFAULT).exits(0);
    assert_eq!(world.generation(), generation + 1);
    let policy = world.policy(&format!(
        "version: 1\nname: other\ninbound: {{port: 8443}}\nmanagement: {{port: 22, from: [203.0.113.0/28]}}\nhost: {{forward: deny}}\n\
         outbound:\n  - to: {API}\n  - {{to: 192.0.2.0/24, port: [80, \"8000-8080\"]}}\n"
    ));
    world.egressguard(&["apply", &policy]).exits(0);
    assert_eq!(world.generation(), generation + 2);
}

#[test]
fn a_policy_under_which_the_session_could_not_come_back_is_refused() {
    let Some(world) = World::new() else { return };
    let session = "203.0.113.1 50022 203.0.113.10 22";
    world.egressguard_by_ssh(session, DEFAULT).exits(3).says(&["203.0.113.1", "port 22", "management: {port: 22", "--force"]);
    assert_eq!(world.rules(), None);
    let narrow = |from: &str| world.policy(&format!("version: 1\nmanagement: {{port: 22, from: [{from}]}}\noutbound:\n  - to: {API}\n"));
    world.egressguard_by_ssh(session, &["apply", &narrow("198.51.100.0/24")]).exits(3);
    assert_eq!(world.rules(), None);
    world.egressguard_by_ssh(session, &["apply", &narrow("203.0.113.0/28")]).exits(0);
    world.egressguard_by_ssh(session, &["apply", "builtin:openai", "--force"]).exits(0).says(&["applied policy `openai`"]);
}

#[test]
fn names_that_share_every_address_are_a_warning_with_the_line() {
    let Some(mut world) = World::new() else { return };
    world.nameserver.set("eu.api.openai.com", &[API_V4, API_V6]).expect("the name server starts");
    let policy = world.policy(&format!("version: 1\noutbound:\n  - to: {API}\n  - to: eu.api.openai.com\n"));
    world.egressguard(&["apply", &policy]).exits(0).says(&["packets cannot tell the two apart", "policy.yaml:4:9", "see line 3"]);
    world.nameserver.set("eu.api.openai.com", &[LATER_V4]).expect("the name server starts");
    let apart = world.egressguard(&["resolve", &policy]).exits(0);
    assert!(!apart.words().contains("apart"), "{}", apart.words());
}

#[test]
fn what_changes_the_kernel_answers_with_one_json_object() {
    let Some(world) = World::new() else { return };
    let answer = |arguments: &[&str], code: i32| -> serde_json::Value {
        let output = world.egressguard(arguments).exits(code);
        serde_json::from_str(&output.stdout).unwrap_or_else(|error| panic!("{error}: {}", output.stdout))
    };
    let dry = answer(&["apply", "builtin:openai", "--dry-run", "--json"], 1);
    assert_eq!((&dry["schema"], &dry["result"], &dry["changed"]), (&"egressguard.apply/1".into(), &"dry-run".into(), &true.into()));
    let applied = answer(&["apply", "builtin:openai", "--json"], 0);
    assert_eq!((&applied["result"], &applied["policy"]["name"]), (&"applied".into(), &"openai".into()));
    let added: Vec<&str> = applied["change"]["added"].as_array().unwrap().iter().filter_map(|one| one["element"].as_str()).collect();
    assert!(added.contains(&API_V4) && added.contains(&API_V6), "{applied}");
    let again = answer(&["apply", "builtin:openai", "--json"], 0);
    assert_eq!((&again["result"], &again["changed"]), (&"unchanged".into(), &false.into()));
    let refreshed = answer(&["refresh", "--json"], 0);
    assert_eq!((&refreshed["schema"], &refreshed["changed"]), (&"egressguard.refresh/1".into(), &false.into()));
    assert_eq!((&refreshed["drift"], &refreshed["unresolved"]), (&serde_json::json!([]), &serde_json::json!([])));
}

#[test]
fn an_apply_runs_no_other_program_and_writes_nowhere_but_in_its_state_directory() {
    let Some(world) = World::new() else { return };
    let trace = world.file("trace");
    let strace = ["strace", "-f", "-e", "trace=execve,openat,rename,renameat,renameat2,mkdir,mkdirat", "-o", &trace];
    for command in [DEFAULT, &["refresh"], &["restore"], &["status"], &["remove", "--yes"]] {
        world.egressguard_through(&strace, command).exits(0);
        let text = std::fs::read_to_string(&trace).expect("strace has written");
        assert_eq!(text.matches("execve(").count(), 1, "{command:?}: {text}");
        let state = world.state().display().to_string();
        let writes = |line: &&str| ["O_WRONLY", "O_RDWR", "O_CREAT", "rename", "mkdir"].iter().any(|word| line.contains(word));
        let stray: Vec<&str> = text.lines().filter(writes).filter(|line| !line.contains(&state)).collect();
        assert_eq!(stray, [] as [&str; 0], "{command:?}");
    }
}

#[test]
fn what_is_saved_is_for_its_owner_alone() {
    use std::os::unix::fs::PermissionsExt;
    let Some(world) = World::new() else { return };
    world.egressguard(DEFAULT).exits(0);
    let mode = |path: &std::path::Path| std::fs::metadata(path).expect("it is there").permissions().mode() & 0o777;
    assert_eq!(mode(&world.state()), 0o700);
    for entry in std::fs::read_dir(world.state()).expect("the state directory is there").flatten() {
        assert_eq!(mode(&entry.path()) & 0o077, 0, "{}", entry.path().display());
    }
}

#[test]
fn a_dry_run_says_what_would_change_and_changes_nothing() {
    let Some(world) = World::new() else { return };
    let generation = world.generation();
    world.egressguard(&["apply", "builtin:openai", "--dry-run"]).exits(1).says(&["would", API_V4]);
    assert_eq!((world.generation(), world.rules()), (generation, None));
    world.egressguard(DEFAULT).exits(0);
    world.egressguard(&["apply", "builtin:openai", "--dry-run"]).exits(0);
}

#[test]
fn an_apply_forgets_neither_ledger_nor_counters() {
    let Some(world) = World::new() else { return };
    world.egressguard(DEFAULT).exits(0);
    is_refused(world.tcp(STRANGER_V4, 4444));
    passes(world.tls(API_V4));
    assert!(world.set("ledger_user_v4").contains(STRANGER_V4), "{}", world.set("ledger_user_v4"));
    let other = world.policy(&format!(
        "version: 1\nname: openai\ninbound: {{port: 443}}\noutbound:\n  - to: {API}\n  - {{to: {STRANGER_V4}, port: 5432, protocol: tcp}}\n"
    ));
    world.egressguard(&["apply", &other]).exits(0);
    passes(world.tcp(STRANGER_V4, 5432));
    assert!(world.set("ledger_user_v4").contains(STRANGER_V4), "{}", world.set("ledger_user_v4"));
    let pins = world.set("tcp_443_v4");
    assert!(pins.contains(API_V4) && !pins.contains("counter packets 0 "), "{pins}");
}

#[test]
fn an_allowed_connection_survives_the_first_apply_and_the_next() {
    let Some(world) = World::new() else { return };
    let policy = |more: &str| {
        world.policy(&format!("version: 1\noutbound:\n  - {{to: {STRANGER_V4}, port: 5432, protocol: tcp}}\n  - to: {API}\n{more}"))
    };
    let mut stream = world.within(Side::Host, || {
        TcpStream::connect_timeout(&SocketAddr::new(STRANGER_V4.parse().unwrap(), 5432), Duration::from_secs(1))
            .expect("the stranger answers")
    });
    stream.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
    let mut echo = |word: &[u8; 4]| {
        let mut answer = [0; 4];
        stream.write_all(word).and_then(|()| stream.read_exact(&mut answer)).expect("the connection lives");
        assert_eq!(&answer, word);
    };
    echo(b"one\n");
    world.egressguard(&["apply", &policy("")]).exits(0);
    echo(b"two\n");
    world.egressguard(&["apply", &policy("host: {ping: true}\n")]).exits(0);
    echo(b"tre\n");
}

#[test]
fn remove_wants_to_be_told_and_then_leaves_no_table() {
    let Some(world) = World::new() else { return };
    world.egressguard(DEFAULT).exits(0);
    let unsure = world.egressguard(&["remove"]);
    assert_ne!(unsure.code, 0, "{}", unsure.words());
    unsure.says(&["--yes"]);
    assert!(world.rules().is_some());
    world.egressguard(&["remove", "--yes"]).exits(0).says(&["removed"]);
    assert_eq!(world.rules(), None);
    passes(world.tcp(STRANGER_V4, 443));
    world.egressguard(&["remove", "--yes"]).exits(0);
    // What was removed on purpose does not come back with the next boot.
    world.egressguard(&["restore"]).exits(0).says(&["removed"]);
    assert_eq!(world.rules(), None);
}

#[test]
fn restore_brings_the_last_policy_back_without_dns() {
    let Some(mut world) = World::new() else { return };
    world.egressguard(DEFAULT).exits(0);
    let rules = world.rules();
    world.nft(&["delete", "table", "inet", "egressguard"]).exits(0);
    passes(world.tcp(STRANGER_V4, 443));
    world.nameserver.kill();
    world.egressguard(&["restore"]).exits(0).says(&["restored"]);
    assert_eq!(world.rules(), rules);
    assert_eq!(world.addresses("tcp_443_v6"), [API_V6]);
    passes(world.tls(API_V4));
    is_refused(world.tcp(STRANGER_V4, 443));
    world.egressguard(&["restore"]).exits(0).says(&["unchanged"]);
}

#[test]
fn restore_with_nothing_saved_locks_down() {
    let Some(world) = World::new() else { return };
    world.egressguard(&["restore"]).exits(0).says(&["lockdown"]);
    is_refused(world.tls(API_V4));
    is_refused(world.tcp(STRANGER_V6, 443));
    is_refused(world.attempt(Side::Net, Way::Tcp, HOST_V4, 443));
    passes(world.tcp("127.0.0.1", 8080));
    world.egressguard(DEFAULT).exits(0);
    passes(world.tls(API_V4));
}

#[test]
fn restore_with_damaged_state_is_closed_and_says_so() {
    let Some(world) = World::new() else { return };
    world.egressguard(DEFAULT).exits(0);
    world.nft(&["delete", "table", "inet", "egressguard"]).exits(0);
    for entry in std::fs::read_dir(world.state()).expect("the state directory is there").flatten() {
        if entry.file_name() != "lock" {
            std::fs::write(entry.path(), b"\0garbage").expect("a file can be damaged");
        }
    }
    world.egressguard(&["restore"]).exits(3).says(&["damaged", "apply"]);
    is_refused(world.tcp(STRANGER_V4, 443));
}

#[test]
fn observe_lets_everything_pass_and_counts_what_would_be_refused() {
    let Some(world) = World::new() else { return };
    let policy = world.policy(&format!("version: 1\nmode: observe\ninbound: {{port: 443}}\noutbound:\n  - to: {API}\n"));
    world.egressguard(&["apply", &policy]).exits(0).says(&["observe"]);
    passes(world.tls(API_V4));
    for stranger in [STRANGER_V4, STRANGER_V6] {
        passes(world.tcp(stranger, 4444));
        passes(world.udp(stranger, 123));
    }
    passes(world.attempt(Side::Net, Way::Tcp, HOST_V4, 8080));
    let (v4, v6) = (world.set("ledger_user_v4"), world.set("ledger_user_v6"));
    assert!(v4.contains(STRANGER_V4) && v4.contains("4444") && v4.contains("counter packets"), "{v4}");
    assert!(v6.contains(STRANGER_V6) && v6.contains("123"), "{v6}");
    assert!(!v4.contains(API_V4), "what is allowed is no violation: {v4}");
}

#[test]
fn status_says_what_is_active_and_what_is_not() {
    let Some(world) = World::new() else { return };
    let before = world.egressguard(&["status", "--json"]);
    assert_eq!(before.code, 1);
    world.egressguard(DEFAULT).exits(0);
    let json = world.egressguard(&["status", "--json"]).exits(0).stdout;
    let status: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!(status["schema"], "egressguard.status/1");
    assert_eq!((&status["active"], &status["policy"]["name"]), (&true.into(), &"openai".into()));
    let pins: Vec<&str> = status["pins"].as_array().unwrap().iter().filter_map(|pin| pin["address"].as_str()).collect();
    assert!(pins.contains(&API_V4) && pins.contains(&API_V6), "{json}");
    world.egressguard(&["status"]).exits(0).says(&["openai", API_V4, API]);
    world.nft(&["flush", "chain", "inet", "egressguard", "output"]).exits(0);
    world.egressguard(&["status"]).exits(1).says(&["drift", "output"]);
}
