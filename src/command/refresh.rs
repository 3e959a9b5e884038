//! `refresh`: asks DNS again and tells the kernel only what has changed.
//!
//! As long as the kernel's generation is the one that the last run left, nobody has changed anything, and what the kernel holds is
//! known without reading it: one changed address costs the same in a set of a hundred and in one of a hundred thousand. Only pins
//! that are renewed, once in a quarter of `refresh.keep`, need a look: what they have counted goes with them.

use std::collections::BTreeMap;

use serde_json::json;

use crate::base::name::DnsName;
use crate::base::time::Timestamp;
use crate::command::arguments::RefreshArguments;
use crate::command::enforce::{self, Chosen, Committed, Knowledge, Proposal, Then};
use crate::command::revoke::{self, Revocation};
use crate::command::source::{self, Source};
use crate::command::trial::{self, Found};
use crate::command::{Exit, Failure, Output, apply, handover, harvest, remove, restore};
use crate::judge::drift::drift;
use crate::judge::plan::{NotOurs, Plan, plan};
use crate::pins::{Answer, Confirmation, Pins, What};
use crate::policy::Policy;
use crate::ruleset::Ruleset;
use crate::ruleset::compile::{Facts, compile};
use crate::ruleset::lift::lift;
use crate::ruleset::program::{GenerationId, Op, TableDump};
use crate::state::trial::Trial;
use crate::state::{self, Backend, Current, Saved, StateError};
use crate::world::{Depth, FileError, Host, World};

/// What is to be refreshed.
struct Refresh {
    saved: Saved,
    asked: Asked,
    /// The pins that the kernel was last told.
    earlier: Pins,
    /// The facts that the kernel was last told.
    told: Facts,
    /// Why the pins that the kernel was last told are not known.
    damaged: Option<StateError>,
}

/// A policy, and what DNS says to its names.
pub struct Asked {
    /// The policy.
    pub policy: Policy,
    /// What DNS says.
    pub answers: BTreeMap<DnsName, Answer>,
}

impl Asked {
    /// Asks about the policy of this generation; `already` is what was asked before, which will do if it was about the same.
    pub fn about(saved: &Saved, already: Option<Asked>, world: &mut World, output: &mut Output) -> Result<Asked, Failure> {
        let is_same = |asked: &Asked| asked.policy.sha256 == saved.record.sha256 && asked.policy.file == saved.record.file;
        if let Some(asked) = already.filter(is_same) {
            return Ok(asked);
        }
        let Source { policy, .. } = source::parse(&saved.record.file, saved.policy.clone(), &mut output.quiet())?;
        let facts = facts(saved, &policy, world, &mut output.quiet());
        let answers = enforce::ask(&policy, &facts, world.resolver, output);
        Ok(Asked { policy, answers })
    }

    /// Asks about the policy that is applied, as far as that can be told without the lock.
    fn ahead(world: &mut World, output: &mut Output) -> Option<Asked> {
        let Ok(Current::Generation(generation)) = state::current(world.files) else { return None };
        let saved = state::load_without_pins(world.files, generation).ok()??;
        Asked::about(&saved, None, world, output).ok()
    }
}

/// What the host knows now. What it does not tell is as it was: a user database that is away must not keep the pins from being confirmed.
pub fn facts(saved: &Saved, policy: &Policy, world: &World, output: &mut Output) -> Facts {
    let (facts, missing) = source::facts(policy, world.host).unwrap_or_else(|failure| {
        output.warn(&failure.message);
        (saved.record.facts(&world.host.clock()), Vec::new())
    });
    for what in &missing {
        output.warn(&format!("{what}; the rule is not loaded"));
    }
    Facts { cut_off: saved.record.cut_off(), ..facts }
}

/// Runs `refresh`.
pub fn refresh(arguments: &RefreshArguments, world: &mut World, output: &mut Output) -> Result<Exit, Failure> {
    let begun = world.host.since_boot();
    if arguments.harvest {
        world.files.lock("refresh --harvest")?;
        let records = harvest::now(world)?;
        output.detail(&format!("{records} records were written"));
        return Ok(Exit::Done);
    }
    // A kernel that cannot be used is said before DNS is waited for.
    let backend = handover::held_by(world);
    if backend == Backend::Nftables {
        world.kernel.generation()?;
    }
    // ORDER: before anything is put right: what a trial has changed is no drift.
    if backend == Backend::Nftables && state::trial::trial(world.files).is_some() {
        world.files.lock("refresh")?;
        if let Some(exit) = settled(arguments, world, output)? {
            return Ok(exit);
        }
        world.files.unlock();
    }
    // ORDER: first what is known without DNS: a host whose rules are gone is not left open while nobody answers.
    let put_back = match arguments.repair && backend == Backend::Nftables {
        true => put_back(world, output)?,
        false => Plan::default(),
    };
    // ORDER: the lock after DNS was waited for: a policy that is applied in a hurry is not kept waiting by a timer.
    let asked = Asked::ahead(world, output);
    world.files.lock("refresh")?;
    // One may have begun while DNS was waited for.
    if let Some(exit) = settled(arguments, world, output)? {
        return Ok(exit);
    }
    if handover::held_by(world) == Backend::Iptables {
        return handover::refresh::refresh(arguments, asked, begun, world, output);
    }
    // ORDER: before rules are loaded that may count in other sets.
    harvest::harvest(world, output);
    let mut job = find(asked, world, output)?;
    let Asked { policy, answers } = &job.asked;
    let facts = &facts(&job.saved, policy, world, output);
    let clock = world.host.clock();
    let confirmation = enforce::confirm(policy, &job.earlier, answers, clock.wall);
    let is_known = job.damaged.is_none();
    if let Some(damaged) = job.damaged.take()
        && !apply::unresolved(&confirmation.pins).is_empty()
    {
        // Pins of these names may be in the kernel, and they are to stay.
        return Err(damaged.into());
    }
    let generation = job.saved.record.generation;
    let mut meant = compile(policy, &confirmation.pins, facts, generation).loadable();
    let mut done = tell(arguments, &job, &mut meant, world)?;
    if !put_back.is_nothing() {
        done.drift.splice(0..0, put_back.differences());
        let later = std::mem::replace(&mut done.committed.plan, put_back);
        done.committed.plan.absorb(later);
    }
    if !revoke::was_done(generation, world) {
        remove::clear_other(Backend::Nftables, world, output);
    }
    if !is_known && !done.left && !done.committed.plan.touches_rules() {
        // Which elements were told is not known, so that none is known to be somebody else's.
        done.drift.clear();
    }
    // Rules that somebody else changed and that stay so are not ours to judge by.
    let is_due = may_have_narrowed(&done, &confirmation) || !revoke::was_done(generation, world);
    let revocation = match !done.left && is_due {
        true => revoke::end(&meant, world.flows, || world.host.remote_session(), output),
        false => None,
    };
    if !done.committed.plan.is_nothing() || !confirmation.changes.is_empty() {
        // ORDER: after the kernel. A pin that was loaded and not written down is met again by the next answer; one that was written
        // down and not loaded would be missing until then.
        let record = job.saved.record.at(facts, &clock);
        state::save(world.files, &Saved { pins: confirmation.pins.clone(), record, ..job.saved })?;
    }
    // With rules left in place that are not ours the kernel is not what was told.
    let whole = !done.left && revoke::is_complete(revocation.as_ref());
    let last = enforce::note(&meant, done.committed.kernel, whole, enforce::problems(&confirmation), world.host);
    state::save_refresh(world.files, &last.took(world.host.since_boot().saturating_sub(begun)))?;
    let exit = report(arguments, policy, &done, &confirmation, revocation.as_ref(), output)?;
    revocation.unwrap_or_default().conclude(exit)
}

/// What a trial leaves to be done: nothing while it goes on, and where nothing was applied before it. The lock is held.
fn settled(arguments: &RefreshArguments, world: &mut World, output: &mut Output) -> Result<Option<Exit>, Failure> {
    Ok(match trial::settle(world, output)? {
        Found::Running(trial) => {
            harvest::harvest(world, output);
            Some(on_trial(arguments, &trial, world.host, output)?)
        }
        Found::Ended { is_applied: false } => Some(Exit::Done),
        Found::Ended { .. } | Found::Nothing => None,
    })
}

/// Says that nothing is refreshed while a policy is on trial.
fn on_trial(arguments: &RefreshArguments, trial: &Trial, host: &dyn Host, output: &mut Output) -> Result<Exit, Failure> {
    let left = trial.left(host);
    if arguments.json {
        output.json(&json!({
            "schema": "egressguard.refresh/1",
            "changed": false,
            "trial": {"generation": trial.generation, "policy": trial.policy, "seconds_left": left.seconds()},
        }))?;
    } else {
        output.say(&format!("unchanged: policy `{}` is on trial for another {left}; nothing is refreshed meanwhile", trial.policy))?;
    }
    Ok(Exit::Done)
}

/// Loads the rules that were saved where the kernel does not hold them, with the pins that are known; what was changed. Where they are gone
/// and so is what was saved, whatever `restore` can load.
fn put_back(world: &mut World, output: &mut Output) -> Result<Plan, Failure> {
    let nothing = Ok(Plan::default());
    let Ok(Current::Generation(generation)) = state::current(world.files) else { return nothing };
    let last = enforce::last_run(world.files, world.host).filter(|last| last.generation == generation);
    if last.is_some_and(|last| world.kernel.generation().is_ok_and(|kernel| kernel == GenerationId(last.kernel_generation))) {
        return nothing;
    }
    let (_, there) = world.kernel.observe(Depth::Rules)?;
    match world.files.lock("refresh") {
        Err(error @ FileError::Locked(_)) => return Err(error.into()),
        // What `restore` does needs no lock, and nothing written.
        Err(_) if there.is_none() => return restore::restore(world, output).map(|_| Plan::default()),
        locked => locked?,
    }
    if trial::running(world).is_some() {
        // It has begun since the kernel was looked at.
        world.files.unlock();
        return nothing;
    }
    if there.is_some() {
        harvest::harvest(world, output);
    }
    let held = there.as_ref().and_then(|dump| lift(dump, world.host.now()).identity).map(|identity| identity.generation);
    let saved = match state::load(world.files, generation) {
        // An apply was interrupted, and what it has loaded counts.
        Ok(Some(saved)) if held <= Some(generation) => saved,
        found => {
            world.files.unlock();
            let lost = !matches!(found, Ok(Some(_)));
            return if lost && there.is_none() { restore::restore(world, output).map(|_| Plan::default()) } else { nothing };
        }
    };
    let policy = source::parse(&saved.record.file, saved.policy.clone(), &mut output.quiet())?.policy;
    let mut meant = enforce::earlier_rules(&saved, &policy, world.host);
    let committed = enforce::commit(world.kernel, &mut meant, None, world.host, &mut |_, proposal, _| {
        let plan = if proposal.plan.touches_rules() { proposal.plan.clone() } else { Plan::default() };
        Ok(Chosen { plan, then: Then::ReadBack })
    })?;
    world.files.unlock();
    Ok(committed.plan)
}

/// Whether less may be allowed now than before: pins have ended, or elements or rules were changed.
fn may_have_narrowed(done: &Done, confirmation: &Confirmation) -> bool {
    let change = &done.committed.plan;
    let ended = |what: &What| matches!(what, What::Gone | What::Refused(_) | What::OverCap);
    !done.drift.is_empty()
        || change.touches_rules()
        || !change.removed.is_empty()
        || confirmation.changes.iter().any(|change| ended(&change.what))
}

/// The generation to refresh. When an apply was killed between the kernel and the state, what the kernel holds counts. A kernel that holds
/// an older generation, or one that was removed, was told so by somebody else.
fn find(asked: Option<Asked>, world: &mut World, output: &mut Output) -> Result<Refresh, Failure> {
    let nothing = || Failure::refused("no policy is applied here", "run `egressguard apply POLICY` first");
    let (mut generation, newest) = match state::current(world.files)? {
        Current::Generation(generation) => (Some(generation), Some(generation)),
        Current::Nothing => (None, None),
        Current::Removed(generation) => (None, Some(generation)),
    };
    let last = enforce::last_run(world.files, world.host).filter(|last| Some(last.generation) == generation);
    let undisturbed = match last {
        Some(last) => world.kernel.generation()? == GenerationId(last.kernel_generation),
        None => false,
    };
    if !undisturbed {
        let (_, there) = world.kernel.observe(Depth::Rules)?;
        let held = there.and_then(|dump| lift(&dump, world.host.now()).identity).map(|identity| identity.generation);
        if let Some(held) = held.filter(|held| Some(*held) > newest)
            && state::load(world.files, held)?.is_some()
        {
            output.warn(&format!("an interrupted apply is finished: generation {held} is what the kernel holds"));
            state::adopt(world.files, held)?;
            generation = Some(held);
        }
    }
    let generation = generation.ok_or_else(nothing)?;
    let (saved, damaged) = match state::load(world.files, generation) {
        Err(damaged @ StateError::Damaged(..)) => {
            // DNS can say again what the pins were; nobody else knows what the policy was.
            let saved = state::load_without_pins(world.files, generation)?;
            output.warn(&format!("{damaged}: every name is asked for anew"));
            (saved, Some(damaged))
        }
        loaded => (loaded?, None),
    };
    let saved = saved.ok_or_else(nothing)?;
    let asked = Asked::about(&saved, asked, world, output)?;
    let earlier = enforce::earlier_pins(&saved, &asked.policy, world.host);
    let told = saved.record.facts(&world.host.clock());
    Ok(Refresh { saved, asked, earlier, told, damaged })
}

/// What was done, and what was found changed by others.
struct Done {
    committed: Committed,
    drift: Vec<String>,
    /// Whether rules that others changed were left as they are.
    left: bool,
}

/// Tells the kernel the difference, without reading it where that is not needed.
fn tell(arguments: &RefreshArguments, job: &Refresh, meant: &mut Ruleset, world: &mut World) -> Result<Done, Failure> {
    let generation = job.saved.record.generation;
    let last = enforce::last_run(world.files, world.host).filter(|last| last.generation == generation);
    let ruleset = compile(&job.asked.policy, &job.earlier, &job.told, generation).loadable();
    let believed = last.as_ref().and_then(|last| enforce::told(last, ruleset.clone()));
    let (mut drift, mut left) = (Vec::new(), false);
    let committed = enforce::commit(world.kernel, meant, believed.as_ref(), world.host, &mut |meant, proposal, now| {
        let (mut found, mut rules_differ) = (Vec::new(), false);
        if proposal.source == Knowledge::Read {
            (found, rules_differ) = changed_by_others(proposal, &ruleset, meant, &job.asked.policy, now)?;
        }
        if rules_differ || believed.is_some() {
            // After a boot, or a sleep, the kernel was told what another clock said: other elements are nobody's doing.
            drift.extend(found.into_iter().filter(|words| !drift.contains(words)).collect::<Vec<_>>());
        }
        left = rules_differ && !arguments.repair;
        let plan = proposal.plan.clone();
        Ok(match left {
            true => Chosen { plan: elements_only(plan, proposal.there.as_ref(), meant), then: Then::Nothing },
            false if !plan.touches_rules() => Chosen { plan, then: Then::Nothing },
            // What somebody else put there is not loaded again.
            false if rules_differ => Chosen { plan, then: Then::ReadBack },
            false => Chosen { plan, then: Then::ReadBackOrReturn },
        })
    })?;
    Ok(Done { committed, drift, left })
}

/// What is not as the kernel was told, in words, and whether that is more than elements.
fn changed_by_others(
    proposal: &Proposal,
    told: &Ruleset,
    meant: &Ruleset,
    policy: &Policy,
    now: Timestamp,
) -> Result<(Vec<String>, bool), NotOurs> {
    let there = proposal.there.as_ref();
    let rules = plan(there, told, now)?;
    // What a run loaded that was killed before it wrote that down is what is meant by now.
    if rules.touches_rules() && proposal.plan.touches_rules() {
        return Ok((rules.differences(), true));
    }
    let still: Vec<String> = drift(there, meant, policy, now).into_iter().map(|difference| difference.words).collect();
    let words = drift(there, told, policy, now).into_iter().map(|difference| difference.words);
    Ok((words.filter(|words| still.contains(words)).collect(), false))
}

/// Only the steps that change elements of sets which are there and are what they should be.
fn elements_only(change: Plan, there: Option<&TableDump>, meant: &Ruleset) -> Plan {
    let Some(there) = there.filter(|_| !change.fresh) else { return Plan::default() };
    let right = |name: &str| match (there.sets.get(name), meant.sets.get(name)) {
        (Some((def, _)), Some(set)) => *def == set.def,
        _ => false,
    };
    let ops = change.ops.into_iter().filter(|op| match op {
        Op::AddElements { set, .. } | Op::DeleteElements { set, .. } => right(&set.name),
        _ => false,
    });
    let kept = |elements: Vec<crate::judge::plan::ElementChange>| elements.into_iter().filter(|element| right(&element.set)).collect();
    let (added, removed, renewed) = (kept(change.added), kept(change.removed), kept(change.renewed));
    Plan { ops: ops.collect(), added, removed, renewed, ..Plan::default() }
}

fn report(
    arguments: &RefreshArguments,
    policy: &Policy,
    done: &Done,
    confirmation: &Confirmation,
    revocation: Option<&Revocation>,
    output: &mut Output,
) -> Result<Exit, Failure> {
    apply::warn_of(confirmation, output);
    let change = &done.committed.plan;
    let unresolved = apply::unresolved(&confirmation.pins);
    if arguments.json {
        output.json(&json!({
            "schema": "egressguard.refresh/1",
            "changed": !change.is_nothing(),
            "policy": {"name": policy.name.as_str(), "sha256": policy.sha256},
            "change": apply::change_json(change),
            "drift": done.drift,
            "repaired": !done.left && !done.drift.is_empty(),
            "revoked": revocation.map(Revocation::json),
            "unresolved": unresolved,
            "problems": apply::problems_json(confirmation),
        }))?;
    } else {
        for what in &done.drift {
            output.say(&format!("drift: {what}"))?;
        }
        if change.is_nothing() {
            output.say(&apply::unchanged(policy, &unresolved, apply::unconfirmed(confirmation)))?;
        } else {
            let verb = if change.touches_rules() { "restored the rules" } else { "refreshed the pins" };
            output.say(&format!("{verb} of policy `{}`", policy.name))?;
            apply::describe(change, output)?;
        }
        apply::describe_revocation(revocation, output)?;
    }
    if !done.drift.is_empty() && !arguments.repair {
        output.warn(match done.left {
            true => "somebody else changed the rules; `egressguard refresh --repair` puts them right",
            false => "somebody else changed the pins, which were put right",
        });
        return Ok(Exit::No);
    }
    Ok(if unresolved.is_empty() { Exit::Done } else { Exit::No })
}
