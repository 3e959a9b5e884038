//! Making the kernel hold what is meant: resolve, plan, commit, read back. Shared by apply, refresh and restore.

use std::collections::BTreeMap;

use crate::base::name::DnsName;
use crate::base::time::Timestamp;
use crate::command::{Failure, Output};
use crate::judge::plan::{Plan, back_to, imagine, plan, plan_from};
use crate::pins::{self, Answer, Confirmation, LeaseRules, Outcome, Pins, SpecialAnswers, What};
use crate::policy::{Policy, PrivateAnswers, Target};
use crate::ruleset::Ruleset;
use crate::ruleset::compile::{Facts, compile};
use crate::ruleset::program::{GenerationId, SetDef, TableDump};
use crate::state::{self, LastRefresh, Saved};
use crate::world::{Depth, Files, Host, Kernel, KernelError, Resolver};

/// How often a commit is planned again when somebody else changes the packet filter meanwhile.
const ATTEMPTS: usize = 8;

/// The most refused addresses of a name that are listed.
const REFUSED: usize = 4;

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
    compile(policy, &earlier_pins(saved, policy, host), &saved.record.facts(&host.clock()), saved.record.generation).loadable()
}

/// Asks for every name and confirms the pins. Only the policy's names are kept.
pub fn resolve(
    policy: &Policy,
    facts: &Facts,
    earlier: &Pins,
    resolver: &mut dyn Resolver,
    host: &dyn Host,
    output: &mut Output,
) -> Confirmation {
    let asked = host.clock();
    let answers = ask(policy, facts, resolver, output);
    // The clock may have been set while DNS was waited for.
    let now = host.clock();
    let earlier = pins::rebase(earlier, &asked, &now, policy.refresh.keep).pins;
    confirm(policy, &earlier, &answers, now.wall)
}

/// Asks for every name. Needs no lock: whoever waits for DNS stands in nobody's way.
pub fn ask(policy: &Policy, facts: &Facts, resolver: &mut dyn Resolver, output: &mut Output) -> BTreeMap<DnsName, Answer> {
    let names = names(policy);
    let nobody = match facts {
        Facts { cut_off: Some(_), .. } => Some("this host is cut off, and so from DNS"),
        Facts { servers, .. } if servers.is_empty() => Some("the host names no DNS server"),
        _ => None,
    };
    if let Some(why) = nobody {
        let unasked = Answer::Failed { reasons: vec![why.to_string()] };
        return names.into_iter().map(|name| (name, unasked.clone())).collect();
    }
    let mut done = 0;
    let answers = resolver.resolve(&names, &facts.servers, &mut |name, _| {
        done += 1;
        output.progress(&format!("resolving {done} of {}: {name}", names.len()));
    });
    output.progress("");
    answers
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
        let of_name = refused.remove(name).unwrap_or_default();
        let more = of_name.len().saturating_sub(REFUSED);
        words.extend(of_name.into_iter().take(REFUSED));
        if more > 0 {
            words.push(format!("and {more} more"));
        }
        if !words.is_empty() {
            problems.insert(name.clone(), words.join("; "));
        }
    }
    problems
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

/// What the last run left, where the kernel can still hold just that: it was of this boot and network namespace, and the machine has not
/// slept since. The times of elements stand still while it sleeps.
pub fn last_run(files: &dyn Files, host: &dyn Host) -> Option<LastRefresh> {
    let last = state::last_refresh(files)?;
    let slept = host.slept().abs_diff(last.slept);
    (last.namespace == host.namespace() && slept <= 1).then_some(last)
}

/// Tells rules and sets, without their elements, from all others. Another version of this program may compile a policy into others.
pub fn shape(ruleset: &Ruleset) -> String {
    let sets: Vec<&SetDef> = ruleset.sets.values().map(|set| &set.def).collect();
    state::digest(format!("{:?} {sets:?}", ruleset.chains).as_bytes())
}

/// What the kernel was told by the last run, whose note this is; `None` when it was told other rules than these.
pub fn told(last: &LastRefresh, ruleset: Ruleset) -> Option<Told> {
    (last.shape == shape(&ruleset)).then_some(Told { kernel: GenerationId(last.kernel_generation), ruleset })
}

/// The note of this run for the next one: what the kernel holds since. One that is not `whole` left something to do: the next run looks
/// at everything.
pub fn note(ruleset: &Ruleset, kernel: GenerationId, whole: bool, problems: BTreeMap<DnsName, String>, host: &dyn Host) -> LastRefresh {
    let generation = ruleset.identity.generation;
    LastRefresh {
        shape: shape(ruleset),
        at: host.now().0,
        generation,
        kernel_generation: kernel.0,
        namespace: if whole { host.namespace() } else { String::new() },
        slept: host.slept(),
        took_ms: None,
        problems: problems.into_iter().map(|(name, words)| (name.to_string(), words)).collect(),
    }
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
        let plan = plan_from(&there, meant, now)?;
        // A renewed element takes what it has counted along, which only the kernel knows.
        if plan.renewed.is_empty() {
            return Ok(Proposal { generation: told.kernel, there: Some(there), source: Knowledge::Told, plan });
        }
    }
    let (generation, there) = kernel.observe(Depth::Pins)?;
    let plan = plan(there.as_ref(), meant, now)?;
    Ok(Proposal { generation, there, source: Knowledge::Read, plan })
}

/// What is carried out of a proposal, and how it is made sure of.
pub struct Chosen {
    /// The steps; without any the kernel is left alone.
    pub plan: Plan,
    /// What follows them.
    pub then: Then,
}

/// What follows a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Then {
    /// It is read back; where the kernel holds something else than was meant, what was there before is loaded again.
    ReadBackOrReturn,
    /// It is read back; what was there before was somebody else's and is not loaded again.
    ReadBack,
    /// Nothing: elements that the kernel took, it holds.
    Nothing,
}

/// Makes the kernel hold `meant`. `choose` says what of a proposal is carried out, and may give the ruleset its new generation before
/// that. Retries when somebody else changes the packet filter between reading and committing.
pub fn commit(
    kernel: &mut dyn Kernel,
    meant: &mut Ruleset,
    told: Option<&Told>,
    host: &dyn Host,
    choose: &mut dyn FnMut(&mut Ruleset, &Proposal, Timestamp) -> Result<Chosen, Failure>,
) -> Result<Committed, Failure> {
    // What was done by attempts after which somebody else changed the packet filter again.
    let mut done = Plan::default();
    let committed = |change: Plan, kernel: GenerationId, done: &mut Plan| {
        done.absorb(change);
        Ok(Committed { plan: std::mem::take(done), kernel })
    };
    for _ in 0..ATTEMPTS {
        let now = host.now();
        let proposal = propose(kernel, meant, told, now)?;
        let generation = proposal.generation;
        let Chosen { plan: change, then } = choose(meant, &proposal, now)?;
        if change.is_nothing() {
            return committed(change, generation, &mut done);
        }
        match (kernel.commit(generation, &change.ops), then) {
            (Ok(kernel), Then::Nothing) => return committed(change, kernel, &mut done),
            (Ok(made), _) => match read_back(kernel, meant, now, host, made)? {
                ReadBack::Same => return committed(change, made, &mut done),
                ReadBack::Interfered => done.absorb(change),
                ReadBack::Differs(differences) => {
                    let before = proposal.there.as_ref().filter(|_| then == Then::ReadBackOrReturn);
                    return Err(go_back(kernel, before, &differences, host.now()));
                }
            },
            (Err(KernelError::Interfered), _) => {}
            // Nothing was changed.
            (Err(error @ KernelError::Refused(_)), _) => return Err(error.into()),
            // The answer may be lost and the transaction done: what is there decides.
            (Err(error), _) => match kernel.observe(Depth::Pins) {
                Ok((generation, there)) if plan(there.as_ref(), meant, now)?.is_nothing() => {
                    return committed(change, generation, &mut done);
                }
                _ => return Err(error.into()),
            },
        }
    }
    Err(KernelError::Interfered.into())
}

/// Carries out all of a proposal, once the ruleset has got its new generation by `number`.
pub fn all_as<'a>(
    number: &'a mut dyn FnMut(&mut Ruleset) -> Result<(), Failure>,
) -> impl FnMut(&mut Ruleset, &Proposal, Timestamp) -> Result<Chosen, Failure> + 'a {
    let mut numbered = false;
    move |ruleset, proposal, now| {
        if numbered || proposal.plan.is_nothing() {
            return all(ruleset, proposal, now);
        }
        number(ruleset)?;
        numbered = true;
        Ok(Chosen { plan: plan(proposal.there.as_ref(), ruleset, now)?, then: Then::ReadBackOrReturn })
    }
}

/// Carries out all of a proposal.
pub fn all(_: &mut Ruleset, proposal: &Proposal, _: Timestamp) -> Result<Chosen, Failure> {
    Ok(Chosen { plan: proposal.plan.clone(), then: Then::ReadBackOrReturn })
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
    let (mut generation, there) = kernel.observe(Depth::Pins)?;
    let mut rest = plan(there.as_ref(), meant, now)?;
    // A transaction that took long has moved the ends of elements by as much, and nothing else.
    let late = |rest: &Plan| host.now().since(now).seconds() > 2 && rest.changes_times_only();
    if !rest.is_nothing() && !late(&rest) {
        // An element whose time ended while a large set was dumped can hide another: what is missing is looked for once more.
        let (again, there) = kernel.observe(Depth::Pins)?;
        (generation, rest) = (again, plan(there.as_ref(), meant, now)?);
    }
    Ok(match rest.is_nothing() || late(&rest) {
        true => ReadBack::Same,
        false if generation != committed => ReadBack::Interfered,
        false => ReadBack::Differs(rest.differences()),
    })
}

/// Loads what was there before again, and says why.
fn go_back(kernel: &mut dyn Kernel, before: Option<&TableDump>, differences: &[String], now: Timestamp) -> Failure {
    let words = differences.iter().take(5).cloned().collect::<Vec<_>>().join("; ");
    let message = format!("the kernel holds something else than it was told: {words}");
    let Some(before) = before else {
        return Failure::refused(
            message,
            "what was loaded stays; look at it with `egressguard verify`, and please report this with your kernel version",
        );
    };
    let mut back = || {
        let (generation, there) = kernel.observe(Depth::Pins)?;
        kernel.commit(generation, &back_to(before, there.as_ref(), now))
    };
    let mut restored = back();
    for _ in 1..ATTEMPTS {
        if !matches!(restored, Err(KernelError::Interfered)) {
            break;
        }
        restored = back();
    }
    match restored {
        Ok(_) => Failure::refused(message, "the rules from before were loaded again; please report this with your kernel version"),
        Err(error) => Failure::refused(
            format!("{message}; loading the rules from before failed too: {error}"),
            "run `egressguard status`, then `egressguard restore`",
        ),
    }
}
