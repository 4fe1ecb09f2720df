//! Pages of one visitor: cart, checkout, order, account. Nobody keeps them.

use axum::response::Response;
use minijinja::{Value, context};

use super::asked::Asked;
use super::{Shop, answers};
use crate::faults::{Fault, retry};
use crate::orders;
use crate::pages::cache::{Page, Rendered};
use crate::pages::two_pass::Visitor;
use crate::visit::Visit;
use crate::visitors::cart::{self, Line};
use crate::visitors::cookie::SessionId;
use crate::visitors::csrf;
use crate::visitors::session::Session;

/// What a visitor's holes are filled with.
pub(super) async fn visitor(shop: &Shop, id: &SessionId, visit: &Visit) -> Result<Visitor, Fault> {
    Ok(visitor_of(shop, id, &shop.sessions.read(id, visit).await?))
}

fn visitor_of(shop: &Shop, id: &SessionId, session: &Session) -> Visitor {
    let (name, token) = (session.name.clone(), csrf::token(&shop.keys, id));
    Visitor { name, in_cart: session.in_cart(), token, has_session: true }
}

/// The session that a request has, or a new one; and whether its cookie is to be sent.
pub(super) fn session(asked: &Asked) -> Result<(SessionId, bool), Fault> {
    match &asked.session {
        Some(believed) => Ok((believed.id.clone(), believed.is_to_renew)),
        None => Ok((SessionId::random()?, true)),
    }
}

/// What is known of whoever asks: nothing, without a look anywhere, of somebody who has no session yet.
pub(super) async fn known(shop: &Shop, asked: &Asked, visit: &Visit) -> Result<Session, Fault> {
    match &asked.session {
        Some(believed) => shop.sessions.read(&believed.id, visit).await,
        None => Ok(Session::default()),
    }
}

/// Gives a session to whoever has none. Nothing is written: a session that holds nothing is its cookie.
pub(super) fn welcome(shop: &Shop, asked: &Asked) -> Result<Response, Fault> {
    let (id, is_new) = session(asked)?;
    Ok(answers::welcome(shop, is_new.then_some(&id)))
}

pub(super) async fn cart(shop: &Shop, asked: &Asked, visit: &Visit) -> Result<Response, Fault> {
    show(shop, asked, visit, "cart.html", async |session| {
        let lines = retry(|| cart::lines(&shop.catalogue, session, visit)).await?;
        Ok(context! { title => "Your cart", lines => values(&lines), cents => cart::total(&lines) })
    })
    .await
}

pub(super) async fn checkout(shop: &Shop, asked: &Asked, visit: &Visit) -> Result<Response, Fault> {
    show(shop, asked, visit, "checkout.html", async |session| {
        let lines = retry(|| cart::lines(&shop.catalogue, session, visit)).await?;
        let order = SessionId::random()?.as_str()[..16].to_owned();
        Ok(context! {
            title => "Checkout", lines => values(&lines), cents => cart::total(&lines), order,
            name => &session.name, email => &session.email,
        })
    })
    .await
}

pub(super) async fn account(shop: &Shop, asked: &Asked, visit: &Visit) -> Result<Response, Fault> {
    show(shop, asked, visit, "account.html", async |session| {
        let form = SessionId::random()?.as_str().to_owned();
        Ok(context! { title => "Your account", name => &session.name, email => &session.email, form })
    })
    .await
}

/// An order, to whoever placed it.
pub(super) async fn order(shop: &Shop, asked: &Asked, id: &str, visit: &Visit) -> Result<Response, Fault> {
    visit.query();
    let order = retry(async || Ok(orders::order(&shop.database, id).await?)).await?;
    let own = asked.session.as_ref().map(|believed| believed.id.as_str());
    match order.filter(|order| Some(order.session.as_str()) == own) {
        None => super::public::nowhere(shop, asked, visit).await,
        Some(order) => {
            let line = |(_, name, quantity, cents): &(i64, String, i64, i64)| {
                context! { name, quantity, cents => quantity * cents }
            };
            let lines: Vec<Value> = order.lines.iter().map(line).collect();
            let (cents, email, state) = (order.cents, order.email, order.state);
            show(shop, asked, visit, "order.html", async |_| {
                Ok(context! { title => "Your order", id, lines, cents, email, state })
            })
            .await
        }
    }
}

/// Renders a page for the visitor alone, whose session comes along.
pub(super) async fn show(
    shop: &Shop,
    asked: &Asked,
    visit: &Visit,
    template: &str,
    content: impl AsyncFnOnce(&Session) -> Result<Value, Fault>,
) -> Result<Response, Fault> {
    let (id, is_new) = session(asked)?;
    let session = known(shop, asked, visit).await?;
    let first_pass = shop.templates.render(template, content(&session).await?)?;
    let page = Page::of(Rendered { status: 200, first_pass, tags: vec![] }, shop.clock.wall_ms());
    Ok(answers::private(shop, &page, &visitor_of(shop, &id, &session), is_new.then_some(&id)))
}

fn values(lines: &[Line]) -> Vec<Value> {
    let value = |line: &Line| {
        context! {
            id => line.card.id.0, name => &line.card.description.name, picture => &line.card.description.picture,
            quantity => line.quantity, each => line.card.price.cents, cents => line.cents(),
        }
    };
    lines.iter().map(value).collect()
}

/// A page that says something to the visitor, with a way to send his form again.
///
/// A form that another site made a browser send comes without our cookie, and a new one in the answer would take the place of the visitor's.
/// So only who has a session, or comes from a page of ours, gets one; the others get a form without a token, which is a first form.
pub(super) async fn say(
    shop: &Shop,
    asked: &Asked,
    visit: &Visit,
    status: u16,
    heading: &str,
    words: &str,
    again: bool,
) -> Result<Response, Fault> {
    let (id, is_new) = session(asked)?;
    let session = known(shop, asked, visit).await?;
    let fields: Vec<Value> = asked.fields().map(|(name, value)| context! { name, value }).collect();
    let again = again.then(|| context! { path => &asked.path, fields });
    let content = context! { title => heading, heading, text => words, picture => "🧸", again };
    let first_pass = shop.templates.render("message.html", content)?;
    let page = Page::of(Rendered { status, first_pass, tags: vec![] }, shop.clock.wall_ms());
    if asked.session.is_none() && !csrf::is_own(asked.origin.as_deref(), &asked.host) {
        return Ok(answers::private(shop, &page, &Visitor::default(), None));
    }
    Ok(answers::private(shop, &page, &visitor_of(shop, &id, &session), is_new.then_some(&id)))
}
