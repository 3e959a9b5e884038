//! Facts about this host: its clocks, users and groups, the control groups of units, and its DNS servers. Nothing is changed.

use std::collections::VecDeque;
use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::errno::Errno;
use nix::time::{ClockId, clock_gettime};
use nix::unistd::{Group, Uid, User};

use crate::base::time::Timestamp;
use crate::pins::Anchor;
use crate::system::process::Processes;
use crate::system::{netlink, resolv_conf};
use crate::violation::attribute::Running;
use crate::world::Host;

/// How many control groups are looked at for one unit, and how deep. A host with thousands of units has them in few slices.
const SLICES_AT_MOST: usize = 4096;

/// The host this program runs on.
#[derive(Debug, Clone)]
pub struct LocalHost {
    /// The file that names the DNS servers. Of a named network namespace it is `/etc/netns/NAME/resolv.conf`, as ip-netns(8)
    /// has it.
    pub resolv_conf: PathBuf,
    /// Where systemd-resolved writes its real servers.
    pub resolved_conf: PathBuf,
    /// Where the mounts of this process are listed.
    pub mountinfo: PathBuf,
}

impl Default for LocalHost {
    fn default() -> LocalHost {
        LocalHost {
            resolv_conf: PathBuf::from("/etc/resolv.conf"),
            resolved_conf: PathBuf::from("/run/systemd/resolve/resolv.conf"),
            mountinfo: PathBuf::from("/proc/self/mountinfo"),
        }
    }
}

impl LocalHost {
    /// This host with its usual files.
    pub fn new() -> LocalHost {
        LocalHost::default()
    }

    /// This host as seen from a named network namespace, which may have DNS servers of its own.
    pub fn in_netns(name: &str) -> LocalHost {
        let own = Path::new("/etc/netns").join(name).join("resolv.conf");
        if own.exists() { LocalHost { resolv_conf: own, ..LocalHost::default() } } else { LocalHost::default() }
    }

    /// Which boot this is: `/proc/sys/kernel/random/boot_id`.
    pub fn boot_id(&self) -> Result<String, String> {
        Ok(read(Path::new("/proc/sys/kernel/random/boot_id"))?.trim().to_string())
    }

    /// Seconds since the boot, with the time it slept (CLOCK_BOOTTIME).
    pub fn boottime(&self) -> Result<u64, String> {
        let time = clock_gettime(ClockId::CLOCK_BOOTTIME).map_err(|errno| format!("cannot read CLOCK_BOOTTIME: {}", words(errno)))?;
        Ok(u64::try_from(time.tv_sec()).unwrap_or(0))
    }
}

impl Host for LocalHost {
    fn now(&self) -> Timestamp {
        let seconds = match SystemTime::now().duration_since(UNIX_EPOCH) {
            Ok(since) => i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
            Err(before) => i64::try_from(before.duration().as_secs()).map_or(i64::MIN, |seconds| -seconds),
        };
        Timestamp(seconds)
    }

    fn clock(&self) -> Anchor {
        // Without the other clock every run is a boot of its own, and the wall clock is believed.
        Anchor { boot_id: self.boot_id().unwrap_or_default(), boottime: self.boottime().unwrap_or_default(), wall: self.now() }
    }

    fn since_boot(&self) -> Duration {
        clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(Duration::ZERO, Duration::from)
    }

    fn slept(&self) -> u64 {
        let awake = clock_gettime(ClockId::CLOCK_MONOTONIC).ok().and_then(|time| u64::try_from(time.tv_sec()).ok());
        self.boottime().ok().zip(awake).map_or(0, |(all, awake)| all.saturating_sub(awake))
    }

    fn namespace(&self) -> String {
        // A namespace gets the inode of one that is gone, so the kernel's own count of them is taken where there is one.
        let inode = || fs::metadata("/proc/thread-self/ns/net").map(|namespace| namespace.ino()).unwrap_or_default();
        let number = netlink::namespace_cookie().map_or_else(|| format!("inode {}", inode()), |cookie| cookie.to_string());
        format!("{}/{number}", self.boot_id().unwrap_or_default())
    }

    fn user(&self, name: &str) -> Result<Option<u32>, String> {
        found(User::from_name(name).map(|user| user.map(|user| user.uid.as_raw())), "user", name)
    }

    fn processes(&self) -> Vec<Running> {
        Processes::new(Path::new("/proc")).all()
    }

    fn name_of_user(&self, uid: u32) -> Option<String> {
        User::from_uid(Uid::from_raw(uid)).ok().flatten().map(|user| user.name)
    }

    fn group(&self, name: &str) -> Result<Option<u32>, String> {
        found(Group::from_name(name).map(|group| group.map(|group| group.gid.as_raw())), "group", name)
    }

    fn unit(&self, name: &str) -> Result<Option<(String, u64)>, String> {
        let mounts = read(&self.mountinfo)?;
        let root = cgroup2_mount(&mounts)
            .ok_or_else(|| format!("cgroup v2 is not mounted on this host, so packets cannot be told by the unit `{name}`"))?;
        unit_below(&root, name)
    }

    fn system_servers(&self) -> Result<Vec<IpAddr>, String> {
        let servers = resolv_conf::servers(&read(&self.resolv_conf)?);
        if resolv_conf::only_stub(&servers) {
            // Without that file the stub is all there is to ask.
            let real = read(&self.resolved_conf).map(|text| resolv_conf::servers(&text)).unwrap_or_default();
            if !real.is_empty() {
                return Ok(resolv_conf::without_loopback(real));
            }
        }
        Ok(resolv_conf::without_loopback(servers))
    }

    fn remote_session(&self) -> Option<(IpAddr, u16)> {
        self.remote_flow().map(|(peer, own)| (peer.ip(), own.port()))
    }

    fn remote_flow(&self) -> Option<(SocketAddr, SocketAddr)> {
        let ancestors = ancestors();
        // Whoever went into a namespace of its own since cannot cut off the session that it was started from.
        let namespace = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/net")).ok();
        let here = namespace("thread-self");
        if ancestors.iter().filter_map(|pid| namespace(&pid.to_string())).any(|there| here.as_ref() != Some(&there)) {
            return None;
        }
        // sudo drops the variable; the shell that sudo was called from still has it.
        let inherited = || ancestors.iter().find_map(|pid| ssh_connection_of(*pid));
        std::env::var("SSH_CONNECTION").ok().or_else(inherited).and_then(|connection| ssh_flow(&connection))
    }
}

/// How many generations of parents are looked at.
const ANCESTORS_AT_MOST: usize = 32;

/// The processes this one descends from, the nearest first, without process 1.
fn ancestors() -> Vec<u32> {
    let parent = |pid: u32| -> Option<u32> {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        status.lines().find_map(|line| line.strip_prefix("PPid:"))?.trim().parse().ok()
    };
    let first = std::os::unix::process::parent_id();
    std::iter::successors(Some(first), |pid| parent(*pid)).take_while(|pid| *pid > 1).take(ANCESTORS_AT_MOST).collect()
}

/// What a process has as `SSH_CONNECTION`.
fn ssh_connection_of(pid: u32) -> Option<String> {
    let environ = fs::read(format!("/proc/{pid}/environ")).ok()?;
    let connection = environ.split(|octet| *octet == 0).find_map(|entry| entry.strip_prefix(b"SSH_CONNECTION="))?;
    String::from_utf8(connection.to_vec()).ok()
}

/// Both ends of `PEER PEER-PORT OWN OWN-PORT`, as sshd(8) writes it.
fn ssh_flow(connection: &str) -> Option<(SocketAddr, SocketAddr)> {
    let words: Vec<&str> = connection.split(' ').collect();
    let [peer, peer_port, own, own_port] = words[..] else { return None };
    let end = |address: &str, port: &str| {
        let address: IpAddr = address.split('%').next()?.parse().ok()?;
        Some(SocketAddr::new(address.to_canonical(), port.parse().ok()?))
    };
    Some((end(peer, peer_port)?, end(own, own_port)?))
}

/// getpwnam(3) lists errors by which some of its sources say that there is no such entry.
fn found(answer: nix::Result<Option<u32>>, what: &str, name: &str) -> Result<Option<u32>, String> {
    match answer {
        Ok(number) => Ok(number),
        Err(Errno::ENOENT | Errno::ESRCH | Errno::EBADF | Errno::EPERM) => Ok(None),
        Err(errno) => Err(format!("cannot look up the {what} `{name}`: {}", words(errno))),
    }
}

/// Where cgroup v2 is mounted, by the list of mounts in this file; `None` when it is nowhere.
pub(super) fn cgroup2_root(mountinfo: &Path) -> Option<PathBuf> {
    cgroup2_mount(&read(mountinfo).ok()?)
}

/// Where cgroup v2 is mounted: of several mounts one that shows the whole tree.
fn cgroup2_mount(mountinfo: &str) -> Option<PathBuf> {
    let mut part = None;
    for line in mountinfo.lines() {
        // proc(5): id, parent, device, root, mount point, options, optional fields, `-`, type, source, options.
        let Some((front, back)) = line.split_once(" - ") else { continue };
        if back.split(' ').next() != Some("cgroup2") {
            continue;
        }
        let mut fields = front.split(' ').skip(3);
        let (Some(root), Some(point)) = (fields.next(), fields.next()) else { continue };
        let point = PathBuf::from(unescape(point));
        if root == "/" {
            return Some(point);
        }
        part.get_or_insert(point);
    }
    part
}

/// Undoes the octal escapes of mountinfo for space, tab, newline and backslash.
fn unescape(field: &str) -> String {
    field.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
}

/// The control group of a unit: its path below the root, and its id, which is the inode number of its directory.
///
/// Only slices are entered, because only systemd makes units there. Services, scopes and the slice of users are not: whoever
/// owns what is inside could make a directory of any name, and so take the permissions of the unit of that name.
fn unit_below(root: &Path, name: &str) -> Result<Option<(String, u64)>, String> {
    if name.is_empty() || name == "." || name == ".." || name.contains(['/', '\0']) {
        return Err(format!("`{name}` is no name of a unit"));
    }
    let mut slices = VecDeque::from([PathBuf::from("system.slice"), PathBuf::new()]);
    let mut looked_at = 0;
    while let Some(slice) = slices.pop_front() {
        let path = slice.join(name);
        match fs::symlink_metadata(root.join(&path)) {
            Ok(directory) if directory.is_dir() => return Ok(Some((path.to_string_lossy().into_owned(), directory.ino()))),
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(refused(&root.join(&path), &error)),
            Ok(_) | Err(_) => {}
        }
        looked_at += 1;
        if looked_at == SLICES_AT_MOST {
            return Err(format!("the unit `{name}` was not found in the first {SLICES_AT_MOST} slices of {}", root.display()));
        }
        slices.extend(slices_in(root, &slice)?);
    }
    Ok(None)
}

/// The slices directly in a slice, sorted. A slice that ended meanwhile has none.
fn slices_in(root: &Path, slice: &Path) -> Result<Vec<PathBuf>, String> {
    let path = root.join(slice);
    let entries = match fs::read_dir(&path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(refused(&path, &error)),
    };
    let mut slices = Vec::new();
    for entry in entries.flatten() {
        let file_name = entry.file_name();
        let is_slice = file_name.to_str().is_some_and(|name| name.ends_with(".slice") && name != "user.slice");
        let was_first = slice.as_os_str().is_empty() && file_name == "system.slice";
        if is_slice && !was_first && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            slices.push(slice.join(file_name));
        }
    }
    slices.sort();
    Ok(slices)
}

fn read(path: &Path) -> Result<String, String> {
    match fs::read(path) {
        Ok(octets) => Ok(String::from_utf8_lossy(&octets).into_owned()),
        Err(error) => Err(refused(path, &error)),
    }
}

fn refused(path: &Path, error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(number) => format!("cannot read {}: {}", path.display(), words(Errno::from_raw(number))),
        None => format!("cannot read {}: {error}", path.display()),
    }
}

fn words(errno: Errno) -> String {
    format!("{} ({errno:?})", errno.desc().to_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(resolv_conf: &str, resolved_conf: Option<&str>) -> (tempfile::TempDir, LocalHost) {
        let directory = tempfile::tempdir().unwrap();
        let host = LocalHost {
            resolv_conf: directory.path().join("resolv.conf"),
            resolved_conf: directory.path().join("resolved.conf"),
            ..LocalHost::new()
        };
        fs::write(&host.resolv_conf, resolv_conf).unwrap();
        if let Some(text) = resolved_conf {
            fs::write(&host.resolved_conf, text).unwrap();
        }
        (directory, host)
    }

    fn servers(resolv_conf: &str, resolved_conf: Option<&str>) -> Vec<String> {
        let (_directory, host) = host(resolv_conf, resolved_conf);
        host.system_servers().unwrap().iter().map(IpAddr::to_string).collect()
    }

    #[test]
    fn behind_the_stub_the_real_servers_are_found() {
        assert_eq!(servers("nameserver 127.0.0.53\n", Some("nameserver 192.0.2.1\nnameserver 127.0.0.1\n")), ["192.0.2.1"]);
    }

    #[test]
    fn a_stub_without_its_file_and_a_resolver_of_ones_own_are_the_answer_themselves() {
        assert_eq!(servers("nameserver 127.0.0.53\n", None), ["127.0.0.53"]);
        assert_eq!(servers("nameserver 127.0.0.53\n", Some("# none yet\n")), ["127.0.0.53"]);
        assert_eq!(servers("nameserver 127.0.0.1\n", Some("nameserver 192.0.2.1\n")), ["127.0.0.1"]);
    }

    #[test]
    fn no_server_is_no_error_and_no_file_is() {
        assert_eq!(servers("", None), [] as [&str; 0]);
        let (directory, host) = host("", None);
        fs::remove_file(&host.resolv_conf).unwrap();
        let why = host.system_servers().unwrap_err();
        assert_eq!(why, format!("cannot read {}/resolv.conf: no such file or directory (ENOENT)", directory.path().display()));
    }

    #[test]
    fn an_ssh_session_is_its_peer_and_our_port() {
        let of = |text: &str| ssh_flow(text).map(|(peer, own)| format!("{peer} {own}"));
        assert_eq!(of("203.0.113.9 52011 10.0.0.2 22").as_deref(), Some("203.0.113.9:52011 10.0.0.2:22"));
        assert_eq!(of("fe80::1%eth0 52011 fe80::2%eth0 2222").as_deref(), Some("[fe80::1]:52011 [fe80::2]:2222"));
        assert_eq!(of("::ffff:203.0.113.9 1 ::ffff:10.0.0.2 22").as_deref(), Some("203.0.113.9:1 10.0.0.2:22"));
        assert_eq!(of("nonsense"), None);
        assert_eq!(of("a b c d"), None);
    }

    #[test]
    fn root_is_user_and_group_0_and_nobody_has_this_name() {
        let host = LocalHost::new();
        assert_eq!(host.user("root"), Ok(Some(0)));
        assert_eq!(host.group("root"), Ok(Some(0)));
        assert_eq!(host.user("no such user"), Ok(None));
        assert_eq!(host.group("no such group"), Ok(None));
    }

    #[test]
    fn the_two_clocks_are_read_together() {
        let host = LocalHost::new();
        let (first, second) = (host.clock(), host.clock());
        assert_eq!(first.boot_id.len(), 36);
        assert_eq!(first.boot_id, second.boot_id);
        assert!(second.boottime >= first.boottime && second.wall >= first.wall);
    }

    #[test]
    fn the_cgroup2_mount_is_found_in_both_layouts() {
        let hybrid = "31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755\n\
                      32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu\n\
                      41 31 0:38 / /sys/fs/cgroup/unified rw,relatime shared:9 - cgroup2 cgroup2 rw\n";
        assert_eq!(cgroup2_mount(hybrid), Some("/sys/fs/cgroup/unified".into()));
        let several = "50 23 0:26 /system.slice/x /mnt/part\\040one rw - cgroup2 c rw\n51 23 0:26 / /sys/fs/cgroup rw - cgroup2 c rw\n";
        assert_eq!(cgroup2_mount(several), Some("/sys/fs/cgroup".into()));
        assert_eq!(cgroup2_mount(several.lines().next().unwrap()), Some("/mnt/part one".into()));
        assert_eq!(cgroup2_mount("junk\n - cgroup2\n"), None);
    }

    #[test]
    fn a_unit_is_found_in_system_slice_in_any_other_slice_and_nowhere_else() {
        let root = tempfile::tempdir().unwrap();
        for path in [
            "system.slice/backend.service",
            "app.slice/backend.service",
            "system.slice/system-worker.slice/worker@1.service",
            "app.slice/app-web.slice/web.service",
            "user.slice/user-1000.slice/mine.service",
            "system.slice/docker-1.scope/inner.service",
            "init.scope",
        ] {
            fs::create_dir_all(root.path().join(path)).unwrap();
        }
        fs::write(root.path().join("system.slice/file.service"), "").unwrap();
        let path = |name: &str| unit_below(root.path(), name).unwrap().map(|(path, _)| path);
        assert_eq!(path("backend.service").as_deref(), Some("system.slice/backend.service"));
        assert_eq!(path("worker@1.service").as_deref(), Some("system.slice/system-worker.slice/worker@1.service"));
        assert_eq!(path("web.service").as_deref(), Some("app.slice/app-web.slice/web.service"));
        assert_eq!(path("init.scope").as_deref(), Some("init.scope"));
        for absent in ["mine.service", "inner.service", "file.service", "absent.service"] {
            assert_eq!(path(absent), None, "{absent}");
        }
        for bad in ["", "..", "a/b.service", "a\0b"] {
            assert!(unit_below(root.path(), bad).is_err(), "{bad:?}");
        }
        let (_, id) = unit_below(root.path(), "backend.service").unwrap().unwrap();
        assert_eq!(id, fs::metadata(root.path().join("system.slice/backend.service")).unwrap().ino());
    }
}
