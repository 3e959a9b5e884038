//! Looks at other people's tables, at the links and at what hangs on them, all in the network namespace of this thread.

use std::fs;
use std::path::Path;

use nix::errno::Errno;

use super::decode::surroundings as decode;
use super::message::Message;
use super::socket::{Failure, Socket, Whole};
use super::uapi::*;
use super::{ATTEMPTS, errno_name, no_answer};
use crate::ruleset::lift::DORMANT;
use crate::ruleset::surroundings::{Family, Link, OtherTable, Surroundings};
use crate::world::KernelError;

/// Everything around our table.
pub fn look(socket: &mut Socket) -> Result<Surroundings, KernelError> {
    for _ in 0..ATTEMPTS {
        let mut found = Surroundings::default();
        if tables(socket, &mut found)? == Whole::No {
            continue;
        }
        if let Err(failure) = links(&mut found) {
            found.unseen.push(format!("links and what hangs on them: {}", words(failure)));
        }
        let mut proc = Proc { unseen: &mut found.unseen };
        found.legacy = [("ip", "ip_tables_names"), ("ip6", "ip6_tables_names")].into_iter().flat_map(|table| proc.legacy(table)).collect();
        found.packet_sockets = proc.lines("thread-self/net/packet").len().saturating_sub(1);
        found.forwards = ["sys/net/ipv4/ip_forward", "sys/net/ipv6/conf/all/forwarding"].map(|option| proc.forwards(option));
        return Ok(found);
    }
    Err(KernelError::Broken(format!("the packet filter was changed by somebody else during each of {ATTEMPTS} attempts to read it")))
}

fn tables(socket: &mut Socket, found: &mut Surroundings) -> Result<Whole, KernelError> {
    let whole = [
        dump(socket, NFT_MSG_GETTABLE, decode::table, |table, flags| {
            found.tables.entry(table).or_default().dormant = flags & DORMANT != 0;
        })?,
        dump(socket, NFT_MSG_GETCHAIN, decode::chain, |table, (name, base)| {
            of(found, table).chains.entry(name).or_default().base = base;
        })?,
        dump(socket, NFT_MSG_GETRULE, decode::rule, |table, (chain, effects)| {
            of(found, table).chains.entry(chain).or_default().effects.extend(effects);
        })?,
    ];
    let flowtables = dump(socket, NFT_MSG_GETFLOWTABLE, decode::flowtable, |table, name| of(found, table).flowtables.push(name))?;
    Ok(if whole.into_iter().chain([flowtables]).all(|whole| whole == Whole::Yes) { Whole::Yes } else { Whole::No })
}

fn of(found: &mut Surroundings, table: (Family, String)) -> &mut OtherTable {
    found.tables.entry(table).or_default()
}

/// Dumps one kind of object of all tables of all families (`NFPROTO_UNSPEC`).
fn dump<T>(
    socket: &mut Socket,
    kind: u16,
    decode: fn(&Message<'_>) -> Option<decode::Theirs<T>>,
    mut take: impl FnMut((Family, String), T),
) -> Result<Whole, KernelError> {
    let asked = socket.ask_for_all(NFNL_SUBSYS_NFTABLES << 8 | kind, &[0; 4], |message| {
        if let Some((table, object)) = decode(message)? {
            take(table, object);
        }
        Some(())
    });
    match asked {
        Ok(whole) => Ok(whole),
        // What vanished meanwhile was changed by somebody.
        Err(Failure::Errno(Errno::ENOENT | Errno::EINTR)) => Ok(Whole::No),
        Err(failure) => Err(no_answer(failure)),
    }
}

fn links(found: &mut Surroundings) -> Result<(), Failure> {
    let mut socket = Socket::of(mnl::Bus::Route)?;
    let mut links: Vec<(i32, Link)> = Vec::new();
    socket.ask_for_all(RTM_GETLINK, &[0; 16], |message| {
        links.push(decode::link(message)?);
        Some(())
    })?;
    let mut two_way = Vec::new();
    socket.ask_for_all(RTM_GETQDISC, &[0; 20], |message| {
        let (index, is_two_way) = decode::qdisc(message)?;
        if is_two_way {
            two_way.push(index);
        }
        Some(())
    })?;
    for (index, link) in &mut links {
        // Filters of the root hang at parent 0.
        let parents: &[u32] = if two_way.contains(index) { &[0, TC_CLSACT_INGRESS, TC_CLSACT_EGRESS] } else { &[0] };
        for parent in parents {
            link.filters |= has_filters(&mut socket, *index, *parent)?;
        }
    }
    found.links = links.into_iter().map(|(_, link)| link).collect();
    found.links.sort();
    Ok(())
}

/// Whether a filter hangs there: `tcmsg` with the link's index and the parent.
fn has_filters(socket: &mut Socket, index: i32, parent: u32) -> Result<bool, Failure> {
    let mut header = [0; 20];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header[12..16].copy_from_slice(&parent.to_ne_bytes());
    let mut found = false;
    let asked = socket.ask_for_all(RTM_GETTFILTER, &header, |_| {
        found = true;
        Some(())
    });
    match asked {
        // A link without queues takes no filters.
        Ok(_) | Err(Failure::Errno(Errno::EINVAL | Errno::ENOENT | Errno::EOPNOTSUPP)) => Ok(found),
        Err(failure) => Err(failure),
    }
}

/// Files of /proc, those of this thread's network namespace, which need not be the process's.
struct Proc<'a> {
    unseen: &'a mut Vec<String>,
}

impl Proc<'_> {
    fn legacy(&mut self, (family, file): (&'static str, &str)) -> Vec<String> {
        self.lines(&format!("thread-self/net/{file}")).into_iter().map(|table| format!("{family} {table}")).collect()
    }

    fn forwards(&mut self, option: &str) -> bool {
        self.lines(option).first().is_some_and(|value| value.trim() != "0")
    }

    /// The lines of a file. One that there is not says nothing: what it tells of is not loaded into the kernel.
    fn lines(&mut self, file: &str) -> Vec<String> {
        match fs::read_to_string(format!("/proc/{file}")) {
            Ok(text) => text.lines().filter(|line| !line.is_empty()).map(str::to_string).collect(),
            Err(error) => {
                let is_hidden = error.kind() != std::io::ErrorKind::NotFound || !Path::new("/proc/self").exists();
                self.unseen.extend(is_hidden.then(|| format!("/proc/{file}: {error}")));
                Vec::new()
            }
        }
    }
}

fn words(failure: Failure) -> String {
    match failure {
        Failure::Errno(errno) => errno_name(errno),
        Failure::Words(words) => words,
    }
}
