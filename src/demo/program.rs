//! Running the program itself, as an operator would, and hearing what it says.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context;

/// The program and the files it is told to use.
#[derive(Debug)]
pub struct Program {
    path: PathBuf,
    directory: PathBuf,
}

/// How a run of it ended.
#[derive(Debug)]
pub struct Ended {
    /// Its exit code; `None` when a signal ended it.
    pub code: Option<i32>,
    /// What it wrote to both standard output and standard error.
    pub said: String,
}

/// The longest run that is waited for.
const PATIENCE: Duration = Duration::from_secs(20);

impl Program {
    /// A program whose state and settings lie in this directory, with a resolv.conf that names these servers.
    pub fn new(path: &Path, directory: &Path, resolvers: &[std::net::IpAddr]) -> anyhow::Result<Program> {
        let settings: String = resolvers.iter().map(|address| format!("nameserver {address}\n")).collect();
        fs::write(directory.join("resolv.conf"), settings).context("cannot write the demo's resolv.conf")?;
        Ok(Program { path: path.to_path_buf(), directory: directory.to_path_buf() })
    }

    /// The options every run gets.
    pub fn options(&self) -> [String; 4] {
        let place = |name: &str| self.directory.join(name).display().to_string();
        ["--state-dir".into(), place("state"), "--resolv-conf".into(), place("resolv.conf")]
    }

    /// Runs it in the namespaces of the calling thread.
    pub fn run(&self, arguments: &[&str]) -> anyhow::Result<Ended> {
        let hears = self.directory.join("said");
        let file = File::create(&hears).context("cannot make a file in the demo's directory")?;
        let mut command = Command::new(&self.path);
        command.args(arguments).args(self.options()).stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        // The settings and the remote session of whoever looks on are no part of the story.
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            if text.starts_with("EGRESSGUARD_") || text.starts_with("SSH_") {
                command.env_remove(&name);
            }
        }
        command.env("NO_COLOR", "1");
        let mut child = command.spawn().with_context(|| format!("cannot run `{}`", self.path.display()))?;
        let begin = Instant::now();
        let status = loop {
            if let Some(status) = child.try_wait()? {
                break status;
            }
            if begin.elapsed() > PATIENCE {
                child.kill()?;
                child.wait()?;
                anyhow::bail!("`egressguard {}` did not end within {} s", arguments.join(" "), PATIENCE.as_secs());
            }
            std::thread::sleep(Duration::from_millis(3));
        };
        let said = String::from_utf8_lossy(&fs::read(&hears)?).into_owned();
        Ok(Ended { code: status.code(), said })
    }
}
