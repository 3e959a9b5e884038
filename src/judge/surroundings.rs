//! What other people's chains, and the links, mean for our rules.
//!
//! A drop in any chain is final, an accept ends only the chain it stands in: so other chains can close more than the policy says, and
//! cannot open anything by accepting. What can open something is what changes packets after our rules have judged them, or takes them
//! past the hooks.

use std::collections::BTreeSet;

use crate::policy::{Forward, Policy};
use crate::ruleset::surroundings::{Effect, Family, Link, OtherBase, OtherTable, Surroundings};

/// The priority of our base chains.
const OURS: i32 = 0;

/// Something that is not ours, and what it means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What it is and where.
    pub what: String,
    /// What it means for our rules.
    pub means: String,
    /// How much.
    pub weight: Weight,
}

/// What something means for our rules, the worst first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Weight {
    /// Packets that our rules have let pass to one destination can go to another: the rules do not hold.
    Defeats,
    /// Some packets do not meet our rules.
    Bypasses,
    /// What our rules see was changed before, or a program decides.
    Changes,
    /// It can refuse what our rules allow.
    Shadows,
    /// Nothing.
    Harmless,
}

impl Weight {
    /// Its word.
    pub fn word(self) -> &'static str {
        match self {
            Weight::Defeats => "defeats",
            Weight::Bypasses => "bypasses",
            Weight::Changes => "changes",
            Weight::Shadows => "shadows",
            Weight::Harmless => "harmless",
        }
    }
}

/// What no look at a network namespace shows from inside.
pub const NEVER_SEEN: [&str; 5] = [
    "programs of other network namespaces, whose packets meet our rules only where they pass through this one",
    "macvlan and ipvlan links that other namespaces have on links of this one",
    "tcx programs, netfilter programs of BPF, and AF_XDP sockets",
    "hooks of kernel modules that are not nf_tables or iptables",
    "rules inside tables of the older iptables",
];

/// Everything that is not ours and what it means, the worst first.
pub fn findings(around: &Surroundings, policy: &Policy) -> Vec<Finding> {
    let mut found = Vec::new();
    for ((family, name), table) in &around.tables {
        of_table(&mut found, *family, name, table);
    }
    found.extend(around.legacy.iter().map(|table| {
        Finding {
            what: format!("table `{table}` of the older iptables"),
            means: "its rules are not read here: a drop of it is final, an accept opens nothing, a translation changes what our rules see"
                .to_string(),
            weight: Weight::Changes,
        }
    }));
    for link in &around.links {
        of_link(&mut found, link);
    }
    if around.packet_sockets > 0 {
        let sockets = if around.packet_sockets == 1 {
            "one packet socket is open".into()
        } else {
            format!("{} packet sockets are open", around.packet_sockets)
        };
        found.push(Finding {
            what: format!("{sockets} (AF_PACKET; `ss -0p` names the programs)"),
            means: "frames that a program sends through one meet no rule of any table but `netdev` ones".to_string(),
            weight: Weight::Bypasses,
        });
    }
    for (family, _) in ["IPv4", "IPv6"].into_iter().zip(around.forwards).filter(|(_, forwards)| *forwards) {
        let means = match policy.host.forward {
            Forward::Contain => "what passes through meets chain `forward`, and obeys the policy (`host.forward: contain`)",
            Forward::Deny => "what passes through meets chain `forward`, and is refused (`host.forward: deny`)",
        };
        found.push(Finding { what: format!("this host forwards {family}"), means: means.to_string(), weight: Weight::Harmless });
    }
    found.sort_by_key(|finding| finding.weight);
    found
}

fn of_table(found: &mut Vec<Finding>, family: Family, name: &str, table: &OtherTable) {
    let of = format!("table `{} {name}`", family.keyword());
    if table.dormant {
        found.push(Finding {
            what: format!("{of}, which is switched off"),
            means: "none of its chains is met by any packet".to_string(),
            weight: Weight::Harmless,
        });
        return;
    }
    for flowtable in &table.flowtables {
        let used = table.chains.values().any(|chain| chain.effects.contains(&Effect::Offload));
        let (means, weight) = match used {
            true => (
                "flows that it has taken go past chain `forward`: they end neither when the policy is tightened nor in quarantine",
                Weight::Bypasses,
            ),
            false => ("no rule puts a flow into it", Weight::Harmless),
        };
        found.push(Finding { what: format!("flowtable `{flowtable}` of {of}"), means: means.to_string(), weight });
    }
    for (chain, base) in table.chains.iter().filter_map(|(name, chain)| Some((name, chain.base.as_ref()?))) {
        let (means, weight) = of_chain(family, base, &table.reached(chain));
        let devices = if base.devices.is_empty() { String::new() } else { format!(" of {}", base.devices.join(", ")) };
        let place = format!("{} at {}{devices}, priority {}", base.kind, base.hook, base.priority);
        found.push(Finding { what: format!("chain `{chain}` of {of} ({place})"), means: means.join("; "), weight });
    }
}

/// What a base chain means: every sentence that holds, and the worst weight of them.
fn of_chain(family: Family, base: &OtherBase, effects: &BTreeSet<&Effect>) -> (Vec<String>, Weight) {
    let does = |effect: &Effect| effects.contains(effect);
    let ip = matches!(family, Family::Inet | Family::Ip | Family::Ip6) && base.hook != "ingress";
    // Frames leave by netdev egress after every hook of IP; bridges decide between ports, not about this host.
    let behind = match (family, base.hook) {
        (Family::Netdev, "egress") => true,
        (Family::Netdev, _) => false,
        (_, "postrouting") => true,
        (_, "input" | "output" | "forward") => base.priority >= OURS,
        _ => false,
    };
    let mut said: Vec<(Weight, &str)> = Vec::new();
    if does(&Effect::Rewrite) {
        said.push(match behind {
            true => (Weight::Defeats, "it writes into addresses or ports after our rules have judged them"),
            false => (Weight::Changes, "it writes into addresses or ports before our rules see them"),
        });
    }
    if does(&Effect::SendOn) {
        said.push((Weight::Bypasses, "it sends frames out by another link, past our rules"));
    }
    if does(&Effect::Copy) {
        said.push((Weight::Bypasses, "it sends copies of packets elsewhere, which our rules do not judge by where the copy goes"));
    }
    if does(&Effect::Queue) {
        said.push((Weight::Changes, "it leaves packets to a program, which may refuse or change them"));
    }
    if effects.iter().any(|effect| matches!(effect, Effect::Unknown(_))) {
        said.push((Weight::Changes, "it has expressions that are not understood here, which may do anything"));
    }
    if does(&Effect::Intercept) {
        said.push((Weight::Changes, "it hands packets to a local socket, whatever port they ask for"));
    }
    if does(&Effect::TranslateDestination) {
        // Translations of any chain happen in one hook of the kernel's NAT (since 4.18), at -100: before chains of priority 0.
        said.push(match base.hook {
            "output" => (Weight::Changes, "it changes where packets go before our rules judge them: they judge the new destination"),
            _ => (Weight::Changes, "it changes where packets go before our rules judge them: another port may lead to the inbound port"),
        });
    }
    if does(&Effect::TranslateSource) {
        said.push((Weight::Harmless, "it changes where packets come from, after our rules"));
    }
    if does(&Effect::Untrack) {
        said.push((
            Weight::Shadows,
            "what it takes from connection tracking is nobody's answer: answers of allowed connections are refused",
        ));
    }
    if !base.accepts || does(&Effect::Drop) || does(&Effect::Choose) {
        said.push(match (family, ip) {
            (Family::Arp, _) => (Weight::Shadows, "it may keep this host from finding its neighbours"),
            (Family::Bridge, _) => (Weight::Shadows, "it may drop frames of a bridge"),
            _ => (Weight::Shadows, "it may drop what our rules allow; a drop anywhere is final"),
        });
    }
    if said.is_empty() {
        said.push((Weight::Harmless, "it drops and changes nothing; an accept ends that chain only, and opens nothing"));
    }
    let weight = said.iter().map(|(weight, _)| *weight).min().unwrap_or(Weight::Harmless);
    (said.into_iter().map(|(_, words)| words.to_string()).collect(), weight)
}

fn of_link(found: &mut Vec<Finding>, link: &Link) {
    let name = &link.name;
    let mut say = |what: String, means: &str, weight| found.push(Finding { what, means: means.to_string(), weight });
    if link.xdp {
        let means = "it sees frames before every table, and may drop, answer or send them on";
        say(format!("an XDP program at link `{name}`"), means, Weight::Bypasses);
    }
    if link.filters {
        let means = "they see frames before and after every table, and may change them or send them on";
        say(format!("filters of traffic control at link `{name}`"), means, Weight::Bypasses);
    }
    match link.kind.as_str() {
        "bridge" => say(
            format!("bridge `{name}`"),
            "what it passes between its ports does not meet our rules; what it passes to this host does",
            Weight::Bypasses,
        ),
        "macvtap" | "ipvtap" => say(
            format!("link `{name}` ({})", link.kind),
            "frames of whoever has opened it leave by the link below, past our rules",
            Weight::Bypasses,
        ),
        "veth" if link.reaches_elsewhere => say(
            format!("link `{name}` (veth) into another network namespace"),
            "what comes from there meets chain `input` or `forward`",
            Weight::Harmless,
        ),
        "macvlan" | "ipvlan" if link.reaches_elsewhere => say(
            format!("link `{name}` ({}) on a link of another network namespace", link.kind),
            "what this host sends by it meets our rules",
            Weight::Harmless,
        ),
        "tun" => {
            say(format!("link `{name}` (tun or tap)"), "what a program writes into it meets chain `input` or `forward`", Weight::Harmless);
        }
        _ => {}
    }
}
