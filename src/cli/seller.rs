//! `p2s2 seller`: the shop client for sellers (list items, see orders, ship).

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::progress_bar::progress_bar;
use super::response_fields::{counted_noun, plain_text};
use super::shop_client::{self, AccountCommand, RoleCommands, ShopClientArgs, ShopPageArgs, ShopSession, show};
use crate::model::{Cents, text};
use crate::shop::apis::ServerKind;
use crate::shop::wire;

/// Sell in the shop: at a prompt, from a pipe, or one command at a time
#[derive(Debug, Args)]
#[command(
    subcommand_value_name = "COMMAND",
    disable_help_subcommand = true,
    mut_arg("server", |arg| arg.help("The sellers' server, 127.0.0.1:8001 without it; HOST PORT as two words will do as well; auto: look for servers that announce themselves, and ask which")),
    mut_arg("user", |arg| arg.env("P2S2_SELLER_USER")),
    mut_arg("tls", |arg| arg.env("P2S2_SELLER_TLS")),
    mut_arg("server_cert", |arg| arg.env("P2S2_SELLER_SERVER_CERT")),
    mut_arg("json", |arg| arg.env("P2S2_SELLER_JSON")),
    after_help = "\
Examples:
  p2s2 seller --user alice                      at a prompt; `help` lists the commands
  p2s2 seller shop.example.org 8001
  p2s2 seller --server auto                     the shop that announces itself on this network
  p2s2 seller create-account alice --name \"Alice's Attic\"
  p2s2 seller login alice                       the session is kept for the calls that follow
  p2s2 seller sell \"Brass Lamp\" 3 10.50 5 --keywords lamp,brass --used
  p2s2 seller load data/samples/shop.json
  p2s2 seller orders
  printf 'login alice\\nitems\\n' | P2S2_PASSWORD=… p2s2 seller --json

Sessions of single commands are kept in ~/.config/p2s2 (or $XDG_CONFIG_HOME/p2s2), readable by you alone."
)]
pub struct SellerArgs {
    #[command(flatten)]
    common: ShopClientArgs,
    #[command(subcommand)]
    command: Option<SellerCommand>,
}

#[derive(Debug, Subcommand)]
enum SellerCommand {
    #[command(flatten)]
    Account(AccountCommand),
    /// Put an item on sale
    #[command(after_help = "Example:\n  sell \"Brass Lamp\" 3 10.50 5 --keywords lamp,brass --used")]
    Sell {
        /// 1 to 32 characters
        #[arg(value_name = "NAME")]
        name: String,
        /// A number from 0 on
        #[arg(value_name = "CATEGORY", allow_negative_numbers = true)]
        category: u32,
        /// Of one unit
        #[arg(value_name = "PRICE", allow_hyphen_values = true, value_parser = Cents::parse_price)]
        price: Cents,
        /// How many there are
        #[arg(value_name = "QTY", allow_negative_numbers = true)]
        quantity: u32,
        /// Up to five of up to eight characters, with commas between
        #[arg(long, value_name = "WORD,…", value_delimiter = ',')]
        keywords: Vec<String>,
        /// It was somebody's before; new without it
        #[arg(long)]
        used: bool,
    },
    /// Put a JSON list of items on sale
    #[command(after_help = "\
Example:
  load data/samples/shop.json

Each item has item_name, category, keywords, condition, price, quantity. All are looked at before the
first is listed.")]
    Load {
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
    /// Change an item's price
    Price {
        #[arg(value_name = "ITEM")]
        item: String,
        #[arg(value_name = "PRICE", allow_hyphen_values = true, value_parser = Cents::parse_price)]
        price: Cents,
    },
    /// Add units to an item, or take some away
    #[command(after_help = "Examples:\n  units 3-17 10\n  units 3-17 -2")]
    Units {
        #[arg(value_name = "ITEM")]
        item: String,
        /// How many more, or (with a minus) fewer
        #[arg(value_name = "CHANGE", allow_hyphen_values = true)]
        change: i64,
    },
    /// Show what you have on sale, the oldest first
    Items {
        #[command(flatten)]
        page: ShopPageArgs,
    },
    /// Show one item of yours
    Item {
        #[arg(value_name = "ITEM")]
        item: String,
    },
    /// Show what was bought from you, the newest first
    Orders {
        #[command(flatten)]
        page: ShopPageArgs,
    },
    /// Tell a buyer that an item of a purchase is on its way
    Ship {
        #[arg(value_name = "PURCHASE")]
        purchase: String,
        #[arg(value_name = "ITEM")]
        item: String,
    },
    /// Show your votes and sales
    Rating,
}

/// The exit code is 0 on success and 1 if a one-shot command failed.
pub fn run(args: SellerArgs) -> anyhow::Result<ExitCode> {
    shop_client::run(args.common, args.command)
}

impl RoleCommands for SellerCommand {
    const ROLE: &'static str = "seller";
    const SERVER: &'static str = "127.0.0.1:8001";

    fn account(&self) -> Option<&AccountCommand> {
        if let SellerCommand::Account(command) = self { Some(command) } else { None }
    }

    fn run(self, session: &ShopSession) -> anyhow::Result<()> {
        match self {
            SellerCommand::Account(_) => Ok(()),
            SellerCommand::Sell { name, category, price, quantity, keywords, used } => {
                let condition = if used { "Used" } else { "New" };
                let payload = json!({
                    "item_name": name, "category": category, "keywords": keywords, "condition": condition,
                    "price": price, "quantity": quantity,
                });
                session.run("sell", "RegisterItemForSale", payload, |response| {
                    format!("on sale as {}: {quantity} of {name} for {price}", plain_text(&response["item_id"]))
                })
            }
            SellerCommand::Load { file } => load(session, &file),
            SellerCommand::Price { item, price } => {
                let payload = json!({"item_id": item, "price": price});
                session.run("price", "ChangeItemPrice", payload, |_| format!("{item} is {price} now"))
            }
            SellerCommand::Units { item, change } => {
                let payload = json!({"item_id": item, "quantity": change});
                let text = |now: &Value| format!("{} of {item} now", now["quantity"]);
                session.run("units", "UpdateUnitsForSale", payload, text)
            }
            SellerCommand::Items { page } => session.run("items", "DisplayItemsForSale", page.payload(), |list| {
                show::page(list, |_| "nothing is on sale; `sell` or `load` changes that".to_owned())
            }),
            SellerCommand::Item { item } => session.run_item(item),
            SellerCommand::Orders { page } => {
                session.run("orders", "GetSellerOrders", page.payload(), |list| show::orders(&list["items"]))
            }
            SellerCommand::Ship { purchase, item } => {
                let payload = json!({"purchase_id": purchase, "item_id": item});
                session.run("ship", "MarkShipped", payload, |_| format!("shipped {item} of {purchase}"))
            }
            SellerCommand::Rating => session.run("rating", "GetSellerRating", json!({}), show::rating),
        }
    }
}

/// All items of a file, or none if one of them is invalid.
fn load(session: &ShopSession, file: &Path) -> anyhow::Result<()> {
    let items = catalogue(file)?;
    let total = items.len();
    let bar = progress_bar();
    bar.set_length(total as u64);
    for (done, item) in items.into_iter().enumerate() {
        let name = plain_text(&item["item_name"]);
        let listed = session.call("RegisterItemForSale", item);
        if listed.is_err() {
            bar.finish_and_clear();
        }
        listed.with_context(|| format!("{done} of {total} items are on sale; {name:?} is not"))?;
        bar.inc(1);
    }
    bar.finish_and_clear();
    session
        .screen
        .print_ok("load", json!({ "items": total }), |_| format!("{} on sale", counted_noun(total as u64, "item")));
    Ok(())
}

/// Validated by the server's own rules.
fn catalogue(file: &Path) -> anyhow::Result<Vec<Value>> {
    let shown = file.display();
    let bytes = std::fs::read(file).with_context(|| format!("{shown}"))?;
    let items: Vec<Value> = serde_json::from_slice(text::without_bom(&bytes))
        .map_err(|error| anyhow::anyhow!("{shown}: expected a JSON list of items: {error}"))?;
    for (nth, item) in (1..).zip(&items) {
        let request = json!({"type": "request", "api": "RegisterItemForSale", "session_id": "none", "payload": item});
        if let Err(wire::InvalidRequest { refusal, .. }) =
            wire::parse_request(ServerKind::Seller, request.to_string().as_bytes())
        {
            bail!("{shown}, item {nth}: {}", refusal.message);
        }
    }
    Ok(items)
}
