//! Evidence: what a host was doing at the moment it was cut off, in one JSON file of the state directory.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use serde_json::{Value, json};

use crate::base::time::Timestamp;
use crate::command::Failure;
use crate::judge::flow::{Flow, LocalSocket, Phase};
use crate::pins::Pins;
use crate::ruleset::lift::lift;
use crate::ruleset::program::{Elements, SetDef, TableDump};
use crate::ruleset::rule::Action;
use crate::ruleset::text;
use crate::state::Saved;
use crate::state::books::{LEDGER, WATCH};
use crate::violation::attribute::Running;
use crate::violation::book;
use crate::world::{Depth, World};

/// How much of the end of each book goes in, in octets.
const TAIL: u64 = 64 * 1024;

/// What is gathered before the cut, for it would be gone after it.
pub struct Evidence {
    at: Timestamp,
    sockets: Vec<LocalSocket>,
    flows: Vec<Flow>,
    processes: Vec<Running>,
    held: Option<TableDump>,
    /// What could not be looked at, and why.
    unseen: Vec<String>,
}

impl Evidence {
    /// Looks at what is under way. What cannot be seen is noted, and keeps nobody from the cut.
    pub fn gather(world: &mut World) -> Evidence {
        let mut unseen = Vec::new();
        let mut note = |what: &str, why: String| unseen.push(format!("{what}: {why}"));
        let sockets = world.flows.sockets(&BTreeSet::new()).unwrap_or_else(|error| {
            note("sockets", error.to_string());
            Vec::new()
        });
        let flows = world.flows.tracked().unwrap_or_else(|error| {
            note("flows", error.to_string());
            Vec::new()
        });
        let held = match world.kernel.observe(Depth::Everything) {
            Ok((_, held)) => held,
            Err(error) => {
                note("rules", error.to_string());
                None
            }
        };
        Evidence { at: world.host.now(), sockets, flows, processes: world.host.processes(), held, unseen }
    }
}

/// Writes the evidence; answers with the name of the file.
pub fn keep(evidence: Evidence, since: Timestamp, saved: &Saved, pins: &Pins, world: &mut World) -> Result<String, Failure> {
    let Evidence { at, sockets, flows, processes, held, mut unseen } = evidence;
    let holders: BTreeMap<u64, &Running> =
        processes.iter().flat_map(|running| running.sockets.iter().map(move |inode| (*inode, running))).collect();
    let sockets: Vec<Value> = sockets.iter().map(|socket| socket_json(socket, holders.get(&u64::from(socket.inode)).copied())).collect();
    let mut books = serde_json::Map::new();
    for (name, files) in [(LEDGER, &*world.files), (WATCH, &*world.watch)] {
        match files.tail(&book::file(name), TAIL) {
            Ok(tail) => {
                let octets = tail.map(|tail| tail.octets).unwrap_or_default();
                books.insert(name.to_string(), lines(&octets).into());
            }
            Err(error) => unseen.push(format!("book `{name}`: {error}")),
        }
    }
    let content = json!({
        "schema": "egressguard.evidence/1",
        "cut_off_at": since.to_string(),
        "gathered_at": at.to_string(),
        "namespace": world.host.namespace(),
        "policy": {"file": saved.record.file, "sha256": saved.record.sha256, "generation": saved.record.generation},
        "sockets": sockets,
        "flows": flows.iter().map(flow_json).collect::<Vec<_>>(),
        "processes": processes,
        // What is not understood is written as what it could do at the most.
        "rules": held.as_ref().map(|dump| text::write(&lift(dump, at).ruleset(&Action::Accept), at)),
        "counted": held.as_ref().map(counted_json),
        "pins": pins.names.iter().map(|(name, pins)| (name.to_string(), pins.leases.keys().collect::<Vec<_>>())).collect::<BTreeMap<_, _>>(),
        "books": books,
        "unseen": unseen,
    });
    let there = world.files.list().unwrap_or_default();
    let named = |number: usize| {
        let more = if number > 1 { format!("-{number}") } else { String::new() };
        format!("evidence-{}{more}.json", since.to_string().replace([':', '-'], ""))
    };
    // Two cuts within a second are two.
    let file = (1..).map(named).find(|name| !there.contains(name)).unwrap_or_else(|| named(1));
    world.files.write(&file, format!("{content:#}\n").as_bytes())?;
    Ok(file)
}

fn socket_json(socket: &LocalSocket, holder: Option<&Running>) -> Value {
    json!({
        "protocol": socket.protocol.to_string(),
        "local": socket.local.to_string(),
        "remote": socket.remote.map(|remote| remote.to_string()),
        "uid": socket.owner.as_ref().map(|owner| owner.user),
        "inode": socket.inode,
        "pid": holder.map(|running| running.process.pid),
        "executable": holder.map(|running| running.process.executable.as_str()),
    })
}

fn flow_json(flow: &Flow) -> Value {
    let end =
        |address: IpAddr, port: Option<u16>| port.map_or_else(|| address.to_string(), |port| SocketAddr::new(address, port).to_string());
    let original = &flow.original;
    json!({
        "protocol": original.payload.protocol().to_string(),
        "from": end(original.source, original.payload.source_port()),
        "to": end(original.destination, original.payload.destination_port()),
        "answers_come_from": end(flow.reply.source, flow.reply.payload.source_port()),
        "over": flow.phase == Phase::Over,
    })
}

/// What the elements of sets have counted, by set and element.
fn counted_json(dump: &TableDump) -> Value {
    let of_set = |(name, (def, elements)): (&String, &(SetDef, Elements))| {
        let counted = elements.iter().filter_map(|(key, element)| {
            let (packets, octets) = element.counted?;
            let words = text::write_key(&def.key, key, element.last.as_ref());
            Some((words, json!({"packets": packets, "bytes": octets, "comment": element.comment})))
        });
        let counted: serde_json::Map<String, Value> = counted.collect();
        (!counted.is_empty()).then(|| (name.clone(), Value::Object(counted)))
    };
    Value::Object(dump.sets.iter().filter_map(of_set).collect())
}

/// The whole records of the end of a book.
fn lines(octets: &[u8]) -> Vec<Value> {
    String::from_utf8_lossy(octets).lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}
