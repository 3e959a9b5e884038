//! Rules on trial: two rulesets in one table, and a gate that the kernel closes by itself.
//!
//! Each base chain asks one question first: whether the set [`TRIAL`] holds its element. As long as it does, the packet goes through the
//! new rules; once the element's time is over, through those from before. The kernel asks that of each packet anew and needs nobody for
//! it. There is one element and two ways, so that there is no moment of both sets of rules and none of neither.

use std::collections::{BTreeMap, BTreeSet};

use crate::base::time::Timestamp;
use crate::ruleset::compile::QUARANTINED_HOST;
use crate::ruleset::field::Field;
use crate::ruleset::program::{KeyType, SetDef};
use crate::ruleset::rule::{Action, Operator, Rule, Statement, in_set};
use crate::ruleset::set::{Member, Set};
use crate::ruleset::{Chain, IDENTITY_CHAIN, Ruleset, identity_rules};

/// The set whose one element is the gate; also the chain whose comments say whose rules are on trial.
pub const TRIAL: &str = "trial";
/// What the names of chains and sets from before begin with, where the new rules have others of the same name.
const BEFORE: &str = "before_";

/// The new rules until this time, and those from before after it; nothing from before: then everything passes again. Where both have
/// the same set it is one: so nothing that was counted or cut off is forgotten, in either direction.
pub fn on_trial(new: Ruleset, before: Option<Ruleset>, until: Timestamp) -> Ruleset {
    let is_first = before.is_none();
    let identity = match &before {
        Some(before) => before.identity.clone(),
        // Nobody takes it for a generation that was applied.
        None => crate::ruleset::Identity { generation: 0, ..new.identity.clone() },
    };
    let tried = Chain::regular(TRIAL, identity_rules(&new.identity));
    let mut sets = new.sets;
    sets.insert(TRIAL.to_string(), gate(new.identity.generation, until));

    let old = before.map(|before| beside(before, &mut sets));
    let mut bases: BTreeMap<String, Chain> = BTreeMap::new();
    let mut regular = Vec::new();
    let old_chains = old.into_iter().flatten().map(|chain| (BEFORE, chain));
    let new_chains = new.chains.into_iter().filter(|chain| chain.def.name != IDENTITY_CHAIN).map(|chain| ("trial_", chain));
    for (prefix, mut chain) in new_chains.chain(old_chains) {
        let Some(base) = chain.def.base.take() else {
            regular.push(chain);
            continue;
        };
        // What its own end would do, the last rule does: the base chain has one end for both.
        let last = if base.accepts { Action::Accept } else { Action::Drop };
        chain.rules.push(Rule::new("policy", vec![], vec![], last));
        let hook = base.hook.keyword();
        let entry = bases.entry(hook.to_string()).or_insert_with(|| {
            // Where nothing was there before, whoever is cut off meanwhile stays so: only the new rules know how.
            let cut = Rule::new(TRIAL, vec![in_set(Field::Everybody, QUARANTINED_HOST)], vec![], Action::Goto(format!("trial_{hook}")));
            let otherwise = Rule::new(TRIAL, vec![], vec![], Action::Accept);
            let def = crate::ruleset::program::ChainDef {
                name: hook.to_string(),
                base: Some(crate::ruleset::program::Base { accepts: false, ..base.clone() }),
            };
            Chain { def, rules: if is_first { vec![cut, otherwise] } else { vec![otherwise] } }
        });
        let name = format!("{prefix}{hook}");
        match prefix {
            BEFORE => {
                if let Some(otherwise) = entry.rules.last_mut() {
                    otherwise.action = Action::Goto(name.clone());
                }
            }
            _ => entry.rules.insert(0, Rule::new(TRIAL, vec![in_set(Field::Everybody, TRIAL)], vec![], Action::Goto(name.clone()))),
        }
        chain.def.name = name;
        regular.push(chain);
    }
    // The order in which the base chains of a policy stand.
    let mut chains: Vec<Chain> = ["input", "output", "forward"].into_iter().filter_map(|hook| bases.remove(hook)).collect();
    chains.extend(bases.into_values());
    chains.extend(regular);
    chains.push(tried);
    chains.push(Chain::regular(IDENTITY_CHAIN, identity_rules(&identity)));
    Ruleset { identity, chains, sets }
}

/// The gate, open until this time.
fn gate(generation: u64, until: Timestamp) -> Set {
    let member = Member { last: None, expires: Some(until), comment: format!("generation {generation}") };
    let def = SetDef { timeout: true, ..SetDef::plain(TRIAL.to_string(), vec![KeyType::Mark]) };
    Set { def, members: BTreeMap::from([(vec![0; 4], member)]) }
}

/// The chains from before under names that the new rules have not, without the identity; their sets come to the others.
fn beside(before: Ruleset, sets: &mut BTreeMap<String, Set>) -> Vec<Chain> {
    let mut renamed: BTreeSet<String> = BTreeSet::new();
    for (name, mut set) in before.sets {
        match sets.get(&name) {
            // Rules fill both alike, or both hold the same.
            Some(other) if *other == set => {}
            Some(_) => {
                let other = format!("{BEFORE}{name}");
                set.def.name.clone_from(&other);
                sets.insert(other, set);
                renamed.insert(name);
            }
            None => {
                sets.insert(name, set);
            }
        }
    }
    let set_name = |name: &mut String| {
        if renamed.contains(name) {
            *name = format!("{BEFORE}{name}");
        }
    };
    let mut chains: Vec<Chain> = before.chains.into_iter().filter(|chain| chain.def.name != IDENTITY_CHAIN).collect();
    for chain in &mut chains {
        if chain.def.base.is_none() {
            chain.def.name = format!("{BEFORE}{}", chain.def.name);
        }
        for rule in &mut chain.rules {
            for test in &mut rule.tests {
                if let Operator::In(set) = &mut test.operator {
                    set_name(set);
                }
            }
            for statement in &mut rule.statements {
                if let Statement::Update { set, .. } = statement {
                    set_name(set);
                }
            }
            if let Action::Jump(chain) | Action::Goto(chain) = &mut rule.action {
                *chain = format!("{BEFORE}{chain}");
            }
        }
    }
    chains
}
