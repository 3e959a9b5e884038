//! `refresh` by iptables. Nothing tells whether somebody else has changed the rules, so each run reads them.

use std::time::Duration;

use serde_json::json;

use crate::command::arguments::RefreshArguments;
use crate::command::handover::apply::{change_json, describe};
use crate::command::handover::{Given, exported, load, observe};
use crate::command::refresh::{self, Asked};
use crate::command::revoke::{self, Revocation};
use crate::command::{Exit, Failure, Output, apply, enforce, remove};
use crate::export::iptables::export;
use crate::export::plan::{Change, plan};
use crate::pins::Confirmation;
use crate::policy::Policy;
use crate::ruleset::compile::compile;
use crate::ruleset::program::GenerationId;
use crate::state::{self, Backend, Current, Saved};
use crate::world::World;

/// Asks DNS again and loads what has changed.
pub fn refresh(
    arguments: &RefreshArguments,
    asked: Option<Asked>,
    begun: Duration,
    world: &mut World,
    output: &mut Output,
) -> Result<Exit, Failure> {
    let (saved, last) = current(world, output)?;
    let repairs = arguments.repair || last == LastApply::Interrupted;
    let Asked { policy, answers } = Asked::about(&saved, asked, world, output)?;
    let facts = refresh::facts(&saved, &policy, world, output);
    let earlier = enforce::earlier_pins(&saved, &policy, world.host);
    let clock = world.host.clock();
    let told = saved.record.facts(&clock);
    let now = clock.wall;
    let confirmation = enforce::confirm(&policy, &earlier, &answers, now);
    let generation = saved.record.generation;
    let before = observe(world.programs)?;
    let drift = match export(&compile(&policy, &earlier, &told, generation).loadable(), &told) {
        Ok(meant) => {
            let found = plan(&before, &meant, now);
            // Elements that ended by themselves are no drift, and no set is into which no rule looks: it is cleared away.
            if found.touches_rules() { found.differences } else { Vec::new() }
        }
        Err(_) => Vec::new(),
    };
    let given = Given { policy: &policy, content: &saved.policy, facts: &facts };
    let ruleset = compile(&policy, &confirmation.pins, &facts, generation).loadable();
    let meant = exported(given, &ruleset, output)?;
    let mut change = plan(&before, &meant, now);
    if drift.is_empty() || repairs {
        if !change.is_nothing() {
            load(&before, &meant, &change, world.programs, world.host, output)?;
        }
    } else {
        change = change.without_rules();
        if !change.sets.is_empty() {
            world.programs.run("ipset", &["restore"], &change.sets)?;
        }
    }
    // Rules that somebody else changed and that stay so are not ours to judge by.
    let is_ours = drift.is_empty() || repairs;
    let is_due = !change.is_nothing() || !confirmation.changes.is_empty() || !revoke::was_done(generation, world);
    let revocation = match is_ours && is_due {
        true => revoke::end(&ruleset, world.flows, || world.host.remote_session(), output),
        false => None,
    };
    if !change.is_nothing() || !confirmation.changes.is_empty() {
        // ORDER: after the kernel. A pin that was loaded and not written down is met again by the next answer.
        let record = saved.record.at(&facts, &clock);
        state::save(world.files, &Saved { pins: confirmation.pins.clone(), record, ..saved })?;
    }
    if !revoke::was_done(generation, world) {
        remove::clear_other(Backend::Iptables, world, output);
    }
    let whole = is_ours && revoke::is_complete(revocation.as_ref());
    let last_run = enforce::note(&ruleset, GenerationId(0), whole, enforce::problems(&confirmation), world.host);
    state::save_refresh(world.files, &last_run.took(world.host.since_boot().saturating_sub(begun)))?;
    let drift = if last == LastApply::Interrupted { &[] } else { drift.as_slice() };
    let exit = report(arguments, &policy, &change, drift, &confirmation, revocation.as_ref(), output)?;
    revocation.unwrap_or_default().conclude(exit)
}

/// How the last apply ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LastApply {
    /// What it loaded is what the state names.
    Whole,
    /// It was killed between the rules and the state, or between the rules of one family and those of the other.
    Interrupted,
}

/// The generation to refresh. When a run was killed after it had loaded something, the newest rules count.
fn current(world: &mut World, output: &mut Output) -> Result<(Saved, LastApply), Failure> {
    let nothing = || Failure::refused("no policy is applied here", "run `egressguard apply POLICY` first");
    let (current, last) = match state::current(world.files)? {
        Current::Generation(generation) => (Some(generation), Some(generation)),
        Current::Nothing => (None, None),
        Current::Removed(generation) => (None, Some(generation)),
    };
    let held = observe(world.programs)?.identities();
    let newest = held.into_iter().flatten().map(|identity| identity.generation).max().filter(|held| Some(*held) > last);
    if let Some(held) = newest
        && let Some(saved) = state::load(world.files, held)?
    {
        output.warn(&format!("an interrupted apply is finished: generation {held} is the newest that iptables holds"));
        state::adopt(world.files, held)?;
        return Ok((saved, LastApply::Interrupted));
    }
    let saved = state::load(world.files, current.ok_or_else(nothing)?)?.ok_or_else(nothing)?;
    Ok((saved, LastApply::Whole))
}

fn report(
    arguments: &RefreshArguments,
    policy: &Policy,
    change: &Change,
    drift: &[String],
    confirmation: &Confirmation,
    revocation: Option<&Revocation>,
    output: &mut Output,
) -> Result<Exit, Failure> {
    apply::warn_of(confirmation, output);
    let unresolved = apply::unresolved(&confirmation.pins);
    if arguments.json {
        output.json(&json!({
            "schema": "egressguard.refresh/1",
            "backend": "iptables",
            "changed": !change.is_nothing(),
            "policy": {"name": policy.name.as_str(), "sha256": policy.sha256},
            "change": change_json(change),
            "drift": drift,
            "repaired": arguments.repair && !drift.is_empty(),
            "revoked": revocation.map(Revocation::json),
            "unresolved": unresolved,
            "problems": apply::problems_json(confirmation),
        }))?;
    } else {
        for what in drift {
            output.say(&format!("drift: {what}"))?;
        }
        if change.is_nothing() {
            output.say(&apply::unchanged(policy, &unresolved, apply::unconfirmed(confirmation)))?;
        } else {
            let verb = if change.touches_rules() { "restored the rules" } else { "refreshed the pins" };
            output.say(&format!("{verb} of policy `{}`", policy.name))?;
            describe(change, output)?;
        }
        apply::describe_revocation(revocation, output)?;
    }
    if !drift.is_empty() && !arguments.repair {
        output.warn("somebody else changed the rules; `egressguard refresh --repair` puts them right");
        return Ok(Exit::No);
    }
    Ok(if unresolved.is_empty() { Exit::Done } else { Exit::No })
}
