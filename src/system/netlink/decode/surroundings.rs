//! Other people's tables and the links, as far as they matter to what our rules decide. Total, as everything here.

use super::super::message::{Fields, Message, attributes, text};
use super::super::uapi::*;
use super::optional;
use crate::ruleset::program::TABLE;
use crate::ruleset::surroundings::{Effect, Family, Link, OtherBase};

/// An object of somebody else's table: the table's family and name, and the object. Nothing when it is ours.
pub type Theirs<T> = Option<((Family, String), T)>;

fn theirs<T>(message: &Message<'_>, fields: &Fields<'_>, table: u16, object: T) -> Option<Theirs<T>> {
    let family = Family::from_number(*message.payload.first()?);
    let ours = family == Family::Inet && fields.is_text(table, TABLE);
    Some(if ours { None } else { Some(((family, fields.text(table)?), object)) })
}

/// A table's flags.
pub fn table(message: &Message<'_>) -> Option<Theirs<u32>> {
    let fields = message.fields()?;
    let flags = optional(&fields, NFTA_TABLE_FLAGS)?.unwrap_or(0);
    theirs(message, &fields, NFTA_TABLE_NAME, flags)
}

/// A chain's name and where it hangs.
pub fn chain(message: &Message<'_>) -> Option<Theirs<(String, Option<OtherBase>)>> {
    let fields = message.fields()?;
    let family = Family::from_number(*message.payload.first()?);
    let base = if fields.has(NFTA_CHAIN_HOOK) { Some(base(&fields, family)?) } else { None };
    theirs(message, &fields, NFTA_CHAIN_TABLE, (fields.text(NFTA_CHAIN_NAME)?, base))
}

fn base(fields: &Fields<'_>, family: Family) -> Option<OtherBase> {
    let hook = fields.nest(NFTA_CHAIN_HOOK)?;
    let mut devices: Vec<String> = hook.text(NFTA_HOOK_DEV).into_iter().collect();
    if let Some(list) = hook.octets(NFTA_HOOK_DEVS) {
        devices.extend(attributes(list)?.into_iter().map(|(_, name)| text(name)));
        devices.dedup();
    }
    Some(OtherBase {
        kind: fields.text(NFTA_CHAIN_TYPE).unwrap_or_default(),
        hook: family.hook(hook.u32(NFTA_HOOK_HOOKNUM)?),
        priority: hook.u32(NFTA_HOOK_PRIORITY)? as i32,
        accepts: optional(fields, NFTA_CHAIN_POLICY)?.is_none_or(|policy| policy == NF_ACCEPT as u32),
        devices,
    })
}

/// The chain of a rule, and what the rule does to packets.
pub fn rule(message: &Message<'_>) -> Option<Theirs<(String, Vec<Effect>)>> {
    let fields = message.fields()?;
    let effects = match fields.octets(NFTA_RULE_EXPRESSIONS) {
        Some(list) => effects(list)?,
        None => Vec::new(),
    };
    theirs(message, &fields, NFTA_RULE_TABLE, (fields.text(NFTA_RULE_CHAIN)?, effects))
}

/// A flowtable's name.
pub fn flowtable(message: &Message<'_>) -> Option<Theirs<String>> {
    let fields = message.fields()?;
    theirs(message, &fields, NFTA_FLOWTABLE_TABLE, fields.text(NFTA_FLOWTABLE_NAME)?)
}

fn effects(list: &[u8]) -> Option<Vec<Effect>> {
    let mut found = Vec::new();
    for (_, octets) in attributes(list)? {
        let fields = Fields::parse(octets)?;
        let name = fields.text(NFTA_EXPR_NAME)?;
        let data = if fields.has(NFTA_EXPR_DATA) { fields.nest(NFTA_EXPR_DATA)? } else { Fields::parse(&[])? };
        found.extend(effect(&name, &data));
    }
    Some(found)
}

/// What an expression does to packets; nothing when it only looks at them.
fn effect(name: &str, data: &Fields<'_>) -> Option<Effect> {
    Some(match name {
        "immediate" => return verdict(data),
        "reject" | "synproxy" => Effect::Drop,
        "queue" => Effect::Queue,
        "notrack" => Effect::Untrack,
        "nat" if data.u32(NFTA_NAT_TYPE) == Some(NFT_NAT_DNAT) => Effect::TranslateDestination,
        "nat" | "masq" => Effect::TranslateSource,
        "redir" => Effect::TranslateDestination,
        "tproxy" => Effect::Intercept,
        "fwd" => Effect::SendOn,
        "dup" => Effect::Copy,
        "flow_offload" => Effect::Offload,
        "payload" if data.has(NFTA_PAYLOAD_SREG) && reaches_addresses(data) => Effect::Rewrite,
        // Into the verdict register, whose number is 0.
        "lookup" if data.has(NFTA_LOOKUP_DREG) && data.u32(NFTA_LOOKUP_DREG) == Some(0) => Effect::Choose,
        // What iptables-nft loads: an extension of xtables by its name.
        "target" => match data.text(NFTA_TARGET_NAME)?.as_str() {
            "REJECT" | "SYNPROXY" | "DROP" => Effect::Drop,
            "NFQUEUE" | "QUEUE" => Effect::Queue,
            "NOTRACK" | "CT" => Effect::Untrack,
            "DNAT" | "REDIRECT" | "NETMAP" => Effect::TranslateDestination,
            "SNAT" | "MASQUERADE" => Effect::TranslateSource,
            "TPROXY" => Effect::Intercept,
            "TEE" => Effect::Copy,
            "FLOWOFFLOAD" => Effect::Offload,
            harmless if TARGETS.contains(&harmless) => return None,
            other => Effect::Unknown(format!("target {other}")),
        },
        harmless if EXPRESSIONS.contains(&harmless) => return None,
        other => Effect::Unknown(other.to_string()),
    })
}

/// Expressions of Linux 6.18 that change neither addresses nor ports and send nothing anywhere, or are told apart above.
const EXPRESSIONS: [&str; 30] = [
    "bitwise",
    "byteorder",
    "cmp",
    "connlimit",
    "counter",
    "ct",
    "dynset",
    "exthdr",
    "fib",
    "hash",
    "inner",
    "last",
    "limit",
    "log",
    "lookup",
    "match",
    "meta",
    "numgen",
    "objref",
    "osf",
    "payload",
    "quota",
    "range",
    "rt",
    "socket",
    "tunnel",
    "xfrm",
    "nat",
    "immediate",
    "masq",
];

/// Targets of xtables that do not either.
const TARGETS: [&str; 23] = [
    "AUDIT",
    "CHECKSUM",
    "CLASSIFY",
    "CONNMARK",
    "CONNSECMARK",
    "DSCP",
    "ECN",
    "HL",
    "HMARK",
    "IDLETIMER",
    "LED",
    "LOG",
    "MARK",
    "NFLOG",
    "RATEEST",
    "SECMARK",
    "SET",
    "TCPMSS",
    "TCPOPTSTRIP",
    "TOS",
    "TRACE",
    "TTL",
    "ULOG",
];

fn verdict(data: &Fields<'_>) -> Option<Effect> {
    let verdict = data.nest(NFTA_IMMEDIATE_DATA)?.nest(NFTA_DATA_VERDICT)?;
    match verdict.u32(NFTA_VERDICT_CODE)? as i32 {
        NFT_JUMP | NFT_GOTO => Some(Effect::Enter(verdict.text(NFTA_VERDICT_CHAIN)?)),
        NF_DROP => Some(Effect::Drop),
        code if code & 0xff == NF_QUEUE => Some(Effect::Queue),
        _ => None,
    }
}

/// Whether a write to a header touches an address (of either family) or a port. Marks for quality of service, hop limits and MSS
/// clamping change nothing that our rules decide by.
fn reaches_addresses(data: &Fields<'_>) -> bool {
    let (Some(base), Some(offset), Some(len)) = (data.u32(NFTA_PAYLOAD_BASE), data.u32(NFTA_PAYLOAD_OFFSET), data.u32(NFTA_PAYLOAD_LEN))
    else {
        return true;
    };
    let meets = |first: u32, last: u32| offset <= last && offset.saturating_add(len) > first;
    match base {
        // IPv4 has its addresses at 12 to 19, IPv6 at 8 to 39. Two octets at 8 are how nft writes the time to live of IPv4: checksums
        // are of pairs.
        NFT_PAYLOAD_NETWORK_HEADER => meets(10, 39) || (offset == 8 && len > 2),
        NFT_PAYLOAD_TRANSPORT_HEADER => meets(0, 3),
        _ => false,
    }
}

/// A link: its index, and what it is. `payload` begins with `ifinfomsg`.
pub fn link(message: &Message<'_>) -> Option<(i32, Link)> {
    let index = i32::from_ne_bytes(message.payload.get(4..8)?.try_into().ok()?);
    let mut link = Link::default();
    for (kind, octets) in attributes(message.payload.get(16..)?)? {
        match kind {
            IFLA_IFNAME => link.name = text(octets),
            IFLA_LINKINFO => {
                let kind = attributes(octets)?.into_iter().find(|(kind, _)| *kind == IFLA_INFO_KIND);
                link.kind = kind.map(|(_, octets)| text(octets)).unwrap_or_default();
            }
            IFLA_LINK_NETNSID => link.reaches_elsewhere = true,
            IFLA_XDP => {
                let attached = attributes(octets)?.into_iter().find(|(kind, _)| *kind == IFLA_XDP_ATTACHED);
                link.xdp = attached.is_some_and(|(_, octets)| octets.first().is_some_and(|mode| *mode != 0));
            }
            _ => {}
        }
    }
    Some((index, link))
}

/// The link of a queueing discipline, and whether it takes filters for both directions (`clsact`, `ingress`).
pub fn qdisc(message: &Message<'_>) -> Option<(i32, bool)> {
    let index = i32::from_ne_bytes(message.payload.get(4..8)?.try_into().ok()?);
    let kind = attributes(message.payload.get(20..)?)?.into_iter().find(|(kind, _)| *kind == TCA_KIND);
    Some((index, kind.is_some_and(|(_, octets)| ["clsact", "ingress"].contains(&text(octets).as_str()))))
}
