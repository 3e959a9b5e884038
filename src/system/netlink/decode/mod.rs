//! What the kernel dumped, as values. Pure, without C, and total: any octets are read or refused, none make it panic.
//!
//! What is not understood is never left out: an expression becomes [`Expr::Foreign`], a set gets its `foreign` words, anything
//! else a line in [`TableDump::foreign`]. What of other people's tables matters to us is read in [`surroundings`].
//!
//! [`TableDump::foreign`]: crate::ruleset::program::TableDump::foreign

mod expression;
mod set;
pub mod surroundings;

pub use expression::expressions;
pub use set::{ElementParts, Order, set, set_with_handle};

use super::message::{Fields, Message, text, udata};
use super::uapi::*;
use crate::ruleset::program::{Base, ChainDef, Expr, GenerationId, Hook, RuleProgram, TABLE, TableDef};

/// The answer to `NFT_MSG_GETGEN`.
pub fn generation(message: &Message<'_>) -> Option<GenerationId> {
    message.fields()?.u32(NFTA_GEN_ID).map(GenerationId)
}

/// The answer to `NFT_MSG_GETTABLE`; nothing when it is another table.
pub fn table(message: &Message<'_>) -> Option<Option<TableDef>> {
    let fields = message.fields()?;
    if !fields.is_text(NFTA_TABLE_NAME, TABLE) {
        return Some(None);
    }
    Some(Some(TableDef { comment: comment(&fields, NFTA_TABLE_USERDATA), flags: optional(&fields, NFTA_TABLE_FLAGS)?.unwrap_or(0) }))
}

/// The handle of our table; nothing when it is another table.
pub fn table_handle(message: &Message<'_>) -> Option<Option<u64>> {
    let fields = message.fields()?;
    if !fields.is_text(NFTA_TABLE_NAME, TABLE) {
        return Some(None);
    }
    fields.u64(NFTA_TABLE_HANDLE).map(Some)
}

/// One chain, with what is strange about it in words; nothing when it is another table's.
pub fn chain(message: &Message<'_>) -> Option<Option<(ChainDef, Vec<String>)>> {
    let fields = message.fields()?;
    if !fields.is_text(NFTA_CHAIN_TABLE, TABLE) {
        return Some(None);
    }
    let name = fields.text(NFTA_CHAIN_NAME)?;
    let mut foreign = Vec::new();
    if optional(&fields, NFTA_CHAIN_FLAGS)?.unwrap_or(0) & !NFT_CHAIN_BASE != 0 {
        foreign.push(format!("flags of chain `{name}`"));
    }
    if fields.has(NFTA_CHAIN_COUNTERS) {
        foreign.push(format!("a counter of chain `{name}`"));
    }
    let base = if fields.has(NFTA_CHAIN_HOOK) { base(&fields, &name, &mut foreign)? } else { None };
    Some(Some((ChainDef { name, base }, foreign)))
}

/// Hook and policy; `None` inside when the hook is none we know, which is then said.
fn base(fields: &Fields<'_>, name: &str, foreign: &mut Vec<String>) -> Option<Option<Base>> {
    let hook = fields.nest(NFTA_CHAIN_HOOK)?;
    if !hook.only(&[NFTA_HOOK_HOOKNUM, NFTA_HOOK_PRIORITY]) {
        foreign.push(format!("a device of chain `{name}`"));
    }
    let number = hook.u32(NFTA_HOOK_HOOKNUM)?;
    let Some(found) = Hook::from_wire(number) else {
        foreign.push(format!("hook {number} of chain `{name}`"));
        return Some(None);
    };
    Some(Some(Base {
        kind: fields.text(NFTA_CHAIN_TYPE)?,
        hook: found,
        priority: hook.u32(NFTA_HOOK_PRIORITY)? as i32,
        accepts: fields.u32(NFTA_CHAIN_POLICY)? == NF_ACCEPT as u32,
    }))
}

/// One rule with the name of its chain; nothing when it is another table's.
pub fn rule(message: &Message<'_>) -> Option<Option<(String, RuleProgram)>> {
    let fields = message.fields()?;
    if !fields.is_text(NFTA_RULE_TABLE, TABLE) {
        return Some(None);
    }
    let mut exprs = match fields.octets(NFTA_RULE_EXPRESSIONS) {
        Some(list) => expressions(list)?,
        None => Vec::new(),
    };
    if fields.has(NFTA_RULE_COMPAT) {
        exprs.push(Expr::Foreign("compat".into()));
    }
    Some(Some((fields.text(NFTA_RULE_CHAIN)?, RuleProgram { exprs, comment: comment(&fields, NFTA_RULE_USERDATA) })))
}

/// A named object in words; nothing when it is another table's.
pub fn object(message: &Message<'_>) -> Option<Option<String>> {
    const KINDS: [(u32, &str); 9] = [
        (1, "counter"),
        (2, "quota"),
        (3, "ct helper"),
        (4, "limit"),
        (5, "connlimit"),
        (7, "ct timeout"),
        (8, "secmark"),
        (9, "ct expectation"),
        (10, "synproxy"),
    ];
    let fields = message.fields()?;
    if !fields.is_text(NFTA_OBJ_TABLE, TABLE) {
        return Some(None);
    }
    let (name, number) = (fields.text(NFTA_OBJ_NAME)?, fields.u32(NFTA_OBJ_TYPE)?);
    let kind = KINDS.iter().find(|row| row.0 == number).map_or("object", |row| row.1);
    Some(Some(format!("{kind} `{name}`")))
}

/// A flowtable in words; nothing when it is another table's.
pub fn flowtable(message: &Message<'_>) -> Option<Option<String>> {
    let fields = message.fields()?;
    if !fields.is_text(NFTA_FLOWTABLE_TABLE, TABLE) {
        return Some(None);
    }
    Some(Some(format!("flowtable `{}`", fields.text(NFTA_FLOWTABLE_NAME)?)))
}

/// A number that may be absent; `None` when it is there and no number.
fn optional(fields: &Fields<'_>, kind: u16) -> Option<Option<u32>> {
    if fields.has(kind) { fields.u32(kind).map(Some) } else { Some(None) }
}

/// The comment in nft's user data; empty when there is none that can be read, for it is for people only.
fn comment(fields: &Fields<'_>, kind: u16) -> String {
    fields.octets(kind).and_then(|octets| udata(octets, UDATA_COMMENT)).map(text).unwrap_or_default()
}
