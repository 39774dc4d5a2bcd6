//! Formats the shop's responses for people.

use serde_json::Value;

use crate::cli::response_fields::{counted_noun, plain_text, rows, time};
use crate::cli::table::{Align, table};
use crate::model::{Cents, Total};

/// Totals may exceed the largest price.
pub(in crate::cli) fn money(amount: &Value) -> String {
    if let Some(whole) = amount.as_i64() {
        return Total(i128::from(whole) * 100).to_string();
    }
    // Amounts with cents were parsed as floats, which are exact below 2^53 cents.
    amount.as_f64().map(|amount| Cents((amount * 100.0).round() as i64).to_string()).unwrap_or_default()
}

/// A column: its title, and the cell that it has for a line.
type Column = (&'static str, Align, fn(&Value) -> String);

const PURCHASE: Column = ("purchase", Align::Left, |line| plain_text(&line["purchase_id"]));
const ITEM: Column = ("item", Align::Left, |line| plain_text(&line["item_id"]));
const QUANTITY: Column = ("qty", Align::Right, |line| plain_text(&line["quantity"]));
const PRICE: Column = ("price", Align::Right, |line| money(&line["price"]));
const BOUGHT: Column = ("bought", Align::Left, |line| time(&line["purchased_at"]));
const SHIPPED: Column = ("shipped", Align::Left, |line| time(&line["shipped_at"]));

/// One row a line.
fn lines(list: &Value, columns: &[Column]) -> String {
    let titles: Vec<(&str, Align)> = columns.iter().map(|(title, align, _)| (*title, *align)).collect();
    table(&titles, &rows(list, |line| columns.iter().map(|(_, _, cell)| cell(line)).collect()))
}

/// One row a line, or `none` where there is none.
fn listing(list: &Value, columns: &[Column], none: &str) -> String {
    let is_empty = list.as_array().is_none_or(Vec::is_empty);
    if is_empty { none.to_owned() } else { lines(list, columns) }
}

pub(in crate::cli) fn items(list: &Value) -> String {
    const COLUMNS: [Column; 8] = [
        ITEM,
        ("name", Align::Left, |item| plain_text(&item["item_name"])),
        PRICE,
        QUANTITY,
        ("condition", Align::Left, |item| if item["condition_is_new"] == true { "new" } else { "used" }.to_owned()),
        ("votes", Align::Left, |item| votes(&item["feedback"])),
        ("seller", Align::Left, |item| format!("{} ({})", plain_text(&item["seller"]), plain_text(&item["seller_id"]))),
        ("keywords", Align::Left, |item| {
            let keywords = item["keywords"].as_array().into_iter().flatten().filter_map(Value::as_str);
            keywords.collect::<Vec<_>>().join(" ")
        }),
    ];
    lines(list, &COLUMNS)
}

fn votes(feedback: &Value) -> String {
    format!("+{} -{}", plain_text(&feedback["thumbs_up"]), plain_text(&feedback["thumbs_down"]))
}

/// And how many there are in all; `none` for an empty page.
pub(in crate::cli) fn page(response: &Value, none: impl FnOnce(&Value) -> String) -> String {
    match &response["items"] {
        Value::Array(items) if items.is_empty() => none(response),
        items => format!("{}\n{}", self::items(items), total_text(response)),
    }
}

/// `57 items`, `10000 items or more, 2 of them here`.
pub(in crate::cli) fn total_text(response: &Value) -> String {
    let shown = response["items"].as_array().map_or(0, Vec::len);
    let Some(total) = response["total"].as_u64() else { return counted_noun(shown as u64, "item") };
    let more = if response["total_is_at_least"] == true { " or more" } else { "" };
    let shown = if shown as u64 == total { String::new() } else { format!(", {shown} of them here") };
    format!("{}{more}{shown}", counted_noun(total, "item"))
}

pub(in crate::cli) fn cart(list: &Value) -> String {
    listing(list, &[ITEM, QUANTITY], "the cart is empty")
}

pub(in crate::cli) fn new_purchase(response: &Value) -> String {
    let lines = lines(&response["items"], &[ITEM, QUANTITY, PRICE]);
    format!("bought for {}: purchase {}\n{lines}", money(&response["total"]), plain_text(&response["purchase_id"]))
}

pub(in crate::cli) fn purchases(list: &Value) -> String {
    listing(list, &[PURCHASE, ITEM, QUANTITY, PRICE, BOUGHT, SHIPPED], "nothing was bought yet")
}

/// Shipped or not.
pub(in crate::cli) fn orders(list: &Value) -> String {
    let payout: Column = ("payout", Align::Right, |line| money(&line["payout"]));
    let buyer: Column = ("buyer", Align::Left, |line| plain_text(&line["buyer_name"]));
    let address: Column = ("address", Align::Left, |line| plain_text(&line["address"]));
    let columns = [PURCHASE, ITEM, QUANTITY, PRICE, payout, buyer, BOUGHT, SHIPPED, address];
    listing(list, &columns, "nothing was sold yet")
}

pub(in crate::cli) fn rating(response: &Value) -> String {
    let share = response["rating"].as_f64().map(|share| format!(" ({:.0} % up)", share * 100.0)).unwrap_or_default();
    let sold = counted_noun(response["items_sold"].as_u64().unwrap_or_default(), "unit");
    format!("{}{share}, {sold} sold", votes(&response["feedback"]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn amounts_and_counts_are_read_as_they_are_meant() {
        for (amount, text) in [(json!(12), "12.00"), (json!(0.1), "0.10"), (json!(50_000_000.35), "50000000.35")] {
            assert_eq!(money(&amount), text);
        }
        assert_eq!(money(&json!(92_233_720_368_547_757_i64)), "92233720368547757.00");
        assert_eq!(total_text(&json!({"items": [{}], "total": 1})), "1 item");
        let many = json!({"items": [{}, {}], "total": 10_000, "total_is_at_least": true});
        assert_eq!(total_text(&many), "10000 items or more, 2 of them here");
        let votes = |share: Value| {
            rating(&json!({"feedback": {"thumbs_up": 3, "thumbs_down": 1}, "rating": share, "items_sold": 1}))
        };
        assert_eq!(
            (votes(json!(0.75)).as_str(), votes(Value::Null).as_str()),
            ("+3 -1 (75 % up), 1 unit sold", "+3 -1, 1 unit sold")
        );
    }
}
