//! What is remembered between two runs: which policy is applied, its pins, and what the last refresh saw.
//!
//! Every apply makes a generation: `policy-N.yaml`, `pins-N` and `state-N.json`, written before the kernel is told. The file
//! `current` names the generation to restore; it is replaced after the kernel has been read back. So a run that is killed
//! anywhere leaves the old generation or the new one, each whole, and the generation that the kernel itself names says which.

pub mod books;
pub mod trial;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use thiserror::Error;

use crate::base::name::DnsName;
use crate::base::time::Timestamp;
use crate::pins::{self, Anchor, Pins};
use crate::policy::{DnsServer, Policy};
use crate::ruleset::compile::Facts;
use crate::world::{FileError, Files};

/// Names the generation to restore.
const CURRENT: &str = "current";
/// What the last refresh saw.
const REFRESH: &str = "refresh.json";
/// What [`CURRENT`] holds after `remove`.
const REMOVED: &str = "removed";

/// Which generation is to be restored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Current {
    /// None was ever applied.
    Nothing,
    /// This one.
    Generation(u64),
    /// The rules were removed on purpose, when the highest generation was this one.
    Removed(u64),
}

/// A generation.
#[derive(Debug, Clone, PartialEq)]
pub struct Saved {
    /// The policy's octets, as they were applied.
    pub policy: Vec<u8>,
    /// Its pins.
    pub pins: Pins,
    /// The rest.
    pub record: Record,
}

/// Which packet filter of the host holds the rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Backend {
    /// nf_tables, by netlink.
    #[default]
    Nftables,
    /// iptables, ip6tables and ipset, by their programs.
    Iptables,
}

impl Backend {
    /// The one that this one is not.
    pub fn other(self) -> Backend {
        match self {
            Backend::Nftables => Backend::Iptables,
            Backend::Iptables => Backend::Nftables,
        }
    }
}

/// What is known of a generation besides its policy and pins.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Its number.
    pub generation: u64,
    /// The policy file as it was called.
    pub file: String,
    /// SHA-256 of the policy's octets.
    pub sha256: String,
    /// When it was applied, in seconds since 1970.
    pub applied_at: i64,
    /// Which packet filter holds it.
    #[serde(default)]
    pub backend: Backend,
    /// The clocks when the pins were written.
    clock: SavedClock,
    /// What the host knew, so that it can be restored before the host knows anything.
    facts: SavedFacts,
}

/// An [`Anchor`] as it is written.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct SavedClock {
    boot_id: String,
    boottime: u64,
    wall: i64,
}

/// [`Facts`] as they are written.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
struct SavedFacts {
    users: BTreeMap<String, u32>,
    groups: BTreeMap<String, u32>,
    units: BTreeMap<String, (String, u64)>,
    servers: Vec<SavedServer>,
    #[serde(default)]
    cut_off: Option<i64>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct SavedServer {
    address: IpAddr,
    port: u16,
    tls_name: Option<String>,
}

/// What the last refresh saw.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LastRefresh {
    /// When it ended, in seconds since 1970.
    pub at: i64,
    /// Which generation it refreshed.
    pub generation: u64,
    /// The ruleset generation id of the kernel after it; any other change of the packet filter makes another.
    pub kernel_generation: u32,
    /// In which boot and network namespace.
    pub namespace: String,
    /// For how many seconds of the boot the machine had been asleep.
    #[serde(default)]
    pub slept: u64,
    /// Which rules and sets that was, as [`crate::command::enforce::shape`] tells them; empty: not known.
    #[serde(default)]
    pub shape: String,
    /// How long it took, in milliseconds; nothing when it was another command that left this note.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub took_ms: Option<u64>,
    /// What went wrong, name by name, in words.
    pub problems: BTreeMap<String, String>,
}

impl LastRefresh {
    /// The same, with how long it took.
    pub fn took(self, passed: Duration) -> LastRefresh {
        LastRefresh { took_ms: Some(u64::try_from(passed.as_millis()).unwrap_or(u64::MAX)), ..self }
    }
}

/// Why what was saved cannot be used.
#[derive(Debug, Error)]
pub enum StateError {
    /// A file cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// A file is not what was written: its name, and what is wrong.
    #[error("`{0}` in the state directory is damaged: {1}")]
    Damaged(String, String),
}

impl From<&Anchor> for SavedClock {
    fn from(anchor: &Anchor) -> SavedClock {
        SavedClock { boot_id: anchor.boot_id.clone(), boottime: anchor.boottime, wall: anchor.wall.0 }
    }
}

impl From<&Facts> for SavedFacts {
    fn from(facts: &Facts) -> SavedFacts {
        let servers = facts.servers.iter().filter_map(|server| match server {
            DnsServer::System => None,
            DnsServer::Plain { address, port } => Some(SavedServer { address: *address, port: *port, tls_name: None }),
            DnsServer::Tls { address, port, name } => {
                Some(SavedServer { address: *address, port: *port, tls_name: Some(name.to_string()) })
            }
        });
        let (users, groups, units) = (facts.users.clone(), facts.groups.clone(), facts.units.clone());
        SavedFacts { users, groups, units, servers: servers.collect(), cut_off: facts.cut_off.map(|since| since.0) }
    }
}

impl SavedFacts {
    /// The facts again. A server whose name is damaged is left out.
    fn facts(&self) -> Facts {
        let servers = self.servers.iter().filter_map(|server| match &server.tls_name {
            None => Some(DnsServer::Plain { address: server.address, port: server.port }),
            Some(name) => DnsName::parse(name).ok().map(|name| DnsServer::Tls { address: server.address, port: server.port, name }),
        });
        let (users, groups, units) = (self.users.clone(), self.groups.clone(), self.units.clone());
        Facts { users, groups, units, servers: servers.collect(), cut_off: self.cut_off.map(Timestamp) }
    }
}

impl Record {
    /// A record of an apply that happens now.
    pub fn new(generation: u64, policy: &Policy, facts: &Facts, clock: &Anchor) -> Record {
        let (file, sha256) = (policy.file.clone(), policy.sha256.clone());
        let (backend, applied_at) = (Backend::default(), clock.wall.0);
        Record { generation, file, sha256, applied_at, backend, clock: SavedClock::from(clock), facts: SavedFacts::from(facts) }
    }

    /// The same record of another packet filter.
    pub fn by(self, backend: Backend) -> Record {
        Record { backend, ..self }
    }

    /// The same apply with pins and facts that were written later.
    pub fn at(&self, facts: &Facts, clock: &Anchor) -> Record {
        Record { clock: SavedClock::from(clock), facts: SavedFacts::from(facts), ..self.clone() }
    }

    /// The clocks when the pins were written.
    pub fn clock(&self) -> Anchor {
        let SavedClock { boot_id, boottime, wall } = self.clock.clone();
        Anchor { boot_id, boottime, wall: Timestamp(wall) }
    }

    /// What the host knew, as far as it still counts at `now`: in another boot a control group has another number, and the old one may
    /// be that of somebody else.
    pub fn facts(&self, now: &Anchor) -> Facts {
        let mut facts = self.facts.facts();
        if !self.clock().is_of_the_same_boot(now) {
            facts.units.clear();
        }
        facts
    }

    /// Since when the whole host is cut off, where it is.
    pub fn cut_off(&self) -> Option<Timestamp> {
        self.facts.cut_off.map(Timestamp)
    }

    /// When it was applied.
    pub fn applied(&self) -> Timestamp {
        Timestamp(self.applied_at)
    }
}

/// Since when the whole host is cut off. A run that was killed may have left a newer generation than the one to restore: who is cut off
/// by either is. Nobody is where neither can be read.
pub fn cut_off(files: &dyn Files) -> Option<Timestamp> {
    let Ok(Current::Generation(current)) = current(files) else { return None };
    let newest = highest(files).unwrap_or(current);
    let of = |generation: u64| load_without_pins(files, generation).ok()??.record.cut_off();
    of(current).or_else(|| (newest > current).then(|| of(newest))?)
}

/// Which generation is to be restored.
pub fn current(files: &dyn Files) -> Result<Current, StateError> {
    let Some(content) = files.read(CURRENT)? else { return Ok(Current::Nothing) };
    let text = String::from_utf8_lossy(&content);
    match text.trim() {
        text if text.starts_with(REMOVED) => {
            let generation = text.trim_start_matches(REMOVED).trim();
            // Of one that does not say its number nothing can come after.
            Ok(Current::Removed(if generation.is_empty() { u64::MAX } else { generation.parse().unwrap_or(u64::MAX) }))
        }
        number => match number.parse() {
            Ok(generation) => Ok(Current::Generation(generation)),
            Err(_) => Err(StateError::Damaged(CURRENT.to_string(), "it names no generation".to_string())),
        },
    }
}

/// Whether this generation is the one to restore.
pub fn is_current(files: &dyn Files, generation: u64) -> bool {
    matches!(current(files), Ok(Current::Generation(current)) if current == generation)
}

/// Which packet filter holds the generation to restore, or held the last one; the default one where that is not known.
pub fn backend(files: &dyn Files) -> Backend {
    let generation = match current(files) {
        Ok(Current::Generation(generation)) => generation,
        _ => highest(files).unwrap_or(0),
    };
    let [_, _, record] = names(generation);
    let record = files.read(&record).ok().flatten();
    record.and_then(|record| serde_json::from_slice::<Record>(&record).ok()).map(|record| record.backend).unwrap_or_default()
}

/// Whether a generation that is still remembered was held by this packet filter.
pub fn was_held_by(files: &dyn Files, backend: Backend) -> bool {
    let names = files.list().unwrap_or_default();
    let records = names.iter().filter(|name| name.starts_with("state-")).filter_map(|name| files.read(name).ok().flatten());
    records.filter_map(|record| serde_json::from_slice::<Record>(&record).ok()).any(|record| record.backend == backend)
}

/// The highest number that any generation of this directory has; 0 without any.
pub fn highest(files: &dyn Files) -> Result<u64, StateError> {
    let numbers = files.list()?.into_iter().filter_map(|name| generation_of(&name));
    let named = match current(files) {
        Ok(Current::Generation(number)) => number,
        _ => 0,
    };
    Ok(numbers.max().unwrap_or(0).max(named))
}

/// Reads one generation whole; `None` when it is not there.
pub fn load(files: &dyn Files, generation: u64) -> Result<Option<Saved>, StateError> {
    let Some(saved) = load_without_pins(files, generation)? else { return Ok(None) };
    let [_, pins_name, _] = names(generation);
    let pins = files.read(&pins_name)?.ok_or_else(|| StateError::Damaged(pins_name.clone(), "it is missing".to_string()))?;
    let pins = read_pins(&pins).map_err(|why| StateError::Damaged(pins_name, why))?;
    Ok(Some(Saved { pins, ..saved }))
}

/// Reads one generation, without its pins where those are damaged: DNS can say again what they were.
pub fn load_with_or_without_pins(files: &dyn Files, generation: u64) -> Result<Option<Saved>, StateError> {
    match load(files, generation) {
        Err(StateError::Damaged(..)) => load_without_pins(files, generation),
        loaded => loaded,
    }
}

/// Reads one generation whose pins may be damaged, and gives it none; `None` when it is not there.
pub fn load_without_pins(files: &dyn Files, generation: u64) -> Result<Option<Saved>, StateError> {
    let [policy_name, _, record_name] = names(generation);
    let Some(record) = files.read(&record_name)? else { return Ok(None) };
    let record: Record = serde_json::from_slice(&record).map_err(|error| StateError::Damaged(record_name.clone(), error.to_string()))?;
    let policy = files.read(&policy_name)?.ok_or_else(|| StateError::Damaged(policy_name.clone(), "it is missing".to_string()))?;
    if digest(&policy) != record.sha256 {
        return Err(StateError::Damaged(policy_name, "its digest is another".to_string()));
    }
    Ok(Some(Saved { policy, pins: Pins::default(), record }))
}

fn read_pins(content: &[u8]) -> Result<Pins, String> {
    let text = std::str::from_utf8(content).map_err(|_| "it is not text".to_string())?;
    pins::load(text).map_err(|error| error.to_string())
}

/// Writes a generation; nothing refers to it yet.
pub fn save(files: &mut dyn Files, saved: &Saved) -> Result<(), StateError> {
    let [policy_name, pins_name, record_name] = names(saved.record.generation);
    let (pins, record) = (pins::print(&saved.pins), to_json(&saved.record));
    // ORDER: the record last, because a generation is there when its record is.
    Ok(files.write_all(&[(&policy_name, &saved.policy), (&pins_name, pins.as_bytes()), (&record_name, &record)])?)
}

/// Makes ready to name a generation as the one to restore, so that a full disk cannot come between the kernel and
/// [`make_current`].
pub fn prepare_current(files: &mut dyn Files, generation: u64) -> Result<(), StateError> {
    Ok(files.prepare(CURRENT, format!("{generation}\n").as_bytes())?)
}

/// Makes the generation that was prepared the one to restore. The one before it stays; older ones go.
pub fn make_current(files: &mut dyn Files, generation: u64) -> Result<(), StateError> {
    let previous = current(files).unwrap_or(Current::Nothing);
    files.publish(CURRENT)?;
    // Whatever was on trial beside the one before is no longer.
    trial::forget_trial(files);
    // Named again, it is the same generation with more pins; the one before it is still the one before.
    let below =
        || files.list().unwrap_or_default().iter().filter_map(|name| generation_of(name)).filter(|number| *number < generation).max();
    let before = match previous {
        Current::Generation(number) if number != generation => Some(number),
        _ => below(),
    };
    let keep = |number: u64| number == generation || before == Some(number);
    // What cannot be removed is never referred to, and the next apply tries again.
    for name in files.list().unwrap_or_default().iter().filter(|name| generation_of(name).is_some_and(|number| !keep(number))) {
        let _ = files.remove(name);
    }
    Ok(())
}

/// Makes a generation that is loaded already the one to restore.
pub fn adopt(files: &mut dyn Files, generation: u64) -> Result<(), StateError> {
    prepare_current(files, generation)?;
    make_current(files, generation)
}

/// Removes a generation that never came to the kernel.
pub fn discard(files: &mut dyn Files, generation: u64) {
    if is_current(files, generation) {
        return;
    }
    // ORDER: the record first, so that no half of a generation is taken for one. What cannot be removed is never referred to.
    for name in names(generation).iter().rev() {
        let _ = files.remove(name);
    }
}

/// Remembers that the rules were removed on purpose, so that a boot does not lock the machine down.
pub fn make_removed(files: &mut dyn Files) -> Result<(), StateError> {
    let last = highest(files)?;
    files.write(CURRENT, format!("{REMOVED} {last}\n").as_bytes())?;
    trial::forget_trial(files);
    // It only saves work, and is of no generation that counts.
    let _ = files.remove(REFRESH);
    Ok(())
}

/// What the last refresh saw; nothing when there was none or it cannot be read: it only saves work.
pub fn last_refresh(files: &dyn Files) -> Option<LastRefresh> {
    serde_json::from_slice(&files.read(REFRESH).ok()??).ok()
}

/// Remembers what this refresh saw.
pub fn save_refresh(files: &mut dyn Files, last: &LastRefresh) -> Result<(), StateError> {
    Ok(files.note(REFRESH, &to_json(last))?)
}

/// Lower-case hexadecimal SHA-256.
pub fn digest(content: &[u8]) -> String {
    Sha256::digest(content).iter().map(|octet| format!("{octet:02x}")).collect()
}

fn to_json<T: Serialize>(value: &T) -> Vec<u8> {
    // Maps with text keys and plain fields always serialize.
    let mut json = serde_json::to_vec_pretty(value).unwrap_or_default();
    json.push(b'\n');
    json
}

fn names(generation: u64) -> [String; 3] {
    [format!("policy-{generation}.yaml"), format!("pins-{generation}"), format!("state-{generation}.json")]
}

fn generation_of(name: &str) -> Option<u64> {
    let stem = name.strip_suffix(".yaml").or_else(|| name.strip_suffix(".json")).unwrap_or(name);
    let (kind, number) = stem.split_once('-')?;
    ["policy", "pins", "state"].contains(&kind).then(|| number.parse().ok())?
}
