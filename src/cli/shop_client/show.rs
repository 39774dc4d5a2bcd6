//! Formats the shop's responses for people.

use serde_json::Value;

use crate::cli::response_fields::{counted_noun, plain_text, rows, time};
use crate::cli::table::{Align, table};
use crate::model::{Cents, Total};

/// An amount. Totals may exceed the largest price.
pub(in crate::cli) fn money(amount: &Value) -> String {
    if let Some(whole) = amount.as_i64() {
        return Total(i128::from(whole) * 100).to_string();
    }
    // Amounts with cents were parsed as floats, which are exact below 2^53 cents.
    amount.as_f64().map(|amount| Cents((amount * 100.0).round() as i64).to_string()).unwrap_or_default()
}

/// A table of items for sale.
pub(in crate::cli) fn items(list: &Value) -> String {
    let columns = [
        ("item", Align::Left),
        ("name", Align::Left),
        ("price", Align::Right),
        ("qty", Align::Right),
        ("condition", Align::Left),
        ("votes", Align::Left),
        ("seller", Align::Left),
        ("keywords", Align::Left),
    ];
    let rows = rows(list, |item| {
        let condition = if item["condition_is_new"] == true { "new" } else { "used" };
        let votes = &item["feedback"];
        let keywords: Vec<&str> = item["keywords"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        vec![
            plain_text(&item["item_id"]),
            plain_text(&item["item_name"]),
            money(&item["price"]),
            plain_text(&item["quantity"]),
            condition.to_owned(),
            format!("+{} -{}", plain_text(&votes["thumbs_up"]), plain_text(&votes["thumbs_down"])),
            format!("{} ({})", plain_text(&item["seller"]), plain_text(&item["seller_id"])),
            keywords.join(" "),
        ]
    });
    table(&columns, &rows)
}

/// `57 items`, `10000 items or more, 2 of them here`.
pub(in crate::cli) fn total_text(response: &Value) -> String {
    let shown = response["items"].as_array().map_or(0, Vec::len);
    let Some(total) = response["total"].as_u64() else { return counted_noun(shown as u64, "item") };
    let more = if response["total_is_at_least"] == true { " or more" } else { "" };
    let shown = if shown as u64 == total { String::new() } else { format!(", {shown} of them here") };
    format!("{}{more}{shown}", counted_noun(total, "item"))
}

/// The contents of a cart.
pub(in crate::cli) fn cart(list: &Value) -> String {
    let rows = rows(list, |line| vec![plain_text(&line["item_id"]), plain_text(&line["quantity"])]);
    if rows.is_empty() {
        return "the cart is empty".to_owned();
    }
    table(&[("item", Align::Left), ("qty", Align::Right)], &rows)
}

/// A purchase that was just made.
pub(in crate::cli) fn new_purchase(response: &Value) -> String {
    let rows = rows(&response["items"], |line| {
        vec![plain_text(&line["item_id"]), plain_text(&line["quantity"]), money(&line["price"])]
    });
    let lines = table(&[("item", Align::Left), ("qty", Align::Right), ("price", Align::Right)], &rows);
    format!("bought for {}: purchase {}\n{lines}", money(&response["total"]), plain_text(&response["purchase_id"]))
}

/// A column: its title, and the cell that it has for a line.
type Column = (&'static str, Align, fn(&Value) -> String);

/// One row a line, or `none` where there is none.
fn listing(list: &Value, columns: &[Column], none: &str) -> String {
    let rows = rows(list, |line| columns.iter().map(|(_, _, cell)| cell(line)).collect());
    let titles: Vec<(&str, Align)> = columns.iter().map(|(title, align, _)| (*title, *align)).collect();
    if rows.is_empty() { none.to_owned() } else { table(&titles, &rows) }
}

const PURCHASE: Column = ("purchase", Align::Left, |line| plain_text(&line["purchase_id"]));
const ITEM: Column = ("item", Align::Left, |line| plain_text(&line["item_id"]));
const QUANTITY: Column = ("qty", Align::Right, |line| plain_text(&line["quantity"]));
const PRICE: Column = ("price", Align::Right, |line| money(&line["price"]));
const BOUGHT: Column = ("bought", Align::Left, |line| time(&line["purchased_at"]));
const SHIPPED: Column = ("shipped", Align::Left, |line| time(&line["shipped_at"]));

/// A buyer's purchases.
pub(in crate::cli) fn purchases(list: &Value) -> String {
    listing(list, &[PURCHASE, ITEM, QUANTITY, PRICE, BOUGHT, SHIPPED], "nothing was bought yet")
}

/// A seller's orders, shipped or not.
pub(in crate::cli) fn orders(list: &Value) -> String {
    let payout: Column = ("payout", Align::Right, |line| money(&line["payout"]));
    let buyer: Column = ("buyer", Align::Left, |line| plain_text(&line["buyer_name"]));
    let address: Column = ("address", Align::Left, |line| plain_text(&line["address"]));
    let columns = [PURCHASE, ITEM, QUANTITY, PRICE, payout, buyer, BOUGHT, SHIPPED, address];
    listing(list, &columns, "nothing was sold yet")
}

/// A seller's votes and sales.
pub(in crate::cli) fn rating(response: &Value) -> String {
    let votes = &response["feedback"];
    let share = response["rating"].as_f64().map(|share| format!(" ({:.0} % up)", share * 100.0)).unwrap_or_default();
    let sold = counted_noun(response["items_sold"].as_u64().unwrap_or_default(), "unit");
    format!("+{} -{}{share}, {sold} sold", plain_text(&votes["thumbs_up"]), plain_text(&votes["thumbs_down"]))
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
        let votes = |rating: Value| {
            rating_text(&json!({"feedback": {"thumbs_up": 3, "thumbs_down": 1}, "rating": rating, "items_sold": 1}))
        };
        assert_eq!(
            (votes(json!(0.75)).as_str(), votes(Value::Null).as_str()),
            ("+3 -1 (75 % up), 1 unit sold", "+3 -1, 1 unit sold")
        );
    }

    fn rating_text(response: &Value) -> String {
        rating(response)
    }
}
