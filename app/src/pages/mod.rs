//! The HTML. Templates are part of the program; whatever is put into them is escaped, and what is the visitor's is a hole.

pub(crate) mod address;
pub(crate) mod cache;
pub(crate) mod two_pass;

use minijinja::{Environment, Value};

use two_pass::FirstPass;

macro_rules! templates {
    ($($name:literal),* $(,)?) => {
        [$(($name, include_str!(concat!("../../templates/", $name)))),*]
    };
}

/// The shop's templates, ready to be rendered.
#[derive(Debug)]
pub(crate) struct Templates(Environment<'static>);

impl Templates {
    pub(crate) fn new() -> Result<Templates, minijinja::Error> {
        let mut environment = Environment::new();
        two_pass::install(&mut environment);
        environment.add_filter("dollars", dollars);
        environment.add_filter("tint", |id: i64| id.rem_euclid(8));
        // By their names they are HTML, which is what makes the escaping automatic.
        for (name, source) in templates![
            "account.html",
            "cards.html",
            "cart.html",
            "category.html",
            "checkout.html",
            "home.html",
            "message.html",
            "order.html",
            "pages.html",
            "product.html",
            "search.html",
            "shop.html",
            "status.html",
        ] {
            environment.add_template(name, source)?;
        }
        Ok(Templates(environment))
    }

    /// The first pass over a page.
    pub(crate) fn render(&self, template: &str, content: Value) -> Result<FirstPass, minijinja::Error> {
        Ok(FirstPass::of_rendered(&self.0.get_template(template)?.render(content)?))
    }
}

/// An amount of money as people write it.
pub(crate) fn dollars(cents: i64) -> String {
    format!("${}.{:02}", cents / 100, cents % 100)
}

#[cfg(test)]
mod tests {
    use minijinja::context;

    use super::two_pass::Visitor;
    use super::*;

    #[test]
    fn what_the_database_says_is_text_and_never_markup() {
        let content = context! {
            title => "x", id => 42, name => "<script>alert(1)</script>{{ hole.token }}",
            category => "\"space\"", slug => "space", text => "black & white", picture => "🚀", cents => 905,
            pieces => 3, few => true, known => true,
        };
        let page = Templates::new().unwrap().render("product.html", content).unwrap();
        let html = page.fill(&Visitor { token: "secret".to_owned(), ..Visitor::default() });
        assert!(!html.contains("<script") && html.contains("&lt;script&gt;"), "{html}");
        assert!(html.contains("black &amp; white") && html.contains("{{ hole.token }}"), "{html}");
        assert!(html.contains("$9.05") && html.contains("Only 3 left"), "{html}");
        assert_eq!(html.matches("secret").count(), 1, "the form's own: {html}");
    }
}
