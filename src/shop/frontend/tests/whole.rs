//! The frontends with the real databases on files, and a bank.

use std::path::Path;

use tempfile::TempDir;

use super::*;
use crate::bank::BuiltinGateway;
use crate::identity::HashCost;
use crate::shop::customer::{self, CustomerDb};
use crate::shop::product::{ProductDb, ProductDbSettings};
use crate::storage::Store;

struct WholeShop {
    dir: TempDir,
    key: ClusterKey,
    customer: Option<(ShopListener, Arc<CustomerDb>)>,
    product: Option<(ShopListener, Arc<ProductDb>)>,
    buyers: FrontendServer,
    sellers: FrontendServer,
}

fn open_customer(dir: &Path, at: SocketAddr, key: &ClusterKey) -> (ShopListener, Arc<CustomerDb>) {
    let store = Arc::new(Store::open(&dir.join("customer.db"), customer::MIGRATIONS).unwrap());
    let gateway = Arc::new(BuiltinGateway::open(dir).unwrap());
    let config = customer::CustomerDbConfig {
        password_cost: HashCost { memory_kib: 8, passes: 1 },
        ..customer::CustomerDbConfig::default()
    };
    let db = Arc::new(CustomerDb::open(store, gateway, config).unwrap());
    (ShopListener::open_customer(at, context(key), Arc::clone(&db) as _).unwrap(), db)
}

fn open_product(dir: &Path, at: SocketAddr, key: &ClusterKey) -> (ShopListener, Arc<ProductDb>) {
    let settings = ProductDbSettings { hold_timeout: Duration::from_secs(60), first_id_range: 0 };
    let db = Arc::new(ProductDb::open(dir, settings).unwrap());
    (ShopListener::open_product(at, context(key), Arc::clone(&db) as _).unwrap(), db)
}

impl WholeShop {
    fn open() -> WholeShop {
        let (dir, key) = (tempfile::tempdir().unwrap(), ClusterKey::random());
        let any = ANY_PORT.parse().unwrap();
        let customer = open_customer(dir.path(), any, &key);
        let product = open_product(dir.path(), any, &key);
        let start = |role| FrontendServer::start(config(role, &customer.0, &product.0), &context(&key)).unwrap();
        let (buyers, sellers) = (start(Role::Buyer), start(Role::Seller));
        WholeShop { dir, key, customer: Some(customer), product: Some(product), buyers, sellers }
    }

    fn user(&self, role: Role, name: &str) -> Client {
        let server = if role == Role::Buyer { &self.buyers } else { &self.sellers };
        let mut client = Client::new(client::ClientConfig::plain(server.local_addrs()[0].to_string()));
        client.call("CreateAccount", json!({"username": name, "password": "secret"})).unwrap();
        client.login(name, "secret").unwrap();
        client
    }

    fn restart(&mut self) {
        let (listener, db) = self.customer.take().unwrap();
        let at = listener.local_addr();
        listener.stop(Duration::from_secs(5));
        drop((listener, db));
        self.customer = Some(open_customer(self.dir.path(), at, &self.key));
        let (listener, db) = self.product.take().unwrap();
        let at = listener.local_addr();
        listener.stop(Duration::from_secs(5));
        drop((listener, db));
        self.product = Some(open_product(self.dir.path(), at, &self.key));
    }
}

fn register(seller: &mut Client, quantity: u32) -> String {
    let lamp = json!({
        "item_name": "Desk lamp", "category": 3, "keywords": ["light", "desk"], "condition": "New", "price": 12.55,
        "quantity": quantity
    });
    seller.call("RegisterItemForSale", lamp).unwrap()["item_id"].as_str().unwrap().to_owned()
}

#[test]
fn a_purchase_from_listing_to_shipping_over_restarts() {
    let mut shop = WholeShop::open();
    let (mut seller, mut buyer) = (shop.user(Role::Seller, "sam"), shop.user(Role::Buyer, "bob"));
    let item = register(&mut seller, 5);
    let found = buyer.call("SearchItemsForSale", json!({"category": 3, "keywords": ["Des", "lamp"]})).unwrap();
    assert_eq!((&found["total"], &found["items"][0]["item_id"]), (&json!(1), &json!(item)));
    assert_eq!(
        buyer.call("GetItem", json!({"item_id": item})).unwrap()["feedback"],
        json!({"thumbs_up": 0, "thumbs_down": 0})
    );
    buyer.call("AddItemToCart", json!({"item_id": item, "quantity": 3})).unwrap();
    buyer.call("SaveCart", json!({})).unwrap();
    assert_eq!(code(buyer.call("AddItemToCart", json!({"item_id": item, "quantity": 3}))), ErrorCode::OutOfStock);
    shop.restart();
    let cart = json!({"cart": [{"item_id": item, "quantity": 3}]});
    assert_eq!(buyer.call("DisplayCart", json!({})).unwrap(), cart, "with the same session");
    let declined = json!({"card": {"number": "4000000000000002", "exp": "12/79", "name": "B"}});
    assert_eq!(code(buyer.call("MakePurchase", declined)), ErrorCode::PaymentDeclined);
    assert_eq!(buyer.call("GetItem", json!({"item_id": item})).unwrap()["quantity"], 5);
    let payment = json!({"card": card(), "address": "Elm St", "idempotency_key": "k"});
    let purchased = buyer.call("MakePurchase", payment.clone()).unwrap();
    assert_eq!((&purchased["total"], &purchased["items"][0]["price"]), (&json!(37.65), &json!(12.55)));
    shop.restart();
    assert_eq!(buyer.call("MakePurchase", payment).unwrap(), purchased, "the same key, the same answer");
    assert_eq!(code(buyer.call("MakePurchase", json!({"card": card()}))), ErrorCode::EmptyCart);
    assert_eq!(buyer.call("GetItem", json!({"item_id": item})).unwrap()["quantity"], 2);
    let order = seller.call("GetSellerOrders", json!({})).unwrap()["items"][0].clone();
    assert_eq!(
        (&order["payout"], &order["address"], &order["buyer_name"]),
        (&json!(33.88), &json!("Elm St"), &json!("bob"))
    );
    let line = json!({"purchase_id": purchased["purchase_id"], "item_id": item});
    seller.call("MarkShipped", line).unwrap();
    let bought = buyer.call("GetBuyerPurchases", json!({})).unwrap()["items"][0].clone();
    assert!(bought["shipped_at"].as_u64() >= bought["purchased_at"].as_u64(), "{bought}");
    buyer.call("ProvideFeedback", json!({"item_id": item, "thumbs_up": true})).unwrap();
    let rating = seller.call("GetSellerRating", json!({})).unwrap();
    assert_eq!(rating, json!({"feedback": {"thumbs_up": 1, "thumbs_down": 0}, "rating": 1.0, "items_sold": 3}));
}

#[test]
fn a_hundred_buyers_after_the_last_ten_units() {
    let shop = WholeShop::open();
    let item = register(&mut shop.user(Role::Seller, "sam"), 10);
    let mut buyers: Vec<Client> = (0..100).map(|n| shop.user(Role::Buyer, &format!("buyer {n}"))).collect();
    for buyer in &mut buyers {
        buyer.call("AddItemToCart", json!({"item_id": item, "quantity": 1})).unwrap();
    }
    let start = Barrier::new(buyers.len());
    let outcomes: Vec<Option<ErrorCode>> = std::thread::scope(|scope| {
        let buy = |mut buyer: Client| {
            start.wait();
            buyer.call("MakePurchase", json!({"card": card()})).map_or_else(|error| error.code(), |_| None)
        };
        let buying: Vec<_> = buyers.drain(..).map(|buyer| scope.spawn(move || buy(buyer))).collect();
        buying.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let count = |outcome: Option<ErrorCode>| outcomes.iter().filter(|got| **got == outcome).count();
    assert_eq!((count(None), count(Some(ErrorCode::OutOfStock))), (10, 90), "{outcomes:?}");
}
