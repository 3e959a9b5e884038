//! What only the real kernel can show: nft reads what we write, we read what nft writes, and rights, haste and the close are real.
//! Each test has a network namespace of its own.

#[path = "support/netns.rs"]
mod netns;
#[path = "support/world.rs"]
mod world;

use std::io::Write;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use egressguard::ruleset::program::{ChainDef, Element, Expr, GenerationId, KeyType, Op, RuleProgram, SetDef, TableDump};
use egressguard::simulated::Simulated;
use egressguard::system::netlink::NfTables;
use egressguard::world::{Depth, Kernel, KernelError};
use world::*;

/// Runs nft in this thread's network namespace. Nothing when the machine has no nft.
fn nft(arguments: &[&str], input: &str) -> Option<String> {
    netns::assert_own_netns();
    let mut child = match Command::new("nft").args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn() {
        Ok(child) => child,
        Err(error) => {
            assert!(std::env::var("EGRESSGUARD_REQUIRE_KERNEL").as_deref() != Ok("1"), "nft cannot be run: {error}");
            println!("skipped: nft cannot be run ({error})");
            return None;
        }
    };
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "nft {arguments:?} fails for\n{input}");
    Some(String::from_utf8(output.stdout).unwrap())
}

/// The steps that make a table like this one.
fn ops_of(dump: &TableDump) -> Vec<Op> {
    let mut ops = vec![Op::AddTable(dump.table.clone())];
    ops.extend(dump.sets.values().map(|(set, _)| Op::AddSet(set.clone())));
    ops.extend(dump.chains.iter().map(|(chain, _)| Op::AddChain(chain.clone())));
    ops.extend(dump.sets.values().map(|(set, elements)| add(set, elements.clone())));
    for (chain, rules) in &dump.chains {
        ops.extend(rules.iter().map(|rule| Op::AddRule { chain: chain.name.clone(), rule: rule.clone() }));
    }
    ops
}

/// Everything that this program loads, in nft's words. Sets stand in alphabetical order.
const WIDE: &str = r#"
table inet egressguard {
    comment "openai-backend 0123456789abcdef 7"
    set control6 { type icmpv6_type; elements = { nd-neighbor-solicit, nd-router-advert, packet-too-big } }
    set ledger { type uid . ipv4_addr . inet_proto . inet_service; size 65000; flags dynamic,timeout; counter
        elements = { 1000 . 192.0.2.9 . tcp . 80 timeout 1d } }
    set ledger6 { type uid . ipv6_addr . inet_proto . inet_service; size 65000; flags dynamic,timeout; }
    set marks { type mark; elements = { 0x1, 0x45 } }
    set nets { type ipv4_addr; flags interval; counter
        elements = { 10.0.0.0/8 comment "ten", 192.0.2.1, 198.51.100.7-198.51.100.9, 224.0.0.0-255.255.255.255 comment "last" } }
    set nets6 { type ipv6_addr; flags interval,timeout; elements = { 2001:db8::/32 timeout 1h, ff00::-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff } }
    set over { type uid; size 1000; flags dynamic; }
    set pins { type ipv4_addr . inet_service; flags timeout; counter
        elements = { 192.0.2.1 . 443 timeout 1h comment "api.openai.com", 192.0.2.2 . 443 timeout 1d comment "eu.api.openai.com" } }
    set pins6 { type ipv6_addr; flags timeout; counter; elements = { 2001:db8::1 timeout 1h comment "api.openai.com" } }
    set ports { type inet_service; flags interval; elements = { 22, 8000-8080, 65535 } }
    set quarantined { type uid; size 1000; flags dynamic,timeout; }
    set ranges { type ipv4_addr . inet_service; flags interval; elements = { 192.0.2.0/24 . 8000-8080 comment "pair" } }
    chain input {
        type filter hook input priority filter; policy drop;
        iif 1 accept comment "loopback"
        meta mark & 0x0 @marks accept
        ct state established accept comment "established"
        meta nfproto ipv6 meta l4proto ipv6-icmp icmpv6 type @control6 accept
        meta nfproto ipv4 udp sport 67 udp dport 68 accept
        ip saddr @nets tcp dport @ports accept
        ip6 saddr @nets6 accept
        tcp flags & syn == 0 drop
        goto refuse
    }
    chain forward {
        type filter hook forward priority -10; policy drop;
        ct state established,related accept
        meta l4proto tcp ct status dnat ct original proto-dst 443 ct direction original accept
        ct mark 7 accept
        jump outbound
    }
    chain output {
        type filter hook output priority filter; policy accept;
        oif 1 accept
        oifname "eth0" accept
        iifname != "veth*" accept
        meta skuid @quarantined drop
        socket cgroupv2 level 1 "CGROUP" tcp dport 443 accept
        jump outbound
        goto refuse
    }
    chain outbound {
        meta skuid 1000 meta nfproto ipv4 meta l4proto tcp ip daddr . tcp dport @pins accept comment "residency"
        meta skuid 1000 ip6 daddr @pins6 tcp dport 443 counter accept
        meta skgid 100 ip daddr . tcp dport @ranges accept
        ip daddr 10.20.0.0/16 th dport >= 8000 th dport <= 8080 accept
        tcp dport 8000-8080 accept
        tcp dport != 1-1024 return
        ip6 daddr & ffff:: == fe80:: accept
        meta mark & 0xff == 0x45 accept
    }
    chain refuse {
        meta nfproto ipv4 update @ledger { meta skuid . ip daddr . meta l4proto . th dport timeout 1d }
        meta nfproto ipv6 update @ledger6 { meta skuid . ip6 daddr . meta l4proto . th dport timeout 1d counter }
        update @over { meta skuid limit rate over 20/minute burst 20 packets } update @quarantined { meta skuid timeout 1h }
        limit rate 10/second burst 50 packets log prefix "egressguard refuse " group 47 snaplen 128 queue-threshold 16
        meta l4proto tcp reject with tcp reset
        reject with icmpx admin-prohibited
    }
}
"#;

#[test]
fn what_nft_loads_and_what_is_committed_are_the_same_to_both() {
    // nft wants the path of a control group that is there, and looks for it below /sys/fs/cgroup only.
    let groups = std::fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten();
    let group = groups.filter(|entry| entry.path().is_dir()).map(|entry| entry.file_name().to_string_lossy().into_owned()).min();
    let without_group = |line: &&str| group.is_some() || !line.contains("CGROUP");
    let text: Vec<String> =
        WIDE.lines().filter(without_group).map(|line| line.replace("CGROUP", group.as_deref().unwrap_or_default())).collect();
    let text = text.join("\n");
    let from_text = netns::in_fresh_netns(|| {
        nft(&["-f", "-"], &text)?;
        Some((real_kernel().see().unwrap(), nft(&["-s", "list", "table", "inet", "egressguard"], "")?))
    });
    let Some(Some((meant, meant_text))) = from_text else { return };
    assert_eq!(meant.foreign, Vec::<String>::new());
    let foreign =
        |(_, rules): &(ChainDef, Vec<RuleProgram>)| rules.iter().any(|rule| rule.exprs.iter().any(|expr| matches!(expr, Expr::Foreign(_))));
    assert!(!meant.chains.iter().any(foreign), "{meant:#?}");
    assert!(meant.sets.values().all(|(set, _)| set.foreign.is_none() && set.key.iter().all(|key| !matches!(key, KeyType::Foreign { .. }))));

    netns::in_fresh_netns(|| {
        let mut world = real_kernel();
        world.put(&ops_of(&meant));
        assert_eq!(timeless(world.see().unwrap()), timeless(meant.clone()));
        assert_eq!(nft(&["-s", "list", "table", "inet", "egressguard"], "").unwrap(), meant_text);
        println!("{meant_text}");
    });

    let mut simulated = World::Simulated(Simulated::new());
    simulated.put(&ops_of(&meant));
    assert_eq!(timeless(simulated.see().unwrap()), timeless(meant));
}

/// A rule that is not ours in nft's words, and the expression that must be seen as foreign.
const FOREIGN_RULES: [(&str, &str); 22] = [
    ("fib daddr type local accept", "fib"),
    ("meta mark set 7", "meta"),
    ("ct mark set 7", "ct"),
    ("ip ttl set 7", "payload"),
    ("meta mark set meta mark << 1", "bitwise"),
    ("log prefix \"x\" level info", "log"),
    ("log flags all", "log"),
    ("log", "log"),
    ("quota over 10 mbytes drop", "quota"),
    ("ct count over 10 drop", "connlimit"),
    ("ip daddr vmap { 10.0.0.1 : drop }", "lookup"),
    ("tcp dport map { 80 : 1 } 1", "lookup"),
    ("socket transparent 1 accept", "socket"),
    ("tcp option maxseg size 1200 accept", "exthdr"),
    ("notrack", "notrack"),
    ("numgen inc mod 2 0 drop", "numgen"),
    ("counter name \"objref\" drop", "objref"),
    ("update @dynamics { ip saddr quota over 10 bytes }", "quota"),
    ("meta time > \"2024-01-01 00:00:00\" drop", "byteorder"),
    ("jhash ip saddr mod 2 0 drop", "hash"),
    ("rt nexthop 10.0.0.1 drop", "rt"),
    ("dup to 10.0.0.1", "dup"),
];

#[test]
fn what_is_not_understood_is_seen_as_foreign() {
    netns::in_fresh_netns(|| {
        let prelude = "table inet egressguard {
            counter objref {
            }
            set dynamics { type ipv4_addr; size 10; flags dynamic; }
            map verdicts { type ipv4_addr : verdict; elements = { 10.0.0.1 : drop } }
            set marked { type ipv4_addr; flags timeout; timeout 1h; policy memory; gc-interval 10s; }
            set limited { type ipv4_addr; limit rate 5/second; }
            set odd { typeof osf name; }
            chain c { type filter hook prerouting priority raw; }
            }";
        if nft(&["-f", "-"], prelude).is_none() {
            return;
        }
        let mut world = real_kernel();
        let plain = world.see().unwrap();
        assert_eq!(plain.foreign, ["counter `objref`"]);
        let words = |name: &str| plain.sets[name].0.foreign.clone().unwrap_or_default();
        assert_eq!(words("verdicts"), "a map, data");
        assert_eq!(words("marked"), "a default timeout, a collection interval, a policy of memory");
        assert_eq!(words("limited"), "statements on each element");
        assert_eq!(words("dynamics"), "");
        assert!(matches!(plain.sets["odd"].0.key[..], [KeyType::Foreign { octets: 16, .. }]), "{:?}", plain.sets["odd"].0);
        let mut loaded = 0;
        for (text, name) in FOREIGN_RULES {
            // Not every kernel and nft has every expression; one that cannot be loaded cannot be met either.
            let line = format!("flush chain inet egressguard c; add rule inet egressguard c {text}");
            if !Command::new("nft").arg(&line).stderr(Stdio::null()).status().unwrap().success() {
                println!("not loaded: {text}");
                continue;
            }
            loaded += 1;
            let dump = world.see().unwrap();
            let exprs: Vec<&Expr> = dump.chains[0].1[0].exprs.iter().collect();
            let is_foreign = |expr: &Expr| match expr {
                Expr::Foreign(found) => found == name,
                Expr::Update { element, .. } => element.contains(&Expr::Foreign(name.into())),
                _ => false,
            };
            assert!(exprs.iter().any(|expr| is_foreign(expr)), "{text}: {exprs:?}");
        }
        assert!(loaded >= 12, "only {loaded} of the foreign rules could be loaded");
        nft(&["-f", "-"], "add chain inet egressguard d\nadd rule inet egressguard d tcp dport { 80, 443 } accept");
        let dump = world.see().unwrap();
        let anonymous: Vec<_> = dump.sets.values().filter(|(set, _)| set.foreign.as_deref() == Some("anonymous, constant")).collect();
        assert!(anonymous.len() == 1 && anonymous[0].1.len() == 2, "{anonymous:?}");
    });
}

#[test]
fn other_tables_are_neither_seen_nor_touched() {
    netns::in_fresh_netns(|| {
        let theirs = "
            table ip egressguard {
                set s { type mark; }
                chain c { type filter hook input priority 0; accept; }
            }
            table inet other {
                counter k {
                }
                set s { type mark; elements = { 1 }; }
                chain c { counter; }
            }";
        if nft(&["-f", "-"], theirs).is_none() {
            return;
        }
        let before = nft(&["list", "ruleset"], "").unwrap();
        let mut world = real_kernel();
        assert_eq!(world.see(), None);
        round_trip(&mut world, &[table(), chain("c"), rule("c", "", [Expr::Counter])]);
        world.put(&[Op::DeleteTable]);
        assert_eq!(nft(&["list", "ruleset"], "").unwrap(), before);
    });
}

#[test]
fn without_the_right_to_it_nothing_is_read_or_changed() {
    netns::in_fresh_netns(|| {
        // SAFETY: the raw call changes the user of this thread only, which ends with this test; it takes three numbers.
        let result = unsafe { libc::syscall(libc::SYS_setresuid, 65_534, 65_534, 65_534) };
        assert_eq!(result, 0);
        let mut kernel = NfTables::open().unwrap();
        assert!(matches!(kernel.generation(), Err(KernelError::NotPermitted)));
        assert!(matches!(kernel.observe(Depth::Rules), Err(KernelError::NotPermitted)));
        assert!(matches!(kernel.commit(GenerationId(1), &[table()]), Err(KernelError::NotPermitted)));
    });
}

#[test]
fn a_busy_packet_filter_is_read_as_of_one_generation() {
    netns::in_fresh_netns(|| {
        let pins = SetDef::plain("pins", [KeyType::Ipv4Addr]);
        let mut world = real_kernel();
        world.put(&[table(), Op::AddSet(pins.clone()), chain("c")]);
        let netns = std::fs::File::open("/proc/thread-self/ns/net").unwrap();
        let stop = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                nix::sched::setns(&netns, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
                let mut other = real_kernel();
                let mut round = 0u32;
                // Rules and elements always change together, so that a torn reading would show.
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    round += 1;
                    other.put(&[
                        rule("c", &round.to_string(), [Expr::Counter]),
                        add(&pins, [(round.to_be_bytes().to_vec(), Element::default())]),
                    ]);
                    std::thread::sleep(Duration::from_micros(500));
                }
            });
            for _ in 0..50 {
                if let Ok((_, Some(dump))) = world.kernel().observe(Depth::Everything) {
                    assert_eq!(dump.chains[0].1.len(), dump.sets["pins"].1.len());
                }
            }
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
        });
    });
}

#[test]
fn releasing_the_kernel_closes_it_and_leaves_what_was_committed() {
    netns::in_fresh_netns(|| {
        let World::Real(mut kernel) = real_kernel() else { unreachable!("it is real") };
        let generation = kernel.generation().unwrap();
        let generation = kernel.commit(generation, &[table(), chain("old")]).unwrap();
        kernel.commit(generation, &[Op::DeleteChain("old".into()), chain("new")]).unwrap();
        let began = Instant::now();
        kernel.release();
        println!("released in {:?}", began.elapsed());
        assert_eq!(real_kernel().see(), Some(expected(&[table(), chain("new")])));
    });
}

/// The kernel makes the hash of a set that has grown larger on its own time: a dump right after the transaction meets it at work.
#[test]
fn a_hundred_thousand_elements_are_all_there_right_after_they_were_loaded() {
    netns::in_fresh_netns(|| {
        let mut kernel = real_kernel();
        // The second is read beside the first, which is large.
        let sets = ["more", "pins"].map(|name| SetDef { timeout: true, counter: true, ..SetDef::plain(name, [KeyType::Ipv4Addr]) });
        let pin = |number: u32| ((0x1400_0000 + number).to_be_bytes().to_vec(), Element { comment: "n".into(), ..Element::default() });
        let filled = sets.iter().map(|set| add(set, (0..100_000).map(pin)));
        let ops: Vec<Op> = [table()].into_iter().chain(sets.iter().cloned().map(Op::AddSet)).chain(filled).collect();
        kernel.put(&ops);
        let (_, there) = kernel.kernel().observe(Depth::Pins).unwrap();
        let there = there.unwrap();
        assert_eq!(sets.map(|set| there.sets[&set.name].1.len()), [100_000, 100_000]);
    });
}
