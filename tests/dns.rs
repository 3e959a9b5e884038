//! The resolver against real DNS servers: knot, unbound and dnsmasq, each in a network namespace of the test's own.

#[path = "support/dns.rs"]
mod dns;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use dns::{Certificates, Responder, dnsmasq, in_own_network, knot, unbound};
use egressguard::base::name::DnsName;
use egressguard::policy::DnsServer;
use egressguard::system::resolver::DnsResolver;
use egressguard::world::{Answer, Resolver};
use hickory_resolver::proto::op::{Message, MessageType, ResponseCode};
use hickory_resolver::proto::rr::rdata::A;
use hickory_resolver::proto::rr::{Name, RData, Record, RecordType};

fn name(text: &str) -> DnsName {
    DnsName::parse(text).unwrap()
}

fn plain(text: &str) -> DnsServer {
    let address: std::net::SocketAddr = text.parse().unwrap();
    DnsServer::Plain { address: address.ip(), port: address.port() }
}

fn tls(text: &str, of: &str) -> DnsServer {
    let address: std::net::SocketAddr = text.parse().unwrap();
    DnsServer::Tls { address: address.ip(), port: address.port(), name: name(of) }
}

fn resolve(names: &[&str], servers: &[DnsServer]) -> BTreeMap<DnsName, Answer> {
    resolve_with(DnsResolver::new(), names, servers)
}

fn resolve_with(mut resolver: DnsResolver, names: &[&str], servers: &[DnsServer]) -> BTreeMap<DnsName, Answer> {
    let names: Vec<DnsName> = names.iter().map(|text| name(text)).collect();
    let mut seen = Vec::new();
    let answers = resolver.resolve(&names, servers, &mut |name, _| seen.push(name.clone()));
    seen.sort();
    assert_eq!(seen, answers.keys().cloned().collect::<Vec<_>>(), "progress is told of every name once");
    answers
}

fn resolve_one(text: &str, servers: &[DnsServer]) -> Answer {
    resolve(&[text], servers).remove(&name(text)).unwrap()
}

/// The chain, the addresses as text, and the complaints.
fn found(answer: &Answer) -> (Vec<&str>, Vec<String>, &[String]) {
    let Answer::Addresses { chain, addresses, complaints } = answer else { panic!("{answer:?}") };
    (chain.iter().map(String::as_str).collect(), addresses.keys().map(IpAddr::to_string).collect(), complaints)
}

fn ttls(answer: &Answer) -> Vec<u32> {
    let Answer::Addresses { addresses, .. } = answer else { panic!("{answer:?}") };
    addresses.values().map(|(ttl, _)| *ttl).collect()
}

fn servers_of(answer: &Answer) -> Vec<&str> {
    let Answer::Addresses { addresses, .. } = answer else { panic!("{answer:?}") };
    addresses.values().map(|(_, server)| server.as_str()).collect()
}

fn example() -> Vec<(&'static str, String)> {
    let big: String = (1..=100).map(|last| format!("big A 192.0.2.{last}\nbig AAAA 2001:db8::{last:x}\n")).collect();
    let records = format!(
        "both 120 A 192.0.2.1\nboth 60 AAAA 2001:db8::1\nfour A 192.0.2.4\nsix AAAA 2001:db8::6\n\
         one 50 CNAME two\ntwo 40 CNAME THREE\nthree CNAME end\nend A 192.0.2.9\nend AAAA 2001:db8::9\n\
         far 30 CNAME target.other.\nnowhere CNAME none.other.\nround CNAME about\nabout CNAME round\n\
         empty TXT nothing\n*.many A 192.0.2.77\n{big}"
    );
    vec![("example.", records), ("other.", "target A 192.0.2.99\ntarget AAAA 2001:db8::99\n".to_string())]
}

const KNOT: &str = "127.0.0.2:53";

#[test]
fn addresses_of_both_families_come_with_ttl_and_server() {
    in_own_network(|| {
        let _knot = knot(KNOT, &example());
        let answer = resolve_one("both.example", &[plain(KNOT)]);
        assert_eq!(found(&answer), (vec![], vec!["192.0.2.1".to_string(), "2001:db8::1".to_string()], &[][..]));
        assert_eq!(ttls(&answer), [120, 60]);
        assert_eq!(servers_of(&answer), [KNOT, KNOT]);
        assert_eq!(found(&resolve_one("four.example", &[plain(KNOT)])).1, ["192.0.2.4"]);
        assert_eq!(found(&resolve_one("six.example", &[plain(KNOT)])).1, ["2001:db8::6"]);
    });
}

#[test]
fn a_server_is_asked_over_ipv6_and_on_any_port() {
    in_own_network(|| {
        let _knot = knot("[::1]:5353", &example());
        let answer = resolve_one("both.example", &[plain("[::1]:5353")]);
        assert_eq!(servers_of(&answer), ["[::1]:5353", "[::1]:5353"]);
    });
}

#[test]
fn a_chain_of_three_cnames_is_followed_and_recorded() {
    in_own_network(|| {
        let _knot = knot(KNOT, &example());
        let answer = resolve_one("one.example", &[plain(KNOT)]);
        let (chain, addresses, _) = found(&answer);
        assert_eq!(chain, ["two.example", "three.example", "end.example"]);
        assert_eq!(addresses, ["192.0.2.9", "2001:db8::9"]);
        assert_eq!(ttls(&answer), [40, 40], "the least of the chain");
    });
}

#[test]
fn a_cname_into_another_zone_is_asked_for() {
    in_own_network(|| {
        let _knot = knot(KNOT, &example());
        let answer = resolve_one("far.example", &[plain(KNOT)]);
        assert_eq!(found(&answer), (vec!["target.other"], vec!["192.0.2.99".to_string(), "2001:db8::99".to_string()], &[][..]));
        assert_eq!(ttls(&answer), [30, 30]);
        assert_eq!(resolve_one("nowhere.example", &[plain(KNOT)]), Answer::NoSuchName { server: KNOT.to_string() });
    });
}

#[test]
fn nxdomain_and_an_empty_answer_are_told_apart() {
    in_own_network(|| {
        let _knot = knot(KNOT, &example());
        assert_eq!(resolve_one("absent.example", &[plain(KNOT)]), Answer::NoSuchName { server: KNOT.to_string() });
        assert_eq!(resolve_one("empty.example", &[plain(KNOT)]), Answer::Empty { server: KNOT.to_string() });
    });
}

#[test]
fn cnames_in_a_circle_fail_that_name() {
    in_own_network(|| {
        let _knot = knot(KNOT, &example());
        let Answer::Failed { reasons } = resolve_one("round.example", &[plain(KNOT)]) else { panic!() };
        assert_eq!(reasons.len(), 2, "{reasons:?}");
        assert!(reasons[0].starts_with("A from 127.0.0.2:53: "), "{reasons:?}");
    });
}

#[test]
fn an_answer_that_does_not_fit_is_fetched_over_tcp() {
    in_own_network(|| {
        let _knot = knot(KNOT, &example());
        assert_eq!(found(&resolve_one("big.example", &[plain(KNOT)])).1.len(), 200);
    });
}

#[test]
fn when_nobody_listens_the_next_server_is_asked_at_once() {
    in_own_network(|| {
        let _knot = knot(KNOT, &example());
        let begin = Instant::now();
        let answer = resolve_one("both.example", &[plain("127.0.0.3:53"), plain(KNOT)]);
        assert!(begin.elapsed() < Duration::from_secs(2), "{:?}", begin.elapsed());
        let (_, addresses, complaints) = found(&answer);
        assert_eq!(addresses.len(), 2);
        assert_eq!(
            complaints,
            [
                "A from 127.0.0.3:53: connection refused (ECONNREFUSED)".to_string(),
                "AAAA from 127.0.0.3:53: connection refused (ECONNREFUSED)".to_string()
            ]
        );
    });
}

#[test]
fn a_server_that_refuses_or_fails_is_passed_over() {
    in_own_network(|| {
        let _knot = knot(KNOT, &example());
        let _refusing = dnsmasq("127.0.0.3:53", &[]);
        let _failing = Responder::start("127.0.0.4:53", |question| vec![reply(question, ResponseCode::ServFail, &[])]);
        let answer = resolve_one("both.example", &[plain("127.0.0.3:53"), plain("127.0.0.4:53"), plain(KNOT)]);
        let (_, addresses, complaints) = found(&answer);
        assert_eq!(addresses.len(), 2);
        assert_eq!(complaints[..2], ["A from 127.0.0.3:53: answered REFUSED", "A from 127.0.0.4:53: answered SERVFAIL"]);
        let alone = resolve_one("both.example", &[plain("127.0.0.3:53")]);
        assert!(matches!(&alone, Answer::Failed { reasons } if reasons.len() == 2), "{alone:?}");
    });
}

#[test]
fn a_server_that_never_answers_costs_two_tries_and_the_next_one_is_asked() {
    in_own_network(|| {
        let _knot = knot(KNOT, &example());
        let silent = Responder::silent("127.0.0.3:53");
        let begin = Instant::now();
        let answer = resolve_one("both.example", &[plain("127.0.0.3:53"), plain(KNOT)]);
        let took = begin.elapsed();
        assert!(took > Duration::from_millis(3900) && took < Duration::from_secs(6), "{took:?}");
        assert_eq!(found(&answer).1.len(), 2);
        assert_eq!(found(&answer).2[0], "A from 127.0.0.3:53: no answer within 2 s, 2 times");
        assert_eq!(silent.asked(), 4, "two tries for each family");
        let alone = resolve_one("both.example", &[plain("127.0.0.3:53")]);
        assert!(matches!(alone, Answer::Failed { .. }));
    });
}

#[test]
fn a_thousand_names_at_a_silent_server_cost_seconds() {
    in_own_network(|| {
        let _knot = knot(KNOT, &example());
        let _silent = Responder::silent("127.0.0.3:53");
        let names: Vec<String> = (0..1000).map(|n| format!("n{n}.many.example")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let begin = Instant::now();
        let answers = resolve(&names, &[plain("127.0.0.3:53"), plain(KNOT)]);
        assert!(begin.elapsed() < Duration::from_secs(15), "{:?}", begin.elapsed());
        assert!(answers.values().all(|answer| matches!(answer, Answer::Addresses { .. })));
    });
}

#[test]
fn ten_thousand_names_need_few_sockets() {
    in_own_network(|| {
        let _knot = knot(KNOT, &example());
        let names: Vec<DnsName> = (0..10_000).map(|n| name(&format!("n{n}.many.example"))).collect();
        let most = std::cell::Cell::new(0);
        let answers = DnsResolver::new().resolve(&names, &[plain(KNOT)], &mut |_, _| {
            most.set(most.get().max(std::fs::read_dir("/proc/self/fd").unwrap().count()));
        });
        assert_eq!(answers.len(), 10_000);
        assert!(answers.values().all(|answer| found(answer).1 == ["192.0.2.77"]));
        // Other tests of this process have theirs at the same time.
        assert!(most.get() < 900, "{}", most.get());
    });
}

#[test]
fn one_bad_name_among_many_spoils_none() {
    in_own_network(|| {
        let records: Vec<String> = (1..=50).map(|last| format!("n{last}.example. 60 A 192.0.2.{last}")).collect();
        let _unbound = unbound(KNOT, &records, None);
        let names: Vec<String> = (1..=50).map(|last| format!("n{last}.example")).collect();
        let mut names: Vec<&str> = names.iter().map(String::as_str).collect();
        names.extend(["absent.example", "outside.invalid"]);
        let answers = resolve(&names, &[plain(KNOT)]);
        assert_eq!(answers.len(), 52);
        for (name, answer) in &answers {
            match name.as_str() {
                "absent.example" => assert!(matches!(answer, Answer::NoSuchName { .. }), "{answer:?}"),
                "outside.invalid" => assert!(!matches!(answer, Answer::Addresses { .. }), "{answer:?}"),
                _ => assert_eq!(found(answer).1.len(), 1),
            }
        }
    });
}

/// A reply to the question with these A records.
fn reply(question: &[u8], code: ResponseCode, records: &[(&str, &str)]) -> Vec<u8> {
    let mut message = Message::from_vec(question).unwrap();
    message.metadata.message_type = MessageType::Response;
    message.metadata.recursion_available = true;
    message.metadata.response_code = code;
    message.edns = None;
    if message.queries[0].query_type() == RecordType::A {
        let record = |(owner, address): &(&str, &str)| {
            Record::from_rdata(Name::from_ascii(owner).unwrap(), 60, RData::A(A(address.parse().unwrap())))
        };
        message.answers = records.iter().map(record).collect();
    }
    message.to_vec().unwrap()
}

#[test]
fn planted_records_of_other_owners_are_ignored() {
    in_own_network(|| {
        let _liar = Responder::start("127.0.0.3:53", |question| {
            vec![reply(question, ResponseCode::NoError, &[("evil.example.", "6.6.6.6"), ("www.example.", "192.0.2.1"), (".", "6.6.6.7")])]
        });
        assert_eq!(found(&resolve_one("www.example", &[plain("127.0.0.3:53")])).1, ["192.0.2.1"]);
        assert_eq!(resolve_one("api.example", &[plain("127.0.0.3:53")]), Answer::Empty { server: "127.0.0.3:53".to_string() });
    });
}

#[test]
fn a_reply_with_another_id_is_passed_over_and_the_true_one_is_taken() {
    in_own_network(|| {
        let _guessed = Responder::start("127.0.0.3:53", |question| {
            let mut forged = reply(question, ResponseCode::NoError, &[("www.example.", "6.6.6.6")]);
            forged[0] ^= 0xff;
            vec![vec![], vec![1], forged, reply(question, ResponseCode::NoError, &[("www.example.", "192.0.2.1")])]
        });
        assert_eq!(found(&resolve_one("www.example", &[plain("127.0.0.3:53")])).1, ["192.0.2.1"]);
    });
}

#[test]
fn replies_that_are_malformed_or_to_another_question_are_no_answers() {
    in_own_network(|| {
        let _malformed = Responder::start("127.0.0.3:53", |question| vec![[&question[..2], &[0x81; 9][..]].concat()]);
        let _other = Responder::start("127.0.0.4:53", |question| {
            let mut message = Message::from_vec(&reply(question, ResponseCode::NoError, &[("evil.example.", "6.6.6.6")])).unwrap();
            message.queries[0].set_name(Name::from_ascii("evil.example.").unwrap());
            vec![message.to_vec().unwrap()]
        });
        let _echo = Responder::start("127.0.0.5:53", |question| vec![question.to_vec()]);
        let servers = [plain("127.0.0.3:53"), plain("127.0.0.4:53"), plain("127.0.0.5:53")];
        let Answer::Failed { reasons } = resolve_one("www.example", &servers) else { panic!() };
        assert!(reasons[0].starts_with("A from 127.0.0.3:53: the reply is malformed: "), "{reasons:?}");
        assert_eq!(reasons[1], "A from 127.0.0.4:53: the reply is to another question");
        assert_eq!(reasons[2], "A from 127.0.0.5:53: the reply is to another question");
    });
}

#[test]
fn a_server_that_does_not_know_edns_is_asked_without_it() {
    in_own_network(|| {
        let _old = Responder::start("127.0.0.3:53", |question| {
            let has_edns = Message::from_vec(question).unwrap().edns.is_some();
            let code = if has_edns { ResponseCode::FormErr } else { ResponseCode::NoError };
            vec![reply(question, code, if has_edns { &[] } else { &[("www.example.", "192.0.2.1")] })]
        });
        assert_eq!(found(&resolve_one("www.example", &[plain("127.0.0.3:53")])).1, ["192.0.2.1"]);
    });
}

const TLS: &str = "127.0.0.2:853";

fn proven_by(file: &std::path::Path) -> DnsResolver {
    DnsResolver::with_roots(PathBuf::from(file))
}

#[test]
fn a_server_is_asked_over_tls_when_its_certificate_proves_its_name() {
    in_own_network(|| {
        let certificates = Certificates::of("dns.test");
        let records: Vec<String> = (1..=200).map(|last| format!("n{last}.example. 60 A 192.0.2.{last}")).collect();
        let _unbound = unbound(KNOT, &records, Some((TLS, &certificates)));
        let names: Vec<String> = (1..=200).map(|last| format!("n{last}.example")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let answers = resolve_with(proven_by(&certificates.roots), &names, &[tls(TLS, "dns.test")]);
        for answer in answers.values() {
            assert_eq!(found(answer).2, [] as [String; 0]);
            assert_eq!(servers_of(answer), ["tls://127.0.0.2:853#dns.test"]);
        }
    });
}

#[test]
fn a_server_that_cannot_prove_its_name_is_not_believed_and_never_asked_in_the_clear() {
    in_own_network(|| {
        let (certificates, others) = (Certificates::of("dns.test"), Certificates::of("dns.test"));
        let _unbound = unbound(KNOT, &["www.example. 60 A 192.0.2.1".to_string()], Some((TLS, &certificates)));
        let plain_port = Responder::silent("127.0.0.9:53");
        let wrong_name = resolve_with(proven_by(&certificates.roots), &["www.example"], &[tls(TLS, "dns.other")]);
        let stranger = resolve_with(proven_by(&others.roots), &["www.example"], &[tls(TLS, "dns.test")]);
        let nobody = resolve_with(proven_by(&certificates.roots), &["www.example"], &[tls("127.0.0.9:853", "dns.test")]);
        let no_roots = resolve_with(proven_by("/nonexistent".as_ref()), &["www.example"], &[tls(TLS, "dns.test")]);
        for (answers, clause) in [
            (wrong_name, ": its certificate is for another name"),
            (stranger, ": its certificate is not signed by an authority that is trusted here"),
            (nobody, "connection refused (ECONNREFUSED)"),
            (no_roots, "cannot read certificates from /nonexistent"),
        ] {
            let Some(Answer::Failed { reasons }) = answers.values().next() else { panic!("{answers:?}") };
            assert!(reasons.iter().all(|reason| reason.contains(clause)), "{reasons:?}");
        }
        assert_eq!(plain_port.asked(), 0);
    });
}

#[test]
fn behind_a_failing_tls_server_the_next_one_is_asked() {
    in_own_network(|| {
        let certificates = Certificates::of("dns.test");
        let _knot = knot(KNOT, &example());
        let _deaf = std::net::TcpListener::bind("127.0.0.3:853").unwrap();
        let begin = Instant::now();
        let names = ["both.example", "four.example", "six.example", "one.example"];
        let answers = resolve_with(proven_by(&certificates.roots), &names, &[tls("127.0.0.3:853", "dns.test"), plain(KNOT)]);
        assert!(begin.elapsed() < Duration::from_secs(8), "{:?}", begin.elapsed());
        for answer in answers.values() {
            assert!(!found(answer).1.is_empty());
        }
    });
}
