//! Making the kernel hold what is meant: resolve, plan, commit, read back. Shared by apply, refresh and restore.

use std::collections::BTreeMap;

use crate::base::name::DnsName;
use crate::base::time::Timestamp;
use crate::command::{Failure, Output};
use crate::judge::plan::{Plan, imagine, plan};
use crate::pins::{self, Answer, Confirmation, LeaseRules, Outcome, Pins, SpecialAnswers, What};
use crate::policy::{DnsServer, Policy, PrivateAnswers, Target};
use crate::ruleset::Ruleset;
use crate::ruleset::compile::{Facts, compile};
use crate::ruleset::program::{GenerationId, TableDump};
use crate::state::Saved;
use crate::world::{Depth, Host, Kernel, KernelError, Resolver};

/// How often a commit is planned again when somebody else changes the packet filter meanwhile.
const ATTEMPTS: usize = 8;

/// What a commit did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Committed {
    /// What was changed.
    pub plan: Plan,
    /// The kernel's generation after it.
    pub kernel: GenerationId,
}

/// The names of a policy that stand for addresses, each once.
pub fn names(policy: &Policy) -> Vec<DnsName> {
    let outbound = policy.outbound.iter().flat_map(|entry| &entry.to);
    let mut names: Vec<DnsName> = outbound
        .chain(&policy.host.ntp)
        .filter_map(|destination| match &destination.target {
            Target::Name(name) => Some(name.clone()),
            Target::Net(_) => None,
        })
        .collect();
    names.sort();
    names.dedup();
    names
}

/// The lease rules that a policy sets.
pub fn lease_rules(policy: &Policy) -> LeaseRules {
    LeaseRules {
        keep: policy.refresh.keep,
        every: policy.refresh.every,
        special: match policy.refresh.private {
            PrivateAnswers::Refuse => SpecialAnswers::Refuse,
            PrivateAnswers::Allow => SpecialAnswers::Allow,
        },
    }
}

/// The pins of an earlier generation as they count now: stamps follow the clock where it jumped.
pub fn earlier_pins(saved: &Saved, policy: &Policy, host: &dyn Host) -> Pins {
    pins::rebase(&saved.pins, &saved.record.clock(), &host.clock(), policy.refresh.keep).pins
}

/// The rules that an earlier generation stands for now.
pub fn earlier_rules(saved: &Saved, policy: &Policy, host: &dyn Host) -> Ruleset {
    compile(policy, &earlier_pins(saved, policy, host), &saved.record.facts(), saved.record.generation).loadable()
}

/// Asks for every name and confirms the pins. Only the policy's names are kept.
pub fn resolve(
    policy: &Policy,
    facts: &Facts,
    earlier: &Pins,
    resolver: &mut dyn Resolver,
    now: Timestamp,
    output: &mut Output,
) -> Confirmation {
    let names = names(policy);
    let answers = ask(&names, &facts.servers, resolver, output);
    confirm(policy, earlier, &answers, now)
}

/// Confirms the pins by these answers. Only the policy's names are kept.
pub fn confirm(policy: &Policy, earlier: &Pins, answers: &BTreeMap<DnsName, Answer>, now: Timestamp) -> Confirmation {
    let known = earlier.only(&names(policy).into_iter().collect());
    pins::confirm(&known, answers, &lease_rules(policy), now)
}

/// What went wrong, name by name, as a clause about the name.
pub fn problems(confirmation: &Confirmation) -> BTreeMap<DnsName, String> {
    let mut refused: BTreeMap<&DnsName, Vec<String>> = BTreeMap::new();
    for change in confirmation.changes.iter().filter(|change| matches!(change.what, What::Refused(_) | What::OverCap)) {
        refused.entry(&change.name).or_default().push(format!("{} {}", change.address, change.what));
    }
    let mut problems = BTreeMap::new();
    for (name, outcome) in &confirmation.outcomes {
        let mut words: Vec<String> = match outcome {
            Outcome::Confirmed { complaints, .. } => complaints.clone(),
            Outcome::Kept { why, .. } | Outcome::Unresolved { why } => vec![why.clone()],
        };
        words.extend(refused.remove(name).unwrap_or_default());
        if !words.is_empty() {
            problems.insert(name.clone(), words.join("; "));
        }
    }
    problems
}

fn ask(names: &[DnsName], servers: &[DnsServer], resolver: &mut dyn Resolver, output: &mut Output) -> BTreeMap<DnsName, Answer> {
    if servers.is_empty() {
        let nobody = Answer::Failed { reasons: vec!["the host names no DNS server".to_string()] };
        return names.iter().map(|name| (name.clone(), nobody.clone())).collect();
    }
    let mut done = 0;
    let answers = resolver.resolve(names, servers, &mut |name, _| {
        done += 1;
        output.progress(&format!("resolving {done} of {}: {name}", names.len()));
    });
    output.progress("");
    answers
}

/// What the last run told the kernel, and the generation that this made. While that is the kernel's generation, nobody has changed
/// anything since, and what the kernel holds is known without reading it.
#[derive(Debug, Clone, PartialEq)]
pub struct Told {
    /// The kernel's generation after it.
    pub kernel: GenerationId,
    /// What the kernel was told to hold.
    pub ruleset: Ruleset,
}

/// What has to change, and how that is known.
pub struct Proposal {
    /// The kernel's generation that it starts from.
    pub generation: GenerationId,
    /// What the kernel holds.
    pub there: Option<TableDump>,
    /// How that is known.
    pub source: Knowledge,
    /// What has to change.
    pub plan: Plan,
}

/// How it is known what the kernel holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Knowledge {
    /// It was read.
    Read,
    /// It is what it was told, for nobody has changed anything since.
    Told,
}

/// Plans how the kernel comes to hold `meant`, without reading it where that is not needed.
pub fn propose(kernel: &mut dyn Kernel, meant: &Ruleset, told: Option<&Told>, now: Timestamp) -> Result<Proposal, Failure> {
    if let Some(told) = told
        && kernel.generation()? == told.kernel
    {
        let there = imagine(&told.ruleset, now);
        let plan = plan(Some(&there), meant, now)?;
        // A renewed element takes what it has counted along, which only the kernel knows.
        if plan.renewed.is_empty() {
            return Ok(Proposal { generation: told.kernel, there: Some(there), source: Knowledge::Told, plan });
        }
    }
    let (generation, there) = kernel.observe(Depth::Pins)?;
    let plan = plan(there.as_ref(), meant, now)?;
    Ok(Proposal { generation, there, source: Knowledge::Read, plan })
}

/// Makes the kernel hold `meant`, and reads it back. `renumber` gives the ruleset its new generation once something has to change.
/// Retries when somebody else changes the packet filter between reading and committing.
pub fn commit(
    kernel: &mut dyn Kernel,
    meant: &mut Ruleset,
    told: Option<&Told>,
    host: &dyn Host,
    renumber: &mut dyn FnMut(&mut Ruleset) -> Result<(), Failure>,
) -> Result<Committed, Failure> {
    let mut numbered = false;
    for _ in 0..ATTEMPTS {
        let now = host.now();
        let Proposal { generation, there, plan: mut change, .. } = propose(kernel, meant, told, now)?;
        if change.is_nothing() {
            return Ok(Committed { plan: change, kernel: generation });
        }
        if !numbered {
            renumber(meant)?;
            numbered = true;
            change = plan(there.as_ref(), meant, now)?;
        }
        match kernel.commit(generation, &change.ops) {
            Ok(committed) => match read_back(kernel, meant, now, host, committed)? {
                ReadBack::Same => return Ok(Committed { plan: change, kernel: committed }),
                ReadBack::Interfered => {}
                ReadBack::Differs(differences) => return Err(go_back(kernel, there.as_ref(), &differences)),
            },
            Err(KernelError::Interfered) => {}
            // Nothing was changed.
            Err(error @ KernelError::Refused(_)) => return Err(error.into()),
            // The answer may be lost and the transaction done: what is there decides.
            Err(error) => match kernel.observe(Depth::Pins) {
                Ok((generation, there)) if plan(there.as_ref(), meant, now)?.is_nothing() => {
                    return Ok(Committed { plan: change, kernel: generation });
                }
                _ => return Err(error.into()),
            },
        }
    }
    Err(KernelError::Interfered.into())
}

enum ReadBack {
    /// What is there is what was meant.
    Same,
    /// Somebody else has changed the packet filter since the commit.
    Interfered,
    /// The kernel holds something else than it was told.
    Differs(Vec<String>),
}

fn read_back(
    kernel: &mut dyn Kernel,
    meant: &Ruleset,
    now: Timestamp,
    host: &dyn Host,
    committed: GenerationId,
) -> Result<ReadBack, Failure> {
    let (generation, there) = kernel.observe(Depth::Pins)?;
    let rest = plan(there.as_ref(), meant, now)?;
    // A transaction that took long has moved the ends of elements by as much, and nothing else.
    let late = host.now().since(now).seconds() > 2 && rest.changes_times_only();
    Ok(match rest.is_nothing() || late {
        true => ReadBack::Same,
        false if generation != committed => ReadBack::Interfered,
        false => ReadBack::Differs(rest.differences()),
    })
}

/// Loads what was there before, as it was dumped, and says why.
fn go_back(kernel: &mut dyn Kernel, before: Option<&TableDump>, differences: &[String]) -> Failure {
    let words = differences.iter().take(5).cloned().collect::<Vec<_>>().join("; ");
    let message = format!("the kernel holds something else than it was told: {words}");
    let Some(before) = before else {
        return Failure::refused(
            message,
            "the rules stay as they are, which refuses more rather than less; please report this with your kernel version",
        );
    };
    let back = crate::judge::plan::reload(before);
    let restored = kernel.generation().and_then(|generation| kernel.commit(generation, &back));
    match restored {
        Ok(_) => Failure::refused(message, "the rules from before were loaded again; please report this with your kernel version"),
        Err(error) => Failure::refused(
            format!("{message}; loading the rules from before failed too: {error}"),
            "run `egressguard status`, then `egressguard restore`",
        ),
    }
}
