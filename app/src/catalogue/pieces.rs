//! A product in pieces: what it is, costs, and how many there are, each cached for as long as it may be out of date.
//!
//! From "Building a Large-scale E-commerce Site with Apache and mod_perl": objects are split so that the inventory expires sooner than the
//! description, and callers ask only for the pieces they need. The pitfall: one object with everything in it lives as short as its
//! shortest piece, and the database is asked for texts that change once a year. Each piece has a schema version of its own, so that old
//! and new workers of a rolling deploy never decode each other's bytes.

use std::time::Duration;

use kv_client::SchemaVersion;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sqlx::any::AnyRow;
use sqlx::{AnyPool, Row as _};

use crate::database::parameters;
use crate::visit::Kind;

/// How long something may be out of date.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Life {
    pub(crate) ttl: Duration,
    /// After that: while it is reloaded, and while the database is away.
    pub(crate) stale_for: Duration,
    /// How long "there is none" is believed.
    pub(crate) none: Duration,
}

/// One piece of a product, by the toy's id.
pub(crate) trait Piece: Serialize + DeserializeOwned + Send + Sync + 'static {
    const KIND: Kind;
    const SCHEMA: SchemaVersion;
    const LIFE: Life;
    /// Up to where the ids go.
    const SELECT: &'static str;

    fn of_row(row: &AnyRow) -> Result<Self, sqlx::Error>;

    /// Many at once, by one query.
    fn select(
        pool: AnyPool,
        ids: Vec<i64>,
    ) -> impl Future<Output = Result<Vec<(i64, Self)>, sqlx::Error>> + Send {
        async move {
            let statement = format!("{} ({})", Self::SELECT, parameters(1, ids.len()));
            let query = ids.iter().fold(sqlx::query(&statement), |query, id| query.bind(*id));
            let rows = query.fetch_all(&pool).await?;
            rows.iter().map(|row| Ok((row.try_get(0)?, Self::of_row(row)?))).collect()
        }
    }
}

/// What a toy is. Changes when somebody writes a better text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Description {
    pub(crate) name: String,
    pub(crate) category: String,
    pub(crate) text: String,
    /// Of one character.
    pub(crate) picture: String,
}

impl Piece for Description {
    const KIND: Kind = Kind::Description;
    const SCHEMA: SchemaVersion = SchemaVersion(1);
    const LIFE: Life = Life {
        ttl: Duration::from_secs(3_600),
        stale_for: Duration::from_secs(86_400),
        none: Duration::from_secs(60),
    };
    const SELECT: &'static str = "SELECT id, name, category, text, picture FROM toy WHERE id IN";

    fn of_row(row: &AnyRow) -> Result<Description, sqlx::Error> {
        let (name, category) = (row.try_get(1)?, row.try_get(2)?);
        Ok(Description { name, category, text: row.try_get(3)?, picture: row.try_get(4)? })
    }
}

/// What it costs. Changes with every sale.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Price {
    pub(crate) cents: i64,
}

impl Piece for Price {
    const KIND: Kind = Kind::Price;
    const SCHEMA: SchemaVersion = SchemaVersion(1);
    const LIFE: Life = Life {
        ttl: Duration::from_secs(300),
        stale_for: Duration::from_secs(300),
        none: Duration::from_secs(60),
    };
    const SELECT: &'static str = "SELECT toy, cents FROM price WHERE toy IN";

    fn of_row(row: &AnyRow) -> Result<Price, sqlx::Error> {
        Ok(Price { cents: row.try_get(1)? })
    }
}

/// How many there are. Changes with every order, which decides by the database and never by this.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Inventory {
    pub(crate) pieces: i64,
}

impl Piece for Inventory {
    const KIND: Kind = Kind::Inventory;
    const SCHEMA: SchemaVersion = SchemaVersion(1);
    /// Never stale: what is shown is at most this old.
    const LIFE: Life =
        Life { ttl: Duration::from_secs(10), stale_for: Duration::ZERO, none: Duration::from_secs(10) };
    const SELECT: &'static str = "SELECT toy, pieces FROM inventory WHERE toy IN";

    fn of_row(row: &AnyRow) -> Result<Inventory, sqlx::Error> {
        Ok(Inventory { pieces: row.try_get(1)? })
    }
}
