//! Every run of iptables, ip6tables and ipset during an apply fails, or is the last before the power goes: no family is ever without
//! its old rules or its new ones, and the next run finishes.

use std::collections::{BTreeMap, BTreeSet};

use clap::Parser;
use egressguard::base::name::DnsName;
use egressguard::command::arguments::Arguments;
use egressguard::command::{self, Exit, Failure, Output, Style, Verbosity};
use egressguard::judge::flow::Underway;
use egressguard::policy::DnsServer;
use egressguard::ruleset::program::{Counts, GenerationId, Op, TableDump};
use egressguard::ruleset::surroundings::Surroundings;
use egressguard::simulated::Simulated;
use egressguard::simulated::flows::SimulatedFlows;
use egressguard::simulated::programs::SimulatedPrograms;
use egressguard::system::files::{NamedDocuments, StateDirectory};
use egressguard::system::host::LocalHost;
use egressguard::world::{Answer, Depth, Kernel, KernelError, Programs, Resolver, World};
use tempfile::TempDir;

const OLD: &str = "version: 1\nname: old\ninbound: {port: 443}\noutbound: [{to: [198.51.100.10, \"2001:db8::10\"], port: 443}]\n\
                   dns: {servers: [192.0.2.53]}\n";
const NEW: &str = "version: 1\nname: new\ninbound: {port: 22}\noutbound: [{to: [198.51.100.20, \"2001:db8::20\"], port: 8443}]\n\
                   dns: {servers: [192.0.2.53]}\n";

/// Nobody asks it: the policies name addresses only.
struct NoResolver;

impl Resolver for NoResolver {
    fn resolve(&mut self, _: &[DnsName], _: &[DnsServer], _: &mut dyn FnMut(&DnsName, &Answer)) -> BTreeMap<DnsName, Answer> {
        BTreeMap::new()
    }
}

/// A kernel without nf_tables.
struct Bare;

impl Kernel for Bare {
    fn generation(&mut self) -> Result<GenerationId, KernelError> {
        Err(KernelError::NoNfTables("EPROTONOSUPPORT".to_string()))
    }

    fn observe(&mut self, _: Depth) -> Result<(GenerationId, Option<TableDump>), KernelError> {
        Err(KernelError::NoNfTables("EPROTONOSUPPORT".to_string()))
    }

    fn counts(&mut self, _: &str) -> Result<Option<Counts>, KernelError> {
        Err(KernelError::NoNfTables("EPROTONOSUPPORT".to_string()))
    }

    fn surroundings(&mut self) -> Result<Surroundings, KernelError> {
        Err(KernelError::NoNfTables("EPROTONOSUPPORT".to_string()))
    }

    fn commit(&mut self, _: GenerationId, _: &[Op]) -> Result<GenerationId, KernelError> {
        Err(KernelError::NoNfTables("EPROTONOSUPPORT".to_string()))
    }
}

/// A host in memory, but for its state directory.
struct Desk {
    directory: TempDir,
    programs: SimulatedPrograms,
}

impl Desk {
    fn new() -> Desk {
        let directory = tempfile::tempdir().unwrap();
        for (name, text) in [("old.yaml", OLD), ("new.yaml", NEW)] {
            std::fs::write(directory.path().join(name), text).unwrap();
        }
        Desk { directory, programs: SimulatedPrograms::default() }
    }

    fn run(&mut self, kernel: &mut dyn Kernel, words: &str) -> Result<(Exit, String), Failure> {
        let path =
            |word: &str| if word.ends_with(".yaml") { self.directory.path().join(word).display().to_string() } else { word.to_string() };
        let arguments = Arguments::parse_from(["egressguard".to_string()].into_iter().chain(words.split(' ').map(path)));
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let mut world = World {
            kernel,
            flows: &mut SimulatedFlows::new(Underway::default()),
            resolver: &mut NoResolver,
            host: &LocalHost::new(),
            files: &mut StateDirectory::new(self.directory.path().join("state")),
            watch: &mut StateDirectory::new(self.directory.path().join("state/watch")),
            documents: &mut NamedDocuments,
            programs: &mut self.programs,
        };
        let mut output = Output { out: &mut out, err: &mut err, style: Style::Plain, verbosity: Verbosity::Normal };
        let exit = command::run(&arguments.command, &mut world, &mut output)?;
        Ok((exit, String::from_utf8(out).unwrap() + &String::from_utf8(err).unwrap()))
    }

    fn apply(&mut self, policy: &str) -> Result<(Exit, String), Failure> {
        self.run(&mut Bare, &format!("apply --force --backend iptables {policy}"))
    }

    /// The rules of each family.
    fn rules(&mut self) -> [BTreeSet<String>; 2] {
        self.programs.mend();
        ["iptables-save", "ip6tables-save"].map(|program| {
            let saved = self.programs.run(program, &["-t", "filter"], "").unwrap();
            saved.lines().filter(|line| line.starts_with("-A")).map(str::to_string).collect()
        })
    }

    /// Every set that the rules look into, with its elements.
    fn looked_into(&mut self, rules: &BTreeSet<String>) -> Vec<String> {
        let sets = self.programs.run("ipset", &["save"], "").unwrap();
        let used = |line: &&str| line.split(' ').nth(1).is_some_and(|name| rules.iter().any(|rule| rule.contains(&format!(" {name} "))));
        sets.lines().filter(used).map(|line| line.split(" timeout").next().unwrap_or_default().to_string()).collect()
    }
}

/// The rules of each family and what they look into, when all goes well.
fn well(policies: &[&str]) -> ([BTreeSet<String>; 2], [Vec<String>; 2], usize) {
    let mut desk = Desk::new();
    for policy in &policies[..policies.len() - 1] {
        desk.apply(policy).unwrap();
    }
    let before = desk.programs.runs();
    desk.apply(policies[policies.len() - 1]).unwrap();
    let runs = desk.programs.runs() - before;
    let rules = desk.rules();
    let sets = rules.clone().map(|rules| desk.looked_into(&rules));
    (rules, sets, runs)
}

#[test]
fn whatever_fails_each_family_has_its_old_rules_or_its_new_ones_with_their_sets() {
    let (old, old_sets, _) = well(&["old.yaml"]);
    let (new, new_sets, runs) = well(&["old.yaml", "new.yaml"]);
    assert!(runs > 8 && old != new);
    let mut finished = 0;
    for step in 0..runs {
        // Once: it failed. For ever: the program was killed there, and could put nothing right.
        for times in [1, usize::MAX] {
            let mut desk = Desk::new();
            desk.apply("old.yaml").unwrap();
            desk.programs.fail(step, times);
            let failure = desk.apply("new.yaml");
            if let Err(failure) = &failure {
                assert_eq!(failure.exit, Exit::Refused, "{failure}");
            } else {
                finished += 1;
            }
            let rules = desk.rules();
            for family in 0..2 {
                let sets = desk.looked_into(&rules[family]);
                let is_old = rules[family] == old[family] && sets == old_sets[family];
                let is_new = rules[family] == new[family] && sets == new_sets[family];
                assert!(is_old || is_new, "step {step}: family {family} has neither: {failure:?}\n{:#?}", rules[family]);
                assert!(times != 1 || failure.is_ok() || is_old, "step {step}: family {family} did not go back: {failure:?}");
            }
            if times != 1 && rules != old {
                let (exit, said) = desk.run(&mut Bare, "refresh").unwrap();
                let interrupted = said.contains("an interrupted apply is finished");
                assert!(exit == Exit::Done && interrupted == failure.is_err(), "step {step}: {said}");
            }
            desk.apply("new.yaml").unwrap();
            assert_eq!(desk.rules().map(without_identity), new.clone().map(without_identity), "step {step}");
        }
    }
    assert!(finished <= 2, "only a set that cannot be cleared away is no failure");
}

/// The rules without those that say their generation, which a failed apply may have used up.
fn without_identity(rules: BTreeSet<String>) -> BTreeSet<String> {
    rules.into_iter().filter(|rule| !rule.starts_with("-A EGRESSGUARD-identity")).collect()
}

#[test]
fn a_boot_without_nf_tables_and_without_a_state_locks_down_by_iptables() {
    let mut desk = Desk::new();
    let (exit, said) = desk.run(&mut Bare, "restore").unwrap();
    assert!(exit == Exit::Done && said.contains("loading lockdown"), "{said}");
    let [v4, v6] = desk.rules();
    for rules in [v4, v6] {
        for hook in ["input", "output", "forward"] {
            assert!(rules.contains(&format!("-A {} -j EGRESSGUARD-{hook}", hook.to_uppercase())), "{hook}: {rules:#?}");
        }
    }
    let (_, said) = desk.run(&mut Bare, "restore").unwrap();
    assert!(said.contains("unchanged"), "{said}");
}

#[test]
fn a_host_without_nf_tables_is_told_of_no_backend_but_its_own() {
    let mut desk = Desk::new();
    let failure = desk.run(&mut Bare, "apply --force old.yaml").unwrap_err();
    assert!(failure.exit == Exit::Refused && failure.message.contains("nf_tables"), "{failure}");
    desk.apply("old.yaml").unwrap();
    // The backend of the last apply is that of the next.
    let (_, said) = desk.run(&mut Bare, "apply --force new.yaml").unwrap();
    assert!(said.contains("by iptables (generation 2)"), "{said}");
    let (exit, said) = desk.run(&mut Bare, "remove --yes").unwrap();
    assert!(exit == Exit::Done && said.contains("removed the rules from iptables"), "{said}");
    assert!(desk.rules().iter().all(BTreeSet::is_empty));
    assert_eq!(desk.programs.run("ipset", &["save"], "").unwrap(), "");
}

#[test]
fn what_a_boot_without_nf_tables_loaded_by_iptables_is_shown_refreshed_and_removed_there() {
    let mut desk = Desk::new();
    desk.run(&mut Simulated::new(), "apply --force old.yaml").unwrap();
    desk.run(&mut Bare, "restore").unwrap();
    assert!(!desk.rules().iter().any(BTreeSet::is_empty));
    for words in ["status", "refresh"] {
        let (exit, said) = desk.run(&mut Bare, words).unwrap();
        assert!(exit == Exit::Done, "{words}: {said}");
    }
    let (exit, said) = desk.run(&mut Bare, "remove --yes").unwrap();
    assert!(exit == Exit::Done && said.contains("removed the rules from iptables"), "{said}");
    assert!(desk.rules().iter().all(BTreeSet::is_empty));
}

#[test]
fn what_a_killed_move_has_left_in_the_other_packet_filter_goes_with_the_next_run() {
    for words in ["remove --yes", "refresh"] {
        let mut desk = Desk::new();
        let mut kernel = Simulated::new();
        desk.apply("old.yaml").unwrap();
        desk.run(&mut kernel, "apply --force --backend nftables new.yaml").unwrap();
        // By iptables again, as if they had never gone, and no note that the move came to its end.
        desk.run(&mut Bare, "restore").unwrap();
        assert!(!desk.rules().iter().any(BTreeSet::is_empty));
        desk.run(&mut kernel, words).unwrap();
        assert!(desk.rules().iter().all(BTreeSet::is_empty), "{words}");
    }
}

#[test]
fn moving_to_nftables_takes_the_rules_of_iptables_away_and_back() {
    let mut desk = Desk::new();
    let mut kernel = Simulated::new();
    desk.apply("old.yaml").unwrap();
    desk.run(&mut kernel, "apply --force --backend nftables old.yaml").unwrap();
    assert!(desk.rules().iter().all(BTreeSet::is_empty) && kernel.observe(Depth::Rules).unwrap().1.is_some());
    desk.run(&mut kernel, "apply --force --backend iptables old.yaml").unwrap();
    assert!(!desk.rules().iter().any(BTreeSet::is_empty) && kernel.observe(Depth::Rules).unwrap().1.is_none());
}
