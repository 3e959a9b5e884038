//! The netlink socket: questions, and batches. What the octets mean is known elsewhere.
//!
//! The kernel works on a batch, and on every chunk of a dump, inside the system call; so all answers are there when the call
//! returns, and nothing here ever waits.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv};

use super::message::{Mark, Message, Writer, messages};
use super::uapi::*;

/// As large as the largest chunk of a dump (32 KiB) twice over.
const ROOM: usize = 1 << 16;

/// What netlink adds to a message in the send buffer, generously.
const OVERHEAD: usize = 4096;

/// Why there is no answer.
#[derive(Debug, PartialEq, Eq)]
pub enum Failure {
    /// The kernel said so.
    Errno(Errno),
    /// Something else happened, in words.
    Words(String),
}

/// Whether a dump shows one state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whole {
    /// It does.
    Yes,
    /// Something changed while it was made (`NLM_F_DUMP_INTR`).
    No,
}

/// What came back from a batch.
#[derive(Debug, Default)]
pub struct Verdicts {
    /// The numbers of the messages that failed, and why.
    pub errors: Vec<(u32, Errno)>,
    /// Whether some errors were lost because there were too many (ENOBUFS).
    pub lost: bool,
}

/// A netlink socket in the network namespace of the thread that opened it.
pub struct Socket {
    inner: mnl::Socket,
    seq: u32,
    buffer: Vec<u8>,
}

impl Socket {
    /// Opens and binds one of netfilter's.
    pub fn open() -> Result<Socket, Failure> {
        Socket::of(mnl::Bus::Netfilter)
    }

    /// Opens and binds one of any family.
    pub fn of(bus: mnl::Bus) -> Result<Socket, Failure> {
        let inner = mnl::Socket::new(bus).map_err(|error| match error.raw_os_error() {
            Some(number) => Failure::Errno(Errno::from_raw(number)),
            None => Failure::Words(error.to_string()),
        })?;
        // No program that is started gets it: it reads what the kernel tells whoever may change the packet filter.
        close_on_exec(inner.as_raw_fd())?;
        // Without this the kernel sends a whole failed message back with its error. Kernels have had it since 4.3.
        set_option(inner.as_raw_fd(), libc::SOL_NETLINK, libc::NETLINK_CAP_ACK, 1)?;
        Ok(Socket { inner, seq: 0, buffer: vec![0; ROOM] })
    }

    /// Asks nf_tables one question; `answer` gets every message of the answer, and says `None` when it cannot be read.
    pub fn ask(
        &mut self,
        kind: u16,
        flags: u16,
        question: impl FnOnce(&mut Writer),
        answer: impl FnMut(&Message<'_>) -> Option<()>,
    ) -> Result<Whole, Failure> {
        let write = |writer: &mut Writer, seq: u32| {
            let message = writer.begin(kind, flags, seq);
            question(writer);
            message
        };
        self.ask_anybody(flags, write, answer)
    }

    /// Asks for everything of one kind, of whatever family: `header` is what the subsystem puts before the attributes.
    pub fn ask_for_all(&mut self, kind: u16, header: &[u8], answer: impl FnMut(&Message<'_>) -> Option<()>) -> Result<Whole, Failure> {
        self.ask_anybody(NLM_F_DUMP, |writer, seq| writer.begin_with(kind, NLM_F_DUMP, seq, header), answer)
    }

    /// The same of whoever is at the other end; `write` begins the message, with this number, and writes the question.
    pub fn ask_anybody(
        &mut self,
        flags: u16,
        write: impl FnOnce(&mut Writer, u32) -> Mark,
        mut answer: impl FnMut(&Message<'_>) -> Option<()>,
    ) -> Result<Whole, Failure> {
        self.seq = self.seq.wrapping_add(1);
        let mut writer = Writer::default();
        let seq = self.seq;
        let message = write(&mut writer, seq);
        writer.end(message);
        self.send(&writer.into_octets())?;

        let mut whole = Whole::Yes;
        while let Some(datagram) = self.receive()? {
            for message in messages(datagram).ok_or_else(unreadable)? {
                if message.seq != seq {
                    continue;
                }
                if message.flags & NLM_F_DUMP_INTR != 0 {
                    whole = Whole::No;
                }
                match message.kind {
                    NLMSG_ERROR | NLMSG_DONE => match status(&message) {
                        Some(0) => return Ok(whole),
                        Some(errno) => return Err(Failure::Errno(Errno::from_raw(errno))),
                        None => return Err(unreadable()),
                    },
                    _ => answer(&message).ok_or_else(unreadable)?,
                }
                if flags & NLM_F_DUMP == 0 {
                    return Ok(whole);
                }
            }
        }
        Err(Failure::Words("the kernel left a question unanswered".into()))
    }

    /// Sends a batch in one call, which is what makes it one transaction, and collects what the kernel says against it.
    pub fn transact(&mut self, batch: &[u8]) -> Result<Verdicts, Failure> {
        self.make_room(batch.len() + OVERHEAD);
        self.send(batch)?;
        let mut verdicts = Verdicts::default();
        loop {
            match self.receive() {
                Ok(None) => return Ok(verdicts),
                Ok(Some(datagram)) => {
                    for message in messages(datagram).ok_or_else(unreadable)? {
                        match (message.kind, status(&message)) {
                            (NLMSG_ERROR, Some(0)) => {}
                            (NLMSG_ERROR, Some(errno)) => verdicts.errors.push((message.seq, Errno::from_raw(errno))),
                            _ => return Err(unreadable()),
                        }
                    }
                }
                // The errors that fitted are still there to be read.
                Err(Failure::Errno(Errno::ENOBUFS)) => verdicts.lost = true,
                Err(failure) => return Err(failure),
            }
        }
    }

    /// Switches one of netlink's own options on.
    pub fn switch_on(&self, option: i32) -> Result<(), Failure> {
        set_option(self.inner.as_raw_fd(), libc::SOL_NETLINK, option, 1)
    }

    /// Lets this many octets wait to be read. Only CAP_NET_ADMIN may exceed `net.core.rmem_max`; others get what they can.
    pub fn make_room_to_receive(&self, octets: i32) {
        let fd = self.inner.as_raw_fd();
        if set_option(fd, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, octets).is_err() {
            let _refused_by_no_kernel = set_option(fd, libc::SOL_SOCKET, libc::SO_RCVBUF, octets);
        }
    }

    fn send(&self, octets: &[u8]) -> Result<(), Failure> {
        match self.inner.send(octets) {
            Ok(sent) if sent == octets.len() => Ok(()),
            Ok(sent) => Err(Failure::Words(format!("the kernel took {sent} of {} octets", octets.len()))),
            Err(error) => Err(Failure::Errno(Errno::from_raw(error.raw_os_error().unwrap_or(0)))),
        }
    }

    /// One datagram, or nothing when none is left.
    pub fn receive(&mut self) -> Result<Option<&[u8]>, Failure> {
        loop {
            let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_TRUNC;
            match recv(self.inner.as_raw_fd(), &mut self.buffer, flags) {
                Ok(length) if length > self.buffer.len() => return Err(unreadable()),
                Ok(length) => return Ok(self.buffer.get(..length)),
                Err(Errno::EAGAIN) => return Ok(None),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(Failure::Errno(errno)),
            }
        }
    }

    /// A batch must fit the send buffer. Only CAP_NET_ADMIN of the initial user namespace may exceed `net.core.wmem_max`; others
    /// get what they can, and the kernel says EMSGSIZE when it does not suffice.
    fn make_room(&self, octets: usize) {
        let wanted = i32::try_from(octets).unwrap_or(i32::MAX);
        let fd = self.inner.as_raw_fd();
        if set_option(fd, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, wanted).is_err() {
            let _refused_by_no_kernel = set_option(fd, libc::SOL_SOCKET, libc::SO_SNDBUF, wanted);
        }
    }
}

impl AsRawFd for Socket {
    fn as_raw_fd(&self) -> RawFd {
        self.inner.as_raw_fd()
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: libmnl closes the descriptor when `inner` is dropped, which outlives what is borrowed from `self`.
        unsafe { BorrowedFd::borrow_raw(self.inner.as_raw_fd()) }
    }
}

/// The errno of an error or of the end of a dump; 0 is none.
fn status(message: &Message<'_>) -> Option<i32> {
    let number: [u8; 4] = message.payload.get(..4)?.try_into().ok()?;
    Some(i32::from_ne_bytes(number).saturating_neg())
}

fn unreadable() -> Failure {
    Failure::Words("the kernel's answer is malformed".into())
}

/// The number of the network namespace of this socket, which no other has in this boot; kernels have it since 5.14.
pub fn namespace_cookie(socket: &impl AsRawFd) -> Option<u64> {
    let (mut cookie, mut length) = (0u64, size_of::<u64>() as libc::socklen_t);
    let fd = socket.as_raw_fd();
    // SAFETY: the kernel writes at most `length` octets into `cookie`, both of which outlive the call.
    let result = unsafe { libc::getsockopt(fd, libc::SOL_SOCKET, libc::SO_NETNS_COOKIE, (&raw mut cookie).cast(), &raw mut length) };
    (result == 0).then_some(cookie)
}

fn close_on_exec(fd: RawFd) -> Result<(), Failure> {
    // SAFETY: nothing but a flag of the descriptor changes; a bad descriptor is an error and nothing else.
    let result = unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) };
    if result == 0 { Ok(()) } else { Err(Failure::Errno(Errno::last())) }
}

fn set_option(fd: RawFd, level: i32, option: i32, value: i32) -> Result<(), Failure> {
    // SAFETY: the kernel reads four octets from `value`, which outlives the call; a bad descriptor is an error and nothing else.
    let result = unsafe { libc::setsockopt(fd, level, option, (&raw const value).cast(), size_of::<i32>() as libc::socklen_t) };
    if result == 0 { Ok(()) } else { Err(Failure::Errno(Errno::last())) }
}
