//! Where the kernel differs from what was compiled, in the policy's words: which rule, which line, which name. The plan says what has
//! to change; this says to people what was changed, and by how much.
//!
//! Both see the same differences, but for times: an end that is less than a minute away from the one that is meant is the same end,
//! and an element that ends as soon may be there or gone.

use crate::base::time::{Period, Timestamp};
use crate::judge::plan::is_anonymous;
use crate::judge::trace::source;
use crate::policy::{Line, Policy};
use crate::ruleset::lift::{Found, FoundChain, end, lift_rules};
use crate::ruleset::program::{ChainDef, Element, Elements, Key, SetDef, TABLE, TableDump};
use crate::ruleset::rule::Rule;
use crate::ruleset::set::{Member, Set};
use crate::ruleset::text::{write_key, write_rule};
use crate::ruleset::{Chain, IDENTITY_CHAIN, Ruleset, TABLE_COMMENT};

/// Ends this close, in seconds, are the same end. The kernel counts from when it was told, so a transaction that took long on a busy
/// machine has moved all ends by as much; the timer, which comes every minute, brings them back.
const LATE: i64 = 60;

/// More cells than these are not searched for the smallest difference of two chains.
const CELLS: usize = 4_000_000;

/// One difference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// What kind: an object and what is wrong with it, as `rule-missing`.
    pub what: &'static str,
    /// The id of the rule that it is about.
    pub rule: Option<String>,
    /// The line of the policy that asks for it.
    pub line: Option<Line>,
    /// The difference in words.
    pub words: String,
}

/// Every difference between what was observed and what is meant at `now`. `meant` holds only what can be loaded.
pub fn drift(observed: Option<&TableDump>, meant: &Ruleset, policy: &Policy, now: Timestamp) -> Vec<Difference> {
    let mut differ = Differ { policy, now, found: Vec::new() };
    match observed {
        None => differ.say("table-missing", None, None, format!("table `inet {TABLE}` is missing: nothing is filtered")),
        Some(dump) if dump.table.comment != TABLE_COMMENT => {
            differ.say("table-foreign", None, None, format!("there is a table `inet {TABLE}` that egressguard did not make"));
        }
        Some(dump) => differ.table(dump, &lift_rules(dump), meant),
    }
    differ.found
}

struct Differ<'a> {
    policy: &'a Policy,
    now: Timestamp,
    found: Vec<Difference>,
}

impl Differ<'_> {
    fn say(&mut self, what: &'static str, rule: Option<&str>, line: Option<Line>, words: String) {
        self.found.push(Difference { what, rule: rule.map(str::to_string), line, words });
    }

    /// A difference about a rule, whose id tells the line.
    fn about_rule(&mut self, what: &'static str, rule: &Rule, words: String) {
        self.say(what, Some(&rule.id), self.policy.rule_line(&rule.id), words);
    }

    fn table(&mut self, dump: &TableDump, found: &Found, meant: &Ruleset) {
        if found.dormant {
            self.say("table-flags", None, None, format!("table `inet {TABLE}` is switched off (flag dormant): nothing is filtered"));
        } else if dump.table.flags != 0 {
            self.say("table-flags", None, None, format!("table `inet {TABLE}` has flags that are not meant ({:#x})", dump.table.flags));
        }
        for what in &dump.foreign {
            self.say("object-added", None, None, format!("there is {what}, which no line of the policy asks for"));
        }
        for chain in &meant.chains {
            match found.chains.iter().find(|found| found.chain.def.name == chain.def.name) {
                Some(there) if chain.def.name == IDENTITY_CHAIN => self.identity(found, there, meant, chain),
                Some(there) => self.chain(there, chain),
                None => self.say("chain-missing", None, None, format!("chain `{}` is missing", chain.def.name)),
            }
        }
        for there in found.chains.iter().filter(|there| meant.chain(&there.chain.def.name).is_none()) {
            let rules = there.chain.rules.len() + there.foreign.len();
            let words = format!("there is a chain `{}` of {}, which is not ours", there.chain.def.name, counted(rules, "rule"));
            self.say("chain-added", None, None, words);
        }
        for set in meant.sets.values() {
            match dump.sets.get(&set.def.name) {
                Some((def, elements)) => self.set(def, elements, set),
                None => self.say("set-missing", None, None, format!("set `{}` is missing", set.def.name)),
            }
        }
        // Anonymous sets are a part of the rules that use them.
        for (def, _) in dump.sets.values().filter(|(def, _)| !meant.sets.contains_key(&def.name) && !is_anonymous(def)) {
            self.say("set-added", None, None, format!("there is a set `{}`, which is not ours", def.name));
        }
    }

    /// Which generation the kernel says it holds.
    fn identity(&mut self, found: &Found, there: &FoundChain, meant: &Ruleset, chain: &Chain) {
        match &found.identity {
            Some(identity) if *identity != meant.identity => {
                let [held, saved] = [identity, &meant.identity].map(|of| format!("generation {} of policy `{}`", of.generation, of.policy));
                let words = format!("the kernel says that it holds {held} (sha256 {}), and {saved} was saved", short(&identity.sha256));
                self.say("generation", None, None, words);
            }
            _ => self.chain(there, chain),
        }
    }

    fn chain(&mut self, there: &FoundChain, meant: &Chain) {
        self.place(&there.chain.def, &meant.def);
        let (missing, added) = compared(there, meant);
        self.rules(&meant.def.name, missing, added);
    }

    /// Where a chain hangs, and what becomes of packets at its end.
    fn place(&mut self, there: &ChainDef, meant: &ChainDef) {
        let name = &meant.name;
        let (there, meant) = match (&there.base, &meant.base) {
            (None, None) => return,
            (Some(there), Some(meant)) => (there, meant),
            (None, Some(meant)) => {
                let words = format!("chain `{name}` hangs nowhere; it belongs to hook {}", meant.hook.keyword());
                return self.say("chain-hook", None, None, words);
            }
            (Some(there), None) => {
                let words = format!("chain `{name}` hangs at hook {}, where it does not belong", there.hook.keyword());
                return self.say("chain-hook", None, None, words);
            }
        };
        if there.hook != meant.hook {
            let words = format!("chain `{name}` hangs at hook {} instead of {}", there.hook.keyword(), meant.hook.keyword());
            self.say("chain-hook", None, None, words);
        }
        if there.kind != meant.kind {
            self.say("chain-kind", None, None, format!("chain `{name}` is of kind {} instead of {}", there.kind, meant.kind));
        }
        if there.priority != meant.priority {
            let words = format!("chain `{name}` has priority {} instead of {}", there.priority, meant.priority);
            self.say("chain-priority", None, None, words);
        }
        if there.accepts != meant.accepts {
            let [there, meant] = [there, meant].map(|base| if base.accepts { "accept" } else { "drop" });
            self.say("chain-policy", None, None, format!("chain `{name}` ends with {there} instead of {meant}"));
        }
    }

    fn rules(&mut self, chain: &str, mut missing: Vec<(usize, &Rule)>, mut added: Vec<(usize, Item)>) {
        // The same rule elsewhere in the chain was moved …
        missing.retain(|(place, rule)| {
            let Some(at) = added.iter().position(|(_, item)| matches!(item, Item::Rule(found) if found == rule)) else { return true };
            let (now_at, _) = added.remove(at);
            let words = format!("rule `{}` of chain `{chain}` stands at place {} instead of {}", rule.id, now_at + 1, place + 1);
            self.about_rule("rule-moved", rule, words);
            false
        });
        // … and one with the same id was changed.
        missing.retain(|(_, rule)| {
            let Some(at) = added.iter().position(|(_, item)| item.id() == rule.id) else { return true };
            let (_, item) = added.remove(at);
            let words = format!("rule `{}` of chain `{chain}` is changed: {} instead of {}", rule.id, item.words(), quoted(rule));
            self.about_rule("rule-changed", rule, words);
            false
        });
        for (_, rule) in missing {
            self.about_rule("rule-missing", rule, format!("rule `{}` of chain `{chain}` is missing: {}", rule.id, quoted(rule)));
        }
        for (place, item) in added {
            let named = if item.id().is_empty() { String::new() } else { format!(", which calls itself `{}`", item.id()) };
            let words = format!("chain `{chain}` holds a rule that is not ours at place {}: {}{named}", place + 1, item.words());
            self.say("rule-added", None, None, words);
        }
    }

    fn set(&mut self, there: &SetDef, elements: &Elements, meant: &Set) {
        let differences = definition(there, &meant.def);
        if !differences.is_empty() {
            let words = format!("set `{}` is of another kind: {}", meant.def.name, differences.join(", "));
            self.say("set-changed", None, None, words);
        }
        // What rules put into sets is theirs.
        if meant.def.dynamic || there.key != meant.def.key {
            return;
        }
        let mut found = elements.iter().peekable();
        for (key, member) in &meant.members {
            while let Some((key, there)) = found.next_if(|(found, _)| *found < key) {
                self.added(meant, key, there);
            }
            match found.next_if(|(found, _)| *found == key) {
                Some((_, there)) => self.member(meant, key, there, member),
                None if member.expires.is_some_and(|expires| expires.0 - self.now.0 <= LATE) => {}
                None => {
                    let element = element(meant, key, member.last.as_ref());
                    let words = format!("{element} is missing from set `{}`{}", meant.def.name, whose(member));
                    self.about_member("element-missing", member, words);
                }
            }
        }
        for (key, there) in found {
            self.added(meant, key, there);
        }
    }

    fn added(&mut self, set: &Set, key: &Key, there: &Element) {
        let named = if there.comment.is_empty() { String::new() } else { format!(", which calls itself `{}`", one_line(&there.comment)) };
        let element = element(set, key, there.last.as_ref());
        let words = format!("{element} is in set `{}`, and no line of the policy puts it there{named}", set.def.name);
        self.say("element-added", None, None, words);
    }

    fn member(&mut self, set: &Set, key: &Key, there: &Element, meant: &Member) {
        let mut differences = Vec::new();
        let element = |last: &Option<Key>| element(set, key, last.as_ref());
        if there.last != meant.last {
            differences.push(format!("it is {} instead of {}", element(&there.last), element(&meant.last)));
        }
        let ended = |expires: Option<Timestamp>| match expires {
            Some(expires) => format!("ends in {}", lasting(expires.since(self.now))),
            None => "never ends".to_string(),
        };
        match (end(there, self.now), meant.expires) {
            (None, None) => {}
            (Some(there), Some(meant)) if (there.0 - meant.0).abs() <= LATE => {}
            (there, meant) => differences.push(format!("it {} instead of: {}", ended(there), ended(meant))),
        }
        if there.comment != meant.comment {
            differences.push(format!("it calls itself `{}`", one_line(&there.comment)));
        }
        if !differences.is_empty() {
            let words =
                format!("{} of set `{}`{} is changed: {}", element(&meant.last), set.def.name, whose(meant), differences.join(", "));
            self.about_member("element-changed", meant, words);
        }
    }

    /// A difference about an element, whose comment tells the rule and the line.
    fn about_member(&mut self, what: &'static str, member: &Member, words: String) {
        let named = source(&member.comment);
        let line = named.and_then(|(target, id)| self.policy.destination_line(id, target));
        self.say(what, named.map(|(_, id)| id), line, words);
    }
}

/// A rule that was found.
enum Item<'a> {
    Rule(&'a Rule),
    Foreign { comment: &'a str, why: &'a str },
}

impl Item<'_> {
    fn id(&self) -> &str {
        match self {
            Item::Rule(rule) => &rule.id,
            Item::Foreign { comment, .. } => comment,
        }
    }

    fn words(&self) -> String {
        match self {
            Item::Rule(rule) => quoted(rule),
            Item::Foreign { why, .. } => format!("something that is never ours ({why})"),
        }
    }

    fn is(&self, meant: &Rule) -> bool {
        matches!(self, Item::Rule(rule) if *rule == meant)
    }
}

/// Rules with their places in a chain, from 0.
type Missing<'a> = Vec<(usize, &'a Rule)>;
type Added<'a> = Vec<(usize, Item<'a>)>;

/// The rules that are missing, with the places they should have, and those that are too many, with the places they have: the longest
/// common subsequence is what stays.
fn compared<'a>(there: &'a FoundChain, meant: &'a Chain) -> (Missing<'a>, Added<'a>) {
    let mut found: Vec<Item> = there.chain.rules.iter().map(Item::Rule).collect();
    for rule in there.foreign.iter().rev() {
        found.insert(rule.before.min(found.len()), Item::Foreign { comment: &rule.comment, why: &rule.why });
    }
    let meant: Vec<&Rule> = meant.rules.iter().filter(|rule| rule.is_loadable()).collect();
    let start = found.iter().zip(&meant).take_while(|(item, rule)| item.is(rule)).count();
    let behind = found.iter().skip(start).rev().zip(meant.iter().skip(start).rev());
    let end = behind.take_while(|(item, rule)| item.is(rule)).count();
    let (wide, high) = (meant.len() - start - end, found.len() - start - end);
    let (mut missing, mut added) = (Vec::new(), Vec::new());
    let mut middle = found.into_iter().enumerate().skip(start).take(high);
    if wide == 0 || high == 0 || wide.saturating_mul(high) > CELLS {
        missing.extend(meant.into_iter().enumerate().skip(start).take(wide));
        added.extend(middle);
        return (missing, added);
    }
    let items: Vec<(usize, Item)> = middle.by_ref().collect();
    let rules = meant.get(start..start + wide).unwrap_or_default();
    let common = common(&items, rules);
    let (mut row, mut column) = (0, 0);
    for (place, item) in items {
        // Rules that the best way leaves out before this item.
        while let Some(rule) = rules.get(column).filter(|rule| !item.is(rule))
            && common.at(row, column + 1) >= common.at(row + 1, column)
        {
            missing.push((start + column, *rule));
            column += 1;
        }
        match rules.get(column) {
            Some(rule) if item.is(rule) => column += 1,
            _ => added.push((place, item)),
        }
        row += 1;
    }
    missing.extend(rules.iter().enumerate().skip(column).map(|(place, rule)| (start + place, *rule)));
    (missing, added)
}

/// The lengths of the longest common subsequences of all ends of two lists.
struct Common {
    wide: usize,
    lengths: Vec<u32>,
}

impl Common {
    fn at(&self, row: usize, column: usize) -> u32 {
        self.lengths.get(row * (self.wide + 1) + column).copied().unwrap_or(0)
    }
}

fn common(items: &[(usize, Item)], rules: &[&Rule]) -> Common {
    let mut common = Common { wide: rules.len(), lengths: vec![0; (items.len() + 1) * (rules.len() + 1)] };
    for (row, (_, item)) in items.iter().enumerate().rev() {
        for (column, rule) in rules.iter().enumerate().rev() {
            let length = match item.is(rule) {
                true => common.at(row + 1, column + 1) + 1,
                false => common.at(row + 1, column).max(common.at(row, column + 1)),
            };
            if let Some(cell) = common.lengths.get_mut(row * (rules.len() + 1) + column) {
                *cell = length;
            }
        }
    }
    common
}

/// What is another in the definition of a set.
fn definition(there: &SetDef, meant: &SetDef) -> Vec<String> {
    let key = |def: &SetDef| def.key.iter().map(|field| field.name()).collect::<Vec<_>>().join(" . ");
    let mut differences = Vec::new();
    if there.key != meant.key {
        differences.push(format!("its key is {} instead of {}", key(there), key(meant)));
    }
    let flags = [
        ("interval", there.interval, meant.interval),
        ("timeout", there.timeout, meant.timeout),
        ("dynamic", there.dynamic, meant.dynamic),
        ("counter", there.counter, meant.counter),
    ];
    for (flag, there, meant) in flags {
        match (there, meant) {
            (true, false) => differences.push(format!("it has `{flag}`")),
            (false, true) => differences.push(format!("it lacks `{flag}`")),
            _ => {}
        }
    }
    if there.size != meant.size {
        let size = |size: Option<u32>| size.map_or_else(|| "no size".to_string(), |size| format!("size {size}"));
        differences.push(format!("it has {} instead of {}", size(there.size), size(meant.size)));
    }
    if there.foreign != meant.foreign {
        differences.extend(there.foreign.clone());
    }
    differences
}

fn element(set: &Set, key: &Key, last: Option<&Key>) -> String {
    if key.is_empty() { "`*`".to_string() } else { format!("`{}`", write_key(&set.def.key, key, last)) }
}

/// Whose an element is, as a clause.
fn whose(member: &Member) -> String {
    if member.comment.is_empty() { String::new() } else { format!(" ({})", member.comment) }
}

fn quoted(rule: &Rule) -> String {
    let text = write_rule(&Rule { id: String::new(), ..rule.clone() });
    if text.is_empty() { "a rule that does nothing".to_string() } else { format!("`{text}`") }
}

fn counted(number: usize, what: &str) -> String {
    if number == 1 { format!("one {what}") } else { format!("{number} {what}s") }
}

fn short(sha256: &str) -> &str {
    sha256.get(..12).unwrap_or(sha256)
}

fn lasting(period: Period) -> String {
    match period.seconds() {
        seconds @ 0..=119 => format!("{seconds} s"),
        seconds @ 120..=7199 => format!("{} min", seconds / 60),
        seconds => format!("{} h", seconds / 3600),
    }
}

/// A comment of somebody else, who could write lines of his own into a report.
fn one_line(comment: &str) -> String {
    comment.replace(char::is_control, "?")
}
