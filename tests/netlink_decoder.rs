//! The decoder of kernel dumps against octets that no kernel sent: it may refuse them, and it may never panic.

#[path = "support/datagrams.rs"]
mod datagrams;
#[path = "support/netns.rs"]
mod netns;

use std::process::Command;

use datagrams::datagrams;
use egressguard::ruleset::program::SetDef;
use egressguard::system::netlink::decode::{self, ElementParts};
use egressguard::system::netlink::message::{Message, Writer, messages, text, udata};
use proptest::prelude::*;

/// Everything that reads a message reads this one, whatever it is.
fn read_as_anything(message: &Message<'_>) {
    let _ = (decode::generation(message), decode::table(message), decode::chain(message), decode::rule(message));
    let _ = (decode::object(message), decode::flowtable(message));
    let found = decode::set(message).flatten();
    let foreign = SetDef { interval: true, ..SetDef::plain(String::new(), vec![]) };
    for set in [found.unwrap_or_else(|| foreign.clone()), foreign] {
        let mut parts = ElementParts::new(&set);
        let _ = parts.take(message);
        let _ = parts.take(message);
        let _ = parts.into_elements();
    }
}

fn read(octets: &[u8]) {
    let _ = (decode::expressions(octets), text(octets), udata(octets, 0));
    for message in messages(octets).unwrap_or_default() {
        read_as_anything(&message);
    }
    read_as_anything(&Message { kind: 0, flags: 0, seq: 0, payload: octets });
}

/// The datagrams of real dumps of a table with one of everything; none where the machine cannot make them.
fn real_dumps() -> Vec<Vec<u8>> {
    const RULES: &str = r#"
        table inet egressguard {
            comment "policy"
            set ledger { type uid . ipv4_addr; size 65000; flags dynamic,timeout; counter; elements = { 1 . 192.0.2.9 timeout 1d } }
            set nets { type ipv4_addr; flags interval,timeout; elements = { 10.0.0.0/8 timeout 1h comment "ten", 224.0.0.0-255.255.255.255 } }
            set ranges { type ipv4_addr . inet_service; flags interval; elements = { 192.0.2.0/24 . 80-90 } }
            map verdicts { type ipv4_addr : verdict; elements = { 10.0.0.1 : drop } }
            chain out {
                type filter hook output priority 0; policy drop;
                ct state established ip daddr @nets ip daddr & 255.255.0.0 == 10.0.0.0 counter accept comment "one"
                update @ledger { meta skuid . ip daddr timeout 1h }
                limit rate 5/second log prefix "x" group 1 snaplen 64
                tcp dport { 80, 443 } ct original proto-dst 80-90 jump last
            }
            chain last {
                reject with icmpx admin-prohibited
            }
        }"#;
    let gathered = netns::in_fresh_netns(|| {
        let path = std::env::temp_dir().join(format!("egressguard-decoder-{}.nft", std::process::id()));
        std::fs::write(&path, RULES).unwrap();
        let loaded = Command::new("nft").arg("-f").arg(&path).status();
        std::fs::remove_file(&path).unwrap();
        if !loaded.is_ok_and(|status| status.success()) {
            assert!(std::env::var("EGRESSGUARD_REQUIRE_KERNEL").as_deref() != Ok("1"), "nft cannot load the rules");
            println!("skipped: nft cannot load the rules");
            return Vec::new();
        }
        // NFT_MSG_GETTABLE, GETCHAIN, GETRULE, GETSET.
        datagrams(&[1, 4, 7, 10], &["ledger", "nets", "ranges", "verdicts"])
    });
    gathered.unwrap_or_default()
}

#[test]
fn real_dumps_with_any_octet_changed_or_any_end_cut_off_are_read_or_refused() {
    for dump in real_dumps() {
        read(&dump);
        for end in 0..dump.len() {
            read(&dump[..end]);
        }
        for position in 0..dump.len() {
            for value in [0, 1, 3, 4, 0x7f, 0x80, 0xff, dump[position].wrapping_add(1)] {
                let mut changed = dump.clone();
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
    fn any_nest_of_attributes_is_read_or_refused(octets in nest()) {
        read(&octets);
        read(&[&[1, 0, 0, 0][..], &octets].concat());
    }
}

fn nest() -> impl Strategy<Value = Vec<u8>> {
    let name = prop::sample::select(vec!["egressguard", "counter", "cmp", "dynset", "lookup", "immediate", "limit", "bitwise", "x"]);
    let leaf = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..20),
        name.prop_map(|name| [name.as_bytes(), &[0]].concat()),
        (0u32..40).prop_map(|number| number.to_be_bytes().to_vec()),
    ];
    leaf.prop_recursive(4, 40, 6, |inner| {
        prop::collection::vec((0u16..20, inner), 0..6).prop_map(|attributes| {
            let mut writer = Writer::default();
            for (kind, payload) in attributes {
                writer.octets(kind, &payload);
            }
            writer.into_octets()
        })
    })
}
