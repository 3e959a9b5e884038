//! The shipped systemd units: that systemd understands them, that they are as tight as they say, that the commands run in what
//! they leave, and that they cannot open the host. No unit is started; systemd's own analyser reads copies in which
//! `@sbindir@` is filled in.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const RESTORE: &str = "egressguard-restore.service";
const REFRESH: &str = "egressguard-refresh.service";
const TIMER: &str = "egressguard-refresh.timer";
const WATCH: &str = "egressguard-watch.service";

/// What both services say word for word, and what each line is worth is said in the units.
const HARDENING: &[&str] = &[
    "AmbientCapabilities=",
    "CapabilityBoundingSet=CAP_NET_ADMIN",
    "KeyringMode=private",
    "LockPersonality=yes",
    "MemoryDenyWriteExecute=yes",
    "NoNewPrivileges=yes",
    "PrivateDevices=yes",
    "PrivateIPC=yes",
    "PrivateMounts=yes",
    "ProtectClock=yes",
    "ProtectControlGroups=yes",
    "ProtectHome=yes",
    "ProtectHostname=yes",
    "ProtectKernelLogs=yes",
    "ProtectKernelModules=yes",
    "ProtectKernelTunables=yes",
    "ProtectProc=invisible",
    "ProtectSystem=strict",
    "RestrictNamespaces=yes",
    "RestrictRealtime=yes",
    "RestrictSUIDSGID=yes",
    "StateDirectory=egressguard",
    "SystemCallArchitectures=native",
    "SystemCallErrorNumber=EPERM",
    "SystemCallFilter=@system-service",
    "SystemCallFilter=~@privileged @resources",
    "UMask=0077",
];

/// The settings of a unit in the order of the file: section, key, value.
struct Unit(Vec<(String, String, String)>);

impl Unit {
    fn shipped(name: &str) -> Unit {
        let mut section = String::new();
        let mut settings = Vec::new();
        for line in source(name).lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
            assert!(!line.ends_with('\\'), "{name}: a continued line would not be read here: {line}");
            if let Some(header) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
                section = header.to_string();
            } else {
                let (key, value) = line.split_once('=').unwrap_or_else(|| panic!("{name}: not a setting: {line}"));
                settings.push((section.clone(), key.to_string(), value.to_string()));
            }
        }
        Unit(settings)
    }

    /// Every value of a setting.
    fn values(&self, section: &str, key: &str) -> Vec<&str> {
        self.0.iter().filter(|(s, k, _)| s == section && k == key).map(|(_, _, value)| value.as_str()).collect()
    }

    /// Every word of every value of a setting: `Before=a b` and `Before=a`, `Before=b` are the same.
    fn words(&self, section: &str, key: &str) -> Vec<&str> {
        self.values(section, key).iter().flat_map(|value| value.split_whitespace()).collect()
    }

    fn names(&self, key: &str) -> bool {
        self.0.iter().any(|(_, k, _)| k == key)
    }
}

fn source(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("systemd").join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// A unit directory with all units filled in as scripts/install does it, and wired as `systemctl enable` does it.
fn enabled_units() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let binary = PathBuf::from(env!("CARGO_BIN_EXE_egressguard"));
    let bindir = binary.parent().unwrap().to_str().unwrap();
    for name in [RESTORE, REFRESH, TIMER, WATCH] {
        fs::write(dir.path().join(name), source(name).replace("@sbindir@", bindir)).unwrap();
        let unit = Unit::shipped(name);
        for (key, suffix) in [("WantedBy", "wants"), ("RequiredBy", "requires")] {
            for puller in unit.words("Install", key) {
                let wire = dir.path().join(format!("{puller}.{suffix}"));
                fs::create_dir_all(&wire).unwrap();
                symlink(dir.path().join(name), wire.join(name)).unwrap();
            }
        }
    }
    dir
}

/// Runs systemd-analyze; `None`, with a line that says so, where it is missing and nobody asked for certainty.
fn analyze(units: &Path, args: &[&str]) -> Option<Output> {
    // The empty last entry stands for systemd's own directories.
    match Command::new("systemd-analyze").args(args).env("SYSTEMD_UNIT_PATH", format!("{}:", units.display())).output() {
        Ok(output) => Some(output),
        Err(error) if std::env::var_os("EGRESSGUARD_REQUIRE_KERNEL").is_none() => {
            eprintln!("skipped: systemd-analyze: {error}");
            None
        }
        Err(error) => panic!("systemd-analyze: {error}; install the package `systemd`"),
    }
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
fn systemd_has_nothing_to_say_about_any_unit() {
    let units = enabled_units();
    for name in [RESTORE, REFRESH, TIMER, WATCH] {
        let path = units.path().join(name);
        let Some(output) = analyze(units.path(), &["verify", "--man=no", path.to_str().unwrap()]) else { return };
        assert!(output.status.success(), "{name}: {}", said(&output));
        assert!(!said(&output).contains("egressguard"), "{name}: {}", said(&output));
    }
}

#[test]
fn a_boot_with_the_units_enabled_has_no_ordering_cycle() {
    let units = enabled_units();
    // networkd is not enabled on every machine; the boot that matters is one with a network manager.
    let networkd = Path::new("/lib/systemd/system/systemd-networkd.service");
    if networkd.exists() {
        let wants = units.path().join("multi-user.target.wants");
        fs::create_dir_all(&wants).unwrap();
        symlink(networkd, wants.join("systemd-networkd.service")).unwrap();
    }
    let Some(output) = analyze(units.path(), &["verify", "--man=no", "multi-user.target"]) else { return };
    let text = said(&output);
    assert!(!text.contains("ordering cycle") && !text.contains("egressguard"), "{text}");
}

/// Measured with systemd 252: restore 1.4, refresh 1.8 of 10. What is left is what the work needs: root, netlink,
/// CAP_NET_ADMIN, the host's own network and users, and for refresh the Internet protocols. watch 2.3: it is not root, and has
/// three capabilities more, to look at the processes of others.
#[test]
fn the_exposure_of_each_service_stays_what_was_measured() {
    let units = enabled_units();
    for (name, threshold) in [(RESTORE, 14), (REFRESH, 18), (WATCH, 23)] {
        let path = units.path().join(name);
        let threshold = format!("--threshold={threshold}");
        let args = ["security", "--offline=true", "--no-pager", &threshold, path.to_str().unwrap()];
        let Some(output) = analyze(units.path(), &args) else { return };
        assert!(output.status.success(), "{name}: {}", said(&output));
    }
}

#[test]
fn every_hardening_directive_is_there() {
    for name in [RESTORE, REFRESH] {
        let unit = Unit::shipped(name);
        for directive in HARDENING {
            let (key, value) = directive.split_once('=').unwrap();
            assert!(unit.values("Service", key).contains(&value), "{name} lacks {directive}");
        }
        assert_eq!(unit.values("Service", "CapabilityBoundingSet"), ["CAP_NET_ADMIN"], "{name}");
    }
    let families = |name| Unit::shipped(name).values("Service", "RestrictAddressFamilies").join(" ");
    assert_eq!(families(RESTORE), "AF_NETLINK AF_UNIX");
    assert_eq!(families(REFRESH), "AF_NETLINK AF_UNIX AF_INET AF_INET6");
    assert_eq!(Unit::shipped(RESTORE).values("Service", "IPAddressDeny"), ["any"]);
}

#[test]
fn no_directive_takes_away_what_the_rules_need() {
    // In another network namespace no packet of the host passes, in another user namespace CAP_NET_ADMIN is worth nothing, another
    // user does not own the saved rules, and without /proc/sys there is no id of the boot.
    for name in [RESTORE, REFRESH] {
        let unit = Unit::shipped(name);
        for key in [
            "PrivateNetwork",
            "NetworkNamespacePath",
            "JoinsNamespaceOf",
            "PrivateUsers",
            "DynamicUser",
            "User",
            "RootDirectory",
            "ProcSubset",
        ] {
            assert!(!unit.names(key), "{name} sets {key}");
        }
    }
}

#[test]
fn restore_comes_before_every_network() {
    let unit = Unit::shipped(RESTORE);
    assert_eq!(unit.values("Unit", "DefaultDependencies"), ["no"]);
    assert!(unit.words("Unit", "Before").contains(&"network-pre.target"));
    assert!(unit.words("Unit", "Wants").contains(&"network-pre.target"));
    assert_eq!(unit.words("Install", "WantedBy"), ["sysinit.target"]);
    let waits_for = ["sysinit.target", "basic.target", "network.target", "network-online.target", "local-fs.target"];
    for late in unit.words("Unit", "After") {
        assert!(!waits_for.contains(&late), "restore waits for {late}");
    }
}

#[test]
fn no_network_manager_starts_without_the_rules() {
    let pullers = Unit::shipped(RESTORE);
    for manager in ["systemd-networkd.service", "NetworkManager.service", "networking.service", "dhcpcd.service"] {
        assert!(pullers.words("Install", "RequiredBy").contains(&manager), "{manager}");
    }
}

#[test]
fn ending_restore_only_writes_down_what_was_counted_and_a_shutdown_may_end_it() {
    let unit = Unit::shipped(RESTORE);
    assert_eq!(unit.values("Service", "ExecStop"), ["@sbindir@/egressguard refresh --harvest"]);
    assert!(!unit.names("ExecStopPost") && !unit.names("ExecReload"));
    assert_eq!(unit.values("Service", "RemainAfterExit"), ["yes"]);
    assert_eq!(unit.values("Unit", "RefuseManualStop"), ["yes"]);
    assert!(unit.words("Unit", "Conflicts").contains(&"shutdown.target"));
    assert!(unit.words("Unit", "Before").contains(&"shutdown.target"));
}

#[test]
fn a_failed_restore_is_tried_again_and_calls_nothing_that_opens() {
    let unit = Unit::shipped(RESTORE);
    assert_eq!(unit.values("Service", "Restart"), ["on-failure"]);
    assert_eq!(unit.values("Unit", "StartLimitIntervalSec"), ["0"]);
    assert_eq!(unit.values("Service", "ExecStart"), ["@sbindir@/egressguard restore"]);
    for key in ["OnFailure", "FailureAction", "ExecCondition", "ExecStartPre", "ExecStartPost"] {
        assert!(!unit.names(key), "restore sets {key}");
    }
    assert!(!unit.0.iter().any(|(_, key, _)| key.starts_with("Condition") || key.starts_with("Assert")), "a skipped start counts as done");
    assert!(unit.names("TimeoutStartSec"), "a hanging start would hold logins back for ever");
}

#[test]
fn refresh_runs_every_minute_with_jitter_repairs_and_waits_for_no_network() {
    let timer = Unit::shipped(TIMER);
    assert_eq!(timer.values("Timer", "OnUnitActiveSec"), ["60s"]);
    assert!(timer.names("OnBootSec") && timer.names("RandomizedDelaySec"));
    assert_eq!(timer.values("Timer", "AccuracySec"), ["1s"]);
    assert_eq!(timer.words("Install", "WantedBy"), ["timers.target"]);
    let service = Unit::shipped(REFRESH);
    assert_eq!(service.values("Service", "Type"), ["oneshot"]);
    assert_eq!(service.values("Service", "ExecStart"), ["@sbindir@/egressguard refresh --repair"], "what others changed is put right");
    let pulls = ["After", "Wants", "Requires"].map(|key| service.words("Unit", key)).concat();
    assert_eq!(pulls, ["egressguard-restore.service"]);
}

/// What the commands do under a unit's capabilities, in a network namespace that ends with the shell. `$1` is the program, `$2` a
/// directory, `$3` the namespace that must not be touched. A policy with a name that nobody answers for makes refresh use its
/// DNS sockets too.
const SESSION: &str = r#"
[ "$(readlink /proc/self/ns/net)" != "$3" ] || exit 99
ip link set lo up
confined() {
    out=$1; shift
    setpriv --bounding-set=-all,+net_admin --inh-caps=-all --no-new-privs strace -f -o "$out" "$@"
}
confined "$2/lockdown" "$1" --state-dir "$2/state" restore || exit 10
"$1" --state-dir "$2/state" apply --force "$2/policy.yaml"; [ $? -eq 1 ] || exit 11
nft delete table inet egressguard || exit 12
confined "$2/restore" "$1" --state-dir "$2/state" restore; [ $? -eq 1 ] || exit 13
nft list table inet egressguard >/dev/null || exit 14
confined "$2/refresh" "$1" --state-dir "$2/state" refresh --repair; [ $? -eq 1 ] || exit 15
"#;

#[test]
fn the_commands_run_with_the_capability_the_calls_and_the_families_that_their_units_leave() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("state")).unwrap();
    let policy = "version: 1\ndns: {servers: [192.0.2.53]}\noutbound: [{to: api.example.org}]\n";
    fs::write(dir.path().join("policy.yaml"), policy).unwrap();
    let here = fs::read_link("/proc/self/ns/net").unwrap();

    let probe =
        |args: &[&str]| Command::new("unshare").args(args).args(["--net", "true"]).output().is_ok_and(|output| output.status.success());
    let apart: &[&str] = match [&[][..], &["--user", "--map-root-user"]].into_iter().find(|args| probe(args)) {
        Some(args) => args,
        None if std::env::var_os("EGRESSGUARD_REQUIRE_KERNEL").is_none() => {
            eprintln!("skipped: no network namespace can be made here");
            return;
        }
        None => panic!("no network namespace can be made here"),
    };
    let output = Command::new("unshare")
        .args(apart)
        .args(["--net", "sh", "-c", SESSION, "session", env!("CARGO_BIN_EXE_egressguard")])
        .args([dir.path(), &here])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}: {}", output.status, said(&output));

    let calls = |group: &str| {
        let output = analyze(dir.path(), &["syscall-filter", "--no-pager", group])?;
        Some(String::from_utf8(output.stdout).unwrap())
    };
    let Some(allowed) = expand("@system-service", &calls) else { return };
    let refused = ["@privileged", "@resources"].iter().filter_map(|group| expand(group, &calls)).flatten().collect::<BTreeSet<_>>();
    let allowed: BTreeSet<String> = allowed.union(&expand("@default", &calls).unwrap_or_default()).cloned().collect();
    for (trace, name) in [("lockdown", RESTORE), ("restore", RESTORE), ("refresh", REFRESH)] {
        let trace = fs::read_to_string(dir.path().join(trace)).unwrap();
        let lines = trace.lines().filter_map(|line| line.split_once(' ').map(|(_, rest)| rest.trim_start()));
        let made: BTreeSet<String> = lines.filter_map(|line| line.split_once('(')).map(|(call, _)| call.to_string()).collect();
        let made = made.into_iter().filter(|call| call.chars().all(|c| c.is_ascii_alphanumeric() || c == '_'));
        let wrong: Vec<String> = made.filter(|call| !allowed.contains(call) || refused.contains(call)).collect();
        assert_eq!(wrong, [] as [&str; 0], "{name}: these calls are refused by its filter");
        assert!(trace.contains(" socket(AF_NETLINK"), "{name}: the trace is not what is read here");
        let unit = Unit::shipped(name);
        let families = unit.words("Service", "RestrictAddressFamilies");
        for family in trace.split(" socket(").skip(1).filter_map(|rest| rest.split(',').next()) {
            assert!(families.contains(&family), "{name} refuses a socket of {family}");
        }
    }
}

/// The system calls of a group as `systemd-analyze syscall-filter` lists it, groups inside of it included.
fn expand(group: &str, calls: &dyn Fn(&str) -> Option<String>) -> Option<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    for line in calls(group)?.lines().skip(1).map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
        if line.starts_with('@') {
            found.extend(expand(line, calls)?);
        } else {
            found.insert(line.to_string());
        }
    }
    Some(found)
}

/// The directives of the other services that watch cannot have: what it is for is to look at processes, and it is not root.
const NOT_FOR_WATCH: &[&str] = &[
    "AmbientCapabilities=",
    "CapabilityBoundingSet=CAP_NET_ADMIN",
    "ProtectProc=invisible",
    "StateDirectory=egressguard",
    "SystemCallFilter=@system-service",
];
const RIGHTS: &str = "CAP_NET_ADMIN CAP_SYS_PTRACE CAP_DAC_READ_SEARCH CAP_PERFMON";

#[test]
fn watch_is_not_root_has_four_capabilities_and_every_other_directive() {
    let unit = Unit::shipped(WATCH);
    for directive in HARDENING.iter().filter(|directive| !NOT_FOR_WATCH.contains(directive)) {
        let (key, value) = directive.split_once('=').unwrap();
        assert!(unit.values("Service", key).contains(&value), "{WATCH} lacks {directive}");
    }
    assert_eq!(unit.values("Service", "User"), ["egressguard"]);
    assert!(source("egressguard.sysusers").lines().any(|line| line.starts_with("u egressguard - ")));
    assert_eq!(unit.values("Service", "CapabilityBoundingSet"), [RIGHTS]);
    assert_eq!(unit.values("Service", "AmbientCapabilities"), [RIGHTS]);
    // Its own directory, and not the one in which root keeps what it counted.
    assert_eq!(unit.values("Service", "StateDirectory"), ["egressguard/watch"]);
    assert!(!unit.names("ReadWritePaths"));
    for key in ["PrivateNetwork", "NetworkNamespacePath", "PrivateUsers", "DynamicUser", "ProtectProc", "ProcSubset", "RootDirectory"] {
        assert!(!unit.names(key), "{WATCH} sets {key}");
    }
}

#[test]
fn watch_is_started_again_when_it_fails_or_hangs() {
    let unit = Unit::shipped(WATCH);
    assert_eq!((unit.values("Service", "Type"), unit.values("Service", "Restart")), (vec!["notify"], vec!["on-failure"]));
    assert_eq!(unit.values("Service", "WatchdogSec"), ["30s"]);
    assert_eq!(unit.values("Service", "ExecStart"), ["@sbindir@/egressguard watch --service"]);
}

/// `watch` as its unit runs it: another user, four capabilities, a directory of its own below one that it may not enter.
const WATCHING: &str = r#"
[ "$(readlink /proc/self/ns/net)" != "$3" ] || exit 99
ip link set lo up
ip link add uplink type veth peer name nobody && ip link set uplink up && ip link set nobody up || exit 9
ip addr add 203.0.113.10/24 dev uplink && ip route add default via 203.0.113.1 || exit 9
"$1" --state-dir "$2/state" apply --force "$2/policy.yaml" || exit 10
mkdir "$2/state/watch" && chown 65534:65534 "$2/state/watch" && chmod 700 "$2/state/watch" || exit 11
[ -d /sys/kernel/tracing/events/sock ] || mount -t tracefs tracefs /sys/kernel/tracing
[ ! -d /sys/kernel/tracing/events/sock ] || touch "$2/tracer"
mkdir "$2/out" && chown 65534:65534 "$2/out" && chmod 711 "$2" || exit 12
rights=-all,+net_admin,+sys_ptrace,+dac_read_search,+perfmon
strace -f -o "$2/watch" setpriv --reuid 65534 --regid 65534 --clear-groups --no-new-privs     --bounding-set=$rights --inh-caps=$rights --ambient-caps=$rights     timeout -s TERM 5 "$1" --state-dir "$2/state" watch --service &
sleep 2
watch=$!
bash -c 'exec 3>/dev/udp/192.0.2.1/9; echo x >&3; sleep 1' 2>/dev/null
bash -c ': 3<>/dev/tcp/192.0.2.2/9; sleep 1; true' 2>/dev/null
wait $watch
"#;

#[test]
fn watch_runs_as_another_user_with_the_capabilities_the_calls_and_the_families_that_its_unit_leaves() {
    if !nix::unistd::geteuid().is_root() {
        assert!(std::env::var_os("EGRESSGUARD_REQUIRE_KERNEL").is_none(), "another user needs root");
        eprintln!("skipped: another user needs root");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("page-me");
    fs::write(&program, "#!/bin/sh\ngrep Cap /proc/self/status > \"${0%/*}/out/caps\"\n").unwrap();
    fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let outbound = "version: 1\noutbound: [{to: 198.51.100.1, port: 443}]\n";
    let policy = format!("{outbound}violations: {{alert: {{run: {}}}}}\n", program.display());
    fs::write(dir.path().join("policy.yaml"), policy).unwrap();
    let here = fs::read_link("/proc/self/ns/net").unwrap();
    let output = Command::new("unshare")
        .args(["--net", "--mount", "sh", "-c", WATCHING, "session", env!("CARGO_BIN_EXE_egressguard")])
        .args([dir.path(), &here])
        .output()
        .unwrap();
    // `timeout` ends with 124 what it had to end.
    assert_eq!(output.status.code(), Some(124), "{}", said(&output));
    let book = fs::read_to_string(dir.path().join("state/watch/watch.jsonl")).unwrap_or_else(|error| panic!("{error}: {}", said(&output)));
    assert!(book.contains("\"kind\":\"started\"") && book.contains("\"kind\":\"stopped\""), "{book}");
    // The process is root's, and so is the policy that its capabilities let it read.
    let seen = book.lines().find(|line| line.contains("192.0.2.1")).unwrap_or_else(|| panic!("{book}"));
    assert!(seen.contains("\"process\":{\"pid\":") && seen.contains("\"uid\":0,\"user\":\"root\""), "{seen}");

    // A connection that was reset, where the kernel has a tracer.
    if dir.path().join("tracer").exists() {
        let seen = book.lines().find(|line| line.contains("192.0.2.2")).unwrap_or_else(|| panic!("{book}"));
        assert!(seen.contains("\"protocol\":\"tcp\"") && seen.contains("bash\",\"command\":\"bash -c"), "{seen}");
    }
    let rights = fs::read_to_string(dir.path().join("out/caps")).unwrap_or_else(|error| panic!("no alert: {error}: {book}"));
    for set in ["CapPrm", "CapEff", "CapAmb"] {
        let none = rights.lines().any(|line| line.starts_with(set) && line.ends_with("\t0000000000000000"));
        assert!(none, "the alert program inherits rights:\n{rights}");
    }

    let calls = |group: &str| {
        let output = analyze(dir.path(), &["syscall-filter", "--no-pager", group])?;
        Some(String::from_utf8(output.stdout).unwrap())
    };
    let Some(allowed) = expand("@system-service", &calls) else { return };
    let refused = ["@privileged", "@resources"].iter().filter_map(|group| expand(group, &calls)).flatten().collect::<BTreeSet<_>>();
    let mut allowed: BTreeSet<String> = allowed.union(&expand("@default", &calls).unwrap_or_default()).cloned().collect();
    allowed.insert("perf_event_open".to_string());
    let trace = fs::read_to_string(dir.path().join("watch")).unwrap();
    let started = trace.lines().filter(|line| line.contains(" execve(") && line.contains("egressguard\""));
    let process = { started }.next_back().and_then(|line| line.split_once(' ')).map(|(process, _)| process.to_string()).unwrap();
    let ours = trace.lines().filter_map(|line| line.strip_prefix(&process)).map(str::trim_start);
    // What `setpriv` and `timeout` did in the same process before is not ours.
    let ours: Vec<&str> = ours.skip_while(|line| !(line.starts_with("execve(") && line.contains("egressguard\""))).collect();
    let made: BTreeSet<&str> = ours.iter().filter_map(|line| line.split_once('(')).map(|(call, _)| call).collect();
    let wrong: Vec<&&str> = made.iter().filter(|call| call.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')).collect();
    let wrong: Vec<_> = wrong.into_iter().filter(|call| !allowed.contains(**call) || refused.contains(**call)).collect();
    assert!(wrong.is_empty(), "these calls are refused by its filter: {wrong:?}");
    assert!(made.contains("socket") && made.contains("poll"), "the trace is not what is read here: {made:?}");
    let families = Unit::shipped(WATCH);
    for family in ours.iter().filter_map(|line| line.strip_prefix("socket(")?.split(',').next()) {
        assert!(families.words("Service", "RestrictAddressFamilies").contains(&family), "a socket of {family}");
    }
}
