//! What a person is told.

use crate::cli::repl::{Screen, Style, clean};
use crate::model::Name;
use crate::trade::peer::Note;

/// Prints what happened.
pub(super) fn note(screen: &Screen, note: &Note) {
    if screen.is_json() {
        return screen.print_json(note);
    }
    let seller = |seller: &Option<Name>| seller.as_ref().map(|name| format!(" from {name}")).unwrap_or_default();
    let mut goods = None;
    let (style, text) = match note {
        Note::Searching { rq, item_name, peers } => {
            (None, format!("searching [{rq}] {item_name}: {} asked", self::peers(*peers)))
        }
        Note::Found { rq, item_name, price, seller: from, offer_item, offer_description } => {
            goods = self::goods(offer_item.as_deref(), offer_description.as_deref());
            (
                Some(Style::Good),
                format!("found [{rq}] {item_name} for {price}{}; `buy {rq}` or `cancel {rq}`", seller(from)),
            )
        }
        Note::NotFound { rq, item_name, max_price } => {
            (Some(Style::Bad), format!("not found [{rq}] {item_name}: every offer is above {max_price}"))
        }
        Note::NotAvailable { rq, item_name } => {
            (Some(Style::Bad), format!("not available [{rq}] {item_name}: nobody has it"))
        }
        Note::Buying { rq, item_name, price } => (None, format!("buying [{rq}] {item_name} for {price}")),
        Note::Bought { rq, item_name, price, seller: from } => {
            (Some(Style::Good), format!("bought [{rq}] {item_name} for {price}{}", seller(from)))
        }
        Note::Offered { rq, item_name, item, price } => {
            (Some(Style::Dim), format!("offered [{rq}] {item} for {price} to someone who looks for {item_name}"))
        }
        Note::Accepted { rq, item_name, max_price } => {
            (None, format!("accepted [{rq}] {item_name}: the buyer pays {max_price}"))
        }
        Note::Declined { rq, item_name, max_price } => {
            (Some(Style::Dim), format!("declined [{rq}] {item_name}: the buyer would pay {max_price}"))
        }
        Note::Reserved { rq, item_name, price } => (None, format!("reserved [{rq}] {item_name} for {price}")),
        Note::Released { rq, item_name } => {
            (Some(Style::Dim), format!("released [{rq}] {item_name}: another offer was taken"))
        }
        Note::Shipping { rq, item_name, price } => {
            (None, format!("shipping [{rq}] {item_name} for {price}, as soon as it is paid"))
        }
        Note::Sold { rq, item_name, price, payout } => {
            let payout = payout.map(|payout| format!(" ({} for you)", payout.0)).unwrap_or_default();
            (Some(Style::Good), format!("sold [{rq}] {item_name} for {price}{payout}: the goods are on their way"))
        }
        Note::Cancelled { rq, item_name, reason, .. } => {
            (Some(Style::Bad), format!("cancelled [{rq}] {item_name}: {reason}"))
        }
        Note::Silent { server, cause } => (
            Some(Style::Bad),
            format!(
                "the server at {server} does not answer yet ({cause}); it is asked again. Is `p2s2 server` running there?"
            ),
        ),
        Note::Trouble { rq, reason } => {
            let about = rq.map(|rq| format!("[{rq}] ")).unwrap_or_default();
            return screen.error(&format!("{about}{reason}"));
        }
    };
    let mut text = clean(&text);
    if let Some(style) = style {
        text = screen.paint(style, &text);
    }
    if let Some(goods) = goods {
        // One print: nothing else comes between the two lines.
        text = format!("{text}\n  {}", clean(&goods));
    }
    screen.print(&text);
}

/// What a seller really offers, in its own words.
pub(super) fn goods(item: Option<&str>, description: Option<&str>) -> Option<String> {
    match (item, description.filter(|text| !text.is_empty())) {
        (Some(item), Some(description)) => Some(format!("{item}: {description}")),
        (Some(text), None) | (None, Some(text)) => Some(text.to_owned()),
        (None, None) => None,
    }
}

/// `1 peer is`, `2 peers are`.
pub(super) fn peers(count: u64) -> String {
    if count == 1 { "1 peer is".to_owned() } else { format!("{count} peers are") }
}
