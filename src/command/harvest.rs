//! Harvest: what the kernel has counted goes into the book `ledger`, each packet once. See [`crate::violation::ledger`].

use crate::command::{Failure, Output};
use crate::ruleset::compile::refuse::{LEDGER, LEDGER_ALL};
use crate::state::books::{self, Care, Writer};
use crate::violation::ledger::{Baseline, Harvest, Moment};
use crate::violation::record::Kind;
use crate::world::{Host, KernelError, World};

/// The file of what the kernel had counted when it was read last.
const BASELINE: &str = "ledger.json";

/// Writes what the kernel has counted since the last harvest into the book; how many records. Under the lock. Nothing is written, and
/// little is read, while nothing was counted.
pub fn harvest(world: &mut World) -> Result<usize, Failure> {
    let Some((before, Harvest { kinds, baseline })) = look(world)? else { return Ok(0) };
    let at = world.host.now();
    let mut writer = Writer::new(books::LEDGER);
    // ORDER: the records, then the baseline, which says up to which of them it knows. Killed in between, the next harvest adds to the
    // old baseline what the book says beyond it, and finds the rest.
    let head = match kinds.is_empty() {
        true => writer.head(world.files)?,
        false => writer.append(world.files, at, &kinds, Care::OnTheDisk)?,
    };
    if !kinds.is_empty() || before.seq() != head.seq {
        world.files.note(BASELINE, &baseline.knowing(head.seq).print())?;
    }
    Ok(kinds.len())
}

/// The same where something else is to go on: what went wrong is said, and lost is nothing, for the next harvest finds it all.
pub fn harvest_or_say(world: &mut World, output: &mut Output) {
    if let Err(failure) = harvest(world) {
        output.warn(&format!("the kernel's counts were not written down, and are still in the kernel: {}", failure.message));
    }
}

/// What the kernel has counted that is not in the book yet. Writes nothing.
pub fn pending(world: &mut World) -> Result<Vec<Kind>, Failure> {
    Ok(look(world)?.map(|(_, harvest)| harvest.kinds).unwrap_or_default())
}

/// What a harvest would find; `None` when nothing was counted, or where nothing counts.
fn look(world: &mut World) -> Result<Option<(Baseline, Harvest)>, Failure> {
    let totals = match world.kernel.counts(LEDGER_ALL) {
        Ok(Some(totals)) => totals,
        // Nothing is loaded, or iptables holds the rules, whose counts are not harvested.
        Ok(None) | Err(KernelError::NoNfTables(_)) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let place = world.host.namespace();
    let before = baseline(world)?;
    if before.is_up_to_date(&totals, &place, moment(world.host)) {
        return Ok(None);
    }
    let Some(counts) = world.kernel.counts(LEDGER)? else { return Ok(None) };
    let harvest = before.harvest(&counts, &place, moment(world.host));
    Ok(Some((before, harvest)))
}

/// What is known of the last harvest, the records included that it has written and not noted any more.
fn baseline(world: &World) -> Result<Baseline, Failure> {
    let noted = world.files.read(BASELINE)?.and_then(|content| Baseline::parse(&content));
    let mut baseline = noted.unwrap_or_else(Baseline::of_a_book);
    let head = Writer::new(books::LEDGER).head(world.files)?;
    if head.seq > baseline.seq() {
        books::each(books::LEDGER, world.files, |line| baseline.replay(&line))?;
    }
    Ok(baseline)
}

fn moment(host: &dyn Host) -> Moment {
    Moment { wall: host.now(), awake: host.clock().boottime.saturating_sub(host.slept()) }
}
