//! What one request used: how long its answer may live, what it asked of the database, and the objects it has already.
//!
//! From "Building a Large-scale E-commerce Site with Apache and mod_perl": a per-request memo on top of the cache, so that a page that shows a
//! product in three places fetches it once; and the page's expiry is the shortest of the objects used, which nobody adds up by
//! hand: [`kv_client::Scope`] does. The pitfall: a memo that outlives its request is a cache without expiry. This one is dropped
//! with it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use kv_client::Scope;

use crate::catalogue::{Product, ToyId};

/// Kinds of objects, as they are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Description,
    Price,
    Inventory,
    List,
    Session,
    Page,
}

impl Kind {
    pub(crate) const ALL: [Kind; 6] =
        [Kind::Description, Kind::Price, Kind::Inventory, Kind::List, Kind::Session, Kind::Page];

    /// Its cache's name.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Kind::Description => "description",
            Kind::Price => "price",
            Kind::Inventory => "inventory",
            Kind::List => "list",
            Kind::Session => "session",
            Kind::Page => "page",
        }
    }
}

/// One request. Clones are the same request.
#[derive(Debug, Clone, Default)]
pub(crate) struct Visit {
    /// Of what is being made: the page, or a part of it.
    pub(crate) scope: Scope,
    counted: Arc<Counted>,
}

#[derive(Debug, Default)]
struct Counted {
    queries: AtomicU32,
    asked: [AtomicU32; Kind::ALL.len()],
    loaded: [AtomicU32; Kind::ALL.len()],
    memo: Mutex<HashMap<ToyId, Arc<Product>>>,
}

impl Visit {
    /// The same request, making something whose life is counted apart.
    pub(crate) fn part(&self) -> Visit {
        Visit { scope: Scope::new(), counted: Arc::clone(&self.counted) }
    }

    /// A query is about to be made for what is shown; what forms write is not counted.
    pub(crate) fn query(&self) {
        self.counted.queries.fetch_add(1, Ordering::Relaxed);
    }

    /// Objects were wanted.
    pub(crate) fn asked(&self, kind: Kind, count: usize) {
        add(&self.counted.asked[kind as usize], count);
    }

    /// Objects had to be made, because no cache had them.
    pub(crate) fn loaded(&self, kind: Kind, count: usize) {
        add(&self.counted.loaded[kind as usize], count);
    }

    /// Queries so far.
    pub(crate) fn queries(&self) -> u32 {
        self.counted.queries.load(Ordering::Relaxed)
    }

    /// Of a kind: how many were wanted, and how many of them had to be made.
    pub(crate) fn objects(&self, kind: Kind) -> (u32, u32) {
        let read = |counts: &[AtomicU32]| counts[kind as usize].load(Ordering::Relaxed);
        (read(&self.counted.asked), read(&self.counted.loaded))
    }

    pub(crate) fn remembered(&self, id: ToyId) -> Option<Arc<Product>> {
        self.counted.memo.lock().unwrap_or_else(PoisonError::into_inner).get(&id).cloned()
    }

    pub(crate) fn remember(&self, product: &Arc<Product>) {
        let mut memo = self.counted.memo.lock().unwrap_or_else(PoisonError::into_inner);
        memo.insert(product.id, Arc::clone(product));
    }
}

fn add(count: &AtomicU32, more: usize) {
    count.fetch_add(u32::try_from(more).unwrap_or(u32::MAX), Ordering::Relaxed);
}
