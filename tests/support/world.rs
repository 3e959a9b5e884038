//! A kernel to put things into and see them come back, simulated or real, and the pieces to build tables with. Not a test itself.

#![allow(dead_code)] // each test file uses some of it

use std::collections::BTreeMap;
use std::time::Duration;

use egressguard::ruleset::program::{
    Base, ChainDef, Element, Elements, Expr, GenerationId, Hook, Key, Op, Register, RuleProgram, SetDef, TableDef, TableDump,
};
use egressguard::simulated::Simulated;
use egressguard::system::netlink::NfTables;
use egressguard::world::{Depth, Kernel, KernelError};

use super::netns;

/// The two worlds: they differ in how time passes.
pub enum World {
    Simulated(Simulated),
    Real(NfTables),
}

impl World {
    pub fn kernel(&mut self) -> &mut dyn Kernel {
        match self {
            World::Simulated(kernel) => kernel,
            World::Real(kernel) => kernel,
        }
    }

    pub fn wait_ms(&mut self, milliseconds: u64) {
        match self {
            World::Simulated(kernel) => kernel.advance_ms(milliseconds),
            World::Real(_) => std::thread::sleep(Duration::from_millis(milliseconds)),
        }
    }

    pub fn commit(&mut self, ops: &[Op]) -> Result<GenerationId, KernelError> {
        let generation = self.kernel().generation()?;
        self.kernel().commit(generation, ops)
    }

    /// Commits what must succeed.
    pub fn put(&mut self, ops: &[Op]) {
        self.commit(ops).unwrap_or_else(|error| panic!("{error}"));
    }

    /// Everything there is; `None` without our table.
    pub fn see(&mut self) -> Option<TableDump> {
        self.kernel().observe(Depth::Everything).unwrap_or_else(|error| panic!("{error}")).1
    }

    pub fn elements(&mut self, set: &str) -> Elements {
        self.see().unwrap().sets.remove(set).unwrap().1
    }

    /// Commits what must be refused, sees that nothing changed, and answers with the refusals.
    pub fn refused(&mut self, ops: &[Op]) -> Vec<(String, String)> {
        let before = self.kernel().observe(Depth::Everything).unwrap();
        let error = self.commit(ops).expect_err("the kernel must refuse this");
        let after = self.kernel().observe(Depth::Everything).unwrap();
        assert_eq!((before.0, before.1.map(timeless)), (after.0, after.1.map(timeless)), "a refused transaction changes nothing");
        match error {
            KernelError::Refused(refusals) => refusals,
            other => panic!("not refused but {other:?}"),
        }
    }
}

pub fn real_kernel() -> World {
    netns::assert_own_netns();
    World::Real(NfTables::open().expect("a netlink socket"))
}

pub const REGISTER: Register = Register(0);

pub fn table() -> Op {
    Op::AddTable(TableDef { comment: "policy openai-backend 0123456789abcdef 7".into(), flags: 0 })
}

pub fn base(name: &str, hook: Hook, accepts: bool) -> Op {
    Op::AddChain(ChainDef { name: name.into(), base: Some(Base { kind: "filter".into(), hook, priority: -5, accepts }) })
}

pub fn chain(name: &str) -> Op {
    Op::AddChain(ChainDef { name: name.into(), base: None })
}

pub fn rule(chain: &str, comment: &str, exprs: impl Into<Vec<Expr>>) -> Op {
    Op::AddRule { chain: chain.into(), rule: RuleProgram { exprs: exprs.into(), comment: comment.into() } }
}

pub fn add(set: &SetDef, elements: impl IntoIterator<Item = (Key, Element)>) -> Op {
    Op::AddElements { set: set.clone(), elements: elements.into_iter().collect() }
}

pub fn delete(set: &SetDef, elements: impl IntoIterator<Item = (Key, Element)>) -> Op {
    Op::DeleteElements { set: set.clone(), elements: elements.into_iter().collect() }
}

pub fn lookup(set: &str) -> Expr {
    Expr::Lookup { set: set.into(), from: REGISTER, inverted: false }
}

pub fn load_daddr() -> Expr {
    Expr::Payload { base: 1, offset: 16, len: 4, into: REGISTER }
}

pub fn span(first: &[u8], last: &[u8]) -> (Key, Element) {
    (first.to_vec(), Element { last: Some(last.to_vec()), ..Element::default() })
}

pub fn single(key: &[u8]) -> (Key, Element) {
    (key.to_vec(), Element::default())
}

/// A dump without what passes with time.
pub fn timeless(mut dump: TableDump) -> TableDump {
    for element in dump.sets.values_mut().flat_map(|(_, elements)| elements.values_mut()) {
        element.expires_ms = None;
    }
    dump
}

/// What must be seen after these additions to an empty world.
pub fn expected(ops: &[Op]) -> TableDump {
    let mut dump =
        TableDump { table: TableDef { comment: String::new(), flags: 0 }, chains: vec![], sets: BTreeMap::new(), foreign: vec![] };
    for op in ops {
        match op.clone() {
            Op::AddTable(table) => dump.table = table,
            Op::AddChain(chain) => dump.chains.push((chain, vec![])),
            Op::AddRule { chain, rule } => dump.chains.iter_mut().find(|(def, _)| def.name == chain).unwrap().1.push(rule),
            Op::AddSet(set) => drop(dump.sets.insert(set.name.clone(), (set, Elements::new()))),
            Op::AddElements { set, elements } => {
                let counted = |element: &mut Element| element.counted = element.counted.or(set.counter.then_some((0, 0)));
                let found = &mut dump.sets.get_mut(&set.name).unwrap().1;
                found.extend(elements);
                found.values_mut().for_each(counted);
            }
            other => panic!("{other} is no addition"),
        }
    }
    dump
}

/// Commits additions and sees just them.
pub fn round_trip(world: &mut World, ops: &[Op]) {
    world.put(ops);
    assert_eq!(timeless(world.see().unwrap()), expected(ops));
}
