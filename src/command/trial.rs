//! `apply --confirm`, `confirm`, `rollback`: a policy on trial. The kernel falls back by itself when nobody confirms, whatever became of
//! this process, the shell or the network.
//!
//! While the trial goes on, the generation to restore is the one before: a boot knows nothing of the trial, and every command that loads
//! rules of its own ends it. Nothing is revoked meanwhile: what the trial would end could not be given back.

use serde_json::json;

use crate::base::time::Period;
use crate::command::arguments::{ApplyArguments, ConfirmArguments, RollbackArguments};
use crate::command::enforce::{self, Committed};
use crate::command::source::{self, Source};
use crate::command::{Exit, Failure, Output, apply, harvest, remove, revoke};
use crate::judge::plan::Plan;
use crate::pins::{self, Confirmation, What};
use crate::policy::Mode;
use crate::ruleset::Ruleset;
use crate::ruleset::compile::{Facts, compile};
use crate::ruleset::trial::{TRIAL, on_trial};
use crate::state::trial::{Trial, forget_trial, save_trial, trial};
use crate::state::{self, Backend, Current, Record, Saved};
use crate::world::{Depth, World};

/// The shortest and the longest trial: what a person can do in, and what nobody forgets.
const BOUNDS: (Period, Period) = (Period::from_seconds(5), Period::from_seconds(3600));

/// What `--confirm` says.
pub fn lasts(said: &str) -> Result<Period, Failure> {
    let period = Period::parse(said).filter(|period| (BOUNDS.0..=BOUNDS.1).contains(period));
    period.ok_or_else(|| {
        let message = format!("`--confirm {said}` is no time from {} to {}", BOUNDS.0, BOUNDS.1);
        Failure::wrong(message, "for example `--confirm 60s`: so long you have to open a new connection and run `egressguard confirm`")
    })
}

/// Loads a policy for so long. The lock is held.
pub fn begin(
    arguments: &ApplyArguments,
    lasts: Period,
    source: &Source,
    facts: &Facts,
    confirmation: &Confirmation,
    world: &mut World,
    output: &mut Output,
) -> Result<Exit, Failure> {
    if facts.cut_off.is_some() {
        return Err(Failure::refused(
            "this host is cut off, and nothing is on trial there",
            "run `egressguard quarantine --release` first",
        ));
    }
    let policy = &source.policy;
    let before = before(world, output)?;
    let generation = state::highest(world.files)? + 1;
    let record = Record::new(generation, policy, facts, &world.host.clock());
    state::save(world.files, &Saved { policy: source.content.clone(), pins: confirmation.pins.clone(), record })?;
    let older = match world.flows.sockets(&Default::default()) {
        Ok(sockets) => sockets.into_iter().filter_map(|socket| Some((socket.remote?, socket.local))).collect(),
        Err(error) => {
            output.warn(&format!("{error}: `confirm` cannot tell older connections from new ones"));
            Vec::new()
        }
    };
    let new = compile(policy, &confirmation.pins, facts, generation).loadable();
    let begun = Trial::begun(generation, policy.name.to_string(), lasts, older, world.host);
    // ORDER: written down before it is loaded: what the kernel holds can always be explained.
    let loaded = save_trial(world.files, &begun).map_err(Failure::from).and_then(|()| {
        let mut meant = on_trial(new, before.as_ref().map(|before| before.rules.clone()), world.host.now().plus(lasts));
        enforce::commit(world.kernel, &mut meant, None, world.host, &mut enforce::all)
    });
    let Committed { mut plan, .. } = match loaded {
        Ok(committed) => committed,
        Err(failure) => {
            if !is_open(world) {
                forget_trial(world.files);
                state::discard(world.files, generation);
            }
            return Err(failure);
        }
    };
    let mut confirmation = confirmation.clone();
    if !apply::unresolved(&confirmation.pins).is_empty() && arguments.pins.is_none() {
        // The rules from before may have refused the questions that the policy on trial asks.
        if let Some((again, more)) = ask_again(source, facts, &begun, &confirmation, before.as_ref(), world, output)? {
            confirmation = again;
            plan.added.extend(more.added);
        }
    }
    apply::warn_of(&confirmation, output);
    let unresolved = apply::unresolved(&confirmation.pins);
    if arguments.json {
        output.json(&json!({
            "schema": "egressguard.apply/1",
            "result": "trial",
            "changed": true,
            "policy": {"name": policy.name.as_str(), "sha256": policy.sha256},
            "generation": generation,
            "change": apply::change_json(&plan),
            "trial": {"seconds": lasts.seconds(), "ends": begun.ends(world.host).to_string(), "then": before.as_ref().map(|before| before.generation)},
            "unresolved": unresolved,
        }))?;
    } else {
        let mode = if policy.mode == Mode::Observe { ", mode observe: nothing is blocked" } else { "" };
        output.say(&format!("on trial for {lasts}: policy `{}` (generation {generation}{mode})", policy.name))?;
        output.say(&match &before {
            Some(before) => format!(
                "  then the kernel falls back to policy `{}` (generation {}), whatever happens here",
                before.name, before.generation
            ),
            None => "  then the kernel lets everything pass again, whatever happens here".to_string(),
        })?;
        output.say("  to keep it, open a new connection to this host and run there: egressguard confirm")?;
        output.detail("flows that the policy does not allow go on until it is confirmed");
    }
    Ok(if unresolved.is_empty() { Exit::Done } else { Exit::No })
}

/// Asks once more for every name, now that the policy is on trial, and loads what is new; nothing when there is none, or when the trial is
/// over meanwhile. Nobody is kept waiting by it.
fn ask_again(
    source: &Source,
    facts: &Facts,
    begun: &Trial,
    confirmation: &Confirmation,
    before: Option<&Before>,
    world: &mut World,
    output: &mut Output,
) -> Result<Option<(Confirmation, Plan)>, Failure> {
    let policy = &source.policy;
    let asked = world.host.clock();
    world.files.unlock();
    let answers = enforce::ask(policy, facts, world.resolver, output);
    world.files.lock("apply")?;
    if running(world).as_ref() != Some(begun) {
        return Ok(None);
    }
    let clock = world.host.clock();
    let pins = pins::rebase(&confirmation.pins, &asked, &clock, policy.refresh.keep).pins;
    let again = enforce::confirm(policy, &pins, &answers, clock.wall);
    if !again.changes.iter().any(|change| change.what == What::Added) {
        return Ok(None);
    }
    let record = Record::new(begun.generation, policy, facts, &clock);
    state::save(world.files, &Saved { policy: source.content.clone(), pins: again.pins.clone(), record })?;
    let new = compile(policy, &again.pins, facts, begun.generation).loadable();
    let mut meant = on_trial(new, before.map(|before| before.rules.clone()), begun.ends(world.host));
    let committed = enforce::commit(world.kernel, &mut meant, None, world.host, &mut enforce::all)?;
    Ok(Some((again, committed.plan)))
}

/// What a trial falls back to.
struct Before {
    name: String,
    generation: u64,
    rules: Ruleset,
}

/// The rules of the generation to restore; nothing where there is none.
fn before(world: &World, output: &mut Output) -> Result<Option<Before>, Failure> {
    let Current::Generation(generation) = state::current(world.files)? else { return Ok(None) };
    let missing =
        || Failure::refused(format!("generation {generation}, which a trial would fall back to, is missing"), "apply without `--confirm`");
    let saved = state::load(world.files, generation)?.ok_or_else(missing)?;
    let policy = source::parse(&saved.record.file, saved.policy.clone(), &mut output.quiet())?.policy;
    let rules = enforce::earlier_rules(&saved, &policy, world.host);
    Ok(Some(Before { name: policy.name.to_string(), generation, rules }))
}

/// The trial that goes on: it is remembered, its time is not over, and the kernel holds the gate.
pub fn running(world: &mut World) -> Option<Trial> {
    let found = trial(world.files)?;
    (found.left(world.host).seconds() > 0 && is_open(world)).then_some(found)
}

/// Whether the kernel holds a gate that is open. Where it cannot be asked, it may.
fn is_open(world: &mut World) -> bool {
    match world.kernel.observe(Depth::Pins) {
        Ok((_, there)) => there.is_some_and(|dump| dump.sets.get(TRIAL).is_some_and(|(_, elements)| !elements.is_empty())),
        Err(_) => true,
    }
}

/// What the kernel should hold, where these rules are those of the generation to restore: during a trial, and until somebody clears it
/// away, both.
pub fn meant(rules: Ruleset, world: &World, output: &mut Output) -> Ruleset {
    let Some(found) = trial(world.files).filter(|trial| trial.is_here(world.host)) else { return rules };
    let Ok(Some(saved)) = state::load(world.files, found.generation) else { return rules };
    let Ok(source) = source::parse(&saved.record.file, saved.policy.clone(), &mut output.quiet()) else { return rules };
    on_trial(enforce::earlier_rules(&saved, &source.policy, world.host), Some(rules), found.ends(world.host))
}

/// Runs `confirm`.
pub fn confirm(arguments: &ConfirmArguments, world: &mut World, output: &mut Output) -> Result<Exit, Failure> {
    world.files.lock("confirm")?;
    let Some(found) = running(world) else { return Err(over(world)) };
    match world.host.remote_flow() {
        Some(flow) if found.older.contains(&flow) && !arguments.force => {
            return Err(Failure {
                exit: Exit::No,
                message: format!(
                    "this connection from {} is older than the rules on trial, so it does not show that they let you in",
                    flow.0
                ),
                help: Some("open another connection and run `egressguard confirm` there, or say `--force`".to_string()),
            });
        }
        Some(_) => {}
        None => output.warn("this session comes from nowhere: it does not show that the rules on trial let anybody in"),
    }
    let missing = || Failure::refused(format!("generation {}, which is on trial, is missing", found.generation), "apply the policy again");
    let saved = state::load(world.files, found.generation)?.ok_or_else(missing)?;
    let policy = source::parse(&saved.record.file, saved.policy.clone(), &mut output.quiet())?.policy;
    let mut meant = enforce::earlier_rules(&saved, &policy, world.host);
    harvest::harvest(world, output);
    state::prepare_current(world.files, found.generation)?;
    let committed = enforce::commit(world.kernel, &mut meant, None, world.host, &mut enforce::all)?;
    // ORDER: the trial is forgotten when a boot would load what it tried.
    apply::make_current(world.files, &policy, found.generation)?;
    conclude(
        &meant,
        committed,
        output,
        world,
        |revoked| {
            json!({
                "schema": "egressguard.confirm/1",
                "confirmed": true,
                "policy": {"name": policy.name.as_str(), "sha256": policy.sha256},
                "generation": found.generation,
                "revoked": revoked.map(revoke::Revocation::json),
            })
        },
        arguments.json,
        &format!("confirmed: policy `{}` (generation {}) is applied", policy.name, found.generation),
    )
}

/// Runs `rollback`.
pub fn rollback(arguments: &RollbackArguments, world: &mut World, output: &mut Output) -> Result<Exit, Failure> {
    world.files.lock("rollback")?;
    let Some(found) = trial(world.files).filter(|trial| trial.is_here(world.host)) else { return Err(over(world)) };
    fall_back(&found, arguments.json, world, output)
}

/// Loads what a trial falls back to, alone, and forgets the trial.
fn fall_back(found: &Trial, as_json: bool, world: &mut World, output: &mut Output) -> Result<Exit, Failure> {
    let Some(before) = before(world, output)? else {
        remove::take_away(Backend::Nftables, world, output)?;
        forget_trial(world.files);
        state::discard(world.files, found.generation);
        if as_json {
            output.json(&json!({"schema": "egressguard.rollback/1", "rolled_back": found.generation, "generation": null}))?;
        } else {
            output.say(&format!("rolled back: generation {} is gone, and no rules are loaded, as before", found.generation))?;
        }
        return Ok(Exit::Done);
    };
    let mut meant = before.rules;
    harvest::harvest(world, output);
    let committed = enforce::commit(world.kernel, &mut meant, None, world.host, &mut enforce::all)?;
    forget_trial(world.files);
    state::discard(world.files, found.generation);
    let words = format!("rolled back: policy `{}` (generation {}) counts", before.name, before.generation);
    conclude(
        &meant,
        committed,
        output,
        world,
        |revoked| {
            json!({
                "schema": "egressguard.rollback/1",
                "rolled_back": found.generation,
                "generation": before.generation,
                "revoked": revoked.map(revoke::Revocation::json),
            })
        },
        as_json,
        &words,
    )
}

/// Ends what is no longer allowed, notes what the kernel holds, and says what was done.
fn conclude(
    meant: &Ruleset,
    committed: Committed,
    output: &mut Output,
    world: &mut World,
    answer: impl Fn(Option<&revoke::Revocation>) -> serde_json::Value,
    as_json: bool,
    words: &str,
) -> Result<Exit, Failure> {
    let revocation = revoke::end(meant, world.flows, || world.host.remote_session(), output);
    let whole = revoke::is_complete(revocation.as_ref());
    let last = enforce::note(meant, committed.kernel, whole, Default::default(), world.host);
    if let Err(error) = state::save_refresh(world.files, &last) {
        output.warn(&error.to_string());
    }
    if as_json {
        output.json(&answer(revocation.as_ref()))?;
    } else {
        output.say(words)?;
        apply::describe_revocation(revocation.as_ref(), output)?;
    }
    revocation.unwrap_or_default().conclude(Exit::Done)
}

/// What a refresh finds of a trial.
pub enum Found {
    /// None.
    Nothing,
    /// It goes on: nobody touches its rules.
    Running(Trial),
    /// It has ended, and its rules were cleared away; whether there is anything left to refresh.
    Ended {
        /// Whether a generation counts.
        is_applied: bool,
    },
}

/// Lets a trial alone that goes on, and clears away one that has ended: the kernel has fallen back already, and still holds both.
pub fn settle(world: &mut World, output: &mut Output) -> Result<Found, Failure> {
    let Some(found) = trial(world.files) else { return Ok(Found::Nothing) };
    if !found.is_here(world.host) {
        forget_trial(world.files);
        state::discard(world.files, found.generation);
        return Ok(Found::Nothing);
    }
    if let Some(running) = running(world) {
        return Ok(Found::Running(running));
    }
    output.warn(&format!("nobody confirmed policy `{}` (generation {}): what was there before counts", found.policy, found.generation));
    fall_back(&found, false, world, &mut output.quiet())?;
    Ok(Found::Ended { is_applied: matches!(state::current(world.files), Ok(Current::Generation(_))) })
}

/// Why there is nothing to confirm.
fn over(world: &World) -> Failure {
    let exit = Exit::No;
    match trial(world.files) {
        None => Failure {
            exit,
            message: "nothing is on trial".to_string(),
            help: Some("begin with `egressguard apply POLICY --confirm 60s`".to_string()),
        },
        Some(trial) => Failure {
            exit,
            message: format!(
                "the trial of policy `{}` (generation {}) has ended: what was there before counts",
                trial.policy, trial.generation
            ),
            help: Some("apply it again, with more time".to_string()),
        },
    }
}
