//! Metrics over HTTP/1.1: one page for GET, and nothing else. Bounded in everything that a client chooses: how long it takes, how much
//! it sends, how many come at once. Clients are served by threads of their own; whoever makes the page never waits for one.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, TryRecvError, channel, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use crate::world::Scrapes;

/// How many octets a request may have.
const REQUEST_MAX: usize = 8192;
/// How many clients are served at a time; others are told to come again.
const CLIENTS_MAX: usize = 8;
/// How long a client may take to ask, the page to be made, and a client to read it: each.
const PATIENCE: Duration = Duration::from_secs(5);

/// A server of metrics.
pub struct MetricsServer {
    /// Those who wait for a page.
    questions: Receiver<SyncSender<String>>,
    waiting: Vec<SyncSender<String>>,
    /// Becomes readable when somebody waits.
    woken: UnixStream,
    address: SocketAddr,
}

impl MetricsServer {
    /// Listens at this address, in the network namespace of this thread.
    pub fn listen(at: SocketAddr) -> io::Result<MetricsServer> {
        let listener = TcpListener::bind(at)?;
        let address = listener.local_addr()?;
        let (woken, waker) = UnixStream::pair()?;
        woken.set_nonblocking(true)?;
        waker.set_nonblocking(true)?;
        let (ask, questions) = channel();
        let server = Server { ask, waker: Arc::new(waker), clients: Arc::new(AtomicUsize::new(0)) };
        thread::Builder::new().name("metrics".to_string()).stack_size(64 << 10).spawn(move || server.accept(&listener))?;
        Ok(MetricsServer { questions, waiting: Vec::new(), woken, address })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What becomes readable when somebody waits for a page.
    pub fn descriptor(&self) -> io::Result<Arc<OwnedFd>> {
        Ok(Arc::new(self.woken.try_clone()?.into()))
    }
}

impl Scrapes for MetricsServer {
    fn is_asked(&mut self) -> bool {
        let mut read = [0; 64];
        while matches!(self.woken.read(&mut read), Ok(length) if length > 0) {}
        loop {
            match self.questions.try_recv() {
                Ok(client) => self.waiting.push(client),
                Err(TryRecvError::Empty | TryRecvError::Disconnected) => return !self.waiting.is_empty(),
            }
        }
    }

    fn answer(&mut self, text: &str) {
        for client in self.waiting.drain(..) {
            // A client that has gone is no matter.
            let _ = client.try_send(text.to_string());
        }
    }
}

#[derive(Clone)]
struct Server {
    ask: Sender<SyncSender<String>>,
    waker: Arc<UnixStream>,
    clients: Arc<AtomicUsize>,
}

impl Server {
    fn accept(&self, listener: &TcpListener) {
        loop {
            let Ok((stream, _)) = listener.accept() else {
                // Too many open files: others may close theirs.
                thread::sleep(Duration::from_millis(100));
                continue;
            };
            if self.clients.fetch_add(1, Ordering::AcqRel) >= CLIENTS_MAX {
                self.clients.fetch_sub(1, Ordering::AcqRel);
                let _ = stream.set_nonblocking(true);
                let _ = respond(&stream, "503 Service Unavailable", "too many at once\n");
                continue;
            }
            let server = self.clone();
            let started = thread::Builder::new().name("scrape".to_string()).stack_size(128 << 10).spawn(move || {
                let _ = server.serve(&stream);
                server.clients.fetch_sub(1, Ordering::AcqRel);
            });
            if started.is_err() {
                self.clients.fetch_sub(1, Ordering::AcqRel);
            }
        }
    }

    fn serve(&self, stream: &TcpStream) -> io::Result<()> {
        stream.set_write_timeout(Some(PATIENCE))?;
        let Some(request) = request(stream)? else { return respond(stream, "431 Request Header Fields Too Large", "too long\n") };
        let mut words = request.split(|octet| *octet == b' ');
        let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let path = target.split(|octet| *octet == b'?').next().unwrap_or_default();
        match (method, path) {
            (b"GET", b"/metrics") => {
                let (client, page) = sync_channel(1);
                if self.ask.send(client).is_err() {
                    return respond(stream, "503 Service Unavailable", "it ends\n");
                }
                // A waker that is full wakes already.
                let _ = (&*self.waker).write(&[1]);
                match page.recv_timeout(PATIENCE) {
                    Ok(page) => respond(stream, "200 OK", &page),
                    Err(_) => respond(stream, "503 Service Unavailable", "the figures are not ready\n"),
                }
            }
            (b"GET", _) => respond(stream, "404 Not Found", "only /metrics is here\n"),
            _ => respond(stream, "405 Method Not Allowed", "only GET is answered\n"),
        }
    }
}

/// The head of a request; nothing when it is too long or takes too long.
fn request(mut stream: &TcpStream) -> io::Result<Option<Vec<u8>>> {
    let start = Instant::now();
    let mut request = Vec::new();
    let mut chunk = [0; 1024];
    while !request.windows(4).any(|four| four == b"\r\n\r\n") {
        let left = PATIENCE.saturating_sub(start.elapsed());
        if left.is_zero() || request.len() >= REQUEST_MAX {
            return Ok(None);
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(&mut chunk)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            length => request.extend_from_slice(&chunk[..length]),
        }
    }
    Ok(Some(request))
}

fn respond(mut stream: &TcpStream, status: &str, page: &str) -> io::Result<()> {
    let kind = "text/plain; version=0.0.4; charset=utf-8";
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\nX-Content-Type-Options: nosniff\r\n\r\n",
        page.len()
    );
    stream.write_all(head.as_bytes())?;
    stream.write_all(page.as_bytes())?;
    stream.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(address: SocketAddr, request: &str) -> String {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer);
        answer
    }

    #[test]
    fn the_page_is_served_for_get_and_nothing_else_is() {
        let mut server = MetricsServer::listen("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = server.address();
        let client = thread::spawn(move || ask(address, "GET /metrics?x=1 HTTP/1.1\r\nHost: x\r\n\r\n"));
        let start = Instant::now();
        while !server.is_asked() {
            assert!(start.elapsed() < Duration::from_secs(5));
            thread::sleep(Duration::from_millis(1));
        }
        server.answer("egressguard_active 1\n");
        let answer = client.join().unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("\r\n\r\negressguard_active 1\n"), "{answer}");
        assert!(!server.is_asked());
        for (request, status) in [
            ("GET / HTTP/1.1\r\n\r\n", "404"),
            ("POST /metrics HTTP/1.1\r\n\r\n", "405"),
            ("\x16\x03\x01\r\n\r\n", "405"),
            (&format!("GET /metrics HTTP/1.1\r\nX: {}", "x".repeat(REQUEST_MAX))[..], "431"),
        ] {
            let answer = ask(address, request);
            assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{request:?}: {answer}");
        }
        assert!(!server.is_asked(), "nobody was asked for a page that nobody gets");
    }

    #[test]
    fn clients_that_say_nothing_are_few_and_keep_nobody_waiting() {
        let mut server = MetricsServer::listen("127.0.0.1:0".parse().unwrap()).unwrap();
        let idle: Vec<TcpStream> = (0..CLIENTS_MAX).map(|_| TcpStream::connect(server.address()).unwrap()).collect();
        thread::sleep(Duration::from_millis(200));
        let start = Instant::now();
        assert!(!server.is_asked());
        assert!(start.elapsed() < Duration::from_millis(100), "the maker of the page waits for nobody");
        assert!(ask(server.address(), "GET /metrics HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 503"), "the next is turned away");
        drop(idle);
    }
}
