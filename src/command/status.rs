//! `status`: what is active, since when, which pins it has and how old they are, and whether the kernel still holds it.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde_json::{Value, json};

use crate::base::net::from_octets;
use crate::base::time::{Period, Timestamp};
use crate::command::arguments::StatusArguments;
use crate::command::{Exit, Failure, Output, enforce, source};
use crate::judge::plan::plan;
use crate::policy::Mode;
use crate::ruleset::compile::compile;
use crate::ruleset::lift::lift;
use crate::ruleset::program::{KeyType, TableDump};
use crate::ruleset::text::write_key;
use crate::state::{self, Current, Saved};
use crate::world::{Depth, World};

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

/// Runs `status`.
pub fn status(arguments: &StatusArguments, world: &mut World, output: &mut Output) -> Result<Exit, Failure> {
    let now = world.host.now();
    let (_, there) = world.kernel.observe(Depth::Everything)?;
    let found = there.as_ref().map(|dump| lift(dump, now));
    let saved = match state::current(world.files)? {
        Current::Generation(generation) => state::load(world.files, generation)?,
        Current::Nothing | Current::Removed => None,
    };
    let last = state::last_refresh(world.files);
    let (drift, pins, every) = match &saved {
        Some(saved) => judged(saved, there.as_ref(), now, world, output)?,
        None => (Vec::new(), Vec::new(), None),
    };
    let quarantined = there.as_ref().map(quarantined).unwrap_or_default();
    let unresolved: Vec<String> =
        saved.as_ref().map_or_else(Vec::new, |saved| saved.pins.unresolved(now).map(ToString::to_string).collect());
    let identity = found.as_ref().and_then(|found| found.identity.clone());
    let next = last.as_ref().zip(every).map(|(last, every)| Timestamp(last.at).plus(every));
    let mode = identity.as_ref().map(|identity| if identity.mode == Mode::Observe { "observe" } else { "enforce" });
    let healthy = identity.is_some() && drift.is_empty();
    if arguments.json {
        output.json(&json!({
            "schema": "egressguard.status/1",
            "active": identity.is_some(),
            "policy": identity.as_ref().map(|identity| json!({"name": identity.policy.as_str(), "sha256": identity.sha256})),
            "generation": identity.as_ref().map(|identity| identity.generation),
            "applied_at": saved.as_ref().map(|saved| saved.record.applied().to_string()),
            "mode": mode,
            "pins": pins.iter().map(pin_json).collect::<Vec<_>>(),
            "unresolved": unresolved,
            "drift": drift,
            "quarantined": quarantined,
            "last_refresh": last.as_ref().map(|last| Timestamp(last.at).to_string()),
            "next_refresh": next.map(|next| next.to_string()),
            "problems": last.as_ref().map(|last| last.problems.clone()).unwrap_or_default(),
        }))?;
        return Ok(if healthy { Exit::Done } else { Exit::No });
    }
    match (&identity, &there) {
        (Some(identity), _) => {
            output.say(&format!("policy      {} (generation {}, {})", identity.policy, identity.generation, mode.unwrap_or("unknown")))?;
            output.say(&format!("sha256      {}", identity.sha256))?;
        }
        (None, Some(_)) => output.say("policy      unknown: there is a table `inet egressguard` that does not say whose it is")?,
        (None, None) => output.say("policy      none: no rules are loaded, nothing is filtered by egressguard")?,
    }
    if let Some(saved) = &saved {
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
    for line in lines.chain(drift.iter().map(|what| format!("drift       {what}"))).collect::<Vec<_>>() {
        output.say(&line)?;
    }
    Ok(if healthy { Exit::Done } else { Exit::No })
}

type Judged = (Vec<String>, Vec<Pin>, Option<Period>);

/// Drift, pins and the time between refreshes of what was saved.
fn judged(saved: &Saved, there: Option<&TableDump>, now: Timestamp, world: &World, output: &mut Output) -> Result<Judged, Failure> {
    let style = output.style;
    let source = source::parse(&saved.record.file, saved.policy.clone(), &mut Output { style, ..output.quiet() })?;
    let earlier = enforce::earlier_pins(saved, &source.policy, world.host);
    let meant = compile(&source.policy, &earlier, &saved.record.facts(), saved.record.generation).loadable();
    let drift = match plan(there, &meant, now) {
        Ok(change) => change.differences(),
        Err(not_ours) => vec![not_ours.to_string()],
    };
    let counted = counters(there);
    let mut pins = Vec::new();
    for (name, of_name) in &earlier.names {
        for (address, lease) in &of_name.leases {
            pins.push(Pin {
                name: name.to_string(),
                address: *address,
                draining: of_name.state(lease, now) != crate::pins::LeaseState::Live,
                last_seen: lease.last_seen,
                expires: lease.expires,
                counted: counted.get(address).copied(),
            });
        }
    }
    Ok((drift, pins, Some(source.policy.refresh.every)))
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

/// Who is cut off, and for how long.
fn quarantined(there: &TableDump) -> Vec<String> {
    let mut words = Vec::new();
    for (set, who) in [("quarantined_host", "the whole host"), ("quarantined_users", "uid")] {
        for (key, element) in there.sets.get(set).into_iter().flat_map(|(_, elements)| elements) {
            let who = if set == "quarantined_users" { format!("{who} {}", write_key(&[KeyType::Uid], key, None)) } else { who.to_string() };
            let left = element.expires_ms.map(|left| format!(", {} s left", left / 1000)).unwrap_or_default();
            words.push(format!("{who}{left}"));
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
