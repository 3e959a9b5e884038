//! What this process hands on to programs that it starts.

use nix::errno::Errno;

/// From now on programs that are started inherit none of this process's capabilities, which it keeps itself. A kernel that does not
/// know the ambient set hands none on anyway.
pub fn hand_on_no_capabilities() {
    // SAFETY: a request about this process that takes numbers alone.
    let cleared = unsafe { libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) };
    let _unknown_to_old_kernels = Errno::result(cleared);
}
