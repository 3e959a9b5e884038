//! The document: which blocks and keys a policy has, and what each may hold. Ways out are read next door.

use std::path::Path;

use sha2::{Digest, Sha256};

use crate::base::diagnostic::{Diagnostic, Severity, SourceText, said};
use crate::base::name::Slug;
use crate::base::net::{Family, IpNet};
use crate::base::packet::PacketSpec;
use crate::base::time::Period;
use crate::policy::lint::{self, Places};
use crate::policy::outbound::outbound;
use crate::policy::read::{Fields, Reader};
use crate::policy::value::{self, Complaint};
use crate::policy::yaml::{self, MAX_OCTETS, Node, Span, Value};
use crate::policy::*;

/// The version of the language that is understood.
const VERSION: u64 = 1;

/// A policy that was understood, and what is odd about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parsed {
    /// What the user means.
    pub policy: Policy,
    /// Lints, in the order of the text.
    pub warnings: Vec<Diagnostic>,
}

/// Reads a policy. `file` is what the text is called: a path, `builtin:NAME`, or `-`. Fails with every error of the text, in
/// the order of the text; only an error of YAML itself hides those behind it.
pub fn parse(text: &str, file: &str) -> Result<Parsed, Vec<Diagnostic>> {
    if text.len() > MAX_OCTETS {
        return Err(vec![whole_file(
            "the policy is longer than 1 MiB",
            "one rule may hold many names, and several policies one host each",
        )]);
    }
    let source = SourceText::new(text);
    let root = yaml::parse(&source)?;
    let mut reader = Reader::new(&source);
    let (policy, places) = reader.document(&root, text, file);
    let mut found = reader.found;
    if found.is_empty() {
        let mut warnings = lint::lint(&policy, &places, &source);
        warnings.sort();
        return Ok(Parsed { policy, warnings });
    }
    found.sort();
    Err(found)
}

/// Reads a policy from octets, which must be UTF-8.
pub fn parse_bytes(bytes: &[u8], file: &str) -> Result<Parsed, Vec<Diagnostic>> {
    if bytes.len() > MAX_OCTETS {
        // The length is reported before the encoding: a wrong file is more often long than mis-encoded.
        return parse(&" ".repeat(MAX_OCTETS + 1), file);
    }
    let error = match std::str::from_utf8(bytes) {
        Ok(text) => return parse(text, file),
        Err(error) => error,
    };
    let good = String::from_utf8_lossy(bytes.get(..error.valid_up_to()).unwrap_or_default());
    let (line, column) = SourceText::new(&good).position(good.len());
    let octet = bytes.get(error.valid_up_to()).copied().unwrap_or_default();
    Err(vec![Diagnostic {
        line,
        column,
        width: 1,
        severity: Severity::Error,
        message: format!("the octet 0x{octet:02x} is not UTF-8"),
        help: Some("save the file as UTF-8".to_string()),
    }])
}

fn whole_file(message: &str, help: &str) -> Diagnostic {
    Diagnostic { line: 0, column: 0, width: 1, severity: Severity::Error, message: message.into(), help: Some(help.into()) }
}

/// Where keys belong, for those who wrote them elsewhere.
const HOMES: [(&str, &str); 28] = [
    ("port", "`inbound`, `management` and the entries of `outbound`"),
    ("protocol", "`inbound` and the entries of `outbound`"),
    ("from", "`inbound` and `management`"),
    ("to", "the entries of `outbound`"),
    ("id", "the entries of `outbound`"),
    ("for", "the entries of `outbound`, and `violations.quarantine`"),
    ("user", "`for`"),
    ("uid", "`for`"),
    ("group", "`for`"),
    ("gid", "`for`"),
    ("service", "`for`"),
    ("servers", "`dns`"),
    ("every", "`refresh`"),
    ("keep", "`refresh`"),
    ("private", "`refresh`"),
    ("dhcp", "`host`"),
    ("ntp", "`host`"),
    ("ping", "`host`"),
    ("raw-frames", "`host`"),
    ("forward", "`host`"),
    ("quarantine", "`violations`"),
    ("alert", "`violations`"),
    ("after", "`violations.quarantine`"),
    ("within", "`violations.quarantine`"),
    ("run", "`violations.alert`"),
    ("at-most-every", "`violations.alert`"),
    ("allow", "the entries of `tests`"),
    ("deny", "the entries of `tests`"),
];

/// Keys of the first level, and words that others use for them.
const BLOCKS: [&str; 10] = ["version", "name", "mode", "inbound", "management", "outbound", "dns", "refresh", "host", "violations"];
const FOREIGN: [(&str, &str); 6] =
    [("egress", "outbound"), ("ingress", "inbound"), ("destination", "to"), ("hosts", "to"), ("proto", "protocol"), ("source", "from")];

/// Where a key belongs that is not known in its place.
pub(super) fn belongs(key: &str) -> Option<String> {
    if let Some((_, ours)) = FOREIGN.iter().find(|(theirs, _)| *theirs == key) {
        return Some(format!("this language calls it `{ours}`"));
    }
    if BLOCKS.contains(&key) || key == "tests" {
        return Some(format!("`{key}` stands at the beginning of a line, under no other key"));
    }
    HOMES.iter().find(|(known, _)| *known == key).map(|(_, home)| format!("`{key}` belongs under {home}"))
}

impl<'t> Reader<'_, 't> {
    fn document(&mut self, root: &Node<'t>, text: &str, file: &str) -> (Policy, Places) {
        let mut places = Places::default();
        let mut policy = Policy {
            name: name_of_file(file),
            file: file.to_string(),
            sha256: Sha256::digest(text.as_bytes()).iter().map(|octet| format!("{octet:02x}")).collect(),
            mode: Mode::Enforce,
            inbound: None,
            management: None,
            outbound: Vec::new(),
            dns: vec![DnsServer::System],
            dns_line: None,
            refresh: Refresh { every: Period::from_seconds(60), keep: Period::from_seconds(24 * 3600), private: PrivateAnswers::Refuse },
            host: Host {
                dhcp: true,
                ntp: Vec::new(),
                ntp_line: None,
                ping: false,
                raw_frames: RawFrames::Allow,
                forward: Forward::Contain,
            },
            violations: Violations::default(),
            tests: Vec::new(),
        };
        let keys = [BLOCKS.as_slice(), &["tests"]].concat();
        let owner = first_key(root);
        let Some(fields) = self.map(root, owner, "a policy", &keys, belongs) else { return (policy, places) };
        self.version(&fields);
        if let Some(node) = fields.get("name")
            && let Some(name) = self.parsed(node, "a name", slug)
        {
            policy.name = name;
        }
        if let Some(node) = fields.get("mode") {
            policy.mode = self.word(node, "mode", &[("enforce", Mode::Enforce), ("observe", Mode::Observe)]).unwrap_or(policy.mode);
        }
        for (key, span, node) in fields.iter() {
            match key {
                "inbound" => policy.inbound = self.inbound(node, span, &mut places),
                "management" => policy.management = self.management(node, span, &mut places),
                "outbound" => (policy.outbound, places.outbound) = outbound(self, node),
                "dns" => {
                    policy.dns_line = Some(self.line(span));
                    policy.dns = self.dns(node, span, &mut places);
                }
                "refresh" => self.refresh(node, span, &mut policy.refresh, &mut places),
                "host" => self.host(node, span, &mut policy.host, &mut places),
                "violations" => self.violations(node, span, &mut policy.violations, &mut places),
                "tests" => (policy.tests, places.tests) = self.tests(node),
                _ => {}
            }
        }
        // Who names no host needs nobody who knows addresses.
        if policy.dns_line.is_none() && !policy.names_hosts() {
            policy.dns.clear();
        }
        (policy, places)
    }

    fn version(&mut self, fields: &Fields<'_, 't>) {
        let help = "put `version: 1` into the first line";
        let Some(node) = self.required(fields, "a policy", "version", help) else { return };
        if !self.is_number(node) {
            return self.wrong_type(node, "a number", Some(format!("write `version: {VERSION}`")));
        }
        let Value::Scalar { text, .. } = &node.value else { return };
        if text.as_ref() != VERSION.to_string() {
            let message = format!("version {} of the language is not understood", said(text));
            self.error(node.span, message, Some(format!("this program understands version {VERSION}")));
        }
    }

    fn inbound(&mut self, node: &Node<'t>, owner: Span, places: &mut Places) -> Option<Inbound> {
        let fields = self.map(node, owner, "`inbound`", &["port", "protocol", "from"], belongs)?;
        let port = self.required(&fields, "`inbound`", "port", "for example `port: 443`");
        let port = port.and_then(|node| self.one_port(node));
        let protocol = fields.get("protocol").map_or(Some(Transport::Tcp), |node| self.transport(node));
        places.inbound = fields.key("from").unwrap_or(owner);
        let from = match fields.get("from") {
            None => Some(Sources::Any),
            Some(node) if is_word(node, "any") => Some(Sources::Any),
            Some(node) => self.networks(node, "`any`, or a list of networks").map(|nets| {
                let nets: Vec<IpNet> = nets.into_iter().map(|(net, _)| net).collect();
                match value::whole_families(&nets).len() {
                    2 => Sources::Any,
                    _ => Sources::Nets(value::outermost(&nets)),
                }
            }),
        };
        Some(Inbound { port: port?, protocol: protocol?, from: from?, line: self.line(owner) })
    }

    fn management(&mut self, node: &Node<'t>, owner: Span, places: &mut Places) -> Option<Management> {
        let elsewhere = |key: &str| match key {
            "protocol" => Some("management is always TCP".to_string()),
            key => belongs(key),
        };
        let fields = self.map(node, owner, "`management`", &["port", "from"], elsewhere)?;
        let port = self.required(&fields, "`management`", "port", "for example `port: 22`").and_then(|node| self.one_port(node));
        let help = "say from where: `from: [203.0.113.0/24]`";
        let from = self.required(&fields, "`management`", "from", help)?;
        if is_word(from, "any") {
            self.error(from.span, "`management` is never open to everybody", Some(help.to_string()));
            return None;
        }
        let networks = self.networks(from, "a list of networks")?;
        let nets: Vec<IpNet> = networks.iter().map(|(net, _)| *net).collect();
        if let Some(family) = value::whole_families(&nets).first() {
            let whole = networks.iter().find(|(net, _)| net.prefix_len() == 0).map(|(_, span)| *span);
            let family = if *family == Family::V4 { "IPv4" } else { "IPv6" };
            let message = match whole {
                Some(_) => format!("`management` is never open to everybody: this is all of {family}"),
                None => format!("`management` is never open to everybody: together these are all of {family}"),
            };
            let span = whole.or_else(|| fields.key("from")).unwrap_or(owner);
            self.error(span, message, Some("name the networks that operators come from".to_string()));
        }
        places.management = Some(owner);
        places.management_from = networks;
        Some(Management { port: port?, from: value::outermost(&nets), line: self.line(owner) })
    }

    /// A list of networks that is not empty, with their places.
    fn networks(&mut self, node: &Node<'t>, expected: &str) -> Option<Vec<(IpNet, Span)>> {
        let items = self.list(node, &format!("{expected}: `[203.0.113.0/24]`"))?;
        if items.is_empty() {
            self.error(node.span, "the list is empty: nobody could come in", Some("name a network, or leave the block out".to_string()));
            return None;
        }
        let mut nets = Vec::new();
        for item in items {
            let parse = |text: &str| match text {
                "any" => Err(Complaint::new("`any` stands in no list").help("write `from: any`, where that is allowed")),
                text => value::network(text),
            };
            if let Some(net) = self.parsed(item, "an address or a network", parse) {
                nets.push((net, item.span));
            }
        }
        (nets.len() == items.len()).then_some(nets)
    }

    fn one_port(&mut self, node: &Node<'t>) -> Option<u16> {
        let what = match &node.value {
            Value::List(_) => {
                let help = "a second port would be a second way in; `management` is the narrow one".to_string();
                self.error(node.span, "exactly one port belongs here", Some(help));
                return None;
            }
            Value::Scalar { text, .. } if text.contains(['-', ':']) && value::port_range(&text.replace(':', "-")).is_ok() => {
                self.error(node.span, format!("exactly one port belongs here, not the range {}", said(text)), None);
                return None;
            }
            _ => "a port",
        };
        self.number(node, what, 1, 65535).and_then(|port| u16::try_from(port).ok())
    }

    /// `tcp` or `udp`.
    pub(super) fn transport(&mut self, node: &Node<'t>) -> Option<Transport> {
        self.word(node, "protocol", &[("tcp", Transport::Tcp), ("udp", Transport::Udp)])
    }

    fn dns(&mut self, node: &Node<'t>, owner: Span, places: &mut Places) -> Vec<DnsServer> {
        let mut servers = Vec::new();
        let Some(fields) = self.map(node, owner, "`dns`", &["servers"], belongs) else { return servers };
        let help = "for example `servers: [system]`";
        let Some(list) = self.required(&fields, "`dns`", "servers", help) else { return servers };
        let Some(items) = self.list(list, help) else { return servers };
        if items.is_empty() {
            let help = "leave the block out for the host's own servers".to_string();
            self.error(list.span, "the list is empty: nobody could be asked", Some(help));
        }
        for item in items {
            if let Some(server) = self.parsed(item, "a server", value::dns_server) {
                servers.push(server);
                places.dns.push(item.span);
            }
        }
        servers
    }

    fn refresh(&mut self, node: &Node<'t>, owner: Span, refresh: &mut Refresh, places: &mut Places) {
        let Some(fields) = self.map(node, owner, "`refresh`", &["every", "keep", "private"], belongs) else { return };
        let found = self.found.len();
        if let Some(node) = fields.get("every") {
            refresh.every = self.period(node).unwrap_or(refresh.every);
        }
        if let Some(node) = fields.get("keep") {
            refresh.keep = self.period(node).unwrap_or(refresh.keep);
        }
        if let Some(node) = fields.get("private") {
            let words = [("refuse", PrivateAnswers::Refuse), ("allow", PrivateAnswers::Allow)];
            refresh.private = self.word(node, "choice", &words).unwrap_or(refresh.private);
        }
        places.refresh = fields.get("keep").or(fields.get("every")).map_or(owner, |node| node.span);
        places.every = fields.get("every").map_or(owner, |node| node.span);
        if self.found.len() == found && refresh.keep < refresh.every {
            let message = format!("pins end after {}, before they are asked for again after {}", refresh.keep, refresh.every);
            self.error(places.refresh, message, Some("`keep` is at least twice `every`".to_string()));
        }
    }

    fn period(&mut self, node: &Node<'t>) -> Option<Period> {
        self.parsed_scalar(node, "a period", value::period)
    }

    fn host(&mut self, node: &Node<'t>, owner: Span, host: &mut Host, places: &mut Places) {
        let keys = ["dhcp", "ntp", "ping", "raw-frames", "forward"];
        let Some(fields) = self.map(node, owner, "`host`", &keys, belongs) else { return };
        if let Some(node) = fields.get("dhcp") {
            host.dhcp = self.boolean(node).unwrap_or(host.dhcp);
        }
        if let Some(node) = fields.get("ping") {
            host.ping = self.boolean(node).unwrap_or(host.ping);
        }
        if let Some(node) = fields.get("raw-frames") {
            let words = [("allow", RawFrames::Allow), ("deny", RawFrames::Deny), ("best-effort", RawFrames::BestEffort)];
            host.raw_frames = self.word(node, "choice", &words).unwrap_or(host.raw_frames);
            places.raw_frames = Some(node.span);
        }
        if let Some(node) = fields.get("forward") {
            host.forward = self.word(node, "choice", &[("contain", Forward::Contain), ("deny", Forward::Deny)]).unwrap_or(host.forward);
        }
        if let Some((node, key)) = fields.get("ntp").zip(fields.key("ntp")) {
            host.ntp_line = Some(self.line(key));
            for item in self.list(node, "for example `[time.cloudflare.com]`").unwrap_or_default() {
                let one = |text: &str| match value::target(text)? {
                    Target::Net(net) if net.prefix_len() < net.max_prefix_len() => {
                        Err(Complaint::new(format!("{} is a network, not one server", said(text))))
                    }
                    target => Ok(target),
                };
                if let Some(target) = self.parsed(item, "a name or an address", one) {
                    host.ntp.push(Destination { target, line: self.line(item.span) });
                    places.ntp.push(item.span);
                }
            }
        }
    }

    fn violations(&mut self, node: &Node<'t>, owner: Span, violations: &mut Violations, places: &mut Places) {
        let Some(fields) = self.map(node, owner, "`violations`", &["quarantine", "alert"], belongs) else { return };
        if let Some((node, key)) = fields.get("quarantine").zip(fields.key("quarantine")) {
            violations.quarantine = self.quarantine(node, key, places);
        }
        if let Some((node, key)) = fields.get("alert").zip(fields.key("alert")) {
            violations.alert = self.alert(node, key);
        }
    }

    fn quarantine(&mut self, node: &Node<'t>, owner: Span, places: &mut Places) -> Option<Quarantine> {
        let what = "`quarantine`";
        let fields = self.map(node, owner, what, &["after", "within", "for", "scope"], belongs)?;
        let after = self.required(&fields, what, "after", "so many refused packets, for example `after: 20`");
        let after =
            after.and_then(|node| self.number(node, "a number of packets", 1, 1_000_000)).and_then(|after| u32::try_from(after).ok());
        let within = self.required(&fields, what, "within", "within so long, for example `within: 1m`");
        let (within, within_span) = (within.and_then(|node| self.period(node)), within.map(|node| node.span));
        let lasts = self.required(&fields, what, "for", "cut off for so long, for example `for: 1h`").and_then(|node| self.period(node));
        let scope = match fields.get("scope") {
            None => Some(QuarantineScope::User),
            Some(node) => self.word(node, "scope", &[("user", QuarantineScope::User), ("host", QuarantineScope::Host)]),
        };
        places.quarantine = fields.get("scope").map_or(owner, |node| node.span);
        let (after, within) = (after?, within?);
        if !countable(after, within) {
            let help = match nearest_countable(after, within) {
                Some(near) => format!("the nearest period that fits is `within: {near}`"),
                None => "at most `within: 7d`".to_string(),
            };
            let message = format!("the kernel cannot count {after} packets within {within} exactly");
            self.error(within_span.unwrap_or(owner), message, Some(help));
        }
        Some(Quarantine { after, within, lasts: lasts?, scope: scope?, line: self.line(owner) })
    }

    fn alert(&mut self, node: &Node<'t>, owner: Span) -> Option<Alert> {
        let fields = self.map(node, owner, "`alert`", &["run", "at-most-every"], belongs)?;
        let run = self.required(&fields, "`alert`", "run", "the program that gets the record, for example `run: /usr/local/bin/page-me`");
        let run = run.and_then(|node| self.parsed(node, "the path of a program", value::program));
        let at_most_every = match fields.get("at-most-every") {
            None => Some(Period::from_seconds(60)),
            Some(node) => self.period(node),
        };
        Some(Alert { run: run?, at_most_every: at_most_every? })
    }

    fn tests(&mut self, node: &Node<'t>) -> (Vec<PolicyTest>, Vec<Span>) {
        let (mut tests, mut places) = (Vec::new(), Vec::new());
        let example = "for example `- deny: udp to 8.8.8.8:53`";
        let Some(items) = self.list(node, example) else { return (tests, places) };
        for item in items {
            let owner = first_key(item);
            let Some(fields) = self.map(item, owner, "a test", &["allow", "deny"], |_| None) else { continue };
            let mut entries = fields.iter();
            let Some((key, _, node)) = entries.next() else {
                if matches!(&item.value, Value::Map(entries) if entries.is_empty()) {
                    self.error(item.span, "a test says `allow` or `deny`", Some(example.to_string()));
                }
                continue;
            };
            if let Some((_, second, _)) = entries.next() {
                let help = "put each into an item of its own".to_string();
                self.error(second, "a test says either `allow` or `deny`", Some(help));
            }
            let Some(text) = self.text(node, "a packet") else { continue };
            match text.parse::<PacketSpec>() {
                Ok(packet) => {
                    let expect = if key == "allow" { Expectation::Allow } else { Expectation::Deny };
                    tests.push(PolicyTest { expect, packet, line: self.line(owner) });
                    places.push(node.span);
                }
                Err(error) => self.packet_error(node, text, error),
            }
        }
        (tests, places)
    }
}

/// The first key of a mapping; any other value as it stands.
pub(super) fn first_key(node: &Node<'_>) -> Span {
    match &node.value {
        Value::Map(entries) => entries.first().map_or(node.span, |(key, _)| key.span),
        _ => node.span,
    }
}

fn is_word(node: &Node<'_>, word: &str) -> bool {
    matches!(&node.value, Value::Scalar { text, .. } if text == word)
}

/// A slug, or the nearest one to write instead.
pub(super) fn slug(text: &str) -> Result<Slug, Complaint> {
    Slug::parse(text).ok_or_else(|| {
        let complaint = Complaint::new(format!("{} is not a short name", said(text)));
        complaint.help(format!("1 to 63 of a-z, 0-9, `-`, `.`, `_`, beginning with a letter or digit: `{}`", Slug::nearest(text, "policy")))
    })
}

fn name_of_file(file: &str) -> Slug {
    let stem = match file.strip_prefix("builtin:") {
        Some(name) => name,
        None => Path::new(file).file_stem().and_then(|stem| stem.to_str()).unwrap_or("policy"),
    };
    Slug::nearest(stem, "policy")
}

/// Whether `after` packets within a period are a whole number of packets in one of the units that the kernel's limit takes:
/// a second, a minute, an hour, a day, a week. Source: `nft_limit.c`, and nft(8).
fn countable(after: u32, within: Period) -> bool {
    let within = within.seconds();
    (1..=604_800).contains(&within) && [1, 60, 3600, 86_400, 604_800].iter().any(|unit| (u64::from(after) * unit) % within == 0)
}

fn nearest_countable(after: u32, within: Period) -> Option<Period> {
    let within = within.seconds();
    if within > 604_800 {
        return None;
    }
    (1..within.max(2))
        .flat_map(|off| [within - off.min(within - 1), within + off])
        .map(Period::from_seconds)
        .find(|near| countable(after, *near))
}
