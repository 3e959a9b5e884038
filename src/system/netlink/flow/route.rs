//! Which addresses are the namespace's own: the routing table `local`, which the kernel itself asks that question. It knows more
//! than the addresses of interfaces: networks that are local as a whole, and broadcast addresses. Pure and total.

use std::net::IpAddr;

use super::super::message::{Fields, Mark, Message, Writer};
use super::super::uapi::NLM_F_DUMP;
use super::uapi::*;
use crate::base::net::{Family, IpNet, from_octets};
use crate::judge::flow::LocalAddresses;

/// Begins the question for the routes of the table `local`. A kernel that is not strict lists every table.
pub fn list(writer: &mut Writer, seq: u32, family: u8) -> Mark {
    let mark = writer.begin_with(RTM_GETROUTE, NLM_F_DUMP, seq, &[]);
    // `struct rtmsg`: family, lengths of destination and source, service, table, protocol, scope, type; flags.
    writer.verbatim(&[family, 0, 0, 0, RT_TABLE_LOCAL, 0, 0, 0]);
    writer.verbatim(&[0; 4]);
    mark
}

/// Takes one route of a list, if it says something about the namespace's own addresses; `None` when it cannot be read.
pub fn take(message: &Message<'_>, addresses: &mut LocalAddresses) -> Option<()> {
    if message.kind != RTM_NEWROUTE {
        return Some(());
    }
    let [family, length, _, _, table, _, _, kind, ..] = *message.payload.get(..RTMSG)? else { return None };
    if table != RT_TABLE_LOCAL || ![RTN_LOCAL, RTN_BROADCAST, RTN_ANYCAST].contains(&kind) {
        return Some(());
    }
    let family = match family {
        AF_INET => Family::V4,
        AF_INET6 => Family::V6,
        _ => return Some(()),
    };
    let attributes = Fields::parse(message.payload.get(RTMSG..)?)?;
    let address: IpAddr = match attributes.octets(RTA_DST) {
        Some(octets) => from_octets(octets).filter(|address| Family::of(address) == family)?,
        // A default route has none.
        None => family.unspecified(),
    };
    match kind {
        RTN_BROADCAST => addresses.add_broadcast(address),
        _ => addresses.add(IpNet::new(address, length).ok()?),
    }
    Some(())
}
