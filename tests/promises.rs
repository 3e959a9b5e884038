//! `docs/promises.md` is true to the tree: numbers follow each other, each promise names a test that exists and runs, or says why
//! nothing holds it yet, and what is named as missing is missing. Complaints name the line.
//!
//! A promise is `N. What is promised`, going on over indented lines. Below it stands a list: `- FILE::TEST`, with further words
//! between backticks that are tests or paths of golden cases, or one line `- not yet: WHY`. Whether a test would fail when its
//! promise is broken is for the person who names it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use clap::CommandFactory;
use egressguard::command::arguments::Arguments;

/// What there is in the tree.
struct Tree {
    /// The tests of each file, as a path from the root.
    tests: BTreeMap<String, BTreeSet<String>>,
    /// Whether a golden case of this path exists.
    has_case: fn(&str) -> bool,
    /// Whether a command of the program exists, with an option of it when one is said.
    has_command: fn(&str, Option<&str>) -> bool,
}

/// A promise as it is read.
struct Promise<'a> {
    line: usize,
    number: &'a str,
    /// The lines of its list.
    held_by: Vec<(usize, String)>,
}

/// Every complaint about the text, with its line.
fn complaints(text: &str, tree: &Tree) -> Vec<String> {
    let (promises, mut found) = read(text);
    if promises.is_empty() {
        found.push("there is no promise in it".to_string());
    }
    for (index, promise) in promises.iter().enumerate() {
        let mut say = |line: usize, what: String| found.push(format!("line {line}: promise {}: {what}", promise.number));
        if promise.number != (index + 1).to_string() {
            say(promise.line, format!("{} comes next", index + 1));
        }
        let not_yet: Vec<_> = promise.held_by.iter().filter(|(_, item)| item.to_ascii_lowercase().starts_with("not yet")).collect();
        match (promise.held_by.len(), not_yet.len()) {
            (0, _) => say(promise.line, "no test is named; say `- not yet: WHY` when there is none".to_string()),
            (_, 0) => {}
            (1, 1) => {}
            _ => say(promise.line, "what is held by a test is no longer `not yet`".to_string()),
        }
        for (line, item) in &promise.held_by {
            let complaint =
                if not_yet.iter().any(|(other, _)| other == line) { wrong_excuse(item, tree) } else { wrong_holder(item, tree) };
            if let Some(complaint) = complaint {
                say(*line, complaint);
            }
        }
    }
    found
}

/// The promises of a text, and complaints about lines that belong to none.
fn read(text: &str) -> (Vec<Promise<'_>>, Vec<String>) {
    let (mut promises, mut found): (Vec<Promise<'_>>, Vec<String>) = (Vec::new(), Vec::new());
    for (index, line) in text.lines().enumerate() {
        let (number, words) = (index + 1, line.trim());
        let indented = line.starts_with(' ');
        match words.split_once(". ").filter(|(digits, _)| !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit())) {
            Some((digits, _)) if !indented => promises.push(Promise { line: number, number: digits, held_by: Vec::new() }),
            _ if words.starts_with("- ") => match promises.last_mut().filter(|_| indented) {
                Some(promise) => promise.held_by.push((number, words[2..].to_string())),
                None => found.push(format!("line {number}: this list belongs to no promise")),
            },
            // The last item goes on.
            _ if indented => {
                let item = promises.last_mut().and_then(|promise| promise.held_by.last_mut());
                item.into_iter().for_each(|(_, item)| *item = format!("{item} {words}"));
            }
            _ => {}
        }
    }
    (promises, found)
}

/// The words between backticks.
fn quoted(item: &str) -> Vec<&str> {
    item.split('`').skip(1).step_by(2).collect()
}

fn wrong_holder(item: &str, tree: &Tree) -> Option<String> {
    if !item.starts_with('`') || item.matches('`').count() % 2 != 0 {
        return Some("a line of the list begins with `FILE::TEST` between backticks".to_string());
    }
    let (first, rest) = quoted(item).split_first().map(|(first, rest)| (*first, rest.to_vec()))?;
    if !first.contains("::") {
        return Some(format!("`{first}` is not FILE::TEST"));
    }
    [first].into_iter().chain(rest).find_map(|word| match word.rsplit_once("::") {
        Some((file, test)) => match tree.tests.get(file) {
            None => Some(format!("there is no file `{file}` with tests")),
            Some(tests) if !tests.contains(test) => Some(format!("`{file}` has no test `{test}`")),
            Some(_) => None,
        },
        None if word.starts_with("tests/golden/") && (tree.has_case)(word) => None,
        None => Some(format!("`{word}` is neither a test nor a golden case that exists")),
    })
}

/// `not yet: WHY`, where what is named as a command that is missing is missing.
fn wrong_excuse(item: &str, tree: &Tree) -> Option<String> {
    let why = item.strip_prefix("not yet: ").map(str::trim).filter(|why| why.split_whitespace().count() >= 3);
    let Some(why) = why else { return Some("write `- not yet: ` and why, in words".to_string()) };
    if why.contains(".rs::") {
        return Some("a test is named beside `not yet`".to_string());
    }
    // The sentence up to its first semicolon speaks of what is missing.
    let missing = why.split(';').next().unwrap_or(why);
    quoted(missing).into_iter().filter_map(|words| words.strip_prefix("egressguard ")).find_map(|words| {
        let mut words = words.split(' ');
        let (command, option) = (words.next()?, words.find_map(|word| word.strip_prefix("--")));
        (tree.has_command)(command, option).then(|| format!("`egressguard {command}` has it by now: name the test that holds it"))
    })
}

/// The names of the tests in the text of a file: `fn` behind `#[test]`, and the laws of a `contract!`, which makes two tests of each.
/// What is ignored is no test.
fn tests_of(text: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let name = |line: &str| {
        let rest = line.split_once("fn ")?.1;
        let end = rest.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).unwrap_or(rest.len());
        Some(rest[..end].to_string()).filter(|name| !name.is_empty())
    };
    let (mut armed, mut contract) = (false, false);
    for line in text.lines().map(str::trim) {
        if line.starts_with("contract! {") {
            contract = true;
        } else if contract {
            contract = line != "}";
            found.extend(Some(line.to_string()).filter(|line| contract && text.contains(&format!("\nfn {line}("))));
        } else if line == "#[test]" {
            armed = true;
        } else if armed && line.starts_with("#[ignore") {
            armed = false;
        } else if armed && !line.starts_with("#[") && !line.starts_with("//") {
            found.extend(name(line));
            armed = false;
        }
    }
    found
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every Rust file below these directories that has tests.
fn tests_in_the_tree() -> BTreeMap<String, BTreeSet<String>> {
    let mut open: Vec<PathBuf> = ["src", "tests"].iter().map(|name| root().join(name)).collect();
    let mut found = BTreeMap::new();
    while let Some(path) = open.pop() {
        if path.is_dir() {
            open.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let tests = tests_of(&fs::read_to_string(&path).unwrap());
            let name = path.strip_prefix(root()).unwrap().to_str().unwrap().to_string();
            found.extend(Some((name, tests)).filter(|(_, tests)| !tests.is_empty()));
        }
    }
    found
}

fn has_command(name: &str, option: Option<&str>) -> bool {
    let mut whole = Arguments::command();
    whole.build();
    whole
        .find_subcommand(name)
        .is_some_and(|command| option.is_none_or(|option| command.get_arguments().any(|known| known.get_long() == Some(option))))
}

#[test]
fn every_promise_is_held_by_a_test_that_exists_or_says_why_not() {
    let text = fs::read_to_string(root().join("docs/promises.md")).unwrap();
    let tree = Tree { tests: tests_in_the_tree(), has_case: |path| root().join(path).exists(), has_command };
    let found: Vec<String> = complaints(&text, &tree).into_iter().map(|what| format!("docs/promises.md: {what}")).collect();
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn a_promise_that_is_not_true_to_the_tree_is_named_with_its_line() {
    let tree = Tree {
        tests: [("tests/a.rs".to_string(), ["holds".to_string()].into())].into(),
        has_case: |path| path == "tests/golden/x",
        has_command: |name, option| name == "apply" && option != Some("confirm"),
    };
    let said = |text: &str| complaints(text, &tree);
    let whole = "# P\n\nWords.\n\n1. One thing,\n   on two lines.\n   - `tests/a.rs::holds` (`tests/golden/x`)\n2. Another.\n   \
                 - not yet: there is no\n     `egressguard apply --confirm`; `egressguard apply` is.\n\n## G\n\n3. More.\n   - `tests/a.rs::holds`\n";
    assert_eq!(said(whole), [] as [&str; 0]);
    for (from, to, line, words) in [
        ("tests/a.rs::holds` (", "tests/a.rs::held` (", 7, "`tests/a.rs` has no test `held`"),
        ("tests/a.rs::holds` (", "tests/b.rs::holds` (", 7, "there is no file `tests/b.rs` with tests"),
        ("`tests/a.rs::holds` (", "`holds` (", 7, "`holds` is not FILE::TEST"),
        ("- `tests/a.rs::holds` (", "- the suite (", 7, "begins with `FILE::TEST`"),
        ("tests/golden/x", "tests/golden/y", 7, "`tests/golden/y` is neither a test nor a golden case"),
        ("\n2. ", "\n4. ", 8, "2 comes next"),
        ("\n3. ", "\n2. ", 14, "3 comes next"),
        ("3. More.\n   - `tests/a.rs::holds`\n", "3. More.\n", 14, "no test is named"),
        ("- not yet: there is no", "- not yet", 9, "write `- not yet: ` and why"),
        ("- not yet: there is no", "- Not yet: there is no", 9, "write `- not yet: ` and why"),
        ("apply --confirm", "apply --force", 9, "`egressguard apply` has it by now"),
        ("`egressguard apply` is.", "`tests/a.rs::holds`.", 9, "a test is named beside `not yet`"),
        ("   - not yet", "   - `tests/a.rs::holds`\n   - not yet", 8, "is no longer `not yet`"),
        ("\n   - `tests/a.rs::holds`\n", "\n- `tests/a.rs::holds`\n", 15, "belongs to no promise"),
    ] {
        assert!(whole.contains(from), "{from}");
        let found = said(&whole.replacen(from, to, 1));
        assert!(found.iter().any(|said| said.starts_with(&format!("line {line}: ")) && said.contains(words)), "{to}: {found:#?}");
    }
    assert_eq!(said("# P\n"), ["there is no promise in it"]);
}

#[test]
fn only_what_runs_counts_as_a_test() {
    let text = "#[test]\nfn one() {}\n\n    #[test]\n    /// Words.\n    #[allow(x)]\n    fn two(a in b) {}\n\n#[test]\n#[ignore]\nfn three() {}\n\
                // #[test]\nfn four() {}\ncontract! {\n    five\n    six\n}\n\nfn five(world: &mut World) {}\nfn seven() {}\n";
    let expected: BTreeSet<String> = ["one", "two", "five"].map(String::from).into();
    assert_eq!(tests_of(text), expected);
}
