//! Stories of the ledger: what the kernel refuses is counted by the kernel, and written into the book once, whatever happens.

mod support;

use std::collections::BTreeMap;

use egressguard::demo::attempt::Way;
use egressguard::state::books;
use egressguard::system::files::StateDirectory;
use support::{API_V4, HOST_V4, STRANGER_V4, STRANGER_V6, Side, World, is_refused, passes};

/// Packets by direction, destination and port that the book tells, and those of a direction without a place.
fn book(world: &World) -> (BTreeMap<String, u64>, BTreeMap<String, u64>) {
    let files = StateDirectory::new(world.state());
    let (mut counted, mut overflow) = (BTreeMap::new(), BTreeMap::new());
    books::each(books::LEDGER, &files, |line| {
        let record: serde_json::Value = serde_json::to_value(line.kind()).unwrap();
        let word = |name: &str| record[name].as_str().unwrap_or_default().to_string();
        let packets = record["packets"].as_u64().unwrap_or_default();
        match record["kind"].as_str() {
            Some("count") => {
                let place = format!("{} {} {}", word("direction"), word("destination"), record["port"]);
                *counted.entry(place).or_default() += packets;
            }
            Some("overflow") => *overflow.entry(word("direction")).or_default() += packets,
            _ => {}
        }
    })
    .unwrap();
    (counted, overflow)
}

#[test]
fn what_is_refused_is_counted_by_the_kernel_and_harvested_once() {
    let Some(world) = World::new() else { return };
    world.egressguard(&["apply", "builtin:openai"]).exits(0);
    for _ in 0..3 {
        is_refused(world.udp(STRANGER_V4, 53));
    }
    is_refused(world.udp(STRANGER_V6, 53));
    assert!(!world.attempt(Side::Net, Way::Udp, HOST_V4, 9999).answered());
    world.egressguard(&["refresh"]).exits(0);
    let (counted, overflow) = book(&world);
    assert_eq!(counted.get(&format!("out {STRANGER_V4} 53")), Some(&3), "{counted:?}");
    assert_eq!(counted.get(&format!("out {STRANGER_V6} 53")), Some(&1), "{counted:?}");
    assert!(counted.get("in  9999").is_some_and(|packets| *packets >= 1), "{counted:?}");
    assert!(overflow.is_empty(), "{overflow:?}");

    // A refresh to which nothing was refused writes nothing.
    let size = || std::fs::metadata(world.state().join("ledger.jsonl")).unwrap().len();
    let before = size();
    world.egressguard(&["refresh"]).exits(0);
    assert_eq!(size(), before);

    // Another policy and a lost baseline count nothing again; more is more.
    world.egressguard(&["apply", "builtin:anthropic"]);
    std::fs::remove_file(world.state().join("ledger.json")).unwrap();
    is_refused(world.udp(STRANGER_V4, 53));
    world.egressguard(&["refresh"]);
    assert_eq!(book(&world).0.get(&format!("out {STRANGER_V4} 53")), Some(&4));

    // What was counted last is not lost with the rules.
    is_refused(world.udp(STRANGER_V4, 53));
    world.egressguard(&["remove", "--yes"]).exits(0);
    assert_eq!(book(&world).0.get(&format!("out {STRANGER_V4} 53")), Some(&5));
    world.egressguard(&["apply", "builtin:openai"]).exits(0);
    is_refused(world.udp(STRANGER_V4, 53));
    world.egressguard(&["refresh"]).exits(0);
    assert_eq!(book(&world).0.get(&format!("out {STRANGER_V4} 53")), Some(&6), "the new table counts from nothing");
}

#[test]
fn a_disk_that_takes_nothing_stops_no_refresh_and_loses_no_count() {
    let Some(world) = World::new() else { return };
    world.egressguard(&["apply", "builtin:openai"]).exits(0);
    is_refused(world.udp(STRANGER_V4, 53));
    let mount = format!("mount --bind {0} {0} && mount -o remount,bind,ro {0} && exec \"$0\" \"$@\"", world.state().display());
    world.egressguard_through(&["unshare", "-m", "--", "sh", "-c", &mount], &["apply", "builtin:openai"]).says(&["state"]);
    passes(world.tls(API_V4));
    is_refused(world.udp(STRANGER_V4, 53));
    world.egressguard(&["refresh"]).exits(0);
    assert_eq!(book(&world).0.get(&format!("out {STRANGER_V4} 53")), Some(&2));
}

#[test]
fn rules_of_another_version_are_put_right_by_the_next_refresh() {
    let Some(world) = World::new() else { return };
    world.egressguard(&["apply", "builtin:openai"]).exits(0);
    is_refused(world.udp(STRANGER_V4, 53));
    // As if another version had loaded the rules, and counted in fewer sets.
    let rules = world.rules().unwrap();
    let note = world.state().join("refresh.json");
    let text = std::fs::read_to_string(&note).unwrap();
    let mut last: serde_json::Value = serde_json::from_str(&text).unwrap();
    let handle = world.nft(&["-a", "list", "chain", "inet", "egressguard", "refuse_user"]).stdout;
    let rule = handle.lines().find(|line| line.contains("@ledger_all_out")).and_then(|line| line.rsplit(' ').next()).unwrap();
    world.nft(&["delete", "rule", "inet", "egressguard", "refuse_user", "handle", rule]).exits(0);
    last["shape"] = "of another version".into();
    last["kernel_generation"] = world.generation().into();
    std::fs::write(&note, last.to_string()).unwrap();
    world.egressguard(&["refresh", "--repair"]).exits(0);
    assert_eq!(world.rules().unwrap(), rules);
}
