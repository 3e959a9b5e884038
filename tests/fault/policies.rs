//! Two policies that share one destination, and their pins.
#![allow(dead_code)]

use crate::arena::{Arena, BOTH, DNS, NEW, NEW_V6, OLD, OLD_V6};

/// Names of the old policy and their addresses.
pub const OLD_NAMES: [(&str, &[&str]); 2] = [("both.test", &[BOTH]), ("old.test", &[OLD, OLD_V6])];
/// Names of the new policy and their addresses.
pub const NEW_NAMES: [(&str, &[&str]); 2] = [("both.test", &[BOTH]), ("new.test", &[NEW, NEW_V6])];

/// The old policy.
pub fn old() -> String {
    policy("old", "old.test")
}

/// The new policy: another way out, another way in.
pub fn new() -> String {
    policy("new", "new.test") + "inbound: {port: 8443, from: [192.0.2.0/24]}\n"
}

/// A policy whose name is resolved.
pub fn resolved() -> String {
    policy("resolved", "rotates.test")
}

/// What DNS says first.
pub fn hosts_before() -> String {
    format!("{BOTH} both.test\n{OLD} rotates.test\n{OLD_V6} rotates.test\n")
}

/// What DNS says after a rotation.
pub fn hosts_after() -> String {
    format!("{BOTH} both.test\n{NEW} rotates.test\n{NEW_V6} rotates.test\n")
}

/// A policy of this name that allows `both.test` and one more.
fn policy(name: &str, other: &str) -> String {
    format!(
        "version: 1\nname: {name}\noutbound:\n  - to: both.test\n  - to: {other}\ndns:\n  servers: [{DNS}]\n\
         refresh:\n  private: allow\n"
    )
}

/// Their pins as a pins file.
pub fn pins_of(names: &[(&str, &[&str])]) -> String {
    let (first, end) = ("2026-01-01T00:00:00Z", "2036-01-01T00:00:00Z");
    let mut text = "egressguard pins 1\n".to_string();
    for (name, addresses) in names {
        text.push_str(&format!("\nname {name}\n  confirmed {first}\n"));
        for address in *addresses {
            text.push_str(&format!("  address {address} ttl 300 server {DNS}:53 first {first} expires {end}\n"));
        }
    }
    text + &format!("\nend {}\n", names.len())
}

/// Applies the old policy.
pub fn apply_old(arena: &Arena) {
    let policy = arena.write("old.yaml", &old());
    let pins = arena.write("old.pins", &pins_of(&OLD_NAMES));
    arena.run(&["apply", "--force", &policy, "--pins", &pins]).expect(0);
}
