//! Forms: the cart, the checkout, the account. Each is checked to be ours, changes the database, and leads on to a page.

use axum::response::Response;

use super::asked::Asked;
use super::{Shop, answers, private};
use crate::checkout::{self, Buyer, Outcome};
use crate::faults::Fault;
use crate::orders::mail;
use crate::pages::{address, dollars};
use crate::visit::Visit;
use crate::visitors::cookie::SessionId;
use crate::visitors::csrf;
use crate::visitors::session::Session;

/// Longest name, address or card that is taken.
const FIELD_BYTES_MAX: usize = 200;

/// Where forms lead.
enum Form {
    Cart,
    Checkout,
    Account,
}

impl Form {
    fn of(path: &str) -> Option<Form> {
        match path {
            "/cart" => Some(Form::Cart),
            "/checkout" => Some(Form::Checkout),
            "/account" => Some(Form::Account),
            _ => None,
        }
    }
}

pub(super) async fn submit(shop: &Shop, asked: &Asked, visit: &Visit) -> Result<Response, Fault> {
    // First of all: the page that asks back has a form that leads there, too.
    let Some(form) = Form::of(&asked.path) else { return super::public::nowhere(shop, asked, visit).await };
    let (id, is_new) = private::session(asked)?;
    let own = asked.session.as_ref().map(|believed| &believed.id);
    let session = private::known(shop, asked, visit).await?;
    let (token, origin) = (asked.field("token"), asked.origin.as_deref());
    if !csrf::is_ours(&shop.keys, own, &session, token, origin, &asked.host) {
        let words = "This form did not come from a page of yours, or it has been open for too long.";
        return private::say(shop, asked, visit, 403, "Did you mean to do this?", words, true).await;
    }
    let cookie = is_new.then_some(&id);
    match form {
        Form::Cart => cart(shop, asked, &id, cookie, visit).await,
        Form::Checkout => order(shop, asked, &id, cookie, visit).await,
        Form::Account => account(shop, asked, &id).await,
    }
}

async fn cart(
    shop: &Shop,
    asked: &Asked,
    id: &SessionId,
    cookie: Option<&SessionId>,
    visit: &Visit,
) -> Result<Response, Fault> {
    let toy = asked.field("toy").and_then(address::toy);
    let quantity = asked.field("quantity").and_then(|quantity| quantity.parse::<i64>().ok());
    let (Some(toy), Some(quantity)) = (toy, quantity) else {
        return private::say(
            shop,
            asked,
            visit,
            400,
            "How many of what?",
            "Please say it with a whole number.",
            false,
        )
        .await;
    };
    if shop.catalogue.product(toy, visit).await?.is_none() {
        return super::public::nowhere(shop, asked, visit).await;
    }
    let is_more = asked.field("action") == Some("add");
    let change =
        |session: &mut Session| if is_more { session.add(toy, quantity) } else { session.set(toy, quantity) };
    shop.sessions.change(id, change).await?;
    Ok(answers::see_other(shop, "/cart", cookie))
}

async fn order(
    shop: &Shop,
    asked: &Asked,
    id: &SessionId,
    cookie: Option<&SessionId>,
    visit: &Visit,
) -> Result<Response, Fault> {
    let field = |name| {
        asked.field(name).map(str::trim).filter(|text| !text.is_empty() && text.len() <= FIELD_BYTES_MAX)
    };
    let number = field("order").filter(|order| order.len() <= 32 && order.bytes().all(is_plain));
    let email = field("email").filter(|email| mail::is_address(email));
    let (Some(order), Some(name), Some(email), Some(card)) = (number, field("name"), email, field("card"))
    else {
        let words = "We need a name, an e-mail address for the receipt, and the number of a card.";
        return private::say(shop, asked, visit, 400, "Something is missing", words, false).await;
    };
    let buyer = Buyer { name: name.to_owned(), email: email.to_owned(), card: last_digits(card) };
    // What the button said. A form of an older worker does not say it.
    let cents = asked.field("cents").and_then(|cents| cents.parse().ok());
    let placed =
        checkout::place(&shop.sessions, &shop.catalogue, &shop.clock, id, order, &buyer, cents).await?;
    let (status, heading, words) = match placed {
        Outcome::Placed => return Ok(answers::see_other(shop, &format!("/order/{order}"), cookie)),
        Outcome::NothingInCart => {
            (400, "Your cart is empty", "There is nothing to buy in it yet.".to_owned())
        }
        Outcome::NotYours => (409, "Please try again", "This order's number is taken.".to_owned()),
        Outcome::Repriced(cents) => {
            let words = "A price has changed since you looked. Nothing is ordered yet: your cart comes to";
            (409, "It costs something else now", format!("{words} {} now.", dollars(cents)))
        }
        Outcome::SoldOut(toys) => {
            let cards = shop.catalogue.cards(&toys, visit).await?;
            let names: Vec<&str> = cards.iter().map(|card| card.description.name.as_str()).collect();
            (409, "Somebody was faster", format!("There are not enough left of: {}.", names.join(", ")))
        }
    };
    private::say(shop, asked, visit, status, heading, &words, false).await
}

/// Whoever signs in gets a new session: one that somebody else may have seen or planted is worth nothing afterwards. Which one follows from the
/// old one and the form's number, so that a second click leads to the same one, and nobody who knows the old one alone finds it.
async fn account(shop: &Shop, asked: &Asked, id: &SessionId) -> Result<Response, Fault> {
    let new = match asked.field("form") {
        Some(form) => SessionId::derived(&shop.keys, id, form),
        None => SessionId::random()?,
    };
    let field = |name| asked.field(name).unwrap_or_default().trim().chars().take(80).collect::<String>();
    let (name, email) = (field("name"), field("email"));
    if asked.session.is_none() {
        let begin = |session: &mut Session| (session.name, session.email) = (name.clone(), email.clone());
        shop.sessions.change(&new, begin).await?;
    } else if asked.field("action") != Some("out") {
        shop.sessions.sign_in(id, &new, &name, &email).await?;
    } else {
        let clear =
            |session: &mut Session| *session = Session { version: session.version, ..Session::default() };
        shop.sessions.change(id, clear).await?;
    }
    Ok(answers::see_other(shop, "/account", Some(&new)))
}

/// All that is kept of a card.
fn last_digits(card: &str) -> String {
    let digits: Vec<char> = card.chars().filter(char::is_ascii_digit).collect();
    digits[digits.len().saturating_sub(4)..].iter().collect()
}

fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_'
}
