//! Rooms import lower floors only. The floors stand in a table in `src/lib.rs`; this reads the table, then every path in
//! `src/` that starts at the crate's root, and names file and line of each that goes up.
//!
//! A path starts at the root by `crate::`, or by as many `super::` as the module is deep. Comments and strings do not count:
//! a room may speak of another.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// A row of the table: the room's floor, and what it may import besides lower floors.
#[derive(Debug, PartialEq, Eq)]
struct Room {
    floor: u32,
    also: BTreeSet<String>,
}

type Floors = BTreeMap<String, Room>;

/// Reads the table out of the documentation of `lib.rs`.
fn floors(lib: &str) -> Floors {
    let rows = lib.lines().filter_map(|line| line.strip_prefix("//! |")).filter(|row| row.ends_with('|'));
    let cells = rows.map(|row| row.trim_end_matches('|').split('|').map(str::trim).collect::<Vec<_>>());
    let mut floors = Floors::new();
    for cells in cells {
        let [room, floor, also] = cells[..] else { panic!("a row of the floors table has three cells: {cells:?}") };
        let Ok(floor) = floor.parse() else { continue };
        let also = also.split([',', ' ']).filter(|word| !word.is_empty()).map(|word| word.trim_matches('`').to_string()).collect();
        assert!(floors.insert(room.trim_matches('`').to_string(), Room { floor, also }).is_none(), "`{room}` has two rows");
    }
    floors
}

/// Every import of `text`, a file of the module `module` (`["policy", "parse"]`), that the table does not allow: line and
/// reason.
fn offences(floors: &Floors, module: &[String], text: &str) -> Vec<(usize, String)> {
    let Some(room) = module.first() else { return Vec::new() };
    let own = &floors[room];
    let mut found = Vec::new();
    for (line, target) in root_imports(module.len(), text) {
        let Some(other) = floors.get(&target) else { continue };
        if &target != room && other.floor >= own.floor && !own.also.contains(&target) {
            let (own, other) = (own.floor, other.floor);
            found.push((line, format!("`{room}` (floor {own}) imports `{target}` (floor {other})")));
        }
    }
    found
}

/// The first word of every path that starts at the crate's root, with its line. `depth` is how deep the file's module is.
fn root_imports(depth: usize, text: &str) -> Vec<(usize, String)> {
    let tokens = tokens(text);
    let word = |at: usize| tokens.get(at).map_or("", |(_, word)| word.as_str());
    let mut found = Vec::new();
    let mut braces = 0;
    // The brace depths at which inline modules began: inside of one, `super` is one step shorter.
    let mut inline: Vec<usize> = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        match word(at) {
            "mod" if word(at + 2) == "{" => {
                inline.push(braces);
                braces += 1;
                at += 2;
            }
            "{" => braces += 1,
            "}" => {
                braces = braces.saturating_sub(1);
                if inline.last() == Some(&braces) {
                    inline.pop();
                }
            }
            "crate" if word(at + 1) == "::" => {
                found.extend(heads(&tokens, at + 2));
            }
            "super" | "self" => {
                let mut steps = usize::from(word(at) == "super");
                while word(at + 1) == "::" && word(at + 2) == "super" {
                    steps += 1;
                    at += 2;
                }
                if word(at + 1) == "::" && steps == depth + inline.len() {
                    found.extend(heads(&tokens, at + 2));
                }
            }
            _ => {}
        }
        at += 1;
    }
    found
}

/// What a path goes on with: one word, or the first word of each branch of a group.
fn heads(tokens: &[(usize, String)], at: usize) -> Vec<(usize, String)> {
    if tokens.get(at).is_none_or(|(_, word)| word != "{") {
        return tokens.get(at).cloned().into_iter().collect();
    }
    let (mut open, mut first, mut heads) = (0, true, Vec::new());
    for (line, word) in &tokens[at..] {
        match word.as_str() {
            "{" => open += 1,
            "}" if open == 1 => break,
            "}" => open -= 1,
            "," if open == 1 => first = true,
            _ if open == 1 && first => {
                heads.push((*line, word.clone()));
                first = false;
            }
            _ => {}
        }
    }
    heads
}

/// Words, `::` and single marks with their lines; no comments, no strings, no characters.
fn tokens(text: &str) -> Vec<(usize, String)> {
    let chars: Vec<char> = text.chars().collect();
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let (mut at, mut line, mut out) = (0, 1, Vec::new());
    while let Some(&c) = chars.get(at) {
        let rest = &chars[at..];
        let len = match c {
            '/' if rest.get(1) == Some(&'/') => rest.iter().position(|c| *c == '\n').unwrap_or(rest.len()),
            '/' if rest.get(1) == Some(&'*') => block_comment(rest),
            '"' => string(rest),
            'r' if !at.checked_sub(1).is_some_and(|before| is_word(chars[before]) && chars[before] != 'b') => raw_string(rest),
            '\'' => character(rest),
            _ => 0,
        };
        if len > 0 {
            line += rest[..len].iter().filter(|c| **c == '\n').count();
            at += len;
            continue;
        }
        if is_word(c) {
            // `b` before a string belongs to the string.
            let len = rest.iter().position(|c| !is_word(*c)).unwrap_or(rest.len());
            let word: String = rest[..len].iter().collect();
            let raw = word == "br" && matches!(rest.get(len), Some('"' | '#'));
            at += if raw { 1 } else { len };
            if !raw {
                out.push((line, word));
            }
            continue;
        }
        if c == ':' && rest.get(1) == Some(&':') {
            out.push((line, "::".into()));
            at += 2;
            continue;
        }
        line += usize::from(c == '\n');
        if !c.is_whitespace() {
            out.push((line, c.into()));
        }
        at += 1;
    }
    out
}

/// The length of the block comment that begins here; they nest.
fn block_comment(chars: &[char]) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < chars.len() {
        match chars[at..] {
            ['/', '*', ..] => (depth, at) = (depth + 1, at + 2),
            ['*', '/', ..] if depth == 1 => return at + 2,
            ['*', '/', ..] => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
    }
    at
}

/// The length of the string that begins here.
fn string(chars: &[char]) -> usize {
    let mut at = 1;
    while let Some(c) = chars.get(at) {
        at += match c {
            '\\' => 2,
            '"' => return at + 1,
            _ => 1,
        };
    }
    chars.len()
}

/// The length of the raw string that begins here with `r`; 0 when it is another word.
fn raw_string(chars: &[char]) -> usize {
    let hashes = chars[1..].iter().take_while(|c| **c == '#').count();
    if chars.get(1 + hashes) != Some(&'"') {
        return 0;
    }
    let end: Vec<char> = std::iter::once('"').chain(std::iter::repeat_n('#', hashes)).collect();
    let body = &chars[2 + hashes..];
    2 + hashes + body.windows(end.len()).position(|window| window == end).map_or(body.len(), |at| at + end.len())
}

/// The length of the character that begins here; 0 when it is a lifetime.
fn character(chars: &[char]) -> usize {
    match chars {
        [_, '\\', _, rest @ ..] => 3 + rest.iter().position(|c| *c == '\'').map_or(rest.len(), |at| at + 1),
        [_, _, '\'', ..] => 3,
        _ => 0,
    }
}

fn src() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

/// Every file of `src` with its module: `src/policy/mod.rs` is `["policy"]`, `src/policy/parse.rs` is `["policy", "parse"]`.
/// `lib.rs` and `main.rs` stand outside of the floors: one declares the rooms, the other wires them.
fn files() -> Vec<(PathBuf, Vec<String>)> {
    let mut found = Vec::new();
    let mut open = vec![src()];
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let module = path.strip_prefix(src()).unwrap().with_extension("");
                let mut module: Vec<String> = module.iter().map(|part| part.to_str().unwrap().to_string()).collect();
                if module.last().is_some_and(|last| last == "mod") {
                    module.pop();
                }
                if module != ["lib"] && module != ["main"] {
                    found.push((path, module));
                }
            }
        }
    }
    found.sort();
    found
}

fn table() -> Floors {
    floors(&fs::read_to_string(src().join("lib.rs")).unwrap())
}

#[test]
fn every_room_has_a_row_in_the_floors_table() {
    let floors = table();
    for (path, module) in files() {
        assert!(floors.contains_key(&module[0]), "{}: `{}` has no row in the table of src/lib.rs", path.display(), module[0]);
    }
}

#[test]
fn a_room_imports_only_lower_floors() {
    let floors = table();
    let mut said = String::new();
    for (path, module) in files() {
        for (line, why) in offences(&floors, &module, &fs::read_to_string(&path).unwrap()) {
            said += &format!("{}:{line}: {why}\n", path.strip_prefix(src().parent().unwrap()).unwrap().display());
        }
    }
    assert!(said.is_empty(), "\n{said}help: import a lower room, or write the exception into the table of src/lib.rs");
}

#[test]
fn command_never_names_system() {
    assert!(!table()["command"].also.contains("system"), "effects reach `command` through `world`; only main.rs knows both");
    for (path, module) in files() {
        if module[0] == "command" {
            let imports = root_imports(module.len(), &fs::read_to_string(&path).unwrap());
            let named = imports.iter().find(|(_, target)| target == "system");
            assert_eq!(named, None, "{}", path.display());
        }
    }
}

#[test]
fn the_check_sees_an_import_that_goes_up() {
    let floors = floors(
        "//! | room | floor | also imports |\n//! |---|---|---|\n//! | low | 0 | |\n//! | mid | 1 | odd |\n//! | odd | 1 | |\n//! | top | 2 | |\n",
    );
    let line_of = |module: &[&str], text: &str| {
        let module: Vec<String> = module.iter().map(ToString::to_string).collect();
        offences(&floors, &module, text).iter().map(|(line, _)| *line).collect::<Vec<_>>()
    };
    let bad = "use crate::low::A;\nuse crate::{low::{self, top}, top::{B, C},\n  odd};\nfn f() { crate::top::g() }\n";
    assert_eq!(line_of(&["mid", "part"], bad), [2, 4]);
    assert_eq!(line_of(&["low"], "//! [`crate::top`]\n/* crate::top */\nconst A: &str = \"crate::top\\\"\n\";\nuse crate::mid;\n"), [5]);
    assert_eq!(line_of(&["low"], "const A: &str = r#\"\n\" crate::top \"#; const Q: char = '\"';\nfn a<'a>(x: &'a crate::top::X) {}"), [3]);
    assert_eq!(line_of(&["low", "a"], "use super::top; // a module of low\nuse super::super::top;\nuse super::super::{mid, low};"), [2, 3]);
    assert_eq!(line_of(&["low"], "mod tests {\n  use super::top;\n  use super::super::top;\n}\nuse super::top;"), [3, 5]);
    assert_eq!(line_of(&["top"], bad), [] as [usize; 0]);
    assert_eq!(line_of(&["odd"], "use crate::mid;"), [1], "an exception has one direction");
}

#[test]
fn the_table_is_read_with_its_exceptions() {
    let floors = floors("//! | a | 0 | |\n//! | `b` | 3 | `c`, d |\n");
    assert_eq!(floors["a"], Room { floor: 0, also: BTreeSet::new() });
    assert_eq!(floors["b"], Room { floor: 3, also: BTreeSet::from(["c".into(), "d".into()]) });
}
