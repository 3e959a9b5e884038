//! The ruleset as text that `nft -f` loads: for people, for review, and as the oracle of the netlink room.

use std::fmt::Write;
use std::net::IpAddr;

use crate::base::net::{IpNet, from_octets};
use crate::base::time::Timestamp;
use crate::policy::Mode;
use crate::ruleset::field::{Field, Notation};
use crate::ruleset::program::{Key, KeyType, TABLE};
use crate::ruleset::rule::{Action, Carries, Operator, Rate, Rule, Side, Statement, Test};
use crate::ruleset::set::{Member, Set};
use crate::ruleset::{Chain, LOG_GROUP, Ruleset, TABLE_COMMENT};

/// The whole table. Loading it replaces the table that is there, in one transaction. Times of pins are counted from `now`.
pub fn write(ruleset: &Ruleset, now: Timestamp) -> String {
    let identity = &ruleset.identity;
    let mode = match identity.mode {
        Mode::Enforce => "enforce",
        Mode::Observe => "observe",
    };
    let mut out = String::new();
    let _ = writeln!(out, "# policy {}, mode {mode}, sha256 {}", identity.policy, identity.sha256);
    let _ = writeln!(out, "table inet {TABLE}\ndelete table inet {TABLE}\ntable inet {TABLE} {{");
    let _ = writeln!(out, "\tcomment \"{TABLE_COMMENT}\"");
    for set in ruleset.sets.values() {
        write_set(&mut out, set, now);
    }
    for chain in &ruleset.chains {
        write_chain(&mut out, chain);
    }
    out.push_str("}\n");
    out
}

fn write_set(out: &mut String, set: &Set, now: Timestamp) {
    let def = &set.def;
    let key: Vec<&str> = def.key.iter().map(|field| field.name()).collect();
    let _ = writeln!(out, "\n\tset {} {{\n\t\ttype {}", def.name, key.join(" . "));
    if let Some(size) = def.size {
        let _ = writeln!(out, "\t\tsize {size}");
    }
    let flags: Vec<&str> = flags(set).collect();
    if !flags.is_empty() {
        let _ = writeln!(out, "\t\tflags {}", flags.join(","));
    }
    if def.counter {
        out.push_str("\t\tcounter\n");
    }
    if def.key == [KeyType::CgroupV2] {
        // nft takes control groups by path only, and turns it into the number by itself.
        for (key, member) in &set.members {
            let _ = writeln!(out, "\t\t# {}: control group {}", member.comment, write_key(&def.key, key, None));
        }
    } else {
        let live: Vec<String> = set.members.iter().filter_map(|(key, member)| write_member(set, key, member, now)).collect();
        if !live.is_empty() {
            let _ = writeln!(out, "\t\telements = {{\n\t\t\t{}\n\t\t}}", live.join(",\n\t\t\t"));
        }
    }
    out.push_str("\t}\n");
}

/// nft's words for the flags of a set.
pub fn flags(set: &Set) -> impl Iterator<Item = &'static str> {
    let def = &set.def;
    [(def.dynamic, "dynamic"), (def.interval, "interval"), (def.timeout, "timeout")].into_iter().filter(|flag| flag.0).map(|flag| flag.1)
}

fn write_member(set: &Set, key: &Key, member: &Member, now: Timestamp) -> Option<String> {
    let mut text = write_key(&set.def.key, key, member.last.as_ref());
    if let Some(expires) = member.expires {
        if expires <= now {
            return None;
        }
        let _ = write!(text, " timeout {}s", expires.since(now).seconds());
    }
    if !member.comment.is_empty() {
        let _ = write!(text, " comment \"{}\"", member.comment);
    }
    Some(text)
}

/// A key as nft writes it: a network where an interval is one, a range where it is none.
pub fn write_key(types: &[KeyType], key: &Key, last: Option<&Key>) -> String {
    if let Some(last) = last.filter(|last| *last != key) {
        let bounds = from_octets(key).zip(from_octets(last));
        return match bounds.and_then(|(first, last)| as_network(first, last)) {
            Some(net) => net.to_string(),
            None => format!("{}-{}", write_key(types, key, None), write_key(types, last, None)),
        };
    }
    let mut rest = key.as_slice();
    let mut words = Vec::new();
    for kind in types {
        let octets = (kind.octets() as usize).min(rest.len());
        let padded = if types.len() > 1 { octets.div_ceil(4) * 4 } else { octets };
        words.push(write_value(*kind, &rest[..octets]));
        rest = &rest[padded.min(rest.len())..];
    }
    words.join(" . ")
}

fn write_value(kind: KeyType, octets: &[u8]) -> String {
    if let (KeyType::Ipv4Addr | KeyType::Ipv6Addr, Some(address)) = (kind, from_octets(octets)) {
        return address.to_string();
    }
    let fold = |octets: &mut dyn Iterator<Item = &u8>| octets.fold(0u128, |value, octet| (value << 8) | u128::from(*octet));
    let little = kind.host_order() && cfg!(target_endian = "little");
    let number = if little { fold(&mut octets.iter().rev()) } else { fold(&mut octets.iter()) };
    if kind == KeyType::InetProto { Field::L4Protocol.write(number) } else { number.to_string() }
}

fn as_network(first: IpAddr, last: IpAddr) -> Option<IpNet> {
    let max = if first.is_ipv4() { 32 } else { 128 };
    (0..=max).filter_map(|length| IpNet::new(first, length).ok()).find(|net| net.network() == first && net.broadcast() == last)
}

fn write_chain(out: &mut String, chain: &Chain) {
    let _ = writeln!(out, "\n\tchain {} {{", chain.def.name);
    if let Some(base) = &chain.def.base {
        let policy = if base.accepts { "accept" } else { "drop" };
        let _ = writeln!(out, "\t\ttype {} hook {} priority {}; policy {policy};", base.kind, base.hook.keyword(), base.priority);
    }
    for rule in &chain.rules {
        let _ = writeln!(out, "\t\t{}", write_rule(rule));
    }
    out.push_str("\t}\n");
}

/// One rule as nft writes it.
pub fn write_rule(rule: &Rule) -> String {
    let mut words: Vec<String> = rule.tests.iter().map(write_test).collect();
    words.extend(rule.statements.iter().map(write_statement));
    words.extend(write_action(&rule.action));
    if !rule.id.is_empty() {
        words.push(format!("comment \"{}\"", rule.id));
    }
    words.join(" ")
}

/// One test as nft writes it.
pub fn write_test(test: &Test) -> String {
    let field = test.field;
    let keyword = field.row().keyword;
    match &test.operator {
        Operator::Is(value) => format!("{keyword} {}", field.write(*value)),
        Operator::IsNot(value) => format!("{keyword} != {}", field.write(*value)),
        Operator::Within(low, high) => format!("{keyword} {}-{}", field.write(*low), field.write(*high)),
        Operator::HasAny(bits) => format!("{keyword} {}", write_bits(field, *bits)),
        Operator::HasNone(bits) => format!("{keyword} & {bits:#x} == 0x0"),
        Operator::In(set) => format!("{keyword} @{set}"),
        Operator::IsNamed(name) => format!("{keyword} \"{name}\""),
    }
}

fn write_bits(field: Field, bits: u128) -> String {
    if let Notation::Named(names) = field.row().notation {
        let named: Vec<&str> = names.iter().filter(|name| bits & name.0 != 0).map(|name| name.1).collect();
        if names.iter().filter(|name| bits & name.0 != 0).fold(0, |sum, name| sum | name.0) == bits {
            return named.join(",");
        }
    }
    format!("& {bits:#x} != 0x0")
}

/// One statement as nft writes it.
pub fn write_statement(statement: &Statement) -> String {
    match statement {
        Statement::Limit(rate, side) => write_rate(*rate, *side),
        Statement::Log { prefix } => format!("log prefix \"{prefix}\" group {LOG_GROUP} snaplen 128 queue-threshold 1"),
        Statement::Update { set, key, lives, carries } => {
            let fields: Vec<&str> = key.iter().map(|field| field.row().keyword).collect();
            let mut element = fields.join(" . ");
            if lives.seconds() > 0 {
                let _ = write!(element, " timeout {}s", lives.seconds());
            }
            match carries {
                Carries::Nothing => {}
                Carries::Counter => element.push_str(" counter"),
                Carries::Over(rate) => {
                    let _ = write!(element, " {}", write_rate(*rate, Side::Over));
                }
            }
            format!("update @{set} {{ {element} }}")
        }
    }
}

fn write_rate(rate: Rate, side: Side) -> String {
    let over = match side {
        Side::Below => "",
        Side::Over => "over ",
    };
    format!("limit rate {over}{}/{} burst {} packets", rate.packets, rate.unit.keyword(), rate.burst)
}

/// An action as nft writes it; `None` where nothing is written.
pub fn write_action(action: &Action) -> Option<String> {
    Some(match action {
        Action::Continue => return None,
        Action::Accept => "accept".to_string(),
        Action::Drop => "drop".to_string(),
        Action::Reset => "reject with tcp reset".to_string(),
        Action::Prohibit => "reject with icmpx admin-prohibited".to_string(),
        Action::Return => "return".to_string(),
        Action::Jump(chain) => format!("jump {chain}"),
        Action::Goto(chain) => format!("goto {chain}"),
    })
}
