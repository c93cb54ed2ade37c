//! The service's only clock, handed to whoever needs the time.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::time::Timestamp;

/// Reads the machine's time, moved by an offset.
#[derive(Clone, Copy, Debug, Default)]
pub struct Clock {
    offset_ms: i64,
}

impl Clock {
    /// A clock that runs `offset_ms` ahead of the machine's; for trying out expiry and year ends.
    pub const fn ahead_by(offset_ms: i64) -> Self {
        Self { offset_ms }
    }

    /// Now.
    pub fn now(&self) -> Timestamp {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Timestamp::from_ms(i64::try_from(since.as_millis()).unwrap_or(i64::MAX)).plus_ms(self.offset_ms)
    }
}
