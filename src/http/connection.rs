//! Connections that bring no whole request are closed.
//!
//! The server's own timers are for a connection's first head, for bodies that are waited for, and for pauses
//! between requests. Whoever begins a further request and stops in the middle, or leaves a body unsent that
//! nobody waits for, is watched by none of them, and could hold all connections there may be.

use std::any::Any;
use std::cell::Cell;
use std::os::fd::AsFd;
use std::rc::Rc;
use std::time::{Duration, Instant};

use actix_web::HttpRequest;
use actix_web::dev::Extensions;
use actix_web::rt;
use rustix::net::{Shutdown, shutdown};
use tokio::task::AbortHandle;

use crate::limits;

/// A connection that is watched, for as long as it lasts.
struct Watched {
    /// When its last request came.
    last: Rc<Cell<Instant>>,
    task: AbortHandle,
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Watches a connection that was accepted: for the server to call.
pub fn watch(connection: &dyn Any, extensions: &mut Extensions) {
    let stream = connection.downcast_ref::<rt::net::TcpStream>();
    if let Some(watched) = stream.and_then(|stream| Watched::new(stream, limits::CONNECTION_PATIENCE)) {
        extensions.insert(watched);
    }
}

/// A whole request has come at this instant.
pub fn has_come(request: &HttpRequest, at: Instant) {
    if let Some(watched) = request.conn_data::<Watched>() {
        watched.last.set(at);
    }
}

impl Watched {
    /// `None` where the process may have no more files: what cannot be watched is shut down at once.
    fn new(stream: &rt::net::TcpStream, patience: Duration) -> Option<Self> {
        // A second handle of the socket: the first is the server's.
        let Ok(socket) = stream.as_fd().try_clone_to_owned() else {
            let _ = shutdown(stream, Shutdown::Both);
            return None;
        };
        let last = Rc::new(Cell::new(Instant::now()));
        let seen = Rc::clone(&last);
        let task = rt::spawn(async move {
            while let Some(rest) = patience.checked_sub(seen.get().elapsed()) {
                rt::time::sleep(rest).await;
            }
            // The server notices, and closes its own.
            let _ = shutdown(socket, Shutdown::Both);
        });
        Some(Self { last, task: task.abort_handle() })
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;

    use super::*;

    const PATIENCE: Duration = Duration::from_millis(300);

    /// Both ends of a connection.
    async fn pair() -> (rt::net::TcpStream, rt::net::TcpStream) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let connecting = rt::net::TcpStream::connect(listener.local_addr().unwrap());
        let (theirs, ours) = tokio::join!(connecting, listener.accept());
        (theirs.unwrap(), ours.unwrap().0)
    }

    #[test]
    fn a_connection_is_shut_down_once_no_request_has_come_for_that_long() {
        rt::System::new().block_on(async {
            let (mut theirs, mut ours) = pair().await;
            let watched = Watched::new(&ours, PATIENCE).unwrap();
            let began = Instant::now();
            for _ in 0..3 {
                rt::time::sleep(PATIENCE / 2).await;
                watched.last.set(Instant::now());
            }
            let mut byte = [0];
            assert_eq!(ours.read(&mut byte).await.unwrap(), 0, "ours is told");
            assert_eq!(theirs.read(&mut byte).await.unwrap(), 0, "and theirs");
            assert!(began.elapsed() >= PATIENCE * 5 / 2, "counted from the last: {:?}", began.elapsed());
        });
    }

    #[test]
    fn a_connection_that_has_ended_is_not_kept() {
        rt::System::new().block_on(async {
            let (mut theirs, ours) = pair().await;
            let watched = Watched::new(&ours, Duration::from_secs(600)).unwrap();
            drop((ours, watched));
            let read = tokio::time::timeout(Duration::from_secs(10), theirs.read(&mut [0])).await;
            assert_eq!(read.expect("nothing else holds the socket").unwrap(), 0);
        });
    }
}
