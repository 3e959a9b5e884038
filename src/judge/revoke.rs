//! Which flows a ruleset does not allow. Every flow is judged as the packet that opened it, by the same walk through the rules as
//! any other packet, so that what is under way is allowed exactly when it could be opened again.
//!
//! - Addresses are those that the filter sees: behind the translation of destinations, before that of sources.
//! - A packet that goes out leaves a socket. Where none is found nobody is known to own the flow, and what is allowed for
//!   somebody only is not allowed for it. Of several sockets that may have sent it each must be allowed.
//! - Who opened a connection that tracking did not see begin, or does not know at all, is not written down anywhere. Where something
//!   listens at its own port the peer opened it; elsewhere it stays when either end may have.
//! - What crosses the loopback interface is nobody's business.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use crate::base::net::{Family, Protocol};
use crate::base::packet::Direction;
use crate::judge::flow::{Beginning, Flow, LocalSocket, OwnerDetail, Tuple, Underway};
use crate::judge::packet::{Link, Packet, Payload, Socket, TCP_SYN};
use crate::judge::trace::{Prepared, Verdict};
use crate::policy::Mode;
use crate::ruleset::Ruleset;
use crate::ruleset::field::Field;

/// What is to go, in the order it was listed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Revoked<'a> {
    /// Tracked flows.
    pub flows: Vec<&'a Flow>,
    /// Sockets: of these flows, and TCP sockets whose flow tracking does not know.
    pub sockets: Vec<&'a LocalSocket>,
}

impl Revoked<'_> {
    /// Whether everything may stay.
    pub fn is_nothing(&self) -> bool {
        self.flows.is_empty() && self.sockets.is_empty()
    }
}

/// What the rules ask about the owners of sockets, besides the user.
pub fn asks(ruleset: &Ruleset) -> BTreeSet<OwnerDetail> {
    let tests = ruleset.chains.iter().flat_map(|chain| &chain.rules).flat_map(|rule| &rule.tests);
    let detail = |field| match field {
        Field::SocketGroup => Some(OwnerDetail::Group),
        Field::SocketCgroup(_) => Some(OwnerDetail::ControlGroups),
        _ => None,
    };
    tests.filter_map(|test| detail(test.field)).collect()
}

/// Finds what these rules do not allow. Rules that only observe block nothing, and revoke nothing.
pub fn revoke<'a>(ruleset: &Ruleset, underway: &'a Underway) -> Revoked<'a> {
    let mut revoked = Revoked::default();
    if ruleset.identity.mode == Mode::Observe {
        return revoked;
    }
    let review = Review { rules: Prepared::new(ruleset), underway, sockets: Index::new(&underway.sockets) };
    // What the flows of a socket say of it; a socket without any is judged by itself.
    let mut said: BTreeMap<usize, Stay> = BTreeMap::new();
    for flow in &underway.flows {
        let place = review.place(flow);
        let stay = review.flow(flow, place);
        let (near, far) = place.sides(flow);
        for socket in review.sockets.connected(flow.original.payload.protocol(), near, far) {
            let before = said.entry(*socket).or_insert(Stay::Yes);
            *before = stay.min(*before);
        }
        if stay == Stay::No {
            revoked.flows.push(flow);
        }
    }
    for (number, socket) in underway.sockets.iter().enumerate() {
        if said.get(&number).copied().unwrap_or_else(|| review.socket(socket)) == Stay::No {
            revoked.sockets.push(socket);
        }
    }
    revoked
}

/// Whether something may go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Stay {
    No,
    Yes,
}

impl Stay {
    fn when(allowed: bool) -> Stay {
        if allowed { Stay::Yes } else { Stay::No }
    }
}

/// Where a flow lies, seen from this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Both ends are here.
    Within,
    /// Its original packets leave the host, come in, or pass through.
    Across(Direction),
}

impl Place {
    /// This host's end and the other one, as a socket of this host would name them.
    fn sides(self, flow: &Flow) -> (SocketAddr, SocketAddr) {
        match self {
            Place::Across(Direction::In) => (source(&flow.reply), destination(&flow.reply)),
            _ => (source(&flow.original), destination(&flow.original)),
        }
    }
}

/// An opening packet, but for who sent it: what the filter sees of it.
#[derive(Debug, Clone, Copy)]
struct Opening {
    from: IpAddr,
    to: IpAddr,
    payload: Payload,
    original_port: Option<u16>,
    status: u32,
}

impl Opening {
    /// Of the original direction.
    fn of(flow: &Flow) -> Opening {
        let (original, reply) = (&flow.original, &flow.reply);
        let payload = match (original.payload, reply.payload) {
            (Payload::Tcp { source, flags, .. }, Payload::Tcp { source: answering, .. }) => {
                Payload::Tcp { source, destination: answering, flags }
            }
            (Payload::Udp { source, .. }, Payload::Udp { source: answering, .. }) => Payload::Udp { source, destination: answering },
            (payload, _) => payload,
        };
        let original_port = original.payload.destination_port();
        Opening { from: original.source, to: reply.source, payload, original_port, status: flow.status }
    }

    /// As if the other end had opened it.
    fn turned(&self) -> Opening {
        let payload = match self.payload {
            Payload::Tcp { source, destination, flags } => Payload::Tcp { source: destination, destination: source, flags },
            Payload::Udp { source, destination } => Payload::Udp { source: destination, destination: source },
            other => other,
        };
        Opening { from: self.to, to: self.from, payload, original_port: payload.destination_port(), status: self.status }
    }

    fn packet(&self, direction: Direction, owner: Option<&Socket>) -> Option<Packet> {
        let mut packet = Packet::new(direction, self.from, self.to, self.payload)?;
        // What crosses loopback is not judged.
        packet.link = Link::Other;
        packet.socket = owner.cloned();
        packet.tracking.status = self.status;
        packet.tracking.original_port = self.original_port;
        Some(packet)
    }
}

struct Review<'a> {
    rules: Prepared<'a>,
    underway: &'a Underway,
    sockets: Index,
}

impl Review<'_> {
    fn place(&self, flow: &Flow) -> Place {
        let addresses = &self.underway.addresses;
        let (from, to) = (flow.original.source, flow.reply.source);
        // A host that has no address yet asks for one from the unspecified address.
        match (addresses.own(&from) || from.is_unspecified(), addresses.own(&to)) {
            (true, true) => return Place::Within,
            (true, false) => return Place::Across(Direction::Out),
            (false, true) => return Place::Across(Direction::In),
            (false, false) if addresses.shared(&to) => return Place::Across(Direction::In),
            (false, false) => {}
        }
        // A transparent proxy speaks with addresses that are not its host's.
        let protocol = flow.original.payload.protocol();
        let spoken = [Direction::Out, Direction::In].into_iter().map(Place::Across).find(|place| {
            let (near, far) = place.sides(flow);
            !self.sockets.connected(protocol, near, far).is_empty()
        });
        spoken.unwrap_or(Place::Across(Direction::Forward))
    }

    fn flow(&self, flow: &Flow, place: Place) -> Stay {
        let opening = Opening::of(flow);
        let (near, far) = place.sides(flow);
        match (place, flow.beginning) {
            (Place::Within, _) => Stay::Yes,
            (Place::Across(Direction::Out), Beginning::Seen) => self.out(&opening, near, far),
            (Place::Across(Direction::Out), Beginning::Missed) => self.either(&opening, near, far),
            (Place::Across(Direction::In), Beginning::Missed) => self.either(&opening.turned(), near, far),
            (Place::Across(Direction::Forward), Beginning::Missed) => {
                self.unowned(Direction::Forward, &opening).max(self.unowned(Direction::Forward, &opening.turned()))
            }
            (Place::Across(direction), Beginning::Seen) => self.unowned(direction, &opening),
        }
    }

    /// A socket whose flow tracking does not know. A TCP socket has one all the same, older than tracking; a UDP socket has none, and
    /// its next packet is judged when it comes.
    fn socket(&self, socket: &LocalSocket) -> Stay {
        let addresses = &self.underway.addresses;
        let Some(remote) = socket.remote.filter(|_| socket.protocol == Protocol::TCP) else { return Stay::Yes };
        let (near, far) = (socket.local, remote);
        if addresses.own(&near.ip()) && addresses.own(&far.ip()) {
            return Stay::Yes;
        }
        let payload = Payload::Tcp { source: near.port(), destination: far.port(), flags: TCP_SYN };
        let opening = Opening { from: near.ip(), to: far.ip(), payload, original_port: Some(far.port()), status: 0 };
        self.either(&opening, near, far)
    }

    /// A connection of this host's of which nobody knows who opened it; `opening` is what this host would have sent.
    fn either(&self, opening: &Opening, near: SocketAddr, far: SocketAddr) -> Stay {
        let by_peer = self.unowned(Direction::In, &opening.turned());
        if self.sockets.is_served(opening.payload.protocol(), near) { by_peer } else { by_peer.max(self.out(opening, near, far)) }
    }

    fn out(&self, opening: &Opening, near: SocketAddr, far: SocketAddr) -> Stay {
        let found = self.sockets.senders(opening.payload.protocol(), near, far);
        if found.is_empty() {
            return self.unowned(Direction::Out, opening);
        }
        let owners = found.iter().filter_map(|number| self.underway.sockets.get(*number)).map(|socket| socket.owner.as_ref());
        Stay::when(owners.into_iter().all(|owner| self.allows(opening.packet(Direction::Out, owner))))
    }

    fn unowned(&self, direction: Direction, opening: &Opening) -> Stay {
        Stay::when(self.allows(opening.packet(direction, None)))
    }

    fn allows(&self, packet: Option<Packet>) -> bool {
        packet.is_some_and(|packet| self.rules.decide(&packet).verdict == Verdict::Allow)
    }
}

/// Sockets by their ends, as numbers in the list.
#[derive(Default)]
struct Index {
    connected: BTreeMap<(Protocol, SocketAddr, SocketAddr), Vec<usize>>,
    serving: BTreeMap<(Protocol, SocketAddr), Vec<usize>>,
}

impl Index {
    fn new(sockets: &[LocalSocket]) -> Index {
        let mut index = Index::default();
        for (number, socket) in sockets.iter().enumerate() {
            match socket.remote {
                Some(remote) => index.connected.entry((socket.protocol, socket.local, remote)).or_default().push(number),
                None => index.serving.entry((socket.protocol, socket.local)).or_default().push(number),
            }
        }
        index
    }

    /// Those with exactly these ends.
    fn connected(&self, protocol: Protocol, near: SocketAddr, far: SocketAddr) -> &[usize] {
        self.connected.get(&(protocol, near, far)).map_or(&[], Vec::as_slice)
    }

    /// Those that may have sent a packet with these ends: connected ones, or else UDP sockets that speak with everybody.
    fn senders(&self, protocol: Protocol, near: SocketAddr, far: SocketAddr) -> Vec<usize> {
        let connected = self.connected(protocol, near, far);
        if !connected.is_empty() || protocol != Protocol::UDP {
            return connected.to_vec();
        }
        self.at(protocol, near)
    }

    /// Whether a socket takes what comes to this end from anybody.
    fn is_served(&self, protocol: Protocol, near: SocketAddr) -> bool {
        !self.at(protocol, near).is_empty()
    }

    /// Those without a peer at this end or at every address of its family, or else at every address of both.
    fn at(&self, protocol: Protocol, near: SocketAddr) -> Vec<usize> {
        let bound = |address: IpAddr| self.serving.get(&(protocol, SocketAddr::new(address, near.port()))).into_iter().flatten().copied();
        let own: Vec<usize> = bound(near.ip()).chain(bound(Family::of(&near.ip()).unspecified())).collect();
        if own.is_empty() { bound(IpAddr::V6(Ipv6Addr::UNSPECIFIED)).collect() } else { own }
    }
}

fn source(tuple: &Tuple) -> SocketAddr {
    SocketAddr::new(tuple.source, tuple.payload.source_port().unwrap_or(0))
}

fn destination(tuple: &Tuple) -> SocketAddr {
    SocketAddr::new(tuple.destination, tuple.payload.destination_port().unwrap_or(0))
}
