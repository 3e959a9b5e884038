//! What `iptables-save`, `ip6tables-save` and `ipset save` say is there, as far as it is ours. What is not understood is kept, so that
//! it is a difference to whatever was meant.

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::base::net::{Family, IpNet};
use crate::export::names::{self, PREFIX};
use crate::export::set::{Counted, IpSetDef};
use crate::ruleset::{IDENTITY_CHAIN, Identity};

/// Everything of ours that is there.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Observed {
    /// The table of iptables, then that of ip6tables.
    pub tables: [SavedTable; 2],
    /// Sets by name.
    pub sets: BTreeMap<String, SavedSet>,
}

/// A table `filter`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SavedTable {
    /// Our chains, with their rules as they stand behind `-A NAME`.
    pub chains: BTreeMap<String, Vec<String>>,
    /// Chains that are not ours, likewise.
    foreign: BTreeMap<String, Vec<String>>,
}

/// A set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SavedSet {
    /// Type and options; `None` when one is not understood.
    pub def: Option<IpSetDef>,
    /// Elements as they are printed.
    pub members: BTreeMap<String, SavedMember>,
}

/// An element.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SavedMember {
    /// How many seconds it has left; `None`: it has no end.
    pub left: Option<u64>,
    /// What it has counted.
    pub counted: Counted,
    /// Its comment.
    pub comment: String,
    /// What else is said of it, which is not understood.
    pub(super) unknown: Vec<String>,
}

impl Observed {
    /// Reads what the three programs print.
    pub fn parse(iptables_save: &str, ip6tables_save: &str, ipset_save: &str) -> Observed {
        Observed { tables: [iptables_save, ip6tables_save].map(SavedTable::parse), sets: sets(ipset_save) }
    }

    /// Whether anything of ours is there.
    pub fn is_ours(&self) -> bool {
        self.tables.iter().any(|table| !table.chains.is_empty()) || !self.sets.is_empty()
    }

    /// Whose rules these are; `None` when the families do not say the same.
    pub fn identity(&self) -> Option<Identity> {
        let [v4, v6] = self.identities();
        if v4 == v6 { v4 } else { None }
    }

    /// Whose rules each family has.
    pub fn identities(&self) -> [Option<Identity>; 2] {
        self.tables.each_ref().map(SavedTable::identity)
    }

    /// What each address has counted, over all sets of addresses.
    pub fn counted(&self) -> BTreeMap<IpAddr, Counted> {
        let mut counted = BTreeMap::new();
        for (element, member) in self.sets.values().flat_map(|set| &set.members) {
            if let Ok(address) = element.parse() {
                let sum: &mut Counted = counted.entry(address).or_default();
                *sum = (sum.0 + member.counted.0, sum.1 + member.counted.1);
            }
        }
        counted
    }

    /// What takes everything of ours away: the input of `iptables-restore`, of `ip6tables-restore`, and of `ipset restore`.
    pub fn removal(&self) -> ([String; 2], String) {
        (self.tables.each_ref().map(SavedTable::removal), self.sets.keys().map(|name| format!("destroy {name}\n")).collect())
    }
}

impl SavedTable {
    fn parse(text: &str) -> SavedTable {
        let mut table = SavedTable::default();
        for line in text.lines() {
            if let Some(declared) = line.strip_prefix(':') {
                let name = declared.split(' ').next().unwrap_or_default();
                table.of(name).entry(name.to_string()).or_default();
            } else if let Some((name, rule)) = line.strip_prefix("-A ").map(|rest| rest.split_once(' ').unwrap_or((rest, ""))) {
                table.of(name).entry(name.to_string()).or_default().push(rule.to_string());
            }
        }
        table
    }

    fn of(&mut self, name: &str) -> &mut BTreeMap<String, Vec<String>> {
        if name.starts_with(PREFIX) { &mut self.chains } else { &mut self.foreign }
    }

    fn identity(&self) -> Option<Identity> {
        let comments = self.chains.get(&names::chain(IDENTITY_CHAIN))?;
        let comment = |rule: &String| {
            let words = words(rule);
            let at = words.iter().position(|word| word == "--comment")?;
            words.get(at + 1).cloned()
        };
        let comments: Vec<String> = comments.iter().filter_map(comment).collect();
        Identity::from_comments(comments.iter().map(String::as_str))
    }

    /// Our jumps wherever they are in iptables' own chains: chain, place from 0, and the rule.
    pub(super) fn jumps(&self) -> impl Iterator<Item = (&String, usize, &String)> {
        let ours = |rule: &&String| rule.strip_prefix("-j ").is_some_and(|target| target.starts_with(PREFIX));
        self.foreign.iter().flat_map(move |(chain, rules)| {
            rules.iter().enumerate().filter(move |(_, rule)| ours(rule)).map(move |(place, rule)| (chain, place, rule))
        })
    }

    /// The lines that take our jumps away.
    pub(super) fn no_jumps(&self) -> String {
        self.jumps().map(|(chain, _, rule)| format!("-D {chain} {rule}\n")).collect()
    }

    fn removal(&self) -> String {
        let emptied: String = self.chains.keys().map(|name| format!("-F {name}\n")).collect();
        let gone: String = self.chains.keys().map(|name| format!("-X {name}\n")).collect();
        format!("*filter\n{}{emptied}{gone}COMMIT\n", self.no_jumps())
    }

    /// What puts these chains and jumps in place of those of `now`.
    pub fn again(&self, now: &SavedTable) -> String {
        let mut out = "*filter\n".to_string();
        self.chains.keys().for_each(|name| out.push_str(&format!(":{name} - [0:0]\n")));
        for (name, rules) in &self.chains {
            rules.iter().for_each(|rule| out.push_str(&format!("-A {name} {rule}\n")));
        }
        out.push_str(&now.no_jumps());
        self.jumps().for_each(|(chain, place, rule)| out.push_str(&format!("-I {chain} {} {rule}\n", place + 1)));
        out.push_str(&leftovers(now, |name| self.chains.contains_key(name)));
        out.push_str("COMMIT\n");
        out
    }
}

/// The lines that take away chains of ours which are not meant any more: all emptied first, because they may jump to each other.
pub(super) fn leftovers(there: &SavedTable, meant: impl Fn(&str) -> bool) -> String {
    let old: Vec<&String> = there.chains.keys().filter(|name| !meant(name)).collect();
    let emptied = old.iter().map(|name| format!("-F {name}\n"));
    emptied.chain(old.iter().map(|name| format!("-X {name}\n"))).collect()
}

/// The words of a line as a shell reads them.
pub(super) fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let (mut word, mut open, mut quoted) = (String::new(), false, false);
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => word.extend(chars.next()),
            '"' => (quoted, open) = (!quoted, true),
            ' ' | '\t' if !quoted => {
                if open || !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
                open = false;
            }
            c => word.push(c),
        }
    }
    if open || !word.is_empty() {
        words.push(word);
    }
    words
}

/// The sets of ours in what `ipset save` prints.
fn sets(text: &str) -> BTreeMap<String, SavedSet> {
    let mut sets: BTreeMap<String, SavedSet> = BTreeMap::new();
    for line in text.lines() {
        let words = words(line);
        let [verb, name, what, options @ ..] = words.as_slice() else { continue };
        if !name.starts_with(PREFIX) {
            continue;
        }
        if verb == "create" {
            sets.insert(name.clone(), SavedSet { def: def(what, options), members: BTreeMap::new() });
        } else if let (Some(set), "add") = (sets.get_mut(name), verb.as_str()) {
            set.members.insert(element(what), member(options));
        }
    }
    sets
}

fn def(kind: &str, options: &[String]) -> Option<IpSetDef> {
    let mut def = IpSetDef { kind: kind.to_string(), family: Family::V4, room: 0, lives: None, counters: false, comments: false };
    let mut words = options.iter().map(String::as_str);
    while let Some(option) = words.next() {
        match option {
            "family" => match words.next()? {
                "inet" => def.family = Family::V4,
                "inet6" => def.family = Family::V6,
                _ => return None,
            },
            "maxelem" => def.room = words.next()?.parse().ok()?,
            "timeout" => def.lives = Some(words.next()?.parse().ok()?),
            "counters" => def.counters = true,
            "comment" => def.comments = true,
            // How the kernel keeps it, which it chooses itself.
            "hashsize" | "bucketsize" | "initval" => drop(words.next()?),
            _ => return None,
        }
    }
    Some(def)
}

/// An address or network as we write it; keys of other sets as they are.
fn element(text: &str) -> String {
    match text.parse::<IpNet>() {
        Ok(net) if net.prefix_len() == net.max_prefix_len() => net.addr().to_string(),
        Ok(net) => net.to_string(),
        Err(_) => text.parse::<IpAddr>().map_or_else(|_| text.to_string(), |address| address.to_string()),
    }
}

fn member(options: &[String]) -> SavedMember {
    let mut member = SavedMember::default();
    let mut words = options.iter();
    while let Some(option) = words.next() {
        let value = words.next().map(String::as_str).unwrap_or_default();
        match (option.as_str(), value.parse::<u64>()) {
            // 0 is how ipset prints that an element has no end.
            ("timeout", Ok(0)) => {}
            ("timeout", Ok(left)) => member.left = Some(left),
            ("packets", Ok(packets)) => member.counted.0 = packets,
            ("bytes", Ok(octets)) => member.counted.1 = octets,
            ("comment", _) => member.comment = value.to_string(),
            _ => member.unknown.push(format!("{option} {value}")),
        }
    }
    member
}
