//! How a stage reports what it does: it sends events to an observer and never prints.

/// Receives the events of a stage, in order.
pub trait Observer<E> {
    /// Takes one event; called on the thread that runs the stage, so it should return soon.
    fn observe(&mut self, event: E);
}

impl<E, F: FnMut(E)> Observer<E> for F {
    fn observe(&mut self, event: E) {
        self(event);
    }
}

/// The observer that drops every event.
#[derive(Debug, Default, Clone, Copy)]
pub struct Silent;

impl<E> Observer<E> for Silent {
    fn observe(&mut self, _event: E) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stage(observer: &mut dyn Observer<u32>) {
        observer.observe(1);
        observer.observe(2);
    }

    #[test]
    fn closures_and_silence_observe() {
        let mut seen = Vec::new();
        stage(&mut |event| seen.push(event));
        stage(&mut Silent);
        assert_eq!(seen, [1, 2]);
    }
}
