//! The one kind of lock here: a mutex that works in a child of `fork`.
//!
//! Used by both clients. `parking_lot` is not, because its waiting threads meet in a table of the whole process, which a
//! thread that does not exist in the child may hold for ever.

/// A mutex that ignores poisoning: what it guards here is never half changed.
#[derive(Debug, Default)]
pub(crate) struct Lock<T>(
    #[allow(
        clippy::disallowed_types,
        reason = "see the module: the child of a fork must not need a process-wide table"
    )]
    std::sync::Mutex<T>,
);

impl<T> Lock<T> {
    pub(crate) fn lock(&self) -> std::sync::MutexGuard<'_, T> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Without waiting: `None` while somebody holds it.
    pub(crate) fn try_lock(&self) -> Option<std::sync::MutexGuard<'_, T>> {
        match self.0.try_lock() {
            Ok(guard) => Some(guard),
            Err(std::sync::TryLockError::Poisoned(guard)) => Some(guard.into_inner()),
            Err(std::sync::TryLockError::WouldBlock) => None,
        }
    }
}

/// Wakes those who wait for what a [`Lock`] guards to change.
#[derive(Debug, Default)]
pub(crate) struct Signal(std::sync::Condvar);

impl Signal {
    pub(crate) fn all(&self) {
        self.0.notify_all();
    }

    pub(crate) fn one(&self) {
        self.0.notify_one();
    }

    /// Gives the lock away until somebody signals, or until then; `None`: however long that takes.
    pub(crate) fn wait<'a, T>(
        &self,
        guard: std::sync::MutexGuard<'a, T>,
        until: Option<std::time::Instant>,
    ) -> std::sync::MutexGuard<'a, T> {
        let ignore = std::sync::PoisonError::into_inner;
        match until {
            None => self.0.wait(guard).unwrap_or_else(ignore),
            Some(until) => {
                let left = until.saturating_duration_since(std::time::Instant::now());
                self.0
                    .wait_timeout(guard, left)
                    .map_or_else(|poisoned| poisoned.into_inner().0, |waited| waited.0)
            }
        }
    }
}
