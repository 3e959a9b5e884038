//! The lease rules: how answers and the passing of time change pins. Pure functions; they neither ask nor read a clock.
//!
//! Two ideas carry the rules. An address that leaves the answers is not taken away, it is left to expire: partial answers,
//! outages and rotations look alike from here, and only time tells them apart. And a lease is renewed lazily, so that a refresh
//! that learns nothing new writes nothing to the kernel.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use crate::base::name::DnsName;
use crate::base::time::{Period, Timestamp};
use crate::pins::special::{self, Refusal, SpecialAnswers};
use crate::pins::{Answer, Lease, LeaseState, NamePins, Pins};

/// How many addresses one name can have.
pub const ADDRESSES_PER_NAME: usize = 64;

/// What the policy says about leases.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseRules {
    /// How long a pin outlives its last confirmation.
    pub keep: Period,
    /// How often answers are to be expected.
    pub every: Period,
    /// What becomes of answers in special-purpose ranges.
    pub special: SpecialAnswers,
}

/// What the rules made of a round of answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Confirmation {
    /// The pins from now on.
    pub pins: Pins,
    /// What happened, sorted by name and address.
    pub changes: Vec<Change>,
    /// What became of each name that was asked for.
    pub outcomes: BTreeMap<DnsName, Outcome>,
}

/// What happened to one address of one name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Change {
    /// Whose address.
    pub name: DnsName,
    /// Which address.
    pub address: IpAddr,
    /// What happened.
    pub what: What,
}

/// What can happen to an address.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum What {
    /// It is a pin now.
    Added,
    /// It goes on being one, and its lease was extended.
    Renewed,
    /// It was draining, or its lease had just run out, and an answer holds it again.
    Returned,
    /// The answer no longer holds it; it stays until its lease runs out.
    Draining,
    /// Its lease was cut, because the policy now keeps pins for a shorter time.
    Shortened,
    /// It is no pin any more: its lease ran out.
    Gone,
    /// It is not a pin, or no longer: it lies in a special-purpose range.
    Refused(Refusal),
    /// It is not a pin, or no longer: the name has [`ADDRESSES_PER_NAME`] others that come first.
    OverCap,
}

/// What became of one name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// An answer confirmed addresses.
    Confirmed {
        /// How many of its pins the answer held.
        live: usize,
        /// How many of its pins it did not hold.
        draining: usize,
        /// What was wrong nevertheless, in words.
        complaints: Vec<String>,
    },
    /// No answer confirmed anything; the pins it had stay until they expire.
    Kept {
        /// How many pins.
        pins: usize,
        /// When the last of them runs out.
        until: Timestamp,
        /// Why nothing was confirmed, as a clause about the name.
        why: String,
    },
    /// No answer confirmed anything and there are no pins: what the name names is blocked.
    Unresolved {
        /// Why, as a clause about the name.
        why: String,
    },
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            What::Added => f.write_str("added"),
            What::Renewed => f.write_str("renewed"),
            What::Returned => f.write_str("returned"),
            What::Draining => f.write_str("draining"),
            What::Shortened => f.write_str("shortened"),
            What::Gone => f.write_str("gone"),
            What::Refused(refusal) => write!(f, "refused: {refusal}"),
            What::OverCap => write!(f, "refused: a name has at most {ADDRESSES_PER_NAME} addresses"),
        }
    }
}

/// The pins after these answers. Names without an answer only grow older; every name is judged by itself.
///
/// A confirmed address may stay until `now` plus `keep`. Its lease is moved there only when that gains at least a quarter of
/// `keep`, or when less than three times `every` remains of it; so the time between two writes to the kernel is hours where the
/// time between two questions is a minute.
pub fn confirm(pins: &Pins, answers: &BTreeMap<DnsName, Answer>, rules: &LeaseRules, now: Timestamp) -> Confirmation {
    let mut after = Confirmation { pins: pins.clone(), changes: Vec::new(), outcomes: BTreeMap::new() };
    for name in answers.keys() {
        after.pins.names.entry(name.clone()).or_default();
    }
    for (name, name_pins) in &mut after.pins.names {
        let mut changes = BTreeMap::new();
        let answer = answers.get(name);
        let outcome = confirm_name(name_pins, answer, rules, now, &mut changes);
        if answer.is_some() {
            after.outcomes.insert(name.clone(), outcome);
        }
        after.changes.extend(changes.into_iter().map(|(address, what)| Change { name: name.clone(), address, what }));
    }
    after
}

/// Judges one name. At most one change is told of an address.
fn confirm_name(
    pins: &mut NamePins,
    answer: Option<&Answer>,
    rules: &LeaseRules,
    now: Timestamp,
    changes: &mut BTreeMap<IpAddr, What>,
) -> Outcome {
    shorten(pins, rules, changes);
    refuse_held(pins, rules, changes);
    let (accepted, why) = accept(answer, rules, changes);
    let complaints = match answer {
        Some(Answer::Addresses { chain, complaints, .. }) if !accepted.is_empty() => {
            pins.chain.clone_from(chain);
            complaints.clone()
        }
        _ => Vec::new(),
    };
    let held = !accepted.is_empty();
    if held {
        let before: BTreeMap<IpAddr, LeaseState> = pins.leases.iter().map(|(address, lease)| (*address, pins.state(lease, now))).collect();
        pins.confirmed = Some(now);
        for (address, (ttl, server)) in &accepted {
            let sight = Sight { ttl: *ttl, server, state: before.get(*address).copied() };
            if let Some(what) = renew(&mut pins.leases, **address, &sight, rules, now) {
                changes.insert(**address, what);
            }
        }
        for (address, state) in before {
            if state == LeaseState::Live && !accepted.contains_key(&address) {
                changes.entry(address).or_insert(What::Draining);
            }
        }
        // What this answer lacks was seen before it, were it in the same second; the last confirmation tells draining from live.
        for (_, lease) in pins.leases.iter_mut().filter(|(address, lease)| lease.last_seen >= now && !accepted.contains_key(address)) {
            lease.last_seen = Timestamp(now.0.saturating_sub(1));
            lease.first_seen = lease.first_seen.min(lease.last_seen);
            lease.expires = lease.expires.min(lease.last_seen.plus(rules.keep));
        }
    }
    pins.leases.retain(|address, lease| {
        let runs = lease.expires > now;
        if !runs {
            changes.insert(*address, What::Gone);
        }
        runs
    });
    cap(pins, changes);
    let live = pins.leases.keys().filter(|address| accepted.contains_key(*address)).count();
    match pins.leases.values().map(|lease| lease.expires).max() {
        Some(_) if held => Outcome::Confirmed { live, draining: pins.leases.len() - live, complaints },
        Some(until) => Outcome::Kept { pins: pins.leases.len(), until, why },
        None => Outcome::Unresolved { why },
    }
}

/// Cuts leases that are longer than the policy now allows.
fn shorten(pins: &mut NamePins, rules: &LeaseRules, changes: &mut BTreeMap<IpAddr, What>) {
    for (address, lease) in &mut pins.leases {
        let latest = lease.last_seen.plus(rules.keep);
        if lease.expires > latest {
            lease.expires = latest;
            changes.insert(*address, What::Shortened);
        }
    }
}

/// Takes away pins that the policy no longer allows, or that came from a file.
fn refuse_held(pins: &mut NamePins, rules: &LeaseRules, changes: &mut BTreeMap<IpAddr, What>) {
    pins.leases.retain(|address, _| match special::refuse(address, rules.special) {
        None => true,
        Some(refusal) => {
            changes.insert(*address, What::Refused(refusal));
            false
        }
    });
}

/// The addresses of the answer that may become pins, and why there are none when there are none.
fn accept<'answer>(
    answer: Option<&'answer Answer>,
    rules: &LeaseRules,
    changes: &mut BTreeMap<IpAddr, What>,
) -> (BTreeMap<&'answer IpAddr, (u32, &'answer str)>, String) {
    let mut accepted = BTreeMap::new();
    let Some(answer) = answer else { return (accepted, "was not asked for".to_string()) };
    let mut why = answer.to_string();
    if let Answer::Addresses { addresses, .. } = answer {
        let mut refused = None;
        for (address, (ttl, server)) in addresses {
            match special::refuse(address, rules.special) {
                None => {
                    accepted.insert(address, (*ttl, server.as_str()));
                }
                Some(refusal) => {
                    changes.insert(*address, What::Refused(refusal));
                    refused.get_or_insert((address, refusal));
                }
            }
        }
        if let Some((address, refusal)) = refused {
            why = format!("has only addresses that are refused, as {address}: {refusal}");
        }
    }
    (accepted, why)
}

/// An address as an answer shows it.
struct Sight<'answer> {
    ttl: u32,
    server: &'answer str,
    /// What its lease was before the answer; `None` without one.
    state: Option<LeaseState>,
}

/// Confirms one address, and says what is worth telling of it.
fn renew(leases: &mut BTreeMap<IpAddr, Lease>, address: IpAddr, sight: &Sight<'_>, rules: &LeaseRules, now: Timestamp) -> Option<What> {
    let latest = now.plus(rules.keep);
    let lease =
        leases.entry(address).or_insert_with(|| Lease { server: String::new(), ttl: 0, first_seen: now, last_seen: now, expires: latest });
    sight.server.clone_into(&mut lease.server);
    lease.ttl = sight.ttl;
    lease.last_seen = now;
    let gain = latest.since(lease.expires).seconds();
    let remains = lease.expires.since(now).seconds();
    let worth_a_write = gain > 0 && (gain >= rules.keep.seconds() / 4 || remains < rules.every.seconds().saturating_mul(3));
    if worth_a_write {
        lease.expires = latest;
    }
    match sight.state {
        None => Some(What::Added),
        Some(LeaseState::Draining | LeaseState::Gone) => Some(What::Returned),
        Some(LeaseState::Live) => worth_a_write.then_some(What::Renewed),
    }
}

/// Takes away what is above [`ADDRESSES_PER_NAME`]. What the last answer held precedes what is draining, and of that what was
/// seen later precedes; a pin in use precedes a newcomer, so that a name with too many addresses does not change at every
/// question; the address itself decides between equals.
fn cap(pins: &mut NamePins, changes: &mut BTreeMap<IpAddr, What>) {
    if pins.leases.len() <= ADDRESSES_PER_NAME {
        return;
    }
    let mut order: Vec<_> = pins
        .leases
        .iter()
        .map(|(address, lease)| (Reverse(lease.last_seen), changes.get(address) == Some(&What::Added), *address))
        .collect();
    order.sort();
    for (_, _, address) in order.drain(ADDRESSES_PER_NAME..) {
        pins.leases.remove(&address);
        changes.insert(address, What::OverCap);
    }
}
