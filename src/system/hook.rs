//! The program that a policy names for alerts, run beside this one: it gets its input, some time, and no more.

use std::io::Write;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::violation::alert::DONE;
use crate::world::Hook;

/// A program, started by its path, without a shell.
#[derive(Debug, Default)]
pub struct Program {
    running: Option<(Child, Instant, Duration)>,
}

impl Hook for Program {
    fn start(&mut self, program: &str, input: &[u8], patience: Duration) -> Result<(), String> {
        let mut command = Command::new(program);
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).current_dir("/");
        // It is no service: what it could tell the service manager is not ours to say.
        command.env_remove("NOTIFY_SOCKET").env_remove("WATCHDOG_USEC").env_remove("WATCHDOG_PID");
        // A group of its own, so that what it starts ends with it.
        let mut child = command.process_group(0).spawn().map_err(|error| format!("`{program}` cannot be started: {error}"))?;
        if let Some(mut stdin) = child.stdin.take() {
            // A record is far smaller than what a pipe holds, so this waits for nobody; one that does not read is told nothing.
            let _ = stdin.write_all(&input[..input.len().min(PIPE)]);
        }
        self.running = Some((child, Instant::now(), patience));
        Ok(())
    }

    fn ended(&mut self) -> Option<String> {
        let (child, started, patience) = self.running.as_mut()?;
        let words = match child.try_wait() {
            Ok(Some(status)) => outcome(status),
            Ok(None) if started.elapsed() < *patience => return None,
            Ok(None) => {
                end(child);
                format!("was ended after {} s", patience.as_secs())
            }
            Err(error) => format!("is lost: {error}"),
        };
        self.running = None;
        Some(words)
    }

    fn is_running(&self) -> bool {
        self.running.is_some()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        if let Some((child, ..)) = &mut self.running {
            end(child);
        }
    }
}

/// What a pipe holds when nobody has read from it yet.
const PIPE: usize = 65_536;

/// Ends a program and what it has started.
fn end(child: &mut Child) {
    if let Ok(group) = i32::try_from(child.id()) {
        let _ = killpg(Pid::from_raw(group), Signal::SIGKILL);
    }
    let _ = child.wait();
}

fn outcome(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(0), _) => DONE.to_string(),
        (Some(code), _) => format!("ended with exit code {code}"),
        (None, signal) => format!("was ended by signal {}", signal.unwrap_or(0)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn script(text: &str) -> (tempfile::TempDir, String) {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("page-me");
        std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        (directory, path.display().to_string())
    }

    fn waited(program: &mut Program) -> String {
        let start = Instant::now();
        loop {
            if let Some(words) = program.ended() {
                return words;
            }
            assert!(start.elapsed() < Duration::from_secs(5), "it still runs");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn a_program_reads_its_input_and_its_end_is_told_once() {
        let (directory, path) = script("cat > \"$0.read\"; exit 7");
        let mut program = Program::default();
        program.start(&path, b"{\"a\":1}\n", Duration::from_secs(5)).unwrap();
        assert_eq!(waited(&mut program), "ended with exit code 7");
        assert_eq!((program.ended(), program.is_running()), (None, false));
        assert_eq!(std::fs::read(directory.path().join("page-me.read")).unwrap(), b"{\"a\":1}\n");
        let missing = program.start("/no/such/program", b"", Duration::from_secs(5)).unwrap_err();
        assert!(missing.contains("`/no/such/program` cannot be started"), "{missing}");
    }

    #[test]
    fn a_program_that_hangs_is_ended_with_what_it_started() {
        let (directory, path) = script("sleep 60 & echo $! > \"$0.child\"; wait");
        let mut program = Program::default();
        program.start(&path, b"x", Duration::from_millis(300)).unwrap();
        assert_eq!(program.ended(), None);
        assert_eq!(waited(&mut program), "was ended after 0 s");
        let child = std::fs::read_to_string(directory.path().join("page-me.child")).unwrap();
        let gone = || std::fs::read_to_string(format!("/proc/{}/stat", child.trim())).map_or(true, |stat| stat.contains(") Z "));
        assert!(
            (0..200).any(|_| gone() || {
                std::thread::sleep(Duration::from_millis(10));
                false
            }),
            "its child still runs"
        );
    }
}
