//! A shop in processes of its own, and a client on a plain socket that is written from the wire format alone.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde_json::{Map, Value, json};

use crate::support::{PATIENCE, eventually, program};

pub const GOOD_CARD: &str = "4111111111111111";
pub const DECLINED_CARD: &str = "4000000000000002";

/// A process with one component or all of them, which is killed when dropped.
pub struct Component {
    child: Child,
    command: String,
    args: Vec<String>,
    dir: PathBuf,
    ready: Value,
}

impl Component {
    /// Starts `p2s2 COMMAND ARGS` with its ready file in `dir`, and waits until it is ready.
    pub fn start(dir: &Path, command: &str, args: &[String]) -> Component {
        Component::start_with(dir, command, args, &[])
    }

    /// The same with further environment variables.
    pub fn start_with(dir: &Path, command: &str, args: &[String], env: &[(&str, &Path)]) -> Component {
        static NTH: AtomicU64 = AtomicU64::new(0);
        let ready_file = dir.join(format!("{command}-{}.json", NTH.fetch_add(1, Ordering::Relaxed)));
        let log =
            std::fs::OpenOptions::new().create(true).append(true).open(dir.join(format!("{command}.log"))).unwrap();
        let mut child = program(command)
            .args(args)
            .envs(env.iter().copied())
            .arg("--ready-file")
            .arg(&ready_file)
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let ready = eventually(&format!("{command} to be ready"), || {
            if let Some(status) = child.try_wait().unwrap() {
                let log = std::fs::read_to_string(dir.join(format!("{command}.log"))).unwrap();
                panic!("{command} ended with {status}: {log}");
            }
            serde_json::from_str::<Value>(&std::fs::read_to_string(&ready_file).ok()?).ok()
        });
        Component { child, command: command.to_owned(), args: args.to_vec(), dir: dir.to_owned(), ready }
    }

    pub fn addr(&self, name: &str) -> SocketAddr {
        self.ready[name].as_str().unwrap_or_else(|| panic!("{name} is not in {}", self.ready)).parse().unwrap()
    }

    /// Kills the process and starts it again with the same ports and data.
    pub fn kill_and_restart(&mut self) {
        self.kill();
        let mut args = self.args.clone();
        for (flag, name) in [
            ("--product-port", "product_db"),
            ("--customer-port", "customer_db"),
            ("--seller-port", "seller"),
            ("--buyer-port", "buyer"),
        ] {
            let own = self.ready.get(name).and_then(Value::as_str);
            let flag = if self.command == "server" { flag } else { "--port" };
            let Some(addr) = own else { continue };
            let port = addr.rsplit(':').next().unwrap().to_owned();
            match args.iter().position(|arg| arg == flag) {
                Some(at) => args[at + 1] = port,
                None => args.extend([flag.to_owned(), port]),
            }
        }
        let next = Component::start(&self.dir, &self.command, &args);
        *self = next;
    }

    pub fn kill(&mut self) {
        // It may have ended before.
        let _ = self.child.kill();
        self.child.wait().unwrap();
    }
}

impl Drop for Component {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A whole shop on free ports.
pub struct Shop {
    pub components: Vec<Component>,
    pub dir: tempfile::TempDir,
    pub seller: SocketAddr,
    pub buyer: SocketAddr,
    pub product: SocketAddr,
    pub customer: SocketAddr,
}

/// The index of each component in [`Shop::components`] when each has a process of its own.
pub const PRODUCT: usize = 0;
pub const CUSTOMER: usize = 1;
pub const SELLER: usize = 2;
pub const BUYER: usize = 3;

fn to_strings(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| (*text).to_owned()).collect()
}

impl Shop {
    /// Starts all components in one process.
    pub fn in_one_process(args: &[&str]) -> Shop {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("state").display().to_string();
        let mut all = to_strings(&["--services", "shop", "--data-dir", &state, "--api-port", "0"]);
        all.extend(to_strings(&[
            "--product-port",
            "0",
            "--customer-port",
            "0",
            "--seller-port",
            "0",
            "--buyer-port",
            "0",
        ]));
        all.extend(to_strings(args));
        let server = Component::start(dir.path(), "server", &all);
        let [seller, buyer, product, customer] =
            ["seller", "buyer", "product_db", "customer_db"].map(|name| server.addr(name));
        Shop { components: vec![server], dir, seller, buyer, product, customer }
    }

    /// Starts each component in a process of its own, with these arguments for the databases.
    pub fn in_four_processes(product_args: &[&str], customer_args: &[&str]) -> Shop {
        let dir = tempfile::tempdir().unwrap();
        let [product, customer] = ["product-db", "customer-db"].map(|name| dir.path().join(name));
        Shop::in_four_processes_on(dir, [&product, &customer], product_args, customer_args)
    }

    /// The same with these data directories.
    pub fn in_four_processes_on(
        dir: tempfile::TempDir,
        [product_dir, customer_dir]: [&Path; 2],
        product_args: &[&str],
        customer_args: &[&str],
    ) -> Shop {
        let key = dir.path().join("cluster.key").display().to_string();
        let database = |command: &str, state: &Path, extra: &[&str]| {
            let state = state.display().to_string();
            let mut args = to_strings(&["--port", "0", "--data-dir", &state, "--cluster-key", &key]);
            args.extend(to_strings(extra));
            Component::start(dir.path(), command, &args)
        };
        let product_db = database("product-db", product_dir, product_args);
        let customer_db = database("customer-db", customer_dir, customer_args);
        let (product, customer) = (product_db.addr("product_db"), customer_db.addr("customer_db"));
        let frontend = |command: &str| {
            let (product, customer) = (product.to_string(), customer.to_string());
            let args =
                to_strings(&["--port", "0", "--product", &product, "--customer", &customer, "--cluster-key", &key]);
            Component::start(dir.path(), command, &args)
        };
        let (seller_server, buyer_server) = (frontend("seller-server"), frontend("buyer-server"));
        let (seller, buyer) = (seller_server.addr("seller"), buyer_server.addr("buyer"));
        Shop {
            components: vec![product_db, customer_db, seller_server, buyer_server],
            dir,
            seller,
            buyer,
            product,
            customer,
        }
    }
}

/// How messages are framed on a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    Lines,
    Lengths,
}

pub const FRAMINGS: [Framing; 2] = [Framing::Lines, Framing::Lengths];

#[derive(Debug, Clone, PartialEq)]
pub struct Refusal {
    pub code: String,
    pub message: String,
}

pub type CallResult = Result<Value, Refusal>;

/// A client on one connection.
pub struct Client {
    framing: Framing,
    stream: TcpStream,
    reader: BufReader<TcpStream>,
    /// The session of the calls, if any.
    pub sid: Option<String>,
}

impl Client {
    pub fn connect(addr: SocketAddr, framing: Framing) -> Client {
        Client::try_connect(addr, framing).unwrap_or_else(|| panic!("nobody listens at {addr}"))
    }

    /// `None` if nobody listens.
    pub fn try_connect(addr: SocketAddr, framing: Framing) -> Option<Client> {
        let stream = TcpStream::connect(addr).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        let reader = BufReader::new(stream.try_clone().unwrap());
        Some(Client { framing, stream, reader, sid: None })
    }

    pub fn send_raw(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.stream.write_all(bytes)
    }

    pub fn send(&mut self, message: &Value) -> std::io::Result<()> {
        self.send_bytes(message.to_string().as_bytes())
    }

    /// Sends arbitrary bytes as one message in the client's framing.
    pub fn send_bytes(&mut self, message: &[u8]) -> std::io::Result<()> {
        let bytes = match self.framing {
            Framing::Lines => [message, b"\n"].concat(),
            Framing::Lengths => [&(message.len() as u32).to_be_bytes()[..], message].concat(),
        };
        self.stream.write_all(&bytes)
    }

    /// Reads the next message; `None` if the server has closed the connection.
    pub fn receive(&mut self) -> std::io::Result<Option<Value>> {
        Ok(self.receive_text()?.map(|text| serde_json::from_str(&text).unwrap()))
    }

    /// The same as text, because a number may have more digits than a [`Value`] keeps.
    pub fn receive_text(&mut self) -> std::io::Result<Option<String>> {
        let text = match self.framing {
            Framing::Lines => {
                let mut line = String::new();
                if self.reader.read_line(&mut line)? == 0 {
                    return Ok(None);
                }
                line.into_bytes()
            }
            Framing::Lengths => {
                let mut length = [0; 4];
                match self.reader.read_exact(&mut length) {
                    Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(None),
                    other => other?,
                }
                let mut body = vec![0; u32::from_be_bytes(length) as usize];
                self.reader.read_exact(&mut body)?;
                body
            }
        };
        Ok(Some(String::from_utf8(text).unwrap()))
    }

    pub fn ask(&mut self, message: &Value) -> Value {
        self.send(message).unwrap();
        self.receive().unwrap().unwrap_or_else(|| panic!("closed instead of an answer to {message}"))
    }

    /// Makes a call in dialect 1 and checks the response's envelope.
    pub fn call(&mut self, api: &str, payload: Value) -> CallResult {
        let mut request = json!({"type": "request", "api": api, "payload": payload});
        if let Some(sid) = &self.sid {
            request["session_id"] = json!(sid);
        }
        let answer = self.ask(&request);
        assert_eq!(answer["api"], api, "{answer}");
        match answer["type"].as_str() {
            Some("response") => Ok(answer["payload"].clone()),
            Some("error") => Err(refused(&answer["error"])),
            _ => panic!("neither response nor error: {answer}"),
        }
    }

    /// Makes a call in dialect 2.
    pub fn call_dialect2(&mut self, kind: &str, fields: Value) -> CallResult {
        let Value::Object(mut message) = fields else { panic!("{fields} is no object") };
        message.insert("type".to_owned(), json!(kind));
        if let (Some(sid), false) = (&self.sid, message.contains_key("sid")) {
            message.insert("sid".to_owned(), json!(sid));
        }
        let answer = self.ask(&Value::Object(message));
        match answer["status"].as_str() {
            Some("OK") => Ok(answer),
            Some("ERR") => Err(refused(&answer["error"])),
            _ => panic!("neither OK nor ERR: {answer}"),
        }
    }

    /// Creates an account in dialect 1 and logs in.
    pub fn sign_up(addr: SocketAddr, framing: Framing, user: &str) -> Client {
        let mut client = Client::connect(addr, framing);
        client.call("CreateAccount", json!({"username": user, "password": "secret"})).unwrap();
        client.log_in(user);
        client
    }

    pub fn log_in(&mut self, user: &str) {
        self.sid = None;
        let answer = self.call("Login", json!({"username": user, "password": "secret"})).unwrap();
        self.sid = Some(answer["session_id"].as_str().unwrap().to_owned());
    }

    /// Whether the server closes the connection within 20 s.
    pub fn is_closed_soon(&mut self) -> bool {
        self.stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let mut rest = Vec::new();
        match self.reader.read_to_end(&mut rest) {
            Ok(_) => true,
            Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
        }
    }
}

fn refused(error: &Value) -> Refusal {
    let text = |field: &str| error[field].as_str().unwrap_or_else(|| panic!("{field}: no text in {error}")).to_owned();
    Refusal { code: text("code"), message: text("message") }
}

/// The error code of a call that must be refused.
pub fn code(answer: CallResult) -> String {
    match answer {
        Ok(answer) => panic!("not refused: {answer}"),
        Err(refused) => refused.code,
    }
}

/// The fields of an item to register.
pub fn lamp(price: f64, quantity: i64) -> Value {
    json!({
        "item_name": "Brass Lamp", "category": 3, "keywords": ["lamp", "brass"], "condition": "Used",
        "price": price, "quantity": quantity,
    })
}

pub fn card(number: &str) -> Value {
    json!({"number": number, "exp": "12/79", "name": "B. Buyer"})
}

/// Merges two JSON objects.
pub fn merge(base: Value, more: Value) -> Value {
    let (Value::Object(mut base), Value::Object(more)) = (base, more) else { panic!("objects only") };
    base.extend(more.into_iter().collect::<Map<_, _>>());
    Value::Object(base)
}
