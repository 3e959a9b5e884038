//! What a kernel holds, in symbols: the addresses of pins become the names that their elements' comments say, so that a rotation is no
//! change of policy.

use std::collections::BTreeSet;
use std::net::IpAddr;

use crate::base::name::{DnsName, Slug};
use crate::base::net::{Family, from_octets};
use crate::judge::compare::symbol::{Symbol, Symbols};
use crate::judge::trace::source;
use crate::pins::Pins;
use crate::policy::{Mode, Policy};
use crate::ruleset::field::Field;
use crate::ruleset::lift::Found;
use crate::ruleset::program::KeyType;
use crate::ruleset::rule::Operator;
use crate::ruleset::set::{Member, Set};
use crate::ruleset::{Chain, Identity, Ruleset};

/// What was applied and remembered: the policy of the rules in the kernel, and its pins.
#[derive(Debug, Clone, Copy)]
pub struct Applied<'a> {
    /// The policy.
    pub policy: &'a Policy,
    /// Its pins.
    pub pins: &'a Pins,
}

/// The names that comments of elements say.
pub fn names_in(found: &Found) -> BTreeSet<DnsName> {
    let comments = found.sets.values().flat_map(|set| set.members.values()).map(|member| member.comment.as_str());
    comments.flat_map(sources).filter_map(|(target, _)| DnsName::parse(target).ok()).collect()
}

/// The rules that were found, in symbols. `system` are addresses of the system's DNS servers.
///
/// An element is a name where its comment says so and, where pins were remembered, those agree: an address that somebody else added
/// under a name's comment stays an address. A name of the applied policy that has no pin stands where its pins would: DNS had no
/// answer, and the policy is the same.
pub fn lifted(found: &Found, applied: Option<Applied>, system: &BTreeSet<IpAddr>, symbols: &Symbols) -> Ruleset {
    let reference = applied.map(|applied| symbols.compile(applied.policy));
    let lifting = Lifting { found, pins: applied.map(|applied| applied.pins), reference, system, symbols };
    let mut chains: Vec<Chain> = found.chains.iter().map(|found| found.chain.clone()).collect();
    for test in chains.iter_mut().flat_map(|chain| &mut chain.rules).flat_map(|rule| &mut rule.tests) {
        if let (Field::SocketCgroup(level), Operator::In(set)) = (&mut test.field, &test.operator)
            && let Some(unit) = lifting.unit(set)
        {
            *level = unit.0;
        }
    }
    let sets = found.sets.iter().map(|(name, set)| (name.clone(), lifting.set(name, set))).collect();
    Ruleset { chains, sets, ..as_found(found) }
}

/// The rules that were found, as they are; without any, those of a kernel that holds none.
pub fn as_found(found: &Found) -> Ruleset {
    let nobody = || Identity { policy: Slug::nearest("unknown", "unknown"), sha256: "0".repeat(64), generation: 0, mode: Mode::Enforce };
    let chains = found.chains.iter().map(|found| found.chain.clone()).collect();
    Ruleset { identity: found.identity.clone().unwrap_or_else(nobody), chains, sets: found.sets.clone() }
}

struct Lifting<'a> {
    found: &'a Found,
    pins: Option<&'a Pins>,
    /// What the applied policy is in symbols.
    reference: Option<Ruleset>,
    system: &'a BTreeSet<IpAddr>,
    symbols: &'a Symbols,
}

impl Lifting<'_> {
    fn set(&self, name: &str, set: &Set) -> Set {
        match set.def.key[..] {
            [KeyType::CgroupV2] => {
                let mut symbolic = set.clone();
                if let Some((_, id, comment)) = self.unit(name) {
                    symbolic.members = [(id.to_ne_bytes().to_vec(), Member { comment, ..Member::default() })].into();
                }
                symbolic
            }
            [KeyType::Ipv4Addr | KeyType::Ipv6Addr] if !set.def.interval && !set.def.dynamic => self.addresses(name, set),
            _ => set.clone(),
        }
    }

    /// Level, id and name of the unit that a set is about.
    fn unit(&self, set: &str) -> Option<(u8, u64, String)> {
        let member = |sets: &std::collections::BTreeMap<String, Set>| {
            let set = sets.get(set).filter(|set| set.def.key == [KeyType::CgroupV2])?;
            set.members.values().next().map(|member| member.comment.clone())
        };
        let name = member(&self.found.sets).or_else(|| member(&self.reference.as_ref()?.sets))?;
        let unit = self.symbols.units.iter().find(|unit| unit.name == name)?;
        Some((unit.level, unit.id, name))
    }

    fn addresses(&self, name: &str, set: &Set) -> Set {
        let mut symbolic = Set { members: Default::default(), ..set.clone() };
        for (key, member) in &set.members {
            let Some(address) = from_octets(key) else { continue };
            let stands_for = self.stands_for(name, address, &member.comment);
            if stands_for.is_empty() {
                symbolic.members.insert(key.clone(), member.clone());
            }
            for (symbol, comment) in stands_for {
                self.put(&mut symbolic, &symbol, Family::of(&address), &comment);
            }
        }
        self.unanswered(name, set, &mut symbolic);
        symbolic
    }

    /// Puts what stands for a symbol into a set. `comment` is that of the symbol alone.
    fn put(&self, set: &mut Set, symbol: &Symbol, family: Family, comment: &str) {
        let of = |address: &&IpAddr| Family::of(address) == family;
        let member = || Member { comment: comment.to_string(), ..Member::default() };
        match symbol {
            Symbol::SystemServers => self.symbols.system.iter().filter(of).for_each(|address| set.add_address(address, member())),
            Symbol::Name(name) => {
                let leases = self.symbols.pins.names.get(name).into_iter().flat_map(|pins| pins.leases.keys());
                leases.filter(of).for_each(|address| set.add_address(address, member()));
            }
        }
    }

    /// What an element stands for besides itself, each with its comment; nothing when it is an address that the policy names.
    fn stands_for(&self, set: &str, address: IpAddr, comment: &str) -> Vec<(Symbol, String)> {
        let mut found: Vec<(Symbol, String)> = Vec::new();
        for (target, rule) in sources(comment) {
            let written = if target == rule { target.to_string() } else { format!("{target} [{rule}]") };
            if target.parse() == Ok(address) {
                if rule == "resolver" && self.system.contains(&address) {
                    found.push((Symbol::SystemServers, written));
                    continue;
                }
                return Vec::new();
            }
            let Ok(name) = DnsName::parse(target) else { continue };
            let remembered = self.pins.is_none_or(|pins| pins.names.get(&name).is_some_and(|pins| pins.leases.contains_key(&address)));
            if remembered {
                found.push((Symbol::Name(name), written));
            }
        }
        // A comment holds no more than a few names: the pins know the others.
        if let (Some(pins), Some(reference)) = (self.pins, self.reference.as_ref().and_then(|rules| rules.sets.get(set))) {
            let holding = pins.names.iter().filter(|(_, pins)| pins.leases.contains_key(&address));
            for (name, comment) in holding.filter_map(|(name, _)| Some((name, self.comment_in(reference, name)?))) {
                let symbol = Symbol::Name(name.clone());
                if !found.iter().any(|(known, _)| *known == symbol) {
                    found.push((symbol, comment));
                }
            }
        }
        found
    }

    /// The comment that a name has in a set of the applied policy.
    fn comment_in(&self, set: &Set, name: &DnsName) -> Option<String> {
        let leases = self.symbols.pins.names.get(name)?.leases.keys();
        leases.filter_map(|address| set.members.get(&crate::base::net::octets(address))).map(|member| member.comment.clone()).next()
    }

    /// Names of the applied policy that have no pin of this family, and so no element.
    fn unanswered(&self, name: &str, set: &Set, symbolic: &mut Set) {
        match (self.pins, self.reference.as_ref().and_then(|rules| rules.sets.get(name))) {
            (Some(pins), Some(reference)) => {
                for (key, member) in &reference.members {
                    let Some(address) = from_octets(key) else { continue };
                    let has_pin = match self.symbols.addresses.get(&address) {
                        None => true,
                        Some(Symbol::SystemServers) => self.system.iter().any(|server| Family::of(server) == Family::of(&address)),
                        Some(Symbol::Name(name)) => {
                            pins.names.get(name).is_some_and(|pins| pins.of_family(Family::of(&address)).next().is_some())
                        }
                    };
                    if !has_pin {
                        symbolic.members.insert(key.clone(), member.clone());
                    }
                }
            }
            // Without memory, a name that has addresses of the other family only is meant in both.
            _ => {
                let (family, other) = match name.strip_suffix("_v4") {
                    Some(stem) => (Family::V4, format!("{stem}_v6")),
                    None => (Family::V6, format!("{}_v4", name.strip_suffix("_v6").unwrap_or(name))),
                };
                let here: BTreeSet<&str> = comments(set).map(|(target, _)| target).collect();
                let twin = self.found.sets.get(&other).into_iter().flat_map(comments);
                for (target, rule) in twin.filter(|(target, _)| !here.contains(target)) {
                    let Ok(name) = DnsName::parse(target) else { continue };
                    let comment = if target == rule { target.to_string() } else { format!("{target} [{rule}]") };
                    self.put(symbolic, &Symbol::Name(name), family, &comment);
                }
            }
        }
    }
}

/// What the comments of a set's elements name.
fn comments(set: &Set) -> impl Iterator<Item = (&str, &str)> {
    set.members.values().flat_map(|member| sources(&member.comment))
}

/// What a comment names, as far as it is whole: each target with the id of its rule.
fn sources(comment: &str) -> impl Iterator<Item = (&str, &str)> {
    comment.split(", ").filter(|word| !word.starts_with('+')).filter_map(source)
}
