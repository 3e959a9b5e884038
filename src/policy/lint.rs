//! Lints: what a policy says that is probably not meant. Warnings with places; none changes what the policy means.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use crate::base::diagnostic::{Diagnostic, Severity, SourceText};
use crate::base::name::DnsName;
use crate::base::net::{Family, IpNet};
use crate::policy::read::warning;
use crate::policy::yaml::Span;
use crate::policy::{DnsServer, Expectation, Mode, Outbound, Policy, QuarantineScope, RawFrames, Sources, Target, Transport};

/// Where the things stand that lints point at. Lists run beside those of the [`Policy`].
#[derive(Debug, Default)]
pub(super) struct Places {
    pub inbound: Span,
    pub management: Option<Span>,
    pub management_from: Vec<(IpNet, Span)>,
    pub outbound: Vec<WayPlaces>,
    pub dns: Vec<Span>,
    pub every: Span,
    pub refresh: Span,
    pub raw_frames: Option<Span>,
    pub ntp: Vec<Span>,
    pub quarantine: Span,
    pub tests: Vec<Span>,
}

/// Where the parts of one way out stand.
#[derive(Debug)]
pub(super) struct WayPlaces {
    pub to: Vec<Span>,
    pub port: Span,
}

/// How many ways out to one network are remembered when shadows are looked for: more of them say nothing new.
const REMEMBERED: usize = 16;

/// Every lint that needs the text alone.
pub(super) fn lint(policy: &Policy, places: &Places, source: &SourceText<'_>) -> Vec<Diagnostic> {
    let mut lints = Lints { source, found: Vec::new() };
    lints.entrances(policy, places);
    lints.shadows(policy, places);
    lints.destinations(policy, places);
    lints.freshness(policy, places);
    lints.rest(policy, places);
    lints.found
}

struct Lints<'s, 't> {
    source: &'s SourceText<'t>,
    found: Vec<Diagnostic>,
}

impl Lints<'_, '_> {
    fn warn(&mut self, span: Span, message: impl Into<String>, help: impl Into<String>) {
        self.found.push(warning(self.source, span, message, help));
    }

    fn line(&self, span: Span) -> usize {
        self.source.line_of(span.start)
    }

    fn entrances(&mut self, policy: &Policy, places: &Places) {
        if let Some(inbound) = &policy.inbound
            && inbound.from == Sources::Any
            && policy.tests.is_empty()
            && policy.mode == Mode::Enforce
        {
            let help = format!("say what must hold, for example `tests: [{{allow: in tcp to :{}}}]`", inbound.port);
            self.warn(places.inbound, "the port is open to everybody, and no test says what must hold", help);
        }
        let (Some(management), Some(span)) = (&policy.management, places.management) else { return };
        if policy.inbound.as_ref().is_some_and(|inbound| inbound.port == management.port && inbound.protocol == Transport::Tcp) {
            self.warn(span, format!("`inbound` has port {} already", management.port), "give the operator a port of its own, or none");
        }
        for (position, (net, span)) in places.management_from.iter().enumerate() {
            self.wide(net, *span);
            let earlier = places.management_from.iter().take(position).find(|(other, _)| other.contains(net));
            if let Some((other, _)) = earlier {
                self.warn(*span, format!("`{net}` lies in `{other}` already"), "take it away");
            }
            if position >= 1000 {
                // Nobody reads on, and the comparison is with all that came before.
                break;
            }
        }
    }

    fn wide(&mut self, net: &IpNet, span: Span) {
        let most = if Family::of_net(net) == Family::V4 { 16 } else { 32 };
        if net.prefix_len() < most {
            let help = "name the networks that are needed; whoever has one address in it is let through";
            self.warn(span, format!("`{net}` is wider than a /{most}"), help);
        }
    }

    /// Destinations that an earlier way out covers already, and scopes that a way out for everybody undoes.
    fn shadows(&mut self, policy: &Policy, places: &Places) {
        let mut ways: HashMap<&Target, Vec<usize>> = HashMap::new();
        let mut lengths: BTreeSet<(Family, u8)> = BTreeSet::new();
        for (index, way) in policy.outbound.iter().enumerate() {
            for destination in &way.to {
                let known = ways.entry(&destination.target).or_default();
                if known.len() < REMEMBERED && known.last() != Some(&index) {
                    known.push(index);
                }
                if let Target::Net(net) = &destination.target {
                    lengths.insert((Family::of_net(net), net.prefix_len()));
                }
            }
        }
        for (index, (way, way_places)) in policy.outbound.iter().zip(&places.outbound).enumerate() {
            let mut here: BTreeMap<&Target, Span> = BTreeMap::new();
            for (destination, span) in way.to.iter().zip(&way_places.to) {
                let target = &destination.target;
                if let Some(first) = here.get(target) {
                    let message = format!("{} is in this list twice", shown(target));
                    self.warn(*span, message, format!("line {} names it already", self.line(*first)));
                    continue;
                }
                here.insert(target, *span);
                self.shadow(policy, (index, way), (target, *span), wider(target, &lengths), &ways);
            }
        }
    }

    fn shadow(
        &mut self,
        policy: &Policy,
        (index, way): (usize, &Outbound),
        (target, span): (&Target, Span),
        candidates: Vec<Target>,
        ways: &HashMap<&Target, Vec<usize>>,
    ) {
        for candidate in &candidates {
            for other_index in ways.get(candidate).into_iter().flatten() {
                let Some(other) = policy.outbound.get(*other_index) else { continue };
                if other.protocol != way.protocol || !other.ports.covers(&way.ports) {
                    continue;
                }
                let line = other.to.iter().find(|to| to.target == *candidate).map_or(other.line.0, |to| to.line.0);
                let what = shown(target);
                if *other_index == index {
                    if candidate != target {
                        let message = format!("{what} lies in {} of the same list", shown(candidate));
                        return self.warn(span, message, "take the narrower one away, or the wider");
                    }
                } else if other.scope.is_none() && way.scope.is_some() {
                    let message = format!("{what} is open to everybody by `{}`: what `for` says has no effect", other.id);
                    return self.warn(span, message, format!("see line {line}; put a `for` there as well"));
                } else if *other_index < index && other.scope == way.scope {
                    let message = match candidate == target {
                        true => format!("{what} is a destination of `{}` already", other.id),
                        false => format!("{what} lies in {} of `{}`, which comes first", shown(candidate), other.id),
                    };
                    return self.warn(span, message, format!("see line {line}; one of the two can go"));
                }
            }
        }
    }

    fn destinations(&mut self, policy: &Policy, places: &Places) {
        for (way, way_places) in policy.outbound.iter().zip(&places.outbound) {
            for (destination, span) in way.to.iter().zip(&way_places.to) {
                self.destination(&destination.target, *span);
            }
            if way.ports.contains(53) {
                let help = "servers that names are asked of stand under `dns`; queries to others can carry data out";
                self.warn(way_places.port, format!("`{}` lets DNS out past `dns`", way.id), help);
            }
            if way.ports.ranges().iter().any(|range| range.first() == 1 && range.last() == u16::MAX) {
                self.warn(way_places.port, format!("`{}` opens every port", way.id), "name the ports that are needed");
            }
        }
        for (server, span) in policy.host.ntp.iter().zip(&places.ntp) {
            self.destination(&server.target, *span);
        }
    }

    fn destination(&mut self, target: &Target, span: Span) {
        match target {
            Target::Name(name) if !name.as_str().contains('.') => {
                let help = "write the full name: search domains are not tried";
                self.warn(span, format!("`{name}` is a name without a dot"), help);
            }
            Target::Name(_) => {}
            Target::Net(net) => {
                self.wide(net, span);
                if net.addr().is_loopback() {
                    self.warn(span, format!("`{net}` is loopback, which is always allowed"), "take it away");
                } else if net.addr().is_unspecified() && net.prefix_len() == net.max_prefix_len() {
                    self.warn(span, format!("`{net}` is no address that packets go to"), "take it away");
                }
            }
        }
    }

    fn freshness(&mut self, policy: &Policy, places: &Places) {
        let refresh = &policy.refresh;
        if refresh.keep.seconds() < 2 * refresh.every.seconds() {
            let message =
                format!("one missed refresh ends every pin: `keep` {} is less than twice `every` {}", refresh.keep, refresh.every);
            self.warn(places.refresh, message, "let `keep` be a few times `every` at least");
        }
        if refresh.keep.seconds() > 30 * 86_400 {
            let message = format!("pins outlive their last confirmation by {}", refresh.keep);
            self.warn(places.refresh, message, "addresses that a name left belong to others soon: days are enough");
        }
        if refresh.every.seconds() < 10 {
            let help = "names seldom live less than 30s in DNS";
            self.warn(places.every, format!("DNS is asked for every name each {}", refresh.every), help);
        }
        let mut seen: BTreeMap<&DnsServer, Span> = BTreeMap::new();
        for (server, span) in policy.dns.iter().zip(&places.dns) {
            match seen.get(server) {
                Some(first) => self.warn(*span, "this server is in the list twice", format!("see line {}", self.line(*first))),
                None => {
                    seen.insert(server, *span);
                }
            }
        }
    }

    fn rest(&mut self, policy: &Policy, places: &Places) {
        if let Some(quarantine) = &policy.violations.quarantine
            && quarantine.scope == QuarantineScope::Host
            && policy.management.is_none()
        {
            let help = "add `management`, or the console is the only way in while the host is cut off";
            self.warn(places.quarantine, "quarantine cuts the whole host off, and there is no `management`", help);
        }
        if let (Some(span), RawFrames::Deny | RawFrames::BestEffort) = (places.raw_frames, policy.host.raw_frames) {
            let help = "write `raw-frames: allow`, and keep CAP_NET_RAW from programs";
            self.warn(span, "this version does not mirror the policy where raw frames leave", help);
        }
        let mut expected = HashMap::new();
        for (test, span) in policy.tests.iter().zip(&places.tests) {
            let (first, expectation): (Span, Expectation) = *expected.entry(&test.packet).or_insert((*span, test.expect));
            if expectation != test.expect {
                let help = format!("line {} expects the opposite; one of the two fails", self.line(first));
                self.warn(*span, "this packet is expected to be both allowed and denied", help);
            } else if first != *span {
                self.warn(*span, "this test is in the list twice", format!("see line {}", self.line(first)));
            }
        }
    }
}

/// The target itself, then every network that holds it and has one of these prefix lengths, the widest first.
fn wider(target: &Target, lengths: &BTreeSet<(Family, u8)>) -> Vec<Target> {
    let mut candidates = vec![target.clone()];
    if let Target::Net(net) = target {
        let family = Family::of_net(net);
        let shorter = lengths.iter().filter(|(other, length)| *other == family && *length < net.prefix_len());
        candidates.extend(shorter.filter_map(|(_, length)| IpNet::new(net.addr(), *length).ok()).map(|net| Target::Net(net.trunc())));
    }
    candidates
}

fn shown(target: &Target) -> String {
    match target {
        Target::Name(name) => format!("`{name}`"),
        Target::Net(net) if net.prefix_len() == net.max_prefix_len() => format!("`{}`", net.addr()),
        Target::Net(net) => format!("`{net}`"),
    }
}

/// The lint that needs addresses: names of the policy whose addresses all belong to another of its names as well, so that at
/// the level of packets permission for one is permission for the other. `text` is the policy's; `addresses` are the pins by
/// name. Names in one `to` list are not compared: they are allowed together anyway.
pub fn lint_addresses(policy: &Policy, text: &str, addresses: &BTreeMap<DnsName, BTreeSet<IpAddr>>) -> Vec<Diagnostic> {
    let source = SourceText::new(text);
    let mut names: Vec<(&DnsName, usize, usize)> = Vec::new();
    for (index, way) in policy.outbound.iter().enumerate() {
        for destination in &way.to {
            if let Target::Name(name) = &destination.target {
                names.push((name, index, destination.line.0));
            }
        }
    }
    let mut owners: HashMap<IpAddr, Vec<usize>> = HashMap::new();
    for (position, (name, ..)) in names.iter().enumerate() {
        for address in addresses.get(*name).into_iter().flatten() {
            let known = owners.entry(*address).or_default();
            if known.len() < REMEMBERED {
                known.push(position);
            }
        }
    }
    let mut found = Vec::new();
    for (name, way, line) in &names {
        let Some(ours) = addresses.get(*name) else { continue };
        let Some(first) = ours.first() else { continue };
        let candidates = owners.get(first).into_iter().flatten().filter_map(|position| names.get(*position));
        let other = candidates
            .filter(|(other, other_way, _)| other != name && other_way != way)
            .find(|(other, ..)| addresses.get(*other).is_some_and(|theirs| ours.is_subset(theirs)));
        let Some((other, _, other_line)) = other else { continue };
        let lower = source.line(*line).to_ascii_lowercase();
        let column = lower.find(name.as_str()).map_or(1, |octet| lower[..octet].chars().count() + 1);
        found.push(Diagnostic {
            line: *line,
            column,
            width: name.as_str().len(),
            severity: Severity::Warning,
            message: format!("every address of `{name}` is an address of `{other}` too: packets cannot tell the two apart"),
            help: Some(format!("see line {other_line}; whoever may reach one may reach the other")),
        });
    }
    found.sort();
    found
}
