//! The commands: what was asked, what is answered, and with which exit code. Effects come through [`crate::world`] only.

pub mod apply;
pub mod arguments;
pub mod diff;
pub mod enforce;
pub mod evidence;
pub mod explain;
pub mod handover;
pub mod harvest;
pub mod metrics;
pub mod offline;
pub mod quarantine;
pub mod refresh;
pub mod remove;
pub mod report;
pub mod restore;
pub mod revoke;
pub mod source;
pub mod status;
pub mod suggest;
pub mod test;
pub mod trial;
pub mod verdict;
pub mod verify;
pub mod watch;

use std::borrow::Cow;
use std::io::{self, BufWriter, Write};

use nix::errno::Errno;
use serde::Serialize;
use thiserror::Error;

use crate::base::diagnostic::is_printable;
use crate::judge::plan::NotOurs;
use crate::state::StateError;
use crate::world::{FileError, KernelError, LogError, World};
use arguments::Command;

/// The exit codes of every command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Done, same, allowed, clean.
    Done = 0,
    /// The answer is no.
    No = 1,
    /// The question is wrong.
    Wrong = 2,
    /// The world refused.
    Refused = 3,
}

/// Why a command did not do it. Printed as `error: …` with `help: …` below.
#[derive(Debug, Error)]
#[error("{message}")]
pub struct Failure {
    /// Which exit code.
    pub exit: Exit,
    /// What, where, why.
    pub message: String,
    /// The next step.
    pub help: Option<String>,
}

impl Failure {
    /// The question is wrong.
    pub fn wrong(message: impl Into<String>, help: impl Into<String>) -> Failure {
        Failure { exit: Exit::Wrong, message: message.into(), help: Some(help.into()) }
    }

    /// The world refused.
    pub fn refused(message: impl Into<String>, help: impl Into<String>) -> Failure {
        Failure { exit: Exit::Refused, message: message.into(), help: Some(help.into()) }
    }
}

impl From<KernelError> for Failure {
    fn from(error: KernelError) -> Failure {
        let help = match &error {
            KernelError::NotPermitted => "run it as root, or with CAP_NET_ADMIN",
            KernelError::NoNfTables(_) => "a kernel from 5.10 with nf_tables is needed: try `modprobe nf_tables`",
            KernelError::Interfered => "another program keeps changing the packet filter: find it with `nft monitor`, then run this again",
            KernelError::Refused(_) => "nothing was changed; the kernel may lack a feature: see the kernel versions in the README",
            KernelError::Broken(_) => "run `egressguard status` to see what the kernel holds",
        };
        Failure::refused(error.to_string(), help)
    }
}

impl From<LogError> for Failure {
    fn from(error: LogError) -> Failure {
        let help = match &error {
            LogError::NotPermitted => "run it as root, or with CAP_NET_ADMIN",
            LogError::Busy(_) => "`systemctl status egressguard-watch` shows whether it is the service; else look for ulogd",
            LogError::Unsupported(_) => "try `modprobe nfnetlink_log`; without it `egressguard report` still shows what the kernel counted",
            LogError::Broken(_) => "run it again; `egressguard report` shows what the kernel counted meanwhile",
        };
        Failure::refused(error.to_string(), help)
    }
}

impl From<FileError> for Failure {
    fn from(error: FileError) -> Failure {
        let help = match &error {
            FileError::Denied(_) => "run it as root, or name another directory with `--state-dir`",
            FileError::Full(_) => "make space; what was saved before is still whole",
            FileError::Locked(_) => "wait until it has ended, or end it, and run this again",
            FileError::Other(_) => "see that the path exists and can be used",
        };
        Failure::refused(error.to_string(), help)
    }
}

impl From<StateError> for Failure {
    fn from(error: StateError) -> Failure {
        match error {
            StateError::File(error) => error.into(),
            damaged @ StateError::Damaged(..) => {
                Failure::refused(damaged.to_string(), "no rule was changed; run `egressguard apply POLICY` to write it anew")
            }
        }
    }
}

impl From<NotOurs> for Failure {
    fn from(error: NotOurs) -> Failure {
        Failure::refused(error.to_string(), "look at it with `nft list table inet egressguard`; rename or delete it, then run this again")
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        if error.kind() == io::ErrorKind::BrokenPipe {
            return Failure { exit: Exit::Done, message: "nobody reads the answer".to_string(), help: None };
        }
        Failure::refused(format!("cannot write the answer: {}", words(&error)), "see that standard output can be written to")
    }
}

/// Where answers go.
pub struct Output<'a> {
    /// Data.
    pub out: &'a mut dyn Write,
    /// Words.
    pub err: &'a mut dyn Write,
    /// How words look.
    pub style: Style,
    /// How much is said.
    pub verbosity: Verbosity,
}

/// How much of a JSON object is written at once.
const PIECE: usize = 64 << 10;

/// How words look on standard error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    /// Nobody watches: no colour, no progress.
    Plain,
    /// A terminal without colour.
    Terminal,
    /// A terminal with colour.
    Coloured,
}

/// How much is said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verbosity {
    /// Errors only.
    Quiet,
    /// What matters.
    Normal,
    /// Every step.
    Verbose,
}

impl Output<'_> {
    /// The same, for a step whose warnings the user has had already or did not ask for.
    pub fn quiet(&mut self) -> Output<'_> {
        Output { out: &mut *self.out, err: &mut *self.err, style: self.style, verbosity: Verbosity::Quiet }
    }

    /// Something the user should know.
    pub fn warn(&mut self, text: &str) {
        if self.verbosity > Verbosity::Quiet {
            let label = if self.style == Style::Coloured { "\x1b[33mwarning\x1b[0m" } else { "warning" };
            let _ = writeln!(self.err, "{label}: {}", harmless(text));
        }
    }

    /// Something only those who asked for it want to know.
    pub fn detail(&mut self, text: &str) {
        if self.verbosity == Verbosity::Verbose {
            let _ = writeln!(self.err, "{}", harmless(text));
        }
    }

    /// Replaces the progress line; nothing when nobody watches.
    pub fn progress(&mut self, text: &str) {
        if self.style != Style::Plain && self.verbosity > Verbosity::Quiet {
            let _ = write!(self.err, "\r\x1b[K{}", harmless(text));
            let _ = self.err.flush();
        }
    }

    /// A line of the answer for people, unless nothing was to be said.
    pub fn say(&mut self, text: &str) -> io::Result<()> {
        if self.verbosity > Verbosity::Quiet { heard(writeln!(self.out, "{}", harmless(text))) } else { Ok(()) }
    }

    /// A JSON object.
    pub fn json(&mut self, value: &impl Serialize) -> io::Result<()> {
        // In large pieces: standard output writes line by line, and the whole of a large comparison is tens of megabytes.
        let mut out = BufWriter::with_capacity(PIECE, &mut *self.out);
        let written = serde_json::to_writer_pretty(&mut out, value).map_err(io::Error::from);
        heard(written.and_then(|()| out.write_all(b"\n")).and_then(|()| out.flush()))
    }

    /// How a failure is told.
    pub fn failure(&mut self, failure: &Failure) {
        let (error, help) = match self.style {
            Style::Coloured => ("\x1b[31merror\x1b[0m", "\x1b[36mhelp\x1b[0m"),
            Style::Plain | Style::Terminal => ("error", "help"),
        };
        let _ = writeln!(self.err, "{error}: {}", harmless(&failure.message));
        if let Some(text) = &failure.help {
            let _ = writeln!(self.err, "{help}: {}", harmless(text));
        }
    }
}

/// What the error says, with its name instead of its number.
pub fn words(error: &io::Error) -> String {
    match error.raw_os_error().map(Errno::from_raw) {
        Some(errno) => format!("{} ({errno:?})", errno.desc().to_lowercase()),
        None => error.to_string(),
    }
}

/// The text without what a terminal obeys or hides behind: names of files, comments of other people's rules and answers of DNS are not
/// ours. Lines stay lines.
pub fn harmless(text: &str) -> Cow<'_, str> {
    let obeyed = |c: char| !(is_printable(c) || c == '\n' || c == '\t');
    if !text.contains(obeyed) {
        return Cow::Borrowed(text);
    }
    Cow::Owned(text.chars().map(|c| if obeyed(c) { c.escape_unicode().to_string() } else { c.to_string() }).collect())
}

/// A reader who has heard enough changes neither what is done nor the exit code.
fn heard(written: io::Result<()>) -> io::Result<()> {
    match written {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written,
    }
}

/// Runs a command. `demo`, which makes a world of its own, and `watch`, which needs more of it, are not run here.
pub fn run(command: &Command, world: &mut World, output: &mut Output) -> Result<Exit, Failure> {
    match command {
        Command::Check(arguments) => offline::check(arguments, world, output),
        Command::Test(arguments) => test::test(arguments, world, output),
        Command::Explain(arguments) => explain::explain(arguments, world, output),
        Command::Verify(arguments) => verify::verify(arguments, world, output),
        Command::Schema => offline::schema(output),
        Command::Completions { shell } => offline::completions(*shell, output),
        Command::Man { output_dir } => offline::man(output_dir.as_deref(), world, output),
        Command::Render(arguments) => offline::render(arguments, world, output),
        Command::Diff(arguments) => diff::diff(arguments, world, output),
        Command::Resolve(arguments) => offline::resolve(arguments, world, output),
        Command::Apply(arguments) => apply::apply(arguments, world, output),
        Command::Confirm(arguments) => trial::confirm(arguments, world, output),
        Command::Rollback(arguments) => trial::rollback(arguments, world, output),
        Command::Refresh(arguments) => refresh::refresh(arguments, world, output),
        Command::Restore => restore::restore(world, output),
        Command::Status(arguments) => status::status(arguments, world, output),
        Command::Report(arguments) => report::report(arguments, world, output),
        Command::Suggest(arguments) => suggest::suggest(arguments, world, output),
        Command::Quarantine(arguments) => quarantine::quarantine(arguments, world, output),
        Command::Remove(arguments) => remove::remove(arguments, world, output),
        Command::Metrics => metrics::metrics(world, output),
        Command::Watch(_) => Err(Failure::wrong("`watch` needs more of the world", "run `egressguard watch`")),
        Command::Demo => Err(Failure::wrong("`demo` makes a world of its own", "run `egressguard demo`")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_obeys_is_written_out_wherever_it_comes_from() {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let mut output = Output { out: &mut out, err: &mut err, style: Style::Plain, verbosity: Verbosity::Verbose };
        let evil = "a\x1b[2Jb\u{9b}c\rd\u{202e}e\nf\tg";
        output.say(evil).unwrap();
        output.warn(evil);
        output.detail(evil);
        output.failure(&Failure::refused(evil, evil));
        for written in [out, err] {
            let text = String::from_utf8(written).unwrap();
            assert!(text.contains("a\\u{1b}[2Jb\\u{9b}c\\u{d}d\\u{202e}e\nf\tg"), "{text}");
            assert!(!text.contains(|c: char| (c.is_control() && c != '\n' && c != '\t') || c == '\u{202e}'), "{text}");
        }
    }

    #[test]
    fn a_named_network_namespace_has_a_state_of_its_own() {
        let at = |words: &[&str]| {
            let arguments = <arguments::Arguments as clap::Parser>::try_parse_from(words).unwrap();
            arguments.state_directory().display().to_string()
        };
        assert_eq!(at(&["egressguard", "status"]), "/var/lib/egressguard");
        assert_eq!(at(&["egressguard", "status", "--netns", "lab"]), "/var/lib/egressguard/netns/lab");
        assert_eq!(at(&["egressguard", "status", "--netns", "lab", "--state-dir", "/x"]), "/x");
    }
}
