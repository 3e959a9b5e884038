//! Stories of hosts without nf_tables: `apply --backend iptables` and what follows it, with both programs that are called iptables.

mod namespace;
mod support;

use std::collections::BTreeSet;
use std::io::ErrorKind;

use namespace::iptables::{Programs, Variant};
use support::kernel::cgroup_v2;
use support::stream::Stream;
use support::{API, API_V4, API_V6, LATER_V4, LATER_V6, NEIGHBOUR_V4, Output, STRANGER_V4, STRANGER_V6, Side, World, is_refused, passes};

const DEFAULT: &[&str] = &["apply", "--backend", "iptables", "builtin:openai"];

/// A world with one of the programs.
struct Host {
    world: World,
    programs: Programs,
    path: String,
}

impl Host {
    /// One for each program that is here.
    fn each(story: impl Fn(&mut Host)) {
        for variant in Variant::BOTH {
            let (Some(programs), Some(world)) = (Programs::find(variant), World::new()) else { continue };
            let path = format!("PATH={}:/usr/sbin:/usr/bin:/sbin:/bin", programs.path().display());
            println!("by iptables {variant:?}");
            story(&mut Host { world, programs, path });
        }
    }

    /// Runs the program, which finds this iptables first.
    fn egressguard(&self, arguments: &[&str]) -> Output {
        self.world.egressguard_through(&["env", &self.path], arguments)
    }

    /// Runs a shell script on the host with this iptables; panics when it fails.
    #[track_caller]
    fn sh(&self, script: &str) -> String {
        self.world.within(Side::Host, || self.programs.sh(script)).unwrap_or_else(|why| panic!("{script}: {why}"))
    }

    /// Everything of ours, without what packets and time make of it.
    fn held(&self) -> BTreeSet<String> {
        let all = self.sh("iptables-save -t filter; ip6tables-save -t filter | sed 's/$/ (IPv6)/'; ipset save");
        let ours = all.lines().filter(|line| line.contains("EGRESSGUARD-") && !line.starts_with("add EGRESSGUARD-ledger"));
        let timeless = |line: &str| line.split(" timeout ").next().unwrap_or_default().split(" initval").next().map(str::to_string);
        ours.filter_map(timeless).collect()
    }

    /// Panics unless what is held is just this.
    #[track_caller]
    fn holds(&self, meant: &BTreeSet<String>) {
        let held = self.held();
        let differences: Vec<&String> = held.symmetric_difference(meant).collect();
        assert!(differences.is_empty(), "{differences:#?}");
    }
}

#[test]
fn the_policy_holds_in_both_families_and_is_saved_shown_and_removed() {
    Host::each(|host| {
        host.egressguard(&["apply", "--dry-run", "--backend", "iptables", "builtin:openai"]).exits(1).says(&["would apply", API_V4]);
        assert!(host.held().is_empty(), "a dry run changes nothing");
        host.egressguard(DEFAULT).exits(0).says(&["by iptables", "generation 1", API_V4, API_V6, "weaker"]);
        for (open, closed) in [(API_V4, STRANGER_V4), (API_V6, STRANGER_V6)] {
            passes(host.world.tls(open));
            is_refused(host.world.tcp(closed, 443));
            is_refused(host.world.udp(closed, 443));
        }
        is_refused(host.world.tcp(NEIGHBOUR_V4, 443));
        assert_eq!(host.world.rules(), None, "no rule of nftables was loaded");
        let held = host.held();
        host.egressguard(&["apply", "builtin:openai"]).exits(0).says(&["unchanged", "iptables"]);
        host.holds(&held);
        let status = host.egressguard(&["status"]).exits(0).says(&["openai (generation 1, enforce)", "backend     iptables", API_V4]);
        assert!(!status.stdout.contains("missing"), "{}", status.stdout);
        host.egressguard(&["status", "--json"]).exits(0).says(&["\"backend\": \"iptables\"", "\"active\": true"]);
        host.egressguard(&["diff", "builtin:lockdown"]).exits(3).says(&["held by iptables"]);
        host.egressguard(&["explain", "--live", "tcp", "to", "192.0.2.1:443"]).exits(3).says(&["held by iptables"]);
        host.egressguard(&["remove", "--yes"]).exits(0).says(&["removed", "iptables"]);
        assert!(host.held().is_empty(), "{:?}", host.held());
        passes(host.world.tcp(STRANGER_V4, 443));
        host.egressguard(&["restore"]).exits(0).says(&["removed"]);
        assert!(host.held().is_empty());
    });
}

#[test]
fn a_stream_that_the_new_policy_forbids_ends_with_the_apply() {
    Host::each(|host| {
        let to = |address: &str| {
            host.world.policy(&format!("version: 1\ninbound: {{port: 443}}\noutbound:\n  - {{to: {address}, port: 7777, protocol: tcp}}\n"))
        };
        host.egressguard(&["apply", "--backend", "iptables", &to(STRANGER_V4)]).exits(0);
        let stream = Stream::open(&host.world, Side::Host, Side::Net, STRANGER_V4, 7777);
        host.egressguard(&["refresh"]).exits(0);
        stream.goes_on();
        host.egressguard(&["apply", &to(API_V4)]).exits(0).says(&["revoked 1 flow (1 socket closed)"]);
        assert_eq!(stream.error(), ErrorKind::ConnectionAborted);
        host.egressguard(&["apply", &to(API_V4), "--json"]).exits(0).says(&["\"revoked\": null"]);
    });
}

#[test]
fn a_rotation_changes_sets_and_no_rule_and_forgets_no_count() {
    Host::each(|host| {
        host.egressguard(DEFAULT).exits(0);
        passes(host.world.tls(API_V4));
        host.egressguard(&["refresh"]).exits(0).says(&["unchanged"]);
        host.world.nameserver.set(API, &[LATER_V4, LATER_V6]).unwrap();
        is_refused(host.world.tls(LATER_V4));
        let rules = host.sh("iptables-save -t filter | grep '^-A'; ip6tables-save -t filter | grep '^-A'");
        std::thread::sleep(std::time::Duration::from_millis(1100));
        host.egressguard(&["refresh"]).exits(0).says(&["refreshed the pins", LATER_V4, LATER_V6]);
        for address in [LATER_V4, LATER_V6, API_V4, API_V6] {
            passes(host.world.tls(address));
        }
        assert_eq!(host.sh("iptables-save -t filter | grep '^-A'; ip6tables-save -t filter | grep '^-A'"), rules);
        let elements = host.sh(&format!("ipset save | grep ' {API_V4} '"));
        let packets: u64 = elements.split("packets ").nth(1).and_then(|rest| rest.split(' ').next()?.parse().ok()).unwrap_or(0);
        assert!(packets >= 2, "{elements}");
    });
}

#[test]
fn drift_is_named_and_mended_only_when_that_is_asked_for() {
    Host::each(|host| {
        host.egressguard(DEFAULT).exits(0);
        let meant = host.held();
        for (harm, words) in [
            ("iptables -I OUTPUT 1 -j ACCEPT", "the first rule of OUTPUT"),
            ("ip6tables -D INPUT -j EGRESSGUARD-input", "the first rule of INPUT"),
            ("ip6tables -F EGRESSGUARD-output", "chain `EGRESSGUARD-output` differs"),
            ("iptables -I EGRESSGUARD-refuse_user 1 -j ACCEPT", "chain `EGRESSGUARD-refuse_user` differs"),
            ("iptables -N EGRESSGUARD-more", "chain `EGRESSGUARD-more` is not meant"),
        ] {
            host.sh(harm);
            host.egressguard(&["status"]).exits(1).says(&["drift", words]);
            host.egressguard(&["verify"]).exits(1).says(&["differs", words]);
            host.egressguard(&["refresh"]).exits(1).says(&["drift", words, "--repair"]);
            host.egressguard(&["refresh", "--repair"]).exits(0);
            println!("after `{harm}`");
            host.holds(&meant);
            host.egressguard(&["verify"]).exits(0).says(&["same"]);
            host.sh("iptables -D OUTPUT -j ACCEPT || :");
        }
        // A set into which no rule looks is cleared away.
        host.sh("ipset create EGRESSGUARD-more hash:ip");
        host.egressguard(&["status"]).exits(1).says(&["set `EGRESSGUARD-more` is not meant"]);
        host.egressguard(&["refresh"]).exits(0);
        host.holds(&meant);
        // An address that somebody slipped in is no rule, and goes without being asked for.
        let set = host.sh("ipset list -n | grep EGRESSGUARD-tcp_443_v4");
        host.sh(&format!("ipset add {} {STRANGER_V4}", set.trim()));
        passes(host.world.tcp(STRANGER_V4, 443));
        host.egressguard(&["status"]).exits(1).says(&[STRANGER_V4, "is not meant"]);
        host.egressguard(&["refresh"]).exits(0).says(&[&format!("- {STRANGER_V4}")]);
        is_refused(host.world.tcp(STRANGER_V4, 443));
    });
}

#[test]
fn a_boot_loads_the_last_good_policy_without_dns() {
    Host::each(|host| {
        host.egressguard(DEFAULT).exits(0);
        let held = host.held();
        host.sh("iptables -F; iptables -X; ip6tables -F; ip6tables -X; ipset destroy");
        host.world.nameserver.kill();
        passes(host.world.tcp(STRANGER_V4, 443));
        host.egressguard(&["restore"]).exits(0).says(&["restored", "openai"]);
        host.holds(&held);
        is_refused(host.world.tcp(STRANGER_V4, 443));
        passes(host.world.tls(API_V4));
        host.egressguard(&["restore"]).exits(0).says(&["unchanged"]);
    });
}

#[test]
fn another_policy_takes_the_place_of_the_first_and_other_peoples_rules_stay() {
    Host::each(|host| {
        let theirs =
            "iptables -N theirs; iptables -A theirs -d 192.0.2.66 -j DROP; iptables -A OUTPUT -j theirs; ipset create theirs hash:ip";
        host.sh(theirs);
        host.egressguard(DEFAULT).exits(0);
        let policy = host.world.policy(&format!("version: 1\noutbound: [{{to: {STRANGER_V4}, port: 4444}}]\n"));
        host.egressguard(&["apply", &policy]).exits(0).says(&["generation 2"]);
        passes(host.world.tcp(STRANGER_V4, 4444));
        is_refused(host.world.tls(API_V4));
        let left: Vec<String> = host.held().into_iter().filter(|line| line.contains("tcp_443")).collect();
        assert!(left.is_empty(), "sets of the first policy are gone: {left:#?}");
        host.egressguard(&["remove", "--yes"]).exits(0);
        let rest = host.sh("iptables -S; ipset list -n");
        assert!(rest.contains("-A OUTPUT -j theirs") && rest.contains("-A theirs -d 192.0.2.66/32 -j DROP") && rest.ends_with("theirs\n"));
    });
}

#[test]
fn a_host_can_move_to_iptables_and_back_and_is_never_open() {
    Host::each(|host| {
        host.egressguard(&["apply", "builtin:openai"]).exits(0);
        assert!(host.world.rules().is_some() && host.held().is_empty());
        host.egressguard(DEFAULT).exits(0).says(&["generation 2"]);
        assert!(host.world.rules().is_none() && !host.held().is_empty());
        is_refused(host.world.tcp(STRANGER_V4, 443));
        host.egressguard(&["apply", "--backend", "nftables", "builtin:openai"]).exits(0).says(&["generation 3"]);
        assert!(host.world.rules().is_some() && host.held().is_empty(), "{:?}", host.held());
        is_refused(host.world.tcp(STRANGER_V4, 443));
        host.egressguard(&["refresh"]).exits(0).says(&["unchanged"]);
    });
}

#[test]
fn a_host_is_cut_off_by_iptables_too_and_moves_back_cut_off() {
    Host::each(|host| {
        host.egressguard(DEFAULT).exits(0);
        host.egressguard(&["quarantine"]).exits(0).says(&["cut off since"]);
        is_refused(host.world.tls(API_V4));
        host.egressguard(&["status"]).says(&["quarantined the whole host, since"]);
        host.egressguard(&["refresh", "--repair"]).exits(0);
        host.egressguard(&["apply", "--backend", "nftables", "builtin:openai"]).exits(0).says(&["cut off and stays so"]);
        assert!(host.world.rules().is_some() && host.held().is_empty(), "{:?}", host.held());
        is_refused(host.world.tls(API_V4));
        host.egressguard(&["quarantine", "--release"]).exits(0).says(&["released"]);
        passes(host.world.tls(API_V4));
        host.egressguard(DEFAULT).exits(0);
        host.egressguard(&["quarantine"]).exits(0);
        host.egressguard(&["quarantine", "--release"]).exits(0).says(&["released"]);
        passes(host.world.tls(API_V4));
    });
}

#[test]
fn what_cannot_be_said_is_an_error_at_its_line_and_changes_nothing() {
    Host::each(|host| {
        let policy = "version: 1\noutbound: [{to: 192.0.2.1, port: 443}]\nviolations:\n  quarantine: {after: 20, within: 1m, for: 1h, scope: user}\n";
        let path = host.world.policy(policy);
        for arguments in [&["apply", "--backend", "iptables", &path][..], &["render", "--format", "iptables", &path]] {
            host.egressguard(arguments).exits(2).says(&["policy.yaml:4:3", "quarantine of single users", "^^^^", "scope: host"]);
        }
        assert!(host.held().is_empty());
    });
}

#[test]
fn a_program_that_is_missing_is_named_with_its_package() {
    let Some(world) = World::new() else { return };
    let hidden = ["unshare", "--mount", "sh", "-c", "mount -t tmpfs tmpfs /usr/sbin; exec \"$@\"", "sh"];
    world.egressguard_through(&hidden, DEFAULT).exits(3).says(&["iptables-save` is not installed", "install the package `iptables`"]);
}

/// Makes one of the programs do something else whenever it would change something.
fn break_program(host: &Host, program: &str, instead: &str) {
    let path = host.programs.path().join(program);
    let real = std::fs::canonicalize(&path).unwrap();
    let copy = host.programs.path().join("real").join(program);
    std::fs::create_dir_all(copy.parent().unwrap()).unwrap();
    std::os::unix::fs::symlink(real, &copy).unwrap();
    std::fs::remove_file(&path).unwrap();
    let script = format!("#!/bin/sh\ncase \"$*\" in *--test*) exec {} \"$@\" ;; esac\n{instead}\nexit 4\n", copy.display());
    std::fs::write(&path, script).unwrap();
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
}

#[test]
fn when_one_family_cannot_be_loaded_the_other_goes_back() {
    Host::each(|host| {
        host.egressguard(DEFAULT).exits(0);
        let held = host.held();
        break_program(host, "iptables-restore", "echo 'no such luck' >&2");
        let policy = host.world.policy(&format!("version: 1\noutbound: [{{to: [{STRANGER_V4}, \"{STRANGER_V6}\"], port: 443}}]\n"));
        host.egressguard(&["apply", &policy]).exits(3).says(&["no such luck", "loaded again"]);
        is_refused(host.world.tcp(STRANGER_V6, 443));
        passes(host.world.tls(API_V6));
        let rules = |held: BTreeSet<String>| held.into_iter().filter(|line| line.starts_with("-A")).collect::<BTreeSet<_>>();
        let (now, before) = (rules(host.held()), rules(held));
        assert!(now == before, "{:#?}", now.symmetric_difference(&before).collect::<Vec<_>>());
        host.egressguard(&["status"]).says(&["openai (generation 1"]);
    });
}

#[test]
fn an_apply_that_is_killed_between_the_families_is_finished_by_the_next_refresh() {
    Host::each(|host| {
        host.egressguard(DEFAULT).exits(0);
        let policy = host.world.policy(&format!("version: 1\noutbound: [{{to: [{STRANGER_V4}, \"{STRANGER_V6}\"], port: 443}}]\n"));
        let real = std::fs::read_link(host.programs.path().join("iptables-restore")).unwrap();
        break_program(host, "iptables-restore", "kill -9 $PPID");
        assert_eq!(host.egressguard(&["apply", &policy]).code, -1, "it was killed");
        // Each family has one of the two, and neither is open.
        passes(host.world.tcp(STRANGER_V6, 443));
        is_refused(host.world.tcp(STRANGER_V4, 443));
        passes(host.world.tls(API_V4));
        is_refused(host.world.tls(API_V6));
        host.egressguard(&["status"]).exits(1).says(&["drift"]);
        std::fs::remove_file(host.programs.path().join("iptables-restore")).unwrap();
        std::os::unix::fs::symlink(real, host.programs.path().join("iptables-restore")).unwrap();
        host.egressguard(&["refresh"]).exits(0).says(&["an interrupted apply is finished", "generation 2"]);
        passes(host.world.tcp(STRANGER_V4, 443));
        is_refused(host.world.tls(API_V4));
        host.egressguard(&["status"]).exits(0).says(&["generation 2"]);
    });
}

#[test]
fn a_service_is_told_by_its_control_group_and_a_restart_changes_the_rules() {
    let Some(root) = cgroup_v2() else { return println!("skipped: cgroup v2 is not mounted, or cannot be written") };
    Host::each(|host| {
        let name = format!("eg-test-{}.service", std::process::id());
        let (slice, group) = (root.join("system.slice"), root.join("system.slice").join(&name));
        let was_there = slice.exists();
        std::fs::create_dir_all(&group).expect("a control group");
        let policy =
            host.world.policy(&format!("version: 1\noutbound:\n  - to: {STRANGER_V4}\n    port: 4444\n    for: {{service: {name}}}\n"));
        let connects = |inside: bool| {
            let mut child = host.world.connects_when_told(STRANGER_V4, 4444);
            if inside {
                std::fs::write(group.join("cgroup.procs"), child.id().to_string()).expect("a process can be moved");
            }
            drop(child.stdin.take());
            child.wait().expect("it ends").success()
        };
        let again = || {
            std::fs::remove_dir(&group).expect("nobody is left in it");
            std::fs::create_dir(&group).expect("a control group");
        };
        let applied = host.egressguard(&["apply", "--backend", "iptables", &policy]);
        let before = [connects(true), connects(false)];
        again();
        let dead = connects(true);
        let refreshed = host.egressguard(&["refresh"]);
        let after = [connects(true), connects(false)];
        let _ = std::fs::remove_dir(&group);
        if !was_there {
            let _ = std::fs::remove_dir(&slice);
        }
        applied.exits(0);
        refreshed.exits(0).says(&["rules of iptables"]);
        assert_eq!((before, dead, after), ([true, false], false, [true, false]));
    });
}
