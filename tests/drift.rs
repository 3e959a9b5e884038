//! The plan and the report of drift see the same: whatever is done to a table, one finds something exactly when the other does.

mod policies;

use egressguard::judge::drift::drift;
use egressguard::judge::plan::{imagine, plan};
use egressguard::ruleset::program::{Comparison, Element, Expr, Register, RuleProgram, TableDump, Verdict};
use policies::held::held;
use policies::{NOW, cases};
use proptest::prelude::*;
use proptest::sample::Index;

/// One thing that somebody does to the table; `at` says where.
type Hand = fn(&mut TableDump, &Index, &Index);

const HANDS: [(&str, Hand); 22] = [
    ("nothing", |_, _, _| {}),
    ("a rule goes", |dump, at, of| rules(dump, at, |rules| drop(rules.remove(of.index(rules.len()))))),
    ("a rule stands twice", |dump, at, of| rules(dump, at, |rules| rules.push(rules[of.index(rules.len())].clone()))),
    ("rules are turned round", |dump, at, _| rules(dump, at, |rules| rules.reverse())),
    ("a rule loses its comment", |dump, at, of| rule(dump, at, of, |rule| rule.comment.clear())),
    ("a rule counts", |dump, at, of| rule(dump, at, of, |rule| rule.exprs.insert(0, Expr::Counter))),
    ("a rule loses an expression", |dump, at, of| rule(dump, at, of, |rule| drop(rule.exprs.remove(of.index(rule.exprs.len()))))),
    ("a rule says another verdict", |dump, at, of| rule(dump, at, of, |rule| rule.exprs.push(Expr::Verdict(Verdict::Accept)))),
    ("a rule compares otherwise", |dump, at, of| {
        rule(dump, at, of, |rule| {
            for expr in &mut rule.exprs {
                if let Expr::Compare { how, .. } = expr {
                    *how = Comparison::NotEqual;
                }
            }
        });
    }),
    ("a rule that does nothing is added", |dump, at, _| {
        let at_end = |rules: &mut Vec<RuleProgram>| rules.push(RuleProgram { exprs: vec![], comment: "x".into() });
        if let Some((_, found)) = chain(dump, at) {
            at_end(found);
        }
    }),
    ("a rule that is not understood is added", |dump, at, _| {
        if let Some((_, rules)) = chain(dump, at) {
            rules.insert(
                0,
                RuleProgram { exprs: vec![Expr::Meta { key: 99, into: Register(0) }, Expr::Foreign("x".into())], comment: String::new() },
            );
        }
    }),
    ("a chain accepts", |dump, at, _| base(dump, at, |base| base.accepts = !base.accepts)),
    ("a chain hangs later", |dump, at, _| base(dump, at, |base| base.priority += 1)),
    ("a chain is of another kind", |dump, at, _| base(dump, at, |base| base.kind = "route".into())),
    ("a chain goes", |dump, at, _| drop(dump.chains.remove(at.index(dump.chains.len())))),
    ("a set goes", |dump, at, _| {
        let name = dump.sets.keys().nth(at.index(dump.sets.len())).cloned().unwrap();
        dump.sets.remove(&name);
    }),
    ("a set has a size", |dump, at, _| dump.sets.values_mut().nth(at.index(10)).into_iter().for_each(|(set, _)| set.size = Some(77))),
    ("an element goes", |dump, at, of| {
        elements(dump, at, |found| drop(found.remove(&found.keys().nth(of.index(found.len())).cloned().unwrap())));
    }),
    ("an element is added", |dump, at, _| {
        elements(dump, at, |found| {
            let (mut key, element) = found.first_key_value().map(|(key, element)| (key.clone(), element.clone())).unwrap();
            key[0] ^= 0xff;
            found.insert(key.clone(), Element { last: element.last.as_ref().map(|_| key), ..element });
        });
    }),
    ("an element has another comment", |dump, at, _| element(dump, at, |element| element.comment.push('x'))),
    ("an element lives longer", |dump, at, _| {
        element(dump, at, |element| {
            (element.timeout_ms, element.expires_ms) = (Some(999_999_000), Some(999_999_000));
        });
    }),
    ("an element lives for ever", |dump, at, _| element(dump, at, |element| (element.timeout_ms, element.expires_ms) = (None, None))),
];

fn chain<'a>(dump: &'a mut TableDump, at: &Index) -> Option<&'a mut (egressguard::ruleset::program::ChainDef, Vec<RuleProgram>)> {
    let count = dump.chains.len();
    dump.chains.get_mut(at.index(count))
}

fn rules(dump: &mut TableDump, at: &Index, change: impl FnOnce(&mut Vec<RuleProgram>)) {
    if let Some((_, rules)) = chain(dump, at)
        && !rules.is_empty()
    {
        change(rules);
    }
}

fn rule(dump: &mut TableDump, at: &Index, of: &Index, change: impl FnOnce(&mut RuleProgram)) {
    rules(dump, at, |rules| {
        let count = rules.len();
        let rule = &mut rules[of.index(count)];
        if !rule.exprs.is_empty() {
            change(rule);
        }
    });
}

fn base(dump: &mut TableDump, at: &Index, change: impl FnOnce(&mut egressguard::ruleset::program::Base)) {
    let mut bases: Vec<_> = dump.chains.iter_mut().filter_map(|(def, _)| def.base.as_mut()).collect();
    let count = bases.len();
    change(bases.remove(at.index(count)));
}

fn elements(dump: &mut TableDump, at: &Index, change: impl FnOnce(&mut egressguard::ruleset::program::Elements)) {
    let mut filled: Vec<_> = dump.sets.values_mut().map(|(_, elements)| elements).filter(|elements| !elements.is_empty()).collect();
    let count = filled.len();
    change(filled.remove(at.index(count)));
}

fn element(dump: &mut TableDump, at: &Index, change: impl FnMut(&mut Element)) {
    elements(dump, at, |elements| elements.values_mut().take(1).for_each(change));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 800, ..ProptestConfig::default() })]

    #[test]
    fn the_report_of_drift_and_the_plan_see_the_same(
        case in cases(),
        hands in prop::collection::vec((0..HANDS.len(), any::<Index>(), any::<Index>()), 1..4),
    ) {
        let meant = held(&case);
        let mut dump = imagine(&meant, NOW);
        prop_assert_eq!(drift(Some(&dump), &meant, &case.policy, NOW), vec![]);
        for (hand, at, of) in &hands {
            HANDS[*hand].1(&mut dump, at, of);
        }
        let planned = plan(Some(&dump), &meant, NOW).unwrap();
        let found = drift(Some(&dump), &meant, &case.policy, NOW);
        let done: Vec<&str> = hands.iter().map(|(hand, ..)| HANDS[*hand].0).collect();
        prop_assert_eq!(found.is_empty(), planned.is_nothing(), "{:?}: {:?} but {:#?}", done, found, planned.differences());
        prop_assert!(found.iter().all(|difference| !difference.words.is_empty() && difference.what.contains(['-']) || difference.what == "generation"));
    }
}

#[test]
fn without_a_table_or_with_somebody_elses_there_is_one_difference() {
    let case = policies::plain();
    let meant = held(&case);
    assert_eq!(drift(None, &meant, &case.policy, NOW).iter().map(|one| one.what).collect::<Vec<_>>(), ["table-missing"]);
    let mut dump = imagine(&meant, NOW);
    dump.table.comment = "mine".into();
    assert_eq!(drift(Some(&dump), &meant, &case.policy, NOW).iter().map(|one| one.what).collect::<Vec<_>>(), ["table-foreign"]);
}
