//! Network namespaces as values: make one, name one, run something inside one. And the way into a place of our own where
//! packet filters may be tried: as root directly, otherwise through a user namespace.
//!
//! Nothing here touches a packet filter or an interface.

use std::fmt;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use nix::unistd::{getegid, geteuid};

/// A network namespace, kept alive by an open file.
#[derive(Debug)]
pub struct Namespace {
    file: File,
}

/// Which namespace: two namespaces that live at the same time never have the same identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    device: u64,
    inode: u64,
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "net:[{}]", self.inode)
    }
}

impl Namespace {
    /// The namespace of the calling thread.
    pub fn current() -> io::Result<Namespace> {
        Namespace::open(Path::new("/proc/thread-self/ns/net"))
    }

    /// The namespace that a file stands for: `/run/netns/NAME`, `/proc/PID/ns/net`.
    pub fn open(path: &Path) -> io::Result<Namespace> {
        File::open(path).map(|file| Namespace { file })
    }

    /// A new, empty namespace. The calling thread stays where it is.
    pub fn fresh() -> io::Result<Namespace> {
        on_a_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET)?;
            Namespace::current()
        })?
    }

    /// Which one it is.
    pub fn identity(&self) -> io::Result<Identity> {
        let facts = self.file.metadata()?;
        Ok(Identity { device: facts.dev(), inode: facts.ino() })
    }

    /// A path under which other processes find it while this value lives.
    pub fn path(&self) -> PathBuf {
        use std::os::fd::AsRawFd;
        PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd()))
    }

    /// Does the work on a thread of its own inside the namespace. Threads and processes that it starts live there too.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> io::Result<T> {
        on_a_thread(|| {
            setns(&self.file, CloneFlags::CLONE_NEWNET)?;
            Ok(work())
        })?
    }
}

fn on_a_thread<T: Send>(work: impl FnOnce() -> T + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().spawn_scoped(scope, work)?;
        thread.join().map_err(|_| io::Error::other("a thread of the demo panicked"))
    })
}

/// How the way in was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    /// With the rights this process had.
    Root,
    /// Through a user namespace of its own.
    UserNamespace,
}

/// What the machine lacks, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing {
    /// What is missing: lower case, no full stop.
    pub what: String,
    /// The next step.
    pub help: String,
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

impl std::error::Error for Missing {}

impl Missing {
    /// Says what is missing, and what to do.
    pub fn new(what: impl Into<String>, help: impl Into<String>) -> Missing {
        Missing { what: what.into(), help: help.into() }
    }
}

/// Takes this process out of the network namespace and the mount table it was started in. To be called while it has one thread.
pub fn enter() -> Result<Entry, Missing> {
    let apart = CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS;
    if geteuid().is_root() && unshare(apart).is_ok() {
        return Ok(Entry::Root);
    }
    // Both numbers are those of the outside: inside they are 65534 until the maps are written.
    let (uid, gid) = (geteuid(), getegid());
    unshare(CloneFlags::CLONE_NEWUSER).map_err(|errno| why_no_user_namespace(errno, &Switches::read()))?;
    let maps = [
        ("/proc/self/setgroups", "deny".to_string()),
        ("/proc/self/uid_map", format!("0 {uid} 1")),
        ("/proc/self/gid_map", format!("0 {gid} 1")),
    ];
    for (file, text) in maps {
        if let Err(error) = fs::write(file, text)
            && !(file.ends_with("setgroups") && error.kind() == io::ErrorKind::NotFound)
        {
            return Err(why_no_user_namespace(Errno::from_raw(error.raw_os_error().unwrap_or(0)), &Switches::read()));
        }
    }
    unshare(apart).map_err(|errno| why_no_user_namespace(errno, &Switches::read()))?;
    Ok(Entry::UserNamespace)
}

/// The switches by which distributions and administrators forbid user namespaces.
#[derive(Debug, Default)]
struct Switches {
    /// `kernel.unprivileged_userns_clone`, of Debian's and Ubuntu's kernels.
    clone: Option<String>,
    /// `kernel.apparmor_restrict_unprivileged_userns`, of Ubuntu 23.10 and later.
    apparmor: Option<String>,
    /// `user.max_user_namespaces`.
    most: Option<String>,
    /// Whether the kernel knows user namespaces at all.
    known: bool,
}

impl Switches {
    fn read() -> Switches {
        let read = |path: &str| fs::read_to_string(path).ok().map(|text| text.trim().to_string());
        Switches {
            clone: read("/proc/sys/kernel/unprivileged_userns_clone"),
            apparmor: read("/proc/sys/kernel/apparmor_restrict_unprivileged_userns"),
            most: read("/proc/sys/user/max_user_namespaces"),
            known: Path::new("/proc/self/ns/user").exists(),
        }
    }
}

fn why_no_user_namespace(errno: Errno, switches: &Switches) -> Missing {
    let root = "or run the demo as root: `sudo egressguard demo`";
    if !switches.known {
        return Missing::new("this kernel has no user namespaces (CONFIG_USER_NS)", "run the demo as root: `sudo egressguard demo`");
    }
    if switches.clone.as_deref() == Some("0") {
        return Missing::new(
            format!("user namespaces are kept for root here (kernel.unprivileged_userns_clone=0, {errno:?})"),
            format!("`sudo sysctl kernel.unprivileged_userns_clone=1`, {root}"),
        );
    }
    if switches.most.as_deref() == Some("0") {
        return Missing::new(
            format!("user namespaces are switched off here (user.max_user_namespaces=0, {errno:?})"),
            format!("`sudo sysctl user.max_user_namespaces=15000`, {root}"),
        );
    }
    if switches.apparmor.as_deref() == Some("1") {
        return Missing::new(
            format!("AppArmor gives no rights inside user namespaces here (kernel.apparmor_restrict_unprivileged_userns=1, {errno:?})"),
            format!("`sudo sysctl kernel.apparmor_restrict_unprivileged_userns=0`, {root}"),
        );
    }
    match errno {
        Errno::ENOSPC | Errno::EUSERS => Missing::new(
            format!("no more user namespaces may be made here ({errno:?}: user.max_user_namespaces, or nested too deeply)"),
            format!("raise `user.max_user_namespaces`, {root}"),
        ),
        Errno::EINVAL => Missing::new("a user namespace needs a process with one thread (EINVAL)", "run `egressguard demo` by itself"),
        _ => Missing::new(
            format!("namespaces may not be made here ({errno:?})"),
            "inside a container the runtime forbids it: give it `--privileged`, or run the demo on the machine itself, as root",
        ),
    }
}

/// A directory in memory that only this process and its children see. To be called after [`enter`]; `avoid` is a program that must
/// stay reachable.
pub fn private_directory(avoid: &Path) -> Result<PathBuf, Missing> {
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, private, None::<&str>).map_err(|errno| why_no_directory("/", errno))?;
    let mut last = Missing::new("there is no directory to put the demo's files over", "make `/mnt`");
    for place in ["/mnt", "/media", "/srv", "/var/tmp", "/tmp"] {
        let path = Path::new(place);
        if !path.is_dir() || avoid.starts_with(path) {
            continue;
        }
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        match mount(Some("egressguard-demo"), path, Some("tmpfs"), flags, Some("size=16m,mode=0700")) {
            Ok(()) => return Ok(path.to_path_buf()),
            Err(errno) => last = why_no_directory(place, errno),
        }
    }
    Err(last)
}

fn why_no_directory(place: &str, errno: Errno) -> Missing {
    Missing::new(
        format!("nothing may be mounted on `{place}` in a mount namespace of our own ({errno:?})"),
        "run the demo as root: `sudo egressguard demo`",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_switch_that_forbids_user_namespaces_is_named_with_its_remedy() {
        let known = || Switches { known: true, ..Switches::default() };
        let cases = [
            (Errno::EPERM, Switches { clone: Some("0".into()), ..known() }, "unprivileged_userns_clone=0", "unprivileged_userns_clone=1"),
            (Errno::EPERM, Switches { apparmor: Some("1".into()), ..known() }, "AppArmor", "userns=0"),
            (Errno::ENOSPC, Switches { most: Some("0".into()), ..known() }, "max_user_namespaces=0", "max_user_namespaces=15000"),
            (Errno::ENOSPC, Switches { most: Some("9".into()), ..known() }, "ENOSPC", "raise"),
            (Errno::EPERM, known(), "EPERM", "--privileged"),
            (Errno::EINVAL, Switches::default(), "CONFIG_USER_NS", "sudo"),
        ];
        for (errno, switches, what, help) in cases {
            let missing = why_no_user_namespace(errno, &switches);
            assert!(missing.what.contains(what), "{missing:?}");
            assert!(missing.help.contains(help), "{missing:?}");
        }
    }

    #[test]
    fn a_namespace_is_itself_and_no_other() {
        let here = Namespace::current().unwrap();
        assert_eq!(here.identity().unwrap(), Namespace::current().unwrap().identity().unwrap());
        match Namespace::fresh() {
            Ok(other) => assert_ne!(here.identity().unwrap(), other.identity().unwrap()),
            Err(error) => eprintln!("skipped: {error}"),
        }
    }
}
