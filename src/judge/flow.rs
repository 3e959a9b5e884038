//! What is under way on a host: the flows that connection tracking knows, the sockets of its programs, and which addresses are its
//! own. Values as they were listed; what is to become of them is decided in [`crate::judge::revoke`].

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use crate::base::net::{IpNet, Protocol};
use crate::judge::packet::{Payload, Socket};

/// How the kernel is told which flow or socket is meant. Octets that only the one who listed it can read.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Handle(pub Box<[u8]>);

/// Everything that is under way in one network namespace.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Underway {
    /// What connection tracking knows.
    pub flows: Vec<Flow>,
    /// TCP and UDP sockets.
    pub sockets: Vec<LocalSocket>,
    /// Whose addresses they have.
    pub addresses: LocalAddresses,
}

/// A flow that connection tracking knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flow {
    /// The first packet as it was sent.
    pub original: Tuple,
    /// What its answer looks like when it arrives: the original turned around, but for translated addresses and ports.
    pub reply: Tuple,
    /// `IPS_*` bits.
    pub status: u32,
    /// Whether its first packet is known.
    pub beginning: Beginning,
    /// Whether more is to come.
    pub phase: Phase,
    /// How it is deleted.
    pub handle: Handle,
}

/// The ends of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tuple {
    /// Where it comes from. Of the same family as `destination`.
    pub source: IpAddr,
    /// Where it goes to.
    pub destination: IpAddr,
    /// Protocol, ports and type.
    pub payload: Payload,
}

/// Whether tracking saw how a flow began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Beginning {
    /// It did: the original direction is that of whoever opened the flow.
    Seen,
    /// It met a TCP connection that was there already (`nf_conntrack_tcp_loose`): the original direction is that of whoever spoke
    /// next.
    Missed,
}

/// Whether a flow goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// It does.
    Live,
    /// A TCP connection that both sides have closed, or one has reset. Its entry stays a while and still lets packets pass.
    Over,
}

/// A TCP or UDP socket of this network namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalSocket {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// Its own end; IPv4 in IPv6 is written as IPv4. Unspecified when it takes packets to any address.
    pub local: SocketAddr,
    /// The other end; `None` when there is none: a TCP socket listens then, a UDP socket serves everybody.
    pub remote: Option<SocketAddr>,
    /// Who owns it; `None` when no process does any more. A group that could not be found out is
    /// [`STRANGER`](crate::judge::packet::STRANGER).
    pub owner: Option<Socket>,
    /// The number of its inode, by which processes have it open; 0 when none has.
    pub inode: u32,
    /// How it is destroyed.
    pub handle: Handle,
}

/// What is to be found out about the owners of sockets, besides the user. Each costs a walk through file systems.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum OwnerDetail {
    /// The group.
    Group,
    /// The control groups.
    ControlGroups,
}

/// The addresses that packets reach this host by.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LocalAddresses {
    single: BTreeSet<IpAddr>,
    /// Networks of which every address is the host's: few, but for loopback.
    networks: Vec<IpNet>,
    broadcast: BTreeSet<IpAddr>,
}

impl LocalAddresses {
    /// Adds addresses of the host's own.
    pub fn add(&mut self, net: IpNet) {
        if net.prefix_len() == net.max_prefix_len() {
            self.single.insert(net.addr());
        } else {
            self.networks.push(net);
        }
    }

    /// Adds an address that stands for everybody on a link.
    pub fn add_broadcast(&mut self, address: IpAddr) {
        self.broadcast.insert(address);
    }

    /// Whether it is the host's own.
    pub fn own(&self, address: &IpAddr) -> bool {
        address.is_loopback() || self.single.contains(address) || self.networks.iter().any(|net| net.contains(address))
    }

    /// Whether packets to it end here among others: it is for a group, or for everybody on a link.
    pub fn shared(&self, address: &IpAddr) -> bool {
        address.is_multicast() || *address == IpAddr::V4(Ipv4Addr::BROADCAST) || self.broadcast.contains(address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_the_hosts_own_by_itself_or_by_its_network() {
        let mut addresses = LocalAddresses::default();
        for net in ["203.0.113.10/32", "198.18.0.0/15", "2001:db8::10/128"] {
            addresses.add(net.parse().unwrap());
        }
        addresses.add_broadcast("203.0.113.255".parse().unwrap());
        let own = |text: &str| addresses.own(&text.parse().unwrap());
        assert!(own("203.0.113.10") && own("198.19.255.255") && own("2001:db8::10") && own("127.9.9.9") && own("::1"));
        assert!(!own("203.0.113.11") && !own("203.0.113.255") && !own("2001:db8::11") && !own("198.20.0.0"));
        let shared = |text: &str| addresses.shared(&text.parse().unwrap());
        assert!(shared("203.0.113.255") && shared("255.255.255.255") && shared("224.0.0.251") && shared("ff02::fb"));
        assert!(!shared("203.0.113.10") && !shared("203.0.113.254"));
    }
}
