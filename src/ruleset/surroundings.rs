//! What else of a host meets packets besides our table: other people's chains, as far as they matter to what our rules decide, and
//! the links. Values only; what they mean for us is judged elsewhere.

use std::collections::{BTreeMap, BTreeSet};

/// All of it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Surroundings {
    /// Other people's tables of nf_tables.
    pub tables: BTreeMap<(Family, String), OtherTable>,
    /// Tables of the older iptables that are in use, as `ip filter`.
    pub legacy: Vec<String>,
    /// The links, by name.
    pub links: Vec<Link>,
    /// Sockets that send and receive frames (AF_PACKET).
    pub packet_sockets: usize,
    /// Whether packets are forwarded: IPv4, IPv6.
    pub forwards: [bool; 2],
    /// What could not be looked at, and why.
    pub unseen: Vec<String>,
}

/// A family of tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs)]
pub enum Family {
    Inet,
    Ip,
    Ip6,
    Arp,
    Bridge,
    Netdev,
    Other(u8),
}

/// Somebody else's table.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct OtherTable {
    /// Whether it is switched off.
    pub dormant: bool,
    /// Its chains by name.
    pub chains: BTreeMap<String, OtherChain>,
    /// Its flowtables.
    pub flowtables: Vec<String>,
}

/// Somebody else's chain.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct OtherChain {
    /// Where it hangs; `None`: others jump to it.
    pub base: Option<OtherBase>,
    /// What its rules do, in order.
    pub effects: Vec<Effect>,
}

/// Where a chain hangs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OtherBase {
    /// `filter`, `nat` or `route`.
    pub kind: String,
    /// The hook, in nft's word.
    pub hook: &'static str,
    /// Lower comes first.
    pub priority: i32,
    /// Whether packets pass that no rule decides.
    pub accepts: bool,
    /// The links it hangs at, where it hangs at some.
    pub devices: Vec<String>,
}

/// What a rule does to packets. An accept is none: it ends the chain it stands in and nothing else.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Effect {
    /// It ends them, with or without a word.
    Drop,
    /// It leaves the decision to a program, which may change them too.
    Queue,
    /// It has connection tracking ignore them.
    Untrack,
    /// It changes where they come from.
    TranslateSource,
    /// It changes where they go to.
    TranslateDestination,
    /// It hands them to a local socket.
    Intercept,
    /// It writes into their addresses or ports.
    Rewrite,
    /// It sends them out by another link.
    SendOn,
    /// It sends a copy of them elsewhere.
    Copy,
    /// It has the rest of their flow go past the hooks.
    Offload,
    /// It sends them through another chain of its table.
    Enter(String),
    /// A map says what becomes of them: it may send them through any chain of its table.
    Choose,
    /// Nobody knows: an expression of this name is not understood here.
    Unknown(String),
}

/// A network link.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Link {
    /// Its name.
    pub name: String,
    /// What kind of virtual link it is; empty for hardware and loopback.
    pub kind: String,
    /// Whether its other end, or the link below it, is in another network namespace.
    pub reaches_elsewhere: bool,
    /// Whether an XDP program is attached.
    pub xdp: bool,
    /// Whether filters of traffic control are attached.
    pub filters: bool,
}

impl Family {
    /// The family of an `NFPROTO_*` number.
    pub fn from_number(number: u8) -> Family {
        match number {
            1 => Family::Inet,
            2 => Family::Ip,
            3 => Family::Arp,
            5 => Family::Netdev,
            7 => Family::Bridge,
            10 => Family::Ip6,
            other => Family::Other(other),
        }
    }

    /// nft's word.
    pub fn keyword(self) -> &'static str {
        match self {
            Family::Inet => "inet",
            Family::Ip => "ip",
            Family::Ip6 => "ip6",
            Family::Arp => "arp",
            Family::Bridge => "bridge",
            Family::Netdev => "netdev",
            Family::Other(_) => "unknown",
        }
    }

    /// nft's word for a hook of this family: `NF_INET_*`, `NF_ARP_*`, `NF_NETDEV_*`; those of bridges have the numbers of `NF_INET_*`.
    pub fn hook(self, number: u32) -> &'static str {
        let words: &[&'static str] = match self {
            Family::Arp => &["input", "output", "forward"],
            Family::Netdev => &["ingress", "egress"],
            _ => &["prerouting", "input", "forward", "output", "postrouting", "ingress"],
        };
        usize::try_from(number).ok().and_then(|number| words.get(number)).copied().unwrap_or("unknown")
    }
}

impl OtherTable {
    /// Everything that the rules of a chain do, those of chains that it goes through included; sorted. What a map may send packets
    /// through counts as gone through.
    pub fn reached(&self, chain: &str) -> BTreeSet<&Effect> {
        let mut seen = BTreeSet::from([chain]);
        let mut next = vec![chain];
        let mut effects = BTreeSet::new();
        while let Some(name) = next.pop() {
            for effect in self.chains.get(name).into_iter().flat_map(|chain| &chain.effects) {
                match effect {
                    Effect::Enter(other) => next.extend(seen.insert(other).then_some(other.as_str())),
                    Effect::Choose if effects.insert(effect) => {
                        let others = self.chains.iter().filter(|(_, chain)| chain.base.is_none());
                        next.extend(others.map(|(name, _)| name.as_str()).filter(|name| seen.insert(name)));
                    }
                    done => {
                        effects.insert(done);
                    }
                }
            }
        }
        effects
    }
}
