//! What the kernel counted comes into the book once: whatever is run, wherever it dies, and when the disk is full.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::rc::Rc;

use clap::Parser;
use egressguard::base::name::DnsName;
use egressguard::base::time::Timestamp;
use egressguard::command::arguments::Arguments;
use egressguard::command::{self, Exit, Failure, Output, Style, Verbosity, harvest};
use egressguard::judge::flow::Underway;
use egressguard::pins::Anchor;
use egressguard::policy::DnsServer;
use egressguard::ruleset::program::{Counts, GenerationId, Key, Op, TableDump};
use egressguard::ruleset::surroundings::Surroundings;
use egressguard::simulated::Simulated;
use egressguard::simulated::files::MemoryFiles;
use egressguard::simulated::flows::SimulatedFlows;
use egressguard::simulated::programs::SimulatedPrograms;
use egressguard::state::books::{self, LEDGER};
use egressguard::system::files::NamedDocuments;
use egressguard::violation::record::Kind;
use egressguard::world::{Answer, Depth, Host, Kernel, KernelError, Resolver, World};

const OLD: &str = "version: 1\nname: old\noutbound: [{to: 198.51.100.10, port: 443}]\ndns: {servers: [192.0.2.53]}\n";
const NEW: &str = "version: 1\nname: new\noutbound: [{to: 198.51.100.20, port: 443}]\ndns: {servers: [192.0.2.53]}\n";
/// How long a count lives, in milliseconds.
const LIVES: u64 = 86_400_000;

/// Nobody asks it: the policies name addresses only.
struct NoResolver;

impl Resolver for NoResolver {
    fn resolve(&mut self, _: &[DnsName], _: &[DnsServer], _: &mut dyn FnMut(&DnsName, &Answer)) -> BTreeMap<DnsName, Answer> {
        BTreeMap::new()
    }
}

/// A kernel that whoever has died no longer talks to.
struct Mortal<'a>(&'a mut Simulated, Rc<Cell<bool>>);

impl Mortal<'_> {
    fn alive(&mut self) -> Result<&mut Simulated, KernelError> {
        if self.1.get() { Err(KernelError::Broken("killed".to_string())) } else { Ok(self.0) }
    }
}

impl Kernel for Mortal<'_> {
    fn generation(&mut self) -> Result<GenerationId, KernelError> {
        self.alive()?.generation()
    }

    fn observe(&mut self, depth: Depth) -> Result<(GenerationId, Option<TableDump>), KernelError> {
        self.alive()?.observe(depth)
    }

    fn counts(&mut self, prefix: &str) -> Result<Option<Counts>, KernelError> {
        self.alive()?.counts(prefix)
    }

    fn surroundings(&mut self) -> Result<Surroundings, KernelError> {
        self.alive()?.surroundings()
    }

    fn commit(&mut self, expected: GenerationId, ops: &[Op]) -> Result<GenerationId, KernelError> {
        self.alive()?.commit(expected, ops)
    }
}

/// A host that is all clock.
struct Clock {
    boot: u32,
    boottime: u64,
    wall: i64,
}

impl Host for Clock {
    fn now(&self) -> Timestamp {
        Timestamp(self.wall)
    }

    fn clock(&self) -> Anchor {
        Anchor { boot_id: self.boot.to_string(), boottime: self.boottime, wall: self.now() }
    }

    fn slept(&self) -> u64 {
        0
    }

    fn namespace(&self) -> String {
        format!("{}/1", self.boot)
    }

    fn user(&self, _: &str) -> Result<Option<u32>, String> {
        Ok(None)
    }

    fn name_of_user(&self, _: u32) -> Option<String> {
        None
    }

    fn group(&self, _: &str) -> Result<Option<u32>, String> {
        Ok(None)
    }

    fn unit(&self, _: &str) -> Result<Option<(String, u64)>, String> {
        Ok(None)
    }

    fn system_servers(&self) -> Result<Vec<IpAddr>, String> {
        Ok(Vec::new())
    }

    fn remote_session(&self) -> Option<(IpAddr, u16)> {
        None
    }
}

/// A machine on which packets are refused.
struct Machine {
    kernel: Simulated,
    files: MemoryFiles,
    clock: Clock,
    directory: tempfile::TempDir,
    sent: u64,
}

impl Machine {
    /// One on which the old policy has just been applied.
    fn new() -> Machine {
        let directory = tempfile::tempdir().unwrap();
        for (name, text) in [("old.yaml", OLD), ("new.yaml", NEW)] {
            std::fs::write(directory.path().join(name), text).unwrap();
        }
        let clock = Clock { boot: 1, boottime: 500, wall: 1_795_000_000 };
        let mut machine = Machine { kernel: Simulated::new(), files: MemoryFiles::new(), clock, directory, sent: 0 };
        machine.run("apply old.yaml").unwrap();
        machine
    }

    fn run(&mut self, words: &str) -> Result<(Exit, String), Failure> {
        let path =
            |word: &str| if word.ends_with(".yaml") { self.directory.path().join(word).display().to_string() } else { word.to_string() };
        let arguments = Arguments::parse_from(["egressguard".to_string()].into_iter().chain(words.split(' ').map(path)));
        self.within(|world, output| command::run(&arguments.command, world, output))
    }

    fn within<T>(&mut self, work: impl FnOnce(&mut World, &mut Output) -> Result<T, Failure>) -> Result<(T, String), Failure> {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let death = self.files.death();
        let mut world = World {
            kernel: &mut Mortal(&mut self.kernel, death),
            flows: &mut SimulatedFlows::new(Underway::default()),
            resolver: &mut NoResolver,
            host: &self.clock,
            files: &mut self.files,
            watch: &mut MemoryFiles::new(),
            documents: &mut NamedDocuments,
            programs: &mut SimulatedPrograms::default(),
        };
        let mut output = Output { out: &mut out, err: &mut err, style: Style::Plain, verbosity: Verbosity::Normal };
        let done = work(&mut world, &mut output)?;
        Ok((done, String::from_utf8(out).unwrap() + &String::from_utf8(err).unwrap()))
    }

    /// A packet of a user to this destination is refused and counted, as the rules do it.
    fn refuse(&mut self, to: u8) {
        self.sent += 1;
        assert!(self.kernel.update("ledger_all_out", &vec![0; 4], LIVES * 365, 60));
        let key: Key = [&1000u32.to_ne_bytes()[..], &[203, 0, 113, to], &[6, 0, 0, 0], &[1, 187, 0, 0]].concat();
        self.kernel.update("ledger_user_v4", &key, LIVES, 60);
    }

    fn pass(&mut self, seconds: u32) {
        self.clock.boottime += u64::from(seconds);
        self.clock.wall += i64::from(seconds);
        self.kernel.advance_ms(u64::from(seconds) * 1000);
    }

    /// How many packets the book has.
    fn booked(&self) -> u64 {
        let mut packets = 0;
        books::each(LEDGER, &self.files, |line| match line.kind() {
            Some(Kind::Count(count)) => packets += count.packets,
            Some(Kind::Overflow(more)) => packets += more.packets,
            _ => {}
        })
        .unwrap();
        packets
    }

    #[track_caller]
    fn has_booked_all(&self, case: &str) {
        assert_eq!(self.booked(), self.sent, "{case}");
        let found = books::check(LEDGER, &self.files, harvest::known(&self.files)).unwrap();
        assert!(found.findings.is_empty(), "{case}: {found:?}");
    }
}

#[test]
fn every_run_that_may_drop_counts_writes_them_down_first() {
    for words in ["refresh", "refresh --repair", "apply new.yaml", "remove --yes", "restore"] {
        let mut machine = Machine::new();
        (1..=5).for_each(|to| machine.refuse(to));
        machine.pass(60);
        machine.run(words).unwrap();
        machine.has_booked_all(words);
    }
}

#[test]
fn a_run_that_dies_anywhere_is_counted_once() {
    for words in ["refresh", "apply new.yaml", "remove --yes", "restore"] {
        for step in 0..30 {
            for part in [0, 80, 400, 100_000] {
                let case = format!("`{words}` dies at write {step} with {part} octets done");
                let mut machine = Machine::new();
                (1..=4).for_each(|to| machine.refuse(to));
                machine.run("refresh").unwrap();
                (3..=6).for_each(|to| machine.refuse(to));
                machine.files.die_after(step, part);
                let _ = machine.run(words);
                machine.files.live();
                if machine.kernel.observe(Depth::Rules).unwrap().1.is_some() {
                    machine.refuse(5);
                    machine.refuse(9);
                }
                machine.pass(60);
                machine.run("apply old.yaml").unwrap();
                machine.has_booked_all(&case);
            }
        }
    }
}

#[test]
fn a_refresh_that_has_nothing_to_count_adds_nothing_and_changes_no_rule() {
    let mut machine = Machine::new();
    machine.refuse(1);
    machine.run("refresh").unwrap();
    let before = (machine.files.clone(), machine.kernel.committed().len());
    for _ in 0..5 {
        machine.pass(60);
        machine.run("refresh").unwrap();
    }
    let of = |files: &MemoryFiles, name: &str| egressguard::world::Files::read(files, name).unwrap();
    for name in ["ledger.jsonl", "ledger.head", "ledger.json"] {
        assert_eq!(of(&machine.files, name), of(&before.0, name), "{name}");
    }
    assert_eq!(machine.kernel.committed().len(), before.1);
    machine.refuse(1);
    machine.run("refresh").unwrap();
    let mut last = None;
    books::each(LEDGER, &machine.files, |line| last = line.kind()).unwrap();
    let Some(Kind::Count(count)) = last else { panic!("{last:?}") };
    assert_eq!((count.from, count.to), (Timestamp(machine.clock.wall), Timestamp(machine.clock.wall)), "from the reading before");
}

#[test]
fn a_full_disk_is_said_and_loses_nothing() {
    let mut machine = Machine::new();
    (1..=4).for_each(|to| machine.refuse(to));
    machine.files.fill_up();
    let ((), said) = machine
        .within(|world, output| {
            harvest::harvest(world, output);
            Ok(())
        })
        .unwrap();
    assert!(said.contains("ENOSPC") && said.contains("not written down yet"), "{said}");
    assert!(machine.run("remove --yes").is_err(), "what cannot be written down is not dropped");
    machine.files.live();
    machine.refuse(2);
    machine.run("refresh").unwrap();
    machine.has_booked_all("full disk");
}

#[test]
fn rules_that_somebody_removed_and_another_boot_begin_at_nothing_and_count_on() {
    let mut machine = Machine::new();
    (1..=3).for_each(|to| machine.refuse(to));
    machine.run("refresh").unwrap();
    let generation = machine.kernel.generation().unwrap();
    machine.kernel.commit(generation, &[Op::DeleteTable]).unwrap();
    machine.run("refresh --repair").unwrap();
    (1..=3).for_each(|to| machine.refuse(to));
    machine.run("refresh").unwrap();
    machine.has_booked_all("a table of the same name");
    machine.kernel = Simulated::new();
    machine.clock = Clock { boot: 2, boottime: 20, wall: machine.clock.wall + 100 };
    machine.run("restore").unwrap();
    (1..=3).for_each(|to| machine.refuse(to));
    machine.run("refresh").unwrap();
    machine.has_booked_all("another boot");
    let mut began = Vec::new();
    books::each(LEDGER, &machine.files, |line| began.extend(line.kind().filter(|_| line.kind == "began"))).unwrap();
    assert_eq!(began.len(), 3);
    let Kind::Began(last) = &began[2] else { panic!("{began:?}") };
    assert_eq!(last.from, Some(Timestamp(machine.clock.wall - 100)), "what came after this is not known");
}

#[test]
fn a_clock_that_is_set_back_and_a_lost_baseline_count_nothing_twice() {
    let mut machine = Machine::new();
    (1..=3).for_each(|to| machine.refuse(to));
    machine.run("refresh").unwrap();
    machine.clock.wall -= 400_000;
    machine.refuse(2);
    machine.run("refresh").unwrap();
    machine.has_booked_all("set back");
    for damage in ["", "{\"place\":", "null"] {
        machine.files.change("ledger.json", |content| *content = damage.into());
        machine.refuse(3);
        machine.run("refresh").unwrap();
        machine.has_booked_all(damage);
    }
}

#[test]
fn what_stands_in_no_book_yet_is_told_without_writing() {
    let mut machine = Machine::new();
    machine.refuse(1);
    machine.run("refresh").unwrap();
    (1..=2).for_each(|to| machine.refuse(to));
    machine.files.die_after(0, 0);
    let unwritten = machine.within(|world, _| harvest::unwritten(world)).unwrap().0;
    let packets: u64 = unwritten.iter().map(|kind| if let Kind::Count(count) = kind { count.packets } else { 0 }).sum();
    assert_eq!((unwritten.len(), packets, machine.booked()), (2, 2, 1));
    assert!(!machine.files.death().get(), "nothing was written");
}
