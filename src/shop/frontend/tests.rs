//! The frontends over real sockets, before small databases in memory.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Barrier;

use serde_json::{Value, json};

use super::*;
use crate::net::budget::{Budget, RECEIVED_MAX};
use crate::net::cluster::ClusterKey;
use crate::net::frames::{Framing, frame};
use crate::net::listener::ConnectionLimiter;
use crate::net::testing::eventually;
use crate::net::threads::Executor;
use crate::net::tls::Identity;
use crate::shop::client::{self, Client, ClientError, Trust};
use crate::shop::wire::MESSAGE_MAX;

mod doubles;
mod limits;
mod stories;
mod whole;

use doubles::{Goods, People};

const SOON: Duration = Duration::from_secs(20);
const ANY: &str = "127.0.0.1:0";

fn floor(key: &ClusterKey) -> Floor {
    Floor {
        executor: Executor::new("test-shop", 500),
        limiter: ConnectionLimiter::new(500),
        budget: Budget::new(RECEIVED_MAX),
        identity: None,
        plain_from_afar: false,
        key: key.clone(),
    }
}

/// All four servers.
struct Shop {
    key: ClusterKey,
    people: Arc<People>,
    goods: Arc<Goods>,
    customer: Option<Door>,
    product: Option<Door>,
    buyers: FrontendServer,
    sellers: FrontendServer,
}

impl Shop {
    fn open() -> Shop {
        Shop::open_with(|_| {})
    }

    fn open_with(change: impl FnOnce(&mut Floor)) -> Shop {
        let key = ClusterKey::random();
        let (people, goods) = (Arc::new(People::default()), Arc::new(Goods::default()));
        let any = ANY.parse().unwrap();
        let customer = Door::open_customer(any, floor(&key), Arc::clone(&people) as _).unwrap();
        let product = Door::open_product(any, floor(&key), Arc::clone(&goods) as _).unwrap();
        let mut floor = floor(&key);
        change(&mut floor);
        let start = |role| FrontendServer::start(config(role, &customer, &product), &floor).unwrap();
        let (buyers, sellers) = (start(Role::Buyer), start(Role::Seller));
        Shop { key, people, goods, customer: Some(customer), product: Some(product), buyers, sellers }
    }

    fn port(&self, role: Role) -> SocketAddr {
        match role {
            Role::Buyer => self.buyers.local_addrs()[0],
            Role::Seller => self.sellers.local_addrs()[0],
        }
    }

    fn raw(&self, role: Role, framing: Framing) -> Raw {
        Raw::connect(self.port(role), framing)
    }

    fn client(&self, role: Role) -> Client {
        Client::new(client::Config::plain(self.port(role).to_string()))
    }

    /// A buyer or seller who is logged in.
    fn user(&self, role: Role, name: &str) -> Client {
        let mut client = self.client(role);
        client.call("CreateAccount", json!({"username": name, "password": "secret"})).unwrap();
        client.login(name, "secret").unwrap();
        client
    }

    /// A seller with so many lamps; their item id.
    fn lamps(&self, quantity: u32) -> String {
        let mut seller = self.user(Role::Seller, "sam");
        let lamp = json!({
            "item_name": "Lamp", "category": 3, "keywords": ["light"], "condition": "New", "price": 12.5,
            "quantity": quantity
        });
        let registered = seller.call("RegisterItemForSale", lamp).unwrap();
        registered["item_id"].as_str().unwrap().to_owned()
    }
}

fn config(role: Role, customer: &Door, product: &Door) -> Config {
    Config {
        role,
        addrs: vec![ANY.parse().unwrap()],
        product: product.local_addr().to_string(),
        customer: customer.local_addr().to_string(),
        databases: Databases::Elsewhere,
    }
}

/// A client written from the contract alone.
struct Raw {
    stream: BufReader<TcpStream>,
    framing: Framing,
}

impl Raw {
    fn connect(address: SocketAddr, framing: Framing) -> Raw {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        Raw { stream: BufReader::new(stream), framing }
    }

    fn send(&mut self, message: &[u8]) {
        let bytes = match self.framing {
            Framing::Frames => frame(message).unwrap(),
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

    /// Whatever comes until the other end closes.
    fn rest(&mut self) -> Vec<u8> {
        let mut rest = Vec::new();
        // A reset is an end, too.
        let _ = self.stream.read_to_end(&mut rest);
        rest
    }
}

fn code(result: Result<Value, ClientError>) -> Code {
    match result {
        Err(ClientError::Refused(refusal)) => refusal.code,
        other => panic!("not refused: {other:?}"),
    }
}

fn card() -> Value {
    json!({"number": "4111111111111111", "exp": "12/79", "name": "B"})
}
