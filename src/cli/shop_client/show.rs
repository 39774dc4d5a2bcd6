//! Formats the shop's responses for people.

use serde_json::Value;

use crate::cli::response_fields::{counted_noun, items, listing, plain_text, time};
use crate::cli::table::{Align, Column, table_of};
use crate::model::{Cents, Total};

/// Totals may exceed the largest price.
pub(in crate::cli) fn money(amount: &Value) -> String {
    if let Some(whole) = amount.as_i64() {
        return Total(i128::from(whole) * 100).to_string();
    }
    // Amounts with cents were parsed as floats, which are exact below 2^53 cents.
    amount.as_f64().map(|amount| Cents((amount * 100.0).round() as i64).to_string()).unwrap_or_default()
}

const PURCHASE: Column<Value> = ("purchase", Align::Left, |line| plain_text(&line["purchase_id"]));
const ITEM: Column<Value> = ("item", Align::Left, |line| plain_text(&line["item_id"]));
const QUANTITY: Column<Value> = ("qty", Align::Right, |line| plain_text(&line["quantity"]));
const PRICE: Column<Value> = ("price", Align::Right, |line| money(&line["price"]));
const BOUGHT: Column<Value> = ("bought", Align::Left, |line| time(&line["purchased_at"]));
const SHIPPED: Column<Value> = ("shipped", Align::Left, |line| time(&line["shipped_at"]));

pub(in crate::cli) fn item_table(list: &[Value]) -> String {
    const COLUMNS: [Column<Value>; 8] = [
        ITEM,
        ("name", Align::Left, |item| plain_text(&item["item_name"])),
        PRICE,
        QUANTITY,
        ("condition", Align::Left, |item| if item["condition_is_new"] == true { "new" } else { "used" }.to_owned()),
        ("votes", Align::Left, |item| votes(&item["feedback"])),
        ("seller", Align::Left, |item| format!("{} ({})", plain_text(&item["seller"]), plain_text(&item["seller_id"]))),
        ("keywords", Align::Left, |item| {
            let keywords = items(&item["keywords"]).iter().filter_map(Value::as_str);
            keywords.collect::<Vec<_>>().join(" ")
        }),
    ];
    table_of(&COLUMNS, list)
}

fn votes(feedback: &Value) -> String {
    format!("+{} -{}", plain_text(&feedback["thumbs_up"]), plain_text(&feedback["thumbs_down"]))
}

/// And how many there are in all; `none` for an empty page.
pub(in crate::cli) fn page(response: &Value, none: impl FnOnce(&Value) -> String) -> String {
    match &response["items"] {
        Value::Array(items) if items.is_empty() => none(response),
        list => format!("{}\n{}", item_table(items(list)), total_text(response)),
    }
}

/// `57 items`, `10000 items or more, 2 of them here`.
pub(in crate::cli) fn total_text(response: &Value) -> String {
    let shown = items(&response["items"]).len();
    let Some(total) = response["total"].as_u64() else { return counted_noun(shown as u64, "item") };
    let more = if response["total_is_at_least"] == true { " or more" } else { "" };
    let shown = if shown as u64 == total { String::new() } else { format!(", {shown} of them here") };
    format!("{}{more}{shown}", counted_noun(total, "item"))
}

pub(in crate::cli) fn cart(list: &Value) -> String {
    listing(items(list), &[ITEM, QUANTITY], "the cart is empty")
}

pub(in crate::cli) fn new_purchase(response: &Value) -> String {
    let lines = table_of(&[ITEM, QUANTITY, PRICE], items(&response["items"]));
    format!("bought for {}: purchase {}\n{lines}", money(&response["total"]), plain_text(&response["purchase_id"]))
}

pub(in crate::cli) fn purchases(list: &Value) -> String {
    listing(items(list), &[PURCHASE, ITEM, QUANTITY, PRICE, BOUGHT, SHIPPED], "nothing was bought yet")
}

/// Shipped or not.
pub(in crate::cli) fn orders(list: &Value) -> String {
    let payout: Column<Value> = ("payout", Align::Right, |line| money(&line["payout"]));
    let buyer: Column<Value> = ("buyer", Align::Left, |line| plain_text(&line["buyer_name"]));
    let address: Column<Value> = ("address", Align::Left, |line| plain_text(&line["address"]));
    let columns = [PURCHASE, ITEM, QUANTITY, PRICE, payout, buyer, BOUGHT, SHIPPED, address];
    listing(items(list), &columns, "nothing was sold yet")
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
