//! The kernel's packet log over netlink (nfnetlink_log): [`PacketLog`] binds the group that our rules log to and reads it.
//!
//! Two things are settled before the first record. Each record has a number (`NFULNL_CFG_F_SEQ`), so that what is lost is counted
//! exactly and not only noticed. And the socket has much room, so that little is lost: by default it holds some hundred records,
//! and a burst makes a hundred thousand. Connection tracking's view is not asked for: a kernel without
//! `NETFILTER_NETLINK_GLUE_CT` refuses that flag, and with it every flag of the same request.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::errno_name;
use super::message::{Fields, Message, messages};
use super::socket::{Failure, Socket};
use super::uapi::{NFT_MSG_GETGEN, NLM_F_ACK};
use crate::ruleset::LOG_GROUP;
use crate::violation::decode::Logged;
use crate::world::{Log, LogError, Meanwhile};

/// `linux/netfilter/nfnetlink_log.h` (6.1; these never change).
const NFNL_SUBSYS_ULOG: u16 = 4;
const NFULNL_MSG_PACKET: u16 = 0;
const NFULNL_MSG_CONFIG: u16 = 1;
const NFULA_PACKET_HDR: u16 = 1;
const NFULA_PAYLOAD: u16 = 9;
const NFULA_PREFIX: u16 = 10;
const NFULA_UID: u16 = 11;
const NFULA_SEQ: u16 = 12;
const NFULA_CFG_CMD: u16 = 1;
const NFULA_CFG_MODE: u16 = 2;
const NFULA_CFG_NLBUFSIZ: u16 = 3;
const NFULA_CFG_TIMEOUT: u16 = 4;
const NFULA_CFG_QTHRESH: u16 = 5;
const NFULA_CFG_FLAGS: u16 = 6;
const NFULNL_CFG_CMD_BIND: u8 = 1;
const NFULNL_COPY_PACKET: u8 = 2;
const NFULNL_CFG_F_SEQ: u16 = 1;

/// How much of a packet is copied. Every header that is read fits; the rules ask for as much.
const COPIED: u32 = 128;
/// How much the kernel gathers into one datagram: as much as the socket reads at once.
const DATAGRAM: u32 = 1 << 16;
/// How many records it gathers; the rule's own threshold counts when it is smaller, and ours is 1.
const GATHERED: u32 = 64;
/// How long a record waits for others, in hundredths of a second.
const WAITS: u32 = 10;
/// How many octets may wait to be read.
const ROOM: i32 = 8 << 20;
/// How many datagrams are read before the caller is heard again.
const AT_ONCE: usize = 256;

/// The packet log of the network namespace in which it was opened. The kernel ends it with the socket.
pub struct PacketLog {
    socket: Socket,
    opened: Instant,
    /// The number that the next record has when nothing is lost.
    next: u32,
    /// Who ends a wait early.
    wakers: Vec<Arc<OwnedFd>>,
}

impl PacketLog {
    /// Opens and binds the log of our rules in the network namespace of this thread.
    pub fn open() -> Result<PacketLog, LogError> {
        PacketLog::open_group(LOG_GROUP)
    }

    /// The same of another group.
    pub fn open_group(group: u16) -> Result<PacketLog, LogError> {
        let mut socket = Socket::open().map_err(|failure| match failure {
            Failure::Errno(Errno::EPROTONOSUPPORT) => LogError::Unsupported("it has no netfilter netlink (EPROTONOSUPPORT)".to_string()),
            failure => broken("open a netlink socket", failure),
        })?;
        socket.make_room_to_receive(ROOM);
        let command = (NFULA_CFG_CMD, vec![NFULNL_CFG_CMD_BIND]);
        if let Err(failure) = configure(&mut socket, group, &[command]) {
            return Err(not_bound(&mut socket, group, failure));
        }
        // ORDER: numbers first, from which on nothing is lost unseen.
        configure(&mut socket, group, &[(NFULA_CFG_FLAGS, NFULNL_CFG_F_SEQ.to_be_bytes().to_vec())])
            .map_err(|failure| broken("number the records of the packet log", failure))?;
        let mode = [&COPIED.to_be_bytes()[..], &[NFULNL_COPY_PACKET, 0]].concat();
        let sizes = [
            (NFULA_CFG_MODE, mode),
            (NFULA_CFG_NLBUFSIZ, DATAGRAM.to_be_bytes().to_vec()),
            (NFULA_CFG_TIMEOUT, WAITS.to_be_bytes().to_vec()),
            (NFULA_CFG_QTHRESH, GATHERED.to_be_bytes().to_vec()),
        ];
        configure(&mut socket, group, &sizes).map_err(|failure| broken("set the packet log up", failure))?;
        Ok(PacketLog { socket, opened: Instant::now(), next: 0, wakers: Vec::new() })
    }

    /// Lets a wait end early when this becomes readable. Whoever hands it over reads it.
    pub fn wake_by(&mut self, waker: Arc<OwnedFd>) {
        self.wakers.push(waker);
    }

    /// Waits until there is something to read, for us or for a waker.
    fn sleep(&self, patience: Duration) -> Result<(), LogError> {
        let mut all: Vec<PollFd<'_>> = vec![PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
        all.extend(self.wakers.iter().map(|waker| PollFd::new(waker.as_fd(), PollFlags::POLLIN)));
        let timeout = PollTimeout::try_from(patience).unwrap_or(PollTimeout::MAX);
        match poll(&mut all, timeout) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(errno) => Err(broken("wait for the packet log", Failure::Errno(errno))),
        }
    }
}

impl Log for PacketLog {
    fn wait(&mut self, patience: Duration, take: &mut dyn FnMut(&Logged<'_>, Duration)) -> Result<Meanwhile, LogError> {
        let mut meanwhile = Meanwhile::default();
        if !patience.is_zero() {
            self.sleep(patience)?;
        }
        for _ in 0..AT_ONCE {
            match self.socket.receive() {
                Ok(Some(datagram)) => {
                    let passed = self.opened.elapsed();
                    let records = messages(datagram).unwrap_or_default();
                    for record in records.iter().filter_map(logged) {
                        let (number, record) = record;
                        // Numbers go round. What seems to have gone back is a log that somebody has begun anew.
                        let gap = number.wrapping_sub(self.next);
                        if gap < u32::MAX / 2 {
                            meanwhile.lost += u64::from(gap);
                        }
                        self.next = number.wrapping_add(1);
                        take(&record, passed);
                    }
                }
                Ok(None) => break,
                Err(Failure::Errno(Errno::ENOBUFS)) => meanwhile.overruns += 1,
                Err(failure) => return Err(broken("read the packet log", failure)),
            }
        }
        meanwhile.passed = self.opened.elapsed();
        Ok(meanwhile)
    }
}

/// One record with its number; `None` for anything else, and for what is malformed.
fn logged<'a>(message: &Message<'a>) -> Option<(u32, Logged<'a>)> {
    if message.kind != NFNL_SUBSYS_ULOG << 8 | NFULNL_MSG_PACKET {
        return None;
    }
    let fields = Fields::parse(message.payload.get(4..)?)?;
    // `struct nfulnl_msg_packet_hdr`: the protocol of the link layer, the hook, padding.
    let hook = *fields.octets(NFULA_PACKET_HDR)?.get(2)?;
    let prefix = fields.octets(NFULA_PREFIX).unwrap_or_default();
    let prefix = prefix.split(|&octet| octet == 0).next().unwrap_or_default();
    let payload = fields.octets(NFULA_PAYLOAD).unwrap_or_default();
    Some((fields.u32(NFULA_SEQ)?, Logged { prefix, hook, uid: fields.u32(NFULA_UID), payload }))
}

/// Sends one request about a group, and waits for the kernel's yes.
fn configure(socket: &mut Socket, group: u16, attributes: &[(u16, Vec<u8>)]) -> Result<(), Failure> {
    let kind = NFNL_SUBSYS_ULOG << 8 | NFULNL_MSG_CONFIG;
    let write = |writer: &mut super::message::Writer, seq: u32| {
        let message = writer.begin_raw(kind, NLM_F_ACK, seq, libc::AF_UNSPEC as u8, group);
        attributes.iter().for_each(|(kind, octets)| writer.octets(*kind, octets));
        message
    };
    socket.ask_anybody(NLM_F_ACK, write, |_| Some(())).map(|_| ())
}

/// Why a group was not bound. To the kernel a group that somebody else has bound is one that we may not change (EPERM), as any is
/// without CAP_NET_ADMIN; a question that takes the same capability tells the two apart.
fn not_bound(socket: &mut Socket, group: u16, failure: Failure) -> LogError {
    match failure {
        Failure::Errno(Errno::EBUSY) => LogError::Busy(group),
        Failure::Errno(Errno::EPERM) => match socket.ask(NFT_MSG_GETGEN, 0, |_| {}, |_| Some(())) {
            Err(Failure::Errno(Errno::EPERM)) => LogError::NotPermitted,
            _ => LogError::Busy(group),
        },
        Failure::Errno(errno @ (Errno::EINVAL | Errno::EOPNOTSUPP | Errno::ENOENT)) => {
            LogError::Unsupported(format!("it cannot load `nfnetlink_log` ({})", errno_name(errno)))
        }
        failure => broken("bind the packet log", failure),
    }
}

fn broken(what: &str, failure: Failure) -> LogError {
    LogError::Broken(match failure {
        Failure::Errno(errno) => format!("the kernel refused to {what} ({})", errno_name(errno)),
        Failure::Words(words) => format!("cannot {what}: {words}"),
    })
}
