//! What is asked of a process that goes on: signals, read like a file, and the size of the terminal.

use std::io::{self, IsTerminal};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::world::{Asked, Requests};

/// The signals that ask for something.
pub struct Signals {
    file: SignalFd,
    waker: Arc<OwnedFd>,
}

impl Signals {
    /// From now on signals wait until they are read. To be called before any other thread is started.
    pub fn new() -> io::Result<Signals> {
        let mut mask = SigSet::empty();
        [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGWINCH].into_iter().for_each(|signal| mask.add(signal));
        mask.thread_block()?;
        let file = SignalFd::with_flags(&mask, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
        let waker = Arc::new(file.as_fd().try_clone_to_owned()?);
        Ok(Signals { file, waker })
    }

    /// What becomes readable when something is asked.
    pub fn descriptor(&self) -> Arc<OwnedFd> {
        self.waker.clone()
    }
}

impl Requests for Signals {
    fn wait(&mut self, patience: Duration) -> Asked {
        if !patience.is_zero() {
            let timeout = PollTimeout::try_from(patience).unwrap_or(PollTimeout::MAX);
            // Interrupted or not, what is there is read.
            let _ = poll(&mut [PollFd::new(self.waker.as_fd(), PollFlags::POLLIN)], timeout);
        }
        let mut asked = Asked::default();
        while let Ok(Some(signal)) = self.file.read_signal() {
            match i32::try_from(signal.ssi_signo) {
                Ok(libc::SIGWINCH) => asked.resized = true,
                _ => asked.end = true,
            }
        }
        asked
    }

    fn window(&self) -> Option<(u16, u16)> {
        if !io::stdout().is_terminal() {
            return None;
        }
        // A terminal that does not say its size is as large as they used to be.
        let size = terminal_size::terminal_size_of(io::stdout());
        Some(size.map_or((80, 24), |(width, height)| (width.0, height.0)))
    }
}
