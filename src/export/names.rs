//! The names of what is ours in iptables and ipset. All begin with [`PREFIX`], and nothing else does.

use std::collections::{BTreeMap, BTreeSet};

use sha2::{Digest, Sha256};

use crate::base::net::Family;
use crate::ruleset::program::{Hook, KeyType};
use crate::ruleset::set::Set;
use crate::ruleset::{IDENTITY_CHAIN, Ruleset, text};

/// What every name of ours begins with.
pub const PREFIX: &str = "EGRESSGUARD-";
/// The set that is filled while nobody looks, and then takes the place of another.
pub const LOADING: &str = "EGRESSGUARD-loading";
/// The longest name of a chain (`XT_EXTENSION_MAXNAMELEN`, with its NUL).
const CHAIN_MAX: usize = 28;
/// The longest name of a set (`IPSET_MAXNAMELEN`, with its NUL).
const SET_MAX: usize = 31;

/// The chain's name; one that is too long keeps its beginning, and a digest of the whole keeps it apart.
pub fn chain(name: &str) -> String {
    shortened(name, CHAIN_MAX)
}

/// iptables' own chain at a hook.
pub fn built_in(hook: Hook) -> Option<&'static str> {
    match hook {
        Hook::Input => Some("INPUT"),
        Hook::Forward => Some("FORWARD"),
        Hook::Output => Some("OUTPUT"),
        _ => None,
    }
}

/// The name of what `recent` remembers of the whole host, in this family.
pub fn recent(set: &str, family: Family) -> String {
    format!("{PREFIX}{set}-{}", family.suffix())
}

/// What a set is called in the rules, with its family.
pub fn meaning(set: &Set, family: Family) -> String {
    let of_family = set.def.key.iter().any(|kind| matches!(kind, KeyType::Ipv4Addr | KeyType::Ipv6Addr));
    if of_family { set.def.name.clone() } else { format!("{}_{}", set.def.name, family.suffix()) }
}

/// The names of sets, by what they are called in the rules.
///
/// Sets that rules fill keep their names, and with them what they have counted. Any other set's name carries a digest of the rules:
/// new rules look into new sets, which were filled before, and so rules and elements change in one moment. Rules that are the same
/// look into the same sets, and a change of their elements is no change of what they mean.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SetNames(BTreeMap<String, String>);

impl SetNames {
    /// The names for a ruleset.
    pub fn of(ruleset: &Ruleset) -> SetNames {
        let tag = tag(ruleset);
        let mut taken = BTreeSet::from([LOADING.to_string()]);
        let mut names = BTreeMap::new();
        for set in ruleset.sets.values() {
            for family in Family::BOTH {
                let meaning = meaning(set, family);
                if names.contains_key(&meaning) {
                    continue;
                }
                let mut name =
                    if set.def.dynamic { shortened(&meaning, SET_MAX) } else { digested(&meaning, &format!("{tag}/{meaning}"), SET_MAX) };
                // Digests of 32 bits seldom meet, and must not.
                let mut salt = 0;
                while !taken.insert(name.clone()) {
                    salt += 1;
                    name = digested(&meaning, &format!("{tag}/{meaning}/{salt}"), SET_MAX);
                }
                names.insert(meaning, name);
            }
        }
        SetNames(names)
    }

    /// The name of the set that is called this in the rules.
    pub fn get(&self, meaning: &str) -> Option<&str> {
        self.0.get(meaning).map(String::as_str)
    }
}

/// A digest of what the rules mean: of everything but pins, which come and go, and the generation.
fn tag(ruleset: &Ruleset) -> String {
    let mut digest = Sha256::new();
    for chain in ruleset.chains.iter().filter(|chain| chain.def.name != IDENTITY_CHAIN) {
        digest.update(format!("chain {}\n", chain.def.name));
        for rule in &chain.rules {
            digest.update(format!("{}\n", text::write_rule(rule)));
        }
    }
    for set in ruleset.sets.values() {
        let flags: Vec<&str> = text::flags(set).collect();
        digest.update(format!("set {} {}\n", set.def.name, flags.join(",")));
        if !set.def.timeout {
            for (key, member) in &set.members {
                digest.update(format!("{}\n", text::write_key(&set.def.key, key, member.last.as_ref())));
            }
        }
    }
    hex(&digest.finalize())
}

fn shortened(name: &str, most: usize) -> String {
    let whole = format!("{PREFIX}{name}");
    if whole.len() <= most { whole } else { digested(name, name, most) }
}

/// The beginning of a name, then a digest.
fn digested(name: &str, of: &str, most: usize) -> String {
    let digest: String = hex(&Sha256::digest(of.as_bytes())).chars().take(8).collect();
    let beginning: String = name.chars().filter(char::is_ascii).take(most - PREFIX.len() - 1 - digest.len()).collect();
    format!("{PREFIX}{beginning}-{digest}")
}

fn hex(octets: &[u8]) -> String {
    octets.iter().map(|octet| format!("{octet:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_and_stay_apart() {
        assert_eq!(chain("output"), "EGRESSGUARD-output");
        assert_eq!(chain("refuse_forward-1").len(), CHAIN_MAX);
        let (long, other) = (chain(&"x".repeat(60)), chain(&"x".repeat(61)));
        assert!(long.len() <= CHAIN_MAX && long.starts_with("EGRESSGUARD-xxxxxxx-"));
        assert_ne!(long, other);
        assert_eq!(digested("tcp_443_v4", "a", SET_MAX).len(), SET_MAX);
    }
}
