//! Attempts of real programs, and whether they meet what the trace says of their first packet. Which packet filter judges them is the
//! caller's business.
#![allow(dead_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::AsFd;
use std::time::Duration;

use egressguard::base::net::{Family, from_octets};
use egressguard::base::packet::Direction;
use egressguard::judge::packet::Payload;
use egressguard::judge::{Packet, Refusal, Trace, Verdict, judge};
use egressguard::ruleset::Ruleset;
use egressguard::ruleset::field::Field;
use egressguard::ruleset::program::KeyType;
use egressguard::ruleset::rule::Operator;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, getsockopt, socket, sockopt};
use nix::unistd::{Gid, Uid, setfsgid, setfsuid};
use proptest::prelude::*;
use proptest::sample::{Index, select};

use crate::namespace::behind::{BEHIND, Behind};
use crate::namespace::pair::{HOST, Pair};

/// How long a packet is waited for that the trace says is dropped without a word.
const SILENCE: Duration = Duration::from_millis(150);
/// How long an answer may take that the trace says will come.
const ANSWER: Duration = Duration::from_secs(5);

/// One try of a program.
#[derive(Debug, Clone)]
pub struct Attempt {
    pub direction: Direction,
    pub transport: Transport,
    pub peer: IpAddr,
    pub port: u16,
    pub user: u32,
    pub group: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    Tcp,
    Udp,
}

/// What a program saw.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// The peer got it.
    Arrived,
    /// Nobody said anything.
    Silence,
    /// The kernel said this.
    Error(Errno),
}

impl Attempt {
    /// The first packet of it.
    pub fn packet(&self) -> Packet {
        let host = HOST[usize::from(self.peer.is_ipv6())].parse().unwrap();
        let (source, destination) = match self.direction {
            Direction::In => (self.peer, host),
            Direction::Forward => (BEHIND[usize::from(self.peer.is_ipv6())].parse().unwrap(), self.peer),
            _ => (host, self.peer),
        };
        let payload = match self.transport {
            Transport::Tcp => Payload::Tcp { source: 40000, destination: self.port, flags: 2 },
            Transport::Udp => Payload::Udp { source: 40000, destination: self.port },
        };
        let mut packet = Packet::new(self.direction, source, destination, payload).unwrap();
        if let Some(socket) = &mut packet.socket {
            (socket.user, socket.group) = (self.user, self.group);
        }
        packet
    }

    /// Makes it for real.
    fn make(&self, arena: &Arena, patience: Duration) -> Seen {
        match self.direction {
            Direction::In => arena.pair.in_world(|| {
                let host: IpAddr = HOST[usize::from(self.peer.is_ipv6())].parse().unwrap();
                self.send(Some(self.peer), SocketAddr::new(host, self.port), &arena.host, patience)
            }),
            Direction::Forward => arena
                .behind
                .expect("a machine behind the host")
                .inside(|| self.send(None, SocketAddr::new(self.peer, self.port), &arena.world, patience)),
            Direction::Out => {
                let seen =
                    as_user(self.user, self.group, || self.send(None, SocketAddr::new(self.peer, self.port), &arena.world, patience));
                assert!(setfsuid(Uid::from_raw(u32::MAX)).is_root(), "still somebody else");
                seen
            }
        }
    }

    fn send(&self, from: Option<IpAddr>, to: SocketAddr, listeners: &Listeners, patience: Duration) -> Seen {
        match self.transport {
            Transport::Tcp => match tcp(from, to, patience) {
                Ok(()) => Seen::Arrived,
                Err(Errno::ETIMEDOUT) => Seen::Silence,
                Err(errno) => Seen::Error(errno),
            },
            Transport::Udp => udp(from, to, &listeners.udp[&self.port], patience),
        }
    }
}

/// Runs `body` with sockets that belong to this user and group; only this thread changes.
pub fn as_user<T>(user: u32, group: u32, body: impl FnOnce() -> T) -> T {
    setfsgid(Gid::from_raw(group));
    setfsuid(Uid::from_raw(user));
    let result = body();
    setfsuid(Uid::from_raw(0));
    setfsgid(Gid::from_raw(0));
    result
}

fn tcp(from: Option<IpAddr>, to: SocketAddr, patience: Duration) -> Result<(), Errno> {
    let family = if to.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let stream = socket(family, SockType::Stream, SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC, None)?;
    if let Some(from) = from {
        bind(std::os::fd::AsRawFd::as_raw_fd(&stream), &SockaddrStorage::from(SocketAddr::new(from, 0)))?;
    }
    match connect(std::os::fd::AsRawFd::as_raw_fd(&stream), &SockaddrStorage::from(to)) {
        Err(Errno::EINPROGRESS) => {}
        done => return done,
    }
    let mut polled = [PollFd::new(stream.as_fd(), PollFlags::POLLOUT)];
    if poll(&mut polled, PollTimeout::try_from(patience).unwrap())? == 0 {
        return Err(Errno::ETIMEDOUT);
    }
    match getsockopt(&stream, sockopt::SocketError)? {
        0 => Ok(()),
        number => Err(Errno::from_raw(number)),
    }
}

/// Sends one datagram and looks whether `listener` got it.
fn udp(from: Option<IpAddr>, to: SocketAddr, listener: &UdpSocket, patience: Duration) -> Seen {
    let any = if to.is_ipv4() { Family::V4.unspecified() } else { Family::V6.unspecified() };
    let socket = UdpSocket::bind(SocketAddr::new(from.unwrap_or(any), 0)).unwrap();
    socket.connect(to).unwrap();
    if socket.send(b"egressguard?").is_ok() {
        // Whichever comes first: the datagram there, or an error message here.
        let mut polled = [PollFd::new(listener.as_fd(), PollFlags::POLLIN), PollFd::new(socket.as_fd(), PollFlags::empty())];
        let _ = poll(&mut polled, PollTimeout::try_from(patience).unwrap());
        if polled[0].any() == Some(true) {
            listener.recv(&mut [0; 64]).unwrap();
            return Seen::Arrived;
        }
    }
    // A packet that is refused on its way out is EPERM to its sender at once; whether the kernel also gave a reason waits in the socket.
    let reason = getsockopt(&socket, sockopt::SocketError).unwrap();
    if reason == 0 { Seen::Silence } else { Seen::Error(Errno::from_raw(reason)) }
}

/// Sockets that wait for packets at these ports.
pub struct Listeners {
    tcp: Vec<TcpListener>,
    udp: BTreeMap<u16, UdpSocket>,
}

impl Listeners {
    /// Of both families, in the namespace of this thread.
    pub fn at(ports: &BTreeSet<u16>) -> Listeners {
        let any = |port: &u16| SocketAddr::new(Family::V6.unspecified(), *port);
        Listeners {
            tcp: ports.iter().map(|port| TcpListener::bind(any(port)).unwrap_or_else(|why| panic!("tcp {port}: {why}"))).collect(),
            udp: ports.iter().map(|port| (*port, UdpSocket::bind(any(port)).unwrap_or_else(|why| panic!("udp {port}: {why}")))).collect(),
        }
    }

    /// Nobody sent anything that was not looked for.
    pub fn assert_quiet(&self, whose: &str) {
        for (port, socket) in &self.udp {
            socket.set_nonblocking(true).unwrap();
            assert!(socket.recv(&mut [0; 64]).is_err(), "{whose} got a datagram at port {port} that was refused");
        }
        for listener in &self.tcp {
            // Whoever connected is forgotten, so that the queue never fills.
            listener.set_nonblocking(true).unwrap();
            while listener.accept().is_ok() {}
        }
    }
}

/// The host with its rules, and everybody else.
pub struct Arena<'a> {
    pair: &'a Pair,
    behind: Option<&'a Behind>,
    pub host: Listeners,
    pub world: Listeners,
}

impl Arena<'_> {
    /// The rules are loaded already; programs listen at these ports.
    pub fn new<'a>(pair: &'a Pair, behind: Option<&'a Behind>, ports: &BTreeSet<u16>) -> Arena<'a> {
        Arena { pair, behind, host: Listeners::at(ports), world: pair.in_world(|| Listeners::at(ports)) }
    }

    /// Makes the attempt and compares what is seen with what the trace says.
    pub fn agrees(&self, ruleset: &Ruleset, attempt: &Attempt) -> Verdict {
        self.meets(&judge(ruleset, &attempt.packet()), attempt)
    }

    /// Makes the attempt and compares what is seen with this trace.
    pub fn meets(&self, trace: &Trace, attempt: &Attempt) -> Verdict {
        let patience = match trace.verdict {
            Verdict::Deny { how: Refusal::Drop } => SILENCE,
            Verdict::Deny { how: Refusal::Reset } if attempt.direction == Direction::Forward => SILENCE,
            _ => ANSWER,
        };
        let seen = attempt.make(self, patience);
        let expected: &[Seen] = match trace.verdict {
            // The host's own chain `output` is asked about the reset, and does not let it go.
            Verdict::Deny { how: Refusal::Reset } if attempt.direction == Direction::Forward => {
                &[Seen::Error(Errno::ECONNREFUSED), Seen::Silence]
            }
            Verdict::Allow => &[Seen::Arrived],
            Verdict::Deny { how: Refusal::Drop } => &[Seen::Silence],
            Verdict::Deny { how: Refusal::Reset } => &[Seen::Error(Errno::ECONNREFUSED)],
            Verdict::Deny { how: Refusal::Prohibit } => &[Seen::Error(Errno::EHOSTUNREACH), Seen::Error(Errno::EACCES)],
        };
        assert!(expected.contains(&seen), "{attempt:?} saw {seen:?}, but:\n{}", told(trace));
        trace.verdict
    }
}

pub fn told(trace: &Trace) -> String {
    let steps = trace.steps.iter().map(|step| format!("  {} {}: {:?} because {}\n", step.chain, step.rule, step.outcome, step.because));
    format!("{:?} by {} in {}\n{}", trace.verdict, trace.rule, trace.chain, steps.collect::<String>())
}

/// What attempts on these rules are made of: whatever the rules name, and as much that they do not.
pub struct Material {
    peers: Vec<IpAddr>,
    ports: Vec<u16>,
    users: Vec<u32>,
    groups: Vec<u32>,
}

impl Material {
    pub fn of(ruleset: &Ruleset) -> Material {
        let mut peers: BTreeSet<IpAddr> =
            ["192.0.2.77", "8.8.8.8", "2001:db8:ffff::77", "2606:4700::1111"].map(|text| text.parse().unwrap()).into();
        for set in ruleset.sets.values().filter(|set| matches!(set.def.key[..], [KeyType::Ipv4Addr | KeyType::Ipv6Addr])) {
            peers.extend(
                set.members.iter().flat_map(|(key, member)| [Some(key), member.last.as_ref()]).flatten().filter_map(|key| from_octets(key)),
            );
        }
        peers.retain(is_ordinary);
        let (mut ports, mut users, mut groups) =
            (BTreeSet::from([22, 53, 80, 443, 8443]), BTreeSet::from([0, 1000, 4242]), BTreeSet::from([0]));
        for test in ruleset.chains.iter().flat_map(|chain| &chain.rules).flat_map(|rule| &rule.tests) {
            match (test.field, &test.operator) {
                (Field::DestinationPort(_), Operator::Is(port)) => ports.extend(u16::try_from(*port)),
                (Field::DestinationPort(_), Operator::Within(low, high)) => {
                    ports.extend([*low, *high].into_iter().filter_map(|port| u16::try_from(port).ok()));
                }
                (Field::SocketUser, Operator::Is(user)) => users.extend(u32::try_from(*user)),
                (Field::SocketGroup, Operator::Is(group)) => groups.extend(u32::try_from(*group)),
                _ => {}
            }
        }
        users.remove(&u32::MAX);
        groups.remove(&u32::MAX);
        Material {
            peers: peers.into_iter().collect(),
            ports: ports.into_iter().filter(|port| *port != 0).collect(),
            users: users.into_iter().collect(),
            groups: groups.into_iter().collect(),
        }
    }

    /// So many attempts, in directions as often as they are named.
    pub fn attempts(&self, count: usize, directions: &[Direction]) -> impl Strategy<Value = Vec<Attempt>> {
        let parts = (
            select(directions.to_vec()),
            select(vec![Transport::Tcp, Transport::Tcp, Transport::Udp]),
            select(self.peers.clone()),
            select(self.ports.clone()),
            select(self.users.clone()),
            select(self.groups.clone()),
        );
        proptest::collection::vec(parts, count).prop_map(|parts| {
            let attempt = |(direction, transport, peer, port, user, group)| Attempt { direction, transport, peer, port, user, group };
            parts.into_iter().map(attempt).collect()
        })
    }

    /// One attempt at something that the rules let out, for each accepting rule with a look-up of its own.
    pub fn permitted(&self, ruleset: &Ruleset, at: Index) -> Vec<Attempt> {
        let mut attempts = Vec::new();
        for rule in ruleset.chains.iter().filter(|chain| chain.def.name.starts_with("outbound")).flat_map(|chain| &chain.rules) {
            let (mut port, mut user, mut group, mut transport, mut peers) = (443, 0, 0, Transport::Tcp, Vec::new());
            for test in &rule.tests {
                match (test.field, &test.operator) {
                    (Field::DestinationPort(protocol), Operator::Is(low) | Operator::Within(low, _)) => {
                        port = u16::try_from(*low).unwrap();
                        transport = if protocol.0 == 6 { Transport::Tcp } else { Transport::Udp };
                    }
                    (Field::SocketUser, Operator::Is(number)) => user = u32::try_from(*number).unwrap(),
                    (Field::SocketGroup, Operator::Is(number)) => group = u32::try_from(*number).unwrap(),
                    (Field::DestinationAddress(_), Operator::In(set)) => {
                        peers = ruleset.sets[set].members.keys().filter_map(|key| from_octets(key)).filter(is_ordinary).collect();
                    }
                    _ => {}
                }
            }
            if !peers.is_empty() && port != 0 && user != u32::MAX && group != u32::MAX {
                let peer = *at.get(&peers);
                attempts.push(Attempt { direction: Direction::Out, transport, peer, port, user, group });
            }
        }
        attempts
    }
}

/// An address that a packet can have anywhere, and that is not the link of the two namespaces.
pub fn is_ordinary(address: &IpAddr) -> bool {
    let special = address.is_unspecified() || address.is_loopback() || address.is_multicast();
    !special
        && match address {
            IpAddr::V4(v4) => !matches!(v4.octets(), [0 | 127 | 240.., ..] | [169, 254, ..] | [10, 99, ..]),
            IpAddr::V6(v6) => matches!(v6.octets(), [0x20..=0x3f, ..]),
        }
}

/// Whether a TCP connection from this thread's namespace is answered soon.
pub fn reaches(to: SocketAddr) -> bool {
    tcp(None, to, SILENCE).is_ok()
}
