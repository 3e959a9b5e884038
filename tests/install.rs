//! scripts/install and scripts/uninstall, run for real into a temporary DESTDIR.
//!
//! What the scripts do is tried with a stand-in for the program, so that a failure says which of the two is wrong; one test
//! installs the real program from the real tree.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Answers what scripts/install asks of the program.
const STAND_IN: &str = r#"#!/bin/sh
case $1 in
    completions) echo "completions for $2" ;;
    schema) echo '{}' ;;
    man) for page in egressguard egressguard-apply; do echo ".TH $page 1" >"$3/$page.1"; done ;;
    *) exit 2 ;;
esac
"#;

/// A source tree as scripts/install sees one, and a place to install to.
struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Place {
        let dir = tempfile::tempdir().unwrap();
        for name in ["scripts", "systemd"] {
            let to = dir.path().join("tree").join(name);
            fs::create_dir_all(&to).unwrap();
            for entry in fs::read_dir(tree().join(name)).unwrap().map(Result::unwrap).filter(|entry| entry.path().is_file()) {
                fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
            }
        }
        let place = Place { dir };
        place.write("tree/policies/openai.yaml", "version: 1\n", 0o644);
        place.write("tree/policies/lockdown.yaml", "version: 1\n", 0o644);
        place.write("program", STAND_IN, 0o755);
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, text: &str, mode: u32) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    }

    fn script(&self, name: &str, args: &[&str]) -> Command {
        let mut command = Command::new(self.path("tree/scripts").join(name));
        command.args(args).env("DESTDIR", self.path("root")).env_remove("PREFIX").env_remove("UNITDIR");
        command
    }

    fn install(&self, args: &[&str]) {
        let program = self.path("program");
        ok(self.script("install", &["--binary", program.to_str().unwrap()]).args(args));
    }

    fn installed(&self) -> BTreeMap<String, u32> {
        listing(&self.path("root"))
    }
}

fn tree() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every file, link and empty directory below `root`, with its mode; 0 for a link.
fn listing(root: &Path) -> BTreeMap<String, u32> {
    let mut found = BTreeMap::new();
    let mut open = vec![root.to_path_buf()];
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(&dir).unwrap().map(Result::unwrap) {
            let kind = entry.file_type().unwrap();
            let mode = if kind.is_symlink() { 0 } else { entry.metadata().unwrap().permissions().mode() & 0o7777 };
            if kind.is_dir() {
                open.push(entry.path());
            }
            if !kind.is_dir() || fs::read_dir(entry.path()).unwrap().next().is_none() {
                found.insert(entry.path().strip_prefix(root).unwrap().to_str().unwrap().to_string(), mode);
            }
        }
    }
    found
}

fn run(command: &mut Command) -> (Output, String) {
    let output = command.output().unwrap();
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    (output, text)
}

fn ok(command: &mut Command) -> String {
    let (output, text) = run(command);
    assert!(output.status.success(), "{command:?}: {}\n{text}", output.status);
    text
}

#[test]
fn install_puts_each_file_in_its_place_with_its_mode() {
    let place = Place::new();
    place.install(&[]);
    let expected = [
        ("etc/egressguard/policy.yaml", 0o644),
        ("etc/systemd/system/egressguard-refresh.service", 0o644),
        ("etc/systemd/system/egressguard-refresh.timer", 0o644),
        ("etc/systemd/system/egressguard-restore.service", 0o644),
        ("etc/systemd/system/egressguard-watch.service", 0o644),
        ("usr/local/lib/sysusers.d/egressguard.conf", 0o644),
        ("usr/local/sbin/egressguard", 0o755),
        ("usr/local/share/bash-completion/completions/egressguard", 0o644),
        ("usr/local/share/egressguard/manifest", 0o644),
        ("usr/local/share/egressguard/policies/lockdown.yaml", 0o644),
        ("usr/local/share/egressguard/policies/openai.yaml", 0o644),
        ("usr/local/share/egressguard/policy.schema.json", 0o644),
        ("usr/local/share/fish/vendor_completions.d/egressguard.fish", 0o644),
        ("usr/local/share/man/man1/egressguard-apply.1", 0o644),
        ("usr/local/share/man/man1/egressguard.1", 0o644),
        ("usr/local/share/zsh/site-functions/_egressguard", 0o644),
    ];
    let expected: BTreeMap<String, u32> = expected.into_iter().map(|(path, mode)| (path.to_string(), mode)).collect();
    assert_eq!(place.installed(), expected);
}

#[test]
fn installed_units_call_the_program_where_it_was_put() {
    for (prefix, units) in [("/usr/local", "etc/systemd/system"), ("/usr", "usr/lib/systemd/system"), ("/opt/eg", "etc/systemd/system")] {
        let place = Place::new();
        let program = place.path("program");
        ok(place.script("install", &["--binary", program.to_str().unwrap()]).env("PREFIX", prefix));
        let unit = fs::read_to_string(place.path("root").join(units).join("egressguard-restore.service")).unwrap();
        assert!(unit.contains(&format!("\nExecStart={prefix}/sbin/egressguard restore\n")), "{unit}");
        assert!(!unit.contains("@sbindir@/"), "{unit}");
        ok(place.script("uninstall", &["--purge"]).env("PREFIX", prefix));
        assert_eq!(place.installed(), BTreeMap::new(), "{prefix}");
    }
}

#[test]
fn a_second_install_keeps_an_edited_policy_and_takes_away_what_is_no_longer_shipped() {
    let place = Place::new();
    place.install(&[]);
    let first = place.installed();
    place.write("root/etc/egressguard/policy.yaml", "version: 1 # mine\n", 0o600);
    place.install(&[]);
    let mut expected = first;
    expected.insert("etc/egressguard/policy.yaml".into(), 0o600);
    assert_eq!(place.installed(), expected);
    assert_eq!(fs::read_to_string(place.path("root/etc/egressguard/policy.yaml")).unwrap(), "version: 1 # mine\n");

    fs::remove_file(place.path("tree/policies/lockdown.yaml")).unwrap();
    place.install(&[]);
    expected.remove("usr/local/share/egressguard/policies/lockdown.yaml");
    assert_eq!(place.installed(), expected);
}

#[test]
fn uninstall_keeps_policy_and_state_and_nothing_else() {
    let place = Place::new();
    place.install(&[]);
    place.install(&[]);
    place.write("root/var/lib/egressguard/state.json", "{}", 0o600);
    place.write("root/usr/local/sbin/other", "", 0o755);
    ok(&mut place.script("uninstall", &[]));
    let kept = ["etc/egressguard/policy.yaml", "usr/local/sbin/other", "var/lib/egressguard/state.json"];
    assert_eq!(place.installed().into_keys().collect::<Vec<_>>(), kept);
}

#[test]
fn uninstall_with_purge_leaves_nothing_of_ours() {
    let place = Place::new();
    place.install(&[]);
    place.write("root/var/lib/egressguard/state.json", "{}", 0o600);
    ok(&mut place.script("uninstall", &["--purge"]));
    assert_eq!(place.installed().into_keys().collect::<Vec<_>>(), ["var/lib"], "only what install did not make");
}

#[test]
fn units_are_enabled_only_when_asked_and_disabled_again() {
    let place = Place::new();
    if Command::new("systemctl").arg("--version").output().is_err() {
        assert!(std::env::var_os("EGRESSGUARD_REQUIRE_KERNEL").is_none(), "systemctl is missing: install the package `systemd`");
        eprintln!("skipped: no systemctl");
        return;
    }
    place.install(&["--enable"]);
    let mut links: Vec<String> = place.installed().into_iter().filter(|(_, mode)| *mode == 0).map(|(path, _)| path).collect();
    links.iter_mut().for_each(|link| *link = link.trim_start_matches("etc/systemd/system/").to_string());
    let expected = [
        "NetworkManager.service.requires/egressguard-restore.service",
        "dhcpcd.service.requires/egressguard-restore.service",
        "multi-user.target.wants/egressguard-watch.service",
        "networking.service.requires/egressguard-restore.service",
        "sysinit.target.wants/egressguard-restore.service",
        "systemd-networkd.service.requires/egressguard-restore.service",
        "timers.target.wants/egressguard-refresh.timer",
    ];
    assert_eq!(links, expected);
    ok(&mut place.script("uninstall", &["--purge"]));
    assert_eq!(place.installed(), BTreeMap::new());
}

#[test]
fn a_program_that_does_not_run_here_installs_nothing() {
    let place = Place::new();
    place.write("program", "#!/bin/sh\nexit 126\n", 0o755);
    let program = place.path("program");
    let (output, text) = run(&mut place.script("install", &["--binary", program.to_str().unwrap()]));
    assert_eq!(output.status.code(), Some(3), "{text}");
    assert!(text.contains("completions bash` failed\nhelp: "), "{text}");
    assert!(!place.path("root").exists());
}

#[test]
fn a_damaged_manifest_takes_nothing_away() {
    let place = Place::new();
    place.install(&[]);
    let before = place.installed();
    let manifest = place.path("root/usr/local/share/egressguard/manifest");
    let good = fs::read_to_string(&manifest).unwrap();
    for bad in ["f /usr/../../etc/passwd\n", "f relative\n", "x /usr\n", "\n"] {
        fs::write(&manifest, format!("{good}{bad}")).unwrap();
        let (output, text) = run(&mut place.script("uninstall", &[]));
        assert_eq!(output.status.code(), Some(3), "{bad:?}: {text}");
        assert_eq!(place.installed(), before, "{bad:?}");
    }
}

#[test]
fn a_wrong_argument_is_a_wrong_question() {
    let place = Place::new();
    for (script, args) in [("install", &["--frobnicate"][..]), ("install", &["--binary"]), ("uninstall", &["--frobnicate"])] {
        let (output, text) = run(&mut place.script(script, args));
        assert_eq!(output.status.code(), Some(2), "{text}");
    }
    for prefix in ["usr/local", "/usr local", "/usr/../etc"] {
        let (output, text) = run(place.script("install", &["--binary", "/bin/true"]).env("PREFIX", prefix));
        assert_eq!(output.status.code(), Some(2), "{prefix}: {text}");
    }
    assert!(!place.path("root").exists());
}

#[test]
fn the_real_program_installs_from_the_real_tree_and_goes_again() {
    let root = tempfile::tempdir().unwrap();
    let script = |name: &str, args: &[&str]| {
        let mut command = Command::new(tree().join("scripts").join(name));
        command.args(args).env("DESTDIR", root.path()).env_remove("PREFIX").env_remove("UNITDIR");
        ok(&mut command)
    };
    script("install", &["--binary", env!("CARGO_BIN_EXE_egressguard")]);
    let read = |path: &str| fs::read_to_string(root.path().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"));
    assert_eq!(read("etc/egressguard/policy.yaml"), fs::read_to_string(tree().join("policies/openai.yaml")).unwrap());
    assert!(read("usr/local/share/man/man1/egressguard.1").contains(".TH"));
    assert!(read("usr/local/share/bash-completion/completions/egressguard").contains("complete"));
    assert!(read("usr/local/share/zsh/site-functions/_egressguard").starts_with("#compdef"));
    assert!(read("usr/local/share/fish/vendor_completions.d/egressguard.fish").contains("complete -c egressguard"));
    let schema: serde_json::Value = serde_json::from_str(&read("usr/local/share/egressguard/policy.schema.json")).unwrap();
    assert!(schema["properties"]["outbound"].is_object(), "{schema}");
    let policy = root.path().join("etc/egressguard/policy.yaml");
    ok(Command::new(root.path().join("usr/local/sbin/egressguard")).arg("check").arg(policy));
    script("uninstall", &["--purge"]);
    assert_eq!(listing(root.path()), BTreeMap::new());
}
