//! Formats peer events for people.

use crate::cli::output::sanitize;
use crate::cli::repl::{Screen, Style};
use crate::model::Name;
use crate::trade::peer::PeerEvent;

pub(super) fn print_event(screen: &Screen, event: &PeerEvent) {
    if screen.is_json() {
        return screen.print_json(event);
    }
    let seller = |seller: &Option<Name>| seller.as_ref().map(|name| format!(" from {name}")).unwrap_or_default();
    let mut goods = None;
    let (style, text) = match event {
        PeerEvent::Searching { rq, item_name, peers } => {
            (None, format!("searching [{rq}] {item_name}: {} asked", self::peers_are(*peers)))
        }
        PeerEvent::Found { rq, item_name, price, seller: from, offer_item, offer_description } => {
            goods = describe_goods(offer_item.as_deref(), offer_description.as_deref());
            (
                Some(Style::Good),
                format!("found [{rq}] {item_name} for {price}{}; `buy {rq}` or `cancel {rq}`", seller(from)),
            )
        }
        PeerEvent::NotFound { rq, item_name, max_price } => {
            (Some(Style::Bad), format!("not found [{rq}] {item_name}: every offer is above {max_price}"))
        }
        PeerEvent::NotAvailable { rq, item_name } => {
            (Some(Style::Bad), format!("not available [{rq}] {item_name}: nobody has it"))
        }
        PeerEvent::Buying { rq, item_name, price } => (None, format!("buying [{rq}] {item_name} for {price}")),
        PeerEvent::Bought { rq, item_name, price, seller: from } => {
            (Some(Style::Good), format!("bought [{rq}] {item_name} for {price}{}", seller(from)))
        }
        PeerEvent::Offered { rq, item_name, item, price } => {
            (Some(Style::Dim), format!("offered [{rq}] {item} for {price} to someone who looks for {item_name}"))
        }
        PeerEvent::Accepted { rq, item_name, max_price } => {
            (None, format!("accepted [{rq}] {item_name}: the buyer pays {max_price}"))
        }
        PeerEvent::Declined { rq, item_name, max_price } => {
            (Some(Style::Dim), format!("declined [{rq}] {item_name}: the buyer would pay {max_price}"))
        }
        PeerEvent::Reserved { rq, item_name, price } => (None, format!("reserved [{rq}] {item_name} for {price}")),
        PeerEvent::Released { rq, item_name } => {
            (Some(Style::Dim), format!("released [{rq}] {item_name}: another offer was taken"))
        }
        PeerEvent::Shipping { rq, item_name, price } => {
            (None, format!("shipping [{rq}] {item_name} for {price}, as soon as it is paid"))
        }
        PeerEvent::Sold { rq, item_name, price, payout } => {
            let payout = payout.map(|payout| format!(" ({} for you)", payout.0)).unwrap_or_default();
            (Some(Style::Good), format!("sold [{rq}] {item_name} for {price}{payout}: the goods are on their way"))
        }
        PeerEvent::Cancelled { rq, item_name, reason, .. } => {
            (Some(Style::Bad), format!("cancelled [{rq}] {item_name}: {reason}"))
        }
        PeerEvent::Silent { server, cause } => (
            Some(Style::Bad),
            format!(
                "the server at {server} does not answer yet ({cause}); it is asked again. Is `p2s2 server` running there?"
            ),
        ),
        PeerEvent::Trouble { rq, reason } => {
            let about = rq.map(|rq| format!("[{rq}] ")).unwrap_or_default();
            return screen.error(&format!("{about}{reason}"));
        }
    };
    let mut text = sanitize(&text);
    if let Some(style) = style {
        text = screen.paint(style, &text);
    }
    if let Some(goods) = goods {
        // They are printed at once, so that nothing comes between the two lines.
        text = format!("{text}\n  {}", sanitize(&goods));
    }
    screen.print(&text);
}

/// What the seller offers, in the seller's own words.
pub(super) fn describe_goods(item: Option<&str>, description: Option<&str>) -> Option<String> {
    match (item, description.filter(|text| !text.is_empty())) {
        (Some(item), Some(description)) => Some(format!("{item}: {description}")),
        (Some(text), None) | (None, Some(text)) => Some(text.to_owned()),
        (None, None) => None,
    }
}

/// `1 peer is`, `2 peers are`.
pub(super) fn peers_are(count: u64) -> String {
    if count == 1 { "1 peer is".to_owned() } else { format!("{count} peers are") }
}
