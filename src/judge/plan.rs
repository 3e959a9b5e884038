//! What has to change in the kernel so that it holds a ruleset: nothing, elements of sets, or rules.
//!
//! An apply forgets nothing: chains whose rules are right stay, sets keep the elements that stay, and the sets that rules fill are
//! not looked into at all. The same plan reads a commit back: what is there is right when nothing has to change.

use std::collections::{BTreeMap, BTreeSet};

use crate::base::time::Timestamp;
use crate::ruleset::lift::{Found, NOT_UNDERSTOOD, lift};
use crate::ruleset::lower::{lower, lower_member};
use crate::ruleset::program::{ChainDef, Element, Elements, Hook, Key, Op, RuleProgram, SetDef, TABLE, TableDump};
use crate::ruleset::rule::Action;
use crate::ruleset::set::{Member, Set};
use crate::ruleset::{Ruleset, TABLE_COMMENT};

/// The kernel rounds times to its clock tick, and a transaction takes a moment: ends this close, in seconds, are the same end. Of an
/// element that has not long to live less is the same, for a renewal must not be lost in it.
fn slack(left: i64) -> i64 {
    (left / 8).clamp(2, 5)
}

/// What has to change, and the steps that change it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    /// The steps, in an order that the kernel takes; empty when nothing has to change.
    pub ops: Vec<Op>,
    /// Whether the table is made, or made anew.
    pub fresh: bool,
    /// Chains whose rules or policy change, are made or removed, in words.
    pub chains: Vec<String>,
    /// Sets that are made, made anew, or removed.
    pub sets: Vec<String>,
    /// Elements that are added.
    pub added: Vec<ElementChange>,
    /// Elements that are removed.
    pub removed: Vec<ElementChange>,
    /// Elements whose time or comment changes.
    pub renewed: Vec<ElementChange>,
    /// What is in the table and not understood; it goes.
    pub foreign: Vec<String>,
}

/// An element of a set.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ElementChange {
    /// The set.
    pub set: String,
    /// The element, as nft writes it.
    pub element: String,
    /// Its comment.
    pub comment: String,
}

/// The table of our name is somebody else's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there is a table `inet {TABLE}` that egressguard did not make")]
pub struct NotOurs;

impl Plan {
    /// Whether nothing has to change.
    pub fn is_nothing(&self) -> bool {
        self.ops.is_empty()
    }

    /// Whether more than elements of sets changes.
    pub fn touches_rules(&self) -> bool {
        self.fresh || !self.chains.is_empty() || !self.sets.is_empty() || !self.foreign.is_empty()
    }

    /// Adds what was done after it.
    pub fn absorb(&mut self, later: Plan) {
        self.ops.extend(later.ops);
        self.fresh |= later.fresh;
        for (all, more) in [(&mut self.chains, later.chains), (&mut self.sets, later.sets), (&mut self.foreign, later.foreign)] {
            all.extend(more);
            all.sort();
            all.dedup();
        }
        for (all, more) in [(&mut self.added, later.added), (&mut self.removed, later.removed), (&mut self.renewed, later.renewed)] {
            all.extend(more);
        }
    }

    /// Whether nothing but times of elements that are there changes.
    pub fn changes_times_only(&self) -> bool {
        !self.touches_rules() && self.added.is_empty() && self.removed.is_empty()
    }

    /// Each difference in words, for a report of drift.
    pub fn differences(&self) -> Vec<String> {
        let mut words: Vec<String> = Vec::new();
        if self.fresh && self.foreign.is_empty() {
            return vec![format!("table `inet {TABLE}` is missing")];
        }
        words.extend(self.foreign.iter().map(|what| format!("foreign: {what}")));
        words.extend(self.chains.iter().map(|name| format!("chain `{name}` differs")));
        words.extend(self.sets.iter().map(|name| format!("set `{name}` differs")));
        let element = |change: &ElementChange| match change.comment.as_str() {
            "" => format!("{} of set `{}`", change.element, change.set),
            comment => format!("{} ({comment}) of set `{}`", change.element, change.set),
        };
        words.extend(self.added.iter().map(|change| format!("missing: {}", element(change))));
        words.extend(self.removed.iter().map(|change| format!("not meant: {}", element(change))));
        words.extend(self.renewed.iter().map(|change| format!("wrong time or comment: {}", element(change))));
        words
    }
}

/// Plans the change from what was observed to what is meant at `now`.
pub fn plan(observed: Option<&TableDump>, meant: &Ruleset, now: Timestamp) -> Result<Plan, NotOurs> {
    plan_with(|found, meant, now| (found.0 - meant.0).abs() <= slack(meant.0 - now.0), observed, meant, now)
}

/// Plans the change from what was told to what is meant. A renewal that is too small for today may be one of many, and none is left out;
/// only an end that is a second earlier, as that of an address that left DNS in the second in which it was confirmed, can wait.
pub fn plan_from(told: &TableDump, meant: &Ruleset, now: Timestamp) -> Result<Plan, NotOurs> {
    plan_with(|told, meant, _| (0..=1).contains(&(told.0 - meant.0)), Some(told), meant, now)
}

/// Whether the end that was found is the one that is meant, at a time.
type SameEnd = fn(Timestamp, Timestamp, Timestamp) -> bool;

fn plan_with(same_end: SameEnd, observed: Option<&TableDump>, meant: &Ruleset, now: Timestamp) -> Result<Plan, NotOurs> {
    let target = lower(meant, now);
    let Some(dump) = observed else { return Ok(from_nothing(&target)) };
    if dump.table.comment != TABLE_COMMENT {
        return Err(NotOurs);
    }
    // Flags and objects of other kinds cannot be taken out one by one without understanding them.
    if dump.table.flags != 0 || !dump.foreign.is_empty() {
        let mut plan = from_nothing(&target);
        plan.ops.insert(0, Op::DeleteTable);
        plan.foreign = lift(dump, now).foreign;
        return Ok(plan);
    }
    Ok(Differ { dump, found: lift(dump, now), meant, target: &target, now, same_end, plan: Plan::default() }.run())
}

fn from_nothing(target: &TableDump) -> Plan {
    let mut ops = vec![Op::AddTable(target.table.clone())];
    let mut added = Vec::new();
    for (set, elements) in target.sets.values() {
        ops.push(Op::AddSet(set.clone()));
        if !elements.is_empty() {
            added.extend(elements.iter().map(|(key, element)| change(set, key, element)));
            ops.push(Op::AddElements { set: set.clone(), elements: elements.clone() });
        }
    }
    ops.extend(target.chains.iter().map(|(def, _)| Op::AddChain(def.clone())));
    ops.extend(target.chains.iter().flat_map(|(def, rules)| add_rules(def, rules)));
    Plan { ops, fresh: true, added, ..Plan::default() }
}

fn add_rules(def: &ChainDef, rules: &[RuleProgram]) -> impl Iterator<Item = Op> {
    rules.iter().map(|rule| Op::AddRule { chain: def.name.clone(), rule: rule.clone() })
}

fn change(set: &SetDef, key: &Key, element: &Element) -> ElementChange {
    ElementChange {
        set: set.name.clone(),
        element: crate::ruleset::text::write_key(&set.key, key, element.last.as_ref()),
        comment: element.comment.replace(char::is_control, "?"),
    }
}

struct Differ<'a> {
    dump: &'a TableDump,
    found: Found,
    meant: &'a Ruleset,
    target: &'a TableDump,
    now: Timestamp,
    same_end: SameEnd,
    plan: Plan,
}

impl Differ<'_> {
    fn run(mut self) -> Plan {
        self.plan.foreign.clone_from(&self.found.foreign);
        let remade = self.remade_sets();
        let flushed = self.changed_chains(&remade);
        // Anonymous sets belong to rules and go with them.
        let unmeant = self.dump.sets.iter().filter(|(name, (def, _))| !self.target.sets.contains_key(*name) && !is_anonymous(def));
        let gone: Vec<String> = unmeant.map(|(name, _)| name.clone()).collect();

        // ORDER: rules go before the sets they use and come after them; chains come before rules that jump to them.
        let existing: BTreeMap<&str, &ChainDef> = self.dump.chains.iter().map(|(def, _)| (def.name.as_str(), def)).collect();
        self.plan.ops.extend(flushed.iter().filter(|name| existing.contains_key(name.as_str())).cloned().map(Op::FlushChain));
        self.plan.ops.extend(remade.iter().filter(|name| self.dump.sets.contains_key(*name)).cloned().map(Op::DeleteSet));
        self.sets(&remade);
        for (def, _) in &self.target.chains {
            match existing.get(def.name.as_str()) {
                Some(there) if *there == def => continue,
                // The policy of a base chain can be changed; where it hangs cannot.
                Some(there) if place(there) != place(def) => self.plan.ops.push(Op::DeleteChain(def.name.clone())),
                _ => {}
            }
            self.plan.ops.push(Op::AddChain(def.clone()));
        }
        for (def, rules) in self.target.chains.iter().filter(|(def, _)| flushed.contains(&def.name)) {
            self.plan.ops.extend(add_rules(def, rules));
        }
        let gone_chains = existing.keys().filter(|name| !self.target.chains.iter().any(|(def, _)| def.name == **name));
        self.plan.ops.extend(gone_chains.map(|name| Op::DeleteChain((*name).to_string())));
        self.plan.ops.extend(gone.iter().cloned().map(Op::DeleteSet));
        self.plan.chains = flushed.into_iter().collect();
        self.plan.sets = remade.into_iter().chain(gone).collect();
        self.plan
    }

    /// Sets that are new, or whose type or flags are not what is meant.
    fn remade_sets(&self) -> BTreeSet<String> {
        let differs = |name: &String, def: &SetDef| self.dump.sets.get(name).is_none_or(|(there, _)| there != def);
        self.target.sets.iter().filter(|(name, (def, _))| differs(name, def)).map(|(name, _)| name.clone()).collect()
    }

    /// Chains whose definition or rules are not what is meant, chains that go, and chains that use a set which is made anew.
    fn changed_chains(&self, remade: &BTreeSet<String>) -> BTreeSet<String> {
        let mut changed = BTreeSet::new();
        for chain in &self.meant.chains {
            let found = self.found.chains.iter().find(|found| found.chain.def.name == chain.def.name);
            let loadable = || chain.rules.iter().filter(|rule| rule.is_loadable());
            let same = found.is_some_and(|found| {
                !found.has_foreign
                    && found.chain.def == chain.def
                    && found.chain.rules.iter().eq(loadable())
                    && !loadable().flat_map(|rule| rule.sets()).any(|set| remade.contains(set))
            });
            if !same {
                changed.insert(chain.def.name.clone());
            }
        }
        let unmeant = self.found.chains.iter().filter(|found| self.meant.chain(&found.chain.def.name).is_none());
        changed.extend(unmeant.map(|found| found.chain.def.name.clone()));
        changed
    }

    fn sets(&mut self, remade: &BTreeSet<String>) {
        for (name, (def, elements)) in &self.target.sets {
            if remade.contains(name) {
                self.plan.ops.push(Op::AddSet(def.clone()));
                self.add(def, elements);
            } else if !def.dynamic {
                self.elements(name, def, elements);
            }
        }
    }

    fn add(&mut self, def: &SetDef, elements: &Elements) {
        if !elements.is_empty() {
            self.plan.added.extend(elements.iter().map(|(key, element)| change(def, key, element)));
            self.plan.ops.push(Op::AddElements { set: def.clone(), elements: elements.clone() });
        }
    }

    fn elements(&mut self, name: &str, def: &SetDef, meant: &Elements) {
        let (Some((_, raw)), Some(there)) = (self.dump.sets.get(name), self.found.sets.get(name)) else { return };
        let nothing = BTreeMap::new();
        let members = self.meant.sets.get(name).map_or(&nothing, |set: &Set| &set.members);
        let mut added = Elements::new();
        let mut renewed = Elements::new();
        for (key, element) in meant {
            match there.members.get(key).zip(members.get(key)) {
                None => drop(added.insert(key.clone(), element.clone())),
                Some((found, meant)) if same_member(found, meant, |found, meant| (self.same_end)(found, meant, self.now)) => {}
                Some(_) => {
                    let counted = raw.get(key).and_then(|raw| raw.counted);
                    renewed.insert(key.clone(), Element { counted, ..element.clone() });
                }
            }
        }
        let removed: Elements =
            raw.iter().filter(|(key, _)| !meant.contains_key(*key)).map(|(key, raw)| (key.clone(), bare(raw))).collect();
        self.plan.removed.extend(removed.iter().map(|(key, element)| change(def, key, element)));
        self.plan.renewed.extend(renewed.iter().map(|(key, element)| change(def, key, element)));
        for elements in [&removed, &renewed] {
            if !elements.is_empty() {
                // One that has just expired cannot be deleted, and would fail the whole transaction: it is added first.
                let mut present = elements.clone();
                for (key, element) in &mut present {
                    element.last = raw.get(key).and_then(|raw| raw.last.clone());
                    element.counted = None;
                }
                if def.timeout {
                    self.plan.ops.push(Op::AddElements { set: def.clone(), elements: present.clone() });
                }
                self.plan.ops.push(Op::DeleteElements { set: def.clone(), elements: present });
            }
        }
        if !renewed.is_empty() {
            self.plan.ops.push(Op::AddElements { set: def.clone(), elements: renewed });
        }
        self.add(def, &added);
    }
}

/// Whether the set is a part of the rule that uses it. A name tells nothing: anybody can call a set `__set0`.
pub(super) fn is_anonymous(def: &SetDef) -> bool {
    def.foreign.as_ref().is_some_and(|words| words.contains("anonymous"))
}

/// Where a chain hangs: everything but its policy.
fn place(def: &ChainDef) -> Option<(&str, Hook, i32)> {
    def.base.as_ref().map(|base| (base.kind.as_str(), base.hook, base.priority))
}

/// The element without what time and packets made of it.
fn bare(element: &Element) -> Element {
    Element { expires_ms: None, counted: None, ..element.clone() }
}

/// Whether an element found is the one meant.
fn same_member(found: &Member, meant: &Member, same: impl FnOnce(Timestamp, Timestamp) -> bool) -> bool {
    let same_end = match (found.expires, meant.expires) {
        (None, None) => true,
        (Some(found), Some(meant)) => same(found, meant),
        _ => false,
    };
    same_end && found.last == meant.last && found.comment == meant.comment
}

/// The dump that a ruleset would leave behind, for planning without asking the kernel.
pub fn imagine(ruleset: &Ruleset, now: Timestamp) -> TableDump {
    let mut dump = lower(ruleset, now);
    for (name, (_, elements)) in &mut dump.sets {
        let members = ruleset.sets.get(name).map(|set| &set.members);
        for (key, element) in elements.iter_mut() {
            element.expires_ms =
                members.and_then(|members| members.get(key)).and_then(|member| lower_member(member, now)).and_then(|e| e.timeout_ms);
        }
    }
    dump
}

/// The steps that load again what was there before in place of what is there now. Sets that rules fill stay as they are: nobody who is
/// cut off is let go by it, and nothing that was counted is lost. Only where something in it is not understood the table is made anew;
/// then elements keep the time they had left, and what rules have filled and counted is lost.
pub fn back_to(before: &TableDump, there: Option<&TableDump>, now: Timestamp) -> Vec<Op> {
    let found = lift(before, now);
    let ruleset = found.ruleset(&Action::Drop);
    let mut rules = ruleset.chains.iter().flat_map(|chain| &chain.rules);
    let understood = found.identity.is_some() && before.table.flags == 0 && found.foreign.is_empty();
    if understood
        && rules.all(|rule| !rule.id.starts_with(NOT_UNDERSTOOD))
        && let Ok(plan) = plan(there, &ruleset, now)
    {
        return plan.ops;
    }
    reload(before)
}

fn reload(dump: &TableDump) -> Vec<Op> {
    let mut again = dump.clone();
    for (_, elements) in again.sets.values_mut() {
        for element in elements.values_mut() {
            element.timeout_ms = element.expires_ms.or(element.timeout_ms);
            element.expires_ms = None;
        }
    }
    // Anonymous sets have no name to load them under; the rules that use them are foreign ones.
    again.sets.retain(|_, (def, _)| !is_anonymous(def));
    let mut ops = vec![Op::AddTable(again.table.clone()), Op::DeleteTable];
    ops.extend(from_nothing(&again).ops);
    ops
}
