//! One attempt to reach somebody, made with a real socket, and what came of it in the kernel's words.
//!
//! Attempts are made by the calling thread, so in its network namespace. Every wait is bounded by [`PATIENCE`].

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hickory_resolver::proto::op::{Message, Query, ResponseCode};
use hickory_resolver::proto::rr::{Name, RecordType};
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, SockaddrStorage, setsockopt, sockopt};
use nix::sys::time::TimeVal;
use rustls::pki_types::ServerName;

/// How long one step of an attempt may take. A reply inside one machine takes well below a hundredth of it, and the kernel repeats a
/// lost SYN only after a second.
pub const PATIENCE: Duration = Duration::from_millis(700);

/// In which way somebody is approached.
#[derive(Debug, Clone)]
pub enum Way {
    /// A TLS handshake in which the server proves a name, then one HTTP request.
    Tls {
        /// The name to be proven.
        name: String,
        /// Whom to believe.
        trust: Arc<rustls::ClientConfig>,
    },
    /// A TCP connection; some bytes there and back.
    Tcp,
    /// A datagram there and back.
    Udp,
    /// A DNS question in a datagram.
    DnsUdp {
        /// The name asked for.
        name: String,
    },
    /// A DNS question in a TCP connection.
    DnsTcp {
        /// The name asked for.
        name: String,
    },
    /// An ICMP echo request; the port is not used. Needs CAP_NET_RAW.
    Ping,
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Way::Tls { .. } => "TLS",
            Way::Tcp => "TCP",
            Way::Udp => "UDP",
            Way::DnsUdp { .. } => "DNS/UDP",
            Way::DnsTcp { .. } => "DNS/TCP",
            Way::Ping => "ICMP",
        })
    }
}

/// What came of an attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen {
    /// An answer came; this is what it was.
    Answered(String),
    /// No answer: the name of the errno, `no answer`, or what else went wrong.
    Failed(String),
}

impl Seen {
    /// Whether an answer came.
    pub fn answered(&self) -> bool {
        matches!(self, Seen::Answered(_))
    }
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Seen::Answered(text) | Seen::Failed(text) => f.write_str(text),
        }
    }
}

/// Makes the attempt from the network namespace of the calling thread.
pub fn attempt(way: &Way, to: SocketAddr) -> Seen {
    let outcome = match way {
        Way::Tls { name, trust } => tls(name, trust, to),
        Way::Tcp => tcp(to),
        Way::Udp => udp(to),
        Way::DnsUdp { name } => dns_udp(name, to),
        Way::DnsTcp { name } => dns_tcp(name, to),
        Way::Ping => ping(to.ip()),
    };
    match outcome {
        Ok(text) => Seen::Answered(text),
        Err(error) => Seen::Failed(spell(&error)),
    }
}

/// An error as the field spells it: the errno by name; `no answer` when a wait ended.
fn spell(error: &io::Error) -> String {
    match error.raw_os_error().map(Errno::from_raw) {
        // A blocking socket says EAGAIN when SO_RCVTIMEO ends.
        Some(Errno::EAGAIN | Errno::ETIMEDOUT) => "no answer".to_string(),
        Some(errno) => format!("{errno:?}"),
        None if error.kind() == io::ErrorKind::TimedOut => "no answer".to_string(),
        None => error.to_string(),
    }
}

fn connect(to: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&to, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

fn tls(name: &str, trust: &Arc<rustls::ClientConfig>, to: SocketAddr) -> io::Result<String> {
    let mut stream = connect(to)?;
    let server = ServerName::try_from(name.to_string()).map_err(io::Error::other)?;
    let mut session = rustls::ClientConnection::new(trust.clone(), server).map_err(io::Error::other)?;
    let mut channel = rustls::Stream::new(&mut session, &mut stream);
    channel
        .write_all(format!("POST /v1/responses HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n").as_bytes())?;
    let mut answer = [0; 512];
    let length = channel.read(&mut answer)?;
    let text = String::from_utf8_lossy(answer.get(..length).unwrap_or_default()).into_owned();
    let status = text.split_whitespace().nth(1).unwrap_or("nothing");
    let version = match session.protocol_version() {
        Some(rustls::ProtocolVersion::TLSv1_3) => "TLS 1.3",
        Some(rustls::ProtocolVersion::TLSv1_2) => "TLS 1.2",
        _ => "TLS",
    };
    Ok(format!("{version}, HTTP {status}"))
}

fn tcp(to: SocketAddr) -> io::Result<String> {
    let mut stream = connect(to)?;
    stream.write_all(b"secret\n")?;
    let mut answer = [0; 64];
    match stream.read(&mut answer)? {
        0 => Err(io::Error::other("connected, and closed without a word")),
        _ => Ok("answered".to_string()),
    }
}

fn datagram(to: SocketAddr, question: &[u8]) -> io::Result<Vec<u8>> {
    let any: IpAddr = if to.is_ipv4() { [0; 4].into() } else { [0; 16].into() };
    let socket = UdpSocket::bind((any, 0))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    // A connected socket is told of ICMP errors.
    socket.connect(to)?;
    socket.send(question)?;
    let mut answer = vec![0; 1500];
    let length = socket.recv(&mut answer)?;
    answer.truncate(length);
    Ok(answer)
}

fn udp(to: SocketAddr) -> io::Result<String> {
    datagram(to, b"secret").map(|_| "answered".to_string())
}

fn dns_udp(name: &str, to: SocketAddr) -> io::Result<String> {
    dns_answer(&datagram(to, &dns_question(name)?)?)
}

fn dns_tcp(name: &str, to: SocketAddr) -> io::Result<String> {
    let mut stream = connect(to)?;
    let question = dns_question(name)?;
    let length = u16::try_from(question.len()).map_err(io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes()[..], &question].concat())?;
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut answer = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut answer)?;
    dns_answer(&answer)
}

fn dns_question(name: &str) -> io::Result<Vec<u8>> {
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).map_err(io::Error::other)?, RecordType::A));
    message.to_vec().map_err(io::Error::other)
}

fn dns_answer(octets: &[u8]) -> io::Result<String> {
    let message = Message::from_vec(octets).map_err(io::Error::other)?;
    Ok(match (message.metadata.response_code, message.answers.len()) {
        (ResponseCode::NoError, 1) => "1 address".to_string(),
        (ResponseCode::NoError, count) => format!("{count} addresses"),
        (code, _) => format!("answered {code}"),
    })
}

/// Octets that the echo request carries beside its header: what a tunnel through ICMP would use.
const ECHO_LOAD: &[u8] = b"a secret in a ping";

fn ping(to: IpAddr) -> io::Result<String> {
    let (family, protocol, request, reply) = match to {
        IpAddr::V4(_) => (AddressFamily::Inet, SockProtocol::Icmp, 8, 0),
        IpAddr::V6(_) => (AddressFamily::Inet6, SockProtocol::IcmpV6, 128, 129),
    };
    let socket = nix::sys::socket::socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?;
    setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::new(0, i64::try_from(PATIENCE.as_micros()).unwrap_or(500_000)))?;
    // A connected raw socket receives from this peer only, and is told of ICMP errors.
    nix::sys::socket::connect(socket.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(to, 0)))?;
    let id = (std::process::id() as u16).to_be_bytes();
    let sequence = ECHO_SEQUENCE.fetch_add(1, std::sync::atomic::Ordering::Relaxed).to_be_bytes();
    let mut packet = vec![request, 0, 0, 0, id[0], id[1], sequence[0], sequence[1]];
    packet.extend_from_slice(ECHO_LOAD);
    if to.is_ipv4() {
        // For ICMPv6 the kernel fills the checksum in.
        let sum = internet_checksum(&packet).to_be_bytes();
        packet.splice(2..4, sum);
    }
    nix::sys::socket::send(socket.as_raw_fd(), &packet, nix::sys::socket::MsgFlags::empty())?;
    let wanted = [&[reply, 0][..], &id, &sequence].concat();
    let begin = Instant::now();
    while begin.elapsed() < PATIENCE {
        let received = receive(&socket)?;
        // A raw IPv4 socket hands out the IP header, whose length is in its first octet.
        let header = if to.is_ipv4() { usize::from(received.first().copied().unwrap_or(0) & 15) * 4 } else { 0 };
        let Some(message) = received.get(header..) else { continue };
        let seen: Vec<u8> = message.iter().take(2).chain(message.iter().skip(4).take(4)).copied().collect();
        if seen == wanted {
            return Ok("echo reply".to_string());
        }
    }
    Err(io::ErrorKind::TimedOut.into())
}

/// Tells the echo replies of simultaneous attempts apart.
static ECHO_SEQUENCE: std::sync::atomic::AtomicU16 = std::sync::atomic::AtomicU16::new(1);

fn receive(socket: &OwnedFd) -> io::Result<Vec<u8>> {
    let mut buffer = [0_u8; 512];
    let length = nix::sys::socket::recv(socket.as_raw_fd(), &mut buffer, nix::sys::socket::MsgFlags::empty())?;
    Ok(buffer.get(..length).unwrap_or_default().to_vec())
}

/// The checksum of RFC 1071 over an even or odd number of octets.
fn internet_checksum(octets: &[u8]) -> u16 {
    let mut sum: u32 = octets.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_that_of_rfc_1071() {
        let message = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(internet_checksum(&message), !0xddf2);
    }

    #[test]
    fn a_refused_connection_is_spelt_with_the_name_of_its_errno() {
        // Port 1 of the loopback address has no listener.
        let seen = attempt(&Way::Tcp, "127.0.0.1:1".parse().unwrap());
        assert_eq!(seen, Seen::Failed("ECONNREFUSED".to_string()));
    }
}
