//! From a policy to rules. Total and deterministic: the same policy, pins and facts always make the same ruleset.
//!
//! This file holds the base chains and what a host needs to live; `outbound` the ways out, `refuse` what becomes of the rest.

mod outbound;
mod refuse;

use std::collections::BTreeMap;

use crate::base::net::{Family, IpNet, Protocol};
use crate::pins::Pins;
use crate::policy::{DnsServer, Forward, Mode, Policy, Sources, Transport};
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
}

/// Compiles the rules of a policy. `generation` counts the applies of the host.
pub fn compile(policy: &Policy, pins: &Pins, facts: &Facts, generation: u64) -> Ruleset {
    let identity = Identity { policy: policy.name.clone(), sha256: policy.sha256.clone(), generation, mode: policy.mode };
    let mut compiler = Compiler { policy, sets: BTreeMap::new() };
    compiler.constant_sets();
    let outbound = compiler.outbound(pins, facts);
    let mut chains = vec![compiler.input(), compiler.output(), compiler.forward()];
    chains.extend(outbound);
    chains.extend(compiler.essentials());
    chains.extend(compiler.refusals());
    chains.push(Chain::regular(IDENTITY_CHAIN, identity_rules(&identity)));
    Ruleset { identity, chains, sets: compiler.sets }
}

/// Destinations that never leave the link: IPv6 link-local unicast and multicast.
const LINK_SCOPE: &str = "link_scope_v6";
/// Who is cut off, by user and as a whole.
const QUARANTINED_USERS: &str = "quarantined_users";
const QUARANTINED_HOST: &str = "quarantined_host";

struct Compiler<'a> {
    policy: &'a Policy,
    sets: BTreeMap<String, Set>,
}

impl Compiler<'_> {
    fn add_set(&mut self, set: Set) {
        self.sets.insert(set.def.name.clone(), set);
    }

    fn constant_sets(&mut self) {
        let mut link_scope = Set::of_networks(LINK_SCOPE.to_string(), Family::V6);
        link_scope.def.counter = false;
        for net in ["fe80::/10", "ff02::/16"] {
            if let Ok(net) = net.parse::<IpNet>() {
                link_scope.add_network(&net, String::new());
            }
        }
        self.add_set(link_scope);
        // RFC 4861 and RFC 3810: router advertisement, neighbour solicitation and advertisement come in …
        self.add_set(Set::of_numbers("neighbour_in", KeyType::Icmpv6Type, &[134, 135, 136]));
        // … listener reports and done, router solicitation, neighbour solicitation and advertisement go out.
        self.add_set(Set::of_numbers("neighbour_out", KeyType::Icmpv6Type, &[131, 132, 133, 135, 136, 143]));
        self.add_set(Set::of_numbers("neighbour_probe", KeyType::Icmpv6Type, &[135, 136]));
        self.add_set(Set::dynamic(QUARANTINED_USERS, vec![KeyType::Uid]));
        self.add_set(Set::dynamic(QUARANTINED_HOST, vec![KeyType::Mark]));
        if let Some(management) = &self.policy.management {
            self.add_networks("management", &management.from);
        }
        if let Some(Sources::Nets(nets)) = self.policy.inbound.as_ref().map(|inbound| &inbound.from) {
            self.add_networks("inbound", nets);
        }
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

    fn input(&self) -> Chain {
        let mut rules = vec![
            Rule::new("loopback", vec![is(Field::InputInterface, LOOPBACK)], vec![], Action::Accept),
            // ORDER: before `established`, because somebody who is cut off is cut off from his open connections too.
            Rule::new("quarantine", vec![in_set(Field::Everybody, QUARANTINED_HOST)], vec![], goto("quarantined_in")),
        ];
        rules.extend(tracked());
        rules.push(Rule::new("essential", vec![], vec![], jump("essential_in")));
        if self.policy.host.ping {
            for field in [Field::IcmpType, Field::Icmpv6Type] {
                rules.push(Rule::new("ping", vec![is(field, echo_request(field))], vec![], Action::Accept));
            }
        }
        rules.extend(self.inbound(&[], Field::DestinationPort));
        rules.push(Rule::new("refuse-in", vec![], vec![], goto("refuse_in")));
        Chain::base(Hook::Input, self.policy.mode, rules)
    }

    fn output(&self) -> Chain {
        let mut rules = vec![
            Rule::new("loopback", vec![is(Field::OutputInterface, LOOPBACK)], vec![], Action::Accept),
            Rule::new("quarantine", vec![in_set(Field::Everybody, QUARANTINED_HOST)], vec![], goto("quarantined_out")),
            Rule::new("quarantine", vec![in_set(Field::SocketUser, QUARANTINED_USERS)], vec![], goto("quarantined_out")),
        ];
        rules.extend(tracked());
        rules.push(Rule::new("essential", vec![], vec![], jump("essential_out")));
        rules.push(Rule::new("outbound", vec![], vec![], jump("outbound")));
        rules.push(Rule::new("outbound", vec![], vec![], jump("outbound_scoped")));
        rules.extend(self.late_answers());
        rules.push(Rule::new("refuse-out", vec![], vec![], goto("refuse_out")));
        Chain::base(Hook::Output, self.policy.mode, rules)
    }

    fn forward(&self) -> Chain {
        let mut rules = vec![Rule::new("quarantine", vec![in_set(Field::Everybody, QUARANTINED_HOST)], vec![], goto("refuse_forward"))];
        if self.policy.host.forward == Forward::Contain {
            rules.extend(tracked());
            rules.push(Rule::new("outbound", vec![], vec![], jump("outbound")));
            // A published container port is the inbound port only if that is what the peer asked for. Without the test for a
            // translated destination every port 443 of the world would be what a container asks for.
            rules.extend(self.inbound(&[has_any(Field::ConntrackStatus, STATUS_DNAT)], |_| Field::OriginalDestinationPort));
        }
        rules.push(Rule::new("refuse-forward", vec![], vec![], goto("refuse_forward")));
        Chain::base(Hook::Forward, self.policy.mode, rules)
    }

    /// The inbound port, asked of `port`, under these further tests.
    fn inbound(&self, further: &[Test], port: impl Fn(Protocol) -> Field) -> Vec<Rule> {
        let Some(inbound) = &self.policy.inbound else { return Vec::new() };
        let protocol = protocol(inbound.protocol);
        let field = port(protocol);
        let mut tests = further.to_vec();
        if field == Field::OriginalDestinationPort {
            tests.insert(0, is(Field::L4Protocol, protocol.0));
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
        if let Some(inbound) = self.policy.inbound.as_ref().filter(|inbound| inbound.protocol == Transport::Tcp) {
            let tests = vec![is(Field::SourcePort(Protocol::TCP), inbound.port), has_any(Field::TcpFlags, TCP_RST | TCP_ACK)];
            rules.push(Rule::new("late-answer", tests, vec![], self.quietly()));
        }
        rules.push(Rule::new("invalid", vec![has_any(Field::ConntrackState, ct_state::INVALID)], vec![], self.quietly()));
        rules
    }

    /// The end of packets that are neither allowed nor a violation.
    fn quietly(&self) -> Action {
        match self.policy.mode {
            Mode::Enforce => Action::Drop,
            Mode::Observe => Action::Accept,
        }
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
                let tests =
                    vec![in_set(Field::SourceAddress(family), set.clone()), is(Field::DestinationPort(Protocol::TCP), management.port)];
                incoming.push(Rule::new("management", tests, vec![], Action::Accept));
                // Answers need no tracked connection, so that the operator's session survives the first apply. None of them
                // begins a connection: a bare SYN has neither flag.
                let tests = vec![
                    in_set(Field::DestinationAddress(family), set),
                    is(Field::SourcePort(Protocol::TCP), management.port),
                    has_any(Field::TcpFlags, TCP_RST | TCP_ACK),
                ];
                outgoing.push(Rule::new("management", tests, vec![], Action::Accept));
            }
        }
        let quarantined = |id: &str, essential: &str, end: &str| {
            vec![Rule::new("essential", vec![], vec![], jump(essential)), Rule::new(id, vec![], vec![], goto(end))]
        };
        vec![
            Chain::regular("essential_in", incoming),
            Chain::regular("essential_out", outgoing),
            Chain::regular("neighbours_in", neighbours_in()),
            Chain::regular("neighbours_out", neighbours_out()),
            Chain::regular("quarantined_in", quarantined("refuse-in", "essential_in", "refuse_in")),
            Chain::regular("quarantined_out", quarantined("refuse-out", "essential_out", "refuse_out")),
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
            // A client first tries to renew at the server it knows, wherever that is; unanswered, it asks everybody on the link.
            rule(vec![is(sport, 68u16), is(dport, 67u16), is(Field::NetworkFamily, Family::V4.nfproto())], self.quietly()),
        ];
        (incoming, outgoing)
    }
}

/// What belongs to a connection that was allowed.
fn tracked() -> Vec<Rule> {
    let mut rules = vec![Rule::new("established", vec![has_any(Field::ConntrackState, ct_state::ESTABLISHED)], vec![], Action::Accept)];
    // Errors about such a connection. Nothing else is ever related: no helper is assigned.
    for protocol in [Protocol::ICMP, Protocol::ICMPV6] {
        let tests = vec![is(Field::L4Protocol, protocol.0), has_any(Field::ConntrackState, ct_state::RELATED)];
        rules.push(Rule::new("related", tests, vec![], Action::Accept));
    }
    rules
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
