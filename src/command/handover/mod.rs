//! The same policy for hosts without nf_tables: by the programs iptables, ip6tables and ipset.

use crate::base::time::Timestamp;
use crate::command::source::{self, Source};
use crate::command::{Failure, Output};
use crate::export::iptables::{Firewall, export};
use crate::export::{script, unsayable};
use crate::pins::Pins;
use crate::policy::{DnsServer, Policy, Scope};
use crate::ruleset::Ruleset;
use crate::ruleset::compile::{Facts, compile};

/// The script that `render` prints.
pub fn script(source: &Source, pins: &Pins, now: Timestamp, output: &mut Output) -> Result<String, Failure> {
    let facts = conventional_facts(&source.policy);
    let firewall = exported(source, &compile(&source.policy, pins, &facts, 0), &facts, output)?;
    let mut text = script::write(&firewall, now);
    if source.policy.dns.contains(&DnsServer::System) {
        let note = "# The host's own DNS servers are allowed too when this policy is applied: `dns.servers` names `system`.\n";
        text.insert_str(text.find('\n').map_or(0, |end| end + 1), note);
    }
    Ok(text)
}

/// The rules in iptables. What cannot be said there is shown at its line of the policy, all of it.
fn exported(source: &Source, ruleset: &Ruleset, facts: &Facts, output: &mut Output) -> Result<Firewall, Failure> {
    export(ruleset, facts).or_else(|unsayable| {
        let text = String::from_utf8_lossy(&source.content);
        let findings = unsayable::diagnostics(&unsayable, &source.policy, &text);
        source::show(&findings, &source.content, &source.policy.file, output)?;
        let count = if findings.len() == 1 { "one thing".to_string() } else { format!("{} things", findings.len()) };
        Err(Failure::wrong(
            format!("{count} in `{}` cannot be said in iptables", source.policy.file),
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
