//! The readers of flows, sockets and routes against octets that no kernel sent: they may refuse them, and they may never panic.

#[path = "support/netns.rs"]
mod netns;

use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::process::Command;

use egressguard::base::net::Protocol;
use egressguard::judge::flow::{Beginning, LocalAddresses, Phase};
use egressguard::judge::packet::Payload;
use egressguard::system::netlink::flow::{conntrack, diag, route};
use egressguard::system::netlink::message::{Mark, Message, Writer, messages};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket};
use proptest::prelude::*;

/// Everything that reads a message reads this one, whatever it is.
fn read_as_anything(message: &Message<'_>) {
    let mut addresses = LocalAddresses::default();
    let _ = route::take(message, &mut addresses);
    if let Some(Some(flow)) = conntrack::flow(message) {
        conntrack::delete(&mut Writer::default(), 1, &flow);
    }
    for protocol in [Protocol::TCP, Protocol::UDP] {
        if let Some(Some(listed)) = diag::socket(message, protocol) {
            diag::destroy(&mut Writer::default(), 1, &listed.socket);
        }
    }
}

/// As what it says it is, and as each of the three.
fn read(octets: &[u8]) {
    let kinds = [0x100, 20, 24];
    for message in messages(octets).unwrap_or_default() {
        read_as_anything(&message);
        kinds.iter().for_each(|kind| read_as_anything(&Message { kind: *kind, ..message }));
    }
    kinds.iter().for_each(|kind| read_as_anything(&Message { kind: *kind, flags: 0, seq: 0, payload: octets }));
}

/// What the kernel answers to one question.
fn asked(protocol: SockProtocol, question: impl FnOnce(&mut Writer) -> Mark) -> Vec<Vec<u8>> {
    let fd = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::empty(), protocol).unwrap();
    let mut writer = Writer::default();
    let mark = question(&mut writer);
    writer.end(mark);
    send(fd.as_raw_fd(), &writer.into_octets(), MsgFlags::empty()).unwrap();
    let mut buffer = vec![0; 1 << 16];
    let mut found = Vec::new();
    while let Ok(length) = recv(fd.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
        found.push(buffer[..length].to_vec());
    }
    found
}

/// The datagrams of real lists of a namespace with a little of everything; none where the machine cannot make one.
fn real_lists() -> Vec<Vec<u8>> {
    let gathered = netns::in_fresh_netns(|| {
        let up = Command::new("ip").args(["link", "set", "lo", "up"]).status();
        let rules = "add table inet t; add chain inet t c { type filter hook output priority 0; }; add rule inet t c ct state new";
        let tracked = Command::new("nft").arg(rules).status();
        if ![up, tracked].into_iter().all(|ran| ran.is_ok_and(|status| status.success())) {
            println!("skipped: ip or nft does not run");
            return Vec::new();
        }
        let mut held = Vec::new();
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(address).unwrap();
            held.push(TcpStream::connect(listener.local_addr().unwrap()).unwrap());
            let datagrams = UdpSocket::bind(address).unwrap();
            datagrams.send_to(b"x", datagrams.local_addr().unwrap()).unwrap();
        }
        let mut found = asked(SockProtocol::NetlinkNetFilter, |writer| conntrack::list(writer, 1));
        for family in [2, 10] {
            for protocol in [Protocol::TCP, Protocol::UDP] {
                found.extend(asked(SockProtocol::NetlinkSockDiag, |writer| diag::list(writer, 1, family, protocol)));
            }
            found.extend(asked(SockProtocol::NetlinkRoute, |writer| route::list(writer, 1, family)));
        }
        found
    });
    gathered.unwrap_or_default()
}

#[test]
fn real_lists_with_any_octet_changed_or_any_end_cut_off_are_read_or_refused() {
    let lists = real_lists();
    let flows = lists.iter().flat_map(|list| messages(list).unwrap()).filter_map(|message| conntrack::flow(&message).unwrap());
    assert!(lists.is_empty() || flows.count() >= 4, "two connections and two datagrams are tracked");
    for list in lists {
        read(&list);
        for end in 0..list.len() {
            read(&list[..end]);
        }
        for position in 0..list.len() {
            for value in [0, 1, 3, 4, 0x7f, 0x80, 0xff, list[position].wrapping_add(1)] {
                let mut changed = list.clone();
                changed[position] = value;
                read(&changed);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn any_octets_are_read_or_refused(octets in prop::collection::vec(any::<u8>(), 0..300)) {
        read(&octets);
    }

    /// Attributes that fit, with any types and contents, reach deeper than noise does.
    #[test]
    fn any_nest_of_attributes_is_read_or_refused(family in prop::sample::select(vec![0u8, 2, 10]), octets in nest()) {
        read(&[&[family, 0, 0, 0][..], &octets].concat());
        read(&[&[family, 0, 0, 0, 255, 0, 0, 2, 0, 0, 0, 0][..], &octets].concat());
        read(&[&[family][..], &[0; 71], &octets].concat());
    }
}

fn nest() -> impl Strategy<Value = Vec<u8>> {
    let leaf = prop::sample::select(vec![0usize, 1, 2, 4, 8, 16, 17]).prop_flat_map(|length| prop::collection::vec(any::<u8>(), length));
    leaf.prop_recursive(4, 40, 6, |inner| {
        prop::collection::vec((0u16..24, inner), 0..6).prop_map(|attributes| {
            let mut writer = Writer::default();
            for (kind, payload) in attributes {
                writer.octets(kind, &payload);
            }
            writer.into_octets()
        })
    })
}

/// An entry of a TCP connection from 192.0.2.1:50000 to 198.51.100.2:443, as a kernel writes it.
fn entry(state: u8, flags: [u8; 2], zone: Option<u16>) -> Vec<u8> {
    let mut writer = Writer::default();
    let message = writer.begin_raw(0x100, 0, 7, 2, 0);
    for (kind, source, destination, ports) in
        [(1, [192, 0, 2, 1], [198, 51, 100, 2], [50000u16, 443]), (2, [198, 51, 100, 2], [192, 0, 2, 1], [443, 50000])]
    {
        let tuple = writer.open(kind);
        let ip = writer.open(1);
        writer.octets(1, &source);
        writer.octets(2, &destination);
        writer.close(ip);
        let proto = writer.open(2);
        writer.octets(1, &[6]);
        writer.octets(2, &ports[0].to_be_bytes());
        writer.octets(3, &ports[1].to_be_bytes());
        writer.close(proto);
        writer.close(tuple);
    }
    writer.u32(3, 0x18e);
    let info = writer.open(4);
    let tcp = writer.open(1);
    writer.octets(1, &[state]);
    writer.octets(4, &[flags[0], 0]);
    writer.octets(5, &[flags[1], 0]);
    writer.close(tcp);
    writer.close(info);
    if let Some(zone) = zone {
        writer.octets(18, &zone.to_be_bytes());
    }
    writer.u32(12, 0xabcd);
    writer.end(message);
    writer.into_octets()
}

fn decoded(octets: &[u8]) -> egressguard::judge::flow::Flow {
    conntrack::flow(&messages(octets).unwrap()[0]).unwrap().unwrap()
}

#[test]
fn an_entry_is_read_with_both_directions_its_beginning_and_its_end() {
    let flow = decoded(&entry(3, [0x03, 0x03], None));
    assert_eq!(flow.original.payload, Payload::Tcp { source: 50000, destination: 443, flags: 2 });
    assert_eq!((flow.reply.source.to_string().as_str(), flow.status), ("198.51.100.2", 0x18e));
    let of = |state, flags| {
        let flow = decoded(&entry(state, flags, None));
        (flow.beginning, flow.phase)
    };
    assert_eq!(of(3, [0x03, 0x03]), (Beginning::Seen, Phase::Live));
    assert_eq!(of(3, [0x0a, 0x0a]), (Beginning::Missed, Phase::Live));
    assert_eq!(of(3, [0x0a, 0x02]), (Beginning::Seen, Phase::Live), "one side alone may be liberal for other reasons");
    assert_eq!(of(7, [0, 0]), (Beginning::Seen, Phase::Over));
    assert_eq!(of(8, [0, 0]), (Beginning::Seen, Phase::Over));
}

#[test]
fn an_entry_is_deleted_by_its_tuple_its_zone_and_its_id_as_they_were_listed() {
    for zone in [None, Some(7)] {
        let listed = entry(3, [0, 0], zone);
        let mut writer = Writer::default();
        conntrack::delete(&mut writer, 9, &decoded(&listed));
        let request = writer.into_octets();
        let (asked, listed) = (messages(&request).unwrap()[0], messages(&listed).unwrap()[0]);
        // NFNL_SUBSYS_CTNETLINK and IPCTNL_MSG_CT_DELETE, a request and nothing more, of the entry's family.
        assert_eq!((asked.kind, asked.flags, asked.seq, asked.payload[0]), (0x102, 1, 9, 2));
        let (asked, listed) = (asked.fields().unwrap(), listed.fields().unwrap());
        for attribute in [1, 12, 18] {
            assert_eq!(asked.octets(attribute), listed.octets(attribute));
        }
        assert!(asked.only(&[1, 12, 18]) && asked.has(18) == zone.is_some());
    }
}
