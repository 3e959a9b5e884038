//! Who answers in the world of a story test. All answer, so that silence is the firewall's doing.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use egressguard::demo::internet::{Authority, Callee, Directory, serve_tcp, serve_udp};

use super::{API_V4, API_V6, LATER_V4, LATER_V6, NEIGHBOUR_V4, STRANGER_V4, STRANGER_V6};

/// The outside: the API with TLS on port 443 of its addresses, and strangers on many ports of all addresses.
pub fn move_in(authority: &Authority) -> anyhow::Result<()> {
    let api = [API_V4, API_V6, LATER_V4, LATER_V6, NEIGHBOUR_V4].into_iter().filter_map(|address| address.parse().ok());
    let directory = Directory::default();
    let callee = Callee { directory: directory.clone(), tls: authority.server.clone(), tls_addresses: Arc::new(api.collect()) };
    for port in [22, 80, 443, 4444, 8443] {
        serve_tcp(SocketAddr::new([0_u16; 8].into(), port), callee.clone())?;
    }
    for address in [STRANGER_V4, STRANGER_V6] {
        let address: IpAddr = address.parse()?;
        directory.set("ns", &["192.0.2.1".parse()?]);
        serve_tcp(SocketAddr::new(address, 53), callee.clone())?;
        for port in [53, 123, 443, 5353] {
            serve_udp(SocketAddr::new(address, port), directory.clone())?;
        }
    }
    echo(SocketAddr::new([0_u16; 8].into(), 5432))
}

/// The host, and the machine behind it: the service, a port for the operator, and ports left open by mistake.
pub fn open_the_host() -> anyhow::Result<()> {
    for port in [22, 443, 8080, 8443] {
        echo(SocketAddr::new([0_u16; 8].into(), port))?;
    }
    {
        let address = IpAddr::from([0, 0, 0, 0]);
        serve_udp(SocketAddr::new(address, 443), Directory::default())?;
    }
    Ok(())
}

/// Answers every line with itself, for as long as the other side likes, up to a minute of silence.
fn echo(address: SocketAddr) -> anyhow::Result<()> {
    let listener = TcpListener::bind(address)?;
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            thread::spawn(move || {
                let _ = stream.set_read_timeout(Some(Duration::from_secs(60)));
                let mut octets = [0; 256];
                while let Ok(length @ 1..) = stream.read(&mut octets) {
                    if stream.write_all(&octets[..length]).is_err() {
                        break;
                    }
                }
            });
        }
    });
    Ok(())
}
