//! The pins file: reading and printing are inverses, damage is an error with its place, and size does not hurt.

use std::collections::BTreeMap;
use std::net::IpAddr;

use egressguard::base::name::DnsName;
use egressguard::base::time::Timestamp;
use egressguard::pins::{Lease, NamePins, Pins, load, print};
use proptest::prelude::*;

const SAMPLE: &str = "\
egressguard pins 1

# the model's API
#  reviewed by ops
name api.openai.com
  confirmed 2026-11-24T03:52:00Z
  cname api.openai.com.cdn.example
  cname edge\\032x.cdn.example
  address 162.159.140.245 ttl 300 server 9.9.9.9:53 first 2026-11-01T00:00:00Z expires 2026-11-25T03:52:00Z
  address 172.66.0.243 ttl 0 server tls://1.1.1.1:853#one.example first 2026-11-01T00:00:00Z last 2026-11-23T00:00:00Z expires 2026-11-24T00:00:00Z
  address 2606:4700::1 ttl 4294967295 server [2620:fe::fe]:53 first 2026-11-01T00:00:00Z expires 2026-11-25T03:52:00Z

name never.example

end 2
";

#[test]
fn the_canonical_file_reads_and_prints_as_itself() {
    let pins = load(SAMPLE).unwrap();
    assert_eq!(print(&pins), SAMPLE);
    let name = &pins.names[&DnsName::parse("api.openai.com").unwrap()];
    assert_eq!(name.comments, [" the model's API", "  reviewed by ops"]);
    assert_eq!(name.chain, ["api.openai.com.cdn.example", "edge\\032x.cdn.example"]);
    let lasts: Vec<String> = name.leases.values().map(|lease| lease.last_seen.to_string()).collect();
    assert_eq!(lasts, ["2026-11-24T03:52:00Z", "2026-11-23T00:00:00Z", "2026-11-24T03:52:00Z"]);
    assert_eq!(pins.names[&DnsName::parse("never.example").unwrap()], NamePins::default());
}

#[test]
fn no_pins_are_a_file_too() {
    assert_eq!(print(&Pins::default()), "egressguard pins 1\n\nend 0\n");
    assert_eq!(load("egressguard pins 1\nend 0"), Ok(Pins::default()));
}

#[test]
fn a_file_edited_by_hand_reads_as_meant() {
    let edited = "egressguard pins 1\r\n\
        name b.example\r\n\
        # why b is here\r\n\
        \tconfirmed 2026-11-24T04:52:00+01:00\r\n\
        # the new edge\r\n\
        address 2001:DB8:0::2   ttl 60 server 9.9.9.9:53 first 2026-11-24T03:52:00Z expires 2026-11-25T03:52:00Z\r\n\
        address 1.1.1.1 ttl 60 server 9.9.9.9:53 first 2026-11-24T03:52:00Z expires 2026-11-25T03:52:00Z\r\n\
        # a comes last\r\n\
        name A.example.\r\n\
        # and ends here\r\n\
        end 2\r\n\r\n";
    assert_eq!(
        print(&load(edited).unwrap()),
        "egressguard pins 1\n\n\
        # a comes last\n# and ends here\nname a.example\n\n\
        # why b is here\n# the new edge\nname b.example\n  confirmed 2026-11-24T03:52:00Z\n\
        \x20 address 1.1.1.1 ttl 60 server 9.9.9.9:53 first 2026-11-24T03:52:00Z expires 2026-11-25T03:52:00Z\n\
        \x20 address 2001:db8::2 ttl 60 server 9.9.9.9:53 first 2026-11-24T03:52:00Z expires 2026-11-25T03:52:00Z\n\n\
        end 2\n"
    );
}

/// A file of one name with these lines below it.
fn with(lines: &str) -> String {
    format!("egressguard pins 1\nname a.example\n{lines}\nend 1\n")
}

#[test]
fn every_damaged_line_is_an_error_with_its_place_and_the_next_step() {
    let whole = "address 1.1.1.1 ttl 60 server s first 2026-11-24T03:52:00Z last 2026-11-24T03:52:00Z expires 2026-11-24T03:52:00Z";
    assert!(load(&with(whole)).is_ok());
    let damaged: &[(&str, usize, usize, &str)] = &[
        ("", 1, 1, "the first line is not `egressguard pins 1`"),
        ("\n", 1, 1, "the first line is not `egressguard pins 1`"),
        ("egressguard pins 2\nend 0\n", 1, 1, "the first line is not `egressguard pins 1`"),
        ("\u{feff}egressguard pins 1\nend 0\n", 1, 1, "the first line is not `egressguard pins 1`"),
        ("egressguard pins 1\n", 2, 1, "the file has no `end` line: it was cut off"),
        ("egressguard pins 1\nname a.example\n", 3, 1, "the file has no `end` line: it was cut off"),
        ("egressguard pins 1\nname a.example\nend 2\n", 3, 5, "the file says that it has 2 names, and it has 1"),
        ("egressguard pins 1\nend x\n", 2, 5, "`x` is no number of names"),
        ("egressguard pins 1\nend\n", 2, 4, "the number of names is missing"),
        ("egressguard pins 1\nend 0 0\n", 2, 7, "`0` is one word too many"),
        ("egressguard pins 1\nend 0\nname a.example\n", 3, 1, "there is text after the `end` line"),
        ("egressguard pins 1\nend 0\n# late\n", 3, 1, "there is text after the `end` line"),
        ("egressguard pins 1\n  confirmed 2026-11-24T03:52:00Z\nend 0\n", 2, 3, "`confirmed` stands above the first name"),
        ("egressguard pins 1\ncname x\nend 0\n", 2, 1, "`cname` stands above the first name"),
        ("egressguard pins 1\nname\nend 0\n", 2, 5, "a host name is missing"),
        ("egressguard pins 1\nname *.a.example\nend 1\n", 2, 6, "`*.a.example` is no host name: a wildcard"),
        ("egressguard pins 1\nname a.example\nname A.example\nend 2\n", 3, 6, "`a.example` stands in the file twice"),
        ("egressguard pins 1\nname a.example b\nend 1\n", 2, 16, "`b` is one word too many"),
        ("egressguard pins 1\nnäme a.example\nend 1\n", 2, 1, "`näme` is no word of a pins file"),
        ("egressguard pins 1\n#a\0b\nend 0\n", 2, 1, "'\\0' is not allowed in a comment"),
        ("egressguard pins 1\n\0\nend 0\n", 2, 1, "`\0` is no word of a pins file"),
        ("egressguard pins 1\n<<<<<<< HEAD\nend 0\n", 2, 1, "`<<<<<<<` is no word of a pins file"),
    ];
    for (text, line, column, message) in damaged {
        let error = load(text).expect_err(text);
        assert_eq!((error.line, error.column), (*line, *column), "{text:?}: {error}");
        assert!(error.message.starts_with(message), "{text:?}: {error}");
        assert!(!error.help.is_empty());
    }
    let below: &[(&str, usize, &str)] = &[
        ("confirmed yesterday", 11, "`yesterday` is no time"),
        ("confirmed", 10, "the time of the last answer is missing"),
        ("cname", 6, "a name is missing"),
        ("cname über", 7, "\"über\" holds more than visible ASCII"),
        ("address 1.1.1 ttl 60", 9, "`1.1.1` is no address"),
        ("address fe80::1%eth0 ttl 60", 9, "`fe80::1%eth0` is no address"),
        ("address 1.1.1.1", 16, "`ttl` is missing"),
        ("address 1.1.1.1 60", 17, "`60` stands where `ttl` belongs"),
        ("address 1.1.1.1 ttl -1 server s", 21, "`-1` is no time to live"),
        ("address 1.1.1.1 ttl 4294967296 server s", 21, "`4294967296` is no time to live"),
        ("address 1.1.1.1 ttl 60 server", 30, "a server is missing"),
        ("address 1.1.1.1 ttl 60 server s first x", 39, "`x` is no time"),
        ("address 1.1.1.1 ttl 60 server s first 2026-11-24T03:52:00Z until", 60, "`until` stands where `last` or `expires` belongs"),
        ("address 1.1.1.1 ttl 60 server s first 2026-11-24T03:52:00Z expires", 67, "the time it expires is missing"),
        (
            "address 1.1.1.1 ttl 60 server s first 2026-11-24T03:52:00Z expires 2026-11-24T03:52:00Z",
            1,
            "`1.1.1.1` does not say when it was last seen",
        ),
    ];
    for (text, column, message) in below {
        let error = load(&with(text)).expect_err(text);
        assert_eq!((error.line, error.column), (3, *column), "{text:?}: {error}");
        assert!(error.message.starts_with(message), "{text:?}: {error}");
    }
    let twice = load(&with(&format!("{whole}\n{whole}"))).unwrap_err();
    assert_eq!((twice.line, twice.column, twice.message.as_str()), (4, 9, "`1.1.1.1` stands twice below its name"));
    let twice = load(&with("confirmed 2026-11-24T03:52:00Z\nconfirmed 2026-11-24T03:52:00Z")).unwrap_err();
    assert_eq!((twice.line, twice.message.as_str()), (4, "a name has one `confirmed` line"));
}

#[test]
fn a_file_cut_off_anywhere_is_never_read() {
    for length in 0..SAMPLE.trim_end().len() {
        assert!(load(&SAMPLE[..length]).is_err(), "{length}: {:?}", &SAMPLE[..length]);
    }
}

#[test]
fn a_file_that_lost_a_name_is_not_read() {
    let without = SAMPLE.replace("name never.example\n", "");
    assert!(load(&without).is_err());
}

#[test]
fn a_hundred_thousand_addresses_are_read_in_time_that_grows_with_their_number() {
    let lease = |seen: i64| Lease {
        server: "9.9.9.9:53".to_string(),
        ttl: 300,
        first_seen: Timestamp(1_790_000_000),
        last_seen: Timestamp(seen),
        expires: Timestamp(seen + 86400),
    };
    let names = (0..10_000u32).map(|name| {
        let leases = (0..10u32).map(|last| (IpAddr::from((0x0100_0000 + name * 16 + last).to_be_bytes()), lease(1_800_000_000))).collect();
        let name = DnsName::parse(&format!("n{name}.example")).unwrap();
        (name, NamePins { confirmed: Some(Timestamp(1_800_000_000)), leases, ..NamePins::default() })
    });
    let pins = Pins { names: names.collect() };
    let text = print(&pins);
    let begin = std::time::Instant::now();
    assert_eq!(load(&text).unwrap(), pins);
    // An unoptimised build on a busy machine; a quadratic reader would take minutes.
    assert!(begin.elapsed().as_secs() < 20, "{:?}", begin.elapsed());
}

fn time() -> impl Strategy<Value = Timestamp> {
    prop_oneof![9 => 0i64..=4_000_000_000, 1 => any::<i64>()].prop_map(Timestamp)
}

fn address() -> impl Strategy<Value = IpAddr> {
    prop_oneof![any::<[u8; 4]>().prop_map(IpAddr::from), any::<[u8; 16]>().prop_map(IpAddr::from)]
}

fn name_pins() -> impl Strategy<Value = NamePins> {
    let lease = ("[!-~]{1,30}", any::<u32>(), time(), time(), time()).prop_map(|(server, ttl, first_seen, last_seen, expires)| Lease {
        server,
        ttl,
        first_seen,
        last_seen,
        expires,
    });
    let leases = proptest::collection::btree_map(address(), (lease, any::<bool>()), 0..6);
    let chain = proptest::collection::vec("[!-~]{1,20}", 0..4);
    (chain, proptest::option::of(time()), leases, proptest::collection::vec("[^\\p{Cc}]{0,12}|\t x", 0..3)).prop_map(
        |(chain, confirmed, leases, comments)| {
            // Half of the leases were seen by the last answer.
            let leases: BTreeMap<IpAddr, Lease> = leases
                .into_iter()
                .map(|(address, (lease, live))| match (live, confirmed) {
                    (true, Some(confirmed)) => (address, Lease { last_seen: confirmed, ..lease }),
                    _ => (address, lease),
                })
                .collect();
            NamePins { chain, confirmed, leases, comments }
        },
    )
}

fn pins() -> impl Strategy<Value = Pins> {
    proptest::collection::btree_map("[a-z]([a-z0-9-]{0,8}[a-z0-9])?(\\.[a-z]{1,5}){0,3}", name_pins(), 0..6)
        .prop_map(|names| Pins { names: names.into_iter().map(|(name, pins)| (DnsName::parse(&name).unwrap(), pins)).collect() })
}

proptest! {
    #[test]
    fn what_is_printed_reads_back_as_itself(pins in pins()) {
        prop_assert_eq!(load(&print(&pins)).unwrap(), pins);
    }

    #[test]
    fn what_is_read_prints_as_itself(pins in pins()) {
        let canonical = print(&pins);
        prop_assert_eq!(print(&load(&canonical).unwrap()), canonical);
    }

    #[test]
    fn no_text_panics_the_reader(text in "(egressguard pins 1\n)?(.{0,20}\n|name [a-c]\\.x\n|address 1\\.1\\.1\\.1.{0,30}\n|end [0-3]\n){0,8}") {
        let _ = load(&text);
    }

    #[test]
    fn a_damaged_octet_never_panics_the_reader(pins in pins(), at in any::<prop::sample::Index>(), c in any::<char>()) {
        let canonical = print(&pins);
        let mut chars: Vec<char> = canonical.chars().collect();
        let at = at.index(chars.len());
        chars[at] = c;
        if let Ok(read) = load(&chars.into_iter().collect::<String>()) {
            prop_assert_eq!(load(&print(&read)).unwrap(), read);
        }
    }
}
