//! Who sells and who buys, what there is to buy, and what each of them calls.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use ring::rand::{SecureRandom, SystemRandom};
use serde_json::{Value, json};

use super::call;
use crate::net::frames::Framing;
use crate::perf::limits::relay::{Wire, framed};
use crate::perf::stop::Stop;
use crate::shop::ops::Role;

/// A number that passes every check and is nobody's.
pub const CARD: &str = "4111111111111111";
/// Units of each item: more than any run can buy.
pub const STOCK: u32 = 1_000_000_000;
/// What an item is in JSON, about.
pub const ITEM_BYTES: usize = 230;
/// Items for sale, those of the sellers besides; so many share a keyword, and are found together.
const CATALOGUE: usize = 1000;
const FOUND_TOGETHER: usize = 25;
/// A run's mark: a keyword of eight characters has room for this and `k00`.
const TAG_CHARS: usize = 5;
const TAG_RADIX: u32 = 36;
/// Items of each seller.
const OWN_ITEMS: usize = 10;
/// Items in a cart.
const CART_LINES: usize = 3;
/// Connections at once while everything is prepared: fewer than may wait for their password's hash.
const AT_ONCE: usize = 8;
/// An answer takes no longer.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);
/// A server that is busy is asked again after this, for so long.
const AGAIN_AFTER: Duration = Duration::from_millis(20);
const BUSY_FOR_AT_MOST: Duration = Duration::from_secs(60);

/// A seller or a buyer, signed in.
#[derive(Debug)]
pub struct User {
    pub role: Role,
    pub name: String,
    pub id: u64,
    pub sid: String,
    /// An item that is bought.
    pub item: String,
    /// A seller's own.
    pub items: Vec<String>,
    brand: Brand,
    /// One for each framing.
    pub wires: Vec<Wire>,
    addr: SocketAddr,
    framings: Vec<Framing>,
}

/// What tells the names and keywords of one run from those of others on the same server.
#[derive(Debug, Clone)]
pub struct Brand {
    /// In the middle of each user name.
    user: String,
    /// How each keyword begins.
    keyword: String,
}

impl Brand {
    /// On servers of our own there are no others.
    pub fn alone() -> Brand {
        Brand { user: String::new(), keyword: "k00".to_owned() }
    }

    /// By chance, one in sixty million.
    ///
    /// # Errors
    /// The system gives no random bytes.
    pub fn random() -> anyhow::Result<Brand> {
        let mut bytes = [0; TAG_CHARS];
        SystemRandom::new().fill(&mut bytes).map_err(|_| anyhow::anyhow!("the system gives no random bytes"))?;
        let digit = |byte: &u8| char::from_digit(u32::from(*byte) % TAG_RADIX, TAG_RADIX).unwrap_or('0');
        let tag: String = bytes.iter().map(digit).collect();
        Ok(Brand { user: format!("{tag}-"), keyword: format!("k{tag}") })
    }
}

/// A connection that does not wait for ever.
///
/// # Errors
/// The system's.
pub fn connect(addr: SocketAddr, framing: Framing) -> anyhow::Result<Wire> {
    let wire = Wire::connect(addr, framing).context("cannot connect each client")?;
    wire.stream().set_read_timeout(Some(ANSWER_WITHIN))?;
    Ok(wire)
}

impl User {
    /// A new account, signed in.
    fn join(role: Role, addr: SocketAddr, brand: &Brand, nth: usize, framings: &[Framing]) -> anyhow::Result<User> {
        let side = if role == Role::Buyer { "buyer" } else { "seller" };
        let (name, brand) = (format!("perf-{side}-{}{nth:04}", brand.user), brand.clone());
        let (sid, item, items) = (String::new(), String::new(), Vec::new());
        let framings = framings.to_vec();
        let mut user = User { role, name, id: 0, sid, item, items, brand, wires: Vec::new(), addr, framings };
        user.reconnect()?;
        let payload = json!({"username": user.name, "password": "correct horse"});
        user.ask("CreateAccount", &payload)?;
        let session = user.ask("Login", &payload)?;
        let id = session["buyer_id"].as_u64().or(session["seller_id"].as_u64());
        user.id = id.context("Login gave no id")?;
        user.sid = session["session_id"].as_str().context("Login gave no session")?.to_owned();
        Ok(user)
    }

    /// Connects anew: what was not used for ten minutes was closed.
    ///
    /// # Errors
    /// The system's.
    pub fn reconnect(&mut self) -> anyhow::Result<()> {
        self.wires = self.framings.iter().map(|framing| connect(self.addr, *framing)).collect::<Result<_, _>>()?;
        Ok(())
    }

    /// One call outside of a measurement; a server that is busy is asked again.
    ///
    /// # Errors
    /// A refusal, or no answer.
    pub fn ask(&mut self, api: &str, payload: &Value) -> anyhow::Result<Value> {
        let sid = (!self.sid.is_empty()).then_some(self.sid.as_str());
        let request = framed(Framing::Frames, &call(api, sid, payload));
        let deadline = Instant::now() + BUSY_FOR_AT_MOST;
        loop {
            self.wires[0].send(&request)?;
            let answer =
                self.wires[0].receive()?.with_context(|| format!("{api}: the server closed the connection"))?;
            let mut answer: Value = serde_json::from_slice(answer).context("the server's answer is no JSON")?;
            if answer["type"] == "response" {
                return Ok(answer["payload"].take());
            }
            let is_busy = answer["error"]["code"] == "BUSY";
            if !is_busy || Instant::now() >= deadline {
                bail!("{api} was refused: {}", answer["error"]["message"]);
            }
            std::thread::sleep(AGAIN_AFTER);
        }
    }

    /// Where it calls.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// The keyword that the items of a group share; none is the beginning of another. After the last group
    /// comes the first.
    pub fn group(&self, nth: usize) -> String {
        format!("{}{:02}", self.brand.keyword, nth % (CATALOGUE / FOUND_TOGETHER))
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

/// Everybody, and everything that is for sale.
pub struct Town {
    sellers: Vec<User>,
    buyers: Vec<User>,
    items: Vec<String>,
}

impl Town {
    /// So many sellers and buyers, signed in a few at a time: passwords are hashed slowly on purpose, and
    /// only so many may wait for that.
    ///
    /// # Errors
    /// A server that refuses or does not answer.
    pub fn settle(
        seller_at: SocketAddr,
        buyer_at: SocketAddr,
        brand: &Brand,
        count: usize,
        framings: &[Framing],
        stop: &Stop,
    ) -> anyhow::Result<Town> {
        let sellers = at_once(count, stop, |nth| {
            let mut seller = User::join(Role::Seller, seller_at, brand, nth, framings)?;
            for own in 0..OWN_ITEMS {
                // Found by nobody's search but one for all of them.
                let item = seller.register(CATALOGUE + nth * OWN_ITEMS + own, "own")?;
                seller.items.push(item);
            }
            Ok(seller)
        })?;
        let keeper = User::join(Role::Seller, seller_at, brand, count, framings)?;
        let shelves = at_once(AT_ONCE, stop, |shelf| {
            let (name, sid) = (keeper.name.clone(), keeper.sid.clone());
            let (item, items, wires) = (String::new(), Vec::new(), Vec::new());
            let (role, framings) = (Role::Seller, vec![Framing::Frames]);
            let (id, brand, addr) = (keeper.id, keeper.brand.clone(), seller_at);
            let mut hand = User { role, name, id, sid, item, items, brand, wires, addr, framings };
            hand.reconnect()?;
            let of_shelf = (shelf..CATALOGUE).step_by(AT_ONCE);
            let register = |nth| {
                let group = hand.group(nth / FOUND_TOGETHER);
                hand.register(nth, &group)
            };
            of_shelf.map(register).collect::<anyhow::Result<Vec<_>>>()
        })?;
        let items: Vec<String> = shelves.into_iter().flatten().collect();
        let mut buyers = at_once(count, stop, |nth| User::join(Role::Buyer, buyer_at, brand, nth, framings))?;
        for (nth, buyer) in buyers.iter_mut().enumerate() {
            buyer.item = items[nth % items.len()].clone();
        }
        Ok(Town { sellers, buyers, items })
    }

    /// Everybody uses their session, lest it end while others are measured.
    ///
    /// # Errors
    /// A server that refuses or does not answer.
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

    /// Those of a side.
    pub fn users(&mut self, role: Role) -> &mut Vec<User> {
        match role {
            Role::Seller => &mut self.sellers,
            Role::Buyer => &mut self.buyers,
        }
    }

    /// Sellers, and buyers.
    pub fn both(&mut self) -> (&mut [User], &mut [User]) {
        (&mut self.sellers, &mut self.buyers)
    }

    /// What everybody may buy.
    pub fn items(&self) -> &[String] {
        &self.items
    }

    /// Brings the first so many users of that side into the state that an operation begins from. The rounds
    /// of each, which are repeated: a round is one call or several.
    ///
    /// # Errors
    /// A server that refuses or does not answer.
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
                let groups = CATALOGUE / FOUND_TOGETHER;
                let found = self.ask("SearchItemsForSale", &json!({"keywords": [self.group(nth)]}))?;
                ensure!(found["total"] == FOUND_TOGETHER, "a search finds {} items", found["total"]);
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

/// Does it for 0, 1, …, a few at a time; what comes of each, in order.
fn at_once<T: Send>(
    count: usize,
    stop: &Stop,
    work: impl Fn(usize) -> anyhow::Result<T> + Sync,
) -> anyhow::Result<Vec<T>> {
    let work = &work;
    let per_thread = count.div_ceil(AT_ONCE).max(1);
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..count)
            .step_by(per_thread)
            .map(|from| {
                let part = from..count.min(from + per_thread);
                scope.spawn(move || {
                    let one = |nth| {
                        ensure!(!stop.is_asked(), "ended by a signal");
                        work(nth)
                    };
                    part.map(one).collect::<anyhow::Result<Vec<T>>>()
                })
            })
            .collect();
        let mut all = Vec::with_capacity(count);
        for thread in threads {
            all.extend(thread.join().map_err(|_| anyhow::anyhow!("preparing the clients panicked"))??);
        }
        Ok(all)
    })
}
