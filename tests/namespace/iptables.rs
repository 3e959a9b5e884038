//! Loading rules by the script for hosts without nf_tables, with each of the two programs that are called iptables.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use egressguard::base::time::Timestamp;
use egressguard::export::iptables::export;
use egressguard::export::script;
use egressguard::ruleset::Ruleset;
use egressguard::ruleset::compile::Facts;
use tempfile::TempDir;

use super::{assert_foreign, inside, run};

/// A program that is called iptables.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Variant {
    /// The one that speaks to nf_tables.
    Nft,
    /// The one that speaks to ip_tables and ip6_tables.
    Legacy,
}

impl Variant {
    /// Both.
    pub const BOTH: [Variant; 2] = [Variant::Nft, Variant::Legacy];
}

/// A directory in which one of the two has the plain names, for the beginning of PATH.
pub struct Programs {
    directory: TempDir,
}

impl Programs {
    /// The programs of a variant; nothing when they, ipset or their kernel modules are not there. Says why not, and fails when the
    /// environment demands that tests run.
    pub fn find(variant: Variant) -> Option<Programs> {
        match Programs::try_find(variant) {
            Ok(programs) => Some(programs),
            Err(why) => {
                let required = std::env::var_os("EGRESSGUARD_REQUIRE_KERNEL").is_some_and(|value| value == "1");
                assert!(!required, "skipped although required: {variant:?}: {why}");
                eprintln!("skipped: {variant:?}: {why}");
                None
            }
        }
    }

    fn try_find(variant: Variant) -> Result<Programs, String> {
        let binary = match variant {
            Variant::Nft => "xtables-nft-multi",
            Variant::Legacy => "xtables-legacy-multi",
        };
        let binary = which(binary).ok_or_else(|| format!("`{binary}` is not installed"))?;
        which("ipset").ok_or("`ipset` is not installed")?;
        let directory = tempfile::tempdir().map_err(|error| error.to_string())?;
        for family in ["iptables", "ip6tables"] {
            for name in [family.to_string(), format!("{family}-save"), format!("{family}-restore")] {
                symlink(&binary, directory.path().join(name)).map_err(|error| error.to_string())?;
            }
        }
        let programs = Programs { directory };
        inside(|| programs.sh("iptables -w -S && ip6tables -w -S && ipset list -n && ipset create x hash:ip && ipset destroy x"))?;
        Ok(programs)
    }

    /// Where they are.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Runs a shell script on this thread's namespace, with these programs.
    pub fn sh(&self, script: &str) -> Result<String, String> {
        assert_foreign();
        let path = format!("PATH='{}':\"$PATH\":/usr/sbin:/sbin\n", self.path().display());
        run("sh", &["-s"], &format!("{path}{script}"))
    }

    /// Loads rules into this thread's namespace by the script that `render` prints.
    pub fn load(&self, ruleset: &Ruleset, facts: &Facts, now: Timestamp) {
        let firewall = export(ruleset, facts).unwrap_or_else(|unsayable| panic!("{unsayable:#?}"));
        self.sh(&script::write(&firewall, now)).unwrap_or_else(|why| panic!("{why}"));
    }
}

fn which(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let known = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    known.map(|directory| directory.join(program)).find(|path| path.exists())
}
