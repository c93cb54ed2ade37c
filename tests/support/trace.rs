//! `strace` on a running service: watching its system calls, delaying them, making them fail. Where the
//! machine does not let a process be traced the test fails; it proves nothing by being skipped.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::{Service, ended_within};

/// A tracer on a service. It lets go when dropped.
pub struct Tracer {
    child: Child,
    output: PathBuf,
}

impl Tracer {
    /// Attaches `strace` with these arguments to every thread of `service`.
    #[track_caller]
    pub fn attach(service: &Service, arguments: &[&str]) -> Self {
        let output = service.data().join(format!("../trace-{}", super::fresh_number()));
        let pid = service.pid().to_string();
        let mut command = Command::new("strace");
        command.args(["-f", "-p", &pid]).arg("-o").arg(&output).args(arguments);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("strace is installed");
        let stderr = BufReader::new(child.stderr.take().expect("its errors"));
        let (said, heard) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                let _ = said.send(line);
            }
        });
        let first = heard.recv_timeout(Duration::from_secs(20)).unwrap_or_default();
        assert!(first.contains("attached"), "the service cannot be traced here: {first:?}");
        // The main thread is named first; the others follow within a moment.
        std::thread::sleep(Duration::from_millis(300));
        Self { child, output }
    }

    /// Lets go of the service and returns what was seen.
    pub fn detach(mut self) -> String {
        self.let_go();
        std::fs::read_to_string(&self.output).unwrap_or_default()
    }

    /// Ends the tracer together with a service that was killed. A thread that dies while `strace` holds it
    /// back stays undead, its connections open, until `strace` looks at it again, which it may never do;
    /// without a tracer it is gone at once.
    pub fn end(mut self) {
        self.kill();
    }

    fn let_go(&mut self) {
        if ended_within(&mut self.child, Duration::ZERO).is_some() {
            return;
        }
        let _ = Command::new("kill").arg("-INT").arg(self.child.id().to_string()).status();
        if ended_within(&mut self.child, Duration::from_secs(20)).is_none() {
            // Killed in any case: whoever waits for the service would wait for ever.
            self.kill();
            assert!(std::thread::panicking(), "strace lets go within 20 seconds");
        }
    }

    fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = ended_within(&mut self.child, Duration::from_secs(10));
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        self.let_go();
        let _ = std::fs::remove_file(&self.output);
    }
}
