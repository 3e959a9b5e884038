//! Whatever the language can say is said in iptables or is an error with a reason; what is said is loaded, read back and found to be
//! the same; and the script is one that a shell and its critics take.

mod policies;

use std::io::Write;
use std::process::{Command, Stdio};

use egressguard::export::iptables::{Firewall, export};
use egressguard::export::observed::Observed;
use egressguard::export::plan::plan;
use egressguard::export::script;
use egressguard::policy::{Mode, QuarantineScope};
use egressguard::simulated::programs::SimulatedPrograms;
use egressguard::world::Programs;
use policies::{Case, NOW, cases};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;

fn observe(programs: &mut SimulatedPrograms) -> Observed {
    let [v4, v6] = ["iptables-save", "ip6tables-save"].map(|program| programs.run(program, &[], "").unwrap());
    Observed::parse(&v4, &v6, &programs.run("ipset", &["save"], "").unwrap())
}

/// Loads what has to change, and answers with what is there then.
fn load(programs: &mut SimulatedPrograms, meant: &Firewall) -> Observed {
    let change = plan(&observe(programs), meant, NOW);
    programs.run("ipset", &["restore"], &change.sets).unwrap();
    for (program, rules) in ["iptables-restore", "ip6tables-restore"].iter().zip(&change.rules) {
        if let Some(rules) = rules {
            programs.run(program, &[], rules).unwrap_or_else(|why| panic!("{why}\n{rules}"));
        }
    }
    programs.run("ipset", &["restore"], &change.stale).unwrap();
    observe(programs)
}

fn exported(case: &Case) -> Result<Firewall, Vec<String>> {
    let export = export(&case.compile().loadable(), &case.facts);
    export.map_err(|unsayable| unsayable.into_iter().map(|unsayable| unsayable.what).collect())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]

    #[test]
    fn what_is_said_is_read_back_as_the_same_and_what_is_not_has_a_reason((first, second) in (cases(), cases())) {
        let mut programs = SimulatedPrograms::default();
        for case in [&first, &second, &first] {
            let quarantine = case.policy.violations.quarantine.as_ref().filter(|_| case.policy.mode == Mode::Enforce);
            let users = quarantine.is_some_and(|quarantine| quarantine.scope == QuarantineScope::User);
            match exported(case) {
                Ok(meant) => {
                    prop_assert!(!users, "a quarantine of users was said");
                    let there = load(&mut programs, &meant);
                    let rest = plan(&there, &meant, NOW);
                    prop_assert!(rest.is_nothing(), "{:#?}", rest.differences);
                    prop_assert_eq!(there.identity(), Some(meant.identity));
                }
                Err(reasons) => prop_assert!(users, "{reasons:#?}"),
            }
        }
        let removal = observe(&mut programs).removal();
        for (program, rules) in ["iptables-restore", "ip6tables-restore"].iter().zip(&removal.0) {
            programs.run(program, &[], rules).unwrap();
        }
        programs.run("ipset", &["restore"], &removal.1).unwrap();
        prop_assert!(!observe(&mut programs).is_ours());
    }
}

/// The script of some policy that can be said.
fn some_script() -> String {
    let mut runner = TestRunner::deterministic();
    let mut scripts = std::iter::from_fn(|| Some(cases().new_tree(&mut runner).unwrap().current())).filter_map(|case| exported(&case).ok());
    script::write(&scripts.next().unwrap(), NOW)
}

#[test]
fn a_shell_and_its_critics_take_the_script() {
    for (program, arguments) in [("sh", &["-n"][..]), ("shellcheck", &["-"])] {
        let child = Command::new(program).args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let mut child = match child {
            Ok(child) => child,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                println!("skipped: `{program}` is not installed");
                continue;
            }
            Err(error) => panic!("{program}: {error}"),
        };
        child.stdin.take().unwrap().write_all(some_script().as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stdout));
    }
}
