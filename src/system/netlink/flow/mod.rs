//! What is under way in one network namespace, over netlink: [`KernelFlows`] lists and ends it.
//!
//! Three families are asked: connection tracking for flows, sock_diag for sockets, and routing for addresses. Each socket is opened
//! when it is first needed, in the network namespace of the thread that needs it.

pub mod conntrack;
pub mod diag;
pub mod route;
mod uapi;

use std::collections::BTreeSet;

use nix::errno::Errno;

use self::uapi::{AF_INET, AF_INET6, NETLINK_GET_STRICT_CHK};
use super::errno_name;
use super::message::Writer;
use super::socket::{Failure, Socket};
use super::uapi::NLM_F_DUMP;
use crate::base::net::Protocol;
use crate::judge::flow::{Flow, LocalAddresses, LocalSocket, OwnerDetail};
use crate::judge::packet::Socket as Owner;
use crate::system::owner;
use crate::violation::attribute::Ends;
use crate::world::{Ended, Flows, FlowsError};

/// How many requests go into one message to the kernel. Only those that fail are answered, and so many answers fit the receive
/// buffer that none is lost.
const TOGETHER: usize = 128;

/// What each family is asked for, and the module that answers.
const FLOWS: (&str, &str) = ("list tracked flows", "nf_conntrack_netlink");
const DELETION: (&str, &str) = ("delete tracked flows", "nf_conntrack_netlink");
const SOCKETS: (&str, &str) = ("list sockets", "inet_diag");
const DESTRUCTION: (&str, &str) = ("close sockets", "CONFIG_INET_DIAG_DESTROY");
const ADDRESSES: (&str, &str) = ("list the host's addresses", "rtnetlink");

/// Flows and sockets as the kernel has them.
#[derive(Default)]
pub struct KernelFlows {
    netfilter: Option<Socket>,
    diag: Option<Socket>,
}

impl KernelFlows {
    /// Nothing is opened yet.
    pub fn new() -> KernelFlows {
        KernelFlows::default()
    }
}

impl Flows for KernelFlows {
    fn tracked(&mut self) -> Result<Vec<Flow>, FlowsError> {
        let mut flows = Vec::new();
        let socket = opened(&mut self.netfilter, mnl::Bus::Netfilter, FLOWS)?;
        let asked = socket.ask_anybody(NLM_F_DUMP, conntrack::list, |message| {
            flows.extend(conntrack::flow(message)?);
            Some(())
        });
        asked.map_err(|failure| error(failure, FLOWS))?;
        Ok(flows)
    }

    fn sockets(&mut self, details: &BTreeSet<OwnerDetail>) -> Result<Vec<LocalSocket>, FlowsError> {
        let mut listed = Vec::new();
        let socket = opened(&mut self.diag, mnl::Bus::SockDiag, SOCKETS)?;
        for protocol in [Protocol::TCP, Protocol::UDP] {
            for family in [AF_INET, AF_INET6] {
                let ask = |writer: &mut Writer, seq: u32| diag::list(writer, seq, family, protocol);
                let asked = socket.ask_anybody(NLM_F_DUMP, ask, |message| {
                    listed.extend(diag::socket(message, protocol)?);
                    Some(())
                });
                asked.map_err(|failure| error(failure, SOCKETS))?;
            }
        }
        if details.contains(&OwnerDetail::Group) {
            let groups = owner::groups(&listed.iter().map(|listed| listed.inode).collect());
            for (inode, owner) in owners(&mut listed) {
                owner.group = groups.get(&inode).copied().unwrap_or(owner.group);
            }
        }
        if details.contains(&OwnerDetail::ControlGroups) {
            let ids: BTreeSet<u64> = listed.iter().filter_map(|listed| listed.cgroup).collect();
            let paths = owner::control_groups(&ids);
            for listed in &mut listed {
                if let (Some(owner), Some(id)) = (&mut listed.socket.owner, listed.cgroup) {
                    owner.cgroups = paths.get(&id).cloned().unwrap_or_default();
                }
            }
        }
        Ok(listed.into_iter().map(|listed| listed.socket).collect())
    }

    fn addresses(&mut self) -> Result<LocalAddresses, FlowsError> {
        let mut addresses = LocalAddresses::default();
        let mut socket = Socket::of(mnl::Bus::Route).map_err(|failure| error(failure, ADDRESSES))?;
        // A router may hold a million routes, of which only the local ones are wanted; not strict, the kernel lists all.
        let _ = socket.switch_on(NETLINK_GET_STRICT_CHK);
        for family in [AF_INET, AF_INET6] {
            let ask = |writer: &mut Writer, seq: u32| route::list(writer, seq, family);
            match socket.ask_anybody(NLM_F_DUMP, ask, |message| route::take(message, &mut addresses)) {
                // A namespace in which no interface was ever up has no such table.
                Ok(_) | Err(Failure::Errno(Errno::ENOENT)) => {}
                Err(failure) => return Err(error(failure, ADDRESSES)),
            }
        }
        Ok(addresses)
    }

    fn delete(&mut self, flows: &[&Flow]) -> Result<Ended, FlowsError> {
        let socket = opened(&mut self.netfilter, mnl::Bus::Netfilter, DELETION)?;
        end(socket, flows, conntrack::delete, DELETION)
    }

    fn destroy(&mut self, sockets: &[&LocalSocket]) -> Result<Ended, FlowsError> {
        let socket = opened(&mut self.diag, mnl::Bus::SockDiag, DESTRUCTION)?;
        end(socket, sockets, diag::destroy, DESTRUCTION)
    }
}

/// Looks single sockets up.
#[derive(Default)]
pub struct SocketLookup {
    diag: Option<Socket>,
}

/// A socket that was looked up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FoundSocket {
    /// The number of its inode; 0 when no process has it open.
    pub inode: u32,
    /// The id of its control group.
    pub cgroup: Option<u64>,
}

impl SocketLookup {
    /// The socket with these ends, in the network namespace of the thread that asked first; nothing when there is none.
    pub fn find(&mut self, ends: &Ends) -> Result<Option<FoundSocket>, FlowsError> {
        let mut found = None;
        let socket = opened(&mut self.diag, mnl::Bus::SockDiag, SOCKETS)?;
        let ask = |writer: &mut Writer, seq: u32| diag::find(writer, seq, ends.protocol, ends.local, ends.remote);
        let asked = socket.ask_anybody(0, ask, |message| {
            found = diag::socket(message, ends.protocol)?.map(|listed| FoundSocket { inode: listed.inode, cgroup: listed.cgroup });
            Some(())
        });
        match asked {
            Ok(_) => Ok(found),
            Err(Failure::Errno(Errno::ENOENT)) => Ok(None),
            Err(failure) => Err(error(failure, SOCKETS)),
        }
    }
}

/// The owners that there are, each with the inode of its socket.
fn owners(listed: &mut [diag::Listed]) -> impl Iterator<Item = (u32, &mut Owner)> {
    listed.iter_mut().filter_map(|listed| Some((listed.inode, listed.socket.owner.as_mut()?)))
}

fn opened<'a>(slot: &'a mut Option<Socket>, bus: mnl::Bus, what: (&'static str, &'static str)) -> Result<&'a mut Socket, FlowsError> {
    match slot {
        Some(socket) => Ok(socket),
        None => Ok(slot.insert(Socket::of(bus).map_err(|failure| error(failure, what))?)),
    }
}

/// Sends a request for each, and counts what the kernel says against them.
fn end<T>(
    socket: &mut Socket,
    all: &[&T],
    write: fn(&mut Writer, u32, &T),
    what: (&'static str, &'static str),
) -> Result<Ended, FlowsError> {
    let mut ended = Ended::default();
    for some in all.chunks(TOGETHER) {
        let mut writer = Writer::default();
        for (seq, one) in (1..).zip(some) {
            write(&mut writer, seq, one);
        }
        let verdicts = socket.transact(&writer.into_octets()).map_err(|failure| error(failure, what))?;
        if verdicts.lost {
            return Err(error(Failure::Errno(Errno::ENOBUFS), what));
        }
        ended.ended += some.len().saturating_sub(verdicts.errors.len());
        for (_, errno) in verdicts.errors {
            // What is gone already has ended by itself.
            if errno != Errno::ENOENT {
                *ended.refused.entry(errno_name(errno)).or_default() += 1;
            }
        }
    }
    Ok(ended)
}

fn error(failure: Failure, (what, module): (&'static str, &'static str)) -> FlowsError {
    match failure {
        Failure::Errno(Errno::EPERM | Errno::EACCES) => FlowsError::NotPermitted(what),
        // nfnetlink without the subsystem, sock_diag without the protocol, a protocol that the kernel does not know.
        Failure::Errno(Errno::EINVAL | Errno::ENOENT | Errno::EOPNOTSUPP | Errno::EPROTONOSUPPORT) => FlowsError::Unsupported(what, module),
        Failure::Errno(errno) => FlowsError::Broken(format!("the kernel refused to {what} ({})", errno_name(errno))),
        Failure::Words(words) => FlowsError::Broken(format!("cannot {what}: {words}")),
    }
}
