//! The ways out: one rule for each (ports, scope, family), each a look-up in a set, so that a packet's cost does not grow with the
//! number of names.

use std::collections::BTreeMap;
use std::net::IpAddr;

use sha2::{Digest, Sha256};

use crate::base::name::Slug;
use crate::base::net::{Family, IpNet, Protocol};
use crate::base::port::{PortRange, PortSet};
use crate::base::time::Timestamp;
use crate::pins::Pins;
use crate::policy::{Destination, DnsServer, Scope, Target};
use crate::ruleset::Chain;
use crate::ruleset::compile::{Compiler, Facts, protocol};
use crate::ruleset::field::Field;
use crate::ruleset::rule::{Action, Operator, Rule, Test, in_set, is};
use crate::ruleset::set::{Member, Set, comment};

/// The level of a control group whose unit does not run: `system.slice/NAME.service`.
const UNIT_LEVEL: u8 = 2;

/// What kind of way out it is, which names its sets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Purpose {
    /// The named resolvers.
    Resolver,
    /// The named time servers.
    Ntp,
    /// What the policy lists under `outbound`.
    Outbound,
}

/// Destinations that share one rule.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Way<'a> {
    purpose: Purpose,
    scope: Option<&'a Scope>,
    protocol: Protocol,
    ports: PortSet,
}

/// What a way leads to, each with the id of the rule that names it.
type Destinations<'a> = Vec<(Slug, &'a Target)>;

impl Compiler<'_> {
    /// The chains `outbound` and `outbound_scoped`, and their sets. What is for somebody stands in a chain of its own: forwarded
    /// packets have no socket, and the kernel refuses to load a test for control groups where they pass.
    pub(super) fn outbound(&mut self, pins: &Pins, facts: &Facts) -> [Chain; 2] {
        let servers: Vec<(Way, Target)> = facts.servers.iter().flat_map(resolver_ways).collect();
        let mut ways: BTreeMap<Way, Destinations> = BTreeMap::new();
        for (way, target) in &servers {
            ways.entry(way.clone()).or_default().push((built_in("resolver"), target));
        }
        let ntp = Way { purpose: Purpose::Ntp, scope: None, protocol: Protocol::UDP, ports: PortSet::single(123) };
        for Destination { target, .. } in &self.policy.host.ntp {
            ways.entry(ntp.clone()).or_default().push((built_in("ntp"), target));
        }
        for entry in &self.policy.outbound {
            let way = Way {
                purpose: Purpose::Outbound,
                scope: entry.scope.as_ref(),
                protocol: protocol(entry.protocol),
                ports: entry.ports.clone(),
            };
            ways.entry(way).or_default().extend(entry.to.iter().map(|to| (entry.id.clone(), &to.target)));
        }
        let mut rules: [Vec<Rule>; 2] = Default::default();
        for (way, destinations) in ways {
            rules[usize::from(way.scope.is_some())].extend(self.way(&way, &destinations, pins, facts));
        }
        let [everybody, scoped] = rules;
        [Chain::regular("outbound", everybody), Chain::regular("outbound_scoped", scoped)]
    }

    fn way(&mut self, way: &Way, destinations: &Destinations, pins: &Pins, facts: &Facts) -> Vec<Rule> {
        let id = rule_id(way, destinations);
        let scope = way.scope.map(|scope| self.scope(scope, facts));
        let mut rules = Vec::new();
        for family in Family::BOTH {
            let (addresses, networks) = self.destination_sets(way, destinations, family, pins);
            for set in [addresses, networks].into_iter().flatten() {
                for range in way.ports.ranges() {
                    // ORDER: the look-up last, so that an element counts only packets that pass.
                    let mut tests = vec![ports(Field::DestinationPort(way.protocol), *range)];
                    tests.extend(scope.clone());
                    tests.push(in_set(Field::DestinationAddress(family), set.def.name.clone()));
                    rules.push(Rule::new(id.clone(), tests, vec![], Action::Accept));
                }
                self.add_set(set);
            }
        }
        rules
    }

    /// The set of addresses and the set of networks of one family, as far as there are any. Names always make a set of
    /// addresses, empty as it may be: the rule stays the same when the first pin comes.
    fn destination_sets(&self, way: &Way, destinations: &Destinations, family: Family, pins: &Pins) -> (Option<Set>, Option<Set>) {
        let mut has_names = false;
        let mut sources: BTreeMap<IpAddr, Vec<(&Slug, &Target)>> = BTreeMap::new();
        let mut expiries: BTreeMap<IpAddr, Option<Timestamp>> = BTreeMap::new();
        let mut networks: BTreeMap<IpNet, Vec<(&Slug, &Target)>> = BTreeMap::new();
        let mut reach = |address: IpAddr, expires: Option<Timestamp>, source| {
            sources.entry(address).or_default().push(source);
            // An address that several sources name lives as long as the longest of them; one that the policy itself names, for ever.
            let known = expiries.entry(address).or_insert(expires);
            *known = known.zip(expires).map(|(known, new)| known.max(new));
        };
        for (rule, target) in destinations {
            match target {
                Target::Name(name) => {
                    has_names = true;
                    let leases = pins.names.get(name).into_iter().flat_map(|pins| &pins.leases);
                    for (address, lease) in leases.filter(|(address, _)| Family::of(address) == family) {
                        reach(*address, Some(lease.expires), (rule, *target));
                    }
                }
                Target::Net(net) if Family::of_net(net) != family => {}
                Target::Net(net) if net.prefix_len() == net.max_prefix_len() => reach(net.addr(), None, (rule, *target)),
                Target::Net(net) => networks.entry(*net).or_default().push((rule, *target)),
            }
        }
        let addresses = (has_names || !sources.is_empty()).then(|| {
            let mut set = Set::of_addresses(set_name(way, "", family), family);
            for (address, sources) in sources {
                let expires = expiries.get(&address).copied().flatten();
                set.add_address(&address, Member { last: None, expires, comment: comment(sources) });
            }
            set
        });
        let networks = (!networks.is_empty()).then(|| {
            let mut set = Set::of_networks(set_name(way, "net_", family), family);
            // Intervals of a set must not overlap. A network inside another adds nothing; in this order the outer comes first.
            let mut outer: Option<IpNet> = None;
            for (net, sources) in networks {
                if !outer.is_some_and(|outer| outer.contains(&net)) {
                    outer = Some(net);
                    set.add_network(&net, comment(sources));
                }
            }
            set
        });
        (addresses, networks)
    }

    /// The test for whose packet it is. A unit is looked up in a set, so that its restart changes an element and no rule.
    fn scope(&mut self, scope: &Scope, facts: &Facts) -> Test {
        let named = |field, name: &str, known: &BTreeMap<String, u32>| match known.get(name) {
            Some(number) => is(field, *number),
            None => Test { field, operator: Operator::IsNamed(name.to_string()) },
        };
        match scope {
            Scope::User(name) => named(Field::SocketUser, name, &facts.users),
            Scope::Uid(number) => is(Field::SocketUser, *number),
            Scope::Group(name) => named(Field::SocketGroup, name, &facts.groups),
            Scope::Gid(number) => is(Field::SocketGroup, *number),
            Scope::Service(unit) => {
                let running = facts.units.get(unit.as_ref());
                let level =
                    running.map_or(UNIT_LEVEL, |(path, _)| path.split('/').filter(|part| !part.is_empty()).count().clamp(1, 15) as u8);
                let name = identifier(&format!("unit_{unit}"));
                self.add_set(Set::of_unit(name.clone(), running.map(|(_, id)| *id), unit));
                in_set(Field::SocketCgroup(level), name)
            }
        }
    }
}

/// The ways to a server: plain DNS over UDP and, for long answers, TCP.
fn resolver_ways(server: &DnsServer) -> Vec<(Way<'static>, Target)> {
    let way = |protocol, port: u16| Way { purpose: Purpose::Resolver, scope: None, protocol, ports: PortSet::single(port) };
    match server {
        DnsServer::System => Vec::new(),
        DnsServer::Plain { address, port } => {
            [Protocol::UDP, Protocol::TCP].map(|protocol| (way(protocol, *port), Target::Net(IpNet::from(*address)))).to_vec()
        }
        DnsServer::Tls { address, port, .. } => vec![(way(Protocol::TCP, *port), Target::Net(IpNet::from(*address)))],
    }
}

fn built_in(id: &str) -> Slug {
    Slug::nearest(id, "built-in")
}

/// The policy rule's id, or what the rule serves when several policy rules share it.
fn rule_id(way: &Way, destinations: &Destinations) -> String {
    match destinations.as_slice() {
        [(first, _), rest @ ..] if rest.iter().all(|(id, _)| id == first) => first.to_string(),
        _ => format!("outbound {} {}{}", way.protocol, way.ports, way.scope.map(|scope| format!(" for {scope}")).unwrap_or_default()),
    }
}

fn set_name(way: &Way, kind: &str, family: Family) -> String {
    let purpose = match way.purpose {
        Purpose::Resolver => "resolver_",
        Purpose::Ntp => "ntp_",
        Purpose::Outbound => "",
    };
    let scope = way.scope.map(|scope| format!("{scope}_")).unwrap_or_default();
    identifier(&format!("{purpose}{scope}{}_{}_{kind}{}", way.protocol, way.ports, family.suffix()))
}

/// A name that nft reads as one: at most 60 of `a-z A-Z 0-9 _ . -`. Texts that do not fit keep their beginning, and a digest of
/// the whole keeps them apart.
fn identifier(text: &str) -> String {
    let plain: String = text.chars().map(|c| if c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-') { c } else { '_' }).collect();
    // Spaces and commas are ours and cannot be mistaken; any other character that had to be replaced could.
    let ambiguous = text.chars().any(|c| !(c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-' | ' ' | ',')));
    if plain.len() <= 60 && !ambiguous {
        return plain;
    }
    let digest = Sha256::digest(text.as_bytes());
    let suffix: String = digest.iter().take(4).map(|octet| format!("{octet:02x}")).collect();
    format!("{}_{suffix}", plain.chars().take(50).collect::<String>())
}

fn ports(field: Field, range: PortRange) -> Test {
    if range.first() == range.last() {
        return is(field, range.first());
    }
    Test { field, operator: Operator::Within(range.first().into(), range.last().into()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifiers_fit_and_stay_apart() {
        assert_eq!(identifier("user backend_tcp_443,8000-8080_v4"), "user_backend_tcp_443_8000-8080_v4");
        let long = identifier(&"x".repeat(300));
        assert!(long.len() <= 60);
        assert_ne!(identifier("unit_a@b.service"), identifier("unit_a:b.service"));
    }
}
