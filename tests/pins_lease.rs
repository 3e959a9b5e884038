//! The lease rules, one named test for each law: what new, missing, late, wrong and partial answers do to pins.

use std::collections::BTreeMap;
use std::net::IpAddr;

use egressguard::base::name::DnsName;
use egressguard::base::time::{Period, Timestamp};
use egressguard::pins::{
    ADDRESSES_PER_NAME, Answer, Confirmation, LeaseRules, LeaseState, Outcome, Pins, SpecialAnswers, What, confirm, load, print,
};
use proptest::prelude::*;

const T: i64 = 1_800_000_000;
const MINUTE: i64 = 60;
const HOUR: i64 = 3600;
const DAY: i64 = 86400;

fn rules() -> LeaseRules {
    LeaseRules { keep: Period::from_seconds(DAY as u64), every: Period::from_seconds(60), special: SpecialAnswers::Refuse }
}

fn name(text: &str) -> DnsName {
    DnsName::parse(text).unwrap()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn addresses(texts: &[&str]) -> Answer {
    of(texts.iter().map(|text| ip(text)))
}

fn of(addresses: impl IntoIterator<Item = IpAddr>) -> Answer {
    let addresses = addresses.into_iter().map(|address| (address, (300, "9.9.9.9:53".to_string()))).collect();
    Answer::Addresses { chain: Vec::new(), addresses, complaints: Vec::new() }
}

fn nxdomain() -> Answer {
    Answer::NoSuchName { server: "9.9.9.9:53".to_string() }
}

fn empty() -> Answer {
    Answer::Empty { server: "9.9.9.9:53".to_string() }
}

fn failed(why: &str) -> Answer {
    Answer::Failed { reasons: vec![format!("9.9.9.9:53 {why}")] }
}

/// One name through time.
struct Story {
    pins: Pins,
    rules: LeaseRules,
    last: Option<Confirmation>,
}

impl Story {
    fn new() -> Story {
        Story { pins: Pins::default(), rules: rules(), last: None }
    }

    /// At `T + seconds` the name is answered so.
    fn at(&mut self, seconds: i64, answer: Answer) -> &mut Story {
        self.at_named(seconds, &[("a.example", answer)])
    }

    fn at_named(&mut self, seconds: i64, answers: &[(&str, Answer)]) -> &mut Story {
        let answers = answers.iter().map(|(text, answer)| (name(text), answer.clone())).collect();
        let confirmation = confirm(&self.pins, &answers, &self.rules, Timestamp(T + seconds));
        self.pins = confirmation.pins.clone();
        self.last = Some(confirmation);
        self
    }

    fn changes(&self) -> Vec<(String, What)> {
        self.last.as_ref().unwrap().changes.iter().map(|change| (change.address.to_string(), change.what.clone())).collect()
    }

    fn outcome(&self) -> &Outcome {
        &self.last.as_ref().unwrap().outcomes[&name("a.example")]
    }

    /// Each address of the name with the seconds after T at which it expires.
    fn expiries(&self) -> Vec<(String, i64)> {
        self.pins.names[&name("a.example")].leases.iter().map(|(address, lease)| (address.to_string(), lease.expires.0 - T)).collect()
    }
}

fn told(pairs: &[(&str, What)]) -> Vec<(String, What)> {
    pairs.iter().map(|(address, what)| (address.to_string(), what.clone())).collect()
}

fn until(pairs: &[(&str, i64)]) -> Vec<(String, i64)> {
    pairs.iter().map(|(address, seconds)| (address.to_string(), *seconds)).collect()
}

#[test]
fn a_new_address_is_kept_from_now_on() {
    let mut story = Story::new();
    story.at(0, addresses(&["1.1.1.1", "2606:4700::1"]));
    assert_eq!(story.changes(), told(&[("1.1.1.1", What::Added), ("2606:4700::1", What::Added)]));
    assert_eq!(story.expiries(), until(&[("1.1.1.1", DAY), ("2606:4700::1", DAY)]));
    assert_eq!(*story.outcome(), Outcome::Confirmed { live: 2, draining: 0, complaints: vec![] });
}

#[test]
fn a_refresh_that_learns_nothing_moves_no_expiry_and_tells_nothing() {
    let mut story = Story::new();
    story.at(0, addresses(&["1.1.1.1"]));
    for minute in 1..=359 {
        story.at(minute * MINUTE, addresses(&["1.1.1.1"]));
        assert_eq!(story.changes(), [], "minute {minute}");
        assert_eq!(story.expiries(), until(&[("1.1.1.1", DAY)]));
    }
    let lease = &story.pins.names[&name("a.example")].leases[&ip("1.1.1.1")];
    assert_eq!((lease.first_seen, lease.last_seen), (Timestamp(T), Timestamp(T + 359 * MINUTE)));
}

#[test]
fn a_live_lease_is_renewed_when_that_gains_a_quarter_of_keep() {
    let mut story = Story::new();
    story.at(0, addresses(&["1.1.1.1"])).at(6 * HOUR - 1, addresses(&["1.1.1.1"]));
    assert_eq!(story.changes(), []);
    story.at(6 * HOUR, addresses(&["1.1.1.1"]));
    assert_eq!(story.changes(), told(&[("1.1.1.1", What::Renewed)]));
    assert_eq!(story.expiries(), until(&[("1.1.1.1", DAY + 6 * HOUR)]));
}

#[test]
fn a_live_lease_is_renewed_before_fewer_than_three_refreshes_fit_into_it() {
    let mut story = Story::new();
    story.rules.keep = Period::from_seconds(200);
    story.at(0, addresses(&["1.1.1.1"])).at(20, addresses(&["1.1.1.1"]));
    assert_eq!((story.changes(), story.expiries()), (told(&[]), until(&[("1.1.1.1", 200)])));
    story.at(21, addresses(&["1.1.1.1"]));
    assert_eq!((story.changes(), story.expiries()), (told(&[("1.1.1.1", What::Renewed)]), until(&[("1.1.1.1", 221)])));
}

#[test]
fn an_address_that_leaves_within_the_second_that_it_came_in_drains() {
    let mut story = Story::new();
    story.at(0, addresses(&["1.1.1.1", "1.1.1.2"])).at(0, addresses(&["1.1.1.2"]));
    assert_eq!(story.changes(), told(&[("1.1.1.1", What::Draining)]));
    assert_eq!(*story.outcome(), Outcome::Confirmed { live: 1, draining: 1, complaints: vec![] });
    let pins = &story.pins.names[&name("a.example")];
    assert_eq!(pins.state(&pins.leases[&ip("1.1.1.1")], Timestamp(T)), LeaseState::Draining);
    story.at(0, addresses(&["1.1.1.1", "1.1.1.2"]));
    assert_eq!(story.changes(), told(&[("1.1.1.1", What::Returned)]));
}

#[test]
fn an_address_that_left_dns_drains_until_keep_ends() {
    let mut story = Story::new();
    story.at(0, addresses(&["1.1.1.1", "1.1.1.2"])).at(MINUTE, addresses(&["1.1.1.2"]));
    assert_eq!(story.changes(), told(&[("1.1.1.1", What::Draining)]));
    assert_eq!(*story.outcome(), Outcome::Confirmed { live: 1, draining: 1, complaints: vec![] });
    let pins = &story.pins.names[&name("a.example")];
    assert_eq!(pins.state(&pins.leases[&ip("1.1.1.1")], Timestamp(T + MINUTE)), LeaseState::Draining);
    story.at(2 * MINUTE, addresses(&["1.1.1.2"]));
    assert_eq!(story.changes(), [], "it is told once");
    story.at(DAY - 1, addresses(&["1.1.1.2"]));
    assert_eq!(story.expiries(), until(&[("1.1.1.1", DAY), ("1.1.1.2", 2 * DAY - 1)]));
}

#[test]
fn an_address_whose_lease_ran_out_is_gone() {
    let mut story = Story::new();
    story.at(0, addresses(&["1.1.1.1", "1.1.1.2"])).at(12 * HOUR, addresses(&["1.1.1.2"])).at(DAY, addresses(&["1.1.1.2"]));
    assert_eq!(story.changes(), told(&[("1.1.1.1", What::Gone), ("1.1.1.2", What::Renewed)]));
    assert_eq!(story.expiries(), until(&[("1.1.1.2", 2 * DAY)]));
}

#[test]
fn an_address_that_comes_back_is_live_again_with_its_history() {
    let mut story = Story::new();
    story.at(0, addresses(&["1.1.1.1", "1.1.1.2"])).at(MINUTE, addresses(&["1.1.1.2"]));
    story.at(2 * MINUTE, addresses(&["1.1.1.1", "1.1.1.2"]));
    assert_eq!(story.changes(), told(&[("1.1.1.1", What::Returned)]));
    assert_eq!(story.expiries(), until(&[("1.1.1.1", DAY), ("1.1.1.2", DAY)]), "and nothing is written");
    assert_eq!(story.pins.names[&name("a.example")].leases[&ip("1.1.1.1")].first_seen, Timestamp(T));
}

#[test]
fn an_address_that_is_confirmed_after_its_lease_ran_out_returns() {
    let mut story = Story::new();
    story.at(0, addresses(&["1.1.1.1"])).at(2 * DAY, addresses(&["1.1.1.1"]));
    assert_eq!(story.changes(), told(&[("1.1.1.1", What::Returned)]));
    assert_eq!(story.expiries(), until(&[("1.1.1.1", 3 * DAY)]));
}

/// Whatever this answer is, it neither extends nor shortens, and the kernel's time-out ends the pins.
fn keeps_until_keep_ends(answer: &Answer, clause: &str) {
    let mut story = Story::new();
    story.at(0, addresses(&["1.1.1.1"]));
    for hour in 1..24 {
        story.at(hour * HOUR, answer.clone());
        assert_eq!((story.changes(), story.expiries()), (told(&[]), until(&[("1.1.1.1", DAY)])), "hour {hour}");
        let Outcome::Kept { pins: 1, until, why } = story.outcome() else { panic!("{:?}", story.outcome()) };
        assert_eq!(*until, Timestamp(T + DAY));
        assert!(why.contains(clause), "{why}");
        let pins = &story.pins.names[&name("a.example")];
        assert_eq!(pins.confirmed, Some(Timestamp(T)));
        assert_eq!(pins.state(&pins.leases[&ip("1.1.1.1")], Timestamp(T + hour * HOUR)), LeaseState::Live);
    }
    story.at(DAY, answer.clone());
    assert_eq!((story.changes(), story.expiries()), (told(&[("1.1.1.1", What::Gone)]), vec![]));
    assert!(matches!(story.outcome(), Outcome::Unresolved { why } if why.contains(clause)));
}

#[test]
fn nxdomain_keeps_pins_until_keep_ends() {
    keeps_until_keep_ends(&nxdomain(), "NXDOMAIN");
}

#[test]
fn an_empty_answer_keeps_pins_until_keep_ends() {
    keeps_until_keep_ends(&empty(), "no address");
}

#[test]
fn servfail_keeps_pins_until_keep_ends() {
    keeps_until_keep_ends(&failed("answered SERVFAIL"), "SERVFAIL");
}

#[test]
fn a_timeout_keeps_pins_until_keep_ends() {
    keeps_until_keep_ends(&failed("did not answer within 2 s, twice"), "did not answer");
}

#[test]
fn an_answer_without_any_address_that_may_be_pinned_keeps_pins_until_keep_ends() {
    let mut story = Story::new();
    story.at(0, addresses(&["1.1.1.1"])).at(HOUR, addresses(&["127.0.0.1"]));
    assert_eq!(story.expiries(), until(&[("1.1.1.1", DAY)]));
    assert!(matches!(story.outcome(), Outcome::Kept { why, .. } if why.contains("127.0.0.0/8 is loopback")));
    assert_eq!(story.pins.names[&name("a.example")].confirmed, Some(Timestamp(T)), "a poisoned answer drains nothing");
}

#[test]
fn a_name_that_never_had_an_answer_is_unresolved_and_has_an_entry() {
    let mut story = Story::new();
    story.at(0, nxdomain());
    assert!(matches!(story.outcome(), Outcome::Unresolved { .. }));
    assert_eq!(story.pins.unresolved(Timestamp(T)).count(), 1);
}

#[test]
fn a_cdn_that_shows_two_of_eight_addresses_at_a_time_keeps_all_eight() {
    let eight: Vec<IpAddr> = (1..=8).map(|last| IpAddr::from([1, 1, 1, last])).collect();
    let mut story = Story::new();
    for minute in 0..2 * 24 * 60 {
        let shown = (0..2).map(|offset| eight[(minute as usize * 2 + offset) % 8]);
        story.at(minute * MINUTE, of(shown));
        let written = story.changes().iter().filter(|(_, what)| *what == What::Renewed || *what == What::Gone).count();
        assert_eq!(written, 0, "returned pins are renewed as they return, minute {minute}");
        if minute >= 3 {
            assert_eq!(story.expiries().len(), 8, "minute {minute}");
        }
    }
}

#[test]
fn a_missing_family_does_not_take_its_pins_away() {
    let mut story = Story::new();
    story.at(0, addresses(&["1.1.1.1", "2606:4700::1"])).at(HOUR, addresses(&["1.1.1.1"]));
    assert_eq!(story.expiries(), until(&[("1.1.1.1", DAY), ("2606:4700::1", DAY)]));
}

#[test]
fn one_bad_name_never_spoils_the_others() {
    let good = [("g1.example", addresses(&["1.1.1.1"])), ("g2.example", addresses(&["1.1.1.2"]))];
    let bad = [nxdomain(), empty(), failed("answered SERVFAIL"), addresses(&["127.0.0.1", "10.0.0.1"])];
    let mut alone = Story::new();
    alone.at_named(0, &good);
    for bad in bad {
        let mut together = Story::new();
        together.at_named(0, &[good[0].clone(), ("a.example", bad), good[1].clone()]);
        for (text, _) in &good {
            assert_eq!(together.pins.names[&name(text)], alone.pins.names[&name(text)]);
        }
    }
}

#[test]
fn names_that_were_not_asked_for_only_grow_older() {
    let mut story = Story::new();
    story.at_named(0, &[("a.example", addresses(&["1.1.1.1"])), ("b.example", addresses(&["1.1.1.2"]))]);
    story.at_named(HOUR, &[("a.example", addresses(&["1.1.1.1"]))]);
    assert_eq!(story.pins.names[&name("b.example")].leases.len(), 1);
    story.at_named(DAY, &[("a.example", addresses(&["1.1.1.1"]))]);
    assert_eq!(story.pins.names[&name("b.example")].leases.len(), 0);
    assert!(!story.last.unwrap().outcomes.contains_key(&name("b.example")));
}

#[test]
fn a_shorter_keep_cuts_leases_at_once() {
    let mut story = Story::new();
    story.at(0, addresses(&["1.1.1.1", "1.1.1.2"])).at(MINUTE, addresses(&["1.1.1.2"]));
    story.rules.keep = Period::from_seconds(HOUR as u64);
    story.at(2 * MINUTE, addresses(&["1.1.1.2"]));
    assert_eq!(story.changes(), told(&[("1.1.1.1", What::Shortened), ("1.1.1.2", What::Shortened)]));
    assert_eq!(story.expiries(), until(&[("1.1.1.1", HOUR), ("1.1.1.2", HOUR + MINUTE)]));
    story.rules.keep = Period::from_seconds(30);
    story.at(3 * MINUTE, failed("is down"));
    assert_eq!(story.changes(), told(&[("1.1.1.1", What::Gone), ("1.1.1.2", What::Gone)]));
}

#[test]
fn special_purpose_addresses_are_refused_with_the_reason() {
    let mut story = Story::new();
    story.at(0, addresses(&["1.1.1.1", "169.254.169.254", "10.0.0.1", "::1", "fd00::1"]));
    assert_eq!(story.expiries(), until(&[("1.1.1.1", DAY)]));
    let said: Vec<String> = story.changes().iter().map(|(address, what)| format!("{address} {what}")).collect();
    assert_eq!(
        said,
        [
            "1.1.1.1 added",
            "10.0.0.1 refused: 10.0.0.0/8 is private use (RFC 1918); `refresh.private: allow` would let it in",
            "169.254.169.254 refused: 169.254.169.254/32 is the cloud metadata service (RFC 3927, cloud providers); \
             `refresh.private: allow` would let it in",
            "::1 refused: ::1/128 is loopback (RFC 4291) and is never pinned",
            "fd00::1 refused: fc00::/7 is unique local (RFC 4193); `refresh.private: allow` would let it in",
        ]
    );
}

#[test]
fn a_policy_that_allows_private_answers_gets_them_and_loses_them_again_when_it_stops() {
    let mut story = Story::new();
    story.rules.special = SpecialAnswers::Allow;
    story.at(0, addresses(&["10.0.0.1", "127.0.0.1"]));
    assert_eq!(story.expiries(), until(&[("10.0.0.1", DAY)]));
    story.rules.special = SpecialAnswers::Refuse;
    story.at(MINUTE, failed("is down"));
    assert_eq!(story.expiries(), []);
    assert!(matches!(story.changes().as_slice(), [(_, What::Refused(_))]));
}

#[test]
fn a_name_has_at_most_64_addresses_and_the_rest_are_told() {
    let hundred: Vec<IpAddr> = (1..=100).map(|last| IpAddr::from([1, 1, 1, last])).collect();
    let mut story = Story::new();
    story.at(0, of(hundred.iter().copied()));
    let over = story.changes().iter().filter(|(_, what)| *what == What::OverCap).count();
    assert_eq!((story.expiries().len(), over), (ADDRESSES_PER_NAME, 36));
    let first = story.expiries();
    story.at(MINUTE, of(hundred.iter().rev().copied()));
    assert_eq!(story.expiries(), first, "the same hundred choose the same 64");
}

#[test]
fn above_the_cap_draining_pins_give_way_to_live_ones_oldest_sight_first() {
    let net = |third: u8, count: u8| (1..=count).map(move |last| IpAddr::from([1, 1, third, last]));
    let mut story = Story::new();
    story.at(0, of(net(1, 30))).at(MINUTE, of(net(2, 30))).at(2 * MINUTE, of(net(3, 20)));
    let of_net = |third: u8| {
        let prefix = format!("1.1.{third}.");
        story.expiries().iter().filter(|(address, _)| address.starts_with(&prefix)).count()
    };
    assert_eq!((of_net(1), of_net(2), of_net(3)), (14, 30, 20));
    assert_eq!(story.changes().iter().filter(|(_, what)| *what == What::OverCap).count(), 16);
}

#[test]
fn above_the_cap_a_newcomer_does_not_displace_a_live_pin() {
    let held: Vec<IpAddr> = (100..164).map(|last| IpAddr::from([1, 1, 1, last])).collect();
    let mut story = Story::new();
    story.at(0, of(held.iter().copied()));
    story.at(MINUTE, of(held.iter().copied().chain([ip("1.1.1.1")])));
    assert_eq!(story.changes(), told(&[("1.1.1.1", What::OverCap)]));
}

#[test]
fn chain_server_and_ttl_follow_the_last_answer_and_comments_stay() {
    let mut story = Story::new();
    story.at(0, addresses(&["1.1.1.1"]));
    story.pins.names.get_mut(&name("a.example")).unwrap().comments.push(" why".to_string());
    let addresses = BTreeMap::from([(ip("1.1.1.1"), (20, "8.8.8.8:53".to_string()))]);
    story.at(MINUTE, Answer::Addresses { chain: vec!["cdn.example".to_string()], addresses, complaints: vec!["AAAA late".to_string()] });
    let pins = &story.pins.names[&name("a.example")];
    let lease = &pins.leases[&ip("1.1.1.1")];
    assert_eq!((lease.ttl, lease.server.as_str()), (20, "8.8.8.8:53"));
    assert_eq!((pins.chain.as_slice(), pins.comments.as_slice()), (&["cdn.example".to_string()][..], &[" why".to_string()][..]));
    assert_eq!(*story.outcome(), Outcome::Confirmed { live: 1, draining: 0, complaints: vec!["AAAA late".to_string()] });
    story.at(2 * MINUTE, nxdomain());
    assert_eq!(story.pins.names[&name("a.example")].chain, ["cdn.example"]);
}

fn any_answer() -> impl Strategy<Value = Answer> {
    prop_oneof![
        4 => proptest::collection::btree_set(0u8..90, 0..90).prop_map(|lasts| match lasts.is_empty() {
            true => empty(),
            false => of(lasts.into_iter().map(|last| match last {
                0..30 => IpAddr::from([1, 1, 1, last]),
                30..60 => format!("2606:4700::{last}").parse().unwrap(),
                _ => IpAddr::from([10, 0, 0, last]),
            })),
        }),
        1 => Just(nxdomain()),
        1 => Just(failed("answered REFUSED")),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Through any history: the cap holds, nothing lasts longer than keep after it was seen, no special address gets in,
    /// every expiry that moved is told, and what results can be written down.
    #[test]
    fn any_history_keeps_the_invariants(rounds in proptest::collection::vec((0i64..30_000, any_answer(), 1u64..100_000), 1..20)) {
        let mut story = Story::new();
        let mut clock = 0;
        for (step, answer, keep) in rounds {
            clock += step;
            story.rules.keep = Period::from_seconds(keep);
            let before = story.pins.clone();
            story.at(clock, answer);
            let pins = &story.pins.names[&name("a.example")];
            prop_assert!(pins.leases.len() <= ADDRESSES_PER_NAME);
            let told: Vec<String> = story.changes().into_iter().map(|(address, _)| address).collect();
            for (address, lease) in &pins.leases {
                prop_assert!(lease.expires > Timestamp(T + clock));
                prop_assert!(lease.expires <= lease.last_seen.plus(story.rules.keep));
                prop_assert!(lease.first_seen <= lease.last_seen && Some(lease.last_seen) <= pins.confirmed);
                prop_assert!(!address.to_string().starts_with("10."));
                let old = before.names.get(&name("a.example")).and_then(|pins| pins.leases.get(address));
                if old.map(|old| old.expires) != Some(lease.expires) {
                    prop_assert!(told.contains(&address.to_string()));
                }
            }
            prop_assert_eq!(load(&print(&story.pins)).unwrap(), story.pins.clone());
        }
    }
}
