use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use serde::Serialize;
use serde_json::{Value, json};

use super::show;
use crate::cli::output::sanitize;
use crate::cli::repl::{Commands, Flow, Screen};
use crate::cli::response_fields::serialized_name;
use crate::cli::table::{Align, Column, table_of};
use crate::model::{Cents, Name, duration};
use crate::trade::peer::node::Node;
use crate::trade::peer::{ANYTHING, DealCommand, Item, PeerEvent, Sale, ShipTo, catalogue, index_by_rq};
use crate::trade::wire::DealStatus;

/// Long enough for a search, five negotiations, a reservation and a settlement.
const WAIT_TIMEOUT_DEFAULT: Duration = Duration::from_secs(300);

/// Name, arguments and description.
type Usage = (&'static str, &'static str, &'static str);

const COMMANDS: &[Usage] = &[
    ("sell", "NAME PRICE [MIN_PRICE] [QTY] [DESCRIPTION]", "put an item on sale (or change it); one unit, firm price"),
    ("items", "", "what is on sale"),
    ("load", "FILE", "put a JSON catalogue on sale, all of it or nothing"),
    ("remove", "NAME", "take an item off sale"),
    ("find", "NAME MAX [DESCRIPTION]", "look for something, for at most MAX"),
    ("browse", "[WORD]", "who sells what: the cheapest offer of all, or of what a word finds; nothing is bought"),
    ("buy", "RQ", "buy what was found"),
    ("cancel", "RQ", "step back from a deal, on either side"),
    ("deals", "", "every deal, and how the server sees it"),
    ("orders", "", "what was sold and is to be sent: to whom, and where"),
    ("shipped", "RQ", "it is sent; the address is forgotten"),
    ("wait", "RQ [TIME]", "wait until a deal has ended, or is found and yours to buy"),
    ("login", "", "tell the server that we are (still) here"),
    ("leave", "", "de-register: every open deal ends, the name is free"),
    ("help", "", "this list"),
    ("quit", "", "stop; deals go on at the server"),
    ("exit", "", "the same"),
];

pub(super) struct PeerCommands {
    pub(super) node: Arc<Node>,
    pub(super) screen: Screen,
}

impl Commands for PeerCommands {
    fn run(&self, words: &[String]) -> anyhow::Result<Flow> {
        let (command, arguments) = (words[0].to_lowercase(), &words[1..]);
        let Some((name, usage, _)) = COMMANDS.iter().find(|(name, ..)| *name == command) else {
            bail!("there is no command {:?}; `help` lists them", words[0]);
        };
        let usage_error = || anyhow!("usage: {name} {usage}");
        match (*name, arguments) {
            ("sell", [item, price, rest @ ..]) => self.sell(item, price, rest)?,
            ("items", []) => self.items(),
            ("load", [file]) => self.load(file)?,
            ("remove", [item]) => {
                self.node.remove(item)?;
                self.screen.print_ok("remove", json!({ "name": item }), |_| format!("{item} is off sale"));
            }
            ("find", [item, max, description @ ..]) => self.find(item, max, &description.join(" "))?,
            ("buy", [rq]) => {
                let rq = self.parse_rq(rq)?;
                let price = self.node.buy(rq)?;
                self.screen
                    .print_ok("buy", json!({ "rq": rq, "price": price }), |_| format!("buying [{rq}] for {price}"));
            }
            ("cancel", [rq]) => {
                let rq = self.parse_rq(rq)?;
                self.node.command(rq, DealCommand::Cancel)?;
                self.screen.print_ok("cancel", json!({ "rq": rq }), |_| format!("cancelled [{rq}]"));
            }
            ("browse", words) => self.browse(&words.join(" "))?,
            ("orders", []) => self.orders(),
            ("shipped", [rq]) => {
                let rq = self.parse_rq(rq)?;
                self.node.shipped(rq)?;
                self.screen.print_ok("shipped", json!({ "rq": rq }), |_| format!("shipped [{rq}]"));
            }
            ("deals", []) => self.deals(),
            ("wait", [rq]) => self.wait(rq, WAIT_TIMEOUT_DEFAULT)?,
            ("wait", [rq, time]) => self.wait(rq, duration::parse(time).map_err(|error| anyhow!("TIME: {error}"))?)?,
            ("login", []) => {
                let was_registered = self.node.join()?;
                self.screen.print_ok("login", json!({ "registered": !was_registered }), |_| {
                    if was_registered { "logged in" } else { "registered" }.to_owned()
                });
            }
            ("leave", []) => {
                self.node.leave()?;
                self.screen
                    .print_ok("leave", json!({}), |_| "the server has let us go; `login` registers anew".to_owned());
            }
            ("help", []) => self.help(),
            ("quit" | "exit", []) => return Ok(Flow::Quit),
            _ => return Err(usage_error()),
        }
        Ok(Flow::Continue)
    }

    fn complete(&self, before: &[String]) -> Vec<String> {
        match before {
            [] => COMMANDS.iter().map(|(name, ..)| (*name).to_owned()).collect(),
            [command] if matches!(command.as_str(), "sell" | "remove") => {
                self.node.items().into_iter().map(|(item, _)| item.name).collect()
            }
            [command] if command == "shipped" => self.node.orders().iter().map(|sale| sale.rq.to_string()).collect(),
            [command] if matches!(command.as_str(), "buy" | "cancel" | "wait") => {
                let (purchases, sales) = self.node.deals();
                let mut open: Vec<u64> = purchases.iter().filter(|it| !it.is_over()).map(|it| it.rq).collect();
                if command != "buy" {
                    open.extend(sales.iter().filter(|it| !it.is_over()).map(|it| it.rq));
                }
                open.iter().map(u64::to_string).collect()
            }
            _ => Vec::new(),
        }
    }
}

impl PeerCommands {
    fn sell(&self, name: &str, price: &str, rest: &[String]) -> anyhow::Result<()> {
        let price = parse_amount("PRICE", price).map_err(hint_at_quotes)?;
        let min_price = rest.first().map_or(Ok(price), |text| parse_amount("MIN_PRICE", text))?;
        let quantity = match rest.get(1) {
            Some(text) => text.parse().map_err(|_| anyhow!("QTY: expected a whole number"))?,
            None => 1,
        };
        let description = rest.get(2..).unwrap_or_default().join(" ");
        let item = Item::new(name, price, min_price, quantity, &description).map_err(anyhow::Error::msg)?;
        self.node.stock(vec![item])?;
        let fields = json!({ "name": name, "price": price, "min_price": min_price, "quantity": quantity });
        self.screen
            .print_ok("sell", fields, |_| format!("{quantity} of {name} on sale for {price}, at least {min_price}"));
        Ok(())
    }

    fn items(&self) {
        let fields = |(item, bound): &(Item, u64)| {
            let mut fields = json!(item);
            fields["bound"] = (*bound).into();
            fields
        };
        let columns: [Column<(Item, u64)>; 7] = [
            ("name", Align::Left, |(item, _)| item.name.clone()),
            ("price", Align::Right, |(item, _)| item.price.to_string()),
            ("min price", Align::Right, |(item, _)| item.min_price.to_string()),
            ("qty", Align::Right, |(item, _)| item.quantity.to_string()),
            ("bound", Align::Right, |(_, bound)| bound.to_string()),
            ("sold", Align::Right, |(item, _)| item.sold.to_string()),
            ("description", Align::Left, |(item, _)| item.description.clone()),
        ];
        let empty = "nothing is on sale; `sell` or `load` changes that";
        self.print_list(("items", "items"), &self.node.items(), fields, &columns, empty, None);
    }

    fn load(&self, file: &str) -> anyhow::Result<()> {
        let items = catalogue::read(Path::new(file)).map_err(anyhow::Error::msg)?;
        let count = items.len();
        self.node.stock(items)?;
        self.screen.print_ok("load", json!({ "items": count }), |_| format!("{count} items on sale"));
        Ok(())
    }

    fn find(&self, item_name: &str, max: &str, description: &str) -> anyhow::Result<()> {
        let max = parse_amount("MAX", max).map_err(hint_at_quotes)?;
        let (rq, peers) = self.node.find(item_name, max, description)?;
        self.screen.print_ok("find", json!({ "rq": rq, "peers": peers }), |_| {
            format!("searching [{rq}] {item_name} for at most {max}: {} asked", show::peers_are(peers))
        });
        Ok(())
    }

    fn browse(&self, word: &str) -> anyhow::Result<()> {
        let word = if word.is_empty() { ANYTHING } else { word };
        let (peers, found) = self.node.browse(word, WAIT_TIMEOUT_DEFAULT)?;
        let (price, seller) = found.as_ref().map_or((None, None), |it| (it.price, it.seller.clone()));
        let goods = found.map(|it| it.goods).unwrap_or_default();
        let (item, description) = (goods.item.as_deref(), goods.description.as_deref());
        let fields = json!({
            "peers": peers, "price": price, "seller": seller, "offer_item": item, "offer_description": description,
        });
        self.screen.print_ok("browse", fields, |_| {
            let asked = show::peers_are(peers);
            let Some(price) = price else { return format!("{asked} asked: nobody offers any") };
            let what = sanitize(&show::describe_goods(item, description).unwrap_or_else(|| word.to_owned()));
            let seller = seller.map(|name| format!(" from {name}")).unwrap_or_default();
            format!("{asked} asked; the cheapest for {price}{seller}: {what}")
        });
        Ok(())
    }

    /// What is to be shipped, with the buyers' names and addresses.
    fn orders(&self) {
        let orders = self.node.orders().into_iter().filter_map(|sale| Some((sale.ship_to.clone()?, sale)));
        let fields = |(ShipTo { name, address }, sale): &(ShipTo, Sale)| {
            json!({
                "rq": sale.rq, "item": sale.item, "item_name": sale.item_name, "price": sale.price, "buyer": name,
                "address": address,
            })
        };
        let columns: [Column<(ShipTo, Sale)>; 5] = [
            ("rq", Align::Right, |(_, sale)| sale.rq.to_string()),
            ("item", Align::Left, |(_, sale)| sale.item.clone()),
            ("price", Align::Right, |(_, sale)| sale.price.to_string()),
            ("buyer", Align::Left, |(ship_to, _)| ship_to.name.to_string()),
            ("address", Align::Left, |(ship_to, _)| ship_to.address.clone()),
        ];
        let remark = Some("`shipped RQ` when it is sent.");
        let orders: Vec<_> = orders.collect();
        self.print_list(("orders", "orders"), &orders, fields, &columns, "nothing is to be sent", remark);
    }

    fn wait(&self, rq: &str, at_most: Duration) -> anyhow::Result<()> {
        let rq = self.parse_rq(rq)?;
        let outcome = self.node.wait(rq, at_most)?;
        self.screen.print_ok("wait", json!({ "rq": rq, "outcome": outcome }), |_| {
            // The event itself was printed when it happened.
            sanitize(&match &outcome {
                PeerEvent::Found { price, .. } => format!("found [{rq}] for {price}: `buy {rq}` or `cancel {rq}`"),
                PeerEvent::Bought { price, .. } => format!("done [{rq}]: bought for {price}"),
                PeerEvent::Sold { price, .. } => format!("done [{rq}]: sold for {price}"),
                PeerEvent::Cancelled { reason, .. } => format!("done [{rq}]: no sale, {reason}"),
                _ => format!("done [{rq}]"),
            })
        });
        Ok(())
    }

    /// Our own record of every deal, with the state that the server reports for it.
    fn deals(&self) {
        let status = self.node.status();
        if let Err(error) = &status {
            self.screen.error(&format!("our own record alone: {error}"));
        }
        let status = status.unwrap_or_default();
        let at_server = index_by_rq(&status);
        let (purchases, sales) = self.node.deals();
        let bought = purchases.into_iter().map(|it| {
            let price = it.price.unwrap_or(it.max_price);
            (it.rq, "buyer", it.item_name, serialized_name(&it.state), price, it.seller, it.reason)
        });
        let sold = sales
            .into_iter()
            .map(|it| (it.rq, "seller", it.item_name, serialized_name(&it.state), it.price, None, it.reason));
        let deal = |(rq, side, item_name, state, price, seller, reason)| {
            let server = at_server.get(&rq).copied();
            DealLine { rq, side, item_name, state, price, seller, reason, server }
        };
        let deals: Vec<DealLine<'_>> = bought.chain(sold).map(deal).collect();
        let columns: [Column<DealLine<'_>>; 7] = [
            ("rq", Align::Right, |deal| deal.rq.to_string()),
            ("side", Align::Left, |deal| deal.side.to_owned()),
            ("item", Align::Left, |deal| deal.item_name.to_string()),
            ("price", Align::Right, |deal| deal.price.to_string()),
            ("state", Align::Left, |deal| deal.state.clone()),
            ("server", Align::Left, |deal| deal.server.map(server_state).unwrap_or_default()),
            ("", Align::Left, DealLine::remark),
        ];
        self.print_list(
            ("deals", "deals"),
            &deals,
            |deal| json!(deal),
            &columns,
            "no deals yet; `find` begins one",
            None,
        );
    }

    fn help(&self) {
        let fields = |(name, arguments, does): &Usage| json!({ "name": name, "arguments": arguments, "does": does });
        let columns: [Column<Usage>; 2] = [
            ("command", Align::Left, |(name, arguments, _)| format!("{name} {arguments}")),
            ("", Align::Left, |(.., does)| (*does).to_owned()),
        ];
        let remark = Some("RQ is the number in brackets; `last` is that of your newest search.");
        self.print_list(("help", "commands"), COMMANDS, fields, &columns, "", remark);
    }

    /// Prints a list with `--json` under `key`, else as a table with a remark.
    fn print_list<T>(
        &self,
        (command, key): (&str, &str),
        items: &[T],
        fields: impl Fn(&T) -> Value,
        columns: &[Column<T>],
        empty: &str,
        remark: Option<&str>,
    ) {
        let list: Vec<Value> = items.iter().map(fields).collect();
        self.screen.print_ok(command, json!({ key: list }), |_| match (items.is_empty(), remark) {
            (true, _) => empty.to_owned(),
            (false, None) => table_of(columns, items),
            (false, Some(remark)) => format!("{}\n{remark}", table_of(columns, items)),
        });
    }

    fn parse_rq(&self, text: &str) -> anyhow::Result<u64> {
        if text == "last" {
            return self.node.newest_search().context("RQ: there was no search yet");
        }
        text.trim_matches(['[', ']']).parse().map_err(|_| anyhow!("RQ: expected the number of a deal, or `last`"))
    }
}

fn hint_at_quotes(error: anyhow::Error) -> anyhow::Error {
    anyhow!("{error} (a NAME of several words stands in quotes)")
}

/// A deal as our own record and the server have it.
#[derive(Serialize)]
struct DealLine<'a> {
    rq: u64,
    side: &'static str,
    item_name: Arc<str>,
    state: String,
    price: Cents,
    seller: Option<Name>,
    reason: Option<Arc<str>>,
    server: Option<&'a DealStatus>,
}

impl DealLine<'_> {
    fn remark(&self) -> String {
        let seller = self.seller.as_ref().map(|name| format!("from {name}"));
        seller.or(self.reason.as_ref().map(|reason| reason.to_string())).unwrap_or_default()
    }
}

/// And how long it may stay so.
fn server_state(deal: &DealStatus) -> String {
    let left = deal.ends_in_ms.map(|ms| format!(", {} s left", ms.div_ceil(1000)));
    format!("{}{}", serialized_name(&deal.state), left.unwrap_or_default())
}

fn parse_amount(what: &str, text: &str) -> anyhow::Result<Cents> {
    Cents::parse_price(text).map_err(|error| anyhow!("{what}: {error}"))
}
