//! Symbols: what a policy names and a comparison does not look up. A host name is a class of destinations of its own, a user, group
//! or unit that this host does not know is one of its own, and so are the system's DNS servers. Each is given numbers that nothing
//! else in either policy has, so that the rules can be compiled and judged as always.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::base::name::DnsName;
use crate::base::net::Family;
use crate::judge::compare::Trouble;
use crate::judge::compare::dimension::{Dimension, Unit, address};
use crate::judge::compare::values::Values;
use crate::judge::lasting;
use crate::pins::{NamePins, Pins};
use crate::policy::{DnsServer, Policy, Scope, Target};
use crate::ruleset::Ruleset;
use crate::ruleset::compile::{Facts, compile};
use crate::ruleset::field::Field;
use crate::ruleset::rule::Operator;

/// What an address stands for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Symbol {
    /// The addresses of a name, whatever they are.
    Name(DnsName),
    /// The DNS servers of the host, whatever they are.
    SystemServers,
}

/// What both sides of a comparison call things.
#[derive(Debug, Clone, Default)]
pub struct Symbols {
    /// Every name with the addresses that stand for it.
    pub pins: Pins,
    /// Numbers of users and groups, control groups of units; no servers.
    pub facts: Facts,
    /// What the addresses stand for.
    pub addresses: BTreeMap<IpAddr, Symbol>,
    /// Names of users by number.
    pub users: BTreeMap<u32, String>,
    /// Names of groups by number.
    pub groups: BTreeMap<u32, String>,
    /// Units.
    pub units: Vec<Unit>,
    /// What stands for the system's DNS servers.
    pub system: Vec<IpAddr>,
}

/// Intervals of addresses that rules ask for, as first and last, by family.
pub type Mentioned = BTreeMap<Family, Vec<(u128, u128)>>;

/// The most addresses that stand for names where the networks of two policies leave no room beside them.
const HOMES: usize = 200_000;
/// The level of a control group whose unit does not run, as the compiler has it.
const UNIT_LEVEL: u8 = 2;
/// The port of plain DNS.
const DNS_PORT: u16 = 53;

impl Symbols {
    /// Symbols for these policies and names. `known` is what this host knows of users, groups and units. `rules` are rules from
    /// elsewhere, whose addresses are kept apart from those that stand for names.
    pub fn new(policies: &[&Policy], names: &BTreeSet<DnsName>, known: &Facts, rules: Option<&Ruleset>) -> Result<Symbols, Trouble> {
        let mut symbols = Symbols::default();
        let scopes: Vec<&Scope> = policies.iter().flat_map(|policy| &policy.outbound).filter_map(|way| way.scope.as_ref()).collect();
        symbols.accounts(&scopes, known, rules);
        symbols.units(&scopes, known);
        // Compiled without any name, the rules mention what networks and addresses the policies name.
        let compiled = policies.iter().map(|policy| compile(policy, &Pins::default(), &symbols.facts_of(policy), 1));
        let mut mentioned = Mentioned::new();
        compiled.chain(rules.cloned()).for_each(|ruleset| mention(&ruleset, &mut mentioned));
        let mut names = names.clone();
        for policy in policies {
            names.extend(names_of(policy).cloned());
        }
        symbols.destinations(&names, &mentioned)?;
        Ok(symbols)
    }

    /// What a policy is compiled with: the facts, and its servers.
    pub fn facts_of(&self, policy: &Policy) -> Facts {
        let system = self.system.iter().map(|address| DnsServer::Plain { address: *address, port: DNS_PORT });
        let mut servers: Vec<DnsServer> = Vec::new();
        for server in &policy.dns {
            let meant = if *server == DnsServer::System { system.clone().collect() } else { vec![server.clone()] };
            servers.extend(meant.into_iter().filter(|server| !servers.contains(server)).collect::<Vec<_>>());
        }
        Facts { servers, ..self.facts.clone() }
    }

    /// The rules of a policy in these symbols.
    pub fn compile(&self, policy: &Policy) -> Ruleset {
        compile(policy, &self.pins, &self.facts_of(policy), 1)
    }

    fn accounts(&mut self, scopes: &[&Scope], known: &Facts, rules: Option<&Ruleset>) {
        let mut taken: BTreeSet<u32> = known.users.values().chain(known.groups.values()).copied().collect();
        taken.extend(scopes.iter().filter_map(|scope| match scope {
            Scope::Uid(number) | Scope::Gid(number) => Some(*number),
            _ => None,
        }));
        for test in rules.iter().flat_map(|rules| &rules.chains).flat_map(|chain| &chain.rules).flat_map(|rule| &rule.tests) {
            if let (Field::SocketUser | Field::SocketGroup, Operator::Is(number)) = (test.field, &test.operator) {
                taken.extend(u32::try_from(*number));
            }
        }
        // From below the numbers that mean nobody.
        let mut free = (0..u32::MAX - 15).rev().filter(|number| !taken.contains(number));
        for scope in scopes {
            let (name, known, numbers, names) = match scope {
                Scope::User(name) => (name, &known.users, &mut self.facts.users, &mut self.users),
                Scope::Group(name) => (name, &known.groups, &mut self.facts.groups, &mut self.groups),
                _ => continue,
            };
            if !numbers.contains_key(name.as_ref()) {
                // There are more numbers than a policy has octets.
                let number = known.get(name.as_ref()).copied().or_else(|| free.next()).unwrap_or(u32::MAX);
                numbers.insert(name.to_string(), number);
                names.entry(number).or_insert_with(|| name.to_string());
            }
        }
    }

    fn units(&mut self, scopes: &[&Scope], known: &Facts) {
        for scope in scopes {
            let Scope::Service(name) = scope else { continue };
            if self.facts.units.contains_key(name.as_ref()) {
                continue;
            }
            let symbol = || (format!("system.slice/{name}"), u64::MAX - self.units.len() as u64);
            let (path, id) = known.units.get(name.as_ref()).cloned().unwrap_or_else(symbol);
            let depth = path.split('/').filter(|part| !part.is_empty()).count();
            let level = u8::try_from(depth.clamp(1, 15)).unwrap_or(UNIT_LEVEL);
            self.units.push(Unit { name: name.to_string(), level, id });
            self.facts.units.insert(name.to_string(), (path, id));
        }
    }

    /// Gives every name, and the system's servers, addresses that no rule mentions; where the networks of the rules leave no room
    /// beside them, one in each piece into which they cut the addresses.
    fn destinations(&mut self, names: &BTreeSet<DnsName>, mentioned: &Mentioned) -> Result<(), Trouble> {
        let all: Vec<Symbol> = std::iter::once(Symbol::SystemServers).chain(names.iter().cloned().map(Symbol::Name)).collect();
        for name in names {
            self.pins.names.insert(name.clone(), NamePins::default());
        }
        for family in Family::BOTH {
            let homes = homes(family, all.len() as u128, mentioned.get(&family).map_or(&[], Vec::as_slice))?;
            for home in homes {
                for (symbol, value) in all.iter().zip(home) {
                    let at = address(family, value);
                    self.addresses.insert(at, symbol.clone());
                    match symbol {
                        Symbol::SystemServers => self.system.push(at),
                        Symbol::Name(name) => drop(self.pins.names.entry(name.clone()).or_default().leases.insert(at, lasting())),
                    }
                }
            }
        }
        Ok(())
    }
}

/// The names that a policy sends to.
pub fn names_of(policy: &Policy) -> impl Iterator<Item = &DnsName> {
    let outbound = policy.outbound.iter().flat_map(|way| &way.to);
    outbound.chain(&policy.host.ntp).filter_map(|destination| match &destination.target {
        Target::Name(name) => Some(name),
        Target::Net(_) => None,
    })
}

/// Collects the addresses that rules ask for.
fn mention(ruleset: &Ruleset, mentioned: &mut Mentioned) {
    for test in ruleset.chains.iter().flat_map(|chain| &chain.rules).flat_map(|rule| &rule.tests) {
        let (Field::SourceAddress(family) | Field::DestinationAddress(family)) = test.field else { continue };
        let of_family = mentioned.entry(family).or_default();
        match &test.operator {
            Operator::Is(value) | Operator::IsNot(value) => of_family.push((*value, *value)),
            Operator::Within(low, high) => of_family.push((*low, *high)),
            Operator::In(set) => {
                for (key, member) in ruleset.sets.get(set).into_iter().flat_map(|set| &set.members) {
                    let Some(first) = test.field.decode(key) else { continue };
                    let last = member.last.as_ref().and_then(|last| test.field.decode(last)).unwrap_or(first);
                    of_family.push((first, last));
                }
            }
            Operator::HasAny(_) | Operator::HasNone(_) | Operator::IsNamed(_) => {}
        }
    }
}

/// Runs of `count` addresses each, one run or more.
fn homes(family: Family, count: u128, mentioned: &[(u128, u128)]) -> Result<Vec<Vec<u128>>, Trouble> {
    let dimension = if family == Family::V4 { Dimension::DestinationV4 } else { Dimension::DestinationV6 };
    let whole = dimension.domain();
    let never = match family {
        // The unspecified address, loopback, broadcast.
        Family::V4 => Values::new([(0, 0), (0x7f00_0000, 0x7fff_ffff), (0xffff_ffff, 0xffff_ffff)]),
        Family::V6 => Values::new([(0, 1)]),
    };
    let usable = whole.without(&never);
    // Rules for every address hold names too, wherever those are.
    let narrow = mentioned.iter().copied().filter(|interval| whole.intervals() != [*interval]);
    let free = usable.without(&Values::new(narrow.clone()));
    // First where no packet ever goes (RFC 1122, RFC 6666) or nobody is yet (RFC 1112), then wherever there is room.
    let preferred: &[(u128, u128)] = match family {
        Family::V4 => &[(0, 0x00ff_ffff), (0xf000_0000, 0xffff_fffe), (0, 0xffff_ffff)],
        Family::V6 => &[(0x0100 << 112, (0x0100 << 112) | u64::MAX as u128), (0, u128::MAX)],
    };
    for range in preferred {
        let room = free.within(&Values::new([*range]));
        let mut addresses = room.intervals().iter().flat_map(|(first, last)| *first..=*last);
        let home: Vec<u128> = addresses.by_ref().take(usize::try_from(count).unwrap_or(usize::MAX)).collect();
        if home.len() as u128 == count {
            return Ok(vec![home]);
        }
    }
    let mut cuts: Vec<u128> =
        usable.intervals().iter().chain(mentioned).flat_map(|(first, last)| [Some(*first), last.checked_add(1)]).flatten().collect();
    cuts.sort_unstable();
    cuts.dedup();
    let pieces = cuts.iter().enumerate().map(|(at, first)| (*first, cuts.get(at + 1).map_or(u128::MAX, |next| next - 1)));
    let roomy = pieces.filter(|piece| usable.contains(piece.0) && piece.1 - piece.0 >= count);
    let homes: Vec<Vec<u128>> = roomy.take(HOMES).map(|(first, _)| (first..first + count).collect()).collect();
    if homes.is_empty() || homes.len() as u128 * count > HOMES as u128 {
        return Err(Trouble::OutOfReach("the networks of the two policies leave no address that could stand for a name".to_string()));
    }
    Ok(homes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_that_stand_for_names_are_in_no_network_that_a_rule_mentions() {
        let mentioned = [(0, 0x0000_00ff), (0x0a00_0000, 0x0aff_ffff), (0, 0xffff_ffff)];
        assert_eq!(homes(Family::V4, 3, &mentioned).unwrap(), [[0x100, 0x101, 0x102]]);
        assert_eq!(homes(Family::V6, 2, &[]).unwrap(), [[0x0100 << 112, (0x0100 << 112) + 1]]);
    }

    #[test]
    fn where_networks_leave_no_room_a_name_is_in_each_piece() {
        let halves = [(0, 0x7fff_ffff), (0x8000_0000, 0xffff_ffff)];
        let homes = homes(Family::V4, 2, &halves).unwrap();
        assert_eq!(homes.iter().map(|home| home[0] >> 31).collect::<Vec<_>>(), [0, 1]);
        assert!(homes.iter().all(|home| home.len() == 2));
    }
}
