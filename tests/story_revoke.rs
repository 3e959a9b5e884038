//! Stories of revocation: what is under way and no longer allowed ends within the command that forbids it, and nothing else does.

mod support;

use std::fs;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{SocketAddr, UdpSocket};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use egressguard::judge::flow::Flow;
use egressguard::system::netlink::flow::KernelFlows;
use egressguard::world::Flows;
use support::kernel::cgroup_v2;
use support::stream::{Stream, idle};
use support::{
    API, API_V4, API_V6, GATEWAY_V4, HOST_V4, HOST_V6, LATER_V4, LATER_V6, Output, STRANGER_V4, STRANGER_V6, Side, World, is_refused,
};

/// A port that nobody serves, so that a stream can have both ends.
const PORT: u16 = 7777;
/// Numbers that no user or group of this machine has.
const SOMEBODY: u32 = 4_100_001;
const ANOTHER: u32 = 4_100_002;

/// A policy with these ways out to [`PORT`], each as the policy writes it.
fn policy_out(world: &World, ways: &[&str]) -> String {
    let ways: String = ways.iter().map(|to| format!("  - {{to: \"{to}\", port: {PORT}, protocol: tcp}}\n")).collect();
    world.policy(&format!("version: 1\ninbound: {{port: 443}}\noutbound:\n  - to: {API}\n{ways}"))
}

/// What the last line of an answer in JSON says was revoked.
fn revoked(output: &Output) -> serde_json::Value {
    let answer: serde_json::Value = serde_json::from_str(&output.stdout).unwrap_or_else(|error| panic!("{error}: {}", output.stdout));
    answer["revoked"].clone()
}

/// What connection tracking of the host knows.
fn tracked(world: &World) -> Vec<Flow> {
    world.within(Side::Host, || KernelFlows::new().tracked()).expect("the kernel lists its flows")
}

#[track_caller]
fn knows_nothing_of(world: &World, address: &str) {
    let address = address.parse().unwrap();
    let left: Vec<Flow> = tracked(world).into_iter().filter(|flow| [flow.original.source, flow.reply.source].contains(&address)).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_long_stream_ends_with_the_apply_that_forbids_it_and_an_allowed_one_goes_on() {
    for (stranger, api) in [(STRANGER_V4, API_V4), (STRANGER_V6, API_V6)] {
        let Some(world) = World::new() else { return };
        world.egressguard(&["apply", &policy_out(&world, &[stranger, api])]).exits(0);
        let forbidden = Stream::open(&world, Side::Host, Side::Net, stranger, PORT);
        let allowed = Stream::open(&world, Side::Host, Side::Net, api, PORT);
        let began = Instant::now();
        world.egressguard(&["apply", &policy_out(&world, &[api])]).exits(0).says(&["revoked 1 flow (1 socket closed)"]);
        let done = Instant::now();
        // SOCK_DESTROY says ECONNABORTED; the rules by themselves would say ECONNREFUSED or ECONNRESET, and later.
        assert_eq!(forbidden.error(), ErrorKind::ConnectionAborted);
        assert!(began < forbidden.ended() && forbidden.ended() < done + Duration::from_millis(500));
        assert_eq!(forbidden.farewell(), Some(ErrorKind::ConnectionReset), "the peer is told");
        forbidden.is_silent();
        knows_nothing_of(&world, stranger);
        allowed.goes_on();
        is_refused(world.tcp(stranger, PORT));
        assert!(!world.set("ledger_user_v4").contains("tcp . 7777 counter packets 2"), "a reset is no violation");
    }
}

#[test]
fn a_stream_older_than_the_rules_ends_with_the_first_apply_unless_it_is_allowed() {
    let Some(world) = World::new() else { return };
    // Nothing is said on these, so that no rule has answered before the sockets are looked at.
    let (mut forbidden, _far) = idle(&world, Side::Host, Side::Net, STRANGER_V4, PORT);
    let (mut mapped, _far) = idle(&world, Side::Host, Side::Net, &format!("::ffff:{STRANGER_V4}"), PORT + 1);
    let (_far, mut came_in) = idle(&world, Side::Net, Side::Host, HOST_V4, PORT);
    let talking = Stream::open(&world, Side::Host, Side::Net, STRANGER_V4, PORT + 2);
    let allowed = Stream::open(&world, Side::Host, Side::Net, API_V4, PORT);
    assert!(tracked(&world).is_empty());
    world.egressguard(&["apply", &policy_out(&world, &[API_V4])]).exits(0).says(&["revoked", "sockets closed"]);
    for socket in [&mut forbidden, &mut mapped, &mut came_in] {
        assert_eq!(socket.read(&mut [0; 1]).unwrap_err().kind(), ErrorKind::ConnectionAborted);
    }
    // Whether the rules or the revocation come first is open: tracking begins a moment before the rules do.
    talking.error();
    talking.is_silent();
    knows_nothing_of(&world, STRANGER_V4);
    allowed.goes_on();
}

#[test]
fn a_second_apply_revokes_nothing_writes_nothing_and_looks_at_nothing() {
    let Some(world) = World::new() else { return };
    let policy = policy_out(&world, &[API_V4]);
    world.egressguard(&["apply", &policy]).exits(0);
    let stream = Stream::open(&world, Side::Host, Side::Net, API_V4, PORT);
    let generation = world.generation();
    let output = world.egressguard(&["apply", &policy, "--json"]).exits(0);
    assert_eq!((revoked(&output), world.generation()), (serde_json::Value::Null, generation));
    stream.goes_on();
}

#[test]
fn an_apply_that_was_interrupted_after_the_rules_is_finished_by_the_next_run() {
    for again in [&["refresh"][..], &["apply"]] {
        let Some(world) = World::new() else { return };
        world.egressguard(&["apply", &policy_out(&world, &[STRANGER_V4])]).exits(0);
        let stream = Stream::open(&world, Side::Host, Side::Net, STRANGER_V4, PORT);
        let policy = policy_out(&world, &[]);
        let pins = world.state().with_file_name("pins").display().to_string();
        world.egressguard(&["resolve", &policy, "-o", &pins]).exits(0);
        // What a kill leaves: rules, their state, and neither a revocation nor the note that it was done. One of the sockets is opened
        // to look at what is under way, and the first kill after the rules came is the one at that.
        let loaded = (2..9).any(|number| {
            let inject = format!("inject=socket:signal=SIGKILL:when={number}+");
            let killed = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=socket", "-e", &inject];
            let ran = world.egressguard_through(&killed, &["apply", &policy, "--pins", &pins]);
            assert_ne!(ran.code, 0, "{}", ran.words());
            world.set("tcp_7777_v4").is_empty()
        });
        assert!(loaded, "the new rules are there");
        stream.goes_on();
        let words: Vec<&str> = if again == ["apply"] { vec!["apply", &policy] } else { again.to_vec() };
        world.egressguard(&words).exits(0).says(&["revoked 1 flow (1 socket closed)"]);
        assert_eq!(stream.error(), ErrorKind::ConnectionAborted);
    }
}

#[test]
fn an_address_that_left_dns_keeps_its_stream_until_its_pin_ends() {
    let Some(mut world) = World::new() else { return };
    let policy = |world: &World, more: &str| {
        world.policy(&format!(
            "version: 1\noutbound:\n  - {{to: {API}, port: {PORT}, protocol: tcp}}\nrefresh: {{every: 2s, keep: 6s}}\n{more}"
        ))
    };
    world.egressguard(&["apply", &policy(&world, "")]).exits(0);
    let stream = Stream::open(&world, Side::Host, Side::Net, API_V4, PORT);
    world.nameserver.set(API, &[LATER_V4, LATER_V6]).unwrap();
    std::thread::sleep(Duration::from_millis(1100));
    world.egressguard(&["refresh"]).exits(0).says(&[LATER_V4]);
    stream.goes_on();
    world.egressguard(&["apply", &policy(&world, "host: {ping: true}\n")]).exits(0);
    assert!(world.addresses("tcp_7777_v4").contains(&API_V4.to_string()), "it drains");
    stream.goes_on();
    // The kernel ends the pin by itself; whoever is connected is let go by the next refresh.
    std::thread::sleep(Duration::from_secs(7));
    stream.goes_on();
    world.egressguard(&["refresh"]).exits(0).says(&["revoked 1 flow (1 socket closed)"]);
    assert_eq!(stream.error(), ErrorKind::ConnectionAborted);
    stream.is_silent();
}

#[test]
fn a_datagram_flow_ends_by_an_error_and_a_socket_that_serves_others_stays_open() {
    let Some(world) = World::new() else { return };
    let policy = |world: &World, ways: &str| world.policy(&format!("version: 1\noutbound:\n  - to: {API}\n{ways}"));
    let way = |address: &str| format!("  - {{to: \"{address}\", port: 443, protocol: udp}}\n");
    world.egressguard(&["apply", &policy(&world, &(way(STRANGER_V4) + &way(STRANGER_V6)))]).exits(0);
    let bound = |address: &str| {
        let socket = world.within(Side::Host, || UdpSocket::bind(address)).expect("a socket");
        socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        socket
    };
    let answered = |socket: &UdpSocket, sent: std::io::Result<usize>| sent.and_then(|_| socket.recv(&mut [0; 64]));
    let to = |address: &str| SocketAddr::new(address.parse().unwrap(), 443);
    let connected =
        [("0.0.0.0:0", STRANGER_V4.to_string()), ("[::]:0", STRANGER_V6.to_string()), ("[::]:0", format!("::ffff:{STRANGER_V4}"))].map(
            |(local, peer)| {
                let socket = bound(local);
                world.within(Side::Host, || socket.connect(to(&peer))).expect("a peer");
                answered(&socket, socket.send(b"hello")).expect("an answer");
                socket
            },
        );
    let serving = bound("0.0.0.0:0");
    answered(&serving, serving.send_to(b"hello", to(STRANGER_V4))).expect("an answer");
    world.egressguard(&["apply", &policy(&world, "")]).exits(0).says(&["revoked 4 flows (3 sockets closed)"]);
    for socket in &connected {
        assert_eq!(socket.recv(&mut [0; 64]).unwrap_err().kind(), ErrorKind::ConnectionAborted);
    }
    assert_eq!(serving.send_to(b"hello", to(STRANGER_V4)).unwrap_err().kind(), ErrorKind::PermissionDenied);
    knows_nothing_of(&world, STRANGER_V4);
    knows_nothing_of(&world, STRANGER_V6);
}

#[test]
fn who_came_in_stays_while_he_may_come_in_and_the_operator_stays_through_it_all() {
    let Some(world) = World::new() else { return };
    let policy = |inbound: &str| {
        world.policy(&format!(
            "version: 1\ninbound: {inbound}\nmanagement: {{port: {}, from: [{GATEWAY_V4}, \"2001:db8:113::/64\"]}}\n",
            PORT + 1
        ))
    };
    // Older than the rules, so that tracking meets it half-way.
    let operator = Stream::open(&world, Side::Net, Side::Host, HOST_V4, PORT + 1);
    world.egressguard(&["apply", &policy(&format!("{{port: {PORT}}}"))]).exits(0);
    operator.goes_on();
    let clients = [HOST_V4, HOST_V6].map(|host| Stream::open(&world, Side::Net, Side::Host, host, PORT));
    world
        .egressguard(&["apply", &policy(&format!("{{port: {PORT}, from: [\"2001:db8:113::/64\"]}}"))])
        .exits(0)
        .says(&["revoked 1 flow (1"]);
    assert_eq!(clients[0].farewell(), Some(ErrorKind::ConnectionAborted));
    assert_eq!(clients[0].error(), ErrorKind::ConnectionReset, "the client is told");
    clients[1].goes_on();
    world.egressguard(&["apply", &policy("{port: 443}")]).exits(0).says(&["revoked 1 flow (1"]);
    assert_eq!(clients[1].farewell(), Some(ErrorKind::ConnectionAborted));
    operator.goes_on();
}

#[test]
fn what_passes_through_from_a_machine_behind_ends_too() {
    let Some(mut world) = World::new() else { return };
    world.put_a_machine_behind();
    world.egressguard(&["apply", &policy_out(&world, &[STRANGER_V4, STRANGER_V6, API_V4])]).exits(0);
    let forbidden = [STRANGER_V4, STRANGER_V6].map(|stranger| Stream::open(&world, Side::Behind, Side::Net, stranger, PORT));
    let allowed = Stream::open(&world, Side::Behind, Side::Net, API_V4, PORT);
    // Attempts that came before neighbours had found each other are flows as well.
    world.egressguard(&["apply", &policy_out(&world, &[API_V4])]).exits(0).says(&["revoked", "flows (0 sockets closed)"]);
    for stream in &forbidden {
        // No socket of it is here to be closed: its next packet is judged as new.
        stream.is_silent();
    }
    allowed.goes_on();
    knows_nothing_of(&world, STRANGER_V4);
}

/// A program of a user and group, with a connection from the host; it passes lines on and says what comes back, or that nothing does.
struct Talker(Child, ChildStdin, BufReader<ChildStdout>);

impl Talker {
    fn start(world: &World, wrapper: &[&str], address: &str) -> Talker {
        let script = format!(
            "read -r go; exec 3<>/dev/tcp/{address}/5432 || exit 1\n\
             while read -r line; do echo $line >&3 && read -r -t 2 answer <&3 && echo \"$answer\" || echo gone; done"
        );
        let mut command = Command::new(wrapper[0]);
        command.args(&wrapper[1..]).args(["bash", "-c", &script]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = world.within(Side::Host, || command.spawn()).expect("a program starts");
        let (stdin, stdout) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        Talker(child, stdin, stdout)
    }

    fn of_user(world: &World, uid: u32, gid: u32) -> Talker {
        let (uid, gid) = (uid.to_string(), gid.to_string());
        let mut talker = Talker::start(world, &["setpriv", "--reuid", &uid, "--regid", &gid, "--clear-groups"], STRANGER_V4);
        talker.say("go");
        talker
    }

    fn say(&mut self, line: &str) {
        let _ = writeln!(self.1, "{line}");
    }

    fn talks(&mut self) -> bool {
        self.say("hello");
        let mut answer = String::new();
        self.2.read_line(&mut answer).is_ok() && answer == "hello\n"
    }
}

impl Drop for Talker {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn policy_for(world: &World, scope: &str, more: &str) -> String {
    world.policy(&format!("version: 1\noutbound:\n  - {{to: {STRANGER_V4}, port: 5432, protocol: tcp, for: {scope}}}\n{more}"))
}

#[test]
fn whose_a_flow_is_decides_whether_it_stays() {
    let Some(world) = World::new() else { return };
    let mut talkers = [(SOMEBODY, ANOTHER), (ANOTHER, SOMEBODY)].map(|(uid, gid)| Talker::of_user(&world, uid, gid));
    assert!(talkers.iter_mut().all(Talker::talks));
    let scope = format!("{{uid: {SOMEBODY}}}");
    world.egressguard(&["apply", &policy_for(&world, &scope, "")]).exits(0).says(&["revoked 0 flows (1 socket closed)"]);
    let [somebody, another] = &mut talkers;
    assert!(somebody.talks() && !another.talks());
    // Tracked by now, and judged again by a policy that changes something else.
    world.egressguard(&["apply", &policy_for(&world, &scope, "host: {ping: true}\n")]).exits(0);
    assert!(somebody.talks());
    let group = |gid: u32| policy_for(&world, &format!("{{gid: {gid}}}"), "");
    world.egressguard(&["apply", &group(ANOTHER)]).exits(0);
    assert!(somebody.talks(), "the group is another's number here");
    world.egressguard(&["apply", &group(SOMEBODY)]).exits(0).says(&["revoked 1 flow (1 socket closed)"]);
    assert!(!somebody.talks());
}

#[test]
fn a_flow_of_a_service_stays_while_the_service_may() {
    let Some(world) = World::new() else { return };
    let Some(root) = cgroup_v2() else { return println!("skipped: cgroup v2 is not mounted, or cannot be written") };
    let (slice, unit) = (root.join("system.slice"), format!("egressguard-revoke-{}.service", std::process::id()));
    let group = slice.join(&unit);
    let inner = group.join("worker");
    if let Err(error) = fs::create_dir_all(&inner) {
        return println!("skipped: {}: {error}", inner.display());
    }
    let mut talkers = [true, false].map(|inside| {
        let mut talker = Talker::start(&world, &["env"], STRANGER_V4);
        if inside {
            fs::write(inner.join("cgroup.procs"), talker.0.id().to_string()).expect("a process can be moved");
        }
        talker.say("go");
        talker
    });
    let talk = talkers.each_mut().map(|talker| talker.talks());
    let applied = world.egressguard(&["apply", &policy_for(&world, &format!("{{service: {unit}}}"), "")]);
    let after = talkers.each_mut().map(|talker| talker.talks());
    let again = world.egressguard(&["apply", &policy_for(&world, &format!("{{service: {unit}}}"), "host: {ping: true}\n")]);
    let at_last = talkers.each_mut().map(|talker| talker.talks());
    drop(talkers);
    support::eventually("the control group is empty", || fs::remove_dir(&inner).is_ok());
    let _ = (fs::remove_dir(&group), fs::remove_dir(&slice));
    applied.exits(0).says(&["revoked 0 flows (1 socket closed)"]);
    again.exits(0);
    assert_eq!((talk, after, at_last), ([true, true], [true, false], [true, false]));
}

#[test]
fn rules_that_only_observe_revoke_nothing() {
    let Some(world) = World::new() else { return };
    let stream = Stream::open(&world, Side::Host, Side::Net, STRANGER_V4, PORT);
    let policy = world.policy(&format!("version: 1\nmode: observe\noutbound:\n  - to: {API}\n"));
    let output = world.egressguard(&["apply", &policy, "--json"]).exits(0);
    assert_eq!(revoked(&output), serde_json::Value::Null);
    stream.goes_on();
    let policy = world.policy(&format!("version: 1\noutbound:\n  - to: {API}\n"));
    world.egressguard(&["apply", &policy]).exits(0).says(&["revoked 1 flow (1 socket closed)"]);
    assert_eq!(stream.error(), ErrorKind::ConnectionAborted);
}

#[test]
fn what_others_let_through_ends_when_the_rules_are_put_right() {
    let Some(world) = World::new() else { return };
    world.egressguard(&["apply", &policy_out(&world, &[])]).exits(0);
    world.nft(&["insert", "rule", "inet", "egressguard", "output", "tcp", "dport", &PORT.to_string(), "accept"]).exits(0);
    let stream = Stream::open(&world, Side::Host, Side::Net, STRANGER_V4, PORT);
    world.egressguard(&["refresh"]).exits(1).says(&["drift"]);
    stream.goes_on();
    world.egressguard(&["refresh", "--repair"]).exits(0).says(&["revoked 1 flow (1 socket closed)"]);
    assert_eq!(stream.error(), ErrorKind::ConnectionAborted);
    world.nft(&["delete", "table", "inet", "egressguard"]).exits(0);
    let stream = Stream::open(&world, Side::Host, Side::Net, STRANGER_V4, PORT + 1);
    let (mut idle, _far) = idle(&world, Side::Host, Side::Net, STRANGER_V4, PORT + 2);
    world.egressguard(&["restore"]).exits(0).says(&["revoked", "closed"]);
    assert_eq!(idle.read(&mut [0; 1]).unwrap_err().kind(), ErrorKind::ConnectionAborted);
    stream.error();
    stream.is_silent();
}

#[test]
fn what_the_host_says_to_itself_is_left_alone() {
    let Some(world) = World::new() else { return };
    let streams = ["127.0.0.1", HOST_V4, "::1", HOST_V6].map(|own| Stream::open(&world, Side::Host, Side::Host, own, PORT));
    for more in ["", "host: {ping: true}\n"] {
        let policy = world.policy(&format!("version: 1\n{more}"));
        assert!(!world.egressguard(&["apply", &policy]).exits(0).words().contains("revoked"));
        streams.iter().for_each(Stream::goes_on);
    }
}
