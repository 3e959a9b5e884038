//! What has to change in iptables and ipset so that they hold what was meant. The same plan reads a load back: what is there is right
//! when nothing has to change.
//!
//! Only what is ours is looked at, and all of that: a chain, a rule, a set, an element or an option that was not meant is a difference,
//! and so is one that is not understood.

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::base::net::{Family, IpNet, Protocol};
use crate::base::time::Timestamp;
use crate::export::iptables::{Firewall, Table};
use crate::export::names::LOADING;
use crate::export::observed::{Observed, SavedSet, SavedTable, leftovers, words};
use crate::export::rule::protocol_name;
use crate::export::set::{FilledBy, IpSet, LIFE_MAX};

/// Loading takes a moment: ends this close, in seconds, are the same end.
const SLACK: u64 = 5;

/// What has to change.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Change {
    /// For `ipset restore`, before the rules; empty when sets are right.
    pub sets: String,
    /// For `iptables-restore` and `ip6tables-restore`; `None` where the rules are right.
    pub rules: [Option<String>; 2],
    /// For `ipset restore`, after the rules: sets that nothing looks into any more.
    pub stale: String,
    /// Each difference in words.
    pub differences: Vec<String>,
    /// Elements that are added, with their comments.
    pub added: Vec<(String, String)>,
    /// Elements that are removed, with their comments.
    pub removed: Vec<(String, String)>,
    /// Whether only times of elements change.
    pub times_only: bool,
}

impl Change {
    /// Whether nothing has to change.
    pub fn is_nothing(&self) -> bool {
        self.sets.is_empty() && self.stale.is_empty() && !self.touches_rules()
    }

    /// Whether rules change.
    pub fn touches_rules(&self) -> bool {
        self.rules.iter().any(Option::is_some)
    }

    /// The change without that of rules: elements of the sets that the rules there look into, and nothing else.
    pub fn without_rules(self) -> Change {
        Change { rules: [None, None], stale: String::new(), ..self }
    }
}

/// Plans the change from what was observed to what is meant at `now`.
pub fn plan(observed: &Observed, meant: &Firewall, now: Timestamp) -> Change {
    let mut change = Change::default();
    if observed.sets.contains_key(LOADING) {
        change.sets.push_str(&format!("destroy {LOADING}\n"));
        change.differences.push(format!("ipset: `{LOADING}` is left from a run that was killed"));
    }
    let mut only_times = change.sets.is_empty();
    for set in meant.sets.values() {
        let (words, times) = set_change(observed.sets.get(&set.name), set, now, &mut change);
        if words.is_empty() {
            continue;
        }
        only_times &= times;
        let counted = observed.sets.get(&set.name).into_iter().flat_map(|found| &found.members);
        change.sets.push_str(&set.load(now, &counted.map(|(element, member)| (element.clone(), member.counted)).collect()));
        change.differences.extend(words);
    }
    for ((table, meant), rules) in observed.tables.iter().zip(&meant.tables).zip(&mut change.rules) {
        let words = differences(table, meant);
        if !words.is_empty() {
            *rules = Some(load(table, meant));
            change.differences.extend(words);
        }
    }
    for name in observed.sets.keys().filter(|name| !meant.sets.contains_key(*name) && *name != LOADING) {
        change.stale.push_str(&format!("destroy {name}\n"));
        change.differences.push(format!("ipset: set `{name}` is not meant"));
    }
    change.times_only = only_times && !change.touches_rules() && change.stale.is_empty();
    change
}

/// Every way in which a set is not what was meant, and whether only times are others.
fn set_change(found: Option<&SavedSet>, meant: &IpSet, now: Timestamp, change: &mut Change) -> (Vec<String>, bool) {
    let shown = |text: &str, comment: &str| (text.to_string(), comment.to_string());
    let live = |expires: Option<Timestamp>| expires.is_none_or(|expires| expires > now);
    let wanted: BTreeMap<&String, _> = meant.members.iter().filter(|(_, member)| live(member.expires)).collect();
    let Some(found) = found else {
        change
            .added
            .extend(wanted.iter().filter(|(_, member)| !member.comment.is_empty()).map(|(text, member)| shown(text, &member.comment)));
        return (vec![format!("ipset: set `{}` ({}) is missing", meant.name, meant.meaning)], false);
    };
    let mut words = Vec::new();
    if found.def.as_ref() != Some(&meant.def) {
        words.push(format!("ipset: set `{}` ({}) is of another kind", meant.name, meant.meaning));
    }
    if meant.filled_by == FilledBy::Rules {
        return (words, false);
    }
    let mut times_only = words.is_empty();
    let of = |text: &str, comment: &str| format!("{text} ({comment}) of `{}` ({})", meant.name, meant.meaning);
    for (text, member) in &wanted {
        match found.members.get(*text) {
            None => {
                times_only = false;
                change.added.push(shown(text, &member.comment));
                words.push(format!("ipset: {} is missing", of(text, &member.comment)));
            }
            Some(there) => {
                let left = member.expires.map(|expires| expires.since(now).seconds().min(LIFE_MAX));
                let same_end = match (there.left, left) {
                    (None, None) => true,
                    (Some(there), Some(left)) => there.abs_diff(left) <= SLACK,
                    _ => false,
                };
                times_only &= there.comment == member.comment && there.unknown.is_empty();
                if !same_end || there.comment != member.comment || !there.unknown.is_empty() {
                    words.push(format!("ipset: {} has another time or comment", of(text, &member.comment)));
                }
            }
        }
    }
    for (text, there) in found.members.iter().filter(|(text, _)| !wanted.contains_key(text)) {
        // One that has just ended is gone in a moment.
        if there.left.is_some_and(|left| left <= SLACK) && meant.members.contains_key(text) {
            continue;
        }
        times_only = false;
        change.removed.push(shown(text, &there.comment));
        words.push(format!("ipset: {} is not meant", of(text, &there.comment)));
    }
    (words, times_only)
}

/// Every way in which a table is not the one that was meant.
fn differences(table: &SavedTable, meant: &Table) -> Vec<String> {
    let program = program(meant.family);
    let mut words: Vec<String> = Vec::new();
    for chain in &meant.chains {
        let canonical = |rules: &[String]| rules.iter().map(|rule| canonical(rule)).collect::<Vec<_>>();
        match table.chains.get(&chain.name) {
            None => words.push(format!("{program}: chain `{}` is missing", chain.name)),
            Some(found) if canonical(found) != canonical(&chain.rules) => words.push(format!("{program}: chain `{}` differs", chain.name)),
            Some(_) => {}
        }
    }
    let unmeant = table.chains.keys().filter(|name| !meant.chains.iter().any(|chain| chain.name == **name));
    words.extend(unmeant.map(|name| format!("{program}: chain `{name}` is not meant")));
    let wanted: Vec<(String, usize, String)> = meant.jumps().map(|(hook, jump)| (hook.to_string(), 0, jump)).collect();
    let found: Vec<(String, usize, String)> = table.jumps().map(|(chain, place, rule)| (chain.clone(), place, rule.clone())).collect();
    for (hook, _, jump) in wanted.iter().filter(|wanted| !found.contains(wanted)) {
        words.push(format!("{program}: the first rule of {hook} is not `{jump}`"));
    }
    for (chain, place, jump) in found.iter().filter(|found| !wanted.contains(found)) {
        words.push(format!("{program}: rule {} of {chain}, `{jump}`, is not meant", place + 1));
    }
    words
}

/// What `iptables-restore` is told so that a table becomes the one that was meant.
fn load(table: &SavedTable, meant: &Table) -> String {
    let firsts: String = meant.jumps().map(|(hook, jump)| format!("-I {hook} 1 {jump}\n")).collect();
    let leftovers = leftovers(table, |name| meant.chains.iter().any(|chain| chain.name == name));
    format!("*filter\n{}{}{firsts}{leftovers}COMMIT\n", meant.write(), table.no_jumps())
}

fn program(family: Family) -> &'static str {
    match family {
        Family::V4 => "iptables",
        Family::V6 => "ip6tables",
    }
}

/// A rule in one form, whichever version printed it: words without quotes, protocols by number, addresses without their full length,
/// states in order, rates as the time between two packets.
fn canonical(rule: &str) -> Vec<String> {
    let mut words = words(rule);
    for at in 1..words.len() {
        let (before, rest) = words.split_at_mut(at);
        let (Some(option), Some(value)) = (before.last(), rest.first_mut()) else { continue };
        match option.as_str() {
            "-p" => *value = protocol_number(value),
            "-s" | "-d" => {
                if let Ok(net) = value.parse::<IpNet>().or_else(|_| value.parse::<IpAddr>().map(IpNet::from)) {
                    *value = net.to_string();
                }
            }
            "--ctstate" | "--state" => {
                let mut states: Vec<&str> = value.split(',').collect();
                states.sort_unstable();
                *value = states.join(",");
            }
            "--limit" => *value = between(value, 10_000),
            "--hashlimit-above" => *value = between(value, 1_000_000),
            _ => {}
        }
    }
    words
}

fn protocol_number(word: &str) -> String {
    let known = [Protocol::ICMP, Protocol::TCP, Protocol::UDP, Protocol::ICMPV6];
    let named = known.into_iter().find(|known| protocol_name(known.0) == word || known.to_string() == word);
    named.map_or_else(|| word.to_string(), |known| known.0.to_string())
}

/// The time between two packets of a rate, as the kernel keeps it: in these parts of a second.
fn between(rate: &str, scale: u64) -> String {
    let Some((number, unit)) = rate.split_once('/') else { return rate.to_string() };
    let seconds = match unit {
        "s" | "sec" | "second" => 1,
        "m" | "min" | "minute" => 60,
        "h" | "hour" => 3600,
        "d" | "day" => 86_400,
        _ => return rate.to_string(),
    };
    match number.parse::<u64>() {
        Ok(number @ 1..) => format!("every {}", scale * seconds / number),
        _ => rate.to_string(),
    }
}

#[cfg(test)]
mod tests;
