//! The packet log of a real kernel: what its records say, what is lost and said so, who may read it.

mod namespace;

use std::net::UdpSocket;
use std::time::Duration;

use egressguard::base::packet::Direction;
use egressguard::system::netlink::nflog::PacketLog;
use egressguard::violation::decode::decode;
use egressguard::world::{Log, LogError, Meanwhile};

/// One packet of the log, in words.
fn follow(log: &mut PacketLog, seen: &mut Vec<String>) -> Meanwhile {
    let patience = Duration::from_millis(300);
    log.wait(patience, &mut |logged, _| match decode(logged) {
        Ok(packet) => {
            let direction = match packet.direction {
                Direction::In => "in",
                Direction::Out => "out",
                Direction::Forward => "forward",
            };
            let port = packet.ports.map(|(_, to)| format!(":{to}")).unwrap_or_default();
            let user = packet.uid.map(|uid| format!(" uid {uid}")).unwrap_or_default();
            seen.push(format!("{} {direction} {} {}{port}{user}", packet.rule, packet.protocol, packet.destination));
        }
        Err(strange) => seen.push(format!("{strange:?}")),
    })
    .expect("the log can be read")
}

/// A loopback, and rules that log every UDP packet that leaves for some port.
fn logging(statement: &str) {
    namespace::ip("link set lo up");
    let rules = format!(
        "table inet t {{ chain o {{ type filter hook output priority 0; udp dport 9 {statement} group 4947 snaplen 128 drop
         udp dport 10 log prefix \"somebody else \" group 4947\n }}\n}}\n"
    );
    namespace::nft(&["-f", "-"], &rules).expect("nft loads it");
}

fn send(count: usize, to: &str) {
    let socket = UdpSocket::bind(if to.contains('[') { "[::1]:0" } else { "127.0.0.1:0" }).expect("a socket");
    for _ in 0..count {
        let _ = socket.send_to(b"x", to);
    }
}

#[test]
fn a_packet_that_a_rule_logged_is_read_with_its_rule_its_ends_and_its_user() {
    if !namespace::kernel_is_there() {
        return;
    }
    namespace::inside(|| {
        logging("log prefix \"egressguard refuse-out \" queue-threshold 1");
        let mut log = PacketLog::open().expect("the log opens");
        send(1, "127.0.0.1:9");
        send(1, "[::1]:9");
        send(1, "127.0.0.1:10");
        let mut seen = Vec::new();
        let meanwhile = follow(&mut log, &mut seen);
        while seen.len() < 3 && follow(&mut log, &mut seen).passed < Duration::from_secs(5) {}
        let uid = nix::unistd::geteuid();
        assert_eq!(
            seen,
            [format!("refuse-out out udp 127.0.0.1:9 uid {uid}"), format!("refuse-out out udp ::1:9 uid {uid}"), "Foreign".into()]
        );
        assert_eq!((meanwhile.lost, meanwhile.overruns), (0, 0));
    });
}

#[test]
fn what_is_lost_is_counted_exactly_and_the_rest_is_read() {
    if !namespace::kernel_is_there() {
        return;
    }
    namespace::inside(|| {
        logging("log prefix \"egressguard refuse-out \" queue-threshold 1");
        let mut log = PacketLog::open().expect("the log opens");
        // Nobody reads meanwhile: far more than the room that there is.
        let sent = 60_000;
        send(sent, "127.0.0.1:9");
        let (mut seen, mut lost, mut overruns) = (Vec::new(), 0, 0);
        loop {
            let before = seen.len();
            let meanwhile = follow(&mut log, &mut seen);
            (lost, overruns) = (lost + meanwhile.lost, overruns + meanwhile.overruns);
            if seen.len() == before {
                break;
            }
        }
        // The last gap shows with the next record.
        send(1, "127.0.0.1:9");
        lost += follow(&mut log, &mut seen).lost;
        assert!(overruns > 0 && lost > 0, "the burst did not fill the room: {} read, {lost} lost", seen.len());
        assert_eq!(seen.len() as u64 + lost, sent as u64 + 1, "every record is read or counted as lost");
    });
}

#[test]
fn a_second_reader_is_told_that_there_is_one() {
    if !namespace::kernel_is_there() {
        return;
    }
    namespace::inside(|| {
        let first = PacketLog::open().expect("the log opens");
        let second = PacketLog::open().err().expect("the group is taken");
        assert_eq!(second, LogError::Busy(4947));
        drop(first);
        PacketLog::open().expect("the kernel ends the log with its reader");
    });
}
