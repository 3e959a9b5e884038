//! A box of the packet space in the words that people use: per dimension for programs, and as one phrase.

use std::collections::{BTreeMap, BTreeSet};

use crate::base::net::{Family, IpNet, Protocol};
use crate::base::packet::Direction;
use crate::judge::compare::dimension::{Dimension, Place, address};
use crate::judge::compare::gather::Part;
use crate::judge::compare::symbol::{Symbol, Symbols};
use crate::judge::compare::values::Values;
use crate::ruleset::field::{Field, TCP_ACK, TCP_RST, ct_state};

/// The bounds of each dimension in words. The first nine are always said; the others only where something is bounded.
pub type Space = Vec<(&'static str, String)>;

/// What is not bounded.
const ANY: &str = "any";

/// A box, dimension by dimension.
pub fn space(part: &Part, symbols: &Symbols) -> Space {
    let words = Words { part, symbols };
    let listed = |items: Option<Items>| items.map_or_else(|| ANY.to_string(), |items| items.listed());
    let mut space = vec![
        ("direction", words.directions()),
        ("family", listed(words.family())),
        ("protocol", listed(words.protocol())),
        ("from", listed(words.addresses(End::Source))),
        ("from_port", listed(words.numbers(Dimension::SourcePort))),
        ("to", listed(words.addresses(End::Destination))),
        ("to_port", listed(words.numbers(Dimension::DestinationPort))),
        ("owner", listed(words.owner())),
        ("state", listed(words.state())),
    ];
    let mut optional = |name, items: Option<Items>| space.extend(items.map(|items| (name, items.listed())));
    optional("group", words.group());
    optional("service", words.service());
    optional("translated", words.choice(Dimension::Translated, ["no", "yes"]));
    optional("original_port", words.numbers(Dimension::OriginalPort));
    optional("sender", words.choice(Dimension::Sender, ["asks", "answers"]));
    optional("icmp_type", words.types(Dimension::IcmpType, Field::IcmpType));
    optional("icmpv6_type", words.types(Dimension::Icmpv6Type, Field::Icmpv6Type));
    optional("hop_limit", words.numbers(Dimension::HopLimit));
    optional("tcp_flags", words.flags());
    if part.places.iter().any(|place| !matches!(place, Place::Wire(_))) {
        space.push(("interface", "loopback".to_string()));
    }
    space
}

/// A box as pieces of a phrase, the first of which says protocol, port and addresses.
pub fn phrases(part: &Part, symbols: &Symbols) -> Vec<String> {
    let words = Words { part, symbols };
    let mut first = match (words.protocol(), words.numbers(Dimension::DestinationPort)) {
        (None, _) => "any packet".to_string(),
        (Some(protocol), None) if words.has_ports() => format!("any {} port", protocol.or()),
        (Some(protocol), None) => protocol.or(),
        (Some(protocol), Some(Items::But(ports))) => format!("any {} port but {}", protocol.or(), Items::Of(ports).or()),
        (Some(protocol), Some(ports)) => format!("{} port {}", protocol.or(), ports.or()),
    };
    let (to, from) = (words.addresses(End::Destination), words.addresses(End::Source));
    // A network says of which family it is.
    let is_said =
        [&to, &from].into_iter().flatten().any(|addresses| matches!(addresses, Items::Of(all) if all.iter().any(|one| is_net(one))));
    if let Some(family) = words.family().filter(|_| !is_said) {
        first = format!("{first} over {}", family.or());
    }
    let outward = part.places.iter().any(|place| place.direction() != Direction::In);
    match to {
        Some(to) => first = format!("{first} {} {}", if outward { "of" } else { "to" }, to.or()),
        None if outward => first.push_str(" of any address"),
        None => {}
    }
    if let Some(from) = from {
        first = format!("{first} from {}", from.or());
    }
    let mut phrases = vec![first];
    let mut add = |word: &str, items: Option<Items>| phrases.extend(items.map(|items| format!("{word}{}", items.or())));
    add("from port ", words.numbers(Dimension::SourcePort));
    add("", words.owner());
    add("group ", words.group());
    add("service ", words.service());
    // Nobody needs to hear that connections which exist go on: they do so under every policy.
    let state = part.bound(Dimension::State).filter(|states| !states.contains(ct_state::NEW));
    add("state ", state.and(words.state()));
    add("", words.choice(Dimension::Translated, ["not translated", "translated"]));
    add("originally to port ", words.numbers(Dimension::OriginalPort));
    add("", words.choice(Dimension::Sender, ["questions only", "answers only"]));
    add("type ", words.types(Dimension::IcmpType, Field::IcmpType));
    // Both kinds of an echo request are called the same.
    let both = words.types(Dimension::IcmpType, Field::IcmpType);
    let v6 = words.types(Dimension::Icmpv6Type, Field::Icmpv6Type);
    add("type ", v6.filter(|v6| both.as_ref() != Some(v6)));
    add("hop limit ", words.numbers(Dimension::HopLimit));
    add("TCP flags ", words.flags());
    if part.places.iter().any(|place| !matches!(place, Place::Wire(_))) {
        phrases.push("by loopback".to_string());
    }
    phrases
}

/// What a dimension is bounded to, or what it is all but.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Items {
    Of(Vec<String>),
    But(Vec<String>),
}

/// How many items a phrase names before it counts them.
const NAMED: usize = 6;

impl Items {
    /// All of them.
    fn listed(&self) -> String {
        match self {
            Items::Of(items) => items.join(", "),
            Items::But(items) => format!("any but {}", items.join(", ")),
        }
    }

    /// The first of them, in a sentence.
    fn or(&self) -> String {
        let (prefix, items) = match self {
            Items::Of(items) => ("", items),
            Items::But(items) => ("any but ", items),
        };
        let mut named: Vec<&str> = items.iter().map(String::as_str).take(NAMED).collect();
        let rest = items.len() - named.len();
        if rest > 0 {
            return format!("{prefix}{} and {rest} more", named.join(", "));
        }
        match named.pop() {
            Some(end) if !named.is_empty() => format!("{prefix}{} or {end}", named.join(", ")),
            end => format!("{prefix}{}", end.unwrap_or_default()),
        }
    }
}

/// An end of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Source,
    Destination,
}

struct Words<'a> {
    part: &'a Part,
    symbols: &'a Symbols,
}

impl Words<'_> {
    fn directions(&self) -> String {
        let mut directions: Vec<&str> = self.part.places.iter().map(|place| direction(place.direction())).collect();
        directions.dedup();
        directions.join(", ")
    }

    fn family(&self) -> Option<Items> {
        let families = self.part.bound(Dimension::Family)?;
        let names = [(Family::V4, "IPv4"), (Family::V6, "IPv6")];
        Some(Items::Of(
            names.iter().filter(|(family, _)| families.contains(family.nfproto().into())).map(|(_, name)| name.to_string()).collect(),
        ))
    }

    fn has_ports(&self) -> bool {
        let ported = Values::points([Protocol::TCP, Protocol::UDP].map(|protocol| protocol.0.into()));
        self.part.bound(Dimension::Protocol).is_some_and(|protocols| ported.covers(protocols))
    }

    fn protocol(&self) -> Option<Items> {
        let name = |value: u128| Protocol(u8::try_from(value).unwrap_or(u8::MAX)).to_string();
        self.bounded(Dimension::Protocol, |(first, last)| (first..=last).map(name).collect())
    }

    fn numbers(&self, dimension: Dimension) -> Option<Items> {
        self.bounded(dimension, |interval| vec![range(interval)])
    }

    fn types(&self, dimension: Dimension, field: Field) -> Option<Items> {
        self.bounded(dimension, |(first, last)| if first == last { vec![field.write(first)] } else { vec![range((first, last))] })
    }

    fn state(&self) -> Option<Items> {
        let states = [
            (ct_state::NEW, "new"),
            (ct_state::ESTABLISHED, "established"),
            (ct_state::RELATED, "related"),
            (ct_state::INVALID, "invalid"),
        ];
        let bound = self.part.bound(Dimension::State)?;
        let (inside, outside): (Vec<_>, Vec<_>) = states.iter().partition(|(bit, _)| bound.contains(*bit));
        let named = |states: Vec<&(u128, &str)>| states.iter().map(|(_, name)| name.to_string()).collect();
        Some(if outside.len() == 1 { Items::But(named(outside)) } else { Items::Of(named(inside)) })
    }

    fn choice(&self, dimension: Dimension, words: [&str; 2]) -> Option<Items> {
        let bound = self.part.bound(dimension)?;
        Some(Items::Of(
            words.iter().enumerate().filter(|(value, _)| bound.contains(*value as u128)).map(|(_, word)| word.to_string()).collect(),
        ))
    }

    fn flags(&self) -> Option<Items> {
        let bound = self.part.bound(Dimension::TcpFlags)?;
        let masks = [(TCP_RST | TCP_ACK, ["ack or rst", "neither ack nor rst"]), (TCP_RST, ["rst", "no rst"])];
        let is = |wanted: &dyn Fn(u128) -> bool| {
            let bound = bound.intervals().iter().flat_map(|(first, last)| *first..=*last);
            bound.eq((0..=255).filter(|flags| wanted(*flags)))
        };
        let said = masks.into_iter().find_map(|(mask, [any, none])| match () {
            () if is(&|flags| flags & mask != 0) => Some(any),
            () if is(&|flags| flags & mask == 0) => Some(none),
            () => None,
        });
        Some(match said {
            Some(said) => Items::Of(vec![said.to_string()]),
            None => Items::Of(bound.intervals().iter().map(|(first, last)| format!("{first:#04x}-{last:#04x}")).collect()),
        })
    }

    fn owner(&self) -> Option<Items> {
        let users = self.bounded(Dimension::User, |interval| self.accounts(interval, &self.symbols.users, ["user", "uid"]));
        match (self.part.bound(Dimension::Socket), users) {
            (_, Some(users)) => Some(users),
            (Some(socket), None) if socket.contains(0) => Some(Items::Of(vec!["the kernel itself".to_string()])),
            (Some(_), None) if self.group().is_none() && self.service().is_none() => Some(Items::Of(vec!["any program".to_string()])),
            _ => None,
        }
    }

    fn group(&self) -> Option<Items> {
        let unnamed = |interval| self.accounts(interval, &self.symbols.groups, ["", "gid"]);
        self.bounded(Dimension::Group, |interval| unnamed(interval).into_iter().map(|word| word.trim_start().to_string()).collect())
    }

    fn accounts(&self, (first, last): (u128, u128), names: &BTreeMap<u32, String>, words: [&str; 2]) -> Vec<String> {
        let one = u32::try_from(first).ok().filter(|_| first == last);
        match one.and_then(|number| names.get(&number)) {
            Some(name) => vec![format!("{} {name}", words[0])],
            None => vec![format!("{} {}", words[1], range((first, last)))],
        }
    }

    fn service(&self) -> Option<Items> {
        let bound = self.part.bound(Dimension::Unit)?;
        let named = |inside: bool| {
            let units = self.symbols.units.iter().enumerate().filter(|(at, _)| bound.contains(*at as u128 + 1) == inside);
            units.map(|(_, unit)| unit.name.clone()).collect::<Vec<_>>()
        };
        Some(if bound.contains(0) { Items::But(named(false)) } else { Items::Of(named(true)) })
    }

    /// The values of a dimension, or those that are missing where they are fewer.
    fn bounded(&self, dimension: Dimension, word: impl Fn((u128, u128)) -> Vec<String>) -> Option<Items> {
        let bound = self.part.bound(dimension)?;
        let missing = dimension.domain().without(bound);
        let worded = |values: &Values| values.intervals().iter().flat_map(|interval| word(*interval)).collect::<Vec<_>>();
        // Two ends of a domain say less than the one piece between them.
        let but = missing.intervals().len() < bound.intervals().len()
            || (bound.contains(0) && missing.intervals().len() == bound.intervals().len() && size(&missing) < size(bound));
        Some(if but && !missing.is_empty() { Items::But(worded(&missing)) } else { Items::Of(worded(bound)) })
    }

    /// The addresses of both families; `None` when all are meant.
    fn addresses(&self, end: End) -> Option<Items> {
        let mut of: Vec<String> = Vec::new();
        let mut but: Vec<String> = Vec::new();
        let mut rest: Vec<&str> = Vec::new();
        let here: Vec<Family> = Family::BOTH.into_iter().filter(|family| self.part.has(*family)).collect();
        for family in &here {
            let (dimension, name) = match (end, family) {
                (End::Source, Family::V4) => (Dimension::SourceV4, "any IPv4 address"),
                (End::Source, Family::V6) => (Dimension::SourceV6, "any IPv6 address"),
                (End::Destination, Family::V4) => (Dimension::DestinationV4, "any IPv4 address"),
                (End::Destination, Family::V6) => (Dimension::DestinationV6, "any IPv6 address"),
            };
            let Some(bound) = self.part.bound(dimension) else {
                rest.push(name);
                continue;
            };
            let domain = self.part.places.first().copied().unwrap_or(Place::Wire(Direction::Out)).domain(dimension);
            if *bound == domain {
                rest.push(name);
                continue;
            }
            // Of more than half of the addresses it is said what is missing.
            let (list, words) = if size(bound) > size(&domain) / 2 {
                rest.push(name);
                (&mut but, self.written(*family, &domain.without(bound)))
            } else {
                (&mut of, self.written(*family, bound))
            };
            // Names stand in both families; they are said once.
            let said: BTreeSet<String> = list.iter().cloned().collect();
            list.extend(words.into_iter().filter(|word| !said.contains(word)));
        }
        match (of.is_empty(), but.is_empty()) {
            (true, true) => None,
            (true, false) => Some(Items::But(but)),
            // One family by its addresses, the other by what is missing of it.
            (false, _) => {
                let but = if but.is_empty() { String::new() } else { format!(" but {}", but.join(", ")) };
                of.extend(rest.iter().map(|name| format!("{name}{but}")));
                Some(Items::Of(of))
            }
        }
    }

    /// Names first, then networks.
    fn written(&self, family: Family, values: &Values) -> Vec<String> {
        let mut names: Vec<String> = Vec::new();
        let mut networks: Vec<String> = Vec::new();
        for (first, last) in values.intervals() {
            let held: Vec<(u128, &Symbol)> = self
                .symbols
                .addresses
                .range(address(family, *first)..=address(family, *last))
                .map(|(at, symbol)| (super::dimension::number(at), symbol))
                .collect();
            let word = |symbol: &Symbol| match symbol {
                Symbol::Name(name) => name.to_string(),
                Symbol::SystemServers => "the system's DNS servers".to_string(),
            };
            names.extend(held.iter().map(|(_, symbol)| word(symbol)));
            // What stands for names only is no network; what is wider holds them.
            if (held.len() as u128) <= last - first {
                networks.extend(cover(family, *first, *last).iter().map(written_net));
            }
        }
        names.sort();
        names.dedup();
        names.extend(networks);
        names
    }
}

/// Whether a word is an address or a network.
fn is_net(word: &str) -> bool {
    word.parse::<IpNet>().is_ok() || word.parse::<std::net::IpAddr>().is_ok()
}

/// How many values there are, as far as that can be counted.
fn size(values: &Values) -> u128 {
    values.intervals().iter().fold(0, |sum: u128, (first, last)| sum.saturating_add(last - first))
}

fn range((first, last): (u128, u128)) -> String {
    if first == last { first.to_string() } else { format!("{first}-{last}") }
}

fn written_net(net: &IpNet) -> String {
    if net.prefix_len() == net.max_prefix_len() { net.addr().to_string() } else { net.to_string() }
}

/// The fewest networks that cover an interval exactly, in order.
fn cover(family: Family, first: u128, last: u128) -> Vec<IpNet> {
    let mut networks = Vec::new();
    let mut at = first;
    loop {
        let mut free = if at == 0 { u32::from(family.bits()) } else { at.trailing_zeros().min(family.bits().into()) };
        // The largest network that begins here and does not reach beyond the end.
        while free > 0 && (free == 128 && (at, last) != (0, u128::MAX) || free < 128 && last - at < (1 << free) - 1) {
            free -= 1;
        }
        let length = family.bits() - u8::try_from(free).unwrap_or_default();
        networks.extend(IpNet::new(address(family, at), length));
        let size = 1u128.checked_shl(free).unwrap_or(0);
        match at.checked_add(size).filter(|next| size > 0 && *next <= last) {
            Some(next) => at = next,
            None => return networks,
        }
    }
}

/// The word for a direction.
pub fn direction(direction: Direction) -> &'static str {
    match direction {
        Direction::In => "in",
        Direction::Out => "out",
        Direction::Forward => "forward",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interval_is_covered_exactly_by_few_networks() {
        let covered = |first: &str, last: &str| {
            let number = |text: &str| crate::judge::compare::dimension::number(&text.parse().unwrap());
            let family = Family::of(&first.parse().unwrap());
            cover(family, number(first), number(last)).iter().map(written_net).collect::<Vec<_>>()
        };
        assert_eq!(covered("10.0.0.0", "10.255.255.255"), ["10.0.0.0/8"]);
        assert_eq!(covered("0.0.0.0", "255.255.255.255"), ["0.0.0.0/0"]);
        assert_eq!(covered("192.0.2.1", "192.0.2.4"), ["192.0.2.1", "192.0.2.2/31", "192.0.2.4"]);
        assert_eq!(covered("::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"), ["::/0"]);
        assert_eq!(covered("8000::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"), ["8000::/1"]);
        assert_eq!(covered("255.255.255.255", "255.255.255.255"), ["255.255.255.255"]);
    }
}
