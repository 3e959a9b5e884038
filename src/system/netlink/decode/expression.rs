//! Expressions as the kernel dumps them.
//!
//! Each kind lists the attributes that its value models. One attribute more, or one that is missing, and the expression is
//! [`Expr::Foreign`]: a rule that does more than is understood must never look like one that is understood.

use super::super::message::{Fields, attributes};
use super::super::uapi::*;
use crate::ruleset::program::{Comparison, Expr, Register, Verdict};

/// A list of expressions; `None` when the list itself is malformed.
pub fn expressions(list: &[u8]) -> Option<Vec<Expr>> {
    attributes(list)?.into_iter().map(|(_, octets)| expression(octets)).collect()
}

/// One expression; `None` when not even its name can be read.
pub fn expression(octets: &[u8]) -> Option<Expr> {
    let fields = Fields::parse(octets)?;
    let name = fields.text(NFTA_EXPR_NAME)?;
    let empty = Fields::parse(&[])?;
    let data = if fields.has(NFTA_EXPR_DATA) { fields.nest(NFTA_EXPR_DATA) } else { Some(empty) };
    let understood = data.and_then(|data| match name.as_str() {
        "meta" => meta(&data),
        "ct" => ct(&data),
        "payload" => payload(&data),
        "socket" => socket(&data),
        "bitwise" => bitwise(&data),
        "cmp" => compare(&data),
        "range" => range(&data),
        "lookup" => lookup(&data),
        "dynset" => update(&data),
        "counter" => data.only(&[NFTA_COUNTER_BYTES, NFTA_COUNTER_PACKETS, NFTA_COUNTER_PAD]).then_some(Expr::Counter),
        "limit" => limit(&data),
        "log" => log(&data),
        "immediate" => immediate(&data),
        "reject" => reject(&data),
        _ => None,
    });
    Some(understood.unwrap_or(Expr::Foreign(name)))
}

/// What a counter counted, in packets and octets.
pub fn counted(octets: &[u8]) -> Option<(u64, u64)> {
    let fields = Fields::parse(octets)?;
    if fields.text(NFTA_EXPR_NAME)? != "counter" {
        return None;
    }
    let data = fields.nest(NFTA_EXPR_DATA)?;
    Some((data.u64(NFTA_COUNTER_PACKETS)?, data.u64(NFTA_COUNTER_BYTES)?))
}

fn meta(data: &Fields<'_>) -> Option<Expr> {
    data.only(&[NFTA_META_KEY, NFTA_META_DREG]).then_some(())?;
    Some(Expr::Meta { key: data.u32(NFTA_META_KEY)?, into: register(data, NFTA_META_DREG)? })
}

fn ct(data: &Fields<'_>) -> Option<Expr> {
    data.only(&[NFTA_CT_KEY, NFTA_CT_DREG, NFTA_CT_DIRECTION]).then_some(())?;
    let direction = if data.has(NFTA_CT_DIRECTION) { Some(data.u8(NFTA_CT_DIRECTION)?) } else { None };
    Some(Expr::Ct { key: data.u32(NFTA_CT_KEY)?, direction, into: register(data, NFTA_CT_DREG)? })
}

fn payload(data: &Fields<'_>) -> Option<Expr> {
    data.only(&[NFTA_PAYLOAD_DREG, NFTA_PAYLOAD_BASE, NFTA_PAYLOAD_OFFSET, NFTA_PAYLOAD_LEN]).then_some(())?;
    Some(Expr::Payload {
        base: data.u32(NFTA_PAYLOAD_BASE)?,
        offset: data.u32(NFTA_PAYLOAD_OFFSET)?,
        len: data.u32(NFTA_PAYLOAD_LEN)?,
        into: register(data, NFTA_PAYLOAD_DREG)?,
    })
}

fn socket(data: &Fields<'_>) -> Option<Expr> {
    data.only(&[NFTA_SOCKET_KEY, NFTA_SOCKET_DREG, NFTA_SOCKET_LEVEL]).then_some(())?;
    (data.u32(NFTA_SOCKET_KEY)? == NFT_SOCKET_CGROUPV2).then_some(())?;
    Some(Expr::SocketCgroup { level: data.u32(NFTA_SOCKET_LEVEL)?, into: register(data, NFTA_SOCKET_DREG)? })
}

/// Only the operation 0, mask and exclusive or; shifts, and the operations of two registers since 6.13, are foreign.
fn bitwise(data: &Fields<'_>) -> Option<Expr> {
    data.only(&[NFTA_BITWISE_SREG, NFTA_BITWISE_DREG, NFTA_BITWISE_LEN, NFTA_BITWISE_OP, NFTA_BITWISE_MASK, NFTA_BITWISE_XOR])
        .then_some(())?;
    if data.has(NFTA_BITWISE_OP) && data.u32(NFTA_BITWISE_OP)? != 0 {
        return None;
    }
    let (mask, xor) = (value(data, NFTA_BITWISE_MASK)?, value(data, NFTA_BITWISE_XOR)?);
    let length = usize::try_from(data.u32(NFTA_BITWISE_LEN)?).ok()?;
    (mask.len() == length && xor.len() == length).then_some(())?;
    Some(Expr::Bitwise { from: register(data, NFTA_BITWISE_SREG)?, into: register(data, NFTA_BITWISE_DREG)?, mask, xor })
}

fn compare(data: &Fields<'_>) -> Option<Expr> {
    data.only(&[NFTA_CMP_SREG, NFTA_CMP_OP, NFTA_CMP_DATA]).then_some(())?;
    let how = match data.u32(NFTA_CMP_OP)? {
        0 => Comparison::Equal,
        1 => Comparison::NotEqual,
        2 => Comparison::Less,
        3 => Comparison::LessOrEqual,
        4 => Comparison::Greater,
        5 => Comparison::GreaterOrEqual,
        _ => return None,
    };
    Some(Expr::Compare { how, from: register(data, NFTA_CMP_SREG)?, data: value(data, NFTA_CMP_DATA)? })
}

fn range(data: &Fields<'_>) -> Option<Expr> {
    data.only(&[NFTA_RANGE_SREG, NFTA_RANGE_OP, NFTA_RANGE_FROM_DATA, NFTA_RANGE_TO_DATA]).then_some(())?;
    Some(Expr::Range {
        inverted: flag(data.u32(NFTA_RANGE_OP)?)?,
        from: register(data, NFTA_RANGE_SREG)?,
        low: value(data, NFTA_RANGE_FROM_DATA)?,
        high: value(data, NFTA_RANGE_TO_DATA)?,
    })
}

fn lookup(data: &Fields<'_>) -> Option<Expr> {
    data.only(&[NFTA_LOOKUP_SET, NFTA_LOOKUP_SREG, NFTA_LOOKUP_FLAGS]).then_some(())?;
    let inverted = if data.has(NFTA_LOOKUP_FLAGS) { flag(data.u32(NFTA_LOOKUP_FLAGS)?)? } else { false };
    Some(Expr::Lookup { set: data.text(NFTA_LOOKUP_SET)?, from: register(data, NFTA_LOOKUP_SREG)?, inverted })
}

fn update(data: &Fields<'_>) -> Option<Expr> {
    data.only(&[
        NFTA_DYNSET_SET_NAME,
        NFTA_DYNSET_OP,
        NFTA_DYNSET_SREG_KEY,
        NFTA_DYNSET_TIMEOUT,
        NFTA_DYNSET_EXPR,
        NFTA_DYNSET_EXPRESSIONS,
        NFTA_DYNSET_FLAGS,
        NFTA_DYNSET_PAD,
    ])
    .then_some(())?;
    if data.has(NFTA_DYNSET_FLAGS) && data.u32(NFTA_DYNSET_FLAGS)? & !NFT_DYNSET_F_EXPR != 0 {
        return None;
    }
    let mut element = Vec::new();
    if let Some(single) = data.octets(NFTA_DYNSET_EXPR) {
        element.push(expression(single)?);
    }
    if let Some(list) = data.octets(NFTA_DYNSET_EXPRESSIONS) {
        element.extend(expressions(list)?);
    }
    Some(Expr::Update {
        set: data.text(NFTA_DYNSET_SET_NAME)?,
        operation: data.u32(NFTA_DYNSET_OP)?,
        from: register(data, NFTA_DYNSET_SREG_KEY)?,
        timeout_ms: if data.has(NFTA_DYNSET_TIMEOUT) { data.u64(NFTA_DYNSET_TIMEOUT)? } else { 0 },
        element,
    })
}

fn limit(data: &Fields<'_>) -> Option<Expr> {
    data.only(&[NFTA_LIMIT_RATE, NFTA_LIMIT_UNIT, NFTA_LIMIT_BURST, NFTA_LIMIT_TYPE, NFTA_LIMIT_FLAGS, NFTA_LIMIT_PAD]).then_some(())?;
    Some(Expr::Limit {
        rate: data.u64(NFTA_LIMIT_RATE)?,
        unit: data.u64(NFTA_LIMIT_UNIT)?,
        burst: data.u32(NFTA_LIMIT_BURST)?,
        kind: data.u32(NFTA_LIMIT_TYPE)?,
        over: flag(data.u32(NFTA_LIMIT_FLAGS)?)?,
    })
}

/// Only to a group: a log with a level or flags goes to the kernel's own log.
fn log(data: &Fields<'_>) -> Option<Expr> {
    data.only(&[NFTA_LOG_GROUP, NFTA_LOG_PREFIX, NFTA_LOG_SNAPLEN, NFTA_LOG_QTHRESHOLD]).then_some(())?;
    Some(Expr::Log {
        prefix: if data.has(NFTA_LOG_PREFIX) { data.text(NFTA_LOG_PREFIX)? } else { String::new() },
        group: data.u16(NFTA_LOG_GROUP)?,
        snaplen: if data.has(NFTA_LOG_SNAPLEN) { data.u32(NFTA_LOG_SNAPLEN)? } else { 0 },
        threshold: if data.has(NFTA_LOG_QTHRESHOLD) { data.u16(NFTA_LOG_QTHRESHOLD)? } else { 0 },
    })
}

/// Only into the verdict register, which has the number 0, and only the verdicts that have a value.
fn immediate(data: &Fields<'_>) -> Option<Expr> {
    data.only(&[NFTA_IMMEDIATE_DREG, NFTA_IMMEDIATE_DATA]).then_some(())?;
    (data.u32(NFTA_IMMEDIATE_DREG)? == 0).then_some(())?;
    let verdict = data.nest(NFTA_IMMEDIATE_DATA)?.nest(NFTA_DATA_VERDICT)?;
    verdict.only(&[NFTA_VERDICT_CODE, NFTA_VERDICT_CHAIN]).then_some(())?;
    Some(Expr::Verdict(match verdict.u32(NFTA_VERDICT_CODE)? as i32 {
        NF_ACCEPT => Verdict::Accept,
        NF_DROP => Verdict::Drop,
        NFT_CONTINUE => Verdict::Continue,
        NFT_RETURN => Verdict::Return,
        NFT_JUMP => Verdict::Jump(verdict.text(NFTA_VERDICT_CHAIN)?),
        NFT_GOTO => Verdict::Goto(verdict.text(NFTA_VERDICT_CHAIN)?),
        _ => return None,
    }))
}

fn reject(data: &Fields<'_>) -> Option<Expr> {
    data.only(&[NFTA_REJECT_TYPE, NFTA_REJECT_ICMP_CODE]).then_some(())?;
    let code = if data.has(NFTA_REJECT_ICMP_CODE) { data.u8(NFTA_REJECT_ICMP_CODE)? } else { 0 };
    Some(Expr::Reject { kind: data.u32(NFTA_REJECT_TYPE)?, code })
}

fn register(data: &Fields<'_>, kind: u16) -> Option<Register> {
    Register::from_wire(data.u32(kind)?)
}

/// Data, and not a verdict, in an attribute.
fn value(data: &Fields<'_>, kind: u16) -> Option<Vec<u8>> {
    let nest = data.nest(kind)?;
    nest.only(&[NFTA_DATA_VALUE]).then_some(())?;
    nest.octets(NFTA_DATA_VALUE).map(<[u8]>::to_vec)
}

/// A field of flags of which only the first is known.
fn flag(number: u32) -> Option<bool> {
    match number {
        0 => Some(false),
        1 => Some(true),
        _ => None,
    }
}
