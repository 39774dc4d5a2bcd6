//! `p2s2 buyer`: the shop client for buyers (search, cart, purchase).

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::{Args, Subcommand, ValueEnum};
use serde_json::{Value, json};

use super::prompt;
use super::shop_client::{self, AccountCommand, RoleCommands, ShopClientArgs, ShopPageArgs, ShopSession, show};
use crate::model::{CardNumber, Expiry};
use crate::trade::peer::wallet::{self, Wallet};

/// Buy in the shop: at a prompt, from a pipe, or one command at a time
#[derive(Debug, Args)]
#[command(
    subcommand_value_name = "COMMAND",
    disable_help_subcommand = true,
    mut_arg("server", |arg| arg.help("The buyers' server, 127.0.0.1:8002 without it; HOST PORT as two words will do as well; auto: look for servers that announce themselves, and ask which")),
    mut_arg("user", |arg| arg.env("P2S2_BUYER_USER")),
    mut_arg("tls", |arg| arg.env("P2S2_BUYER_TLS")),
    mut_arg("server_cert", |arg| arg.env("P2S2_BUYER_SERVER_CERT")),
    mut_arg("json", |arg| arg.env("P2S2_BUYER_JSON")),
    after_help = "\
Examples:
  p2s2 buyer --user bob                         at a prompt; `help` lists the commands
  p2s2 buyer shop.example.org 8002
  p2s2 buyer --server auto                     the shop that announces itself on this network
  p2s2 buyer create-account bob
  p2s2 buyer login bob                          the session is kept for the calls that follow
  p2s2 buyer search --category 1 phone
  p2s2 buyer add 1-17 2
  p2s2 buyer purchase --wallet data/samples/wallet-bob.json
  printf 'login bob\\nsearch lamp\\n' | P2S2_PASSWORD=… p2s2 buyer --json

Sessions of single commands are kept in ~/.config/p2s2 (or $XDG_CONFIG_HOME/p2s2), readable by you alone.
A wallet is a JSON file with cc_number, cc_exp (\"MM/YY\") and address; without one the card is asked for."
)]
pub struct BuyerArgs {
    #[command(flatten)]
    common: ShopClientArgs,
    /// What to pay with: a JSON file with cc_number, cc_exp and address
    #[arg(long, value_name = "FILE")]
    wallet: Option<PathBuf>,
    #[command(subcommand)]
    command: Option<BuyerCommand>,
}

#[derive(Debug, Subcommand)]
enum BuyerCommand {
    #[command(flatten)]
    Account(AccountCommand),
    /// Look for items: the best first, then the cheapest
    #[command(after_help = "Example:\n  search --category 1 phone charger")]
    Search {
        /// Up to five
        #[arg(value_name = "KEYWORD")]
        keywords: Vec<String>,
        /// This category alone
        #[arg(long, value_name = "N")]
        category: Option<u32>,
        #[command(flatten)]
        page: ShopPageArgs,
    },
    /// Show one item
    Item {
        #[arg(value_name = "ITEM")]
        item: String,
    },
    /// Put units of an item into the cart, which reserves nothing
    #[command(after_help = "Example:\n  add 1-17 2")]
    Add {
        #[arg(value_name = "ITEM")]
        item: String,
        /// How many
        #[arg(value_name = "QTY", default_value_t = 1)]
        quantity: u32,
    },
    /// Take units of an item out of the cart
    Remove {
        #[arg(value_name = "ITEM")]
        item: String,
        /// How many; all of them without it
        #[arg(value_name = "QTY", allow_negative_numbers = true)]
        quantity: Option<u32>,
    },
    /// Show the cart
    Cart,
    /// Keep the cart for the next login
    Save,
    /// Empty the cart
    Clear,
    /// Buy what is in the cart, all of it or nothing
    #[command(
        after_help = "Example:\n  purchase --wallet data/samples/wallet-bob.json\n\nThe name on the card is the user's."
    )]
    Purchase {
        /// What to pay with: a JSON file with cc_number, cc_exp and address; without it the card is asked for
        #[arg(long, value_name = "FILE")]
        wallet: Option<PathBuf>,
        /// Where to, if not to the wallet's address
        #[arg(long, value_name = "TEXT")]
        address: Option<String>,
        /// With the same key it is the same purchase, however often it is asked for
        #[arg(long, value_name = "KEY")]
        key: Option<String>,
    },
    /// Vote on an item and its seller
    #[command(after_help = "Example:\n  vote 1-17 up")]
    Vote {
        #[arg(value_name = "ITEM")]
        item: String,
        #[arg(value_name = "up|down", hide_possible_values = true)]
        vote: Vote,
    },
    /// Show a seller's votes and sales
    Rating {
        /// The number behind the seller's name in a search
        #[arg(value_name = "SELLER")]
        seller: u64,
    },
    /// Show what was bought, the newest first
    Purchases {
        #[command(flatten)]
        page: ShopPageArgs,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Vote {
    Up,
    Down,
}

/// The exit code is 0 on success and 1 if a one-shot command failed.
pub fn run(args: BuyerArgs) -> anyhow::Result<ExitCode> {
    if let Some(path) = &args.wallet {
        // An unreadable wallet is reported now rather than at the first purchase.
        Wallet::read(path).map_err(anyhow::Error::msg)?;
        // Commands read from the input use it as well. Set before any other thread starts.
        WALLET.set(path.clone()).ok();
    }
    shop_client::run(args.common, args.command)
}

/// The path given with `--wallet`.
static WALLET: std::sync::OnceLock<PathBuf> = std::sync::OnceLock::new();

impl RoleCommands for BuyerCommand {
    const ROLE: &'static str = "buyer";
    const SERVER: &'static str = "127.0.0.1:8002";

    fn account(&self) -> Option<&AccountCommand> {
        if let BuyerCommand::Account(command) = self { Some(command) } else { None }
    }

    fn run(self, session: &ShopSession) -> anyhow::Result<()> {
        match self {
            BuyerCommand::Account(_) => Ok(()),
            BuyerCommand::Search { keywords, category, page } => {
                let mut payload = page.payload();
                payload["keywords"] = keywords.into();
                if let Some(category) = category {
                    payload["category"] = category.into();
                }
                session.run("search", "SearchItemsForSale", payload, |found| show::page(found, show::total_text))
            }
            BuyerCommand::Item { item } => session.run_item(item),
            BuyerCommand::Add { item, quantity } => {
                let payload = json!({"item_id": item, "quantity": quantity});
                session.run("add", "AddItemToCart", payload, |_| format!("{quantity} more of {item} in the cart"))
            }
            BuyerCommand::Remove { item, quantity } => {
                let mut payload = json!({ "item_id": item });
                if let Some(quantity) = quantity {
                    payload["quantity"] = quantity.into();
                }
                let text = |left: &Value| format!("{} of {item} left in the cart", left["quantity"]);
                session.run("remove", "RemoveItemFromCart", payload, text)
            }
            BuyerCommand::Cart => session.run("cart", "DisplayCart", json!({}), |cart| show::cart(&cart["cart"])),
            BuyerCommand::Save => session.run("save", "SaveCart", json!({}), |_| "the cart is kept".to_owned()),
            BuyerCommand::Clear => session.run("clear", "ClearCart", json!({}), |_| "the cart is empty".to_owned()),
            BuyerCommand::Purchase { wallet, address, key } => {
                purchase(session, wallet.as_deref().or(WALLET.get().map(PathBuf::as_path)), address, key)
            }
            BuyerCommand::Vote { item, vote } => {
                let payload = json!({"item_id": item, "thumbs_up": vote == Vote::Up});
                session.run("vote", "ProvideFeedback", payload, |_| format!("voted on {item}"))
            }
            BuyerCommand::Rating { seller } => {
                session.run("rating", "GetSellerRating", json!({ "seller_id": seller }), show::rating)
            }
            BuyerCommand::Purchases { page } => {
                session.run("purchases", "GetBuyerPurchases", page.payload(), |list| show::purchases(&list["items"]))
            }
        }
    }
}

fn purchase(
    session: &ShopSession,
    wallet: Option<&Path>,
    address: Option<String>,
    key: Option<String>,
) -> anyhow::Result<()> {
    session.check_payment()?;
    let nobody = || format!("nobody is logged in here; {} opens a session", session.login_command("NAME"));
    let name = session.user().with_context(nobody)?;
    let payment = match wallet {
        Some(path) => {
            if let Some(warning) = wallet::warning(path) {
                eprintln!("warning: {}", super::output::sanitize(&warning));
            }
            Wallet::read(path).map_err(anyhow::Error::msg)?
        }
        None if prompt::is_interactive() => ask_for_payment_details(address.is_none())?,
        None => bail!("nothing to pay with: --wallet FILE, as there is no terminal to ask for a card at"),
    };
    let card = json!({"number": payment.cc_number, "exp": payment.cc_exp, "name": name});
    let mut payload = json!({ "card": card });
    let address = address.unwrap_or(payment.address);
    for (field, text) in [("address", Some(address).filter(|text| !text.is_empty())), ("idempotency_key", key)] {
        if let Some(text) = text {
            payload[field] = text.into();
        }
    }
    session.run("purchase", "MakePurchase", payload, show::new_purchase)
}

/// And for a delivery address, if needed.
fn ask_for_payment_details(with_address: bool) -> anyhow::Result<Wallet> {
    let number = CardNumber::new(prompt::secret("Card number: ")?.trim());
    let cc_number = number.map_err(|error| anyhow::anyhow!("card number: {error}"))?;
    let expiry = Expiry::parse(prompt::line("Good until (MM/YY): ")?.trim());
    let cc_exp = expiry.map_err(|error| anyhow::anyhow!("expiry: {error}"))?;
    let address =
        if with_address { prompt::line("Address (may be empty): ")?.trim().to_owned() } else { String::new() };
    Ok(Wallet { cc_number, cc_exp, address })
}
