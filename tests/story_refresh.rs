//! Stories of `refresh`: names move, disappear and come back, DNS fails, and the kernel is told only what changed.

mod support;

use support::stream::Stream;
use support::{
    API, API_V4, API_V6, LATER_V4, LATER_V6, NEIGHBOUR_V4, SECOND_RESOLVER_V4, SILENCE_V4, STRANGER_V4, Side, World, is_refused, passes,
};

const DEFAULT: &[&str] = &["apply", "builtin:openai"];

#[test]
fn a_refresh_that_finds_nothing_new_writes_nothing_to_the_kernel() {
    let Some(world) = World::new() else { return };
    world.egressguard(DEFAULT).exits(0);
    let generation = world.generation();
    world.egressguard(&["refresh"]).exits(0).says(&["unchanged"]);
    world.egressguard(&["refresh"]).exits(0);
    assert_eq!(world.generation(), generation);
}

#[test]
fn a_rotation_opens_the_new_address_and_lets_the_old_one_drain() {
    let Some(mut world) = World::new() else { return };
    world.egressguard(DEFAULT).exits(0);
    world.nameserver.set(API, &[LATER_V4, LATER_V6]).unwrap();
    is_refused(world.tls(LATER_V4));
    let rules = world.rules();
    // Leases are stamped in whole seconds.
    std::thread::sleep(std::time::Duration::from_millis(1100));
    world.egressguard(&["refresh"]).exits(0).says(&[LATER_V4, LATER_V6]);
    for address in [LATER_V4, LATER_V6, API_V4, API_V6] {
        passes(world.tls(address));
    }
    is_refused(world.tls(NEIGHBOUR_V4));
    assert_eq!(world.addresses("tcp_443_v4"), [API_V4, LATER_V4]);
    assert_eq!(world.rules(), rules, "a refresh changes elements of sets and no rule");
    world.egressguard(&["status"]).exits(0).says(&["draining"]);
}

#[test]
fn one_rotation_is_one_transaction() {
    let Some(mut world) = World::new() else { return };
    world.egressguard(DEFAULT).exits(0);
    let generation = world.generation();
    world.nameserver.set(API, &[LATER_V4, LATER_V6]).unwrap();
    world.egressguard(&["refresh"]).exits(0);
    assert_eq!(world.generation(), generation + 1);
}

#[test]
fn when_dns_is_down_the_pins_stay() {
    let Some(mut world) = World::new() else { return };
    world.egressguard(DEFAULT).exits(0);
    world.nameserver.kill();
    let generation = world.generation();
    world.egressguard(&["refresh"]).exits(0).says(&[API, "warning"]);
    assert_eq!(world.generation(), generation);
    passes(world.tls(API_V4));
    passes(world.tls(API_V6));
    is_refused(world.tcp(STRANGER_V4, 443));
    world.nameserver.restart().unwrap();
    world.egressguard(&["refresh"]).exits(0);
    passes(world.tls(API_V4));
}

#[test]
fn when_the_resolver_is_silent_the_pins_stay() {
    let Some(world) = World::new() else { return };
    world.egressguard(DEFAULT).exits(0);
    world.ask_at(&[SILENCE_V4]);
    world.egressguard(&["refresh"]).exits(0).says(&["warning"]);
    passes(world.tls(API_V4));
}

#[test]
fn a_name_that_ceases_to_exist_or_fails_keeps_its_pins() {
    let Some(mut world) = World::new() else { return };
    world.egressguard(DEFAULT).exits(0);
    world.nameserver.forget(API).unwrap();
    world.egressguard(&["refresh"]).exits(0).says(&[API, "does not exist"]);
    passes(world.tls(API_V4));
    world.nameserver.fail().unwrap();
    world.egressguard(&["refresh"]).exits(0).says(&["SERVFAIL"]);
    passes(world.tls(API_V6));
    world.nameserver.set(API, &[]).unwrap();
    world.egressguard(&["refresh"]).exits(0).says(&[API]);
    passes(world.tls(API_V4));
}

#[test]
fn an_apply_without_dns_is_closed_until_a_refresh_succeeds() {
    let Some(mut world) = World::new() else { return };
    world.nameserver.kill();
    world.egressguard(DEFAULT).exits(1).says(&[API, "no pin"]);
    is_refused(world.tls(API_V4));
    is_refused(world.tcp(STRANGER_V4, 443));
    let rules = world.rules();
    world.nameserver.restart().unwrap();
    world.egressguard(&["refresh"]).exits(0).says(&[API_V4]);
    passes(world.tls(API_V4));
    assert_eq!(world.rules(), rules, "the first pin changes no rule");
}

#[test]
fn one_bad_name_does_not_spoil_the_others() {
    let Some(world) = World::new() else { return };
    let policy = world.policy(&format!("version: 1\noutbound:\n  - to: {API}\n  - to: missing.example.com\n"));
    world.egressguard(&["apply", &policy]).exits(1).says(&["missing.example.com", "does not exist"]);
    passes(world.tls(API_V4));
    world.egressguard(&["status"]).exits(1).says(&["unresolved", "missing.example.com"]);
}

#[test]
fn an_answer_in_a_special_purpose_range_is_refused_with_the_reason_unless_allowed() {
    let Some(mut world) = World::new() else { return };
    world.nameserver.set(API, &[API_V4, "10.0.0.1", "169.254.169.254", "::1", "127.0.0.1"]).unwrap();
    world.egressguard(DEFAULT).exits(0).says(&["10.0.0.1", "169.254.169.254", "private"]);
    assert_eq!(world.addresses("tcp_443_v4"), [API_V4]);
    assert!(world.addresses("tcp_443_v6").is_empty());
    let policy = world.policy(&format!("version: 1\nrefresh: {{private: allow}}\noutbound:\n  - to: {API}\n"));
    world.egressguard(&["apply", &policy]).exits(0);
    assert!(world.addresses("tcp_443_v4").contains(&"10.0.0.1".to_string()));
}

#[test]
fn a_chain_of_aliases_is_followed_and_an_alias_that_leads_nowhere_keeps_the_pins() {
    let Some(mut world) = World::new() else { return };
    world.nameserver.set_alias(API, "api.edge.example.net").unwrap();
    world.nameserver.set_alias("api.edge.example.net", "pool.example.org").unwrap();
    world.nameserver.set("pool.example.org", &[LATER_V4, LATER_V6]).unwrap();
    world.egressguard(DEFAULT).exits(0).says(&[LATER_V4]);
    passes(world.tls(LATER_V6));
    world.nameserver.forget("pool.example.org").unwrap();
    world.egressguard(&["refresh"]).exits(0);
    passes(world.tls(LATER_V4));
}

#[test]
fn a_deleted_pin_and_a_deleted_table_are_put_back() {
    let Some(world) = World::new() else { return };
    world.egressguard(DEFAULT).exits(0);
    world.nft(&["delete", "element", "inet", "egressguard", "tcp_443_v4", &format!("{{ {API_V4} }}")]).exits(0);
    is_refused(world.tls(API_V4));
    world.egressguard(&["refresh"]).exits(1).says(&["drift: ", API_V4, "is missing"]);
    passes(world.tls(API_V4));
    world.egressguard(&["refresh"]).exits(0);
    // One that somebody slipped in is no rule either, and goes without being asked for; but not without a word.
    world.nft(&["add", "element", "inet", "egressguard", "tcp_443_v4", &format!("{{ {STRANGER_V4} }}")]).exits(0);
    passes(world.tcp(STRANGER_V4, 443));
    world.egressguard(&["refresh", "--json"]).exits(1).says(&[STRANGER_V4, "\"repaired\": true"]);
    is_refused(world.tcp(STRANGER_V4, 443));
    world.nft(&["delete", "table", "inet", "egressguard"]).exits(0);
    world.egressguard(&["refresh", "--repair"]).exits(0);
    is_refused(world.tcp(STRANGER_V4, 443));
    passes(world.tls(API_V4));
}

#[test]
fn an_older_generation_that_somebody_loads_is_drift_and_never_adopted() {
    let Some(world) = World::new() else { return };
    let policy = |address: &str| world.policy(&format!("version: 1\noutbound:\n  - {{to: {address}, port: 4444}}\n"));
    world.egressguard(&["apply", &policy(STRANGER_V4)]).exits(0);
    let before = world.nft(&["list", "table", "inet", "egressguard"]).exits(0).stdout;
    world.egressguard(&["apply", &policy(API_V4)]).exits(0);
    let again = world.state().with_file_name("again.nft");
    std::fs::write(&again, format!("delete table inet egressguard\n{before}")).unwrap();
    world.nft(&["-f", &again.display().to_string()]).exits(0);
    passes(world.tcp(STRANGER_V4, 4444));
    world.egressguard(&["refresh"]).exits(1).says(&["drift"]);
    world.egressguard(&["refresh", "--repair"]).exits(0);
    is_refused(world.tcp(STRANGER_V4, 4444));
    world.egressguard(&["status"]).exits(0).says(&["generation 2"]);
    // After `remove` nothing is adopted at all.
    world.egressguard(&["remove", "--yes"]).exits(0);
    std::fs::write(&again, before).unwrap();
    world.nft(&["-f", &again.display().to_string()]).exits(0);
    world.egressguard(&["refresh", "--repair"]).exits(3).says(&["no policy is applied here"]);
}

#[test]
fn a_network_that_somebody_makes_wider_is_drift_and_what_came_through_ends() {
    let Some(world) = World::new() else { return };
    let policy = world.policy("version: 1\noutbound:\n  - {to: 198.51.100.0/29, port: 7777, protocol: tcp}\n");
    world.egressguard(&["apply", &policy]).exits(0);
    let set = world.nft(&["-j", "list", "sets", "table", "inet", "egressguard"]).exits(0).stdout;
    let set = set.split('"').find(|word| word.starts_with("tcp_7777") && word.contains("net")).expect("the set of the network").to_string();
    let wider = format!(
        "delete element inet egressguard {set} {{ 198.51.100.0/29 }}\nadd element inet egressguard {set} {{ 198.51.100.0/24 comment \"198.51.100.0/29\" }}\n"
    );
    let script = world.state().with_file_name("wider.nft");
    std::fs::write(&script, wider).unwrap();
    world.nft(&["-f", &script.display().to_string()]).exits(0);
    let stream = Stream::open(&world, Side::Host, Side::Net, STRANGER_V4, 7777);
    world.egressguard(&["refresh"]).exits(1).says(&["drift: ", "198.51.100.0/24", "revoked 1 flow"]);
    assert_eq!(stream.error(), std::io::ErrorKind::ConnectionAborted);
    world.egressguard(&["verify"]).exits(0);
}

#[test]
fn a_repair_closes_the_host_before_it_waits_for_dns() {
    let Some(world) = World::new() else { return };
    let policy = world.policy(&format!("version: 1\noutbound:\n  - to: {API}\ndns: {{servers: [{SILENCE_V4}]}}\n"));
    let pins = world.state().with_file_name("pins").display().to_string();
    world.egressguard(&["resolve", "builtin:openai", "-o", &pins]).exits(0);
    world.egressguard(&["apply", &policy, "--pins", &pins]).exits(0);
    world.nft(&["delete", "table", "inet", "egressguard"]).exits(0);
    std::thread::scope(|scope| {
        let repair = scope.spawn(|| world.egressguard(&["refresh", "--repair"]));
        while world.rules().is_none() && !repair.is_finished() {
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        assert!(!repair.is_finished(), "the rules came after DNS");
        passes(world.tls(API_V4));
        is_refused(world.tcp(STRANGER_V4, 443));
        repair.join().unwrap().exits(0).says(&["drift: ", "restored the rules"]);
    });
}

#[test]
fn a_repair_that_has_lost_its_state_closes_an_open_host() {
    let Some(world) = World::new() else { return };
    for file in ["state-1.json", "policy-1.yaml"] {
        let _ = std::fs::remove_dir_all(world.state());
        world.egressguard(DEFAULT).exits(0);
        std::fs::write(world.state().join(file), "").unwrap();
        world.nft(&["delete", "table", "inet", "egressguard"]).exits(0);
        world.egressguard(&["refresh", "--repair"]).exits(3).says(&[file, "the host is closed"]);
        is_refused(world.tcp(STRANGER_V4, 443));
        world.nft(&["delete", "table", "inet", "egressguard"]).exits(0);
    }
}

#[test]
fn a_policy_that_nothing_proves_is_not_restored() {
    let Some(world) = World::new() else { return };
    for gone in [true, false] {
        let _ = std::fs::remove_dir_all(world.state());
        world.egressguard(DEFAULT).exits(0);
        world.nft(&["delete", "table", "inet", "egressguard"]).exits(0);
        std::fs::write(world.state().join("policy-1.yaml"), "version: 1\nmode: observe\n").unwrap();
        match gone {
            true => std::fs::remove_file(world.state().join("state-1.json")).unwrap(),
            false => std::fs::write(world.state().join("state-1.json"), "").unwrap(),
        }
        world.egressguard(&["restore"]).exits(3).says(&["the host is closed"]);
        is_refused(world.tcp(STRANGER_V4, 443));
        world.egressguard(&["status"]).says(&["lockdown"]);
        world.nft(&["delete", "table", "inet", "egressguard"]).exits(0);
    }
}

#[test]
fn an_apply_that_was_killed_after_a_removal_is_finished() {
    let Some(world) = World::new() else { return };
    world.egressguard(DEFAULT).exits(0);
    world.egressguard(&["remove", "--yes"]).exits(0);
    world.egressguard(DEFAULT).exits(0);
    // What a kill leaves between the kernel and the state.
    std::fs::write(world.state().join("current"), "removed 1\n").unwrap();
    world.egressguard(&["refresh"]).exits(0).says(&["an interrupted apply is finished: generation 2"]);
    world.egressguard(&["status"]).exits(0).says(&["generation 2"]);
}

#[test]
fn who_locks_down_in_a_hurry_waits_for_nobody_who_waits_for_dns() {
    let Some(world) = World::new() else { return };
    let policy = world.policy(&format!("version: 1\noutbound:\n  - to: {API}\ndns: {{servers: [{SILENCE_V4}]}}\n"));
    let pins = world.state().with_file_name("pins").display().to_string();
    world.egressguard(&["resolve", "builtin:openai", "-o", &pins]).exits(0);
    world.egressguard(&["apply", &policy, "--pins", &pins]).exits(0);
    std::thread::scope(|scope| {
        let refresh = scope.spawn(|| world.egressguard(&["refresh"]));
        std::thread::sleep(std::time::Duration::from_millis(300));
        world.egressguard(&["apply", "builtin:lockdown"]).exits(0);
        assert!(!refresh.is_finished(), "the refresh was not waiting for DNS");
        let refreshed = refresh.join().unwrap();
        assert!(refreshed.code <= 1, "{}", refreshed.words());
    });
    // Nor for one that asks a second time, with its rules loaded.
    std::thread::scope(|scope| {
        let generation = || world.egressguard(&["status", "--json"]).stdout;
        let before = generation();
        let apply = scope.spawn(|| world.egressguard(&["apply", &policy]));
        while generation() == before && !apply.is_finished() {
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
        std::thread::sleep(std::time::Duration::from_millis(300));
        world.egressguard(&["apply", "builtin:lockdown"]).exits(0);
        assert!(!apply.is_finished(), "the apply was not waiting for DNS");
        assert_eq!(apply.join().unwrap().code, 1);
    });
    is_refused(world.tls(API_V4));
    world.egressguard(&["status"]).exits(0).says(&["lockdown"]);
    // Nor can anything be carried out in questions to a resolver.
    assert!(!world.rules().expect("rules").contains("resolver"), "{:?}", world.rules());
}

#[test]
fn rules_changed_by_others_are_drift_and_stay_until_repaired() {
    let Some(world) = World::new() else { return };
    world.egressguard(DEFAULT).exits(0);
    let rules = world.rules();
    world.nft(&["insert", "rule", "inet", "egressguard", "output", "tcp", "dport", "4444", "accept"]).exits(0);
    passes(world.tcp(STRANGER_V4, 4444));
    world.egressguard(&["refresh"]).exits(1).says(&["drift", "output", "--repair"]);
    world.egressguard(&["refresh", "--repair"]).exits(0);
    is_refused(world.tcp(STRANGER_V4, 4444));
    assert_eq!(world.rules(), rules);
}

#[test]
fn a_refresh_where_nothing_is_applied_says_what_to_do() {
    let Some(world) = World::new() else { return };
    world.egressguard(&["refresh"]).exits(3).says(&["apply"]);
    assert_eq!(world.rules(), None);
}

#[test]
fn a_resolver_that_moves_stays_reachable() {
    let Some(mut world) = World::new() else { return };
    world.egressguard(DEFAULT).exits(0);
    // The host's DHCP server names another resolver: the rules must follow before anything can be asked there.
    world.nameserver.kill();
    let mut moved = world.second_nameserver();
    moved.set(API, &[LATER_V4, LATER_V6]).unwrap();
    world.ask_at(&[SECOND_RESOLVER_V4]);
    world.egressguard(&["refresh"]);
    world.egressguard(&["refresh"]).exits(0);
    passes(world.tls(LATER_V4));
}

#[test]
fn what_was_resolved_into_a_file_is_applied_without_dns() {
    let Some(mut world) = World::new() else { return };
    world.nameserver.set_alias(API, "api.edge.example.net").unwrap();
    world.nameserver.set("api.edge.example.net", &[API_V4, API_V6, "10.0.0.1"]).unwrap();
    let pins = world.file("pins");
    let resolved = world.egressguard(&["resolve", "builtin:openai", "-o", &pins]).exits(0).says(&["10.0.0.0/8 is private use"]);
    assert_eq!(resolved.stdout, "");
    let text = std::fs::read_to_string(&pins).unwrap();
    for words in [&format!("name {API}"), "cname api.edge.example.net", &format!("address {API_V4} ttl 300 server 198.51.100.53:53 first ")]
    {
        assert!(text.contains(words), "{words}: {text}");
    }
    assert!(text.contains("egressguard pins 1") && text.ends_with("end 1\n") && !text.contains("10.0.0.1"), "{text}");
    assert!(
        world.egressguard(&["resolve", "builtin:openai"]).exits(0).stdout.contains(API_V6),
        "without a file it goes to standard output"
    );
    assert_eq!(world.rules(), None);
    // What the file holds already is confirmed and not forgotten.
    world.nameserver.set(API, &[LATER_V4]).unwrap();
    // Leases are stamped in whole seconds.
    std::thread::sleep(std::time::Duration::from_millis(1100));
    world.egressguard(&["resolve", "builtin:openai", "-o", &pins]).exits(0);
    let text = std::fs::read_to_string(&pins).unwrap();
    assert!(text.contains(API_V4) && text.contains(LATER_V4) && text.contains(" last "), "{text}");
    world.nameserver.kill();
    world.egressguard(&["resolve", "builtin:openai"]).exits(1).says(&[API, "ECONNREFUSED", "no pin"]);
    world.egressguard(&["apply", "builtin:openai", "--pins", &pins]).exits(0);
    assert_eq!(world.addresses("tcp_443_v4"), [API_V4, LATER_V4]);
    passes(world.tls(API_V6));
    is_refused(world.tls(NEIGHBOUR_V4));
    world.egressguard(&["render", "builtin:openai", "--pins", &pins]).exits(0).says(&[API_V4, LATER_V4, API_V6]);
}

#[test]
fn pins_end_by_themselves_when_nobody_refreshes() {
    let Some(world) = World::new() else { return };
    let policy = world.policy(&format!("version: 1\nrefresh: {{every: 1s, keep: 4s}}\noutbound:\n  - to: {API}\n"));
    world.egressguard(&["apply", &policy]).exits(0);
    std::thread::sleep(std::time::Duration::from_millis(5500));
    assert_eq!((world.addresses("tcp_443_v4"), world.addresses("tcp_443_v6")), (vec![], vec![]));
    [API_V4, API_V6].into_iter().for_each(|address| is_refused(world.tls(address)));
    world.egressguard(&["refresh"]).exits(0).says(&[API_V4]);
    assert_eq!(world.addresses("tcp_443_v4"), [API_V4]);
}

#[test]
fn a_confirmed_pin_is_renewed_in_the_kernel_with_what_it_has_counted() {
    let Some(world) = World::new() else { return };
    let policy = world.policy(&format!("version: 1\nrefresh: {{every: 1s, keep: 40s}}\noutbound:\n  - to: {API}\n"));
    world.egressguard(&["apply", &policy]).exits(0);
    passes(world.tls(API_V4));
    let (rules, generation) = (world.rules(), world.generation());
    // Before a quarter of the time is gained nothing is written, and behind it the pin is.
    world.egressguard(&["refresh"]).exits(0).says(&["unchanged"]);
    assert_eq!(world.generation(), generation);
    std::thread::sleep(std::time::Duration::from_millis(11_500));
    world.egressguard(&["refresh"]).exits(0).says(&[&format!("~ {API_V4}")]);
    assert_eq!((world.generation(), world.rules()), (generation + 1, rules), "one transaction, and no rule of it");
    let ends = world.ends("tcp_443_v4");
    assert!(matches!(&ends[..], [(address, left)] if address == API_V4 && *left > 30), "{ends:?}");
    let pins = world.set("tcp_443_v4");
    assert!(!pins.contains("counter packets 0 "), "{pins}");
}

#[test]
fn rules_of_another_version_are_put_right_by_the_next_refresh() {
    let Some(world) = World::new() else { return };
    world.egressguard(&["apply", "builtin:openai"]).exits(0);
    is_refused(world.udp(STRANGER_V4, 53));
    // As if another version had loaded the rules, and counted in fewer sets.
    let rules = world.rules().unwrap();
    let note = world.state().join("refresh.json");
    let text = std::fs::read_to_string(&note).unwrap();
    let mut last: serde_json::Value = serde_json::from_str(&text).unwrap();
    let handle = world.nft(&["-a", "list", "chain", "inet", "egressguard", "refuse_user"]).stdout;
    let rule = handle.lines().find(|line| line.contains("@ledger_all_out")).and_then(|line| line.rsplit(' ').next()).unwrap();
    world.nft(&["delete", "rule", "inet", "egressguard", "refuse_user", "handle", rule]).exits(0);
    last["shape"] = "of another version".into();
    last["kernel_generation"] = world.generation().into();
    std::fs::write(&note, last.to_string()).unwrap();
    world.egressguard(&["refresh", "--repair"]).exits(0);
    assert_eq!(world.rules().unwrap(), rules);
}
