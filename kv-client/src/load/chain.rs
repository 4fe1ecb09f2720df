//! What the caller is loading and holding already, outermost first.
//!
//! A loader may load other keys. If it comes back to one that it is loading, it would wait for itself: that is found here,
//! without asking anybody. Across processes the daemon finds it, told by `holds` what the caller has. The chain belongs to
//! the running code: a blocking load sets it for its thread, an async one for each poll of its loader's future. What a
//! loader starts elsewhere (a thread, a task) begins a chain of its own; such waits are bounded by time alone.

use std::cell::RefCell;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use kv_proto::limits::HOLDS_MAX;

use crate::error::{Error, Result};
use crate::limits::CHAIN_MAX;

thread_local!(static CURRENT: RefCell<Chain> = const { RefCell::new(Chain(None)) });

/// What somebody is in the middle of.
#[derive(Debug, Clone, Default)]
pub(crate) struct Chain(Option<Arc<Link>>);

#[derive(Debug)]
struct Link {
    within: Within,
    before: Chain,
    depth: usize,
}

#[derive(Debug)]
enum Within {
    /// The loader of some keys, each with the number of its lease; 0: it has none.
    Load { cache: Box<str>, keys: Vec<(Box<[u8]>, u64)> },
    /// A named lock.
    Lock { fence: u64 },
    /// A transaction.
    Transaction { number: u64 },
}

impl Chain {
    /// That of the code that runs now.
    pub(crate) fn current() -> Chain {
        CURRENT.with_borrow(Clone::clone)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// Refuses to load a key that is being loaded further up, or one too far down.
    pub(crate) fn check(&self, cache: &str, key: &[u8]) -> Result<()> {
        let is_it = |link: &Link| match &link.within {
            Within::Load { cache: its, keys } => **its == *cache && keys.iter().any(|(its, _)| **its == *key),
            Within::Lock { .. } | Within::Transaction { .. } => false,
        };
        if self.links().any(is_it) {
            let shown = key.escape_ascii();
            return Err(Error::deadlock(format!(
                "the loader of key {shown} of cache {cache} loads that key itself"
            )));
        }
        match &self.0 {
            Some(link) if link.depth >= CHAIN_MAX => Err(Error::deadlock(format!(
                "key {} of cache {cache} would be the {}th load inside loads, limit is {CHAIN_MAX}",
                key.escape_ascii(),
                link.depth + 1
            ))),
            Some(_) | None => Ok(()),
        }
    }

    /// The numbers of what is held, as the daemon knows them.
    pub(crate) fn holds(&self) -> Vec<u64> {
        let mut numbers = Vec::new();
        for link in self.links() {
            match &link.within {
                Within::Load { keys, .. } => numbers.extend(keys.iter().map(|(_, lease)| *lease)),
                Within::Lock { fence: number } | Within::Transaction { number } => numbers.push(*number),
            }
        }
        numbers.retain(|number| *number != 0);
        numbers.truncate(HOLDS_MAX);
        numbers
    }

    pub(crate) fn loading<'k>(self, cache: &str, keys: impl IntoIterator<Item = (&'k [u8], u64)>) -> Chain {
        let keys = keys.into_iter().map(|(key, lease)| (key.into(), lease)).collect();
        self.with(Within::Load { cache: cache.into(), keys })
    }

    pub(crate) fn locking(self, fence: u64) -> Chain {
        self.with(Within::Lock { fence })
    }

    pub(crate) fn transacting(self, number: u64) -> Chain {
        self.with(Within::Transaction { number })
    }

    /// Without the lock of this number.
    pub(crate) fn unlocked(self, fence: u64) -> Chain {
        match self.0 {
            None => Chain(None),
            Some(link) if matches!(link.within, Within::Lock { fence: held } if held == fence) => {
                link.before.clone()
            }
            // Given back out of order: those above it stay.
            Some(link) => {
                let before = link.before.clone().unlocked(fence);
                match Arc::try_unwrap(link) {
                    Ok(Link { within, .. }) => before.with(within),
                    // Somebody else has it too; a number that is gone by then is believed by nobody.
                    Err(link) => Chain(Some(link)),
                }
            }
        }
    }

    fn with(self, within: Within) -> Chain {
        let depth = self.0.as_ref().map_or(1, |link| link.depth + 1);
        Chain(Some(Arc::new(Link { within, before: self, depth })))
    }

    fn links(&self) -> impl Iterator<Item = &Link> {
        std::iter::successors(self.0.as_deref(), |link| link.before.0.as_deref())
    }

    /// Makes it that of this thread until the guard is dropped.
    pub(crate) fn enter(self) -> Entered {
        Entered { before: CURRENT.replace(self) }
    }

    /// Makes it that of this thread from here on.
    pub(crate) fn set(self) {
        CURRENT.set(self);
    }
}

/// While this lives the thread has the chain it was made from.
pub(crate) struct Entered {
    before: Chain,
}

impl Drop for Entered {
    fn drop(&mut self) {
        CURRENT.set(std::mem::take(&mut self.before));
    }
}

/// A future that runs in a chain, wherever it is polled.
pub(crate) struct InChain<F: ?Sized> {
    chain: Chain,
    future: Pin<Box<F>>,
}

impl<F: Future> InChain<F> {
    pub(crate) fn new(chain: Chain, future: F) -> InChain<F> {
        InChain { chain, future: Box::pin(future) }
    }
}

impl<F: Future + ?Sized> Future for InChain<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let entered = self.chain.clone().enter();
        let polled = self.future.as_mut().poll(cx);
        drop(entered);
        polled
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_that_is_being_loaded_further_up_is_refused_by_name() {
        let chain =
            Chain::default().loading("product", [(&b"42"[..], 7)]).loading("price", [(&b"42"[..], 0)]);
        assert!(chain.check("price", b"43").is_ok());
        let error = chain.check("product", b"42").unwrap_err();
        assert_eq!(error.kind(), kv_proto::wire::ErrorKind::Deadlock);
        assert!(error.to_string().contains("key 42 of cache product"), "{error}");
        assert_eq!(chain.holds(), [7]);
    }

    #[test]
    fn loads_inside_loads_have_a_bound() {
        let mut chain = Chain::default();
        for n in 0..CHAIN_MAX {
            chain.check("c", &[n as u8]).unwrap();
            chain = chain.loading("c", [(&[n as u8][..], 1)]);
        }
        assert!(chain.check("c", b"one more").is_err());
    }

    #[test]
    fn a_lock_leaves_the_chain_wherever_it_stands() {
        let chain = Chain::default().locking(1).locking(2).locking(3);
        assert_eq!(chain.unlocked(2).holds(), [3, 1]);
    }

    #[test]
    fn a_thread_gets_its_own_chain_back() {
        let outer = Chain::default().locking(1).enter();
        {
            let _inner = Chain::current().loading("c", [(&b"k"[..], 2)]).enter();
            assert_eq!(Chain::current().holds(), [2, 1]);
        }
        assert_eq!(Chain::current().holds(), [1]);
        drop(outer);
        assert!(Chain::current().is_empty());
    }
}
