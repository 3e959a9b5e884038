//! `verify`: whether the kernel holds what was applied, each difference by name, and what else stands in the way of packets.

use std::mem::ManuallyDrop;

use serde_json::{Value, json};

use crate::command::arguments::VerifyArguments;
use crate::command::{Exit, Failure, Output, enforce, handover, source, trial};
use crate::judge::drift::{Difference, drift};
use crate::judge::surroundings::{Finding, NEVER_SEEN, Weight, findings};
use crate::policy::Policy;
use crate::ruleset::surroundings::Surroundings;
use crate::state::{self, Backend, Current};
use crate::world::{Depth, KernelError, World};

/// The most differences of one kind that are listed for people.
const LISTED: usize = 20;

/// Runs `verify`.
pub fn verify(arguments: &VerifyArguments, world: &mut World, output: &mut Output) -> Result<Exit, Failure> {
    let nothing = || Failure::refused("no policy is applied here", "run `egressguard apply POLICY` first");
    let Current::Generation(generation) = state::current(world.files)? else { return Err(nothing()) };
    let saved = state::load(world.files, generation)?.ok_or_else(nothing)?;
    let policy = source::parse(&saved.record.file, saved.policy.clone(), &mut output.quiet())?.policy;
    // The process ends with this answer: what is large is not given back element by element before that.
    let saved = ManuallyDrop::new(saved);
    let meant = ManuallyDrop::new(trial::meant(enforce::earlier_rules(&saved, &policy, world.host), world, output));
    let backend = handover::held_by(world);
    let mut look = || -> Result<Vec<Difference>, Failure> {
        if backend == Backend::Iptables {
            let words = handover::differences(&meant, &saved.record.facts(&world.host.clock()), world.host.now(), world.programs)?;
            return Ok(words.into_iter().map(|words| Difference { what: "iptables", rule: None, line: None, words }).collect());
        }
        let there = ManuallyDrop::new(world.kernel.observe(Depth::Pins)?.1);
        // ORDER: the clock after the kernel, whose answer says how long elements have left now.
        Ok(drift(there.as_ref(), &meant, &policy, world.host.now()))
    };
    let mut differences = look()?;
    if !differences.is_empty() {
        // The kernel removes elements whose time is over whenever it likes, and one that goes while a large set is dumped hides another.
        differences = look()?;
    }
    let around = match world.kernel.surroundings() {
        Err(KernelError::NoNfTables(_)) if backend == Backend::Iptables => Surroundings::default(),
        around => around?,
    };
    let findings = findings(&around, &policy);
    let defeated = findings.iter().any(|finding| finding.weight == Weight::Defeats);
    if arguments.json {
        output.json(&json!({
            "schema": "egressguard.verify/1",
            "same": differences.is_empty(),
            "defeated": defeated,
            "policy": {"name": policy.name.as_str(), "sha256": policy.sha256, "file": policy.file},
            "generation": generation,
            "differences": differences.iter().map(difference_json).collect::<Vec<_>>(),
            "foreign": findings.iter().map(finding_json).collect::<Vec<_>>(),
            "unseen": unseen(&around.unseen).collect::<Vec<_>>(),
        }))?;
    } else {
        say_differences(&differences, &policy, generation, output)?;
        say_findings(&findings, output)?;
        for what in &around.unseen {
            output.warn(&format!("not looked at: {what}"));
        }
        for what in NEVER_SEEN {
            output.detail(&format!("not looked at: {what}"));
        }
    }
    if defeated {
        output.warn("something that is not ours takes packets elsewhere after our rules have let them pass");
    }
    if !differences.is_empty() {
        output.warn(match differences.iter().any(|difference| difference.what == "table-foreign") {
            true => "nothing is filtered: delete that table, then run `egressguard restore`",
            false => "somebody else changed the rules; `egressguard refresh --repair` puts them right",
        });
    }
    Ok(if differences.is_empty() && !defeated { Exit::Done } else { Exit::No })
}

fn unseen(found: &[String]) -> impl Iterator<Item = &str> {
    found.iter().map(String::as_str).chain(NEVER_SEEN)
}

fn say_differences(differences: &[Difference], policy: &Policy, generation: u64, output: &mut Output) -> Result<(), Failure> {
    if differences.is_empty() {
        output.say(&format!("same: the kernel holds policy `{}` (generation {generation}) as it was compiled", policy.name))?;
        return Ok(());
    }
    output.say(&format!("differs from policy `{}` (generation {generation}):", policy.name))?;
    let mut said = 0;
    for (position, difference) in differences.iter().enumerate() {
        let first_of_kind = position == 0 || differences.get(position - 1).is_none_or(|before| before.what != difference.what);
        said = if first_of_kind { 1 } else { said + 1 };
        if said <= LISTED {
            let line = difference.line.map(|line| format!("  [{}:{}]", policy.file, line.0)).unwrap_or_default();
            output.say(&format!("  {}{line}", difference.words))?;
        } else if said == LISTED + 1 {
            let rest = differences.iter().skip(position).take_while(|other| other.what == difference.what).count();
            output.say(&format!("  … and {rest} more of this kind"))?;
        }
    }
    Ok(())
}

fn say_findings(findings: &[Finding], output: &mut Output) -> Result<(), Failure> {
    if findings.is_empty() {
        return Ok(());
    }
    output.say("not ours:")?;
    for finding in findings {
        output.say(&format!("  {:<8}  {}", finding.weight.word(), finding.what))?;
        output.say(&format!("            {}", finding.means))?;
    }
    Ok(())
}

fn difference_json(difference: &Difference) -> Value {
    json!({
        "what": difference.what,
        "rule": difference.rule,
        "line": difference.line.map(|line| line.0),
        "words": difference.words,
    })
}

fn finding_json(finding: &Finding) -> Value {
    json!({"what": finding.what, "means": finding.means, "effect": finding.weight.word()})
}
