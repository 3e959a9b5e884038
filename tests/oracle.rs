//! nft as the oracle of what this program says: it takes every text, and what it loads from the text is what this program loads by
//! itself.

mod namespace;
mod policies;

use std::fmt::Write;

use egressguard::ruleset::text;
use namespace::{inside, kernel_is_there, nft};
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
