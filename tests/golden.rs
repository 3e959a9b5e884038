//! Policies and what becomes of them, as text files that a person has read: nft text, kernel program, answers
//! about packets, iptables script. Adding a
//! case is adding a directory; `UPDATE_GOLDEN=1` writes what is expected, for reading.
//!
//! Programs are those of a little-endian machine.

mod golden_case;

use std::fmt::Write;
use std::fs::{read_to_string, write};

use egressguard::base::diagnostic::{Colour, render};
use egressguard::export::iptables::export;
use egressguard::export::{script, unsayable};
use egressguard::judge::{Packet, Refusal, Trace, Verdict, policy_tests, traces};
use egressguard::ruleset::lower::lower;
use egressguard::ruleset::program::{self, Comparison, Element, Expr, Key, RuleProgram, SetDef};
use egressguard::ruleset::{Ruleset, text};
use golden_case::{GoldenCase, NOW, all};

#[test]
fn every_policy_becomes_what_a_person_has_read() {
    let mut wrong = Vec::new();
    for case in all() {
        let ruleset = case.compile();
        let witnesses = [
            ("expected.nft", text::write(&ruleset, NOW)),
            ("expected.program", program(&case)),
            ("expected.explain", explanations(&case)),
            ("expected.iptables", iptables(&case, &ruleset)),
        ];
        for (name, found) in witnesses {
            let path = case.path.join(name);
            if std::env::var_os("UPDATE_GOLDEN").is_some() {
                write(&path, found).expect("the expectation can be written");
            } else if let Some(difference) = difference(&read_to_string(&path).unwrap_or_default(), &found) {
                wrong.push(format!("{}: {difference}", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}\n(UPDATE_GOLDEN=1 writes what was found, for reading)", wrong.join("\n"));
}

#[test]
fn every_policy_keeps_the_promises_of_its_own_tests() {
    for case in all() {
        let broken: Vec<_> = policy_tests(&case.policy, &case.pins, &case.facts).into_iter().filter(|outcome| !outcome.ok).collect();
        assert!(broken.is_empty(), "{:?}: {broken:#?}", case.path);
    }
}

/// The first line that differs.
fn difference(expected: &str, found: &str) -> Option<String> {
    let mut lines = (expected.lines(), found.lines());
    for number in 1.. {
        match (lines.0.next(), lines.1.next()) {
            (None, None) => break,
            (expected, found) if expected == found => {}
            (expected, found) => {
                let shown = |line: Option<&str>| line.unwrap_or("(the end)").to_string();
                return Some(format!("line {number}\n  expected {}\n  found    {}", shown(expected), shown(found)));
            }
        }
    }
    (expected != found).then(|| "the final line end".to_string())
}

/// Each question with its answers.
fn explanations(case: &GoldenCase) -> String {
    let ruleset = case.compile();
    let mut out = String::new();
    for question in &case.packets {
        let _ = writeln!(out, "{question}");
        for (packet, trace) in traces(&ruleset, question, &case.pins, &case.facts) {
            let _ = writeln!(out, "  {}", answer(case, question.to_string(), &packet, &trace));
        }
    }
    out
}

fn answer(case: &GoldenCase, asked: String, packet: &Packet, trace: &Trace) -> String {
    let spelt = packet.spec().to_string();
    let mut out = if spelt == asked { format!("v{}", packet.family().suffix().trim_start_matches('v')) } else { spelt };
    let _ = write!(out, ": {} by {} in {}", verdict(trace.verdict), trace.rule, trace.chain);
    if let Some(line) = case.policy.rule_line(&trace.rule) {
        let _ = write!(out, " (line {})", line.0);
    }
    if let Some(step) = trace.steps.last() {
        let _ = write!(out, "\n    {}", step.because);
    }
    out
}

fn verdict(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Allow => "allow",
        Verdict::Deny { how: Refusal::Drop } => "drop",
        Verdict::Deny { how: Refusal::Reset } => "reset",
        Verdict::Deny { how: Refusal::Prohibit } => "prohibit",
    }
}

/// The script for hosts without nf_tables, or what of the policy cannot be said in it.
fn iptables(case: &GoldenCase, ruleset: &Ruleset) -> String {
    match export(ruleset, &case.facts) {
        Ok(firewall) => script::write(&firewall, NOW),
        Err(found) => render(&unsayable::diagnostics(&found, &case.policy, &case.text), &case.text, &case.policy.file, Colour::Plain),
    }
}

/// What the kernel is told, an object or a rule a line.
fn program(case: &GoldenCase) -> String {
    let table = lower(&case.compile(), NOW);
    let mut out = format!("table \"{}\" flags {}\n", table.table.comment, table.table.flags);
    for (set, elements) in table.sets.values() {
        let _ = writeln!(out, "\n{}", set_line(set));
        for (key, element) in elements {
            let _ = writeln!(out, "  {}", element_line(key, element));
        }
    }
    for (chain, rules) in &table.chains {
        let _ = write!(out, "\nchain {}", chain.name);
        if let Some(base) = &chain.base {
            let policy = if base.accepts { "accept" } else { "drop" };
            let _ = write!(out, ": {} at {} priority {}, {policy}", base.kind, base.hook.keyword(), base.priority);
        }
        out.push('\n');
        for rule in rules {
            let _ = writeln!(out, "  {}", rule_line(rule));
        }
    }
    out
}

fn set_line(set: &SetDef) -> String {
    let key: Vec<&str> = set.key.iter().map(|kind| kind.name()).collect();
    let flags = [(set.interval, " interval"), (set.timeout, " timeout"), (set.dynamic, " dynamic"), (set.counter, " counter")];
    let flags: String = flags.iter().filter(|flag| flag.0).map(|flag| flag.1).collect();
    let size = set.size.map(|size| format!(" size {size}")).unwrap_or_default();
    format!("set {}: {}{flags}{size}, type {:#x}", set.name, key.join(" . "), program::key_type_number(&set.key))
}

fn element_line(key: &Key, element: &Element) -> String {
    let mut out = hex(key);
    if let Some(last) = &element.last {
        let _ = write!(out, "-{}", hex(last));
    }
    if let Some(timeout) = element.timeout_ms {
        let _ = write!(out, " {timeout}ms");
    }
    if !element.comment.is_empty() {
        let _ = write!(out, " \"{}\"", element.comment);
    }
    out
}

fn rule_line(rule: &RuleProgram) -> String {
    let mut words: Vec<String> = rule.exprs.iter().map(|expr| format!("[{}]", expr_words(expr))).collect();
    words.push(format!("\"{}\"", rule.comment));
    words.join(" ")
}

fn expr_words(expr: &Expr) -> String {
    match expr {
        Expr::Meta { key, into } => format!("r{} = meta {key}", into.0),
        Expr::Ct { key, direction, into } => {
            format!("r{} = ct {key}{}", into.0, direction.map(|direction| format!(" direction {direction}")).unwrap_or_default())
        }
        Expr::Payload { base, offset, len, into } => format!("r{} = payload {len} at {offset} of {base}", into.0),
        Expr::SocketCgroup { level, into } => format!("r{} = cgroup level {level}", into.0),
        Expr::Bitwise { from, into, mask, xor } => format!("r{} = r{} & {} ^ {}", into.0, from.0, hex(mask), hex(xor)),
        Expr::Compare { how, from, data } => format!("r{} {} {}", from.0, sign(*how), hex(data)),
        Expr::Range { inverted, from, low, high } => {
            format!("r{} {}in {}-{}", from.0, if *inverted { "not " } else { "" }, hex(low), hex(high))
        }
        Expr::Lookup { set, from, inverted } => format!("r{} {}in @{set}", from.0, if *inverted { "not " } else { "" }),
        Expr::Update { set, operation, from, timeout_ms, element } => {
            let element: Vec<String> = element.iter().map(expr_words).collect();
            format!("dynset {operation} @{set} r{} {timeout_ms}ms {{{}}}", from.0, element.join(", "))
        }
        Expr::Counter => "counter".to_string(),
        Expr::Limit { rate, unit, burst, kind, over } => {
            format!("limit {}{rate}/{unit}s burst {burst} kind {kind}", if *over { "over " } else { "" })
        }
        Expr::Log { prefix, group, snaplen, threshold } => {
            format!("log \"{prefix}\" group {group} snaplen {snaplen} threshold {threshold}")
        }
        Expr::Verdict(verdict) => format!("{verdict:?}").to_lowercase(),
        Expr::Reject { kind, code } => format!("reject {kind} {code}"),
        Expr::Foreign(name) => format!("foreign {name}"),
    }
}

fn sign(how: Comparison) -> &'static str {
    match how {
        Comparison::Equal => "==",
        Comparison::NotEqual => "!=",
        Comparison::Less => "<",
        Comparison::LessOrEqual => "<=",
        Comparison::Greater => ">",
        Comparison::GreaterOrEqual => ">=",
    }
}

fn hex(octets: &[u8]) -> String {
    octets.iter().fold(String::from("0x"), |mut out, octet| {
        let _ = write!(out, "{octet:02x}");
        out
    })
}
