//! Addresses: what a path and its parameters ask for, and the one name that a page has in the cache.
//!
//! From "E-Commerce with Django at Scale" and the proxies of the mod_perl shop: a cached page is found by allowed host, path and the *known*
//! parameters in one order. The pitfall: a key made of the raw URL, which anybody fills with copies of one page (`?a=1`, `?a=2`), or
//! poisons with a `Host` of his own. What is not known here is not part of the page, and what is written in two ways has one address.

use std::borrow::Cow;

use crate::catalogue::ToyId;
use crate::catalogue::lists::Sort;

/// Longest search. What is beyond is cut off.
pub(crate) const TERMS_BYTES_MAX: usize = 100;
/// Last page of a list that is shown. Beyond: there is no such page.
const PAGE_MAX: i64 = 1_000;

/// A page that is the same for everybody.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Address {
    Home,
    Category { slug: String, sort: Sort, page: i64 },
    Product(ToyId),
    Search(Search),
}

/// A search as it was asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Search {
    pub(crate) terms: String,
    /// A slug; empty: all.
    pub(crate) category: String,
    pub(crate) cents_max: Option<i64>,
    pub(crate) sort: Sort,
    pub(crate) page: i64,
}

impl Address {
    /// `None`: there is no such page.
    pub(crate) fn parse(path: &str, query: Option<&str>) -> Option<Address> {
        let segments: Vec<&str> = path.strip_prefix('/')?.split('/').collect();
        let parameters = Parameters::parse(query);
        match segments[..] {
            [""] => Some(Address::Home),
            ["category", slug] if is_slug(slug) => Some(Address::Category {
                slug: slug.to_owned(),
                sort: parameters.sort(),
                page: parameters.page()?,
            }),
            ["product", id] => toy(id).map(Address::Product),
            ["search"] => Some(Address::Search(Search {
                terms: parameters.terms(),
                category: parameters
                    .get("category")
                    .filter(|slug| is_slug(slug))
                    .unwrap_or_default()
                    .to_owned(),
                cents_max: parameters
                    .get("max")
                    .and_then(|dollars| dollars.parse::<u32>().ok())
                    .map(|d| i64::from(d) * 100),
                sort: parameters.sort(),
                page: parameters.page()?,
            })),
            _ => None,
        }
    }

    /// Path and known parameters, sorted, each only where it says something: the page's one address on this host.
    pub(crate) fn path(&self) -> String {
        let (path, mut parameters): (String, Vec<(&str, Cow<'_, str>)>) = match self {
            Address::Home => ("/".to_owned(), vec![]),
            Address::Product(id) => (format!("/product/{}", id.0), vec![]),
            Address::Category { slug, sort, page } => (format!("/category/{slug}"), list(*sort, *page)),
            Address::Search(search) => {
                let mut parameters = list(search.sort, search.page);
                parameters.push(("q", search.terms.as_str().into()));
                parameters.push(("category", search.category.as_str().into()));
                let max = search.cents_max.map(|cents| (cents / 100).to_string());
                parameters.push(("max", max.unwrap_or_default().into()));
                ("/search".to_owned(), parameters)
            }
        };
        parameters.retain(|(_, value)| !value.is_empty());
        parameters.sort();
        if parameters.is_empty() {
            return path;
        }
        let query = form_urlencoded::Serializer::new(String::new()).extend_pairs(parameters).finish();
        format!("{path}?{query}")
    }

    /// Its name in the page cache.
    pub(crate) fn key(&self, host: &str) -> String {
        format!("{host}{}", self.path())
    }

    /// The same list, another page of it.
    pub(crate) fn with_page(&self, to: i64) -> Address {
        let mut other = self.clone();
        if let Address::Category { page, .. } | Address::Search(Search { page, .. }) = &mut other {
            *page = to;
        }
        other
    }

    /// The same list, sorted otherwise; from its beginning.
    pub(crate) fn with_sort(&self, by: Sort) -> Address {
        let mut other = self.with_page(1);
        if let Address::Category { sort, .. } | Address::Search(Search { sort, .. }) = &mut other {
            *sort = by;
        }
        other
    }
}

fn list(sort: Sort, page: i64) -> Vec<(&'static str, Cow<'static, str>)> {
    let sort = if sort == Sort::default() { "" } else { sort.name() };
    let page = if page == 1 { String::new() } else { page.to_string() };
    vec![("sort", sort.into()), ("page", page.into())]
}

/// A toy's number as we write it ourselves: `042` would be a second address of the same page.
pub(crate) fn toy(id: &str) -> Option<ToyId> {
    let number: i64 = id.parse().ok()?;
    (number.to_string() == id && number > 0).then_some(ToyId(number))
}

fn is_slug(slug: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    !slug.is_empty() && slug.len() <= 64 && slug.bytes().all(is_plain)
}

/// The parameters of a request; of those given twice the first counts.
struct Parameters(Vec<(String, String)>);

impl Parameters {
    fn parse(query: Option<&str>) -> Parameters {
        let pairs = form_urlencoded::parse(query.unwrap_or_default().as_bytes());
        Parameters(pairs.into_owned().collect())
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(own, _)| own == name).map(|(_, value)| value.as_str())
    }

    fn sort(&self) -> Sort {
        let named = |name: &str| Sort::ALL.into_iter().find(|sort| sort.name() == name);
        self.get("sort").and_then(named).unwrap_or_default()
    }

    fn page(&self) -> Option<i64> {
        match self.get("page") {
            None => Some(1),
            Some(page) => page.parse().ok().filter(|page| (1..=PAGE_MAX).contains(page)),
        }
    }

    /// Lower case, with single spaces: searches that mean the same are the same page.
    fn terms(&self) -> String {
        let terms = self.get("q").unwrap_or_default().to_lowercase();
        let mut terms = terms.split_whitespace().collect::<Vec<_>>().join(" ");
        terms.truncate(terms.floor_char_boundary(TERMS_BYTES_MAX));
        terms
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(path: &str, query: &str) -> Option<String> {
        Address::parse(path, Some(query)).map(|address| address.path())
    }

    #[test]
    fn a_page_has_one_address() {
        for (other, query) in [("/", "x=1"), ("/", "utm_source=mail&page=7"), ("/", "")] {
            assert_eq!(path(other, query).as_deref(), Some("/"), "{other}?{query}");
        }
        assert_eq!(path("/product/42", "colour=red").as_deref(), Some("/product/42"));
        for other in ["042", "+42", "42 ", "", "-1", "0", "99999999999999999999", "rocket"] {
            assert_eq!(path(&format!("/product/{other}"), ""), None, "{other:?}");
        }
        for same in ["sort=cheap&page=2", "page=2&x=<script>&sort=cheap", "sort=cheap&page=2&page=3"] {
            assert_eq!(path("/category/space", same).as_deref(), Some("/category/space?page=2&sort=cheap"));
        }
        assert_eq!(path("/category/space", "sort=popular&page=1").as_deref(), Some("/category/space"));
        for same in ["q=Red+%20dragon", "q=red+dragon&page=1", "q= red dragon &evil=1"] {
            assert_eq!(path("/search", same).as_deref(), Some("/search?q=red+dragon"));
        }
    }

    #[test]
    fn what_is_not_there_has_no_address() {
        for (other, query) in [
            ("/category/Space", ""),
            ("/category/", ""),
            ("/category/a/b", ""),
            ("/category/a", "page=0"),
            ("/cart", ""),
        ] {
            assert_eq!(path(other, query), None, "{other}?{query}");
        }
    }

    #[test]
    fn an_address_leads_back_to_itself() {
        let search = "category=space&max=20&page=3&q=a%26b%3Dc&sort=name";
        let address = Address::parse("/search", Some(search)).unwrap();
        assert_eq!(address.path(), format!("/search?{search}"));
        assert_eq!(
            address.with_page(1).with_sort(Sort::Popular).path(),
            "/search?category=space&max=20&q=a%26b%3Dc"
        );
        let long = "ü".repeat(TERMS_BYTES_MAX);
        let Some(Address::Search(search)) = Address::parse("/search", Some(&format!("q={long}"))) else {
            panic!()
        };
        assert_eq!(search.terms.len(), TERMS_BYTES_MAX);
    }
}
