//! Threads whose work is not waited for: the book, checkpoints, audits.

use std::io;
use std::thread::{Builder, JoinHandle};

/// How much less such a thread counts than one that a till waits for (nice 5): a third where they want the same
/// processor, so that it is not starved, and it gives way at once.
const NICENESS: i32 = 5;

/// Starts a thread that gives way to all who answer requests.
///
/// # Errors
/// When the machine has no room for one.
pub fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    Builder::new().name(name.into()).spawn(move || {
        // To the system every thread has a priority of its own. One that keeps the usual one works as well.
        let _ = rustix::process::setpriority_process(Some(rustix::thread::gettid()), NICENESS);
        work();
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_in_the_background_gives_way_and_the_others_do_not() {
        let own = || rustix::process::getpriority_process(Some(rustix::thread::gettid())).unwrap();
        let usual = own();
        let (tell, told) = std::sync::mpsc::channel();
        spawn("apart", move || tell.send(own()).unwrap()).unwrap().join().unwrap();
        assert_eq!(told.recv().unwrap(), usual.max(NICENESS));
        assert_eq!(own(), usual);
    }
}
