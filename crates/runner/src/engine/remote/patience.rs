//! How long a server is waited for, and how often it is asked.

use std::time::Duration;

/// How long a server is waited for, and how often it is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Patience {
    /// Tries in all, of what can be tried again.
    pub tries: u32,
    /// Wait before the second try; before each further one it is twice as long.
    pub back_off: Duration,
    /// For an answer to a question that needs no model.
    pub answer: Duration,
    /// For a model to be loaded.
    pub load: Duration,
    /// Between two pieces of an answer, the first included: a long prompt may take minutes to read.
    pub silence: Duration,
    /// Until an unloaded model is gone from the server's list.
    pub unload: Duration,
    /// How soon a wish to cancel is seen, and how often a server is asked for what changes.
    pub poll: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            tries: 3,
            back_off: Duration::from_millis(500),
            answer: Duration::from_secs(30),
            load: Duration::from_secs(600),
            silence: Duration::from_secs(300),
            unload: Duration::from_secs(60),
            poll: Duration::from_millis(50),
        }
    }
}

impl Patience {
    /// The wait before a try, the first being 1.
    pub(crate) fn wait_before(&self, attempt: u32) -> Duration {
        match attempt {
            0 | 1 => Duration::ZERO,
            _ => self.back_off.saturating_mul(1 << (attempt - 2).min(10)),
        }
    }
}
