//! In what two rulesets differ: exactly which packets are allowed that were not, and which no longer are, with a witness of each
//! difference and the rules that decide. No sample is taken and no solver asked.
//!
//! Every test of a rule asks whether one value of the packet lies in some intervals, so values that answer every test alike are
//! indistinguishable. `layout` writes the chains of a ruleset out as a row of such questions, a `program`; `divide` cuts the packet space at
//! their break points, only as far as what is left of both sides differs; `gather` joins the boxes again; `witness` takes a packet
//! out of each, and both sides are asked about it by `decide`, the evaluator that `test` and `explain` use.
//!
//! What a packet is here: at the hook for in, out or forward; by loopback exactly when one of its addresses is (or in passing, never);
//! ICMP over its own family; otherwise any combination of values. Sets that rules fill are empty, and no rate is exceeded.

pub mod dimension;
mod divide;
mod gather;
mod kernel;
mod layout;
mod program;
mod setting;
mod symbol;
pub mod values;
mod witness;
mod words;

use std::collections::{BTreeMap, HashSet};

use thiserror::Error;

use crate::base::packet::Direction;
use crate::judge::packet::Packet;
use crate::judge::trace::{Prepared, Trace, Verdict};
use crate::policy::RESERVED_IDS;
use crate::ruleset::Ruleset;
use dimension::{Place, Units};
use divide::{Divide, Pair, Passing};
use gather::Group;
use layout::{OBSERVED, program};
use program::{Atoms, End, Program};

pub use divide::{Bounds, Effort};
pub use gather::{Fit, Part};
pub use kernel::{Applied, as_found, lifted, names_in};
pub use layout::passed_by;
pub use setting::{Effect, Setting, settings};
pub use symbol::{Symbol, Symbols};
pub use witness::Witness;
pub use words::{Space, direction, phrases, space};

/// Why two rulesets were not compared.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Trouble {
    /// The comparison would take too long.
    #[error("{0}")]
    OutOfReach(String),
    /// A rule asks something that cannot be cut into intervals.
    #[error("{0}")]
    NotUnderstood(String),
    /// A witness is judged otherwise than the comparison says. It is a bug.
    #[error("`{0}` is judged otherwise than it was compared")]
    Disagreement(String),
}

/// What a difference means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Something is allowed that was not.
    Widens,
    /// Something is no longer allowed.
    Narrows,
    /// Another rule that somebody wrote allows it.
    Reroutes,
}

/// Who decides about a packet, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// What becomes of the packet.
    pub verdict: Verdict,
    /// The id of the rule.
    pub rule: String,
    /// What of the rule the packet meets: a name or a network.
    pub target: Option<String>,
}

/// A difference: packets that one rule decided about and another does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// What it means.
    pub kind: Kind,
    /// Who decided about the witness.
    pub before: Decision,
    /// Who decides about it.
    pub after: Decision,
    /// A packet of them.
    pub witness: Witness,
    /// All of them: boxes of the packet space that do not overlap, one or more.
    pub parts: Vec<Part>,
    /// The least box around them.
    pub hull: Part,
    /// What there is in it besides them.
    pub fit: Fit,
}

impl Change {
    /// Whether the packet is one of those that the change is about.
    pub fn covers(&self, packet: &Packet, units: &Units) -> bool {
        self.parts.iter().any(|part| part.holds(packet, units))
    }

    /// Whether everything that is refused passes, because the policy only observes.
    pub fn is_of_mode(&self) -> bool {
        let end = match self.kind {
            Kind::Narrows => &self.before,
            Kind::Widens | Kind::Reroutes => &self.after,
        };
        passed_by(&end.rule) == OBSERVED
    }

    /// The directions of its packets.
    pub fn directions(&self) -> Vec<Direction> {
        let mut directions: Vec<Direction> = self.parts.iter().flat_map(|part| &part.places).map(|place| place.direction()).collect();
        directions.sort();
        directions.dedup();
        directions
    }
}

/// In what two rulesets differ, widening first. Both are compiled or lifted with these symbols.
pub fn compare(old: &Ruleset, new: &Ruleset, symbols: &Symbols) -> Result<Vec<Change>, Trouble> {
    compare_within(Effort::PATIENT, old, new, symbols)
}

/// The same with another patience: what takes more effort is out of reach.
pub fn compare_within(mut effort: Effort, old: &Ruleset, new: &Ruleset, symbols: &Symbols) -> Result<Vec<Change>, Trouble> {
    let mut atoms = Atoms::default();
    let mut programs: BTreeMap<Place, (Program, Program)> = BTreeMap::new();
    let mut found = gather::Found::new();
    for place in Place::ALL {
        let before = program(old, place, &symbols.units, &mut atoms)?;
        let after = program(new, place, &symbols.units, &mut atoms)?;
        let written: HashSet<_> = atoms.labels().filter(|(_, id)| is_written(id)).map(|(label, _)| label).collect();
        let mut divide = Divide { atoms: &mut atoms, units: &symbols.units, place, written: &written, effort: &mut effort };
        let boxes = divide.run(&before, &after)?;
        gather::add(&mut found, place, boxes);
        programs.insert(place, (before, after));
    }
    let nobody = HashSet::new();
    // What is out of reach here is told part by part.
    let mut effort = Effort::PATIENT;
    let mut known: BTreeMap<Place, Passing> = BTreeMap::new();
    let is_filled = |pair: Pair, place: Place, hull: &Bounds| {
        let allowing = programs.get(&place).map(|(before, after)| if pair.0 == End::Deny { after } else { before });
        let mut divide = Divide { atoms: &mut atoms, units: &symbols.units, place, written: &nobody, effort: &mut effort };
        allowing.is_some_and(|program| divide.allows(program, hull, known.entry(place).or_default()).unwrap_or(false))
    };
    let groups = gather::finish(found, is_filled);
    let (old, new) = (Prepared::new(old), Prepared::new(new));
    let mut changes = groups.into_iter().map(|group| change(group, &old, &new, symbols)).collect::<Result<Vec<Change>, Trouble>>()?;
    changes.sort_by_cached_key(|change| (change.kind, change.directions(), change.witness.spec.to_string()));
    Ok(changes)
}

/// Makes a change of a group, and asks both sides about its witness.
fn change(group: Group, old: &Prepared, new: &Prepared, symbols: &Symbols) -> Result<Change, Trouble> {
    let witness = Witness::of(&group.parts, symbols);
    let (before, after) = (old.decide(&witness.packet), new.decide(&witness.packet));
    let allowed = |trace: &Trace| trace.verdict == Verdict::Allow;
    let meant = |end: End| end != End::Deny;
    if (allowed(&before), allowed(&after)) != (meant(group.pair.0), meant(group.pair.1)) {
        return Err(Trouble::Disagreement(witness.spec.to_string()));
    }
    let kind = match (allowed(&before), allowed(&after)) {
        (false, _) => Kind::Widens,
        (true, false) => Kind::Narrows,
        (true, true) => Kind::Reroutes,
    };
    let decision = |trace: Trace| Decision { verdict: trace.verdict, rule: trace.rule, target: trace.target };
    let Group { parts, hull, fit, .. } = group;
    Ok(Change { kind, before: decision(before), after: decision(after), witness, parts, hull, fit })
}

/// Whether a rule's id is one that a person wrote: that of a way out. Every policy has the others.
fn is_written(id: &str) -> bool {
    let built_in = ["", OBSERVED, "policy", "no-rules", "essential", "outbound", "late-answer"];
    !(RESERVED_IDS.contains(&id) || built_in.contains(&id) || id.starts_with("outbound "))
}

/// A ruleset laid out for many packets: faster than [`crate::judge::judge`], and without its reasons.
pub struct Fast<'a> {
    programs: Vec<(Place, Program)>,
    atoms: Atoms,
    units: &'a Units,
}

impl<'a> Fast<'a> {
    /// Lays a ruleset out.
    pub fn new(ruleset: &Ruleset, units: &'a Units) -> Result<Fast<'a>, Trouble> {
        let mut atoms = Atoms::default();
        let mut programs = Vec::new();
        for place in Place::ALL {
            programs.push((place, program(ruleset, place, units, &mut atoms)?));
        }
        Ok(Fast { programs, atoms, units })
    }

    /// The rule that lets the packet pass, as [`passed_by`] names it; `None` when it is refused.
    pub fn allowing(&self, packet: &Packet) -> Option<&str> {
        let program = self.programs.iter().find(|(place, _)| place.holds(packet)).map(|(_, program)| program)?;
        match program::run(program, packet, self.units, &self.atoms) {
            End::Allow(label) => Some(self.atoms.name(label)),
            End::Deny | End::Member(_) => None,
        }
    }
}
