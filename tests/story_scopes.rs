//! Stories of who may: users, groups, services, machines behind the host, the operator, and what the host itself needs.

mod support;

use std::fs;
use std::net::UdpSocket;
use std::time::Duration;

use egressguard::demo::attempt::Way;
use support::kernel::cgroup_v2;
use support::{
    API_V4, API_V6, BEHIND_V4, BEHIND_V6, GATEWAY_V4, HOST_V4, HOST_V6, RESOLVER_V4, STRANGER_V4, STRANGER_V6, Side, World, eventually,
    is_refused, passes,
};

/// Numbers that no user or group of this machine has, and those of a user that every machine has.
const SOMEBODY: u32 = 4_100_001;
const ANOTHER: u32 = 4_100_002;
const NOBODY: u32 = 65534;

#[test]
fn a_rule_for_a_user_is_for_that_user_alone() {
    let Some(world) = World::new() else { return };
    let policy = world.policy(&format!(
        "version: 1\noutbound:\n  - {{to: {STRANGER_V4}, port: 4444, protocol: tcp, for: {{uid: {SOMEBODY}}}}}\n  \
         - {{to: \"{STRANGER_V6}\", port: 4444, protocol: tcp, for: {{user: nobody}}}}\n"
    ));
    assert!(world.connects_as(ANOTHER, ANOTHER, STRANGER_V4, 4444), "everybody may before");
    world.egressguard(&["apply", &policy]).exits(0);
    assert!(world.connects_as(SOMEBODY, ANOTHER, STRANGER_V4, 4444));
    assert!(!world.connects_as(SOMEBODY, ANOTHER, STRANGER_V4, 443), "the port is part of the rule");
    assert!(!world.connects_as(ANOTHER, SOMEBODY, STRANGER_V4, 4444));
    assert!(!world.connects_as(NOBODY, NOBODY, STRANGER_V4, 4444));
    assert!(world.connects_as(NOBODY, NOBODY, STRANGER_V6, 4444));
    assert!(!world.connects_as(SOMEBODY, SOMEBODY, STRANGER_V6, 4444));
    is_refused(world.tcp(STRANGER_V4, 4444));
}

#[test]
fn a_rule_for_a_group_is_for_programs_whose_primary_group_it_is() {
    let Some(world) = World::new() else { return };
    let policy = world.policy(&format!(
        "version: 1\noutbound:\n  - {{to: {STRANGER_V4}, port: 4444, protocol: tcp, for: {{gid: {SOMEBODY}}}}}\n  \
         - {{to: \"{STRANGER_V6}\", port: 4444, protocol: tcp, for: {{group: nogroup}}}}\n"
    ));
    world.egressguard(&["apply", &policy]).exits(0);
    assert!(world.connects_as(ANOTHER, NOBODY, STRANGER_V6, 4444));
    assert!(!world.connects_as(NOBODY, SOMEBODY, STRANGER_V6, 4444));
    assert!(world.connects_as(ANOTHER, SOMEBODY, STRANGER_V4, 4444));
    assert!(!world.connects_as(SOMEBODY, ANOTHER, STRANGER_V4, 4444));
}

#[test]
fn a_rule_for_a_service_follows_its_control_group() {
    let Some(world) = World::new() else { return };
    let skip = |why: &str| {
        assert!(std::env::var("EGRESSGUARD_REQUIRE_KERNEL").as_deref() != Ok("1"), "the kernel tests are required here: {why}");
        println!("skipped: {why}");
    };
    let Some(root) = cgroup_v2() else { return skip("cgroup v2 is not mounted") };
    let unit = format!("egressguard-test-{}.service", std::process::id());
    let slice = root.join("system.slice");
    let group = slice.join(&unit);
    if let Err(error) = fs::create_dir_all(&group) {
        return skip(&format!("{}: {error}", group.display()));
    }
    let policy =
        world.policy(&format!("version: 1\noutbound:\n  - {{to: {STRANGER_V4}, port: 4444, protocol: tcp, for: {{service: {unit}}}}}\n"));
    let applied = world.egressguard(&["apply", &policy]);
    let connect = |inside: bool| {
        let mut child = world.connects_when_told(STRANGER_V4, 4444);
        if inside {
            fs::write(group.join("cgroup.procs"), child.id().to_string()).expect("a process can be moved");
        }
        drop(child.stdin.take());
        child.wait().expect("it ends").success()
    };
    let (inside, outside) = (connect(true), connect(false));
    let _ = fs::remove_dir(&group);
    let _ = fs::remove_dir(&slice);
    applied.exits(0);
    assert!(inside, "a program of the service may");
    assert!(!outside, "any other may not");
}

#[test]
fn the_operator_comes_in_from_where_the_policy_says_and_from_nowhere_else() {
    let Some(world) = World::new() else { return };
    let policy =
        world.policy("version: 1\ninbound: {port: 443}\nmanagement:\n  port: 22\n  from: [203.0.113.0/28, \"2001:db8:113::/64\"]\n");
    world.egressguard(&["apply", &policy]).exits(0);
    for host in [HOST_V4, HOST_V6] {
        // Neighbours have to find each other first.
        eventually("the operator comes in", || world.attempt(Side::Net, Way::Tcp, host, 22).answered());
        passes(world.attempt(Side::Net, Way::Tcp, host, 443));
        is_refused(world.attempt(Side::Net, Way::Tcp, host, 8080));
    }
    let elsewhere = world.policy("version: 1\ninbound: {port: 443}\nmanagement:\n  port: 22\n  from: [198.18.0.0/24]\n");
    world.egressguard(&["apply", &elsewhere]).exits(0);
    [HOST_V4, HOST_V6].into_iter().for_each(|host| is_refused(world.attempt(Side::Net, Way::Tcp, host, 22)));
    passes(world.attempt(Side::Net, Way::Tcp, HOST_V4, 443));
}

#[test]
fn the_inbound_port_is_open_for_the_networks_it_names_and_in_its_protocol() {
    let Some(world) = World::new() else { return };
    let policy = world.policy("version: 1\ninbound: {port: 443, from: [203.0.113.0/24]}\n");
    world.egressguard(&["apply", &policy]).exits(0);
    passes(world.attempt(Side::Net, Way::Tcp, HOST_V4, 443));
    is_refused(world.attempt(Side::Net, Way::Tcp, HOST_V6, 443));
    is_refused(world.attempt(Side::Net, Way::Udp, HOST_V4, 443));
    let policy = world.policy("version: 1\ninbound: {port: 443, protocol: udp}\n");
    world.egressguard(&["apply", &policy]).exits(0);
    passes(world.attempt(Side::Net, Way::Udp, HOST_V4, 443));
    is_refused(world.attempt(Side::Net, Way::Tcp, HOST_V4, 443));
}

#[test]
fn the_host_gets_time_and_answers_pings_only_when_the_policy_says_so() {
    let Some(world) = World::new() else { return };
    let policy = world.policy("version: 1\noutbound:\n  - to: api.openai.com\n");
    world.egressguard(&["apply", &policy]).exits(0);
    [STRANGER_V4, STRANGER_V6].into_iter().for_each(|stranger| is_refused(world.udp(stranger, 123)));
    [HOST_V4, HOST_V6].into_iter().for_each(|host| is_refused(world.attempt(Side::Net, Way::Ping, host, 0)));
    let policy = world.policy(&format!(
        "version: 1\nhost:\n  ntp: [{STRANGER_V4}, \"{STRANGER_V6}\"]\n  ping: true\noutbound:\n  - to: api.openai.com\n"
    ));
    world.egressguard(&["apply", &policy]).exits(0);
    for stranger in [STRANGER_V4, STRANGER_V6] {
        passes(world.udp(stranger, 123));
        is_refused(world.udp(stranger, 443));
        is_refused(world.attempt(Side::Host, Way::Ping, stranger, 0));
    }
    [HOST_V4, HOST_V6].into_iter().for_each(|host| passes(world.attempt(Side::Net, Way::Ping, host, 0)));
}

#[test]
fn a_lease_can_be_asked_for_unless_the_policy_says_no() {
    let Some(world) = World::new() else { return };
    // The kernel tells the sender of a dropped datagram; one that leaves is not answered here.
    let asks = |to: &str| {
        let sent = world.within(Side::Host, || -> std::io::Result<usize> {
            let socket = UdpSocket::bind("0.0.0.0:68")?;
            socket.set_broadcast(true)?;
            socket.send_to(b"discover", (to, 67))
        });
        sent.is_ok()
    };
    let asks_v6 = |to: &str| {
        let uplink = || nix::net::if_::if_nametoindex("uplink").expect("the cable is there");
        let sent = world.within(Side::Host, || -> std::io::Result<usize> {
            let to: std::net::Ipv6Addr = to.parse().expect("an address");
            UdpSocket::bind("[::]:546")?.send_to(b"solicit", std::net::SocketAddrV6::new(to, 547, 0, uplink()))
        });
        sent.is_ok()
    };
    let broadcast = "203.0.113.255";
    world.ip(Side::Host, "route add 255.255.255.255 dev uplink");
    let policy = world.policy("version: 1\ninbound: {port: 443}\n");
    world.egressguard(&["apply", &policy]).exits(0);
    assert!(asks("255.255.255.255"));
    assert!(!asks(STRANGER_V4), "no tunnel to a stranger in the clothes of a lease");
    assert!(!asks(broadcast));
    assert!(asks_v6("ff02::1:2"));
    assert!(!asks_v6(STRANGER_V6));
    let policy = world.policy("version: 1\ninbound: {port: 443}\nhost: {dhcp: false}\n");
    world.egressguard(&["apply", &policy]).exits(0);
    assert!(!asks("255.255.255.255"));
    assert!(!asks_v6("ff02::1:2"));
}

#[test]
fn the_answer_of_a_lease_server_opens_no_way_to_whoever_sends_it() {
    let Some(world) = World::new() else { return };
    world.egressguard(&["apply", "builtin:lockdown"]).exits(0);
    let stranger = world.within(Side::Net, || UdpSocket::bind((STRANGER_V4, 67))).expect("the port is free");
    let client = world.within(Side::Host, || UdpSocket::bind("0.0.0.0:68")).expect("the port is free");
    for socket in [&stranger, &client] {
        socket.set_read_timeout(Some(Duration::from_millis(500))).expect("a socket has a timeout");
    }
    let mut octets = [0; 16];
    stranger.send_to(b"offer", (HOST_V4, 68)).expect("it leaves");
    client.recv_from(&mut octets).expect("a lease can come from anywhere");
    let refused = client.send_to(b"secret", (STRANGER_V4, 67)).expect_err("the way back is closed");
    assert_eq!(refused.raw_os_error(), Some(libc::EPERM));
    assert!(stranger.recv_from(&mut octets).is_err());
    // Where nobody listens, nobody learns that there is a host.
    drop(client);
    stranger.connect((HOST_V4, 68)).expect("a datagram socket connects");
    stranger.send(b"offer").expect("it leaves");
    let silence = stranger.recv(&mut octets).expect_err("nothing comes back");
    assert_eq!(silence.kind(), std::io::ErrorKind::WouldBlock);
}

#[test]
fn machines_behind_the_host_obey_the_same_policy() {
    let Some(mut world) = World::new() else { return };
    world.put_a_machine_behind();
    let policy = |forward: &str| {
        world.policy(&format!("version: 1\ninbound: {{port: 443}}\nhost: {{forward: {forward}}}\noutbound:\n  - to: api.openai.com\n"))
    };
    let from_behind = |address: &str, port| world.attempt(Side::Behind, Way::Tcp, address, port);
    for stranger in [STRANGER_V4, STRANGER_V6] {
        // Neighbours have to find each other first.
        eventually("the machine behind reaches the stranger", || from_behind(stranger, 4444).answered());
    }
    passes(world.attempt(Side::Net, Way::Tcp, BEHIND_V4, 8080));

    world.egressguard(&["apply", &policy("contain")]).exits(0);
    [API_V4, API_V6].into_iter().for_each(|api| is_refused(from_behind(api, 80)));
    for api in [API_V4, API_V6] {
        // The plain attempt reaches the TLS server, which hangs up: connecting is what counts.
        let seen = from_behind(api, 443);
        assert!(!matches!(seen.to_string().as_str(), "ECONNREFUSED" | "no answer" | "EHOSTUNREACH"), "{api}: {seen}");
    }
    for stranger in [STRANGER_V4, STRANGER_V6] {
        [443, 4444].into_iter().for_each(|port| is_refused(from_behind(stranger, port)));
        is_refused(world.attempt(Side::Behind, Way::Udp, stranger, 443));
        is_refused(world.attempt(Side::Behind, Way::Ping, stranger, 0));
    }
    for (behind, set) in [(BEHIND_V4, "ledger_forward_v4"), (BEHIND_V6, "ledger_forward_v6")] {
        let ledger = world.set(set);
        assert!(ledger.contains(behind) && ledger.contains("4444"), "{ledger}");
    }
    // A refused connection fails at once and with a reason, which is a packet of its own, and no violation of anybody's.
    for (stranger, set) in [(STRANGER_V4, "ledger_kernel_v4"), (STRANGER_V6, "ledger_kernel_v6")] {
        assert_eq!(from_behind(stranger, 4444).to_string(), "ECONNREFUSED");
        let ledger = world.set(set);
        let by_stranger = ledger.split(['{', ',']).any(|element| element.trim_start().starts_with(&format!("{stranger} . ")));
        assert!(!by_stranger, "the reset is counted: {ledger}");
    }
    [BEHIND_V4, BEHIND_V6].into_iter().for_each(|behind| is_refused(world.attempt(Side::Net, Way::Tcp, behind, 443)));

    world.egressguard(&["apply", &policy("deny")]).exits(0);
    for api in [API_V4, API_V6] {
        let seen = from_behind(api, 443);
        assert!(!seen.answered() && seen.to_string() != "connected, and closed without a word", "{api}: {seen}");
    }
    passes(world.tls(API_V4));
}

#[test]
fn a_published_port_of_a_container_opens_no_second_door() {
    let Some(mut world) = World::new() else { return };
    world.put_a_machine_behind();
    world.nft_load(&format!(
        "table ip nat {{ chain prerouting {{ type nat hook prerouting priority -100;
            iifname \"uplink\" tcp dport 443 dnat to {BEHIND_V4}:8443; iifname \"uplink\" tcp dport 8081 dnat to {BEHIND_V4}:443; }}\n}}\n"
    ));
    let knock = |port| world.attempt(Side::Net, Way::Tcp, HOST_V4, port);
    [443, 8081].into_iter().for_each(|port| passes(knock(port)));
    world.egressguard(&["apply", "builtin:openai"]).exits(0);
    passes(knock(443));
    is_refused(knock(8081));
    // A machine behind the host that asks for port 443 of a stranger is not a visitor of the inbound port.
    is_refused(world.attempt(Side::Behind, Way::Tcp, STRANGER_V4, 443));
    // A way out to the machine is no way in to it.
    let policy = world.policy("version: 1\ninbound: {port: 443}\noutbound:\n  - {to: 192.168.50.0/24, port: [443, 8443], protocol: tcp}\n");
    world.egressguard(&["apply", &policy]).exits(0);
    passes(knock(443));
    is_refused(knock(8081));
}

#[test]
fn who_tries_too_often_is_cut_off_by_the_kernel_alone() {
    let Some(world) = World::new() else { return };
    let policy = world.policy(&format!(
        "version: 1\ninbound: {{port: 443}}\noutbound:\n  - {{to: {STRANGER_V4}, port: 5432, protocol: tcp}}\n\
         violations:\n  quarantine: {{after: 3, within: 1m, for: 1h, scope: user}}\n"
    ));
    world.egressguard(&["apply", &policy]).exits(0);
    assert!(world.connects_as(SOMEBODY, SOMEBODY, STRANGER_V4, 5432));
    for _ in 0..6 {
        assert!(!world.connects_as(SOMEBODY, SOMEBODY, STRANGER_V4, 4444));
    }
    assert!(!world.connects_as(SOMEBODY, SOMEBODY, STRANGER_V4, 5432), "cut off from what was allowed");
    assert!(world.connects_as(ANOTHER, ANOTHER, STRANGER_V4, 5432), "others are not");
    assert!(world.set("quarantined_users").contains(&SOMEBODY.to_string()));
    world.egressguard(&["status"]).exits(0).says(&[&format!("quarantined uid {SOMEBODY}")]);
    world.egressguard(&["apply", &policy]).exits(0);
    assert!(!world.connects_as(SOMEBODY, SOMEBODY, STRANGER_V4, 5432), "an apply forgives nobody");
}

#[test]
fn a_quarantine_ends_although_whoever_is_in_it_goes_on_trying() {
    let Some(world) = World::new() else { return };
    let policy = world.policy(&format!(
        "version: 1\noutbound:\n  - {{to: {STRANGER_V4}, port: 5432, protocol: tcp}}\n\
         violations:\n  quarantine: {{after: 3, within: 1m, for: 3s, scope: user}}\n"
    ));
    world.egressguard(&["apply", &policy]).exits(0);
    (0..6).for_each(|_| drop(world.tcp(STRANGER_V4, 4444)));
    is_refused(world.tcp(STRANGER_V4, 5432));
    eventually("the quarantine ends", || world.tcp(STRANGER_V4, 5432).answered());
}

#[test]
fn looking_for_names_on_the_link_is_refused_and_cuts_nobody_off() {
    let Some(world) = World::new() else { return };
    let policy = world.policy(&format!(
        "version: 1\noutbound:\n  - {{to: {STRANGER_V4}, port: 5432, protocol: tcp}}\n\
         violations:\n  quarantine: {{after: 3, within: 1m, for: 1h, scope: user}}\n"
    ));
    world.egressguard(&["apply", &policy]).exits(0);
    for group in ["224.0.0.251", "239.255.255.250", "ff05::fb"].iter().cycle().take(12) {
        is_refused(world.udp(group, 5353));
    }
    assert!(world.set("ledger_user_v4").contains("224.0.0.251"));
    passes(world.tcp(STRANGER_V4, 5432));
}

#[test]
fn knocking_at_published_ports_cuts_nobody_off() {
    let Some(mut world) = World::new() else { return };
    world.put_a_machine_behind();
    world.nft_load(&format!(
        "table ip nat {{ chain prerouting {{ type nat hook prerouting priority -100; iifname \"uplink\" tcp dport 8081 dnat to {BEHIND_V4}:443; }}\n}}\n"
    ));
    let policy = world.policy(&format!(
        "version: 1\nmanagement: {{port: 22, from: [203.0.113.0/24]}}\noutbound:\n  - {{to: {STRANGER_V4}, port: 5432, protocol: tcp}}\n\
         violations:\n  quarantine: {{after: 3, within: 1m, for: 1h, scope: host}}\n"
    ));
    world.egressguard(&["apply", &policy]).exits(0);
    (0..6).for_each(|_| is_refused(world.attempt(Side::Net, Way::Tcp, HOST_V4, 8081)));
    passes(world.tcp(STRANGER_V4, 5432));
    (0..6).for_each(|_| is_refused(world.attempt(Side::Behind, Way::Tcp, STRANGER_V4, 4444)));
    is_refused(world.tcp(STRANGER_V4, 5432));
}

#[test]
fn networks_and_ranges_of_ports_are_let_out_as_written() {
    let Some(world) = World::new() else { return };
    let policy = world.policy(
        "version: 1\noutbound:\n  - {to: 198.51.100.64/28, port: [80, \"4440-4450\"], protocol: tcp}\n  \
         - {to: \"2001:db8:bad::/48\", port: 123, protocol: udp}\n",
    );
    world.egressguard(&["apply", &policy]).exits(0);
    [80, 4444].into_iter().for_each(|port| passes(world.tcp(STRANGER_V4, port)));
    [22, 443].into_iter().for_each(|port| is_refused(world.tcp(STRANGER_V4, port)));
    passes(world.udp(STRANGER_V6, 123));
    is_refused(world.udp(STRANGER_V6, 443));
    is_refused(world.tcp(STRANGER_V6, 80));
    is_refused(world.tcp(GATEWAY_V4, 80));
    is_refused(world.tcp(RESOLVER_V4, 80));
}
