//! What the kernel counted since it was read last, into the book `ledger`: by every refresh, and before anything that drops the counts.
//!
//! What goes wrong here keeps no rule from being loaded. It is said, and nothing is lost by it: what was not written is found by the next
//! harvest, as long as the counts are there.

use crate::base::time::Timestamp;
use crate::command::{Failure, Output};
use crate::ruleset::compile::refuse::{LEDGER, LEDGER_ALL};
use crate::ruleset::program::Counts;
use crate::state::books::{self, Care, Writer};
use crate::violation::ledger::{Baseline, Moment};
use crate::violation::record::Kind;
use crate::world::{FileError, Files, Host, KernelError, World};

/// The baseline of the next harvest.
const BASELINE: &str = "ledger.json";
/// When the kernel was read last. A file of its own: the baseline is large, and stays as it is where nothing was counted.
const READ_AT: &str = "ledger.at";

/// Writes down what was counted. The lock is held.
pub fn harvest(world: &mut World, output: &mut Output) {
    if let Err(why) = now(world) {
        output.warn(&format!("{}: what was refused since the last harvest is not written down yet", why.message));
    }
}

/// How many records the book had when it was written on last, as the baseline knows; 0 where that is not known.
pub fn known(files: &dyn Files) -> u64 {
    files.read(BASELINE).ok().flatten().and_then(|content| Baseline::parse(&content)).map_or(0, |baseline| baseline.seq())
}

/// What was counted and stands in no book yet, without writing anything.
pub fn unwritten(world: &mut World) -> Result<Vec<Kind>, Failure> {
    let Some(counts) = counts(LEDGER, world)? else { return Ok(Vec::new()) };
    let seq = Writer::new(books::LEDGER).head(world.files)?.seq;
    let baseline = baseline(seq, world.files)?;
    Ok(baseline.harvest(&counts, &world.host.namespace(), moment(world.host)).kinds)
}

/// The same, for those who want nothing else; how many records that were.
pub fn now(world: &mut World) -> Result<usize, Failure> {
    let mut records = 0;
    // Nothing counts where there is no table, and most often nothing was counted since: three elements say so.
    let Some(totals) = counts(LEDGER_ALL, world)? else { return Ok(records) };
    let mut writer = Writer::new(books::LEDGER);
    let seq = writer.head(world.files)?.seq;
    let before = baseline(seq, world.files)?;
    let (place, now) = (world.host.namespace(), moment(world.host));
    if before.seq() != seq || !before.is_up_to_date(&totals, &place, now) {
        let Some(counts) = counts(LEDGER, world)? else { return Ok(records) };
        let harvest = before.harvest(&counts, &place, now);
        records = harvest.kinds.len();
        let head = match harvest.kinds.is_empty() {
            true => writer.head(world.files)?,
            false => writer.append(world.files, now.wall, &harvest.kinds, Care::OnTheDisk)?,
        };
        // ORDER: after the book, which tells what a baseline does not know. It counts in this boot only, so the disk is not waited for.
        world.files.note(BASELINE, &harvest.baseline.knowing(head.seq).print())?;
    }
    world.files.note(READ_AT, format!("{}\n", now.wall).as_bytes())?;
    Ok(records)
}

/// The sets that count; nothing where there is no table, and no nf_tables to have one.
fn counts(prefix: &str, world: &mut World) -> Result<Option<Counts>, Failure> {
    match world.kernel.counts(prefix) {
        Err(KernelError::NoNfTables(_)) => Ok(None),
        counts => Ok(counts?),
    }
}

/// The baseline, with what the book holds beyond it up to its record `seq`.
fn baseline(seq: u64, files: &dyn Files) -> Result<Baseline, FileError> {
    let written = files.read(BASELINE)?.and_then(|content| Baseline::parse(&content));
    let mut baseline = written.unwrap_or_else(Baseline::of_a_book);
    let is_behind = baseline.seq() < seq;
    if is_behind {
        books::each(books::LEDGER, files, |line| baseline.replay(&line))?;
    }
    let read_at = files.read(READ_AT)?.and_then(|content| Timestamp::parse(String::from_utf8_lossy(&content).trim()));
    Ok(match read_at {
        // A harvest that died after its records is the later reading.
        Some(at) if !is_behind => baseline.read_at(at),
        _ => baseline,
    })
}

/// This moment by the clocks that counts go by.
fn moment(host: &dyn Host) -> Moment {
    let clock = host.clock();
    Moment { wall: clock.wall, awake: clock.boottime.saturating_sub(host.slept()) }
}
