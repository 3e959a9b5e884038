//! `apply --confirm`, `confirm`, `rollback`: a policy on trial. The kernel falls back by itself when nobody confirms, whatever became of
//! this process, the shell or the network.
//!
//! While the trial goes on, the generation to restore is the one before: a boot knows nothing of the trial, and every command that loads
//! rules of its own ends it. Nothing is revoked meanwhile: what the trial would end could not be given back.

use std::net::SocketAddr;

use serde_json::json;

use crate::base::time::Period;
use crate::command::arguments::{ApplyArguments, ConfirmArguments, RollbackArguments};
use crate::command::enforce::{self, Committed};
use crate::command::source::{self, Source};
use crate::command::{Exit, Failure, Output, apply, harvest, quarantine, remove, restore, revoke};
use crate::judge::plan::Plan;
use crate::pins::{self, Confirmation, What};
use crate::policy::Mode;
use crate::ruleset::Ruleset;
use crate::ruleset::compile::{Facts, compile};
use crate::ruleset::trial::{TRIAL, on_trial};
use crate::state::trial::{Then, Trial, forget_trial, save_trial, trial};
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
    let new = compile(policy, &confirmation.pins, facts, generation).loadable();
    let earlier = trial(world.files);
    let mut begun = Trial::begun(generation, policy.name.to_string(), lasts, before.then(), world.host);
    begun.older = open_now(world, output);
    // ORDER: written down before it is loaded: what the kernel holds can always be explained.
    let loaded = save_trial(world.files, &begun).map_err(Failure::from).and_then(|()| {
        let mut meant = on_trial(new, before.rules(), begun.ends(world.host));
        enforce::commit(world.kernel, &mut meant, None, world.host, &mut enforce::all)
    });
    let Committed { mut plan, .. } = match loaded {
        Ok(committed) => committed,
        Err(failure) => {
            if gate(world) != Gate::Open(generation) {
                // What was on trial before still is.
                match earlier {
                    Some(earlier) => drop(save_trial(world.files, &earlier)),
                    None => forget_trial(world.files),
                }
                state::discard(world.files, generation);
            }
            return Err(failure);
        }
    };
    // Who came in until the rules were loaded came in by those from before.
    begun.older.extend(open_now(world, &mut output.quiet()));
    if let Err(error) = save_trial(world.files, &begun) {
        output.warn(&format!("{error}: `confirm` may take a connection for new that is a moment older than the trial"));
    }
    let mut confirmation = confirmation.clone();
    let mut is_over = false;
    if !apply::unresolved(&confirmation.pins).is_empty() && arguments.pins.is_none() {
        // The rules from before may have refused the questions that the policy on trial asks.
        match ask_again(source, facts, &begun, &confirmation, &before, world, output)? {
            Again::New(again, more) => {
                confirmation = *again;
                plan.added.extend(more.added);
            }
            Again::Same => {}
            Again::Over => is_over = true,
        }
    }
    apply::warn_of(&confirmation, output);
    if is_over {
        output.warn("while DNS was asked again the trial was ended: `egressguard status` shows what counts");
    }
    let unresolved = apply::unresolved(&confirmation.pins);
    if arguments.json {
        output.json(&json!({
            "schema": "egressguard.apply/1",
            "result": "trial",
            "changed": true,
            "policy": {"name": policy.name.as_str(), "sha256": policy.sha256},
            "generation": generation,
            "change": apply::change_json(&plan),
            "trial": {"seconds": begun.left(world.host).seconds(), "ends": begun.ends(world.host).to_string(), "then": begun.then, "over": is_over},
            "unresolved": unresolved,
        }))?;
    } else if !is_over {
        let mode = if policy.mode == Mode::Observe { ", mode observe: nothing is blocked" } else { "" };
        output.say(&format!("on trial for {lasts}: policy `{}` (generation {generation}{mode})", policy.name))?;
        output.say(&format!("  then {}, whatever happens here", then_words(begun.then)))?;
        output.say("  to keep it, open a new connection to this host and run there: egressguard confirm")?;
        output.detail("flows that the policy does not allow go on until it is confirmed");
    }
    Ok(if unresolved.is_empty() { Exit::Done } else { Exit::No })
}

/// What follows a trial, in words.
pub fn then_words(then: Then) -> String {
    match then {
        Then::Applied(generation) => format!("the kernel falls back to generation {generation}"),
        Then::Lockdown => "the kernel falls back to lockdown".to_string(),
        Then::Nothing => "the kernel lets everything pass again".to_string(),
    }
}

/// Both ends of every connection of this host, the peer's first.
fn open_now(world: &mut World, output: &mut Output) -> Vec<(SocketAddr, SocketAddr)> {
    match world.flows.sockets(&Default::default()) {
        Ok(sockets) => sockets.into_iter().filter_map(|socket| Some((socket.remote?, socket.local))).collect(),
        Err(error) => {
            output.warn(&format!("{error}: `confirm` cannot tell older connections from new ones"));
            Vec::new()
        }
    }
}

/// What became of asking once more.
enum Again {
    /// Addresses that were not there before are loaded.
    New(Box<Confirmation>, Plan),
    /// Nothing new.
    Same,
    /// The trial has ended meanwhile.
    Over,
}

/// Asks once more for every name, now that the policy is on trial, and loads what is new. Nobody is kept waiting by it.
fn ask_again(
    source: &Source,
    facts: &Facts,
    begun: &Trial,
    confirmation: &Confirmation,
    before: &Before,
    world: &mut World,
    output: &mut Output,
) -> Result<Again, Failure> {
    let policy = &source.policy;
    let asked = world.host.clock();
    world.files.unlock();
    let answers = enforce::ask(policy, facts, world.resolver, output);
    if let Err(error) = world.files.lock("apply") {
        output.warn(&format!("{error}: the trial goes on with the addresses that are known"));
        return Ok(Again::Same);
    }
    if running(world).as_ref() != Some(begun) {
        return Ok(Again::Over);
    }
    let clock = world.host.clock();
    let pins = pins::rebase(&confirmation.pins, &asked, &clock, policy.refresh.keep).pins;
    let again = enforce::confirm(policy, &pins, &answers, clock.wall);
    if !again.changes.iter().any(|change| change.what == What::Added) {
        return Ok(Again::Same);
    }
    let record = Record::new(begun.generation, policy, facts, &clock);
    state::save(world.files, &Saved { policy: source.content.clone(), pins: again.pins.clone(), record })?;
    let new = compile(policy, &again.pins, facts, begun.generation).loadable();
    let mut meant = on_trial(new, before.rules(), begun.ends(world.host));
    let committed = enforce::commit(world.kernel, &mut meant, None, world.host, &mut enforce::all)?;
    Ok(Again::New(Box::new(again), committed.plan))
}

/// What a trial falls back to, with its rules.
enum Before {
    Applied { name: String, generation: u64, rules: Box<Ruleset> },
    Lockdown(Box<Ruleset>),
    Nothing,
}

impl Before {
    fn then(&self) -> Then {
        match self {
            Before::Applied { generation, .. } => Then::Applied(*generation),
            Before::Lockdown(_) => Then::Lockdown,
            Before::Nothing => Then::Nothing,
        }
    }

    fn rules(&self) -> Option<Ruleset> {
        match self {
            Before::Applied { rules, .. } | Before::Lockdown(rules) => Some((**rules).clone()),
            Before::Nothing => None,
        }
    }
}

/// What a trial that begins now falls back to: the generation to restore; else what the kernel holds, which can be lockdown alone.
fn before(world: &mut World, output: &mut Output) -> Result<Before, Failure> {
    let current = state::current(world.files)?;
    if let Current::Generation(generation) = current {
        return applied(generation, world, output);
    }
    let (_, there) = world.kernel.observe(Depth::Rules)?;
    if there.is_none() {
        return Ok(Before::Nothing);
    }
    // A trial before this one says what it has replaced.
    let earlier = trial(world.files).filter(|trial| trial.is_here(world.host)).map(|trial| trial.then);
    match (earlier, &current) {
        (Some(Then::Nothing), _) => Ok(Before::Nothing),
        (_, Current::Nothing) => lockdown(output),
        _ => Err(Failure::refused(
            "rules are loaded that are no applied policy's, so nothing can be fallen back to",
            "`egressguard refresh` finishes an apply that was interrupted; or apply without `--confirm`",
        )),
    }
}

fn lockdown(output: &mut Output) -> Result<Before, Failure> {
    let policy = restore::lockdown_policy(output)?;
    Ok(Before::Lockdown(Box::new(compile(&policy, &Default::default(), &Facts::default(), 0).loadable())))
}

fn applied(generation: u64, world: &World, output: &mut Output) -> Result<Before, Failure> {
    let missing =
        || Failure::refused(format!("generation {generation}, which a trial would fall back to, is missing"), "apply without `--confirm`");
    // Names whose pins are damaged are asked for by the refresh that finds that.
    let saved = state::load_with_or_without_pins(world.files, generation)?.ok_or_else(missing)?;
    let policy = source::parse(&saved.record.file, saved.policy.clone(), &mut output.quiet())?.policy;
    let rules = Box::new(enforce::earlier_rules(&saved, &policy, world.host));
    Ok(Before::Applied { name: policy.name.to_string(), generation, rules })
}

/// The trial that goes on: it is remembered, its time is not over, and the kernel holds its gate.
pub fn running(world: &mut World) -> Option<Trial> {
    let found = trial(world.files)?;
    let gate = gate(world);
    goes_on(&found, gate, world).then_some(found)
}

/// Whether a trial goes on, with what the kernel holds of one.
fn goes_on(found: &Trial, gate: Gate, world: &World) -> bool {
    let is_open = match gate {
        Gate::Open(generation) => generation == found.generation,
        Gate::Unknown => true,
        Gate::Closed | Gate::None => false,
    };
    is_open && found.left(world.host).seconds() > 0
}

/// What the kernel holds of a trial.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Gate {
    /// Its gate, open, of this generation.
    Open(u64),
    /// Its gate, whose time is over.
    Closed,
    /// Nothing.
    None,
    /// It cannot be asked.
    Unknown,
}

fn gate(world: &mut World) -> Gate {
    let Ok((_, there)) = world.kernel.observe(Depth::Pins) else { return Gate::Unknown };
    let Some(dump) = there else { return Gate::None };
    let Some((_, elements)) = dump.sets.get(TRIAL) else { return Gate::None };
    let Some(element) = elements.values().next() else { return Gate::Closed };
    Gate::Open(element.comment.trim_start_matches("generation ").parse().unwrap_or(0))
}

/// What the kernel should hold, where these rules are those of the generation to restore: during a trial, and until somebody clears it
/// away, both.
pub fn meant(rules: Ruleset, world: &World, output: &mut Output) -> Ruleset {
    // One whose generation is to be restored was confirmed.
    let is_meant = |trial: &Trial| trial.is_here(world.host) && trial.generation != rules.identity.generation;
    let Some(found) = trial(world.files).filter(is_meant) else { return rules };
    let Ok(Some(saved)) = state::load(world.files, found.generation) else { return rules };
    let Ok(source) = source::parse(&saved.record.file, saved.policy.clone(), &mut output.quiet()) else { return rules };
    on_trial(enforce::earlier_rules(&saved, &source.policy, world.host), Some(rules), found.ends(world.host))
}

/// Runs `confirm`.
pub fn confirm(arguments: &ConfirmArguments, world: &mut World, output: &mut Output) -> Result<Exit, Failure> {
    world.files.lock("confirm")?;
    let Some(found) = running(world) else { return Err(over(world)) };
    match world.host.remote_flow() {
        // A shell that outlives its connection still names it.
        Some(flow) if !arguments.force && !open_now(world, output).contains(&flow) => {
            return Err(Failure {
                exit: Exit::No,
                message: format!("the connection from {} that this shell was opened by has ended, so it shows nothing", flow.0),
                help: Some("open a connection and run `egressguard confirm` in its own shell, or say `--force`".to_string()),
            });
        }
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
    let is_tried = |trial: &Trial| trial.is_here(world.host) && !state::is_current(world.files, trial.generation);
    let found = trial(world.files).filter(is_tried);
    let Some(found) = found.filter(|_| gate(world) != Gate::None) else { return Err(over(world)) };
    fall_back(&found, arguments.json, world, output)
}

/// Loads what a trial falls back to, alone, and forgets the trial.
fn fall_back(found: &Trial, as_json: bool, world: &mut World, output: &mut Output) -> Result<Exit, Failure> {
    let before = match (found.then, state::current(world.files)?) {
        (_, Current::Generation(generation)) => applied(generation, world, output)?,
        (Then::Lockdown, _) => lockdown(output)?,
        _ => Before::Nothing,
    };
    let (words, generation) = match &before {
        Before::Applied { name, generation, .. } => {
            (format!("rolled back: policy `{name}` (generation {generation}) counts"), Some(*generation))
        }
        Before::Lockdown(_) => ("rolled back: lockdown counts".to_string(), Some(0)),
        Before::Nothing => (format!("rolled back: generation {} is gone, and no rules are loaded, as before", found.generation), None),
    };
    let answer = |revoked: Option<&revoke::Revocation>| {
        json!({
            "schema": "egressguard.rollback/1",
            "rolled_back": found.generation,
            "generation": generation,
            "revoked": revoked.map(revoke::Revocation::json),
        })
    };
    let Some(mut meant) = before.rules() else {
        if quarantine::is_cut_by_set(world) {
            return Err(Failure::refused(
                "this host is cut off, and without rules it would not be",
                "run `egressguard quarantine --release` first",
            ));
        }
        remove::take_away(Backend::Nftables, world, output)?;
        forget_trial(world.files);
        state::discard(world.files, found.generation);
        if as_json {
            output.json(&answer(None))?;
        } else {
            output.say(&words)?;
        }
        return Ok(Exit::Done);
    };
    harvest::harvest(world, output);
    let committed = enforce::commit(world.kernel, &mut meant, None, world.host, &mut enforce::all)?;
    forget_trial(world.files);
    state::discard(world.files, found.generation);
    conclude(&meant, committed, output, world, answer, as_json, &words)
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

/// Lets a trial alone that goes on, and clears away one that has ended: the kernel has fallen back already, and still holds both. The lock
/// is held.
pub fn settle(world: &mut World, output: &mut Output) -> Result<Found, Failure> {
    let Some(found) = trial(world.files) else { return Ok(Found::Nothing) };
    let was_confirmed = state::is_current(world.files, found.generation);
    // Rules without a gate are nobody's trial: an apply or a cut came over it, and what it has loaded counts.
    let gate = gate(world);
    if !found.is_here(world.host) || was_confirmed || gate == Gate::None {
        forget_trial(world.files);
        return Ok(Found::Nothing);
    }
    if goes_on(&found, gate, world) {
        return Ok(Found::Running(found));
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
