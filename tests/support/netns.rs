//! A network namespace of a test's own, and the guard that keeps every test out of the host's. Nothing about nftables.

use std::fs;

use nix::sched::{CloneFlags, unshare};

/// Runs a test in a fresh network namespace, on a thread of its own that dies with it. Where the machine cannot make one it says
/// `skipped: <why>`, and fails when EGRESSGUARD_REQUIRE_KERNEL is 1; the answer is then nothing.
pub fn in_fresh_netns<T: Send>(test: impl FnOnce() -> T + Send) -> Option<T> {
    let ran = std::thread::scope(|scope| {
        scope
            .spawn(|| {
                unshare(CloneFlags::CLONE_NEWNET).map_err(|errno| format!("no network namespace can be made ({errno:?})"))?;
                assert_own_netns();
                Ok::<T, String>(test())
            })
            .join()
    });
    match ran {
        Ok(Ok(answer)) => Some(answer),
        Ok(Err(why)) if std::env::var("EGRESSGUARD_REQUIRE_KERNEL").as_deref() == Ok("1") => {
            panic!("EGRESSGUARD_REQUIRE_KERNEL is 1, but {why}")
        }
        Ok(Err(why)) => {
            println!("skipped: {why}");
            None
        }
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

/// Panics unless this thread is in another network namespace than the process was started in, and than process 1 is in where that
/// can be seen. Threads leave namespaces alone, so the process's own namespace is that of its first thread.
pub fn assert_own_netns() {
    let here = fs::read_link("/proc/thread-self/ns/net").expect("the thread's network namespace can be read");
    let elsewhere = |path: &str| fs::read_link(path).unwrap_or_default();
    for other in ["/proc/self/ns/net", "/proc/1/ns/net"] {
        assert_ne!(here, elsewhere(other), "refusing to touch nftables in the network namespace of {other}");
    }
}
