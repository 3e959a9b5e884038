//! Loading a whole table through netlink, and reading it back.

use egressguard::base::time::Timestamp;
use egressguard::ruleset::Ruleset;
use egressguard::ruleset::lift::{Found, lift};
use egressguard::ruleset::lower::lower;
use egressguard::ruleset::program::{Op, TableDump};
use egressguard::system::netlink::NfTables;
use egressguard::world::{Depth, Kernel};

/// Loads the rules into the namespace of this thread, where there is no table of ours.
pub fn load(ruleset: &Ruleset, now: Timestamp) {
    super::assert_foreign();
    let mut kernel = NfTables::open().expect("a netlink socket");
    let generation = kernel.generation().expect("the generation");
    kernel.commit(generation, &steps(lower(ruleset, now))).unwrap_or_else(|why| panic!("{why}"));
}

/// What makes this table where there is none: what is referred to comes before what refers to it.
fn steps(table: TableDump) -> Vec<Op> {
    let mut ops = vec![Op::AddTable(table.table)];
    for (set, elements) in table.sets.into_values() {
        ops.push(Op::AddSet(set.clone()));
        if !elements.is_empty() {
            ops.push(Op::AddElements { set, elements });
        }
    }
    ops.extend(table.chains.iter().map(|(chain, _)| Op::AddChain(chain.clone())));
    for (chain, rules) in table.chains {
        ops.extend(rules.into_iter().map(|rule| Op::AddRule { chain: chain.name.clone(), rule }));
    }
    ops
}

/// What the namespace of this thread holds. Pins end when they were told to, however long ago that was.
pub fn found(now: Timestamp) -> Found {
    let mut kernel = NfTables::open().expect("a netlink socket");
    let (_, table) = kernel.observe(Depth::Everything).unwrap_or_else(|why| panic!("{why}"));
    let mut table = table.expect("our table");
    for element in table.sets.values_mut().flat_map(|(_, elements)| elements.values_mut()) {
        element.expires_ms = None;
    }
    lift(&table, now)
}
