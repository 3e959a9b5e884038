//! What clocks that jump do to pins in the kernel: the commands themselves, on a simulated kernel, with a host whose clocks a test
//! sets. The arithmetic has tests of its own in `src/pins/clock.rs`.

use std::collections::BTreeMap;
use std::net::IpAddr;

use clap::Parser;
use egressguard::base::name::DnsName;
use egressguard::base::time::Timestamp;
use egressguard::command::arguments::Arguments;
use egressguard::command::{self, Exit, Output, Style, Verbosity};
use egressguard::judge::flow::Underway;
use egressguard::policy::DnsServer;
use egressguard::simulated::Simulated;
use egressguard::simulated::flows::SimulatedFlows;
use egressguard::simulated::programs::SimulatedPrograms;
use egressguard::system::files::{NamedDocuments, StateDirectory};
use egressguard::world::{Anchor, Answer, Depth, Host, Kernel, Resolver, World};

const START: i64 = 1_800_000_000;
const YEAR: i64 = 365 * 86_400;
const POLICY: &str = "version: 1\nname: c\ndns: {servers: [192.0.2.53]}\nrefresh: {keep: 1h}\noutbound: [{to: a.example}]\n";

/// A host that has two clocks and nothing else.
struct Clocks {
    boot: u32,
    boottime: u64,
    wall: i64,
}

impl Host for Clocks {
    fn now(&self) -> Timestamp {
        Timestamp(self.wall)
    }

    fn clock(&self) -> Anchor {
        Anchor { boot_id: self.boot.to_string(), boottime: self.boottime, wall: self.now() }
    }

    fn namespace(&self) -> String {
        format!("{}/1", self.boot)
    }

    fn user(&self, _: &str) -> Result<Option<u32>, String> {
        Ok(None)
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

/// DNS that knows one address of everything, or nobody who answers.
#[derive(Clone, Copy)]
enum Dns {
    Up,
    Down,
}

impl Resolver for Dns {
    fn resolve(&mut self, names: &[DnsName], _: &[DnsServer], progress: &mut dyn FnMut(&DnsName, &Answer)) -> BTreeMap<DnsName, Answer> {
        let address = ("1.1.1.1".parse().unwrap(), (300, "192.0.2.53:53".to_string()));
        let answer = match self {
            Dns::Up => Answer::Addresses { chain: Vec::new(), addresses: [address].into(), complaints: Vec::new() },
            Dns::Down => Answer::Failed { reasons: vec!["nobody answers".to_string()] },
        };
        names.iter().for_each(|name| progress(name, &answer));
        names.iter().map(|name| (name.clone(), answer.clone())).collect()
    }
}

/// A machine through time.
struct Machine {
    kernel: Simulated,
    clocks: Clocks,
    directory: tempfile::TempDir,
}

impl Machine {
    /// One on which the policy has just been applied.
    fn new() -> Machine {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("policy.yaml"), POLICY).unwrap();
        let mut machine = Machine { kernel: Simulated::new(), clocks: Clocks { boot: 1, boottime: 500, wall: START }, directory };
        let policy = machine.directory.path().join("policy.yaml").display().to_string();
        assert_eq!(machine.run(&["apply", &policy], Dns::Up), Exit::Done);
        assert_eq!(machine.left(), Some(3600));
        machine
    }

    #[track_caller]
    fn run(&mut self, arguments: &[&str], mut dns: Dns) -> Exit {
        let arguments = Arguments::try_parse_from(["egressguard"].iter().chain(arguments)).unwrap();
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let mut output = Output { out: &mut out, err: &mut err, style: Style::Plain, verbosity: Verbosity::Normal };
        let mut files = StateDirectory::new(self.directory.path().join("state"));
        let mut flows = SimulatedFlows::new(Underway::default());
        let mut world = World {
            kernel: &mut self.kernel,
            flows: &mut flows,
            programs: &mut SimulatedPrograms::default(),
            resolver: &mut dns,
            host: &self.clocks,
            files: &mut files,
            documents: &mut NamedDocuments,
        };
        command::run(&arguments.command, &mut world, &mut output).unwrap_or_else(|failure| panic!("{failure}"))
    }

    /// So many seconds go by, on every clock.
    fn pass(&mut self, seconds: u32) {
        self.clocks.wall += i64::from(seconds);
        self.clocks.boottime += u64::from(seconds);
        self.kernel.advance_ms(u64::from(seconds) * 1000);
    }

    /// Somebody sets the wall clock.
    fn jump(&mut self, seconds: i64) {
        self.clocks.wall += seconds;
    }

    /// The rules are gone, and the wall clock says this.
    fn reboot(&mut self, wall: i64) {
        self.kernel = Simulated::new();
        self.clocks = Clocks { boot: self.clocks.boot + 1, boottime: 20, wall };
    }

    /// How many seconds the pin has left in the kernel.
    fn left(&mut self) -> Option<u64> {
        let dump = self.kernel.observe(Depth::Everything).unwrap().1.expect("rules are loaded");
        let (_, elements) = dump.sets.get("tcp_443_v4").expect("the set of the name");
        elements.get(&vec![1, 1, 1, 1]).map(|element| element.expires_ms.expect("pins end") / 1000)
    }
}

#[test]
fn a_wall_clock_that_jumps_ahead_ends_no_pin_and_one_that_jumps_back_prolongs_none() {
    for jump in [YEAR, -YEAR] {
        let mut machine = Machine::new();
        machine.pass(600);
        machine.jump(jump);
        assert_eq!(machine.run(&["refresh"], Dns::Down), Exit::Done);
        assert_eq!(machine.left(), Some(3000), "{jump}");
        machine.pass(2990);
        assert_eq!(machine.run(&["refresh"], Dns::Down), Exit::Done);
        assert!(machine.left().is_some(), "{jump}");
        machine.pass(20);
        assert_eq!(machine.run(&["refresh"], Dns::Down), Exit::No, "the name is blocked");
        assert_eq!(machine.left(), None, "{jump}");
        assert_eq!(machine.run(&["refresh"], Dns::Up), Exit::Done);
        assert_eq!(machine.left(), Some(3600), "{jump}");
    }
}

#[test]
fn a_boot_without_a_clock_restores_the_pins_and_setting_the_clock_ends_none() {
    let mut machine = Machine::new();
    machine.pass(600);
    machine.reboot(1000);
    assert_eq!(machine.run(&["restore"], Dns::Down), Exit::Done);
    let left = machine.left().expect("the pin is restored");
    assert!(left <= 3600, "{left}");
    machine.pass(60);
    machine.jump(START + 700 - machine.clocks.wall);
    assert_eq!(machine.run(&["refresh"], Dns::Down), Exit::Done);
    let after = machine.left().expect("the pin stays");
    assert!(after <= left, "{after} s are left of {left}");
}

#[test]
fn a_boot_after_the_pins_have_ended_restores_the_rules_without_them() {
    let mut machine = Machine::new();
    machine.reboot(START + 4000);
    assert_eq!(machine.run(&["restore"], Dns::Down), Exit::Done);
    assert_eq!(machine.left(), None);
    assert_eq!(machine.run(&["refresh"], Dns::Up), Exit::Done);
    assert_eq!(machine.left(), Some(3600));
}
