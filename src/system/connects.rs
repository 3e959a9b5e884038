//! TCP connections that failed while they were opened, each with the process that tried: the kernel's own tracepoint
//! `sock:inet_sock_set_state`, read without any program in the kernel (perf_event_open(2)).
//!
//! It is needed because a connection that is refused with a reset is over before its system call returns: the socket has left the
//! kernel's tables, and sock_diag finds it no more (seen on 6.18: none of 200). The kernel handles the reset inside that system
//! call, so the tracepoint fires in the process that tried. Where it fired in an interrupt instead, the process is whoever was
//! interrupted; such an event says so itself and is not taken.
//!
//! It takes a kernel with tracepoints, tracefs, and CAP_PERFMON. Without any of these there is nothing here but the reason.

use std::ffi::CString;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering, fence};

use nix::errno::Errno;
use thiserror::Error;

use crate::base::net::{Protocol, from_octets};
use crate::violation::attribute::Ends;

/// `linux/perf_event.h` (6.1; these never change).
const PERF_TYPE_TRACEPOINT: u32 = 2;
const ATTR_SIZE: u32 = 64;
const PERF_SAMPLE_TID: u64 = 1 << 1;
const PERF_SAMPLE_RAW: u64 = 1 << 10;
const DISABLED: u64 = 1;
const PERF_FLAG_FD_CLOEXEC: libc::c_ulong = 8;
const PERF_EVENT_IOC_ENABLE: libc::c_ulong = 0x2400;
const PERF_EVENT_IOC_SET_FILTER: libc::c_ulong = 0x4008_2406;
const PERF_RECORD_SAMPLE: u32 = 9;
/// Where `struct perf_event_mmap_page` has its `data_head` and `data_tail`.
const DATA_HEAD: usize = 1024;
const DATA_TAIL: usize = 1032;

/// `TCP_SYN_SENT` to `TCP_CLOSE`: a connection that was not made.
const FILTER: &str = "oldstate==2 && newstate==7";
/// `TRACE_FLAG_HARDIRQ | TRACE_FLAG_SOFTIRQ`.
const INTERRUPTED: u8 = 0x18;
/// Pages of a ring, besides its first: some three hundred events.
const PAGES: usize = 8;
/// More processors than this are not watched: each costs a descriptor.
const PROCESSORS_MAX: usize = 512;

/// A connection that failed, and who tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attempt {
    /// The ends of the connection.
    pub ends: Ends,
    /// The process.
    pub pid: u32,
    /// Which of its threads: each may be in a network namespace of its own.
    pub thread: u32,
}

/// Why failed connections cannot be followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum NoTracer {
    /// The tracepoint is not to be seen.
    #[error("the kernel's tracepoint `sock:inet_sock_set_state` is not to be seen (is tracefs mounted, and CAP_DAC_READ_SEARCH there?)")]
    NotThere,
    /// Its events have another form than is known here.
    #[error("the kernel's tracepoint `sock:inet_sock_set_state` has a form that is not known here")]
    Strange,
    /// It was not opened.
    #[error("the kernel does not hand out its tracepoint `sock:inet_sock_set_state` (is CAP_PERFMON there?)")]
    NotOpened,
}

/// The failed connections of this host, of every network namespace.
pub struct Connects {
    layout: Layout,
    rings: Vec<Ring>,
}

impl Connects {
    /// Begins to follow them; why not, where the host does not show them, or not to us.
    pub fn open() -> Result<Connects, NoTracer> {
        let event = tracefs().ok_or(NoTracer::NotThere)?.join("events/sock/inet_sock_set_state");
        let text = |name: &str| fs::read_to_string(event.join(name)).map_err(|_| NoTracer::NotThere);
        let id: u64 = text("id")?.trim().parse().map_err(|_| NoTracer::Strange)?;
        let layout = Layout::parse(&text("format")?).ok_or(NoTracer::Strange)?;
        let rings: Option<Vec<Ring>> = processors().into_iter().map(|processor| Ring::open(id, processor)).collect();
        Ok(Connects { layout, rings: rings.ok_or(NoTracer::NotOpened)? })
    }

    /// What becomes readable when there is something.
    pub fn descriptors(&self) -> impl Iterator<Item = Arc<OwnedFd>> {
        self.rings.iter().map(|ring| ring.descriptor.clone())
    }

    /// Hands over what has come since.
    pub fn drain(&mut self, mut take: impl FnMut(Attempt)) {
        for ring in &mut self.rings {
            ring.drain(|sample| self.layout.attempt(sample).into_iter().for_each(&mut take));
        }
    }
}

/// Where the file system of the tracer is mounted.
fn tracefs() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/thread-self/mounts").ok()?;
    let mounted = mounts.lines().filter_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let (place, kind) = (fields.next()?, fields.next()?);
        (kind == "tracefs").then(|| PathBuf::from(place))
    });
    let mut places = mounted.chain([PathBuf::from("/sys/kernel/tracing")]);
    places.find(|place| place.join("events/sock").is_dir())
}

/// The numbers of the processors that run.
fn processors() -> Vec<i32> {
    let online = fs::read_to_string("/sys/devices/system/cpu/online").unwrap_or_default();
    let mut numbers = Vec::new();
    for range in online.trim().split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        if let (Ok(first), Ok(last)) = (first.parse::<i32>(), last.parse::<i32>()) {
            numbers.extend((first..=last).take(PROCESSORS_MAX));
        }
    }
    numbers.truncate(PROCESSORS_MAX);
    numbers
}

/// Where each field of an event stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Layout {
    flags: usize,
    source_port: usize,
    port: usize,
    family: usize,
    protocol: usize,
    v4: (usize, usize),
    v6: (usize, usize),
}

impl Layout {
    /// Reads the event's `format`.
    fn parse(format: &str) -> Option<Layout> {
        let field = |name: &str, size: usize| {
            format.lines().find_map(|line| {
                let mut parts = line.trim().split(';').map(str::trim);
                let declared = parts.next()?.strip_prefix("field:")?;
                let called = declared.rsplit(' ').next()?.split('[').next()?;
                let of = |part: Option<&str>, word: &str| part?.strip_prefix(word)?.parse::<usize>().ok();
                let (offset, width) = (of(parts.next(), "offset:")?, of(parts.next(), "size:")?);
                (called == name && width == size).then_some(offset)
            })
        };
        Some(Layout {
            flags: field("common_flags", 1)?,
            source_port: field("sport", 2)?,
            port: field("dport", 2)?,
            family: field("family", 2)?,
            protocol: field("protocol", 2)?,
            v4: (field("saddr", 4)?, field("daddr", 4)?),
            v6: (field("saddr_v6", 16)?, field("daddr_v6", 16)?),
        })
    }

    /// Reads a sample: process, thread, the length of the event, the event.
    fn attempt(&self, sample: &[u8]) -> Option<Attempt> {
        let id = |at: usize| sample.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes);
        let (pid, thread) = (id(0)?, id(4)?);
        let event = sample.get(12..)?;
        let number = |at: usize| event.get(at..at + 2)?.try_into().ok().map(u16::from_ne_bytes);
        if *event.get(self.flags)? & INTERRUPTED != 0 || number(self.protocol)? != libc::IPPROTO_TCP as u16 {
            return None;
        }
        let ((source, destination), length) = if i32::from(number(self.family)?) == libc::AF_INET { (self.v4, 4) } else { (self.v6, 16) };
        let address = |at: usize| from_octets(event.get(at..at + length)?).map(|address: IpAddr| address.to_canonical());
        let local = SocketAddr::new(address(source)?, number(self.source_port)?);
        let remote = SocketAddr::new(address(destination)?, number(self.port)?);
        Some(Attempt { ends: Ends { protocol: Protocol::TCP, local, remote }, pid, thread })
    }
}

/// The events of one processor, in memory that the kernel writes.
struct Ring {
    descriptor: Arc<OwnedFd>,
    memory: *mut u8,
    page: usize,
    record: Vec<u8>,
}

impl Ring {
    fn open(id: u64, processor: i32) -> Option<Ring> {
        // `struct perf_event_attr`, its first version: type, size, config, period, what a sample holds, what a read holds, flags,
        // wake up after so many events, two that are for break points.
        let mut attributes = Vec::with_capacity(ATTR_SIZE as usize);
        attributes.extend(PERF_TYPE_TRACEPOINT.to_ne_bytes());
        attributes.extend(ATTR_SIZE.to_ne_bytes());
        for number in [id, 1, PERF_SAMPLE_TID | PERF_SAMPLE_RAW, 0, DISABLED] {
            attributes.extend(number.to_ne_bytes());
        }
        attributes.extend(1u32.to_ne_bytes());
        attributes.resize(ATTR_SIZE as usize, 0);
        // SAFETY: the kernel reads `ATTR_SIZE` octets, which outlive the call, and writes none.
        let opened = unsafe { libc::syscall(libc::SYS_perf_event_open, attributes.as_ptr(), -1, processor, -1, PERF_FLAG_FD_CLOEXEC) };
        let descriptor = Errno::result(opened).ok().and_then(|number| i32::try_from(number).ok())?;
        // SAFETY: the descriptor is new and nobody else's.
        let descriptor = Arc::new(unsafe { OwnedFd::from_raw_fd(descriptor) });
        let filter = CString::new(FILTER).ok()?;
        // SAFETY: the kernel reads the text up to its NUL, which outlives the call.
        Errno::result(unsafe { libc::ioctl(descriptor.as_raw_fd(), PERF_EVENT_IOC_SET_FILTER, filter.as_ptr()) }).ok()?;
        let page = usize::try_from(nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok()??).ok()?;
        let (length, protection) = ((PAGES + 1) * page, libc::PROT_READ | libc::PROT_WRITE);
        // SAFETY: new memory at an address of the kernel's choice.
        let memory = unsafe { libc::mmap(ptr::null_mut(), length, protection, libc::MAP_SHARED, descriptor.as_raw_fd(), 0) };
        if memory == libc::MAP_FAILED {
            return None;
        }
        let ring = Ring { descriptor, memory: memory.cast(), page, record: Vec::new() };
        // SAFETY: a request without an argument.
        Errno::result(unsafe { libc::ioctl(ring.descriptor.as_raw_fd(), PERF_EVENT_IOC_ENABLE, 0) }).ok()?;
        Some(ring)
    }

    /// A counter of the first page, which the kernel shares with us.
    fn counter(&self, at: usize) -> &AtomicU64 {
        // SAFETY: `memory` is mapped as long as `self` lives, both offsets are inside of its first page and divisible by eight.
        unsafe { AtomicU64::from_ptr(self.memory.add(at).cast()) }
    }

    fn drain(&mut self, mut take: impl FnMut(&[u8])) {
        let size = (PAGES * self.page) as u64;
        let head = self.counter(DATA_HEAD).load(Ordering::Acquire);
        let mut tail = self.counter(DATA_TAIL).load(Ordering::Relaxed);
        let mut record = std::mem::take(&mut self.record);
        // INVARIANT: the kernel writes nothing between tail and head.
        while head.wrapping_sub(tail) >= 8 && head.wrapping_sub(tail) <= size {
            self.copy(tail, 8, &mut record);
            // `struct perf_event_header`: type, what it was interrupted in, length with itself.
            let kind = u32::from_ne_bytes([record[0], record[1], record[2], record[3]]);
            let length = u64::from(u16::from_ne_bytes([record[6], record[7]]));
            if length < 8 || length > head.wrapping_sub(tail) {
                tail = head;
                break;
            }
            if kind == PERF_RECORD_SAMPLE {
                self.copy(tail + 8, length as usize - 8, &mut record);
                take(&record);
            }
            tail = tail.wrapping_add(length);
        }
        self.record = record;
        fence(Ordering::SeqCst);
        self.counter(DATA_TAIL).store(tail, Ordering::Release);
    }

    /// Copies from the ring, around its end.
    fn copy(&self, from: u64, length: usize, into: &mut Vec<u8>) {
        let size = PAGES * self.page;
        into.clear();
        for offset in 0..length {
            let at = (from as usize).wrapping_add(offset) % size;
            // SAFETY: `at` is inside of the data pages, which follow the first page and are mapped as long as `self` lives.
            into.push(unsafe { ptr::read_volatile(self.memory.add(self.page + at)) });
        }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // SAFETY: what `open` mapped, and nothing refers to it any more. A failure leaves it mapped.
        let _left_mapped = unsafe { libc::munmap(self.memory.cast(), (PAGES + 1) * self.page) };
    }
}

/// Whether the tracer of this host is where it is looked for: for tests that are worth nothing without it.
pub fn is_there() -> bool {
    tracefs().is_some_and(|place: PathBuf| Path::exists(&place.join("events/sock/inet_sock_set_state/id")))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FORMAT: &str = "name: inet_sock_set_state\nID: 1350\nformat:\n\
        \tfield:unsigned short common_type;\toffset:0;\tsize:2;\tsigned:0;\n\
        \tfield:unsigned char common_flags;\toffset:2;\tsize:1;\tsigned:0;\n\
        \tfield:unsigned char common_preempt_count;\toffset:3;\tsize:1;\tsigned:0;\n\
        \tfield:int common_pid;\toffset:4;\tsize:4;\tsigned:1;\n\n\
        \tfield:const void * skaddr;\toffset:8;\tsize:8;\tsigned:0;\n\
        \tfield:int oldstate;\toffset:16;\tsize:4;\tsigned:1;\n\
        \tfield:int newstate;\toffset:20;\tsize:4;\tsigned:1;\n\
        \tfield:__u16 sport;\toffset:24;\tsize:2;\tsigned:0;\n\
        \tfield:__u16 dport;\toffset:26;\tsize:2;\tsigned:0;\n\
        \tfield:__u16 family;\toffset:28;\tsize:2;\tsigned:0;\n\
        \tfield:__u16 protocol;\toffset:30;\tsize:2;\tsigned:0;\n\
        \tfield:__u8 saddr[4];\toffset:32;\tsize:4;\tsigned:0;\n\
        \tfield:__u8 daddr[4];\toffset:36;\tsize:4;\tsigned:0;\n\
        \tfield:__u8 saddr_v6[16];\toffset:40;\tsize:16;\tsigned:0;\n\
        \tfield:__u8 daddr_v6[16];\toffset:56;\tsize:16;\tsigned:0;\n\nprint fmt: \"x\"\n";

    fn sample(flags: u8, protocol: u16) -> Vec<u8> {
        let mut event = vec![0u8; 76];
        event[2] = flags;
        event[24..26].copy_from_slice(&40_000u16.to_ne_bytes());
        event[26..28].copy_from_slice(&443u16.to_ne_bytes());
        event[28..30].copy_from_slice(&(libc::AF_INET as u16).to_ne_bytes());
        event[30..32].copy_from_slice(&protocol.to_ne_bytes());
        event[32..40].copy_from_slice(&[203, 0, 113, 10, 198, 51, 100, 66]);
        [&4711u32.to_ne_bytes()[..], &4712u32.to_ne_bytes(), &76u32.to_ne_bytes(), &event].concat()
    }

    #[test]
    fn an_event_is_read_by_the_layout_that_the_kernel_tells() {
        let layout = Layout::parse(FORMAT).unwrap();
        let attempt = layout.attempt(&sample(0, 6)).unwrap();
        assert_eq!((attempt.pid, attempt.thread), (4711, 4712));
        assert_eq!(
            (attempt.ends.local, attempt.ends.remote),
            ("203.0.113.10:40000".parse().unwrap(), "198.51.100.66:443".parse().unwrap())
        );
        assert_eq!(Layout::parse(&FORMAT.replace("sport", "port_of_old")), None);
        assert_eq!(Layout::parse(&FORMAT.replace("saddr[4];\toffset:32;\tsize:4", "saddr[4];\toffset:32;\tsize:8")), None);
    }

    #[test]
    fn what_fired_in_an_interrupt_names_nobody() {
        let layout = Layout::parse(FORMAT).unwrap();
        for flags in [0x08, 0x10, 0x18] {
            assert_eq!(layout.attempt(&sample(flags, 6)), None);
        }
        assert_eq!(layout.attempt(&sample(0, 132)), None);
        let whole = sample(0, 6);
        (0..whole.len() - 36).for_each(|length| assert_eq!(layout.attempt(&whole[..length]), None));
    }
}
