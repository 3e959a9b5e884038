//! What the kernel itself says, without the program under test.

use std::io;
use std::os::fd::AsRawFd;

use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket};

/// `NFNL_SUBSYS_NFTABLES` and `NFT_MSG_GETGEN`, of linux/netfilter/nfnetlink.h and nf_tables.h.
const GET_GENERATION: u16 = 10 << 8 | 16;
const NLM_F_REQUEST: u16 = 1;
const NFTA_GEN_ID: u16 = 1;

/// The ruleset generation id of the calling thread's network namespace: every transaction of anybody raises it by one.
pub fn ruleset_generation() -> io::Result<u32> {
    let socket = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkNetFilter)?;
    // nlmsghdr: length, type, flags, sequence, port; then nfgenmsg: family, version, resource.
    let mut question = Vec::from(20_u32.to_ne_bytes());
    question.extend(GET_GENERATION.to_ne_bytes());
    question.extend(NLM_F_REQUEST.to_ne_bytes());
    question.extend([0; 12]);
    send(socket.as_raw_fd(), &question, MsgFlags::empty())?;
    let mut answer = [0_u8; 4096];
    let length = recv(socket.as_raw_fd(), &mut answer, MsgFlags::empty())?;
    let mut attributes = &answer[20..length];
    while attributes.len() >= 8 {
        let size = usize::from(u16::from_ne_bytes([attributes[0], attributes[1]]));
        let kind = u16::from_ne_bytes([attributes[2], attributes[3]]);
        if kind == NFTA_GEN_ID {
            return Ok(u32::from_be_bytes([attributes[4], attributes[5], attributes[6], attributes[7]]));
        }
        attributes = &attributes[size.next_multiple_of(4).clamp(4, attributes.len())..];
    }
    Err(io::Error::other("the kernel's answer holds no generation"))
}

/// Where cgroup v2 is mounted, if it is.
pub fn cgroup_v2() -> Option<std::path::PathBuf> {
    let mounts = std::fs::read_to_string("/proc/self/mounts").ok()?;
    let mut fields = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let place = fields.find(|fields| fields.get(2) == Some(&"cgroup2"))?.get(1)?.to_string();
    // The permissions of its directory say nothing to root: only making a group tells.
    let attempt = std::path::Path::new(&place).join(format!("eg-attempt-{}", std::process::id()));
    std::fs::create_dir(&attempt).and_then(|()| std::fs::remove_dir(&attempt)).ok().map(|()| place.into())
}
