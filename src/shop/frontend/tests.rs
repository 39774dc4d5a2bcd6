//! The frontends over real sockets, with fake databases in memory.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Barrier;

use serde_json::{Value, json};

use super::*;
use crate::net::budget::ReceiveBudget;
use crate::net::cluster::ClusterKey;
use crate::net::frames::{Framing, encode_frame};
use crate::net::listener::{ConnectionLimiter, ListenerContext};
use crate::net::testing::eventually;
use crate::net::tls::TlsIdentity;
use crate::shop::client::{self, CertificateTrust, Client, ClientError};
use crate::shop::wire::MESSAGE_MAX;

mod fakes;
mod limits;
mod stories;
mod whole;

use fakes::{FakeCustomerDb, FakeProductDb};

const READ_TIMEOUT: Duration = Duration::from_secs(20);
const ANY_PORT: &str = "127.0.0.1:0";

fn context(key: &ClusterKey) -> ShopContext {
    ShopContext { listener: ListenerContext::for_test(500, 500), key: key.clone() }
}

/// All four servers, with fake databases.
struct Shop {
    key: ClusterKey,
    customer_db: Arc<FakeCustomerDb>,
    product_db: Arc<FakeProductDb>,
    customer: Option<ShopListener>,
    product: Option<ShopListener>,
    buyers: FrontendServer,
    sellers: FrontendServer,
}

impl Shop {
    fn open() -> Shop {
        Shop::open_with(|_| {})
    }

    fn open_with(change: impl FnOnce(&mut ShopContext)) -> Shop {
        let key = ClusterKey::random();
        let (customer_db, product_db) = (Arc::new(FakeCustomerDb::default()), Arc::new(FakeProductDb::default()));
        let any = ANY_PORT.parse().unwrap();
        let customer = ShopListener::open_customer(any, context(&key), Arc::clone(&customer_db) as _).unwrap();
        let product = ShopListener::open_product(any, context(&key), Arc::clone(&product_db) as _).unwrap();
        let mut context = context(&key);
        change(&mut context);
        let start = |role| FrontendServer::start(config(role, &customer, &product), &context).unwrap();
        let (buyers, sellers) = (start(Role::Buyer), start(Role::Seller));
        Shop { key, customer_db, product_db, customer: Some(customer), product: Some(product), buyers, sellers }
    }

    fn port(&self, role: Role) -> SocketAddr {
        match role {
            Role::Buyer => self.buyers.local_addrs()[0],
            Role::Seller => self.sellers.local_addrs()[0],
        }
    }

    fn raw(&self, role: Role, framing: Framing) -> RawClient {
        RawClient::connect(self.port(role), framing)
    }

    fn client(&self, role: Role) -> Client {
        Client::new(client::ClientConfig::plain(self.port(role).to_string()))
    }

    /// Creates a buyer or seller and logs in.
    fn user(&self, role: Role, name: &str) -> Client {
        let mut client = self.client(role);
        client.call("CreateAccount", json!({"username": name, "password": "secret"})).unwrap();
        client.login(name, "secret").unwrap();
        client
    }

    /// Registers an item with this stock for a new seller and returns its id.
    fn list_lamps(&self, quantity: u32) -> String {
        let mut seller = self.user(Role::Seller, "sam");
        let lamp = json!({
            "item_name": "Lamp", "category": 3, "keywords": ["light"], "condition": "New", "price": 12.5,
            "quantity": quantity
        });
        let registered = seller.call("RegisterItemForSale", lamp).unwrap();
        registered["item_id"].as_str().unwrap().to_owned()
    }
}

fn config(role: Role, customer: &ShopListener, product: &ShopListener) -> FrontendConfig {
    FrontendConfig {
        role,
        addrs: vec![ANY_PORT.parse().unwrap()],
        product: product.local_addr().to_string(),
        customer: customer.local_addr().to_string(),
        databases: DatabaseLocation::Remote,
    }
}

/// A client that is written from the wire format alone.
struct RawClient {
    stream: BufReader<TcpStream>,
    framing: Framing,
}

impl RawClient {
    fn connect(address: SocketAddr, framing: Framing) -> RawClient {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(READ_TIMEOUT)).unwrap();
        RawClient { stream: BufReader::new(stream), framing }
    }

    fn send(&mut self, message: &[u8]) {
        let bytes = match self.framing {
            Framing::Frames => encode_frame(message).unwrap(),
            Framing::Lines => [message, b"\n"].concat(),
        };
        self.stream.get_mut().write_all(&bytes).unwrap();
    }

    fn read(&mut self) -> Value {
        let mut bytes = Vec::new();
        match self.framing {
            Framing::Frames => {
                let mut length = [0; 4];
                self.stream.read_exact(&mut length).unwrap();
                bytes.resize(u32::from_be_bytes(length) as usize, 0);
                self.stream.read_exact(&mut bytes).unwrap();
            }
            Framing::Lines => {
                self.stream.read_until(b'\n', &mut bytes).unwrap();
            }
        }
        serde_json::from_slice(&bytes).unwrap()
    }

    fn ask(&mut self, message: Value) -> Value {
        self.send(message.to_string().as_bytes());
        self.read()
    }

    /// Reads everything until the server closes the connection.
    fn rest(&mut self) -> Vec<u8> {
        let mut rest = Vec::new();
        // A reset also ends the connection.
        let _ = self.stream.read_to_end(&mut rest);
        rest
    }
}

fn code(result: Result<Value, ClientError>) -> ErrorCode {
    match result {
        Err(ClientError::Refused(refusal)) => refusal.code,
        other => panic!("not refused: {other:?}"),
    }
}

fn card() -> Value {
    json!({"number": "4111111111111111", "exp": "12/79", "name": "B"})
}
