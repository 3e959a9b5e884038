//! The ways out: destinations, ports, scopes, and the ids that name them everywhere else.

use std::collections::{BTreeMap, BTreeSet};

use crate::base::diagnostic::said;
use crate::base::name::{Slug, account, unit};
use crate::base::port::{PortRange, PortSet};
use crate::policy::document::{belongs, first_key, slug};
use crate::policy::lint::WayPlaces;
use crate::policy::read::{Fields, Reader};
use crate::policy::value::{self, Complaint};
use crate::policy::yaml::{Node, Span, Value};
use crate::policy::{Destination, Line, Outbound, Scope, Target, Transport};

/// Ids of the rules that every policy has. No way out may take one.
pub const RESERVED_IDS: [&str; 25] = [
    "loopback",
    "management",
    "quarantine",
    "established",
    "related",
    "neighbour",
    "dhcp",
    "ping",
    "inbound",
    "resolver",
    "ntp",
    "refuse-in",
    "refuse-out",
    "refuse-forward",
    "invalid",
    "identity",
    "late-answer",
    "published",
    "group",
    "essential",
    "outbound",
    "ledger",
    "policy",
    "no-rules",
    "trial",
];

const KEYS: [&str; 5] = ["id", "to", "port", "protocol", "for"];
const SCOPES: [&str; 5] = ["user", "uid", "group", "gid", "service"];

/// A way out whose id is not settled yet.
struct Draft {
    id: Option<(Slug, Span)>,
    way: Outbound,
    places: WayPlaces,
}

/// Reads the list under `outbound`.
pub(super) fn outbound<'t>(reader: &mut Reader<'_, 't>, node: &Node<'t>) -> (Vec<Outbound>, Vec<WayPlaces>) {
    let items = match &node.value {
        Value::Map(_) => {
            let help = "begin every way out with `-`: `- to: api.openai.com`".to_string();
            reader.wrong_type(node, "a list", Some(help));
            return (Vec::new(), Vec::new());
        }
        _ => reader.list(node, "begin every way out with `- to: `; no way out is `[]`").unwrap_or_default(),
    };
    let drafts: Vec<Draft> = items.iter().filter_map(|item| reader.way(item)).collect();
    settle(reader, drafts)
}

/// Gives every way out an id: said ones first, then derived ones, which step aside.
fn settle(reader: &mut Reader<'_, '_>, drafts: Vec<Draft>) -> (Vec<Outbound>, Vec<WayPlaces>) {
    let mut taken: BTreeMap<Slug, Line> = BTreeMap::new();
    for draft in &drafts {
        let Some((id, span)) = &draft.id else { continue };
        match taken.get(id) {
            Some(first) => {
                let help = format!("line {} has it already; an id names one way out", first.0);
                reader.error(*span, format!("the id `{id}` is taken"), Some(help));
            }
            None => {
                taken.insert(id.clone(), reader.line(*span));
            }
        }
    }
    let mut used: BTreeSet<Slug> = taken.into_keys().collect();
    let mut next: BTreeMap<Slug, usize> = BTreeMap::new();
    let (mut ways, mut places) = (Vec::new(), Vec::new());
    for mut draft in drafts {
        draft.way.id = match draft.id {
            Some((id, _)) => id,
            None => free(draft.way.id, &used, &mut next),
        };
        used.insert(draft.way.id.clone());
        ways.push(draft.way);
        places.push(draft.places);
    }
    (ways, places)
}

/// The id itself when it is free, otherwise with the first free number from 2 behind it.
fn free(id: Slug, used: &BTreeSet<Slug>, next: &mut BTreeMap<Slug, usize>) -> Slug {
    if !used.contains(&id) && !RESERVED_IDS.contains(&id.as_str()) {
        return id;
    }
    let number = next.entry(id.clone()).or_insert(2);
    loop {
        let suffix = format!("-{number}");
        let kept: String = id.as_str().chars().take(63 - suffix.len()).collect();
        let candidate = Slug::nearest(&format!("{kept}{suffix}"), "rule");
        *number += 1;
        if !used.contains(&candidate) {
            return candidate;
        }
    }
}

/// The id of a way out that says none, from its first destination: a name stays as it is, a full-length network loses its prefix.
pub fn derived_id(target: &Target) -> Slug {
    match target {
        Target::Name(name) => Slug::nearest(name.as_str(), "rule"),
        Target::Net(net) if net.prefix_len() == net.max_prefix_len() => Slug::nearest(&net.addr().to_string(), "net"),
        Target::Net(net) => Slug::nearest(&net.to_string(), "net"),
    }
}

impl<'t> Reader<'_, 't> {
    fn way(&mut self, item: &Node<'t>) -> Option<Draft> {
        if let Value::Scalar { text, .. } = &item.value {
            let help = if text.is_empty() {
                "write `- to: api.openai.com`".into()
            } else {
                format!("write `- to: {}`", said(text).trim_matches('`'))
            };
            self.wrong_type(item, "keys with values", Some(help));
            return None;
        }
        let owner = first_key(item);
        let what = "a way out";
        let fields = self.map(item, owner, what, &KEYS, belongs)?;
        let id = fields.get("id").and_then(|node| self.id(node));
        let id_fails = fields.get("id").is_some() && id.is_none();
        let to = self.required(&fields, what, "to", "for example `to: api.openai.com`").and_then(|node| self.destinations(node));
        let protocol = fields.get("protocol").map_or(Some(Transport::Tcp), |node| self.transport(node));
        let scope = match fields.get("for") {
            None => Some(None),
            Some(node) => self.scope(node, fields.key("for").unwrap_or(node.span)).map(Some),
        };
        let ports = match fields.get("port") {
            Some(node) => self.ports(node),
            None => self.ports_unsaid(&fields, to.as_deref(), protocol),
        };
        let to = to?;
        let (first, _) = to.first()?;
        let way = Outbound {
            id: derived_id(&first.target),
            ports: ports?,
            protocol: protocol?,
            scope: scope?,
            line: self.line(owner),
            to: to.iter().map(|(destination, _)| destination.clone()).collect(),
        };
        let places =
            WayPlaces { to: to.into_iter().map(|(_, span)| span).collect(), port: fields.get("port").map_or(owner, |node| node.span) };
        (!id_fails).then_some(Draft { id, way, places })
    }

    fn id(&mut self, node: &Node<'t>) -> Option<(Slug, Span)> {
        let id = self.parsed(node, "an id", slug)?;
        if RESERVED_IDS.contains(&id.as_str()) {
            let help = format!("choose another, for example `{id}-out`");
            self.error(node.span, format!("the id `{id}` belongs to a rule that every policy has"), Some(help));
            return None;
        }
        Some((id, node.span))
    }

    /// One destination or a list of them, with their places; never empty.
    fn destinations(&mut self, node: &Node<'t>) -> Option<Vec<(Destination, Span)>> {
        let items = match &node.value {
            Value::List(items) if items.is_empty() => {
                let help = "name a destination, or take the whole way out away".to_string();
                self.error(node.span, "the list is empty: this leads nowhere", Some(help));
                return None;
            }
            Value::List(items) => items.as_slice(),
            _ => std::slice::from_ref(node),
        };
        let mut to = Vec::with_capacity(items.len());
        for item in items {
            if let Some(target) = self.parsed(item, "a name, an address or a network", value::target) {
                to.push((Destination { target, line: self.line(item.span) }, item.span));
            }
        }
        (to.len() == items.len()).then_some(to)
    }

    /// The ports of a way out that does not say them.
    fn ports_unsaid(
        &mut self,
        fields: &Fields<'_, 't>,
        to: Option<&[(Destination, Span)]>,
        protocol: Option<Transport>,
    ) -> Option<PortSet> {
        let to = to?;
        if let Some((destination, span)) = to.iter().find(|(destination, _)| matches!(destination.target, Target::Net(_))) {
            let Target::Net(net) = &destination.target else { return None };
            let kind = if net.prefix_len() == net.max_prefix_len() { "an address" } else { "a network" };
            let help = "only a bare name means `port: 443`; say the port here, for example `port: 5432`".to_string();
            self.error(*span, format!("{kind} needs a `port`"), Some(help));
            return None;
        }
        if protocol? == Transport::Udp {
            let span = fields.key("protocol").unwrap_or(fields.owner);
            let help = "a bare name means TLS over TCP; say which port of UDP is meant".to_string();
            self.error(span, "`protocol: udp` needs a `port`", Some(help));
            return None;
        }
        Some(PortSet::single(443))
    }

    /// A port, a range, or a list of both.
    fn ports(&mut self, node: &Node<'t>) -> Option<PortSet> {
        let items = match &node.value {
            Value::List(items) if items.is_empty() => {
                self.error(node.span, "the list is empty: no port is no way out", Some("for example `port: 443`".to_string()));
                return None;
            }
            Value::List(items) => items.as_slice(),
            _ => std::slice::from_ref(node),
        };
        let ranges: Vec<PortRange> = items.iter().filter_map(|item| self.port_range(item)).collect();
        (ranges.len() == items.len()).then(|| PortSet::new(ranges))
    }

    fn port_range(&mut self, node: &Node<'t>) -> Option<PortRange> {
        let digits =
            matches!(&node.value, Value::Scalar { text, .. } if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()));
        if self.is_number(node) || digits {
            return self.number(node, "a port", 1, 65535).and_then(|port| u16::try_from(port).ok()).map(PortRange::single);
        }
        self.parsed(node, "a port or a range of ports", value::port_range)
    }

    /// Exactly one of the kinds of scope.
    fn scope(&mut self, node: &Node<'t>, owner: Span) -> Option<Scope> {
        let example = "for example `for: {user: backend}`";
        if let Value::Scalar { text, .. } = &node.value {
            let help = match account(text) {
                Ok(name) => format!("write `for: {{user: {name}}}`, or another of user, uid, group, gid, service"),
                Err(_) => example.to_string(),
            };
            self.wrong_type(node, "a kind with a name", Some(help));
            return None;
        }
        let found = self.found.len();
        let fields = self.map(node, owner, "`for`", &SCOPES, belongs)?;
        let mut entries = fields.iter();
        let Some((kind, _, value)) = entries.next() else {
            if self.found.len() == found {
                self.error(node.span, "`for` says nobody", Some(example.to_string()));
            }
            return None;
        };
        if let Some((_, second, _)) = entries.next() {
            let help = "make a way out for each".to_string();
            self.error(second, "`for` has exactly one key", Some(help));
            return None;
        }
        let named = |text: &str, parse: fn(&str) -> Result<String, String>| parse(text).map(String::into_boxed_str).map_err(Complaint::new);
        // The highest number means "nobody" to the kernel, and the one below it to tools that read -2: no account has either, and
        // packets of nobody in particular are judged as the latter's.
        let highest = u64::from(u32::MAX - 2);
        if matches!(kind, "user" | "group") && self.is_number(value) {
            let (number, Value::Scalar { text, .. }) = (if kind == "user" { "uid" } else { "gid" }, &value.value) else { return None };
            let help = format!("a number is written `{number}: {}`", said(text).trim_matches('`'));
            self.wrong_type(value, "a name", Some(help));
            return None;
        }
        match kind {
            "user" => self.parsed(value, "the name of a user", |text| named(text, account)).map(Scope::User),
            "group" => self.parsed(value, "the name of a group", |text| named(text, account)).map(Scope::Group),
            "service" => self.parsed(value, "the name of a unit", |text| named(text, unit)).map(Scope::Service),
            "uid" => self.number(value, "the number of a user", 0, highest).and_then(|id| u32::try_from(id).ok()).map(Scope::Uid),
            _ => self.number(value, "the number of a group", 0, highest).and_then(|id| u32::try_from(id).ok()).map(Scope::Gid),
        }
    }
}
