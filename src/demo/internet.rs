//! The people of the small internet: servers that really answer, each on a thread of its own until the process ends.
//!
//! Every function binds in the network namespace of the calling thread; a server is ready when the function returns.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::Context;
use hickory_resolver::proto::op::{Message, MessageType, ResponseCode};
use hickory_resolver::proto::rr::{RData, Record, RecordType};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

/// The longest wait of a server for its client.
const PATIENCE: Duration = Duration::from_secs(1);

/// A certificate authority made for one run: the server's side that proves a name, and the client's side that believes it.
#[derive(Debug, Clone)]
pub struct Authority {
    /// For the server of the name.
    pub server: Arc<rustls::ServerConfig>,
    /// For clients: believes this authority and no other.
    pub client: Arc<rustls::ClientConfig>,
}

impl Authority {
    /// Makes an authority and a certificate for one name. Both keys live in this process only.
    pub fn for_name(name: &str) -> anyhow::Result<Authority> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "egressguard demo, made for one run");
        let root_key = KeyPair::generate()?;
        let root = params.self_signed(&root_key)?;
        let issuer = Issuer::new(params, root_key);
        let leaf_key = KeyPair::generate()?;
        let leaf = CertificateParams::new(vec![name.to_string()])?.signed_by(&leaf_key, &issuer)?;

        // The provider is named, because the process-wide default is not ours to set.
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(leaf_key.serialize_der()));
        let server = rustls::ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(vec![leaf.der().clone()], key)?;
        let mut roots = rustls::RootCertStore::empty();
        roots.add(root.der().clone())?;
        let client = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Authority { server: Arc::new(server), client: Arc::new(client) })
    }
}

/// What names mean on the small internet; may change while servers answer from it.
#[derive(Debug, Clone, Default)]
pub struct Directory(Arc<Mutex<BTreeMap<String, Vec<IpAddr>>>>);

impl Directory {
    /// Says what a name means from now on.
    pub fn set(&self, name: &str, addresses: &[IpAddr]) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_ascii_lowercase(), addresses.to_vec());
    }

    /// The answer to one DNS message; `None` when it is not a question.
    fn answer(&self, octets: &[u8]) -> Option<Vec<u8>> {
        let mut message = Message::from_vec(octets).ok()?;
        let query = message.queries.first()?.clone();
        message.metadata.message_type = MessageType::Response;
        message.metadata.recursion_available = true;
        message.additionals.clear();
        message.edns = None;
        let name = query.name().to_ascii().trim_end_matches('.').to_ascii_lowercase();
        match self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&name) {
            None => message.metadata.response_code = ResponseCode::NXDomain,
            Some(addresses) => {
                for address in addresses {
                    let data = match (address, query.query_type()) {
                        (IpAddr::V4(v4), RecordType::A) => RData::A((*v4).into()),
                        (IpAddr::V6(v6), RecordType::AAAA) => RData::AAAA((*v6).into()),
                        _ => continue,
                    };
                    message.add_answer(Record::from_rdata(query.name().clone(), 300, data));
                }
            }
        }
        message.to_vec().ok()
    }
}

/// Who answers TCP connections, by port and by the address that was called.
#[derive(Debug, Clone)]
pub struct Callee {
    /// Names, for the DNS servers on port 53.
    pub directory: Directory,
    /// The TLS server of port 443 …
    pub tls: Arc<rustls::ServerConfig>,
    /// … and the addresses at which it is found. At all others the stranger answers.
    pub tls_addresses: Arc<BTreeSet<IpAddr>>,
}

impl Callee {
    fn answer(&self, stream: TcpStream) -> io::Result<()> {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        let here = stream.local_addr()?;
        match here.port() {
            53 => answer_dns(stream, &self.directory),
            443 if self.tls_addresses.contains(&here.ip().to_canonical()) => answer_tls(stream, self.tls.clone()),
            _ => answer_anything(stream),
        }
    }
}

/// Answers TCP connections to this address and port for ever.
pub fn serve_tcp(address: SocketAddr, callee: Callee) -> anyhow::Result<()> {
    let listener = TcpListener::bind(address).with_context(|| format!("cannot listen on tcp {address}"))?;
    thread::Builder::new().spawn(move || {
        for stream in listener.incoming().flatten() {
            let callee = callee.clone();
            // A client that vanishes is no news here; whoever could not be served sees it on the other side.
            let _ = thread::Builder::new().spawn(move || callee.answer(stream));
        }
    })?;
    Ok(())
}

/// Answers datagrams to this address and port for ever: DNS on port 53, anything elsewhere.
pub fn serve_udp(address: SocketAddr, directory: Directory) -> anyhow::Result<()> {
    let socket = UdpSocket::bind(address).with_context(|| format!("cannot listen on udp {address}"))?;
    thread::Builder::new().spawn(move || {
        let mut question = [0; 1500];
        // An error here is an ICMP message about an earlier answer.
        loop {
            let Ok((length, from)) = socket.recv_from(&mut question) else { continue };
            let answer = match address.port() {
                53 => directory.answer(question.get(..length).unwrap_or_default()),
                _ => Some(b"thank you".to_vec()),
            };
            if let Some(answer) = answer {
                let _ = socket.send_to(&answer, from);
            }
        }
    })?;
    Ok(())
}

fn answer_dns(mut stream: TcpStream, directory: &Directory) -> io::Result<()> {
    let mut length = [0; 2];
    while stream.read_exact(&mut length).is_ok() {
        let mut question = vec![0; usize::from(u16::from_be_bytes(length))];
        stream.read_exact(&mut question)?;
        let Some(answer) = directory.answer(&question) else { break };
        let length = u16::try_from(answer.len()).map_err(io::Error::other)?;
        stream.write_all(&[&length.to_be_bytes()[..], &answer].concat())?;
    }
    Ok(())
}

fn answer_tls(mut stream: TcpStream, config: Arc<rustls::ServerConfig>) -> io::Result<()> {
    let mut session = rustls::ServerConnection::new(config).map_err(io::Error::other)?;
    let mut channel = rustls::Stream::new(&mut session, &mut stream);
    let mut request = [0; 4096];
    let _ = channel.read(&mut request)?;
    let body = r#"{"object":"response","status":"completed","output_text":"hello from the demo"}"#;
    let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n";
    channel.write_all(format!("{head}Content-Length: {}\r\n\r\n{body}", body.len()).as_bytes())?;
    channel.conn.send_close_notify();
    channel.flush()
}

fn answer_anything(mut stream: TcpStream) -> io::Result<()> {
    let mut anything = [0; 256];
    if stream.read(&mut anything)? > 0 {
        stream.write_all(b"thank you\n")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::attempt::{Seen, Way, attempt};

    fn free_port() -> SocketAddr {
        UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
    }

    #[test]
    fn a_name_is_answered_with_what_it_means_now_and_an_unknown_one_does_not_exist() {
        let directory = Directory::default();
        directory.set("api.openai.com", &["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()]);
        let ask = |name: &str| {
            let mut message = Message::query();
            let name = hickory_resolver::proto::rr::Name::from_ascii(name).unwrap();
            message.add_query(hickory_resolver::proto::op::Query::query(name, RecordType::AAAA));
            Message::from_vec(&directory.answer(&message.to_vec().unwrap()).unwrap()).unwrap()
        };
        assert_eq!(ask("API.openai.com.").answers.first().unwrap().data, RData::AAAA("2001:db8::1".parse().unwrap()));
        directory.set("api.openai.com", &[]);
        assert_eq!(ask("api.openai.com.").answers.len(), 0);
        assert_eq!(ask("example.org.").metadata.response_code, ResponseCode::NXDomain);
    }

    #[test]
    fn a_client_believes_the_authority_of_the_run_and_no_other() {
        let ours = Authority::for_name("api.openai.com").unwrap();
        let other = Authority::for_name("api.openai.com").unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let server = ours.server.clone();
        thread::spawn(move || listener.incoming().flatten().for_each(|stream| drop(answer_tls(stream, server.clone()))));
        let way = |trust: &Authority| Way::Tls { name: "api.openai.com".into(), trust: trust.client.clone() };
        assert_eq!(attempt(&way(&ours), address), Seen::Answered("TLS 1.3, HTTP 200".into()));
        assert!(!attempt(&way(&other), address).answered());
    }

    #[test]
    fn a_stranger_answers_datagrams() {
        let address = free_port();
        serve_udp(address, Directory::default()).unwrap();
        assert!(attempt(&Way::Udp, address).answered());
    }
}
