//! Who sent a packet: what the host says of sockets and processes, read and made fit to be kept. Pure; the host is asked elsewhere.
//!
//! Whatever a process says of itself is somebody else's text: it is kept without what a terminal would obey, and short.

use std::net::SocketAddr;

use serde::Serialize;

use crate::base::diagnostic::is_printable;
use crate::base::net::Protocol;
use crate::violation::record::{KnownProcess, Process};

/// How many characters of a command line are kept. Secrets stand in command lines, and further back more often.
pub const COMMAND_MAX: usize = 200;
/// How many characters of an executable's path, or of a unit's name, are kept.
const NAME_MAX: usize = 250;
/// What stands where something was cut off.
const CUT: char = '…';

/// The ends of a socket that sent a packet: its own first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Ends {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// Where the packet comes from.
    pub local: SocketAddr,
    /// Where it was to go.
    pub remote: SocketAddr,
}

/// A process that runs, as far as it can be seen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Running {
    /// Which program.
    #[serde(flatten)]
    pub process: KnownProcess,
    /// Whose it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// The systemd unit or container.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// The inodes of the sockets that it has open.
    pub sockets: Vec<u64>,
}

/// Who owns a socket, as far as it was found out.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Owner {
    /// The program.
    pub process: Option<Process>,
    /// The systemd unit or container.
    pub service: Option<String>,
}

/// What `/proc/PID/stat` says of a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stat {
    /// Its short name.
    pub name: String,
    /// What started it, or took it over.
    pub parent: u32,
    /// When it was started, in ticks since the boot. Two processes of one number have different ones.
    pub started: u64,
}

impl Stat {
    /// Reads the file; nothing when it is malformed. A name may hold anything, spaces and brackets too.
    pub fn parse(content: &[u8]) -> Option<Stat> {
        let open = content.iter().position(|octet| *octet == b'(')?;
        let close = content.iter().rposition(|octet| *octet == b')')?;
        let name = inert(content.get(open + 1..close)?, NAME_MAX);
        let rest = std::str::from_utf8(content.get(close + 1..)?).ok()?;
        // proc(5) counts from 1: the state, which follows the name, is field 3.
        let mut fields = rest.split_ascii_whitespace();
        let parent = fields.nth(1)?.parse().ok()?;
        Some(Stat { name, parent, started: fields.nth(17)?.parse().ok()? })
    }
}

/// The text without what a terminal obeys or hides behind, and without line breaks, cut off after so many characters.
pub fn inert(octets: &[u8], most: usize) -> String {
    let text = String::from_utf8_lossy(octets);
    let mut kept = String::new();
    let mut characters = 0;
    for c in text.chars() {
        let written = if is_printable(c) { c.to_string() } else { c.escape_unicode().to_string() };
        characters += written.chars().count();
        if characters > most {
            kept.push(CUT);
            break;
        }
        kept.push_str(&written);
    }
    kept
}

/// The path of an executable as it is kept.
pub fn executable(path: &[u8]) -> String {
    inert(path, NAME_MAX)
}

/// A command line as it is kept: its words with spaces between them.
pub fn command(line: &[u8]) -> String {
    let words = line.strip_suffix(&[0]).unwrap_or(line);
    inert(&words.iter().map(|octet| if *octet == 0 { b' ' } else { *octet }).collect::<Vec<_>>(), COMMAND_MAX)
}

/// The systemd unit or container that a control group belongs to, by its path below the root; nothing for the root and for slices.
///
/// It is the first group on the way down that is no slice: systemd alone makes those, and whoever owns one may call what is inside
/// whatever he likes. A scope that a container runtime asked for is called by the runtime and the short form of the container's id.
pub fn service(path: &str) -> Option<String> {
    let mut parts = path.split('/').filter(|part| !part.is_empty());
    let first = parts.find(|part| !part.ends_with(".slice"))?;
    // Without systemd a runtime makes groups of its own: /docker/ID, /kubepods/POD/ID, /lxc.payload.NAME.
    let below = parts.find_map(container_id).filter(|_| !first.contains('.'));
    let named = match (container_id(first), below) {
        (Some(id), _) => runtime(first).map(|runtime| format!("{runtime} {id}")).unwrap_or(id),
        (None, Some(id)) => format!("{first} {id}"),
        (None, None) => first.to_string(),
    };
    Some(inert(named.as_bytes(), NAME_MAX))
}

/// The short form of the 64 digits that containers are called by, in `ID`, `RUNTIME-ID` or `RUNTIME-ID.scope`.
fn container_id(part: &str) -> Option<String> {
    let stem = part.strip_suffix(".scope").unwrap_or(part);
    let id = stem.rsplit('-').next().unwrap_or(stem);
    (id.len() == 64 && id.bytes().all(|octet| octet.is_ascii_hexdigit())).then(|| id[..12].to_string())
}

fn runtime(part: &str) -> Option<&str> {
    part.strip_suffix(".scope").unwrap_or(part).rsplit_once('-').map(|(runtime, _)| runtime)
}

/// The path below the root of cgroup v2 in `/proc/PID/cgroup`.
pub fn unified(content: &str) -> Option<&str> {
    content.lines().find_map(|line| line.strip_prefix("0::"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_read_whatever_it_calls_itself() {
        let stat = |name: &str| format!("4711 ({name}) S 4000 4711 4711 34816 4711 4194304 1 0 0 0 0 0 0 0 20 0 1 0 987654 1 1 1");
        let of = |name: &str| Stat::parse(stat(name).as_bytes()).unwrap();
        assert_eq!(of("curl"), Stat { name: "curl".into(), parent: 4000, started: 987_654 });
        assert_eq!(of("a) R 1 1 (b"), Stat { name: "a) R 1 1 (b".into(), parent: 4000, started: 987_654 });
        assert_eq!(of("x\n\x1b[2Jy").name, "x\\u{a}\\u{1b}[2Jy");
        for bad in ["", "1", "1 (a", "1 (a) S", "1 (a) S x", "(", ")(", "1 (a) S 1 1"] {
            assert_eq!(Stat::parse(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn a_command_line_is_one_short_line_that_no_terminal_obeys() {
        assert_eq!(command(b"curl\0-s\0https://a.example\0"), "curl -s https://a.example");
        assert_eq!(command(b"a\n\0\x1b]0;x\x07\0<b>\0\xe2\x80\xae\0\xff"), "a\\u{a} \\u{1b}]0;x\\u{7} <b> \\u{202e} \u{fffd}");
        let long = command(&[b'x'; 10_000]);
        assert_eq!((long.chars().count(), long.ends_with("x…")), (COMMAND_MAX + 1, true));
        // What is cut off is not cut off in the middle of what a character was made into.
        let escapes = command(&[7; 100]);
        assert!(escapes.ends_with("\\u{7}…") && escapes.chars().count() <= COMMAND_MAX + 1, "{escapes}");
        assert_eq!(command(b""), "");
    }

    #[test]
    fn a_control_group_is_the_first_unit_on_the_way_that_is_no_slice() {
        let id = "0123456789ab".to_string() + &"c".repeat(52);
        for (path, unit) in [
            ("/system.slice/backend.service".to_string(), Some("backend.service")),
            ("/system.slice/system-worker.slice/worker@1.service/child".to_string(), Some("worker@1.service")),
            ("/user.slice/user-1000.slice/session-3.scope".to_string(), Some("session-3.scope")),
            // Whoever owns his manager can make a group of any name in it.
            ("/user.slice/user-1000.slice/user@1000.service/app.slice/backend.service".to_string(), Some("user@1000.service")),
            (format!("/system.slice/docker-{id}.scope"), Some("docker 0123456789ab")),
            (format!("/machine.slice/libpod-{id}.scope/container"), Some("libpod 0123456789ab")),
            (format!("/kubepods.slice/kubepods-pod1.slice/cri-containerd-{id}.scope"), Some("cri-containerd 0123456789ab")),
            (format!("/docker/{id}"), Some("docker 0123456789ab")),
            (format!("/system.slice/backend.service/{id}"), Some("backend.service")),
            ("/lxc.payload.web".to_string(), Some("lxc.payload.web")),
            ("/init.scope".to_string(), Some("init.scope")),
            ("/".to_string(), None),
            ("".to_string(), None),
            ("/user.slice".to_string(), None),
            ("/a\u{1b}b".to_string(), Some("a\\u{1b}b")),
        ] {
            assert_eq!(service(&path).as_deref(), unit, "{path}");
        }
        assert_eq!(unified("12:cpu:/x\n0::/system.slice/a.service\n"), Some("/system.slice/a.service"));
    }
}
