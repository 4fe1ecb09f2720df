//! Sessions as the database has them: one row, and one a line of the cart. From FMStocks 2000; see `session` for the pitfall.

use sqlx::{Any, AnyConnection, Row as _, Transaction};

use super::cookie::SessionId;
use super::session::Session;
use crate::catalogue::ToyId;

/// Makes the row or changes it. Either locks it until the transaction ends, so that changes of a session come one after the other. What
/// it holds, and which change was its last.
pub(super) async fn lock(
    transaction: &mut Transaction<'static, Any>,
    id: &SessionId,
    now_ms: i64,
) -> Result<(Session, String), sqlx::Error> {
    let row = sqlx::query(
        "INSERT INTO session (id, version, name, email, changed_ms) VALUES ($1, 1, '', '', $2) ON CONFLICT (id) \
         DO UPDATE SET version = session.version + 1, changed_ms = excluded.changed_ms RETURNING last_change",
    )
    .bind(id.as_str())
    .bind(now_ms)
    .fetch_one(&mut **transaction)
    .await?;
    Ok((select(transaction, id).await?, row.try_get(0)?))
}

/// What there is of a session: an empty one if nothing.
pub(super) async fn select(connection: &mut AnyConnection, id: &SessionId) -> Result<Session, sqlx::Error> {
    let rows = sqlx::query(
        "SELECT session.version, session.name, session.email, cart_line.toy, cart_line.quantity FROM session \
         LEFT JOIN cart_line ON cart_line.session = session.id WHERE session.id = $1 ORDER BY cart_line.toy",
    )
    .bind(id.as_str())
    .fetch_all(connection)
    .await?;
    let Some(first) = rows.first() else { return Ok(Session::default()) };
    let mut session = Session {
        version: first.try_get(0)?,
        name: first.try_get(1)?,
        email: first.try_get(2)?,
        lines: Vec::with_capacity(rows.len()),
    };
    for row in &rows {
        if let Some(toy) = row.try_get::<Option<i64>, _>(3)? {
            session.lines.push((ToyId(toy), row.try_get(4)?));
        }
    }
    Ok(session)
}

/// Writes all of a session whose row is there.
pub(super) async fn write(
    transaction: &mut Transaction<'static, Any>,
    id: &SessionId,
    session: &Session,
    last_change: &str,
) -> Result<(), sqlx::Error> {
    sqlx::query("UPDATE session SET name = $2, email = $3, last_change = $4 WHERE id = $1")
        .bind(id.as_str())
        .bind(&session.name)
        .bind(&session.email)
        .bind(last_change)
        .execute(&mut **transaction)
        .await?;
    sqlx::query("DELETE FROM cart_line WHERE session = $1")
        .bind(id.as_str())
        .execute(&mut **transaction)
        .await?;
    for (toy, quantity) in &session.lines {
        sqlx::query("INSERT INTO cart_line (session, toy, quantity) VALUES ($1, $2, $3)")
            .bind(id.as_str())
            .bind(toy.0)
            .bind(*quantity)
            .execute(&mut **transaction)
            .await?;
    }
    Ok(())
}
