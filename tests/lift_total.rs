//! Lift is total: whatever `nft` puts into our table is understood or reported, never skipped and never a crash. The statements are lines
//! of `tests/nft_statements.txt`.

#[path = "support/datagrams.rs"]
mod datagrams;
mod golden_case;
mod namespace;

use std::collections::BTreeMap;
use std::sync::OnceLock;

use datagrams::datagrams;
use egressguard::base::net::Family;
use egressguard::base::packet::Direction;
use egressguard::judge::drift::drift;
use egressguard::judge::packet::Payload;
use egressguard::judge::plan::plan;
use egressguard::judge::{Packet, judge};
use egressguard::ruleset::Ruleset;
use egressguard::ruleset::lift::lift;
use egressguard::ruleset::program::{Elements, TableDef, TableDump};
use egressguard::ruleset::rule::Action;
use egressguard::system::netlink::NfTables;
use egressguard::system::netlink::decode::{self, ElementParts};
use egressguard::system::netlink::message::messages;
use egressguard::world::{Depth, Kernel};
use golden_case::{GoldenCase, NOW};
use namespace::load::load;
use namespace::{inside, kernel_is_there, nft};
use proptest::prelude::*;

/// At least so many statements have to load, or the test says too little.
const LOADED_AT_LEAST: usize = 200;

/// A statement of the file.
#[derive(Debug, Clone)]
struct Statement {
    script: String,
    /// Whether it means the same as what is there.
    same: bool,
}

fn statements() -> Vec<Statement> {
    let text = include_str!("nft_statements.txt");
    let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines
        .map(|line| {
            let (script, same) = line.strip_prefix("same: ").map_or((line, false), |script| (script, true));
            Statement { script: script.replace("$T", "inet egressguard"), same }
        })
        .collect()
}

/// Our rules: those of the golden case with a rule for everybody, users and units.
fn ours() -> (GoldenCase, Ruleset) {
    let case = golden_case::all().into_iter().find(|case| case.path.ends_with("quarantine-user")).expect("the case");
    let mut ruleset = case.compile().loadable();
    for set in ruleset.sets.values_mut() {
        set.members.retain(|_, member| member.expires.is_none_or(|expires| expires > NOW));
    }
    (case, ruleset)
}

/// What is there, as if no time had passed since [`NOW`].
fn observed() -> TableDump {
    let (_, table) = NfTables::open().unwrap().observe(Depth::Pins).unwrap_or_else(|why| panic!("{why}"));
    let mut table = table.expect("our table");
    for element in table.sets.values_mut().flat_map(|(_, elements)| elements.values_mut()) {
        element.expires_ms = None;
    }
    table
}

#[test]
fn whatever_nft_puts_into_our_table_is_seen_and_put_right() {
    if !kernel_is_there() {
        return;
    }
    let (case, ruleset) = ours();
    let (mut unknown, mut unseen, mut unrepaired, mut loaded) = (Vec::new(), Vec::new(), Vec::new(), 0);
    for statement in statements() {
        inside(|| {
            load(&ruleset, NOW);
            let before = observed();
            assert!(plan(Some(&before), &ruleset, NOW).unwrap().is_nothing(), "our own rules are a difference");
            if let Err(why) = nft(&["-f", "-"], &format!("{}\n", statement.script)) {
                let why = why.lines().find(|line| line.contains("Error")).unwrap_or(&why).to_string();
                unknown.push(format!("{}: {why}", statement.script));
                return;
            }
            loaded += 1;
            let there = observed();
            let planned = plan(Some(&there), &ruleset, NOW).unwrap();
            let reported = drift(Some(&there), &ruleset, &case.policy, NOW);
            if planned.is_nothing() != statement.same || reported.is_empty() != statement.same {
                unseen.push(format!("{}: {:?}, {reported:?}", statement.script, planned.differences()));
            }
            judge_all(&there);
            // What is seen can be put right, too.
            let mut kernel = NfTables::open().unwrap();
            let generation = kernel.generation().unwrap();
            match kernel.commit(generation, &planned.ops) {
                Ok(_) => {
                    let left = plan(Some(&observed()), &ruleset, NOW).unwrap();
                    if !left.is_nothing() {
                        unrepaired.push(format!("{}: {:?}", statement.script, left.differences()));
                    }
                }
                Err(why) => unrepaired.push(format!("{}: {why}", statement.script)),
            }
        });
    }
    println!("{loaded} statements loaded; {} are not known here:\n  {}", unknown.len(), unknown.join("\n  "));
    assert!(unseen.is_empty(), "{} statements are not seen as what they are:\n  {}", unseen.len(), unseen.join("\n  "));
    assert!(unrepaired.is_empty(), "{} statements are not put right:\n  {}", unrepaired.len(), unrepaired.join("\n  "));
    assert!(loaded >= LOADED_AT_LEAST, "only {loaded} statements loaded");
}

/// Every direction is judged on what was found, whatever stands for what is not understood.
fn judge_all(there: &TableDump) {
    let found = lift(there, NOW);
    for action in [Action::Continue, Action::Accept, Action::Drop] {
        let ruleset = found.ruleset(&action);
        for (direction, family) in [Direction::In, Direction::Out, Direction::Forward]
            .into_iter()
            .flat_map(|direction| Family::BOTH.map(|family| (direction, family)))
        {
            let end = family.unspecified();
            let packet = Packet::new(direction, end, end, Payload::Tcp { source: 1, destination: 443, flags: 2 }).unwrap();
            let _ = judge(&ruleset, &packet);
        }
    }
}

/// The datagrams of dumps of a table that holds every statement which can stand beside the others.
fn dumps() -> &'static [Vec<u8>] {
    static DUMPS: OnceLock<Vec<Vec<u8>>> = OnceLock::new();
    DUMPS.get_or_init(|| {
        let (_, ruleset) = ours();
        inside(|| {
            load(&ruleset, NOW);
            for statement in statements().into_iter().filter(|statement| !statement.script.starts_with("flush")) {
                let _ = nft(&["-f", "-"], &format!("{}\n", statement.script));
            }
            let sets: Vec<String> = observed().sets.into_keys().collect();
            let sets: Vec<&str> = sets.iter().map(String::as_str).collect();
            // NFT_MSG_GETTABLE, GETCHAIN, GETRULE, GETSET, GETOBJ, GETFLOWTABLE.
            datagrams(&[1, 4, 7, 10, 19, 23], &sets)
        })
    })
}

/// Puts a table together from whatever can be read of these datagrams, as the socket would.
fn assembled(datagrams: &[Vec<u8>]) -> TableDump {
    let table = TableDef { comment: "managed by egressguard".into(), flags: 0 };
    let mut dump = TableDump { table, chains: Vec::new(), sets: BTreeMap::new(), foreign: Vec::new() };
    let mut rules = Vec::new();
    for message in datagrams.iter().filter_map(|datagram| messages(datagram)).flatten() {
        match message.kind & 0xff {
            3 => {
                if let Some((chain, strange)) = decode::chain(&message).flatten() {
                    dump.chains.push((chain, Vec::new()));
                    dump.foreign.extend(strange);
                }
            }
            6 => rules.extend(decode::rule(&message).flatten()),
            9 => {
                if let Some(set) = decode::set(&message).flatten() {
                    dump.sets.insert(set.name.clone(), (set, Elements::new()));
                }
            }
            12 => {
                for (set, elements) in dump.sets.values_mut() {
                    let mut parts = ElementParts::new(set);
                    if parts.take(&message).is_some() {
                        elements.extend(parts.into_elements().0);
                    }
                }
            }
            18 => dump.foreign.extend(decode::object(&message).flatten()),
            22 => dump.foreign.extend(decode::flowtable(&message).flatten()),
            _ => {
                let _ = decode::table(&message);
            }
        }
    }
    for (chain, rule) in rules {
        if let Some((_, rules)) = dump.chains.iter_mut().find(|(def, _)| def.name == chain) {
            rules.push(rule);
        }
    }
    dump
}

#[test]
fn dumps_that_any_hand_has_changed_are_read_lifted_and_planned_without_a_crash() {
    if !kernel_is_there() {
        return;
    }
    let (case, ruleset) = ours();
    let dumps = dumps();
    let octets: usize = dumps.iter().map(Vec::len).sum();
    assert!(octets > 20_000, "{octets} octets are no table with everything in it");
    let change = (any::<prop::sample::Index>(), any::<prop::sample::Index>(), any::<u8>(), 0..4u8);
    let mut runner =
        proptest::test_runner::TestRunner::new(ProptestConfig { failure_persistence: None, cases: 250, ..ProptestConfig::default() });
    let outcome = runner.run(&prop::collection::vec(change, 1..40), |changes| {
        let mut changed = dumps.to_vec();
        for (datagram, at, value, how) in changes {
            let octets = &mut changed[datagram.index(dumps.len())];
            if octets.is_empty() {
                continue;
            }
            let at = at.index(octets.len());
            match how {
                0 => octets[at] = value,
                1 => octets[at] ^= 1 << (value % 8),
                // Of an attribute, an octet of its length or its type.
                2 => octets[at & !3] = value % 32,
                _ => octets.truncate(at),
            }
        }
        let dump = assembled(&changed);
        let _ = plan(Some(&dump), &ruleset, NOW);
        let _ = drift(Some(&dump), &ruleset, &case.policy, NOW);
        judge_all(&dump);
        Ok(())
    });
    outcome.unwrap_or_else(|why| panic!("{why}"));
}
