//! `apply`: from a policy to the kernel, in one transaction.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde_json::{Value, json};

use crate::base::name::DnsName;
use crate::base::net::{IpNet, Protocol};
use crate::base::packet::{Direction, Owner, PacketSpec, Peer, State};
use crate::base::time::Timestamp;
use crate::command::arguments::ApplyArguments;
use crate::command::enforce::{self, Committed, Told};
use crate::command::revoke::{self, Revocation};
use crate::command::source::{self, Source};
use crate::command::{Exit, Failure, Output, handover, harvest, quarantine, remove, test, trial};
use crate::judge::plan::{Plan, plan};
use crate::judge::{Verdict, traces};
use crate::pins::{self, Answer, Confirmation, NamePins, Outcome, Pins, What};
use crate::policy::{self, Mode, Policy};
use crate::ruleset::Ruleset;
use crate::ruleset::compile::{Facts, compile};
use crate::ruleset::lift::lift;
use crate::ruleset::program::GenerationId;
use crate::state::{self, Backend, Current, Record, Saved};
use crate::world::{Depth, Files, Kernel, World};

/// Runs `apply`.
pub fn apply(arguments: &ApplyArguments, world: &mut World, output: &mut Output) -> Result<Exit, Failure> {
    let source = source::load(&arguments.policy.policy, world.documents, output)?;
    let facts = whole_facts(&source.policy, world)?;
    for unit in source::idle_units(&source.policy, &facts) {
        output.warn(&format!("no unit `{unit}` runs here: its rule is loaded by the refresh that finds it running"));
    }
    let trial = arguments.confirm.as_deref().map(trial::lasts).transpose()?;
    match refuse_lockout(&source.policy, &facts, world.host.remote_session()) {
        // Whoever locks himself out of a trial waits for its end.
        Err(failure) if trial.is_some() => output.warn(&format!("{}; it ends by itself", failure.message)),
        Err(failure) if !arguments.force => return Err(failure),
        _ => {}
    }
    // A kernel that cannot be used is said before DNS is waited for.
    match handover::apply::backend(arguments.backend, world.files) {
        Backend::Nftables => drop(world.kernel.generation()?),
        Backend::Iptables => drop(handover::observe(world.programs)?),
    }
    let names = enforce::names(&source.policy).len();
    output.detail(&format!("policy `{}` is valid: {names} names, {} DNS servers", source.policy.name, facts.servers.len()));
    let answers = answers(arguments, &source, &facts, world, output)?;
    if !arguments.dry_run {
        // ORDER: after DNS was waited for. Who has nothing to ask, as whoever locks down in a hurry, is not kept waiting by who has.
        world.files.lock("apply")?;
        // What is loaded may drop the counts.
        harvest::harvest(world, output);
    }
    // The host may have changed meanwhile.
    let facts = whole_facts(&source.policy, world)?;
    if facts.cut_off.is_some() {
        output.warn("this host is cut off and stays so; `egressguard quarantine --release` lets the policy count again");
    }
    let (backend, before) = (handover::apply::backend(arguments.backend, world.files), state::backend(world.files));
    if backend != before && quarantine::is_cut_by_set(world) {
        return Err(Failure::refused(
            "the kernel's set holds this host cut off, and the other packet filter would not know of it",
            "run `egressguard quarantine --release` first",
        ));
    }
    let earlier = earlier(&source, world, output);
    let pins = earlier.as_ref().map(|earlier| enforce::earlier_pins(&earlier.saved, &source.policy, world.host)).unwrap_or_default();
    let clock = world.host.clock();
    let confirmation = enforce::confirm(&source.policy, &pins, &answers, clock.wall);
    source::warn_of_shared(&source, &arguments.policy.policy, &confirmation.pins, output)?;
    if arguments.dry_run {
        warn_of(&confirmation, output);
    }
    if arguments.skip_tests {
        output.warn(&format!("{} policy tests are skipped", source.policy.tests.len()));
    } else if let Some(failing) = test::failing(&source.policy, &confirmation.pins, &Facts { cut_off: None, ..facts.clone() }) {
        return Err(Failure {
            exit: Exit::No,
            message: format!("the policy fails its own tests\n{failing}"),
            help: Some("nothing was changed; mend the rule or the test, or use `--skip-tests`".to_string()),
        });
    }
    if let Some(lasts) = trial {
        if backend == Backend::Iptables || before == Backend::Iptables {
            return Err(Failure::refused("iptables cannot fall back by itself", "leave `--confirm` out, and keep a console at hand"));
        }
        return trial::begin(arguments, lasts, &source, &facts, &confirmation, world, output);
    }
    let applied = match backend {
        Backend::Iptables => handover::apply::apply(arguments, &source, &facts, confirmation, world, output),
        Backend::Nftables if arguments.dry_run => return dry_run(arguments, &source, &facts, &confirmation.pins, world, output),
        Backend::Nftables => {
            let told = earlier.and_then(|earlier| earlier.told);
            load(arguments, &source, &facts, told.as_ref(), confirmation, world, output)
        }
    };
    if backend != before && !arguments.dry_run && state::backend(world.files) == backend {
        // ORDER: the rules of the other packet filter go when the new ones are held: for a moment a packet has to pass both. They go
        // also when something else could not be done after that.
        remove::take_away(before, world, output)?;
    }
    applied
}

/// What the host knows; a user or group that it does not know is refused. A host that is cut off stays so.
fn whole_facts(policy: &Policy, world: &World) -> Result<Facts, Failure> {
    let (facts, missing) = source::facts(policy, world.host)?;
    if !missing.is_empty() {
        return Err(Failure::refused(missing.join("\n       "), "create it first, or take the rule out; nothing was changed"));
    }
    Ok(Facts { cut_off: state::cut_off(world.files), ..facts })
}

/// What is said of the names: by a file, or by DNS.
fn answers(
    arguments: &ApplyArguments,
    source: &Source,
    facts: &Facts,
    world: &mut World,
    output: &mut Output,
) -> Result<BTreeMap<DnsName, Answer>, Failure> {
    let Some(path) = &arguments.pins else { return Ok(enforce::ask(&source.policy, facts, world.resolver, output)) };
    let pins = source::pins(path, world.documents)?;
    let (now, names) = (world.host.now(), enforce::names(&source.policy).into_iter().collect());
    let listed = pins.only(&names);
    let has_ended = |(name, pins): (&DnsName, &NamePins)| (!pins.leases.is_empty() && pins.is_unresolved(now)).then(|| name.to_string());
    let ended: Vec<String> = listed.names.iter().filter_map(has_ended).collect();
    if !ended.is_empty() {
        output.warn(&format!("the pins of {} in `{path}` have ended; they are taken as if they were confirmed now", ended.join(", ")));
    }
    let answers = pins.names.into_iter().map(|(name, pins)| (name, answer_of(pins)));
    Ok(enforce::names(&source.policy).into_iter().map(|name| (name, unlisted(path))).chain(answers).collect())
}

/// A pins file stands in for DNS: what it lists is what was answered.
fn answer_of(pins: NamePins) -> Answer {
    let addresses = pins.leases.into_iter().map(|(address, lease)| (address, (lease.ttl, lease.server))).collect();
    Answer::Addresses { chain: pins.chain, addresses, complaints: Vec::new() }
}

fn unlisted(path: &str) -> Answer {
    Answer::Failed { reasons: vec![format!("`{path}` does not list it")] }
}

/// The generation before.
struct Earlier {
    saved: Saved,
    /// What the kernel was told of it, where it is known that nobody has changed anything since.
    told: Option<Told>,
}

/// The generation before; nothing when there is none or it cannot be read.
fn earlier(source: &Source, world: &mut World, output: &mut Output) -> Option<Earlier> {
    let loaded = match state::current(world.files) {
        Ok(Current::Generation(generation)) => state::load(world.files, generation),
        Ok(Current::Nothing | Current::Removed(_)) => Ok(None),
        Err(error) => Err(error),
    };
    match loaded {
        Ok(saved) => saved.map(|saved| Earlier { told: told(&saved, source, world), saved }),
        Err(error) => {
            output.warn(&format!("{error}: starting without earlier pins"));
            None
        }
    }
}

/// What the kernel was told of a generation; nothing when it is not sure that it still holds that.
fn told(saved: &Saved, source: &Source, world: &mut World) -> Option<Told> {
    let last = enforce::last_run(world.files, world.host).filter(|last| last.generation == saved.record.generation)?;
    let kernel = GenerationId(last.kernel_generation);
    // A generation that iptables holds was never told to nf_tables.
    if saved.record.backend != Backend::Nftables || world.kernel.generation().ok()? != kernel {
        return None;
    }
    // The same octets under another name are another policy only to people.
    let parsed;
    let policy = if saved.record.sha256 == source.policy.sha256 && saved.record.file == source.policy.file {
        &source.policy
    } else {
        parsed = policy::parse_bytes(&saved.policy, &saved.record.file).ok()?.policy;
        &parsed
    };
    enforce::told(&last, enforce::earlier_rules(saved, policy, world.host))
}

/// Refuses a policy under which the session this runs in could not be opened again, or would end: the rules themselves are asked. No
/// pins are needed for that, because nobody comes in by a name.
pub fn refuse_lockout(policy: &Policy, facts: &Facts, session: Option<(IpAddr, u16)>) -> Result<(), Failure> {
    let Some((peer, port)) = session else { return Ok(()) };
    let ruleset = compile(policy, &Pins::default(), facts, 0).loadable();
    let from_peer = PacketSpec {
        direction: Direction::In,
        protocol: Protocol::TCP,
        from: Peer::Address(peer),
        from_port: None,
        to: Peer::Any,
        to_port: Some(port),
        owner: Owner::Unsaid,
        service: None,
        state: State::New,
    };
    let goes_on = PacketSpec { state: State::Established, ..from_peer.clone() };
    let answer = PacketSpec {
        direction: Direction::Out,
        from: Peer::Any,
        from_port: Some(port),
        to: Peer::Address(peer),
        to_port: None,
        ..goes_on.clone()
    };
    let passes = |spec: &PacketSpec| {
        let judged = traces(&ruleset, spec, &Pins::default(), facts);
        !judged.is_empty() && judged.iter().all(|(_, trace)| trace.verdict == Verdict::Allow)
    };
    if [from_peer, goes_on, answer].iter().all(passes) {
        return Ok(());
    }
    Err(Failure::refused(
        format!("this session comes from {peer} to port {port}, and the policy would not let it be opened again"),
        format!("add `management: {{port: {port}, from: [{}]}}` to the policy, or use `--force` on a console", IpNet::from(peer)),
    ))
}

fn dry_run(
    arguments: &ApplyArguments,
    source: &Source,
    facts: &Facts,
    pins: &Pins,
    world: &mut World,
    output: &mut Output,
) -> Result<Exit, Failure> {
    let now = world.host.now();
    let (_, there) = world.kernel.observe(Depth::Pins)?;
    let held = there.as_ref().and_then(|dump| lift(dump, now).identity);
    let meant = compile(&source.policy, pins, facts, held.map_or(0, |identity| identity.generation));
    let change = plan(there.as_ref(), &meant, now)?;
    if arguments.json {
        output.json(&answer("dry-run", &source.policy, meant.identity.generation, &change, pins, None))?;
    } else if change.is_nothing() {
        output.say(&format!("nothing would change: the kernel holds policy `{}`", source.policy.name))?;
    } else {
        output.say(&format!("would apply policy `{}`:", source.policy.name))?;
        describe(&change, output)?;
    }
    Ok(if change.is_nothing() { Exit::Done } else { Exit::No })
}

fn load(
    arguments: &ApplyArguments,
    source: &Source,
    facts: &Facts,
    told: Option<&Told>,
    confirmation: Confirmation,
    world: &mut World,
    output: &mut Output,
) -> Result<Exit, Failure> {
    let policy = &source.policy;
    let mut confirmation = confirmation;
    let mut loaded = commit(source, facts, told, &confirmation.pins, Generation::New, world)?;
    let blocked = !unresolved(&confirmation.pins).is_empty();
    if blocked && arguments.pins.is_none() && loaded.committed.plan.touches_rules() {
        // The rules from before may have refused the questions that the new policy asks.
        match ask_again(policy, facts, loaded.generation, &confirmation.pins, world, output) {
            Some(again) => confirmation = again,
            // Another run has applied something, and done the rest.
            None => return report(arguments, policy, &loaded, &confirmation, None, output),
        }
        if confirmation.changes.iter().any(|change| change.what == What::Added) {
            let again = commit(source, facts, None, &confirmation.pins, Generation::Same(loaded.generation), world)?;
            loaded.committed.kernel = again.committed.kernel;
            loaded.committed.plan.added.extend(again.committed.plan.added);
            loaded.ruleset = again.ruleset;
        }
    }
    let revocation = match loaded.committed.plan.is_nothing() && revoke::was_done(loaded.generation, world) {
        true => None,
        false => revoke::end(&loaded.ruleset, world.flows, || world.host.remote_session(), output),
    };
    // ORDER: after the revocation, which is thereby known to have been done. Where it was not, or this run ends before, the next one
    // finds nothing remembered and revokes.
    if revoke::is_complete(revocation.as_ref())
        && let Err(failure) = remember(&loaded, &confirmation, world)
    {
        // It only saves the next refresh some work.
        output.warn(&failure.message);
    }
    let exit = report(arguments, policy, &loaded, &confirmation, revocation.as_ref(), output)?;
    revocation.unwrap_or_default().conclude(exit)
}

/// Asks once more for every name, now that the rules of this generation are loaded; nothing when it is no longer the one that is
/// applied. Nobody is kept waiting by it.
pub fn ask_again(
    policy: &Policy,
    facts: &Facts,
    generation: u64,
    pins: &Pins,
    world: &mut World,
    output: &mut Output,
) -> Option<Confirmation> {
    let asked = world.host.clock();
    world.files.unlock();
    let answers = enforce::ask(policy, facts, world.resolver, output);
    if let Err(error) = world.files.lock("apply") {
        output.warn(&format!("{error}: the next refresh loads what DNS says now"));
        return None;
    }
    if !state::is_current(world.files, generation) {
        return None;
    }
    let now = world.host.clock();
    let pins = pins::rebase(pins, &asked, &now, policy.refresh.keep).pins;
    Some(enforce::confirm(policy, &pins, &answers, now.wall))
}

/// Under which number a ruleset is loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Generation {
    /// The next one, once something has to change.
    New,
    /// This one, again.
    Same(u64),
}

impl Generation {
    /// The number to plan with, before anything has to change.
    pub fn current(self, files: &dyn Files) -> u64 {
        match (self, state::current(files)) {
            (Generation::Same(generation), _) | (Generation::New, Ok(Current::Generation(generation))) => generation,
            _ => 0,
        }
    }
}

/// Names a generation that is loaded as the one to restore.
pub fn make_current(files: &mut dyn Files, policy: &Policy, generation: u64) -> Result<(), Failure> {
    state::make_current(files, generation).map_err(|error| {
        let failure = Failure::from(error);
        let message = format!("policy `{}` is loaded, but a boot would load the one before: {}", policy.name, failure.message);
        Failure { message, ..failure }
    })
}

/// What was loaded.
pub struct Loaded {
    /// Under which number.
    pub generation: u64,
    /// What was changed.
    pub committed: Committed,
    /// What the kernel holds now.
    pub ruleset: Ruleset,
}

/// Loads and saves one generation.
pub fn commit(
    source: &Source,
    facts: &Facts,
    told: Option<&Told>,
    pins: &Pins,
    generation: Generation,
    world: &mut World,
) -> Result<Loaded, Failure> {
    let now = world.host.now();
    let policy = &source.policy;
    let mut meant = compile(policy, pins, facts, generation.current(world.files));
    let clock = world.host.clock();
    let mut saved = None;
    let files = &mut *world.files;
    let number = &mut |ruleset: &mut Ruleset| {
        if generation == Generation::New {
            ruleset.number(state::highest(files)?.max(ruleset.identity.generation) + 1);
        }
        // ORDER: saved before it is loaded, so that what the kernel holds can always be found again; named as the one to restore
        // only when it has been read back.
        let record = Record::new(ruleset.identity.generation, policy, facts, &clock);
        saved = Some(ruleset.identity.generation);
        state::save(files, &Saved { policy: source.content.clone(), pins: pins.clone(), record })?;
        Ok(state::prepare_current(files, ruleset.identity.generation)?)
    };
    let committed = enforce::commit(world.kernel, &mut meant, told, world.host, &mut enforce::all_as(number));
    match (committed, saved) {
        (Ok(committed), Some(saved)) => {
            make_current(world.files, policy, saved)?;
            Ok(Loaded { generation: saved, committed, ruleset: meant })
        }
        (Ok(committed), None) => Ok(Loaded { generation: meant.identity.generation, committed, ruleset: meant }),
        (Err(failure), saved) => {
            if let (Some(saved), Generation::New) = (saved, generation)
                && !may_hold(world.kernel, saved, now)
            {
                state::discard(world.files, saved);
            }
            Err(failure)
        }
    }
}

/// Whether the kernel may hold this generation: things can go wrong after a transaction, too. What it holds has to be kept.
fn may_hold(kernel: &mut dyn Kernel, generation: u64, now: Timestamp) -> bool {
    match kernel.observe(Depth::Rules) {
        Ok((_, there)) => there.and_then(|dump| lift(&dump, now).identity).is_some_and(|identity| identity.generation == generation),
        Err(_) => true,
    }
}

/// Remembers which kernel generation holds these rules.
fn remember(loaded: &Loaded, confirmation: &Confirmation, world: &mut World) -> Result<(), Failure> {
    let last = enforce::note(&loaded.ruleset, loaded.committed.kernel, true, enforce::problems(confirmation), world.host);
    Ok(state::save_refresh(world.files, &last)?)
}

fn report(
    arguments: &ApplyArguments,
    policy: &Policy,
    loaded: &Loaded,
    confirmation: &Confirmation,
    revocation: Option<&Revocation>,
    output: &mut Output,
) -> Result<Exit, Failure> {
    let (generation, change) = (loaded.generation, &loaded.committed.plan);
    warn_of(confirmation, output);
    if arguments.json {
        let verb = if change.is_nothing() { "unchanged" } else { "applied" };
        output.json(&answer(verb, policy, generation, change, &confirmation.pins, revocation))?;
    } else if change.is_nothing() {
        output.say(&format!("unchanged: policy `{}` (generation {generation}) is what the kernel holds", policy.name))?;
    } else {
        let mode = if policy.mode == Mode::Observe { ", mode observe: nothing is blocked" } else { "" };
        output.say(&format!("applied policy `{}` (generation {generation}{mode})", policy.name))?;
        describe(change, output)?;
    }
    if !arguments.json {
        describe_revocation(revocation, output)?;
    }
    Ok(if unresolved(&confirmation.pins).is_empty() { Exit::Done } else { Exit::No })
}

/// Says what went wrong with names.
pub fn warn_of(confirmation: &Confirmation, output: &mut Output) {
    for (name, words) in enforce::problems(confirmation) {
        let pinned = confirmation.pins.names.get(&name).is_some_and(|pins| !pins.leases.is_empty());
        let consequence = match confirmation.outcomes.get(&name) {
            Some(Outcome::Confirmed { .. }) if pinned => "the rest of the answer is pinned",
            _ if pinned => "its pins stay until they expire",
            _ => "it has no pin and is blocked",
        };
        output.warn(&format!("{name}: {words}; {consequence}"));
    }
}

/// How many names DNS did not confirm.
pub fn unconfirmed(confirmation: &Confirmation) -> usize {
    confirmation.outcomes.values().filter(|outcome| !matches!(outcome, Outcome::Confirmed { .. })).count()
}

/// What went wrong with names, as JSON.
pub fn problems_json(confirmation: &Confirmation) -> Value {
    enforce::problems(confirmation).into_iter().map(|(name, words)| (name.to_string(), Value::String(words))).collect()
}

/// That a refresh changed nothing.
pub fn unchanged(policy: &Policy, unresolved: &[String], problems: usize) -> String {
    match unresolved {
        [] if problems > 0 => {
            format!("unchanged: the pins of policy `{}` are kept, {problems} of its names were not confirmed", policy.name)
        }
        [] => format!("unchanged: every pin of policy `{}` is current", policy.name),
        [name] => format!("unchanged: policy `{}`, of which {name} has no pin", policy.name),
        names => format!("unchanged: policy `{}`, of which {} names have no pin", policy.name, names.len()),
    }
}

/// The names that have no pin.
pub fn unresolved(pins: &Pins) -> Vec<String> {
    pins.names.iter().filter(|(_, pins)| pins.leases.is_empty()).map(|(name, _)| name.to_string()).collect()
}

/// The change for people: at most twenty elements of a kind.
pub fn describe(change: &Plan, output: &mut Output) -> Result<(), Failure> {
    const MOST: usize = 20;
    for what in &change.foreign {
        output.say(&format!("  removed what was not ours: {what}"))?;
    }
    if change.fresh {
        output.say("  made table `inet egressguard`")?;
    } else if !change.chains.is_empty() {
        output.say(&format!("  rules of {}", change.chains.join(", ")))?;
    }
    if !change.sets.is_empty() {
        output.say(&format!("  sets {}", change.sets.join(", ")))?;
    }
    for (sign, elements) in [('+', &change.added), ('-', &change.removed), ('~', &change.renewed)] {
        // Constant elements of the rules have no comment and say nothing to people.
        let mut named: Vec<_> = elements.iter().filter(|element| !element.comment.is_empty()).collect();
        named.dedup_by_key(|element| (&element.element, &element.comment));
        for element in named.iter().take(MOST) {
            output.say(&format!("  {sign} {:<39}  {}", element.element, element.comment))?;
        }
        if named.len() > MOST {
            output.say(&format!("  {sign} … and {} more", named.len() - MOST))?;
        }
    }
    Ok(())
}

/// What was ended, for people.
pub fn describe_revocation(revocation: Option<&Revocation>, output: &mut Output) -> Result<(), Failure> {
    if let Some(words) = revocation.and_then(Revocation::words) {
        output.say(&format!("  {words}"))?;
    }
    Ok(())
}

/// The answer as JSON. What was revoked is absent where nothing was judged.
fn answer(verb: &str, policy: &Policy, generation: u64, change: &Plan, pins: &Pins, revocation: Option<&Revocation>) -> Value {
    json!({
        "schema": "egressguard.apply/1",
        "result": verb,
        "changed": !change.is_nothing(),
        "policy": {"name": policy.name.as_str(), "sha256": policy.sha256},
        "generation": generation,
        "change": change_json(change),
        "revoked": revocation.map(Revocation::json),
        "unresolved": unresolved(pins),
    })
}

/// The change as JSON.
pub fn change_json(change: &Plan) -> Value {
    let elements = |elements: &[crate::judge::plan::ElementChange]| -> Vec<Value> {
        elements.iter().map(|element| json!({"set": element.set, "element": element.element, "comment": element.comment})).collect()
    };
    json!({
        "fresh": change.fresh,
        "chains": change.chains,
        "sets": change.sets,
        "foreign": change.foreign,
        "added": elements(&change.added),
        "removed": elements(&change.removed),
        "renewed": elements(&change.renewed),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::parse;

    fn locks_out(policy: &str, peer: &str, port: u16) -> Option<Failure> {
        let policy = parse(&format!("version: 1\n{policy}\n"), "policy.yaml").expect(policy).policy;
        refuse_lockout(&policy, &Facts::default(), Some((peer.parse().expect(peer), port))).err()
    }

    #[test]
    fn a_session_that_could_not_come_back_is_named_with_the_lines_that_would_let_it() {
        let failure = locks_out("inbound: {port: 443}", "203.0.113.9", 22).expect("nobody comes in by port 22");
        assert_eq!(failure.exit, Exit::Refused);
        assert!(failure.message.contains("from 203.0.113.9 to port 22"), "{}", failure.message);
        assert!(
            failure.help.is_some_and(|help| help.contains("management: {port: 22, from: [203.0.113.9/32]}") && help.contains("--force"))
        );
        let failure = locks_out("inbound: {port: 443}", "2001:db8::9", 22).expect("nor over IPv6");
        assert!(failure.help.is_some_and(|help| help.contains("[2001:db8::9/128]")));
    }

    #[test]
    fn the_rules_themselves_say_who_may_come_back() {
        const MANAGEMENT: &str = "management: {port: 22, from: [203.0.113.0/24, \"2001:db8::/64\"]}";
        for (policy, peer, port, locked) in [
            (MANAGEMENT, "203.0.113.9", 22, false),
            (MANAGEMENT, "2001:db8::9", 22, false),
            (MANAGEMENT, "198.51.100.1", 22, true),
            (MANAGEMENT, "2001:db8:1::9", 22, true),
            (MANAGEMENT, "203.0.113.9", 2222, true),
            ("inbound: {port: 22}", "198.51.100.1", 22, false),
            ("inbound: {port: 22}", "2001:db8::9", 22, false),
            ("inbound: {port: 22, protocol: udp}", "198.51.100.1", 22, true),
            ("inbound: {port: 22, from: [198.51.100.0/24]}", "198.51.100.1", 22, false),
            ("inbound: {port: 22, from: [198.51.100.0/24]}", "203.0.113.9", 22, true),
            ("inbound: {port: 22, from: [198.51.100.0/24]}", "2001:db8::9", 22, true),
            ("mode: observe\ninbound: {port: 443}", "203.0.113.9", 22, false),
            // A tunnel that ends on this host: the session itself comes by the loopback interface.
            ("inbound: {port: 443}", "127.0.0.1", 22, false),
            ("inbound: {port: 443}", "::1", 22, false),
            ("inbound: {port: 443}", "fe80::1", 22, true),
            ("management: {port: 22, from: [\"fe80::/10\"]}", "fe80::1", 22, false),
        ] {
            assert_eq!(locks_out(policy, peer, port).is_some(), locked, "{policy}: {peer} to {port}");
        }
    }

    #[test]
    fn without_a_remote_session_nobody_is_locked_out() {
        let policy = parse("version: 1\n", "policy.yaml").expect("a policy").policy;
        assert!(refuse_lockout(&policy, &Facts::default(), None).is_ok());
    }
}
