//! Commands that need no kernel: check, render, resolve, and what is made for editors, shells and manuals.

use std::path::Path;

use clap::CommandFactory;
use serde_json::{Value, json};

use crate::base::diagnostic::{Diagnostic, Severity};
use crate::base::time::Timestamp;
use crate::command::arguments::{Arguments, CheckArguments, RenderArguments, RenderFormat, ResolveArguments, Shell};
use crate::command::{Exit, Failure, Output, apply, enforce, handover, source};
use crate::pins::{self, Pins};
use crate::policy::{self, DnsServer};
use crate::ruleset::compile::compile;
use crate::ruleset::rule::Rule;
use crate::ruleset::{Ruleset, text};
use crate::world::World;

/// Runs `check`.
pub fn check(arguments: &CheckArguments, world: &mut World, output: &mut Output) -> Result<Exit, Failure> {
    let name = &arguments.policy.policy;
    let content = source::read(name, world.documents)?;
    let findings = match policy::parse_bytes(&content, name) {
        Ok(parsed) => parsed.warnings,
        Err(findings) => findings,
    };
    let is_error = |finding: &Diagnostic| finding.severity == Severity::Error || arguments.strict;
    if arguments.json {
        output.json(&json!({"schema": "egressguard.check/1", "findings": findings.iter().map(finding_json).collect::<Vec<_>>()}))?;
    } else if findings.is_empty() {
        output.say(&format!("ok: {name}"))?;
    } else {
        source::show(&findings, &content, name, output)?;
    }
    let errors = findings.iter().filter(|finding| is_error(finding)).count();
    if errors > 0 {
        if !arguments.json {
            let words = if errors == 1 { "one error".to_string() } else { format!("{errors} errors") };
            let strict = if arguments.strict { ", warnings counted as errors" } else { "" };
            // The answer is the exit code, whether anybody reads the words or not.
            let _ = writeln!(output.err, "{words} in `{name}`{strict}");
        }
        return Ok(Exit::Wrong);
    }
    if !findings.is_empty() && !arguments.json {
        let words = if findings.len() == 1 { "one warning".to_string() } else { format!("{} warnings", findings.len()) };
        output.say(&format!("ok with {words}: {name}"))?;
    }
    Ok(Exit::Done)
}

fn finding_json(finding: &Diagnostic) -> Value {
    let severity = match finding.severity {
        Severity::Error => "error",
        Severity::Warning => "warning",
    };
    json!({"severity": severity, "line": finding.line, "column": finding.column, "message": finding.message, "help": finding.help})
}

/// Runs `schema`.
pub fn schema(output: &mut Output) -> Result<Exit, Failure> {
    output.out.write_all(policy::SCHEMA.as_bytes())?;
    Ok(Exit::Done)
}

/// Runs `completions`.
pub fn completions(shell: Shell, output: &mut Output) -> Result<Exit, Failure> {
    let generator = match shell {
        Shell::Bash => clap_complete::Shell::Bash,
        Shell::Zsh => clap_complete::Shell::Zsh,
        Shell::Fish => clap_complete::Shell::Fish,
    };
    let mut script = Vec::new();
    clap_complete::generate(generator, &mut Arguments::command(), "egressguard", &mut script);
    output.out.write_all(&script)?;
    Ok(Exit::Done)
}

/// Runs `man`.
pub fn man(directory: Option<&Path>, world: &mut World, output: &mut Output) -> Result<Exit, Failure> {
    let page = |command: clap::Command| -> Result<Vec<u8>, Failure> {
        let mut page = Vec::new();
        clap_mangen::Man::new(command).render(&mut page)?;
        Ok(page)
    };
    let mut whole = Arguments::command();
    whole.build();
    let Some(directory) = directory else {
        let content = page(whole)?;
        output.out.write_all(&content)?;
        return Ok(Exit::Done);
    };
    let subcommands: Vec<clap::Command> = whole.get_subcommands().filter(|command| command.get_name() != "help").cloned().collect();
    let write = |name: String, content: Vec<u8>, world: &mut World| {
        world.documents.write(&directory.join(name).to_string_lossy(), &content).map_err(Failure::from)
    };
    write("egressguard.1".to_string(), page(whole)?, world)?;
    for command in subcommands {
        let name = format!("egressguard-{}", command.get_name());
        write(format!("{name}.1"), page(command.name(name))?, world)?;
    }
    Ok(Exit::Done)
}

/// Runs `render`.
pub fn render(arguments: &RenderArguments, world: &mut World, output: &mut Output) -> Result<Exit, Failure> {
    let source = source::load(&arguments.policy.policy, world.documents, output)?;
    let policy = &source.policy;
    let pins = match &arguments.pins {
        Some(path) => source::pins(path, world.documents)?,
        None => Pins::default(),
    };
    let ruleset = compile(policy, &pins, &source::symbolic_facts(policy), 0);
    // Times are counted from when the pins were resolved, so that the same input always makes the same text.
    let now = pins.names.values().filter_map(|pins| pins.confirmed).max().unwrap_or_default();
    if arguments.json || arguments.format == RenderFormat::Json {
        output.json(&ruleset_json(&ruleset, now))?;
        return Ok(Exit::Done);
    }
    if arguments.format == RenderFormat::Iptables {
        let script = handover::script(&source, &pins, now, output)?;
        output.out.write_all(script.as_bytes())?;
        return Ok(Exit::Done);
    }
    if policy.dns.contains(&DnsServer::System) {
        writeln!(output.out, "# The host's own DNS servers are allowed too when this policy is applied: `dns.servers` names `system`.")?;
    }
    output.out.write_all(text::write(&ruleset, now).as_bytes())?;
    Ok(Exit::Done)
}

fn ruleset_json(ruleset: &Ruleset, now: Timestamp) -> Value {
    let member = |key: &_, member: &crate::ruleset::set::Member, set: &crate::ruleset::set::Set| {
        json!({
            "element": text::write_key(&set.def.key, key, member.last.as_ref()),
            "timeout": member.expires.map(|expires| expires.since(now).seconds()),
            "comment": member.comment,
        })
    };
    let sets: Vec<Value> = ruleset
        .sets
        .values()
        .map(|set| {
            let key: Vec<&str> = set.def.key.iter().map(|field| field.name()).collect();
            let elements: Vec<Value> = set.members.iter().map(|(key, of)| member(key, of, set)).collect();
            json!({"name": set.def.name, "key": key, "flags": text::flags(set).collect::<Vec<_>>(), "elements": elements})
        })
        .collect();
    let rule = |rule: &Rule| {
        json!({
            "id": rule.id,
            "tests": rule.tests.iter().map(text::write_test).collect::<Vec<_>>(),
            "statements": rule.statements.iter().map(text::write_statement).collect::<Vec<_>>(),
            "action": text::write_action(&rule.action),
        })
    };
    let chains: Vec<Value> = ruleset
        .chains
        .iter()
        .map(|chain| {
            let base = chain.def.base.as_ref().map(|base| {
                json!({"hook": base.hook.keyword(), "priority": base.priority, "policy": if base.accepts { "accept" } else { "drop" }})
            });
            json!({"name": chain.def.name, "base": base, "rules": chain.rules.iter().map(rule).collect::<Vec<_>>()})
        })
        .collect();
    json!({
        "schema": "egressguard.render/1",
        "table": "inet egressguard",
        "policy": {"name": ruleset.identity.policy.as_str(), "sha256": ruleset.identity.sha256},
        "sets": sets,
        "chains": chains,
    })
}

/// Runs `resolve`.
pub fn resolve(arguments: &ResolveArguments, world: &mut World, output: &mut Output) -> Result<Exit, Failure> {
    let source = source::load(&arguments.policy.policy, world.documents, output)?;
    let policy = &source.policy;
    let (facts, _) = source::facts(policy, world.host)?;
    let earlier = match &arguments.output {
        Some(path) if Path::new(path).exists() => source::pins(path, world.documents)?,
        _ => Pins::default(),
    };
    let confirmation = enforce::resolve(policy, &facts, &earlier, world.resolver, world.host, output);
    source::warn_of_shared(&source, &arguments.policy.policy, &confirmation.pins, output)?;
    apply::warn_of(&confirmation, output);
    let printed = pins::print(&confirmation.pins);
    match &arguments.output {
        Some(path) => {
            world.documents.write(path, printed.as_bytes())?;
            output.detail(&format!("wrote {path}"));
        }
        None => output.out.write_all(printed.as_bytes())?,
    }
    Ok(if apply::unresolved(&confirmation.pins).is_empty() { Exit::Done } else { Exit::No })
}
