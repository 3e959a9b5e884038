//! Who sent a packet, asked of a real kernel and the real /proc.

mod namespace;

use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use egressguard::base::net::Protocol;
use egressguard::system::attribution::HostOwners;
use egressguard::system::connects;
use egressguard::violation::attribute::{Ends, Owner};
use egressguard::violation::fold::Found;
use egressguard::violation::record::{KnownProcess, Process};
use egressguard::world::Owners;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

/// A loopback where what goes to port 4 is refused as our rules refuse it.
fn refusing() {
    namespace::ip("link set lo up");
    let rules = "table inet t {\nchain o {\ntype filter hook output priority 0\ntcp dport 4 reject with tcp reset\n\
                 meta l4proto udp th dport 4 reject with icmpx admin-prohibited\n}\n}\n";
    namespace::nft(&["-f", "-"], rules).expect("nft loads it");
}

/// A mount namespace of this thread, in which the kernel's tracer is where it belongs. Whether the kernel has one.
fn show_the_tracer() -> bool {
    unshare(CloneFlags::CLONE_NEWNS).expect("a mount namespace");
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).expect("mounts of its own");
    if !connects::is_there() {
        let _ = mount(Some("tracefs"), "/sys/kernel/tracing", Some("tracefs"), MsFlags::empty(), None::<&str>);
    }
    connects::is_there()
}

fn ends(protocol: Protocol, local: SocketAddr, remote: &str) -> Ends {
    Ends { protocol, local, remote: remote.parse().expect("an address") }
}

fn process(found: Found) -> KnownProcess {
    match found {
        Found::Owner(Owner { process: Some(Process::Known(process)), .. }) => process,
        other => panic!("no process: {other:?}"),
    }
}

#[test]
fn the_program_behind_a_udp_socket_is_found_whether_it_is_connected_or_not() {
    if !namespace::kernel_is_there() {
        return;
    }
    namespace::inside(|| {
        refusing();
        let mut owners = HostOwners::open();
        for (local, remote) in [("127.0.0.1:0", "127.0.0.1:4"), ("[::1]:0", "[::1]:4"), ("0.0.0.0:0", "127.0.0.1:4")] {
            let socket = UdpSocket::bind(local).expect("a socket");
            let _ = socket.send_to(b"x", remote);
            let source = SocketAddr::new(remote.parse::<SocketAddr>().unwrap().ip(), socket.local_addr().unwrap().port());
            let found = process(owners.owner(&ends(Protocol::UDP, source, remote)));
            assert_eq!(found.pid, std::process::id(), "{local}");
            assert!(found.executable.contains("attribution") && !found.command.is_empty(), "{found:?}");
            drop(socket);
            assert_eq!(owners.owner(&ends(Protocol::UDP, source, remote)), Found::Gone, "{local}: what is closed is nobody's");
        }
        // Of UDP nothing is missing, whether there is a tracer or not.
        let limits = owners.limits();
        assert!(limits.iter().all(|words| words.contains("tracepoint")), "{limits:?}");
    });
}

#[test]
fn the_program_behind_a_connection_that_was_reset_is_found_although_the_socket_is_gone() {
    if !namespace::kernel_is_there() {
        return;
    }
    namespace::inside(|| {
        if !show_the_tracer() {
            println!("skipped: this kernel has no tracer");
            return;
        }
        refusing();
        let mut owners = HostOwners::open();
        assert!(!owners.descriptors().is_empty(), "the tracer can be read");
        for (protocol, remote) in [(libc::AF_INET, "127.0.0.1:4"), (libc::AF_INET6, "[::1]:4")] {
            // A port that is known, so that it can be asked for.
            let local: SocketAddr = if protocol == libc::AF_INET { "127.0.0.1:40004" } else { "[::1]:40004" }.parse().unwrap();
            let refused = connect_from(local, remote.parse().unwrap());
            assert_eq!(refused, Some(libc::ECONNREFUSED));
            let found = process(owners.owner(&ends(Protocol::TCP, local, remote)));
            assert_eq!(found.pid, std::process::id());
            let other = SocketAddr::new(local.ip(), 40_005);
            assert_eq!(owners.owner(&ends(Protocol::TCP, other, remote)), Found::Gone, "another port is another connection");
        }
    });
}

#[test]
fn a_connection_of_another_network_namespace_with_the_same_ends_is_not_ours() {
    if !namespace::kernel_is_there() {
        return;
    }
    namespace::inside(|| {
        if !show_the_tracer() {
            println!("skipped: this kernel has no tracer");
            return;
        }
        refusing();
        let mut owners = HostOwners::open();
        let (local, remote): (SocketAddr, SocketAddr) = ("127.0.0.1:40006".parse().unwrap(), "127.0.0.1:4".parse().unwrap());
        let script = "ip link set lo up; exec 3<>/dev/tcp/127.0.0.1/4";
        // Not the same port, which a shell cannot choose; that nothing is remembered of it is what counts.
        let status = std::process::Command::new("unshare").args(["-n", "bash", "-c", script]).status().expect("unshare runs");
        assert!(!status.success());
        owners.gather();
        assert_eq!(owners.owner(&ends(Protocol::TCP, local, &remote.to_string())), Found::Gone);
    });
}

/// Connects from a port that is chosen; the error.
fn connect_from(local: SocketAddr, remote: SocketAddr) -> Option<i32> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, setsockopt, socket, sockopt};
    use std::os::fd::AsRawFd;
    let family = if local.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let one = socket(family, SockType::Stream, SockFlag::empty(), None).expect("a socket");
    setsockopt(&one, sockopt::ReuseAddr, &true).expect("an option");
    bind(one.as_raw_fd(), &SockaddrStorage::from(local)).expect("the port is free");
    connect(one.as_raw_fd(), &SockaddrStorage::from(remote)).err().map(|errno| errno as i32)
}

#[test]
fn a_listening_and_a_connected_socket_lead_to_their_program() {
    if !namespace::kernel_is_there() {
        return;
    }
    namespace::inside(|| {
        namespace::ip("link set lo up");
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a socket");
        let there = listener.local_addr().unwrap();
        let stream = TcpStream::connect_timeout(&there, Duration::from_secs(1)).expect("a connection");
        let mut owners = HostOwners::open();
        let asked = ends(Protocol::TCP, stream.local_addr().unwrap(), &there.to_string());
        assert_eq!(process(owners.owner(&asked)).pid, std::process::id());
    });
}
