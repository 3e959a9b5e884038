//! What scripts/package makes: the same octets twice, and a package that a machine takes, upgrades and gives back with nothing left. It is
//! installed on the file system of a machine of its own, below a layer in memory.

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use support::World;
use support::machine::{self, Machine};

/// The program without what debuggers read, which would be most of a package.
fn program(place: &Path) -> PathBuf {
    let stripped = place.join("egressguard");
    let status = Command::new("strip").args([env!("CARGO_BIN_EXE_egressguard"), "-o"]).arg(&stripped).status();
    assert!(status.expect("strip runs").success());
    stripped
}

fn package(output: &Path, version: &str) -> Vec<PathBuf> {
    let place = tempfile::tempdir().unwrap();
    let made = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/package"))
        .arg("--binary")
        .arg(program(place.path()))
        .args(["--version", version, "--output"])
        .arg(output)
        .env("SOURCE_DATE_EPOCH", "1700000000")
        // How small it gets is not what is asked here.
        .env("DPKG_DEB_COMPRESSOR_LEVEL", "0")
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let mut files: Vec<PathBuf> = fs::read_dir(output).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

#[test]
fn the_same_tree_makes_the_same_octets() {
    let places = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let [first, second] = places.each_ref().map(|place| package(place.path(), "1.2.3"));
    let kinds: Vec<_> = first.iter().filter_map(|file| file.extension()?.to_str()).collect();
    assert_eq!(kinds, ["gz", "json", "deb"]);
    for (one, other) in first.iter().zip(&second) {
        assert!(fs::read(one).unwrap() == fs::read(other).unwrap(), "{}", one.display());
    }
    let parts: serde_json::Value = serde_json::from_slice(&fs::read(&first[1]).unwrap()).unwrap();
    assert_eq!((&parts["bomFormat"], &parts["metadata"]["component"]["version"]), (&"CycloneDX".into(), &"1.2.3".into()));
    let parts = parts["components"].as_array().unwrap();
    let names: BTreeSet<&str> = parts.iter().filter_map(|part| part["name"].as_str()).collect();
    assert!(names.contains("nftnl") && names.contains("ring") && !names.contains("proptest"), "{names:?}");
    assert!(parts.iter().all(|part| part["hashes"][0]["content"].as_str().is_some_and(|digest| digest.len() == 64)));
}

/// Every file of the machine that has our name in its path, without its caches.
fn ours(machine: &Machine) -> Vec<String> {
    let listed = Command::new("find").arg(machine.path("")).args(["-xdev", "-path", "*egressguard*", "-printf", "%P\n"]).output().unwrap();
    let places = ["etc/", "usr/", "var/lib/egressguard", "lib/systemd"];
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    listed.lines().filter(|path| places.iter().any(|place| path.starts_with(place))).map(str::to_string).collect()
}

#[test]
fn a_machine_takes_the_package_keeps_its_policy_and_gives_it_back_whole() {
    if let Some(why) = machine::impossible() {
        assert!(std::env::var("EGRESSGUARD_REQUIRE_KERNEL").as_deref() != Ok("1") || !why.contains("package"), "{why}");
        return println!("skipped: {why}");
    }
    let Some(world) = World::new() else { return };
    let machine = Machine::new(&world, support::STRANGER_V4);
    let before = ours(&machine);
    let place = tempfile::tempdir().unwrap();
    let dpkg = |arguments: &[&str]| {
        let output =
            Command::new("chroot").arg(machine.path("")).arg("dpkg").args(arguments).env("DEBIAN_FRONTEND", "noninteractive").output();
        let output = output.expect("chroot runs");
        let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "dpkg {arguments:?}: {said}");
        said
    };
    for (version, name) in [("1.0", "first.deb"), ("1.1", "second.deb")] {
        let made = package(&place.path().join(version), version);
        fs::copy(made.iter().find(|file| file.extension().is_some_and(|kind| kind == "deb")).unwrap(), machine.path(name)).unwrap();
    }

    dpkg(&["-i", "/first.deb"]);
    let status = dpkg(&["-s", "egressguard"]);
    assert!(status.contains("Status: install ok installed") && status.contains("Depends: libc6"), "{status}");
    assert!(machine.read("etc/passwd").contains("egressguard:"), "the service has its user");
    let enabled = Command::new("find").arg(machine.path("etc/systemd/system")).args(["-name", "egressguard*"]).output().unwrap();
    assert!(enabled.stdout.is_empty(), "nothing is enabled: {}", String::from_utf8_lossy(&enabled.stdout));
    let run =
        |program: &str, arguments: &[&str]| Command::new("chroot").arg(machine.path("")).arg(program).args(arguments).output().unwrap();
    assert!(run("/usr/sbin/egressguard", &["check", "/etc/egressguard/policy.yaml"]).status.success());

    // An upgrade keeps what an operator wrote, and what was saved.
    machine.write("etc/egressguard/policy.yaml", "version: 1\nname: mine\n");
    machine.write("var/lib/egressguard/current", "1\n");
    machine.systemctl(&["enable", "egressguard-restore.service", "egressguard-refresh.timer"]);
    dpkg(&["-i", "--force-confold", "/second.deb"]);
    assert!(machine.read("etc/egressguard/policy.yaml").contains("name: mine"));
    assert!(dpkg(&["-s", "egressguard"]).contains("Version: 1.1"));
    assert!(
        machine.path("etc/systemd/system/sysinit.target.wants/egressguard-restore.service").symlink_metadata().is_ok(),
        "it stays enabled"
    );

    // Removed, the network managers do not wait for it; purged, nothing is left.
    dpkg(&["-r", "egressguard"]);
    assert!(machine.read("etc/egressguard/policy.yaml").contains("name: mine"), "a removal keeps the policy");
    let wants = Command::new("find").arg(machine.path("etc/systemd/system")).args(["-name", "egressguard*"]).output().unwrap();
    assert!(wants.stdout.is_empty(), "{}", String::from_utf8_lossy(&wants.stdout));
    dpkg(&["-P", "egressguard"]);
    let left: Vec<String> = ours(&machine).into_iter().filter(|path| !before.contains(path)).collect();
    assert!(left.is_empty(), "{left:?}");
    assert!(!machine.read("etc/passwd").contains("egressguard:"));
}
