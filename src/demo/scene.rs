//! The scene: who lives where on the small internet, and the attempts that are made on it.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;

use crate::demo::attempt::{Seen, Way, attempt};
use crate::demo::cable::Cable;
use crate::demo::internet::{Authority, Callee, Directory, serve_tcp, serve_udp};
use crate::demo::namespace::Namespace;

/// The name that the built-in default policy lets out.
pub const API: &str = "api.openai.com";

/// How long the first packet may take.
const LAID_WITHIN: Duration = Duration::from_secs(5);

/// Two addresses of one party, IPv4 and IPv6.
#[derive(Debug, Clone, Copy)]
pub struct Home {
    v4: [u8; 4],
    v6: [u16; 8],
}

/// The server that is protected (documentation ranges: RFC 5737, RFC 3849).
pub const SERVER: Home = Home { v4: [203, 0, 113, 10], v6: [0x2001, 0xdb8, 0x113, 0, 0, 0, 0, 0x10] };
const GATEWAY: Home = Home { v4: [203, 0, 113, 1], v6: [0x2001, 0xdb8, 0x113, 0, 0, 0, 0, 1] };
/// The DNS server of the server's resolv.conf.
pub const RESOLVER: Home = Home { v4: [198, 51, 100, 53], v6: [0x2001, 0xdb8, 0x53, 0, 0, 0, 0, 0x53] };
/// Somebody the policy does not name.
pub const STRANGER: Home = Home { v4: [198, 51, 100, 66], v6: [0x2001, 0xdb8, 0xbad, 0, 0, 0, 0, 0x66] };
/// Where the API is found first. From here on the addresses are public ones that exist inside the demo only: answers in
/// documentation ranges would be refused by the resolver, rightly.
pub const API_AT_FIRST: Home = Home { v4: [162, 159, 140, 245], v6: [0x2606, 0x4700, 7, 0, 0, 0, 0xa29f, 0x8cf5] };
/// Where it is found later.
pub const API_LATER: Home = Home { v4: [172, 66, 0, 243], v6: [0x2a06, 0x98c1, 0x58, 0, 0, 0, 0, 0xf3] };
/// Another customer of the same content network.
pub const NEIGHBOUR: Home = Home { v4: [104, 18, 7, 192], v6: [0x2606, 0x4700, 0, 0, 0, 0, 0x6812, 0x7c0] };

/// Which families the kernel speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Families {
    /// IPv4 and IPv6.
    Both,
    /// IPv4 only.
    V4Only,
}

impl Home {
    /// Its IPv4 address.
    pub fn v4(self) -> IpAddr {
        self.v4.into()
    }

    /// Its IPv6 address.
    pub fn v6(self) -> IpAddr {
        self.v6.into()
    }

    /// Its addresses in the families that the kernel speaks.
    pub fn addresses(self, families: Families) -> Vec<IpAddr> {
        match families {
            Families::Both => vec![self.v4(), self.v6()],
            Families::V4Only => vec![self.v4()],
        }
    }
}

/// The small internet, running.
pub struct Scene {
    families: Families,
    server: Namespace,
    internet: Namespace,
    directory: Directory,
    authority: Authority,
}

impl Scene {
    /// Builds it around the namespace of the calling thread, which becomes the server's.
    pub fn build(families: Families) -> anyhow::Result<Scene> {
        let server = Namespace::current().context("cannot look at the network namespace of the demo")?;
        let internet = Namespace::fresh().context("cannot make a second network namespace")?;
        switch_ipv6_on();
        internet.within(switch_ipv6_on)?;
        let beyond = [RESOLVER, STRANGER, API_AT_FIRST, API_LATER, NEIGHBOUR];
        Cable {
            near: SERVER.addresses(families),
            far: GATEWAY.addresses(families),
            beyond: beyond.iter().flat_map(|home| home.addresses(families)).collect(),
        }
        .lay(&internet)?;

        let authority = Authority::for_name(API).context("cannot make a throw-away certificate")?;
        let scene = Scene { families, server, internet, directory: Directory::default(), authority };
        scene.rotate_to(API_AT_FIRST);
        scene.internet.within(|| scene.populate())??;
        scene.open_the_server()?;
        scene.await_the_cable()?;
        Ok(scene)
    }

    /// Waits until packets get through, both ways. A cable that has just been laid drops them until the kernel has noticed its
    /// carrier, which takes up to a second when other links of the machine change at the same time (`net/core/link_watch.c`).
    fn await_the_cable(&self) -> anyhow::Result<()> {
        let until = Instant::now() + LAID_WITHIN;
        let probe = |place: &Namespace, way: Way, home: Home, port| -> anyhow::Result<()> {
            for address in home.addresses(self.families) {
                while !place.within(|| attempt(&way, SocketAddr::new(address, port)))?.answered() {
                    anyhow::ensure!(Instant::now() < until, "the cable between the namespaces carries nothing to {address}");
                }
            }
            Ok(())
        };
        probe(&self.server, Way::DnsTcp { name: API.to_string() }, RESOLVER, 53)?;
        probe(&self.internet, Way::Tcp, SERVER, 443)
    }

    /// Lets the name mean other addresses from now on.
    pub fn rotate_to(&self, home: Home) {
        self.directory.set(API, &home.addresses(self.families));
    }

    /// Makes all attempts at once, each from where it belongs. The answers come in the order of the rows.
    pub fn attempt_all(&self, rows: &[Row]) -> anyhow::Result<Vec<Seen>> {
        std::thread::scope(|scope| {
            let threads: Vec<_> = rows
                .iter()
                .map(|row| {
                    let place = match row.from {
                        Side::Server => &self.server,
                        Side::Internet => &self.internet,
                    };
                    scope.spawn(move || place.within(|| attempt(&row.way, row.to)))
                })
                .collect();
            threads.into_iter().map(|thread| Ok(thread.join().map_err(|_| anyhow::anyhow!("an attempt panicked"))??)).collect()
        })
    }

    /// The servers of the internet.
    fn populate(&self) -> anyhow::Result<()> {
        let homes = [API_AT_FIRST, API_LATER, NEIGHBOUR];
        let tls_addresses: BTreeSet<IpAddr> = homes.iter().flat_map(|home| home.addresses(self.families)).collect();
        let callee = self.callee(tls_addresses);
        for port in [22, 53, 80, 443, 4444] {
            serve_tcp(SocketAddr::new(self.everywhere(), port), callee.clone())?;
        }
        for address in STRANGER.addresses(self.families) {
            for port in [53, 123, 443] {
                serve_udp(SocketAddr::new(address, port), self.directory.clone())?;
            }
        }
        for address in API_AT_FIRST.addresses(self.families) {
            serve_udp(SocketAddr::new(address, 443), self.directory.clone())?;
        }
        for address in RESOLVER.addresses(self.families) {
            serve_udp(SocketAddr::new(address, 53), self.directory.clone())?;
        }
        Ok(())
    }

    /// The protected server offers its service, and something that was left running by mistake.
    fn open_the_server(&self) -> anyhow::Result<()> {
        let callee = self.callee(BTreeSet::new());
        for port in [443, 8080] {
            serve_tcp(SocketAddr::new(self.everywhere(), port), callee.clone())?;
        }
        Ok(())
    }

    fn callee(&self, tls_addresses: BTreeSet<IpAddr>) -> Callee {
        Callee { directory: self.directory.clone(), tls: self.authority.server.clone(), tls_addresses: Arc::new(tls_addresses) }
    }

    fn everywhere(&self) -> IpAddr {
        match self.families {
            Families::Both => [0_u16; 8].into(),
            Families::V4Only => [0; 4].into(),
        }
    }

    /// The attempts before and after the policy.
    pub fn attempts(&self) -> Vec<Row> {
        let lookup = || API.to_string();
        let mut rows = Vec::new();
        let mut add = |who, from, way: Way, home: Home, port, after| {
            for address in home.addresses(self.families) {
                rows.push(Row { who, from, way: way.clone(), to: SocketAddr::new(address, port), before: Expect::Answer, after });
            }
        };
        let (out, within) = (Side::Server, Side::Internet);
        add("the backend asks the API", out, self.tls(), API_AT_FIRST, 443, Expect::Answer);
        add("the resolver is asked", out, Way::DnsUdp { name: lookup() }, RESOLVER, 53, Expect::Answer);
        add("the resolver is asked", out, Way::DnsTcp { name: lookup() }, RESOLVER, 53, Expect::Answer);
        add("a customer comes in", within, Way::Tcp, SERVER, 443, Expect::Answer);
        add("a package phones home", out, Way::Tcp, STRANGER, 443, Expect::Refusal);
        add("a reverse shell", out, Way::Tcp, STRANGER, 4444, Expect::Refusal);
        add("a copy over ssh", out, Way::Tcp, STRANGER, 22, Expect::Refusal);
        add("a tunnel in QUIC", out, Way::Udp, STRANGER, 443, Expect::Refusal);
        add("a tunnel in NTP", out, Way::Udp, STRANGER, 123, Expect::Refusal);
        add("a stranger's resolver", out, Way::DnsUdp { name: lookup() }, STRANGER, 53, Expect::Refusal);
        add("a stranger's resolver", out, Way::DnsTcp { name: lookup() }, STRANGER, 53, Expect::Refusal);
        add("a secret in a ping", out, Way::Ping, STRANGER, 0, Expect::Refusal);
        add("the API without TLS", out, Way::Tcp, API_AT_FIRST, 80, Expect::Refusal);
        add("the API over QUIC", out, Way::Udp, API_AT_FIRST, 443, Expect::Refusal);
        add("the API's neighbour", out, self.tls(), NEIGHBOUR, 443, Expect::Refusal);
        add("a forgotten open port", within, Way::Tcp, SERVER, 8080, Expect::Refusal);
        rows
    }

    /// The attempts before and after the refresh that follows a rotation.
    pub fn attempts_around_the_refresh(&self) -> Vec<Row> {
        let mut rows = Vec::new();
        for (who, home, before, after) in [
            ("the API's new address", API_LATER, Expect::Refusal, Expect::Answer),
            ("the API's old address", API_AT_FIRST, Expect::Answer, Expect::Answer),
            ("the API's neighbour", NEIGHBOUR, Expect::Refusal, Expect::Refusal),
        ] {
            for address in home.addresses(self.families) {
                rows.push(Row { who, from: Side::Server, way: self.tls(), to: SocketAddr::new(address, 443), before, after });
            }
        }
        rows
    }

    fn tls(&self) -> Way {
        Way::Tls { name: API.to_string(), trust: self.authority.client.clone() }
    }
}

/// From where an attempt is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// From the protected server, to the outside.
    Server,
    /// From the outside, to the protected server.
    Internet,
}

/// What should come of an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expect {
    /// An answer.
    Answer,
    /// No answer.
    Refusal,
}

/// One attempt that is made twice.
#[derive(Debug, Clone)]
pub struct Row {
    /// Who does what.
    pub who: &'static str,
    /// From where.
    pub from: Side,
    /// How.
    pub way: Way,
    /// To whom.
    pub to: SocketAddr,
    /// What should come of it the first time …
    pub before: Expect,
    /// … and the second time.
    pub after: Expect,
}

/// New namespaces may inherit `disable_ipv6` from the machine; inside ours it is ours to switch.
fn switch_ipv6_on() {
    for of in ["all", "default", "lo"] {
        // Refused where /proc/sys is read-only; then laying the cable says what is wrong.
        let _ = std::fs::write(format!("/proc/sys/net/ipv6/conf/{of}/disable_ipv6"), "0");
    }
}

/// Which families this kernel speaks.
pub fn families() -> Families {
    if std::path::Path::new("/proc/sys/net/ipv6").exists() { Families::Both } else { Families::V4Only }
}
