//! Two named network namespaces, a host's and the internet's, with a cable between them, and the binary run against the host's.
//!
//! Everything is run from a third, empty namespace: a program that forgot its `--netns` would find nothing to break there.
#![allow(dead_code)]

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use std::{env, process, thread};

use egressguard::system::netlink::flow::KernelFlows;
use egressguard::world::Flows;
use nix::sched::{CloneFlags, setns, unshare};
use tempfile::TempDir;

use crate::listing::Listing;

/// The host's address on the cable.
pub const HOST: &str = "192.0.2.1";
/// The other end of the cable, where DNS is.
pub const DNS: &str = "192.0.2.53";
/// In the old policy only.
pub const OLD: &str = "198.51.100.10";
/// In both policies.
pub const BOTH: &str = "198.51.100.20";
/// In the new policy only.
pub const NEW: &str = "198.51.100.30";
/// In no policy.
pub const STRANGER: &str = "203.0.113.66";
/// In no policy, the other family.
pub const STRANGER_V6: &str = "2001:db8:66::1";
/// In the old policy only, the other family.
pub const OLD_V6: &str = "2001:db8:10::1";
/// In the new policy only, the other family.
pub const NEW_V6: &str = "2001:db8:30::1";

/// How long anything that is run may take, in seconds.
const PATIENCE: u32 = 40;
/// How long an attempt to connect may take.
const CONNECT: Duration = Duration::from_millis(400);

/// A network namespace with a name, as `ip netns` has them; removed when dropped.
#[derive(Debug)]
pub struct Namespace {
    /// Its name.
    pub name: String,
}

impl Namespace {
    /// Makes one whose name nobody else has.
    pub fn new(role: &str) -> Namespace {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("egf-{role}-{}-{}", process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let made = Command::new("ip").args(["netns", "add", &name]).output().expect("ip can be run");
        assert!(made.status.success(), "ip netns add: {}", String::from_utf8_lossy(&made.stderr));
        Namespace { name }
    }

    /// Runs something on a thread inside it; what is started there stays there.
    pub fn within<T: Send>(&self, body: impl FnOnce() -> T + Send) -> T {
        let file = File::open(Path::new("/run/netns").join(&self.name)).expect("the namespace is there");
        inside(&file, body)
    }

    /// Runs `nft` in it, and gives what it printed.
    pub fn nft(&self, arguments: &[&str]) -> String {
        let output = self.try_nft(arguments);
        assert!(output.status.success(), "nft {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("nft prints text")
    }

    /// Runs `nft` in it, whatever becomes of it.
    pub fn try_nft(&self, arguments: &[&str]) -> Output {
        self.within(|| Command::new("nft").args(arguments).output().expect("nft can be run"))
    }

    /// Our table as it is, without what time and packets make of it; `None` when there is none.
    pub fn listing(&self) -> Option<Listing> {
        let output = self.try_nft(&["-s", "list", "table", "inet", "egressguard"]);
        output.status.success().then(|| Listing::of(&String::from_utf8_lossy(&output.stdout)))
    }

    fn ip(&self, lines: &str) {
        self.within(|| {
            let mut child = Command::new("ip").args(["-batch", "-"]).stdin(Stdio::piped()).spawn().expect("ip can be run");
            child.stdin.take().expect("a pipe").write_all(lines.as_bytes()).expect("ip listens");
            assert!(child.wait().expect("ip ends").success(), "ip refused one of:\n{lines}");
        });
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.name]).status();
    }
}

/// Runs something on a thread inside this namespace; panics rather than touch the one of process 1.
pub fn inside<T: Send>(namespace: &File, body: impl FnOnce() -> T + Send) -> T {
    let own = || {
        setns(namespace, CloneFlags::CLONE_NEWNET).expect("root can enter a namespace");
        assert_foreign();
        body()
    };
    thread::scope(|scope| scope.spawn(own).join()).unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Runs something in a fresh namespace without a name, which ends with it.
pub fn in_fresh_namespace<T: Send>(body: impl FnOnce() -> T + Send) -> T {
    let own = || {
        unshare(CloneFlags::CLONE_NEWNET).expect("root can make a namespace");
        assert_foreign();
        body()
    };
    thread::scope(|scope| scope.spawn(own).join()).unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Panics in the namespace that the tests were started in, where their first thread stays, and in that of process 1, which a container
/// may hide.
fn assert_foreign() {
    let own = fs::read_link("/proc/thread-self/ns/net").expect("/proc is there");
    assert_ne!(own, fs::read_link("/proc/self/ns/net").expect("/proc is there"), "this is where the tests were started");
    assert_ne!(Some(own), fs::read_link("/proc/1/ns/net").ok(), "this would touch the packet filter of the machine");
}

/// The empty namespace that programs are started from.
fn guard() -> &'static File {
    static GUARD: OnceLock<File> = OnceLock::new();
    GUARD.get_or_init(|| in_fresh_namespace(|| File::open("/proc/thread-self/ns/net").expect("/proc is there")))
}

/// Says why kernel tests cannot run here; fails when the environment asks that they do.
pub fn cannot_run(programs: &[&str]) -> bool {
    let missing = |program: &&&str| Command::new(**program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_err();
    let why = if !nix::unistd::geteuid().is_root() {
        Some("named namespaces need root".to_string())
    } else if let Some(program) = ["ip", "nft"].iter().chain(programs).find(missing) {
        Some(format!("`{program}` is not installed"))
    } else {
        let made = Command::new("ip").args(["netns", "add", &format!("egf-try-{}", process::id())]).output();
        let _ = Command::new("ip").args(["netns", "del", &format!("egf-try-{}", process::id())]).output();
        match made {
            Ok(output) if output.status.success() => None,
            Ok(output) => Some(String::from_utf8_lossy(&output.stderr).trim().to_string()),
            Err(error) => Some(error.to_string()),
        }
    };
    let Some(why) = why else { return false };
    assert!(env::var_os("EGRESSGUARD_REQUIRE_KERNEL").is_none_or(|value| value != "1"), "kernel tests are required: {why}");
    println!("skipped: {why}");
    true
}

/// How a program ended.
#[derive(Debug, Clone)]
pub struct Ran {
    /// The exit code; `None` when a signal ended it.
    pub code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

impl Ran {
    fn of(status: ExitStatus, out: &[u8], err: &[u8]) -> Ran {
        let text = |octets: &[u8]| String::from_utf8_lossy(octets).into_owned();
        Ran { code: status.code(), signal: status.signal(), out: text(out), err: text(err) }
    }

    /// Asserts the exit code, and shows everything when it is another.
    #[track_caller]
    pub fn expect(self, code: i32) -> Ran {
        assert_eq!(self.code, Some(code), "{self}");
        assert_clean_words(&self.err);
        self
    }

    /// Asserts that the world refused, with words and a next step that say all of this.
    #[track_caller]
    pub fn refuses_with(self, words: &[&str]) -> Ran {
        let ran = self.expect(3);
        assert!(ran.err.contains("error: ") && ran.err.contains("help: "), "{ran}");
        for word in words {
            assert!(ran.err.contains(word), "`{word}` is not said: {ran}");
        }
        ran
    }
}

impl std::fmt::Display for Ran {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "exit code {:?}, signal {:?}\n--- stdout\n{}--- stderr\n{}---", self.code, self.signal, self.out, self.err)
    }
}

/// No word of the implementation gets out.
#[track_caller]
pub fn assert_clean_words(err: &str) {
    for word in ["panicked", "RUST_BACKTRACE", "os error", "unwrap", "Err("] {
        assert!(!err.contains(word), "`{word}` in: {err}");
    }
}

/// A host with a policy directory and a state directory, and the internet at the other end of its cable.
#[derive(Debug)]
pub struct Arena {
    /// Where the rules are.
    pub host: Namespace,
    /// Where the servers are.
    pub internet: Namespace,
    /// Where the files are.
    pub directory: TempDir,
    servers: Vec<Child>,
}

impl Arena {
    /// Makes it; every address of this file answers TCP connections to port 443.
    pub fn new() -> Arena {
        let (host, internet) = (Namespace::new("host"), Namespace::new("net"));
        host.ip(&format!("link set lo up\nlink add cable type veth peer name socket netns {}\n", internet.name));
        let mut far = String::from("link set lo up\naddr add 192.0.2.53/24 dev socket\naddr add 2001:db8:ffff::53/64 dev socket nodad\n");
        for address in [OLD, BOTH, NEW, STRANGER] {
            far.push_str(&format!("addr add {address}/32 dev lo\n"));
        }
        for address in [OLD_V6, NEW_V6, STRANGER_V6] {
            far.push_str(&format!("addr add {address}/128 dev lo nodad\n"));
        }
        internet.ip(&format!("{far}link set socket up\n"));
        host.ip("addr add 192.0.2.1/24 dev cable\naddr add 2001:db8:ffff::1/64 dev cable nodad\nlink set cable up\n\
             route add default via 192.0.2.53 dev cable\nroute add default via 2001:db8:ffff::53 dev cable\n");
        let listener = internet.within(|| TcpListener::bind("[::]:443").expect("the port is free"));
        // It ends with the process; connections are ended at once.
        thread::spawn(move || listener.incoming().for_each(drop));
        let directory = TempDir::new().expect("a directory for the test");
        fs::create_dir(directory.path().join("state")).expect("a directory of our own");
        Arena { host, internet, directory, servers: Vec::new() }
    }

    /// A file of this arena.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The same as text.
    pub fn file(&self, name: &str) -> String {
        self.path(name).to_str().expect("paths here are text").to_string()
    }

    /// Writes a file of this arena, and gives its path.
    pub fn write(&self, name: &str, content: &str) -> String {
        fs::write(self.path(name), content).expect("the directory is ours");
        self.file(name)
    }

    /// The state directory.
    pub fn state(&self) -> PathBuf {
        self.path("state")
    }

    /// The binary with this state directory and this namespace, to be run from the empty one.
    pub fn arguments(&self, arguments: &[&str]) -> Vec<String> {
        let world = ["--netns", &self.host.name, "--state-dir", &self.file("state")];
        [env!("CARGO_BIN_EXE_egressguard")].iter().chain(&world).chain(arguments).map(ToString::to_string).collect()
    }

    /// Runs the binary against the host.
    pub fn run(&self, arguments: &[&str]) -> Ran {
        run(&self.arguments(arguments))
    }

    /// Starts a DNS server that answers from the file `hosts` of this arena.
    pub fn serve_dns(&mut self, hosts: &str) {
        self.write("hosts", hosts);
        let arguments = [
            "--keep-in-foreground".to_string(),
            "--conf-file=/dev/null".to_string(),
            "--no-resolv".to_string(),
            "--no-hosts".to_string(),
            format!("--addn-hosts={}", self.file("hosts")),
            format!("--listen-address={DNS}"),
            "--bind-interfaces".to_string(),
            "--local-ttl=300".to_string(),
            "--user=root".to_string(),
            "--local=/test/".to_string(),
            format!("--pid-file={}", self.file("dnsmasq.pid")),
        ];
        let server = self
            .internet
            .within(|| Command::new("dnsmasq").args(&arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn());
        self.servers.push(server.expect("dnsmasq can be run"));
        self.change_dns(hosts);
    }

    /// Changes what the DNS server answers, and waits until it does.
    pub fn change_dns(&self, hosts: &str) {
        let mark = format!("{} mark-{}.test\n", HOST, unique());
        let name = mark.split_whitespace().last().expect("two words").to_string();
        self.write("hosts", &format!("{hosts}\n{mark}"));
        let server = self.servers.last().expect("the DNS server runs");
        let until = Instant::now() + Duration::from_secs(5);
        while !self.internet.within(|| answers(&name)) {
            assert!(Instant::now() < until, "the DNS server does not answer");
            let pid = nix::unistd::Pid::from_raw(i32::try_from(server.id()).expect("a process id"));
            // Before its handlers are set a signal would end it.
            if self.path("dnsmasq.pid").exists() {
                nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGHUP).expect("it is our child");
            }
            thread::sleep(Duration::from_millis(15));
        }
    }

    /// Ends the DNS server.
    pub fn stop_dns(&mut self) {
        for mut server in self.servers.drain(..) {
            let _ = server.kill();
            let _ = server.wait();
        }
    }

    /// Whether a connection from the host to port 443 there comes to be.
    pub fn reaches(&self, address: &str) -> bool {
        self.reach(&[address])[0]
    }

    /// The same for several addresses at once.
    pub fn reach(&self, addresses: &[&str]) -> Vec<bool> {
        self.host.within(|| addresses.iter().map(|address| connects(address)).collect())
    }

    /// Connections from the host to port 443 there, held open.
    pub fn hold(&self, addresses: &[&str]) -> Vec<TcpStream> {
        self.host.within(|| addresses.iter().map(|address| connect(address).expect("the way is open")).collect())
    }

    /// How many flows and sockets of the host have this address at their other end.
    pub fn under_way(&self, address: &str) -> usize {
        let address: IpAddr = address.parse().expect("an address");
        self.host.within(|| {
            let mut kernel = KernelFlows::new();
            let flows = kernel.tracked().expect("the kernel lists its flows");
            let sockets = kernel.sockets(&BTreeSet::new()).expect("the kernel lists its sockets");
            flows.iter().filter(|flow| [flow.original.destination, flow.original.source].contains(&address)).count()
                + sockets.iter().filter(|socket| socket.remote.is_some_and(|remote| remote.ip() == address)).count()
        })
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        self.stop_dns();
    }
}

fn connects(address: &str) -> bool {
    connect(address).is_ok()
}

fn connect(address: &str) -> io::Result<TcpStream> {
    let address: IpAddr = address.parse().expect("an address");
    TcpStream::connect_timeout(&SocketAddr::new(address, 443), CONNECT)
}

fn unique() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// Whether the DNS server knows the name.
fn answers(name: &str) -> bool {
    let mut question = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        question.push(u8::try_from(label.len()).expect("a short label"));
        question.extend(label.as_bytes());
    }
    question.extend([0, 0, 1, 0, 1]);
    let ask = || -> io::Result<bool> {
        let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
        socket.set_read_timeout(Some(Duration::from_millis(200)))?;
        socket.send_to(&question, (DNS, 53))?;
        let mut answer = [0; 512];
        let length = socket.recv(&mut answer)?;
        // No error, and at least one answer.
        Ok(length > 7 && answer[3] & 15 == 0 && answer[7] > 0)
    };
    ask().unwrap_or(false)
}

/// Runs a program from the empty namespace, with nothing of this session's environment that it heeds.
pub fn run(words: &[String]) -> Ran {
    inside(guard(), || run_here(words))
}

/// Starts a program from the empty namespace.
pub fn start(words: &[String]) -> Child {
    inside(guard(), || command(words).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts"))
}

/// Waits for a program that was started.
pub fn finish(child: Child) -> Ran {
    let output = child.wait_with_output().expect("it ends");
    Ran::of(output.status, &output.stdout, &output.stderr)
}

/// Runs a program from the namespace of the calling thread.
pub fn run_here(words: &[String]) -> Ran {
    assert_foreign();
    let output = command(words).stdin(Stdio::null()).output().expect("it can be run");
    Ran::of(output.status, &output.stdout, &output.stderr)
}

/// The command of these words, which ends in bounded time.
pub fn command(words: &[String]) -> Command {
    let mut command = Command::new("timeout");
    command.args(["-k", "1", &PATIENCE.to_string()]).args(words);
    for name in ["SSH_CONNECTION", "EGRESSGUARD_STATE_DIR", "EGRESSGUARD_RESOLV_CONF", "RUST_BACKTRACE"] {
        command.env_remove(name);
    }
    command.env("NO_COLOR", "1");
    command
}

/// Copies the files of a directory into an empty one.
pub fn copy_directory(from: &Path, to: &Path) {
    let _ = fs::remove_dir_all(to);
    fs::create_dir(to).expect("the parent is ours");
    for entry in fs::read_dir(from).expect("a directory") {
        let entry = entry.expect("an entry");
        fs::copy(entry.path(), to.join(entry.file_name())).expect("a file of ours");
    }
}

/// The names of the files of a directory, sorted.
pub fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).expect("a directory");
    let mut names: Vec<String> = entries.map(|entry| entry.expect("an entry").file_name().into_string().expect("text")).collect();
    names.sort();
    names
}
