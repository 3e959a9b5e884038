//! `quarantine`: cuts the whole host off at once, and lets it go again, or one user whom the rules have cut off.
//!
//! It is the applied policy, compiled for a host that is cut off, as a generation of its own: so it is one transaction, read back, revokes
//! what is under way, is what a boot restores and a timer repairs, and is undone by nobody but whoever says so.

use std::collections::BTreeMap;

use serde_json::json;

use crate::base::diagnostic::said;
use crate::command::apply::{self, Generation};
use crate::command::arguments::QuarantineArguments;
use crate::command::evidence::{self, Evidence};
use crate::command::revoke::counted;
use crate::command::revoke::{self, Revocation};
use crate::command::source::{self, Source};
use crate::command::{Exit, Failure, Output, enforce, handover, harvest, refresh};
use crate::pins::Pins;
use crate::policy::Policy;
use crate::ruleset::Ruleset;
use crate::ruleset::compile::{Facts, QUARANTINED_HOST, QUARANTINED_USERS, compile};
use crate::ruleset::program::{Element, Elements, GenerationId, Op, TableDump};
use crate::state::books::{Care, LEDGER, Writer};
use crate::state::{self, Backend, Current, Saved};
use crate::violation::record::Kind;
use crate::world::{Depth, FileError, Host, Kernel, KernelError, World};

/// How often it is tried again when somebody else changes the packet filter meanwhile.
const ATTEMPTS: usize = 8;

/// Runs `quarantine`.
pub fn quarantine(arguments: &QuarantineArguments, world: &mut World, output: &mut Output) -> Result<Exit, Failure> {
    if !arguments.dry_run {
        match world.files.lock("quarantine") {
            // Neither another command that hangs nor a disk that refuses keeps anybody from cutting the host off.
            Err(error @ FileError::Locked(_)) if !arguments.release => return cut_off_by_element(error.into(), world, output),
            Err(error @ FileError::Locked(_)) => return Err(error.into()),
            Err(error) if arguments.release => output.warn(&format!("{error}: going on without the lock")),
            Err(_) => {}
            Ok(()) => {}
        }
    }
    match (arguments.release, arguments.who.as_slice()) {
        (false, _) => cut_off(arguments, world, output),
        (true, []) => release(arguments, world, output),
        (true, who) => release_user(user(who, world.host)?, arguments, world, output),
    }
}

/// What is applied: the policy, and all that was saved of it.
struct Applied {
    source: Source,
    saved: Saved,
    pins: Pins,
}

fn applied(world: &World, output: &mut Output) -> Result<Applied, Failure> {
    let nothing = || Failure::refused("no policy is applied here", "`egressguard apply builtin:lockdown` closes everything but loopback");
    let Current::Generation(generation) = state::current(world.files)? else { return Err(nothing()) };
    // Nobody who is cut off needs pins; the first refresh after that asks for them.
    let saved = state::load_with_or_without_pins(world.files, generation)?.ok_or_else(nothing)?;
    let source = source::parse(&saved.record.file, saved.policy.clone(), &mut output.quiet())?;
    let pins = enforce::earlier_pins(&saved, &source.policy, world.host);
    Ok(Applied { source, saved, pins })
}

fn cut_off(arguments: &QuarantineArguments, world: &mut World, output: &mut Output) -> Result<Exit, Failure> {
    let applied = match applied(world, output) {
        Ok(applied) => applied,
        Err(failure) if arguments.dry_run => return Err(failure),
        Err(failure) => return cut_off_by_element(failure, world, output),
    };
    let Applied { source, saved, pins } = &applied;
    let facts = refresh::facts(saved, &source.policy, world, output);
    let already = facts.cut_off;
    let facts = Facts { cut_off: already.or(Some(world.host.now())), ..facts };
    if !arguments.force {
        apply::refuse_lockout(&source.policy, &facts, world.host.remote_session())
            .map_err(|failure| Failure { message: failure.message.replace("the policy", "a host that is cut off"), ..failure })?;
    }
    if arguments.dry_run {
        return rehearse(arguments, &applied, &facts, world, output);
    }
    // ORDER: before the cut, which closes the sockets that are to be seen.
    let evidence = Evidence::gather(world);
    let loaded = match load(&applied, &facts, world, output) {
        Err(failure) => return cut_off_by_element(failure, world, output),
        Ok(loaded) => loaded,
    };
    let revocation = end(&loaded, world, output);
    if source.policy.management.is_none() {
        output.warn("the policy has no `management`: only a console reaches this host now");
    }
    let since = facts.cut_off.unwrap_or(world.host.now());
    let kept = match already {
        Some(_) => None,
        None => match evidence::keep(evidence, since, saved, pins, world) {
            Ok(file) => Some(file),
            Err(failure) => {
                output.warn(&format!("the host is cut off, but the evidence was not saved: {}", failure.message));
                None
            }
        },
    };
    if already.is_none() {
        book(Kind::Cut { evidence: kept.clone() }, world, output);
    }
    if arguments.json {
        output.json(&json!({
            "schema": "egressguard.quarantine/1",
            "cut_off": true,
            "since": since.to_string(),
            "changed": loaded.changed,
            "generation": loaded.generation,
            "management": management(&source.policy),
            "revoked": revocation.as_ref().map(Revocation::json),
            "evidence": kept,
        }))?;
    } else {
        let verb = if loaded.changed { "cut off" } else { "unchanged: cut off" };
        output.say(&format!("{verb} since {since} (generation {}): only {}", loaded.generation, stays(&source.policy)))?;
        apply::describe_revocation(revocation.as_ref(), output)?;
        if let Some(file) = &kept {
            output.say(&format!("evidence    {}/{file}", world.files.place()))?;
        }
        output.detail("`egressguard quarantine --release` lets the policy count again");
    }
    revocation.unwrap_or_default().conclude(Exit::Done)
}

/// What would happen.
fn rehearse(
    arguments: &QuarantineArguments,
    applied: &Applied,
    facts: &Facts,
    world: &mut World,
    output: &mut Output,
) -> Result<Exit, Failure> {
    let Applied { source, saved, pins } = applied;
    let meant = compile(&source.policy, pins, facts, saved.record.generation).loadable();
    let would_end = revoke::would_end(&meant, world.flows)?;
    if saved.record.cut_off().is_some() {
        match arguments.json {
            true => output.json(&json!({"schema": "egressguard.quarantine/1", "cut_off": true, "would": null}))?,
            false => output.say("nothing would change: this host is cut off")?,
        }
        return Ok(Exit::Done);
    }
    let (flows, sockets) = would_end;
    if arguments.json {
        output.json(&json!({
            "schema": "egressguard.quarantine/1",
            "cut_off": false,
            "would": {"flows": flows, "sockets": sockets},
            "management": management(&source.policy),
        }))?;
        return Ok(Exit::No);
    }
    output.say(&format!("would cut this host off: only {}", stays(&source.policy)))?;
    output.say(&format!("would end {} and close {}", counted(flows, "flow"), counted(sockets, "socket")))?;
    if source.policy.management.is_none() {
        output.warn("the policy has no `management`: only a console would reach this host");
    }
    Ok(Exit::No)
}

/// What a host that is cut off still does, in words.
fn stays(policy: &Policy) -> String {
    let dhcp = if policy.host.dhcp { ", DHCP" } else { "" };
    match management(policy) {
        Some(management) => format!("loopback, neighbours{dhcp} and management ({management}) stay"),
        None => format!("loopback and neighbours{dhcp} stay"),
    }
}

fn management(policy: &Policy) -> Option<String> {
    let management = policy.management.as_ref()?;
    let from: Vec<String> = management.from.iter().map(ToString::to_string).collect();
    Some(format!("port {} from {}", management.port, from.join(", ")))
}

fn release(arguments: &QuarantineArguments, world: &mut World, output: &mut Output) -> Result<Exit, Failure> {
    // ORDER: those who are in the kernel's sets first: where rules cut off, everybody stays so until others are loaded. Nothing of the
    // state is needed for it.
    let freed = free(&[QUARANTINED_HOST, QUARANTINED_USERS], |_| true, world)?;
    let applied = applied(world, output).map_err(|failure| Failure {
        message: match freed {
            0 => failure.message,
            _ => format!("{}; whom the kernel's sets held is released, and the rules are as they were", failure.message),
        },
        ..failure
    })?;
    let Applied { source, saved, .. } = &applied;
    let since = state::cut_off(world.files);
    let facts = Facts { cut_off: None, ..refresh::facts(saved, &source.policy, world, output) };
    let loaded = load(&applied, &facts, world, output)?;
    let revocation = end(&loaded, world, output);
    if loaded.changed || freed > 0 {
        book(Kind::Release { uid: None }, world, output);
    }
    if arguments.json {
        output.json(&json!({
            "schema": "egressguard.quarantine/1",
            "cut_off": false,
            "since": since.map(|since| since.to_string()),
            "changed": loaded.changed || freed > 0,
            "generation": loaded.generation,
            "released": freed,
        }))?;
    } else if !loaded.changed && freed == 0 {
        output.say("unchanged: nobody is cut off")?;
    } else {
        let policy = &source.policy.name;
        output.say(&format!("released: policy `{policy}` (generation {}) counts again", loaded.generation))?;
        output.detail("names that have no pin are asked for by the next refresh: `egressguard refresh`");
    }
    revocation.unwrap_or_default().conclude(Exit::Done)
}

fn release_user(uid: u32, arguments: &QuarantineArguments, world: &mut World, output: &mut Output) -> Result<Exit, Failure> {
    let freed = free(&[QUARANTINED_USERS], |key| *key == uid.to_ne_bytes(), world)?;
    if freed > 0 {
        book(Kind::Release { uid: Some(uid) }, world, output);
    }
    if arguments.json {
        output.json(&json!({"schema": "egressguard.quarantine/1", "uid": uid, "changed": freed > 0, "released": freed}))?;
    } else if freed == 0 {
        output.say(&format!("unchanged: uid {uid} is not cut off"))?;
    } else {
        output.say(&format!("released: uid {uid} may do again what the policy allows"))?;
    }
    if state::cut_off(world.files).is_some() {
        output.warn("the whole host is cut off, and he with it; `egressguard quarantine --release` lets it go");
    }
    Ok(Exit::Done)
}

/// The number of the user who is meant: `user NAME`, or `uid NUMBER`.
fn user(who: &[String], host: &dyn Host) -> Result<u32, Failure> {
    const HELP: &str = "write `egressguard quarantine --release user NAME`, or `uid NUMBER`";
    match who {
        [word, name] if word == "user" => {
            let found = host.user(name).map_err(|error| Failure::refused(error, "use `uid NUMBER`"))?;
            found.ok_or_else(|| Failure::wrong(format!("no user {} is known here", said(name)), HELP))
        }
        [word, number] if word == "uid" => {
            number.parse().map_err(|_| Failure::wrong(format!("{} is not the number of a user", said(number)), HELP))
        }
        other => Err(Failure::wrong(format!("{} names no user", said(&other.join(" "))), HELP)),
    }
}

/// Writes down what was done. It is done whether this can be written or not.
fn book(kind: Kind, world: &mut World, output: &mut Output) {
    let written = Writer::new(LEDGER).append(world.files, world.host.now(), &[kind], Care::OnTheDisk);
    if let Err(error) = written {
        output.warn(&format!("{error}: the book does not tell of it"));
    }
}

/// What was loaded.
struct Loaded {
    ruleset: Ruleset,
    generation: u64,
    kernel: GenerationId,
    changed: bool,
}

/// Loads the applied policy with these facts, as a generation of its own where something changes.
fn load(applied: &Applied, facts: &Facts, world: &mut World, output: &mut Output) -> Result<Loaded, Failure> {
    let Applied { source, pins, .. } = applied;
    // What is loaded may drop the counts, and what was refused before is not what is refused in between.
    harvest::harvest(world, output);
    if handover::held_by(world) == Backend::Iptables {
        let (ruleset, change) = handover::apply::commit(source, facts, pins, Generation::New, world, output)?;
        let generation = ruleset.identity.generation;
        return Ok(Loaded { generation, ruleset, kernel: GenerationId(0), changed: !change.is_nothing() });
    }
    let loaded = apply::commit(source, facts, None, pins, Generation::New, world)?;
    let changed = !loaded.committed.plan.is_nothing();
    Ok(Loaded { ruleset: loaded.ruleset, generation: loaded.generation, kernel: loaded.committed.kernel, changed })
}

/// Ends what is no longer allowed, and notes that this was done.
fn end(loaded: &Loaded, world: &mut World, output: &mut Output) -> Option<Revocation> {
    let revocation = revoke::end(&loaded.ruleset, world.flows, || world.host.remote_session(), output);
    // Without the note that it was done the next run does it.
    let whole = revoke::is_complete(revocation.as_ref());
    let last = enforce::note(&loaded.ruleset, loaded.kernel, whole, BTreeMap::new(), world.host);
    if let Err(error) = state::save_refresh(world.files, &last) {
        output.warn(&error.to_string());
    }
    revocation
}

/// Cuts the host off where nothing can be saved: by the set that rules put the host into. The kernel keeps that until somebody lets go,
/// a refresh leaves it, and a boot does not know of it.
fn cut_off_by_element(why: Failure, world: &mut World, output: &mut Output) -> Result<Exit, Failure> {
    let for_ever = Elements::from([(vec![0; 4], Element::default())]);
    let mut has_set = true;
    let added = change(world.kernel, |there| {
        let Some((def, elements)) = there.sets.get(QUARANTINED_HOST) else {
            has_set = false;
            return None;
        };
        let add = || Op::AddElements { set: def.clone(), elements: for_ever.clone() };
        match elements.values().next() {
            Some(element) if element.timeout_ms.is_none() => None,
            // Before 6.12 an element that is there keeps its time; added first, it is there to be deleted, whenever it ends.
            Some(_) => Some(vec![add(), Op::DeleteElements { set: def.clone(), elements: for_ever.clone() }, add()]),
            None => Some(vec![add()]),
        }
    });
    if has_set && matches!(added, Ok(Changed::Done(_))) {
        // Where the disk takes it; it is the lock that may be missing, and the kernel that counts.
        book(Kind::Cut { evidence: None }, world, &mut output.quiet());
    }
    match added {
        _ if !has_set => Err(Failure {
            message: format!("{}; the rules that are loaded know no set of who is cut off, and the host is NOT cut off", why.message),
            ..why
        }),
        Ok(Changed::NoTable) | Err(_) => Err(Failure { message: format!("{}; the host is NOT cut off", why.message), ..why }),
        Ok(Changed::Nothing | Changed::Done(_)) => Err(Failure::refused(
            format!("{}; the kernel has cut the host off all the same, but a boot would not know of it", why.message),
            "mend the state directory, then run this again; flows that are under way have lost their way, and were not ended",
        )),
    }
}

/// Whether the kernel's set holds the whole host, until somebody lets it go or for a time.
pub fn is_cut_by_set(world: &mut World) -> bool {
    let held = world.kernel.observe(Depth::Everything).ok().and_then(|(_, there)| there);
    held.is_some_and(|there| there.sets.get(QUARANTINED_HOST).is_some_and(|(_, elements)| !elements.is_empty()))
}

/// What became of a small change.
enum Changed {
    NoTable,
    Nothing,
    /// So many elements were added or deleted.
    Done(usize),
}

/// Changes elements; again when somebody else interferes or an element has ended meanwhile.
fn change(kernel: &mut dyn Kernel, mut ops: impl FnMut(&TableDump) -> Option<Vec<Op>>) -> Result<Changed, Failure> {
    let mut last = Failure::from(KernelError::Interfered);
    for _ in 0..ATTEMPTS {
        let (generation, there) = kernel.observe(Depth::Everything)?;
        let Some(there) = there else { return Ok(Changed::NoTable) };
        let Some(ops) = ops(&there) else { return Ok(Changed::Nothing) };
        match kernel.commit(generation, &ops) {
            Ok(_) => return Ok(Changed::Done(ops.iter().map(elements_of).sum())),
            Err(error @ (KernelError::Interfered | KernelError::Refused(_))) => last = error.into(),
            Err(error) => return Err(error.into()),
        }
    }
    Err(last)
}

fn elements_of(op: &Op) -> usize {
    match op {
        Op::AddElements { elements, .. } | Op::DeleteElements { elements, .. } => elements.len(),
        _ => 0,
    }
}

/// Takes those elements out of the sets of who is cut off; how many.
fn free(sets: &[&str], is_meant: impl Fn(&Vec<u8>) -> bool, world: &mut World) -> Result<usize, Failure> {
    if handover::held_by(world) == Backend::Iptables {
        return Ok(0);
    }
    let freed = change(world.kernel, |there| {
        let meant = sets.iter().filter_map(|name| there.sets.get(*name)).filter_map(|(def, elements)| {
            let elements: Elements =
                elements.iter().filter(|(key, _)| is_meant(key)).map(|(key, element)| (key.clone(), element.clone())).collect();
            (!elements.is_empty()).then(|| Op::DeleteElements { set: def.clone(), elements })
        });
        let ops: Vec<Op> = meant.collect();
        (!ops.is_empty()).then_some(ops)
    })?;
    Ok(match freed {
        Changed::Done(elements) => elements,
        Changed::Nothing | Changed::NoTable => 0,
    })
}
