//! Catalogue files: JSON lists of items, loaded completely or not at all.

use std::collections::HashMap;
use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use super::inventory::{ITEMS_MAX, Item, fold};
use crate::model::{Cents, number, text};

/// The bytes of a file: enough for [`ITEMS_MAX`] items.
const FILE_MAX: u64 = 16 << 20;

/// An array of {name, price, min_price?, quantity?, description?}. Without `min_price` the price is firm; without
/// `quantity` there is one unit. An error names the first invalid entry and the field.
pub fn read(path: &Path) -> Result<Vec<Item>, String> {
    let shown = path.display();
    let size = std::fs::metadata(path).map_err(|error| format!("{shown}: {error}"))?.len();
    if size > FILE_MAX {
        return Err(format!("{shown}: expected at most {} MiB", FILE_MAX >> 20));
    }
    let bytes = std::fs::read(path).map_err(|error| format!("{shown}: {error}"))?;
    let text = std::str::from_utf8(text::without_bom(&bytes)).map_err(|_| format!("{shown}: expected UTF-8"))?;
    parse(text).map_err(|wrong| format!("{shown}: {wrong}"))
}

fn parse(text: &str) -> Result<Vec<Item>, String> {
    let entries: Vec<Value> = serde_json::from_str(text).map_err(|error| format!("expected a JSON array: {error}"))?;
    if entries.len() > ITEMS_MAX {
        return Err(format!("expected at most {ITEMS_MAX} items, not {}", entries.len()));
    }
    let mut places = HashMap::new();
    let mut items = Vec::with_capacity(entries.len());
    for (place, entry) in (1..).zip(&entries) {
        let named = |wrong: String| match entry.get("name").and_then(Value::as_str) {
            Some(name) => format!("entry {place} ({name:?}): {wrong}"),
            None => format!("entry {place}: {wrong}"),
        };
        let item = item(entry).map_err(named)?;
        if let Some(before) = places.insert(fold(&item.name), place) {
            return Err(named(format!("name: the same as in entry {before}")));
        }
        items.push(item);
    }
    Ok(items)
}

fn item(entry: &Value) -> Result<Item, String> {
    if !entry.is_object() {
        return Err("expected an object".to_owned());
    }
    let field = |name: &str| entry.get(name).filter(|value| !value.is_null());
    let text = |name: &str| match field(name) {
        Some(Value::String(text)) => Ok(Some(text.as_str())),
        Some(_) => Err(format!("{name}: expected a text")),
        None => Ok(None),
    };
    let amount = |name: &str| match field(name) {
        Some(value) => Cents::deserialize(value).map(Some).map_err(|wrong| format!("{name}: {wrong}")),
        None => Ok(None),
    };
    let name = text("name")?.ok_or("name: missing")?;
    let price = amount("price")?.ok_or("price: missing")?;
    let min_price = amount("min_price")?.unwrap_or(price);
    let quantity = match field("quantity") {
        Some(value) => number::integer_as(value).ok_or("quantity: expected a whole number")?,
        None => 1,
    };
    Item::new(name, price, min_price, quantity, text("description")?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_name_the_entry_and_the_field() {
        for (text, said) in [
            ("{}", "expected a JSON array"),
            ("[1]", "entry 1: expected an object"),
            (r#"[{"price":1}]"#, "entry 1: name: missing"),
            (r#"[{"name":"a","price":1},{"name":"b"}]"#, r#"entry 2 ("b"): price: missing"#),
            (r#"[{"name":"a","price":"x"}]"#, r#"entry 1 ("a"): price: expected an amount"#),
            (r#"[{"name":"a","price":1,"min_price":2}]"#, "min_price: expected at most the price"),
            (r#"[{"name":"a","price":1,"quantity":-1}]"#, "quantity: expected a whole number"),
            (r#"[{"name":"a","price":1,"description":7}]"#, "description: expected a text"),
            (r#"[{"name":"a","price":1},{"name":"A","price":1}]"#, "name: the same as in entry 1"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(said), "{text}: {error}");
        }
        let items =
            parse(r#"[{"name":"a","price":"2.50","min_price":2,"quantity":3}, {"name":"b","price":1}]"#).unwrap();
        assert_eq!((items[0].price, items[0].min_price, items[0].quantity), (Cents(250), Cents(200), 3));
        assert_eq!((items[1].min_price, items[1].quantity), (Cents(100), 1));
    }

    #[test]
    fn the_sample_catalogue_is_a_good_one() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/samples/catalogue.json");
        let items = read(&path).unwrap();
        assert!((120..=200).contains(&items.len()), "{}", items.len());
        for wallet in ["alice", "bob", "declined"] {
            let wallet = path.with_file_name(format!("wallet-{wallet}.json"));
            assert!(super::super::wallet::Wallet::read(&wallet).unwrap().cc_number.passes_luhn());
        }
    }
}
