//! Dumps of our table as the kernel sends them, undecoded.

use std::os::fd::AsRawFd;

use egressguard::system::netlink::message::Writer;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket};

/// The datagrams that answer these questions (`NFT_MSG_GET…`) in the network namespace of this thread, and those about the elements
/// of these sets.
pub fn datagrams(questions: &[u16], sets: &[&str]) -> Vec<Vec<u8>> {
    const GET_ELEMENTS: u16 = 13;
    let fd = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::empty(), SockProtocol::NetlinkNetFilter).unwrap();
    let mut found = Vec::new();
    let whole = questions.iter().map(|kind| (*kind, ""));
    for (kind, set) in whole.chain(sets.iter().map(|set| (GET_ELEMENTS, *set))) {
        let mut writer = Writer::default();
        let message = writer.begin(kind, 0x300, 1);
        if kind == GET_ELEMENTS {
            writer.text(1, "egressguard");
            writer.text(2, set);
        }
        writer.end(message);
        send(fd.as_raw_fd(), &writer.into_octets(), MsgFlags::empty()).unwrap();
        let mut buffer = vec![0; 1 << 16];
        while let Ok(length) = recv(fd.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
            found.push(buffer[..length].to_vec());
        }
    }
    found
}
