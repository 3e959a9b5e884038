//! Two namespaces with a cable between them: a host, and a world that has every address there is.

use std::fs::{File, write};
use std::os::fd::AsRawFd;

use nix::sched::{CloneFlags, setns, unshare};

use super::{assert_foreign, ip};

/// The host's addresses, IPv4 and IPv6.
pub const HOST: [&str; 2] = ["10.99.0.1", "fd99::1"];
/// The world's addresses on the cable: the host's way to everybody.
pub const WORLD: [&str; 2] = ["10.99.0.2", "fd99::2"];

/// The two namespaces. The thread that made them stays in the host.
pub struct Pair {
    host: File,
    world: File,
}

impl Pair {
    /// Makes them in a thread that is inside a namespace of its own already: see [`super::inside`].
    pub fn new() -> Pair {
        assert_foreign();
        let here = || File::open("/proc/thread-self/ns/net").expect("the thread's network namespace");
        let host = here();
        unshare(CloneFlags::CLONE_NEWNET).expect("a second network namespace");
        let pair = Pair { host, world: here() };
        pair.prepare();
        for (option, value) in [("ipv4/ip_nonlocal_bind", "1"), ("ipv6/ip_nonlocal_bind", "1")] {
            write(format!("/proc/sys/net/{option}"), value).expect(option);
        }
        let to = format!("/proc/{}/fd/{}", std::process::id(), pair.host.as_raw_fd());
        ip(&format!("link add cable type veth peer name cable netns {to}"));
        pair.up(&WORLD);
        // Every address is the world's own, but for the host's. All in the table `local`: the kernel lets a socket answer from an
        // address only when that table holds it.
        for (family, host) in ["-4", "-6"].into_iter().zip(HOST) {
            ip(&format!("{family} route add {host} dev cable table local"));
            ip(&format!("{family} route add local default dev lo table local"));
        }
        setns(&pair.host, CloneFlags::CLONE_NEWNET).expect("back to the host");
        pair.prepare();
        pair.up(&HOST);
        ip(&format!("route add default via {}", WORLD[0]));
        ip(&format!("-6 route add default via {}", WORLD[1]));
        pair
    }

    /// Makes this thread's namespace one in which nothing is slow to come.
    pub fn prepare(&self) {
        // Addresses are usable at once, and no error message is held back.
        let options = [
            ("ipv6/conf/all/accept_dad", "0"),
            ("ipv6/conf/default/accept_dad", "0"),
            ("ipv4/conf/all/rp_filter", "0"),
            ("ipv4/conf/default/rp_filter", "0"),
            ("ipv4/icmp_ratemask", "0"),
            ("ipv6/icmp/ratemask", ""),
        ];
        for (option, value) in options {
            write(format!("/proc/sys/net/{option}"), format!("{value}\n")).unwrap_or_else(|why| panic!("{option}: {why}"));
        }
        ip("link set lo up");
    }

    fn up(&self, addresses: &[&str; 2]) {
        ip(&format!("addr add {}/24 dev cable", addresses[0]));
        ip(&format!("addr add {}/64 dev cable nodad", addresses[1]));
        ip("link set cable up");
    }

    /// Runs `body` on the world's side.
    pub fn in_world<T>(&self, body: impl FnOnce() -> T) -> T {
        setns(&self.world, CloneFlags::CLONE_NEWNET).expect("the world's namespace");
        assert_foreign();
        let result = body();
        setns(&self.host, CloneFlags::CLONE_NEWNET).expect("the host's namespace");
        result
    }
}
