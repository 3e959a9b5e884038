//! Sets of the ruleset and their elements: pins, networks, constant lists, and the sets that rules fill by themselves.

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::base::name::Slug;
use crate::base::net::{Family, IpNet, octets};
use crate::base::time::Timestamp;
use crate::policy::Target;
use crate::ruleset::COMMENT_MAX;
use crate::ruleset::program::{Key, KeyType, SetDef};

/// The most elements of a set that rules fill: a violation beyond it is still refused and logged, but counted in no element.
pub const DYNAMIC_SIZE: u32 = 65_535;

/// A set with what we put into it. Sets that rules fill have no members here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Set {
    /// Name, type and flags.
    pub def: SetDef,
    /// By key.
    pub members: BTreeMap<Key, Member>,
}

/// An element that we put into a set.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Member {
    /// The last key of the interval, in interval sets.
    pub last: Option<Key>,
    /// When it ends; `None`: with the policy.
    pub expires: Option<Timestamp>,
    /// Whose it is: see [`comment`]. Empty in constant sets.
    pub comment: String,
}

impl Set {
    /// An empty set of addresses, each with a counter of its own and a time of its own: pins and single addresses.
    pub fn of_addresses(name: String, family: Family) -> Set {
        Set { def: SetDef { timeout: true, counter: true, ..SetDef::plain(name, vec![address_type(family)]) }, members: BTreeMap::new() }
    }

    /// An empty set of networks, each with a counter of its own.
    pub fn of_networks(name: String, family: Family) -> Set {
        Set { def: SetDef { interval: true, counter: true, ..SetDef::plain(name, vec![address_type(family)]) }, members: BTreeMap::new() }
    }

    /// A constant set of small numbers.
    pub fn of_numbers(name: &str, key: KeyType, numbers: &[u8]) -> Set {
        let members = numbers.iter().map(|number| (vec![*number], Member::default())).collect();
        Set { def: SetDef::plain(name.to_string(), vec![key]), members }
    }

    /// A set of the control group of one unit; empty while it does not run.
    pub fn of_unit(name: String, id: Option<u64>, unit: &str) -> Set {
        let member = |id: u64| (id.to_ne_bytes().to_vec(), Member { comment: cut(unit), ..Member::default() });
        Set { def: SetDef::plain(name, vec![KeyType::CgroupV2]), members: id.map(member).into_iter().collect() }
    }

    /// A set that rules fill.
    pub fn dynamic(name: &str, key: Vec<KeyType>) -> Set {
        let def = SetDef { timeout: true, dynamic: true, size: Some(DYNAMIC_SIZE), ..SetDef::plain(name.to_string(), key) };
        Set { def, members: BTreeMap::new() }
    }

    /// Adds an address.
    pub fn add_address(&mut self, address: &IpAddr, member: Member) {
        self.members.insert(octets(address), member);
    }

    /// Adds a network.
    pub fn add_network(&mut self, net: &IpNet, comment: String) {
        self.members.insert(octets(&net.network()), Member { last: Some(octets(&net.broadcast())), expires: None, comment });
    }

    /// The member that holds this key. One without a key of its own (`*`, since 5.13; never ours) holds what no other does.
    pub fn find(&self, key: &[u8]) -> Option<(&Key, &Member)> {
        // Most sets hold a network or two: behind the last of them nothing has to be searched.
        let nearest = match self.members.last_key_value()? {
            last if last.0.as_slice() <= key => last,
            _ => self.members.range::<[u8], _>((std::ops::Bound::Unbounded, std::ops::Bound::Included(key))).next_back()?,
        };
        let holds = match &nearest.1.last {
            Some(last) => key <= last.as_slice(),
            None => nearest.0.as_slice() == key,
        };
        if holds { Some(nearest) } else { self.members.first_key_value().filter(|(key, _)| key.is_empty()) }
    }
}

/// The key type of addresses.
pub fn address_type(family: Family) -> KeyType {
    match family {
        Family::V4 => KeyType::Ipv4Addr,
        Family::V6 => KeyType::Ipv6Addr,
    }
}

/// What an element says of itself: the names and networks it stands for, each with the rule's id where that is another word.
/// Sources that do not fit are counted.
pub fn comment<'a>(sources: impl IntoIterator<Item = (&'a Slug, &'a Target)>) -> String {
    let mut words: Vec<String> = Vec::new();
    for (rule, target) in sources {
        let target = match target {
            Target::Name(name) => name.to_string(),
            Target::Net(net) if net.prefix_len() == net.max_prefix_len() => net.addr().to_string(),
            Target::Net(net) => net.to_string(),
        };
        let word = if rule.as_str() == target { target } else { format!("{target} [{rule}]") };
        if !words.contains(&word) {
            words.push(word);
        }
    }
    let mut text = String::new();
    for (position, word) in words.iter().enumerate() {
        let separator = if position == 0 { "" } else { ", " };
        let rest = words.len() - position;
        let reserve = if rest > 1 { 8 } else { 0 };
        if text.len() + separator.len() + word.len() + reserve > COMMENT_MAX {
            if position == 0 {
                // The rule's id says more than the end of a long name.
                let (target, id) = word.split_once(" [").map_or((word.as_str(), String::new()), |(target, id)| (target, format!(" [{id}")));
                return format!("{}{id}", cut_to(target, COMMENT_MAX - id.len()));
            }
            return format!("{text}, +{rest}");
        }
        text.push_str(separator);
        text.push_str(word);
    }
    text
}

/// The text, cut to what a comment holds.
pub fn cut(text: &str) -> String {
    cut_to(text, COMMENT_MAX)
}

/// The text, cut to this many octets.
fn cut_to(text: &str, most: usize) -> String {
    if text.len() <= most {
        return text.to_string();
    }
    let end = (0..=most.saturating_sub(3)).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    format!("{}...", &text[..end])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::name::DnsName;

    fn name(text: &str) -> Target {
        Target::Name(DnsName::parse(text).unwrap())
    }

    fn slug(text: &str) -> Slug {
        Slug::parse(text).unwrap()
    }

    #[test]
    fn a_comment_names_the_rule_only_where_it_is_another_word() {
        let (api, residency) = (slug("api.openai.com"), slug("residency"));
        let (first, second) = (name("api.openai.com"), name("eu.api.openai.com"));
        assert_eq!(comment([(&api, &first), (&residency, &second)]), "api.openai.com, eu.api.openai.com [residency]");
        let net = Target::Net("10.20.0.5/32".parse().unwrap());
        assert_eq!(comment([(&slug("10.20.0.5"), &net)]), "10.20.0.5");
    }

    #[test]
    fn a_comment_never_outgrows_the_kernel() {
        let names: Vec<Target> = (0..20).map(|n| name(&format!("host-{n}.example.com"))).collect();
        let rule = slug("many");
        let text = comment(names.iter().map(|name| (&rule, name)));
        assert!(text.len() <= COMMENT_MAX && text.contains(", +"), "{text}");
        let long = name(&format!("{}.example.com", ["a".repeat(60).as_str(); 3].join(".")));
        let text = comment([(&rule, &long)]);
        assert!(text.len() <= COMMENT_MAX && text.ends_with("... [many]"), "{text}");
    }

    #[test]
    fn an_interval_holds_its_ends_and_nothing_beside() {
        let mut set = Set::of_networks("n".into(), Family::V4);
        set.add_network(&"10.0.0.0/8".parse().unwrap(), String::new());
        let holds = |address: &str| set.find(&octets(&address.parse().unwrap())).is_some();
        assert!(holds("10.0.0.0") && holds("10.255.255.255") && !holds("9.255.255.255") && !holds("11.0.0.0"));
    }
}
