//! `restore`: the last applied policy again, without DNS, early in the boot. What cannot be restored is locked down.

use std::collections::BTreeMap;

use crate::command::{Exit, Failure, Output, apply, enforce, handover, harvest, revoke, source};
use crate::pins::Pins;
use crate::policy::Policy;
use crate::ruleset::compile::{Facts, compile};
use crate::ruleset::program::GenerationId;
use crate::state::{self, Backend, Current};
use crate::world::{Depth, KernelError, World};

/// What is loaded.
struct Restored {
    policy: Policy,
    pins: Pins,
    facts: Facts,
    generation: u64,
    /// Why it is less than what was saved.
    complaint: Option<String>,
}

/// Runs `restore`.
pub fn restore(world: &mut World, output: &mut Output) -> Result<Exit, Failure> {
    // A state directory that cannot be written can still be restored from, and a boot must not wait for a lock that nobody gives back.
    let locked = world.files.lock("restore");
    if let Err(error) = &locked {
        output.warn(&format!("{error}: going on without the lock"));
    }
    let restored = match state::current(world.files) {
        Ok(Current::Removed(_)) => {
            output.say("the rules were removed with `egressguard remove`: there is nothing to restore")?;
            if matches!(world.kernel.observe(Depth::Rules), Ok((_, Some(_)))) {
                output.warn(
                    "a table `inet egressguard` is loaded all the same: `egressguard refresh` finishes an apply that was interrupted",
                );
            }
            return Ok(Exit::Done);
        }
        Ok(Current::Generation(generation)) => saved(generation, world, output)?,
        Ok(Current::Nothing) => lockdown(None, output)?,
        Err(error) => lockdown(Some(error.to_string()), output)?,
    };
    let Restored { policy, pins, facts, generation, .. } = &restored;
    let mut meant = compile(policy, pins, facts, *generation).loadable();
    let (changed, kernel_generation) = match backend(world) {
        Backend::Iptables => (handover::apply::restore(policy, facts, &mut meant, world, output)?, GenerationId(0)),
        Backend::Nftables => {
            // At a boot there is nothing to count. Over rules that are loaded there may be; without the lock somebody else may be writing.
            if locked.is_ok() {
                harvest::harvest(world, output);
            }
            let committed = enforce::commit(world.kernel, &mut meant, None, world.host, &mut enforce::all)?;
            (!committed.plan.is_nothing(), committed.kernel)
        }
    };
    let revocation = match changed {
        true => revoke::end(&meant, world.flows, || world.host.remote_session(), output),
        false => None,
    };
    if let Some(why) = revocation.as_ref().and_then(|revocation| revocation.shortfall.as_ref()) {
        // No failure: a boot waits for the rules, and before the network is up nothing is under way. The first refresh revokes.
        output.warn(&format!("flows from before may go on until the next refresh: {why}"));
    }
    // It has loaded rules of its own.
    state::trial::forget_trial(world.files);
    // Facts and clocks may be others than the saved ones: the first refresh looks for itself.
    let last = enforce::note(&meant, kernel_generation, false, BTreeMap::new(), world.host);
    // Only saves the first refresh some work.
    let _ = state::save_refresh(world.files, &last);
    let verb = if changed { "restored" } else { "unchanged" };
    output.say(&format!("{verb}: policy `{}` (generation {})", restored.policy.name, restored.generation))?;
    apply::describe_revocation(revocation.as_ref(), output)?;
    let blocked = restored.pins.names.iter().filter(|(_, pins)| pins.leases.is_empty()).count();
    if restored.complaint.is_none() && blocked > 0 {
        output.warn(&format!("{blocked} of its names have no pin and are blocked; the next refresh asks for them"));
    }
    match restored.complaint {
        None if blocked > 0 => Ok(Exit::No),
        None => Ok(Exit::Done),
        Some(complaint) => {
            Err(Failure::refused(complaint, "the host is closed, not open; run `egressguard apply POLICY` to open it again"))
        }
    }
}

/// Which packet filter is to hold it. Where there is no nf_tables, iptables is better than nothing, whatever the state says.
fn backend(world: &mut World) -> Backend {
    match world.kernel.generation() {
        Err(KernelError::NoNfTables(_)) => Backend::Iptables,
        _ => state::backend(world.files),
    }
}

/// The saved generation, as much of it as is whole.
fn saved(generation: u64, world: &World, output: &mut Output) -> Result<Restored, Failure> {
    let complaint = match state::load(world.files, generation) {
        Ok(Some(saved)) => match parse(&saved.record.file, saved.policy.clone(), output) {
            Ok(policy) => {
                let pins = enforce::earlier_pins(&saved, &policy, world.host);
                return Ok(Restored { policy, pins, facts: saved.record.facts(&world.host.clock()), generation, complaint: None });
            }
            Err(failure) => failure.message,
        },
        Ok(None) => format!("generation {generation} is missing from {}", world.files.place()),
        Err(error) => error.to_string(),
    };
    // The ways in need no pins: with them a person can come and mend it. But a policy that its record does not prove to be what was
    // applied may allow more than that.
    let proven = state::load_without_pins(world.files, generation).ok().flatten();
    let parsed = proven.and_then(|saved| Some((parse("saved policy", saved.policy.clone(), output).ok()?, saved)));
    let Some((policy, saved)) = parsed else { return lockdown(Some(complaint), output) };
    let facts = saved.record.facts(&world.host.clock());
    Ok(Restored { policy, pins: Pins::default(), facts, generation, complaint: Some(complaint) })
}

fn lockdown(complaint: Option<String>, output: &mut Output) -> Result<Restored, Failure> {
    let policy = lockdown_policy(output)?;
    if complaint.is_none() {
        output.warn("no policy was ever applied here: loading lockdown");
    }
    Ok(Restored { policy, pins: Pins::default(), facts: Facts::default(), generation: 0, complaint })
}

/// The policy of lockdown.
pub fn lockdown_policy(output: &mut Output) -> Result<Policy, Failure> {
    let content = crate::policy::builtin("lockdown").unwrap_or_default().as_bytes().to_vec();
    parse("builtin:lockdown", content, output)
}

fn parse(name: &str, content: Vec<u8>, output: &mut Output) -> Result<Policy, Failure> {
    source::parse(name, content, &mut output.quiet()).map(|source| source.policy)
}
