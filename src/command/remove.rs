//! `remove`: takes our table away, and nothing else.

use std::io::{BufRead, stdin};

use crate::command::arguments::RemoveArguments;
use crate::command::{Exit, Failure, Output, Style};
use crate::judge::plan::NotOurs;
use crate::ruleset::TABLE_COMMENT;
use crate::ruleset::program::Op;
use crate::state;
use crate::world::{Depth, KernelError, World};

/// How often it is tried again when somebody else changes the packet filter meanwhile.
const ATTEMPTS: usize = 8;

/// Runs `remove`.
pub fn remove(arguments: &RemoveArguments, world: &mut World, output: &mut Output) -> Result<Exit, Failure> {
    let (_, there) = world.kernel.observe(Depth::Rules)?;
    if there.as_ref().is_some_and(|dump| dump.table.comment != TABLE_COMMENT) {
        return Err(NotOurs.into());
    }
    if there.is_some() && !arguments.yes && !confirmed(output)? {
        return Err(Failure::wrong("not removed", "say `--yes` to remove the rules without being asked"));
    }
    world.files.lock("remove")?;
    // ORDER: first what a boot would load, then the rules: killed between the two, the host is closed until the next boot.
    state::make_removed(world.files)?;
    for _ in 0..ATTEMPTS {
        let (generation, there) = world.kernel.observe(Depth::Rules)?;
        let Some(there) = there else {
            output.say("no rules are loaded; none will be at the next boot")?;
            return Ok(Exit::Done);
        };
        if there.table.comment != TABLE_COMMENT {
            return Err(NotOurs.into());
        }
        match world.kernel.commit(generation, &[Op::DeleteTable]) {
            Ok(_) => {
                output.say("removed table `inet egressguard`: nothing is filtered by egressguard any more")?;
                return Ok(Exit::Done);
            }
            Err(KernelError::Interfered) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(KernelError::Interfered.into())
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
