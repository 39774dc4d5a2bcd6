//! A peer registers, searches for an item as a buyer, and leaves: it waits until it hears that something was found or
//! that nothing is for sale.
//!
//! With `make run-server` running, and perhaps a seller (`p2s2 peer`): `cargo run --example trade` (or with the address
//! of the server's trade port).

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use crossbeam_channel::Sender;
use p2s2::clients::trade::{Client, ClientConfig, ClientHandler, ShippingOrder};
use p2s2::values::{Cents, Name, Token};
use p2s2::wires::trade::{Amount, InformResponse, Notification, RequestBody, Response};

/// Passes notifications on. A buyer that only searches has no settlements.
struct Passing(Sender<Notification>);

impl ClientHandler for Passing {
    fn notification(&self, notification: Notification) {
        // Must not block: what does not fit is sent again by the server, because it is not acknowledged.
        let _ = self.0.try_send(notification);
    }

    fn inform(&self, _: u64, _: &str, _: Cents, _: Instant) -> Result<InformResponse, String> {
        Err("this peer buys nothing".to_owned())
    }

    fn ship(&self, _: &ShippingOrder) -> Result<(), String> {
        Err("this peer sells nothing".to_owned())
    }

    fn settled(&self, _: u64, _: Amount) {}

    fn receipt(&self, _: u64, _: Arc<str>, _: Cents, _: Name) {}

    fn cancelled(&self, _: u64, _: Arc<str>) {}

    fn interrupted(&self, _: u64, _: &str) {}

    fn rejected(&self, _: &str) {}
}

fn main() -> anyhow::Result<()> {
    let server = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:7001".to_owned());
    let server: SocketAddr = server.parse().map_err(|_| anyhow::anyhow!("expected IP:PORT, not {server}"))?;
    // A name that nobody has yet, so that the example can be run again.
    let name = Name::new(&format!("example-{}", &Token::random().reveal()[..8])).map_err(anyhow::Error::msg)?;
    let (sender, notifications) = crossbeam_channel::bounded(100);
    let client = Client::open(ClientConfig::new(name, server), Arc::new(Passing(sender)))?;
    match client.call(1, RequestBody::Register { endpoint: client.endpoint() })? {
        Response::Registered { token, .. } => client.set_token(Some(token)),
        refused => anyhow::bail!("not registered: {refused:?}"),
    }
    let wanted = RequestBody::LookingFor {
        item_name: "desk lamp".into(),
        description: "any colour".into(),
        max_price: Cents(2_500),
    };
    println!("searching: {:?}", client.call(2, wanted)?);
    for notification in notifications {
        client.ack(notification.mid());
        match notification {
            Notification::Found { item_name, price, seller, .. } => println!("{seller} sells {item_name} for {price}"),
            Notification::NotFound { item_name, .. } => println!("{item_name}: all are dearer"),
            Notification::NotAvailable { item_name, .. } => println!("{item_name}: nobody sells one"),
            _ => continue,
        }
        break;
    }
    println!("leaving: {:?}", client.call(3, RequestBody::DeRegister)?);
    Ok(())
}
