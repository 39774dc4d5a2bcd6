//! The shop's users, the items for sale, and the calls of each operation.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use ring::rand::{SecureRandom, SystemRandom};
use serde_json::{Value, json};

use super::call;
use crate::net::frames::Framing;
use crate::perf::limits::relay::{FramedConnection, framed};
use crate::perf::load::{self, Sample};
use crate::perf::stop::StopFlag;
use crate::shop::ops::Role;

/// A card number that passes every check and belongs to nobody.
pub const CARD: &str = "4111111111111111";
/// Units of each item: more than any run can buy.
pub const STOCK: u32 = 1_000_000_000;
/// Approximate length of an item in JSON.
pub const ITEM_BYTES: usize = 230;
/// Items for sale besides the sellers' own. Those that share a keyword are found together.
const CATALOGUE: usize = 1000;
const ITEMS_PER_KEYWORD: usize = 25;
/// Length of a run's random tag: a keyword of eight characters has room for it, a `k` and two digits.
const TAG_CHARS: usize = 5;
const TAG_RADIX: u32 = 36;
const ITEMS_PER_SELLER: usize = 10;
const CART_LINES: usize = 3;
/// Concurrent connections during the setup: fewer than the password hashes that a server queues.
const CONCURRENT_SETUPS: usize = 8;
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(30);
const RETRY_AFTER: Duration = Duration::from_millis(20);
const BUSY_RETRY_TIMEOUT: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub struct User {
    pub role: Role,
    pub name: String,
    pub id: u64,
    pub sid: String,
    /// The item that a buyer purchases.
    pub item: String,
    /// A seller's own items.
    pub items: Vec<String>,
    tag: RunTag,
    /// One connection per framing.
    pub connections: Vec<FramedConnection>,
    pub addr: SocketAddr,
    framings: Vec<Framing>,
}

/// Distinguishes names and keywords of this run from those of others on the same server.
#[derive(Debug, Clone)]
pub struct RunTag {
    /// Part of each user name.
    user: String,
    /// Prefix of each keyword.
    keyword: String,
}

impl RunTag {
    /// The tag for our own servers, where there are no other runs.
    pub fn empty() -> RunTag {
        RunTag { user: String::new(), keyword: "k00".to_owned() }
    }

    /// A random tag, one of sixty million.
    pub fn random() -> anyhow::Result<RunTag> {
        let mut bytes = [0; TAG_CHARS];
        SystemRandom::new().fill(&mut bytes).map_err(|_| anyhow::anyhow!("the system gives no random bytes"))?;
        let digit = |byte: &u8| char::from_digit(u32::from(*byte) % TAG_RADIX, TAG_RADIX).unwrap_or('0');
        let tag: String = bytes.iter().map(digit).collect();
        Ok(RunTag { user: format!("{tag}-"), keyword: format!("k{tag}") })
    }
}

pub fn connect(addr: SocketAddr, framing: Framing) -> anyhow::Result<FramedConnection> {
    let connection = FramedConnection::connect(addr, framing).context("cannot connect each client")?;
    connection.stream().set_read_timeout(Some(RESPONSE_TIMEOUT))?;
    Ok(connection)
}

impl User {
    fn of(role: Role, name: String, addr: SocketAddr, tag: RunTag, framings: &[Framing]) -> User {
        let (sid, item, framings) = (String::new(), String::new(), framings.to_vec());
        User { role, name, id: 0, sid, item, items: Vec::new(), tag, connections: Vec::new(), addr, framings }
    }

    fn sign_up(role: Role, addr: SocketAddr, tag: &RunTag, nth: usize, framings: &[Framing]) -> anyhow::Result<User> {
        let side = if role == Role::Buyer { "buyer" } else { "seller" };
        let (name, tag) = (format!("perf-{side}-{}{nth:04}", tag.user), tag.clone());
        let mut user = User::of(role, name, addr, tag, framings);
        user.reconnect()?;
        let payload = json!({"username": user.name, "password": "correct horse"});
        user.ask("CreateAccount", &payload)?;
        let session = user.ask("Login", &payload)?;
        let id = session["buyer_id"].as_u64().or(session["seller_id"].as_u64());
        user.id = id.context("Login gave no id")?;
        user.sid = session["session_id"].as_str().context("Login gave no session")?.to_owned();
        Ok(user)
    }

    /// Reconnects, because servers close connections that were idle for ten minutes.
    pub fn reconnect(&mut self) -> anyhow::Result<()> {
        self.connections =
            self.framings.iter().map(|framing| connect(self.addr, *framing)).collect::<Result<_, _>>()?;
        Ok(())
    }

    /// Makes one call outside of a measurement, retrying while the server is busy.
    pub fn ask(&mut self, api: &str, payload: &Value) -> anyhow::Result<Value> {
        let sid = (!self.sid.is_empty()).then_some(self.sid.as_str());
        let request = framed(Framing::Frames, &call(api, sid, payload));
        let deadline = Instant::now() + BUSY_RETRY_TIMEOUT;
        loop {
            self.connections[0].send(&request)?;
            let response =
                self.connections[0].receive()?.with_context(|| format!("{api}: the server closed the connection"))?;
            let mut response: Value = serde_json::from_slice(response).context("the server's answer is no JSON")?;
            if response["type"] == "response" {
                return Ok(response["payload"].take());
            }
            let is_busy = response["error"]["code"] == "BUSY";
            if !is_busy || Instant::now() >= deadline {
                bail!("{api} was refused: {}", response["error"]["message"]);
            }
            std::thread::sleep(RETRY_AFTER);
        }
    }

    /// The keyword of a group of items; no keyword is a prefix of another. Numbers wrap around.
    pub fn group(&self, nth: usize) -> String {
        format!("{}{:02}", self.tag.keyword, nth % (CATALOGUE / ITEMS_PER_KEYWORD))
    }

    fn register(&mut self, nth: usize, group: &str) -> anyhow::Result<String> {
        let item = json!({
            "item_name": format!("Brass Lamp {nth:06}"), "category": nth % 10, "keywords": [group, "brass"],
            "condition": "Used", "price": 12.5, "quantity": STOCK,
        });
        let registered = self.ask("RegisterItemForSale", &item)?;
        Ok(registered["item_id"].as_str().context("RegisterItemForSale gave no item_id")?.to_owned())
    }
}

pub struct ShopPopulation {
    sellers: Vec<User>,
    buyers: Vec<User>,
    items: Vec<String>,
}

impl ShopPopulation {
    /// Creates this many sellers and buyers, a few at a time: servers queue only a limited number of password hashes.
    pub fn create(
        seller_at: SocketAddr,
        buyer_at: SocketAddr,
        tag: &RunTag,
        count: usize,
        framings: &[Framing],
        stop: &StopFlag,
    ) -> anyhow::Result<ShopPopulation> {
        let sellers = run_concurrently(count, stop, |nth| {
            let mut seller = User::sign_up(Role::Seller, seller_at, tag, nth, framings)?;
            for own in 0..ITEMS_PER_SELLER {
                // No measured search uses this keyword.
                let item = seller.register(CATALOGUE + nth * ITEMS_PER_SELLER + own, "own")?;
                seller.items.push(item);
            }
            Ok(seller)
        })?;
        let owner = User::sign_up(Role::Seller, seller_at, tag, count, framings)?;
        let batches = run_concurrently(CONCURRENT_SETUPS, stop, |batch| {
            let (name, tag) = (owner.name.clone(), owner.tag.clone());
            let mut worker = User::of(Role::Seller, name, seller_at, tag, &[Framing::Frames]);
            worker.sid = owner.sid.clone();
            worker.reconnect()?;
            let of_batch = (batch..CATALOGUE).step_by(CONCURRENT_SETUPS);
            let register = |nth| {
                let group = worker.group(nth / ITEMS_PER_KEYWORD);
                worker.register(nth, &group)
            };
            of_batch.map(register).collect::<anyhow::Result<Vec<_>>>()
        })?;
        let items: Vec<String> = batches.into_iter().flatten().collect();
        let mut buyers = run_concurrently(count, stop, |nth| User::sign_up(Role::Buyer, buyer_at, tag, nth, framings))?;
        for (nth, buyer) in buyers.iter_mut().enumerate() {
            buyer.item = items[nth % items.len()].clone();
        }
        Ok(ShopPopulation { sellers, buyers, items })
    }

    /// Uses every session, so that none expires while others are measured.
    pub fn stay_signed_in(&mut self) -> anyhow::Result<()> {
        for user in self.sellers.iter_mut().chain(&mut self.buyers) {
            user.reconnect()?;
            let (api, payload) = match user.role {
                Role::Seller => ("GetSellerRating", json!({})),
                Role::Buyer => ("DisplayCart", json!({})),
            };
            user.ask(api, &payload)?;
        }
        Ok(())
    }

    pub fn users(&mut self, role: Role) -> &mut Vec<User> {
        match role {
            Role::Seller => &mut self.sellers,
            Role::Buyer => &mut self.buyers,
        }
    }

    pub fn sellers_and_buyers(&mut self) -> (&mut [User], &mut [User]) {
        (&mut self.sellers, &mut self.buyers)
    }

    /// The items that every buyer may buy.
    pub fn items(&self) -> &[String] {
        &self.items
    }

    /// Brings the first `count` users of a role into the state in which an operation starts. Returns the rounds of each
    /// user, which are repeated; a round has one or more calls.
    pub fn prepare(&mut self, operation: &str, role: Role, count: usize) -> anyhow::Result<Vec<Vec<Vec<Vec<u8>>>>> {
        let items = std::mem::take(&mut self.items);
        let users = &mut self.users(role)[..count];
        users.iter_mut().try_for_each(User::reconnect)?;
        let rounds = users.iter_mut().enumerate().map(|(nth, user)| user.rounds(operation, nth, &items)).collect();
        self.items = items;
        rounds
    }
}

impl User {
    fn rounds(&mut self, operation: &str, nth: usize, items: &[String]) -> anyhow::Result<Vec<Vec<Vec<u8>>>> {
        let add = |item: &String| json!({"item_id": item, "quantity": 1});
        let in_cart = &items[nth % (items.len() - CART_LINES)..][..CART_LINES];
        let calls: Vec<(&str, Value)> = match operation {
            "SEARCH" => {
                let groups = CATALOGUE / ITEMS_PER_KEYWORD;
                let found = self.ask("SearchItemsForSale", &json!({"keywords": [self.group(nth)]}))?;
                ensure!(found["total"] == ITEMS_PER_KEYWORD, "a search finds {} items", found["total"]);
                let search = |at: usize| ("SearchItemsForSale", json!({"keywords": [self.group(nth + at)]}));
                (0..groups).map(search).collect()
            }
            "CART" => {
                self.ask("ClearCart", &json!({}))?;
                for item in in_cart {
                    self.ask("AddItemToCart", &add(item))?;
                }
                vec![("DisplayCart", json!({}))]
            }
            "DISPLAY" => vec![("DisplayItemsForSale", json!({}))],
            "GETITEM" => items.iter().take(50).map(|item| ("GetItem", json!({"item_id": item}))).collect(),
            "ADDCART" => {
                self.ask("ClearCart", &json!({}))?;
                in_cart.iter().map(|item| ("AddItemToCart", add(item))).collect()
            }
            "PRICE" => {
                let price = |price: f64| {
                    self.items.iter().map(move |item| ("ChangeItemPrice", json!({"item_id": item, "price": price})))
                };
                price(12.75).chain(price(12.25)).collect()
            }
            "PURCHASE" => {
                self.ask("ClearCart", &json!({}))?;
                let card = json!({"card": {"number": CARD, "exp": "12/79", "name": self.name}});
                let round = [("AddItemToCart", add(&self.item)), ("MakePurchase", card)];
                return Ok(vec![round.map(|(api, payload)| call(api, Some(&self.sid), &payload)).to_vec()]);
            }
            other => bail!("there is no operation {other}"),
        };
        Ok(calls.into_iter().map(|(api, payload)| vec![call(api, Some(&self.sid), &payload)]).collect())
    }
}

/// Runs `work` for 0, 1, …, a few at a time, and returns the results in order.
fn run_concurrently<T: Send>(
    count: usize,
    stop: &StopFlag,
    work: impl Fn(usize) -> anyhow::Result<T> + Sync,
) -> anyhow::Result<Vec<T>> {
    let mut results: Vec<Option<T>> = std::iter::repeat_with(|| None).take(count).collect();
    let per_thread = count.div_ceil(CONCURRENT_SETUPS).max(1);
    let mut parts: Vec<&mut [Option<T>]> = results.chunks_mut(per_thread).collect();
    load::run_all(&mut parts, |nth_part, part| {
        for (nth, result) in (nth_part * per_thread..).zip(part.iter_mut()) {
            ensure!(!stop.is_set(), "ended by a signal");
            *result = Some(work(nth)?);
        }
        Ok(Sample::new())
    })?;
    Ok(results.into_iter().flatten().collect())
}
