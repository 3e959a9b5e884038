//! From a policy to rules. Total and deterministic: the same policy, pins and facts always make the same ruleset.
//!
//! This file holds the base chains and what a host needs to live; `outbound` the ways out, `refuse` what becomes of the rest.

mod outbound;
pub mod refuse;

use std::collections::BTreeMap;

use crate::base::net::{Family, IpNet, Protocol};
use crate::base::time::Timestamp;
use crate::pins::Pins;
use crate::policy::{DnsServer, Forward, Mode, Policy, QuarantineScope, Sources, Transport};
use crate::ruleset::field::{Field, LOOPBACK, NO_USER, STATUS_DNAT, TCP_ACK, TCP_RST, ct_state};
use crate::ruleset::program::{Hook, KeyType};
use crate::ruleset::rule::{Action, Rule, Test, has_any, in_set, is, is_not};
use crate::ruleset::set::Set;
use crate::ruleset::{Chain, IDENTITY_CHAIN, Identity, Ruleset, identity_rules};

/// What the host knows and the policy does not say.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Facts {
    /// Numbers of the users that the policy names; absent: not known.
    pub users: BTreeMap<String, u32>,
    /// Numbers of the groups that the policy names; absent: not known.
    pub groups: BTreeMap<String, u32>,
    /// Control groups of the units that the policy names: path below the root, and id. Absent: the unit does not run.
    pub units: BTreeMap<String, (String, u64)>,
    /// The servers that are asked, [`DnsServer::System`] already replaced by what it stands for.
    pub servers: Vec<DnsServer>,
    /// Since when somebody wants the whole host cut off, whatever the policy allows; `None`: nobody does.
    pub cut_off: Option<Timestamp>,
}

/// Compiles the rules of a policy. `generation` counts the applies of the host.
pub fn compile(policy: &Policy, pins: &Pins, facts: &Facts, generation: u64) -> Ruleset {
    // A policy that only observes cuts nobody off; whoever says so himself means it.
    let (cut, mode) = match facts.cut_off {
        Some(_) => (Cut::Now, Mode::Enforce),
        None => (Cut::ByRules, policy.mode),
    };
    let identity = Identity { policy: policy.name.clone(), sha256: policy.sha256.clone(), generation, mode };
    let mut compiler = Compiler { policy, mode, cut, sets: BTreeMap::new() };
    compiler.constant_sets();
    let outbound = compiler.outbound(pins, facts);
    let mut chains = vec![compiler.input(), compiler.output(), compiler.forward()];
    if policy.host.forward == Forward::Contain {
        chains.push(compiler.published());
    }
    chains.extend(outbound);
    chains.extend(compiler.essentials());
    chains.extend(compiler.refusals());
    chains.push(Chain::regular(IDENTITY_CHAIN, identity_rules(&identity)));
    Ruleset { identity, chains, sets: compiler.sets }
}

/// Destinations that never leave the link: IPv6 link-local unicast and multicast.
const LINK_SCOPE: &str = "link_scope_v6";
/// ICMP messages that are errors about a packet.
const ERRORS_V4: &str = "errors_v4";
const ERRORS_V6: &str = "errors_v6";
/// Destinations that are nobody in particular: groups, and everybody on the link.
const GROUPS_V4: &str = "groups_v4";
const GROUPS_V6: &str = "groups_v6";
/// Who is cut off, by user and as a whole.
/// The set of users whom rules have cut off.
pub const QUARANTINED_USERS: &str = "quarantined_users";
/// The set that the whole host is in while rules have cut it off.
pub const QUARANTINED_HOST: &str = "quarantined_host";

/// Whether packets go the way of those who are cut off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cut {
    /// All of them.
    Now,
    /// Those of whom rules have put into a set.
    ByRules,
}

struct Compiler<'a> {
    policy: &'a Policy,
    /// What becomes of packets that nothing allows.
    mode: Mode,
    cut: Cut,
    sets: BTreeMap<String, Set>,
}

impl Compiler<'_> {
    fn add_set(&mut self, set: Set) {
        self.sets.insert(set.def.name.clone(), set);
    }

    fn constant_sets(&mut self) {
        self.add_constant_networks(LINK_SCOPE, Family::V6, &["fe80::/10", "ff02::/16"]);
        // RFC 4861 and RFC 3810: router advertisement, neighbour solicitation and advertisement come in …
        self.add_set(Set::of_numbers("neighbour_in", KeyType::Icmpv6Type, &[134, 135, 136]));
        // … listener reports and done, router solicitation, neighbour solicitation and advertisement go out.
        self.add_set(Set::of_numbers("neighbour_out", KeyType::Icmpv6Type, &[131, 132, 133, 135, 136, 143]));
        self.add_set(Set::of_numbers("neighbour_probe", KeyType::Icmpv6Type, &[135, 136]));
        // RFC 792 and RFC 4443: unreachable, time exceeded, parameter problem; and packet too big, which is a code of IPv4's
        // unreachable. A redirect, which tracking calls related too, would let anybody on the way move a connection elsewhere.
        self.add_set(Set::of_numbers(ERRORS_V4, KeyType::IcmpType, &[3, 11, 12]));
        self.add_set(Set::of_numbers(ERRORS_V6, KeyType::Icmpv6Type, &[1, 2, 3, 4]));
        self.add_set(Set::dynamic(QUARANTINED_USERS, vec![KeyType::Uid]));
        self.add_set(Set::dynamic(QUARANTINED_HOST, vec![KeyType::Mark]));
        if let Some(management) = &self.policy.management {
            self.add_networks("management", &management.from);
        }
        if let Some(Sources::Nets(nets)) = self.policy.inbound.as_ref().map(|inbound| &inbound.from) {
            self.add_networks("inbound", nets);
        }
    }

    /// A set of networks that every policy has.
    fn add_constant_networks(&mut self, name: &str, family: Family, nets: &[&str]) {
        let mut set = Set::of_networks(name.to_string(), family);
        set.def.counter = false;
        for net in nets.iter().filter_map(|net| net.parse::<IpNet>().ok()) {
            set.add_network(&net, String::new());
        }
        self.add_set(set);
    }

    /// Makes `NAME_v4` and `NAME_v6` of the networks; a family without networks has no set.
    fn add_networks(&mut self, name: &str, nets: &[IpNet]) {
        for family in Family::BOTH {
            let mut set = Set::of_networks(format!("{name}_{}", family.suffix()), family);
            for net in nets.iter().filter(|net| Family::of_net(net) == family) {
                set.add_network(net, String::new());
            }
            if !set.members.is_empty() {
                self.add_set(set);
            }
        }
    }

    /// The families of `NAME_v4` and `NAME_v6` that there are, with the set's name.
    fn networks(&self, name: &str) -> Vec<(Family, String)> {
        let named = Family::BOTH.map(|family| (family, format!("{name}_{}", family.suffix())));
        named.into_iter().filter(|(_, set)| self.sets.contains_key(set)).collect()
    }

    /// What is asked before a packet is sent the way of those who are cut off: nothing where everybody is.
    fn cut_off(&self) -> Vec<Test> {
        match self.cut {
            Cut::Now => Vec::new(),
            Cut::ByRules => vec![in_set(Field::Everybody, QUARANTINED_HOST)],
        }
    }

    fn input(&self) -> Chain {
        let mut rules = vec![
            Rule::new("loopback", vec![is(Field::InputInterface, LOOPBACK)], vec![], Action::Accept),
            // ORDER: before `established`, because somebody who is cut off is cut off from his open connections too.
            Rule::new("quarantine", self.cut_off(), vec![], goto("quarantined_in")),
        ];
        rules.extend(tracked());
        rules.push(Rule::new("essential", vec![], vec![], jump("essential_in")));
        if self.policy.host.ping {
            for field in [Field::IcmpType, Field::Icmpv6Type] {
                rules.push(Rule::new("ping", vec![is(field, echo_request(field))], vec![], Action::Accept));
            }
        }
        rules.extend(self.inbound(Field::DestinationPort));
        rules.push(Rule::new("refuse-in", vec![], vec![], goto("refuse_in")));
        Chain::base(Hook::Input, self.mode, rules)
    }

    fn output(&mut self) -> Chain {
        let mut rules = vec![Rule::new("loopback", vec![is(Field::OutputInterface, LOOPBACK)], vec![], Action::Accept)];
        rules.extend(self.unicast_lease());
        rules.extend([
            Rule::new("quarantine", self.cut_off(), vec![], goto("quarantined_out")),
            Rule::new("quarantine", vec![in_set(Field::SocketUser, QUARANTINED_USERS)], vec![], goto("quarantined_out")),
        ]);
        rules.extend(tracked());
        // The kernel's own answer to a forwarded connection that was refused. No program can send one: a packet of its own making
        // begins a connection or belongs to one, and is never related.
        let reset = vec![has_any(Field::TcpFlags, TCP_RST), has_any(Field::ConntrackState, ct_state::RELATED)];
        rules.push(Rule::new("related", reset, vec![], Action::Accept));
        rules.push(Rule::new("essential", vec![], vec![], jump("essential_out")));
        rules.push(Rule::new("outbound", vec![], vec![], jump("outbound")));
        rules.push(Rule::new("outbound", vec![], vec![], jump("outbound_scoped")));
        rules.extend(self.late_answers());
        let trip_wire = self.trip_wire(&[QuarantineScope::User, QuarantineScope::Host], vec![is_not(Field::SocketUser, NO_USER)]);
        if !trip_wire.is_empty() {
            rules.extend(self.groups());
            rules.extend(trip_wire);
        }
        rules.push(Rule::new("refuse-out", vec![], vec![], goto("refuse_out")));
        Chain::base(Hook::Output, self.mode, rules)
    }

    fn forward(&mut self) -> Chain {
        let mut rules = vec![Rule::new("quarantine", self.cut_off(), vec![], goto(&format!("{}_forward", self.cut())))];
        if self.policy.host.forward == Forward::Contain {
            rules.extend(tracked());
            // ORDER: before `outbound`, or whoever is outside could come in to wherever programs of this host may go out.
            rules.push(Rule::new("published", vec![has_any(Field::ConntrackStatus, STATUS_DNAT)], vec![], goto("published")));
            rules.push(Rule::new("outbound", vec![], vec![], jump("outbound")));
            // A reset would end the connection that an odd packet belongs to.
            rules.push(Rule::new("invalid", vec![has_any(Field::ConntrackState, ct_state::INVALID)], vec![], self.quietly()));
        }
        let trip_wire = self.trip_wire(&[QuarantineScope::Host], vec![]);
        if !trip_wire.is_empty() {
            // What tracking has forgotten is refused and counted, and held against nobody.
            rules.push(Rule::new("late-answer", vec![has_any(Field::TcpFlags, TCP_RST | TCP_ACK)], vec![], goto("refuse_forward")));
            rules.extend(trip_wire);
        }
        rules.push(Rule::new("refuse-forward", vec![], vec![], goto("refuse_forward")));
        Chain::base(Hook::Forward, self.mode, rules)
    }

    /// What came to this host and was translated to a machine behind it: allowed when it came to the inbound port, and else refused.
    /// Outsiders knock here, so it has no trip-wire.
    fn published(&self) -> Chain {
        let mut rules = self.inbound(|_| Field::OriginalDestinationPort);
        rules.push(Rule::new("refuse-forward", vec![], vec![], goto("refuse_forward")));
        Chain::regular("published", rules)
    }

    /// The inbound port, asked of `port`.
    fn inbound(&self, port: impl Fn(Protocol) -> Field) -> Vec<Rule> {
        let Some(inbound) = &self.policy.inbound else { return Vec::new() };
        let protocol = protocol(inbound.protocol);
        let field = port(protocol);
        let mut tests = Vec::new();
        if field == Field::OriginalDestinationPort {
            tests.push(is(Field::L4Protocol, protocol.0));
        }
        tests.push(is(field, inbound.port));
        let accept = |tests| Rule::new("inbound", tests, vec![], Action::Accept);
        match &inbound.from {
            Sources::Any => vec![accept(tests)],
            Sources::Nets(_) => self
                .networks("inbound")
                .into_iter()
                .map(|(family, set)| accept([tests.as_slice(), &[in_set(Field::SourceAddress(family), set)]].concat()))
                .collect(),
        }
    }

    /// What a server sends on connections that tracking has forgotten, or has never seen because they are older than the rules:
    /// nothing of it begins a connection. It is dropped without a reset, which would end the connection it belongs to; the peer's
    /// next packet is judged as inbound and takes it up again.
    fn late_answers(&self) -> Vec<Rule> {
        let mut rules = Vec::new();
        if let Some(inbound) = &self.policy.inbound {
            let mut tests = vec![is(Field::SourcePort(protocol(inbound.protocol)), inbound.port)];
            if inbound.protocol == Transport::Tcp {
                tests.push(has_any(Field::TcpFlags, TCP_RST | TCP_ACK));
            }
            rules.push(Rule::new("late-answer", tests, vec![], self.quietly()));
        }
        rules.push(Rule::new("invalid", vec![has_any(Field::ConntrackState, ct_state::INVALID)], vec![], self.quietly()));
        rules
    }

    /// What goes to nobody in particular (names and services looked for on the link) is refused and counted, and held against
    /// nobody: many programs do so by themselves, some of them for whoever asks.
    fn groups(&mut self) -> Vec<Rule> {
        self.add_constant_networks(GROUPS_V4, Family::V4, &["224.0.0.0/4", "255.255.255.255/32"]);
        self.add_constant_networks(GROUPS_V6, Family::V6, &["ff00::/8"]);
        let rule = |family, set: &str| Rule::new("group", vec![in_set(Field::DestinationAddress(family), set)], vec![], goto("refuse_out"));
        vec![rule(Family::V4, GROUPS_V4), rule(Family::V6, GROUPS_V6)]
    }

    /// The end of packets that are neither allowed nor a violation.
    fn quietly(&self) -> Action {
        quietly(self.mode)
    }

    /// Without these a host loses its addresses, its neighbours or its operator. They hold in quarantine too.
    fn essentials(&self) -> Vec<Chain> {
        let mut incoming = vec![Rule::new("neighbour", vec![is(Field::L4Protocol, Protocol::ICMPV6.0)], vec![], jump("neighbours_in"))];
        let mut outgoing = vec![Rule::new("neighbour", vec![is(Field::L4Protocol, Protocol::ICMPV6.0)], vec![], jump("neighbours_out"))];
        if self.policy.host.dhcp {
            let (incoming_dhcp, outgoing_dhcp) = self.dhcp();
            incoming.extend(incoming_dhcp);
            outgoing.extend(outgoing_dhcp);
        }
        if let Some(management) = &self.policy.management {
            for (family, set) in self.networks("management") {
                // ORDER: the look-up last, so that an element counts only packets that pass.
                let tests =
                    vec![is(Field::DestinationPort(Protocol::TCP), management.port), in_set(Field::SourceAddress(family), set.clone())];
                incoming.push(Rule::new("management", tests, vec![], Action::Accept));
                // Answers need no tracked connection, so that the operator's session survives the first apply. None of them
                // begins a connection: a bare SYN has neither flag.
                let tests = vec![
                    is(Field::SourcePort(Protocol::TCP), management.port),
                    has_any(Field::TcpFlags, TCP_RST | TCP_ACK),
                    in_set(Field::DestinationAddress(family), set),
                ];
                outgoing.push(Rule::new("management", tests, vec![], Action::Accept));
            }
        }
        let essential = |chain: &str| Rule::new("essential", vec![], vec![], jump(chain));
        // A management session through a tunnel ends without word that its packets are too big.
        let mut quarantined_in = vec![essential("essential_in")];
        quarantined_in.extend(errors());
        quarantined_in.push(Rule::new("refuse-in", vec![], vec![], goto(&format!("{}_in", self.cut()))));
        // ORDER: past the trip-wire, which would make the quarantine longer with every packet that it refuses.
        let quarantined_out =
            vec![essential("essential_out"), Rule::new("refuse-out", vec![], vec![], goto(&format!("{}_out", self.cut())))];
        vec![
            Chain::regular("essential_in", incoming),
            Chain::regular("essential_out", outgoing),
            Chain::regular("neighbours_in", neighbours_in()),
            Chain::regular("neighbours_out", neighbours_out()),
            Chain::regular("quarantined_in", quarantined_in),
            Chain::regular("quarantined_out", quarantined_out),
        ]
    }

    /// Answers to, and questions of, a DHCP client (RFC 2131, RFC 8415).
    fn dhcp(&self) -> (Vec<Rule>, Vec<Rule>) {
        let (sport, dport) = (Field::SourcePort(Protocol::UDP), Field::DestinationPort(Protocol::UDP));
        let rule = |tests, action| Rule::new("dhcp", tests, vec![], action);
        let v6_source = in_set(Field::SourceAddress(Family::V6), LINK_SCOPE);
        let incoming = vec![
            rule(vec![is(sport, 67u16), is(dport, 68u16), is(Field::NetworkFamily, Family::V4.nfproto())], Action::Accept),
            rule(vec![is(sport, 547u16), is(dport, 546u16), v6_source], Action::Accept),
        ];
        let outgoing = vec![
            rule(vec![is(sport, 68u16), is(dport, 67u16), is(Field::DestinationAddress(Family::V4), u32::MAX)], Action::Accept),
            rule(vec![is(sport, 546u16), is(dport, 547u16), in_set(Field::DestinationAddress(Family::V6), LINK_SCOPE)], Action::Accept),
        ];
        (incoming, outgoing)
    }

    /// A DHCP client first tries to renew at the server it knows, wherever that is; unanswered, it asks everybody on the link. So
    /// that is dropped without being a violation, and with it the way that an answer which anybody can send would open: the answer
    /// makes an entry in the tracking table, to which packets to its sender belong.
    ///
    /// ORDER: before `established` and `related`, for the same reason.
    fn unicast_lease(&self) -> Vec<Rule> {
        if !self.policy.host.dhcp {
            return Vec::new();
        }
        let to_somebody = vec![
            is(Field::SourcePort(Protocol::UDP), 68u16),
            is(Field::DestinationPort(Protocol::UDP), 67u16),
            is_not(Field::DestinationAddress(Family::V4), u32::MAX),
        ];
        // Where nobody listens, the kernel says so; a stranger must not learn that there is a host.
        let nobody_listens =
            vec![is(Field::IcmpType, 3u8), has_any(Field::ConntrackState, ct_state::RELATED), is(Field::OriginalDestinationPort, 68u16)];
        [to_somebody, nobody_listens].map(|tests| Rule::new("dhcp", tests, vec![], self.quietly())).to_vec()
    }
}

/// What belongs to a connection that was allowed.
fn tracked() -> Vec<Rule> {
    let mut rules = vec![Rule::new("established", vec![has_any(Field::ConntrackState, ct_state::ESTABLISHED)], vec![], Action::Accept)];
    rules.extend(errors());
    rules
}

/// Errors about such a connection. Nothing else is ever related: no helper is assigned.
fn errors() -> Vec<Rule> {
    let error = |field, set: &str| {
        Rule::new("related", vec![in_set(field, set), has_any(Field::ConntrackState, ct_state::RELATED)], vec![], Action::Accept)
    };
    vec![error(Field::IcmpType, ERRORS_V4), error(Field::Icmpv6Type, ERRORS_V6)]
}

/// RFC 4861: neighbour discovery is believed only with the hop limit that no router leaves intact; RFC 3810: queries come from the
/// link.
fn neighbours_in() -> Vec<Rule> {
    vec![
        Rule::new("neighbour", vec![in_set(Field::Icmpv6Type, "neighbour_in"), is(Field::HopLimit, 255u8)], vec![], Action::Accept),
        Rule::new(
            "neighbour",
            vec![is(Field::Icmpv6Type, 130u8), in_set(Field::SourceAddress(Family::V6), LINK_SCOPE)],
            vec![],
            Action::Accept,
        ),
    ]
}

/// To the link for everybody; to other addresses only from the kernel itself, which probes neighbours by their global addresses.
/// A program could send the same octets to a stranger through a raw socket: such packets have a user, the kernel's have none.
fn neighbours_out() -> Vec<Rule> {
    let to_link = vec![in_set(Field::Icmpv6Type, "neighbour_out"), in_set(Field::DestinationAddress(Family::V6), LINK_SCOPE)];
    vec![
        Rule::new("neighbour", to_link, vec![], Action::Accept),
        Rule::new("neighbour", vec![is_not(Field::SocketUser, NO_USER)], vec![], Action::Return),
        Rule::new("neighbour", vec![in_set(Field::Icmpv6Type, "neighbour_probe"), is(Field::HopLimit, 255u8)], vec![], Action::Accept),
    ]
}

/// The number of an echo request.
fn echo_request(field: Field) -> u8 {
    if field == Field::IcmpType { 8 } else { 128 }
}

/// The protocol of a transport.
pub fn protocol(transport: Transport) -> Protocol {
    match transport {
        Transport::Tcp => Protocol::TCP,
        Transport::Udp => Protocol::UDP,
    }
}

fn jump(chain: &str) -> Action {
    Action::Jump(chain.to_string())
}

fn goto(chain: &str) -> Action {
    Action::Goto(chain.to_string())
}

/// The end of packets of which nobody is told.
fn quietly(mode: Mode) -> Action {
    match mode {
        Mode::Enforce => Action::Drop,
        Mode::Observe => Action::Accept,
    }
}
