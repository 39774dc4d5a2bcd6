//! A result that reaches who waits for it, whatever happens.

/// Passes its value on when dropped, so that one arrives even if the thread panics.
pub(super) struct PassOnDrop<T, F: Fn(T)>(Option<T>, F);

impl<T, F: Fn(T)> PassOnDrop<T, F> {
    /// `otherwise` is passed on unless another value is set.
    pub(super) fn new(otherwise: T, pass_on: F) -> PassOnDrop<T, F> {
        PassOnDrop(Some(otherwise), pass_on)
    }

    pub(super) fn set(&mut self, value: T) {
        self.0 = Some(value);
    }
}

impl<T, F: Fn(T)> Drop for PassOnDrop<T, F> {
    fn drop(&mut self) {
        self.0.take().into_iter().for_each(&self.1);
    }
}
