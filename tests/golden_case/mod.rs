//! The cases of `tests/golden/ruleset`: a directory each, with a policy and what it is compiled with. `policy.yaml` is the policy (or
//! `builtin`, the name of a shipped one); `pins` a pins file; `facts` says what the host knows, a fact a line; `packets` asks about
//! packets, a question a line. All but the policy may be absent.
#![allow(dead_code)]

use std::fs::{read_dir, read_to_string};
use std::path::{Path, PathBuf};

use egressguard::base::packet::PacketSpec;
use egressguard::base::time::Timestamp;
use egressguard::pins::{self, Pins};
use egressguard::policy::{self, DnsServer, Policy};
use egressguard::ruleset::Ruleset;
use egressguard::ruleset::compile::{Facts, compile};

/// A case.
pub struct GoldenCase {
    /// Its directory.
    pub path: PathBuf,
    /// Its policy, as it is written.
    pub text: String,
    /// Its policy.
    pub policy: Policy,
    /// Its pins.
    pub pins: Pins,
    /// What the host knows.
    pub facts: Facts,
    /// What is asked.
    pub packets: Vec<PacketSpec>,
}

/// When the cases are compiled: 2026-11-24T03:52:00Z.
pub const NOW: Timestamp = Timestamp(1_795_492_320);

/// Every case, by name.
pub fn all() -> Vec<GoldenCase> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/ruleset");
    let mut paths: Vec<PathBuf> = read_dir(root).expect("the cases").map(|entry| entry.expect("a case").path()).collect();
    paths.sort();
    paths.into_iter().map(GoldenCase::read).collect()
}

impl GoldenCase {
    fn read(path: PathBuf) -> GoldenCase {
        let said = |name: &str| read_to_string(path.join(name)).ok();
        let shipped = said("builtin").map(|name| format!("builtin:{}", name.trim()));
        let (text, file) = match &shipped {
            Some(name) => {
                (policy::builtin(name.trim_start_matches("builtin:")).unwrap_or_else(|| panic!("{name}")).to_string(), name.as_str())
            }
            None => (said("policy.yaml").unwrap_or_else(|| panic!("{path:?} has no policy")), "policy.yaml"),
        };
        let policy = policy::parse(&text, file).unwrap_or_else(|errors| panic!("{path:?}: {errors:#?}")).policy;
        let pins = said("pins").map(|text| pins::load(&text).unwrap_or_else(|why| panic!("{path:?}: {why}"))).unwrap_or_default();
        let facts = facts(&said("facts").unwrap_or_default(), &policy);
        let packets = said("packets").unwrap_or_default();
        let packets = packets.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
        let packets = packets.map(|line| line.parse().unwrap_or_else(|why| panic!("{path:?}: `{line}`: {why:?}"))).collect();
        GoldenCase { path, text, policy, pins, facts, packets }
    }

    /// Its rules.
    pub fn compile(&self) -> Ruleset {
        compile(&self.policy, &self.pins, &self.facts, 1)
    }
}

/// `user NAME UID`, `group NAME GID`, `unit NAME PATH ID`, `system-server ADDRESS`; the policy's own servers need no line.
fn facts(text: &str, policy: &Policy) -> Facts {
    let mut facts = Facts::default();
    let mut system = Vec::new();
    for line in text.lines().filter(|line| !line.is_empty()) {
        match line.split(' ').collect::<Vec<_>>()[..] {
            ["user", name, number] => drop(facts.users.insert(name.to_string(), number.parse().expect(line))),
            ["group", name, number] => drop(facts.groups.insert(name.to_string(), number.parse().expect(line))),
            ["unit", name, path, id] => drop(facts.units.insert(name.to_string(), (path.to_string(), id.parse().expect(line)))),
            ["system-server", address] => system.push(DnsServer::Plain { address: address.parse().expect(line), port: 53 }),
            _ => panic!("`{line}` is not a fact"),
        }
    }
    for server in &policy.dns {
        match server {
            DnsServer::System => facts.servers.extend(system.iter().cloned()),
            named => facts.servers.push(named.clone()),
        }
    }
    facts
}
