//! The only place where programs of the host are run: iptables, ip6tables and ipset, for hosts without nf_tables.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::{env, thread};

use crate::world::{ProgramError, Programs};

/// Where system programs are, besides PATH: a shell of a user may lack these.
const SYSTEM_DIRECTORIES: [&str; 3] = ["/usr/local/sbin", "/usr/sbin", "/sbin"];
/// How much of what a program complains about is repeated, in lines.
const COMPLAINTS: usize = 4;

/// The programs that are installed on this host.
#[derive(Debug, Default)]
pub struct InstalledPrograms;

impl Programs for InstalledPrograms {
    fn run(&mut self, program: &str, arguments: &[&str], input: &str) -> Result<String, ProgramError> {
        let failed = |why: String| ProgramError::Failed(program.to_string(), why);
        let path = find(program).ok_or_else(|| ProgramError::Missing(program.to_string()))?;
        let mut command = Command::new(path);
        // Their words are read, so they are to be English; nothing else of our environment is their business.
        command.env_clear().env("PATH", directories_text()).env("LC_ALL", "C").args(arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|error| failed(error.to_string()))?;
        let stdin = child.stdin.take();
        // A program that stops reading while it writes would wait for us, and we for it.
        let output = thread::scope(|scope| {
            scope.spawn(move || stdin.map(|mut stdin| stdin.write_all(input.as_bytes())));
            child.wait_with_output()
        });
        let output = output.map_err(|error| failed(error.to_string()))?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        let said: Vec<&str> = said.lines().map(str::trim).filter(|line| !line.is_empty()).take(COMPLAINTS).collect();
        Err(failed(if said.is_empty() { output.status.to_string() } else { said.join("; ") }))
    }
}

fn directories() -> Vec<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    // A relative directory is somebody's working directory, and never where a program for root is.
    env::split_paths(&path).filter(|path| path.is_absolute()).chain(SYSTEM_DIRECTORIES.map(PathBuf::from)).collect()
}

fn directories_text() -> std::ffi::OsString {
    env::join_paths(directories()).unwrap_or_default()
}

fn find(program: &str) -> Option<PathBuf> {
    directories().into_iter().map(|directory| directory.join(program)).find(|path| is_program(path))
}

fn is_program(path: &Path) -> bool {
    nix::unistd::access(path, nix::unistd::AccessFlags::X_OK).is_ok() && path.is_file()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_answers_with_what_it_prints() {
        assert_eq!(InstalledPrograms.run("cat", &[], "one\ntwo\n").unwrap(), "one\ntwo\n");
        let large = "x".repeat(1 << 20);
        assert_eq!(InstalledPrograms.run("cat", &[], &large).unwrap().len(), large.len());
    }

    #[test]
    fn what_is_missing_and_what_fails_are_told_apart() {
        let missing = InstalledPrograms.run("no-such-program-of-egressguard", &[], "").unwrap_err();
        assert_eq!(missing.to_string(), "`no-such-program-of-egressguard` is not installed");
        let failed = InstalledPrograms.run("sh", &["-c", "echo why >&2; echo not >&2; exit 3"], "").unwrap_err();
        assert_eq!(failed.to_string(), "`sh` failed: why; not");
        assert!(InstalledPrograms.run("sh", &["-c", "exit 3"], "").unwrap_err().to_string().contains('3'));
        // It ends without reading: that is no failure.
        assert_eq!(InstalledPrograms.run("true", &[], &"x".repeat(1 << 20)).unwrap(), "");
    }
}
