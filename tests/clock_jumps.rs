//! What clocks that jump do to pins in the kernel: the commands themselves, on a simulated kernel, with a host whose clocks a test
//! sets. The arithmetic has tests of its own in `src/pins/clock.rs`.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::rc::Rc;

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
    wall: Rc<Cell<i64>>,
    slept: u64,
    /// The control group of the one service that there is.
    unit: Option<u64>,
}

impl Host for Clocks {
    fn now(&self) -> Timestamp {
        Timestamp(self.wall.get())
    }

    fn clock(&self) -> Anchor {
        Anchor { boot_id: self.boot.to_string(), boottime: self.boottime, wall: self.now() }
    }

    fn slept(&self) -> u64 {
        self.slept
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

    fn unit(&self, name: &str) -> Result<Option<(String, u64)>, String> {
        Ok(self.unit.map(|id| (format!("system.slice/{name}"), id)))
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
    /// It answers when the wall clock has been set by so many seconds.
    UpAfterJump(i64),
}

/// The same beside a clock.
struct DnsBeside(Dns, Rc<Cell<i64>>);

impl Resolver for DnsBeside {
    fn resolve(&mut self, names: &[DnsName], _: &[DnsServer], progress: &mut dyn FnMut(&DnsName, &Answer)) -> BTreeMap<DnsName, Answer> {
        let address = ("1.1.1.1".parse().unwrap(), (300, "192.0.2.53:53".to_string()));
        if let Dns::UpAfterJump(seconds) = self.0 {
            self.1.set(self.1.get() + seconds);
        }
        let answer = match self.0 {
            Dns::Up | Dns::UpAfterJump(_) => Answer::Addresses { chain: Vec::new(), addresses: [address].into(), complaints: Vec::new() },
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
        let mut machine = Machine::under(POLICY, None);
        assert_eq!(machine.left(), Some(3600));
        machine
    }

    fn under(policy: &str, unit: Option<u64>) -> Machine {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("policy.yaml"), policy).unwrap();
        let mut machine = Machine {
            kernel: Simulated::new(),
            clocks: Clocks { boot: 1, boottime: 500, wall: Rc::new(Cell::new(START)), slept: 0, unit: None },
            directory,
        };
        let policy = machine.directory.path().join("policy.yaml").display().to_string();
        machine.clocks.unit = unit;
        assert_eq!(machine.run(&["apply", &policy], Dns::Up), Exit::Done);
        machine
    }

    #[track_caller]
    fn run(&mut self, arguments: &[&str], dns: Dns) -> Exit {
        let arguments = Arguments::try_parse_from(["egressguard"].iter().chain(arguments)).unwrap();
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let mut output = Output { out: &mut out, err: &mut err, style: Style::Plain, verbosity: Verbosity::Normal };
        let mut files = StateDirectory::new(self.directory.path().join("state"));
        let mut dns = DnsBeside(dns, self.clocks.wall.clone());
        let mut flows = SimulatedFlows::new(Underway::default());
        let mut world = World {
            kernel: &mut self.kernel,
            flows: &mut flows,
            programs: &mut SimulatedPrograms::default(),
            resolver: &mut dns,
            host: &self.clocks,
            files: &mut files,
            watch: &mut StateDirectory::new(self.directory.path().join("state/watch")),
            documents: &mut NamedDocuments,
        };
        command::run(&arguments.command, &mut world, &mut output).unwrap_or_else(|failure| panic!("{failure}"))
    }

    /// So many seconds go by, on every clock.
    fn pass(&mut self, seconds: u32) {
        self.jump(i64::from(seconds));
        self.clocks.boottime += u64::from(seconds);
        self.kernel.advance_ms(u64::from(seconds) * 1000);
    }

    /// Somebody sets the wall clock.
    fn jump(&mut self, seconds: i64) {
        self.clocks.wall.set(self.clocks.wall.get() + seconds);
    }

    /// The rules are gone, and the wall clock says this.
    fn reboot(&mut self, wall: i64) {
        self.kernel = Simulated::new();
        self.clocks = Clocks { boot: self.clocks.boot + 1, boottime: 20, wall: Rc::new(Cell::new(wall)), slept: 0, unit: None };
    }

    /// Whether the rules ask for this control group.
    fn asks_for(&mut self, unit: u64) -> bool {
        let dump = self.kernel.observe(Depth::Pins).unwrap().1.expect("rules are loaded");
        let octets = format!("{:?}", unit.to_ne_bytes());
        format!("{dump:?}").contains(octets.trim_matches(['[', ']']))
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
    machine.jump(START + 700 - machine.clocks.wall.get());
    assert_eq!(machine.run(&["refresh"], Dns::Down), Exit::Done);
    let after = machine.left().expect("the pin stays");
    assert!(after <= left, "{after} s are left of {left}");
}

#[test]
fn the_times_of_pins_stand_still_in_a_sleeping_machine_and_are_put_right() {
    let mut machine = Machine::new();
    // Half an hour of sleep: the clocks go on, the kernel's timers do not.
    machine.jump(1800);
    machine.clocks.boottime += 1800;
    machine.clocks.slept += 1800;
    assert_eq!(machine.left(), Some(3600));
    assert_eq!(machine.run(&["refresh"], Dns::Down), Exit::Done);
    assert_eq!(machine.left(), Some(1800));
}

#[test]
fn a_wall_clock_that_is_set_while_dns_is_waited_for_prolongs_no_pin() {
    for jump in [-86_400, 86_400] {
        let mut machine = Machine::new();
        machine.pass(1200);
        assert_eq!(machine.run(&["refresh"], Dns::UpAfterJump(jump)), Exit::Done);
        assert_eq!(machine.left(), Some(3600));
        machine.pass(60);
        assert_eq!(machine.run(&["refresh"], Dns::Down), Exit::Done);
        assert_eq!(machine.left(), Some(3540));
    }
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

#[test]
fn the_number_of_a_control_group_counts_in_no_other_boot() {
    let policy = POLICY.replace("{to: a.example}", "{to: a.example, for: {service: backend.service}}");
    let mut machine = Machine::under(&policy, Some(0x1122_3344));
    assert!(machine.asks_for(0x1122_3344));
    // Somebody else's service has the number now.
    machine.reboot(START + 100);
    assert_eq!(machine.run(&["restore"], Dns::Down), Exit::Done);
    assert!(!machine.asks_for(0x1122_3344));
    assert_eq!(machine.run(&["status"], Dns::Down), Exit::Done, "that the service is not there yet is no drift");
    machine.clocks.unit = Some(0x5566_7788);
    assert_eq!(machine.run(&["refresh"], Dns::Up), Exit::Done);
    assert!(machine.asks_for(0x5566_7788));
    assert_eq!(machine.run(&["status"], Dns::Down), Exit::Done);
}

#[test]
fn pins_that_live_for_seconds_are_renewed_in_the_kernel_as_they_are_in_the_state() {
    for (times, step, least) in [("{keep: 20s, every: 5s}", 4, 14), ("{keep: 7s, every: 1s}", 1, 4), ("{keep: 60s, every: 4s}", 4, 40)] {
        let mut machine = Machine::under(&POLICY.replace("{keep: 1h}", times), None);
        for _ in 0..20 {
            machine.pass(step);
            assert_eq!(machine.run(&["refresh"], Dns::Up), Exit::Done);
            assert!(machine.left() >= Some(least), "{times}: {:?}", machine.left());
        }
    }
}
