//! Wires the real world into a command, and turns a failure into words and an exit code. Nothing is decided here.

use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use egressguard::command::arguments::{Arguments, Command, WatchArguments, When};
use egressguard::command::metrics::Scope;
use egressguard::command::{self, Exit, Failure, Output, Style, Verbosity};
use egressguard::demo::{self, Colour, DemoOptions};
use egressguard::ruleset::program::{Counts, GenerationId, Op, TableDump};
use egressguard::ruleset::surroundings::Surroundings;
use egressguard::state::books;
use egressguard::system::attribution::HostOwners;
use egressguard::system::files::{NamedDocuments, StateDirectory};
use egressguard::system::hook::Program;
use egressguard::system::host::LocalHost;
use egressguard::system::netlink::NfTables;
use egressguard::system::netlink::flow::KernelFlows;
use egressguard::system::netlink::nflog::PacketLog;
use egressguard::system::programs::InstalledPrograms;
use egressguard::system::resolver::DnsResolver;
use egressguard::system::rights;
use egressguard::system::scrape::MetricsServer;
use egressguard::system::signals::Signals;
use egressguard::system::supervisor::Systemd;
use egressguard::violation::decode::Logged;
use egressguard::world::{Depth, Kernel, KernelError, Log, LogError, Meanwhile, Scrapes, Watching, World};
use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let (mut out, mut err) = (io::stdout(), io::stderr());
    let mut output = Output { out: &mut out, err: &mut err, style: style(&arguments), verbosity: verbosity(&arguments) };
    let mut kernel = OnDemand(None);
    let ended = match &arguments.command {
        Command::Demo => demonstrate(&arguments),
        _ => in_world(&arguments, &mut kernel, &mut output),
    };
    let exit = ended.unwrap_or_else(|failure| {
        // Nobody reads on: a closed pipe is no failure.
        if failure.exit != Exit::Done {
            output.failure(&failure);
        }
        failure.exit
    });
    let _ = io::stdout().flush();
    // Closing the socket can wait for the kernel's grace period; the user need not.
    if let Some(kernel) = kernel.0 {
        kernel.release();
    }
    ExitCode::from(exit as u8)
}

fn in_world(arguments: &Arguments, kernel: &mut OnDemand, output: &mut Output) -> Result<Exit, Failure> {
    let mut host = match &arguments.netns {
        Some(name) => {
            enter(name)?;
            LocalHost::in_netns(name)
        }
        None => LocalHost::new(),
    };
    if let Some(path) = &arguments.resolv_conf {
        host.resolv_conf.clone_from(path);
    }
    let mut resolver = DnsResolver::new();
    let mut flows = KernelFlows::new();
    let mut files = StateDirectory::new(arguments.state_directory());
    let mut watch = StateDirectory::new(arguments.state_directory().join(books::WATCH_DIRECTORY));
    let mut documents = NamedDocuments;
    let mut programs = InstalledPrograms;
    let mut world = World {
        kernel,
        flows: &mut flows,
        resolver: &mut resolver,
        host: &host,
        files: &mut files,
        watch: &mut watch,
        documents: &mut documents,
        programs: &mut programs,
    };
    match &arguments.command {
        Command::Watch(asked) => follow(asked, &mut world, output),
        other => command::run(other, &mut world, output),
    }
}

/// Runs `watch`, which uses more of the world than others do.
fn follow(asked: &WatchArguments, world: &mut World, output: &mut Output) -> Result<Exit, Failure> {
    // ORDER: before anything else, for a thread that is started later must not take the signals.
    let mut signals = Signals::new().map_err(|error| {
        Failure::refused(format!("cannot wait for signals: {}", command::words(&error)), "see that the limit of open files is not reached")
    })?;
    rights::hand_on_no_capabilities();
    let mut owners = HostOwners::open();
    let mut wakers = owners.descriptors();
    wakers.push(signals.descriptor());
    let mut server = asked.metrics.as_deref().map(|said| serve(said, asked)).transpose()?;
    if let Some(server) = &server {
        wakers.push(server.descriptor().map_err(|error| not_served(server.address(), &error))?);
        output.detail(&format!("metrics are at http://{}/metrics", server.address()));
    }
    let mut log = LogOnDemand { log: None, wakers };
    let mut supervisor = Systemd::from_environment();
    let mut hook = Program::default();
    let scrapes = server.as_mut().map(|server| server as &mut dyn Scrapes);
    let mut watching =
        Watching { log: &mut log, owners: &mut owners, requests: &mut signals, supervisor: &mut supervisor, hook: &mut hook, scrapes };
    command::watch::watch(asked, world, &mut watching, output)
}

/// Opens the port that `--metrics` names.
fn serve(said: &str, asked: &WatchArguments) -> Result<MetricsServer, Failure> {
    let scope = if asked.metrics_from_anywhere { Scope::Anywhere } else { Scope::Loopback };
    let address = command::metrics::address(said, scope)?;
    MetricsServer::listen(address).map_err(|error| not_served(address, &error))
}

fn not_served(address: SocketAddr, error: &io::Error) -> Failure {
    Failure::refused(format!("cannot serve metrics at {address}: {}", command::words(error)), "name another port, or end whoever has it")
}

/// The kernel's packet log, opened when it is first waited for.
struct LogOnDemand {
    log: Option<PacketLog>,
    wakers: Vec<Arc<OwnedFd>>,
}

impl Log for LogOnDemand {
    fn wait(&mut self, patience: Duration, take: &mut dyn FnMut(&Logged<'_>, Duration)) -> Result<Meanwhile, LogError> {
        let log = match &mut self.log {
            Some(log) => log,
            none => {
                let mut log = PacketLog::open()?;
                self.wakers.iter().for_each(|waker| log.wake_by(waker.clone()));
                none.insert(log)
            }
        };
        log.wait(patience, take)
    }
}

/// Runs the demo, which writes by itself.
fn demonstrate(arguments: &Arguments) -> Result<Exit, Failure> {
    // An error of the page has no context; one of anything else has.
    let refused = |error: anyhow::Error| match (error.chain().count(), error.downcast_ref::<io::Error>()) {
        (1, Some(why)) => Failure::from(io::Error::from(why.kind())),
        _ => Failure::refused(format!("{error:#}"), "run it again; it leaves nothing behind"),
    };
    let program = std::env::current_exe().map_err(|error| refused(error.into()))?;
    let colour = match arguments.color {
        When::Auto => Colour::Auto,
        When::Always => Colour::Always,
        When::Never => Colour::Never,
    };
    match demo::run(DemoOptions { program, colour }).map_err(refused)? {
        0 => Ok(Exit::Done),
        1 => Ok(Exit::No),
        _ => Ok(Exit::Refused),
    }
}

/// Moves this process into a named network namespace.
fn enter(name: &str) -> Result<(), Failure> {
    let path = PathBuf::from("/run/netns").join(name);
    if name.is_empty() || name.contains('/') || name == ".." {
        return Err(Failure::wrong(format!("`{name}` is not the name of a network namespace"), "`ip netns list` shows the names"));
    }
    let namespace = File::open(&path).map_err(|error| {
        let message = format!("cannot open network namespace `{name}`: {}", command::words(&error));
        Failure::refused(message, "`ip netns list` shows the names, `ip netns add` makes one")
    })?;
    setns(namespace, CloneFlags::CLONE_NEWNET).map_err(|errno| {
        let help = match errno {
            Errno::EINVAL => "the file of this name in /run/netns is none: make it anew with `ip netns del` and `ip netns add`",
            _ => "run it as root",
        };
        Failure::refused(format!("cannot enter network namespace `{name}` ({errno:?})"), help)
    })
}

fn style(arguments: &Arguments) -> Style {
    let terminal = io::stderr().is_terminal();
    let wanted = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    match arguments.color {
        When::Always => Style::Coloured,
        When::Auto if terminal && wanted => Style::Coloured,
        When::Auto | When::Never if terminal => Style::Terminal,
        When::Auto | When::Never => Style::Plain,
    }
}

fn verbosity(arguments: &Arguments) -> Verbosity {
    match (arguments.quiet, arguments.verbose) {
        (true, _) => Verbosity::Quiet,
        (_, true) => Verbosity::Verbose,
        _ => Verbosity::Normal,
    }
}

/// The kernel's packet filter, opened when it is first asked for, so that commands without a kernel need none.
struct OnDemand(Option<NfTables>);

impl OnDemand {
    fn open(&mut self) -> Result<&mut NfTables, KernelError> {
        if self.0.is_none() {
            self.0 = Some(NfTables::open()?);
        }
        self.0.as_mut().ok_or_else(|| KernelError::Broken("the socket was not opened".to_string()))
    }
}

impl Kernel for OnDemand {
    fn generation(&mut self) -> Result<GenerationId, KernelError> {
        self.open()?.generation()
    }

    fn observe(&mut self, depth: Depth) -> Result<(GenerationId, Option<TableDump>), KernelError> {
        self.open()?.observe(depth)
    }

    fn counts(&mut self, prefix: &str) -> Result<Option<Counts>, KernelError> {
        self.open()?.counts(prefix)
    }

    fn surroundings(&mut self) -> Result<Surroundings, KernelError> {
        self.open()?.surroundings()
    }

    fn commit(&mut self, expected: GenerationId, ops: &[Op]) -> Result<GenerationId, KernelError> {
        self.open()?.commit(expected, ops)
    }
}
