//! A policy that was written is read back as the same policy: the shipped ones, those of the golden cases, and random ones.

mod policies;

use std::fs;
use std::path::Path;

use egressguard::base::port::PortSet;
use egressguard::policy::{DnsServer, Line, Policy, RESERVED_IDS, Remarks, Scope, Target, Transport, parse, parse_bytes, write};
use policies::cases;
use proptest::prelude::*;

/// The policy without what is the file's and not the policy's.
fn meaning(policy: &Policy) -> Policy {
    let mut policy = policy.clone();
    let nowhere = Line(0);
    (policy.file, policy.sha256) = (String::new(), String::new());
    policy.dns_line = None;
    policy.host.ntp_line = None;
    policy.inbound.iter_mut().for_each(|inbound| inbound.line = nowhere);
    policy.management.iter_mut().for_each(|management| management.line = nowhere);
    policy.violations.quarantine.iter_mut().for_each(|quarantine| quarantine.line = nowhere);
    policy.tests.iter_mut().for_each(|test| test.line = nowhere);
    for way in &mut policy.outbound {
        way.line = nowhere;
        way.to.iter_mut().for_each(|destination| destination.line = nowhere);
    }
    policy.host.ntp.iter_mut().for_each(|destination| destination.line = nowhere);
    policy
}

fn back(policy: &Policy) -> Policy {
    let text = write(policy, &Remarks::default());
    let read = parse(&text, "policy.yaml").unwrap_or_else(|errors| panic!("{errors:#?}\n{text}"));
    meaning(&read.policy)
}

#[test]
fn policies_that_people_wrote_come_back() {
    let mut found = 0;
    for directory in ["policies", "tests/golden/policy", "tests/golden"] {
        for entry in fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(directory)).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_none_or(|extension| extension != "yaml") {
                continue;
            }
            if let Ok(parsed) = parse_bytes(&fs::read(&path).unwrap(), "policy.yaml") {
                found += 1;
                assert_eq!(back(&parsed.policy), meaning(&parsed.policy), "{}", path.display());
            }
        }
    }
    assert!(found >= 20, "only {found} policies were found");
}

/// The policy without what no reader lets through: the generator serves those who start from values.
fn readable(mut policy: Policy) -> Policy {
    policy.host.ntp.retain(|server| !matches!(server.target, Target::Net(net) if net.prefix_len() < net.max_prefix_len()));
    policy.dns.retain(|server| match server {
        DnsServer::System => true,
        DnsServer::Plain { address, .. } | DnsServer::Tls { address, .. } => !address.is_multicast() && !address.is_unspecified(),
    });
    for way in &mut policy.outbound {
        if let Some(Scope::Uid(number) | Scope::Gid(number)) = &mut way.scope {
            *number = (*number).min(u32::MAX - 2);
        }
    }
    policy.outbound.retain(|way| !RESERVED_IDS.contains(&way.id.as_str()));
    policy
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_policies_come_back(case in cases()) {
        let policy = readable(case.policy);
        prop_assume!(!policy.dns.is_empty());
        prop_assert_eq!(back(&policy), meaning(&policy));
    }
}

#[test]
fn what_is_written_is_what_a_person_would_write() {
    let mut policy = policies::plain().policy;
    policy.outbound = vec![policies::way("198.51.100.7", "198.51.100.7/32", Some(Scope::User("backend".into())))];
    policy.outbound[0].ports = PortSet::single(53);
    policy.outbound[0].protocol = Transport::Udp;
    policy.dns.clear();
    let text = write(&policy, &Remarks { head: vec!["why".to_string()], ..Remarks::default() });
    let expected = "# why\nversion: 1\nname: plain\nmode: enforce\n\noutbound:\n  - to: 198.51.100.7\n    port: 53\n    protocol: udp\n    for: {user: backend}\n";
    assert!(text.starts_with(expected), "{text}");
}
