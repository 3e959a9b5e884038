//! Letting a child process close the socket, so that nobody waits for the kernel's grace period.
//!
//! Whoever closes the last descriptor of a netlink socket after nf_tables deleted something waits until every processor has let
//! go of what was deleted. The child inherits the descriptor and outlives ours.

use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, fork, pipe};

use super::socket::Socket;

/// Closes the socket, in a child process where one can be made. Waits only until the child exists. Leaves no zombie: the child that
/// waits for the kernel is a grandchild, which init inherits.
pub fn in_a_child(socket: Socket) {
    let Ok((held, ours)) = pipe() else { return drop(socket) };
    // SAFETY: until it exits, the child only makes system calls on descriptors, which is all that may be done after a fork of a
    // process with threads: no allocation, no lock, no destructor.
    match unsafe { fork() } {
        Ok(ForkResult::Child) => {
            // SAFETY: as above.
            match unsafe { fork() } {
                Ok(ForkResult::Child) => outlive(&socket, &held),
                // SAFETY: ends the process at once, without running anything of the parent's.
                _ => unsafe { libc::_exit(0) },
            }
        }
        Ok(ForkResult::Parent { child }) => {
            // ORDER: our descriptor goes first, and the pipe, whose end wakes the child, after it.
            drop(socket);
            drop(ours);
            // Interrupted or not, there is nothing to be learnt from its status.
            let _status = waitpid(child, None);
        }
        Err(_) => drop(socket),
    }
}

/// In the grandchild: closes everything but the socket and the pipe, so that no pipe, lock or terminal of the caller is held, then
/// waits until the caller has closed both, then exits, which closes the socket.
fn outlive(socket: &Socket, held: &OwnedFd) -> ! {
    let (socket, held) = (socket.as_raw_fd() as libc::c_uint, held.as_raw_fd() as libc::c_uint);
    let (low, high) = (socket.min(held), socket.max(held));
    close_between(0, low);
    close_between(low + 1, high);
    close_between(high + 1, libc::c_uint::MAX);
    let mut octet = 0u8;
    // SAFETY: one octet fits into `octet`. Nobody writes: it ends with the pipe, that is when the caller has let go.
    unsafe { libc::read(held as libc::c_int, (&raw mut octet).cast(), 1) };
    // SAFETY: ends the process at once, without running anything of the caller's.
    unsafe { libc::_exit(0) }
}

/// Closes the descriptors from `first` up to `end`, which is not among them. `close_range` exists since 5.9.
fn close_between(first: libc::c_uint, end: libc::c_uint) {
    if first < end {
        // SAFETY: closes descriptors of this process, which uses none of them again; the call takes three numbers.
        unsafe { libc::syscall(libc::SYS_close_range, first, end - 1, 0) };
    }
}
