//! What `enforce::commit` does when the kernel holds something else than it was told, when others interfere, and when answers are
//! lost. The kernel is the simulated one, and it lies where a test wants it to.

use egressguard::base::time::Timestamp;
use egressguard::command::enforce::{Committed, all_as, commit};
use egressguard::command::{Exit, Failure};
use egressguard::pins::{self, Pins};
use egressguard::policy;
use egressguard::ruleset::Ruleset;
use egressguard::ruleset::compile::{Facts, compile};
use egressguard::ruleset::program::{Counts, Element, Expr, GenerationId, Op, Register, TableDump};
use egressguard::ruleset::surroundings::Surroundings;
use egressguard::simulated::{Moment, Simulated};
use egressguard::system::host::LocalHost;
use egressguard::world::{Depth, Host, Kernel, KernelError};

const OLD: &str = "version: 1\nname: old\ninbound: {port: 443}\noutbound: [{to: a.example}, {to: 192.0.2.0/24, port: 5432}]\n";
const NEW: &str = "version: 1\nname: new\ninbound: {port: 8443, from: [198.51.100.0/24]}\nmanagement: {port: 22, from: [203.0.113.0/24]}\n\
                   outbound: [{to: a.example}, {to: 10.20.0.5, port: [53, 80-90], protocol: udp}, {to: '2001:db8::/32', port: 1}]\n\
                   violations: {quarantine: {after: 20, within: 1m, for: 1h}}\n";

/// What is carried out in place of these steps.
type Lie<'a> = &'a dyn Fn(&[Op]) -> Vec<Op>;

/// A kernel that carries out something else than it is told, once.
struct Liar<'a> {
    truthful: &'a mut Simulated,
    lie: Option<Lie<'a>>,
}

impl Kernel for Liar<'_> {
    fn generation(&mut self) -> Result<GenerationId, KernelError> {
        self.truthful.generation()
    }

    fn observe(&mut self, depth: Depth) -> Result<(GenerationId, Option<TableDump>), KernelError> {
        self.truthful.observe(depth)
    }

    fn counts(&mut self, prefix: &str) -> Result<Option<Counts>, KernelError> {
        self.truthful.counts(prefix)
    }

    fn surroundings(&mut self) -> Result<Surroundings, KernelError> {
        self.truthful.surroundings()
    }

    fn commit(&mut self, expected: GenerationId, ops: &[Op]) -> Result<GenerationId, KernelError> {
        match self.lie.take() {
            Some(lie) => self.truthful.commit(expected, &lie(ops)),
            None => self.truthful.commit(expected, ops),
        }
    }
}

/// The rules of a policy whose name has pins of both families for another day.
fn meant(text: &str) -> Ruleset {
    let policy = policy::parse(text, "p.yaml").unwrap_or_else(|why| panic!("{why:#?}")).policy;
    let now = LocalHost::new().now();
    let end = Timestamp(now.0 + 86_400);
    let address = |text| format!("  address {text} ttl 300 server 192.0.2.53:53 first {now} expires {end}\n");
    let file =
        ["egressguard pins 1\nname a.example\n", &format!("  confirmed {now}\n"), &address("1.1.1.1"), &address("2606:4700::1"), "end 1\n"];
    let pins: Pins = pins::load(&file.concat()).unwrap_or_else(|why| panic!("{why}"));
    compile(&policy, &pins, &Facts::default(), 0)
}

fn load(kernel: &mut dyn Kernel, text: &str, number: u64) -> Result<Committed, Failure> {
    let renumber = &mut |ruleset: &mut Ruleset| {
        ruleset.number(number);
        Ok(())
    };
    commit(kernel, &mut meant(text), None, &LocalHost::new(), &mut all_as(renumber))
}

fn loaded(text: &str) -> Simulated {
    let mut kernel = Simulated::new();
    load(&mut kernel, text, 1).unwrap_or_else(|failure| panic!("{failure}"));
    kernel
}

fn seen(kernel: &mut Simulated) -> Option<TableDump> {
    kernel.observe(Depth::Everything).expect("it is simulated").1
}

#[test]
fn no_step_of_a_transaction_can_be_lost_without_a_word() {
    for (before, text) in [(None, NEW), (Some(OLD), NEW)] {
        let world = || before.map_or_else(Simulated::new, loaded);
        let mut honest = world();
        load(&mut honest, text, 2).unwrap_or_else(|failure| panic!("{failure}"));
        let steps = honest.committed().last().expect("a transaction").clone();
        assert!(steps.len() > 40, "{} steps", steps.len());
        let mut told = 0;
        for (lost, step) in steps.iter().enumerate() {
            let mut kernel = world();
            let start = seen(&mut kernel);
            let lie = |ops: &[Op]| ops.iter().enumerate().filter(|(index, _)| *index != lost).map(|(_, op)| op.clone()).collect();
            let failure = match load(&mut Liar { truthful: &mut kernel, lie: Some(&lie) }, text, 2) {
                Err(failure) => failure,
                // A step that changes nothing may be lost.
                Ok(_) if seen(&mut kernel) == seen(&mut honest) => continue,
                Ok(_) => panic!("`{}` is lost and nobody says so", step),
            };
            assert_eq!(failure.exit, Exit::Refused, "{failure}");
            if failure.message.contains("the kernel holds something else than it was told") {
                told += 1;
                match before {
                    Some(_) => assert_eq!(seen(&mut kernel), start, "the rules from before are back, without `{}`", step),
                    None => assert!(seen(&mut kernel).is_some(), "what was loaded stays: it refuses more rather than less"),
                }
            } else {
                // The kernel itself refused the rest.
                assert_eq!(seen(&mut kernel), start, "{failure}");
            }
        }
        assert!(told >= 20, "only {told} of {} losses were found by reading back", steps.len());
    }
}

#[test]
fn an_expression_that_is_not_meant_or_not_understood_makes_the_comparison_fail() {
    // The last is no test by itself: the rule ends there for packets that come from no socket.
    let odd = [
        Expr::Counter,
        Expr::Foreign("quota".into()),
        Expr::Meta { key: 77, into: Register(0) },
        Expr::Meta { key: 10, into: Register(9) },
    ];
    for (expr, last) in odd.iter().flat_map(|expr| [(expr, false), (expr, true)]) {
        let mut kernel = loaded(OLD);
        let before = seen(&mut kernel);
        let lie = |ops: &[Op]| {
            let mut ops = ops.to_vec();
            let rule = ops.iter_mut().rev().find_map(|op| if let Op::AddRule { rule, .. } = op { Some(rule) } else { None });
            let exprs = &mut rule.expect("a rule is added").exprs;
            exprs.insert(if last { exprs.len() } else { 0 }, expr.clone());
            ops
        };
        let failure = load(&mut Liar { truthful: &mut kernel, lie: Some(&lie) }, NEW, 2).err();
        let failure = failure.unwrap_or_else(|| panic!("{expr:?} is passed over"));
        if matches!(expr, Expr::Foreign(_)) {
            assert!(failure.message.contains("the kernel refused to add rule"), "{failure}");
        } else {
            assert!(failure.message.contains("something else than it was told: ") && failure.message.contains("rule "), "{failure}");
            assert!(failure.help.as_deref().unwrap_or_default().contains("the rules from before were loaded again"), "{failure:?}");
        }
        assert_eq!(seen(&mut kernel), before);
    }
}

#[test]
fn going_back_lets_nobody_go_who_is_cut_off() {
    let cutting = OLD.replace("version: 1\n", "version: 1\nviolations: {quarantine: {after: 20, within: 1m, for: 1h}}\n");
    let mut kernel = loaded(&cutting);
    let held = |kernel: &mut Simulated| seen(kernel).expect("rules").sets["quarantined_users"].clone();
    let cut_off = Element { timeout_ms: Some(3_600_000), ..Element::default() };
    let generation = kernel.generation().unwrap();
    let set = held(&mut kernel).0;
    let elements = [(1000u32.to_ne_bytes().to_vec(), cut_off)].into();
    kernel.commit(generation, &[Op::AddElements { set, elements }]).expect("it is added");
    let before = seen(&mut kernel);
    let lie = |ops: &[Op]| ops.iter().filter(|op| !matches!(op, Op::AddRule { chain, .. } if chain == "input")).cloned().collect();
    let failure = load(&mut Liar { truthful: &mut kernel, lie: Some(&lie) }, NEW, 2).expect_err("rules are missing");
    assert!(failure.help.as_deref().unwrap_or_default().contains("the rules from before were loaded again"), "{failure:?}");
    assert_eq!(held(&mut kernel).1.len(), 1, "user 1000 is cut off still");
    assert_eq!(seen(&mut kernel), before);
}

#[test]
fn an_accepting_policy_in_place_of_a_dropping_one_is_found() {
    let mut kernel = Simulated::new();
    let lie = |ops: &[Op]| {
        let open = |op: &Op| match op.clone() {
            Op::AddChain(mut chain) => {
                chain.base.iter_mut().for_each(|base| base.accepts = true);
                Op::AddChain(chain)
            }
            op => op,
        };
        ops.iter().map(open).collect()
    };
    let failure = load(&mut Liar { truthful: &mut kernel, lie: Some(&lie) }, OLD, 1).expect_err("the host is open");
    assert!(failure.message.contains("chain `input` differs") && failure.message.contains("chain `output` differs"), "{failure}");
}

#[test]
fn a_change_by_others_between_reading_and_committing_makes_the_plan_anew() {
    let mut kernel = loaded(OLD);
    let theirs = kernel.committed().len();
    // Somebody else empties a chain of ours at that very moment, and another table twice.
    kernel.interfere_before_commit(vec![Op::FlushChain("output".into())]);
    kernel.interfere_before_commit(vec![]);
    kernel.interfere_before_commit(vec![]);
    load(&mut kernel, NEW, 2).unwrap_or_else(|failure| panic!("{failure}"));
    assert_eq!(kernel.committed().len(), theirs + 1, "one transaction of ours");
    let mut undisturbed = loaded(OLD);
    load(&mut undisturbed, NEW, 2).unwrap_or_else(|failure| panic!("{failure}"));
    let rules = |kernel: &mut Simulated| seen(kernel).expect("rules").chains;
    assert_eq!(rules(&mut kernel), rules(&mut undisturbed));
}

#[test]
fn others_who_interfere_eight_times_end_it_with_the_old_rules() {
    let mut kernel = loaded(OLD);
    let before = seen(&mut kernel);
    (0..8).for_each(|_| kernel.interfere_before_commit(vec![]));
    let failure = load(&mut kernel, NEW, 2).expect_err("nobody can get through");
    assert_eq!((failure.exit, failure.message.contains("changed by somebody else")), (Exit::Refused, true), "{failure}");
    assert_eq!(seen(&mut kernel), before);
    load(&mut kernel, NEW, 2).unwrap_or_else(|failure| panic!("{failure}"));
}

#[test]
fn a_lost_answer_is_no_lost_transaction() {
    let mut kernel = loaded(OLD);
    kernel.fail_at(Moment::AfterCommit, KernelError::Broken("lost".into()));
    load(&mut kernel, NEW, 2).unwrap_or_else(|failure| panic!("what is there decides: {failure}"));
    let before = seen(&mut kernel);
    kernel.fail_at(Moment::BeforeCommit, KernelError::Broken("lost".into()));
    let failure = load(&mut kernel, OLD, 3).expect_err("nothing was carried out");
    assert_eq!((failure.exit, failure.message.as_str()), (Exit::Refused, "lost"));
    assert_eq!(seen(&mut kernel), before);
}

#[test]
fn the_same_rules_again_are_no_transaction() {
    let mut kernel = loaded(NEW);
    let (transactions, before) = (kernel.committed().len(), seen(&mut kernel));
    let again = load(&mut kernel, NEW, 1).unwrap_or_else(|failure| panic!("{failure}"));
    assert!(again.plan.is_nothing());
    assert_eq!((kernel.committed().len(), seen(&mut kernel)), (transactions, before));
}
