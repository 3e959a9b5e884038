//! What the user means: the policy language, version 1, parsed once into types that are the proof.
//!
//! A [`Policy`] holds no text that still has to be checked and no name that still has to be spelt right; whether users,
//! units and host names exist is not asked here.

mod builtin;
mod document;
mod lint;
mod outbound;
mod read;
mod value;
mod write;
mod yaml;

use std::fmt;
use std::net::IpAddr;

use crate::base::name::{DnsName, Slug};
use crate::base::net::IpNet;
use crate::base::packet::PacketSpec;
use crate::base::port::PortSet;
use crate::base::time::Period;

pub use builtin::{BUILTIN_NAMES, builtin};
pub use document::{Parsed, parse, parse_bytes};
pub use lint::lint_addresses;
pub use outbound::{RESERVED_IDS, derived_id};
pub use write::{Remarks, quoted, write};
pub use yaml::MAX_OCTETS;

/// The destination that a word under `to:` names; `None` when it names none.
pub fn destination(text: &str) -> Option<Target> {
    value::target(text).ok()
}

/// The JSON Schema of the language, draft 7, for editors: it completes keys, explains them, and refuses most of what the reader refuses.
///
/// INVARIANT: what the reader takes, the schema takes. The reader knows more (host bits, shadows, ids that are taken) and has the
/// better words; nothing is decided there.
pub const SCHEMA: &str = include_str!("schema.json");

/// A line of the policy file, from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Line(pub usize);

/// A whole policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// Its name.
    pub name: Slug,
    /// The file as it was called: a path, `builtin:NAME`, or `-`.
    pub file: String,
    /// Lower-case hexadecimal SHA-256 of the file's octets.
    pub sha256: String,
    /// Whether refused packets are refused or only recorded.
    pub mode: Mode,
    /// The one port that accepts connections.
    pub inbound: Option<Inbound>,
    /// The operator's narrow way in.
    pub management: Option<Management>,
    /// The ways out, in the order of the file. Ids are unique.
    pub outbound: Vec<Outbound>,
    /// Who is asked for addresses, in order; nobody when neither a name nor a `dns` block asks for it.
    pub dns: Vec<DnsServer>,
    /// Line of the `dns` block, when there is one.
    pub dns_line: Option<Line>,
    /// How pins stay fresh.
    pub refresh: Refresh,
    /// What the host itself needs.
    pub host: Host,
    /// What follows a violation.
    pub violations: Violations,
    /// The policy's own tests.
    pub tests: Vec<PolicyTest>,
}

impl Policy {
    /// Whether any destination is a host's name.
    pub fn names_hosts(&self) -> bool {
        let destinations = self.outbound.iter().flat_map(|way| &way.to).chain(&self.host.ntp);
        destinations.into_iter().any(|destination| matches!(destination.target, Target::Name(_)))
    }

    /// The line that names a destination, by the id of its rule and by what the rule calls it: a name or a network.
    pub fn destination_line(&self, id: &str, target: &str) -> Option<Line> {
        let ways = self.outbound.iter().filter(|way| way.id.as_str() == id).flat_map(|way| &way.to);
        let destinations = ways.chain(self.host.ntp.iter().filter(|_| id == "ntp"));
        let said = |destination: &&Destination| match &destination.target {
            Target::Name(name) => name.as_str() == target,
            Target::Net(net) => net.to_string() == target || (net.prefix_len() == net.max_prefix_len() && net.addr().to_string() == target),
        };
        destinations.into_iter().find(said).map(|destination| destination.line).or_else(|| self.rule_line(id))
    }

    /// The line of the file that a rule comes from, by the rule's id; `None` for rules that no line asks for.
    pub fn rule_line(&self, id: &str) -> Option<Line> {
        match id {
            "inbound" => self.inbound.as_ref().map(|inbound| inbound.line),
            "management" => self.management.as_ref().map(|management| management.line),
            "ntp" => self.host.ntp_line,
            "resolver" => self.dns_line,
            "quarantine" => self.violations.quarantine.as_ref().map(|quarantine| quarantine.line),
            // No way out has an id of the other built-in rules.
            id => self.outbound.iter().find(|way| way.id.as_str() == id).map(|way| way.line),
        }
    }
}

/// Whether the rules block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Mode {
    /// Refused packets are refused.
    Enforce,
    /// The same rules with an accepting end: refused packets are recorded and pass.
    Observe,
}

/// A transport protocol that the language names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs)]
pub enum Transport {
    Tcp,
    Udp,
}

/// Who may come in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sources {
    /// Everybody.
    Any,
    /// These networks: sorted, not empty, none inside another, and together not everybody.
    Nets(Vec<IpNet>),
}

/// The one port that accepts connections.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inbound {
    /// The port.
    pub port: u16,
    /// Its protocol.
    pub protocol: Transport,
    /// Who may use it.
    pub from: Sources,
    /// Where it stands.
    pub line: Line,
}

/// The operator's narrow way in; always TCP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Management {
    /// The port.
    pub port: u16,
    /// Who may use it: sorted, not empty, none inside another, never everybody.
    pub from: Vec<IpNet>,
    /// Where it stands.
    pub line: Line,
}

/// One way out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outbound {
    /// Its id: said, or derived from the first destination. Unique in the policy.
    pub id: Slug,
    /// Where to, in the order of the file; not empty.
    pub to: Vec<Destination>,
    /// Which ports.
    pub ports: PortSet,
    /// Which protocol.
    pub protocol: Transport,
    /// For whom; `None`: for everybody on the host and behind it.
    pub scope: Option<Scope>,
    /// Line of the entry.
    pub line: Line,
}

/// A destination with the line that names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Destination {
    /// What it is.
    pub target: Target,
    /// Where it stands.
    pub line: Line,
}

/// What a destination can be.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Target {
    /// The addresses this name resolves to.
    Name(DnsName),
    /// A network; a single address is a network of full length.
    Net(IpNet),
}

/// Whose packets a rule is for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scope {
    /// A user by name.
    User(Box<str>),
    /// A user by number.
    Uid(u32),
    /// A primary group by name.
    Group(Box<str>),
    /// A primary group by number.
    Gid(u32),
    /// A systemd unit by its full name, `backend.service`.
    Service(Box<str>),
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Scope::User(name) => write!(f, "user {name}"),
            Scope::Uid(number) => write!(f, "uid {number}"),
            Scope::Group(name) => write!(f, "group {name}"),
            Scope::Gid(number) => write!(f, "gid {number}"),
            Scope::Service(unit) => write!(f, "service {unit}"),
        }
    }
}

/// A server that is asked for addresses.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DnsServer {
    /// The host's real upstream servers.
    System,
    /// Plain DNS, port 53 unless said.
    Plain {
        /// Its address.
        address: IpAddr,
        /// Its port.
        port: u16,
    },
    /// DNS over TLS, port 853 unless said.
    Tls {
        /// Its address.
        address: IpAddr,
        /// Its port.
        port: u16,
        /// The name its certificate proves.
        name: DnsName,
    },
}

/// How pins stay fresh.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refresh {
    /// How often the timer asks.
    pub every: Period,
    /// How long a pin outlives its last confirmation.
    pub keep: Period,
    /// What becomes of answers in special-purpose ranges.
    pub private: PrivateAnswers,
}

/// What becomes of answers in special-purpose ranges.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PrivateAnswers {
    /// They are refused, with the reason.
    Refuse,
    /// They become pins.
    Allow,
}

/// What the host itself needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// Whether it may renew its lease.
    pub dhcp: bool,
    /// Its time servers.
    pub ntp: Vec<Destination>,
    /// Line of `ntp`, when it is said.
    pub ntp_line: Option<Line>,
    /// Whether it answers echo requests.
    pub ping: bool,
    /// Whether the policy is mirrored where raw frames leave.
    pub raw_frames: RawFrames,
    /// What holds for containers and machines behind it.
    pub forward: Forward,
}

/// Whether the policy is mirrored where raw frames leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum RawFrames {
    Allow,
    Deny,
    BestEffort,
}

/// What holds for containers and machines behind the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Forward {
    /// They obey the same policy.
    Contain,
    /// They send nothing.
    Deny,
}

/// What follows a violation.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Violations {
    /// When somebody is cut off.
    pub quarantine: Option<Quarantine>,
    /// Who is told.
    pub alert: Option<Alert>,
}

/// When somebody is cut off, by the kernel itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quarantine {
    /// More refused packets than this, 1 or more, …
    pub after: u32,
    /// … within this time …
    pub within: Period,
    /// … cut off for this long.
    pub lasts: Period,
    /// Who is cut off.
    pub scope: QuarantineScope,
    /// Where it stands.
    pub line: Line,
}

/// Who is cut off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum QuarantineScope {
    /// The user whose packets were refused.
    User,
    /// The whole host; loopback and management stay.
    Host,
}

/// A program that is told of violations.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Alert {
    /// An absolute path.
    pub run: String,
    /// The shortest time between two runs.
    pub at_most_every: Period,
}

/// One test of the policy's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyTest {
    /// What is expected.
    pub expect: Expectation,
    /// Of which packet.
    pub packet: PacketSpec,
    /// Where it stands.
    pub line: Line,
}

/// What a policy test expects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Expectation {
    Allow,
    Deny,
}
