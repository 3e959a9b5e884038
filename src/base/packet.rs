//! A packet in the one spelling that policy tests, `explain`, witnesses, reports and errors share.
//! Printing and parsing are inverses. Nothing here looks at the network.

use std::net::IpAddr;

use crate::base::name::DnsName;
use crate::base::net::Protocol;

/// Which way a packet crosses this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Direction {
    /// Made by a program of this host, or by its kernel.
    #[default]
    Out,
    /// Addressed to this host.
    In,
    /// Passing through, from a container or a virtual machine.
    Forward,
}

/// What connection tracking says of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[allow(missing_docs)]
pub enum State {
    #[default]
    New,
    Established,
    Related,
    Invalid,
}

/// Where a packet goes to or comes from, as far as it was said.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Peer {
    /// Any address: the question leaves it open.
    #[default]
    Any,
    /// One address.
    Address(IpAddr),
    /// Each pin of this name in turn. Only as a destination.
    Name(DnsName),
}

/// Who made a packet, as far as it was said.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Owner {
    /// Not said.
    #[default]
    Unsaid,
    /// A user by name.
    User(String),
    /// A user by number.
    Uid(u32),
}

/// A packet as a person writes it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PacketSpec {
    /// Which way it goes.
    pub direction: Direction,
    /// What it carries.
    pub protocol: Protocol,
    /// Its source: [`Peer::Name`] never stands here.
    pub from: Peer,
    /// Its source port.
    pub from_port: Option<u16>,
    /// Its destination.
    pub to: Peer,
    /// Its destination port.
    pub to_port: Option<u16>,
    /// The user whose socket it leaves.
    pub owner: Owner,
    /// The systemd unit whose control group it leaves.
    pub service: Option<String>,
    /// What connection tracking says of it.
    pub state: State,
}
