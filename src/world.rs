//! The few traits through which effects enter: the kernel, its flows, the resolver, the host. Nothing else reaches outside.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use thiserror::Error;

use crate::base::name::DnsName;
use crate::base::time::Timestamp;
use crate::judge::flow::{Flow, LocalAddresses, LocalSocket, OwnerDetail};
pub use crate::pins::{Anchor, Answer};
use crate::policy::DnsServer;
use crate::ruleset::program::{Counts, GenerationId, Op, TableDump};
use crate::ruleset::surroundings::Surroundings;
use crate::violation::attribute::{Ends, Running};
use crate::violation::decode::Logged;
use crate::violation::fold::Found;

/// Which elements a dump carries. Dumping is superlinear in the number of elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// Elements of no set.
    Rules,
    /// Elements of every set that rules do not add to.
    Pins,
    /// Elements of every set.
    Everything,
}

/// Why the kernel did not do it.
#[derive(Debug, Error)]
pub enum KernelError {
    /// CAP_NET_ADMIN is missing in the user namespace that owns the network namespace.
    #[error("not permitted to change the packet filter (EPERM)")]
    NotPermitted,
    /// The kernel has no nf_tables, or cannot load it.
    #[error("this kernel has no nf_tables: {0}")]
    NoNfTables(String),
    /// Somebody else changed the packet filter since it was read. Nothing was changed.
    #[error("the packet filter was changed by somebody else meanwhile")]
    Interfered,
    /// The kernel refused these steps, each with the name of its errno. Nothing was changed.
    #[error("the kernel refused to {}", .0.iter().map(|(op, errno)| format!("{op} ({errno})")).collect::<Vec<_>>().join(", "))]
    Refused(Vec<(String, String)>),
    /// Talking to the kernel failed; whether something was changed is not known.
    #[error("{0}")]
    Broken(String),
}

/// The packet filter of one network namespace.
pub trait Kernel {
    /// How many transactions it has seen.
    fn generation(&mut self) -> Result<GenerationId, KernelError>;

    /// Our table with the generation at which it was read as a whole; `None` when there is no such table.
    fn observe(&mut self, depth: Depth) -> Result<(GenerationId, Option<TableDump>), KernelError>;

    /// The sets of our table whose names begin with `prefix`, in the order of their names; `None` when there is no table. Unlike
    /// [`Kernel::observe`] this is no picture of one moment: packets count on while it is taken, and a set that comes later has counted
    /// more of them.
    fn counts(&mut self, prefix: &str) -> Result<Option<Counts>, KernelError>;

    /// What else meets packets here: other people's tables, and the links.
    fn surroundings(&mut self) -> Result<Surroundings, KernelError>;

    /// Carries out all steps at once, or none. Fails with [`KernelError::Interfered`] when the generation is another one.
    /// Answers with the generation that the transaction made.
    fn commit(&mut self, expected: GenerationId, ops: &[Op]) -> Result<GenerationId, KernelError>;
}

/// Why flows were not listed or ended.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum FlowsError {
    /// CAP_NET_ADMIN is missing in the user namespace that owns the network namespace.
    #[error("not permitted to {0} (EPERM)")]
    NotPermitted(&'static str),
    /// The kernel was built without it, or cannot load it: what, and which module it is.
    #[error("this kernel cannot {0}: it has no `{1}`")]
    Unsupported(&'static str, &'static str),
    /// Anything else.
    #[error("{0}")]
    Broken(String),
}

/// What became of flows or sockets that were to end. Those in neither number had ended by themselves.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Ended {
    /// How many were ended.
    pub ended: usize,
    /// How many the kernel did not end, by the name of its errno.
    pub refused: BTreeMap<String, usize>,
}

/// What is under way in one network namespace.
pub trait Flows {
    /// Every flow that connection tracking knows, of both families.
    fn tracked(&mut self) -> Result<Vec<Flow>, FlowsError>;

    /// Every TCP and UDP socket, of both families, with these details of their owners; without those that only wait for late
    /// packets, and without connections that are not made yet by a peer.
    fn sockets(&mut self, details: &BTreeSet<OwnerDetail>) -> Result<Vec<LocalSocket>, FlowsError>;

    /// Which addresses are this namespace's own.
    fn addresses(&mut self) -> Result<LocalAddresses, FlowsError>;

    /// Makes tracking forget these flows, and no others that have the same ends by now.
    fn delete(&mut self, flows: &[&Flow]) -> Result<Ended, FlowsError>;

    /// Closes these sockets, and no others that have the same ends by now; their programs get an error (ECONNABORTED).
    fn destroy(&mut self, sockets: &[&LocalSocket]) -> Result<Ended, FlowsError>;
}

/// Asks for addresses.
pub trait Resolver {
    /// Asks for A and AAAA of every name, each independent of the others. `progress` is told of every name that is done.
    /// `servers` never holds [`DnsServer::System`].
    fn resolve(
        &mut self,
        names: &[DnsName],
        servers: &[DnsServer],
        progress: &mut dyn FnMut(&DnsName, &Answer),
    ) -> BTreeMap<DnsName, Answer>;
}

/// Why a file of the state directory was not read or written: the text names the file and the errno.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum FileError {
    /// Not permitted, or read-only.
    #[error("{0}")]
    Denied(String),
    /// No space, or a quota.
    #[error("{0}")]
    Full(String),
    /// Another process of ours holds the lock.
    #[error("{0}")]
    Locked(String),
    /// Anything else.
    #[error("{0}")]
    Other(String),
}

/// The files of the state directory, by name. A write is whole or absent, also after a power cut.
pub trait Files {
    /// The content; `None` when there is no such file.
    fn read(&self, name: &str) -> Result<Option<Vec<u8>>, FileError>;

    /// Replaces the content; it is on the disk when this returns.
    fn write(&mut self, name: &str, content: &[u8]) -> Result<(), FileError>;

    /// Replaces the contents of several files, in this order; they are on the disk when this returns. Waits for the disk less often
    /// than [`Files::write`] for each, and leaves alone what is there already.
    fn write_all(&mut self, files: &[(&str, &[u8])]) -> Result<(), FileError>;

    /// Puts the content on the disk beside the file, so that [`Files::publish`] needs no more room to replace it.
    fn prepare(&mut self, name: &str, content: &[u8]) -> Result<(), FileError>;

    /// Replaces the content by the one prepared; it is on the disk when this returns.
    fn publish(&mut self, name: &str) -> Result<(), FileError>;

    /// Replaces the content without waiting for the disk: after a power cut it may be the old one, or empty.
    fn note(&mut self, name: &str, content: &[u8]) -> Result<(), FileError>;

    /// Adds to the end of a file, of which the first `keep` octets stay and all others go; it is on the disk when this returns. Of
    /// what cannot be added whole nothing stays, except where the process ends in the middle of it.
    fn append(&mut self, name: &str, keep: u64, content: &[u8]) -> Result<(), FileError>;

    /// The same without waiting for the disk.
    fn append_note(&mut self, name: &str, keep: u64, content: &[u8]) -> Result<(), FileError>;

    /// How long a file is, and its last octets, at most so many; `None` when there is no such file.
    fn tail(&self, name: &str, octets: u64) -> Result<Option<Tail>, FileError>;

    /// A file to be read from its start, bit by bit; `None` when there is no such file.
    fn open(&self, name: &str) -> Result<Option<Box<dyn Read>>, FileError>;

    /// Gives a file another name; a file that has that name already is replaced.
    fn rename(&mut self, from: &str, to: &str) -> Result<(), FileError>;

    /// Removes a file; nothing happens when there is none.
    fn remove(&mut self, name: &str) -> Result<(), FileError>;

    /// The names of all files, sorted.
    fn list(&self) -> Result<Vec<String>, FileError>;

    /// Waits for the lock that orders our own processes, at most ten seconds; it is held until the process ends. `purpose` is what
    /// those who wait are told.
    fn lock(&mut self, purpose: &str) -> Result<(), FileError>;

    /// Gives the lock back.
    fn unlock(&mut self);

    /// Where the files are, for words.
    fn place(&self) -> String;
}

/// The end of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tail {
    /// How many octets the whole file has.
    pub size: u64,
    /// Its last octets.
    pub octets: Vec<u8>,
}

/// Files that the user names.
pub trait Documents {
    /// The content of a file; of standard input for `-`.
    fn read(&self, path: &str) -> Result<Vec<u8>, FileError>;

    /// Replaces the content of a file, whole or not at all.
    fn write(&mut self, path: &str, content: &[u8]) -> Result<(), FileError>;

    /// The content of a file at a revision of the repository that it lies in.
    fn at_revision(&self, path: &str, revision: &str) -> Result<Vec<u8>, RevisionError> {
        Err(RevisionError::Refused(format!("nobody remembers `{path}` at `{revision}`")))
    }
}

/// Why a file was not read at a revision.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum RevisionError {
    /// There is no git to ask.
    #[error("git is not to be found: {0}")]
    NoGit(String),
    /// The file lies in no repository, or in one that git does not open: git's own words.
    #[error("`{0}` lies in no git repository: {1}")]
    NoRepository(String, String),
    /// The repository has no such revision.
    #[error("the repository of `{0}` has no revision `{1}`")]
    NoRevision(String, String),
    /// The file is not part of that revision.
    #[error("`{0}` is not part of revision `{1}`")]
    NotThere(String, String),
    /// Git refused for another reason.
    #[error("{0}")]
    Refused(String),
}

/// What is asked of the host.
pub trait Host {
    /// The wall clock.
    fn now(&self) -> Timestamp;

    /// This moment on the wall clock and on the clock that nobody can set, by which jumps of the former are found
    /// ([`crate::pins::rebase`]).
    fn clock(&self) -> Anchor;

    /// How long this boot lasts, on the clock that nobody can set.
    fn since_boot(&self) -> Duration {
        Duration::from_secs(self.clock().boottime)
    }

    /// For how many seconds of this boot the machine was asleep.
    fn slept(&self) -> u64;

    /// Something that tells this network namespace from every other one of this boot.
    fn namespace(&self) -> String;

    /// The number of a user; `None` when there is none.
    fn user(&self, name: &str) -> Result<Option<u32>, String>;

    /// The name of a user; `None` when there is none, or the host does not tell.
    fn name_of_user(&self, uid: u32) -> Option<String>;

    /// Every process that can be seen, by number.
    fn processes(&self) -> Vec<Running> {
        Vec::new()
    }

    /// The number of a group; `None` when there is none.
    fn group(&self, name: &str) -> Result<Option<u32>, String>;

    /// The control group of a unit: its path below the root of cgroup v2, and its id; `None` while it does not run.
    fn unit(&self, name: &str) -> Result<Option<(String, u64)>, String>;

    /// The host's real upstream DNS servers; empty when it names none.
    fn system_servers(&self) -> Result<Vec<IpAddr>, String>;

    /// Both ends of the connection of the remote session this runs in, the peer's first; `None` when it runs in none.
    fn remote_flow(&self) -> Option<(SocketAddr, SocketAddr)> {
        None
    }

    /// The peer and the local port of the remote session this runs in, as `SSH_CONNECTION` tells; `None` when it runs in none.
    fn remote_session(&self) -> Option<(IpAddr, u16)>;
}

/// Why a program of the host did not do it.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ProgramError {
    /// It is not installed: its name.
    #[error("`{0}` is not installed")]
    Missing(String),
    /// It ended with a failure, or could not be run: its name, and what it said.
    #[error("`{0}` failed: {1}")]
    Failed(String, String),
}

/// Programs of the host, run in the network namespace that this one works in.
pub trait Programs {
    /// Runs one with this input, and answers with its standard output.
    fn run(&mut self, program: &str, arguments: &[&str], input: &str) -> Result<String, ProgramError>;
}

/// Why the kernel's packet log cannot be followed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum LogError {
    /// CAP_NET_ADMIN is missing in the user namespace that owns the network namespace.
    #[error("not permitted to read the packet log (EPERM)")]
    NotPermitted,
    /// Another program of this network namespace reads the same group already; the kernel gives each record to one reader.
    #[error("another program follows the packet log already (group {0} is taken)")]
    Busy(u16),
    /// The kernel has no packet log, or cannot load it.
    #[error("this kernel has no packet log for programs: {0}")]
    Unsupported(String),
    /// Anything else.
    #[error("{0}")]
    Broken(String),
}

/// What happened while the packet log was waited for, besides the records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Meanwhile {
    /// How many records the kernel made and nobody will get, by the gaps in their numbers.
    pub lost: u64,
    /// How often the kernel had no room for more records (ENOBUFS).
    pub overruns: u64,
    /// How long the log is open, on a clock that nobody can set.
    pub passed: Duration,
}

/// The kernel's packet log (NFLOG) of one network namespace.
pub trait Log {
    /// Waits at most this long, hands over every record that is there, in the order in which they were made, each with how long the
    /// log was open when it was read, and answers with what else happened. Ends early when somebody asks for something, and with many records before the last of them.
    fn wait(&mut self, patience: Duration, take: &mut dyn FnMut(&Logged<'_>, Duration)) -> Result<Meanwhile, LogError>;
}

/// Who is behind packets.
pub trait Owners {
    /// Takes note of what will not be there later. Cheap when there is nothing.
    fn gather(&mut self);

    /// Who owns the socket that sent a packet between these ends.
    fn owner(&mut self, ends: &Ends) -> Found;

    /// What cannot be found out here, in words. Each is said once.
    fn limits(&mut self) -> Vec<String>;
}

/// What somebody asked of a command that goes on until it is told to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Asked {
    /// It is to end (SIGTERM, SIGINT, SIGHUP).
    pub end: bool,
    /// The terminal has another size (SIGWINCH).
    pub resized: bool,
}

/// What somebody asks of a command that goes on.
pub trait Requests {
    /// Waits at most this long for something to be asked, and answers with what was asked since it was last looked.
    fn wait(&mut self, patience: Duration) -> Asked;

    /// The columns and rows of the terminal that the answer goes to; `None` when it goes to none.
    fn window(&self) -> Option<(u16, u16)>;
}

/// Whoever started this process as a service, and the journal of the host.
pub trait Supervisor {
    /// Tells the service manager this state (sd_notify(3)); nothing happens where there is none.
    fn notify(&mut self, state: &str);

    /// Within how long the service manager wants to hear from this process again; `None` when it does not.
    fn watchdog(&self) -> Option<Duration>;

    /// Writes an entry with these fields into the host's journal. Whether there is one that took it.
    fn journal(&mut self, fields: &[(&str, &str)]) -> bool;
}

/// A program that is told something and runs beside this one: one at a time.
pub trait Hook {
    /// Starts it with this input, and ends it when it runs longer than `patience`; why it cannot be started.
    fn start(&mut self, program: &str, input: &[u8], patience: Duration) -> Result<(), String>;

    /// What became of the one that was started, in words, once; `None` while it runs, and when none was started.
    fn ended(&mut self) -> Option<String>;

    /// Whether one runs.
    fn is_running(&self) -> bool;
}

/// Those who ask for metrics.
pub trait Scrapes {
    /// Whether somebody waits for an answer.
    fn is_asked(&mut self) -> bool;

    /// Answers everybody who waits.
    fn answer(&mut self, text: &str);
}

/// What only `watch` uses of the world.
pub struct Watching<'a> {
    /// The packet log.
    pub log: &'a mut dyn Log,
    /// Who is behind packets.
    pub owners: &'a mut dyn Owners,
    /// What is asked of it while it runs.
    pub requests: &'a mut dyn Requests,
    /// The service manager and the journal.
    pub supervisor: &'a mut dyn Supervisor,
    /// The program that the policy names for alerts.
    pub hook: &'a mut dyn Hook,
    /// Those who ask for metrics; `None` when nobody may.
    pub scrapes: Option<&'a mut dyn Scrapes>,
}

/// All of it together.
pub struct World<'a> {
    /// The packet filter.
    pub kernel: &'a mut dyn Kernel,
    /// What is under way.
    pub flows: &'a mut dyn Flows,
    /// DNS.
    pub resolver: &'a mut dyn Resolver,
    /// The host.
    pub host: &'a dyn Host,
    /// The state directory.
    pub files: &'a mut dyn Files,
    /// The directory of the book that `watch` writes: it belongs to another user.
    pub watch: &'a mut dyn Files,
    /// Files that the user names.
    pub documents: &'a mut dyn Documents,
    /// Programs of the host.
    pub programs: &'a mut dyn Programs,
}
