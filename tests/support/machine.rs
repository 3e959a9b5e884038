//! A machine that really boots: systemd as process 1 with all of its file system, in namespaces of its own, joined by a cable to the
//! `net` of a [`World`]. The kernel is this machine's.
//!
//! Its file system is this machine's own, or the directory that `EGRESSGUARD_BOOT_ROOT` names, below a layer in memory that takes what is
//! written: nothing of what lies below changes. Each boot has a network namespace of its own, for the rules of a kernel end with it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use super::{GATEWAY_V4, HOST_V4, Named, Output, RESOLVER_V4, Side, World, run, within_seconds};

/// How the network of a machine is configured: by networkd, which begins after network-pre.target as every manager does.
const NETWORK: &str = "[Match]\nName=uplink\n[Network]\nLinkLocalAddressing=no\nIPv6AcceptRA=no\n";
/// Sends to a stranger from the first moment on, whether there is a network or not.
const EAGER: &str = "[Unit]\nDefaultDependencies=no\n[Service]\nExecStart=/bin/bash -c 'while :; do for n in 1 2 3 4 5 6 7 8; do \
echo x > /dev/udp/STRANGER/4242; done; (exec 3<>/dev/tcp/STRANGER/4444); sleep 0.02; done'\nStandardError=null\n";

/// The disk of a machine.
pub struct Machine<'w> {
    world: &'w World,
    /// The layer in memory, and where both layers are seen as one.
    layers: tempfile::TempDir,
    boots: AtomicU32,
}

/// A machine that runs.
pub struct Running<'m> {
    machine: &'m Machine<'m>,
    process: Child,
    /// Process 1 of the machine, as this machine numbers it.
    leader: String,
    _network: Named,
}

/// Why no machine can boot here; nothing where one can.
pub fn impossible() -> Option<String> {
    if !nix::unistd::geteuid().is_root() || fs::read_to_string("/proc/self/uid_map").is_ok_and(|map| !map.contains("4294967295")) {
        return Some("a machine that boots needs root outside of any user namespace".to_string());
    }
    let groups = ["/sys/fs/cgroup", "/sys/fs/cgroup/systemd", "/sys/fs/cgroup/unified"];
    if !groups.iter().any(|place| nix::unistd::access(*place, nix::unistd::AccessFlags::W_OK).is_ok()) {
        return Some("a machine that boots needs control groups that can be written to".to_string());
    }
    match Command::new("systemd-nspawn").arg("--version").stdout(Stdio::null()).status() {
        Ok(status) if status.success() => None,
        _ => Some("a machine that boots needs the package systemd-container".to_string()),
    }
}

impl<'w> Machine<'w> {
    /// A machine on which nothing of ours is installed, and on which somebody sends to `stranger` as soon as he can.
    pub fn new(world: &'w World, stranger: &str) -> Machine<'w> {
        let layers = tempfile::tempdir().expect("a temporary directory");
        let at = |name: &str| layers.path().join(name);
        mount(&["-t", "tmpfs", "tmpfs", &layers.path().display().to_string()]);
        for name in ["upper", "work", "root"] {
            fs::create_dir(at(name)).expect("a directory in memory");
        }
        let below = std::env::var("EGRESSGUARD_BOOT_ROOT").unwrap_or_else(|_| "/".to_string());
        let options = format!("lowerdir={below},upperdir={},workdir={}", at("upper").display(), at("work").display());
        mount(&["-t", "overlay", "overlay", "-o", &options, &at("root").display().to_string()]);
        // The cable of the world's host goes to the machine instead.
        world.ip(Side::Host, "link del uplink");
        let machine = Machine { world, layers, boots: AtomicU32::new(0) };
        // Services that whoever lent the file system has enabled are his affair.
        for entry in fs::read_dir(machine.path("etc/systemd/system")).into_iter().flatten().flatten() {
            let path = entry.path();
            let _ = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        }
        machine.write("etc/fstab", "");
        machine.write("etc/machine-id", "0123456789abcdef0123456789abcdef\n");
        let _ = fs::remove_file(machine.path("etc/resolv.conf"));
        machine.write("etc/resolv.conf", &format!("nameserver {RESOLVER_V4}\n"));
        let address = format!("Address={HOST_V4}/24\nGateway={GATEWAY_V4}\n");
        machine.write("etc/systemd/network/uplink.network", &format!("{NETWORK}{address}"));
        machine.write("etc/systemd/system/eager.service", &EAGER.replace("STRANGER", stranger));
        machine.write("etc/systemd/system/sysinit.target.wants/.keep", "");
        std::os::unix::fs::symlink(
            "/etc/systemd/system/eager.service",
            machine.path("etc/systemd/system/sysinit.target.wants/eager.service"),
        )
        .expect("a link");
        machine.systemctl(&["enable", "systemd-networkd.service"]);
        machine.systemctl(&["set-default", "multi-user.target"]);
        machine
    }

    /// A file of the machine, from here.
    pub fn path(&self, name: &str) -> PathBuf {
        self.layers.path().join("root").join(name)
    }

    /// Writes a file of the machine.
    pub fn write(&self, name: &str, content: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().expect("a directory")).expect("the layer takes it");
        fs::write(&path, content).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }

    /// The content of a file of the machine; empty when there is none.
    pub fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_default()
    }

    /// `systemctl` on the machine's files, whether it runs or not.
    pub fn systemctl(&self, arguments: &[&str]) {
        run(Command::new("systemctl").arg("--quiet").arg(format!("--root={}", self.path("").display())).args(arguments))
            .expect("systemctl");
    }

    /// Runs one of our scripts on the machine's files.
    pub fn script(&self, name: &str, arguments: &[&str]) -> Output {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts").join(name);
        let output = Command::new(script).args(arguments).env("DESTDIR", self.path("")).output();
        Output::of(output.expect("the script runs"))
    }

    /// Switches it on. The answer comes when process 1 runs, long before anything is ready.
    pub fn boot(&self) -> Running<'_> {
        let number = self.boots.fetch_add(1, Ordering::Relaxed);
        let network = Named::make("machine").expect("a namespace");
        let net = &self.world.net;
        // The far end is there before the machine is, and keeps its address.
        let far = format!("far{number}");
        net.ip(&format!("link add {far} type veth peer name uplink netns {}", network.name)).expect("a cable can be laid");
        let _ = net.ip(&format!("addr del {GATEWAY_V4}/24 dev far{}", number.wrapping_sub(1)));
        net.ip(&format!("addr add {GATEWAY_V4}/24 dev {far}\nlink set {far} up")).expect("a cable can be laid");
        let mut command = Command::new("systemd-nspawn");
        command.arg("-D").arg(self.path("")).arg(format!("--network-namespace-path=/run/netns/{}", network.name));
        command.args(["--boot", "--quiet", "--register=no", "--keep-unit", "--link-journal=no", "--capability=all", "--console=pipe"]);
        command.args(["--system-call-filter=perf_event_open bpf", "--resolv-conf=off", "--timezone=off", "--kill-signal=SIGRTMIN+4"]);
        command.env("SYSTEMD_NSPAWN_UNIFIED_HIERARCHY", "1").stdin(Stdio::null());
        let log = fs::File::create(self.layers.path().join(format!("console{number}"))).expect("a log");
        command.stdout(log.try_clone().expect("a log")).stderr(log);
        let process = command.spawn().expect("systemd-nspawn runs");
        let mut leader = None;
        within_seconds(20, "process 1 runs", || {
            leader = child_of(process.id());
            leader.is_some()
        });
        Running { machine: self, process, leader: leader.expect("process 1"), _network: network }
    }

    /// What the last boot said on its console.
    pub fn console(&self) -> String {
        let number = self.boots.load(Ordering::Relaxed).saturating_sub(1);
        fs::read(self.layers.path().join(format!("console{number}")))
            .map(|text| String::from_utf8_lossy(&text).into_owned())
            .unwrap_or_default()
    }
}

impl Drop for Machine<'_> {
    fn drop(&mut self) {
        for place in [self.path(""), self.layers.path().to_path_buf()] {
            let _ = Command::new("umount").arg("--lazy").arg(place).status();
        }
    }
}

impl Running<'_> {
    /// Runs a program of the machine on it.
    pub fn run(&self, program: &str, arguments: &[&str]) -> Output {
        let mut command = Command::new("nsenter");
        // Not its control group: a program that is killed with the machine is killed by its namespace of processes.
        command.args(["--target", &self.leader, "--mount", "--uts", "--ipc", "--net", "--pid", "--root", "--wd", "--", program]);
        command
            .args(arguments)
            .stdin(Stdio::null())
            .env_clear()
            .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        Output::of(command.output().expect("nsenter runs"))
    }

    /// Waits until a unit is active; panics with the console when it never is.
    #[track_caller]
    pub fn reaches(&self, unit: &str) {
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(90);
        loop {
            let state = self.run("systemctl", &["is-active", unit]).stdout;
            if state.trim() == "active" {
                return;
            }
            let is_late = std::time::Instant::now() > deadline;
            if is_late {
                let status = self.run("systemctl", &["status", "--no-pager", "--lines=30", unit]).words();
                panic!("{unit} is {state}\n{status}\n{}", self.machine.console());
            }
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
    }

    /// Pulls the plug: nobody on the machine gets to do anything any more.
    pub fn pull_the_plug(mut self) {
        let _ = Command::new("kill").args(["-KILL", &self.leader]).status();
        let _ = self.process.wait();
    }

    /// Shuts it down as an operator does.
    pub fn shut_down(mut self) {
        self.run("systemctl", &["poweroff"]);
        let mut ended = false;
        within_seconds(60, "the machine has shut down", || {
            ended = ended || matches!(self.process.try_wait(), Ok(Some(_)));
            ended
        });
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        if matches!(self.process.try_wait(), Ok(None)) {
            let _ = Command::new("kill").args(["-KILL", &self.leader]).status();
            let _ = self.process.wait();
        }
    }
}

/// The systemd whose parent this process is.
fn child_of(parent: u32) -> Option<String> {
    let processes = fs::read_dir("/proc").ok()?.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    processes.filter(|name| name.bytes().all(|byte| byte.is_ascii_digit())).find(|pid| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        status.contains(&format!("\nPPid:\t{parent}\n")) && status.lines().any(|line| line.starts_with("NSpid:") && line.ends_with("\t1"))
    })
}

fn mount(arguments: &[&str]) {
    run(Command::new("mount").args(arguments)).unwrap_or_else(|why| panic!("mount {arguments:?}: {why}"));
}
