//! nft as the oracle of what this program says: it takes every text, and what it loads from the text is what this program loads by
//! itself.

mod namespace;
mod policies;

use std::fmt::Write;

use egressguard::ruleset::lift::Found;
use egressguard::ruleset::{Ruleset, text};
use namespace::load::{found, load};
use namespace::{inside, kernel_is_there, nft};
use policies::held::{held, without_control_groups};
use policies::{Case, NOW, cases};
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

/// So many policies, always the same ones.
fn seeded(count: usize) -> Vec<Case> {
    let mut runner = TestRunner::new_with_rng(Config::default(), TestRng::from_seed(RngAlgorithm::ChaCha, &[7; 32]));
    (0..count).map(|_| cases().new_tree(&mut runner).expect("a policy").current()).collect()
}

/// The text with line numbers, for a person who has to find what nft did not like.
fn numbered(text: &str) -> String {
    text.lines().enumerate().fold(String::new(), |mut out, (number, line)| {
        let _ = writeln!(out, "{:4} {line}", number + 1);
        out
    })
}

#[test]
fn nft_takes_the_text_of_every_random_policy() {
    if !kernel_is_there() {
        return;
    }
    inside(|| {
        for case in seeded(200) {
            let text = text::write(&case.compile().loadable(), NOW);
            if let Err(why) = nft(&["-c", "-f", "-"], &text) {
                panic!("{why}\n{}", numbered(&text));
            }
        }
    });
}

/// Asserts that what was found is what was meant, rule by rule and set by set.
fn assert_found(found: Found, meant: &Ruleset) {
    assert_eq!(found.foreign, Vec::<String>::new());
    assert_eq!(found.identity.as_ref(), Some(&meant.identity));
    let names = |ruleset: &Ruleset| ruleset.chains.iter().map(|chain| chain.def.clone()).collect::<Vec<_>>();
    let chains = found.chains.into_iter().map(|found| found.chain).collect();
    let found = Ruleset { identity: meant.identity.clone(), chains, sets: found.sets };
    assert_eq!(names(&found), names(meant));
    for (found, meant) in found.chains.iter().zip(&meant.chains) {
        for (found, meant) in found.rules.iter().zip(&meant.rules) {
            assert_eq!(found, meant, "`{}`", text::write_rule(meant));
        }
        assert_eq!(found.rules.len(), meant.rules.len(), "chain `{}`", meant.def.name);
    }
    for (found, meant) in found.sets.values().zip(meant.sets.values()) {
        assert_eq!(found, meant);
    }
    assert_eq!(found.sets.len(), meant.sets.len());
}

/// Loads the rules in both ways and compares: what each way left in the kernel, and how nft lists it.
fn assert_same_both_ways(ruleset: &Ruleset) {
    let text = text::write(ruleset, NOW);
    let listed = || nft(&["-s", "list", "table", "inet", "egressguard"], "").unwrap();
    let by_text = inside(|| {
        nft(&["-f", "-"], &text).unwrap_or_else(|why| panic!("{why}\n{}", numbered(&text)));
        assert_found(found(NOW), ruleset);
        listed()
    });
    let by_netlink = inside(|| {
        load(ruleset, NOW);
        assert_found(found(NOW), ruleset);
        listed()
    });
    for (by_text, by_netlink) in by_text.lines().zip(by_netlink.lines()) {
        assert_eq!(by_text, by_netlink);
    }
    assert_eq!(by_text, by_netlink);
}

#[test]
fn text_and_netlink_leave_the_same_in_the_kernel() {
    if !kernel_is_there() {
        return;
    }
    for case in seeded(100) {
        assert_same_both_ways(&without_control_groups(held(&case)));
    }
}

#[test]
fn what_is_loaded_is_read_back_with_control_groups_too() {
    if !kernel_is_there() {
        return;
    }
    for case in seeded(100) {
        inside(|| {
            load(&held(&case), NOW);
            assert_found(found(NOW), &held(&case));
        });
    }
}
