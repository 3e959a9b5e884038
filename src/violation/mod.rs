//! Packets that no rule allowed: how they are told apart, and the books that keep them.
//!
//! A violation is a packet that no rule allowed; in `mode: observe`, one that no rule would have allowed. Nothing here looks outside:
//! the kernel's counts and the files come in as values.

pub mod alert;
pub mod attribute;
pub mod book;
pub mod decode;
pub mod denied;
pub mod fold;
pub mod ledger;
pub mod line;
pub mod record;
pub mod report;
pub mod suggest;

use std::net::IpAddr;

use crate::base::net::Protocol;
use crate::base::packet::Direction;

/// Who and where: what violations are counted by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tuple {
    /// Which way it went.
    pub direction: Direction,
    /// Who sent it, as far as it is told apart.
    pub who: Who,
    /// Where to; `None` for what came in.
    pub destination: Option<IpAddr>,
    /// What it carried.
    pub protocol: Protocol,
    /// The destination port; `None` for protocols without ports.
    pub port: Option<u16>,
}

/// Who sent a packet, as far as violations are told apart by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Who {
    /// A program of this user on this host.
    User(u32),
    /// Whoever has this address: a container or virtual machine behind this host, or this host's kernel, whose own answers belong to no
    /// user.
    Source(IpAddr),
    /// Not told apart: what comes in is counted by the port alone.
    Anybody,
}
