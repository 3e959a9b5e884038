//! `explain`: what becomes of a packet, which rule decides, where that stands, and why. Judges a policy as it would be loaded, or,
//! with `--live`, the rules that the kernel holds, whoever put them there.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use serde_json::{Value, json};

use crate::base::diagnostic::{self, Diagnostic, Severity};
use crate::base::name::DnsName;
use crate::base::net::{Family, from_octets};
use crate::base::packet::{PacketSpec, Peer, State, spelt};
use crate::command::arguments::{DEFAULT_POLICY, ExplainArguments};
use crate::command::{Exit, Failure, Output, Verbosity, enforce, handover, source, verdict};
use crate::judge::plan::NotOurs;
use crate::judge::{Packet, Trace, Verdict, judge, port_kinds, symbolic, with_ports};
use crate::pins::{Lease, Pins};
use crate::policy::{Mode, Policy};
use crate::ruleset::compile::{Facts, compile};
use crate::ruleset::lift::{Found, lift};
use crate::ruleset::rule::Action;
use crate::ruleset::{Ruleset, TABLE_COMMENT};
use crate::state::{self, Backend, Current, Saved};
use crate::world::{Depth, World};

/// The most addresses of one answer that are listed.
const LISTED: usize = 6;

/// What was asked.
struct Question {
    spec: PacketSpec,
    /// The packet as it was typed.
    text: String,
    policy: Option<String>,
}

/// What packets are judged under.
struct Ground {
    ruleset: Ruleset,
    /// The same with something else in the place of rules that are not understood; none when all are.
    stand_ins: Vec<Ruleset>,
    /// The policy they come from, for its lines.
    policy: Option<Policy>,
    pins: Pins,
    facts: Facts,
    /// Names whose pins are not known: their addresses are placeholders.
    symbols: BTreeSet<DnsName>,
}

/// The end of an IPv6 address can look like a port, and is none.
fn warn_of_ambiguous(spec: &PacketSpec, output: &mut Output) {
    for (peer, port) in [(&spec.from, spec.from_port), (&spec.to, spec.to_port)] {
        let (Peer::Address(IpAddr::V6(address)), None, true) = (peer, port, spec.protocol.has_ports()) else { continue };
        let text = address.to_string();
        let Some((host, end)) = text.rsplit_once(':').filter(|(_, end)| end.len() > 1 && end.bytes().all(|byte| byte.is_ascii_digit()))
        else {
            continue;
        };
        let host = if host.ends_with(':') { format!("{host}:") } else { host.to_string() };
        output.warn(&format!("`{text}` is an address without a port; port {end} of another is written `[{host}]:{end}`"));
    }
}

/// Packets that have the same answer.
struct Answer {
    packets: Vec<Packet>,
    trace: Trace,
    /// What becomes of the same packet of a connection that is established, where that is another answer.
    established: Option<Trace>,
    /// Whether no rule that is not understood can change the answer.
    certain: bool,
}

/// Runs `explain`.
pub fn explain(arguments: &ExplainArguments, world: &mut World, output: &mut Output) -> Result<Exit, Failure> {
    let question = ask(&arguments.words, output)?;
    let ground = match (arguments.live, &question.policy) {
        (false, policy) => of_policy(policy.as_deref().unwrap_or(DEFAULT_POLICY), arguments, world, output)?,
        (true, None) if handover::held_by(world) == Backend::Iptables => {
            let message = "the rules are held by iptables, and `--live` judges those of nf_tables";
            return Err(Failure::refused(
                message,
                "`egressguard verify` compares what iptables holds; without `--live` the policy is judged",
            ));
        }
        (true, None) => of_kernel(arguments, world, output)?,
        (true, Some(policy)) => {
            let message = format!("`--live` asks the kernel, and `{policy}` is a policy");
            return Err(Failure::wrong(message, "leave one of them out; `egressguard diff` compares the two"));
        }
    };
    let answers = answers(&question, &ground);
    let Some(decisive) = answers.iter().find(|answer| !allowed(answer)).or(answers.first()) else {
        return Err(Failure::wrong(format!("no packet is like `{}`", question.spec), "its two addresses are of different families"));
    };
    if arguments.json {
        output.json(&answer_json(&question, &ground, decisive, &answers))?;
    } else {
        let steps = if arguments.steps || output.verbosity == Verbosity::Verbose { Steps::Shown } else { Steps::Hidden };
        for answer in &answers {
            say(answer, &question, &ground, steps, output)?;
        }
    }
    if !answers.iter().all(|answer| answer.certain) {
        let message = "rules that are not understood stand in the packet's way, so the answer is not certain";
        return Err(Failure::refused(message, "`egressguard verify` names them, `egressguard refresh --repair` removes them"));
    }
    Ok(if answers.iter().all(allowed) { Exit::Done } else { Exit::No })
}

fn allowed(answer: &Answer) -> bool {
    answer.trace.verdict == Verdict::Allow
}

/// Takes the words apart. One word with spaces in it is the packet; otherwise the packet goes as far as it can.
fn ask(words: &[String], output: &mut Output) -> Result<Question, Failure> {
    let quoted = words.first().is_some_and(|word| word.contains(char::is_whitespace));
    let own = if quoted { 1 } else { spelt(words) };
    let (packet, rest) = words.split_at(own.min(words.len()));
    let (text, policy) = match rest {
        [] => (packet.join(" "), None),
        [policy] => (packet.join(" "), Some(policy.clone())),
        [first, ..] if quoted => {
            return Err(Failure::wrong(format!("`{first}` is one word too many"), "write the packet, quoted, and one policy"));
        }
        // The first word that belongs nowhere is what the packet's own reader complains of.
        _ => (words.join(" "), None),
    };
    match text.parse::<PacketSpec>() {
        Ok(spec) => {
            warn_of_ambiguous(&spec, output);
            Ok(Question { spec, text, policy })
        }
        Err(error) => {
            let characters = |octets: usize| text.get(..octets).map_or(0, |part| part.chars().count());
            let (start, end) = (characters(error.offset), characters(error.offset + error.len));
            let finding = Diagnostic {
                line: 1,
                column: start + 1,
                width: (end - start).max(1),
                severity: Severity::Error,
                message: error.message,
                help: error.help,
            };
            source::show(&[finding], text.as_bytes(), "packet", output)?;
            Err(Failure::wrong(
                format!("{} is no packet", diagnostic::said(&text)),
                "a packet is `[in|out|forward] PROTOCOL [from ADDR:PORT] [to ADDR|NAME:PORT] [user NAME|uid N] [service UNIT] [state STATE]`",
            ))
        }
    }
}

/// A policy as it would be loaded here now. What this host does not know is a symbol.
fn of_policy(name: &str, arguments: &ExplainArguments, world: &World, output: &mut Output) -> Result<Ground, Failure> {
    let policy = source::load(name, world.documents, &mut output.quiet())?.policy;
    let pins = match &arguments.pins {
        Some(path) => source::pins(path, world.documents)?,
        None => saved(world, output).map(|saved| running(&saved, &policy, world)).unwrap_or_default(),
    };
    let facts = source::facts(&policy, world.host).map_or_else(|_| source::symbolic_facts(&policy), |(facts, _)| facts);
    let known = pins.names.iter().filter(|(_, pins)| !pins.leases.is_empty()).map(|(name, _)| name.clone()).collect();
    let (pins, facts) = symbolic(&policy, &pins, &facts);
    let symbols = pins.names.keys().filter(|name| !BTreeSet::contains(&known, *name)).cloned().collect();
    let ruleset = compile(&policy, &pins, &facts, 0);
    Ok(Ground { ruleset, stand_ins: Vec::new(), policy: Some(policy), pins, facts, symbols })
}

/// What the kernel holds.
fn of_kernel(arguments: &ExplainArguments, world: &mut World, output: &mut Output) -> Result<Ground, Failure> {
    let now = world.host.now();
    let (_, there) = world.kernel.observe(Depth::Everything)?;
    if there.as_ref().is_some_and(|dump| dump.table.comment != TABLE_COMMENT) {
        return Err(NotOurs.into());
    }
    let found = match &there {
        Some(dump) => lift(dump, now),
        // Where no chain hangs, everything passes.
        None => Found { identity: None, chains: Vec::new(), sets: BTreeMap::new(), foreign: Vec::new(), dormant: false },
    };
    let saved = saved(world, output);
    let policy = saved
        .as_ref()
        .and_then(|saved| source::parse(&saved.record.file, saved.policy.clone(), &mut output.quiet()).ok().map(|source| source.policy));
    let mut pins = match &arguments.pins {
        Some(path) => source::pins(path, world.documents)?,
        None => saved.as_ref().zip(policy.as_ref()).map(|(saved, policy)| running(saved, policy, world)).unwrap_or_default(),
    };
    if arguments.pins.is_none() {
        commented(&found, &mut pins);
    }
    let facts = saved.map(|saved| saved.record.facts(&world.host.clock())).unwrap_or_default();
    let doubtful: &[Action] = if found.foreign.is_empty() { &[] } else { &[Action::Accept, Action::Drop] };
    let stand_ins = doubtful.iter().map(|action| found.ruleset(action)).collect();
    Ok(Ground { ruleset: found.ruleset(&Action::Continue), stand_ins, policy, pins, facts, symbols: BTreeSet::new() })
}

/// Adds the addresses that the kernel's elements say to be a name's.
fn commented(found: &Found, pins: &mut Pins) {
    let always =
        Lease { server: String::new(), ttl: 0, first_seen: Default::default(), last_seen: Default::default(), expires: Default::default() };
    for set in found.sets.values().filter(|set| !set.def.interval) {
        for (key, member) in &set.members {
            let Some(address) = from_octets(key) else { continue };
            for word in member.comment.split(", ") {
                if let Ok(name) = DnsName::parse(word.split(" [").next().unwrap_or(word)) {
                    pins.names.entry(name).or_default().leases.entry(address).or_insert_with(|| always.clone());
                }
            }
        }
    }
}

/// What was applied last, where it can be read: a question is answered without it, too.
fn saved(world: &World, output: &mut Output) -> Option<Saved> {
    let loaded = match state::current(world.files) {
        Ok(Current::Generation(generation)) => state::load(world.files, generation),
        Ok(Current::Nothing | Current::Removed(_)) => Ok(None),
        Err(error) => Err(error),
    };
    loaded.unwrap_or_else(|error| {
        output.warn(&format!("{error}: no pins are known"));
        None
    })
}

/// The pins that still run.
fn running(saved: &Saved, policy: &Policy, world: &World) -> Pins {
    let now = world.host.now();
    let mut pins = enforce::earlier_pins(saved, policy, world.host);
    for of_name in pins.names.values_mut() {
        of_name.leases.retain(|_, lease| lease.expires > now);
    }
    pins
}

/// Judges every packet that the question stands for; those with the same answer are said once.
fn answers(question: &Question, ground: &Ground) -> Vec<Answer> {
    let state_said = question.text.split_ascii_whitespace().any(|word| word == "state");
    let mut answers: Vec<Answer> = Vec::new();
    let packets =
        |spec: PacketSpec| Packet::from_spec(&spec, &ground.pins, &ground.facts).into_iter().map(move |packet| (spec.clone(), packet));
    for (spec, packet) in with_ports(&ground.ruleset, &question.spec).into_iter().flat_map(packets) {
        let (trace, certain) = judged(&packet, ground);
        let established = (!state_said).then(|| judged(&of_connection(&spec, &packet, ground), ground).0);
        let established = established.filter(|established| established.verdict != trace.verdict);
        let same = |answer: &&mut Answer| {
            let ends = |trace: &Trace| (trace.verdict, trace.rule.clone(), trace.chain.clone());
            ends(&answer.trace) == ends(&trace)
                && answer.established.as_ref().map(ends) == established.as_ref().map(ends)
                && answer.certain == certain
        };
        match answers.iter_mut().find(same) {
            Some(answer) => answer.packets.push(packet),
            None => answers.push(Answer { packets: vec![packet], trace, established, certain }),
        }
    }
    answers.into_iter().flat_map(by_ports).collect()
}

/// The same answer once for each set of ports that it is the answer for, whatever the addresses.
fn by_ports(answer: Answer) -> Vec<Answer> {
    let mut ports: BTreeMap<(IpAddr, IpAddr), Vec<Option<u16>>> = BTreeMap::new();
    for packet in &answer.packets {
        ports.entry((packet.source, packet.destination)).or_default().push(packet.payload.destination_port());
    }
    let mut split: BTreeMap<Vec<Option<u16>>, Vec<Packet>> = BTreeMap::new();
    for packet in answer.packets {
        let of_addresses = ports.get(&(packet.source, packet.destination)).cloned().unwrap_or_default();
        split.entry(of_addresses).or_default().push(packet);
    }
    let one = |packets| Answer { packets, trace: answer.trace.clone(), established: answer.established.clone(), certain: answer.certain };
    split.into_values().map(one).collect()
}

/// The trace, and whether it ends like this whatever the rules do that are not understood.
fn judged(packet: &Packet, ground: &Ground) -> (Trace, bool) {
    let trace = judge(&ground.ruleset, packet);
    let allows = |trace: &Trace| trace.verdict == Verdict::Allow;
    let certain = ground.stand_ins.iter().all(|ruleset| allows(&judge(ruleset, packet)) == allows(&trace));
    (trace, certain)
}

/// The same packet in the middle of a connection.
fn of_connection(spec: &PacketSpec, packet: &Packet, ground: &Ground) -> Packet {
    let spec = PacketSpec { state: State::Established, ..spec.clone() };
    let same = |later: &Packet| (later.source, later.destination) == (packet.source, packet.destination);
    Packet::from_spec(&spec, &ground.pins, &ground.facts).into_iter().find(same).unwrap_or_else(|| packet.clone())
}

/// Whether the rules that were tried are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Steps {
    Shown,
    Hidden,
}

fn say(answer: &Answer, question: &Question, ground: &Ground, steps: Steps, output: &mut Output) -> Result<(), Failure> {
    let (trace, policy) = (&answer.trace, ground.policy.as_ref());
    let doubt = if answer.certain { "" } else { " (perhaps)" };
    output.say(&format!("{}{doubt}: {}", verdict::word(trace.verdict), subject(answer, question, ground)))?;
    output.say(&format!("  rule  {}", verdict::place(&trace.rule, policy)))?;
    if let Some(step) = trace.steps.last() {
        output.say(&format!("  why   {}", because(&step.because, answer, question, ground)))?;
    }
    if let Some(learns) = verdict::learns(trace.verdict) {
        output.say(&format!("  so    {learns}"))?;
    }
    if trace.verdict == Verdict::Allow && trace.rule.starts_with("refuse-") && ground.ruleset.identity.mode == Mode::Observe {
        output.say("  but   mode observe: it is recorded and passes; enforced it would be refused")?;
    }
    if let Some(established) = &answer.established {
        let by = verdict::place(&established.rule, policy);
        output.say(&format!("  state established: {}, rule {by}", verdict::word(established.verdict)))?;
    }
    if steps == Steps::Shown {
        output.say("  steps")?;
        for line in verdict::steps(trace, "    ") {
            output.say(&because(&line, answer, question, ground))?;
        }
    }
    Ok(())
}

/// What an answer is about: the question, and which of the packets that it stands for.
fn subject(answer: &Answer, question: &Question, ground: &Ground) -> String {
    let subject = addressed(answer, question, ground);
    let asked: Vec<u16> = answer.packets.iter().filter_map(|packet| packet.payload.destination_port()).collect();
    let kinds = port_kinds(&ground.ruleset);
    if question.spec.to_port.is_some() || asked.is_empty() {
        return subject;
    }
    let mut ranges: Vec<(u16, u16)> = Vec::new();
    for (first, last) in kinds.into_iter().filter(|(first, last)| asked.iter().any(|port| (first..=last).contains(&port))) {
        match ranges.last_mut() {
            Some(before) if u32::from(before.1) + 1 == u32::from(first) => before.1 = last,
            _ => ranges.push((first, last)),
        }
    }
    if ranges == [(0, u16::MAX)] {
        return format!("{subject}, to any port");
    }
    let written: Vec<String> =
        ranges.iter().map(|(first, last)| if first == last { first.to_string() } else { format!("{first}-{last}") }).collect();
    format!("{subject}, to port {}", written.join(", "))
}

fn addressed(answer: &Answer, question: &Question, ground: &Ground) -> String {
    let spec = &question.spec;
    match &spec.to {
        Peer::Name(name) if ground.symbols.contains(name) => format!("{spec}, whatever its addresses are"),
        Peer::Name(name) if !ground.pins.names.contains_key(name) => format!("{spec}, of which no address is known"),
        Peer::Name(_) => {
            let addresses: BTreeSet<IpAddr> = answer.packets.iter().map(|packet| packet.destination).collect();
            let more = addresses.len().saturating_sub(LISTED);
            let listed = addresses.iter().take(LISTED).map(IpAddr::to_string).collect::<Vec<_>>().join(", ");
            format!("{spec}, at {listed}{}", if more > 0 { format!(" and {more} more") } else { String::new() })
        }
        Peer::Any | Peer::Address(_) => match one_family(answer) {
            Some(family) if spec.to == Peer::Any && spec.from == Peer::Any => {
                format!("{spec}, over {}", if family == Family::V4 { "IPv4" } else { "IPv6" })
            }
            _ => spec.to_string(),
        },
    }
}

fn one_family(answer: &Answer) -> Option<Family> {
    let family = answer.packets.first()?.family();
    answer.packets.iter().all(|packet| packet.family() == family).then_some(family)
}

/// The words of a step without the placeholders of what was not said.
fn because(words: &str, answer: &Answer, question: &Question, ground: &Ground) -> String {
    let Some(packet) = answer.packets.first() else { return words.to_string() };
    let told = |address: IpAddr, peer: &Peer| match peer {
        Peer::Name(name) if ground.symbols.contains(name) => Some((address, format!("{name}"))),
        Peer::Name(_) | Peer::Any if address.is_unspecified() => Some((address, "an address that no rule names".to_string())),
        _ => None,
    };
    let mut words = words.to_string();
    for (address, said) in [told(packet.destination, &question.spec.to), told(packet.source, &question.spec.from)].into_iter().flatten() {
        words = words.replace(&format!(": {address} is not in it"), &format!(": {said} is not in it"));
    }
    words
}

fn answer_json(question: &Question, ground: &Ground, decisive: &Answer, answers: &[Answer]) -> Value {
    let policy = ground.policy.as_ref();
    let line = |trace: &Trace| policy.and_then(|policy| policy.rule_line(&trace.rule)).map(|line| line.0);
    let file = policy.map(|policy| policy.file.clone());
    let answer = |answer: &Answer| {
        let trace = &answer.trace;
        json!({
            "packets": answer.packets.iter().map(|packet| packet.spec().to_string()).collect::<Vec<_>>(),
            "verdict": verdict::word(trace.verdict),
            "refusal": verdict::refusal(trace.verdict),
            "certain": answer.certain,
            "rule": trace.rule,
            "target": trace.target,
            "line": line(trace),
            "established": answer.established.as_ref().map(|trace| {
                json!({"verdict": verdict::word(trace.verdict), "rule": trace.rule, "line": line(trace)})
            }),
            "steps": verdict::steps_json(trace),
        })
    };
    json!({
        "schema": "egressguard.explain/1",
        "packet": question.spec.to_string(),
        "verdict": verdict::word(decisive.trace.verdict),
        "rule": decisive.trace.rule,
        "file": file,
        "line": line(&decisive.trace),
        "steps": verdict::steps_json(&decisive.trace),
        "certain": answers.iter().all(|answer| answer.certain),
        "symbolic": matches!(&question.spec.to, Peer::Name(name) if ground.symbols.contains(name)),
        "mode": if ground.ruleset.identity.mode == Mode::Observe { "observe" } else { "enforce" },
        "answers": answers.iter().map(answer).collect::<Vec<_>>(),
    })
}
