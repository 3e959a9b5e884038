//! Sets as ipset holds them: type, options, elements, and the text that `ipset restore` takes.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::base::net::{Family, IpNet, from_octets};
use crate::base::time::Timestamp;
use crate::export::names::LOADING;
use crate::ruleset::program::Key;
use crate::ruleset::set::{DYNAMIC_SIZE, Set};

/// The longest time that ipset keeps an element, in seconds (`IPSET_MAX_TIMEOUT`): what lives longer is kept for ever.
pub const LIFE_MAX: u64 = i32::MAX as u64 / 1000;
/// How many elements a set has room for at least. Room costs nothing until it is used, and a set that grows stays the same set.
const ROOM: usize = 1 << 20;

/// A set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IpSet {
    /// Its name.
    pub name: String,
    /// What it is called in the rules, for people.
    pub meaning: String,
    /// Type and options.
    pub def: IpSetDef,
    /// Elements by what ipset prints; none for sets that rules fill.
    pub members: BTreeMap<String, IpSetMember>,
    /// Whether rules fill it.
    pub filled_by: FilledBy,
}

/// Who puts elements into a set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FilledBy {
    /// We do.
    Us,
    /// Rules do.
    Rules,
}

/// What a set is, besides its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IpSetDef {
    /// `hash:ip`, `hash:net` and so on.
    pub kind: String,
    /// Whose addresses.
    pub family: Family,
    /// How many elements at most.
    pub room: usize,
    /// How long an element lives that says nothing else, in seconds; 0: for ever. `None`: all live for ever.
    pub lives: Option<u64>,
    /// Whether elements count packets and octets.
    pub counters: bool,
    /// Whether elements have comments.
    pub comments: bool,
}

/// An element that we put into a set.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct IpSetMember {
    /// When it ends; `None`: with the policy.
    pub expires: Option<Timestamp>,
    /// Whose it is.
    pub comment: String,
}

/// What an element has counted: packets and octets.
pub type Counted = (u64, u64);

impl IpSet {
    /// A set of addresses or networks with what we put into it; the addresses that ipset does not take are the error.
    pub fn of(set: &Set, name: String, family: Family) -> Result<IpSet, Vec<IpAddr>> {
        let mut members = BTreeMap::new();
        let mut refused = Vec::new();
        for (key, member) in &set.members {
            match elements(key, member.last.as_ref()) {
                Ok(texts) => {
                    for text in texts {
                        members.insert(text, IpSetMember { expires: member.expires, comment: member.comment.clone() });
                    }
                }
                Err(address) => refused.push(address),
            }
        }
        if !refused.is_empty() {
            return Err(refused);
        }
        let def = IpSetDef {
            kind: if set.def.interval { "hash:net" } else { "hash:ip" }.to_string(),
            family,
            room: members.len().next_power_of_two().max(ROOM),
            lives: set.def.timeout.then_some(0),
            counters: set.def.counter,
            comments: true,
        };
        Ok(IpSet { name, meaning: set.def.name.clone(), def, members, filled_by: FilledBy::Us })
    }

    /// A set that rules fill.
    pub fn filled_by_rules(kind: &str, name: String, meaning: String, family: Family, lives: u64) -> IpSet {
        let def =
            IpSetDef { kind: kind.to_string(), family, room: DYNAMIC_SIZE as usize, lives: Some(lives), counters: true, comments: false };
        IpSet { name, meaning, def, members: BTreeMap::new(), filled_by: FilledBy::Rules }
    }

    /// The lines for `ipset restore` that make the set hold what is meant at `now`, whatever it holds: what we fill is filled beside it
    /// and then takes its place in one moment. What elements have counted before comes along.
    pub fn load(&self, now: Timestamp, counted: &BTreeMap<String, Counted>) -> String {
        let mut out = format!("create {} {} -exist\n", self.name, self.def.write());
        if self.filled_by == FilledBy::Rules {
            return out;
        }
        let _ = writeln!(out, "create {LOADING} {}", self.def.write());
        for (element, member) in &self.members {
            if let Some(words) = self.write_member(member, now, counted.get(element)) {
                let _ = writeln!(out, "add {LOADING} {element}{words}");
            }
        }
        let _ = writeln!(out, "swap {LOADING} {}\ndestroy {LOADING}", self.name);
        out
    }

    /// What stands behind an element; `None` when its time is over.
    fn write_member(&self, member: &IpSetMember, now: Timestamp, counted: Option<&Counted>) -> Option<String> {
        let mut out = String::new();
        if let Some(expires) = member.expires {
            let left = expires.since(now).seconds();
            if left == 0 {
                return None;
            }
            let _ = write!(out, " timeout {}", left.min(LIFE_MAX));
        }
        if let Some((packets, octets)) = counted.filter(|counted| **counted != (0, 0)) {
            let _ = write!(out, " packets {packets} bytes {octets}");
        }
        if !member.comment.is_empty() {
            let _ = write!(out, " comment \"{}\"", member.comment);
        }
        Some(out)
    }
}

impl IpSetDef {
    /// As `create` takes it.
    pub fn write(&self) -> String {
        let family = match self.family {
            Family::V4 => "inet",
            Family::V6 => "inet6",
        };
        let mut out = format!("{} family {family} maxelem {}", self.kind, self.room);
        if let Some(lives) = self.lives {
            let _ = write!(out, " timeout {lives}");
        }
        if self.counters {
            out.push_str(" counters");
        }
        if self.comments {
            out.push_str(" comment");
        }
        out
    }
}

/// An element as ipset writes it: a network of full length is an address, and the network of everything its two halves. The error is
/// what ipset does not take: the address of zeros, and intervals that are no network.
fn elements(first: &Key, last: Option<&Key>) -> Result<Vec<String>, IpAddr> {
    let address = from_octets(first).ok_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED))?;
    let last = last.and_then(|last| from_octets(last)).unwrap_or(address);
    if address == last {
        return if address.is_unspecified() { Err(address) } else { Ok(vec![address.to_string()]) };
    }
    let max = if address.is_ipv4() { 32 } else { 128 };
    let networks = (0..=max).filter_map(|length| IpNet::new(address, length).ok());
    let network = networks.into_iter().find(|net| net.network() == address && net.broadcast() == last).ok_or(address)?;
    if network.prefix_len() > 0 {
        return Ok(vec![network.to_string()]);
    }
    Ok(match network {
        IpNet::V4(_) => vec!["0.0.0.0/1".to_string(), "128.0.0.0/1".to_string()],
        IpNet::V6(_) => vec!["::/1".to_string(), format!("{}/1", Ipv6Addr::from_bits(1 << 127))],
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ruleset::set::Member;

    const NOW: Timestamp = Timestamp(1_000_000);

    fn pins(address: &str, member: Member) -> Set {
        let address: IpAddr = address.parse().unwrap();
        let mut set = Set::of_addresses("tcp_443_v4".to_string(), Family::of(&address));
        set.add_address(&address, member);
        set
    }

    #[test]
    fn a_set_is_filled_beside_and_then_takes_its_place() {
        let member = Member { last: None, expires: Some(Timestamp(1_000_060)), comment: "api.example.com".to_string() };
        let set = IpSet::of(&pins("192.0.2.1", member), "EGRESSGUARD-x".to_string(), Family::V4).unwrap();
        let expected = "\
create EGRESSGUARD-x hash:ip family inet maxelem 1048576 timeout 0 counters comment -exist
create EGRESSGUARD-loading hash:ip family inet maxelem 1048576 timeout 0 counters comment
add EGRESSGUARD-loading 192.0.2.1 timeout 60 packets 3 bytes 180 comment \"api.example.com\"
swap EGRESSGUARD-loading EGRESSGUARD-x
destroy EGRESSGUARD-loading
";
        assert_eq!(set.load(NOW, &BTreeMap::from([("192.0.2.1".to_string(), (3, 180))])), expected);
    }

    #[test]
    fn a_pin_whose_time_is_over_is_not_loaded_and_one_that_lives_long_ends_earlier() {
        let with = |expires: i64| {
            let member = Member { last: None, expires: Some(Timestamp(expires)), comment: String::new() };
            IpSet::of(&pins("192.0.2.1", member), "x".to_string(), Family::V4).unwrap().load(NOW, &BTreeMap::new())
        };
        assert!(!with(NOW.0).contains("add "));
        assert!(with(NOW.0 + 300 * 86_400).contains("add EGRESSGUARD-loading 192.0.2.1 timeout 2147483\n"));
    }

    #[test]
    fn everything_is_two_halves_and_nothing_is_refused() {
        let network = |text: &str| {
            let net: IpNet = text.parse().unwrap();
            let mut set = Set::of_networks("n".to_string(), Family::of_net(&net));
            set.add_network(&net, String::new());
            IpSet::of(&set, "n".to_string(), Family::of_net(&net)).map(|set| set.members.into_keys().collect::<Vec<_>>())
        };
        assert_eq!(network("0.0.0.0/0").unwrap(), ["0.0.0.0/1", "128.0.0.0/1"]);
        assert_eq!(network("::/0").unwrap(), ["8000::/1", "::/1"]);
        assert_eq!(network("10.0.0.0/8").unwrap(), ["10.0.0.0/8"]);
        assert_eq!(network("192.0.2.1/32").unwrap(), ["192.0.2.1"]);
        let zeros = IpSet::of(&pins("0.0.0.0", Member::default()), "x".to_string(), Family::V4);
        assert_eq!(zeros.unwrap_err(), [IpAddr::V4(Ipv4Addr::UNSPECIFIED)]);
    }
}
