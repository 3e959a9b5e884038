//! Real DNS servers for tests, each in a network namespace that the test makes itself: knot, unbound and dnsmasq as Debian has
//! them, and a responder of a few lines for what no proper server says.

use std::fs;
use std::net::{SocketAddr, UdpSocket};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// Runs a test in a thread with a network namespace of its own, in which the loopback interface is up and nothing else exists.
/// Says `skipped` and why where the machine does not allow that; fails when EGRESSGUARD_REQUIRE_KERNEL is 1.
pub fn in_own_network(test: impl FnOnce() + Send + 'static) {
    let thread = std::thread::spawn(|| {
        if let Err(errno) = nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET) {
            let required = std::env::var("EGRESSGUARD_REQUIRE_KERNEL").as_deref() == Ok("1");
            assert!(!required, "the kernel tests are required here: a network namespace cannot be made ({errno:?})");
            eprintln!("skipped: a network namespace cannot be made here ({errno:?})");
            return;
        }
        // The first process is not everywhere allowed to be looked at; the network this program was started in always is.
        let ours = fs::read_link("/proc/thread-self/ns/net").unwrap();
        for others in ["/proc/self/ns/net", "/proc/1/ns/net"] {
            assert_ne!(Some(&ours), fs::read_link(others).ok().as_ref(), "this is the network of {others}");
        }
        let up = Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap();
        assert!(up.success());
        test();
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// A server process. It ends when this is dropped.
pub struct Server {
    child: Child,
    name: &'static str,
    _directory: TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Server {
    fn start(name: &'static str, mut command: Command, directory: TempDir, listens: SocketAddr) -> Server {
        let log = fs::File::create(directory.path().join("log")).unwrap();
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).process_group(0);
        let child = command.spawn().unwrap_or_else(|why| panic!("{name} is needed for this test: {why}"));
        let mut server = Server { child, name, _directory: directory };
        server.wait_until_it_answers(listens);
        server
    }

    /// Any reply will do: it is asked for the version that most servers keep to themselves.
    fn wait_until_it_answers(&mut self, listens: SocketAddr) {
        let question = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x07version\x04bind\x00\x00\x10\x00\x03";
        let socket = UdpSocket::bind(if listens.is_ipv6() { "[::1]:0" } else { "127.0.0.1:0" }).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        socket.connect(listens).unwrap();
        let begin = Instant::now();
        while begin.elapsed() < Duration::from_secs(20) {
            let _ = socket.send(question);
            if socket.recv(&mut [0; 512]).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
            if let Ok(Some(status)) = self.child.try_wait() {
                panic!("{} ended at once ({status}): {}", self.name, self.log());
            }
        }
        panic!("{} does not answer: {}", self.name, self.log());
    }

    fn log(&self) -> String {
        fs::read_to_string(self._directory.path().join("log")).unwrap_or_default()
    }
}

/// A knot server on this address, authoritative for these zones: name and master file, where `@` is the name.
pub fn knot(listens: &str, zones: &[(&str, String)]) -> Server {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let listens: SocketAddr = listens.parse().unwrap();
    let mut config = format!(
        "server:\n  rundir: {0}\n  listen: {1}@{2}\ndatabase:\n  storage: {0}\ntemplate:\n  - id: default\n    storage: {0}\n    journal-content: none\n    zonefile-sync: -1\nzone:\n",
        path.display(),
        listens.ip(),
        listens.port()
    );
    for (index, (name, records)) in zones.iter().enumerate() {
        let file = format!("{index}.zone");
        let text =
            format!("$ORIGIN {name}\n$TTL 300\n@ SOA ns.{name} root.{name} 1 60 60 60 60\n@ NS ns.{name}\nns A 127.0.0.1\n{records}\n");
        fs::write(path.join(&file), text).unwrap();
        config.push_str(&format!("  - domain: {name}\n    file: {file}\n"));
    }
    let config_file = path.join("knot.conf");
    fs::write(&config_file, config).unwrap();
    let mut command = Command::new("knotd");
    command.arg("-c").arg(config_file);
    Server::start("knotd", command, directory, listens)
}

/// A dnsmasq on this address with these options and no others. What it is not told it refuses.
pub fn dnsmasq(listens: &str, options: &[&str]) -> Server {
    let directory = tempfile::tempdir().unwrap();
    let listens: SocketAddr = listens.parse().unwrap();
    let mut command = Command::new("dnsmasq");
    command.args(["--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts", "--bind-interfaces", "--pid-file="]);
    command.args(["--user=root", "--group=root"]);
    command.arg(format!("--listen-address={}", listens.ip())).arg(format!("--port={}", listens.port())).args(options);
    Server::start("dnsmasq", command, directory, listens)
}

/// An unbound on this address that answers for these records, and over TLS on the second address when there is one.
pub fn unbound(listens: &str, records: &[String], tls: Option<(&str, &Certificates)>) -> Server {
    let directory = tempfile::tempdir().unwrap();
    let listens: SocketAddr = listens.parse().unwrap();
    let mut config = format!(
        "server:\n  interface: {}@{}\n  directory: \"{}\"\n  chroot: \"\"\n  username: \"\"\n  pidfile: \"\"\n  use-syslog: no\n  logfile: \"\"\n  \
         do-daemonize: no\n  access-control: 0.0.0.0/0 allow\n  access-control: ::0/0 allow\n  num-threads: 1\n  module-config: \"iterator\"\n  \
         local-zone: \"example.\" static\n",
        listens.ip(),
        listens.port(),
        directory.path().display()
    );
    if let Some((address, certificates)) = tls {
        let address: SocketAddr = address.parse().unwrap();
        config.push_str(&format!(
            "  interface: {}@{}\n  tls-port: {}\n  tls-service-key: \"{}\"\n  tls-service-pem: \"{}\"\n",
            address.ip(),
            address.port(),
            address.port(),
            certificates.key.display(),
            certificates.chain.display()
        ));
    }
    for record in records {
        config.push_str(&format!("  local-data: \"{record}\"\n"));
    }
    config.push_str("remote-control:\n  control-enable: no\n");
    let config_file = directory.path().join("unbound.conf");
    fs::write(&config_file, config).unwrap();
    let mut command = Command::new("unbound");
    command.arg("-d").arg("-c").arg(config_file);
    Server::start("unbound", command, directory, listens)
}

/// A throw-away authority and a certificate that it gave to a server.
pub struct Certificates {
    /// The authority's certificate.
    pub roots: PathBuf,
    chain: PathBuf,
    key: PathBuf,
    _directory: TempDir,
}

impl Certificates {
    /// For a server of this name.
    pub fn of(name: &str) -> Certificates {
        let directory = tempfile::tempdir().unwrap();
        let mut authority = rcgen::CertificateParams::new(Vec::new()).unwrap();
        authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let authority_key = rcgen::KeyPair::generate().unwrap();
        let authority_certificate = authority.self_signed(&authority_key).unwrap();
        let issuer = rcgen::Issuer::new(authority, authority_key);
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = rcgen::CertificateParams::new([name.to_string()]).unwrap().signed_by(&key, &issuer).unwrap();
        let write = |file: &str, text: String| write(&directory.path().join(file), &text);
        Certificates {
            roots: write("roots.pem", authority_certificate.pem()),
            chain: write("chain.pem", certificate.pem()),
            key: write("key.pem", key.serialize_pem()),
            _directory: directory,
        }
    }
}

fn write(path: &Path, text: &str) -> PathBuf {
    fs::write(path, text).unwrap();
    path.to_path_buf()
}

/// A responder over UDP that says what it is told to.
pub struct Responder {
    stop: Arc<AtomicBool>,
    asked: Arc<AtomicUsize>,
    thread: Option<JoinHandle<()>>,
}

impl Responder {
    /// `reply` makes the datagrams that follow a question.
    pub fn start(listens: &str, reply: impl Fn(&[u8]) -> Vec<Vec<u8>> + Send + 'static) -> Responder {
        let socket = UdpSocket::bind(listens).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        let (stop, asked) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (stopped, counted) = (Arc::clone(&stop), Arc::clone(&asked));
        let thread = std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while !stopped.load(Ordering::Relaxed) {
                let Ok((length, from)) = socket.recv_from(&mut buffer) else { continue };
                counted.fetch_add(1, Ordering::Relaxed);
                for datagram in reply(&buffer[..length]) {
                    let _ = socket.send_to(&datagram, from);
                }
            }
        });
        Responder { stop, asked, thread: Some(thread) }
    }

    /// One that takes every question and never says anything.
    pub fn silent(listens: &str) -> Responder {
        Responder::start(listens, |_| Vec::new())
    }

    /// How many questions came.
    pub fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }
}

impl Drop for Responder {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
