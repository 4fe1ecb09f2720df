//! The HTML. Templates are part of the program; whatever is put into them is escaped.

use minijinja::{Environment, Value, context};

use crate::catalogue::Product;
use crate::database::Price;

/// From so few on the page says how many are left.
const FEW: u32 = 5;

/// The shop's pages, ready to be filled in.
#[derive(Debug)]
pub(super) struct Pages(Environment<'static>);

impl Pages {
    pub(super) fn new() -> Result<Pages, minijinja::Error> {
        let mut pages = Environment::new();
        // By their names they are HTML, which is what makes the escaping automatic.
        pages.add_template("shop.html", include_str!("../../templates/shop.html"))?;
        pages.add_template("product.html", include_str!("../../templates/product.html"))?;
        pages.add_template("not_found.html", include_str!("../../templates/not_found.html"))?;
        pages.add_template("failed.html", include_str!("../../templates/failed.html"))?;
        Ok(Pages(pages))
    }

    pub(super) fn product(&self, product: &Product) -> Result<String, minijinja::Error> {
        let Product { id, description, price, inventory } = product;
        let content = context! {
            id => id.0,
            name => &description.name,
            theme => &description.theme,
            text => &description.text,
            picture => &description.picture,
            price => dollars(*price),
            pieces => inventory.pieces,
            few => inventory.pieces <= FEW,
        };
        self.fill_in("product.html", content)
    }

    pub(super) fn not_found(&self) -> Result<String, minijinja::Error> {
        self.fill_in("not_found.html", context! {})
    }

    pub(super) fn failed(&self) -> Result<String, minijinja::Error> {
        self.fill_in("failed.html", context! {})
    }

    fn fill_in(&self, name: &str, content: Value) -> Result<String, minijinja::Error> {
        self.0.get_template(name)?.render(content)
    }
}

fn dollars(Price { cents }: Price) -> String {
    format!("${}.{:02}", cents / 100, cents % 100)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::database::{Description, Inventory, ToyId};

    #[test]
    fn what_the_database_says_is_text_and_never_markup() {
        let description = Description {
            name: "<script>alert(1)</script>".to_owned(),
            theme: "\"space\"".to_owned(),
            text: "black & white".to_owned(),
            picture: "🚀".to_owned(),
        };
        let (price, inventory) = (Price { cents: 905 }, Inventory { pieces: 3 });
        let product = Product { id: ToyId(42), description, price, inventory };
        let html = Pages::new().unwrap().product(&product).unwrap();
        assert!(!html.contains("<script") && html.contains("&lt;script&gt;"), "{html}");
        assert!(html.contains("black &amp; white") && html.contains("&quot;space&quot;"), "{html}");
        assert!(html.contains("$9.05") && html.contains("Only 3 left"), "{html}");
    }
}
