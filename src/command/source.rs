//! Policies as they are named on the command line, and what the host knows about the words in them.

use std::collections::BTreeSet;

use crate::base::diagnostic::{self, Diagnostic};
use crate::command::{Exit, Failure, Output, Style, Verbosity};
use crate::pins::{self, Pins};
use crate::policy::{self, DnsServer, Parsed, Policy, Scope};
use crate::ruleset::compile::Facts;
use crate::world::{Documents, Host};

/// The port of plain DNS.
const DNS_PORT: u16 = 53;

/// A policy that was read and understood.
#[derive(Debug, Clone)]
pub struct Source {
    /// Its octets.
    pub content: Vec<u8>,
    /// What it means.
    pub policy: Policy,
    /// What is probably not meant.
    pub warnings: Vec<Diagnostic>,
}

/// Reads the octets of a policy: of a file, of standard input, or of a shipped one.
pub fn read(name: &str, documents: &dyn Documents) -> Result<Vec<u8>, Failure> {
    let Some(builtin) = name.strip_prefix("builtin:") else {
        return documents.read(name).map_err(|error| Failure {
            help: Some("name a policy file, `-`, or a shipped one such as `builtin:openai`".to_string()),
            ..Failure::from(error)
        });
    };
    let Some(text) = policy::builtin(builtin) else {
        let known: Vec<String> = policy::BUILTIN_NAMES.iter().map(|name| format!("`builtin:{name}`")).collect();
        return Err(Failure::wrong(format!("no policy `builtin:{builtin}` is shipped"), format!("shipped are {}", known.join(", "))));
    };
    Ok(text.as_bytes().to_vec())
}

/// Parses a policy. Findings go to standard error, all of them; errors are a failure.
pub fn parse(name: &str, content: Vec<u8>, output: &mut Output) -> Result<Source, Failure> {
    match policy::parse_bytes(&content, name) {
        Ok(Parsed { policy, warnings }) => {
            if output.verbosity > Verbosity::Quiet {
                show(&warnings, &content, name, output)?;
            }
            Ok(Source { content, policy, warnings })
        }
        Err(findings) => {
            show(&findings, &content, name, output)?;
            let errors = findings.iter().filter(|finding| finding.severity == diagnostic::Severity::Error).count();
            let count = if errors == 1 { "one error".to_string() } else { format!("{errors} errors") };
            Err(Failure::wrong(format!("{count} in `{name}`"), "nothing was changed; the language is described by `egressguard schema`"))
        }
    }
}

/// Reads and parses.
pub fn load(name: &str, documents: &dyn Documents, output: &mut Output) -> Result<Source, Failure> {
    let content = read(name, documents)?;
    parse(name, content, output)
}

/// Shows findings with their lines.
pub fn show(findings: &[Diagnostic], content: &[u8], name: &str, output: &mut Output) -> Result<(), Failure> {
    if findings.is_empty() {
        return Ok(());
    }
    let colour = if output.style == Style::Coloured { diagnostic::Colour::Ansi } else { diagnostic::Colour::Plain };
    let text = diagnostic::render(findings, &String::from_utf8_lossy(content), name, colour);
    // Words that nobody reads are no reason to leave a command undone.
    let _ = write!(output.err, "{text}");
    Ok(())
}

/// Warns of names that packets cannot tell from another name of the policy, because all their addresses are the other's too.
pub fn warn_of_shared(source: &Source, name: &str, pins: &Pins, output: &mut Output) -> Result<(), Failure> {
    if output.verbosity == Verbosity::Quiet {
        return Ok(());
    }
    let addresses = pins.names.iter().map(|(name, pins)| (name.clone(), pins.leases.keys().copied().collect())).collect();
    let found = policy::lint_addresses(&source.policy, &String::from_utf8_lossy(&source.content), &addresses);
    show(&found, &source.content, name, output)
}

/// What the host knows, and what it does not: a sentence for each user and group that does not exist.
pub fn facts(policy: &Policy, host: &dyn Host) -> Result<(Facts, Vec<String>), Failure> {
    let mut facts = Facts::default();
    let mut missing = Vec::new();
    let refused = |what: String| Failure::refused(what, "see that the host's user database and control groups can be read");
    for entry in &policy.outbound {
        let at = format!("{}:{}", policy.file, entry.line.0);
        match &entry.scope {
            Some(Scope::User(name)) => match host.user(name).map_err(refused)? {
                Some(number) => drop(facts.users.insert(name.to_string(), number)),
                None => missing.push(format!("{at}: user `{name}` does not exist on this host")),
            },
            Some(Scope::Group(name)) => match host.group(name).map_err(refused)? {
                Some(number) => drop(facts.groups.insert(name.to_string(), number)),
                None => missing.push(format!("{at}: group `{name}` does not exist on this host")),
            },
            Some(Scope::Service(unit)) => {
                if let Some(running) = host.unit(unit).map_err(refused)? {
                    facts.units.insert(unit.to_string(), running);
                }
            }
            Some(Scope::Uid(_) | Scope::Gid(_)) | None => {}
        }
    }
    facts.servers = servers(policy, host).map_err(refused)?;
    Ok((facts, missing))
}

/// The units that the policy has rules for and that do not run.
pub fn idle_units<'a>(policy: &'a Policy, facts: &Facts) -> BTreeSet<&'a str> {
    let units =
        policy.outbound.iter().filter_map(|way| if let Some(Scope::Service(unit)) = &way.scope { Some(unit.as_ref()) } else { None });
    units.filter(|unit| !facts.units.contains_key(*unit)).collect()
}

/// The servers that are asked, in order and each once; `system` is replaced by the host's own.
fn servers(policy: &Policy, host: &dyn Host) -> Result<Vec<DnsServer>, String> {
    let mut servers = Vec::new();
    for server in &policy.dns {
        let meant = match server {
            DnsServer::System => host.system_servers()?.into_iter().map(|address| DnsServer::Plain { address, port: DNS_PORT }).collect(),
            named => vec![named.clone()],
        };
        for server in meant {
            if !servers.contains(&server) {
                servers.push(server);
            }
        }
    }
    Ok(servers)
}

/// Reads a pins file.
pub fn pins(path: &str, documents: &dyn Documents) -> Result<Pins, Failure> {
    let content = documents.read(path)?;
    let text = String::from_utf8(content)
        .map_err(|_| Failure::wrong(format!("`{path}` is not text"), "make a pins file with `egressguard resolve POLICY -o FILE`"))?;
    pins::load(&text).map_err(|error| Failure {
        exit: Exit::Wrong,
        message: format!("{path}:{}:{}: {}", error.line, error.column, error.message),
        help: Some(error.help.clone()),
    })
}

/// What is known without asking the host: only the servers that the policy names by address.
pub fn symbolic_facts(policy: &Policy) -> Facts {
    let named = policy.dns.iter().filter(|server| **server != DnsServer::System);
    Facts { servers: named.cloned().collect(), ..Facts::default() }
}
