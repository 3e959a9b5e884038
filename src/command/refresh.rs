//! `refresh`: asks DNS again and tells the kernel only what has changed.
//!
//! As long as the kernel's generation is the one that the last run left, nobody has changed anything, and what the kernel holds is
//! known without reading it: one changed address costs the same in a set of a hundred and in one of a hundred thousand. Only pins
//! that are renewed, once in a quarter of `refresh.keep`, need a look: what they have counted goes with them.

use serde_json::json;

use crate::base::time::Timestamp;
use crate::command::arguments::RefreshArguments;
use crate::command::enforce::{self, Committed, Knowledge, Told};
use crate::command::revoke::{self, Revocation};
use crate::command::source::{self, Source};
use crate::command::{Exit, Failure, Output, apply, handover};
use crate::judge::plan::{Plan, plan};
use crate::pins::{Confirmation, Pins, What};
use crate::policy::Policy;
use crate::ruleset::Ruleset;
use crate::ruleset::compile::{Facts, compile};
use crate::ruleset::lift::lift;
use crate::ruleset::program::{GenerationId, Op, TableDump};
use crate::state::{self, Backend, Current, LastRefresh, Saved, StateError};
use crate::world::{Depth, KernelError, World};

/// How often a commit is planned again when somebody else changes the packet filter meanwhile.
const ATTEMPTS: usize = 8;

/// What is to be refreshed.
struct Refresh {
    saved: Saved,
    policy: Policy,
    /// The pins that the kernel was last told.
    earlier: Pins,
    /// The facts that the kernel was last told.
    told: Facts,
    /// Why the pins that the kernel was last told are not known.
    damaged: Option<StateError>,
}

/// Runs `refresh`.
pub fn refresh(arguments: &RefreshArguments, world: &mut World, output: &mut Output) -> Result<Exit, Failure> {
    world.files.lock("refresh")?;
    if state::backend(world.files) == Backend::Iptables {
        return handover::refresh::refresh(arguments, world, output);
    }
    let mut job = find(world, output)?;
    // What the host does not tell now is as it was: a user database that is away must not keep the pins from being confirmed.
    let (facts, missing) = source::facts(&job.policy, world.host).unwrap_or_else(|failure| {
        output.warn(&failure.message);
        (job.told.clone(), Vec::new())
    });
    for what in &missing {
        output.warn(&format!("{what}; the rule is not loaded"));
    }
    let now = world.host.now();
    let confirmation = enforce::resolve(&job.policy, &facts, &job.earlier, world.resolver, now, output);
    let now = world.host.now();
    if let Some(damaged) = job.damaged.take()
        && !apply::unresolved(&confirmation.pins).is_empty()
    {
        // Pins of these names may be in the kernel, and they are to stay.
        return Err(damaged.into());
    }
    let generation = job.saved.record.generation;
    let meant = compile(&job.policy, &confirmation.pins, &facts, generation).loadable();
    let done = tell(arguments, &job, &meant, now, world)?;
    // Rules that somebody else changed and that stay so are not ours to judge by.
    let is_ours = done.drift.is_empty() || arguments.repair;
    let is_due = may_have_narrowed(&done, &confirmation) || !revoke::was_done(generation, world);
    let revocation = match is_ours && is_due {
        true => revoke::end(&meant, world.flows, || world.host.remote_session(), output),
        false => None,
    };
    let is_revoked = revoke::is_complete(revocation.as_ref());

    if !done.committed.plan.is_nothing() || !confirmation.changes.is_empty() {
        // ORDER: after the kernel. A pin that was loaded and not written down is met again by the next answer; one that was written
        // down and not loaded would be missing until then.
        let record = job.saved.record.at(&facts, &world.host.clock());
        state::save(world.files, &Saved { pins: confirmation.pins.clone(), record, ..job.saved })?;
    }
    let last = LastRefresh {
        at: now.0,
        generation,
        kernel_generation: done.committed.kernel.0,
        // With drift left in place the kernel is not what was told: the next run has to look, and to revoke what this one did not.
        namespace: if done.drift.is_empty() && is_revoked { world.host.namespace() } else { String::new() },
        problems: enforce::problems(&confirmation).into_iter().map(|(name, words)| (name.to_string(), words)).collect(),
    };
    state::save_refresh(world.files, &last)?;
    let exit = report(arguments, &job.policy, &done, &confirmation, revocation.as_ref(), output)?;
    revocation.unwrap_or_default().conclude(exit)
}

/// Whether less may be allowed now than before: pins have ended, or elements or rules were changed.
fn may_have_narrowed(done: &Done, confirmation: &Confirmation) -> bool {
    let change = &done.committed.plan;
    let ended = |what: &What| matches!(what, What::Gone | What::Refused(_) | What::OverCap);
    change.touches_rules() || !change.removed.is_empty() || confirmation.changes.iter().any(|change| ended(&change.what))
}

/// The generation to refresh. When a run was killed between the kernel and the state, what the kernel holds counts.
fn find(world: &mut World, output: &mut Output) -> Result<Refresh, Failure> {
    let nothing = || Failure::refused("no policy is applied here", "run `egressguard apply POLICY` first");
    let mut generation = match state::current(world.files)? {
        Current::Generation(generation) => Some(generation),
        Current::Nothing | Current::Removed => None,
    };
    let last =
        state::last_refresh(world.files).filter(|last| Some(last.generation) == generation && last.namespace == world.host.namespace());
    let undisturbed = match last {
        Some(last) => world.kernel.generation()? == GenerationId(last.kernel_generation),
        None => false,
    };
    if !undisturbed {
        let (_, there) = world.kernel.observe(Depth::Rules)?;
        let held = there.and_then(|dump| lift(&dump, world.host.now()).identity).map(|identity| identity.generation);
        if let Some(held) = held.filter(|held| Some(*held) != generation)
            && state::load(world.files, held)?.is_some()
        {
            output.warn(&format!("an interrupted apply is finished: generation {held} is what the kernel holds"));
            state::prepare_current(world.files, held)?;
            state::make_current(world.files, held)?;
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
    let Source { policy, .. } = source::parse(&saved.record.file, saved.policy.clone(), &mut output.quiet())?;
    let earlier = enforce::earlier_pins(&saved, &policy, world.host);
    let told = saved.record.facts();
    Ok(Refresh { saved, policy, earlier, told, damaged })
}

/// What was done, and what was found changed by others.
struct Done {
    committed: Committed,
    drift: Vec<String>,
}

/// Tells the kernel the difference, without reading it where that is not needed.
fn tell(arguments: &RefreshArguments, job: &Refresh, meant: &Ruleset, now: Timestamp, world: &mut World) -> Result<Done, Failure> {
    let ruleset = compile(&job.policy, &job.earlier, &job.told, job.saved.record.generation).loadable();
    let last = state::last_refresh(world.files).filter(|last| last.namespace == world.host.namespace());
    let told = Told { kernel: GenerationId(last.as_ref().map_or(0, |last| last.kernel_generation)), ruleset };
    for _ in 0..ATTEMPTS {
        let proposal = enforce::propose(world.kernel, meant, last.as_ref().map(|_| &told), now)?;
        let drift = match proposal.source {
            Knowledge::Told => Vec::new(),
            Knowledge::Read => {
                let drift = plan(proposal.there.as_ref(), &told.ruleset, now)?;
                // Elements that ended by themselves are no drift.
                if drift.touches_rules() { drift.differences() } else { Vec::new() }
            }
        };
        let whole = drift.is_empty() || arguments.repair;
        let change = if whole { proposal.plan } else { elements_only(proposal.plan, proposal.there.as_ref(), meant) };
        if change.is_nothing() {
            return Ok(Done { committed: Committed { plan: change, kernel: proposal.generation }, drift });
        }
        match world.kernel.commit(proposal.generation, &change.ops) {
            Ok(kernel) => {
                if whole && change.touches_rules() {
                    let (_, back) = world.kernel.observe(Depth::Pins)?;
                    if !plan(back.as_ref(), meant, now)?.is_nothing() {
                        continue;
                    }
                }
                return Ok(Done { committed: Committed { plan: change, kernel }, drift });
            }
            Err(KernelError::Interfered) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(KernelError::Interfered.into())
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
            "repaired": arguments.repair && !done.drift.is_empty(),
            "revoked": revocation.map(Revocation::json),
            "unresolved": unresolved,
        }))?;
    } else {
        for what in &done.drift {
            output.say(&format!("drift: {what}"))?;
        }
        if change.is_nothing() {
            output.say(&format!("unchanged: every pin of policy `{}` is current", policy.name))?;
        } else {
            let verb = if change.touches_rules() { "restored the rules" } else { "refreshed the pins" };
            output.say(&format!("{verb} of policy `{}`", policy.name))?;
            apply::describe(change, output)?;
        }
        apply::describe_revocation(revocation, output)?;
    }
    if !done.drift.is_empty() && !arguments.repair {
        output.warn("somebody else changed the rules; `egressguard refresh --repair` puts them right");
        return Ok(Exit::No);
    }
    Ok(if unresolved.is_empty() { Exit::Done } else { Exit::No })
}
