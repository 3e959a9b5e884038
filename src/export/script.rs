//! The firewall as one shell script: what a person reviews, and what a host without egressguard can run.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use crate::base::time::Timestamp;
use crate::export::iptables::Firewall;
use crate::export::names::{LOADING, PREFIX};
use crate::export::set::IpSet;
use crate::policy::Mode;

/// What the script says of itself.
const HEAD: &str = "\
#
# Loads these rules by ipset, iptables and ip6tables. Run it as root; run again, it loads the same again.
#
# What is in force stays in force until what is new is whole: first the sets, into which no rule looks yet; then both
# families are tried; then each changes in one step, IPv6 first. Where anything fails the script ends and says so, and each
# family has its old rules or its new ones. Only chains and sets that begin with EGRESSGUARD- are touched, and the jumps to
# these chains. What is allowed here goes back to the chains INPUT, FORWARD and OUTPUT, whose other rules have the last word.
#
# Weaker than the same policy in nftables (docs/iptables.md says more):
# - IPv4 and IPv6 change one after the other, and pins one set after the other.
# - The ledger does not know users, and begins a count anew 24 hours after its first packet.
# - A quarantine of the host, and what leads to it, is counted for IPv4 and for IPv6 apart.
# - Pins end after 24 days at most. No timer runs: resolve, render and load again before they end.
";

/// The script. Times of pins are counted from `now`.
pub fn write(firewall: &Firewall, now: Timestamp) -> String {
    let identity = &firewall.identity;
    let mode = match identity.mode {
        Mode::Enforce => "enforce",
        Mode::Observe => "observe",
    };
    let mut out = String::from("#!/bin/sh\n");
    let _ = writeln!(out, "# policy {}, mode {mode}, sha256 {}", identity.policy, identity.sha256);
    out.push_str(HEAD);
    for set in &firewall.never {
        let _ = writeln!(out, "# - Nothing is ever in `{set}`: what asks for it is not written.");
    }
    out.push_str(
        "\nset -eu
export LC_ALL=C PATH=\"$PATH:/usr/sbin:/sbin\"
for program in ipset iptables iptables-restore ip6tables ip6tables-restore; do
    command -v \"$program\" >/dev/null || {
        echo \"egressguard: \\`$program\\` is missing: install the packages iptables and ipset\" >&2
        exit 3
    }
done
",
    );
    let _ =
        write!(out, "\n# 1. Sets. Each is filled beside and takes its place in one moment.\nipset destroy {LOADING} 2>/dev/null || :\n");
    out.push_str("ipset restore <<'END'\n");
    let mut sets: Vec<&IpSet> = firewall.sets.values().collect();
    sets.sort_by_key(|set| &set.meaning);
    for set in sets {
        let _ = write!(out, "# {}\n{}", set.meaning, set.load(now, &BTreeMap::new()));
    }
    out.push_str("END\nsets='");
    out.push_str(&firewall.sets.keys().map(|name| format!("\n{name}")).collect::<String>());
    out.push_str("\n'\n\n# 2. Rules.\n");
    for table in firewall.tables.iter().rev() {
        let _ = write!(out, "{}() {{\n    cat <<'END'\n{}END\n}}\n\n", table.family.suffix(), table.write());
    }
    write_loading(&mut out, firewall);
    let _ = write!(
        out,
        "# 3. Sets of an earlier policy, into which no rule looks any more.
ipset list -n | while read -r set; do
    case $set in {PREFIX}*)
        case $sets in *\"
$set
\"*) ;; *) ipset destroy \"$set\" || : ;; esac ;;
    esac
done
echo 'egressguard: policy {} is in force' >&2
",
        identity.policy
    );
    out
}

fn write_loading(out: &mut String, firewall: &Firewall) {
    let [v4, _] = &firewall.tables;
    let chains: BTreeSet<String> =
        firewall.tables.iter().flat_map(|table| &table.chains).map(|chain| format!("\n{}", chain.name)).collect();
    let _ = write!(
        out,
        "chains='{}
'
# All that one family's programs are told: our chains, our jumps in the first place and nowhere else, and an end to our
# chains of an earlier policy.
rules() {{
    there=$(\"$1\" -w 10 -S)
    echo '*filter'
    \"$2\"
    printf '%s\\n' \"$there\" | sed -n{}
    printf '%s\\n'{}
    old=$(printf '%s\\n' \"$there\" | sed -n 's/^-N \\({PREFIX}.*\\)$/\\1/p' | while read -r chain; do
        case $chains in *\"
$chain
\"*) ;; *) echo \"$chain\" ;; esac
    done)
    for chain in $old; do echo \"-F $chain\"; done
    for chain in $old; do echo \"-X $chain\"; done
    echo COMMIT
}}
v6=$(rules ip6tables v6)
v4=$(rules iptables v4)
for try in --test ''; do
    printf '%s\\n' \"$v6\" | ip6tables-restore -w 10 --noflush $try
    printf '%s\\n' \"$v4\" | iptables-restore -w 10 --noflush $try
done

",
        chains.into_iter().collect::<String>(),
        v4.jumps().map(|(hook, jump)| format!(" -e 's/^-A \\({hook} {jump}\\)$/-D \\1/p'")).collect::<String>(),
        v4.jumps().map(|(hook, jump)| format!(" '-I {hook} 1 {jump}'")).collect::<String>(),
    );
}
