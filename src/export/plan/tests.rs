//! What is read back: the same, and every kind of difference.

use super::*;
use crate::base::name::Slug;
use crate::policy::Mode;
use crate::ruleset::Identity;
use crate::ruleset::Ruleset;
use crate::ruleset::compile::Facts;
use crate::ruleset::field::Field;
use crate::ruleset::program::Hook;
use crate::ruleset::rule::{Action, Rule, in_set, is};
use crate::ruleset::set::{Member, Set};

const NOW: Timestamp = Timestamp(1_000_000);

fn firewall(generation: u64, address: &str) -> Firewall {
    let identity = Identity { policy: Slug::nearest("t", "t"), sha256: "0".repeat(64), generation, mode: Mode::Enforce };
    let tests = vec![is(Field::DestinationPort(Protocol::TCP), 443u16), in_set(Field::DestinationAddress(Family::V4), "s")];
    let rules = vec![Rule::new("a.example", tests, vec![], Action::Accept)];
    let mut set = Set::of_addresses("s".into(), Family::V4);
    let member = Member { last: None, expires: Some(NOW.plus(crate::base::time::Period::from_seconds(600))), comment: "a.example".into() };
    set.add_address(&address.parse().unwrap(), member);
    let chains = vec![crate::ruleset::Chain::base(Hook::Output, Mode::Enforce, rules)];
    crate::export::iptables::export(&Ruleset { identity, chains, sets: [("s".to_string(), set)].into() }, &Facts::default()).unwrap()
}

/// What the programs print of a firewall that was loaded, with a foreign chain and a foreign set.
fn printed(firewall: &Firewall) -> [String; 3] {
    let table = |table: &Table| {
        let jumps: String = table.jumps().map(|(hook, jump)| format!("-A {hook} {jump}\n-A {hook} -j THEIRS\n")).collect();
        format!("# Generated\n*filter\n:OUTPUT ACCEPT [12:900]\n:THEIRS - [0:0]\n{}{jumps}COMMIT\n# Completed\n", table.write())
    };
    let mut sets = "create theirs hash:ip family inet hashsize 1024 maxelem 65536\nadd theirs 192.0.2.99\n".to_string();
    for set in firewall.sets.values() {
        sets.push_str(&format!("create {} {} bucketsize 12 initval 0xabcdef00\n", set.name, set.def.write()));
        for (element, member) in &set.members {
            let left = member.expires.map_or(0, |expires| expires.since(NOW).seconds());
            sets.push_str(&format!("add {} {element} timeout {left} packets 7 bytes 420 comment \"{}\"\n", set.name, member.comment));
        }
    }
    let [v4, v6] = &firewall.tables;
    [table(v4), table(v6), sets]
}

fn observed(printed: &[String; 3]) -> Observed {
    Observed::parse(&printed[0], &printed[1], &printed[2])
}

fn differences(change: impl Fn(&mut [String; 3])) -> Vec<String> {
    let meant = firewall(3, "192.0.2.1");
    let mut printed = printed(&meant);
    change(&mut printed);
    plan(&observed(&printed), &meant, NOW).differences
}

#[test]
fn what_was_meant_is_read_back_as_the_same() {
    let meant = firewall(3, "192.0.2.1");
    let observed = observed(&printed(&meant));
    let change = plan(&observed, &meant, NOW);
    assert!(change.is_nothing() && change.differences.is_empty(), "{change:#?}");
    assert_eq!(observed.identity(), Some(meant.identity));
}

#[test]
fn another_version_may_print_the_same_in_another_form() {
    assert_eq!(
        canonical("-d 192.0.2.1 -p 6 -m conntrack --ctstate ESTABLISHED,RELATED -m limit --limit 10/second -j X"),
        canonical("-d 192.0.2.1/32 -p tcp -m conntrack --ctstate RELATED,ESTABLISHED -m limit --limit \"10/sec\" -j X")
    );
    assert_eq!(canonical("--hashlimit-above 3000/sec"), canonical("--hashlimit-above 3003/sec"));
    assert_ne!(canonical("--hashlimit-above 20/min"), canonical("--hashlimit-above 20/sec"));
    assert_eq!(words(r#"a "b c" "" d\"e"#), ["a", "b c", "", "d\"e"]);
}

#[test]
fn every_change_of_ours_is_a_difference() {
    let rule = "-A EGRESSGUARD-output -p tcp";
    for (what, change) in [
        ("a rule more", (|p: &mut [String; 3]| p[0].push_str("-A EGRESSGUARD-output -j RETURN\n")) as fn(&mut [String; 3])),
        ("an option more", |p| p[0] = p[0].replace("--dport 443", "--dport 443 --sport 1")),
        ("another option", |p| p[0] = p[0].replace("--dport 443", "--dport 444")),
        ("a negation", |p| p[0] = p[0].replace("-p tcp", "! -p tcp")),
        ("a rule less in the other family", |p| p[1] = p[1].replace("-A EGRESSGUARD-output -m comment --comment policy -j DROP\n", "")),
        ("a chain more", |p| p[1] = p[1].replace(":THEIRS", ":EGRESSGUARD-x - [0:0]\n:THEIRS")),
        ("no jump", |p| p[0] = p[0].replace("-A OUTPUT -j EGRESSGUARD-output\n", "")),
        ("a jump that is not the first", |p| {
            p[0] = p[0].replace("-A OUTPUT -j EGRESSGUARD-output\n", "-A OUTPUT -j ACCEPT\n-A OUTPUT -j EGRESSGUARD-output\n");
        }),
        ("a second jump", |p| p[0].push_str("-A THEIRS -j EGRESSGUARD-output\n")),
        ("an element more", |p| {
            let line = p[2].lines().find(|line| line.starts_with("add EGRESSGUARD")).unwrap().replace("192.0.2.1", "192.0.2.2");
            p[2].push_str(&format!("{line}\n"));
        }),
        ("an element less", |p| {
            p[2] = p[2].lines().filter(|line| !line.starts_with("add EGRESSGUARD")).map(|line| format!("{line}\n")).collect();
        }),
        ("another time", |p| p[2] = p[2].replace("timeout 600", "timeout 6000")),
        ("no end", |p| p[2] = p[2].replace("timeout 600", "timeout 0")),
        ("another comment", |p| p[2] = p[2].replace("\"a.example\"", "\"b.example\"")),
        ("an element with something unknown", |p| p[2] = p[2].replace("packets 7", "nomatch 1 packets 7")),
        ("a set of another kind", |p| p[2] = p[2].replace("hash:ip family inet maxelem", "hash:net family inet maxelem")),
        ("a set with something unknown", |p| p[2] = p[2].replace("bucketsize 12", "forceadd bucketsize 12")),
        ("a set more", |p| p[2].push_str("create EGRESSGUARD-y hash:ip family inet maxelem 65536\n")),
    ] {
        assert_eq!(
            differences(change).len(),
            if what == "a jump that is not the first" { 2 } else { 1 },
            "{what}: {:?}",
            differences(change)
        );
    }
    assert!(printed(&firewall(3, "192.0.2.1"))[0].contains(rule));
    assert!(differences(|p| p[0] = p[0].replace("-A THEIRS", "-A OTHERS")).is_empty(), "what is theirs is not looked at");
}

#[test]
fn other_pins_change_elements_and_no_rule_and_keep_what_was_counted() {
    let mut there = firewall(3, "192.0.2.1");
    let meant = firewall(3, "192.0.2.2");
    let change = plan(&observed(&printed(&there)), &meant, NOW);
    assert!(!change.touches_rules() && change.stale.is_empty() && !change.times_only);
    assert_eq!((change.added.len(), change.removed.len()), (1, 1));
    let later = Timestamp(NOW.0 + 60);
    for member in there.sets.values_mut().flat_map(|set| set.members.values_mut()) {
        member.expires = Some(Timestamp(NOW.0 + 6000));
    }
    let change = plan(&observed(&printed(&firewall(3, "192.0.2.1"))), &there, later);
    assert!(change.times_only && change.sets.contains("timeout 5940 packets 7 bytes 420 comment \"a.example\""), "{change:#?}");
}

#[test]
fn rules_are_loaded_with_one_jump_at_the_first_place_and_no_chain_left_over() {
    let meant = firewall(4, "192.0.2.1");
    let mut printed = printed(&firewall(3, "192.0.2.1"));
    printed[0] = printed[0].replace(":THEIRS", ":EGRESSGUARD-old - [0:0]\n:THEIRS");
    printed[0].push_str("-A OUTPUT -j EGRESSGUARD-output\n");
    let change = plan(&observed(&printed), &meant, NOW);
    assert!(change.sets.is_empty() && change.stale.is_empty());
    let [Some(v4), Some(v6)] = change.rules else { panic!("both families have another generation") };
    assert_eq!(v4.matches("-D OUTPUT -j EGRESSGUARD-output\n").count(), 2);
    assert!(v4.ends_with("-I OUTPUT 1 -j EGRESSGUARD-output\n-F EGRESSGUARD-old\n-X EGRESSGUARD-old\nCOMMIT\n"), "{v4}");
    assert!(!v4.contains("THEIRS") && !v6.contains("EGRESSGUARD-old"));
}

#[test]
fn what_was_there_can_be_put_back_and_taken_away() {
    let before = observed(&printed(&firewall(3, "192.0.2.1")));
    let mut now = before.clone();
    now.tables[0].chains.insert("EGRESSGUARD-new".into(), vec![]);
    let back = before.tables[0].again(&now.tables[0]);
    assert!(
        back.contains("-D OUTPUT -j EGRESSGUARD-output\n-I OUTPUT 1 -j EGRESSGUARD-output\n-F EGRESSGUARD-new\n-X EGRESSGUARD-new\nCOMMIT"),
        "{back}"
    );
    let ([v4, _], sets) = before.removal();
    assert_eq!(
        v4,
        "*filter\n-D OUTPUT -j EGRESSGUARD-output\n-F EGRESSGUARD-identity\n-F EGRESSGUARD-output\n\
         -X EGRESSGUARD-identity\n-X EGRESSGUARD-output\nCOMMIT\n"
    );
    assert!(sets.starts_with("destroy EGRESSGUARD-s-") && !sets.contains("theirs"), "{sets}");
}
