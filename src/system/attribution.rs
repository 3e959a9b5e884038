//! Who is behind packets: sock_diag for the socket, /proc for the process, cgroup v2 for the unit or container, and the tracer for
//! connections that are over before anybody can ask.
//!
//! A walk over all processes is the dear part, so there are so many a second and no more; beyond, records go without the process.

use std::collections::{HashMap, VecDeque};
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::system::connects::{Connects, NoTracer};
use crate::system::host::cgroup2_root;
use crate::system::netlink::flow::SocketLookup;
use crate::system::process::{Holder, Processes};
use crate::violation::attribute::{self, Ends, Owner};
use crate::violation::fold::Found;
use crate::violation::record::Process;
use crate::world::{FlowsError, Owners};

/// How many walks over all processes a second, on average and at once.
const WALKS: u32 = 20;
/// How many failed connections are remembered.
const ATTEMPTS: usize = 4096;
/// How long one is remembered; its ports may belong to somebody else later.
const ATTEMPT_LIVES: Duration = Duration::from_secs(3);
/// How many control groups are remembered by their number, and how many are looked at to find one.
const GROUPS: usize = 4096;
const GROUPS_LOOKED_AT: usize = 65_536;

/// The owners of this host's sockets, in the network namespace of the thread that asks.
pub struct HostOwners {
    lookup: SocketLookup,
    processes: Processes,
    connects: Option<Connects>,
    attempts: HashMap<Ends, (Instant, Owner)>,
    /// The keys of `attempts`, oldest first.
    order: VecDeque<Ends>,
    /// Paths of control groups by their number.
    groups: HashMap<u64, String>,
    walks: Budget,
    /// What cannot be found out here, and whether it was said.
    limits: Vec<(String, Said)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Said {
    Yes,
    No,
}

impl HostOwners {
    /// Opens what can be opened: nothing of it is necessary.
    pub fn open() -> HostOwners {
        HostOwners::following(Connects::open())
    }

    fn following(connects: Result<Connects, NoTracer>) -> HostOwners {
        // Said without waiting for a record: who reads `gone` later would not know why.
        let limits = connects.as_ref().err().map(|why| (format!("{why}: most records of refused TCP come without process"), Said::No));
        HostOwners {
            lookup: SocketLookup::default(),
            processes: Processes::new(Path::new("/proc")),
            connects: connects.ok(),
            attempts: HashMap::new(),
            order: VecDeque::new(),
            groups: HashMap::new(),
            walks: Budget::new(WALKS),
            limits: limits.into_iter().collect(),
        }
    }

    /// What becomes readable when there is something to gather.
    pub fn descriptors(&self) -> Vec<Arc<OwnedFd>> {
        self.connects.iter().flat_map(Connects::descriptors).collect()
    }

    fn limit(&mut self, words: &str) {
        if self.limits.iter().all(|(known, _)| known != words) {
            self.limits.push((words.to_string(), Said::No));
        }
    }

    fn by_socket(&mut self, ends: &Ends) -> Found {
        let socket = match self.lookup.find(ends) {
            Ok(Some(socket)) => socket,
            Ok(None) => return Found::Gone,
            Err(FlowsError::NotPermitted(_)) => {
                self.limit("sockets are not shown to this program: records come without process and unit");
                return Found::Unknown;
            }
            Err(error) => {
                self.limit(&format!("{error}: records come without process and unit"));
                return Found::Unknown;
            }
        };
        let service = socket.cgroup.and_then(|id| self.service(id));
        if socket.inode == 0 {
            return Found::Owner(Owner { process: Some(Process::Gone), service });
        }
        if !self.walks.take() {
            return Found::Owner(Owner { process: None, service });
        }
        let process = match self.processes.holder(u64::from(socket.inode)) {
            Holder::Process(process) => Some(Process::Known(process)),
            // Closed since, or of a process that is not shown here: a container's /proc shows the container's only.
            Holder::Nobody => match self.lookup.find(ends) {
                Ok(Some(again)) if again.inode == socket.inode => {
                    self.limit("some sockets belong to processes that /proc does not show here: records of them come without process");
                    None
                }
                _ => Some(Process::Gone),
            },
            Holder::Hidden => {
                self.limit("processes of others may not be looked at (CAP_SYS_PTRACE is missing): records come without process");
                None
            }
        };
        let service = service.or_else(|| match &process {
            Some(Process::Known(known)) => self.processes.control_group(known.pid).and_then(|path| attribute::service(&path)),
            _ => None,
        });
        Found::Owner(Owner { process, service })
    }

    /// The unit or container of a control group.
    fn service(&mut self, id: u64) -> Option<String> {
        if !self.groups.contains_key(&id) {
            if !self.walks.take() {
                return None;
            }
            if self.groups.len() > GROUPS {
                self.groups.clear();
            }
            let root = cgroup2_root(Path::new("/proc/self/mountinfo"))?;
            self.groups.extend(paths_below(&root));
            // The root, and what lies outside of what is mounted here, belong to no unit; they are not looked for again. A group that is
            // made later has a number of its own.
            self.groups.entry(id).or_default();
        }
        self.groups.get(&id).and_then(|path| attribute::service(path))
    }

    fn remember(&mut self, ends: Ends, owner: Owner) {
        if self.attempts.insert(ends, (Instant::now(), owner)).is_none() {
            self.order.push_back(ends);
        }
        if self.order.len() > ATTEMPTS
            && let Some(oldest) = self.order.pop_front()
        {
            self.attempts.remove(&oldest);
        }
    }
}

impl Owners for HostOwners {
    fn gather(&mut self) {
        let Some(connects) = &mut self.connects else { return };
        let mut new = Vec::new();
        connects.drain(|attempt| new.push(attempt));
        for attempt in new {
            let elsewhere = self.processes.is_in_our_network(attempt.thread) == Some(false);
            if elsewhere || self.attempts.contains_key(&attempt.ends) && self.attempts.len() >= ATTEMPTS {
                continue;
            }
            let process = self.processes.process(attempt.pid).map_or(Process::Gone, Process::Known);
            let service = self.processes.control_group(attempt.pid).and_then(|path| attribute::service(&path));
            self.remember(attempt.ends, Owner { process: Some(process), service });
        }
    }

    fn owner(&mut self, ends: &Ends) -> Found {
        self.gather();
        match self.attempts.get(ends) {
            Some((when, owner)) if when.elapsed() < ATTEMPT_LIVES => Found::Owner(owner.clone()),
            _ => self.by_socket(ends),
        }
    }

    fn limits(&mut self) -> Vec<String> {
        let new = self.limits.iter_mut().filter(|(_, said)| *said == Said::No);
        new.map(|(words, said)| {
            *said = Said::Yes;
            words.clone()
        })
        .collect()
    }
}

/// The paths of all control groups below a root, by the number of their inodes, which is their id.
fn paths_below(root: &Path) -> HashMap<u64, String> {
    let mut found = HashMap::new();
    let mut waiting = VecDeque::from([PathBuf::new()]);
    let mut looked_at = 0;
    while let Some(group) = waiting.pop_front() {
        for entry in fs::read_dir(root.join(&group)).into_iter().flatten().flatten() {
            let Some(directory) = entry.metadata().ok().filter(fs::Metadata::is_dir) else { continue };
            let path = group.join(entry.file_name());
            found.insert(directory.ino(), format!("/{}", path.display()));
            waiting.push_back(path);
            looked_at += 1;
        }
        if looked_at > GROUPS_LOOKED_AT || found.len() > GROUPS {
            break;
        }
    }
    found
}

/// So many a second, and at once.
struct Budget {
    most: u32,
    left: f64,
    filled: Instant,
}

impl Budget {
    fn new(most: u32) -> Budget {
        Budget { most, left: f64::from(most), filled: Instant::now() }
    }

    fn take(&mut self) -> bool {
        let now = Instant::now();
        let gained = now.duration_since(self.filled).as_secs_f64() * f64::from(self.most);
        (self.left, self.filled) = ((self.left + gained).min(f64::from(self.most)), now);
        let is_left = self.left >= 1.0;
        self.left -= if is_left { 1.0 } else { 0.0 };
        is_left
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_groups_are_found_by_their_number() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("system.slice/backend.service/worker");
        fs::create_dir_all(&path).unwrap();
        let found = paths_below(root.path());
        let id = fs::metadata(&path).unwrap().ino();
        assert_eq!(found.get(&id).map(String::as_str), Some("/system.slice/backend.service/worker"));
        assert_eq!(found.len(), 3);
    }

    #[test]
    fn a_tracer_that_is_missing_is_said_once() {
        let mut owners = HostOwners::following(Err(NoTracer::NotThere));
        let said = owners.limits();
        assert!(matches!(said.as_slice(), [words] if words.contains("tracefs") && words.contains("without process")), "{said:?}");
        assert!(owners.limits().is_empty());
    }

    #[test]
    fn a_budget_is_used_up_and_comes_back_with_time() {
        let mut budget = Budget::new(5);
        assert_eq!((0..100).filter(|_| budget.take()).count(), 5);
        budget.filled -= Duration::from_secs(1);
        assert_eq!((0..100).filter(|_| budget.take()).count(), 5);
    }
}
