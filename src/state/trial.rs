//! Which generation is on trial, and until when. It says what was meant; whether the trial goes on is for the kernel to say, which ends it
//! by itself.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::base::time::{Period, Timestamp};
use crate::state::StateError;
use crate::world::{Files, Host};

/// The file.
const TRIAL: &str = "trial.json";

/// A generation that is not applied yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trial {
    /// Its number. The generation to restore is the one before.
    pub generation: u64,
    /// Its policy's name.
    pub policy: String,
    /// In which boot and network namespace.
    namespace: String,
    /// Until when, in seconds that this boot was awake: the clock that the kernel's timeouts go by.
    until: u64,
    /// What counts when it is over.
    pub then: Then,
    /// The connections that were there before it, as peer and own end: that one of them goes on says nothing about the rules on trial.
    pub older: Vec<(SocketAddr, SocketAddr)>,
}

/// What counts when a trial is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Then {
    /// The generation to restore.
    Applied(u64),
    /// Lockdown, which a boot with nothing saved has loaded.
    Lockdown,
    /// Nothing: everything passes.
    Nothing,
}

impl Trial {
    /// A trial of this generation from now on.
    pub fn begun(generation: u64, policy: String, lasts: Period, then: Then, host: &dyn Host) -> Trial {
        Trial { generation, policy, namespace: host.namespace(), until: awake(host) + lasts.seconds(), then, older: Vec::new() }
    }

    /// How long it still goes on by the clock; nothing once it is over, and in another boot or namespace.
    pub fn left(&self, host: &dyn Host) -> Period {
        let left = if self.is_here(host) { self.until.saturating_sub(awake(host)) } else { 0 };
        Period::from_seconds(left)
    }

    /// When it ends, or has ended, as the wall clock shows it now.
    pub fn ends(&self, host: &dyn Host) -> Timestamp {
        let left = i64::try_from(self.until).unwrap_or(i64::MAX).saturating_sub(i64::try_from(awake(host)).unwrap_or(i64::MAX));
        Timestamp(host.now().0.saturating_add(left))
    }

    /// Whether it is of this boot and network namespace: in any other the kernel knows nothing of it.
    pub fn is_here(&self, host: &dyn Host) -> bool {
        self.namespace == host.namespace()
    }
}

/// For how many seconds of this boot the machine was awake.
fn awake(host: &dyn Host) -> u64 {
    host.clock().boottime.saturating_sub(host.slept())
}

/// The trial that was begun last and neither confirmed nor called back; one that cannot be read is none, for the kernel ends it.
pub fn trial(files: &dyn Files) -> Option<Trial> {
    serde_json::from_slice(&files.read(TRIAL).ok()??).ok()
}

/// Remembers it.
pub fn save_trial(files: &mut dyn Files, trial: &Trial) -> Result<(), StateError> {
    Ok(files.write(TRIAL, &super::to_json(trial))?)
}

/// Forgets it.
pub fn forget_trial(files: &mut dyn Files) {
    // What cannot be removed is of a generation that the kernel does not hold.
    let _ = files.remove(TRIAL);
}
