//! What sock_diag does not say of a socket's owner: its group, found by whoever has the socket open, and the control groups above
//! its own. Nothing is changed; what cannot be read is not found.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::system::host::cgroup2_root;

/// How many control groups are looked at.
const CGROUPS_AT_MOST: usize = 65_536;

/// The groups of sockets by the numbers of their inodes. The kernel notes at its birth whose a socket is, user and group, in the
/// inode (`sock_alloc`); a process that has it open leads there.
pub fn groups(inodes: &BTreeSet<u32>) -> BTreeMap<u32, u32> {
    groups_below(Path::new("/proc"), inodes)
}

fn groups_below(proc: &Path, inodes: &BTreeSet<u32>) -> BTreeMap<u32, u32> {
    let mut found = BTreeMap::new();
    let processes =
        entries(proc).filter(|path| path.file_name().is_some_and(|name| name.as_encoded_bytes().first().is_some_and(u8::is_ascii_digit)));
    for descriptor in processes.flat_map(|process| entries(&process.join("fd"))) {
        // ORDER: the link first. To ask a file itself can wait for a server that is away, and a socket never does.
        let inode = fs::read_link(&descriptor).ok().and_then(|link| socket_inode(link.to_str()?));
        let Some(inode) = inode.filter(|inode| inodes.contains(inode) && !found.contains_key(inode)) else { continue };
        if let Ok(socket) = fs::metadata(&descriptor)
            && socket.ino() == u64::from(inode)
        {
            found.insert(inode, socket.gid());
        }
    }
    found
}

/// The number in `socket:[NUMBER]`.
fn socket_inode(link: &str) -> Option<u32> {
    link.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

/// For the id of each control group that is still there: the ids of it and its ancestors by level, 1 directly below the root.
pub fn control_groups(ids: &BTreeSet<u64>) -> BTreeMap<u64, BTreeMap<u8, u64>> {
    cgroup2_root(Path::new("/proc/self/mountinfo")).map_or_else(BTreeMap::new, |root| control_groups_below(&root, ids))
}

fn control_groups_below(root: &Path, ids: &BTreeSet<u64>) -> BTreeMap<u64, BTreeMap<u8, u64>> {
    let mut found = BTreeMap::new();
    let mut waiting: Vec<(PathBuf, BTreeMap<u8, u64>)> = vec![(root.to_path_buf(), BTreeMap::new())];
    let mut looked_at = 0;
    while let Some((group, above)) = waiting.pop() {
        for path in entries(&group) {
            let Ok(directory) = fs::symlink_metadata(&path) else { continue };
            let Ok(level) = u8::try_from(above.len() + 1) else { continue };
            if !directory.is_dir() {
                continue;
            }
            let mut levels = above.clone();
            levels.insert(level, directory.ino());
            if ids.contains(&directory.ino()) {
                found.insert(directory.ino(), levels.clone());
            }
            waiting.push((path, levels));
            looked_at += 1;
        }
        if found.len() == ids.len() || looked_at > CGROUPS_AT_MOST {
            break;
        }
    }
    found
}

/// What is in a directory; nothing when it cannot be read.
fn entries(directory: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;

    #[test]
    fn the_group_of_an_open_socket_is_found_and_of_no_other() {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let inode = fs::metadata(format!("/proc/self/fd/{}", socket.as_raw_fd())).unwrap().ino() as u32;
        let found = groups(&[inode, 0].into());
        assert_eq!(found, [(inode, nix::unistd::getegid().as_raw())].into());
        assert!(groups(&BTreeSet::new()).is_empty());
    }

    #[test]
    fn only_sockets_have_the_links_of_sockets() {
        assert_eq!(socket_inode("socket:[12345]"), Some(12345));
        for other in ["pipe:[1]", "socket:[]", "socket:[1", "/tmp/socket:[1]", "socket:[99999999999]"] {
            assert_eq!(socket_inode(other), None, "{other}");
        }
    }

    #[test]
    fn a_control_group_is_found_with_its_ancestors_by_level() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("system.slice/backend.service/worker");
        fs::create_dir_all(&path).unwrap();
        fs::create_dir_all(root.path().join("user.slice")).unwrap();
        fs::write(root.path().join("system.slice/cgroup.procs"), "").unwrap();
        let id = |path: &str| fs::metadata(root.path().join(path)).unwrap().ino();
        let ids = [id("system.slice/backend.service/worker"), id("user.slice"), 1];
        let found = control_groups_below(root.path(), &ids.into());
        let worker = [(1, id("system.slice")), (2, id("system.slice/backend.service")), (3, ids[0])];
        assert_eq!(found, [(ids[0], worker.into()), (ids[1], [(1, ids[1])].into())].into());
    }
}
