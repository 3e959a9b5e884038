//! One changed address in a set of a hundred and in one of a hundred thousand: what the kernel's transaction takes when the
//! socket is open already. Makes a network namespace for itself and touches no other.
//!
//! Prints one line for each size: elements, first quartile, median and third quartile in microseconds.

use std::error::Error;
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use egressguard::base::net::octets;
use egressguard::ruleset::TABLE_COMMENT;
use egressguard::ruleset::program::{Element, Elements, KeyType, Op, SetDef, TableDef};
use egressguard::system::netlink::NfTables;
use egressguard::world::Kernel;
use nix::sched::{CloneFlags, unshare};
use nix::unistd::geteuid;

const SIZES: [u32; 2] = [100, 100_000];
const ROUNDS: u32 = 500;
/// Elements that one transaction adds while a set is filled.
const CHUNK: u32 = 10_000;

fn main() -> Result<(), Box<dyn Error>> {
    let apart = if geteuid().is_root() { CloneFlags::CLONE_NEWNET } else { CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET };
    if let Err(errno) = unshare(apart) {
        println!("skipped: a network namespace cannot be made here ({errno:?})");
        return Ok(());
    }
    let mut kernel = NfTables::open()?;
    let mut generation = kernel.generation()?;
    let table = TableDef { comment: TABLE_COMMENT.to_string(), flags: 0 };
    generation = kernel.commit(generation, &[Op::AddTable(table)])?;
    for size in SIZES {
        let set = pins(size);
        generation = kernel.commit(generation, &[Op::AddSet(set.clone())])?;
        for first in (0..size).step_by(CHUNK as usize) {
            let elements = (first..size.min(first + CHUNK)).map(element).collect();
            generation = kernel.commit(generation, &[Op::AddElements { set: set.clone(), elements }])?;
        }
    }
    // Alternating, so that whatever else the machine does meets both sizes.
    let mut times = SIZES.map(|size| (size, Vec::new()));
    for round in 0..ROUNDS {
        for (size, times) in &mut times {
            let (old, new) = (*size + round, *size + round + 1);
            let set = pins(*size);
            let change = [
                Op::DeleteElements { set: set.clone(), elements: Elements::from([element(if round == 0 { 0 } else { old })]) },
                Op::AddElements { set, elements: Elements::from([element(new)]) },
            ];
            let began = Instant::now();
            generation = kernel.commit(generation, &change)?;
            times.push(began.elapsed());
        }
    }
    for (size, mut times) in times {
        times.sort();
        let quartile = |which: usize| times.get(times.len() * which / 4).map_or(0.0, Duration::as_secs_f64) * 1e6;
        println!("{size} {:.1} {:.1} {:.1}", quartile(1), quartile(2), quartile(3));
    }
    Ok(())
}

/// A set as the compiler makes it for the pins of names.
fn pins(size: u32) -> SetDef {
    SetDef { timeout: true, counter: true, ..SetDef::plain(format!("tcp_443_v4_{size}"), [KeyType::Ipv4Addr]) }
}

/// The pin of this number: an address with a time and a name.
fn element(number: u32) -> (Vec<u8>, Element) {
    let address = IpAddr::V4(Ipv4Addr::from(0x1400_0000 + number));
    let element = Element { timeout_ms: Some(86_400_000), comment: format!("n{:05}.example.net", number / 10), ..Element::default() };
    (octets(&address), element)
}
