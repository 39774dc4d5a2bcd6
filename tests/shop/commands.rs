//! The commands `p2s2 seller` and `p2s2 buyer`: their input, output and exit codes.

use std::io::Write;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::shop::*;
use crate::support::program;

const SAMPLES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/data/samples");

/// The command of a client whose home directory is `dir`.
fn client(role: &str, server: SocketAddr, dir: &Path) -> Command {
    let mut command = program(role);
    command.args(["--server", &server.to_string()]).env("XDG_CONFIG_HOME", dir).env("P2S2_PASSWORD", "secret");
    command.current_dir(SAMPLES);
    command
}

/// Runs a command and returns its exit code, stdout and stderr.
fn run(command: &mut Command, input: &str) -> (i32, String, String) {
    let command = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

#[track_caller]
fn run_ok(command: &mut Command, args: &[&str]) -> String {
    let (code, output, error) = run(command.args(args), "");
    assert_eq!(code, 0, "{args:?}: {output}{error}");
    output
}

#[test]
fn every_api_is_a_command_of_a_pipe() {
    let shop = Shop::in_one_process(&[]);
    let input = "create-account sam --name \"Sam's Stall\"\nlogin sam\n\
                 sell \"Brass Lamp\" 3 10.50 5 --keywords lamp,brass --used\nprice 3-1 12\nunits 3-1 -2\nitem 3-1\n\
                 items --limit 1\nrating\norders\nlogout\n";
    let (code, output, error) = run(&mut client("seller", shop.seller, shop.dir.path()), input);
    assert!(code == 0 && error.is_empty(), "{output}{error}");
    for expected in [
        "sam has an account",
        "logged in as sam (seller 1)",
        "on sale as 3-1: 5 of Brass Lamp for 10.50",
        "3-1 is 12.00 now",
        "3 of 3-1 now",
        "3-1   Brass Lamp  12.00    3  used       +0 -0  sam (1)  lamp brass",
        "0 units sold",
        "nothing was sold yet",
        "logged out",
    ] {
        assert!(output.contains(expected), "{expected:?} is missing: {output}");
    }
    let input = "create-account bob\nlogin bob\nsearch --category 3 LAMP\nitem 3-1\nadd 3-1 2\nremove 3-1 1\ncart\nsave\n\
                 purchase --wallet wallet-bob.json --key k\nvote 3-1 up\nrating 1\npurchases\nadd 3-1\nclear\ncart\nquit\n\
                 never\n";
    let (code, output, _) = run(&mut client("buyer", shop.buyer, shop.dir.path()), input);
    assert_eq!(code, 0, "{output}");
    for expected in [
        "1 item\n",
        "1 of 3-1 left in the cart",
        "the cart is kept",
        "bought for 12.00: purchase ",
        "+1 -0 (100 % up), 1 unit sold",
        "PURCHASE ",
        "the cart is empty",
    ] {
        assert!(output.contains(expected), "{expected:?} is missing: {output}");
    }
    assert!(!output.contains("error") && !output.contains('\x1b'), "{output}");
    let (_, orders, _) =
        run(client("seller", shop.seller, shop.dir.path()).args(["--user", "sam", "--json"]), "orders\n");
    let order: Value = serde_json::from_str(orders.lines().last().unwrap()).unwrap();
    let line = &order["items"][0];
    assert_eq!(
        (&line["payout"], &line["buyer_name"], &line["shipped_at"]),
        (&json!(10.8), &json!("bob"), &Value::Null)
    );
    assert!(line["address"].as_str().unwrap().starts_with("Bob Okafor"));
    let input = format!("ship {} 3-1\n", line["purchase_id"].as_str().unwrap());
    let (_, output, _) = run(client("seller", shop.seller, shop.dir.path()).args(["--user", "sam"]), &input);
    assert!(output.contains("shipped 3-1"), "{output}");
}

#[test]
fn what_fails_is_an_error_and_the_loop_goes_on() {
    let shop = Shop::in_one_process(&[]);
    let input = "cart\nbogus\nadd\nsearch --colour red\nadd 9-9\ncreate-account bob\nlogin bob\nadd 9-9\n\"open\n\
                 purchase\nhelp\nhelp search\ncart\n";
    let (code, output, _) = run(&mut client("buyer", shop.buyer, shop.dir.path()), input);
    assert_eq!(code, 0);
    assert_eq!(output.lines().filter(|line| line.starts_with("error: ")).count(), 8, "{output}");
    assert!(output.contains("there is no command \"bogus\"") && output.contains("--category <N>"), "{output}");
    assert!(output.ends_with("the cart is empty\n"), "{output}");
    // The JSON output has the error code.
    let (code, output, _) =
        run(client("buyer", shop.buyer, shop.dir.path()).arg("--json"), "login bob\nadd 9-9\ncart\n");
    let lines: Vec<Value> = output.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((code, lines.len()), (0, 4), "{output}");
    assert_eq!((&lines[1]["ok"], &lines[1]["buyer_id"]), (&json!("login"), &json!(1)));
    assert_eq!((&lines[2]["code"], &lines[3]), (&json!("NOT_FOUND"), &json!({"ok": "cart", "cart": []})));
    // Without a terminal nobody can be asked for a password, and it is not read from the commands.
    let (_, output, _) = run(client("buyer", shop.buyer, shop.dir.path()).env_remove("P2S2_PASSWORD"), "login bob\n");
    assert!(output.contains("P2S2_PASSWORD"), "{output}");
}

#[test]
fn one_login_serves_the_calls_that_follow() {
    let mut shop = Shop::in_four_processes(&[], &[]);
    let home = tempfile::tempdir().unwrap();
    let (seller, buyer) = (shop.seller, shop.buyer);
    let sell = |args: &[&str]| run_ok(&mut client("seller", seller, home.path()), args);
    let buy = |args: &[&str]| run_ok(&mut client("buyer", buyer, home.path()), args);
    sell(&["create-account", "sam"]);
    sell(&["login", "sam"]);
    assert_eq!(sell(&["load", "shop.json"]), "61 items on sale\n");
    buy(&["create-account", "bob"]);
    // HOST and PORT as two arguments.
    let mut two_words = program("buyer");
    two_words.args([&buyer.ip().to_string(), &buyer.port().to_string()]);
    two_words.env("XDG_CONFIG_HOME", home.path()).env("P2S2_PASSWORD", "secret");
    run_ok(&mut two_words, &["login", "bob"]);
    let found: Value = serde_json::from_str(&buy(&["search", "--category", "1", "phone", "--json"])).unwrap();
    let names: Vec<&str> =
        found["items"].as_array().unwrap().iter().filter_map(|it| it["item_name"].as_str()).collect();
    assert_eq!(found["total"], 4, "{found}");
    assert!(names.contains(&"Phone Case, clear"), "{names:?}");
    let item = found["items"][0]["item_id"].as_str().unwrap();
    buy(&["add", item, "2"]);
    // Frontends are stateless: another one goes on with the session and its cart.
    shop.components[BUYER].kill_and_restart();
    assert!(buy(&["cart"]).contains(item));
    assert!(buy(&["purchase", "--wallet", "wallet-bob.json"]).contains("bought for "));
    let (code, output, error) = run(client("buyer", buyer, home.path()).args(["add", item, "9999"]), "");
    assert!(code == 1 && output.is_empty() && error.starts_with("error: "), "{output}{error}");
    for wrong in [&["search", "--category", "x"][..], &["bogus"], &["add"], &["--server", "a:b:c", "cart"]] {
        assert_eq!(run(client("buyer", buyer, home.path()).args(wrong), "").0, 2, "{wrong:?}");
    }
    let kept: Vec<_> =
        std::fs::read_dir(home.path().join("p2s2")).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(kept.len(), 4, "a session and who has it, for each role: {kept:?}");
    for path in &kept {
        #[cfg(unix)]
        assert_eq!(std::os::unix::fs::MetadataExt::mode(&path.metadata().unwrap()) & 0o777, 0o600, "{path:?}");
        assert!(!std::fs::read_to_string(path).unwrap().contains("secret"), "{path:?}");
    }
    buy(&["logout"]);
    assert_eq!(run(client("buyer", buyer, home.path()).arg("cart"), "").0, 1);
    // A user who is named and has no session is logged in.
    assert_eq!(buy(&["cart", "--user", "bob"]), "the cart is empty\n");
    assert_eq!(buy(&["cart"]), "the cart is empty\n");
}

#[test]
fn a_catalogue_with_a_wrong_item_lists_nothing() {
    let shop = Shop::in_one_process(&[]);
    let file = shop.dir.path().join("items.json");
    let good = json!({"item_name": "A", "category": 1, "keywords": [], "condition": "new", "price": 1, "quantity": 1});
    std::fs::write(&file, json!([good, merge(good.clone(), json!({"price": 0}))]).to_string()).unwrap();
    let input = format!("create-account sam\nlogin sam\nload '{}'\nitems\n", file.display());
    let (_, output, _) = run(&mut client("seller", shop.seller, shop.dir.path()), &input);
    assert!(output.contains("item 2: price: expected") && output.contains("nothing is on sale"), "{output}");
}

#[test]
fn a_client_goes_on_with_its_session_when_the_server_comes_back() {
    let mut shop = Shop::in_one_process(&[]);
    let mut command = client("buyer", shop.buyer, shop.dir.path());
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(child.stdout.take().unwrap()));
    let mut next = |expected: &str| {
        let line = lines.next().unwrap().unwrap();
        assert!(line.contains(expected), "{expected:?} expected: {line}");
    };
    next("a buyer at");
    input.write_all(b"create-account bob\nlogin bob\ncart\n").unwrap();
    next("has an account");
    next("logged in");
    next("the cart is empty");
    shop.components[0].kill();
    input.write_all(b"cart\n").unwrap();
    next("error: ");
    shop.components[0].kill_and_restart();
    input.write_all(b"cart\n").unwrap();
    next("the cart is empty");
    drop(input);
    assert!(child.wait().unwrap().success());
}

#[test]
fn tls_is_spoken_with_the_server_that_was_met_first() {
    let mut shop = Shop::in_one_process(&["--tls"]);
    let home = tempfile::tempdir().unwrap();
    let mut first = client("buyer", shop.buyer, home.path());
    let (code, output, note) = run(first.args(["--tls", "create-account", "bob"]), "");
    assert!(code == 0 && note.starts_with("note: the first contact"), "{output}{note}");
    let (code, _, note) = run(client("buyer", shop.buyer, home.path()).args(["--tls", "login", "bob"]), "");
    assert!(code == 0 && note.is_empty(), "{note}");
    let wrong = "0".repeat(64);
    let (code, _, error) = run(client("buyer", shop.buyer, home.path()).args(["--server-cert", &wrong, "cart"]), "");
    assert!(code == 1 && error.contains("cannot reach"), "{error}");
    // Another server in its place.
    std::fs::remove_file(shop.dir.path().join("state/identity.pem")).unwrap();
    shop.components[0].kill_and_restart();
    let (code, _, error) = run(client("buyer", shop.buyer, home.path()).args(["--tls", "cart"]), "");
    assert!(code == 1 && error.contains("cannot reach"), "{error}");
}

/// A server that sends this line as its response to the first request.
fn serve_one_response(line: &'static str) -> SocketAddr {
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let addr = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut request = [0; 4096];
        assert!(std::io::Read::read(&mut stream, &mut request).unwrap() > 0);
        stream.write_all(line.as_bytes()).unwrap();
    });
    addr
}

#[test]
fn what_a_server_says_in_words_of_its_own_is_told() {
    let home = tempfile::tempdir().unwrap();
    for (line, output) in [
        ("{\"status\":\"ERR\",\"error\":\"Invalid credentials\"}\n", "Invalid credentials"),
        ("{\"status\":\"ERR\",\"error\":{\"code\":\"E1\",\"message\":\"no such user\"}}\n", "no such user"),
        ("ERROR unknown command\r\n", "ERROR unknown command"),
    ] {
        let (code, _, error) = run(client("buyer", serve_one_response(line), home.path()).args(["login", "bob"]), "");
        assert!(code == 1 && error.contains(output) && error.contains("--server"), "{line}: {error}");
        assert_eq!(error.lines().count(), 1, "{error}");
    }
}

#[test]
fn a_shop_that_was_not_started_is_named_with_the_way_out() {
    let home = tempfile::tempdir().unwrap();
    let nobody = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap();
    let (code, _, error) = run(client("seller", nobody, home.path()).args(["login", "bob"]), "");
    assert!(code == 1 && error.contains(&nobody.to_string()), "{error}");
    assert!(error.contains("`p2s2 server`") && error.contains("--server HOST:PORT"), "{error}");
}
