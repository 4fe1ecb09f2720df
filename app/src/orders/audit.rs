//! The audit: whether every order that is paid was charged once, and nothing else was; judged by the payment stand-in's own ledger.

use sqlx::Row as _;

use super::payment::Payment;
use crate::database::Database;
use crate::faults::Fault;

/// Orders, and what the ledger says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Audit {
    /// Orders that nobody has charged yet.
    pub(crate) open: i64,
    /// Orders that are paid, and their sum.
    pub(crate) paid: (i64, i64),
    /// Movements of money, and their sum.
    pub(crate) charged: (i64, i64),
}

impl Audit {
    pub(crate) async fn of(database: &Database, payment: &Payment) -> Result<Audit, Fault> {
        let query =
            "SELECT COUNT(*), CAST(COALESCE(SUM(cents), 0) AS BIGINT) FROM shop_order WHERE state = $1";
        let in_state = async |state: &'static str| -> Result<(i64, i64), sqlx::Error> {
            let row = sqlx::query(query).bind(state).fetch_one(database.primary()).await?;
            Ok((row.try_get(0)?, row.try_get(1)?))
        };
        let (open, paid) = (in_state("placed").await?.0, in_state("paid").await?);
        Ok(Audit { open, paid, charged: payment.movements().await? })
    }

    /// Each that is paid was charged once. One that was charged a moment ago may still be open.
    pub(crate) fn is_right(&self) -> bool {
        let more = (self.charged.0 - self.paid.0, self.charged.1 - self.paid.1);
        more == (0, 0) || (more.1 >= 0 && (0..=self.open).contains(&more.0))
    }
}
