//! A machine behind the host of a [`Pair`](super::pair::Pair): a container, whose packets the host forwards.

use std::fs::{File, write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::time::Duration;

use nix::sched::{CloneFlags, setns, unshare};

use super::pair::{HOST, Pair, WORLD};
use super::{assert_foreign, ip};

/// The machine's addresses, IPv4 and IPv6.
pub const BEHIND: [&str; 2] = ["10.98.0.2", "fd98::2"];
/// The host as the machine sees it.
const GATEWAY: [&str; 2] = ["10.98.0.1", "fd98::1"];

/// The machine's namespace.
pub struct Behind {
    host: File,
    machine: File,
}

impl Behind {
    /// Makes it on the thread that made the pair, and leaves the thread in the host.
    pub fn new(pair: &Pair) -> Behind {
        assert_foreign();
        let here = || File::open("/proc/thread-self/ns/net").expect("the thread's network namespace");
        let host = here();
        unshare(CloneFlags::CLONE_NEWNET).expect("a third network namespace");
        let behind = Behind { host, machine: here() };
        pair.prepare();
        let to = format!("/proc/{}/fd/{}", std::process::id(), behind.host.as_raw_fd());
        ip(&format!("link add inner type veth peer name inner netns {to}"));
        up(&BEHIND);
        ip(&format!("route add default via {}", GATEWAY[0]));
        ip(&format!("-6 route add default via {}", GATEWAY[1]));
        setns(&behind.host, CloneFlags::CLONE_NEWNET).expect("back to the host");
        up(&GATEWAY);
        for option in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
            write(format!("/proc/sys/net/{option}"), "1").expect(option);
        }
        pair.in_world(|| {
            ip(&format!("route add {} via {} dev cable table local", BEHIND[0], HOST[0]));
            ip(&format!("-6 route add {} via {} dev cable table local", BEHIND[1], HOST[1]));
        });
        for world in WORLD {
            behind.inside(|| wait_for(world));
        }
        behind
    }

    /// Runs `body` on the machine.
    pub fn inside<T>(&self, body: impl FnOnce() -> T) -> T {
        setns(&self.machine, CloneFlags::CLONE_NEWNET).expect("the machine's namespace");
        assert_foreign();
        let result = body();
        setns(&self.host, CloneFlags::CLONE_NEWNET).expect("the host's namespace");
        result
    }
}

/// Waits until packets go both ways: the kernel takes a moment to notice that a cable is plugged in at both ends.
fn wait_for(address: &str) {
    let closed = SocketAddr::new(address.parse().expect("an address"), 9);
    for _ in 0..100 {
        let tried = TcpStream::connect_timeout(&closed, Duration::from_millis(200));
        if tried.is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused) {
            return;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    panic!("no way to {address}");
}

fn up(addresses: &[&str; 2]) {
    ip(&format!("addr add {}/24 dev inner", addresses[0]));
    ip(&format!("addr add {}/64 dev inner nodad", addresses[1]));
    ip("link set inner up");
}
