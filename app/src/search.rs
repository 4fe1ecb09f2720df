//! Search: an index on disk that all workers map, built by one process; ids come out, objects come from the cache.
//!
//! From "Building a Large-scale E-commerce Site with Apache and mod_perl": searching has a tier of its own, with an index that is rebuilt now and then and
//! answers conditions with sorted ids. The pitfall: `LIKE '%…%'` in the shop's database, by every worker, for every visitor. The index is
//! tantivy's: readers of all processes share its pages, and see a new one within half a second after it was committed. What people type is
//! a list of words here and never a query language, so there is no syntax to get wrong, or to abuse.

use std::ops::Bound;
use std::path::Path;

use sqlx::Row as _;
use tantivy::collector::{Count, TopDocs};
use tantivy::directory::MmapDirectory;
use tantivy::query::{AllQuery, BooleanQuery, BoostQuery, FastFieldRangeQuery, Occur, Query, TermQuery};
use tantivy::schema::{
    FAST, Field, INDEXED, IndexRecordOption, STORED, STRING, Schema, TextFieldIndexing, TextOptions,
    Value as _,
};
use tantivy::tokenizer::TokenStream as _;
use tantivy::{DocAddress, Index, IndexReader, Order, ReloadPolicy, Searcher, TantivyDocument, Term, doc};

use crate::catalogue::ToyId;
use crate::catalogue::lists::{PAGE_TOYS, Sort, slug};
use crate::database::Database;
use crate::faults::Fault;
use crate::pages::address;

/// Memory of the process that builds the index.
const BUILD_BYTES: usize = 32 << 20;
/// Words of one search that count.
const WORDS_MAX: usize = 8;
/// A word in the name counts so many times one in the text.
const NAME_BOOST: f32 = 3.0;

/// The index, for finding and for building. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Search {
    index: Index,
    reader: IndexReader,
    fields: Fields,
}

#[derive(Clone, Copy)]
struct Fields {
    id: Field,
    name: Field,
    text: Field,
    category: Field,
    cents: Field,
}

/// Answers to a search.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Found {
    /// Those of the page asked for.
    pub(crate) ids: Vec<ToyId>,
    /// Of all pages.
    pub(crate) count: usize,
}

impl Search {
    /// Opens the index of a directory, or begins an empty one.
    pub(crate) fn open(dir: &Path) -> Result<Search, Fault> {
        std::fs::create_dir_all(dir)
            .map_err(|source| Fault::Io { what: "directory of the index", source })?;
        let mut schema = Schema::builder();
        let words = TextFieldIndexing::default()
            .set_tokenizer("en_stem")
            .set_index_option(IndexRecordOption::WithFreqs);
        let words = TextOptions::default().set_indexing_options(words);
        let fields = Fields {
            id: schema.add_u64_field("id", STORED | FAST),
            name: schema.add_text_field("name", words.clone().set_fast("raw")),
            text: schema.add_text_field("text", words),
            category: schema.add_text_field("category", STRING),
            cents: schema.add_u64_field("cents", FAST | INDEXED),
        };
        let directory = MmapDirectory::open(dir).map_err(tantivy::TantivyError::from)?;
        let index = Index::open_or_create(directory, schema.build())?;
        let reader = index.reader_builder().reload_policy(ReloadPolicy::OnCommitWithDelay).try_into()?;
        Ok(Search { index, reader, fields })
    }

    /// Builds the index anew from the database; how many toys it has. Readers see the old one until it is whole.
    pub(crate) async fn build(&self, database: &Database) -> Result<usize, Fault> {
        let query = "SELECT toy.id, toy.name, toy.text, toy.category, price.cents FROM toy JOIN price ON price.toy = toy.id";
        let rows = database.replicas().read(async |pool| sqlx::query(query).fetch_all(&pool).await).await?;
        let mut documents = Vec::with_capacity(rows.len());
        for row in &rows {
            let category: String = row.try_get(3)?;
            documents.push(doc!(
                self.fields.id => row.try_get::<i64, _>(0)?.unsigned_abs(),
                self.fields.name => row.try_get::<String, _>(1)?,
                self.fields.text => format!("{} {category}", row.try_get::<String, _>(2)?),
                self.fields.category => slug(&category),
                self.fields.cents => row.try_get::<i64, _>(4)?.unsigned_abs(),
            ));
        }
        let (count, index) = (documents.len(), self.index.clone());
        let write = move || {
            let mut writer = index.writer_with_num_threads::<TantivyDocument>(1, BUILD_BYTES)?;
            writer.delete_all_documents()?;
            for document in documents {
                writer.add_document(document)?;
            }
            writer.commit()?;
            writer.wait_merging_threads()
        };
        let written = tokio::task::spawn_blocking(write).await;
        written.map_err(|error| Fault::Io { what: "building the index", source: error.into() })??;
        self.reader.reload()?;
        Ok(count)
    }

    /// The toys that have all the words and meet all conditions.
    pub(crate) fn find(&self, search: &address::Search) -> Result<Found, Fault> {
        let searcher = self.reader.searcher();
        let query = self.query(search)?;
        let page = usize::try_from(PAGE_TOYS).unwrap_or(usize::MAX);
        let from = usize::try_from(search.page - 1).unwrap_or(0) * page;
        let top = || TopDocs::with_limit(page).and_offset(from);
        let by_price = |order| top().order_by_fast_field::<u64>("cents", order);
        let (addresses, count) = match search.sort {
            Sort::Popular => places(searcher.search(&query, &(top().order_by_score(), Count))?),
            Sort::Cheap => places(searcher.search(&query, &(by_price(Order::Asc), Count))?),
            Sort::Dear => places(searcher.search(&query, &(by_price(Order::Desc), Count))?),
            Sort::Name => {
                let by_name = top().order_by_string_fast_field("name", Order::Asc);
                places(searcher.search(&query, &(by_name, Count))?)
            }
        };
        let ids = addresses.into_iter().map(|at| self.id(&searcher, at)).collect::<Result<_, _>>()?;
        Ok(Found { ids, count })
    }

    fn query(&self, search: &address::Search) -> Result<BooleanQuery, Fault> {
        let mut clauses: Vec<(Occur, Box<dyn Query>)> = vec![(Occur::Must, Box::new(AllQuery))];
        for word in self.words(&search.terms)? {
            let has =
                |field| TermQuery::new(Term::from_field_text(field, &word), IndexRecordOption::WithFreqs);
            let name = BoostQuery::new(Box::new(has(self.fields.name)), NAME_BOOST);
            let either: Vec<Box<dyn Query>> = vec![Box::new(name), Box::new(has(self.fields.text))];
            clauses.push((Occur::Must, Box::new(BooleanQuery::union(either))));
        }
        if !search.category.is_empty() {
            let is = Term::from_field_text(self.fields.category, &search.category);
            clauses.push((Occur::Must, Box::new(TermQuery::new(is, IndexRecordOption::Basic))));
        }
        if let Some(cents) = search.cents_max {
            let most = Bound::Included(Term::from_field_u64(self.fields.cents, cents.unsigned_abs()));
            clauses.push((Occur::Must, Box::new(FastFieldRangeQuery::new(Bound::Unbounded, most))));
        }
        Ok(BooleanQuery::new(clauses))
    }

    fn words(&self, terms: &str) -> Result<Vec<String>, Fault> {
        let mut analyzer = self.index.tokenizer_for_field(self.fields.name)?;
        let mut stream = analyzer.token_stream(terms);
        let mut words = Vec::new();
        while words.len() < WORDS_MAX && stream.advance() {
            words.push(stream.token().text.clone());
        }
        Ok(words)
    }

    fn id(&self, searcher: &Searcher, at: DocAddress) -> Result<ToyId, Fault> {
        let document: TantivyDocument = searcher.doc(at)?;
        let id = document.get_first(self.fields.id).and_then(|id| id.as_u64()).unwrap_or(0);
        Ok(ToyId(i64::try_from(id).unwrap_or(0)))
    }
}

fn places<T>((found, count): (Vec<(T, DocAddress)>, usize)) -> (Vec<DocAddress>, usize) {
    (found.into_iter().map(|(_, at)| at).collect(), count)
}

impl std::fmt::Debug for Search {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Search").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::database::migrations::migrate;
    use crate::import::{Source, import};
    use crate::pages::address::Address;

    fn asked(query: &str) -> address::Search {
        match Address::parse("/search", Some(query)) {
            Some(Address::Search(search)) => search,
            other => panic!("{query}: {other:?}"),
        }
    }

    #[tokio::test]
    async fn words_conditions_and_sorting_in_ids_out() {
        let dir = tempfile::tempdir().unwrap();
        let database = Database::open(&dir.path().join("shop.sqlite").display().to_string(), &[]).unwrap();
        migrate(&database).await.unwrap();
        import(&database, Source::Generated { toys: 600, seed: 3 }).await.unwrap();
        let search = Search::open(&dir.path().join("index")).unwrap();
        assert_eq!(search.find(&asked("q=dragon")).unwrap(), Found::default(), "before it is built");
        assert_eq!(search.build(&database).await.unwrap(), 600);
        // Another process's reader.
        let reader = Search::open(&dir.path().join("index")).unwrap();
        let dragons = reader.find(&asked("q=DRAGONS")).unwrap();
        assert_eq!((dragons.count, dragons.ids.len()), (20, 20), "stemmed, whatever their case");
        let knights = reader.find(&asked("q=dragon&category=knights")).unwrap();
        assert_eq!(knights.count, 20);
        assert_eq!(reader.find(&asked("q=dragon&category=space")).unwrap().count, 0);
        let all = reader.find(&asked("sort=cheap")).unwrap();
        assert_eq!((all.count, all.ids.len()), (600, 24));
        let cheap = reader.find(&asked("max=20&sort=dear")).unwrap();
        assert!(cheap.count > 0 && cheap.count < 600);
        assert_eq!(reader.find(&asked("q=brave+rocket&sort=name")).unwrap().count, 1);
        for odd in
            ["q=*", "q=name:dragon+OR+*", "q=%22", "q=(((", "q=%3Cscript%3E", "q=a+b+c+d+e+f+g+h+i+j+k"]
        {
            reader.find(&asked(odd)).unwrap();
        }
    }
}
