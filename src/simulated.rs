//! The kernel's packet filter in memory, for tests: as transactional as the real one, and as strict. It judges no packets. What is
//! under way beside it is in [`flows`].
//!
//! One contract (`tests/kernel_contract.rs`) runs on this and on the real kernel. Where kernels differ this is the least able
//! one: adding an element that is there does not renew its timeout (kernels before 6.12).

pub mod files;
pub mod flows;
pub mod programs;
mod table;

use std::collections::{BTreeMap, VecDeque};

use self::table::Table;
use crate::ruleset::program::{CountingSet, Counts, GenerationId, Key, Op, TableDump};
use crate::ruleset::surroundings::Surroundings;
use crate::world::{Depth, Kernel, KernelError};

/// Where an injected failure strikes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// When the generation is asked for.
    Generation,
    /// When the table is read.
    Observe,
    /// Before a transaction is looked at: nothing changes.
    BeforeCommit,
    /// After a transaction was carried out: its answer is lost.
    AfterCommit,
}

/// A packet filter in memory, with a clock that only a test moves.
#[derive(Debug, Default)]
pub struct Simulated {
    /// How many transactions came before; the generation is one more, for the kernel begins with 1.
    transactions: u32,
    table: Option<Table>,
    clock_ms: u64,
    failures: Vec<(Moment, KernelError)>,
    interference: VecDeque<Vec<Op>>,
    committed: Vec<Vec<Op>>,
    handles: Handles,
}

/// What tells tables and sets from those of the same name before them.
#[derive(Debug, Default)]
struct Handles {
    last: u64,
    table: u64,
    sets: BTreeMap<String, u64>,
}

impl Handles {
    fn next(&mut self) -> u64 {
        self.last += 1;
        self.last
    }

    /// After these steps, with these sets in the table.
    fn follow(&mut self, ops: &[Op], table: Option<&Table>) {
        for op in ops {
            match op {
                Op::DeleteTable => {
                    self.table = self.next();
                    self.sets.clear();
                }
                Op::DeleteSet(name) => drop(self.sets.remove(name)),
                _ => {}
            }
        }
        for name in table.map(Table::set_names).unwrap_or_default() {
            if !self.sets.contains_key(&name) {
                let handle = self.next();
                self.sets.insert(name, handle);
            }
        }
    }
}

impl Simulated {
    /// One without our table.
    pub fn new() -> Simulated {
        Simulated::default()
    }

    /// Lets time pass; elements whose time is over are gone.
    pub fn advance_ms(&mut self, milliseconds: u64) {
        self.clock_ms += milliseconds;
    }

    /// Makes the next visit to this moment fail, once. Several are used up in the order they were asked for.
    pub fn fail_at(&mut self, moment: Moment, error: KernelError) {
        self.failures.push((moment, error));
    }

    /// Has somebody else carry out these steps right before the next commit; none at all change another table. Several are used
    /// up commit by commit.
    pub fn interfere_before_commit(&mut self, ops: Vec<Op>) {
        self.interference.push_back(ops);
    }

    /// Has somebody else change our table in any way right now.
    pub fn tamper(&mut self, change: impl FnOnce(&mut Option<TableDump>)) {
        let mut dump = self.dump(Depth::Everything);
        change(&mut dump);
        self.table = dump.map(|dump| Table::from_dump(dump, self.clock_ms));
        self.transactions += 1;
    }

    /// Lets an element of a counting set count, as packets do. Whether there is such an element.
    pub fn count(&mut self, set: &str, key: &Key, packets: u64, octets: u64) -> bool {
        self.table.as_mut().is_some_and(|table| table.count(set, key, packets, octets, self.clock_ms))
    }

    /// Lets a rule count a packet in a set that rules fill, as it does: an element that is there is renewed, one that is not is made,
    /// where there is room. Whether it was counted.
    pub fn update(&mut self, set: &str, key: &Key, lives_ms: u64, octets: u64) -> bool {
        self.table.as_mut().is_some_and(|table| table.update_element(set, key, lives_ms, octets, self.clock_ms))
    }

    /// The transactions that changed something or nothing and succeeded, in order: what was written since the beginning.
    pub fn committed(&self) -> &[Vec<Op>] {
        &self.committed
    }

    fn now(&self) -> GenerationId {
        GenerationId(self.transactions + 1)
    }

    fn dump(&self, depth: Depth) -> Option<TableDump> {
        self.table.as_ref().map(|table| table.dump(depth, self.clock_ms))
    }

    fn strike(&mut self, moment: Moment) -> Result<(), KernelError> {
        match self.failures.iter().position(|(at, _)| *at == moment) {
            Some(position) => Err(self.failures.remove(position).1),
            None => Ok(()),
        }
    }

    /// All steps on a copy: the copy, whether anything changed, and the refusals.
    fn try_all(&self, ops: &[Op], validate: Validate) -> (Option<Table>, bool, Vec<(String, String)>) {
        let mut next = self.table.clone();
        let mut changed = false;
        let mut refusals = Vec::new();
        for op in ops {
            let mut outcome = table::step(&mut next, op, self.clock_ms);
            if let (Validate::RuleByRule, Op::AddRule { .. }, Some(table)) = (validate, op, &next) {
                outcome = outcome.and_then(|changed| table.validate().map(|()| changed));
            }
            match outcome {
                Ok(did) => changed |= did,
                Err(errno) => refusals.push((op.to_string(), errno.to_owned())),
            }
        }
        (next, changed, refusals)
    }

    /// Carries out all steps on a copy, and takes the copy when every step succeeded.
    fn transact(&mut self, ops: &[Op]) -> Result<(), KernelError> {
        let (next, changed, mut refusals) = self.try_all(ops, Validate::AtTheEnd);
        if refusals.is_empty() && next.as_ref().is_some_and(|table| table.validate().is_err()) {
            // As the kernel does: once more, this time blaming the rules that make it invalid.
            refusals = self.try_all(ops, Validate::RuleByRule).2;
        }
        if !refusals.is_empty() {
            return Err(KernelError::Refused(refusals));
        }
        self.table = next;
        self.handles.follow(ops, self.table.as_ref());
        self.transactions += u32::from(changed);
        Ok(())
    }
}

/// When a table is looked at as a whole.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Validate {
    AtTheEnd,
    RuleByRule,
}

impl Kernel for Simulated {
    fn generation(&mut self) -> Result<GenerationId, KernelError> {
        self.strike(Moment::Generation)?;
        Ok(self.now())
    }

    fn observe(&mut self, depth: Depth) -> Result<(GenerationId, Option<TableDump>), KernelError> {
        self.strike(Moment::Observe)?;
        Ok((self.now(), self.dump(depth)))
    }

    fn counts(&mut self, prefix: &str) -> Result<Option<Counts>, KernelError> {
        self.strike(Moment::Observe)?;
        let Some(dump) = self.dump(Depth::Everything) else { return Ok(None) };
        let of_prefix = dump.sets.into_iter().filter(|(name, _)| name.starts_with(prefix));
        let sets = of_prefix.map(|(name, (def, elements))| {
            let handle = self.handles.sets.get(&name).copied().unwrap_or_default();
            CountingSet { def, handle, elements, whole: true }
        });
        Ok(Some(Counts { table: self.handles.table, sets: sets.collect() }))
    }

    fn surroundings(&mut self) -> Result<Surroundings, KernelError> {
        self.strike(Moment::Observe)?;
        Ok(Surroundings::default())
    }

    fn commit(&mut self, expected: GenerationId, ops: &[Op]) -> Result<GenerationId, KernelError> {
        self.strike(Moment::BeforeCommit)?;
        if let Some(foreign) = self.interference.pop_front() {
            let before = self.transactions;
            self.transact(&foreign)?;
            self.transactions = before + 1;
        }
        if ops.is_empty() {
            return Ok(expected);
        }
        if expected != self.now() {
            return Err(KernelError::Interfered);
        }
        self.transact(ops)?;
        self.committed.push(ops.to_vec());
        self.strike(Moment::AfterCommit)?;
        Ok(self.now())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ruleset::program::{ChainDef, TableDef};

    fn table() -> Op {
        Op::AddTable(TableDef { comment: "first".into(), flags: 0 })
    }

    fn chain(name: &str) -> Op {
        Op::AddChain(ChainDef { name: name.into(), base: None })
    }

    #[test]
    fn an_injected_failure_strikes_once() {
        let mut kernel = Simulated::new();
        kernel.fail_at(Moment::BeforeCommit, KernelError::NotPermitted);
        let generation = kernel.generation().unwrap();
        assert!(matches!(kernel.commit(generation, &[table()]), Err(KernelError::NotPermitted)));
        assert!(kernel.observe(Depth::Rules).unwrap().1.is_none() && kernel.committed().is_empty());
        kernel.commit(generation, &[table()]).unwrap();
    }

    #[test]
    fn a_lost_answer_leaves_the_transaction_done() {
        let mut kernel = Simulated::new();
        kernel.fail_at(Moment::AfterCommit, KernelError::Broken("lost".into()));
        let generation = kernel.generation().unwrap();
        assert!(matches!(kernel.commit(generation, &[table()]), Err(KernelError::Broken(_))));
        assert!(kernel.observe(Depth::Rules).unwrap().1.is_some());
    }

    #[test]
    fn interference_before_a_commit_makes_it_fail_and_stays() {
        let mut kernel = Simulated::new();
        let generation = kernel.generation().unwrap();
        let generation = kernel.commit(generation, &[table()]).unwrap();
        kernel.interfere_before_commit(vec![chain("theirs")]);
        assert!(matches!(kernel.commit(generation, &[chain("ours")]), Err(KernelError::Interfered)));
        let (_, dump) = kernel.observe(Depth::Rules).unwrap();
        assert_eq!(dump.unwrap().chains.into_iter().map(|(chain, _)| chain.name).collect::<Vec<_>>(), ["theirs"]);
        kernel.interfere_before_commit(vec![]);
        let generation = kernel.generation().unwrap();
        assert!(matches!(kernel.commit(generation, &[chain("ours")]), Err(KernelError::Interfered)));
    }

    #[test]
    fn tampering_makes_another_generation() {
        let mut kernel = Simulated::new();
        let generation = kernel.generation().unwrap();
        let generation = kernel.commit(generation, &[table(), chain("c")]).unwrap();
        kernel.tamper(|dump| dump.as_mut().unwrap().chains.clear());
        assert!(matches!(kernel.commit(generation, &[chain("d")]), Err(KernelError::Interfered)));
        assert!(kernel.observe(Depth::Rules).unwrap().1.unwrap().chains.is_empty());
        assert_eq!(kernel.committed().len(), 1);
    }
}
