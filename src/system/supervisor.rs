//! systemd: its notification socket (sd_notify(3)) and its journal (the native protocol). Both are a datagram to a socket whose
//! place is known, so no library is needed; where there is no systemd, nothing happens.

use std::ffi::OsString;
use std::io::{self, IoSlice, Seek, Write};
use std::os::fd::AsRawFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{ControlMessage, MsgFlags, UnixAddr, sendmsg};

use crate::world::Supervisor;

/// Where the journal listens.
const JOURNAL: &str = "/run/systemd/journal/socket";

/// systemd, as far as it is there.
pub struct Systemd {
    socket: Option<UnixDatagram>,
    notify: Option<SocketAddr>,
    watchdog: Option<Duration>,
    journal: PathBuf,
}

impl Systemd {
    /// Finds out of the environment who started this process.
    pub fn from_environment() -> Systemd {
        let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
        let for_us = number("WATCHDOG_PID").is_none_or(|pid| pid == u64::from(std::process::id()));
        let watchdog = number("WATCHDOG_USEC").filter(|microseconds| for_us && *microseconds > 0).map(Duration::from_micros);
        Systemd::new(std::env::var_os("NOTIFY_SOCKET"), watchdog, Path::new(JOURNAL))
    }

    /// One that listens at this socket, `@` in front of an abstract one, with a journal at this path.
    pub fn new(notify: Option<OsString>, watchdog: Option<Duration>, journal: &Path) -> Systemd {
        let address = |place: OsString| match place.as_bytes() {
            [b'@', name @ ..] => SocketAddr::from_abstract_name(name).ok(),
            [b'/', ..] => SocketAddr::from_pathname(&place).ok(),
            _ => None,
        };
        let socket = UnixDatagram::unbound().ok().filter(|socket| socket.set_nonblocking(true).is_ok());
        Systemd { socket, notify: notify.and_then(address), watchdog, journal: journal.to_path_buf() }
    }
}

impl Supervisor for Systemd {
    fn notify(&mut self, state: &str) {
        if let (Some(socket), Some(address)) = (&self.socket, &self.notify) {
            // A service manager that does not listen is none.
            let _ = socket.send_to_addr(state.as_bytes(), address);
        }
    }

    fn watchdog(&self) -> Option<Duration> {
        self.watchdog.filter(|_| self.notify.is_some())
    }

    fn journal(&mut self, fields: &[(&str, &str)]) -> bool {
        let Some(socket) = &self.socket else { return false };
        let entry = entry(fields);
        match socket.send_to(&entry, &self.journal) {
            Ok(_) => true,
            // Larger than a datagram may be: the journal takes a sealed file instead.
            Err(error) if error.raw_os_error() == Some(libc::EMSGSIZE) => send_file(socket, &entry, &self.journal).is_ok(),
            Err(_) => false,
        }
    }
}

/// An entry in the journal's native protocol: `NAME=value` and a line feed, or, where the value has line feeds of its own, the name, a
/// line feed, the length in 64 bits, lowest octet first, the value, a line feed.
fn entry(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut entry = Vec::new();
    for (name, value) in fields {
        entry.extend_from_slice(name.as_bytes());
        if value.contains('\n') {
            entry.push(b'\n');
            entry.extend_from_slice(&(value.len() as u64).to_le_bytes());
        } else {
            entry.push(b'=');
        }
        entry.extend_from_slice(value.as_bytes());
        entry.push(b'\n');
    }
    entry
}

fn send_file(socket: &UnixDatagram, entry: &[u8], to: &Path) -> io::Result<()> {
    let mut file = std::fs::File::from(memfd_create("egressguard", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?);
    file.write_all(entry)?;
    file.rewind()?;
    nix::fcntl::fcntl(&file, nix::fcntl::FcntlArg::F_ADD_SEALS(nix::fcntl::SealFlag::all()))?;
    let descriptors = [file.as_raw_fd()];
    let rights = [ControlMessage::ScmRights(&descriptors)];
    sendmsg(socket.as_raw_fd(), &[IoSlice::new(&[])], &rights, MsgFlags::empty(), Some(&UnixAddr::new(to)?))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_reaches_the_service_manager_by_path_and_by_abstract_name() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let name = format!("egressguard-test-{}", std::process::id());
        let listeners = [
            (path.as_os_str().to_owned(), UnixDatagram::bind(&path).unwrap()),
            (format!("@{name}").into(), UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap()),
        ];
        for (place, listener) in listeners {
            Systemd::new(Some(place), None, Path::new("/nowhere")).notify("READY=1");
            let mut heard = [0; 64];
            let length = listener.recv(&mut heard).unwrap();
            assert_eq!(&heard[..length], b"READY=1");
        }
        for nobody in ["", "relative", "/nowhere/at/all"] {
            Systemd::new(Some(nobody.into()), None, Path::new("/nowhere")).notify("READY=1");
        }
    }

    #[test]
    fn a_journal_entry_keeps_its_fields_apart_whatever_they_hold() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("journal");
        let listener = UnixDatagram::bind(&path).unwrap();
        let mut systemd = Systemd::new(None, None, &path);
        assert!(systemd.journal(&[("MESSAGE", "a=b"), ("EGRESSGUARD_COMMAND", "x\nPRIORITY=0"), ("PRIORITY", "4")]));
        let mut heard = [0; 256];
        let length = listener.recv(&mut heard).unwrap();
        let expected = [&b"MESSAGE=a=b\nEGRESSGUARD_COMMAND\n"[..], &12u64.to_le_bytes(), b"x\nPRIORITY=0\nPRIORITY=4\n"].concat();
        assert_eq!(&heard[..length], expected);
        assert!(systemd.journal(&[("MESSAGE", &"x".repeat(1 << 20))]), "a large one is handed over as a file");
        assert!(!Systemd::new(None, None, Path::new("/nowhere")).journal(&[("MESSAGE", "x")]), "nobody takes it");
    }
}
