//! Lists of ids: which toys a page shows, never what they are.
//!
//! From "Building a Large-scale E-commerce Site with Apache and mod_perl": a tier of its own answers conditions with sorted *ids*, and the application
//! takes the objects from its cache. The pitfall: a list that holds copies of products shows yesterday's price beside today's; and the
//! same product is kept once for each list that it is on. `search` answers in the same way.

use std::time::Duration;

use kv_client::{Cache, Client, SchemaVersion, Typed};
use serde::{Deserialize, Serialize};
use sqlx::{AnyPool, Row as _};

use super::ToyId;
use crate::database::Database;
use crate::faults::Fault;
use crate::visit::{Kind, Visit};

/// Toys on one page of a list.
pub(crate) const PAGE_TOYS: i64 = 24;
/// Toys on the home page.
const BESTSELLERS: i64 = 12;
/// How long a list may be out of date.
const TTL: Duration = Duration::from_secs(60);
/// After that: while it is made anew, and while the database is away.
const STALE_FOR: Duration = Duration::from_secs(600);

/// What a list is sorted by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Sort {
    #[default]
    Popular,
    Cheap,
    Dear,
    Name,
}

impl Sort {
    pub(crate) const ALL: [Sort; 4] = [Sort::Popular, Sort::Cheap, Sort::Dear, Sort::Name];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Sort::Popular => "popular",
            Sort::Cheap => "cheap",
            Sort::Dear => "dear",
            Sort::Name => "name",
        }
    }

    const fn order(self) -> &'static str {
        match self {
            Sort::Popular => "toy.sold DESC, toy.id",
            Sort::Cheap => "price.cents, toy.id",
            Sort::Dear => "price.cents DESC, toy.id",
            Sort::Name => "toy.name, toy.id",
        }
    }
}

/// A category of the shop.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Category {
    pub(crate) name: String,
    /// Its name in addresses.
    pub(crate) slug: String,
    pub(crate) toys: i64,
}

/// The lists of the shop. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Lists {
    ids: Typed<Cache, Vec<ToyId>>,
    categories: Typed<Cache, Vec<Category>>,
    database: Database,
}

impl Lists {
    pub(super) fn new(client: &Client, database: Database) -> Lists {
        let cache = client.cache(Kind::List.name());
        Lists { ids: cache.typed(SchemaVersion(1)), categories: cache.typed(SchemaVersion(1)), database }
    }

    /// All categories, the largest first.
    pub(crate) async fn categories(&self, visit: &Visit) -> Result<Vec<Category>, Fault> {
        let query = "SELECT category, COUNT(*) FROM toy GROUP BY category ORDER BY COUNT(*) DESC, category";
        self.list(&self.categories, "categories".to_owned(), CATEGORIES, visit, move |pool| async move {
            let rows = sqlx::query(query).fetch_all(&pool).await?;
            let category = |name: String, toys| Category { slug: slug(&name), name, toys };
            rows.iter().map(|row| Ok(category(row.try_get(0)?, row.try_get(1)?))).collect()
        })
        .await
    }

    /// One page of a category's toys, counted from 1.
    pub(crate) async fn category(
        &self,
        category: &Category,
        sort: Sort,
        page: i64,
        visit: &Visit,
    ) -> Result<Vec<ToyId>, Fault> {
        let key = format!("category:{}:{}:{page}", category.slug, sort.name());
        let statement = format!(
            "SELECT toy.id FROM toy JOIN price ON price.toy = toy.id WHERE toy.category = $1 \
             ORDER BY {} LIMIT $2 OFFSET $3",
            sort.order()
        );
        let name = category.name.clone();
        self.list(&self.ids, key, &tag(&category.name), visit, move |pool| {
            let (statement, name) = (statement.clone(), name.clone());
            async move {
                let query = sqlx::query(&statement).bind(name).bind(PAGE_TOYS).bind((page - 1) * PAGE_TOYS);
                query.fetch_all(&pool).await?.iter().map(|row| row.try_get(0).map(ToyId)).collect()
            }
        })
        .await
    }

    /// What most people buy.
    pub(crate) async fn bestsellers(&self, visit: &Visit) -> Result<Vec<ToyId>, Fault> {
        let statement = "SELECT id FROM toy ORDER BY sold DESC, id LIMIT $1";
        self.list(&self.ids, "bestsellers".to_owned(), CATEGORIES, visit, move |pool| async move {
            let query = sqlx::query(statement).bind(BESTSELLERS);
            query.fetch_all(&pool).await?.iter().map(|row| row.try_get(0).map(ToyId)).collect()
        })
        .await
    }

    async fn list<T: Serialize + serde::de::DeserializeOwned + Send + 'static, F>(
        &self,
        cache: &Typed<Cache, T>,
        key: String,
        tag: &str,
        visit: &Visit,
        query: impl Fn(AnyPool) -> F + Send + Sync + 'static,
    ) -> Result<T, Fault>
    where
        F: Future<Output = Result<T, sqlx::Error>> + Send + 'static,
    {
        visit.asked(Kind::List, 1);
        let (replicas, loading) = (self.database.replicas().clone(), visit.clone());
        let entry = cache.in_scope(&visit.scope).entry(key).ttl(TTL).stale_for(STALE_FOR).tag(tag);
        let list = entry.get_or_load(move |_fill| async move {
            loading.query();
            loading.loaded(Kind::List, 1);
            replicas.read(query).await
        });
        Ok(list.await?)
    }
}

/// What lists of all categories are cleared by.
pub(crate) const CATEGORIES: &str = "lists";

/// What the lists of a category are cleared by.
pub(crate) fn tag(category: &str) -> String {
    let mut tag = format!("category:{}", slug(category));
    tag.truncate(64);
    tag
}

/// A name as it stands in addresses: lower case letters, digits and hyphens.
pub(crate) fn slug(name: &str) -> String {
    let words = name.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
    words.map(str::to_ascii_lowercase).collect::<Vec<_>>().join("-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slugs_are_plain() {
        assert_eq!(slug("DC Comics Super Heroes"), "dc-comics-super-heroes");
        assert_eq!(slug("  <script> "), "script");
        assert_eq!(tag("Pharaoh's Quest"), "category:pharaoh-s-quest");
    }
}
