//! `diff`: exactly which packets a change of a policy allows that were not, and which no longer, with a witness of each. Two policies
//! need no root, no network and no state; against the kernel it takes root.

mod github;
pub mod markdown;
mod object;
mod text;

use std::collections::{BTreeMap, BTreeSet};

use crate::base::packet::{PacketSpec, Peer};
use crate::command::arguments::{DEFAULT_POLICY, DiffArguments, DiffFormat, FailOn};
use crate::command::source::{self, Source};
use crate::command::{Exit, Failure, Output, enforce, handover};
use crate::judge::Verdict;
use crate::judge::compare::{
    Applied, Change, Decision, Effect, Fit, Kind, Setting, Symbols, Trouble, as_found, compare, lifted, names_in, phrases, settings,
};
use crate::judge::plan::NotOurs;
use crate::pins::Pins;
use crate::policy::{self, DnsServer, Line, Outbound, Policy, RESERVED_IDS, Scope, Target};
use crate::ruleset::compile::{Facts, protocol};
use crate::ruleset::lift::{Found, lift};
use crate::ruleset::program::{TableDef, TableDump};
use crate::ruleset::{Ruleset, TABLE_COMMENT};
use crate::state::{self, Backend};
use crate::world::{Depth, Host, RevisionError, World};

/// What is told of a comparison, whatever it is written as.
#[derive(Debug)]
pub struct Report {
    /// What was compared: the old side as it is called, and the new one.
    old: String,
    new: String,
    /// The file of the new side, where it is one.
    file: Option<String>,
    /// What differs in packets, widening first.
    changes: Vec<Told>,
    /// What differs besides.
    settings: Vec<Setting>,
    /// What the numbers in the changes stand for.
    symbols: Symbols,
}

/// A change with what the policies say about it.
#[derive(Debug)]
pub struct Told {
    change: Change,
    before: Place,
    after: Place,
    /// The line of the new policy that is to be looked at.
    look_at: Option<Line>,
}

/// Who decides: a rule, and the line that it comes from.
#[derive(Debug)]
struct Place {
    rule: String,
    line: Option<Line>,
}

impl Report {
    fn count(&self, kind: Kind) -> usize {
        self.changes.iter().filter(|told| told.change.kind == kind).count()
    }

    /// How many changes and settings allow what was not allowed.
    fn widens(&self) -> usize {
        self.count(Kind::Widens) + self.settings.iter().filter(|setting| setting.effect == Effect::Widens).count()
    }

    fn narrows(&self) -> usize {
        self.count(Kind::Narrows) + self.settings.iter().filter(|setting| setting.effect == Effect::Narrows).count()
    }

    /// At most so many sentences about which packets a change is about, and how many more there are.
    fn packets(&self, told: &Told, most: usize) -> (Vec<String>, usize) {
        let sentences = sentences(&told.change, &self.symbols);
        let more = sentences.len().saturating_sub(most);
        (sentences.into_iter().take(most).collect(), more)
    }

    fn is_same(&self) -> bool {
        self.changes.is_empty() && self.settings.is_empty()
    }
}

/// Runs `diff`.
pub fn diff(arguments: &DiffArguments, world: &mut World, output: &mut Output) -> Result<Exit, Failure> {
    let report = match (arguments.policies.as_slice(), &arguments.git) {
        ([old, new], None) => of_files(old, new, world, output)?,
        ([_, _], Some(_)) => {
            return Err(Failure::wrong("`--git` names the old policy already", "name one policy: `egressguard diff --git REV POLICY`"));
        }
        ([new], Some(revision)) => at_revision(revision, new, world, output)?,
        ([], Some(revision)) => at_revision(revision, DEFAULT_POLICY, world, output)?,
        (new, None) => of_kernel(new.first().map_or(DEFAULT_POLICY, String::as_str), world, output)?,
        (_, Some(_)) => return Err(Failure::wrong("three policies are one too many", "name one or two")),
    };
    let no = match arguments.fail_on {
        FailOn::Any => !report.is_same(),
        FailOn::Widens => report.widens() > 0,
    };
    match arguments.format {
        _ if arguments.json => output.json(&object::Object::of(&report))?,
        DiffFormat::Json => output.json(&object::Object::of(&report))?,
        DiffFormat::Text => output.say(text::write(&report).trim_end())?,
        DiffFormat::Markdown => output.say(markdown::write(&report).trim_end())?,
        DiffFormat::Github => output.say(github::write(&report).trim_end())?,
    }
    Ok(if no { Exit::No } else { Exit::Done })
}

/// The report of two policies, which is all that the texts are made of.
pub fn report(old: &Policy, new: &Policy, known: &Facts) -> Result<Report, Failure> {
    let symbols = Symbols::new(&[old, new], &BTreeSet::new(), known, None).map_err(|trouble| refused(&trouble))?;
    let side = Side { title: old.file.clone(), rules: symbols.compile(old), policy: Some(old) };
    told(&side, new, symbols)
}

fn of_files(old: &str, new: &str, world: &mut World, output: &mut Output) -> Result<Report, Failure> {
    if old == "-" && new == "-" {
        return Err(Failure::wrong("both policies are `-`, and standard input can be read once", "name a file for one of them"));
    }
    let before = earlier(old, source::read(old, world.documents)?, output)?;
    let after = source::load(new, world.documents, output)?;
    report(&before.policy, &after.policy, &known(&[&before.policy, &after.policy], world.host))
}

fn at_revision(revision: &str, new: &str, world: &mut World, output: &mut Output) -> Result<Report, Failure> {
    if new == "-" || new.starts_with("builtin:") {
        return Err(Failure::wrong(format!("`{new}` is no file that a repository could remember"), "name a policy file"));
    }
    let content = world.documents.at_revision(new, revision)?;
    let before = earlier(&format!("{revision}:{new}"), content, output)?;
    let after = source::load(new, world.documents, output)?;
    report(&before.policy, &after.policy, &known(&[&before.policy, &after.policy], world.host))
}

/// Parses a policy that is no longer to be mended: its warnings are nobody's business.
fn earlier(name: &str, content: Vec<u8>, output: &mut Output) -> Result<Source, Failure> {
    source::parse(name, content, &mut output.quiet())
}

fn of_kernel(new: &str, world: &mut World, output: &mut Output) -> Result<Report, Failure> {
    if handover::held_by(world) == Backend::Iptables {
        let message = "the rules are held by iptables, and only those of nf_tables can be compared";
        return Err(Failure::refused(message, "compare two files: `egressguard diff OLD NEW`, or `--git REV`"));
    }
    let after = source::load(new, world.documents, output)?.policy;
    let (_, there) = world.kernel.observe(Depth::Pins)?;
    let there = there.unwrap_or_else(|| {
        output.warn("the kernel holds no rules of egressguard: everything is allowed now");
        let table = TableDef { comment: TABLE_COMMENT.to_string(), flags: 0 };
        TableDump { table, chains: Vec::new(), sets: BTreeMap::new(), foreign: Vec::new() }
    });
    if there.table.comment != TABLE_COMMENT {
        return Err(NotOurs.into());
    }
    let found = lift(&there, world.host.now());
    if !found.foreign.is_empty() {
        let named = found.foreign.iter().take(3).cloned().collect::<Vec<_>>().join("; ");
        let rest = found.foreign.len().saturating_sub(3);
        let rest = if rest > 0 { format!("; and {rest} more") } else { String::new() };
        let message = format!("the kernel's rules cannot be compared, because not all of them are understood: {named}{rest}");
        return Err(Failure::refused(message, "`egressguard refresh --repair` puts right what somebody else changed"));
    }
    let applied = applied(&found, world, output)?;
    let policies: Vec<&Policy> = applied.iter().map(|(policy, _, _)| policy).chain([&after]).collect();
    let facts = known_now(&policies, world.host)?;
    let mut system: BTreeSet<_> = world.host.system_servers().unwrap_or_default().into_iter().collect();
    let names = match &applied {
        Some((policy, _, facts)) => {
            let others = facts.servers.iter().filter(|server| !policy.dns.contains(server));
            system.extend(others.filter_map(|server| match server {
                DnsServer::Plain { address, .. } => Some(*address),
                DnsServer::System | DnsServer::Tls { .. } => None,
            }));
            BTreeSet::new()
        }
        None => names_in(&found),
    };
    let mut symbols = Symbols::new(&policies, &names, &facts, Some(&as_found(&found))).map_err(|trouble| refused(&trouble))?;
    // The kernel has no rule for servers of a family in which there are none.
    symbols.system.retain(|symbol| system.iter().any(|server| server.is_ipv4() == symbol.is_ipv4()));
    let remembered = applied.as_ref().map(|(policy, pins, _)| Applied { policy, pins });
    let rules = lifted(&found, remembered, &system, &symbols);
    let side = Side { title: "the kernel".to_string(), rules, policy: applied.as_ref().map(|(policy, _, _)| policy) };
    told(&side, &after, symbols)
}

/// The policy, pins and facts of the rules in the kernel, where they are remembered.
fn applied(found: &Found, world: &World, output: &mut Output) -> Result<Option<(Policy, Pins, Facts)>, Failure> {
    let Some(identity) = &found.identity else { return Ok(None) };
    let saved = match state::load(world.files, identity.generation) {
        Ok(Some(saved)) if saved.record.sha256 == identity.sha256 => saved,
        Ok(_) => {
            output.warn("the state directory does not remember the rules in the kernel; their comments say what addresses stand for");
            return Ok(None);
        }
        Err(error) => {
            output.warn(&format!("{error}; the comments of the rules in the kernel say what addresses stand for"));
            return Ok(None);
        }
    };
    let Ok(parsed) = policy::parse_bytes(&saved.policy, &saved.record.file) else { return Ok(None) };
    let pins = enforce::earlier_pins(&saved, &parsed.policy, world.host);
    Ok(Some((parsed.policy, pins, saved.record.facts(&world.host.clock()))))
}

/// The users and groups of these policies that this host knows. Who cannot be asked for is not known.
fn known(policies: &[&Policy], host: &dyn Host) -> Facts {
    let mut facts = Facts::default();
    for scope in scopes(policies) {
        match scope {
            Scope::User(name) => facts.users.extend(host.user(name).ok().flatten().map(|number| (name.to_string(), number))),
            Scope::Group(name) => facts.groups.extend(host.group(name).ok().flatten().map(|number| (name.to_string(), number))),
            Scope::Uid(_) | Scope::Gid(_) | Scope::Service(_) => {}
        }
    }
    facts
}

/// The same and the units that run, of a host whose kernel is asked too.
fn known_now(policies: &[&Policy], host: &dyn Host) -> Result<Facts, Failure> {
    let mut facts = Facts::default();
    for policy in policies {
        let (theirs, _) = source::facts(policy, host)?;
        facts.users.extend(theirs.users);
        facts.groups.extend(theirs.groups);
        facts.units.extend(theirs.units);
    }
    Ok(facts)
}

fn scopes<'a>(policies: &[&'a Policy]) -> impl Iterator<Item = &'a Scope> {
    policies.iter().flat_map(|policy| &policy.outbound).filter_map(|way| way.scope.as_ref())
}

/// The old side of a comparison.
struct Side<'a> {
    title: String,
    rules: Ruleset,
    /// Its policy, where there is one.
    policy: Option<&'a Policy>,
}

fn told(old: &Side, new: &Policy, symbols: Symbols) -> Result<Report, Failure> {
    let changes = compare(&old.rules, &symbols.compile(new), &symbols).map_err(|trouble| refused(&trouble))?;
    let (before, after) = (Lines::of(old.policy), Lines::of(Some(new)));
    let changes = changes.into_iter().map(|change| {
        let packet = &change.witness.spec;
        let (was, is) = (before.place(&change.before, packet), after.place(&change.after, packet));
        let target = after.of_destination(&is.rule, packet);
        let look_at = target.or(is.line).or_else(|| after.of_rule(&was.rule));
        let (before, after) = (was, is);
        Told { change, before, after, look_at }
    });
    let mut changes: Vec<Told> = changes.collect();
    let line = |place: &Place| place.line.map_or(usize::MAX, |line| line.0);
    changes.sort_by_cached_key(|told| {
        (told.change.kind, line(&told.after), line(&told.before), told.change.directions(), told.change.witness.spec.to_string())
    });
    let settings = old.policy.map_or_else(Vec::new, |old| settings(old, new));
    let file = Some(new.file.clone()).filter(|file| file != "-" && !file.starts_with("builtin:"));
    Ok(Report { old: old.title.clone(), new: new.file.clone(), file, changes, settings, symbols })
}

/// Which packets a change is about.
fn sentences(change: &Change, symbols: &Symbols) -> Vec<String> {
    if change.is_of_mode() {
        let said = match change.kind {
            Kind::Narrows => "every packet that no rule allowed; the policy only observed",
            Kind::Widens | Kind::Reroutes => "every packet that no rule allows; the policy only observes",
        };
        return vec![said.to_string()];
    }
    let sentence = |part| phrases(part, symbols).join(", ");
    match (change.fit, change.kind) {
        (Fit::Exact | Fit::Answered, _) => vec![sentence(&change.hull)],
        (Fit::Filled, Kind::Narrows) => vec![format!("{}, unless another rule still allows it", sentence(&change.hull))],
        (Fit::Filled, Kind::Widens) => vec![format!("{}, unless another rule allowed it before", sentence(&change.hull))],
        (Fit::Filled, Kind::Reroutes) | (Fit::Loose, _) => change.parts.iter().map(sentence).collect(),
    }
}

/// Where the rules of a policy stand.
struct Lines<'a> {
    policy: Option<&'a Policy>,
    ways: BTreeMap<&'a str, &'a Outbound>,
    /// Of the rules that every policy has.
    built_in: BTreeMap<&'static str, Line>,
}

impl<'a> Lines<'a> {
    fn of(policy: Option<&'a Policy>) -> Lines<'a> {
        let ways = policy.iter().flat_map(|policy| &policy.outbound).map(|way| (way.id.as_str(), way)).collect();
        let line = |id: &'static str| policy.and_then(|policy| policy.rule_line(id)).map(|line| (id, line));
        Lines { policy, ways, built_in: RESERVED_IDS.into_iter().filter_map(line).collect() }
    }

    fn of_rule(&self, id: &str) -> Option<Line> {
        self.ways.get(id).map(|way| way.line).or_else(|| self.built_in.get(id).copied())
    }

    /// The line of the destination that the packet goes to, which in a long list is not that of the rule.
    fn of_destination(&self, id: &str, packet: &PacketSpec) -> Option<Line> {
        let way = self.ways.get(id).into_iter().flat_map(|way| &way.to);
        let times = self.policy.into_iter().filter(|_| id == "ntp").flat_map(|policy| &policy.host.ntp);
        way.chain(times).find(|to| is_to(&to.target, packet)).map(|to| to.line)
    }

    /// The rule that decides. Where one rule of the ruleset serves several ways out and does not say which, the policy does.
    fn place(&self, decision: &Decision, packet: &PacketSpec) -> Place {
        let line = self.of_rule(&decision.rule);
        let shared = line.is_none() && decision.verdict == Verdict::Allow && decision.rule.starts_with("outbound ");
        let leading = self.policy.filter(|_| shared).and_then(|policy| {
            policy.outbound.iter().find(|way| {
                protocol(way.protocol) == packet.protocol
                    && packet.to_port.is_some_and(|port| way.ports.contains(port))
                    && way.to.iter().any(|to| is_to(&to.target, packet))
            })
        });
        match leading {
            Some(way) => Place { rule: way.id.to_string(), line: Some(way.line) },
            None => Place { rule: decision.rule.clone(), line },
        }
    }
}

fn is_to(target: &Target, packet: &PacketSpec) -> bool {
    match (target, &packet.to) {
        (Target::Name(name), Peer::Name(other)) => name == other,
        (Target::Net(net), Peer::Address(address)) => net.contains(address),
        _ => false,
    }
}

/// A verdict in one word, with the rule that gives it.
fn verdict(decision: &Decision) -> &'static str {
    if decision.verdict == Verdict::Allow { "allowed" } else { "refused" }
}

/// What a change is called.
fn kind(kind: Kind) -> &'static str {
    match kind {
        Kind::Widens => "widens",
        Kind::Narrows => "narrows",
        Kind::Reroutes => "reroutes",
    }
}

/// What a setting's other value is called.
fn effect(effect: Effect) -> &'static str {
    match effect {
        Effect::Widens => "widens",
        Effect::Narrows => "narrows",
        Effect::Neither => "neither",
    }
}

impl Told {
    /// The witness, with what its spelling cannot say.
    fn witness(&self) -> String {
        let witness = &self.change.witness;
        if witness.besides.is_empty() { witness.spec.to_string() } else { format!("{} ({})", witness.spec, witness.besides.join(", ")) }
    }

    /// Its directions.
    fn directions(&self) -> String {
        self.change.directions().into_iter().map(crate::judge::compare::direction).collect::<Vec<_>>().join(", ")
    }
}

impl From<RevisionError> for Failure {
    fn from(error: RevisionError) -> Failure {
        let help = match &error {
            RevisionError::NoGit(_) => "install git, or name two files: `egressguard diff OLD NEW`",
            RevisionError::NoRepository(..) => "name a file of a repository, or two files: `egressguard diff OLD NEW`",
            RevisionError::NoRevision(..) => {
                "`git branch --all` and `git log` show what there is; a shallow clone lacks what was not fetched"
            }
            RevisionError::NotThere(..) => "`git log --follow -- FILE` shows when it came and what it was called",
            RevisionError::Refused(_) => "see that `git show` works there",
        };
        Failure::refused(error.to_string(), help)
    }
}

fn refused(trouble: &Trouble) -> Failure {
    match trouble {
        Trouble::OutOfReach(why) => Failure::refused(
            format!("the exact comparison is out of reach: {why}"),
            "compare in smaller steps; nothing was compared by sample, so nothing is known",
        ),
        Trouble::NotUnderstood(what) => Failure::refused(
            format!("the rules cannot be compared exactly: {what}"),
            "`egressguard refresh --repair` puts right what somebody else changed",
        ),
        Trouble::Disagreement(_) => Failure::refused(trouble.to_string(), "this is a bug: please report it with both policies"),
    }
}
