//! What a process owns, told apart from what it inherited by `fork`.
//!
//! Both clients keep their connections in a [`Generation`]. A child that uses an inherited client gets a generation of
//! its own; it never writes to, reads from, locks, or shuts down what belongs to its parent.

use kv_proto::segment::process_id;
use std::sync::OnceLock;

/// What belongs to a process, and, once a forked child asks, what belongs to that child.
#[derive(Debug)]
pub(crate) struct Generation<T> {
    pid: u32,
    // Only `None` while being dropped.
    own: Option<T>,
    // Only ever set in a child of `pid`, so no fork can catch it half set by another thread of the parent.
    child: OnceLock<Box<Generation<T>>>,
}

/// A state that can begin anew in a child.
pub(crate) trait Inherited {
    /// The child's own, empty state. Called in the child; may close the child's copies of the parent's descriptors by
    /// plain `close`, but must not wait for any lock: a thread that no longer exists here may hold it.
    fn begin_anew(&self) -> Self;
}

impl<T: Inherited> Generation<T> {
    pub(crate) fn new(own: T) -> Generation<T> {
        Generation { pid: process_id(), own: Some(own), child: OnceLock::new() }
    }

    /// The state of the process that asks.
    pub(crate) fn here(&self) -> &T {
        let pid = process_id();
        let mut generation = self;
        // As many steps as there were forks between the client's maker and us.
        while generation.pid != pid {
            generation =
                generation.child.get_or_init(|| Box::new(Generation::new(generation.own().begin_anew())));
        }
        generation.own()
    }

    fn own(&self) -> &T {
        self.own.as_ref().expect("only taken by drop")
    }

    /// As it looks in a child, for tests: forking is `unsafe` and not for this crate.
    #[cfg(test)]
    pub(crate) fn pretend_inherited(&mut self) {
        self.pid = 0;
    }
}

impl<T> Drop for Generation<T> {
    /// What is inherited is forgotten, not dropped: dropping an async runtime's stream takes it off the runtime's epoll
    /// instance, which parent and child share.
    fn drop(&mut self) {
        if self.pid != process_id() {
            std::mem::forget(self.own.take());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Count(u32);

    impl Inherited for Count {
        fn begin_anew(&self) -> Count {
            Count(self.0 + 1)
        }
    }

    #[test]
    fn a_child_gets_a_state_of_its_own_once() {
        let mut generation = Generation::new(Count(0));
        assert_eq!(generation.here().0, 0);
        generation.pretend_inherited();
        assert_eq!(generation.here().0, 1);
        assert_eq!(generation.here().0, 1);
    }
}
