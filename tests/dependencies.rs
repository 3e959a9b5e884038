//! Every dependency of `Cargo.toml` has its reason in `docs/dependencies.md`, with the version that is asked for.

use std::fs;
use std::path::Path;

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

/// Name and version of every dependency, sorted.
fn asked() -> Vec<(String, String)> {
    let (mut section, mut found) = (String::new(), Vec::new());
    for line in read("Cargo.toml").lines() {
        if line.starts_with('[') {
            section = line.to_string();
        } else if let ("[dependencies]" | "[dev-dependencies]" | "[build-dependencies]", Some((name, rest))) =
            (section.as_str(), line.split_once('='))
        {
            // The version is the first string that begins with a digit, or with a mark of a requirement.
            let version =
                rest.split('"').map(|part| part.trim_start_matches(['~', '=', '^'])).find(|part| part.starts_with(char::is_numeric));
            found.push((name.trim().to_string(), version.unwrap_or_default().to_string()));
        }
    }
    found.sort();
    found
}

#[test]
fn every_dependency_has_a_row_with_its_version_and_no_row_is_left_over() {
    let text = read("docs/dependencies.md");
    let mut written: Vec<(String, String)> = text
        .lines()
        .filter_map(|line| line.strip_prefix("| "))
        .filter_map(|row| match row.split(" | ").collect::<Vec<_>>()[..] {
            [name, version, why, instead] if version.starts_with(char::is_numeric) && !why.is_empty() && !instead.is_empty() => {
                Some((name.to_string(), version.to_string()))
            }
            _ => None,
        })
        .collect();
    written.sort();
    assert_eq!(asked(), written, "left: Cargo.toml, right: docs/dependencies.md");
}
