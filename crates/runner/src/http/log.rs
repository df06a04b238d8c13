//! The server's log: one observer, shared by its threads.

use std::sync::{Arc, Mutex, PoisonError};

use formats::Observer;

use super::ServeEvent;

/// A handle on the observer.
#[derive(Clone)]
pub(super) struct Log(Arc<Mutex<Box<dyn Observer<ServeEvent> + Send>>>);

impl Log {
    pub(super) fn new(observer: Box<dyn Observer<ServeEvent> + Send>) -> Self {
        Self(Arc::new(Mutex::new(observer)))
    }

    pub(super) fn write(&self, event: ServeEvent) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).observe(event);
    }
}
