//! What the state says that makes a record readable: the names that addresses have or had, the lines of rules, the alert.
//!
//! It is read again when there is something to tell and the last reading is some seconds old. What cannot be read is left out of the
//! records and said once.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::time::Duration;

use crate::base::name::DnsName;
use crate::pins;
use crate::policy::{self, Policy};
use crate::state::{self, Current, StateError};
use crate::violation::record::Seen;
use crate::world::{Files, Host};

/// How old what was read may be.
const FRESH: Duration = Duration::from_secs(5);
/// How many addresses are remembered that no name has any more.
const NAMES_MAX: usize = 65_536;
/// How many users are remembered by their number.
const USERS_MAX: usize = 4096;

/// What is known.
#[derive(Default)]
pub struct Knowledge {
    policy: Option<Policy>,
    /// The name that an address has or last had.
    names: BTreeMap<IpAddr, DnsName>,
    users: HashMap<u32, Option<String>>,
    read: Option<Duration>,
}

impl Knowledge {
    /// Reads the state again where it may have changed; why it cannot.
    pub fn refresh(&mut self, passed: Duration, files: &dyn Files) -> Result<(), StateError> {
        if self.read.is_some_and(|read| passed.saturating_sub(read) < FRESH) {
            return Ok(());
        }
        self.read = Some(passed);
        self.users.clear();
        let Current::Generation(generation) = state::current(files)? else {
            self.policy = None;
            return Ok(());
        };
        if let Some(saved) = state::load_without_pins(files, generation)? {
            let text = String::from_utf8_lossy(&saved.policy);
            self.policy = policy::parse(&text, &saved.record.file).ok().map(|parsed| parsed.policy);
        }
        // ORDER: the pins of this generation last: a name that an address has counts more than one that it had.
        let numbers = files.list()?.into_iter().filter_map(|name| name.strip_prefix("pins-")?.parse::<u64>().ok());
        let mut numbers: Vec<u64> = numbers.filter(|number| *number <= generation).collect();
        numbers.sort_unstable();
        for number in numbers {
            let content = files.read(&format!("pins-{number}"))?.unwrap_or_default();
            let Ok(pins) = pins::load(&String::from_utf8_lossy(&content)) else { continue };
            for (name, of_name) in pins.names {
                for address in of_name.leases.into_keys() {
                    if self.names.len() < NAMES_MAX || self.names.contains_key(&address) {
                        self.names.insert(address, name.clone());
                    }
                }
            }
        }
        Ok(())
    }

    /// The policy that was applied last.
    pub fn policy(&self) -> Option<&Policy> {
        self.policy.as_ref()
    }

    /// Adds to a record what is known.
    pub fn complete(&mut self, seen: &mut Seen, host: &dyn Host) {
        seen.name = self.names.get(&seen.destination).map(ToString::to_string);
        seen.user = seen.uid.and_then(|uid| {
            if self.users.len() >= USERS_MAX {
                self.users.clear();
            }
            self.users.entry(uid).or_insert_with(|| host.name_of_user(uid)).clone()
        });
        let line = self.policy.as_ref().and_then(|policy| policy.rule_line(&seen.rule));
        seen.line = line.and_then(|line| u32::try_from(line.0).ok());
    }
}
