use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use serde::Serialize;
use serde_json::{Value, json};

use super::show;
use crate::cli::output::sanitize;
use crate::cli::repl::{Commands, Flow, Screen};
use crate::cli::table::{Align, table};
use crate::model::{Cents, duration};
use crate::trade::peer::node::Node;
use crate::trade::peer::{ANYTHING, DealCommand, Item, PeerEvent, ShipTo, catalogue, index_by_rq};

/// Long enough for a search, five negotiations, a reservation and a settlement.
const WAIT_TIMEOUT_DEFAULT: Duration = Duration::from_secs(300);

/// Name, arguments and description.
const COMMANDS: &[(&str, &str, &str)] = &[
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
                self.print_result("remove", json!({ "name": item }), || format!("{item} is off sale"));
            }
            ("find", [item, max, description @ ..]) => self.find(item, max, &description.join(" "))?,
            ("buy", [rq]) => {
                let rq = self.parse_rq(rq)?;
                let price = self.node.buy(rq)?;
                self.print_result("buy", json!({ "rq": rq, "price": price }), || format!("buying [{rq}] for {price}"));
            }
            ("cancel", [rq]) => {
                let rq = self.parse_rq(rq)?;
                self.node.command(rq, DealCommand::Cancel)?;
                self.print_result("cancel", json!({ "rq": rq }), || format!("cancelled [{rq}]"));
            }
            ("browse", words) => self.browse(&words.join(" "))?,
            ("orders", []) => self.orders(),
            ("shipped", [rq]) => {
                let rq = self.parse_rq(rq)?;
                self.node.shipped(rq)?;
                self.print_result("shipped", json!({ "rq": rq }), || format!("shipped [{rq}]"));
            }
            ("deals", []) => self.deals(),
            ("wait", [rq]) => self.wait(rq, WAIT_TIMEOUT_DEFAULT)?,
            ("wait", [rq, time]) => self.wait(rq, duration::parse(time).map_err(|error| anyhow!("TIME: {error}"))?)?,
            ("login", []) => {
                let was_registered = self.node.join()?;
                self.print_result("login", json!({ "registered": !was_registered }), || {
                    if was_registered { "logged in" } else { "registered" }.to_owned()
                });
            }
            ("leave", []) => {
                self.node.leave()?;
                self.print_result("leave", json!({}), || "the server has let us go; `login` registers anew".to_owned());
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
    /// Prints the fields with `--json`, else a sentence.
    fn print_result(&self, command: &str, mut fields: Value, text: impl FnOnce() -> String) {
        if self.screen.is_json() {
            fields["ok"] = command.into();
            self.screen.print_json(&fields);
        } else {
            self.screen.print(&sanitize(&text()));
        }
    }

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
        self.print_result("sell", fields, || format!("{quantity} of {name} on sale for {price}, at least {min_price}"));
        Ok(())
    }

    fn items(&self) {
        let rows = self.node.items().into_iter().map(|(item, bound)| {
            let Item { name, price, min_price, quantity, description, sold } = item;
            let fields = json!({
                "name": name, "price": price, "min_price": min_price, "sold": sold, "quantity": quantity,
                "bound": bound, "description": description,
            });
            let [quantity, bound, sold] = [quantity, bound, sold].map(|number| number.to_string());
            (fields, vec![name, price.to_string(), min_price.to_string(), quantity, bound, sold, description])
        });
        let columns = [
            ("name", Align::Left),
            ("price", Align::Right),
            ("min price", Align::Right),
            ("qty", Align::Right),
            ("bound", Align::Right),
            ("sold", Align::Right),
            ("description", Align::Left),
        ];
        self.print_list(("items", "items"), &columns, rows, "nothing is on sale; `sell` or `load` changes that", None);
    }

    fn load(&self, file: &str) -> anyhow::Result<()> {
        let items = catalogue::read(Path::new(file)).map_err(anyhow::Error::msg)?;
        let count = items.len();
        self.node.stock(items)?;
        self.print_result("load", json!({ "items": count }), || format!("{count} items on sale"));
        Ok(())
    }

    fn find(&self, item_name: &str, max: &str, description: &str) -> anyhow::Result<()> {
        let max = parse_amount("MAX", max).map_err(hint_at_quotes)?;
        let (rq, peers) = self.node.find(item_name, max, description)?;
        self.print_result("find", json!({ "rq": rq, "peers": peers }), || {
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
        self.print_result("browse", fields, || {
            let asked = show::peers_are(peers);
            let Some(price) = price else { return format!("{asked} asked: nobody offers any") };
            let what = show::describe_goods(item, description).unwrap_or_else(|| word.to_owned());
            let seller = seller.map(|name| format!(" from {name}")).unwrap_or_default();
            format!("{asked} asked; the cheapest for {price}{seller}: {what}")
        });
        Ok(())
    }

    /// What is to be shipped, with the buyers' names and addresses.
    fn orders(&self) {
        let rows = self.node.orders().into_iter().filter_map(|sale| {
            let ShipTo { name, address } = sale.ship_to?;
            let fields = json!({
                "rq": sale.rq, "item": sale.item, "item_name": sale.item_name, "price": sale.price, "buyer": name,
                "address": address,
            });
            Some((fields, vec![sale.rq.to_string(), sale.item, sale.price.to_string(), name.to_string(), address]))
        });
        let columns = [
            ("rq", Align::Right),
            ("item", Align::Left),
            ("price", Align::Right),
            ("buyer", Align::Left),
            ("address", Align::Left),
        ];
        let remark = Some("`shipped RQ` when it is sent.");
        self.print_list(("orders", "orders"), &columns, rows, "nothing is to be sent", remark);
    }

    fn wait(&self, rq: &str, at_most: Duration) -> anyhow::Result<()> {
        let rq = self.parse_rq(rq)?;
        let outcome = self.node.wait(rq, at_most)?;
        if self.screen.is_json() {
            self.screen.print_json(&json!({ "ok": "wait", "rq": rq, "outcome": outcome }));
        } else {
            // The event itself was printed when it happened.
            let text = match outcome {
                PeerEvent::Found { price, .. } => format!("found [{rq}] for {price}: `buy {rq}` or `cancel {rq}`"),
                PeerEvent::Bought { price, .. } => format!("done [{rq}]: bought for {price}"),
                PeerEvent::Sold { price, .. } => format!("done [{rq}]: sold for {price}"),
                PeerEvent::Cancelled { reason, .. } => format!("done [{rq}]: no sale, {reason}"),
                _ => format!("done [{rq}]"),
            };
            self.screen.print(&sanitize(&text));
        }
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
        let bought = purchases.iter().map(|it| {
            let price = it.price.unwrap_or(it.max_price);
            (it.rq, "buyer", &it.item_name, serialized_name(&it.state), price, it.seller.clone(), &it.reason)
        });
        let sold = sales
            .iter()
            .map(|it| (it.rq, "seller", &it.item_name, serialized_name(&it.state), it.price, None, &it.reason));
        let rows = bought.chain(sold).map(|(rq, side, item_name, state, price, seller, reason)| {
            let at_server = at_server.get(&rq);
            let fields = json!({
                "rq": rq, "side": side, "item_name": item_name, "state": state, "price": price, "seller": seller,
                "reason": reason, "server": at_server,
            });
            let server = at_server.map(|deal| {
                let left = deal.ends_in_ms.map(|ms| format!(", {} s left", ms.div_ceil(1000)));
                format!("{}{}", serialized_name(&deal.state), left.unwrap_or_default())
            });
            let remark = seller.map(|name| format!("from {name}")).or(reason.as_ref().map(|it| it.to_string()));
            let (rq, price) = (rq.to_string(), price.to_string());
            let (side, item_name) = (side.to_owned(), item_name.to_string());
            let cells = vec![rq, side, item_name, price, state, server.unwrap_or_default(), remark.unwrap_or_default()];
            (fields, cells)
        });
        let columns = [
            ("rq", Align::Right),
            ("side", Align::Left),
            ("item", Align::Left),
            ("price", Align::Right),
            ("state", Align::Left),
            ("server", Align::Left),
            ("", Align::Left),
        ];
        self.print_list(("deals", "deals"), &columns, rows, "no deals yet; `find` begins one", None);
    }

    fn help(&self) {
        let rows = COMMANDS.iter().map(|(name, arguments, does)| {
            let fields = json!({ "name": name, "arguments": arguments, "does": does });
            (fields, vec![format!("{name} {arguments}"), (*does).to_owned()])
        });
        let remark = Some("RQ is the number in brackets; `last` is that of your newest search.");
        self.print_list(("help", "commands"), &[("command", Align::Left), ("", Align::Left)], rows, "", remark);
    }

    /// Prints a list with `--json` under `key`, else as a table with a remark.
    fn print_list(
        &self,
        (command, key): (&str, &str),
        columns: &[(&str, Align)],
        rows: impl Iterator<Item = (Value, Vec<String>)>,
        empty: &str,
        remark: Option<&str>,
    ) {
        let (fields, rows): (Vec<Value>, Vec<Vec<String>>) = rows.unzip();
        if self.screen.is_json() {
            self.screen.print_json(&json!({ "ok": command, key: fields }));
        } else if rows.is_empty() {
            self.screen.print(empty);
        } else {
            self.screen.print(&table(columns, &rows));
            remark.into_iter().for_each(|remark| self.screen.print(remark));
        }
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

/// The name under which a state is serialized.
fn serialized_name(state: &impl Serialize) -> String {
    match serde_json::to_value(state) {
        Ok(Value::String(word)) => word,
        _ => String::new(),
    }
}

fn parse_amount(what: &str, text: &str) -> anyhow::Result<Cents> {
    Cents::parse_price(text).map_err(|error| anyhow!("{what}: {error}"))
}
