//! `status`: what is active, since when, which pins it has and how old they are, and whether the kernel still holds it.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde_json::{Value, json};

use crate::base::net::from_octets;
use crate::base::packet::Direction;
use crate::base::time::{Period, Timestamp};
use crate::command::arguments::StatusArguments;
use crate::command::{Exit, Failure, Output, enforce, handover, source, trial};
use crate::judge::plan::plan;
use crate::judge::surroundings::{Weight, findings};
use crate::pins::Pins;
use crate::policy::{Mode, Policy};
use crate::ruleset::compile::refuse::Ledger;
use crate::ruleset::compile::{QUARANTINED_HOST, QUARANTINED_USERS, compile};
use crate::ruleset::lift::lift;
use crate::ruleset::program::TableDump;
use crate::ruleset::{Identity, Ruleset};
use crate::state::{self, Backend, Current, Saved};
use crate::world::{Depth, Host, World};

/// A pin as it is shown.
struct Pin {
    name: String,
    address: IpAddr,
    draining: bool,
    last_seen: Timestamp,
    expires: Timestamp,
    /// Packets and octets; `None` when the kernel does not hold it.
    counted: Option<(u64, u64)>,
}

/// What a packet filter holds of ours.
pub(super) struct Held {
    /// Whose rules these are; `None` when they do not say it.
    pub(super) identity: Option<Identity>,
    /// What is there although it does not say whose it is.
    nameless: Option<&'static str>,
    /// Every way in which it is not what was meant.
    pub(super) drift: Vec<String>,
    /// Packets and octets that the kernel's ledgers hold, by who sent them.
    pub(super) refused: BTreeMap<&'static str, (u64, u64)>,
    /// Packets and octets that were refused since the table was made, by direction.
    pub(super) totals: BTreeMap<Direction, (u64, u64)>,
    /// What each address has counted, over all sets.
    pub(super) counted: BTreeMap<IpAddr, (u64, u64)>,
    /// Who is cut off, and for how long.
    pub(super) quarantined: Vec<String>,
}

/// What was saved, as it counts now.
pub(super) struct Expected {
    pub(super) saved: Saved,
    pub(super) policy: Policy,
    pub(super) pins: Pins,
    meant: Ruleset,
}

/// Runs `status`.
pub fn status(arguments: &StatusArguments, world: &mut World, output: &mut Output) -> Result<Exit, Failure> {
    let now = world.host.now();
    let (expected, is_whole) = match expected(world, output) {
        Ok(expected) => (expected, true),
        // What the kernel holds is to be seen all the same.
        Err(failure) => {
            output.warn(&failure.message);
            (None, false)
        }
    };
    let backend = handover::held_by(world);
    let Held { identity, nameless, drift, counted, quarantined, .. } = match backend {
        Backend::Nftables => by_nftables(expected.as_ref(), now, world)?,
        Backend::Iptables => by_iptables(expected.as_ref(), now, world)?,
    };
    let last = state::last_refresh(world.files);
    let saved = expected.as_ref().map(|expected| &expected.saved);
    let tried = trial::running(world);
    // The kernel has fallen back, and both are there until somebody clears it away.
    let has_ended = tried.is_none() && there_is_a_trial(identity.as_ref(), world);
    let pins = expected.as_ref().map(|expected| shown(&expected.pins, &counted, now)).unwrap_or_default();
    let every = expected.as_ref().map(|expected| expected.policy.refresh.every);
    let unresolved: Vec<String> =
        expected.as_ref().map_or_else(Vec::new, |expected| expected.pins.unresolved(now).map(ToString::to_string).collect());
    let next = last.as_ref().zip(every).map(|(last, every)| Timestamp(last.at).plus(every));
    let mode = identity.as_ref().map(|identity| if identity.mode == Mode::Observe { "observe" } else { "enforce" });
    // Lockdown, which `restore` loads when nothing is saved, is generation 0.
    let is_forgotten = expected.is_none() && identity.as_ref().is_some_and(|identity| identity.generation > 0);
    if is_whole && is_forgotten {
        output.warn("the state directory does not remember these rules: `egressguard apply POLICY` writes it anew");
    }
    let defeated = expected.as_ref().map(|expected| defeated(&expected.policy, world)).unwrap_or_default();
    let healthy = identity.is_some() && is_whole && !is_forgotten && drift.is_empty() && defeated.is_empty() && unresolved.is_empty();
    // Where a trial has fallen back to nothing, nothing is filtered, whatever the table says.
    let healthy = healthy && !(has_ended && expected.is_none());
    if arguments.json {
        output.json(&json!({
            "schema": "egressguard.status/1",
            "backend": backend,
            "active": identity.is_some(),
            "policy": identity.as_ref().map(|identity| json!({"name": identity.policy.as_str(), "sha256": identity.sha256})),
            "generation": identity.as_ref().map(|identity| identity.generation),
            "applied_at": saved.map(|saved| saved.record.applied().to_string()),
            "mode": mode,
            "trial": tried.as_ref().map(|trial| json!({"generation": trial.generation, "policy": trial.policy, "seconds_left": trial.left(world.host).seconds()})),
            "pins": pins.iter().map(pin_json).collect::<Vec<_>>(),
            "unresolved": unresolved,
            "drift": drift,
            "defeated": defeated,
            "quarantined": quarantined,
            "last_refresh": last.as_ref().map(|last| Timestamp(last.at).to_string()),
            "next_refresh": next.map(|next| next.to_string()),
            "problems": last.as_ref().map(|last| last.problems.clone()).unwrap_or_default(),
        }))?;
        return Ok(if healthy { Exit::Done } else { Exit::No });
    }
    match (&identity, nameless) {
        (Some(identity), _) => {
            output.say(&format!("policy      {} (generation {}, {})", identity.policy, identity.generation, mode.unwrap_or("unknown")))?;
            output.say(&format!("sha256      {}", identity.sha256))?;
        }
        (None, Some(what)) => output.say(&format!("policy      unknown: there is {what} that does not say whose it is"))?,
        (None, None) => output.say("policy      none: no rules are loaded, nothing is filtered by egressguard")?,
    }
    if let Some(trial) = &tried {
        let left = trial.left(world.host).seconds();
        output.say(&format!(
            "on trial    {} (generation {}): {left} s left, then {}; `egressguard confirm` keeps it",
            trial.policy,
            trial.generation,
            trial::then_words(trial.then)
        ))?;
    }
    if has_ended {
        output.say("on trial    no longer: what was there before counts, and the next refresh clears the rest away")?;
    }
    if backend == Backend::Iptables {
        output.say("backend     iptables, ip6tables and ipset")?;
    }
    if let Some(saved) = saved {
        output.say(&format!("applied     {} from {}", saved.record.applied(), saved.record.file))?;
    }
    if let Some(last) = &last {
        let next = next.map(|next| format!(", next due {}", age(now, next))).unwrap_or_default();
        output.say(&format!("refreshed   {}{next}", age(now, Timestamp(last.at))))?;
    }
    table(&pins, now, output)?;
    let lines = unresolved.iter().map(|name| format!("unresolved  {name}: it has no pin and is blocked"));
    let lines = lines.chain(last.iter().flat_map(|last| &last.problems).map(|(name, words)| format!("problem     {name}: {words}")));
    let lines = lines.chain(quarantined.iter().map(|who| format!("quarantined {who}")));
    let lines = lines.chain(defeated.iter().map(|what| format!("defeated    by {what}")));
    for line in lines.chain(drift.iter().map(|what| format!("drift       {what}"))).collect::<Vec<_>>() {
        output.say(&line)?;
    }
    Ok(if healthy { Exit::Done } else { Exit::No })
}

/// Whether there are rules of a trial that is remembered.
fn there_is_a_trial(identity: Option<&Identity>, world: &World) -> bool {
    identity.is_some() && state::trial::trial(world.files).is_some_and(|trial| trial.is_here(world.host))
}

/// What was saved, and what the packet filter should hold of it.
pub(super) fn expected(world: &World, output: &mut Output) -> Result<Option<Expected>, Failure> {
    let saved = match state::current(world.files)? {
        Current::Generation(generation) => state::load(world.files, generation)?,
        Current::Nothing | Current::Removed(_) => None,
    };
    let Some(saved) = saved else { return Ok(None) };
    let policy = source::parse(&saved.record.file, saved.policy.clone(), &mut output.quiet())?.policy;
    let pins = enforce::earlier_pins(&saved, &policy, world.host);
    let rules = compile(&policy, &pins, &saved.record.facts(&world.host.clock()), saved.record.generation).loadable();
    let meant = trial::meant(rules, world, output);
    Ok(Some(Expected { saved, policy, pins, meant }))
}

/// What is not ours and takes packets elsewhere after our rules have let them pass. Whether it could be looked for is for `verify` to say.
fn defeated(policy: &Policy, world: &mut World) -> Vec<String> {
    let around = world.kernel.surroundings().unwrap_or_default();
    let found = findings(&around, policy).into_iter().filter(|finding| finding.weight == Weight::Defeats);
    found.map(|finding| format!("{}: {}", finding.what, finding.means)).collect()
}

pub(super) fn by_nftables(expected: Option<&Expected>, now: Timestamp, world: &mut World) -> Result<Held, Failure> {
    let (_, there) = world.kernel.observe(Depth::Everything)?;
    let drift = match expected.map(|expected| plan(there.as_ref(), &expected.meant, now)) {
        None => Vec::new(),
        Some(Ok(change)) => change.differences(),
        Some(Err(not_ours)) => vec![not_ours.to_string()],
    };
    Ok(Held {
        identity: there.as_ref().and_then(|dump| lift(dump, now).identity),
        nameless: there.as_ref().map(|_| "a table `inet egressguard`"),
        drift,
        refused: there.as_ref().map(refused).unwrap_or_default(),
        totals: there.as_ref().map(totals).unwrap_or_default(),
        counted: counters(there.as_ref()),
        quarantined: quarantined(expected, there.as_ref(), now, world.host),
    })
}

/// Who is cut off is known to the module `recent`, which is asked through a file and not here.
pub(super) fn by_iptables(expected: Option<&Expected>, now: Timestamp, world: &mut World) -> Result<Held, Failure> {
    let there = handover::observe(world.programs)?;
    let different =
        |expected: &Expected| handover::different(&there, &expected.meant, &expected.saved.record.facts(&world.host.clock()), now);
    let drift = expected.map(different).unwrap_or_default();
    let nameless = there.is_ours().then_some("something in iptables or ipset");
    let quarantined = quarantined(expected, None, now, world.host);
    Ok(Held {
        identity: there.identity(),
        nameless,
        drift,
        refused: BTreeMap::new(),
        totals: BTreeMap::new(),
        counted: there.counted(),
        quarantined,
    })
}

fn shown(pins: &Pins, counted: &BTreeMap<IpAddr, (u64, u64)>, now: Timestamp) -> Vec<Pin> {
    let mut shown = Vec::new();
    for (name, of_name) in &pins.names {
        for (address, lease) in &of_name.leases {
            shown.push(Pin {
                name: name.to_string(),
                address: *address,
                draining: of_name.state(lease, now) != crate::pins::LeaseState::Live,
                last_seen: lease.last_seen,
                expires: lease.expires,
                counted: counted.get(address).copied(),
            });
        }
    }
    shown
}

/// What each address has counted, over all sets.
fn counters(there: Option<&TableDump>) -> BTreeMap<IpAddr, (u64, u64)> {
    let mut counters = BTreeMap::new();
    let sets = there.into_iter().flat_map(|dump| dump.sets.values()).filter(|(def, _)| def.counter && !def.interval);
    for (key, element) in sets.flat_map(|(_, elements)| elements) {
        if let Some(address) = from_octets(key) {
            let (packets, octets) = element.counted.unwrap_or_default();
            let sum: &mut (u64, u64) = counters.entry(address).or_default();
            *sum = (sum.0 + packets, sum.1 + octets);
        }
    }
    counters
}

/// Packets and octets that our table has counted as refused, by direction; a direction without a packet is there, too.
fn totals(there: &TableDump) -> BTreeMap<Direction, (u64, u64)> {
    let mut sums = BTreeMap::new();
    for (name, (_, elements)) in &there.sets {
        let Some(Ledger::All(direction)) = Ledger::of_set(name) else { continue };
        let sum: &mut (u64, u64) = sums.entry(direction).or_default();
        for (packets, octets) in elements.values().filter_map(|element| element.counted) {
            *sum = (sum.0.saturating_add(packets), sum.1.saturating_add(octets));
        }
    }
    sums
}

/// What the ledgers of our table hold, by who sent it.
fn refused(there: &TableDump) -> BTreeMap<&'static str, (u64, u64)> {
    let mut sums: BTreeMap<&'static str, (u64, u64)> = BTreeMap::new();
    for (name, (_, elements)) in &there.sets {
        let Some(who) = Ledger::sender(name) else { continue };
        let sum = sums.entry(who).or_default();
        for (packets, octets) in elements.values().filter_map(|element| element.counted) {
            *sum = (sum.0.saturating_add(packets), sum.1.saturating_add(octets));
        }
    }
    sums
}

/// Who is cut off, since when, and why.
fn quarantined(expected: Option<&Expected>, there: Option<&TableDump>, now: Timestamp, host: &dyn Host) -> Vec<String> {
    let mut words = Vec::new();
    if let Some(since) = expected.and_then(|expected| expected.saved.record.cut_off()) {
        words.push(format!("the whole host, since {since}, by `egressguard quarantine`"));
    }
    let limit = expected.and_then(|expected| expected.policy.violations.quarantine.as_ref());
    for set in [QUARANTINED_HOST, QUARANTINED_USERS] {
        for (key, element) in there.and_then(|dump| dump.sets.get(set)).into_iter().flat_map(|(_, elements)| elements) {
            let who = match (set, key.as_slice()) {
                (QUARANTINED_USERS, [a, b, c, d]) => {
                    let uid = u32::from_ne_bytes([*a, *b, *c, *d]);
                    host.name_of_user(uid).map_or_else(|| format!("uid {uid}"), |name| format!("user {name} (uid {uid})"))
                }
                _ => "the whole host".to_string(),
            };
            let why = match (element.timeout_ms, element.expires_ms, limit) {
                (Some(lasts), Some(left), Some(limit)) => {
                    // The rule that cuts off begins the time anew with each packet beyond the limit.
                    let since = Timestamp(now.0 - (lasts.saturating_sub(left) / 1000) as i64);
                    format!(", since {since}, over {} refusals within {}, {} s left", limit.after, limit.within, left / 1000)
                }
                (_, Some(left), _) => format!(", {} s left", left / 1000),
                (_, None, _) => ", until it is released".to_string(),
            };
            words.push(format!("{who}{why}"));
        }
    }
    words
}

fn pin_json(pin: &Pin) -> Value {
    json!({
        "name": pin.name,
        "address": pin.address.to_string(),
        "state": if pin.draining { "draining" } else { "live" },
        "last_seen": pin.last_seen.to_string(),
        "expires": pin.expires.to_string(),
        "packets": pin.counted.map(|counted| counted.0),
        "bytes": pin.counted.map(|counted| counted.1),
    })
}

fn table(pins: &[Pin], now: Timestamp, output: &mut Output) -> Result<(), Failure> {
    if pins.is_empty() {
        return Ok(());
    }
    let wide = pins.iter().map(|pin| pin.address.to_string().len()).max().unwrap_or(0).max(7);
    output.say(&format!("\n{:<wide$}  {:<8}  {:<10}  {:<10}  {:>9}  name", "address", "state", "seen", "expires", "packets"))?;
    for pin in pins {
        let counted = pin.counted.map_or_else(|| "missing".to_string(), |counted| counted.0.to_string());
        let state = if pin.draining { "draining" } else { "live" };
        output.say(&format!(
            "{:<wide$}  {state:<8}  {:<10}  {:<10}  {counted:>9}  {}",
            pin.address.to_string(),
            age(now, pin.last_seen),
            age(now, pin.expires),
            pin.name
        ))?;
    }
    Ok(())
}

/// How long ago, or in how long, in the largest unit that says enough.
fn age(now: Timestamp, then: Timestamp) -> String {
    let words = |period: Period| match period.seconds() {
        seconds @ 0..=119 => format!("{seconds} s"),
        seconds @ 120..=7199 => format!("{} min", seconds / 60),
        seconds @ 7200..=172_799 => format!("{} h", seconds / 3600),
        seconds => format!("{} d", seconds / 86400),
    };
    if then > now { format!("in {}", words(then.since(now))) } else { format!("{} ago", words(now.since(then))) }
}
