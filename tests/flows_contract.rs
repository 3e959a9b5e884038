//! One contract for everything that implements `world::Flows`, run on flows in memory and on the real kernel, each case in a network
//! namespace of its own; and what only a kernel can show.

#[path = "support/netns.rs"]
mod netns;

use std::collections::BTreeSet;
use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;

use egressguard::base::net::Protocol;
use egressguard::judge::flow::{Beginning, Flow, Handle, LocalSocket, OwnerDetail, Phase, Tuple, Underway};
use egressguard::judge::packet::{Payload, STRANGER, Socket};
use egressguard::simulated::flows::SimulatedFlows;
use egressguard::system::netlink::flow::KernelFlows;
use egressguard::world::{Ended, Flows};

/// The two worlds: they differ in how a connection comes to be.
enum World {
    Simulated { flows: SimulatedFlows, made: u64 },
    Real { flows: KernelFlows, held: Vec<TcpStream> },
}

/// Each law once for each world.
macro_rules! contract {
    ($($law:ident)*) => {
        mod simulated {
            $(#[test] fn $law() { super::$law(&mut super::World::simulated()); })*
        }
        mod real {
            $(#[test] fn $law() { super::netns::in_fresh_netns(|| super::$law(&mut super::World::real())); })*
        }
    };
}

contract! {
    what_is_open_is_listed
    a_deleted_flow_is_gone_and_deleting_it_again_finds_nothing
    a_closed_socket_is_gone_and_closing_it_again_finds_nothing
    a_flow_with_the_same_ends_that_came_later_is_spared
    hundreds_end_at_once_though_half_are_gone_already
    nothing_at_all_is_ended_too
}

impl World {
    fn simulated() -> World {
        World::Simulated { flows: SimulatedFlows::new(Underway::default()), made: 0 }
    }

    fn real() -> World {
        prepare();
        World::Real { flows: KernelFlows::new(), held: Vec::new() }
    }

    fn flows(&mut self) -> &mut dyn Flows {
        match self {
            World::Simulated { flows, .. } => flows,
            World::Real { flows, .. } => flows,
        }
    }

    /// Opens a connection over loopback that is held open; its ends, the opener's first.
    fn connect(&mut self) -> (SocketAddr, SocketAddr) {
        match self {
            World::Simulated { flows, made } => {
                *made += 1;
                let near = SocketAddr::from(([127, 0, 0, 1], 20_000 + *made as u16));
                let far = SocketAddr::from(([127, 0, 0, 1], 10_000 + *made as u16));
                imagine(flows, *made, near, far);
                (near, far)
            }
            World::Real { held, .. } => {
                let listener = TcpListener::bind("127.0.0.1:0").unwrap();
                let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
                let far = listener.accept().unwrap().0;
                let ends = (near.local_addr().unwrap(), far.local_addr().unwrap());
                held.extend([near, far]);
                ends
            }
        }
    }

    /// Makes tracking meet the connection once more.
    fn speak(&mut self, near: SocketAddr, far: SocketAddr) {
        match self {
            World::Simulated { flows, made } => {
                *made += 1;
                imagine(flows, *made, near, far);
            }
            World::Real { held, .. } => {
                let stream = held.iter_mut().find(|stream| stream.local_addr().unwrap() == near).unwrap();
                stream.write_all(b"x").unwrap();
            }
        }
    }

    fn find(&mut self, near: SocketAddr) -> Vec<Flow> {
        let flows = self.flows().tracked().unwrap();
        flows.into_iter().filter(|flow| flow.original.payload.source_port() == Some(near.port())).collect()
    }

    fn socket(&mut self, local: SocketAddr) -> Option<LocalSocket> {
        let sockets = self.flows().sockets(&BTreeSet::new()).unwrap();
        sockets.into_iter().find(|socket| socket.local == local && socket.remote.is_some())
    }
}

/// A connection in memory, under a number of its own.
fn imagine(flows: &mut SimulatedFlows, number: u64, near: SocketAddr, far: SocketAddr) {
    let payload = |from: SocketAddr, to: SocketAddr| Payload::Tcp { source: from.port(), destination: to.port(), flags: 2 };
    let tuple = |from: SocketAddr, to: SocketAddr| Tuple { source: from.ip(), destination: to.ip(), payload: payload(from, to) };
    let handle = |what: &str| Handle(format!("{what} {number}").into_bytes().into());
    let flow = Flow {
        original: tuple(near, far),
        reply: tuple(far, near),
        status: 14,
        beginning: Beginning::Seen,
        phase: Phase::Live,
        handle: handle("flow"),
    };
    flows.underway.flows.push(flow);
    for (local, remote) in [(near, far), (far, near)] {
        let owner =
            Socket { user: nix::unistd::geteuid().as_raw(), user_name: None, group: STRANGER, unit: None, cgroups: Default::default() };
        let socket = LocalSocket {
            protocol: Protocol::TCP,
            local,
            remote: Some(remote),
            owner: Some(owner),
            inode: 1,
            handle: handle(&local.to_string()),
        };
        if !flows.underway.sockets.iter().any(|other| other.local == local) {
            flows.underway.sockets.push(socket);
        }
    }
}

/// Has connections tracked over loopback.
fn prepare() {
    netns::assert_own_netns();
    ip("link set lo up");
    nft("add table inet t; add chain inet t c { type filter hook output priority 0; }; add rule inet t c ct state new");
}

fn ip(line: &str) {
    assert!(Command::new("ip").args(line.split(' ')).status().unwrap().success(), "ip {line}");
}

fn nft(script: &str) {
    netns::assert_own_netns();
    assert!(Command::new("nft").arg(script).status().unwrap().success(), "nft {script}");
}

fn ended(number: usize) -> Ended {
    Ended { ended: number, refused: Default::default() }
}

fn what_is_open_is_listed(world: &mut World) {
    assert!(world.flows().tracked().unwrap().is_empty());
    let (near, far) = world.connect();
    let [flow] = &world.find(near)[..] else { panic!("one flow") };
    assert_eq!((flow.original.source, flow.original.destination), (near.ip(), far.ip()));
    assert_eq!(flow.original.payload.destination_port(), Some(far.port()));
    assert_eq!((flow.reply.source, flow.reply.payload.source_port()), (far.ip(), Some(far.port())));
    assert_eq!((flow.beginning, flow.phase), (Beginning::Seen, Phase::Live));
    for (local, remote) in [(near, far), (far, near)] {
        let socket = world.socket(local).unwrap();
        assert_eq!((socket.remote, socket.protocol), (Some(remote), Protocol::TCP));
        assert_eq!(socket.owner.unwrap().user, nix::unistd::geteuid().as_raw());
    }
}

fn a_deleted_flow_is_gone_and_deleting_it_again_finds_nothing(world: &mut World) {
    let (near, _) = world.connect();
    let (other, _) = world.connect();
    let flow = world.find(near).remove(0);
    assert_eq!(world.flows().delete(&[&flow]), Ok(ended(1)));
    assert!(world.find(near).is_empty());
    assert_eq!(world.find(other).len(), 1);
    assert_eq!(world.flows().delete(&[&flow]), Ok(ended(0)));
}

fn a_closed_socket_is_gone_and_closing_it_again_finds_nothing(world: &mut World) {
    let (near, far) = world.connect();
    let socket = world.socket(far).unwrap();
    assert_eq!(world.flows().destroy(&[&socket]), Ok(ended(1)));
    assert_eq!(world.socket(far), None);
    assert_eq!(world.flows().destroy(&[&socket]), Ok(ended(0)));
    if let World::Real { held, .. } = world {
        let read = |held: &mut Vec<TcpStream>, index: usize| held[index].read(&mut [0; 1]).unwrap_err().kind();
        assert_eq!(read(held, 1), ErrorKind::ConnectionAborted);
        assert_eq!(read(held, 0), ErrorKind::ConnectionReset, "the peer of {near} is told");
    }
}

fn a_flow_with_the_same_ends_that_came_later_is_spared(world: &mut World) {
    let (near, far) = world.connect();
    let first = world.find(near).remove(0);
    world.flows().delete(&[&first]).unwrap();
    // The kernel makes an id of the ends and of where the entry lies in memory; this one takes the place.
    world.connect();
    world.speak(near, far);
    let second = world.find(near).remove(0);
    assert_ne!(first.handle, second.handle);
    assert_eq!(world.flows().delete(&[&first]), Ok(ended(0)));
    assert_eq!(world.find(near).len(), 1);
    assert_eq!(world.flows().delete(&[&second]), Ok(ended(1)));
}

fn hundreds_end_at_once_though_half_are_gone_already(world: &mut World) {
    let near: BTreeSet<SocketAddr> = (0..400).map(|_| world.connect().0).collect();
    let flows = world.flows().tracked().unwrap();
    let all: Vec<&Flow> = flows.iter().collect();
    let half: Vec<&Flow> = flows.iter().step_by(2).collect();
    assert_eq!((all.len(), world.flows().delete(&half)), (400, Ok(ended(200))));
    assert_eq!(world.flows().delete(&all), Ok(ended(200)));
    assert!(world.flows().tracked().unwrap().is_empty());
    let sockets = world.flows().sockets(&BTreeSet::new()).unwrap();
    // Only the openers', for on loopback the end of one is the end of the other too.
    let all: Vec<&LocalSocket> = sockets.iter().filter(|socket| near.contains(&socket.local) && socket.remote.is_some()).collect();
    let half: Vec<&LocalSocket> = all.iter().step_by(2).copied().collect();
    assert_eq!((all.len(), world.flows().destroy(&half)), (400, Ok(ended(200))));
    assert_eq!(world.flows().destroy(&all), Ok(ended(200)));
}

fn nothing_at_all_is_ended_too(world: &mut World) {
    assert_eq!(world.flows().delete(&[]), Ok(ended(0)));
    assert_eq!(world.flows().destroy(&[]), Ok(ended(0)));
}

/// Runs a case that only a kernel can show.
fn on_the_kernel(case: impl FnOnce(&mut KernelFlows) + Send) {
    netns::in_fresh_netns(|| {
        prepare();
        case(&mut KernelFlows::new());
    });
}

fn sockets_of(flows: &mut KernelFlows, local: SocketAddr) -> Vec<LocalSocket> {
    flows.sockets(&BTreeSet::new()).unwrap().into_iter().filter(|socket| socket.local == local).collect()
}

#[test]
fn datagram_sockets_of_both_families_are_closed_by_what_was_listed_and_those_without_a_peer_are_told_apart() {
    on_the_kernel(|flows| {
        for (bind, peer) in [("127.0.0.1:0", "127.0.0.1:9"), ("[::1]:0", "[::1]:9"), ("[::]:0", "[::ffff:127.0.0.1]:9")] {
            let socket = UdpSocket::bind(bind).unwrap();
            socket.connect(peer).unwrap();
            let local = socket.local_addr().unwrap();
            let local = SocketAddr::new(local.ip().to_canonical(), local.port());
            let listed = sockets_of(flows, local);
            let remote: SocketAddr = peer.parse().unwrap();
            assert_eq!(listed.len(), 1, "{bind}");
            assert_eq!(listed[0].remote, Some(SocketAddr::new(remote.ip().to_canonical(), 9)));
            assert_eq!(flows.destroy(&[&listed[0]]), Ok(ended(1)));
            assert_eq!(socket.recv(&mut [0; 1]).unwrap_err().kind(), ErrorKind::ConnectionAborted, "{bind}");
        }
        let serving = UdpSocket::bind("0.0.0.0:0").unwrap();
        let listed = sockets_of(flows, serving.local_addr().unwrap());
        assert_eq!((listed.len(), listed[0].remote), (1, None));
    });
}

#[test]
fn connections_of_ipv6_and_of_ipv4_in_ipv6_are_listed_and_closed() {
    on_the_kernel(|flows| {
        for address in ["[::1]:0", "[::ffff:127.0.0.1]:0"] {
            let listener = TcpListener::bind(address).unwrap();
            let mut near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let local = near.local_addr().unwrap();
            let listed = sockets_of(flows, SocketAddr::new(local.ip().to_canonical(), local.port()));
            assert_eq!(listed.len(), 1);
            assert_eq!(flows.destroy(&[&listed[0]]), Ok(ended(1)));
            assert_eq!(near.read(&mut [0; 1]).unwrap_err().kind(), ErrorKind::ConnectionAborted);
        }
    });
}

#[test]
fn tracking_that_meets_a_connection_half_way_says_so() {
    netns::in_fresh_netns(|| {
        ip("link set lo up");
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let mut far = listener.accept().unwrap().0;
        let mut flows = KernelFlows::new();
        assert!(flows.tracked().unwrap().is_empty(), "nothing is tracked before a rule asks for it");
        nft("add table inet t; add chain inet t c { type filter hook output priority 0; }; add rule inet t c ct state new");
        // The side that was asked speaks first, and tracking takes it for the opener.
        far.write_all(b"x").unwrap();
        near.read_exact(&mut [0; 1]).unwrap();
        let found = flows.tracked().unwrap();
        assert_eq!((found.len(), found[0].beginning), (1, Beginning::Missed));
        assert_eq!(found[0].original.payload.source_port(), Some(far.local_addr().unwrap().port()));
    });
}

#[test]
fn a_connection_that_both_have_closed_is_over() {
    on_the_kernel(|flows| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let far = listener.accept().unwrap().0;
        assert_eq!(flows.tracked().unwrap()[0].phase, Phase::Live);
        drop((near, far));
        assert_eq!(flows.tracked().unwrap()[0].phase, Phase::Over);
        let over = flows.tracked().unwrap();
        assert_eq!(flows.delete(&[&over[0]]), Ok(ended(1)));
    });
}

#[test]
fn an_entry_of_another_zone_is_deleted_in_its_zone() {
    netns::in_fresh_netns(|| {
        ip("link set lo up");
        nft("add table inet t; add chain inet t c { type filter hook output priority -300; }; add rule inet t c ct zone set 7; \
             add chain inet t p { type filter hook prerouting priority -300; }; add rule inet t p ct zone set 7; \
             add chain inet t i { type filter hook input priority 0; }; add rule inet t i ct state new");
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.send_to(b"x", "127.0.0.1:9").unwrap();
        let mut flows = KernelFlows::new();
        let found = flows.tracked().unwrap();
        assert!(!found.is_empty());
        let all: Vec<&Flow> = found.iter().collect();
        assert_eq!(flows.delete(&all), Ok(ended(all.len())));
        assert!(flows.tracked().unwrap().is_empty());
    });
}

#[test]
fn echo_requests_are_flows_with_a_type() {
    on_the_kernel(|flows| {
        for (program, address, kind) in [("-4", "127.0.0.1", Payload::Icmp(8)), ("-6", "::1", Payload::Icmpv6(128))] {
            if !Command::new("ping").args([program, "-c", "1", "-W", "1", address]).output().is_ok_and(|ran| ran.status.success()) {
                println!("skipped: ping does not run");
                return;
            }
            let address: IpAddr = address.parse().unwrap();
            let found = flows.tracked().unwrap();
            assert!(found.iter().any(|flow| flow.original.payload == kind && flow.original.destination == address), "{found:?}");
        }
    });
}

#[test]
fn the_hosts_addresses_are_those_that_the_routing_table_calls_local() {
    netns::in_fresh_netns(|| {
        let mut flows = KernelFlows::new();
        assert!(!flows.addresses().unwrap().own(&"192.0.2.1".parse().unwrap()), "a namespace without any interface has none");
        ip("link set lo up");
        ip("link add one type veth peer name two");
        for line in ["addr add 192.0.2.1/24 dev one", "addr add 2001:db8::1/64 dev one nodad", "link set one up", "link set two up"] {
            ip(line);
        }
        ip("route add local 198.18.0.0/15 dev lo");
        ip("route add local default dev lo table 100");
        let addresses = flows.addresses().unwrap();
        let own = |text: &str| addresses.own(&text.parse().unwrap());
        assert!(own("192.0.2.1") && own("2001:db8::1") && own("198.19.0.1") && own("127.0.0.1") && own("::1"));
        assert!(!own("192.0.2.2") && !own("2001:db8::2") && !own("203.0.113.1"), "another table is not the host's own");
        assert!(addresses.shared(&"192.0.2.255".parse().unwrap()) && !addresses.own(&"192.0.2.255".parse().unwrap()));
    });
}

#[test]
fn the_group_and_the_control_groups_of_an_owner_are_found_when_they_are_asked_for() {
    on_the_kernel(|flows| {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let local = socket.local_addr().unwrap();
        let mut owner = |details: &[OwnerDetail]| {
            let sockets = flows.sockets(&details.iter().copied().collect()).unwrap();
            sockets.into_iter().find(|socket| socket.local == local).unwrap().owner.unwrap()
        };
        assert_eq!((owner(&[]).group, owner(&[]).cgroups.len()), (STRANGER, 0));
        assert_eq!(owner(&[OwnerDetail::Group]).group, nix::unistd::getegid().as_raw());
        let lines = fs::read_to_string("/proc/self/cgroup").unwrap();
        let depth =
            lines.lines().find_map(|line| line.strip_prefix("0::")).map(|path| path.split('/').filter(|part| !part.is_empty()).count());
        let Some(depth) = depth.filter(|depth| *depth > 0) else { return println!("skipped: the test is in the root control group") };
        assert_eq!(owner(&[OwnerDetail::ControlGroups]).cgroups.len(), depth);
    });
}
