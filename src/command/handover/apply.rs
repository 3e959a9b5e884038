//! `apply`, `restore` and `remove` by iptables.

use serde_json::{Value, json};

use crate::command::apply::{Generation, ask_again, describe_revocation, make_current, unresolved, warn_of};
use crate::command::arguments::{ApplyArguments, BackendName};
use crate::command::handover::{Given, RESTORE, exported, load, observe};
use crate::command::revoke::{self, Revocation};
use crate::command::source::Source;
use crate::command::{Exit, Failure, Output, enforce};
use crate::export::plan::{Change, plan};
use crate::pins::{Confirmation, Pins, What};
use crate::policy::{Mode, Policy};
use crate::ruleset::Ruleset;
use crate::ruleset::compile::{Facts, compile};
use crate::ruleset::program::GenerationId;
use crate::state::{self, Backend, Record, Saved};
use crate::world::{Files, Host, ProgramError, Programs, World};

/// How often the rules are planned again when somebody else changes them meanwhile.
const ATTEMPTS: usize = 4;

/// Which packet filter an apply is for: the one that was asked for, or that of the last apply.
pub fn backend(asked: Option<BackendName>, files: &dyn Files) -> Backend {
    match asked {
        Some(BackendName::Nftables) => Backend::Nftables,
        Some(BackendName::Iptables) => Backend::Iptables,
        None => state::backend(files),
    }
}

/// Applies a policy whose names are resolved and whose tests hold.
pub fn apply(
    arguments: &ApplyArguments,
    source: &Source,
    facts: &Facts,
    confirmation: Confirmation,
    world: &mut World,
    output: &mut Output,
) -> Result<Exit, Failure> {
    if arguments.dry_run {
        return dry_run(arguments, source, facts, &confirmation.pins, world, output);
    }
    let mut confirmation = confirmation;
    let (mut ruleset, mut change) = commit(source, facts, &confirmation.pins, Generation::New, world, output)?;
    let generation = ruleset.identity.generation;
    let blocked = !unresolved(&confirmation.pins).is_empty();
    if blocked && arguments.pins.is_none() && change.touches_rules() {
        // The rules from before may have refused the questions that the new policy asks.
        match ask_again(&source.policy, facts, generation, &confirmation.pins, world, output) {
            Some(again) => confirmation = again,
            None => return report(arguments, &source.policy, generation, &change, &confirmation, None, output),
        }
        if confirmation.changes.iter().any(|change| change.what == What::Added) {
            let (with_more, again) = commit(source, facts, &confirmation.pins, Generation::Same(generation), world, output)?;
            change.added.extend(again.added);
            ruleset = with_more;
        }
    }
    let revocation = match change.is_nothing() && revoke::was_done(generation, world) {
        true => None,
        false => revoke::end(&ruleset, world.flows, || world.host.remote_session(), output),
    };
    // Without the note that the revocation was done the next run revokes.
    let whole = revoke::is_complete(revocation.as_ref());
    let last = enforce::note(&ruleset, GenerationId(0), whole, enforce::problems(&confirmation), world.host);
    if let Err(error) = state::save_refresh(world.files, &last) {
        output.warn(&error.to_string());
    }
    let exit = report(arguments, &source.policy, generation, &change, &confirmation, revocation.as_ref(), output)?;
    revocation.unwrap_or_default().conclude(exit)
}

/// Loads and saves one generation.
pub fn commit(
    source: &Source,
    facts: &Facts,
    pins: &Pins,
    generation: Generation,
    world: &mut World,
    output: &mut Output,
) -> Result<(Ruleset, Change), Failure> {
    let policy = &source.policy;
    let mut meant = compile(policy, pins, facts, generation.current(world.files));
    let clock = world.host.clock();
    let mut saved = None;
    let files = &mut *world.files;
    let number = &mut |ruleset: &mut Ruleset| {
        if generation == Generation::New {
            ruleset.number(state::highest(files)?.max(ruleset.identity.generation) + 1);
        }
        // ORDER: saved before it is loaded, so that what is held can always be found again; named as the one to restore only when it
        // has been read back.
        let record = Record::new(ruleset.identity.generation, policy, facts, &clock).by(Backend::Iptables);
        saved = Some(ruleset.identity.generation);
        state::save(files, &Saved { policy: source.content.clone(), pins: pins.clone(), record })?;
        Ok(state::prepare_current(files, ruleset.identity.generation)?)
    };
    let given = Given { policy, content: &source.content, facts };
    let held = hold(given, &mut meant, world.programs, world.host, number, output);
    match (held, saved) {
        (Ok(change), Some(saved)) => {
            make_current(world.files, policy, saved)?;
            Ok((meant, change))
        }
        (Ok(change), None) => Ok((meant, change)),
        (Err(failure), saved) => {
            if let (Some(saved), Generation::New) = (saved, generation)
                && !may_hold(world.programs, saved)
            {
                state::discard(world.files, saved);
            }
            Err(failure)
        }
    }
}

/// Makes iptables hold the rules. `number` gives them their new generation once something has to change.
fn hold(
    given: Given,
    meant: &mut Ruleset,
    programs: &mut dyn Programs,
    host: &dyn Host,
    number: &mut dyn FnMut(&mut Ruleset) -> Result<(), Failure>,
    output: &mut Output,
) -> Result<Change, Failure> {
    let mut firewall = exported(given, meant, output)?;
    let before = observe(programs)?;
    let mut change = plan(&before, &firewall, host.now());
    if change.is_nothing() {
        return Ok(change);
    }
    number(meant)?;
    firewall = exported(given, meant, output)?;
    change = plan(&before, &firewall, host.now());
    load(&before, &firewall, &change, programs, host, output)?;
    Ok(change)
}

/// Whether this generation may be what is held: things can go wrong after a load, too. What is held has to be kept.
fn may_hold(programs: &mut dyn Programs, generation: u64) -> bool {
    match observe(programs) {
        Ok(there) => there.is_ours() && there.identity().is_none_or(|identity| identity.generation == generation),
        Err(_) => true,
    }
}

fn dry_run(
    arguments: &ApplyArguments,
    source: &Source,
    facts: &Facts,
    pins: &Pins,
    world: &mut World,
    output: &mut Output,
) -> Result<Exit, Failure> {
    let there = observe(world.programs)?;
    let generation = there.identity().map_or(0, |identity| identity.generation);
    let ruleset = compile(&source.policy, pins, facts, generation);
    let firewall = exported(Given { policy: &source.policy, content: &source.content, facts }, &ruleset, output)?;
    let change = plan(&there, &firewall, world.host.now());
    if arguments.json {
        output.json(&answer("dry-run", &source.policy, generation, &change, pins, None))?;
    } else if change.is_nothing() {
        output.say(&format!("nothing would change: iptables holds policy `{}`", source.policy.name))?;
    } else {
        output.say(&format!("would apply policy `{}` by iptables:", source.policy.name))?;
        describe(&change, output)?;
    }
    Ok(if change.is_nothing() { Exit::Done } else { Exit::No })
}

fn report(
    arguments: &ApplyArguments,
    policy: &Policy,
    generation: u64,
    change: &Change,
    confirmation: &Confirmation,
    revocation: Option<&Revocation>,
    output: &mut Output,
) -> Result<Exit, Failure> {
    warn_of(confirmation, output);
    output.warn(
        "by iptables some laws are weaker: IPv4, IPv6 and sets change one after the other, nobody is told of changes that others make, \
         and the ledger knows no users (docs/iptables.md)",
    );
    if arguments.json {
        let verb = if change.is_nothing() { "unchanged" } else { "applied" };
        output.json(&answer(verb, policy, generation, change, &confirmation.pins, revocation))?;
    } else if change.is_nothing() {
        output.say(&format!("unchanged: policy `{}` (generation {generation}) is what iptables holds", policy.name))?;
    } else {
        let mode = if policy.mode == Mode::Observe { ", mode observe: nothing is blocked" } else { "" };
        output.say(&format!("applied policy `{}` by iptables (generation {generation}{mode})", policy.name))?;
        describe(change, output)?;
    }
    if !arguments.json {
        describe_revocation(revocation, output)?;
    }
    Ok(if unresolved(&confirmation.pins).is_empty() { Exit::Done } else { Exit::No })
}

/// The change for people: at most twenty elements of a kind.
pub fn describe(change: &Change, output: &mut Output) -> Result<(), Failure> {
    const MOST: usize = 20;
    if change.touches_rules() {
        output.say("  rules of iptables and ip6tables")?;
    }
    for (sign, elements) in [('+', &change.added), ('-', &change.removed)] {
        for (element, comment) in elements.iter().take(MOST) {
            output.say(&format!("  {sign} {element:<39}  {comment}"))?;
        }
        if elements.len() > MOST {
            output.say(&format!("  {sign} … and {} more", elements.len() - MOST))?;
        }
    }
    Ok(())
}

/// The answer as JSON.
fn answer(verb: &str, policy: &Policy, generation: u64, change: &Change, pins: &Pins, revocation: Option<&Revocation>) -> Value {
    json!({
        "schema": "egressguard.apply/1",
        "result": verb,
        "backend": "iptables",
        "changed": !change.is_nothing(),
        "policy": {"name": policy.name.as_str(), "sha256": policy.sha256},
        "generation": generation,
        "change": change_json(change),
        "revoked": revocation.map(Revocation::json),
        "unresolved": unresolved(pins),
    })
}

/// The change as JSON.
pub fn change_json(change: &Change) -> Value {
    let elements = |elements: &[(String, String)]| -> Vec<Value> {
        elements.iter().map(|(element, comment)| json!({"element": element, "comment": comment})).collect()
    };
    json!({
        "rules": change.touches_rules(),
        "differences": change.differences,
        "added": elements(&change.added),
        "removed": elements(&change.removed),
    })
}

/// Loads what was saved, again; whether anything had to change.
pub fn restore(policy: &Policy, facts: &Facts, meant: &mut Ruleset, world: &mut World, output: &mut Output) -> Result<bool, Failure> {
    let given = Given { policy, content: b"", facts };
    let change = hold(given, meant, world.programs, world.host, &mut |_| Ok(()), output)?;
    Ok(!change.is_nothing())
}

/// Takes everything of ours away; whether there was anything.
pub fn take_away(programs: &mut dyn Programs) -> Result<bool, Failure> {
    let mut was = false;
    for _ in 0..ATTEMPTS {
        let there = match observe(programs) {
            // Who has no iptables has no rules in it.
            Err(ProgramError::Missing(_)) => return Ok(was),
            observed => observed?,
        };
        if !there.is_ours() {
            return Ok(was);
        }
        was = true;
        let (tables, sets) = there.removal();
        // ORDER: rules before the sets they look into.
        for (program, rules) in RESTORE.iter().zip(&tables).rev() {
            programs.run(program, &super::LOADING, rules)?;
        }
        if !sets.is_empty() {
            programs.run("ipset", &["restore"], &sets)?;
        }
    }
    Err(Failure::refused("rules of egressguard come back as fast as they are removed", "find who loads them, then run this again"))
}
