//! `report`: who tried what, how often, and the line of a policy that would allow it.

mod html;
mod json;
mod markdown;
mod text;

use std::collections::HashMap;

use crate::base::name::DnsName;
use crate::base::net::IpNet;
use crate::base::packet::Direction;
use crate::base::time::{Period, Timestamp};
use crate::command::arguments::{ReportArguments, ReportFormat};
use crate::command::{Exit, Failure, Output, harvest};
use crate::pins::Pins;
use crate::state::books;
use crate::state::{self, Current};
use crate::violation::book::Findings;
use crate::violation::line::suggestion;
use crate::violation::report::{Cut, Gathering, MOMENT, Place, Question, Report, Violation, program_words};
use crate::violation::{Tuple, Who};
use crate::world::{Files, World};

/// A report with what only the host knows.
pub(super) struct Told {
    pub(super) report: Report,
    /// Names of users by number.
    pub(super) users: HashMap<u32, String>,
    /// The host, for whoever reads it elsewhere.
    policy: Option<String>,
}

impl Told {
    /// Who it was, in words.
    fn who(&self, violation: &Violation) -> String {
        match violation.tuple.who {
            Who::User(uid) => self.user(violation, uid).unwrap_or_else(|| format!("uid {uid}")),
            Who::Source(source) => source.to_string(),
            Who::Anybody => "outside".to_string(),
        }
    }

    fn user(&self, violation: &Violation, uid: u32) -> Option<String> {
        violation.user.clone().or_else(|| self.users.get(&uid).cloned())
    }

    /// Where to, in words.
    fn place(&self, violation: &Violation) -> String {
        let host = match (&violation.name, violation.tuple.destination) {
            (Some(name), Some(address)) => format!("{name} ({address})"),
            (None, Some(address)) => address.to_string(),
            _ => "this host".to_string(),
        };
        match violation.tuple.port {
            Some(port) => format!("{host} port {port}"),
            None => host,
        }
    }

    /// The program, or the unit it runs in.
    fn program(&self, violation: &Violation) -> String {
        match (violation.process.as_deref().map(program_words), violation.service.as_deref()) {
            (Some(process), Some(service)) => format!("{process} ({service})"),
            (Some(one), None) | (None, Some(one)) => one.to_string(),
            (None, None) => String::new(),
        }
    }

    fn suggestion(&self, violation: &Violation) -> Option<String> {
        let user = match violation.tuple.who {
            Who::User(uid) => self.user(violation, uid),
            _ => None,
        };
        suggestion(violation, user.as_deref())
    }

    /// What a reader has to know besides the numbers.
    fn remarks(&self) -> Vec<String> {
        let report = &self.report;
        let mut remarks = Vec::new();
        for (direction, packets) in &report.overflow {
            remarks.push(format!(
                "{packets} packets ({}) were refused and counted under no destination: the kernel's sets were full",
                direction.word()
            ));
        }
        if report.other > 0 {
            remarks.push(format!("{} packets were seen by watch and told as a number only", report.other));
        }
        if report.lost > 0 {
            remarks.push(format!("{} packets came faster than watch could read them; the kernel counted them", report.lost));
        }
        for (at, cut) in &report.cuts {
            remarks.push(match cut {
                Cut::Off(Some(evidence)) => format!("the host was cut off at {at} by `egressguard quarantine`; evidence: {evidence}"),
                Cut::Off(None) => format!("the host was cut off at {at} by `egressguard quarantine`"),
                Cut::Released(Some(uid)) => format!("user {} was released at {at}", self.users.get(uid).unwrap_or(&uid.to_string())),
                Cut::Released(None) => format!("the host was released at {at}"),
            });
        }
        remarks.extend(later(report));
        for (from, to) in &report.unknown {
            remarks.push(format!("what was counted between {from} and {to} and before the kernel's counts began anew is not known"));
        }
        remarks
    }
}

/// Runs `report`.
pub fn report(arguments: &ReportArguments, world: &mut World, output: &mut Output) -> Result<Exit, Failure> {
    if arguments.check_journal {
        return check(arguments, world, output);
    }
    let told = gather(question(arguments, world)?, world, output)?;
    if let (Some(to), true) = (&arguments.to, told.report.total == 0) {
        output.detail(&format!("nothing that was to go to `{to}` is known; a name is known while it has a pin, and where watch saw it"));
    }
    let format = if arguments.json { ReportFormat::Json } else { arguments.format };
    match format {
        ReportFormat::Text => text::write(&told, output)?,
        ReportFormat::Json => output.json(&json::value(&told))?,
        ReportFormat::Markdown => output.say(markdown::write(&told).trim_end())?,
        ReportFormat::Html => output.say(&html::write(&told))?,
    }
    if told.report.total == 0 && told.report.harvested.is_none() {
        output.warn("nothing was ever harvested here: `egressguard apply POLICY`, then the timer's `egressguard refresh`, begin it");
    }
    Ok(if told.report.total > 0 || !told.report.violations.is_empty() { Exit::No } else { Exit::Done })
}

/// Adds up what the books hold and what the kernel has counted since.
pub(super) fn gather(question: Question, world: &mut World, output: &mut Output) -> Result<Told, Failure> {
    // Who asks about an earlier time knows that there are later records.
    let ends_now = world.host.now().0.saturating_sub(question.until.0) <= MOMENT;
    let mut gathering = Gathering::new(question);
    books::each(books::LEDGER, world.files, |line| gathering.ledger(&line))?;
    books::each(books::WATCH, world.watch, |line| gathering.watch(&line)).or_else(|error| {
        output.warn(&format!("{error}: programs are not named"));
        Ok::<(), Failure>(())
    })?;
    // Who may ask the kernel sees what it has counted since the last harvest; others see what was harvested.
    match harvest::unwritten(world) {
        Ok(kinds) => kinds.iter().for_each(|kind| gathering.pending(kind)),
        Err(_) => output.detail("what was counted since the last harvest is not in here: the kernel tells it root only"),
    }
    let (policy, pins) = applied(world.files);
    let names: HashMap<_, _> =
        pins.names.iter().flat_map(|(name, pins)| pins.leases.keys().map(move |address| (*address, name.to_string()))).collect();
    let mut report = gathering.finish(|tuple: &Tuple| names.get(&tuple.destination?).cloned());
    if !ends_now {
        report.later = 0;
    }
    let uids = report.violations.iter().filter_map(|violation| if let Who::User(uid) = violation.tuple.who { Some(uid) } else { None });
    let users = uids.filter_map(|uid| Some((uid, world.host.name_of_user(uid)?))).collect();
    Ok(Told { report, users, policy })
}

/// That records are later than now, where any are.
pub(super) fn later(report: &Report) -> Option<String> {
    let records = match report.later {
        0 => return None,
        1 => "1 record of refused packets is later than now".to_string(),
        more => format!("{more} records of refused packets are later than now"),
    };
    Some(format!("{records}, and not in here: the clock was set back; `egressguard report --until` a later time has them"))
}

/// The applied policy's name and pins; nothing where they cannot be read.
fn applied(files: &dyn Files) -> (Option<String>, Pins) {
    let Ok(Current::Generation(generation)) = state::current(files) else { return (None, Pins::default()) };
    match state::load(files, generation) {
        Ok(Some(saved)) => (Some(saved.record.file.clone()), saved.pins),
        _ => (None, Pins::default()),
    }
}

/// A time as it is said: how long ago, or when.
pub(super) fn time(text: &str, option: &str, now: Timestamp) -> Result<Timestamp, Failure> {
    if let Some(period) = Period::parse(text) {
        return Ok(Timestamp(now.0.saturating_sub_unsigned(period.seconds())));
    }
    let help = "write how long ago, as `24h` or `7d`, or when, as `2026-01-31T12:00:00Z`";
    Timestamp::parse(text).ok_or_else(|| Failure::wrong(format!("`{option} {text}` is no time"), help))
}

fn question(arguments: &ReportArguments, world: &World) -> Result<Question, Failure> {
    let now = world.host.now();
    let since = time(&arguments.since, "--since", now)?;
    let until = arguments.until.as_deref().map_or(Ok(now), |text| time(text, "--until", now))?;
    if until < since {
        return Err(Failure::wrong(format!("--until ({until}) is before --since ({since})"), "turn them around"));
    }
    let uid = arguments.user.as_deref().map(|user| match (user.parse(), world.host.user(user)) {
        (Ok(uid), _) => Ok(uid),
        (_, Ok(Some(uid))) => Ok(uid),
        (_, Ok(None)) => Err(Failure::wrong(format!("no user `{user}` is known here"), "write the number")),
        (_, Err(error)) => Err(Failure::refused(error, "write the number")),
    });
    let to = arguments.to.as_deref().map(|to| match (to.parse::<IpNet>(), to.parse::<std::net::IpAddr>(), DnsName::parse(to)) {
        (Ok(net), ..) => Ok(Place::Net(net)),
        (_, Ok(address), _) => Ok(Place::Net(address.into())),
        (.., Ok(name)) => Ok(Place::Name(name.to_string())),
        (.., Err(error)) => {
            let message = format!("`--to {to}` is neither an address, nor a network, nor a name: {error}");
            Err(Failure::wrong(message, "for example `198.51.100.7`, `198.51.100.0/24` or `api.openai.com`"))
        }
    });
    let direction = arguments.direction.as_deref().map(|word| {
        Direction::of_word(word).ok_or_else(|| Failure::wrong(format!("`{word}` is no direction"), "write `out`, `forward` or `in`"))
    });
    Ok(Question { since, until, uid: uid.transpose()?, to: to.transpose()?, direction: direction.transpose()? })
}

/// Checks both books.
fn check(arguments: &ReportArguments, world: &World, output: &mut Output) -> Result<Exit, Failure> {
    let books = [(books::LEDGER, world.files.place(), books::check(books::LEDGER, world.files, harvest::known(world.files))?), {
        let found = books::check(books::WATCH, world.watch, 0)?;
        (books::WATCH, world.watch.place(), found)
    }];
    let has_fault = books.iter().any(|(_, _, findings)| findings.has_fault());
    if arguments.json || arguments.format == ReportFormat::Json {
        output.json(&json::check(&books))?;
    } else {
        for (name, place, findings) in &books {
            say_check(name, place, findings, output)?;
        }
    }
    Ok(if has_fault { Exit::No } else { Exit::Done })
}

fn say_check(name: &str, place: &str, findings: &Findings, output: &mut Output) -> Result<(), Failure> {
    let word = if findings.has_fault() { "tampered with" } else { "whole" };
    output.say(&format!("{name:<8}{word}: {} records in {place}", findings.records))?;
    for finding in &findings.findings {
        let line = if finding.line > 0 { format!(":{}", finding.line) } else { String::new() };
        output.say(&format!("        {}{line}: {}", finding.file, finding.what))?;
    }
    if findings.more > 0 {
        output.say(&format!("        … and {} more", findings.more))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::net::Protocol;
    use crate::violation::report::CountedBy;

    #[test]
    fn a_program_that_had_ended_is_no_program_called_gone() {
        let told = Told {
            report: Gathering::new(Question { since: Timestamp(0), until: Timestamp(1), uid: None, to: None, direction: None })
                .finish(|_| None),
            users: HashMap::new(),
            policy: None,
        };
        let violation = |process: &str, service: Option<&str>| Violation {
            tuple: Tuple { direction: Direction::Out, who: Who::User(7), destination: None, protocol: Protocol::TCP, port: Some(443) },
            count: 1,
            cut_off: 0,
            bytes: None,
            counted_by: CountedBy::Watch,
            first: Timestamp(0),
            last: Timestamp(0),
            name: None,
            user: None,
            process: Some(process.to_string()),
            service: service.map(str::to_string),
            rule: None,
        };
        assert_eq!(told.program(&violation("gone", None)), "a process that had ended");
        assert_eq!(told.program(&violation("gone", Some("a.service"))), "a process that had ended (a.service)");
        assert_eq!(told.program(&violation("/usr/bin/gone", None)), "/usr/bin/gone");
    }
}
