//! Whole pages in kvd, for everybody: each lives as long as the first of the objects that went into it.
//!
//! From "Building a Large-scale E-commerce Site with Apache and mod_perl": pages that are not user-specific are cached whole, their expiry is the
//! shortest of the objects used, and it is sent along, so that proxies and browsers keep them just as long; one page can be deleted
//! by its URL in an emergency. The pitfall: a page that outlives a part of it. Nobody writes a page's life down here: the scope in
//! which it was rendered knows it. One worker of the host renders a page that is missing, and the others wait for it.

use std::time::Duration;

use kv_client::{Cache, Client, SchemaVersion, Typed};
use kvd::clock::Clock;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_128;

use super::address::Address;
use super::two_pass::{FirstPass, Visitor};
use crate::faults::Fault;
use crate::visit::{Kind, Visit};

/// A page of which no part ever expires is kept so long.
const TTL_MAX: Duration = Duration::from_secs(3_600);
/// A page with less than this left is made for whoever asked, and not kept.
const TTL_MIN: Duration = Duration::from_millis(10);

/// A page that was rendered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Page {
    pub(crate) status: u16,
    pub(crate) first_pass: FirstPass,
    /// Of what somebody without a session is shown.
    pub(crate) etag: String,
    pub(crate) rendered_ms: i64,
}

/// What a page is made of, before it is one.
#[derive(Debug)]
pub(crate) struct Rendered {
    pub(crate) status: u16,
    pub(crate) first_pass: FirstPass,
    /// What it is cleared by; at most 8.
    pub(crate) tags: Vec<String>,
}

/// The cache of pages. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct PageCache {
    pages: Typed<Cache, Page>,
    clock: Clock,
}

impl PageCache {
    pub(crate) fn new(client: &Client, clock: Clock) -> PageCache {
        // The number changes with `Page`, with the holes, and with any template that old workers must not serve.
        PageCache { pages: client.cache(Kind::Page.name()).typed(SchemaVersion(1)), clock }
    }

    /// The page, rendered if it is not there; `visit` knows then how long it may be kept.
    pub(crate) async fn get<F>(
        &self,
        host: &str,
        address: &Address,
        visit: &Visit,
        render: impl FnOnce(Visit) -> F + Send + 'static,
    ) -> Result<Page, Fault>
    where
        F: Future<Output = Result<Rendered, Fault>> + Send + 'static,
    {
        visit.asked(Kind::Page, 1);
        let (part, counting, clock) = (visit.part(), visit.clone(), self.clock.clone());
        let entry = self.pages.in_scope(&visit.scope).entry(address.key(host)).ttl(TTL_MAX);
        let page = entry.get_or_load(move |fill| async move {
            counting.loaded(Kind::Page, 1);
            let scope = part.scope.clone();
            let rendered = render(part).await?;
            let ttl = scope.max_age().unwrap_or(TTL_MAX).min(TTL_MAX);
            if ttl < TTL_MIN {
                fill.do_not_store();
                // Nothing is recorded of what is not stored.
                counting.scope.used::<&[u8]>(Some(Duration::ZERO), Duration::ZERO, []);
            }
            fill.set_ttl(ttl.max(TTL_MIN));
            for tag in &rendered.tags {
                fill.add_tag(tag);
            }
            Ok::<_, Fault>(Page::of(rendered, clock.wall_ms()))
        });
        Ok(page.await?)
    }

    /// Deletes one page, whatever is in it; whether it was there.
    pub(crate) async fn purge(&self, host: &str, address: &Address) -> Result<bool, Fault> {
        Ok(self.pages.delete(address.key(host)).await?)
    }
}

impl Page {
    pub(crate) fn of(rendered: Rendered, now_ms: i64) -> Page {
        let Rendered { status, first_pass, .. } = rendered;
        let text = first_pass.fill(&Visitor::default());
        Page {
            status,
            etag: format!("\"{:032x}\"", xxh3_128(text.as_bytes())),
            first_pass,
            rendered_ms: now_ms,
        }
    }
}

#[cfg(test)]
mod tests {
    use minijinja::context;

    use super::*;
    use crate::pages::Templates;

    fn rendered(message: &str, tag: &str) -> Rendered {
        let content = context! { title => "x", heading => message, text => "", picture => "x" };
        let first_pass = Templates::new().unwrap().render("message.html", content).unwrap();
        Rendered { status: 200, first_pass, tags: vec![tag.to_owned()] }
    }

    async fn page(cache: &PageCache, life: Duration, visit: &Visit) -> Page {
        let render = move |part: Visit| async move {
            part.scope.used(Some(life), Duration::ZERO, ["sku:1"]);
            part.scope.used(Some(Duration::from_secs(300)), Duration::ZERO, ["sku:2"]);
            Ok(rendered("Kite", "sku:1"))
        };
        cache.get("shop", &Address::Home, visit, render).await.unwrap()
    }

    #[tokio::test]
    async fn a_page_lives_as_short_as_its_parts_and_goes_by_tag_or_url() {
        let server = kvd::testing::server();
        let client = Client::builder().socket(server.socket()).build().await.unwrap();
        let cache = PageCache::new(&client, server.clock().clone());
        let renders = async || {
            let visit = Visit::default();
            page(&cache, Duration::from_secs(5), &visit).await;
            let age = visit.scope.max_age().unwrap();
            assert!(age <= Duration::from_secs(5) && age > Duration::from_secs(3), "{age:?}");
            visit.objects(Kind::Page).1
        };
        assert_eq!((renders().await, renders().await), (1, 0));
        server.clock().advance(Duration::from_secs(6));
        assert_eq!((renders().await, renders().await), (1, 0), "its shortest part was over");
        client.clear_tag("sku:1", kv_client::Effect::Gone).await.unwrap();
        assert_eq!((renders().await, renders().await), (1, 0), "cleared by its tag");
        assert!(cache.purge("shop", &Address::Home).await.unwrap());
        assert!(!cache.purge("other", &Address::Home).await.unwrap());
        assert_eq!((renders().await, renders().await), (1, 0), "purged by its address");
    }

    #[tokio::test]
    async fn what_is_over_already_is_shown_and_not_kept() {
        let server = kvd::testing::server();
        let client = Client::builder().socket(server.socket()).build().await.unwrap();
        let cache = PageCache::new(&client, server.clock().clone());
        for _ in 0..2 {
            let visit = Visit::default();
            page(&cache, Duration::ZERO, &visit).await;
            assert_eq!((visit.objects(Kind::Page), visit.scope.max_age()), ((1, 1), Some(Duration::ZERO)));
        }
    }
}
