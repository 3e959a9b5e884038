//! Bursts: packets of one sender to one destination that come within a second are told once, with their number. Pure; the time is an
//! argument, and who sent a packet is asked of the caller, once for each burst that needs it.
//!
//! What is open at a time is bounded. What finds no room is counted and told as a number.

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use crate::base::net::Protocol;
use crate::base::packet::Direction;
use crate::base::time::Timestamp;
use crate::violation::attribute::{Ends, Owner};
use crate::violation::decode::Packet;
use crate::violation::record::{Process, Seen};

/// How long a burst is open after its first packet.
pub const WINDOW: Duration = Duration::from_secs(1);
/// How many bursts are open at a time.
pub const OPEN_MAX: usize = 4096;
/// How many rules are told apart; ids beyond share one.
const RULES_MAX: usize = 4096;
/// How often it is asked who sent a burst, with each packet that gives another chance.
const TRIES: u8 = 8;

/// A point in time on both clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    /// The wall clock, which may be set back: only written down.
    pub wall: Timestamp,
    /// The clock that nobody sets: what a burst's end is measured by.
    pub passed: Duration,
}

/// What asking for an owner came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// It was found, as far as is said there.
    Owner(Owner),
    /// There is no such socket any more.
    Gone,
    /// It could not be found out.
    Unknown,
}

/// What a burst is told by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    rule: u16,
    direction: Direction,
    uid: Option<u32>,
    source: IpAddr,
    destination: IpAddr,
    protocol: Protocol,
    port: Option<u16>,
}

/// A burst that is open.
#[derive(Debug)]
struct Open {
    first: Moment,
    last: Timestamp,
    count: u64,
    source_port: Option<u16>,
    owner: Attribution,
}

/// Who sent a burst.
#[derive(Debug)]
enum Attribution {
    /// No program of this host did, or none that a socket leads to.
    None,
    /// Found out.
    Settled(Owner),
    /// Asked so often already, and what the last answer was.
    Asked(u8, Found),
}

/// The bursts that are open.
#[derive(Debug, Default)]
pub struct Fold {
    open: HashMap<Key, Open>,
    /// Keys in the order in which they end.
    order: VecDeque<Key>,
    /// Those whose owner may still be found without another packet.
    unsettled: Vec<Key>,
    rules: Vec<String>,
    other: u64,
}

impl Fold {
    /// Adds a packet. `ask` is asked for its owner when that may be known and is not yet.
    pub fn add(&mut self, packet: &Packet<'_>, now: Moment, ask: &mut dyn FnMut(&Ends) -> Found) {
        let key = Key {
            rule: self.rule(packet.rule),
            direction: packet.direction,
            uid: packet.uid,
            source: packet.source,
            destination: packet.destination,
            protocol: packet.protocol,
            port: packet.ports.map(|(_, port)| port),
        };
        let source_port = packet.ports.map(|(port, _)| port);
        if let Some(open) = self.open.get_mut(&key) {
            (open.count, open.last, open.source_port) = (open.count + 1, now.wall, source_port);
            if let Attribution::Asked(tries, _) = open.owner
                && tries < TRIES
                && let Some(ends) = ends(&key, source_port)
            {
                open.owner = settle(tries, ask(&ends));
            }
            return;
        }
        if self.open.len() >= OPEN_MAX {
            self.other += 1;
            return;
        }
        let owner = match ends(&key, source_port) {
            Some(ends) => settle(0, ask(&ends)),
            None => Attribution::None,
        };
        if matches!(owner, Attribution::Asked(..)) {
            self.unsettled.push(key);
        }
        self.open.insert(key, Open { first: now, last: now.wall, count: 1, source_port, owner });
        self.order.push_back(key);
    }

    /// Asks again for the owners that were not found: what the host tells of a socket may come a moment after its packet.
    pub fn ask_again(&mut self, ask: &mut dyn FnMut(&Ends) -> Found) {
        let open = &mut self.open;
        self.unsettled.retain(|key| {
            let Some(burst) = open.get_mut(key) else { return false };
            let (Attribution::Asked(tries, _), Some(ends)) = (&burst.owner, ends(key, burst.source_port)) else { return false };
            let tries = *tries;
            burst.owner = settle(tries, ask(&ends));
            matches!(burst.owner, Attribution::Asked(tries, _) if tries < TRIES)
        });
    }

    /// When the next burst ends; nothing when none is open.
    pub fn next_end(&self) -> Option<Duration> {
        self.order.front().and_then(|key| self.open.get(key)).map(|open| open.first.passed + WINDOW)
    }

    /// The bursts that have ended, oldest first.
    pub fn ended(&mut self, passed: Duration) -> Vec<Seen> {
        let mut ended = Vec::new();
        while self.next_end().is_some_and(|end| end <= passed) {
            ended.extend(self.close_oldest());
        }
        ended
    }

    /// All bursts, ended or not, oldest first.
    pub fn all(&mut self) -> Vec<Seen> {
        std::iter::from_fn(|| self.close_oldest()).collect()
    }

    /// How many packets found no room since this was last asked.
    pub fn take_other(&mut self) -> u64 {
        std::mem::take(&mut self.other)
    }

    fn close_oldest(&mut self) -> Option<Seen> {
        let key = self.order.pop_front()?;
        let open = self.open.remove(&key)?;
        let (process, service) = match open.owner {
            Attribution::Settled(owner) => (owner.process, owner.service),
            Attribution::Asked(_, Found::Gone) => (Some(Process::Gone), None),
            Attribution::Asked(..) | Attribution::None => (None, None),
        };
        Some(Seen {
            first: open.first.wall,
            last: open.last,
            count: open.count,
            direction: key.direction,
            protocol: key.protocol,
            source: key.source,
            source_port: open.source_port,
            destination: key.destination,
            port: key.port,
            name: None,
            uid: key.uid,
            user: None,
            process,
            service,
            rule: self.rules.get(usize::from(key.rule)).cloned().unwrap_or_default(),
            line: None,
        })
    }

    /// The number of a rule: ids are few, and a number is no allocation for each packet.
    fn rule(&mut self, id: &str) -> u16 {
        let known = self.rules.iter().position(|rule| rule == id);
        let number = known.unwrap_or_else(|| {
            if self.rules.len() < RULES_MAX {
                self.rules.push(id.to_string());
            }
            self.rules.len() - 1
        });
        u16::try_from(number).unwrap_or(u16::MAX)
    }
}

/// The ends of the socket of this host that sent a packet of this burst; nothing where none did, or none that can be looked up.
fn ends(key: &Key, source_port: Option<u16>) -> Option<Ends> {
    let sent_here = key.direction == Direction::Out && key.uid.is_some() && key.protocol.has_ports();
    let (from, to) = source_port.zip(key.port).filter(|_| sent_here)?;
    let (local, remote) = (SocketAddr::new(key.source, from), SocketAddr::new(key.destination, to));
    Some(Ends { protocol: key.protocol, local, remote })
}

fn settle(tries: u8, found: Found) -> Attribution {
    match found {
        Found::Owner(owner) => Attribution::Settled(owner),
        found => Attribution::Asked(tries + 1, found),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Moment = Moment { wall: Timestamp(1_795_492_320), passed: Duration::from_secs(100) };

    fn at(milliseconds: u64) -> Moment {
        Moment { wall: START.wall, passed: START.passed + Duration::from_millis(milliseconds) }
    }

    fn packet(destination: &str, from: u16) -> Packet<'static> {
        Packet {
            rule: "refuse-out",
            direction: Direction::Out,
            source: "203.0.113.10".parse().unwrap(),
            destination: destination.parse().unwrap(),
            protocol: Protocol::TCP,
            ports: Some((from, 443)),
            uid: Some(1000),
        }
    }

    fn service(name: &str) -> Found {
        Found::Owner(Owner { process: None, service: Some(name.to_string()) })
    }

    #[test]
    fn a_burst_is_told_once_a_second_after_it_began_with_its_number() {
        let mut fold = Fold::default();
        let mut asked = 0;
        for count in 0..10_000u16 {
            fold.add(&packet("198.51.100.66", count), at(u64::from(count) / 20), &mut |_| {
                asked += 1;
                service("a.service")
            });
        }
        assert_eq!((asked, fold.next_end()), (1, Some(at(1000).passed)), "who it was is asked once");
        assert!(fold.ended(at(999).passed).is_empty());
        let told = fold.ended(at(1000).passed);
        assert_eq!((told.len(), told[0].count, told[0].source_port), (1, 10_000, Some(9_999)));
        assert_eq!((told[0].service.as_deref(), told[0].rule.as_str()), (Some("a.service"), "refuse-out"));
        assert!(fold.ended(at(5000).passed).is_empty() && fold.next_end().is_none());
    }

    #[test]
    fn what_differs_in_anything_that_matters_is_told_apart() {
        let mut fold = Fold::default();
        let base = packet("198.51.100.66", 1);
        let source = "203.0.113.11".parse().unwrap();
        let others = [
            base,
            Packet { rule: "quarantine", ..base },
            Packet { direction: Direction::Forward, ..base },
            Packet { uid: None, ..base },
            Packet { source, ..base },
            packet("198.51.100.67", 1),
            Packet { protocol: Protocol::UDP, ..base },
            Packet { ports: Some((1, 444)), ..base },
            Packet { ports: None, ..base },
        ];
        others.iter().for_each(|packet| fold.add(packet, START, &mut |_| Found::Unknown));
        others.iter().for_each(|packet| fold.add(packet, START, &mut |_| Found::Unknown));
        assert_eq!(fold.all().iter().map(|seen| seen.count).collect::<Vec<_>>(), [2; 9]);
    }

    #[test]
    fn a_flood_of_destinations_takes_bounded_room_and_the_rest_is_counted() {
        let mut fold = Fold::default();
        for number in 0..100_000u32 {
            let destination = IpAddr::from(number.to_be_bytes());
            fold.add(&Packet { destination, ..packet("0.0.0.0", 1) }, START, &mut |_| Found::Gone);
        }
        assert_eq!((fold.open.len(), fold.order.len()), (OPEN_MAX, OPEN_MAX));
        assert!(fold.unsettled.len() <= OPEN_MAX);
        assert_eq!((fold.take_other(), fold.take_other()), (100_000 - OPEN_MAX as u64, 0));
        assert_eq!(fold.all().len(), OPEN_MAX);
        for number in 0..100_000u32 {
            fold.add(&Packet { rule: &number.to_string(), ..packet("198.51.100.66", 1) }, START, &mut |_| Found::Gone);
        }
        assert!(fold.rules.len() <= RULES_MAX, "{}", fold.rules.len());
    }

    #[test]
    fn who_was_not_found_at_once_may_be_found_a_moment_later_or_by_the_next_packet_and_is_else_said_to_be_gone() {
        let mut fold = Fold::default();
        for port in [1, 2, 3] {
            fold.add(&Packet { ports: Some((9, port)), ..packet("198.51.100.66", 9) }, START, &mut |_| Found::Gone);
        }
        fold.ask_again(&mut |ends| if ends.remote.port() == 1 { service("later.service") } else { Found::Gone });
        fold.add(&Packet { ports: Some((77, 2)), ..packet("198.51.100.66", 9) }, at(5), &mut |ends| {
            assert_eq!(ends.local.port(), 77);
            service("next.service")
        });
        let mut asked = 0;
        for _ in 0..100 {
            fold.ask_again(&mut |_| {
                asked += 1;
                Found::Gone
            });
        }
        assert!(asked < 10, "{asked}: nobody asks for ever");
        let told = fold.all();
        assert_eq!(told[0].service.as_deref(), Some("later.service"));
        assert_eq!((told[1].service.as_deref(), told[1].count), (Some("next.service"), 2));
        assert_eq!((told[2].process.clone(), told[2].service.clone()), (Some(Process::Gone), None));
    }

    #[test]
    fn nobody_is_asked_for_the_socket_of_a_packet_that_no_socket_here_sent() {
        let mut fold = Fold::default();
        let base = packet("198.51.100.66", 1);
        let others = [
            Packet { direction: Direction::In, ..base },
            Packet { direction: Direction::Forward, uid: None, ..base },
            Packet { uid: None, ..base },
            Packet { protocol: Protocol(47), ports: None, ..base },
            Packet { ports: None, ..base },
        ];
        others.iter().for_each(|packet| fold.add(packet, START, &mut |ends| panic!("{ends:?}")));
        assert!(fold.all().iter().all(|seen| seen.process.is_none() && seen.service.is_none()));
    }

    #[test]
    fn a_clock_that_is_set_back_ends_no_burst_early_or_late() {
        let mut fold = Fold::default();
        fold.add(&packet("198.51.100.66", 1), START, &mut |_| Found::Unknown);
        let back = Moment { wall: Timestamp(0), ..at(900) };
        fold.add(&packet("198.51.100.66", 2), back, &mut |_| Found::Unknown);
        assert!(fold.ended(at(999).passed).is_empty());
        let told = fold.ended(at(1000).passed);
        assert_eq!((told[0].first, told[0].last, told[0].count), (START.wall, Timestamp(0), 2));
    }
}
