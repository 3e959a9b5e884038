//! Connection tracking's entries as values, and the messages that list and delete them. Pure and total: any octets are read or
//! refused, none make it panic.
//!
//! An entry is deleted by its original tuple, its zone and its id, all exactly as they were listed. Without the zone the kernel looks
//! in zone 0 only. The id tells the entry from a later one with the same tuple, unless that lies where it lay in memory
//! (`nf_ct_get_id`); a flow that was allowed and is forgotten nevertheless is judged as new, and allowed again.

use super::super::message::{Fields, Mark, Message, Writer};
use super::super::uapi::{NLA_F_NESTED, NLM_F_DUMP};
use super::uapi::*;
use crate::base::net::{Protocol, from_octets};
use crate::judge::flow::{Beginning, Flow, Handle, Phase, Tuple};
use crate::judge::packet::{Payload, TCP_SYN};

/// Begins the question for every entry of both families.
pub fn list(writer: &mut Writer, seq: u32) -> Mark {
    writer.begin_raw(NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_GET, NLM_F_DUMP, seq, 0, 0)
}

/// Writes the request to delete an entry. It is answered only when it fails.
pub fn delete(writer: &mut Writer, seq: u32, flow: &Flow) {
    let (family, attributes) = flow.handle.0.split_first().unwrap_or((&0, &[]));
    let message = writer.begin_raw(NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_DELETE, 0, seq, *family, 0);
    writer.verbatim(attributes);
    writer.end(message);
}

/// One entry of a list; nothing when the message is something else.
pub fn flow(message: &Message<'_>) -> Option<Option<Flow>> {
    let family = *message.payload.first()?;
    if message.kind != NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_NEW || ![AF_INET, AF_INET6].contains(&family) {
        return Some(None);
    }
    let fields = message.fields()?;
    let original = tuple(&fields.nest(CTA_TUPLE_ORIG)?, family)?;
    let reply = tuple(&fields.nest(CTA_TUPLE_REPLY)?, family)?;
    let (beginning, phase) = match original.payload {
        Payload::Tcp { .. } => tcp(&fields),
        _ => (Beginning::Seen, Phase::Live),
    };
    let handle = handle(family, &fields)?;
    Some(Some(Flow { original, reply, status: fields.u32(CTA_STATUS)?, beginning, phase, handle }))
}

fn handle(family: u8, fields: &Fields<'_>) -> Option<Handle> {
    let mut writer = Writer::default();
    writer.octets(CTA_TUPLE_ORIG | NLA_F_NESTED, fields.octets(CTA_TUPLE_ORIG)?);
    if let Some(zone) = fields.octets(CTA_ZONE) {
        writer.octets(CTA_ZONE, zone);
    }
    writer.octets(CTA_ID, fields.octets(CTA_ID)?);
    Some(Handle([&[family][..], &writer.into_octets()].concat().into()))
}

fn tuple(fields: &Fields<'_>, family: u8) -> Option<Tuple> {
    let ip = fields.nest(CTA_TUPLE_IP)?;
    let (source, destination) = if family == AF_INET { (CTA_IP_V4_SRC, CTA_IP_V4_DST) } else { (CTA_IP_V6_SRC, CTA_IP_V6_DST) };
    let address = |kind| ip.octets(kind).filter(|octets| octets.len() == if family == AF_INET { 4 } else { 16 }).and_then(from_octets);
    let proto = fields.nest(CTA_TUPLE_PROTO)?;
    let port = |kind| proto.u16(kind);
    let payload = match Protocol(proto.u8(CTA_PROTO_NUM)?) {
        Protocol::TCP => Payload::Tcp { source: port(CTA_PROTO_SRC_PORT)?, destination: port(CTA_PROTO_DST_PORT)?, flags: TCP_SYN },
        Protocol::UDP => Payload::Udp { source: port(CTA_PROTO_SRC_PORT)?, destination: port(CTA_PROTO_DST_PORT)? },
        Protocol::ICMP => Payload::Icmp(proto.u8(CTA_PROTO_ICMP_TYPE)?),
        Protocol::ICMPV6 => Payload::Icmpv6(proto.u8(CTA_PROTO_ICMPV6_TYPE)?),
        other => Payload::Other(other),
    };
    Some(Tuple { source: address(source)?, destination: address(destination)?, payload })
}

/// What tracking knows of a TCP connection beyond its ends. One that it met half-way it follows liberally in both directions
/// (`tcp_new` of the kernel's nf_conntrack_proto_tcp.c).
fn tcp(fields: &Fields<'_>) -> (Beginning, Phase) {
    let Some(tcp) = fields.nest(CTA_PROTOINFO).and_then(|info| info.nest(CTA_PROTOINFO_TCP)) else {
        return (Beginning::Seen, Phase::Live);
    };
    let is_liberal = |kind| tcp.octets(kind).and_then(|flags| flags.first()).is_some_and(|flags| flags & IP_CT_TCP_FLAG_BE_LIBERAL != 0);
    let missed = is_liberal(CTA_PROTOINFO_TCP_FLAGS_ORIGINAL) && is_liberal(CTA_PROTOINFO_TCP_FLAGS_REPLY);
    let over = tcp.u8(CTA_PROTOINFO_TCP_STATE).is_some_and(|state| [TCP_CONNTRACK_TIME_WAIT, TCP_CONNTRACK_CLOSE].contains(&state));
    (if missed { Beginning::Missed } else { Beginning::Seen }, if over { Phase::Over } else { Phase::Live })
}
