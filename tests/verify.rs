//! Whatever somebody changes in our table, `verify` names it, and the timer's `refresh --repair` puts it right. What others have beside
//! it is listed with what it means.

#[path = "support/mod.rs"]
mod support;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use serde_json::Value;
use support::*;

/// A name, a network, a scope and a way in for the operator: one of each kind of rule.
const POLICY: &str = "version: 1
name: watched
inbound: {port: 443}
management: {port: 22, from: [203.0.113.0/24]}
outbound:
  - to: api.openai.com
  - id: db
    to: 198.51.100.64/28
    port: 5432
    protocol: tcp
  - {id: root-only, to: 192.0.2.9, port: 443, for: {uid: 0}}
host: {ping: true}
";

/// One way to tamper with the table: a script for `nft -f` and what `verify` says.
struct Tampering {
    script: String,
    what: &'static str,
    words: Vec<&'static str>,
}

fn tampering(script: impl Into<String>, what: &'static str, words: &[&'static str]) -> Tampering {
    Tampering { script: script.into(), what, words: words.to_vec() }
}

const T: &str = "inet egressguard";

/// The handle and the text of a rule, by chain and place.
fn rule(world: &World, chain: &str, place: usize) -> (u64, String) {
    let listed = world.nft(&["-a", "-s", "list", "chain", "inet", "egressguard", chain]).exits(0).stdout;
    let rules: Vec<&str> = listed.lines().filter(|line| line.contains("# handle") && !line.contains('{')).collect();
    let (text, handle) = rules[place].trim().split_once(" # handle ").expect("a handle");
    (handle.parse().expect("a number"), text.to_string())
}

/// What nft lists, without the order in which sets were made.
fn sorted_rules(world: &World) -> Vec<String> {
    let mut lines: Vec<String> = world.rules().expect("our table").lines().map(str::to_string).collect();
    lines.sort();
    lines
}

fn tamperings(world: &World) -> Vec<Tampering> {
    let (first_out, first_text) = rule(world, "output", 0);
    let (third_out, _) = rule(world, "output", 3);
    let (way_out, way_text) = rule(world, "outbound", 2);
    assert!(way_text.contains("api.openai.com"), "{way_text}");
    let api = format!("tcp_443_v4 {{ {API_V4} }}");
    vec![
        tampering(format!("delete element {T} {api}"), "element-missing", &[API_V4, "api.openai.com", "policy.yaml:6"]),
        tampering(
            format!("add element {T} tcp_443_v4 {{ {STRANGER_V4} comment \"api.openai.com\" }}"),
            "element-added",
            &[STRANGER_V4, "tcp_443_v4", "no line of the policy", "calls itself `api.openai.com`"],
        ),
        tampering(
            format!("delete element {T} {api}\nadd element {T} tcp_443_v4 {{ {API_V4} timeout 300d comment \"api.openai.com\" }}"),
            "element-changed",
            &[API_V4, "ends in 7200 h", "instead of: ends in", "policy.yaml:6"],
        ),
        tampering(
            format!("delete element {T} {api}\nadd element {T} tcp_443_v4 {{ {API_V4} comment \"api.openai.com\" }}"),
            "element-changed",
            &["never ends"],
        ),
        tampering(
            format!("delete element {T} {api}\nadd element {T} tcp_443_v4 {{ {API_V4} timeout 1d comment \"innocent\" }}"),
            "element-changed",
            &["calls itself `innocent`"],
        ),
        tampering(
            format!(
                "delete element {T} tcp_5432_net_v4 {{ 198.51.100.64/28 }}\nadd element {T} tcp_5432_net_v4 {{ 198.51.100.64/26 comment \"198.51.100.64/28 [db]\" }}"
            ),
            "element-changed",
            &["`198.51.100.64/26` instead of", "policy.yaml:8"],
        ),
        tampering(format!("add element {T} tcp_443_v4 {{ * }}"), "element-added", &["`*`"]),
        tampering(
            format!(
                "flush chain {T} neighbours_out\ndelete set {T} neighbour_out\nadd set {T} neighbour_out {{ type icmpv6_type; limit rate 1/second; }}"
            ),
            "set-changed",
            &["neighbour_out", "statements on each element"],
        ),
        tampering(
            format!("delete rule {T} outbound handle {way_out}"),
            "rule-missing",
            &["`api.openai.com`", "`outbound`", "policy.yaml:6"],
        ),
        tampering(
            format!("insert rule {T} output tcp dport 4444 accept comment \"a friend\""),
            "rule-added",
            &["`output`", "at place 1", "tcp dport 4444 accept", "calls itself `a friend`"],
        ),
        tampering(format!("insert rule {T} output meta cpu 0 accept"), "rule-added", &["something that is never ours"]),
        tampering(format!("add rule {T} output quota over 1 bytes accept"), "rule-added", &["`quota`"]),
        tampering(
            format!("add rule {T} output position {third_out} {first_text}\ndelete rule {T} output handle {first_out}"),
            "rule-moved",
            &["`loopback`", "`output`", "instead of 1"],
        ),
        tampering(
            format!("replace rule {T} outbound handle {way_out} tcp dport 444 ip daddr @tcp_443_v4 accept comment \"api.openai.com\""),
            "rule-changed",
            &["`api.openai.com`", "tcp dport 444", "instead of `tcp dport 443", "policy.yaml:6"],
        ),
        tampering(
            format!("replace rule {T} outbound handle {way_out} {}", way_text.replace("accept", "counter accept")),
            "rule-changed",
            &["`api.openai.com`", "never ours"],
        ),
        tampering(format!("chain {T} output {{ policy accept; }}"), "chain-policy", &["`output`", "accept instead of drop"]),
        tampering(
            format!(
                "flush chain {T} input\ndelete chain {T} input\nadd chain {T} input {{ type filter hook input priority 10; policy drop; }}"
            ),
            "chain-priority",
            &["`input`", "10 instead of 0"],
        ),
        tampering(
            format!(
                "flush chain {T} input\ndelete chain {T} input\nadd chain {T} input {{ type filter hook prerouting priority 0; policy drop; }}"
            ),
            "chain-hook",
            &["prerouting instead of input"],
        ),
        tampering(
            format!(
                "flush chain {T} output\ndelete chain {T} output\nadd chain {T} output {{ type route hook output priority 0; policy drop; }}"
            ),
            "chain-kind",
            &["route instead of filter"],
        ),
        tampering(format!("flush chain {T} forward\ndelete chain {T} forward\nadd chain {T} forward"), "chain-hook", &["hangs nowhere"]),
        tampering(
            format!("flush chain {T} output\nflush chain {T} outbound_scoped\ndelete chain {T} outbound_scoped"),
            "chain-missing",
            &["`outbound_scoped`"],
        ),
        tampering(
            format!("add chain {T} evil {{ type filter hook output priority -5; policy accept; }}\nadd rule {T} evil drop"),
            "chain-added",
            &["`evil`", "one rule"],
        ),
        tampering(format!("add set {T} more {{ type ipv4_addr; }}"), "set-added", &["`more`"]),
        tampering(
            format!("flush chain {T} outbound\ndelete set {T} tcp_443_v4\nadd set {T} tcp_443_v4 {{ type ipv4_addr; flags interval; }}"),
            "set-changed",
            &["it has `interval`", "it lacks `timeout`", "it lacks `counter`"],
        ),
        tampering(format!("flush chain {T} outbound\ndelete set {T} tcp_443_v6"), "set-missing", &["`tcp_443_v6`"]),
        tampering(format!("add counter {T} mine"), "object-added", &["counter `mine`"]),
        tampering(format!("flush chain {T} identity"), "rule-missing", &["`identity`", "watched"]),
        tampering(format!("add table {T} {{ flags dormant; }}"), "table-flags", &["switched off"]),
        tampering(format!("delete table {T}"), "table-missing", &["nothing is filtered"]),
    ]
}

#[test]
fn every_tampering_is_named_and_put_right_by_the_timers_refresh() {
    let Some(world) = World::new() else { return };
    let policy = world.policy(POLICY);
    world.egressguard(&["apply", &policy]).exits(0);
    world.egressguard(&["verify"]).exits(0).says(&["same", "`watched` (generation 1)"]);
    let rules = sorted_rules(&world);
    let count = tamperings(&world).len();
    for at in 0..count {
        // Handles are others after a repair.
        let tampering = tamperings(&world).swap_remove(at);
        world.nft_load(&format!("{}\n", tampering.script));
        let answer: Value = serde_json::from_str(&world.egressguard(&["verify", "--json"]).exits(1).stdout).expect("JSON");
        assert_eq!((&answer["schema"], &answer["same"]), (&"egressguard.verify/1".into(), &false.into()));
        let differences = answer["differences"].as_array().expect("a list");
        let named = differences.iter().any(|difference| difference["what"] == tampering.what);
        assert!(named, "{}\nis not called {}: {differences:#?}", tampering.script, tampering.what);
        world.egressguard(&["verify"]).exits(1).says(&tampering.words).says(&["differs", "refresh --repair"]);
        let repaired = world.egressguard(&["refresh", "--repair"]).exits(0);
        let verified = world.egressguard(&["verify"]);
        assert_eq!(verified.code, 0, "{}\nis not repaired by\n{}: {}", tampering.script, repaired.words(), verified.words());
        assert!(sorted_rules(&world) == rules, "{}\nis not repaired to the letter", tampering.script);
    }
}

#[test]
fn what_others_have_is_listed_with_what_it_means_and_is_no_drift() {
    let Some(world) = World::new() else { return };
    world.egressguard(&["apply", &world.policy(POLICY)]).exits(0);
    world.nft_load(&format!(
        "table ip docker {{
            chain pre {{ type nat hook prerouting priority -100; tcp dport 8080 dnat to {HOST_V4}:443; }};
            chain post {{ type nat hook postrouting priority 100; masquerade; }};
         }}
         table inet strict {{
            chain out {{ type filter hook output priority 10; policy accept; jump more; }};
            chain more {{ ip daddr 192.0.2.1 reject; }};
         }}
         table inet polite {{ chain out {{ type filter hook output priority -10; policy accept; tcp dport 25 accept; }}; }}
         table ip raw {{ chain out {{ type filter hook output priority -300; udp dport 53 notrack; }}; }}
         table netdev edge {{
            chain in {{ type filter hook ingress device uplink priority 0; policy accept; ip protocol 99 drop; }};
            chain past {{ type filter hook ingress device uplink priority 1; policy accept; fwd to lo; }};
         }}
         table inet asleep {{ flags dormant; chain out {{ type filter hook output priority 0; policy drop; }}; }}\n"
    ));
    world.ip(Side::Host, "link add br0 type bridge\nlink add tap0 type veth peer name tap1\n");
    let answer = world.egressguard(&["verify"]).exits(0).says(&["same", "not ours:"]);
    for (what, means) in [
        ("chain `pre` of table `ip docker` (nat at prerouting, priority -100)", "another port may lead to the inbound port"),
        ("chain `post` of table `ip docker`", "it changes where packets come from"),
        ("chain `out` of table `inet strict`", "a drop anywhere is final"),
        ("chain `out` of table `inet polite`", "opens nothing"),
        ("chain `out` of table `ip raw`", "answers of allowed connections are refused"),
        ("chain `in` of table `netdev edge` (filter at ingress of uplink, priority 0)", "it may drop what our rules allow"),
        ("chain `past` of table `netdev edge`", "past our rules"),
        ("table `inet asleep`, which is switched off", "met by any packet"),
        ("bridge `br0`", "does not meet our rules"),
        ("link `uplink` (veth) into another network namespace", "meets chain `input` or `forward`"),
    ] {
        let mut lines = answer.stdout.lines().skip_while(|line| !line.contains(what));
        assert!(lines.next().is_some(), "`{what}` is not listed:\n{}", answer.stdout);
        assert!(lines.next().is_some_and(|line| line.contains(means)), "`{what}` does not mean `{means}`:\n{}", answer.stdout);
    }
    let json: Value = serde_json::from_str(&world.egressguard(&["verify", "--json"]).exits(0).stdout).expect("JSON");
    assert_eq!((&json["same"], &json["defeated"]), (&true.into(), &false.into()));
    assert!(json["foreign"].as_array().is_some_and(|foreign| foreign.len() >= 10 && foreign.iter().all(|one| one["means"].is_string())));
    assert!(json["unseen"].as_array().is_some_and(|unseen| !unseen.is_empty()));
}

#[test]
fn ways_round_the_hooks_are_listed() {
    let Some(world) = World::new() else { return };
    world.egressguard(&["apply", &world.policy(POLICY)]).exits(0);
    let said = world.egressguard(&["verify"]).exits(0).stdout;
    assert!(!said.contains("packet socket") && !said.contains("traffic control") && !said.contains("iptables"), "{said}");
    let _frames = world.within(Side::Host, || {
        let (family, kind) = (AddressFamily::Packet, SockType::Raw);
        socket(family, kind, SockFlag::SOCK_CLOEXEC, None).expect("a packet socket")
    });
    world.ip(Side::Host, "tuntap add tap7 mode tap\n");
    world.egressguard(&["verify"]).exits(0).says(&["one packet socket is open", "meet no rule of any table", "link `tap7` (tun or tap)"]);
    for (commands, words) in [
        (
            &["tc qdisc add dev uplink clsact", "tc filter add dev uplink egress u32 match ip dst 192.0.2.200/32"][..],
            "filters of traffic control at link `uplink`",
        ),
        (&["iptables-legacy -t nat -L -n"][..], "table `ip nat` of the older iptables"),
    ] {
        let done = world.within(Side::Host, || {
            commands.iter().all(|command| {
                let mut words = command.split(' ');
                let program = words.next().expect("a program");
                std::process::Command::new(program).args(words).output().is_ok_and(|output| output.status.success())
            })
        });
        match done {
            true => drop(world.egressguard(&["verify"]).exits(0).says(&[words])),
            false => println!("not tried: `{}` does not work here", commands.join("; ")),
        }
    }
}

#[test]
fn a_question_about_a_name_is_answered_for_the_pins_that_were_applied() {
    let Some(world) = World::new() else { return };
    let policy = world.policy(POLICY);
    let asked = || world.egressguard(&["explain", "tcp", "to", "api.openai.com:443", &policy]).exits(0);
    asked().says(&["whatever its addresses are"]);
    world.egressguard(&["apply", &policy]).exits(0);
    asked().says(&["allow", "at ", API_V4, API_V6, "policy.yaml:6"]);
    world.egressguard(&["explain", "udp to 198.51.100.53:53", &policy]).exits(0).says(&["resolver"]);
}

#[test]
fn an_accept_of_others_opens_nothing_and_a_translation_comes_before_our_rules() {
    let Some(world) = World::new() else { return };
    world.egressguard(&["apply", &world.policy(POLICY)]).exits(0);
    world.nft_load(
        "table inet polite { chain out { type filter hook output priority -10; policy accept; accept; }; }
         table inet late { chain out { type filter hook output priority 10; policy accept; accept; }; }\n",
    );
    assert!(!world.tcp(STRANGER_V4, 4444).answered());
    // The chain's own priority is behind ours; the kernel translates in one hook all the same.
    world.nft_load(&format!(
        "table ip t {{ chain out {{ type nat hook output priority 50; ip daddr {API_V4} tcp dport 443 dnat to {STRANGER_V4}:4444; }}; }}\n"
    ));
    assert!(!world.tcp(API_V4, 443).answered(), "the new destination was judged");
    world.egressguard(&["verify"]).exits(0).says(&["they judge the new destination"]);
}

#[test]
fn what_rewrites_packets_behind_our_rules_defeats_them() {
    let Some(world) = World::new() else { return };
    world.egressguard(&["apply", &world.policy(POLICY)]).exits(0);
    world.nft_load(&format!(
        "table ip evil {{ chain out {{ type filter hook postrouting priority 0; ip daddr {API_V4} ip daddr set {STRANGER_V4}; }}; }}\n"
    ));
    world.egressguard(&["verify"]).exits(1).says(&["same", "defeats", "after our rules have judged them"]);
    world.egressguard(&["status"]).exits(1).says(&["defeated    by chain `out` of table `ip evil`"]);
    world.nft_load(
        "delete table ip evil\ntable ip mss { chain out { type filter hook postrouting priority 0; tcp flags syn tcp option maxseg size set 1360; ip dscp set cs1; ip ttl set 64; }; }\n",
    );
    world.egressguard(&["verify"]).exits(0).says(&["drops and changes nothing"]);
    // In by the open door, and on to another.
    world.nft_load(
        "delete table ip mss\ntable ip side { chain in { type filter hook input priority 10; tcp dport 8443 tcp dport set 22; }; }\n",
    );
    world.egressguard(&["verify"]).exits(1).says(&["defeats", "chain `in` of table `ip side`"]);
    // Where a map leads is followed, too.
    world.nft_load(&format!(
        "delete table ip side\ntable ip sly {{
            chain deep {{ ip daddr set {STRANGER_V4}; }}
            map ways {{ type ipv4_addr : verdict; elements = {{ {API_V4} : jump deep }}; }}
            chain out {{ type filter hook postrouting priority 0; ip daddr vmap @ways; }}; }}\n"
    ));
    world.egressguard(&["verify"]).exits(1).says(&["defeats", "chain `out` of table `ip sly`"]);
}

#[test]
fn a_hand_that_edits_the_rules_is_explained_live_at_once() {
    let Some(world) = World::new() else { return };
    let asked = |packet: &str, code| world.egressguard(&["explain", "--live", packet]).exits(code);
    asked("tcp to 1.2.3.4:443", 0).says(&["allow", "no-rules"]);
    world.egressguard(&["apply", &world.policy(POLICY)]).exits(0);
    let stranger = format!("tcp to {STRANGER_V4}:4444");
    asked(&stranger, 1).says(&["deny", "refuse-out"]);
    asked("tcp to api.openai.com:443", 0).says(&["allow", "`api.openai.com`, ", "policy.yaml:6", API_V4, API_V6]);
    world.nft_load(&format!("insert rule {T} output tcp dport {{ 4444, 4445 }} accept comment \"by hand\"\n"));
    asked(&stranger, 0).says(&["allow", "`by hand`"]);
    assert!(world.tcp(STRANGER_V4, 4444).answered());
    world.nft_load(&format!("add chain {T} last {{ type filter hook postrouting priority 0; policy drop; }}\n"));
    asked(&stranger, 1).says(&["deny", "the end of the chain"]);
    assert!(!world.tcp(STRANGER_V4, 4444).answered());
    world.nft_load(&format!("delete chain {T} last\ninsert rule {T} output meta cpu 4000 drop\n"));
    asked(&stranger, 3).says(&["perhaps", "not certain", "egressguard verify"]);
    asked("in tcp from 198.51.100.9 to :443", 0);
    world.egressguard(&["refresh", "--repair"]).exits(0);
    asked(&stranger, 1).says(&["deny", "refuse-out"]);
    world.nft_load(&format!("add element {T} quarantined_users {{ 1000 timeout 1h }}\n"));
    asked("tcp to api.openai.com:443 uid 1000", 1).says(&["deny"]);
    asked("tcp to api.openai.com:443 uid 1001", 0);
    world.nft_load(&format!("add table {T} {{ flags dormant; }}\n"));
    asked(&stranger, 0).says(&["allow", "no-rules"]);
}

#[test]
fn who_would_lock_the_session_out_is_refused_before_anything_is_loaded() {
    let Some(world) = World::new() else { return };
    let apply = |session: &str, arguments: &[&str]| {
        // A process namespace of its own: the session is then all that the program sees of its ancestors.
        let session = format!("SSH_CONNECTION={session}");
        let wrapper = ["unshare", "--pid", "--fork", "--mount-proc", "env", &session];
        world.egressguard_through(&wrapper, &[&["apply"], arguments].concat())
    };
    let policy = world.policy(POLICY);
    for session in
        ["198.51.100.66 50000 203.0.113.10 22", "2001:db8:bad::66 50000 2001:db8:113::10 22", "fe80::1%uplink 1 fe80::2%uplink 22"]
    {
        apply(session, &[&policy]).exits(3).says(&["would not let it be opened again", "management: {port: 22", "--force"]);
        assert_eq!(world.rules(), None);
    }
    apply("203.0.113.1 50000 203.0.113.10 2222", &[&policy, "--dry-run"]).exits(3);
    apply("::ffff:203.0.113.1 50000 ::ffff:203.0.113.10 22", &[&policy]).exits(0);
    apply("198.51.100.66 50000 203.0.113.10 443", &[&policy]).exits(0);
    apply("198.51.100.66 50000 203.0.113.10 22", &[&policy, "--force"]).exits(0);
    let observed = world.policy(&format!("{POLICY}mode: observe\n"));
    apply("198.51.100.66 50000 203.0.113.10 22", &[&observed]).exits(0);
}

#[test]
fn verify_without_a_policy_or_with_somebody_elses_table_says_so() {
    let Some(world) = World::new() else { return };
    world.egressguard(&["verify"]).exits(3).says(&["no policy is applied here", "egressguard apply"]);
    world.egressguard(&["apply", &world.policy(POLICY)]).exits(0);
    world.nft_load(&format!("delete table {T}\ntable {T} {{ chain theirs {{ }}; }}\n"));
    world.egressguard(&["verify"]).exits(1).says(&["egressguard did not make"]);
    world.egressguard(&["explain", "--live", "tcp to 1.2.3.4:443"]).exits(3).says(&["did not make"]);
}
