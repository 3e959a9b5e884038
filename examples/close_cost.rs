//! What transactions cost, and what it costs to let go of the kernel after one that deleted something: closing the socket against
//! `NfTables::release`. Runs in a network namespace of its own; root, or `unshare -Ur`.

use std::time::{Duration, Instant};

use egressguard::ruleset::program::{ChainDef, Element, Expr, KeyType, Op, RuleProgram, SetDef, TableDef, Verdict};
use egressguard::system::netlink::NfTables;
use egressguard::world::{Depth, Kernel, KernelError};
use nix::sched::{CloneFlags, unshare};

const ROUNDS: usize = 31;

fn main() -> anyhow::Result<()> {
    unshare(CloneFlags::CLONE_NEWNET)?;
    println!("{:<58} {:>10.2?}", "a commit that adds, then close", median(|| Ok(once(&additions(), drop)?.1))?);
    println!("{:<58} {:>10.2?}", "a commit that replaces, the commit alone", median(|| Ok(once(&replacement(), NfTables::release)?.0))?);
    println!("{:<58} {:>10.2?}", "… then close: the close alone", median(|| Ok(once(&replacement(), drop)?.1))?);
    println!("{:<58} {:>10.2?}", "… then release: the release alone", median(|| Ok(once(&replacement(), NfTables::release)?.1))?);

    let set = SetDef { timeout: true, ..pins() };
    let elements = (0..100_000u32)
        .map(|number| {
            let element = Element { timeout_ms: Some(3_600_000), comment: "api.openai.com".into(), ..Element::default() };
            ((0x0a00_0000 + number).to_be_bytes().to_vec(), element)
        })
        .collect();
    let mut kernel = NfTables::open()?;
    let generation = kernel.generation()?;
    let generation = kernel.commit(generation, &[table(), Op::DeleteTable, table(), Op::AddSet(set.clone())])?;
    let ops = [Op::AddElements { set, elements }];
    let began = Instant::now();
    kernel.commit(generation, &ops)?;
    println!("{:<58} {:>10.2?}", "100 000 elements, encoded and committed", began.elapsed());
    let began = Instant::now();
    kernel.observe(Depth::Everything)?;
    println!("{:<58} {:>10.2?}", "… and read back", began.elapsed());
    let began = Instant::now();
    kernel.observe(Depth::Rules)?;
    println!("{:<58} {:>10.2?}", "… and read back without elements", began.elapsed());
    Ok(())
}

/// How long one commit took, and how long letting go of the kernel.
fn once(ops: &[Op], finish: fn(NfTables)) -> Result<(Duration, Duration), KernelError> {
    let mut kernel = NfTables::open()?;
    let generation = kernel.generation()?;
    let began = Instant::now();
    kernel.commit(generation, ops)?;
    let committed = began.elapsed();
    let began = Instant::now();
    finish(kernel);
    Ok((committed, began.elapsed()))
}

fn median(mut measure: impl FnMut() -> Result<Duration, KernelError>) -> Result<Duration, KernelError> {
    let mut times = (0..ROUNDS).map(|_| measure()).collect::<Result<Vec<_>, _>>()?;
    times.sort();
    Ok(times[ROUNDS / 2])
}

fn table() -> Op {
    Op::AddTable(TableDef { comment: "close cost".into(), flags: 0 })
}

fn pins() -> SetDef {
    SetDef::plain("pins", vec![KeyType::Ipv4Addr])
}

fn additions() -> Vec<Op> {
    let rule = RuleProgram { exprs: vec![Expr::Counter, Expr::Verdict(Verdict::Accept)], comment: "one".into() };
    let chain = |number: u32| ChainDef { name: format!("chain-{number}-{:?}", Instant::now()), base: None };
    let mut ops = vec![table()];
    for def in (0..5).map(chain) {
        ops.push(Op::AddChain(def.clone()));
        ops.extend((0..10).map(|_| Op::AddRule { chain: def.name.clone(), rule: rule.clone() }));
    }
    ops
}

fn replacement() -> Vec<Op> {
    [vec![table(), Op::DeleteTable], additions()].concat()
}
