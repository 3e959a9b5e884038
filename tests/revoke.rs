//! What is revoked and what stays: flows and sockets as values, judged by the rules of a policy. The kernel's side of it is in
//! `flows_contract.rs` and `story_revoke.rs`.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use egressguard::base::name::DnsName;
use egressguard::base::net::Protocol;
use egressguard::base::time::Timestamp;
use egressguard::command::revoke::{Revocation, Session, end};
use egressguard::command::{Exit, Output, Style, Verbosity};
use egressguard::judge::flow::{Beginning, Flow, Handle, LocalAddresses, LocalSocket, OwnerDetail, Phase, Tuple, Underway};
use egressguard::judge::packet::{Payload, STRANGER, Socket, TCP_SYN};
use egressguard::judge::revoke::{asks, revoke};
use egressguard::pins::{Lease, NamePins, Pins};
use egressguard::policy;
use egressguard::ruleset::Ruleset;
use egressguard::ruleset::compile::{Facts, compile};
use egressguard::simulated::flows::{Request, SimulatedFlows};
use egressguard::world::FlowsError;

const POLICY: &str = "\
version: 1
inbound: {port: 443}
management: {port: 22, from: [203.0.113.0/24]}
outbound:
  - {to: 192.0.2.1, port: 443, protocol: tcp}
  - {to: 192.0.2.53, port: 53, protocol: udp}
";
const HERE: &str = "10.0.0.2";
const DNAT: u32 = 1 << 5;

fn rules(text: &str) -> Ruleset {
    rules_with(text, &Pins::default(), &Facts::default())
}

fn rules_with(text: &str, pins: &Pins, facts: &Facts) -> Ruleset {
    let parsed = policy::parse_bytes(text.as_bytes(), "p.yaml").unwrap_or_else(|findings| panic!("{findings:?}"));
    compile(&parsed.policy, pins, facts, 1)
}

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap_or_else(|_| panic!("`{text}` is no address with a port"))
}

fn payload(protocol: Protocol, source: u16, destination: u16) -> Payload {
    match protocol {
        Protocol::TCP => Payload::Tcp { source, destination, flags: TCP_SYN },
        Protocol::UDP => Payload::Udp { source, destination },
        other => Payload::Other(other),
    }
}

fn tuple(protocol: Protocol, from: &str, to: &str) -> Tuple {
    let (from, to) = (address(from), address(to));
    Tuple { source: from.ip(), destination: to.ip(), payload: payload(protocol, from.port(), to.port()) }
}

/// A handle that nothing else has.
fn handle(words: &[&str]) -> Handle {
    Handle(words.join(" ").into_bytes().into())
}

/// A flow whose addresses nobody translates.
fn flow(protocol: Protocol, from: &str, to: &str) -> Flow {
    Flow {
        original: tuple(protocol, from, to),
        reply: tuple(protocol, to, from),
        status: 0,
        beginning: Beginning::Seen,
        phase: Phase::Live,
        handle: handle(&[from, to]),
    }
}

fn tcp(from: &str, to: &str) -> Flow {
    flow(Protocol::TCP, from, to)
}

fn udp(from: &str, to: &str) -> Flow {
    flow(Protocol::UDP, from, to)
}

fn missed(flow: Flow) -> Flow {
    Flow { beginning: Beginning::Missed, ..flow }
}

fn owner(user: u32) -> Socket {
    Socket { user, user_name: None, group: STRANGER, unit: None, cgroups: BTreeMap::new() }
}

fn socket(protocol: Protocol, local: &str, remote: Option<&str>) -> LocalSocket {
    let remote_words = remote.unwrap_or("*");
    let handle = handle(&["socket", local, remote_words]);
    LocalSocket { protocol, local: address(local), remote: remote.map(address), owner: Some(owner(1000)), inode: 1, handle }
}

fn connected(local: &str, remote: &str) -> LocalSocket {
    socket(Protocol::TCP, local, Some(remote))
}

fn listening(local: &str) -> LocalSocket {
    socket(Protocol::TCP, local, None)
}

fn underway(flows: Vec<Flow>, sockets: Vec<LocalSocket>) -> Underway {
    let mut addresses = LocalAddresses::default();
    for net in ["10.0.0.2/32", "172.17.0.1/32", "2001:db8::2/128", "127.0.0.0/8", "::1/128"] {
        addresses.add(net.parse().unwrap());
    }
    Underway { flows, sockets, addresses }
}

/// The handles of what is revoked, flows first.
fn gone(rules: &Ruleset, underway: &Underway) -> Vec<String> {
    let revoked = revoke(rules, underway);
    let flows = revoked.flows.iter().map(|flow| &flow.handle);
    let handles = flows.chain(revoked.sockets.iter().map(|socket| &socket.handle));
    handles.map(|handle| String::from_utf8(handle.0.to_vec()).unwrap()).collect()
}

#[track_caller]
fn stays(rules: &Ruleset, flow: Flow, sockets: Vec<LocalSocket>) {
    assert_eq!(gone(rules, &underway(vec![flow], sockets)), [] as [&str; 0]);
}

#[track_caller]
fn goes(rules: &Ruleset, flow: Flow, sockets: Vec<LocalSocket>) {
    let handle = String::from_utf8(flow.handle.0.to_vec()).unwrap();
    assert_eq!(gone(rules, &underway(vec![flow], sockets)).first(), Some(&handle));
}

#[test]
fn what_goes_out_stays_when_it_could_be_opened_again_and_goes_with_its_socket_when_not() {
    let rules = rules(POLICY);
    stays(&rules, tcp("10.0.0.2:50000", "192.0.2.1:443"), vec![connected("10.0.0.2:50000", "192.0.2.1:443")]);
    stays(&rules, udp("10.0.0.2:50000", "192.0.2.53:53"), vec![]);
    goes(&rules, tcp("10.0.0.2:50000", "192.0.2.1:80"), vec![]);
    goes(&rules, udp("10.0.0.2:50000", "192.0.2.1:443"), vec![]);
    let one = underway(
        vec![tcp("10.0.0.2:50000", "198.51.100.7:443"), tcp("10.0.0.2:50001", "192.0.2.1:443")],
        vec![
            connected("10.0.0.2:50000", "198.51.100.7:443"),
            connected("10.0.0.2:50001", "192.0.2.1:443"),
            socket(Protocol::UDP, "10.0.0.2:50000", Some("198.51.100.7:443")),
        ],
    );
    assert_eq!(gone(&rules, &one), ["10.0.0.2:50000 198.51.100.7:443", "socket 10.0.0.2:50000 198.51.100.7:443"]);
}

#[test]
fn what_came_in_is_judged_as_coming_in() {
    let rules = rules(POLICY);
    stays(&rules, tcp("198.51.100.7:50000", "10.0.0.2:443"), vec![connected("10.0.0.2:443", "198.51.100.7:50000")]);
    stays(&rules, tcp("203.0.113.9:50000", "10.0.0.2:22"), vec![]);
    stays(&rules, tcp("[2001:db8:9::1]:50000", "[2001:db8::2]:443"), vec![]);
    goes(&rules, tcp("198.51.100.7:50000", "10.0.0.2:22"), vec![]);
    let one = underway(
        vec![tcp("198.51.100.7:50000", "10.0.0.2:8080")],
        vec![listening("0.0.0.0:8080"), connected("10.0.0.2:8080", "198.51.100.7:50000")],
    );
    assert_eq!(gone(&rules, &one), ["198.51.100.7:50000 10.0.0.2:8080", "socket 10.0.0.2:8080 198.51.100.7:50000"]);
    // The same ends, opened from here: the way in at port 443 is no way out from it.
    goes(&rules, tcp("10.0.0.2:443", "198.51.100.7:50000"), vec![]);
}

#[test]
fn what_passes_through_is_judged_behind_the_translation_of_its_destination() {
    let rules = rules(POLICY);
    stays(&rules, tcp("172.17.0.5:40000", "192.0.2.1:443"), vec![]);
    goes(&rules, tcp("172.17.0.5:40000", "198.51.100.7:443"), vec![]);
    // A published port of a container: asked for at the host's 443, delivered at the container's 8443.
    let published = |asked: &str| Flow {
        original: tuple(Protocol::TCP, "198.51.100.7:50000", asked),
        reply: tuple(Protocol::TCP, "172.17.0.5:8443", "198.51.100.7:50000"),
        status: DNAT,
        ..tcp("198.51.100.7:50000", asked)
    };
    stays(&rules, published("10.0.0.2:443"), vec![]);
    goes(&rules, published("10.0.0.2:8443"), vec![]);
    // A container's address is translated on its way out: to the rules it is the container still.
    let masqueraded = |to: &str| Flow { reply: tuple(Protocol::TCP, to, "10.0.0.2:61000"), ..tcp("172.17.0.5:40000", to) };
    stays(&rules, masqueraded("192.0.2.1:443"), vec![]);
    goes(&rules, masqueraded("192.0.2.9:443"), vec![]);
    let denied = rules_of_forward_deny();
    goes(&denied, tcp("172.17.0.5:40000", "192.0.2.1:443"), vec![]);
}

fn rules_of_forward_deny() -> Ruleset {
    rules(&format!("{POLICY}host: {{forward: deny}}\n"))
}

#[test]
fn a_redirected_flow_is_judged_by_where_it_really_goes_and_its_socket_is_found_by_where_it_thinks() {
    let rules = rules(POLICY);
    let redirected =
        |to: &str| Flow { reply: tuple(Protocol::TCP, to, "10.0.0.2:50000"), status: DNAT, ..tcp("10.0.0.2:50000", "198.51.100.7:443") };
    let program = || vec![connected("10.0.0.2:50000", "198.51.100.7:443")];
    stays(&rules, redirected("192.0.2.1:443"), program());
    stays(&rules, redirected("127.0.0.1:8443"), program());
    let one = underway(vec![redirected("192.0.2.9:443")], program());
    assert_eq!(gone(&rules, &one).len(), 2);
}

#[test]
fn what_crosses_loopback_is_never_touched() {
    let rules = rules("version: 1\n");
    for (from, to) in [("127.0.0.1:50000", "127.0.0.1:5432"), ("10.0.0.2:50000", "10.0.0.2:80"), ("[::1]:50000", "[::1]:80")] {
        stays(&rules, tcp(from, to), vec![connected(from, to), connected(to, from)]);
        stays(&rules, missed(tcp(to, from)), vec![]);
        assert!(gone(&rules, &underway(vec![], vec![connected(from, to), connected(to, from), listening(to)])).is_empty());
    }
}

#[test]
fn what_is_for_a_user_stays_for_that_user_and_goes_for_others_and_for_nobody() {
    let rules = rules("version: 1\noutbound:\n  - {to: 192.0.2.1, port: 443, protocol: tcp, for: {uid: 1000}}\n");
    let (from, to) = ("10.0.0.2:50000", "192.0.2.1:443");
    stays(&rules, tcp(from, to), vec![connected(from, to)]);
    goes(&rules, tcp(from, to), vec![LocalSocket { owner: Some(owner(1001)), ..connected(from, to) }]);
    goes(&rules, tcp(from, to), vec![LocalSocket { owner: None, ..connected(from, to) }]);
    goes(&rules, tcp(from, to), vec![]);
    // What the rule for a user allows, no container may.
    goes(&rules, tcp("172.17.0.5:50000", to), vec![]);
}

#[test]
fn a_udp_socket_without_a_peer_owns_what_leaves_its_port_and_is_never_closed() {
    let rules = rules("version: 1\noutbound:\n  - {to: 192.0.2.1, port: 53, protocol: udp, for: {uid: 1000}}\n");
    let (from, to) = ("10.0.0.2:50000", "192.0.2.1:53");
    let bound = |local: &str, user: u32| LocalSocket { owner: Some(owner(user)), ..socket(Protocol::UDP, local, None) };
    for local in [from, "0.0.0.0:50000", "[::]:50000"] {
        stays(&rules, udp(from, to), vec![bound(local, 1000)]);
        let one = underway(vec![udp(from, to)], vec![bound(local, 1001)]);
        assert_eq!(gone(&rules, &one), ["10.0.0.2:50000 192.0.2.1:53"], "the socket serves others too");
    }
    goes(&rules, udp(from, to), vec![bound("0.0.0.0:50001", 1000)]);
    goes(&rules, udp(from, to), vec![bound("0.0.0.0:50000", 1000), bound(from, 1001)]);
    stays(&rules, udp(from, to), vec![bound("0.0.0.0:50000", 1000), bound("[::]:50000", 1001)]);
    // A connected one knows its peer and is closed with the flow.
    let peer = LocalSocket { owner: Some(owner(1001)), ..socket(Protocol::UDP, from, Some(to)) };
    assert_eq!(gone(&rules, &underway(vec![udp(from, to)], vec![peer])).len(), 2);
}

#[test]
fn groups_and_control_groups_are_asked_for_only_where_rules_ask_for_them() {
    let of = |scope: &str| rules(&format!("version: 1\noutbound:\n  - {{to: 192.0.2.1, port: 443, protocol: tcp, for: {scope}}}\n"));
    assert!(asks(&rules(POLICY)).is_empty());
    assert!(asks(&of("{uid: 7}")).is_empty());
    assert_eq!(asks(&of("{gid: 7}")), [OwnerDetail::Group].into());
    assert_eq!(asks(&of("{service: backend.service}")), [OwnerDetail::ControlGroups].into());
    let (from, to) = ("10.0.0.2:50000", "192.0.2.1:443");
    let of_group = |group: u32| LocalSocket { owner: Some(Socket { group, ..owner(5) }), ..connected(from, to) };
    stays(&of("{gid: 7}"), tcp(from, to), vec![of_group(7)]);
    goes(&of("{gid: 7}"), tcp(from, to), vec![of_group(8)]);
    let facts =
        Facts { units: BTreeMap::from([("backend.service".into(), ("system.slice/backend.service".into(), 77))]), ..Facts::default() };
    let unit = rules_with(
        "version: 1\noutbound:\n  - {to: 192.0.2.1, port: 443, protocol: tcp, for: {service: backend.service}}\n",
        &Pins::default(),
        &facts,
    );
    let in_unit = |cgroups: &[(u8, u64)]| LocalSocket {
        owner: Some(Socket { cgroups: cgroups.iter().copied().collect(), ..owner(5) }),
        ..connected(from, to)
    };
    stays(&unit, tcp(from, to), vec![in_unit(&[(1, 10), (2, 77), (3, 99)])]);
    goes(&unit, tcp(from, to), vec![in_unit(&[(1, 10), (2, 78)])]);
    goes(&unit, tcp(from, to), vec![in_unit(&[])]);
}

#[test]
fn a_draining_address_keeps_its_flows_and_an_ended_one_does_not() {
    let name = DnsName::parse("api.example.com").unwrap();
    let pins = |addresses: &[&str]| {
        let lease = |seen: i64| Lease {
            server: "192.0.2.53:53".to_string(),
            ttl: 60,
            first_seen: Timestamp(0),
            last_seen: Timestamp(seen),
            expires: Timestamp(1000),
        };
        let leases = addresses.iter().zip(1..).map(|(text, seen)| (text.parse().unwrap(), lease(seen))).collect();
        Pins { names: [(name.clone(), NamePins { confirmed: Some(Timestamp(2)), leases, ..NamePins::default() })].into() }
    };
    let text = "version: 1\noutbound:\n  - to: api.example.com\n";
    let to_draining = || tcp("10.0.0.2:50000", "162.159.140.245:443");
    stays(&rules_with(text, &pins(&["162.159.140.245", "172.66.0.243"]), &Facts::default()), to_draining(), vec![]);
    goes(&rules_with(text, &pins(&["172.66.0.243"]), &Facts::default()), to_draining(), vec![]);
}

#[test]
fn a_connection_older_than_tracking_is_judged_by_who_listens_and_else_stays_when_either_may_have_opened_it() {
    let rules = rules(POLICY);
    // The operator's session, whose answer was what tracking met first.
    let session = || missed(tcp("10.0.0.2:22", "203.0.113.9:50000"));
    stays(&rules, session(), vec![listening("0.0.0.0:22"), connected("10.0.0.2:22", "203.0.113.9:50000")]);
    stays(&rules, session(), vec![connected("10.0.0.2:22", "203.0.113.9:50000")]);
    goes(&rules, tcp("10.0.0.2:22", "203.0.113.9:50000"), vec![]);
    // An answer of the API, met first.
    stays(&rules, missed(tcp("192.0.2.1:443", "10.0.0.2:50000")), vec![connected("10.0.0.2:50000", "192.0.2.1:443")]);
    goes(&rules, missed(tcp("192.0.2.1:443", "10.0.0.2:50000")), vec![listening("[::]:50000")]);
    goes(&rules, missed(tcp("198.51.100.7:443", "10.0.0.2:50000")), vec![]);
    // Through the host, either way round.
    stays(&rules, missed(tcp("192.0.2.1:443", "172.17.0.5:40000")), vec![]);
    stays(&rules, missed(tcp("172.17.0.5:40000", "192.0.2.1:443")), vec![]);
    goes(&rules, tcp("192.0.2.1:443", "172.17.0.5:40000"), vec![]);
}

#[test]
fn a_tcp_socket_that_tracking_does_not_know_is_judged_by_itself() {
    let rules = rules(POLICY);
    let sockets = vec![
        connected("10.0.0.2:50001", "192.0.2.1:443"),
        connected("10.0.0.2:50002", "198.51.100.7:443"),
        listening("[::]:443"),
        listening("0.0.0.0:8080"),
        connected("10.0.0.2:443", "198.51.100.7:50000"),
        connected("10.0.0.2:8080", "198.51.100.7:50000"),
        connected("10.0.0.2:22", "203.0.113.9:50000"),
        socket(Protocol::UDP, "10.0.0.2:50003", Some("198.51.100.7:53")),
    ];
    let expected = ["socket 10.0.0.2:50002 198.51.100.7:443", "socket 10.0.0.2:8080 198.51.100.7:50000"];
    assert_eq!(gone(&rules, &underway(vec![], sockets)), expected);
}

#[test]
fn packets_to_a_group_or_to_a_whole_link_come_in_and_a_host_without_an_address_sends() {
    let rules = rules(POLICY);
    stays(&rules, udp("10.0.0.1:67", "255.255.255.255:68"), vec![]);
    goes(&rules, udp("10.0.0.9:5353", "224.0.0.251:5353"), vec![]);
    stays(&rules, udp("0.0.0.0:68", "255.255.255.255:67"), vec![]);
}

#[test]
fn a_transparent_proxy_is_seen_by_its_sockets() {
    let rules = rules(POLICY);
    let (client, server) = ("172.17.0.5:40000", "198.51.100.7:443");
    // The proxy answers its client in the server's name, and is judged as what came in, not as what passes.
    let accepted = || vec![connected(server, client)];
    stays(&rules, tcp(client, server), accepted());
    goes(&rules, tcp(client, "198.51.100.7:80"), vec![connected("198.51.100.7:80", client)]);
    goes(&rules, tcp(client, server), vec![]);
}

#[test]
fn other_protocols_and_echo_requests_are_judged_too() {
    let rules = rules(POLICY);
    let echo = |from: &str, to: &str, kind: u8| {
        let (from, to): (IpAddr, IpAddr) = (from.parse().unwrap(), to.parse().unwrap());
        let tuple = |source, destination, kind| Tuple { source, destination, payload: Payload::Icmp(kind) };
        Flow { original: tuple(from, to, kind), reply: tuple(to, from, 0), ..udp("10.0.0.2:1", "192.0.2.1:1") }
    };
    goes(&rules, echo(HERE, "192.0.2.1", 8), vec![]);
    goes(&rules, echo("192.0.2.1", HERE, 8), vec![]);
    stays(&self::rules("version: 1\nhost: {ping: true}\n"), echo("192.0.2.1", HERE, 8), vec![]);
    goes(&rules, flow(Protocol(47), "10.0.0.2:0", "192.0.2.1:0"), vec![]);
}

#[test]
fn rules_that_only_observe_revoke_nothing_and_look_at_nothing() {
    let rules = rules("version: 1\nmode: observe\n");
    stays(&rules, tcp("10.0.0.2:50000", "198.51.100.7:443"), vec![connected("10.0.0.2:50000", "198.51.100.7:443")]);
    let mut flows = SimulatedFlows::new(underway(vec![tcp("10.0.0.2:50000", "198.51.100.7:443")], vec![]));
    assert_eq!(ended(&rules, &mut flows, None).0, None);
    assert!(flows.requests().is_empty());
}

/// What was ended, and what was said.
fn ended(rules: &Ruleset, flows: &mut SimulatedFlows, session: Session) -> (Option<Revocation>, String) {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let mut output = Output { out: &mut out, err: &mut err, style: Style::Plain, verbosity: Verbosity::Normal };
    let revocation = end(rules, flows, || session, &mut output);
    (revocation, String::from_utf8(err).unwrap())
}

fn one_to_go() -> SimulatedFlows {
    SimulatedFlows::new(underway(
        vec![tcp("10.0.0.2:50000", "198.51.100.7:443"), tcp("10.0.0.2:50001", "192.0.2.1:443")],
        vec![connected("10.0.0.2:50000", "198.51.100.7:443"), connected("10.0.0.2:50001", "192.0.2.1:443")],
    ))
}

#[test]
fn sockets_are_closed_before_their_flows_are_deleted_and_a_second_look_finds_nothing() {
    let rules = rules(POLICY);
    let mut flows = one_to_go();
    let (revocation, said) = ended(&rules, &mut flows, None);
    let revocation = revocation.unwrap();
    assert_eq!(revocation.words().as_deref(), Some("revoked 1 flow (1 socket closed)"));
    assert_eq!((revocation.json().to_string(), said.as_str()), (r#"{"flows":1,"sockets":1}"#.to_string(), ""));
    assert_eq!(flows.requests(), [Request::Addresses, Request::Tracked, Request::Sockets, Request::Destroy, Request::Delete]);
    assert_eq!((flows.underway.flows.len(), flows.underway.sockets.len()), (1, 1));
    let (again, _) = ended(&rules, &mut flows, None);
    let again = again.unwrap();
    assert_eq!((again.words(), again.conclude(Exit::Done).unwrap()), (None, Exit::Done));
}

#[test]
fn what_is_over_and_what_no_program_has_is_ended_and_not_counted() {
    let mut flows = SimulatedFlows::new(underway(
        vec![Flow { phase: Phase::Over, ..tcp("10.0.0.2:50000", "198.51.100.7:443") }],
        vec![LocalSocket { owner: None, ..connected("10.0.0.2:50002", "198.51.100.7:443") }],
    ));
    let (revocation, _) = ended(&rules(POLICY), &mut flows, None);
    assert_eq!(revocation, Some(Revocation::default()));
    assert!(flows.underway.flows.is_empty() && flows.underway.sockets.is_empty());
}

#[test]
fn the_session_of_the_command_itself_is_not_spared_but_ends_last_and_is_told() {
    let mut flows = one_to_go();
    let peer = "198.51.100.99";
    flows.underway.flows.insert(0, tcp("198.51.100.99:50000", "10.0.0.2:2222"));
    flows.underway.sockets.insert(0, connected("10.0.0.2:2222", "198.51.100.99:50000"));
    let (revocation, said) = ended(&rules(POLICY), &mut flows, Some((peer.parse().unwrap(), 2222)));
    assert_eq!(revocation.unwrap().words().as_deref(), Some("revoked 2 flows (2 sockets closed)"));
    assert_eq!(said, "warning: this session from 198.51.100.99 to port 2222 is not allowed either, and ends now\n");
    assert_eq!(flows.requests()[3..], [Request::Destroy, Request::Delete, Request::Destroy, Request::Delete]);
    let mut allowed = one_to_go();
    allowed.underway.flows.push(tcp("203.0.113.9:50000", "10.0.0.2:22"));
    let (revocation, said) = ended(&rules(POLICY), &mut allowed, Some(("203.0.113.9".parse().unwrap(), 22)));
    assert_eq!((revocation.unwrap().flows, said.as_str(), allowed.underway.flows.len()), (1, "", 2));
}

#[test]
fn a_kernel_that_cannot_tell_or_end_flows_makes_the_command_fail_although_the_rules_are_loaded() {
    let rules = rules(POLICY);
    let unsupported = || FlowsError::Unsupported("list tracked flows", "nf_conntrack_netlink");
    for request in [Request::Tracked, Request::Sockets, Request::Addresses, Request::Delete, Request::Destroy] {
        let mut flows = one_to_go();
        flows.fail(request, unsupported());
        let (revocation, _) = ended(&rules, &mut flows, None);
        let failure = revocation.unwrap().conclude(Exit::Done).unwrap_err();
        assert_eq!(failure.exit, Exit::Refused, "{request:?}");
        assert!(failure.message.starts_with("the rules are loaded, but flows from before may go on: this kernel cannot"), "{failure}");
    }
    let mut flows = one_to_go();
    flows.fail(Request::Tracked, unsupported());
    ended(&rules, &mut flows, None);
    assert_eq!(flows.underway.sockets.len(), 1, "sockets speak for themselves");
    let mut flows = one_to_go();
    let stubborn = flows.underway.flows[0].handle.clone();
    flows.refuse(&stubborn, "EBUSY");
    let (revocation, _) = ended(&rules, &mut flows, None);
    assert_eq!(revocation.unwrap().shortfall.as_deref(), Some("1 tracked flow could not be deleted (EBUSY)"));
    let mut flows = one_to_go();
    let stubborn = flows.underway.sockets[0].handle.clone();
    flows.refuse(&stubborn, "ENOMEM");
    let (revocation, _) = ended(&rules, &mut flows, None);
    assert_eq!(revocation.unwrap().shortfall.as_deref(), Some("1 socket could not be closed (ENOMEM)"));
    assert_eq!(flows.underway.flows.len(), 1, "its flow is deleted all the same");
}

#[test]
fn a_kernel_that_can_close_no_socket_is_told_and_is_no_failure_because_its_packets_are_refused() {
    let rules = rules(POLICY);
    let mut flows = one_to_go();
    let stubborn = flows.underway.sockets[0].handle.clone();
    flows.refuse(&stubborn, "EOPNOTSUPP");
    let (revocation, said) = ended(&rules, &mut flows, None);
    assert_eq!(revocation.unwrap(), Revocation { flows: 1, sockets: 0, shortfall: None });
    assert_eq!(said, "warning: this kernel cannot close sockets (CONFIG_INET_DIAG_DESTROY): 1 socket will learn it by the next packet\n");
}

#[test]
fn whoever_loses_a_flow_because_his_group_is_not_known_is_told() {
    let rules = rules("version: 1\noutbound:\n  - {to: 192.0.2.1, port: 443, protocol: tcp, for: {gid: 7}}\n");
    let (from, to) = ("10.0.0.2:50000", "192.0.2.1:443");
    let mut flows = SimulatedFlows::new(underway(vec![tcp(from, to)], vec![connected(from, to)]));
    let (revocation, said) = ended(&rules, &mut flows, None);
    assert_eq!(revocation.unwrap().flows, 1);
    assert!(said.contains("the group of 1 socket could not be found out"), "{said}");
}
