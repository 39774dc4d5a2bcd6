//! Search: an inverted index of keywords whose posting lists are sorted by price, and the ranking of items.
//!
//! Why not a full-text index: `docs/spec/shop.md` ranks by exact keyword, prefix and word of the name, not by how rare
//! a word is; a key that ends in the price yields the cheapest first without sorting; and the same statements run on
//! PostgreSQL.
//!
//! A **posting** `(kind, term, price, number)` says that an item has a term. The kind is 0 for a keyword, 1 for a word
//! of the name, 2 (with the empty term) for any item, and 3 to 5 for the first 2, 4 and 6 letters of a keyword. A
//! second table holds the same postings by category. Only items with stock have postings.
//!
//! For a search keyword, an item in the exact list of kind 0 scores 2 points, one with a keyword that begins with it 1
//! point, and one in the exact list of kind 1 another point. A prefix of 2, 4 or 6 letters is one list; one of 1, 3 or
//! 5 letters is the union of the lists with one letter more, as many as the alphabet has letters. Without kinds 3 to 5
//! it would be a list for each of perhaps a hundred thousand keywords; all lengths would make the index larger by half
//! again.
//!
//! Only the 10,000 cheapest items with any points are ranked, so no list is read beyond its first 10,001 entries: an
//! item that is among the cheapest of all is among the cheapest of every list that contains it.

use std::cmp::Reverse;
use std::collections::BTreeSet;

use super::item_facts::{ItemFacts, id_column};
use super::stock_count::stock_count;
use crate::model::Cents;
use crate::model::text::nfc;
use crate::storage::{Reader, Row, StoreError, Tx, Value};

/// Items that are ranked, and that are counted exactly.
pub(super) const RANKED_MAX: usize = 10_000;

/// The kinds of postings: see above. `FOR_SALE` is for searches without keywords.
const KEYWORD: i64 = 0;
const NAME_WORD: i64 = 1;
const FOR_SALE: i64 = 2;
/// The number of letters of a prefix, and the kind of its postings.
const PREFIX_KINDS: [(usize, i64); 3] = [(2, 3), (4, 4), (6, 5)];

/// One page.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct SearchHits {
    pub numbers: Vec<i64>,
    pub total: u64,
    pub total_is_at_least: bool,
}

/// `Ord` is the order of the table's key.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Posting {
    kind: i64,
    term: String,
    price: i64,
    number: i64,
    category: u32,
}

/// Texts are compared in lowercase and Unicode's form C, with a final sigma folded to a plain one.
pub(super) fn fold(text: &str) -> String {
    // The lowercase of a text in form C need not be in form C (İ).
    nfc(&fold_without_normalization(&nfc(text))).into_owned()
}

/// Versions before `normalize_index` folded texts like this.
fn fold_without_normalization(text: &str) -> String {
    let lower = text.to_lowercase();
    if lower.contains('ς') { lower.replace('ς', "σ") } else { lower }
}

pub(super) fn postings(facts: &ItemFacts, price: Cents, number: i64) -> Vec<Posting> {
    postings_folded_by(fold, facts, price, number)
}

/// Replaces what versions before `normalize_index` wrote.
pub(super) fn reindex_normalized(
    tx: &mut dyn Tx,
    facts: &ItemFacts,
    price: Cents,
    number: i64,
) -> Result<(), StoreError> {
    let was = postings_folded_by(fold_without_normalization, facts, price, number);
    let is = postings(facts, price, number);
    if was != is {
        remove(tx, was)?;
        add(tx, is)?;
    }
    Ok(())
}

fn postings_folded_by(fold: fn(&str) -> String, facts: &ItemFacts, price: Cents, number: i64) -> Vec<Posting> {
    let keywords: Vec<String> = facts.keywords.iter().map(|keyword| fold(keyword)).collect();
    let prefixes = keywords.iter().flat_map(|keyword| {
        PREFIX_KINDS.iter().filter_map(|(letters, kind)| Some((*kind, prefix_of(keyword, *letters)?.to_owned())))
    });
    let name = fold(&facts.item_name);
    let words = name.split(|letter: char| !letter.is_alphanumeric()).filter(|word| !word.is_empty());
    let words = words.map(|word| (NAME_WORD, word.to_owned()));
    let all = prefixes.chain(words).chain([(FOR_SALE, String::new())]);
    let mut terms: BTreeSet<(i64, String)> = all.collect();
    terms.extend(keywords.into_iter().map(|keyword| (KEYWORD, keyword)));
    let posting = |(kind, term)| Posting { kind, term, price: price.0, number, category: facts.category };
    terms.into_iter().map(posting).collect()
}

/// `None` if there are fewer letters.
fn prefix_of(text: &str, letters: usize) -> Option<&str> {
    let last = letters.checked_sub(1)?;
    text.char_indices().nth(last).map(|(start, letter)| &text[..start + letter.len_utf8()])
}

/// Inserts in the order of each table's key.
pub(super) fn add(tx: &mut dyn Tx, mut postings: Vec<Posting>) -> Result<(), StoreError> {
    postings.sort_unstable();
    for posting in &postings {
        tx.execute("INSERT INTO product_word (kind, term, price, number) VALUES ($1, $2, $3, $4)", &posting.key())?;
    }
    postings.sort_by_key(|posting| posting.category);
    for posting in &postings {
        let [kind, term, price, number] = posting.key();
        tx.execute(
            "INSERT INTO product_category_word (category, kind, term, price, number) VALUES ($1, $2, $3, $4, $5)",
            &[posting.category.into(), kind, term, price, number],
        )?;
    }
    Ok(())
}

pub(super) fn remove(tx: &mut dyn Tx, postings: Vec<Posting>) -> Result<(), StoreError> {
    for posting in &postings {
        let [kind, term, price, number] = posting.key();
        tx.execute(
            "DELETE FROM product_word WHERE kind = $1 AND term = $2 AND price = $3 AND number = $4",
            &[kind, term, price, number],
        )?;
        tx.execute(
            "DELETE FROM product_category_word
             WHERE category = $1 AND kind = $2 AND term = $3 AND price = $4 AND number = $5",
            &[posting.category.into(), kind, term, price, number],
        )?;
    }
    Ok(())
}

impl Posting {
    fn key(&self) -> [Value<'_>; 4] {
        [self.kind.into(), (&self.term).into(), self.price.into(), self.number.into()]
    }
}

pub(super) struct SearchQuery {
    pub category: Option<u32>,
    /// Folded by [`fold`].
    pub keywords: BTreeSet<String>,
    pub offset: u64,
    pub limit: u64,
    /// [`RANKED_MAX`], less in tests.
    pub ranked_max: usize,
}

/// One page: by score, then the cheapest, then the oldest first.
pub(super) fn search(reader: &dyn Reader, query: &SearchQuery) -> Result<SearchHits, StoreError> {
    if query.keywords.is_empty() {
        return cheapest(reader, query);
    }
    let mut merger = PostingMerger {
        reader,
        category: query.category,
        ranked_max: query.ranked_max,
        matches: Vec::new(),
        trim_at: query.ranked_max + 1,
        price_cutoff: i64::MAX,
    };
    // The exact lists first: they may lower the price cutoff for the many lists of prefixes.
    for (position, keyword) in (0..).zip(&query.keywords) {
        merger.read_exact(KEYWORD, keyword, EXACT << (position * TAG_BITS))?;
        merger.read_exact(NAME_WORD, keyword, NAMED << (position * TAG_BITS))?;
    }
    for (position, keyword) in (0..).zip(&query.keywords) {
        merger.read_prefix(keyword, PREFIX << (position * TAG_BITS))?;
    }
    Ok(merger.rank(query))
}

/// A search without keywords, which is ordered by price only.
fn cheapest(reader: &dyn Reader, query: &SearchQuery) -> Result<SearchHits, StoreError> {
    let in_stock = stock_count(reader, query.category)?;
    let total = in_stock.min(query.ranked_max as u64);
    let offset = query.offset.min(total);
    let limit = query.limit.min(total - offset);
    let statements = [
        "SELECT number FROM product_word WHERE kind = $1 AND term = $2 ORDER BY price, number LIMIT $3 OFFSET $4",
        "SELECT number FROM product_category_word WHERE category = $1 AND kind = $2 AND term = $3
         ORDER BY price, number LIMIT $4 OFFSET $5",
    ];
    let list = [FOR_SALE.into(), "".into(), id_column(limit).into(), id_column(offset).into()];
    let mut numbers = Vec::new();
    query_index(reader, query.category, statements, list, &mut |row| {
        numbers.push(row.int(0)?);
        Ok(())
    })?;
    Ok(SearchHits { numbers, total, total_is_at_least: in_stock > total })
}

/// Runs one of two statements: for all categories, or for one, which is its first parameter.
fn query_index(
    reader: &dyn Reader,
    category: Option<u32>,
    [everywhere, in_category]: [&'static str; 2],
    list: [Value<'_>; 4],
    each: &mut dyn FnMut(&Row<'_>) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    let Some(category) = category else { return reader.query(everywhere, &list, each) };
    let [first, second, third, fourth] = list;
    reader.query(in_category, &[category.into(), first, second, third, fourth], each)
}

// The tags of an item: three bits for each keyword of the search.
const EXACT: u32 = 1;
const PREFIX: u32 = 2;
const NAMED: u32 = 4;
const TAG_BITS: u32 = 3;
/// The keywords of one search. (The tags would have room for ten.)
pub(super) const KEYWORDS_MAX: usize = 5;

fn score(mut tags: u32) -> u32 {
    let mut score = 0;
    while tags != 0 {
        score += match tags & (EXACT | PREFIX) {
            0 => 0,
            PREFIX => 1,
            _ => 2,
        };
        score += u32::from(tags & NAMED != 0);
        tags >>= TAG_BITS;
    }
    score
}

/// Price, number and tags. Sorts by price, then age.
type TaggedItem = (i64, i64, u32);

/// Merges the lists that a search reads.
struct PostingMerger<'r> {
    reader: &'r dyn Reader,
    category: Option<u32>,
    ranked_max: usize,
    matches: Vec<TaggedItem>,
    /// At this number of matches, those that cannot be ranked are dropped.
    trim_at: usize,
    /// Above it nothing is ranked, because enough cheaper items were found.
    price_cutoff: i64,
}

impl PostingMerger<'_> {
    /// One term.
    fn read_exact(&mut self, kind: i64, term: &str, tag: u32) -> Result<(), StoreError> {
        let (matches, rows_max) = (&mut self.matches, self.ranked_max as i64 + 1);
        let mut each = |row: &Row<'_>| {
            matches.push((row.int(0)?, row.int(1)?, tag));
            Ok(())
        };
        let statements = [
            "SELECT price, number FROM product_word WHERE kind = $1 AND term = $2 AND price <= $3
             ORDER BY price, number LIMIT $4",
            "SELECT price, number FROM product_category_word
             WHERE category = $1 AND kind = $2 AND term = $3 AND price <= $4
             ORDER BY price, number LIMIT $5",
        ];
        let list = [kind.into(), term.into(), self.price_cutoff.into(), rows_max.into()];
        query_index(self.reader, self.category, statements, list, &mut each)?;
        self.trim();
        Ok(())
    }

    /// All keywords that begin with this one, which may include the keyword itself.
    fn read_prefix(&mut self, prefix: &str, tag: u32) -> Result<(), StoreError> {
        let letters = prefix.chars().count();
        match PREFIX_KINDS.iter().find(|(least, _kind)| *least >= letters) {
            Some((least, kind)) if *least == letters => self.read_exact(*kind, prefix, tag),
            Some((_least, kind)) => self.read_range(*kind, prefix, tag),
            None => self.read_range(KEYWORD, prefix, tag),
        }
    }

    /// All longer terms that begin with this one.
    fn read_range(&mut self, kind: i64, prefix: &str, tag: u32) -> Result<(), StoreError> {
        // No term with this prefix sorts behind this text, because no keyword has 32 letters more.
        let last = format!("{prefix}{}", "\u{10FFFF}".repeat(32));
        let (mut rows, rows_max) = (0, self.ranked_max + 1);
        let (matches, price_cutoff) = (&mut self.matches, self.price_cutoff);
        let mut each = |row: &Row<'_>| {
            rows += 1;
            let price = row.int(0)?;
            if price <= price_cutoff {
                matches.push((price, row.int(1)?, tag));
            }
            Ok(())
        };
        // Usually there are few rows, so they are read at once and unsorted.
        let statements = [
            "SELECT price, number FROM product_word WHERE kind = $1 AND term > $2 AND term <= $3 LIMIT $4",
            "SELECT price, number FROM product_category_word
             WHERE category = $1 AND kind = $2 AND term > $3 AND term <= $4 LIMIT $5",
        ];
        let list = [kind.into(), prefix.into(), (&last).into(), (rows_max as i64).into()];
        query_index(self.reader, self.category, statements, list, &mut each)?;
        self.trim();
        if rows == rows_max {
            self.read_each_term(kind, prefix, &last, tag)?;
        }
        Ok(())
    }

    /// The cheapest items of each term, if there are many. Finding the next term is one step in the index.
    fn read_each_term(&mut self, kind: i64, prefix: &str, last: &str, tag: u32) -> Result<(), StoreError> {
        let mut term = prefix.to_owned();
        loop {
            let statements = [
                "SELECT term, price FROM product_word WHERE kind = $1 AND term > $2 AND term <= $3
                 ORDER BY term, price LIMIT $4",
                "SELECT term, price FROM product_category_word
                 WHERE category = $1 AND kind = $2 AND term > $3 AND term <= $4
                 ORDER BY term, price LIMIT $5",
            ];
            let mut next = None;
            let list = [kind.into(), (&term).into(), last.into(), 1.into()];
            query_index(self.reader, self.category, statements, list, &mut |row| {
                next = Some((row.text(0)?.to_owned(), row.int(1)?));
                Ok(())
            })?;
            let Some((next, cheapest)) = next else { return Ok(()) };
            term = next;
            if cheapest <= self.price_cutoff {
                self.read_exact(kind, &term, tag)?;
            }
        }
    }

    /// Drops matches that can no longer be ranked, once there are many.
    fn trim(&mut self) {
        if self.matches.len() < self.trim_at {
            return;
        }
        let items = self.sort_and_merge();
        if items > self.ranked_max {
            // One more than is ranked shows that there are more.
            self.matches.truncate(self.ranked_max + 1);
            self.price_cutoff = self.matches.last().map_or(i64::MAX, |last| last.0);
        }
        self.trim_at = 2 * self.matches.len().max(self.ranked_max);
    }

    /// Merges matches of the same item. Returns how many are left.
    fn sort_and_merge(&mut self) -> usize {
        // Each list is sorted already, so the sort merges runs.
        self.matches.sort();
        self.matches.dedup_by(|next, kept| {
            let is_same = (next.0, next.1) == (kept.0, kept.1);
            if is_same {
                kept.2 |= next.2;
            }
            is_same
        });
        self.matches.len()
    }

    fn rank(mut self, query: &SearchQuery) -> SearchHits {
        let items = self.sort_and_merge();
        let total = items.min(self.ranked_max);
        self.matches.truncate(total);
        // Stable, so that items of the same score stay in the order of price and age.
        self.matches.sort_by_key(|(_price, _number, tags)| Reverse(score(*tags)));
        let skipped = usize::try_from(query.offset).unwrap_or(usize::MAX);
        let limit = usize::try_from(query.limit).unwrap_or(usize::MAX);
        let numbers = self.matches.iter().skip(skipped).take(limit).map(|(_price, number, _tags)| *number).collect();
        SearchHits { numbers, total: total as u64, total_is_at_least: items > total }
    }
}
