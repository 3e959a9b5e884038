//! `remove`: takes our rules away, and nothing else.

use std::io::{BufRead, stdin};

use crate::command::arguments::RemoveArguments;
use crate::command::{Exit, Failure, Output, Style, handover, harvest, quarantine};
use crate::judge::plan::NotOurs;
use crate::ruleset::TABLE_COMMENT;
use crate::ruleset::program::Op;
use crate::state::{self, Backend};
use crate::world::{Depth, KernelError, World};

/// How often it is tried again when somebody else changes the packet filter meanwhile.
const ATTEMPTS: usize = 8;

/// Runs `remove`.
pub fn remove(arguments: &RemoveArguments, world: &mut World, output: &mut Output) -> Result<Exit, Failure> {
    let backend = handover::held_by(world);
    if is_there(backend, world)? && !arguments.yes && !confirmed(output)? {
        return Err(Failure::wrong("not removed", "say `--yes` to remove the rules without being asked"));
    }
    world.files.lock("remove")?;
    if state::cut_off(world.files).is_some() || quarantine::is_cut_by_set(world) {
        return Err(Failure::refused(
            "this host is cut off, and without rules it would not be",
            "run `egressguard quarantine --release` first",
        ));
    }
    // Another run may have moved the rules to the other packet filter meanwhile.
    let backend = handover::held_by(world);
    // ORDER: first what a boot would load, then the rules: killed between the two, the host is closed until the next boot.
    state::make_removed(world.files).map_err(|error| Failure {
        help: Some(match backend {
            Backend::Nftables => "nothing was removed; `nft delete table inet egressguard` opens the host until the next boot".to_string(),
            Backend::Iptables => "nothing was removed; make room in the state directory, then run this again".to_string(),
        }),
        ..Failure::from(error)
    })?;
    let was = take_away(backend, world, output)?;
    if state::was_held_by(world.files, backend.other()) {
        // An apply that moved the rules and was killed has left some here.
        take_away(backend.other(), world, output)?;
    }
    let words = match (was, backend) {
        (false, _) => "no rules are loaded; none will be at the next boot",
        (true, Backend::Nftables) => "removed table `inet egressguard`: nothing is filtered by egressguard any more",
        (true, Backend::Iptables) => "removed the rules from iptables, ip6tables and ipset: nothing is filtered by egressguard any more",
    };
    output.say(words)?;
    Ok(Exit::Done)
}

/// Whether this packet filter holds anything of ours.
fn is_there(backend: Backend, world: &mut World) -> Result<bool, Failure> {
    if backend == Backend::Iptables {
        return Ok(handover::observe(world.programs)?.is_ours());
    }
    let (_, there) = world.kernel.observe(Depth::Rules)?;
    if there.as_ref().is_some_and(|dump| dump.table.comment != TABLE_COMMENT) {
        return Err(NotOurs.into());
    }
    Ok(there.is_some())
}

/// Takes our rules away from this packet filter, once what they have counted is written down; whether there were any.
pub fn take_away(backend: Backend, world: &mut World, output: &mut Output) -> Result<bool, Failure> {
    if backend == Backend::Iptables {
        return handover::apply::take_away(world.programs);
    }
    for _ in 0..ATTEMPTS {
        let (generation, there) = match world.kernel.observe(Depth::Rules) {
            // Where there is no nf_tables, there is no table.
            Err(KernelError::NoNfTables(_)) => return Ok(false),
            observed => observed?,
        };
        let Some(there) = there else { return Ok(false) };
        if there.table.comment != TABLE_COMMENT {
            return Err(NotOurs.into());
        }
        // ORDER: its counts go with it.
        harvest::harvest(world, output);
        match world.kernel.commit(generation, &[Op::DeleteTable]) {
            Ok(_) => return Ok(true),
            Err(KernelError::Interfered) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(KernelError::Interfered.into())
}

/// Takes away what an apply has left in the other packet filter that was killed while it moved the rules. What cannot be taken away is said.
pub fn clear_other(backend: Backend, world: &mut World, output: &mut Output) {
    if state::was_held_by(world.files, backend.other())
        && let Err(failure) = take_away(backend.other(), world, output)
    {
        output.warn(&format!("{}: rules of an earlier apply may be in the other packet filter still", failure.message));
    }
}

/// Asks on a terminal; without one the answer is no.
fn confirmed(output: &mut Output) -> Result<bool, Failure> {
    if output.style == Style::Plain {
        return Ok(false);
    }
    write!(output.err, "everything that the policy blocks will be open. Remove the rules? [y/N] ")?;
    output.err.flush()?;
    let mut answer = String::new();
    stdin().lock().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}
