//! Two-pass rendering: everybody's page once, with typed holes; the visitor's name, cart and token into them for each request.
//!
//! From "E-Commerce with Django at Scale": the first pass renders all that is not the visitor's and is cached for all, the second fills in the
//! rest. They parse the first pass's text as a template again; the pitfall is that whatever the *data* of the first pass contains then
//! is a template, too: a product called `{{ token }}` shows tokens. Here the first pass is a list of texts and holes. A hole is written
//! by the formatter alone, as a sequence with a NUL character, and the same formatter lets no NUL of any data through.

use minijinja::value::{Object, Value};
use minijinja::{Environment, Output, State, escape_formatter};
use serde::{Deserialize, Serialize};

/// Something in a page that is the visitor's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Hole {
    /// Who it is, or the way to say so.
    Account,
    /// How much is in the cart.
    Cart,
    /// What proves that a form is ours: a hidden field.
    Token,
    /// For whoever has no session yet: the image that brings one.
    Welcome,
}

const HOLES: [(&str, Hole); 4] =
    [("account", Hole::Account), ("cart", Hole::Cart), ("token", Hole::Token), ("welcome", Hole::Welcome)];

impl Object for Hole {}

/// What a visitor's holes are filled with.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Visitor {
    pub(crate) name: String,
    pub(crate) in_cart: i64,
    pub(crate) token: String,
    pub(crate) has_session: bool,
}

/// A page after the first pass.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FirstPass(Vec<Part>);

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
enum Part {
    Text(String),
    Hole(Hole),
}

/// Lets templates say `{{ hole.cart }}`, and nobody else.
pub(super) fn install(environment: &mut Environment<'_>) {
    let holes: std::collections::BTreeMap<&str, Value> =
        HOLES.iter().map(|(name, hole)| (*name, Value::from_object(*hole))).collect();
    environment.add_global("hole", Value::from(holes));
    environment.set_formatter(format);
}

fn format(out: &mut Output<'_>, state: &mut State<'_, '_>, value: &Value) -> Result<(), minijinja::Error> {
    if let Some(hole) = value.downcast_object_ref::<Hole>() {
        return write!(out, "\0{}", *hole as u8).map_err(minijinja::Error::from);
    }
    match value.as_str().filter(|text| text.contains('\0')) {
        Some(text) if value.is_safe() => {
            escape_formatter(out, state, &Value::from_safe_string(text.replace('\0', "\u{fffd}")))
        }
        Some(text) => escape_formatter(out, state, &Value::from(text.replace('\0', "\u{fffd}"))),
        None => escape_formatter(out, state, value),
    }
}

impl FirstPass {
    /// What a template was rendered to.
    pub(super) fn of_rendered(text: &str) -> FirstPass {
        let mut pieces = text.split('\0');
        let mut parts: Vec<Part> =
            pieces.next().map(|text| Part::Text(text.to_owned())).into_iter().collect();
        for piece in pieces {
            let (number, text) = piece.split_at(1);
            let at: usize =
                number.parse().expect("only the formatter writes a NUL, and a hole's number behind it");
            parts.push(Part::Hole(HOLES[at].1));
            parts.push(Part::Text(text.to_owned()));
        }
        FirstPass(parts)
    }

    /// The second pass.
    pub(crate) fn fill(&self, visitor: &Visitor) -> String {
        let length = |part: &Part| if let Part::Text(text) = part { text.len() } else { 128 };
        let mut page = String::with_capacity(self.0.iter().map(length).sum());
        for part in &self.0 {
            match part {
                Part::Text(text) => page.push_str(text),
                Part::Hole(hole) => visitor.write(*hole, &mut page),
            }
        }
        page
    }
}

impl Visitor {
    fn write(&self, hole: Hole, page: &mut String) {
        match hole {
            Hole::Account if self.name.is_empty() => page.push_str("Sign in"),
            Hole::Account => {
                page.push_str("Hello, ");
                escape(&self.name, page);
            }
            Hole::Cart if self.in_cart == 0 => page.push_str("Cart"),
            Hole::Cart => page.push_str(&format!("Cart <b class=\"count\">{}</b>", self.in_cart)),
            Hole::Token if self.token.is_empty() => {}
            Hole::Token => {
                page.push_str("<input type=\"hidden\" name=\"token\" value=\"");
                escape(&self.token, page);
                page.push_str("\">");
            }
            Hole::Welcome if self.has_session => {}
            Hole::Welcome => page.push_str("<img src=\"/welcome\" width=\"1\" height=\"1\" alt=\"\">"),
        }
    }
}

fn escape(text: &str, page: &mut String) {
    for character in text.chars() {
        match character {
            '&' => page.push_str("&amp;"),
            '<' => page.push_str("&lt;"),
            '>' => page.push_str("&gt;"),
            '"' => page.push_str("&quot;"),
            '\'' => page.push_str("&#39;"),
            other => page.push(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(template: &str, name: &str) -> FirstPass {
        let mut environment = Environment::new();
        install(&mut environment);
        environment.add_template("page.html", template).unwrap();
        let text =
            environment.get_template("page.html").unwrap().render(minijinja::context! { name }).unwrap();
        FirstPass::of_rendered(&text)
    }

    fn anna() -> Visitor {
        Visitor { name: "Anna <3".to_owned(), in_cart: 3, token: "t".to_owned(), has_session: true }
    }

    #[test]
    fn one_first_pass_serves_everybody() {
        let page = page(
            "<p>{{ hole.account }}</p>{{ name }} {{ hole.cart }}{{ hole.token }}{{ hole.welcome }}.",
            "Kite",
        );
        assert_eq!(
            page.fill(&anna()),
            "<p>Hello, Anna &lt;3</p>Kite Cart <b class=\"count\">3</b><input type=\"hidden\" name=\"token\" value=\"t\">."
        );
        let nobody = page.fill(&Visitor::default());
        assert!(nobody.starts_with("<p>Sign in</p>Kite Cart<img "), "{nobody}");
    }

    #[test]
    fn data_never_becomes_a_hole_nor_a_template() {
        for name in ["{{ hole.token }}", "\u{0}2", "\0", "{% raw %}", "\u{0}2<b>"] {
            let page = page("{{ name }}", name);
            assert!(page.0.iter().all(|part| matches!(part, Part::Text(_))), "{name:?}: {page:?}");
            assert!(!page.fill(&anna()).contains("value=\"t\""), "{name:?}");
        }
        let safe = page("{{ name|safe }}", "\u{0}2");
        assert_eq!(safe.0.len(), 1, "{safe:?}");
    }

    #[test]
    fn every_hole_has_its_own_number() {
        for (at, (_, hole)) in HOLES.iter().enumerate() {
            assert_eq!(*hole as usize, at);
        }
    }
}
