//! The rules as values: what is meant, how it is written for people, and how the kernel is told.
//!
//! A [`Ruleset`] is compiled from a policy, its pins and a few facts. The same type is written as text, lowered to the kernel's
//! program, lifted from the kernel again, and judged.

pub mod compile;
pub mod field;
pub mod lift;
pub mod lower;
pub mod program;
pub mod rule;
pub mod set;
pub mod surroundings;
pub mod text;
pub mod trial;

use std::collections::BTreeMap;

use crate::base::name::Slug;
use crate::policy::Mode;
use program::{Base, ChainDef};
use rule::Rule;
use set::Set;

/// Everything in our table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ruleset {
    /// Whose rules these are.
    pub identity: Identity,
    /// Chains, base chains first, in the order they are written.
    pub chains: Vec<Chain>,
    /// Sets by name.
    pub sets: BTreeMap<String, Set>,
}

/// Which policy the rules come from. The kernel keeps it as comments in the chain `identity`.
///
/// It cannot be the table's comment: the kernel takes that only when the table is made (`nf_tables_updtable` changes flags and
/// nothing else), and a table that is made anew forgets its ledger.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The policy's name.
    pub policy: Slug,
    /// Lower-case hexadecimal SHA-256 of its text.
    pub sha256: String,
    /// Counts the applies of this host, from 1.
    pub generation: u64,
    /// Whether it blocks.
    pub mode: Mode,
}

/// A chain with its rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    /// Name, hook and policy.
    pub def: ChainDef,
    /// Its rules, first match first.
    pub rules: Vec<Rule>,
}

/// The comment of our table. A table without it is not ours and is not touched.
pub const TABLE_COMMENT: &str = "managed by egressguard";

/// The chain that nothing jumps to and whose comments say whose rules these are.
pub const IDENTITY_CHAIN: &str = "identity";

/// The NFLOG group that refused packets are reported to.
pub const LOG_GROUP: u16 = 4947;

/// The longest comment that nft shows for a rule or an element, in octets (`NFTNL_UDATA_COMMENT_MAXLEN`, with its NUL).
pub const COMMENT_MAX: usize = 127;

impl Identity {
    /// The two comments that say it.
    pub fn comments(&self) -> [String; 2] {
        let mode = match self.mode {
            Mode::Enforce => "enforce",
            Mode::Observe => "observe",
        };
        [format!("policy {} mode {mode} generation {}", self.policy, self.generation), format!("sha256 {}", self.sha256)]
    }

    /// The identity that these comments say; `None` when they say none.
    pub fn from_comments<'a>(comments: impl IntoIterator<Item = &'a str>) -> Option<Identity> {
        let mut comments = comments.into_iter();
        let words: Vec<&str> = comments.next()?.split(' ').collect();
        let ["policy", policy, "mode", mode, "generation", generation] = words[..] else { return None };
        let sha256 = comments.next()?.strip_prefix("sha256 ")?;
        Some(Identity {
            policy: Slug::parse(policy)?,
            sha256: (sha256.len() == 64 && sha256.bytes().all(|byte| byte.is_ascii_hexdigit())).then(|| sha256.to_string())?,
            generation: generation.parse().ok()?,
            mode: match mode {
                "enforce" => Mode::Enforce,
                "observe" => Mode::Observe,
                _ => return None,
            },
        })
    }
}

/// The rules of the chain `identity`: they do nothing, their comments say it.
pub fn identity_rules(identity: &Identity) -> Vec<Rule> {
    identity.comments().into_iter().map(|comment| Rule::new(comment, vec![], vec![], rule::Action::Return)).collect()
}

impl Ruleset {
    /// The chain of this name.
    pub fn chain(&self, name: &str) -> Option<&Chain> {
        self.chains.iter().find(|chain| chain.def.name == name)
    }

    /// Gives the ruleset another generation.
    pub fn number(&mut self, generation: u64) {
        self.identity.generation = generation;
        let rules = identity_rules(&self.identity);
        if let Some(chain) = self.chains.iter_mut().find(|chain| chain.def.name == IDENTITY_CHAIN) {
            chain.rules = rules;
        }
    }

    /// The same rules without those that name a user or group which is not known: what they would allow is blocked.
    pub fn loadable(mut self) -> Ruleset {
        for chain in &mut self.chains {
            chain.rules.retain(Rule::is_loadable);
        }
        self
    }
}

impl Chain {
    /// A chain that others jump to.
    pub fn regular(name: &str, rules: Vec<Rule>) -> Chain {
        Chain { def: ChainDef { name: name.to_string(), base: None }, rules }
    }

    /// A base chain of kind `filter` and priority 0.
    pub fn base(hook: program::Hook, mode: Mode, rules: Vec<Rule>) -> Chain {
        let base = Base { kind: "filter".to_string(), hook, priority: 0, accepts: mode == Mode::Observe };
        Chain { def: ChainDef { name: hook.keyword().to_string(), base: Some(base) }, rules }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_survives_its_comments() {
        let identity =
            Identity { policy: Slug::parse("openai").unwrap(), sha256: "ab".repeat(32), generation: u64::MAX, mode: Mode::Observe };
        let comments = identity.comments();
        assert!(comments.iter().all(|comment| comment.len() <= COMMENT_MAX));
        assert_eq!(Identity::from_comments(comments.iter().map(String::as_str)), Some(identity));
        assert_eq!(Identity::from_comments(["policy x", "sha256 00"]), None);
        assert_eq!(Identity::from_comments([]), None);
    }
}
