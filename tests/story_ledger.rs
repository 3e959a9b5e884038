//! Stories of what was refused: the program itself against a real kernel that counts.

mod support;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::time::Instant;

use egressguard::base::net::Protocol;
use egressguard::base::packet::Direction;
use egressguard::demo::attempt::Way;
use egressguard::state::books::{self, LEDGER};
use egressguard::system::files::StateDirectory;
use egressguard::violation::record::Kind;
use egressguard::violation::{Tuple, Who};
use support::{BEHIND_V4, HOST_V4, HOST_V6, RESOLVER_V4, STRANGER_V4, STRANGER_V6, Side, World, eventually, is_refused, passes};

/// What the book holds: packets by who and where, and those without room.
#[derive(Default, Debug)]
struct Booked {
    each: BTreeMap<Tuple, u64>,
    overflow: BTreeMap<Direction, u64>,
}

impl Booked {
    fn by(world: &World) -> Booked {
        let mut booked = Booked::default();
        let files = StateDirectory::new(world.state());
        books::each(LEDGER, &files, |line| match line.kind() {
            Some(Kind::Count(count)) => *booked.each.entry(count.tuple.into()).or_default() += count.packets,
            Some(Kind::Overflow(more)) => *booked.overflow.entry(more.direction).or_default() += more.packets,
            _ => {}
        })
        .unwrap();
        assert!(books::check(LEDGER, &files, 0).unwrap().findings.is_empty());
        booked
    }

    fn of(&self, direction: Direction, who: Who, destination: Option<&str>, port: u16) -> u64 {
        let destination = destination.map(|address| address.parse().unwrap());
        let tuple = Tuple { direction, who, destination, protocol: Protocol::UDP, port: Some(port) };
        self.each.get(&tuple).copied().unwrap_or_default()
    }
}

/// Sends so many datagrams; refused ones are errors, and are sent all the same.
fn send(world: &World, side: Side, count: usize, to: &str, port: u16) {
    let to = SocketAddr::new(to.parse::<IpAddr>().unwrap(), port);
    world.within(side, || {
        let from = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let socket = UdpSocket::bind(from).unwrap();
        // A refusal is reported to the next send of a socket, which then sends nothing.
        (0..count).for_each(|_| {
            if socket.send_to(b"x", to).is_err() {
                let _ = socket.take_error();
            }
        });
    });
}

/// The kernel's own total of a direction.
fn total(world: &World, direction: &str) -> u64 {
    let listed = world.set(&format!("ledger_all_{direction}"));
    listed.split_once("counter packets ").map_or(0, |(_, rest)| rest.split(' ').next().unwrap().parse().unwrap())
}

#[test]
fn what_was_refused_is_booked_once_over_refreshes_applies_and_a_removal() {
    let Some(mut world) = World::new() else { return };
    world.put_a_machine_behind();
    let policy = world.policy(&format!("version: 1\ninbound: {{port: 443}}\ndns: {{servers: [{RESOLVER_V4}]}}\n"));
    world.egressguard(&["apply", &policy]).exits(0);
    let (root, behind) = (Who::User(0), Who::Source(BEHIND_V4.parse().unwrap()));
    let rounds: [&[&str]; 5] = [&["refresh"], &["refresh"], &["apply", "builtin:lockdown"], &["apply", &policy], &["remove", "--yes"]];
    for (round, words) in rounds.iter().enumerate() {
        send(&world, Side::Host, 3, STRANGER_V4, 4444);
        send(&world, Side::Host, 2, STRANGER_V6, 4444);
        send(&world, Side::Behind, 4, STRANGER_V4, 5555);
        send(&world, Side::Net, 5, HOST_V4, 6666);
        send(&world, Side::Net, 1, HOST_V6, 6666);
        // What comes from another machine may wait for its neighbour's address.
        let all = round + 1;
        eventually("every packet has come", || {
            world.set("ledger_in").contains(&format!("udp . 6666 counter packets {} ", 6 * all))
                && world.set("ledger_forward_v4").contains(&format!("udp . 5555 counter packets {} ", 4 * all))
        });
        let counted: u64 = ["out", "in", "forward"].iter().map(|direction| total(&world, direction)).sum();
        world.egressguard(words).exits(0);
        let (booked, rounds) = (Booked::by(&world), round as u64 + 1);
        assert_eq!(booked.of(Direction::Out, root, Some(STRANGER_V4), 4444), 3 * rounds, "{words:?}: {booked:?}");
        assert_eq!(booked.of(Direction::Out, root, Some(STRANGER_V6), 4444), 2 * rounds, "{words:?}: {booked:?}");
        assert_eq!(booked.of(Direction::Forward, behind, Some(STRANGER_V4), 5555), 4 * rounds, "{words:?}: {booked:?}");
        assert_eq!(booked.of(Direction::In, Who::Anybody, None, 6666), 6 * rounds, "{words:?}: {booked:?}");
        assert!(booked.overflow.is_empty(), "{booked:?}");
        // Beside these there may be what kernels send by themselves, which the totals know.
        assert!(booked.each.values().sum::<u64>() >= counted, "{words:?}: {counted} {booked:?}");
    }
    world.egressguard(&["apply", &policy]).exits(0);
    send(&world, Side::Host, 1, STRANGER_V4, 4444);
    world.egressguard(&["refresh"]).exits(0);
    assert_eq!(Booked::by(&world).of(Direction::Out, root, Some(STRANGER_V4), 4444), 3 * 5 + 1, "a table of the same name begins anew");
}

#[test]
fn a_shutdown_writes_down_what_was_counted_and_needs_no_dns_for_it() {
    let Some(mut world) = World::new() else { return };
    world.egressguard(&["apply", "builtin:openai"]).exits(0);
    world.nameserver.kill();
    for _ in 0..5 {
        is_refused(world.udp(STRANGER_V4, 7));
    }
    let read = |name: &str| std::fs::read_to_string(world.state().join(name)).unwrap();
    let (generation, pins) = (world.generation(), read("pins-1"));
    world.egressguard(&["refresh", "--harvest", "-v"]).exits(0).says(&["records were written"]);
    assert!(read("ledger.jsonl").contains("\"packets\":5"), "{}", read("ledger.jsonl"));
    assert_eq!((world.generation(), read("pins-1")), (generation, pins), "no rule and no pin is touched");
    world.egressguard(&["refresh", "--harvest", "-v"]).exits(0).says(&["0 records"]);
    world.egressguard(&["refresh", "--harvest", "--repair"]).exits(2);
}

#[test]
fn rules_that_somebody_changed_are_repaired_and_their_counts_are_kept() {
    let Some(world) = World::new() else { return };
    world.egressguard(&["apply", "builtin:openai"]).exits(0);
    send(&world, Side::Host, 3, STRANGER_V4, 4444);
    // An object of another kind makes the table be made anew.
    world.nft_load("add counter inet egressguard theirs\n");
    world.egressguard(&["refresh", "--repair"]);
    send(&world, Side::Host, 2, STRANGER_V4, 4444);
    world.egressguard(&["refresh"]).exits(0);
    assert_eq!(Booked::by(&world).of(Direction::Out, Who::User(0), Some(STRANGER_V4), 4444), 5);
}

/// 100 000 datagrams to as many destinations: the set of destinations holds 65 535.
#[test]
fn a_flood_is_counted_to_the_packet_and_what_has_no_room_is_overflow() {
    const FLOOD: u32 = 100_000;
    let Some(world) = World::new() else { return };
    world.egressguard(&["apply", "builtin:openai"]).exits(0);
    world.within(Side::Host, || {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        for number in 0..FLOOD {
            let to = Ipv4Addr::from(0x0b00_0000 + number);
            if socket.send_to(b"x", (to, 9)).is_err() {
                let _ = socket.take_error();
            }
        }
    });
    let sent = total(&world, "out");
    assert!(sent > 70_000, "{sent}");
    let start = Instant::now();
    world.egressguard(&["refresh"]).exits(0);
    println!("a refresh with 65 535 new counts: {:?}", start.elapsed());
    let start = Instant::now();
    world.egressguard(&["refresh"]).exits(0);
    println!("a refresh with nothing new: {:?}", start.elapsed());
    let booked = Booked::by(&world);
    let flood = booked.each.iter().filter(|(tuple, _)| tuple.port == Some(9));
    let (destinations, packets) = flood.fold((0u64, 0), |(some, sum), (_, packets)| (some + 1, sum + packets));
    let overflow = booked.overflow.get(&Direction::Out).copied().unwrap_or_default();
    assert_eq!(booked.each.values().sum::<u64>() + overflow, total(&world, "out"), "{destinations} destinations, {overflow} without");
    assert!(destinations > 65_000 && packets == destinations, "{destinations} {packets}");
    assert!(u64::from(FLOOD) >= packets && overflow > 0 && packets + overflow >= sent, "{overflow}");
    passes(world.tls(support::API_V4));
    is_refused(world.attempt(Side::Host, Way::Tcp, STRANGER_V4, 4444));
}
