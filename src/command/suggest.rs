//! `suggest`: the smallest policy that allows what was seen while the applied one only observed. It is printed, and never applied.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use serde_json::{Value, json};

use crate::base::name::DnsName;
use crate::base::net::Protocol;
use crate::base::port::PortSet;
use crate::base::time::Timestamp;
use crate::command::arguments::SuggestArguments;
use crate::command::{Exit, Failure, Output, enforce, handover, report, source, status, test};
use crate::pins::{Answer, Pins};
use crate::policy::{self, Destination, DnsServer, Line, MAX_OCTETS, Mode, Outbound, Policy, Remarks, Target, Transport, write};
use crate::state::{self, Backend, Current, Saved};
use crate::violation::report::{Question, Report, program_words};
use crate::violation::suggest::{Added, Ground, Left, MOST, Suggestion, suggest as suggested};
use crate::world::{Files, World};

/// How many of those that are left out are told one by one.
const TOLD: usize = 50;
/// How far back it looks when nobody says: seven days, in seconds.
const LONGEST: i64 = 7 * 86_400;

/// Runs `suggest`.
pub fn suggest(arguments: &SuggestArguments, world: &mut World, output: &mut Output) -> Result<Exit, Failure> {
    let now = world.host.now();
    let asked = arguments.since.as_deref().map(|since| report::time(since, "--since", now)).transpose()?;
    let saved = applied(world)?;
    let applied_at = applied_since(&saved, world.files);
    // What an earlier policy refused is no work that this one has seen. A time that is still to come tells nothing: the clock was set back.
    let longest = Timestamp(now.0 - LONGEST);
    let since = asked.unwrap_or(if applied_at > now { longest } else { applied_at.max(longest) });
    let base = source::parse(&saved.record.file, saved.policy.clone(), &mut output.quiet())?.policy;
    let pins = enforce::earlier_pins(&saved, &base, world.host);
    let (facts, _) = source::facts(&base, world.host)?;
    if base.mode == Mode::Enforce {
        output
            .warn("the applied policy enforces: this allows what it has refused, which may be what it is for; `mode: observe` looks first");
    }
    if saved.record.backend == Backend::Iptables {
        output.warn("iptables holds the rules: what its ledger counts is not read, so only what `egressguard watch` saw is in here");
    }
    let question = Question { since, until: now, uid: None, to: None, direction: None };
    let report::Told { report, users, .. } = report::gather(question, world, output)?;
    if report.harvested.is_none() && report.violations.is_empty() {
        output.warn("nothing was ever harvested here: the timer's `egressguard refresh` does it");
    }
    if let Some(remark) = report::later(&report) {
        output.warn(&remark);
    }
    let names = named(&arguments.name, &base, world, output)?;
    let listening = listening(world, output);
    let ground = Ground { policy: &base, pins: &pins, facts: &facts, users: &users, names: &names, listening: listening.as_ref() };
    let counted = counted(&base, &pins, world, output);
    let written = |most: usize| {
        let suggestion = suggested(&report, &ground, most);
        let text = write(&suggestion.policy, &remarks(&suggestion, &report, &saved, applied_at, &base, &counted));
        (suggestion, text)
    };
    let (suggestion, text) = fitting(written);
    // What is printed is what the reader reads: everything that is said of it is said of the text.
    let read = policy::parse(&text, "the suggestion")
        .map_err(|_| {
            Failure::refused("the suggestion is no policy", "this is a fault of the program; `egressguard report` shows what was seen")
        })?
        .policy;
    if let Some(failing) = test::failing(&read, &pins, &facts) {
        output.warn(&format!("tests of the policy do not hold any more, so `apply` would refuse this:\n{failing}"));
    }
    if arguments.json {
        output.json(&value(&suggestion, &report, &saved, &base, &text))?;
    } else if let Some(path) = arguments.output.as_ref().filter(|path| *path != "-") {
        world.documents.write(path, text.as_bytes())?;
        output.say(&format!("{path}: {}", summary(&suggestion)))?;
        output.say(&format!("read it, then see what it changes: egressguard diff {} {path}", saved.record.file))?;
    } else {
        // The policy and nothing else, so that it can be sent into a file.
        output.out.write_all(text.as_bytes())?;
    }
    let has_all = suggestion.left.is_empty() && report.overflow.is_empty();
    Ok(if has_all { Exit::Done } else { Exit::No })
}

/// As many destinations as a file has room for: how long their remarks are is not known before.
fn fitting<T>(written: impl Fn(usize) -> (T, String)) -> (T, String) {
    let mut most = MOST;
    loop {
        let (suggestion, text) = written(most);
        if text.len() <= MAX_OCTETS || most == 0 {
            return (suggestion, text);
        }
        most /= 2;
    }
}

/// The generation that is applied.
fn applied(world: &World) -> Result<Saved, Failure> {
    let nothing =
        || Failure::refused("no policy is applied", "apply one with `mode: observe`, let the host do its work, and run this then");
    match state::current(world.files)? {
        Current::Generation(generation) => state::load(world.files, generation)?.ok_or_else(nothing),
        Current::Nothing | Current::Removed(_) => Err(nothing()),
    }
}

/// Since when its policy is applied, as far as generations are remembered: the same policy may have been applied again.
fn applied_since(saved: &Saved, files: &dyn Files) -> Timestamp {
    let earlier = (1..saved.record.generation).rev().map_while(|generation| state::load_without_pins(files, generation).ok().flatten());
    let same = earlier.map(|earlier| earlier.record).take_while(|record| record.sha256 == saved.record.sha256);
    same.map(|record| record.applied()).fold(saved.record.applied(), Timestamp::min)
}

/// The addresses of the names that the user thinks of, as DNS tells them now.
fn named(names: &[String], base: &Policy, world: &mut World, output: &mut Output) -> Result<BTreeMap<IpAddr, DnsName>, Failure> {
    let mut to = Vec::new();
    for name in names {
        match policy::destination(name) {
            Some(target @ Target::Name(_)) => to.push(Destination { target, line: Line(0) }),
            _ => return Err(Failure::wrong(format!("`--name {name}` is no name of a host"), "for example `--name db.example.com`")),
        }
    }
    let Some(first) = to.first() else { return Ok(BTreeMap::new()) };
    let way = Outbound {
        id: policy::derived_id(&first.target),
        to,
        ports: PortSet::single(443),
        protocol: Transport::Tcp,
        scope: None,
        line: Line(0),
    };
    let mut asked = Policy { outbound: vec![way], ..base.clone() };
    asked.host.ntp.clear();
    if asked.dns.is_empty() {
        asked.dns = vec![DnsServer::System];
    }
    let (facts, _) = source::facts(&asked, world.host)?;
    let mut found = BTreeMap::new();
    for (name, answer) in enforce::ask(&asked, &facts, world.resolver, output) {
        match answer {
            Answer::Addresses { addresses, .. } => found.extend(addresses.into_keys().map(|address| (address, name.clone()))),
            _ => output.warn(&format!("`{name}` has no address now, so nothing that was seen is known to be it")),
        }
    }
    Ok(found)
}

/// Where programs of this host take what comes in from outside.
fn listening(world: &mut World, output: &mut Output) -> Option<BTreeSet<(Protocol, u16)>> {
    match world.flows.sockets(&BTreeSet::new()) {
        Ok(sockets) => {
            let open = sockets.into_iter().filter(|socket| socket.remote.is_none() && !socket.local.ip().is_loopback());
            Some(open.map(|socket| (socket.protocol, socket.local.port())).collect())
        }
        Err(error) => {
            output.warn(&format!("{error}: it is not known where programs of this host listen"));
            None
        }
    }
}

/// Packets that each of the policy's names has had, where the kernel tells.
fn counted(base: &Policy, pins: &Pins, world: &mut World, output: &mut Output) -> BTreeMap<DnsName, u64> {
    let now = world.host.now();
    let held = match handover::held_by(world) {
        Backend::Nftables => status::by_nftables(None, now, world),
        Backend::Iptables => status::by_iptables(None, now, world),
    };
    let held = match held {
        Ok(held) => held,
        Err(failure) => {
            output.warn(&format!("{}: it is not known which names were used", failure.message));
            return BTreeMap::new();
        }
    };
    let of_name = |name: &DnsName| {
        let leases = pins.names.get(name).into_iter().flat_map(|pins| pins.leases.keys());
        leases.filter_map(|address| held.counted.get(address)).map(|(packets, _)| packets).sum()
    };
    let targets = base.outbound.iter().flat_map(|way| &way.to).map(|destination| &destination.target);
    targets.filter_map(|target| if let Target::Name(name) = target { Some((name.clone(), of_name(name))) } else { None }).collect()
}

/// What is said beside the lines of the policy.
fn remarks(
    suggestion: &Suggestion,
    report: &Report,
    saved: &Saved,
    applied_at: Timestamp,
    base: &Policy,
    counted: &BTreeMap<DnsName, u64>,
) -> Remarks {
    let mode = if base.mode == Mode::Observe { "observe" } else { "enforce" };
    let mut remarks = Remarks {
        head: vec![
            format!("Suggested by egressguard from what was seen from {} to {}", report.since, report.until),
            format!("under {} ({}, mode: {mode}): {}.", saved.record.file, base.name, summary(suggestion)),
            format!(
                "It is applied since {applied_at}{}.",
                if report.since < applied_at { "; what was seen before was seen under an earlier one" } else { "" }
            ),
            "What was seen is not always what should be: read every line before you apply it.".to_string(),
        ],
        ..Remarks::default()
    };
    let old = base.outbound.len();
    for (place, way) in base.outbound.iter().enumerate() {
        for (position, destination) in way.to.iter().enumerate() {
            let Target::Name(name) = &destination.target else { continue };
            if let Some(packets) = counted.get(name) {
                let words = if *packets == 0 { "nothing was seen: does anybody need it?".to_string() } else { count(*packets) };
                remarks.beside.insert((place, position), words);
            }
        }
    }
    for added in &suggestion.added {
        match added.way {
            Some(place) => {
                remarks.beside.insert(place, words(added));
            }
            None => remarks.head.push(format!("New: `inbound`, {}.", words(added))),
        }
    }
    if suggestion.policy.outbound.len() > old {
        let mut lines = vec!["New, for what was seen and the policy did not allow.".to_string()];
        let mut to = suggestion.policy.outbound[old..].iter().flat_map(|way| &way.to);
        let has_address = to.any(|destination| matches!(destination.target, Target::Net(_)));
        if has_address {
            lines.push("An address that belongs to a name can change: write the name, or run this again with `--name NAME`.".to_string());
        }
        remarks.before.insert(old, lines);
    }
    let overflow: u64 = report.overflow.values().sum();
    if !suggestion.left.is_empty() || overflow > 0 || suggestion.knocks.0 > 0 {
        remarks.tail.push("Seen, and not allowed by this policy:".to_string());
        for left in suggestion.left.iter().take(TOLD) {
            remarks.tail.push(format!("- {}: {}: {}", left.packet, count(left.packets), left.why));
        }
        if suggestion.left.len() > TOLD {
            remarks.tail.push(format!("- and {} more kinds of packets: `egressguard report` tells all", suggestion.left.len() - TOLD));
        }
        if suggestion.knocks.0 > 0 {
            remarks.tail.push(format!("- {} to {} where nothing listens", count(suggestion.knocks.0), ports(suggestion.knocks.1)));
        }
        if overflow > 0 {
            remarks.tail.push(format!("- {} that were counted under no destination: the kernel's sets were full", count(overflow)));
        }
    }
    remarks
}

fn words(added: &Added) -> String {
    let mut words = vec![count(added.packets), format!("last {}", added.last)];
    words.extend(added.programs.iter().map(|program| program_words(program).to_string()));
    let sources: Vec<String> = added.sources.iter().take(3).map(ToString::to_string).collect();
    if !sources.is_empty() {
        let more = if added.sources.len() > sources.len() { ", …" } else { "" };
        words.push(format!("from {}{more}", sources.join(", ")));
    }
    words.join(", ")
}

fn count(packets: u64) -> String {
    if packets == 1 { "1 packet".to_string() } else { format!("{packets} packets") }
}

fn ports(ports: usize) -> String {
    if ports == 1 { "a port".to_string() } else { format!("{ports} ports") }
}

fn summary(suggestion: &Suggestion) -> String {
    let destinations = suggestion.added.iter().filter_map(|added| added.way);
    let (destinations, number) = (destinations.clone().count(), destinations.filter(|(_, position)| *position == 0).count());
    let mut ways = if number == 1 { "1 way out".to_string() } else { format!("{number} ways out") };
    if destinations > number {
        ways = format!("{ways} to {destinations} destinations");
    }
    let door = if suggestion.added.iter().any(|added| added.way.is_none()) { " and the way in" } else { "" };
    match suggestion.left.len() {
        0 => format!("{ways}{door} added"),
        1 => format!("{ways}{door} added, 1 kind of packet left out"),
        left => format!("{ways}{door} added, {left} kinds of packets left out"),
    }
}

fn value(suggestion: &Suggestion, report: &Report, saved: &Saved, base: &Policy, text: &str) -> Value {
    let added = |added: &Added| {
        let place = added.way.and_then(|(way, position)| {
            let way = suggestion.policy.outbound.get(way)?;
            Some((way, way.to.get(position)?))
        });
        let way = place.map(|(way, _)| way);
        let target = place.map(|(_, destination)| match &destination.target {
            Target::Name(name) => name.to_string(),
            Target::Net(net) => net.addr().to_string(),
        });
        let inbound = suggestion.policy.inbound.as_ref().filter(|_| way.is_none());
        json!({
            "block": if way.is_some() { "outbound" } else { "inbound" },
            "to": target,
            "port": way.map(|way| way.ports.to_string()).or_else(|| inbound.map(|inbound| inbound.port.to_string())),
            "protocol": match way.map(|way| way.protocol).or_else(|| inbound.map(|inbound| inbound.protocol)) {
                Some(Transport::Udp) => "udp",
                _ => "tcp",
            },
            "for": way.and_then(|way| way.scope.as_ref()).map(ToString::to_string),
            "packets": added.packets,
            "last": added.last.to_string(),
            "programs": added.programs,
            "sources": added.sources,
        })
    };
    let left = |left: &Left| json!({"packet": left.packet.to_string(), "packets": left.packets, "why": left.why});
    json!({
        "schema": "egressguard.suggest/1",
        "since": report.since.to_string(),
        "until": report.until.to_string(),
        "policy": {"name": base.name.as_str(), "sha256": saved.record.sha256, "mode": if base.mode == Mode::Observe { "observe" } else { "enforce" }},
        "suggested": text,
        "added": suggestion.added.iter().map(added).collect::<Vec<_>>(),
        "left_out": suggestion.left.iter().map(left).collect::<Vec<_>>(),
        "overflow": report.overflow.values().sum::<u64>(),
        "covered": suggestion.covered,
        "knocks": {"packets": suggestion.knocks.0, "ports": suggestion.knocks.1},
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_suggestion_with_long_remarks_has_fewer_destinations_and_fits_into_a_file() {
        let written = |octets: usize| move |most: usize| (most, "x".repeat((most * octets).min(MAX_OCTETS + 1)));
        let of = |octets: usize| fitting(written(octets)).0;
        assert_eq!((of(100), of(300), of(900), of(MAX_OCTETS + 1)), (MOST, MOST / 2, MOST / 8, 0));
    }
}
