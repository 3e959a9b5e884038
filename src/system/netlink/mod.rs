//! The kernel over netlink. [`NfTables`] carries out transactions and dumps our table; what is under way has a room of its own,
//! [`flow`].
//!
//! What is committed comes back equal from [`Kernel::observe`] when it is in the form that the kernel keeps:
//! - a rule that updates a set whose elements count ([`SetDef::counter`]) carries no expressions of its own for them, because the
//!   kernel does not dump what the set says already;
//! - a limit of packets has a burst above 0, for the kernel makes 5 of 0;
//! - a set that rules add to has a size, for the kernel makes 65 535 of none;
//! - every element of an interval set states its last value;
//! - timeouts are multiples of 10 ms, which every `CONFIG_HZ` can hold.
//!
//! The table's comment is written when the table is made. The kernel has no way to change it afterwards.
//!
//! libnftnl and libmnl are called here and nowhere else, and so is everything `unsafe`.

#[allow(unsafe_code)] // calls libnftnl
mod expression;
#[allow(unsafe_code)] // forks
mod release;
#[allow(unsafe_code)] // sets socket options that nix lacks
mod socket;

pub mod decode;
mod encode;
pub mod flow;
pub mod message;
pub mod nflog;
mod surroundings;
mod uapi;

use std::collections::{BTreeMap, VecDeque};
use std::mem;
use std::net::{Ipv4Addr, UdpSocket};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::errno::Errno;

use self::decode::{ElementParts, Order};
use self::encode::Batch;
use self::message::{Message, Writer};
use self::socket::{Failure, Socket, Whole};
use self::uapi::*;
use crate::ruleset::program::{CountingSet, Counts, Elements, GenerationId, Op, SetDef, TABLE, TableDef, TableDump};
use crate::ruleset::surroundings::Surroundings;
use crate::world::{Depth, Kernel, KernelError};

/// How often a dump is begun again when somebody changes the packet filter meanwhile.
const ATTEMPTS: usize = 20;

/// How long a set is left alone whose hash the kernel is making larger: ten thousand elements take it about a millisecond.
const REHASH: Duration = Duration::from_millis(20);

/// How often sets that count are read again that the kernel makes larger meanwhile: under a flood that can go on for long.
const RECOUNTS: usize = 3;

/// A set with more elements than this is large.
const MANY: usize = 5_000;

/// The number of this thread's network namespace, which no other has in this boot; `None` where the kernel does not tell.
pub fn namespace_cookie() -> Option<u64> {
    socket::namespace_cookie(&UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?)
}

/// nf_tables in the network namespace of the thread that opened it.
pub struct NfTables {
    socket: Socket,
    deleted: bool,
}

impl NfTables {
    /// Opens a netlink socket in the network namespace of this thread. Fails where the kernel has no netfilter netlink; whether it
    /// may be used is found out with the first question.
    pub fn open() -> Result<NfTables, KernelError> {
        match Socket::open() {
            Ok(socket) => Ok(NfTables { socket, deleted: false }),
            Err(Failure::Errno(Errno::EPROTONOSUPPORT)) => {
                Err(KernelError::NoNfTables("it does not know the protocol NETLINK_NETFILTER (EPROTONOSUPPORT)".into()))
            }
            Err(failure) => Err(broken("open a netlink socket", failure)),
        }
    }

    /// Lets go of the kernel without waiting. After a transaction that deleted something, closing the socket waits for the
    /// kernel's grace period (5 to 25 ms); a child process does that instead. Without one it is simply closed.
    pub fn release(self) {
        if self.deleted {
            release::in_a_child(self.socket);
        }
    }

    fn read(&mut self, depth: Depth) -> Result<Option<Option<TableDump>>, KernelError> {
        let mut table: Option<TableDef> = None;
        let by_name = |writer: &mut Writer| writer.text(NFTA_TABLE_NAME, TABLE);
        match self.socket.ask(NFT_MSG_GETTABLE, 0, by_name, |message| keep(&mut table, decode::table(message)?)) {
            Ok(_) => {}
            Err(Failure::Errno(Errno::ENOENT)) => return Ok(Some(None)),
            Err(failure) => return Err(no_answer(failure)),
        }
        let Some(table) = table else { return Ok(Some(None)) };

        let mut dump = TableDump { table, chains: Vec::new(), sets: BTreeMap::new(), foreign: Vec::new() };
        if !self.dump(NFT_MSG_GETCHAIN, NFTA_CHAIN_TABLE, decode::chain, |(chain, strange)| {
            dump.chains.push((chain, Vec::new()));
            dump.foreign.extend(strange);
        })? {
            return Ok(None);
        }
        let mut rules = Vec::new();
        if !self.dump(NFT_MSG_GETRULE, NFTA_RULE_TABLE, decode::rule, |rule| rules.push(rule))? {
            return Ok(None);
        }
        for (chain, rule) in rules {
            match dump.chains.iter_mut().find(|(def, _)| def.name == chain) {
                Some((_, rules)) => rules.push(rule),
                None => return Ok(None),
            }
        }
        let mut sets = Vec::new();
        if !self.dump(NFT_MSG_GETSET, NFTA_SET_TABLE, decode::set, |set| sets.push(set))?
            || !self.dump(NFT_MSG_GETOBJ, NFTA_OBJ_TABLE, decode::object, |object| dump.foreign.push(object))?
            || !self.dump(NFT_MSG_GETFLOWTABLE, NFTA_FLOWTABLE_TABLE, decode::flowtable, |flowtable| dump.foreign.push(flowtable))?
        {
            return Ok(None);
        }
        let (wanted, unwanted): (Vec<SetDef>, Vec<SetDef>) = sets.into_iter().partition(|set| match depth {
            Depth::Rules => false,
            Depth::Pins => !dump.rules_add_to(set),
            Depth::Everything => true,
        });
        dump.sets.extend(unwanted.into_iter().map(|set| (set.name.clone(), (set, Elements::new()))));
        let Some(filled) = self.fill(wanted.into())? else { return Ok(None) };
        for mut set in filled {
            // Sets that rules fill may change with every packet; what is missed of them is read the next time.
            if !dump.rules_add_to(&set.def) {
                set.strange.into_iter().for_each(|what| set.def.foreign = Some(what));
                if set.order == Order::Changed {
                    thread::sleep(REHASH);
                    return Ok(None);
                }
            }
            dump.sets.insert(set.def.name.clone(), (set.def, set.elements));
        }
        Ok(Some(Some(dump)))
    }

    /// The sets that count, whole where that can be had; nothing when somebody's change came between.
    fn read_counts(&mut self, prefix: &str) -> Result<Option<Option<Counts>>, KernelError> {
        let mut table = None;
        let by_name = |writer: &mut Writer| writer.text(NFTA_TABLE_NAME, TABLE);
        match self.socket.ask(NFT_MSG_GETTABLE, 0, by_name, |message| keep(&mut table, decode::table_handle(message)?)) {
            Ok(_) => {}
            Err(Failure::Errno(Errno::ENOENT)) => return Ok(Some(None)),
            Err(failure) => return Err(no_answer(failure)),
        }
        let Some(table) = table else { return Ok(Some(None)) };
        let mut handles = BTreeMap::new();
        let mut wanted: Vec<SetDef> = Vec::new();
        if !self.dump(NFT_MSG_GETSET, NFTA_SET_TABLE, decode::set_with_handle, |(set, handle)| {
            if set.name.starts_with(prefix) {
                handles.insert(set.name.clone(), handle);
                wanted.push(set);
            }
        })? {
            return Ok(None);
        }
        wanted.sort();
        let mut filled: BTreeMap<String, Filled> = BTreeMap::new();
        for _ in 0..RECOUNTS {
            let Some(read) = self.fill(mem::take(&mut wanted).into())? else { return Ok(None) };
            wanted.extend(read.iter().filter(|set| set.order == Order::Changed).map(|set| set.def.clone()));
            filled.extend(read.into_iter().map(|set| (set.def.name.clone(), set)));
            if wanted.is_empty() {
                break;
            }
            thread::sleep(REHASH);
        }
        let set = |set: Filled| {
            let handle = handles.get(&set.def.name).copied().unwrap_or_default();
            CountingSet { handle, elements: set.elements, whole: set.order == Order::Kept, def: set.def }
        };
        Ok(Some(Some(Counts { table, sets: filled.into_values().map(set).collect() })))
    }

    /// Dumps one kind of object of our table; `false` when the dump was torn by somebody's change.
    fn dump<T>(
        &mut self,
        kind: u16,
        table: u16,
        decode: fn(&Message<'_>) -> Option<Option<T>>,
        mut take: impl FnMut(T),
    ) -> Result<bool, KernelError> {
        let of_our_table = |writer: &mut Writer| writer.text(table, TABLE);
        let asked = self.socket.ask(kind, NLM_F_DUMP, of_our_table, |message| {
            if let Some(object) = decode(message)? {
                take(object);
            }
            Some(())
        });
        torn_or_whole(asked).map(|whole| whole == Whole::Yes)
    }

    /// The elements of these sets; nothing when a dump was torn.
    ///
    /// A large set takes the kernel long: each chunk of its dump walks over all that came before. So once one turns out to be large, the
    /// others are dumped beside it, on another socket.
    fn fill(&mut self, mut wanted: VecDeque<SetDef>) -> Result<Option<Vec<Filled>>, KernelError> {
        let mut filled = Some(Vec::new());
        let mut beside: Option<JoinHandle<Result<Option<Vec<Filled>>, KernelError>>> = None;
        let mut failed = Ok(());
        while let (Some(so_far), Some(set)) = (&mut filled, wanted.pop_front()) {
            let one = fill_one(&mut self.socket, set, |count| {
                if count > MANY && beside.is_none() && !wanted.is_empty() {
                    let others = mem::take(&mut wanted);
                    // A thread starts out in the network namespace of the one that starts it.
                    beside = Some(thread::spawn(move || NfTables::open()?.fill_all(others)));
                }
            });
            match one {
                Ok(Some(one)) => so_far.push(one),
                Ok(None) => filled = None,
                Err(why) => {
                    failed = Err(why);
                    break;
                }
            }
        }
        // ORDER: waited for whatever happened, so that nobody is left behind who still talks to the kernel.
        let others = beside.map(JoinHandle::join);
        failed?;
        if let Some(others) = others {
            let others = others.map_err(|_| KernelError::Broken("a set of elements was not read to its end".into()))??;
            filled = filled.zip(others).map(|(mut filled, others)| {
                filled.extend(others);
                filled
            });
        }
        Ok(filled)
    }

    fn fill_all(&mut self, wanted: VecDeque<SetDef>) -> Result<Option<Vec<Filled>>, KernelError> {
        let mut filled = Vec::new();
        for set in wanted {
            let Some(one) = fill_one(&mut self.socket, set, |_| {})? else { return Ok(None) };
            filled.push(one);
        }
        Ok(Some(filled))
    }
}

impl Kernel for NfTables {
    fn generation(&mut self) -> Result<GenerationId, KernelError> {
        let mut generation = None;
        match self.socket.ask(NFT_MSG_GETGEN, 0, |_| {}, |message| keep(&mut generation, Some(decode::generation(message)?))) {
            Ok(_) => generation.ok_or_else(|| KernelError::Broken("the kernel did not say its generation".into())),
            Err(failure) => Err(no_answer(failure)),
        }
    }

    fn observe(&mut self, depth: Depth) -> Result<(GenerationId, Option<TableDump>), KernelError> {
        for _ in 0..ATTEMPTS {
            let before = self.generation()?;
            if let Some(table) = self.read(depth)?
                && self.generation()? == before
            {
                return Ok((before, table));
            }
        }
        Err(KernelError::Broken(format!("the packet filter was changed by somebody else during each of {ATTEMPTS} attempts to read it")))
    }

    fn counts(&mut self, prefix: &str) -> Result<Option<Counts>, KernelError> {
        for _ in 0..ATTEMPTS {
            if let Some(counts) = self.read_counts(prefix)? {
                return Ok(counts);
            }
        }
        Err(KernelError::Broken(format!("the packet filter was changed by somebody else during each of {ATTEMPTS} attempts to read it")))
    }

    fn surroundings(&mut self) -> Result<Surroundings, KernelError> {
        surroundings::look(&mut self.socket)
    }

    fn commit(&mut self, expected: GenerationId, ops: &[Op]) -> Result<GenerationId, KernelError> {
        let refused = |step: usize, errno: String| (ops.get(step).map_or_else(String::new, Op::to_string), errno);
        let batch = Batch::encode(expected, ops).map_err(|(step, errno)| KernelError::Refused(vec![refused(step, errno)]))?;
        if batch.is_empty() {
            return Ok(expected);
        }
        // To the kernel, 0 means any generation.
        if expected == GenerationId(0) {
            return Err(KernelError::Interfered);
        }
        let verdicts = match self.socket.transact(&batch.octets) {
            Ok(verdicts) => verdicts,
            // Nothing left this process.
            Err(Failure::Errno(errno @ (Errno::EMSGSIZE | Errno::ENOMEM | Errno::ENOBUFS))) => {
                let what = format!("take a transaction of {} octets", batch.octets.len());
                return Err(KernelError::Refused(vec![(what, errno_name(errno))]));
            }
            Err(failure) => return Err(broken("commit a transaction", failure)),
        };
        if let Some((_, errno)) = verdicts.errors.iter().find(|(seq, _)| *seq == 0) {
            return Err(match errno {
                Errno::ERESTART => KernelError::Interfered,
                _ => no_answer(Failure::Errno(*errno)),
            });
        }
        let mut refusals: Vec<(String, String)> = Vec::new();
        for (seq, errno) in &verdicts.errors {
            let step = batch.steps.get(*seq as usize - 1).copied().unwrap_or(ops.len());
            let refusal = refused(step, errno_name(*errno));
            if refusals.last() != Some(&refusal) {
                refusals.push(refusal);
            }
        }
        if !refusals.is_empty() {
            return Err(KernelError::Refused(refusals));
        }
        let now = self.generation()?;
        if now == expected && verdicts.lost {
            return Err(KernelError::Refused(vec![("carry out the transaction".into(), "ENOBUFS: its reasons were lost".into())]));
        }
        self.deleted |= ops.iter().any(deletes);
        // A transaction of steps that change nothing makes no generation. Any other makes one more, and skips 0; who came after
        // us may have made more.
        Ok(if now == expected { expected } else { GenerationId(expected.0.checked_add(1).unwrap_or(1)) })
    }
}

/// A set with its elements.
struct Filled {
    def: SetDef,
    elements: Elements,
    order: Order,
    strange: Option<String>,
}

/// Dumps one set; nothing when the dump was torn. `so_far` is told after every chunk how many elements have come.
fn fill_one(socket: &mut Socket, set: SetDef, mut so_far: impl FnMut(usize)) -> Result<Option<Filled>, KernelError> {
    let mut parts = ElementParts::new(&set);
    let of_the_set = |writer: &mut Writer| {
        writer.text(NFTA_SET_ELEM_LIST_TABLE, TABLE);
        writer.text(NFTA_SET_ELEM_LIST_SET, &set.name);
    };
    let asked = socket.ask(NFT_MSG_GETSETELEM, NLM_F_DUMP, of_the_set, |message| {
        parts.take(message)?;
        so_far(parts.count());
        Some(())
    });
    if torn_or_whole(asked)? == Whole::No {
        return Ok(None);
    }
    let strange = parts.strange();
    let (elements, order) = parts.into_elements();
    Ok(Some(Filled { def: set, elements, order, strange }))
}

/// Whether the kernel has something to free after this step.
fn deletes(op: &Op) -> bool {
    matches!(op, Op::DeleteTable | Op::DeleteChain(_) | Op::FlushChain(_) | Op::DeleteSet(_) | Op::DeleteElements { .. })
}

fn keep<T>(slot: &mut Option<T>, value: Option<T>) -> Option<()> {
    *slot = value;
    Some(())
}

/// What vanished while it was dumped was changed by somebody.
fn torn_or_whole(asked: Result<Whole, Failure>) -> Result<Whole, KernelError> {
    match asked {
        Ok(whole) => Ok(whole),
        Err(Failure::Errno(Errno::ENOENT | Errno::EINTR)) => Ok(Whole::No),
        Err(failure) => Err(no_answer(failure)),
    }
}

/// Why a question, or a batch as a whole, was turned away.
fn no_answer(failure: Failure) -> KernelError {
    match failure {
        Failure::Errno(Errno::EPERM | Errno::EACCES) => KernelError::NotPermitted,
        // nfnetlink without nf_tables: EINVAL to a question, EOPNOTSUPP to a batch.
        Failure::Errno(errno @ (Errno::EINVAL | Errno::EOPNOTSUPP)) => KernelError::NoNfTables(format!(
            "nfnetlink has no nf_tables and cannot load it ({}); try `modprobe nf_tables`",
            errno_name(errno)
        )),
        failure => broken("talk about the packet filter", failure),
    }
}

fn broken(what: &str, failure: Failure) -> KernelError {
    KernelError::Broken(match failure {
        Failure::Errno(errno) => format!("the kernel refused to {what} ({})", errno_name(errno)),
        Failure::Words(words) => words,
    })
}

/// The name of an errno, or its number when it has none.
fn errno_name(errno: Errno) -> String {
    match errno {
        Errno::UnknownErrno => "unknown errno".into(),
        known => format!("{known:?}"),
    }
}
