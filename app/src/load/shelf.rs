//! What visitors look for: toys by Zipf's law, words of their names, categories by their size.

use sqlx::Row as _;

use crate::catalogue::lists::slug;
use crate::database::Database;
use crate::faults::Fault;

/// The exponent: of 6,172 toys the first tenth gets three quarters of the views.
const EXPONENT: f64 = 1.0;

/// The catalogue as visitors want it.
pub(super) struct Shelf {
    /// Most wanted first.
    toys: Vec<(i64, String, String)>,
    /// Of the views: how many go to this toy or one before it.
    shares: Vec<f64>,
}

impl Shelf {
    /// The same seed, the same favourites.
    pub(super) async fn of(database: &Database, seed: u64) -> Result<Shelf, Fault> {
        let rows = sqlx::query("SELECT id, name, category FROM toy ORDER BY id")
            .fetch_all(database.primary())
            .await?;
        let toy = |row: &sqlx::any::AnyRow| {
            Ok((row.try_get(0)?, row.try_get::<String, _>(1)?, slug(&row.try_get::<String, _>(2)?)))
        };
        let mut toys: Vec<(i64, String, String)> =
            rows.iter().map(toy).collect::<Result<_, sqlx::Error>>()?;
        if toys.is_empty() {
            return Err(Fault::Database(sqlx::Error::RowNotFound));
        }
        fastrand::Rng::with_seed(seed).shuffle(&mut toys);
        let weights = (1..=toys.len()).map(|rank| 1.0 / (rank as f64).powf(EXPONENT));
        let mut sum = 0.0;
        let mut shares: Vec<f64> = weights
            .map(|weight| {
                sum += weight;
                sum
            })
            .collect();
        shares.iter_mut().for_each(|share| *share /= sum);
        Ok(Shelf { toys, shares })
    }

    fn pick(&self, random: &mut fastrand::Rng) -> &(i64, String, String) {
        let wanted = random.f64();
        let at = self.shares.partition_point(|share| *share < wanted);
        &self.toys[at.min(self.toys.len() - 1)]
    }

    pub(super) fn toy(&self, random: &mut fastrand::Rng) -> i64 {
        self.pick(random).0
    }

    /// The most wanted toy: what an editor changes.
    pub(super) fn favourite(&self) -> i64 {
        self.toys[0].0
    }

    /// A word of a name.
    pub(super) fn word(&self, random: &mut fastrand::Rng) -> &str {
        let words: Vec<&str> = self.pick(random).1.split_whitespace().collect();
        words.get(random.usize(0..words.len().max(1))).copied().unwrap_or("toy")
    }

    pub(super) fn category(&self, random: &mut fastrand::Rng) -> &str {
        &self.pick(random).2
    }
}
