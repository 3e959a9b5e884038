//! The same policy for hosts without nf_tables: by the programs iptables, ip6tables and ipset.
//!
//! This file makes them hold what is meant: observe, plan, load, read back. `apply` and `refresh` hold what the commands of these
//! names do by it.
//!
//! ORDER: sets first, into which no rule in force looks unless it means the same; then both families are tried; then IPv6, then IPv4,
//! each in one step; what nothing looks into any more goes last, and only when what was loaded has been read back.

pub mod apply;
pub mod refresh;

use crate::base::time::Timestamp;
use crate::command::source::{self, Source};
use crate::command::{Failure, Output};
use crate::export::iptables::{Firewall, export};
use crate::export::observed::{Observed, SavedTable};
use crate::export::plan::{Change, plan};
use crate::export::{script, unsayable};
use crate::pins::Pins;
use crate::policy::{DnsServer, Policy, Scope};
use crate::ruleset::Ruleset;
use crate::ruleset::compile::{Facts, compile};
use crate::state::{self, Backend};
use crate::world::{Host, KernelError, ProgramError, Programs, World};

/// The programs that load a family's rules, IPv4 first, and those that print them.
const RESTORE: [&str; 2] = ["iptables-restore", "ip6tables-restore"];
const SAVE: [&str; 2] = ["iptables-save", "ip6tables-save"];
/// The lock that all programs called iptables share is waited for this long.
const LOADING: [&str; 3] = ["-w", "10", "--noflush"];
const TRYING: [&str; 4] = ["-w", "10", "--noflush", "--test"];

/// The script that `render` prints.
pub fn script(source: &Source, pins: &Pins, now: Timestamp, output: &mut Output) -> Result<String, Failure> {
    let facts = conventional_facts(&source.policy);
    let given = Given { policy: &source.policy, content: &source.content, facts: &facts };
    let firewall = exported(given, &compile(&source.policy, pins, &facts, 0), output)?;
    let mut text = script::write(&firewall, now);
    if source.policy.dns.contains(&DnsServer::System) {
        let note = "# The host's own DNS servers are allowed too when this policy is applied: `dns.servers` names `system`.\n";
        text.insert_str(text.find('\n').map_or(0, |end| end + 1), note);
    }
    Ok(text)
}

/// What rules are exported with.
#[derive(Clone, Copy)]
struct Given<'a> {
    /// Whose rules they are.
    policy: &'a Policy,
    /// The policy's octets.
    content: &'a [u8],
    /// What the host knows.
    facts: &'a Facts,
}

/// The rules in iptables. What cannot be said there is shown at its line of the policy, all of it.
fn exported(given: Given, ruleset: &Ruleset, output: &mut Output) -> Result<Firewall, Failure> {
    let Given { policy, content, facts } = given;
    export(ruleset, facts).or_else(|unsayable| {
        let findings = unsayable::diagnostics(&unsayable, policy, &String::from_utf8_lossy(content));
        source::show(&findings, content, &policy.file, output)?;
        let count = if findings.len() == 1 { "one thing".to_string() } else { format!("{} things", findings.len()) };
        Err(Failure::wrong(
            format!("{count} in `{}` cannot be said in iptables", policy.file),
            "nothing is left out in silence: change the policy, or use nftables",
        ))
    })
}

/// What is known without asking the host; units are where systemd puts services, by numbers that no control group has.
fn conventional_facts(policy: &Policy) -> Facts {
    let mut facts = source::symbolic_facts(policy);
    for entry in &policy.outbound {
        if let Some(Scope::Service(unit)) = &entry.scope {
            let id = u64::MAX - facts.units.len() as u64;
            facts.units.entry(unit.to_string()).or_insert_with(|| (format!("system.slice/{unit}"), id));
        }
    }
    facts
}

/// Which packet filter holds the rules. Where there is no nf_tables `restore` has loaded them by iptables, whatever the state says.
pub fn held_by(world: &mut World) -> Backend {
    let backend = state::backend(world.files);
    let fell_back = backend == Backend::Nftables
        && matches!(world.kernel.generation(), Err(KernelError::NoNfTables(_)))
        && observe(world.programs).is_ok_and(|there| there.is_ours());
    if fell_back { Backend::Iptables } else { backend }
}

/// What of ours iptables, ip6tables and ipset hold.
pub fn observe(programs: &mut dyn Programs) -> Result<Observed, ProgramError> {
    let [v4, v6] = SAVE.map(|program| programs.run(program, &["-t", "filter"], ""));
    let sets = programs.run("ipset", &["save"], "");
    Ok(Observed::parse(&v4?, &v6?, &sets?))
}

/// Every way in which they do not hold these rules.
pub fn differences(ruleset: &Ruleset, facts: &Facts, now: Timestamp, programs: &mut dyn Programs) -> Result<Vec<String>, ProgramError> {
    let there = observe(programs)?;
    Ok(different(&there, ruleset, facts, now))
}

/// The same of what was observed.
pub fn different(there: &Observed, ruleset: &Ruleset, facts: &Facts, now: Timestamp) -> Vec<String> {
    match export(ruleset, facts) {
        Ok(meant) => plan(there, &meant, now).differences,
        Err(unsayable) => unsayable.into_iter().map(|unsayable| unsayable.what).collect(),
    }
}

/// Makes them hold `meant`, where `change` is what that takes from `before`, and reads it back.
fn load(
    before: &Observed,
    meant: &Firewall,
    change: &Change,
    programs: &mut dyn Programs,
    host: &dyn Host,
    output: &mut Output,
) -> Result<(), Failure> {
    let now = host.now();
    if !change.sets.is_empty() {
        programs.run("ipset", &["restore"], &change.sets)?;
    }
    let families = || RESTORE.iter().zip(&change.rules).rev().filter_map(|(program, rules)| Some((*program, rules.as_ref()?)));
    for (program, rules) in families() {
        programs.run(program, &TRYING, rules)?;
    }
    for (program, rules) in families() {
        if let Err(error) = programs.run(program, &LOADING, rules) {
            return Err(go_back(before, &error.to_string(), programs));
        }
    }
    let there = match observe(programs) {
        Ok(there) => there,
        // What cannot be read back is not known to be right.
        Err(error) => return Err(go_back(before, &error.to_string(), programs)),
    };
    let rest = plan(&there, meant, now);
    // A load that took long has moved the ends of elements by as much, and nothing else.
    let late = host.now().since(now).seconds() > 2 && rest.times_only;
    if rest.touches_rules() || !(rest.sets.is_empty() || late) {
        let words = rest.differences.iter().take(5).cloned().collect::<Vec<_>>().join("; ");
        return Err(go_back(before, &format!("iptables holds something else than it was told: {words}"), programs));
    }
    if !rest.stale.is_empty()
        && let Err(error) = programs.run("ipset", &["restore"], &rest.stale)
    {
        output.warn(&format!("{error}: a set of an earlier policy stays; none of our rules looks into it"));
    }
    Ok(())
}

/// Loads what was there before, family by family, and says why. A family that held none of our rules keeps the new ones: they refuse
/// more than none.
fn go_back(before: &Observed, why: &str, programs: &mut dyn Programs) -> Failure {
    let mut left = Vec::new();
    match observe(programs) {
        Ok(there) => {
            let families = RESTORE.iter().zip(before.tables.iter().zip(&there.tables));
            for (program, (before, there)) in families.rev().filter(|(_, (before, there))| is_other(before, there)) {
                left.extend(programs.run(program, &LOADING, &before.again(there)).err().map(|error| error.to_string()));
            }
        }
        Err(error) => left.push(error.to_string()),
    }
    if left.is_empty() {
        return Failure::refused(why, "rules that were there before were loaded again; please report this with your version of iptables");
    }
    Failure::refused(
        format!("{why}; loading the rules from before failed too: {}", left.join("; ")),
        "each family has its old rules or its new ones: run `egressguard status`, then `egressguard restore`",
    )
}

fn is_other(before: &SavedTable, there: &SavedTable) -> bool {
    !before.chains.is_empty() && before != there
}

impl From<ProgramError> for Failure {
    fn from(error: ProgramError) -> Failure {
        let help = match &error {
            ProgramError::Missing(program) if program == "ipset" => "install the package `ipset`: the backend `iptables` needs it",
            ProgramError::Missing(_) => "install the package `iptables`: the backend of this name needs it",
            ProgramError::Failed(..) => "what was in force stays; run it as root, and see that the kernel has what the words name",
        };
        Failure::refused(error.to_string(), help)
    }
}
