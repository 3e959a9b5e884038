//! A real DNS server, Knot DNS, that serves one zone: the root, with whatever names a test sets.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use egressguard::demo::attempt::{Way, attempt};
use egressguard::demo::namespace::Namespace;

/// The server, ended when dropped.
pub struct Nameserver {
    namespace: String,
    directory: PathBuf,
    addresses: Vec<String>,
    /// Zone file lines by owner name.
    records: BTreeMap<String, Vec<String>>,
    serial: u32,
    running: Option<Child>,
}

impl Nameserver {
    /// Starts a server that knows no name yet, on port 53 of these addresses of a named namespace.
    pub fn new(namespace: &str, directory: &Path, addresses: &[&str]) -> Result<Nameserver, String> {
        fs::create_dir_all(directory).map_err(|error| error.to_string())?;
        let addresses = addresses.iter().map(|address| address.to_string()).collect();
        let mut server = Nameserver {
            namespace: namespace.to_string(),
            directory: directory.to_path_buf(),
            addresses,
            records: BTreeMap::new(),
            serial: 0,
            running: None,
        };
        server.restart()?;
        Ok(server)
    }

    /// Sets the addresses of a name, with a TTL of 300 s. An empty list leaves the name existing, without addresses.
    pub fn set(&mut self, name: &str, addresses: &[&str]) -> Result<(), String> {
        let mut lines = vec!["300 IN TXT \"here\"".to_string()];
        lines.extend(addresses.iter().map(|address| format!("300 IN {} {address}", if address.contains(':') { "AAAA" } else { "A" })));
        self.records.insert(name.to_string(), lines);
        self.restart()
    }

    /// Makes a name an alias.
    pub fn set_alias(&mut self, name: &str, target: &str) -> Result<(), String> {
        self.records.insert(name.to_string(), vec![format!("300 IN CNAME {target}.")]);
        self.restart()
    }

    /// Forgets a name: it does not exist any more.
    pub fn forget(&mut self, name: &str) -> Result<(), String> {
        self.records.remove(name);
        self.restart()
    }

    /// Ends the server: from now on its port is closed.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.running.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Lets the server answer SERVFAIL to everything: it has no zone that it could load.
    pub fn fail(&mut self) -> Result<(), String> {
        self.kill();
        let zone = self.directory.join("root.zone");
        fs::write(&zone, "this is no zone\n").map_err(|error| error.to_string())?;
        self.start("answered")
    }

    /// Starts the server anew with the records as they are.
    pub fn restart(&mut self) -> Result<(), String> {
        self.kill();
        self.serial += 1;
        let mut zone = format!("$TTL 300\n. IN SOA ns. root. {} 3600 600 86400 30\n. IN NS ns.\nns. IN A {}\n", self.serial, RESOLVER);
        for (name, lines) in &self.records {
            for line in lines {
                let _ = writeln!(zone, "{name}. {line}");
            }
        }
        fs::write(self.directory.join("root.zone"), zone).map_err(|error| error.to_string())?;
        self.start("1 address")
    }

    /// Starts the process and waits until it answers in these words of an attempt.
    fn start(&mut self, word: &str) -> Result<(), String> {
        let place = self.directory.display();
        let listen: Vec<String> = self.addresses.iter().map(|address| format!("\"{address}@53\"")).collect();
        let settings = format!(
            "server:\n  rundir: \"{place}\"\n  listen: [ {} ]\n  udp-workers: 1\n  tcp-workers: 1\n  background-workers: 1\n\
             database:\n  storage: \"{place}\"\n\
             log:\n  - target: stderr\n    any: critical\n\
             zone:\n  - domain: \".\"\n    file: \"{place}/root.zone\"\n    zonefile-sync: -1\n    zonefile-load: whole\n    journal-content: none\n    semantic-checks: off\n",
            listen.join(", ")
        );
        let file = self.directory.join("knot.conf");
        fs::write(&file, settings).map_err(|error| error.to_string())?;
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.namespace, "knotd", "-c"]).arg(&file);
        let log = fs::File::create(self.directory.join("knot.log")).map_err(|error| error.to_string())?;
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn();
        self.running = Some(child.map_err(|error| format!("`ip netns exec … knotd`: {error}"))?);
        let namespace = Namespace::open(&Path::new("/run/netns").join(&self.namespace)).map_err(|error| error.to_string())?;
        let address: IpAddr = self.addresses.first().and_then(|address| address.parse().ok()).ok_or("no address to listen on")?;
        let way = Way::DnsTcp { name: "ns".to_string() };
        let begin = Instant::now();
        while begin.elapsed() < Duration::from_secs(10) {
            let seen = namespace.within(|| attempt(&way, SocketAddr::new(address, 53))).map_err(|error| error.to_string())?;
            if seen.answered() && seen.to_string().contains(word) {
                return Ok(());
            }
            if let Some(Ok(Some(status))) = self.running.as_mut().map(Child::try_wait) {
                return Err(format!(
                    "knotd ended with {status}: {}",
                    fs::read_to_string(self.directory.join("knot.log")).unwrap_or_default()
                ));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Err("knotd does not answer within ten seconds".to_string())
    }
}

impl Drop for Nameserver {
    fn drop(&mut self) {
        self.kill();
    }
}

/// What the zone says its own server is; nobody asks there.
const RESOLVER: &str = "198.51.100.53";
