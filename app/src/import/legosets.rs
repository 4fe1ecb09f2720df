//! The catalogue of real toy sets: a CSV file with a header, of which the columns are found by their names.

use std::path::Path;

use super::Toy;

/// What a piece costs where the file knows no price.
const CENTS_A_PIECE: i64 = 10;

/// What of a row is used. `NA` stands for what is not known.
#[derive(Debug, serde::Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Row {
    #[serde(rename = "Item_Number")]
    item_number: String,
    name: String,
    year: String,
    theme: String,
    subtheme: String,
    pieces: String,
    minifigures: String,
    #[serde(rename = "USD_MSRP")]
    dollars: String,
}

pub(super) fn read(file: &Path) -> Result<Vec<Toy>, csv::Error> {
    let mut reader = csv::Reader::from_path(file)?;
    (1..).zip(reader.deserialize::<Row>()).map(|(id, row)| Ok(toy(id, &row?))).collect()
}

fn toy(id: i64, row: &Row) -> Toy {
    let pieces: Option<i64> = row.pieces.parse().ok();
    let cents = row.dollars.parse::<f64>().ok().map(|dollars| (dollars * 100.0).round() as i64);
    let cents = cents.filter(|cents| *cents > 0).or(pieces.map(|pieces| pieces * CENTS_A_PIECE)).unwrap_or(0);
    // The file knows no stock: it is made up, always the same for a toy.
    let mut stock = fastrand::Rng::with_seed(id.unsigned_abs());
    Toy {
        id,
        name: row.name.clone(),
        category: row.theme.clone(),
        text: text(row, pieces),
        picture: picture(row),
        cents: cents.max(99),
        pieces: stock.i64(0..60),
    }
}

fn text(row: &Row, pieces: Option<i64>) -> String {
    let known = |text: &str| text != "NA" && !text.is_empty();
    let mut text = format!("Set {} of the year {}.", row.item_number, row.year);
    if known(&row.subtheme) {
        text.push_str(&format!(" From the series {}.", row.subtheme));
    }
    match (pieces, row.minifigures.parse::<u32>()) {
        (Some(1), _) => text.push_str(" A single piece."),
        (Some(pieces), Ok(1)) => text.push_str(&format!(" {pieces} pieces and one figure.")),
        (Some(pieces), Ok(figures)) => text.push_str(&format!(" {pieces} pieces and {figures} figures.")),
        (Some(pieces), Err(_)) => text.push_str(&format!(" {pieces} pieces.")),
        (None, _) => {}
    }
    text
}

/// By the first word of name, series or theme that has one.
fn picture(row: &Row) -> &'static str {
    const PICTURES: [(&str, &str); 60] = [
        ("dragon", "🐉"),
        ("ferrari", "🏎️"),
        ("racer", "🏎️"),
        ("racing", "🏎️"),
        ("fire", "🚒"),
        ("police", "🚓"),
        ("truck", "🚚"),
        ("train", "🚂"),
        ("locomotive", "🚂"),
        ("helicopter", "🚁"),
        ("plane", "✈️"),
        ("jet", "✈️"),
        ("boat", "⛵"),
        ("ship", "🚢"),
        ("tractor", "🚜"),
        ("motorcycle", "🏍️"),
        ("bike", "🚲"),
        ("duck", "🦆"),
        ("horse", "🐴"),
        ("dog", "🐶"),
        ("puppy", "🐶"),
        ("cat ", "🐱"),
        ("lion", "🦁"),
        ("shark", "🦈"),
        ("spider", "🕷️"),
        ("ferris", "🎡"),
        ("house", "🏠"),
        ("shop", "🏪"),
        ("office", "🏢"),
        ("cafe", "☕"),
        ("castle", "🏰"),
        ("knight", "🛡️"),
        ("tower", "🗼"),
        ("pirate", "🏴"),
        ("robot", "🤖"),
        ("flower", "🌼"),
        ("tree", "🌳"),
        ("christmas", "🎄"),
        ("santa", "🎅"),
        ("ice cream", "🍦"),
        ("star wars", "🛸"),
        ("space", "🚀"),
        ("ninja", "🥷"),
        ("friends", "🎀"),
        ("princess", "👑"),
        ("belville", "👑"),
        ("chima", "🦁"),
        ("dino", "🦖"),
        ("jurassic", "🦖"),
        ("potter", "🧙"),
        ("lord of", "🧙"),
        ("hobbit", "🧙"),
        ("bionicle", "🤖"),
        ("hero", "🦸"),
        ("technic", "⚙️"),
        ("sports", "⚽"),
        ("architecture", "🏛️"),
        ("western", "🤠"),
        ("duplo", "🧸"),
        ("city", "🏙️"),
    ];
    let words = format!("{} {} {} ", row.name, row.subtheme, row.theme).to_lowercase();
    let known = PICTURES.iter().find(|(word, _)| words.contains(word));
    known.map_or("🧱", |(_, picture)| picture)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_known_is_made_up_or_left_out() {
        let text = "\"Item_Number\",\"Name\",\"Year\",\"Theme\",\"Subtheme\",\"Pieces\",\"Minifigures\",\"USD_MSRP\"\n\
                    \"10246\",\"Detective's Office\",2015,\"Advanced Models\",\"Modular Buildings\",2262,6,159.99\n\
                    \"5\",\"<b>{{ x }}</b>\",1999,\"Town\",NA,12,NA,NA\n";
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("sets.csv");
        std::fs::write(&file, text).unwrap();
        let toys = read(&file).unwrap();
        assert_eq!((toys[0].cents, toys[0].id), (15_999, 1));
        assert_eq!(
            toys[0].text,
            "Set 10246 of the year 2015. From the series Modular Buildings. 2262 pieces and 6 figures."
        );
        assert_eq!((toys[1].cents, toys[1].text.as_str()), (120, "Set 5 of the year 1999. 12 pieces."));
        assert_eq!(toys[1].name, "<b>{{ x }}</b>", "escaping is the page's business");
    }

    #[test]
    fn a_file_without_the_columns_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("sets.csv");
        std::fs::write(&file, "a,b\n1,2\n").unwrap();
        assert!(read(&file).unwrap_err().to_string().contains("Item_Number"));
    }
}
