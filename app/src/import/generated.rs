//! Toys that are made up: always the same for a seed, so that importing again changes nothing.

use super::Toy;

const ADJECTIVES: [&str; 20] = [
    "Brave",
    "Clockwork",
    "Giant",
    "Glowing",
    "Little",
    "Magnetic",
    "Musical",
    "Painted",
    "Secret",
    "Wooden",
    "Velvet",
    "Flying",
    "Patient",
    "Curious",
    "Midnight",
    "Golden",
    "Travelling",
    "Whispering",
    "Paper",
    "Merry",
];
const THINGS: [(&str, &str, &str); 30] = [
    ("Rocket", "Space", "🚀"),
    ("Bear", "Animals", "🧸"),
    ("Kite", "Outdoors", "🪁"),
    ("Castle", "Knights", "🏰"),
    ("Train", "Vehicles", "🚂"),
    ("Robot", "Space", "🤖"),
    ("Dragon", "Knights", "🐉"),
    ("Sailing Boat", "Vehicles", "⛵"),
    ("Drum", "Music", "🥁"),
    ("Puzzle", "Games", "🧩"),
    ("Satellite", "Space", "🛰️"),
    ("Elephant", "Animals", "🐘"),
    ("Football", "Outdoors", "⚽"),
    ("Shield", "Knights", "🛡️"),
    ("Fire Engine", "Vehicles", "🚒"),
    ("Telescope", "Space", "🔭"),
    ("Penguin", "Animals", "🐧"),
    ("Yo-yo", "Outdoors", "🪀"),
    ("Crown", "Knights", "👑"),
    ("Tractor", "Vehicles", "🚜"),
    ("Trumpet", "Music", "🎺"),
    ("Chess Set", "Games", "♟️"),
    ("Piano", "Music", "🎹"),
    ("Domino", "Games", "🁫"),
    ("Fox", "Animals", "🦊"),
    ("Balloon", "Outdoors", "🎈"),
    ("Guitar", "Music", "🎸"),
    ("Dice Tower", "Games", "🎲"),
    ("Helicopter", "Vehicles", "🚁"),
    ("Owl", "Animals", "🦉"),
];
const PLACES: [&str; 12] = [
    "",
    " of the North",
    " from the Attic",
    " of the Seven Seas",
    " at Night",
    " of Old Town",
    " from Tomorrow",
    " of the Woods",
    " on Holiday",
    " of the Island",
    " in Winter",
    " from the Fair",
];

/// So many toys. No two of the first 7,200 have the same name; after that they come as second editions.
pub(crate) fn generated(toys: usize, seed: u64) -> Vec<Toy> {
    let mut random = fastrand::Rng::with_seed(seed);
    (0..toys).map(|at| toy(at, &mut random)).collect()
}

fn toy(at: usize, random: &mut fastrand::Rng) -> Toy {
    let (thing, category, picture) = THINGS[at % THINGS.len()];
    // The adjectives turn by one each round, so that neighbours differ in both.
    let round = at / THINGS.len();
    let adjective = ADJECTIVES[(at + round) % ADJECTIVES.len()];
    let place = PLACES[round / ADJECTIVES.len() % PLACES.len()];
    let edition = match at / (THINGS.len() * ADJECTIVES.len() * PLACES.len()) {
        0 => String::new(),
        number => format!(", edition {}", number + 1),
    };
    let name = format!("{adjective} {thing}{place}{edition}");
    let text = format!(
        "The {name} has been loved to pieces by every child who tested it, and put together again. For hands of \
         {} years and older; batteries are not needed, an afternoon is.",
        random.u8(3..10)
    );
    Toy {
        id: i64::try_from(at).unwrap_or(i64::MAX - 1) + 1,
        name,
        category: category.to_owned(),
        text,
        picture,
        cents: random.i64(4..120) * 100 + 99,
        pieces: random.i64(0..60),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn no_two_toys_of_a_new_shop_are_called_the_same() {
        let toys = generated(8_000, 1);
        let names: BTreeSet<&str> = toys.iter().map(|toy| toy.name.as_str()).collect();
        assert_eq!(names.len(), toys.len());
    }

    #[test]
    fn a_seed_gives_the_same_shop_again() {
        assert_eq!(generated(500, 42), generated(500, 42));
        assert_ne!(generated(500, 42), generated(500, 43));
    }
}
