//! Every file `tests/golden/policy/CASE.yaml` is read as a policy; what comes out, rendered without colours, is compared
//! with `CASE.expected`: the errors, or the warnings, or `ok`. A new case is two files and no code; with `UPDATE_GOLDEN=1`
//! the second is written, and then read by whoever wrote the first.

use std::fs;
use std::path::Path;

use egressguard::base::diagnostic::{Colour, render};
use egressguard::policy::parse_bytes;

#[test]
fn every_case_says_what_is_expected() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/policy");
    let update = std::env::var_os("UPDATE_GOLDEN").is_some();
    let mut cases: Vec<_> = fs::read_dir(&directory)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "yaml"))
        .collect();
    cases.sort();
    assert!(cases.len() >= 75, "only {} cases were found in {}", cases.len(), directory.display());
    let mut refused = 0;
    let mut wrong = Vec::new();
    for case in cases {
        let bytes = fs::read(&case).unwrap();
        let name = case.file_name().unwrap().to_string_lossy().into_owned();
        let findings = match parse_bytes(&bytes, &name) {
            Ok(parsed) => parsed.warnings,
            Err(errors) => {
                refused += 1;
                errors
            }
        };
        let out = if findings.is_empty() {
            "ok\n".to_string()
        } else {
            render(&findings, &String::from_utf8_lossy(&bytes), &name, Colour::Plain)
        };
        let expected = case.with_extension("expected");
        if update {
            fs::write(&expected, &out).unwrap();
        } else if fs::read_to_string(&expected).ok().as_deref() != Some(out.as_str()) {
            let said = fs::read_to_string(&expected).unwrap_or_else(|_| "(no such file)\n".to_string());
            wrong.push(format!("{name}: expected\n{said}but it says\n{out}"));
        }
    }
    assert!(refused >= 60, "only {refused} cases are errors");
    assert!(wrong.is_empty(), "{} cases differ; UPDATE_GOLDEN=1 rewrites them\n\n{}", wrong.len(), wrong.join("\n"));
}
