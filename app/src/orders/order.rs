//! An order in the database: read for its letters and its payment, and what becomes of it when that is decided.

use sqlx::{Any, Row as _, Transaction};

use super::outbox::{Event, publish};
use super::payment::Verdict;
use crate::database::Database;

/// An order as its letters and its payment need it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Order {
    pub(crate) session: String,
    pub(crate) name: String,
    pub(crate) email: String,
    pub(super) card: String,
    pub(crate) cents: i64,
    pub(crate) state: String,
    /// Toy, name, quantity, cents.
    pub(crate) lines: Vec<(i64, String, i64, i64)>,
}

/// An order, from the database itself.
pub(crate) async fn order(database: &Database, id: &str) -> Result<Option<Order>, sqlx::Error> {
    let select = "SELECT session, name, email, card, cents, state FROM shop_order WHERE id = $1";
    let row = sqlx::query(select).bind(id).fetch_optional(database.primary()).await?;
    let Some(row) = row else { return Ok(None) };
    let select = "SELECT toy, name, quantity, cents FROM order_line WHERE shop_order = $1 ORDER BY toy";
    let lines = sqlx::query(select).bind(id).fetch_all(database.primary()).await?;
    let line =
        |row: &sqlx::any::AnyRow| Ok((row.try_get(0)?, row.try_get(1)?, row.try_get(2)?, row.try_get(3)?));
    Ok(Some(Order {
        session: row.try_get(0)?,
        name: row.try_get(1)?,
        email: row.try_get(2)?,
        card: row.try_get(3)?,
        cents: row.try_get(4)?,
        state: row.try_get(5)?,
        lines: lines.iter().map(line).collect::<Result<_, sqlx::Error>>()?,
    }))
}

/// Writes down what became of the payment. An order that is settled stays as it is.
pub(super) async fn settle(
    transaction: &mut Transaction<'static, Any>,
    id: &str,
    order: &Order,
    verdict: Verdict,
    now_ms: i64,
) -> Result<(), sqlx::Error> {
    let (state, event) = match verdict {
        Verdict::Charged => ("paid", Event::Paid),
        Verdict::Refused => ("refused", Event::Refused),
    };
    let settled = sqlx::query("UPDATE shop_order SET state = $2 WHERE id = $1 AND state = 'placed'")
        .bind(id)
        .bind(state)
        .execute(&mut **transaction)
        .await?;
    if settled.rows_affected() == 0 {
        return Ok(());
    }
    if verdict == Verdict::Refused {
        for (toy, _, quantity, _) in &order.lines {
            let back = sqlx::query("UPDATE inventory SET pieces = pieces + $2 WHERE toy = $1");
            back.bind(*toy).bind(*quantity).execute(&mut **transaction).await?;
        }
    }
    publish(transaction, event, id, now_ms).await
}

/// What was sold, for the list of bestsellers.
pub(super) async fn count_sold(
    transaction: &mut Transaction<'static, Any>,
    order: &Order,
) -> Result<(), sqlx::Error> {
    for (toy, _, quantity, _) in &order.lines {
        let count = sqlx::query("UPDATE toy SET sold = sold + $2 WHERE id = $1");
        count.bind(*toy).bind(*quantity).execute(&mut **transaction).await?;
    }
    Ok(())
}
