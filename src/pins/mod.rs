//! What names mean now: leases on addresses, how answers change them, and the pins file.
//!
//! Everything here is a value or a pure function: the questions are asked elsewhere, and the time is an argument.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::base::name::DnsName;
use crate::base::net::Family;
use crate::base::time::Timestamp;

mod answer;
mod clock;
mod file;
mod lease;
pub mod special;

pub use answer::Answer;
pub use clock::{Anchor, Rebased, TOLERANCE, rebase};
pub use file::{PinsError, load, print};
pub use lease::{ADDRESSES_PER_NAME, Change, Confirmation, LeaseRules, Outcome, What, confirm};
pub use special::{Refusal, SpecialAnswers};

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
    /// Empty without a CNAME. Kept as the server spelt them, lower-cased, with octets other than visible ASCII escaped.
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
    /// The time to live that server gave, in seconds: the least along the chain.
    pub ttl: u32,
    /// When an answer first held the address.
    pub first_seen: Timestamp,
    /// When an answer last held it.
    pub last_seen: Timestamp,
    /// When the kernel drops it. Never later than `last_seen` plus `refresh.keep`.
    pub expires: Timestamp,
}

/// What a lease is at some time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LeaseState {
    /// The last answer held the address.
    Live,
    /// The last answer did not hold it; it stays until it expires, so that its flows may finish and a CDN that shows a few
    /// of its addresses at a time keeps them all.
    Draining,
    /// Its time is over.
    Gone,
}

impl Pins {
    /// The names that have no lease that still runs.
    pub fn unresolved(&self, now: Timestamp) -> impl Iterator<Item = &DnsName> {
        self.names.iter().filter(move |(_, pins)| pins.is_unresolved(now)).map(|(name, _)| name)
    }

    /// Only the pins of these names. A policy that no longer has a name no longer has its pins.
    pub fn only(&self, names: &BTreeSet<DnsName>) -> Pins {
        let kept = self.names.iter().filter(|(name, _)| names.contains(*name));
        Pins { names: kept.map(|(name, pins)| (name.clone(), pins.clone())).collect() }
    }
}

impl NamePins {
    /// What this lease, one of the name's, is now.
    pub fn state(&self, lease: &Lease, now: Timestamp) -> LeaseState {
        if lease.expires <= now {
            LeaseState::Gone
        } else if self.confirmed.is_some_and(|confirmed| lease.last_seen < confirmed) {
            LeaseState::Draining
        } else {
            LeaseState::Live
        }
    }

    /// The addresses of one family, in order.
    pub fn of_family(&self, family: Family) -> impl Iterator<Item = (&IpAddr, &Lease)> {
        self.leases.iter().filter(move |(address, _)| Family::of(address) == family)
    }

    /// Whether no lease still runs.
    pub fn is_unresolved(&self, now: Timestamp) -> bool {
        self.leases.values().all(|lease| lease.expires <= now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pins(names: &[(&str, &[&str])]) -> Pins {
        let lease = |seen: i64| Lease {
            server: "192.0.2.53:53".to_string(),
            ttl: 60,
            first_seen: Timestamp(0),
            last_seen: Timestamp(seen),
            expires: Timestamp(seen + 100),
        };
        let names = names.iter().map(|(name, addresses)| {
            let leases = addresses.iter().map(|text| (text.parse().unwrap(), lease(10))).collect();
            (DnsName::parse(name).unwrap(), NamePins { confirmed: Some(Timestamp(10)), leases, ..NamePins::default() })
        });
        Pins { names: names.collect() }
    }

    fn texts(names: &[&DnsName]) -> Vec<String> {
        names.iter().map(|name| name.to_string()).collect()
    }

    #[test]
    fn a_name_is_unresolved_without_a_lease_that_still_runs() {
        let pins = pins(&[("a.example", &["198.51.100.1"]), ("b.example", &[])]);
        assert_eq!(texts(&pins.unresolved(Timestamp(109)).collect::<Vec<_>>()), ["b.example"]);
        assert_eq!(texts(&pins.unresolved(Timestamp(110)).collect::<Vec<_>>()), ["a.example", "b.example"]);
    }

    #[test]
    fn addresses_are_told_apart_by_family() {
        let pins = pins(&[("a.example", &["198.51.100.1", "2001:db8::1", "2001:db8::2"])]);
        let name = &pins.names[&DnsName::parse("a.example").unwrap()];
        assert_eq!(name.of_family(Family::V4).count(), 1);
        assert_eq!(name.of_family(Family::V6).count(), 2);
    }

    #[test]
    fn a_lease_is_live_then_draining_then_gone() {
        let pins = pins(&[("a.example", &["198.51.100.1"])]);
        let mut name = pins.names[&DnsName::parse("a.example").unwrap()].clone();
        let lease = name.leases.values().next().unwrap().clone();
        assert_eq!(name.state(&lease, Timestamp(50)), LeaseState::Live);
        name.confirmed = Some(Timestamp(50));
        assert_eq!(name.state(&lease, Timestamp(50)), LeaseState::Draining);
        assert_eq!(name.state(&lease, Timestamp(110)), LeaseState::Gone);
    }

    #[test]
    fn pins_of_names_that_a_policy_lost_are_left_out() {
        let pins = pins(&[("a.example", &["198.51.100.1"]), ("b.example", &[])]);
        let kept = pins.only(&[DnsName::parse("a.example").unwrap(), DnsName::parse("x.example").unwrap()].into());
        assert_eq!(texts(&kept.names.keys().collect::<Vec<_>>()), ["a.example"]);
    }
}
