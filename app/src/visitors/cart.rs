//! What a cart may hold, and what it comes to.
//!
//! From FMStocks 2000: the cart is the database's, row by row; this module only says what a change means. The pitfall: believing quantities
//! that come with a form. What a line costs is looked up when it is shown, and again, by the database, when it is bought.

use super::session::Session;
use crate::catalogue::{Card, Catalogue, ToyId};
use crate::faults::Fault;
use crate::visit::Visit;

/// Most pieces of one toy. More is taken for this many.
pub(crate) const QUANTITY_MAX: i64 = 99;
/// Most different toys. One more is not taken.
pub(crate) const LINES_MAX: usize = 50;

impl Session {
    /// Puts a toy into the cart as often as said in all; 0 takes it out.
    pub(crate) fn set(&mut self, toy: ToyId, quantity: i64) {
        let quantity = quantity.clamp(0, QUANTITY_MAX);
        match self.lines.iter().position(|(own, _)| *own == toy) {
            Some(at) => self.lines[at].1 = quantity,
            None if self.lines.len() < LINES_MAX => self.lines.push((toy, quantity)),
            None => {}
        }
        self.lines.retain(|(_, quantity)| *quantity > 0);
        self.lines.sort_by_key(|(toy, _)| *toy);
    }

    /// Puts in so many more.
    pub(crate) fn add(&mut self, toy: ToyId, more: i64) {
        let had = self.lines.iter().find(|(own, _)| *own == toy).map_or(0, |(_, quantity)| *quantity);
        self.set(toy, had.saturating_add(more.max(0)));
    }
}

/// A line of the cart as it is shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Line {
    pub(crate) card: Card,
    pub(crate) quantity: i64,
}

impl Line {
    pub(crate) fn cents(&self) -> i64 {
        self.card.price.cents.saturating_mul(self.quantity)
    }
}

/// The lines of a cart. What is not for sale any more is left out.
pub(crate) async fn lines(
    catalogue: &Catalogue,
    session: &Session,
    visit: &Visit,
) -> Result<Vec<Line>, Fault> {
    let ids: Vec<ToyId> = session.lines.iter().map(|(toy, _)| *toy).collect();
    let cards = catalogue.cards(&ids, visit).await?;
    let quantity = |id| session.lines.iter().find(|(toy, _)| *toy == id).map_or(0, |(_, quantity)| *quantity);
    Ok(cards.into_iter().map(|card| Line { quantity: quantity(card.id), card }).collect())
}

/// What they come to.
pub(crate) fn total(lines: &[Line]) -> i64 {
    lines.iter().map(Line::cents).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_bounded_whatever_the_form_says() {
        let mut session = Session::default();
        session.add(ToyId(7), 2);
        session.add(ToyId(3), i64::MAX);
        session.add(ToyId(7), -5);
        assert_eq!(session.lines, [(ToyId(3), QUANTITY_MAX), (ToyId(7), 2)]);
        session.set(ToyId(7), -1);
        session.set(ToyId(9), 0);
        assert_eq!(session.lines, [(ToyId(3), QUANTITY_MAX)]);
        (10..200).for_each(|toy| session.add(ToyId(toy), 1));
        assert_eq!(session.lines.len(), LINES_MAX);
    }
}
