//! A policy as text: what the reader reads back as the same policy, with remarks beside what they are about.
//!
//! Comments and the order of blocks of the file that a policy came from are not kept; a policy does not know them.

use std::collections::BTreeMap;
use std::fmt::Write;

use crate::base::diagnostic::is_printable;
use crate::base::net::IpNet;
use crate::base::port::{PortRange, PortSet};
use crate::policy::*;

/// Comments of a written policy. None can become anything but a comment, whatever it says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Remarks {
    /// Lines before everything.
    pub head: Vec<String>,
    /// Lines before a way out, by its place in the policy.
    pub before: BTreeMap<usize, Vec<String>>,
    /// The end of a destination's line, by the places of the way out and of the destination in it.
    pub beside: BTreeMap<(usize, usize), String>,
    /// Lines after everything.
    pub tail: Vec<String>,
}

/// Writes a policy. Reading the text gives the same policy, but for the lines of the file.
pub fn write(policy: &Policy, remarks: &Remarks) -> String {
    let mut text = String::new();
    comments(&mut text, "", &remarks.head);
    let mode = match policy.mode {
        Mode::Enforce => "enforce",
        Mode::Observe => "observe",
    };
    // Writing to a string does not fail, here and below.
    let _ = writeln!(text, "version: 1\nname: {}\nmode: {mode}", quoted(policy.name.as_str()));
    if let Some(Inbound { port, protocol, from, .. }) = &policy.inbound {
        let from = match from {
            Sources::Any => "any".to_string(),
            Sources::Nets(nets) => nets_of(nets),
        };
        let _ = writeln!(text, "\ninbound:\n  port: {port}\n  protocol: {}\n  from: {from}", transport(*protocol));
    }
    if let Some(Management { port, from, .. }) = &policy.management {
        let _ = writeln!(text, "\nmanagement:\n  port: {port}\n  from: {}", nets_of(from));
    }
    outbound(&mut text, policy, remarks);
    dns(&mut text, policy);
    let Refresh { every, keep, private } = &policy.refresh;
    let private = match private {
        PrivateAnswers::Refuse => "refuse",
        PrivateAnswers::Allow => "allow",
    };
    let _ = writeln!(text, "\nrefresh:\n  every: {every}\n  keep: {keep}\n  private: {private}");
    host(&mut text, &policy.host);
    violations(&mut text, &policy.violations);
    if !policy.tests.is_empty() {
        text.push_str("\ntests:\n");
        for test in &policy.tests {
            let word = match test.expect {
                Expectation::Allow => "allow",
                Expectation::Deny => "deny",
            };
            let _ = writeln!(text, "  - {word}: {}", quoted(&test.packet.to_string()));
        }
    }
    if !remarks.tail.is_empty() {
        text.push('\n');
    }
    comments(&mut text, "", &remarks.tail);
    text
}

fn outbound(text: &mut String, policy: &Policy, remarks: &Remarks) {
    if policy.outbound.is_empty() {
        text.push_str("\noutbound: []\n");
        return;
    }
    text.push_str("\noutbound:\n");
    for (position, way) in policy.outbound.iter().enumerate() {
        comments(text, "  ", remarks.before.get(&position).map_or(&[], Vec::as_slice));
        let beside =
            |place: usize| remarks.beside.get(&(position, place)).map(|words| format!("  # {}", one_line(words))).unwrap_or_default();
        let mut first = "  - ";
        if way.to.first().is_none_or(|first| derived_id(&first.target) != way.id) {
            let _ = writeln!(text, "{first}id: {}", quoted(way.id.as_str()));
            first = "    ";
        }
        match way.to.as_slice() {
            [one] => {
                let _ = writeln!(text, "{first}to: {}{}", target(&one.target), beside(0));
            }
            many => {
                let _ = writeln!(text, "{first}to:");
                for (place, destination) in many.iter().enumerate() {
                    let _ = writeln!(text, "      - {}{}", target(&destination.target), beside(place));
                }
            }
        }
        let is_tls = way.ports == PortSet::single(443) && way.protocol == Transport::Tcp;
        if !is_tls || way.to.iter().any(|destination| matches!(destination.target, Target::Net(_))) {
            let _ = writeln!(text, "    port: {}\n    protocol: {}", ports(&way.ports), transport(way.protocol));
        }
        if let Some(scope) = &way.scope {
            let (kind, who) = match scope {
                Scope::User(name) => ("user", quoted(name)),
                Scope::Uid(number) => ("uid", number.to_string()),
                Scope::Group(name) => ("group", quoted(name)),
                Scope::Gid(number) => ("gid", number.to_string()),
                Scope::Service(unit) => ("service", quoted(unit)),
            };
            let _ = writeln!(text, "    for: {{{kind}: {who}}}");
        }
    }
}

fn dns(text: &mut String, policy: &Policy) {
    // A policy that names hosts asks the host's servers without being told to, and any other asks nobody.
    let unsaid: &[DnsServer] = if policy.names_hosts() { &[DnsServer::System] } else { &[] };
    if policy.dns == unsaid && policy.dns_line.is_none() {
        return;
    }
    let end = |address: &IpAddr, port: u16| match address {
        IpAddr::V4(address) => format!("{address}:{port}"),
        IpAddr::V6(address) => format!("[{address}]:{port}"),
    };
    let server = |server: &DnsServer| match server {
        DnsServer::System => "system".to_string(),
        DnsServer::Plain { address, port } => quoted(&end(address, *port)),
        DnsServer::Tls { address, port, name } => quoted(&format!("tls://{}#{name}", end(address, *port))),
    };
    let servers: Vec<String> = policy.dns.iter().map(server).collect();
    let _ = writeln!(text, "\ndns:\n  servers: [{}]", servers.join(", "));
}

fn host(text: &mut String, host: &Host) {
    let _ = writeln!(text, "\nhost:\n  dhcp: {}", host.dhcp);
    if host.ntp_line.is_some() || !host.ntp.is_empty() {
        let servers: Vec<String> = host.ntp.iter().map(|destination| target(&destination.target)).collect();
        let _ = writeln!(text, "  ntp: [{}]", servers.join(", "));
    }
    let frames = match host.raw_frames {
        RawFrames::Allow => "allow",
        RawFrames::Deny => "deny",
        RawFrames::BestEffort => "best-effort",
    };
    let forward = match host.forward {
        Forward::Contain => "contain",
        Forward::Deny => "deny",
    };
    let _ = writeln!(text, "  ping: {}\n  raw-frames: {frames}\n  forward: {forward}", host.ping);
}

fn violations(text: &mut String, violations: &Violations) {
    if *violations == Violations::default() {
        return;
    }
    text.push_str("\nviolations:\n");
    if let Some(Quarantine { after, within, lasts, scope, .. }) = &violations.quarantine {
        let scope = match scope {
            QuarantineScope::User => "user",
            QuarantineScope::Host => "host",
        };
        let _ = writeln!(text, "  quarantine: {{after: {after}, within: {within}, for: {lasts}, scope: {scope}}}");
    }
    if let Some(Alert { run, at_most_every }) = &violations.alert {
        let _ = writeln!(text, "  alert: {{run: {}, at-most-every: {at_most_every}}}", quoted(run));
    }
}

fn comments(text: &mut String, indent: &str, lines: &[String]) {
    for line in lines {
        let line = format!("{indent}# {}", one_line(line));
        text.push_str(line.trim_end());
        text.push('\n');
    }
}

/// A comment ends with its line, so nothing in it may end the line.
fn one_line(words: &str) -> String {
    words.chars().map(|c| if is_printable(c) { c.to_string() } else { c.escape_unicode().to_string() }).collect()
}

fn transport(protocol: Transport) -> &'static str {
    match protocol {
        Transport::Tcp => "tcp",
        Transport::Udp => "udp",
    }
}

fn target(target: &Target) -> String {
    match target {
        Target::Name(name) => quoted(name.as_str()),
        Target::Net(net) => quoted(&network(net)),
    }
}

/// A network of full length is an address.
fn network(net: &IpNet) -> String {
    if net.prefix_len() == net.max_prefix_len() { net.addr().to_string() } else { net.to_string() }
}

fn nets_of(nets: &[IpNet]) -> String {
    let nets: Vec<String> = nets.iter().map(|net| quoted(&network(net))).collect();
    format!("[{}]", nets.join(", "))
}

fn ports(ports: &PortSet) -> String {
    let one = |range: &PortRange| if range.first() == range.last() { range.to_string() } else { quoted(&range.to_string()) };
    match ports.ranges() {
        [range] => one(range),
        ranges => format!("[{}]", ranges.iter().map(one).collect::<Vec<_>>().join(", ")),
    }
}

/// The text as YAML reads it back: plain where nobody can take it for anything but text, and between quotes otherwise.
pub fn quoted(text: &str) -> String {
    const WORDS: [&str; 10] = ["true", "false", "null", "yes", "no", "on", "off", "y", "n", "nan"];
    let is_address = text.parse::<std::net::Ipv4Addr>().is_ok() || text.contains('/') && text.parse::<IpNet>().is_ok();
    let begins = text.starts_with(|c: char| c.is_ascii_alphabetic()) || is_address;
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | '/');
    if begins && text.chars().all(is_plain) && !WORDS.contains(&text.to_ascii_lowercase().as_str()) {
        return text.to_string();
    }
    // JSON's strings are YAML's.
    serde_json::Value::String(text.to_string()).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_could_be_taken_for_something_else_stands_between_quotes() {
        for plain in ["api.openai.com", "10.0.0.5", "10.0.0.0/8", "backend", "a-b_c.service", "f"] {
            assert_eq!(quoted(plain), plain);
        }
        for text in
            ["true", "No", "null", "1e3", "0x1f", "12", "8000-8080", "2001:db8::1", "a b", "a#b", "a\\b", "-", "", "~", "/bin/x", ".5"]
        {
            assert_eq!(quoted(text), serde_json::to_string(text).unwrap());
        }
    }

    #[test]
    fn no_remark_leaves_its_line() {
        let parsed = parse("version: 1\noutbound:\n  - to: a.example.com\n", "a.yaml").unwrap().policy;
        let evil = || "x\noutbound: [{to: 0.0.0.0/0, port: 1-65535}]\r\u{2028}mode: observe\u{85}y: 1".to_string();
        let remarks = Remarks {
            head: vec![evil()],
            before: BTreeMap::from([(0, vec![evil()])]),
            beside: BTreeMap::from([((0, 0), evil())]),
            tail: vec![evil()],
        };
        let text = write(&parsed, &remarks);
        let read = parse(&text, "a.yaml").unwrap().policy;
        assert_eq!(read.outbound.iter().map(|way| &way.ports).collect::<Vec<_>>(), [&PortSet::single(443)]);
        assert_eq!((read.mode, text.lines().filter(|line| line.contains("0.0.0.0/0")).count()), (Mode::Enforce, 4));
    }
}
