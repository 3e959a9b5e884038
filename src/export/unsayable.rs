//! What a policy asks for and iptables has no words for. It is an error at the policy's line, and never left out without a word.

use std::net::IpAddr;

use crate::base::diagnostic::{Diagnostic, Severity, SourceText};
use crate::policy::{Line, Policy, Target};

/// Something that cannot be said.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Unsayable {
    /// Which part of the policy asks for it.
    pub place: Place,
    /// What it is: lower case, no full stop.
    pub what: String,
    /// What to do instead.
    pub help: String,
}

/// Which part of the policy asks for it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// The rule of this id.
    Rule(String),
    /// The destination that holds this address.
    Address(IpAddr),
}

/// As errors about the policy's text, by line, each once.
pub fn diagnostics(unsayable: &[Unsayable], policy: &Policy, text: &str) -> Vec<Diagnostic> {
    let source = SourceText::new(text);
    let mut found: Vec<Diagnostic> = unsayable
        .iter()
        .map(|unsayable| {
            let line = line(&unsayable.place, policy);
            // The policy's reader keeps lines; the whole of it is the culprit.
            let written = line.map_or("", |line| source.line(line.0));
            let indented = written.chars().take_while(|c| *c == ' ').count();
            Diagnostic {
                line: line.map_or(0, |line| line.0),
                column: if line.is_some() { indented + 1 } else { 0 },
                width: (written.trim_end().chars().count() - indented).max(1),
                severity: Severity::Error,
                message: unsayable.what.clone(),
                help: Some(unsayable.help.clone()),
            }
        })
        .collect();
    found.sort();
    found.dedup();
    found
}

fn line(place: &Place, policy: &Policy) -> Option<Line> {
    match place {
        Place::Rule(id) => policy.rule_line(id),
        Place::Address(address) => {
            let destinations = policy.outbound.iter().flat_map(|way| &way.to).chain(&policy.host.ntp);
            let named = |target: &Target| matches!(target, Target::Net(net) if net.addr() == *address);
            destinations.into_iter().find(|destination| named(&destination.target)).map(|destination| destination.line)
        }
    }
}
