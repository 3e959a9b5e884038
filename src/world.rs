//! The few traits through which effects enter: the kernel, the resolver, the host. Nothing else reaches outside.

use std::collections::BTreeMap;
use std::net::IpAddr;

use thiserror::Error;

use crate::base::name::DnsName;
use crate::base::time::Timestamp;
use crate::pins::Anchor;
pub use crate::pins::Answer;
use crate::policy::DnsServer;
use crate::ruleset::program::{GenerationId, Op, TableDump};

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

    /// Carries out all steps at once, or none. Fails with [`KernelError::Interfered`] when the generation is another one.
    /// Answers with the generation that the transaction made.
    fn commit(&mut self, expected: GenerationId, ops: &[Op]) -> Result<GenerationId, KernelError>;
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

/// What is asked of the host.
pub trait Host {
    /// The wall clock.
    fn now(&self) -> Timestamp;

    /// This moment on the wall clock and on the clock that nobody can set, by which jumps of the former are found
    /// ([`crate::pins::rebase`]). A host that does not say otherwise has a wall clock that is never set.
    fn anchor(&self) -> Result<Anchor, String> {
        let wall = self.now();
        Ok(Anchor { boot_id: String::new(), boottime: u64::try_from(wall.0).unwrap_or(0), wall })
    }

    /// The number of a user; `None` when there is none.
    fn user(&self, name: &str) -> Result<Option<u32>, String>;

    /// The number of a group; `None` when there is none.
    fn group(&self, name: &str) -> Result<Option<u32>, String>;

    /// The control group of a unit: its path below the root of cgroup v2, and its id; `None` while it does not run.
    fn unit(&self, name: &str) -> Result<Option<(String, u64)>, String>;

    /// The host's real upstream DNS servers; empty when it names none.
    fn system_servers(&self) -> Result<Vec<IpAddr>, String>;
}
