//! Threads that work beside those that answer: the book, checkpoints, audits.

use std::io;
use std::thread::{Builder, JoinHandle};

/// How much nicer such a thread is than the process: where it and one that a till waits for want the same
/// processor it gets a fourth of it, so that it gives way and is not starved.
const NICER: i32 = 5;

/// Starts a thread that gives way to all who answer requests.
///
/// # Errors
/// When the machine has no room for one.
pub fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    Builder::new().name(name.into()).spawn(move || {
        be_nicer();
        work();
    })
}

/// To Linux every thread has a priority of its own. One that keeps the usual one works as well.
#[cfg(target_os = "linux")]
fn be_nicer() {
    let thread = Some(rustix::thread::gettid());
    let usual = rustix::process::getpriority_process(thread).unwrap_or_default();
    let _ = rustix::process::setpriority_process(thread, usual.saturating_add(NICER));
}

#[cfg(not(target_os = "linux"))]
fn be_nicer() {}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn a_thread_in_the_background_gives_way_and_the_others_do_not() {
        let own = || rustix::process::getpriority_process(Some(rustix::thread::gettid())).unwrap();
        let usual = own();
        let (tell, told) = std::sync::mpsc::channel();
        spawn("apart", move || tell.send(own()).unwrap()).unwrap().join().unwrap();
        assert_eq!(told.recv().unwrap(), (usual + NICER).min(19));
        assert_eq!(own(), usual);
    }
}
