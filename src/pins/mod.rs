//! What names mean now: leases on addresses, how answers change them, and the pins file.

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::base::name::DnsName;
use crate::base::time::Timestamp;

/// The pins of every name.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Pins {
    /// By name. A name that was asked for and never answered has an entry without leases.
    pub names: BTreeMap<DnsName, NamePins>,
}

/// The pins of one name.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NamePins {
    /// The names that the last answer went through, from the CNAME of the name to the owner of the addresses.
    /// Empty without a CNAME. Kept as the server spelt them, lower-cased.
    pub chain: Vec<String>,
    /// When the last answer with an address came.
    pub confirmed: Option<Timestamp>,
    /// By address.
    pub leases: BTreeMap<IpAddr, Lease>,
    /// Comment lines of the pins file that stand above the name, without their `#`.
    pub comments: Vec<String>,
}

/// The right of one address to be in the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// Which server said so last, as `192.0.2.53:53` or `tls://192.0.2.53:853#name`.
    pub server: String,
    /// The time to live that server gave, in seconds.
    pub ttl: u32,
    /// When an answer first held the address.
    pub first_seen: Timestamp,
    /// When an answer last held it.
    pub last_seen: Timestamp,
    /// When the kernel drops it. Never later than `last_seen` plus `refresh.keep`.
    pub expires: Timestamp,
}
