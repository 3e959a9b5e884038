//! Processes by what they have open, out of /proc. Nothing is changed.
//!
//! A process is known by its number and by when it was started; whatever was remembered of another one of the same number is
//! forgotten. What cannot be looked at is told from what is not there.

use std::collections::{HashMap, VecDeque};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::violation::attribute::{self, Running, Stat};
use crate::violation::record::KnownProcess;

/// How many sockets are remembered with who has them.
const REMEMBERED: usize = 4096;
/// How many processes that had sockets are asked first.
const RECENT: usize = 16;
/// How much of a command line is read: what is kept is far shorter.
const COMMAND_READ: usize = 4096;

/// Who has a socket open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Holder {
    /// This process.
    Process(KnownProcess),
    /// None that can be seen, and every process that can be seen could be looked at.
    Nobody,
    /// None of those that could be looked at; others could not.
    Hidden,
}

/// Processes, with a memory.
#[derive(Debug)]
pub struct Processes {
    proc: PathBuf,
    /// By the inode of a socket.
    sockets: HashMap<u64, Place>,
    /// The keys of `sockets`, oldest first.
    order: VecDeque<u64>,
    /// Processes that had sockets, the last first.
    recent: VecDeque<u32>,
}

/// Where a socket was open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    pid: u32,
    started: u64,
    descriptor: u32,
}

impl Processes {
    /// Those of this file system of processes.
    pub fn new(proc: &Path) -> Processes {
        Processes { proc: proc.to_path_buf(), sockets: HashMap::new(), order: VecDeque::new(), recent: VecDeque::new() }
    }

    /// Who has the socket of this inode open. Costs a walk over every open file of every process, unless it is known already.
    pub fn holder(&mut self, inode: u64) -> Holder {
        if let Some(place) = self.sockets.get(&inode).copied()
            && self.holds(place, inode)
            && let Some(process) = self.process(place.pid).filter(|_| self.started(place.pid) == Some(place.started))
        {
            return Holder::Process(process);
        }
        let mut hidden = false;
        let recent: Vec<u32> = self.recent.iter().copied().collect();
        let others = pids(&self.proc).into_iter().filter(|pid| !recent.contains(pid));
        for pid in recent.iter().copied().chain(others) {
            match self.descriptor(pid, inode) {
                Ok(None) => {}
                Ok(Some(descriptor)) => {
                    // ORDER: the start before and after what is read in between, so that it is of one process.
                    let Some(started) = self.started(pid) else { continue };
                    let Some(process) = self.process(pid) else { continue };
                    if self.started(pid) == Some(started) {
                        self.remember(inode, Place { pid, started, descriptor });
                        return Holder::Process(process);
                    }
                }
                Err(error) => hidden |= error.kind() == io::ErrorKind::PermissionDenied,
            }
        }
        if hidden { Holder::Hidden } else { Holder::Nobody }
    }

    /// What is known of a process; nothing when it has ended.
    pub fn process(&self, pid: u32) -> Option<KnownProcess> {
        let stat = self.stat(pid)?;
        let directory = self.directory(pid);
        // A kernel thread has no executable, and one of another user is not shown to everybody: the short name says something still.
        let executable = match fs::read_link(directory.join("exe")) {
            Ok(path) => attribute::executable(path.as_os_str().as_encoded_bytes()),
            Err(_) => stat.name.clone(),
        };
        let mut command = fs::read(directory.join("cmdline")).unwrap_or_default();
        command.truncate(COMMAND_READ);
        let parent = self.stat(stat.parent).map(|parent| format!("{} ({})", parent.name, stat.parent));
        Some(KnownProcess { pid, executable, command: attribute::command(&command), parent })
    }

    /// Every process that can be seen, by number.
    pub fn all(&self) -> Vec<Running> {
        let mut pids = pids(&self.proc);
        pids.sort_unstable();
        let running = |pid: u32| {
            let process = self.process(pid)?;
            let uid = fs::metadata(self.directory(pid)).ok().map(|metadata| metadata.uid());
            let service = self.control_group(pid).and_then(|path| attribute::service(&path));
            let open = fs::read_dir(self.directory(pid).join("fd")).into_iter().flatten().flatten();
            let sockets = open.filter_map(|entry| socket_inode(fs::read_link(entry.path()).ok()?.to_str()?)).collect();
            Some(Running { process, uid, service, sockets })
        };
        pids.into_iter().filter_map(running).collect()
    }

    /// The path of its control group below the root of cgroup v2.
    pub fn control_group(&self, pid: u32) -> Option<String> {
        let content = fs::read_to_string(self.directory(pid).join("cgroup")).ok()?;
        attribute::unified(&content).map(str::to_string)
    }

    /// Whether a thread works in the network namespace of this one; unknown where that cannot be seen.
    pub fn is_in_our_network(&self, thread: u32) -> Option<bool> {
        let there = fs::read_link(self.directory(thread).join("ns/net")).ok()?;
        Some(there == fs::read_link("/proc/thread-self/ns/net").ok()?)
    }

    fn directory(&self, pid: u32) -> PathBuf {
        self.proc.join(pid.to_string())
    }

    fn stat(&self, pid: u32) -> Option<Stat> {
        Stat::parse(&fs::read(self.directory(pid).join("stat")).ok()?)
    }

    fn started(&self, pid: u32) -> Option<u64> {
        self.stat(pid).map(|stat| stat.started)
    }

    /// Whether the socket is still open where it was.
    fn holds(&self, place: Place, inode: u64) -> bool {
        let descriptor = self.directory(place.pid).join("fd").join(place.descriptor.to_string());
        fs::read_link(descriptor).ok().and_then(|link| socket_inode(link.to_str()?)) == Some(inode)
    }

    /// Under which descriptor a process has the socket open. One that has ended has none.
    fn descriptor(&self, pid: u32, inode: u64) -> io::Result<Option<u32>> {
        let entries = match fs::read_dir(self.directory(pid).join("fd")) {
            Err(error) if error.kind() != io::ErrorKind::PermissionDenied => return Ok(None),
            entries => entries?,
        };
        for entry in entries.flatten() {
            let link = fs::read_link(entry.path());
            if link.ok().and_then(|link| socket_inode(link.to_str()?)) == Some(inode) {
                return Ok(entry.file_name().to_str().and_then(|name| name.parse().ok()));
            }
        }
        Ok(None)
    }

    fn remember(&mut self, inode: u64, place: Place) {
        self.recent.retain(|pid| *pid != place.pid);
        self.recent.push_front(place.pid);
        self.recent.truncate(RECENT);
        if self.sockets.insert(inode, place).is_none() {
            self.order.push_back(inode);
        }
        if self.order.len() > REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.sockets.remove(&oldest);
        }
    }
}

fn pids(proc: &Path) -> Vec<u32> {
    let entries = fs::read_dir(proc).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// The number in `socket:[NUMBER]`.
pub fn socket_inode(link: &str) -> Option<u64> {
    link.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::{MetadataExt, symlink};

    use super::*;

    /// A process as /proc shows one.
    fn put(proc: &Path, pid: u32, name: &str, started: u64, sockets: &[u64]) {
        let directory = proc.join(pid.to_string());
        let _ = fs::remove_dir_all(&directory);
        fs::create_dir_all(directory.join("fd")).unwrap();
        fs::write(directory.join("stat"), format!("{pid} ({name}) S 1 1 1 0 0 0 0 0 0 0 0 0 0 0 20 0 1 0 {started} 0 0")).unwrap();
        fs::write(directory.join("cmdline"), format!("{name}\0--all\0")).unwrap();
        symlink(format!("/usr/bin/{name}"), directory.join("exe")).unwrap();
        for (descriptor, inode) in (3..).zip(sockets) {
            symlink(format!("socket:[{inode}]"), directory.join("fd").join(descriptor.to_string())).unwrap();
        }
    }

    fn name(holder: Holder) -> String {
        match holder {
            Holder::Process(process) => format!("{} {}", process.pid, process.executable),
            other => format!("{other:?}"),
        }
    }

    #[test]
    fn a_real_socket_leads_to_this_process() {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let inode = fs::metadata(format!("/proc/self/fd/{}", socket.as_raw_fd())).unwrap().ino();
        let mut processes = Processes::new(Path::new("/proc"));
        for _ in 0..2 {
            let Holder::Process(found) = processes.holder(inode) else { panic!("not found") };
            assert_eq!(found.pid, std::process::id());
            assert_eq!(found.executable, std::env::current_exe().unwrap().display().to_string());
            assert!(found.parent.is_some());
        }
        assert_eq!(processes.is_in_our_network(std::process::id()), Some(true));
        drop(socket);
        assert!(!matches!(processes.holder(inode), Holder::Process(_)), "a closed socket is nobody's");
    }

    #[test]
    fn a_number_that_another_process_has_by_now_is_not_taken_for_the_old_one() {
        let proc = tempfile::tempdir().unwrap();
        put(proc.path(), 70, "old", 1000, &[5]);
        let mut processes = Processes::new(proc.path());
        assert_eq!(name(processes.holder(5)), "70 /usr/bin/old");
        // The same number, the same descriptor, another process, and the socket is still the socket of whoever has it.
        put(proc.path(), 70, "new", 2000, &[]);
        assert_eq!(name(processes.holder(5)), "Nobody");
        put(proc.path(), 71, "heir", 3000, &[9, 5]);
        assert_eq!(name(processes.holder(5)), "71 /usr/bin/heir");
        put(proc.path(), 70, "third", 4000, &[6]);
        assert_eq!(name(processes.holder(6)), "70 /usr/bin/third");
        put(proc.path(), 70, "fourth", 5000, &[6]);
        assert_eq!(name(processes.holder(6)), "70 /usr/bin/fourth");
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let proc = tempfile::tempdir().unwrap();
        put(proc.path(), 70, "one", 1000, &[]);
        let mut processes = Processes::new(proc.path());
        for inode in 0..3 * REMEMBERED as u64 {
            processes.remember(inode, Place { pid: inode as u32, started: 1, descriptor: 1 });
        }
        assert!(processes.sockets.len() <= REMEMBERED && processes.order.len() <= REMEMBERED && processes.recent.len() <= RECENT);
    }
}
