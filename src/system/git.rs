//! Asking git for a file as it was. Runs `git`, which a host need not have; nothing is written, and no hook or filter is run.

use std::io::ErrorKind;
use std::path::Path;
use std::process::{Command, Output};

use crate::world::RevisionError;

/// The content of a file at a revision of the repository that it lies in.
pub fn show(path: &str, revision: &str) -> Result<Vec<u8>, RevisionError> {
    let file = Path::new(path);
    let Some(name) = file.file_name().and_then(|name| name.to_str()) else {
        return Err(RevisionError::Refused(format!("`{path}` names no file")));
    };
    let directory = file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let ask = |arguments: &[&str]| run(directory, arguments);
    let inside = ask(&["rev-parse", "--is-inside-work-tree"])?;
    if !inside.status.success() {
        return Err(RevisionError::NoRepository(path.to_string(), words(&inside)));
    }
    let missing = || RevisionError::NoRevision(path.to_string(), revision.to_string());
    // What begins with a hyphen would be an option, and a colon would name another file.
    if revision.is_empty() || revision.starts_with('-') || revision.contains([':', '\0', '\n']) {
        return Err(missing());
    }
    let commit = ask(&["rev-parse", "--verify", "--quiet", &format!("{revision}^{{commit}}")])?;
    let commit = String::from_utf8_lossy(&commit.stdout).trim().to_string();
    if commit.is_empty() {
        return Err(missing());
    }
    let object = format!("{commit}:./{name}");
    if !ask(&["cat-file", "-e", &object])?.status.success() {
        return Err(RevisionError::NotThere(path.to_string(), revision.to_string()));
    }
    let shown = ask(&["show", "--no-textconv", &object])?;
    if !shown.status.success() {
        return Err(RevisionError::Refused(format!("git does not show `{path}` at `{revision}`: {}", words(&shown))));
    }
    Ok(shown.stdout)
}

fn run(directory: &Path, arguments: &[&str]) -> Result<Output, RevisionError> {
    let mut git = Command::new("git");
    // Words in one language, and no lock that a reader does not need.
    git.env("LC_ALL", "C").env("GIT_OPTIONAL_LOCKS", "0").arg("--no-pager").arg("-C").arg(directory).args(arguments);
    git.output().map_err(|error| match error.kind() {
        ErrorKind::NotFound => RevisionError::NoGit("there is no program `git` (ENOENT)".to_string()),
        _ => RevisionError::NoGit(error.to_string()),
    })
}

/// What git said, in one line.
fn words(output: &Output) -> String {
    let said = String::from_utf8_lossy(&output.stderr);
    let said = said.lines().next().unwrap_or_default().trim_start_matches("fatal: ").trim();
    if said.is_empty() { "git does not say why".to_string() } else { said.to_string() }
}
