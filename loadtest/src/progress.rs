//! How far a run is.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

/// A bar on the terminal; nothing where there is none.
pub struct Progress(ProgressBar);

impl Progress {
    /// A bar of this many steps.
    pub fn new(what: &str, steps: u64) -> Self {
        let bar = ProgressBar::new(steps);
        let style = ProgressStyle::with_template("{msg:<44} {bar:40} {percent:>3}% {elapsed_precise}");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar.set_message(what.to_owned());
        bar.enable_steady_tick(Duration::from_millis(500));
        Self(bar)
    }

    /// So many steps more.
    pub fn add(&self, steps: u64) {
        self.0.inc(steps);
    }

    /// So many steps in all.
    pub fn at(&self, steps: u64) {
        self.0.set_position(steps);
    }

    /// What is being done now.
    pub fn say(&self, what: &str) {
        self.0.set_message(what.to_owned());
    }

    /// The end.
    pub fn done(&self) {
        self.0.finish_and_clear();
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
