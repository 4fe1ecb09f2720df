//! What the caller is loading and holding already, outermost first.
//!
//! A loader may load other keys. If it comes back to one that it is loading, it would wait for itself: that is found here,
//! without asking anybody. Across processes the daemon finds it, told by `holds` what the caller has. The chain belongs to
//! the running code: a blocking load sets it for its thread, an async one for each poll of its loader's future. What a
//! loader starts elsewhere (a thread, a task) begins a chain of its own; such waits are bounded by time alone.

use std::cell::RefCell;
#[cfg(feature = "tokio")]
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
#[cfg(feature = "tokio")]
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
    within: Arc<Within>,
    before: Chain,
    /// How many loads, this one included.
    depth: usize,
}

/// Whether a named lock is still held: its guard may be dropped in any order, and in another thread.
#[derive(Debug, Clone)]
pub(crate) struct Held(Arc<AtomicBool>);

impl Held {
    pub(crate) fn begin() -> Held {
        Held(Arc::new(AtomicBool::new(true)))
    }

    pub(crate) fn end(&self) {
        self.0.store(false, Ordering::Relaxed);
    }

    fn is_so(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

#[derive(Debug)]
enum Within {
    /// The loader of some keys, each with the number of its lease; 0: it has none.
    Load { cache: Box<str>, keys: Vec<(Box<[u8]>, u64)> },
    /// A named lock.
    Lock { fence: u64, held: Held },
    /// A transaction.
    Transaction { number: u64 },
}

impl Within {
    /// What was given back is in nobody's way.
    fn is_over(&self) -> bool {
        matches!(self, Within::Lock { held, .. } if !held.is_so())
    }
}

impl Chain {
    /// That of the code that runs now.
    pub(crate) fn current() -> Chain {
        CURRENT.with_borrow_mut(|chain| {
            while let Some(link) = chain.0.as_ref().filter(|link| link.within.is_over()) {
                *chain = link.before.clone();
            }
            chain.clone()
        })
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.links().all(|link| link.within.is_over())
    }

    /// Refuses to load a key that is being loaded further up, or one too far down.
    pub(crate) fn check(&self, cache: &str, key: &[u8]) -> Result<()> {
        let is_it = |link: &Link| match &*link.within {
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
            match &*link.within {
                Within::Load { keys, .. } => numbers.extend(keys.iter().map(|(_, lease)| *lease)),
                Within::Lock { held, .. } if !held.is_so() => {}
                Within::Lock { fence: number, .. } | Within::Transaction { number } => numbers.push(*number),
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

    /// Locks that were given back meanwhile leave the chain: whoever goes on from lock to lock keeps it as long as it is.
    pub(crate) fn locking(self, fence: u64, held: &Held) -> Chain {
        let held = Within::Lock { fence, held: held.clone() };
        if !self.links().any(|link| link.within.is_over()) {
            return self.with(held);
        }
        let living: Vec<Arc<Within>> =
            self.links().filter(|link| !link.within.is_over()).map(|link| Arc::clone(&link.within)).collect();
        living.into_iter().rev().fold(Chain(None), Chain::with_shared).with(held)
    }

    pub(crate) fn transacting(self, number: u64) -> Chain {
        self.with(Within::Transaction { number })
    }

    fn with(self, within: Within) -> Chain {
        self.with_shared(Arc::new(within))
    }

    fn with_shared(self, within: Arc<Within>) -> Chain {
        let is_load = matches!(*within, Within::Load { .. });
        let depth = self.0.as_ref().map_or(0, |link| link.depth) + usize::from(is_load);
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
#[cfg(feature = "tokio")]
pub(crate) struct InChain<F: ?Sized> {
    chain: Chain,
    future: Pin<Box<F>>,
}

#[cfg(feature = "tokio")]
impl<F: Future> InChain<F> {
    pub(crate) fn new(chain: Chain, future: F) -> InChain<F> {
        InChain { chain, future: Box::pin(future) }
    }
}

#[cfg(feature = "tokio")]
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

    /// It used to stay for ever when another one was taken after it, or when it was given back by another thread: then
    /// nothing in that thread was ever coalesced again, and after the sixteenth no load was made at all.
    #[test]
    fn a_lock_leaves_the_chain_wherever_it_stands_and_whoever_gives_it_back() {
        let held: Vec<Held> = (0..3).map(|_| Held::begin()).collect();
        let outer = Chain::default().enter();
        for (fence, held) in (1..).zip(&held) {
            Chain::current().locking(fence, held).set();
        }
        held[1].end();
        assert_eq!(Chain::current().holds(), [3, 1]);
        std::thread::spawn({
            let held = held.clone();
            move || held.iter().for_each(Held::end)
        })
        .join()
        .unwrap();
        assert!(Chain::current().is_empty());
        drop(outer);
    }

    #[test]
    fn who_goes_on_from_lock_to_lock_keeps_a_short_chain_and_may_load() {
        let outer = Chain::default().enter();
        let mut before = Held::begin();
        for fence in 1..1_000 {
            let next = Held::begin();
            Chain::current().locking(fence, &next).set();
            before.end();
            before = next;
        }
        assert!(Chain::current().links().count() <= 2);
        assert!(Chain::current().check("c", b"k").is_ok());
        drop(outer);
    }

    #[test]
    fn a_thread_gets_its_own_chain_back() {
        let outer = Chain::default().locking(1, &Held::begin()).enter();
        {
            let _inner = Chain::current().loading("c", [(&b"k"[..], 2)]).enter();
            assert_eq!(Chain::current().holds(), [2, 1]);
        }
        assert_eq!(Chain::current().holds(), [1]);
        drop(outer);
        assert!(Chain::current().is_empty());
    }
}
