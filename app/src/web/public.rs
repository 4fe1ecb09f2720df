//! Pages for everybody: home, category, product, search. The first pass comes from the page cache; a visitor's second pass is made here.

use std::time::Duration;

use axum::response::Response;
use minijinja::context;

use super::asked::Asked;
use super::{Shop, answers, private};
use crate::catalogue::lists::{Category, PAGE_TOYS, Sort, tag};
use crate::catalogue::{Card, FOUND, HOME, ToyId, lists};
use crate::faults::{Fault, retry};
use crate::pages::address::{Address, Search};
use crate::pages::cache::{Page, Rendered};
use crate::visit::Visit;

/// From so few on the page says how many are left.
const FEW: i64 = 5;

/// How long others may keep that a path leads nowhere.
const NOWHERE_FOR: Duration = Duration::from_secs(5);

pub(super) async fn show(
    shop: &Shop,
    asked: &Asked,
    address: Address,
    visit: &Visit,
) -> Result<Response, Fault> {
    let page = page(shop, &asked.host, &address, visit).await?;
    answer(shop, asked, &page, visit).await
}

/// The first pass of a page: cached, or rendered by one worker of the host.
pub(crate) async fn page(shop: &Shop, host: &str, address: &Address, visit: &Visit) -> Result<Page, Fault> {
    retry(|| {
        let (rendering, wanted) = (shop.clone(), address.clone());
        let render = move |part| async move { render(&rendering, &wanted, &part).await };
        shop.pages.get(host, address, visit, render)
    })
    .await
}

/// A path that leads nowhere. Not cached, and not for long by others: anybody can make up as many as he likes.
pub(super) async fn nowhere(shop: &Shop, asked: &Asked, visit: &Visit) -> Result<Response, Fault> {
    visit.scope.used::<&[u8]>(Some(NOWHERE_FOR), Duration::ZERO, []);
    let page = Page::of(missing(shop)?, shop.clock.wall_ms());
    answer(shop, asked, &page, visit).await
}

async fn answer(shop: &Shop, asked: &Asked, page: &Page, visit: &Visit) -> Result<Response, Fault> {
    match &asked.session {
        None => Ok(answers::public(shop, asked, page, visit)),
        Some(believed) => {
            let visitor = private::visitor(shop, &believed.id, visit).await?;
            Ok(answers::private(shop, page, &visitor, believed.is_to_renew.then_some(&believed.id)))
        }
    }
}

pub(crate) async fn render(shop: &Shop, address: &Address, visit: &Visit) -> Result<Rendered, Fault> {
    match address {
        Address::Home => home(shop, visit).await,
        Address::Category { slug, sort, page } => category(shop, address, slug, *sort, *page, visit).await,
        Address::Product(id) => product(shop, *id, visit).await,
        Address::Search(search) => found(shop, address, search, visit).await,
    }
}

async fn home(shop: &Shop, visit: &Visit) -> Result<Rendered, Fault> {
    let lists = &shop.catalogue.lists;
    let (categories, best) = tokio::try_join!(lists.categories(visit), lists.bestsellers(visit))?;
    let cards = cards(&shop.catalogue.cards(&best, visit).await?);
    let content =
        context! { title => "Toys that are played with", categories => shelves(&categories), cards };
    let first_pass = shop.templates.render("home.html", content)?;
    Ok(Rendered { status: 200, first_pass, tags: vec![HOME.to_owned(), lists::CATEGORIES.to_owned()] })
}

async fn category(
    shop: &Shop,
    address: &Address,
    slug: &str,
    sort: Sort,
    page: i64,
    visit: &Visit,
) -> Result<Rendered, Fault> {
    let lists = &shop.catalogue.lists;
    let categories = lists.categories(visit).await?;
    let Some(category) = categories.iter().find(|category| category.slug == slug) else {
        return missing(shop);
    };
    let last = last_page(category.toys);
    if page > last {
        return missing(shop);
    }
    let ids = lists.category(category, sort, page, visit).await?;
    let cards = cards(&shop.catalogue.cards(&ids, visit).await?);
    let content = context! {
        title => &category.name, category => shelf(category), cards,
        sorts => sorts(address, sort), pages => pages(address, page, last),
    };
    let first_pass = shop.templates.render("category.html", content)?;
    Ok(Rendered { status: 200, first_pass, tags: vec![tag(&category.name), lists::CATEGORIES.to_owned()] })
}

async fn product(shop: &Shop, id: ToyId, visit: &Visit) -> Result<Rendered, Fault> {
    let Some(product) = shop.catalogue.product(id, visit).await? else {
        return Ok(Rendered { tags: vec![id.tag()], ..missing(shop)? });
    };
    let (description, pieces) = (&product.description, product.inventory.map(|inventory| inventory.pieces));
    let content = context! {
        title => &description.name, id => id.0, name => &description.name,
        category => &description.category, slug => lists::slug(&description.category), text => &description.text,
        picture => &description.picture, cents => product.price.cents, known => pieces.is_some(),
        pieces => pieces.unwrap_or(1), few => pieces.is_some_and(|pieces| pieces <= FEW),
    };
    let first_pass = shop.templates.render("product.html", content)?;
    Ok(Rendered { status: 200, first_pass, tags: vec![id.tag()] })
}

async fn found(shop: &Shop, address: &Address, search: &Search, visit: &Visit) -> Result<Rendered, Fault> {
    let categories = shop.catalogue.lists.categories(visit).await?;
    let (searching, wanted) = (shop.search.clone(), search.clone());
    let found = tokio::task::spawn_blocking(move || searching.find(&wanted)).await;
    let found = found.map_err(|error| Fault::Io { what: "searching", source: error.into() })??;
    // The index is rebuilt now and then; what was found is not older than a list.
    visit.scope.used::<&[u8]>(Some(Duration::from_secs(60)), Duration::ZERO, []);
    let cards = cards(&shop.catalogue.cards(&found.ids, visit).await?);
    let last = last_page(i64::try_from(found.count).unwrap_or(i64::MAX));
    let content = context! {
        title => "Search", terms => &search.terms, categories => shelves(&categories), cards, count => found.count,
        chosen => &search.category, max => search.cents_max.map(|cents| cents / 100),
        sorts => sorts(address, search.sort), pages => pages(address, search.page, last),
    };
    let first_pass = shop.templates.render("search.html", content)?;
    Ok(Rendered { status: 200, first_pass, tags: vec![FOUND.to_owned()] })
}

fn missing(shop: &Shop) -> Result<Rendered, Fault> {
    let content = context! {
        title => "Not here", heading => "We have looked under the sofa, too", picture => "🔎",
        text => "There is no such toy. It may have been sold for good, or the address lost a digit on the way.",
    };
    Ok(Rendered { status: 404, first_pass: shop.templates.render("message.html", content)?, tags: vec![] })
}

/// What a template needs of each toy of a list.
pub(super) fn cards(cards: &[Card]) -> Vec<minijinja::Value> {
    let card = |card: &Card| {
        let Card { id, description, price } = card;
        context! {
            id => id.0, name => &description.name, category => &description.category,
            picture => &description.picture, cents => price.cents,
        }
    };
    cards.iter().map(card).collect()
}

fn shelf(category: &Category) -> minijinja::Value {
    context! { name => &category.name, slug => &category.slug, toys => category.toys }
}

fn shelves(categories: &[Category]) -> Vec<minijinja::Value> {
    categories.iter().map(shelf).collect()
}

fn last_page(toys: i64) -> i64 {
    ((toys + PAGE_TOYS - 1) / PAGE_TOYS).max(1)
}

fn sorts(address: &Address, chosen: Sort) -> Vec<minijinja::Value> {
    let label = |sort| match sort {
        // Of what was searched, what fits best.
        Sort::Popular if matches!(address, Address::Search(_)) => "Best match",
        Sort::Popular => "Most popular",
        Sort::Cheap => "Price, low to high",
        Sort::Dear => "Price, high to low",
        Sort::Name => "Name",
    };
    Sort::ALL
        .map(|sort| context! { path => address.with_sort(sort).path(), name => sort.name(), label => label(sort), is_chosen => sort == chosen })
        .to_vec()
}

fn pages(address: &Address, page: i64, last: i64) -> minijinja::Value {
    let path = |to: i64| (1..=last).contains(&to).then(|| address.with_page(to).path());
    context! { page, last, previous => path(page - 1), next => path(page + 1) }
}
