//! What customers are told by mail.

use super::Order;
use super::mail::Letter;
use super::outbox::Claimed;
use crate::pages::dollars;

pub(super) fn receipt(event: &Claimed, order: &Order) -> Letter {
    let lines: String = order
        .lines
        .iter()
        .map(|(_, name, quantity, cents)| format!("  {quantity} x {name}: {}\n", dollars(quantity * cents)))
        .collect();
    letter(
        event,
        order,
        "Your receipt",
        &format!(
            "thank you for order {}. It is paid and on its way:\n\n{lines}\n  Total: {}",
            event.order,
            dollars(order.cents)
        ),
    )
}

pub(super) fn refusal(event: &Claimed, order: &Order) -> Letter {
    let text = format!(
        "your card was refused for order {} of {}. Nothing was charged, and the toys are back on their shelf.",
        event.order,
        dollars(order.cents)
    );
    letter(event, order, "Your order could not be paid", &text)
}

fn letter(event: &Claimed, order: &Order, subject: &str, text: &str) -> Letter {
    Letter {
        event: event.id.clone(),
        name: order.name.clone(),
        email: order.email.clone(),
        subject: subject.to_owned(),
        text: format!("Hello {},\n\n{text}\n\nThe Toy Store\n", order.name),
    }
}
