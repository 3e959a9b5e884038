//! What can be asked on the command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// Where the policy is when none is named.
pub const DEFAULT_POLICY: &str = "/etc/egressguard/policy.yaml";
/// Where the state is when no directory is named.
pub const DEFAULT_STATE: &str = "/var/lib/egressguard";

/// One inbound port, outbound TLS to named hosts only, held by the kernel.
#[derive(Debug, Parser)]
#[command(name = "egressguard", version, about, max_term_width = 100, arg_required_else_help = true)]
#[command(after_help = "Exit codes: 0 done, same, clean; 1 the answer is no; 2 the question is wrong; 3 the world refused.\n\
Start with `egressguard demo`: it is safe, needs no root and no internet.")]
pub struct Arguments {
    /// Where applied policies and their pins are kept [default: /var/lib/egressguard, below it netns/NAME with --netns].
    #[arg(long, global = true, env = "EGRESSGUARD_STATE_DIR", value_name = "DIR", help_heading = "World")]
    pub state_dir: Option<PathBuf>,
    /// Work in this network namespace, named as `ip netns` names them.
    #[arg(long, global = true, value_name = "NAME", help_heading = "World")]
    pub netns: Option<String>,
    /// Read the system's DNS servers from this file.
    #[arg(long, global = true, env = "EGRESSGUARD_RESOLV_CONF", value_name = "FILE", help_heading = "World")]
    pub resolv_conf: Option<PathBuf>,
    /// When to use colour.
    #[arg(long, global = true, value_name = "WHEN", default_value = "auto", help_heading = "Words")]
    pub color: When,
    /// Say nothing but errors and what was asked for.
    #[arg(short, long, global = true, conflicts_with = "verbose", help_heading = "Words")]
    pub quiet: bool,
    /// Say every step.
    #[arg(short, long, global = true, help_heading = "Words")]
    pub verbose: bool,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

impl Arguments {
    /// Where the state is. A named network namespace has rules of its own, and so a state of its own.
    pub fn state_directory(&self) -> PathBuf {
        match (&self.state_dir, &self.netns) {
            (Some(directory), _) => directory.clone(),
            (None, None) => PathBuf::from(DEFAULT_STATE),
            (None, Some(name)) => PathBuf::from(DEFAULT_STATE).join("netns").join(name),
        }
    }
}

/// When to use colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum When {
    /// On a terminal, unless NO_COLOR is set.
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Parse, validate and lint a policy.
    Check(CheckArguments),
    /// Run a policy's own tests against its compiled rules.
    Test(TestArguments),
    /// Say what becomes of a packet, and which line decides.
    Explain(ExplainArguments),
    /// Say exactly what a change of a policy opens and closes.
    Diff(DiffArguments),
    /// Resolve the names of a policy into a pins file.
    Resolve(ResolveArguments),
    /// Print what would be loaded.
    Render(RenderArguments),
    /// Resolve, compile, load at once, read back, and save.
    Apply(ApplyArguments),
    /// Keep the policy that is on trial.
    Confirm(ConfirmArguments),
    /// Take the policy that is on trial back at once.
    Rollback(RollbackArguments),
    /// Resolve again and update what has changed.
    Refresh(RefreshArguments),
    /// Load the last applied policy without DNS; lockdown when there is none.
    Restore,
    /// Show what is active, its pins and their age, and drift.
    Status(StatusArguments),
    /// Compare what the kernel holds with what was applied, and name what else stands in the way of packets.
    Verify(VerifyArguments),
    /// Follow violations as they happen: who tried what, and which rule refused it.
    Watch(WatchArguments),
    /// Print figures for Prometheus: for a textfile collector.
    Metrics,
    /// Say who tried what, how often, and which line of a policy would allow it.
    Report(ReportArguments),
    /// Print the smallest policy that allows what was seen, for a host that observes.
    Suggest(SuggestArguments),
    /// Cut the whole host off now, or let go again.
    Quarantine(QuarantineArguments),
    /// Take the rules away.
    Remove(RemoveArguments),
    /// Show the whole story in a throw-away network namespace.
    Demo,
    /// Print the JSON Schema of the policy language.
    Schema,
    /// Print completions for a shell.
    Completions {
        /// Which shell.
        shell: Shell,
    },
    /// Print the manual page, or write the pages of all commands.
    Man {
        /// Write `egressguard.1` and one page for each command into this directory.
        #[arg(long, value_name = "DIR")]
        output_dir: Option<PathBuf>,
    },
}

/// A shell that completions are made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[allow(missing_docs)]
pub enum Shell {
    Bash,
    Zsh,
    Fish,
}

/// Which policy.
#[derive(Debug, Clone, Args)]
pub struct PolicyArgument {
    /// A file, `-` for standard input, or `builtin:NAME` (openai, openai-residency, azure-openai, anthropic, lockdown).
    #[arg(value_name = "POLICY", default_value = DEFAULT_POLICY)]
    pub policy: String,
}

/// Arguments of `check`.
#[derive(Debug, Args)]
pub struct CheckArguments {
    /// Which policy.
    #[command(flatten)]
    pub policy: PolicyArgument,
    /// Treat warnings as errors.
    #[arg(long)]
    pub strict: bool,
    /// Answer with a JSON object.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `test`.
#[derive(Debug, Args)]
pub struct TestArguments {
    /// Which policy.
    #[command(flatten)]
    pub policy: PolicyArgument,
    /// Take the addresses from this pins file; without it a name stands for itself.
    #[arg(long, value_name = "FILE")]
    pub pins: Option<String>,
    /// Answer with a JSON object.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `explain`.
#[derive(Debug, Args)]
#[command(override_usage = "egressguard explain [OPTIONS] PACKET [POLICY]")]
#[command(after_help = "PACKET: [in|out|forward] tcp|udp|icmp|icmpv6|NUMBER [from [ADDR][:PORT]] [to [ADDR|NAME][:PORT]]\n        \
[user NAME|uid N] [service UNIT] [state new|established|related|invalid]\n\
Quoted as one argument or not. Unquoted, the first word where `from`, `to`, `user`, `uid`, `service` or `state`\n\
could stand and does not is the policy. Exit codes: 0 allowed, 1 denied.\n\n  \
egressguard explain tcp to 1.2.3.4:443\n  \
egressguard explain \"in tcp from 198.51.100.9 to :443\" builtin:openai --steps\n  \
egressguard explain --live udp to 8.8.8.8:53 user backend")]
pub struct ExplainArguments {
    /// A packet, and the policy: a file, `-`, or `builtin:NAME`; /etc/egressguard/policy.yaml when it is not said.
    #[arg(value_name = "PACKET [POLICY]", required = true, num_args = 1..)]
    pub words: Vec<String>,
    /// Judge the rules that the kernel holds instead of a policy.
    #[arg(long)]
    pub live: bool,
    /// Take the addresses of names from this pins file instead of the pins that were applied last.
    #[arg(long, value_name = "FILE")]
    pub pins: Option<String>,
    /// Say every rule that was tried, and the first test that failed.
    #[arg(long)]
    pub steps: bool,
    /// Answer with a JSON object.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `diff`.
#[derive(Debug, Args)]
#[command(override_usage = "egressguard diff [OPTIONS] [OLD] NEW\n       egressguard diff [OPTIONS] --git REV POLICY")]
#[command(after_help = "Without OLD and --git, NEW is compared with what the kernel holds, which takes root.\n\
Exit codes: 0 same, 1 differs (with --fail-on widens: something is allowed that was not).\n\n  \
egressguard diff policy.yaml new.yaml\n  \
egressguard diff --git origin/main policy.yaml --fail-on widens --format github\n  \
sudo egressguard diff policy.yaml")]
pub struct DiffArguments {
    /// One policy or two: files, `-` for standard input, or `builtin:NAME`; /etc/egressguard/policy.yaml when none is named.
    #[arg(value_name = "POLICY", num_args = 0..=2)]
    pub policies: Vec<String>,
    /// Compare with the same file at this revision of the git repository that it lies in.
    #[arg(long, value_name = "REV")]
    pub git: Option<String>,
    /// How to write it.
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub format: DiffFormat,
    /// What exit code 1 is for.
    #[arg(long, value_name = "WHAT", default_value = "any")]
    pub fail_on: FailOn,
    /// The same as `--format json`.
    #[arg(long, conflicts_with = "format")]
    pub json: bool,
}

/// How differences are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum DiffFormat {
    /// For people.
    Text,
    /// A JSON object.
    Json,
    /// A comment for a pull request.
    Markdown,
    /// Annotations of a GitHub workflow.
    Github,
}

/// Which differences make the answer no.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum FailOn {
    /// Any.
    Any,
    /// Those that allow what was not allowed.
    Widens,
}

/// Arguments of `resolve`.
#[derive(Debug, Args)]
pub struct ResolveArguments {
    /// Which policy.
    #[command(flatten)]
    pub policy: PolicyArgument,
    /// Write the pins to this file; pins that it already holds are confirmed, not forgotten.
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<String>,
}

/// Arguments of `render`.
#[derive(Debug, Args)]
pub struct RenderArguments {
    /// Which policy.
    #[command(flatten)]
    pub policy: PolicyArgument,
    /// How to write it.
    #[arg(long, value_name = "FORMAT", default_value = "nft")]
    pub format: RenderFormat,
    /// Take the addresses from this pins file; without it names have none.
    #[arg(long, value_name = "FILE")]
    pub pins: Option<String>,
    /// The same as `--format json`.
    #[arg(long, conflicts_with = "format")]
    pub json: bool,
}

/// How rules are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum RenderFormat {
    /// A script for `nft -f`.
    Nft,
    /// A shell script for ipset, iptables and ip6tables.
    Iptables,
    /// A JSON object.
    Json,
}

/// A packet filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum BackendName {
    /// nf_tables, by netlink.
    Nftables,
    /// iptables, ip6tables and ipset, by their programs; weaker, for hosts without nf_tables.
    Iptables,
}

/// Arguments of `apply`.
#[derive(Debug, Args)]
pub struct ApplyArguments {
    /// Which policy.
    #[command(flatten)]
    pub policy: PolicyArgument,
    /// Say what would change, and change nothing. Exit code 1 when something would.
    #[arg(long)]
    pub dry_run: bool,
    /// Take the addresses from this pins file and ask no DNS server.
    #[arg(long, value_name = "FILE")]
    pub pins: Option<String>,
    /// Only for so long, unless `egressguard confirm` comes from a new connection: then the kernel falls back by itself.
    #[arg(long, value_name = "TIME", conflicts_with = "dry_run")]
    pub confirm: Option<String>,
    /// Apply although this remote session could not be opened again.
    #[arg(long)]
    pub force: bool,
    /// Apply although policy tests fail.
    #[arg(long)]
    pub skip_tests: bool,
    /// Which packet filter is to hold the rules [default: the one of the last apply; nftables at first].
    #[arg(long, value_name = "BACKEND")]
    pub backend: Option<BackendName>,
    /// Answer with a JSON object.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `confirm`.
#[derive(Debug, Args)]
pub struct ConfirmArguments {
    /// Also from a connection that is older than the rules on trial.
    #[arg(long)]
    pub force: bool,
    /// Answer with a JSON object.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `rollback`.
#[derive(Debug, Args)]
pub struct RollbackArguments {
    /// Answer with a JSON object.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `refresh`.
#[derive(Debug, Args)]
pub struct RefreshArguments {
    /// Put rules right that somebody else changed.
    #[arg(long)]
    pub repair: bool,
    /// Only write down what was refused since the last run: nobody is asked and no rule is touched. For a shutdown.
    #[arg(long, conflicts_with_all = ["repair", "json"])]
    pub harvest: bool,
    /// Answer with a JSON object.
    #[arg(long)]
    pub json: bool,
}

/// How a report is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ReportFormat {
    /// For a terminal.
    Text,
    /// For programs.
    Json,
    /// For an issue or a mail.
    Markdown,
    /// One page for a browser.
    Html,
}

/// Arguments of `report`.
#[derive(Debug, Args)]
#[command(after_help = "Exit codes: 0 nothing was refused, 1 something was. With --check-journal: 0 whole, 1 tampered with.\n\n  \
egressguard report\n  \
egressguard report --since 7d --user backend --format html > report.html\n  \
egressguard report --check-journal")]
pub struct ReportArguments {
    /// From when on: how long ago (`24h`, `7d`), or a time (RFC 3339).
    #[arg(long, value_name = "WHEN", default_value = "24h")]
    pub since: String,
    /// Until when, in the same words [default: now].
    #[arg(long, value_name = "WHEN")]
    pub until: Option<String>,
    /// Only what programs of this user tried: a name or a number.
    #[arg(long, value_name = "USER")]
    pub user: Option<String>,
    /// Only what was to go there: an address, a network, or a name of the policy.
    #[arg(long, value_name = "WHERE")]
    pub to: Option<String>,
    /// Only what went this way: `out`, `forward` or `in`.
    #[arg(long, value_name = "WAY")]
    pub direction: Option<String>,
    /// How to write it.
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub format: ReportFormat,
    /// Answer with a JSON object.
    #[arg(long)]
    pub json: bool,
    /// Check that nobody has edited the books of violations.
    #[arg(long)]
    pub check_journal: bool,
}

/// Arguments of `suggest`.
#[derive(Debug, Args)]
#[command(after_help = "The policy is printed, or written with -o, and never applied. Exit codes: 0 it allows all that was seen,\n\
1 something is left out, with the reason in its last lines.\n\n  \
egressguard suggest -o new.yaml\n  \
egressguard suggest --since 2d --name db.example.com --name github.com\n  \
egressguard diff policy.yaml new.yaml")]
pub struct SuggestArguments {
    /// From when on: how long ago (`24h`, `7d`), or a time (RFC 3339). Without it: since the policy was applied, at most 7 days ago.
    #[arg(long, value_name = "WHEN")]
    pub since: Option<String>,
    /// A name that may have been meant: addresses that DNS gives it now become the name. Can be said again.
    #[arg(long, value_name = "NAME")]
    pub name: Vec<String>,
    /// Write the policy to this file.
    #[arg(short, long, value_name = "FILE", conflicts_with = "json")]
    pub output: Option<String>,
    /// Answer with a JSON object.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `quarantine`.
#[derive(Debug, Args)]
#[command(after_help = "Who is cut off keeps loopback, neighbours, DHCP and `management`, and nothing else, until he is released.\n\n  \
egressguard quarantine --dry-run\n  \
egressguard quarantine\n  \
egressguard quarantine --release\n  \
egressguard quarantine --release user backend")]
pub struct QuarantineArguments {
    /// Let go again: the whole host and everybody whom rules have cut off, or USER alone.
    #[arg(long)]
    pub release: bool,
    /// Only this user, as `user NAME` or `uid NUMBER`.
    #[arg(value_name = "USER", num_args = 0..=2, requires = "release")]
    pub who: Vec<String>,
    /// Say what would end and what would stay, and change nothing.
    #[arg(long, conflicts_with = "release")]
    pub dry_run: bool,
    /// Also when the session this runs in could not be opened again.
    #[arg(long, conflicts_with = "release")]
    pub force: bool,
    /// Answer with a JSON object.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `status`.
#[derive(Debug, Args)]
pub struct StatusArguments {
    /// Answer with a JSON object.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `verify`.
#[derive(Debug, Args)]
pub struct VerifyArguments {
    /// Answer with a JSON object.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `watch`.
#[derive(Debug, Args)]
#[command(after_help = "On a terminal it is a table that updates in place; anywhere else, and with --json, a line for each burst of\n\
packets. Where the service follows the packet log already, the service's book is followed instead.\n\n  \
egressguard watch\n  \
egressguard watch --json | jq .destination")]
pub struct WatchArguments {
    /// Write a JSON object on a line for each record.
    #[arg(long)]
    pub json: bool,
    /// Run as a service: write the book and the journal, run the policy's alert, tell the service manager.
    #[arg(long, conflicts_with = "json")]
    pub service: bool,
    /// Serve metrics over HTTP at this address of the loopback: `127.0.0.1:9477`, or the port alone.
    #[arg(long, value_name = "ADDR")]
    pub metrics: Option<String>,
    /// Let `--metrics` name an address that is not of the loopback: whoever reaches it learns who tried what.
    #[arg(long, requires = "metrics")]
    pub metrics_from_anywhere: bool,
}

/// Arguments of `remove`.
#[derive(Debug, Args)]
pub struct RemoveArguments {
    /// Do not ask.
    #[arg(long)]
    pub yes: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }
}
