//! Sockets as values, and the messages that list and destroy them (sock_diag(7)). Pure and total: any octets are read or refused,
//! none make it panic.
//!
//! A socket is destroyed by its id exactly as it was listed. The cookie in it tells the socket from one that got the same ends
//! meanwhile. A *look-up* of one UDP socket wants its ends swapped (`udp_dump_one` asks for who would receive): [`find`] does.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use super::super::message::{Fields, Mark, Message, Writer};
use super::super::uapi::NLM_F_DUMP;
use super::uapi::*;
use crate::base::net::{Protocol, from_octets, octets};
use crate::judge::flow::{Handle, LocalSocket};
use crate::judge::packet::{STRANGER, Socket};

/// The states of sockets that are listed: not those that wait for late packets after their end (TIME_WAIT), nor those of peers that
/// have not finished knocking (SYN_RECV), which have no owner yet. A UDP socket is established when it has a peer, and closed when
/// it has none.
const TCP_STATES: &[u8] =
    &[TCP_ESTABLISHED, TCP_SYN_SENT, TCP_FIN_WAIT1, TCP_FIN_WAIT2, TCP_CLOSE_WAIT, TCP_LAST_ACK, TCP_LISTEN, TCP_CLOSING];
const UDP_STATES: &[u8] = &[TCP_ESTABLISHED, TCP_CLOSE];

/// A socket as it was listed, with what its owner can be found by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// The socket.
    pub socket: LocalSocket,
    /// The number of its inode; 0 when no process has it open.
    pub inode: u32,
    /// The id of its control group.
    pub cgroup: Option<u64>,
}

/// Begins the question for every socket of a family and protocol.
pub fn list(writer: &mut Writer, seq: u32, family: u8, protocol: Protocol) -> Mark {
    let states = if protocol == Protocol::TCP { TCP_STATES } else { UDP_STATES };
    let states = states.iter().fold(0u32, |bits, state| bits | 1 << state);
    let mark = writer.begin_with(SOCK_DIAG_BY_FAMILY, NLM_F_DUMP, seq, &[]);
    request(writer, family, protocol.0, states, &[0; SOCKID]);
    mark
}

/// Begins the question for the one socket with these ends, its own first. An unconnected UDP socket is found too: it is the one
/// that an answer would reach.
pub fn find(writer: &mut Writer, seq: u32, protocol: Protocol, local: SocketAddr, remote: SocketAddr) -> Mark {
    let mark = writer.begin_with(SOCK_DIAG_BY_FAMILY, 0, seq, &[]);
    let (first, second) = if protocol == Protocol::UDP { (remote, local) } else { (local, remote) };
    let mut id = [0; SOCKID];
    id[0..2].copy_from_slice(&first.port().to_be_bytes());
    id[2..4].copy_from_slice(&second.port().to_be_bytes());
    for (at, end) in [(4, first), (20, second)] {
        let address = octets(&end.ip());
        id[at..at + address.len()].copy_from_slice(&address);
    }
    // INET_DIAG_NOCOOKIE: whichever has these ends.
    id[40..48].fill(0xff);
    let family = if local.is_ipv4() { AF_INET } else { AF_INET6 };
    request(writer, family, protocol.0, u32::MAX, &id);
    mark
}

/// Writes the request to destroy a socket. It is answered only when it fails.
pub fn destroy(writer: &mut Writer, seq: u32, socket: &LocalSocket) {
    let [family, id @ ..] = &*socket.handle.0 else { return };
    let message = writer.begin_with(SOCK_DESTROY, 0, seq, &[]);
    request(writer, *family, socket.protocol.0, u32::MAX, id);
    writer.end(message);
}

/// `struct inet_diag_req_v2`.
fn request(writer: &mut Writer, family: u8, protocol: u8, states: u32, id: &[u8]) {
    writer.verbatim(&[family, protocol, 0, 0]);
    writer.verbatim(&states.to_ne_bytes());
    writer.verbatim(id);
}

/// One socket of a list of this protocol; nothing when the message is something else.
pub fn socket(message: &Message<'_>, protocol: Protocol) -> Option<Option<Listed>> {
    if message.kind != SOCK_DIAG_BY_FAMILY {
        return Some(None);
    }
    // `struct inet_diag_msg`: family, state, timer, retransmissions; the id; expiry, two queues, user, inode.
    let fixed = message.payload.get(..DIAG_MSG)?;
    let family = *fixed.first()?;
    let id = fixed.get(4..4 + SOCKID)?;
    let (local, remote) = (end(family, id, 0, 4)?, end(family, id, 2, 20)?);
    let number = |at: usize| fixed.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes);
    let (user, inode) = (number(64)?, number(68)?);
    let attributes = Fields::parse(message.payload.get(DIAG_MSG..)?)?;
    let cgroup = attributes.octets(INET_DIAG_CGROUP_ID).and_then(|octets| octets.try_into().ok()).map(u64::from_ne_bytes);
    let owner = Socket { user, user_name: None, group: STRANGER, unit: None, cgroups: BTreeMap::new() };
    let socket = LocalSocket {
        protocol,
        local,
        remote: Some(remote).filter(|remote| remote.port() != 0 || !remote.ip().is_unspecified()),
        owner: (inode != 0).then_some(owner),
        inode,
        handle: Handle([&[family][..], id].concat().into()),
    };
    Some(Some(Listed { socket, inode, cgroup }))
}

/// One end in `struct inet_diag_sockid`: ports at 0 and 2, addresses of 16 octets at 4 and 20.
fn end(family: u8, id: &[u8], port: usize, address: usize) -> Option<SocketAddr> {
    let length = match family {
        AF_INET => 4,
        AF_INET6 => 16,
        _ => return None,
    };
    let ip = from_octets(id.get(address..address + length)?)?;
    let port = u16::from_be_bytes(id.get(port..port + 2)?.try_into().ok()?);
    Some(SocketAddr::new(canonical(ip), port))
}

/// IPv4 in IPv6 is IPv4 on the wire. `::` stays what it is.
fn canonical(address: IpAddr) -> IpAddr {
    address.to_canonical()
}
