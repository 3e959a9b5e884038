//! `watch`: violations as they happen. On a terminal a table, elsewhere lines; as a service the book, the journal and the alert.
//!
//! One thread does everything in turn: wait for the kernel's packet log, fold what came, tell what has ended. What could make it wait
//! runs beside it: the alert program, and those who ask for metrics.
//!
//! The kernel hands each record to one reader. Where that is the service already, its book is followed instead.

mod knowledge;
mod table;
pub mod view;

use std::time::Duration;

use crate::base::packet::Direction;
use crate::base::time::Timestamp;
use crate::command::arguments::WatchArguments;
use crate::command::metrics::{self, Counted};
use crate::command::watch::knowledge::Knowledge;
use crate::command::watch::table::Table;
use crate::command::{Exit, Failure, Output, Style, verdict};
use crate::state::books::{self, Care, Writer};
use crate::violation::alert::{DONE, Gate};
use crate::violation::attribute::inert;
use crate::violation::book;
use crate::violation::decode::{Strange, decode};
use crate::violation::fold::{Fold, Moment};
use crate::violation::record::{Kind, Line, Process, Seen};
use crate::world::{FileError, LogError, Meanwhile, Watching, World};

/// How long it sleeps when nothing is to be done; then it looks whether the world has changed.
const AT_REST: Duration = Duration::from_secs(1);
/// How often a book is looked at that somebody else writes.
const FOLLOWED: Duration = Duration::from_millis(500);
/// How much of a book that was written since is read at once.
const FOLLOWED_MAX: u64 = 1 << 20;
/// How long an alert program may run.
const ALERT_PATIENCE: Duration = Duration::from_secs(30);
/// After how long the same trouble is said again.
const SAID_AGAIN: Duration = Duration::from_secs(60);
/// How often what was counted is left for others to see.
const NOTED: Duration = Duration::from_secs(5);

/// Where records go besides the counters.
enum View {
    Json,
    Lines,
    Table(Table),
    Service(Box<Service>),
}

/// Whether something was said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Complained {
    Yes,
    No,
}

/// What a service has besides.
struct Service {
    book: Writer,
    /// Whether the book took the last records; what it did not take is told in numbers later.
    unsaved: u64,
    gate: Gate,
    /// For how many records the alert that runs was started.
    alerting: u64,
    /// When the service manager was last told that all is well.
    heard: Duration,
    /// When what was counted was last left for others, and what that was.
    noted: Duration,
    noted_total: Counted,
}

/// Runs `watch`.
pub fn watch(arguments: &WatchArguments, world: &mut World, watching: &mut Watching, output: &mut Output) -> Result<Exit, Failure> {
    let view = match (arguments.service, arguments.json, watching.requests.window()) {
        (true, ..) => {
            let book = Writer::new(books::WATCH);
            View::Service(Box::new(Service {
                book,
                unsaved: 0,
                gate: Gate::default(),
                alerting: 0,
                heard: Duration::ZERO,
                noted: Duration::ZERO,
                noted_total: Counted::default(),
            }))
        }
        (_, true, _) => View::Json,
        (_, _, Some(_)) => View::Table(Table::default()),
        _ => View::Lines,
    };
    let mut watch = Watch {
        world,
        watching,
        output,
        view,
        knowledge: Knowledge::default(),
        counted: Counted::default(),
        passed: Duration::ZERO,
        refusal: None,
        complained: Complained::No,
    };
    // The log is opened with the first look at it.
    match watch.watching.log.wait(Duration::ZERO, &mut |_, _| {}) {
        Ok(_) => {
            // ORDER: before the table, which would be drawn over it.
            watch.say_limits();
            watch.begin().and_then(|()| watch.follow_log())
        }
        Err(LogError::Busy(group)) if !arguments.service => {
            let tail = watch.world.watch.tail(&book::file(books::WATCH), 0)?;
            let Some(tail) = tail else { return Err(LogError::Busy(group).into()) };
            watch.output.warn("the service follows the packet log: its book is followed instead, a second behind");
            watch.begin().and_then(|()| watch.follow_book(tail.size))
        }
        Err(error) => return Err(error.into()),
    }
    .and_then(|()| watch.end())
    .inspect_err(|_| watch.leave())
}

struct Watch<'a, 'w, 'v, 'o> {
    world: &'a mut World<'w>,
    watching: &'a mut Watching<'v>,
    output: &'a mut Output<'o>,
    view: View,
    knowledge: Knowledge,
    counted: Counted,
    /// How long the log is open.
    passed: Duration,
    /// Why the state or the book could not be used the last time, and when that was said, so that the same is not said every second.
    refusal: Option<(String, Duration)>,
    /// Whether it was said that the book does not take records, and not yet that it does again.
    complained: Complained,
}

impl Watch<'_, '_, '_, '_> {
    fn begin(&mut self) -> Result<(), Failure> {
        match &self.view {
            View::Json => {}
            View::Lines => self.output.say(&view::heading())?,
            View::Table(_) => {
                self.output.out.write_all(table::ENTER.as_bytes())?;
                self.draw(Duration::ZERO)?;
            }
            View::Service(_) => {
                self.write(&[Kind::Started {}]);
                self.watching.supervisor.notify("READY=1\nSTATUS=following the packet log");
            }
        }
        self.output.out.flush()?;
        Ok(())
    }

    /// Follows the kernel's packet log until it is told to end.
    fn follow_log(&mut self) -> Result<(), Failure> {
        let mut fold = Fold::default();
        let mut passed = Duration::ZERO;
        loop {
            let patience = self.patience(passed, fold.next_end());
            let Meanwhile { lost, overruns, passed: now } = self.read_log(patience, &mut fold)?;
            (passed, self.passed) = (now, now);
            self.watching.owners.gather();
            let owners = &mut self.watching.owners;
            fold.ask_again(&mut |ends| owners.owner(ends));
            self.say_limits();
            let asked = self.watching.requests.wait(Duration::ZERO);
            let mut kinds = Vec::new();
            if lost > 0 || overruns > 0 {
                (self.counted.lost, self.counted.overruns) = (self.counted.lost + lost, self.counted.overruns + overruns);
                kinds.extend((lost > 0).then_some(Kind::Lost { count: lost }));
            }
            let ended = if asked.end { fold.all() } else { fold.ended(passed) };
            kinds.extend(self.completed(ended, passed));
            let other = fold.take_other();
            kinds.extend((other > 0).then_some(Kind::Other { count: other }));
            self.tell(&kinds, passed)?;
            self.attend(passed)?;
            if asked.resized && kinds.is_empty() {
                self.draw(passed)?;
            }
            if asked.end {
                return Ok(());
            }
        }
    }

    /// Says what cannot be found out here, each once.
    fn say_limits(&mut self) {
        for words in self.watching.owners.limits() {
            self.output.warn(&words);
        }
    }

    /// One look at the packet log: what is there is folded.
    fn read_log(&mut self, patience: Duration, fold: &mut Fold) -> Result<Meanwhile, Failure> {
        let host = self.world.host;
        let (owners, counted) = (&mut self.watching.owners, &mut self.counted);
        let mut entry: Option<((String, &'static str), u64)> = None;
        let meanwhile = self.watching.log.wait(patience, &mut |logged, passed| match decode(logged) {
            Ok(packet) => {
                let word = packet.direction.word();
                match &mut entry {
                    Some(((rule, direction), count)) if rule == packet.rule && *direction == word => *count += 1,
                    other => {
                        if let Some((key, count)) = other.replace(((packet.rule.to_string(), word), 1)) {
                            counted.add(key, count);
                        }
                    }
                }
                fold.add(&packet, Moment { wall: host.now(), passed }, &mut |ends| owners.owner(ends));
            }
            Err(Strange::Foreign | Strange::Unreadable) => counted.strange += 1,
        })?;
        if let Some((key, count)) = entry {
            counted.add(key, count);
        }
        Ok(meanwhile)
    }

    /// Follows the book that the service writes, from this octet on, until it is told to end.
    fn follow_book(&mut self, mut read: u64) -> Result<(), Failure> {
        let file = book::file(books::WATCH);
        let mut passed = Duration::ZERO;
        loop {
            let asked = self.watching.requests.wait(FOLLOWED);
            passed += FOLLOWED;
            let size = self.world.watch.tail(&file, 0)?.map_or(0, |tail| tail.size);
            // A file that is shorter than it was is a new one.
            let new = if size < read { size } else { size - read };
            let mut kinds = Vec::new();
            if new > 0
                && let Some(tail) = self.world.watch.tail(&file, new.min(FOLLOWED_MAX))?
            {
                let whole = tail.octets.iter().rposition(|octet| *octet == b'\n').map_or(0, |end| end + 1);
                let lines = tail.octets[..whole].split(|octet| *octet == b'\n');
                kinds.extend(lines.filter_map(|line| Line::parse(line)?.kind()));
                // What is no whole line yet is read with the next.
                read = tail.size - (tail.octets.len() - whole) as u64;
            }
            self.tell(&kinds, passed)?;
            if asked.resized || kinds.is_empty() {
                self.draw(passed)?;
            }
            if asked.end {
                return Ok(());
            }
        }
    }

    /// How long it may sleep.
    fn patience(&self, passed: Duration, fold_ends: Option<Duration>) -> Duration {
        let mut patience = AT_REST;
        if let Some(end) = fold_ends {
            patience = patience.min(end.saturating_sub(passed));
        }
        if let View::Service(service) = &self.view
            && let Some(every) = self.alert_every()
            && let Some(due) = service.gate.next_due(every)
        {
            patience = patience.min(due.saturating_sub(passed));
        }
        // ORDER: at least this: a moment that has come already is no reason to spin.
        patience.max(Duration::from_millis(1))
    }

    fn alert_every(&self) -> Option<Duration> {
        let alert = self.knowledge.policy()?.violations.alert.as_ref()?;
        Some(Duration::from_secs(alert.at_most_every.seconds()))
    }

    /// Adds to the bursts that have ended what the state knows.
    fn completed(&mut self, ended: Vec<Seen>, passed: Duration) -> Vec<Kind> {
        if ended.is_empty() {
            return Vec::new();
        }
        if let Err(error) = self.knowledge.refresh(passed, self.world.files) {
            self.refused(&format!("{error}: records come without names and lines"));
        }
        let host = self.world.host;
        let complete = |mut seen: Seen| {
            self.knowledge.complete(&mut seen, host);
            Kind::Seen(Box::new(seen))
        };
        ended.into_iter().map(complete).collect()
    }

    fn tell(&mut self, kinds: &[Kind], passed: Duration) -> Result<(), Failure> {
        if kinds.is_empty() {
            return Ok(());
        }
        let now = self.world.host.now();
        match &mut self.view {
            View::Json => {
                let text: String = kinds.iter().map(|kind| view::json(kind, now) + "\n").collect();
                self.output.out.write_all(text.as_bytes())?;
            }
            View::Lines => {
                for line in kinds.iter().filter_map(|kind| view::line(kind, told_at(kind, now))) {
                    writeln!(self.output.out, "{line}")?;
                }
            }
            View::Table(table) => {
                kinds.iter().for_each(|kind| table.add(kind, passed));
                self.draw(passed)?;
            }
            View::Service(service) => {
                // What nobody is to be told of is not kept for the day when somebody is.
                let is_told = self.knowledge.policy().is_some_and(|policy| policy.violations.alert.is_some());
                for kind in kinds.iter().filter(|_| is_told) {
                    if let Kind::Seen(seen) = kind {
                        service.gate.note(seen);
                    }
                }
                self.write(kinds);
                self.log(kinds);
            }
        }
        self.output.out.flush()?;
        Ok(())
    }

    /// Draws the table, where there is one.
    fn draw(&mut self, passed: Duration) -> Result<(), Failure> {
        if let (View::Table(table), Some(window)) = (&self.view, self.watching.requests.window()) {
            let title = self.knowledge.policy().map_or_else(|| "refused".to_string(), |policy| format!("refused by {}", policy.name));
            let style = if self.output.style == Style::Coloured { Style::Coloured } else { Style::Terminal };
            self.output.out.write_all(table.screen(&title, window, passed, style).as_bytes())?;
            self.output.out.flush()?;
        }
        Ok(())
    }

    /// Writes into the book. What it does not take is counted, and told by the first record that it takes again.
    fn write(&mut self, kinds: &[Kind]) {
        let now = self.world.host.now();
        let View::Service(service) = &mut self.view else { return };
        let mut all = Vec::new();
        all.extend((service.unsaved > 0).then_some(Kind::Other { count: service.unsaved }));
        all.extend_from_slice(kinds);
        match service.book.append(self.world.watch, now, &all, Care::Soon) {
            Ok(_) => {
                service.unsaved = 0;
                if self.complained == Complained::Yes {
                    self.complained = Complained::No;
                    self.output.warn("the book is written again");
                }
            }
            Err(error) => {
                service.unsaved += kinds.iter().map(packets).sum::<u64>();
                self.counted.unwritten += kinds.len() as u64;
                let words = match &error {
                    FileError::Full(_) => format!("{error}: records are lost to the book, not to the kernel's count"),
                    _ => error.to_string(),
                };
                if self.refused(&words) == Complained::Yes {
                    self.complained = Complained::Yes;
                }
            }
        }
    }

    /// Says why something is not to be had; the same once a minute, for a disk that is full takes a small record now and then.
    fn refused(&mut self, words: &str) -> Complained {
        if self.refusal.as_ref().is_some_and(|(last, when)| last == words && self.passed.saturating_sub(*when) < SAID_AGAIN) {
            return Complained::No;
        }
        self.refusal = Some((words.to_string(), self.passed));
        self.output.warn(words);
        Complained::Yes
    }

    /// Writes into the host's journal, or to standard error where it has none.
    fn log(&mut self, kinds: &[Kind]) {
        for kind in kinds {
            let message = match kind {
                Kind::Seen(seen) => {
                    let why = verdict::place(&seen.rule, self.knowledge.policy());
                    let who = match view::who(seen) {
                        who if who.is_empty() => String::new(),
                        who => format!(" by {who}"),
                    };
                    let packets = if seen.count == 1 { "1 packet".to_string() } else { format!("{} packets", seen.count) };
                    format!("{} {} {}, {packets}{who}: {why}", view::way(seen.direction), seen.protocol, view::place(seen))
                }
                Kind::Lost { count } => format!("{count} packets were logged faster than they were read"),
                Kind::Other { count } => format!("{count} more packets, of too many senders and destinations to be told apart"),
                _ => continue,
            };
            let fields = fields(kind, &message);
            let borrowed: Vec<(&str, &str)> = fields.iter().map(|(name, value)| (*name, value.as_str())).collect();
            if !self.watching.supervisor.journal(&borrowed) {
                self.output.warn(&message);
            }
        }
    }

    /// What has to be done from time to time, whether something was seen or not.
    fn attend(&mut self, passed: Duration) -> Result<(), Failure> {
        if let Some(scrapes) = &mut self.watching.scrapes
            && scrapes.is_asked()
        {
            let text = metrics::text(Some(&self.counted), self.world, &mut self.output.quiet()).0;
            scrapes.answer(&text);
        }
        self.attend_alert(passed);
        self.note_counted(passed);
        let every = self.watching.supervisor.watchdog();
        let View::Service(service) = &mut self.view else { return Ok(()) };
        if let Some(every) = every
            && passed.saturating_sub(service.heard) >= every / 3
        {
            service.heard = passed;
            let total = self.counted.total();
            let lost = if self.counted.lost > 0 { format!(", {} lost", self.counted.lost) } else { String::new() };
            self.watching.supervisor.notify(&format!("WATCHDOG=1\nSTATUS={total} packets seen{lost}"));
        }
        Ok(())
    }

    /// Leaves what was counted where `metrics` finds it.
    fn note_counted(&mut self, passed: Duration) {
        let View::Service(service) = &mut self.view else { return };
        if passed.saturating_sub(service.noted) >= NOTED && service.noted_total != self.counted {
            (service.noted, service.noted_total) = (passed, self.counted.clone());
            // It is only for looking at, and the next is as good.
            let _ = self.world.watch.note(metrics::COUNTED, &self.counted.print());
        }
    }

    fn attend_alert(&mut self, passed: Duration) {
        let outcome = self.watching.hook.ended();
        let now = self.world.host.now();
        let alert = self.knowledge.policy().and_then(|policy| policy.violations.alert.clone());
        let View::Service(service) = &mut self.view else { return };
        let mut outcome = outcome;
        if let Some(alert) = alert
            && outcome.is_none()
            && !self.watching.hook.is_running()
            && let Some(told) = service.gate.due(passed, Duration::from_secs(alert.at_most_every.seconds()), now)
        {
            service.alerting = told.count;
            outcome = self.watching.hook.start(&alert.run, told.input.as_bytes(), ALERT_PATIENCE).err();
        }
        if let Some(outcome) = outcome {
            let (count, outcome) = (service.alerting, inert(outcome.as_bytes(), 200));
            self.counted.alerts += 1;
            if outcome != DONE {
                self.counted.alerts_failed += 1;
                self.output.warn(&format!("the alert program {outcome}"));
            }
            self.write(&[Kind::Alert { count, outcome }]);
        }
    }

    fn end(&mut self) -> Result<Exit, Failure> {
        if let View::Service(_) = self.view {
            self.watching.supervisor.notify("STOPPING=1");
            self.write(&[Kind::Stopped {}]);
        }
        self.leave();
        if let View::Table(table) = &self.view {
            let summary = table.summary();
            self.output.say(&summary)?;
        }
        Ok(Exit::Done)
    }

    /// Gives the terminal back.
    fn leave(&mut self) {
        if let View::Table(_) = self.view {
            let _ = self.output.out.write_all(table::LEAVE.as_bytes());
            let _ = self.output.out.flush();
        }
    }
}

/// How many packets a record tells of.
fn packets(kind: &Kind) -> u64 {
    match kind {
        Kind::Seen(seen) => seen.count,
        Kind::Lost { count } | Kind::Other { count } => *count,
        _ => 0,
    }
}

/// When what a record tells happened.
fn told_at(kind: &Kind, now: Timestamp) -> Timestamp {
    if let Kind::Seen(seen) = kind { seen.last } else { now }
}

/// The fields of a record in the journal. Names are ours; values are anybody's, and the journal takes any octets.
fn fields(kind: &Kind, message: &str) -> Vec<(&'static str, String)> {
    let mut fields =
        vec![("MESSAGE", message.to_string()), ("PRIORITY", "4".to_string()), ("SYSLOG_IDENTIFIER", "egressguard".to_string())];
    let Kind::Seen(seen) = kind else { return fields };
    let mut add = |name, value: Option<String>| fields.extend(value.map(|value| (name, value)));
    add("EGRESSGUARD_RULE", Some(seen.rule.clone()));
    add("EGRESSGUARD_LINE", seen.line.map(|line| line.to_string()));
    add("EGRESSGUARD_DIRECTION", Some(seen.direction.word().to_string()));
    add("EGRESSGUARD_PROTOCOL", Some(seen.protocol.to_string()));
    add("EGRESSGUARD_SOURCE", Some(seen.source.to_string()));
    add("EGRESSGUARD_SOURCE_PORT", seen.source_port.map(|port| port.to_string()));
    add("EGRESSGUARD_DESTINATION", Some(seen.destination.to_string()));
    add("EGRESSGUARD_PORT", seen.port.map(|port| port.to_string()));
    add("EGRESSGUARD_NAME", seen.name.clone());
    add("EGRESSGUARD_COUNT", Some(seen.count.to_string()));
    add("EGRESSGUARD_UID", seen.uid.filter(|_| seen.direction == Direction::Out).map(|uid| uid.to_string()));
    add("EGRESSGUARD_USER", seen.user.clone());
    add("EGRESSGUARD_SERVICE", seen.service.clone());
    match &seen.process {
        Some(Process::Known(process)) => {
            add("EGRESSGUARD_PID", Some(process.pid.to_string()));
            add("EGRESSGUARD_EXECUTABLE", Some(process.executable.clone()));
            add("EGRESSGUARD_COMMAND", Some(process.command.clone()));
        }
        Some(Process::Gone) => add("EGRESSGUARD_PROCESS", Some("gone".to_string())),
        None => {}
    }
    fields
}
