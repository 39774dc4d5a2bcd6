//! Search: ranked by keywords, from lists that are kept in the order of price.
//!
//! Why tables of keywords and not a full-text index: SPEC.md ranks by exact keyword, prefix and word of the
//! name, not by how rare a word is; a key that ends in the price gives the cheapest first without sorting;
//! and the same statements run on PostgreSQL.
//!
//! A **posting** says that an item has a term: `(kind, term, price, number)`, where kind is 0 for one of its
//! keywords, 1 for a word of its name, 2 (with the empty term) for an item at all, and 3 to 5 for the first 2, 4
//! and 6 letters of a keyword. The same postings stand a second time under their category. Only items with
//! stock have any.
//!
//! A keyword of a search is the exact list of kind 0 (2 points), what begins with it (1 point), and the exact
//! list of kind 1 (1 point more). What begins with 2, 4 or 6 letters is one list; with 1, 3 or 5, the lists of
//! one letter more, of which there are as many as the alphabet has; without those kinds it would be a list for
//! each of perhaps a hundred thousand keywords. (All lengths would make the index larger by half again.)
//!
//! Ranking looks at the 10,000 cheapest items that have any point, so no list is read further than its first
//! 10,001: whoever is among the cheapest of all is among the cheapest of every list that he is in.

use std::cmp::Reverse;
use std::collections::BTreeSet;

use super::store::{self, Facts};
use crate::model::Cents;
use crate::model::text::nfc;
use crate::storage::{Query, Reader, Row, StoreError, Tx, Value};

/// Items that ranking looks at, and the most that are counted.
pub(super) const RANKED_MAX: usize = 10_000;

/// The item has it among its keywords.
const KEYWORD: i64 = 0;
/// It is a word of the item's name.
const NAME_WORD: i64 = 1;
/// It is for sale: the list of all, for searches without keywords.
const FOR_SALE: i64 = 2;
/// One of its keywords begins with these: so many letters, and the kind.
const BEGINNINGS: [(usize, i64); 3] = [(2, 3), (4, 4), (6, 5)];

/// What a search found: the numbers of one page of items.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Hits {
    pub numbers: Vec<i64>,
    pub total: u64,
    pub total_is_at_least: bool,
}

/// A line of the index. In the order of the table.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Posting {
    kind: i64,
    term: String,
    price: i64,
    number: i64,
    category: u32,
}

/// A text as it is compared: without case, in form C. (A sigma at a word's end is a sigma.)
pub(super) fn fold(text: &str) -> String {
    // Lowercase of what is in form C need not be in it (İ).
    nfc(&fold_as_spelled(&nfc(text))).into_owned()
}

/// As versions before [`store::fold_anew`] kept it: two spellings were two words.
fn fold_as_spelled(text: &str) -> String {
    let lower = text.to_lowercase();
    if lower.contains('ς') { lower.replace('ς', "σ") } else { lower }
}

/// The postings that an item has while it has stock.
pub(super) fn postings(facts: &Facts, price: Cents, number: i64) -> Vec<Posting> {
    postings_by(fold, facts, price, number)
}

/// Puts the postings of an item in place of those of before [`store::fold_anew`].
pub(super) fn post_anew(tx: &mut dyn Tx, facts: &Facts, price: Cents, number: i64) -> Result<(), StoreError> {
    let (was, is) = (postings_by(fold_as_spelled, facts, price, number), postings(facts, price, number));
    if was != is {
        remove(tx, was)?;
        add(tx, is)?;
    }
    Ok(())
}

fn postings_by(fold: fn(&str) -> String, facts: &Facts, price: Cents, number: i64) -> Vec<Posting> {
    let keywords: Vec<String> = facts.keywords.iter().map(|keyword| fold(keyword)).collect();
    let beginnings = keywords.iter().flat_map(|keyword| {
        BEGINNINGS.iter().filter_map(|(letters, kind)| Some((*kind, beginning(keyword, *letters)?.to_owned())))
    });
    let name = fold(&facts.item_name);
    let words = name.split(|letter: char| !letter.is_alphanumeric()).filter(|word| !word.is_empty());
    let words = words.map(|word| (NAME_WORD, word.to_owned()));
    let all = beginnings.chain(words).chain([(FOR_SALE, String::new())]);
    let mut terms: BTreeSet<(i64, String)> = all.collect();
    terms.extend(keywords.into_iter().map(|keyword| (KEYWORD, keyword)));
    let posting = |(kind, term)| Posting { kind, term, price: price.0, number, category: facts.category };
    terms.into_iter().map(posting).collect()
}

/// The first letters of a text; nothing if it has not as many.
fn beginning(text: &str, letters: usize) -> Option<&str> {
    let last = letters.checked_sub(1)?;
    text.char_indices().nth(last).map(|(start, letter)| &text[..start + letter.len_utf8()])
}

/// Puts postings into the index, each table's in its order.
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

/// Takes postings out of the index.
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

/// What is looked for.
pub(super) struct Wanted {
    pub category: Option<u32>,
    /// Folded, distinct.
    pub keywords: BTreeSet<String>,
    pub offset: u64,
    pub limit: u64,
    /// How many items ranking looks at: [`RANKED_MAX`], less in tests.
    pub ranked_max: usize,
}

/// Finds a page: best first, then cheapest, then oldest.
pub(super) fn search(reader: &dyn Reader, wanted: &Wanted) -> Result<Hits, StoreError> {
    if wanted.keywords.is_empty() {
        return cheapest(reader, wanted);
    }
    let mut lists = Lists {
        reader,
        category: wanted.category,
        ranked_max: wanted.ranked_max,
        found: Vec::new(),
        trim_at: wanted.ranked_max + 1,
        cutoff: i64::MAX,
    };
    // The exact lists first: they may tell how cheap an item of the many others has to be.
    for (place, keyword) in (0..).zip(&wanted.keywords) {
        lists.read_exact(KEYWORD, keyword, EXACT << (place * TAGS))?;
        lists.read_exact(NAME_WORD, keyword, NAMED << (place * TAGS))?;
    }
    for (place, keyword) in (0..).zip(&wanted.keywords) {
        lists.read_longer(keyword, PREFIX << (place * TAGS))?;
    }
    Ok(lists.rank(wanted))
}

/// Without keywords there is nothing to rank by but the price.
fn cheapest(reader: &dyn Reader, wanted: &Wanted) -> Result<Hits, StoreError> {
    let in_stock = store::in_stock(reader, wanted.category)?;
    let total = in_stock.min(wanted.ranked_max as u64);
    let offset = wanted.offset.min(total);
    let limit = wanted.limit.min(total - offset);
    let list: [Value<'_>; 2] = [FOR_SALE.into(), "".into()];
    let page: [Value<'_>; 2] = [store::id(limit).into(), store::id(offset).into()];
    let numbers = match wanted.category {
        None => reader.all(
            "SELECT number FROM product_word WHERE kind = $1 AND term = $2
             ORDER BY price, number LIMIT $3 OFFSET $4",
            &[list[0], list[1], page[0], page[1]],
            |row| row.int(0),
        ),
        Some(category) => reader.all(
            "SELECT number FROM product_category_word WHERE category = $1 AND kind = $2 AND term = $3
             ORDER BY price, number LIMIT $4 OFFSET $5",
            &[category.into(), list[0], list[1], page[0], page[1]],
            |row| row.int(0),
        ),
    }?;
    Ok(Hits { numbers, total, total_is_at_least: in_stock > total })
}

// What a posting says about an item, one bit each, three a keyword of the search.
const EXACT: u32 = 1;
const PREFIX: u32 = 2;
const NAMED: u32 = 4;
const TAGS: u32 = 3;
/// Keywords of one search. (Ten would have room for their bits.)
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
        tags >>= TAGS;
    }
    score
}

/// An item that a list named, and what for. Sorts by price, then age.
type Named = (i64, i64, u32);

/// The lists that a search reads, merged.
struct Lists<'r> {
    reader: &'r dyn Reader,
    category: Option<u32>,
    ranked_max: usize,
    found: Vec<Named>,
    /// How many there may be before what cannot be ranked is left out.
    trim_at: usize,
    /// An item above this price cannot be ranked: enough cheaper ones were found.
    cutoff: i64,
}

impl Lists<'_> {
    /// One term's list.
    fn read_exact(&mut self, kind: i64, term: &str, tag: u32) -> Result<(), StoreError> {
        let (found, most) = (&mut self.found, self.ranked_max as i64 + 1);
        let mut each = |row: &Row<'_>| {
            found.push((row.int(0)?, row.int(1)?, tag));
            Ok(())
        };
        match self.category {
            None => self.reader.query(
                "SELECT price, number FROM product_word WHERE kind = $1 AND term = $2 AND price <= $3
                 ORDER BY price, number LIMIT $4",
                &[kind.into(), term.into(), self.cutoff.into(), most.into()],
                &mut each,
            ),
            Some(category) => self.reader.query(
                "SELECT price, number FROM product_category_word
                 WHERE category = $1 AND kind = $2 AND term = $3 AND price <= $4
                 ORDER BY price, number LIMIT $5",
                &[category.into(), kind.into(), term.into(), self.cutoff.into(), most.into()],
                &mut each,
            ),
        }?;
        self.trim();
        Ok(())
    }

    /// What all keywords that begin with this one name. (Itself may be among them: it was read before.)
    fn read_longer(&mut self, prefix: &str, tag: u32) -> Result<(), StoreError> {
        let letters = prefix.chars().count();
        match BEGINNINGS.iter().find(|(least, _kind)| *least >= letters) {
            Some((least, kind)) if *least == letters => self.read_exact(*kind, prefix, tag),
            Some((_least, kind)) => self.read_range(*kind, prefix, tag),
            None => self.read_range(KEYWORD, prefix, tag),
        }
    }

    /// The lists of all longer terms that begin with this one.
    fn read_range(&mut self, kind: i64, prefix: &str, tag: u32) -> Result<(), StoreError> {
        // Nothing that begins with it sorts behind this: no item's keyword has as many more letters.
        let last = format!("{prefix}{}", "\u{10FFFF}".repeat(32));
        let (mut rows, most) = (0, self.ranked_max + 1);
        let (found, cutoff) = (&mut self.found, self.cutoff);
        let mut each = |row: &Row<'_>| {
            rows += 1;
            let price = row.int(0)?;
            if price <= cutoff {
                found.push((price, row.int(1)?, tag));
            }
            Ok(())
        };
        // Mostly there are few of them: all at once, in whatever order.
        match self.category {
            None => self.reader.query(
                "SELECT price, number FROM product_word WHERE kind = $1 AND term > $2 AND term <= $3 LIMIT $4",
                &[kind.into(), prefix.into(), (&last).into(), (most as i64).into()],
                &mut each,
            ),
            Some(category) => self.reader.query(
                "SELECT price, number FROM product_category_word
                 WHERE category = $1 AND kind = $2 AND term > $3 AND term <= $4 LIMIT $5",
                &[category.into(), kind.into(), prefix.into(), (&last).into(), (most as i64).into()],
                &mut each,
            ),
        }?;
        self.trim();
        if rows == most {
            self.read_each(kind, prefix, &last, tag)?;
        }
        Ok(())
    }

    /// Many: of each term the cheapest alone. From one term to the next it is one step in the index.
    fn read_each(&mut self, kind: i64, prefix: &str, last: &str, tag: u32) -> Result<(), StoreError> {
        let mut term = prefix.to_owned();
        loop {
            let first = |row: &Row<'_>| Ok((row.text(0)?.to_owned(), row.int(1)?));
            let next = match self.category {
                None => self.reader.first(
                    "SELECT term, price FROM product_word WHERE kind = $1 AND term > $2 AND term <= $3
                     ORDER BY term, price LIMIT 1",
                    &[kind.into(), (&term).into(), last.into()],
                    first,
                ),
                Some(category) => self.reader.first(
                    "SELECT term, price FROM product_category_word
                     WHERE category = $1 AND kind = $2 AND term > $3 AND term <= $4
                     ORDER BY term, price LIMIT 1",
                    &[category.into(), kind.into(), (&term).into(), last.into()],
                    first,
                ),
            }?;
            let Some((next, cheapest)) = next else { return Ok(()) };
            term = next;
            if cheapest <= self.cutoff {
                self.read_exact(kind, &term, tag)?;
            }
        }
    }

    /// Leaves out what cannot be ranked any more, once there is much of it.
    fn trim(&mut self) {
        if self.found.len() < self.trim_at {
            return;
        }
        let items = self.sort();
        if items > self.ranked_max {
            // One more than is ranked stays: it tells that there are more.
            self.found.truncate(self.ranked_max + 1);
            self.cutoff = self.found.last().map_or(i64::MAX, |last| last.0);
        }
        self.trim_at = 2 * self.found.len().max(self.ranked_max);
    }

    /// Sorts what was found and makes one entry of each item; how many there are.
    fn sort(&mut self) -> usize {
        // Each list came sorted: this merges them.
        self.found.sort();
        self.found.dedup_by(|next, kept| {
            let is_same = (next.0, next.1) == (kept.0, kept.1);
            if is_same {
                kept.2 |= next.2;
            }
            is_same
        });
        self.found.len()
    }

    fn rank(mut self, wanted: &Wanted) -> Hits {
        let items = self.sort();
        let total = items.min(self.ranked_max);
        self.found.truncate(total);
        // They stand by price and age, which a stable sort keeps.
        self.found.sort_by_key(|(_price, _number, tags)| Reverse(score(*tags)));
        let skipped = usize::try_from(wanted.offset).unwrap_or(usize::MAX);
        let limit = usize::try_from(wanted.limit).unwrap_or(usize::MAX);
        let numbers = self.found.iter().skip(skipped).take(limit).map(|(_price, number, _tags)| *number).collect();
        Hits { numbers, total: total as u64, total_is_at_least: items > total }
    }
}
