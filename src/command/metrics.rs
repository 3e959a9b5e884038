//! Figures for Prometheus in its text format: `metrics` prints them, `watch --metrics` serves them.
//!
//! Everything that is not ours is a label's value, and labels are few: a name of the policy, a rule, a direction. Nothing that a sender
//! of packets chooses becomes one.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::command::status::{self, Held};
use crate::command::{Exit, Failure, Output, handover};
use crate::policy::Mode;
use crate::state::{self, Backend};
use crate::world::World;

/// The file, beside the book, in which the service leaves what it counted.
pub const COUNTED: &str = "counted.json";
/// How many rules are told apart; the others share a row.
const RULES_MAX: usize = 1000;

/// What `watch` counted since it was started.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Counted {
    packets: Vec<Seen>,
    /// Records of the packet log that nobody got.
    pub lost: u64,
    /// How often the kernel had no room for them.
    pub overruns: u64,
    /// Records of the packet log that no rule of ours made, or that cannot be read.
    pub strange: u64,
    /// Records that could not be written into the book.
    pub unwritten: u64,
    /// Runs of the alert program.
    pub alerts: u64,
    /// Those of them that failed.
    pub alerts_failed: u64,
}

/// Packets of one rule and direction.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Seen {
    rule: String,
    direction: String,
    count: u64,
}

impl Counted {
    /// Adds packets of a rule and a direction.
    pub fn add(&mut self, (rule, direction): (String, &str), count: u64) {
        let full = self.packets.len() >= RULES_MAX;
        match self.packets.iter_mut().find(|seen| seen.rule == rule && seen.direction == direction) {
            Some(seen) => seen.count += count,
            None if full => self.packets.last_mut().into_iter().for_each(|seen| seen.count += count),
            None => self.packets.push(Seen { rule, direction: direction.to_string(), count }),
        }
    }

    /// All packets.
    pub fn total(&self) -> u64 {
        self.packets.iter().map(|seen| seen.count).sum()
    }

    /// As it is left for others.
    pub fn print(&self) -> Vec<u8> {
        // Plain fields always serialize.
        serde_json::to_vec(self).unwrap_or_default()
    }
}

/// Runs `metrics`.
pub fn metrics(world: &mut World, output: &mut Output) -> Result<Exit, Failure> {
    let left = world.watch.read(COUNTED).ok().flatten();
    let counted: Option<Counted> = left.and_then(|content| serde_json::from_slice(&content).ok());
    let (text, failure) = text(counted.as_ref(), world, output);
    // What could be found out is printed, whatever could not.
    output.out.write_all(text.as_bytes())?;
    failure.map_or(Ok(Exit::Done), Err)
}

/// The address that `--metrics` names: of the loopback, unless another was explicitly allowed.
pub fn address(said: &str, scope: Scope) -> Result<SocketAddr, Failure> {
    let port = said.strip_prefix("localhost:").or_else(|| said.strip_prefix(':')).unwrap_or(said);
    let address = match port.parse::<u16>() {
        Ok(port) => SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port),
        Err(_) => {
            let help = "for example `--metrics 127.0.0.1:9477`, `--metrics [::1]:9477` or `--metrics 9477`";
            said.parse().map_err(|_| Failure::wrong(format!("`{said}` is not an address with a port"), help))?
        }
    };
    if scope == Scope::Loopback && !address.ip().is_loopback() {
        let message = format!("`{said}` is not of the loopback: whoever reaches it would learn who tried what");
        return Err(Failure::wrong(message, "name 127.0.0.1, or say `--metrics-from-anywhere` too"));
    }
    Ok(address)
}

/// From where metrics may be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// From this host.
    Loopback,
    /// From wherever the rules let somebody in.
    Anywhere,
}

/// All figures, and why some are missing.
pub fn text(counted: Option<&Counted>, world: &mut World, output: &mut Output) -> (String, Option<Failure>) {
    let mut page = Page::default();
    page.one("egressguard_build_info", "gauge", "The version that says this.", &[("version", env!("CARGO_PKG_VERSION"))], 1);
    let failure = of_world(&mut page, world, output).err();
    page.one(
        "egressguard_readable",
        "gauge",
        "Whether the kernel and the state could be read; figures of what could not are missing.",
        &[],
        i64::from(failure.is_none()),
    );
    if let Some(counted) = counted {
        of_watch(&mut page, counted);
    }
    (page.text(), failure)
}

fn of_watch(page: &mut Page, counted: &Counted) {
    let help = "Packets that a rule refused and logged, as watch saw them; the kernel logs ten a second of each kind.";
    for Seen { rule, direction, count } in &counted.packets {
        page.one("egressguard_violations_seen_total", "counter", help, &[("rule", rule), ("direction", direction)], *count);
    }
    for (name, help, count) in [
        ("egressguard_nflog_lost_total", "Records of the packet log that came faster than they were read.", counted.lost),
        ("egressguard_nflog_overruns_total", "How often the kernel had no room for records of the packet log.", counted.overruns),
        ("egressguard_nflog_strange_total", "Records of the packet log that no rule of egressguard made.", counted.strange),
        ("egressguard_watch_unwritten_records_total", "Records that the book did not take.", counted.unwritten),
        ("egressguard_alerts_total", "Runs of the policy's alert program.", counted.alerts),
        ("egressguard_alerts_failed_total", "Runs of the policy's alert program that failed.", counted.alerts_failed),
    ] {
        page.one(name, "counter", help, &[], count);
    }
}

fn of_world(page: &mut Page, world: &mut World, output: &mut Output) -> Result<(), Failure> {
    let now = world.host.now();
    let expected = status::expected(world, output)?;
    let backend = handover::held_by(world);
    if let Some(expected) = &expected {
        let record = &expected.saved.record;
        page.one("egressguard_policy_applied_timestamp_seconds", "gauge", "When the policy was applied.", &[], record.applied_at);
        page.one("egressguard_policy_generation", "gauge", "How many applies there were.", &[], record.generation);
        let every = expected.policy.refresh.every.seconds();
        page.one("egressguard_refresh_interval_seconds", "gauge", "How often pins are to be refreshed.", &[], every);
        let keep = expected.policy.refresh.keep.seconds();
        page.one("egressguard_refresh_keep_seconds", "gauge", "How long a pin outlives its last confirmation.", &[], keep);
        let unresolved = expected.pins.unresolved(now).count();
        page.one("egressguard_unresolved_names", "gauge", "Names without a pin: they are blocked.", &[], unresolved);
        for (name, of_name) in &expected.pins.names {
            let label = [("name", name.as_str())];
            let running = of_name.leases.values().filter(|lease| lease.expires > now);
            page.one("egressguard_pins", "gauge", "Addresses that a name has.", &label, running.clone().count());
            if let Some(confirmed) = of_name.confirmed {
                let help = "When an answer last confirmed an address of a name.";
                page.one("egressguard_pin_confirmed_timestamp_seconds", "gauge", help, &label, confirmed.0);
            }
            if let Some(expires) = running.map(|lease| lease.expires.0).max() {
                let help = "When the last address of a name ends unless it is confirmed again.";
                page.one("egressguard_pin_expires_timestamp_seconds", "gauge", help, &label, expires);
            }
        }
    }
    if let Some(last) = state::last_refresh(world.files) {
        page.one("egressguard_refresh_timestamp_seconds", "gauge", "When the last refresh ended.", &[], last.at);
        if let Some(took) = last.took_ms {
            let help = "How long the last refresh took, DNS included.";
            page.one("egressguard_refresh_duration_seconds", "gauge", help, &[], took as f64 / 1000.0);
        }
        page.one("egressguard_refresh_failed_names", "gauge", "Names that the last refresh had trouble with.", &[], last.problems.len());
    }
    let Held { identity, drift, quarantined, refused, totals, .. } = match backend {
        Backend::Nftables => status::by_nftables(expected.as_ref(), now, world)?,
        Backend::Iptables => status::by_iptables(expected.as_ref(), now, world)?,
    };
    page.one("egressguard_active", "gauge", "Whether rules of egressguard are loaded.", &[], i64::from(identity.is_some()));
    if let Some(identity) = identity {
        let mode = if identity.mode == Mode::Observe { "observe" } else { "enforce" };
        let labels = [("policy", identity.policy.as_str()), ("mode", mode)];
        page.one("egressguard_policy_info", "gauge", "Which policy is loaded.", &labels, 1);
    }
    page.one("egressguard_drift", "gauge", "In how many ways the kernel's rules are not what was applied.", &[], drift.len());
    page.one("egressguard_quarantined", "gauge", "How many users, or the host, are cut off.", &[], quarantined.len());
    for (direction, (packets, octets)) in totals {
        let label = [("direction", direction.word())];
        let help = "Packets that no rule allowed, but for invalid ones; begins at nothing with a boot, and when the rules are removed.";
        page.one("egressguard_violations_total", "counter", help, &label, packets);
        page.one("egressguard_violations_bytes_total", "counter", "Octets of those packets.", &label, octets);
    }
    for who in ["user", "kernel", "forwarded", "outside"] {
        let (packets, octets) = refused.get(who).copied().unwrap_or_default();
        let help = "Packets that the kernel's ledgers hold, by kind of sender; what nobody adds to for a day goes.";
        page.one("egressguard_ledger_packets", "gauge", help, &[("sender", who)], packets);
        page.one("egressguard_ledger_bytes", "gauge", "Octets of those packets.", &[("sender", who)], octets);
    }
    Ok(())
}

/// The page as it grows: Prometheus wants all rows of a metric together.
#[derive(Debug, Default)]
struct Page {
    families: Vec<(&'static str, String)>,
    places: BTreeMap<&'static str, usize>,
}

impl Page {
    fn one(&mut self, name: &'static str, kind: &str, help: &str, labels: &[(&str, &str)], value: impl std::fmt::Display) {
        let place = *self.places.entry(name).or_insert_with(|| {
            self.families.push((name, format!("# HELP {name} {help}\n# TYPE {name} {kind}\n")));
            self.families.len() - 1
        });
        let labels: Vec<String> = labels.iter().map(|(label, value)| format!("{label}=\"{}\"", escaped(value))).collect();
        let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
        if let Some((_, text)) = self.families.get_mut(place) {
            let _ = writeln!(text, "{name}{labels} {value}");
        }
    }

    fn text(self) -> String {
        self.families.into_iter().map(|(_, text)| text).collect()
    }
}

/// A label's value as the text format wants it.
fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_are_served_on_the_loopback_unless_more_is_said() {
        let of = |text: &str, scope| address(text, scope).map(|address| address.to_string()).map_err(|failure| failure.exit);
        for (said, address) in [
            ("9477", "127.0.0.1:9477"),
            (":9477", "127.0.0.1:9477"),
            ("localhost:1", "127.0.0.1:1"),
            ("127.9.9.9:1", "127.9.9.9:1"),
            ("[::1]:9477", "[::1]:9477"),
        ] {
            assert_eq!(of(said, Scope::Loopback).as_deref(), Ok(address), "{said}");
        }
        for said in ["0.0.0.0:9477", "[::]:9477", "203.0.113.10:9477"] {
            assert_eq!(of(said, Scope::Loopback), Err(Exit::Wrong), "{said}");
            assert_eq!(of(said, Scope::Anywhere).as_deref(), Ok(said));
        }
        for said in ["", "x", "127.0.0.1", "1.2.3.4:99999", "http://127.0.0.1:1"] {
            assert_eq!(of(said, Scope::Anywhere), Err(Exit::Wrong), "{said}");
        }
    }

    #[test]
    fn a_label_keeps_its_value_whatever_it_holds() {
        let mut counted = Counted::default();
        counted.add(("a\"b\\c\nd} 7".to_string(), "out"), 3);
        counted.add(("refuse-in".to_string(), "in"), 1);
        counted.add(("a\"b\\c\nd} 7".to_string(), "out"), 1);
        let mut page = Page::default();
        of_watch(&mut page, &counted);
        let text = page.text();
        assert!(text.contains("egressguard_violations_seen_total{rule=\"a\\\"b\\\\c\\nd} 7\",direction=\"out\"} 4\n"), "{text}");
        assert_eq!(text.matches("# TYPE egressguard_violations_seen_total counter\n").count(), 1);
        let read: Counted = serde_json::from_slice(&counted.print()).unwrap();
        assert_eq!((read == counted, counted.total()), (true, 5));
    }
}
