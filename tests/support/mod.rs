//! The world that story tests play in: the real program, real network namespaces, a real DNS server and sockets that answer.
//!
//! Each [`World`] has a protected `host`, joined by a cable to a `net` where a resolver, the API and a stranger live. Nothing here
//! ever touches the packet filter of the namespace that the tests were started in: every namespace is checked to be another one.
#![allow(dead_code)]

pub mod kernel;
pub mod machine;
pub mod nameserver;
pub mod people;
pub mod stream;

use std::fs;
use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use egressguard::demo::attempt::{Seen, Way, attempt};
use egressguard::demo::internet::Authority;
use egressguard::demo::namespace::Namespace;
use nameserver::Nameserver;

/// The name that the default policy lets out.
pub const API: &str = "api.openai.com";
/// Where the API is found first, second and never. These are public addresses, because answers in special-purpose ranges are
/// refused; they exist inside the test's namespaces only.
pub const API_V4: &str = "162.159.140.245";
pub const API_V6: &str = "2606:4700:7::a29f:8cf5";
pub const LATER_V4: &str = "172.66.0.243";
pub const LATER_V6: &str = "2a06:98c1:58::f3";
pub const NEIGHBOUR_V4: &str = "104.18.7.192";
/// Somebody the policy does not name.
pub const STRANGER_V4: &str = "198.51.100.66";
pub const STRANGER_V6: &str = "2001:db8:bad::66";
/// The DNS server of the host's resolv.conf.
pub const RESOLVER_V4: &str = "198.51.100.53";
/// Where a second one may be put.
pub const SECOND_RESOLVER_V4: &str = "198.51.100.54";
/// An address from which no answer ever comes.
pub const SILENCE_V4: &str = "198.51.100.250";
/// The host, and its gateway in `net`.
pub const HOST_V4: &str = "203.0.113.10";
pub const HOST_V6: &str = "2001:db8:113::10";
pub const GATEWAY_V4: &str = "203.0.113.1";
/// A machine behind the host, after [`World::put_a_machine_behind`], and the host as that machine sees it.
pub const BEHIND_V4: &str = "192.168.50.2";
pub const BEHIND_V6: &str = "fd00:50::2";

/// What a run of a program came to.
#[derive(Debug)]
pub struct Output {
    /// Its exit code; -1 when a signal ended it.
    pub code: i32,
    /// What it wrote to standard output.
    pub stdout: String,
    /// What it wrote to standard error.
    pub stderr: String,
}

impl Output {
    /// Both outputs, for looking up words.
    pub fn words(&self) -> String {
        format!("{}\n{}", self.stdout, self.stderr)
    }

    /// Panics with everything that was said unless the exit code is this one.
    #[track_caller]
    pub fn exits(self, code: i32) -> Output {
        assert_eq!(self.code, code, "exit code {} instead of {code}\n--- stdout\n{}--- stderr\n{}", self.code, self.stdout, self.stderr);
        self
    }

    /// Panics with everything that was said unless all these words were, in any case of letters.
    #[track_caller]
    pub fn says(self, words: &[&str]) -> Output {
        let said = self.words().to_lowercase();
        for word in words {
            assert!(
                said.contains(&word.to_lowercase()),
                "nothing is said of `{word}`\n--- stdout\n{}--- stderr\n{}",
                self.stdout,
                self.stderr
            );
        }
        self
    }

    fn of(output: std::process::Output) -> Output {
        let text = |octets: &[u8]| String::from_utf8_lossy(octets).into_owned();
        Output { code: output.status.code().unwrap_or(-1), stdout: text(&output.stdout), stderr: text(&output.stderr) }
    }
}

/// From where an attempt is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The protected host.
    Host,
    /// The outside.
    Net,
    /// The machine behind the host.
    Behind,
}

/// One named namespace, deleted when dropped.
struct Named {
    name: String,
    namespace: Namespace,
}

impl Named {
    fn make(role: &str) -> Result<Named, String> {
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        let name = format!("eg-{}-{}-{role}", std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed));
        run(Command::new("ip").args(["netns", "add", &name]))?;
        let path = Path::new("/run/netns").join(&name);
        let namespace = Namespace::open(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        let identity = namespace.identity().map_err(|error| error.to_string())?;
        for other in ["/proc/1/ns/net", "/proc/thread-self/ns/net"] {
            let other = Namespace::open(Path::new(other)).and_then(|other| other.identity());
            assert_ne!(Some(identity), other.ok(), "`{name}` is the namespace of the machine: refusing to go on");
        }
        Ok(Named { name, namespace })
    }

    /// A command that will run inside.
    fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name]).arg(program);
        command
    }

    fn ip(&self, lines: &str) -> Result<(), String> {
        for line in lines.lines().map(str::trim).filter(|line| !line.is_empty()) {
            run(Command::new("ip").args(["-n", &self.name]).args(line.split_whitespace())).map_err(|why| format!("ip {line}: {why}"))?;
        }
        Ok(())
    }
}

impl Drop for Named {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.name]).stderr(Stdio::null()).status();
    }
}

/// The world of one test.
pub struct World {
    // ORDER: the name server ends before its namespace is deleted.
    pub nameserver: Nameserver,
    host: Named,
    net: Named,
    behind: Option<Named>,
    authority: Authority,
    directory: tempfile::TempDir,
}

impl World {
    /// Makes a world with a running name server that knows the API. Where that is impossible, says why and answers `None`; panics
    /// instead when `EGRESSGUARD_REQUIRE_KERNEL=1`.
    pub fn new() -> Option<World> {
        match World::try_new() {
            Ok(world) => Some(world),
            Err(why) => {
                assert!(std::env::var("EGRESSGUARD_REQUIRE_KERNEL").as_deref() != Ok("1"), "the kernel tests are required here: {why}");
                println!("skipped: {why}");
                None
            }
        }
    }

    fn try_new() -> Result<World, String> {
        if !nix::unistd::geteuid().is_root() {
            return Err("named network namespaces need root".to_string());
        }
        let (host, net) = (Named::make("host")?, Named::make("net")?);
        host.ip(&format!("link set lo up\nlink add uplink type veth peer name downlink netns {}", net.name))?;
        net.ip(&format!(
            "link set lo up
             addr add {GATEWAY_V4}/24 dev downlink
             addr add 2001:db8:113::1/64 dev downlink nodad
             link set downlink up"
        ))?;
        for address in [API_V4, LATER_V4, NEIGHBOUR_V4, STRANGER_V4, RESOLVER_V4, SECOND_RESOLVER_V4, API_V6, LATER_V6, STRANGER_V6] {
            net.ip(&format!("addr add {address}{}", if address.contains(':') { "/128 dev lo nodad" } else { "/32 dev lo" }))?;
        }
        host.ip(&format!(
            "addr add {HOST_V4}/24 dev uplink
             addr add {HOST_V6}/64 dev uplink nodad
             link set uplink up
             route add default via {GATEWAY_V4}
             -6 route add default via 2001:db8:113::1"
        ))?;
        let directory = tempfile::tempdir().map_err(|error| error.to_string())?;
        fs::write(directory.path().join("resolv.conf"), format!("nameserver {RESOLVER_V4}\n")).map_err(|error| error.to_string())?;
        let authority = Authority::for_name(API).map_err(|error| error.to_string())?;
        net.namespace.within(|| people::move_in(&authority)).map_err(|error| error.to_string())?.map_err(|error| format!("{error:#}"))?;
        host.namespace.within(people::open_the_host).map_err(|error| error.to_string())?.map_err(|error| format!("{error:#}"))?;
        let mut nameserver = Nameserver::new(&net.name, &directory.path().join("knot"), &[RESOLVER_V4])?;
        nameserver.set(API, &[API_V4, API_V6])?;
        let world = World { nameserver, host, net, behind: None, authority, directory };
        // A cable that has just been laid drops packets until the kernel has noticed its carrier.
        eventually("the cable carries packets", || {
            world.attempt(Side::Host, Way::DnsTcp { name: API.to_string() }, RESOLVER_V4, 53).answered()
        });
        Ok(world)
    }

    /// Runs the program on the host's namespace with a state directory of this world.
    pub fn egressguard(&self, arguments: &[&str]) -> Output {
        self.egressguard_through(&[], arguments)
    }

    /// The same, run by another program: `setpriv`, `unshare`.
    pub fn egressguard_through(&self, wrapper: &[&str], arguments: &[&str]) -> Output {
        Output::of(self.command(wrapper, arguments).output().expect("the program runs"))
    }

    /// The same, still running; both outputs are pipes.
    pub fn egressguard_started(&self, arguments: &[&str]) -> std::process::Child {
        self.command(&[], arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the program runs")
    }

    /// Runs the program as a person does who came by SSH: inside the host's namespace, with this `SSH_CONNECTION`, and with no
    /// parent outside of it.
    pub fn egressguard_by_ssh(&self, connection: &str, arguments: &[&str]) -> Output {
        let mut command = self.host.command("unshare");
        command.args(["--pid", "--fork", "--mount-proc", "sh", "-c", "\"$@\"; exit $?", "sh", env!("CARGO_BIN_EXE_egressguard")]);
        command.args(arguments).env("SSH_CONNECTION", connection).env("NO_COLOR", "1").stdin(Stdio::null());
        command.arg("--state-dir").arg(self.state()).arg("--resolv-conf").arg(self.directory.path().join("resolv.conf"));
        Output::of(command.output().expect("the program runs"))
    }

    /// The program started by another one inside the host's namespace, still running; both outputs are pipes.
    pub fn started_inside(&self, wrapper: &[&str], arguments: &[&str]) -> std::process::Child {
        let mut command = self.host.command(wrapper.first().expect("a program"));
        command.args(&wrapper[1..]).arg(env!("CARGO_BIN_EXE_egressguard")).args(arguments).arg("--state-dir").arg(self.state());
        command.env("NO_COLOR", "1").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().expect("the program runs")
    }

    /// Another program inside the host's namespace.
    pub fn inside(&self, program: &Path) -> Command {
        self.host.command(program)
    }

    fn command(&self, wrapper: &[&str], arguments: &[&str]) -> Command {
        assert!(!arguments.contains(&"--netns"), "the namespace of a test is always its own");
        let program = env!("CARGO_BIN_EXE_egressguard");
        let mut command = match wrapper {
            [] => Command::new(program),
            [outer, inner @ ..] => {
                let mut command = Command::new(outer);
                command.args(inner).arg(program);
                command
            }
        };
        command.args(arguments).args(["--netns", &self.host.name]).stdin(Stdio::null()).env("NO_COLOR", "1");
        command.arg("--state-dir").arg(self.state()).arg("--resolv-conf").arg(self.directory.path().join("resolv.conf"));
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            if text.starts_with("SSH_") || text.starts_with("EGRESSGUARD_") {
                command.env_remove(&name);
            }
        }
        command
    }

    /// The state directory, which the program makes when it needs it.
    pub fn state(&self) -> PathBuf {
        self.directory.path().join("state")
    }

    /// Writes a policy and answers with its path.
    pub fn policy(&self, text: &str) -> String {
        let path = self.directory.path().join("policy.yaml");
        fs::write(&path, text).expect("a temporary file can be written");
        path.display().to_string()
    }

    /// Names other servers in the host's resolv.conf.
    pub fn ask_at(&self, servers: &[&str]) {
        let text: String = servers.iter().map(|server| format!("nameserver {server}\n")).collect();
        fs::write(self.directory.path().join("resolv.conf"), text).expect("a temporary file can be written");
    }

    /// Starts a name server at [`SECOND_RESOLVER_V4`].
    pub fn second_nameserver(&self) -> Nameserver {
        Nameserver::new(&self.net.name, &self.directory.path().join("second"), &[SECOND_RESOLVER_V4]).expect("a second name server starts")
    }

    /// Runs `nft` on the host's namespace.
    pub fn nft(&self, arguments: &[&str]) -> Output {
        Output::of(self.host.command("nft").args(arguments).output().expect("nft runs"))
    }

    /// Loads a script with `nft -f` into the host's namespace.
    #[track_caller]
    pub fn nft_load(&self, script: &str) {
        let mut command = self.host.command("nft");
        let mut child = command.args(["-f", "-"]).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("nft runs");
        child.stdin.take().expect("a pipe").write_all(script.as_bytes()).expect("nft listens");
        Output::of(child.wait_with_output().expect("nft ends")).exits(0);
    }

    /// The rules of our table, without counters and without the elements of sets; `None` when there is no table.
    pub fn rules(&self) -> Option<String> {
        let listed = self.nft(&["-s", "-t", "list", "table", "inet", "egressguard"]);
        (listed.code == 0).then_some(listed.stdout)
    }

    /// The addresses in a set of our table, sorted; for sets with one-field keys.
    #[track_caller]
    pub fn addresses(&self, set: &str) -> Vec<String> {
        let listed = self.nft(&["-j", "list", "set", "inet", "egressguard", set]).exits(0);
        let value: serde_json::Value = serde_json::from_str(&listed.stdout).expect("nft writes JSON");
        let objects = value["nftables"].as_array().expect("a list").iter().find_map(|object| object["set"]["elem"].as_array());
        let key = |element: &serde_json::Value| element.get("elem").map_or(element, |elem| &elem["val"]).as_str().map(str::to_string);
        let mut addresses: Vec<String> = objects.into_iter().flatten().filter_map(key).collect();
        addresses.sort();
        addresses
    }

    /// In how many seconds each address of a set ends, by itself.
    #[track_caller]
    pub fn ends(&self, set: &str) -> Vec<(String, u64)> {
        let listed = self.nft(&["-j", "list", "set", "inet", "egressguard", set]).exits(0);
        let value: serde_json::Value = serde_json::from_str(&listed.stdout).expect("nft writes JSON");
        let objects = value["nftables"].as_array().expect("a list").iter().find_map(|object| object["set"]["elem"].as_array());
        let of = |element: &serde_json::Value| Some((element["elem"]["val"].as_str()?.to_string(), element["elem"]["expires"].as_u64()?));
        objects.into_iter().flatten().filter_map(of).collect()
    }

    /// A file of this world's directory.
    pub fn file(&self, name: &str) -> String {
        self.directory.path().join(name).display().to_string()
    }

    /// A set as `nft` lists it, with its counters; empty text when there is none.
    pub fn set(&self, name: &str) -> String {
        self.nft(&["list", "set", "inet", "egressguard", name]).stdout
    }

    /// How many transactions the packet filter of the host's namespace has seen.
    pub fn generation(&self) -> u32 {
        self.within(Side::Host, kernel::ruleset_generation).expect("the kernel tells its generation")
    }

    /// Does the work inside a namespace.
    pub fn within<T: Send>(&self, side: Side, work: impl FnOnce() -> T + Send) -> T {
        self.place(side).namespace.within(work).expect("the namespace can be entered")
    }

    fn place(&self, side: Side) -> &Named {
        match side {
            Side::Host => &self.host,
            Side::Net => &self.net,
            Side::Behind => self.behind.as_ref().expect("a machine was put behind the host"),
        }
    }

    /// Makes one attempt.
    pub fn attempt(&self, side: Side, way: Way, address: &str, port: u16) -> Seen {
        let to = SocketAddr::new(address.parse::<IpAddr>().expect("an address"), port);
        self.within(side, || attempt(&way, to))
    }

    /// Makes a TCP attempt from the host.
    pub fn tcp(&self, address: &str, port: u16) -> Seen {
        self.attempt(Side::Host, Way::Tcp, address, port)
    }

    /// Makes a UDP attempt from the host.
    pub fn udp(&self, address: &str, port: u16) -> Seen {
        self.attempt(Side::Host, Way::Udp, address, port)
    }

    /// Makes a TLS attempt from the host, in which the API has to prove its name.
    pub fn tls(&self, address: &str) -> Seen {
        self.attempt(Side::Host, Way::Tls { name: API.to_string(), trust: self.authority.client.clone() }, address, 443)
    }

    /// Whether a program of this user and primary group can open a TCP connection from the host.
    pub fn connects_as(&self, uid: u32, gid: u32, address: &str, port: u16) -> bool {
        let mut command = self.host.command("setpriv");
        command.args(["--reuid", &uid.to_string(), "--regid", &gid.to_string(), "--clear-groups"]);
        let script = format!("exec 3<>/dev/tcp/{address}/{port}");
        command.args(["timeout", "1", "bash", "-c", &script]).stderr(Stdio::null());
        command.status().expect("setpriv runs").success()
    }

    /// A program that opens a TCP connection from the host once a line comes to its standard input; its success is whether it could.
    pub fn connects_when_told(&self, address: &str, port: u16) -> std::process::Child {
        let script = format!("read line; exec timeout 1 bash -c 'exec 3<>/dev/tcp/{address}/{port}'");
        self.host.command("bash").args(["-c", &script]).stdin(Stdio::piped()).stderr(Stdio::null()).spawn().expect("bash runs")
    }

    /// Joins a third machine to the other side of the host, which forwards for it.
    pub fn put_a_machine_behind(&mut self) {
        let behind = Named::make("behind").expect("a namespace");
        let lay = || -> Result<(), String> {
            self.host.ip(&format!(
                "link add inner type veth peer name outer netns {}
                 addr add 192.168.50.1/24 dev inner
                 addr add fd00:50::1/64 dev inner nodad
                 link set inner up",
                behind.name
            ))?;
            behind.ip(&format!(
                "link set lo up
                 addr add {BEHIND_V4}/24 dev outer
                 addr add {BEHIND_V6}/64 dev outer nodad
                 link set outer up
                 route add default via 192.168.50.1
                 -6 route add default via fd00:50::1"
            ))?;
            self.net.ip(&format!("route add 192.168.50.0/24 via {HOST_V4}\n-6 route add fd00:50::/64 via {HOST_V6}"))
        };
        lay().expect("a cable can be laid");
        self.within(Side::Host, || {
            fs::write("/proc/sys/net/ipv4/ip_forward", "1").expect("forwarding can be switched on");
            fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1").expect("forwarding can be switched on");
        });
        behind.namespace.within(people::open_the_host).expect("the namespace can be entered").expect("ports are free");
        self.behind = Some(behind);
    }

    /// Runs `ip` on one machine.
    #[track_caller]
    pub fn ip(&self, side: Side, lines: &str) {
        self.place(side).ip(lines).expect("ip does it");
    }
}

/// Waits until something is so; panics when it is not within five seconds.
#[track_caller]
pub fn eventually(what: &str, so: impl FnMut() -> bool) {
    within_seconds(5, what, so);
}

/// The same for what takes longer.
#[track_caller]
pub fn within_seconds(seconds: u64, what: &str, mut so: impl FnMut() -> bool) {
    let begun = std::time::Instant::now();
    while !so() {
        assert!(begun.elapsed() < Duration::from_secs(seconds), "not within {seconds} seconds: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Panics unless an answer came.
#[track_caller]
pub fn passes(seen: Seen) {
    assert!(seen.answered(), "refused: {seen}");
}

/// Panics if an answer came.
#[track_caller]
pub fn is_refused(seen: Seen) {
    assert!(!seen.answered(), "passed: {seen}");
}

fn run(command: &mut Command) -> Result<(), String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.output().map_err(|error| format!("`{program}`: {error}"))?;
    if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).trim().to_string()) }
}
