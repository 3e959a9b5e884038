//! One question to one DNS server, and the message that answers it: over UDP with TCP when the answer does not fit, or over TLS.
//! What the message says is read elsewhere.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use hickory_resolver::net::NetError;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::tls::tls_exchange;
use hickory_resolver::net::xfer::{DnsExchange, DnsHandle, FirstAnswer};
use hickory_resolver::proto::op::{DnsRequest, DnsRequestOptions, Message, MessageType, OpCode, Query, ResponseCode};
use nix::errno::Errno;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::{Mutex, Semaphore};
use tokio::time::timeout;

use crate::base::name::DnsName;
use crate::policy::DnsServer;
use crate::system::resolver::roots::Roots;

/// How long one try waits.
const TRY: Duration = Duration::from_secs(2);
/// How many tries a server has that is not known to be silent.
const TRIES: usize = 2;
/// How long the single try of a silent server waits.
const SHORT_TRY: Duration = Duration::from_secs(1);
/// A server is called silent after so many unanswered tries with no answer between them. More than a few, because names
/// whose own servers are dead make a healthy resolver late.
const SILENT_AFTER: u32 = 8;
/// The largest answer that is asked for over UDP: fits every path without fragments (RFC 9715).
const UDP_PAYLOAD: u16 = 1232;
/// Questions under way at once on one TLS connection; its queue holds 32.
const TLS_AT_ONCE: usize = 24;

/// A server that can be asked.
pub struct Server {
    label: String,
    transport: Transport,
    unanswered: AtomicU32,
}

enum Transport {
    Plain(SocketAddr),
    Tls(Box<TlsServer>),
    /// It cannot be asked at all, and why.
    Unusable(String),
}

struct TlsServer {
    address: SocketAddr,
    name: ServerName<'static>,
    config: Arc<ClientConfig>,
    connection: Mutex<Connection>,
    places: Semaphore,
}

/// The one connection to a TLS server.
enum Connection {
    /// There is none yet, or it broke.
    None,
    /// Its number, and the connection.
    Up(u64, DnsExchange<TokioRuntimeProvider>),
    /// When the last attempt failed, and why. Questions that had been waiting for it share the failure.
    Down(Instant, Trouble),
}

/// Why a try failed.
#[derive(Debug, Clone)]
enum Trouble {
    /// Nothing came in time.
    Silence,
    /// Something else, as a clause about the server.
    Other(String),
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.label)
    }
}

impl Server {
    /// The server of the policy; `None` for [`DnsServer::System`], which stands for others.
    pub fn new(server: &DnsServer, roots: &Roots) -> Option<Server> {
        let (label, transport) = match server {
            DnsServer::System => return None,
            DnsServer::Plain { address, port } => {
                let address = SocketAddr::new(*address, *port);
                (address.to_string(), Transport::Plain(address))
            }
            DnsServer::Tls { address, port, name } => {
                let address = SocketAddr::new(*address, *port);
                let transport =
                    TlsServer::new(address, name, roots).map_or_else(Transport::Unusable, |server| Transport::Tls(Box::new(server)));
                (format!("tls://{address}#{name}"), transport)
            }
        };
        Some(Server { label, transport, unanswered: AtomicU32::new(0) })
    }

    /// Whether it has left the last questions unanswered, all of them.
    pub fn is_silent(&self) -> bool {
        self.unanswered.load(Ordering::Relaxed) >= SILENT_AFTER
    }

    /// Its message for the question, with whatever response code. Fails with a clause about the server.
    pub async fn ask(&self, question: &Query) -> Result<Message, String> {
        let (tries, patience) = if self.is_silent() { (1, SHORT_TRY) } else { (TRIES, TRY) };
        for _ in 0..tries {
            match self.ask_once(question, patience).await {
                Ok(message) => {
                    self.unanswered.store(0, Ordering::Relaxed);
                    return Ok(message);
                }
                Err(Trouble::Silence) => {
                    self.unanswered.fetch_add(1, Ordering::Relaxed);
                }
                Err(Trouble::Other(why)) => return Err(why),
            }
        }
        let times = if tries == 1 { String::new() } else { format!(", {tries} times") };
        Err(format!("no answer within {} s{times}", patience.as_secs()))
    }

    async fn ask_once(&self, question: &Query, patience: Duration) -> Result<Message, Trouble> {
        let message = self.ask_with(question, Edns::With, patience).await?;
        match message.metadata.response_code {
            // RFC 6891, section 7: a server that does not know EDNS.
            ResponseCode::FormErr | ResponseCode::NotImp if message.edns.is_none() => {
                self.ask_with(question, Edns::Without, patience).await
            }
            _ => Ok(message),
        }
    }

    async fn ask_with(&self, question: &Query, edns: Edns, patience: Duration) -> Result<Message, Trouble> {
        let request = request(question, edns);
        let message = match &self.transport {
            Transport::Plain(address) => {
                let message = within(patience, over_udp(*address, &request)).await?;
                if message.metadata.truncation { within(patience, over_tcp(*address, &request)).await? } else { message }
            }
            Transport::Tls(server) => server.ask(request, patience).await?,
            Transport::Unusable(why) => return Err(Trouble::Other(why.clone())),
        };
        match is_reply(&message, question) {
            true => Ok(message),
            false => Err(Trouble::Other("the reply is to another question".to_string())),
        }
    }
}

/// Whether a question says what its sender can take (RFC 6891).
#[derive(Clone, Copy)]
enum Edns {
    With,
    Without,
}

/// The question as a message with a random id.
fn request(question: &Query, edns: Edns) -> DnsRequest {
    let mut options = DnsRequestOptions::default();
    options.use_edns = matches!(edns, Edns::With);
    options.edns_payload_len = UDP_PAYLOAD;
    DnsRequest::from_query(question.clone(), options)
}

fn is_reply(message: &Message, question: &Query) -> bool {
    message.metadata.message_type == MessageType::Response
        && message.metadata.op_code == OpCode::Query
        && match message.queries.as_slice() {
            [echoed] => echoed == question,
            // A server that understood nothing of the question may leave it out.
            [] => message.metadata.response_code == ResponseCode::FormErr,
            _ => false,
        }
}

async fn within<T>(patience: Duration, work: impl Future<Output = Result<T, Trouble>>) -> Result<T, Trouble> {
    timeout(patience, work).await.unwrap_or(Err(Trouble::Silence))
}

/// The socket is new for every question, so the kernel chooses a port at random, and connected, so it takes replies from
/// nobody else and tells when nobody listens. Datagrams with another id are somebody's guesses and are passed over.
async fn over_udp(server: SocketAddr, request: &Message) -> Result<Message, Trouble> {
    let unspecified = match server {
        SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    let socket = UdpSocket::bind((unspecified, 0)).await?;
    socket.connect(server).await?;
    socket.send(&octets(request)?).await?;
    let mut buffer = vec![0; 4096];
    loop {
        let length = socket.recv(&mut buffer).await?;
        let datagram = buffer.get(..length).unwrap_or_default();
        if datagram.first_chunk::<2>() == Some(&request.metadata.id.to_be_bytes()) {
            return decode(datagram);
        }
    }
}

async fn over_tcp(server: SocketAddr, request: &Message) -> Result<Message, Trouble> {
    let mut stream = TcpStream::connect(server).await?;
    let octets = octets(request)?;
    let length = u16::try_from(octets.len()).map_err(|_| Trouble::Other("the question is too long".to_string()))?;
    stream.write_all(&[&length.to_be_bytes()[..], &octets].concat()).await?;
    let length = stream.read_u16().await?;
    let mut message = vec![0; usize::from(length)];
    stream.read_exact(&mut message).await?;
    let message = decode(&message)?;
    match message.metadata.id == request.metadata.id {
        true => Ok(message),
        false => Err(Trouble::Other("the reply is to another question".to_string())),
    }
}

fn octets(request: &Message) -> Result<Vec<u8>, Trouble> {
    request.to_vec().map_err(|why| Trouble::Other(format!("the question cannot be written: {why}")))
}

fn decode(octets: &[u8]) -> Result<Message, Trouble> {
    Message::from_vec(octets).map_err(|why| Trouble::Other(format!("the reply is malformed: {why}")))
}

impl TlsServer {
    fn new(address: SocketAddr, name: &DnsName, roots: &Roots) -> Result<TlsServer, String> {
        let config = roots.config()?;
        let name = ServerName::try_from(name.to_string()).map_err(|_| format!("`{name}` cannot be proven by a certificate"))?;
        Ok(TlsServer { address, name, config, connection: Mutex::new(Connection::None), places: Semaphore::new(TLS_AT_ONCE) })
    }

    /// A connection that broke while a question was on it is made anew once.
    async fn ask(&self, request: DnsRequest, patience: Duration) -> Result<Message, Trouble> {
        let since = Instant::now();
        let _place = self.places.acquire().await.map_err(|_| Trouble::Silence)?;
        let (number, connection) = self.connected(since, patience).await?;
        let trouble = match within(patience, over_tls(connection, request.clone())).await {
            Err(Trouble::Other(why)) => Trouble::Other(why),
            answered_or_silent => return answered_or_silent,
        };
        let mut held = self.connection.lock().await;
        match &*held {
            Connection::Up(current, _) if *current == number => *held = Connection::None,
            _ => {}
        }
        drop(held);
        let (again, connection) = self.connected(Instant::now(), patience).await?;
        if again == number {
            return Err(trouble);
        }
        within(patience, over_tls(connection, request)).await
    }

    /// The connection with its number. Only one question at a time makes one; those that waited meanwhile take what it got.
    async fn connected(&self, since: Instant, patience: Duration) -> Result<(u64, DnsExchange<TokioRuntimeProvider>), Trouble> {
        static NUMBERS: AtomicU32 = AtomicU32::new(0);
        let mut held = self.connection.lock().await;
        match &*held {
            Connection::Up(number, connection) => return Ok((*number, connection.clone())),
            Connection::Down(at, why) if *at >= since => return Err(why.clone()),
            Connection::Down(..) | Connection::None => {}
        }
        let config = ClientConfig::clone(&self.config);
        let connecting = async {
            tls_exchange(self.address, self.name.clone(), config, patience, Some(2 * TLS_AT_ONCE), TokioRuntimeProvider::new())
                .await
                .map_err(Trouble::from)
        };
        match within(patience, connecting).await {
            Ok(connection) => {
                let number = u64::from(NUMBERS.fetch_add(1, Ordering::Relaxed));
                *held = Connection::Up(number, connection.clone());
                Ok((number, connection))
            }
            Err(why) => {
                *held = Connection::Down(Instant::now(), why.clone());
                Err(why)
            }
        }
    }
}

async fn over_tls(connection: DnsExchange<TokioRuntimeProvider>, request: DnsRequest) -> Result<Message, Trouble> {
    Ok(connection.send(request).first_answer().await?.into_message())
}

impl From<io::Error> for Trouble {
    fn from(error: io::Error) -> Trouble {
        match error.kind() {
            io::ErrorKind::TimedOut => Trouble::Silence,
            io::ErrorKind::UnexpectedEof => Trouble::Other("the connection was closed before the reply".to_string()),
            _ => Trouble::Other(words(&error)),
        }
    }
}

impl From<NetError> for Trouble {
    fn from(error: NetError) -> Trouble {
        match error {
            NetError::Timeout => Trouble::Silence,
            NetError::Io(error) if error.kind() == io::ErrorKind::TimedOut => Trouble::Silence,
            NetError::Io(error) => Trouble::Other(words(&error)),
            other => Trouble::Other(other.to_string()),
        }
    }
}

/// An error of the system with its errno by name.
pub fn words(error: &io::Error) -> String {
    match error.raw_os_error().map(Errno::from_raw) {
        Some(errno) => format!("{} ({errno:?})", errno.desc().to_lowercase()),
        None => error.to_string(),
    }
}
