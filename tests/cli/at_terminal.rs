//! The interactive commands at a terminal and, for comparison, in a pipe.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::support::{GOOD_CARD, Server, eventually, program, signal};
use crate::terminal::{ARROW_UP, CTRL_C, CTRL_D, ENTER, TAB, Terminal};

const PASSWORD: &str = "cOrrect-hOrse";

/// A server with trade and shop.
fn trade_and_shop_server() -> Server {
    let ports = ["--product-port", "--customer-port", "--seller-port", "--buyer-port"];
    let ports = ports.into_iter().flat_map(|port| [port, "0"]);
    Server::start(&["--services", "trade,shop"].into_iter().chain(ports).collect::<Vec<_>>())
}

/// A shop client whose configuration is in the server's folder.
fn client(server: &Server, role: &str) -> Command {
    let ready: Value = serde_json::from_str(&fs::read_to_string(server.dir.join("ready.json")).unwrap()).unwrap();
    let mut client = program(role);
    client.args(["--server", ready[role].as_str().unwrap()]).env("XDG_CONFIG_HOME", server.dir.join("home"));
    client.current_dir(&server.dir);
    client
}

fn peer(server: &Server, name: &str) -> Command {
    let mut peer = program("peer");
    peer.args(["--name", name, "--server", &server.addr.to_string(), "--data-dir"]).arg(server.dir.join(name));
    peer
}

/// Runs a client with piped input; returns standard output and standard error.
fn run_piped(client: &mut Command, input: &str) -> String {
    let client = client.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = client.spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap()).concat();
    assert_eq!(output.status.code(), Some(0), "{said}");
    said
}

/// Creates an account through a pipe.
fn has_account(server: &Server, role: &str, name: &str) {
    run_piped(client(server, role).env("P2S2_PASSWORD", PASSWORD), &format!("create-account {name}\n"));
}

/// A file of items for `seller load`.
fn shop_items(dir: &Path, count: usize) -> std::path::PathBuf {
    let item = |nth| {
        json!({"item_name": format!("Lamp {nth}"), "category": 3, "keywords": ["lamp"], "condition": "New",
            "price": 10.5, "quantity": 2})
    };
    let file = dir.join("items.json");
    fs::write(&file, Value::from_iter((0..count).map(item)).to_string()).unwrap();
    file
}

/// Types a secret; only blanks may appear between its prompt and the next one.
#[track_caller]
fn types_hidden(terminal: &mut Terminal, prompt: &str, secret: &str, next: &str) {
    terminal.sees(prompt);
    terminal.types(secret);
    terminal.types(ENTER);
    let shown = terminal.sees(next).replace(prompt, "");
    assert!(shown.trim().is_empty(), "{prompt:?} shows {shown:?}");
}

#[test]
fn a_buyer_at_a_terminal_is_prompted_and_its_secrets_are_not_shown() {
    let server = trade_and_shop_server();
    has_account(&server, "seller", "sam");
    let items = shop_items(&server.dir, 1);
    let sell = format!("login sam\nload {}\n", items.display());
    run_piped(client(&server, "seller").env("P2S2_PASSWORD", PASSWORD), &sell);

    let mut buyer = Terminal::start(&mut client(&server, "buyer"));
    buyer.sees("`help` lists the commands");
    buyer.sees("buyer> ");
    buyer.types("create-account bob\r");
    types_hidden(&mut buyer, "Password: ", PASSWORD, "The same again: ");
    buyer.types("another\r");
    buyer.sees("error: these were two passwords, not one");
    buyer.sees("buyer> ");
    buyer.types("create-account bob\r");
    types_hidden(&mut buyer, "Password: ", PASSWORD, "The same again: ");
    buyer.types(PASSWORD);
    buyer.types(ENTER);
    let shown = buyer.sees("bob has an account").replace("The same again: ", "");
    assert!(shown.trim().is_empty(), "{shown:?}");
    buyer.sees("buyer> ");
    // Empty input is an error, and the loop continues.
    buyer.types("login bob\r");
    buyer.sees("Password: ");
    buyer.types(CTRL_D);
    buyer.sees("error: nothing was entered");
    buyer.sees("buyer> ");
    buyer.types("login bob\r");
    types_hidden(&mut buyer, "Password: ", PASSWORD, "logged in as bob");
    buyer.sees("buyer> ");
    // Item ids from earlier output are completed.
    buyer.types("search lamp\r");
    buyer.sees("3-1");
    buyer.sees("1 item");
    buyer.sees("buyer> ");
    buyer.types("add 3");
    buyer.types(TAB);
    buyer.sees("add 3-1");
    buyer.types(" 2\r");
    buyer.sees("2 more of 3-1 in the cart");
    buyer.sees("buyer> ");
    // An invalid card number gives an error that does not repeat it.
    buyer.types("purchase\r");
    types_hidden(&mut buyer, "Card number: ", "4999", "error: card number: ");
    buyer.sees("buyer> ");
    buyer.types("purchase\r");
    types_hidden(&mut buyer, "Card number: ", GOOD_CARD, "Good until (MM/YY): ");
    buyer.types("12/39\r");
    buyer.sees("12/39");
    buyer.sees("Address (may be empty): ");
    buyer.types("1 Elm Street\r");
    buyer.sees("1 Elm Street");
    buyer.sees("bought for 21.00: purchase ");
    buyer.sees("buyer> ");
    buyer.types(CTRL_D);
    let (code, all) = buyer.ends();
    assert_eq!(code, 0, "{all:?}");
    for secret in [PASSWORD, "another", "4999", "4111"] {
        assert!(!all.contains(secret), "{secret} is shown: {all:?}");
    }
    // Answers to prompts are not added to the history.
    let history = fs::read_to_string(server.dir.join("home/p2s2/buyer-history")).unwrap();
    assert!(history.contains("login bob") && history.contains("purchase"), "{history}");
    for answer in [PASSWORD, "another", "4999", "4111", "12/39", "Elm"] {
        assert!(!history.contains(answer), "{history}");
    }
}

#[test]
fn commands_are_completed_and_remembered_at_a_terminal() {
    let server = trade_and_shop_server();
    for (role, begun, whole, answer) in [
        ("seller", "cre", "create-account", "error: the following required arguments were not provided"),
        ("buyer", "sear", "search", "error: "),
    ] {
        let mut terminal = Terminal::start(&mut client(&server, role));
        let prompt = format!("{role}> ");
        terminal.sees(&prompt);
        terminal.types(begun);
        terminal.types(TAB);
        terminal.sees(whole);
        terminal.types(ENTER);
        terminal.sees(answer);
        terminal.sees(&prompt);
        terminal.types("bogus words\r");
        terminal.sees("error: there is no command \"bogus\"");
        terminal.sees(&prompt);
        terminal.types(ARROW_UP);
        terminal.sees("bogus words");
        terminal.types(ARROW_UP);
        terminal.sees(whole);
        terminal.types(CTRL_C);
        assert_eq!(terminal.ends().0, 0);
        // The history is also there in the next session.
        let mut terminal = Terminal::start(&mut client(&server, role));
        terminal.sees(&prompt);
        terminal.types(ARROW_UP);
        terminal.sees("bogus words");
        terminal.types(ENTER);
        terminal.sees("error: there is no command");
        terminal.sees(&prompt);
        terminal.types(CTRL_D);
        assert_eq!(terminal.ends().0, 0);
    }
    let mut alice = Terminal::start(&mut peer(&server, "alice"));
    alice.sees("alice> ");
    alice.types("ite");
    alice.types(TAB);
    alice.sees("items");
    alice.types(ENTER);
    alice.sees("nothing is on sale");
    alice.sees("alice> ");
    // Several commands match, so they are listed.
    alice.types("l");
    alice.types(TAB);
    alice.types(TAB);
    alice.sees("load");
    alice.sees("leave");
    alice.types("\x15");
    alice.types(ARROW_UP);
    alice.sees("alice> items");
    alice.types(ENTER);
    alice.sees("nothing is on sale");
    alice.sees("alice> ");
    alice.types(CTRL_D);
    let (code, all) = alice.ends();
    assert_eq!(code, 0, "{all:?}");
}

#[test]
fn a_seller_at_a_terminal_sees_how_far_a_load_is() {
    let server = trade_and_shop_server();
    has_account(&server, "seller", "sam");
    let items = shop_items(&server.dir, 300);
    let load = format!("load {}", items.display());
    let mut seller = Terminal::start(client(&server, "seller").args(["--user", "sam"]));
    types_hidden(&mut seller, "Password: ", PASSWORD, "logged in as sam");
    seller.sees("sam> ");
    seller.types(&load);
    seller.types(ENTER);
    seller.sees(" % ");
    seller.sees("300 items on sale");
    seller.sees("sam> ");
    seller.types("load /nowhere.json\r");
    seller.sees("error: /nowhere.json: ");
    seller.sees("sam> ");
    seller.types(CTRL_D);
    let (code, all) = seller.ends();
    assert_eq!(code, 0);
    let bar = all.find('█').unwrap_or_else(|| panic!("no bar: {all:?}"));
    let (_, after) = all[bar..].split_once("300 items on sale").unwrap();
    assert!(!after.contains('█') && !after.contains('░'), "the bar goes when it is done: {all:?}");

    // As a one-shot command.
    let mut once = client(&server, "seller");
    once.args(["--user", "sam", "load"]).arg(&items).env("P2S2_PASSWORD", PASSWORD);
    let mut once = Terminal::start(&mut once);
    once.sees(" % ");
    once.sees("300 items on sale");
    assert_eq!(once.ends().0, 0);
    let said = run_piped(client(&server, "seller").args(["--user", "sam", "load"]).arg(&items), "");
    assert_eq!(said, "300 items on sale\n", "no bar in a pipe");
}

#[test]
fn what_happens_meanwhile_tears_no_line_that_is_typed() {
    let server = trade_and_shop_server();
    let mut alice = Terminal::start(&mut peer(&server, "alice"));
    alice.sees("alice> ");
    alice.types("sell lamp 20\r");
    alice.sees("1 of lamp on sale for 20.00");
    alice.sees("alice> ");
    alice.types("ite");
    alice.sees("ite");
    let mut bob = Terminal::start(&mut peer(&server, "bob"));
    bob.sees("bob> ");
    bob.types("find lamp 30\r");
    bob.sees("lamp for at most 30.00: 1 peer is asked");
    // Printed above the input line, which is redrawn.
    alice.sees("offered [");
    alice.sees("to someone who looks for lamp");
    alice.sees("alice> ite");
    alice.types("ms\r");
    alice.sees("MIN PRICE");
    alice.sees("alice> ");
    bob.sees("found [");
    bob.sees("] lamp for 20.00 from alice");
    bob.sees("bob> ");
    bob.types("cancel last\r");
    bob.sees("cancelled [");
    alice.sees("cancelled [");
    alice.sees("alice> ");
    // A signal also ends it in the middle of a line.
    alice.types("half a li");
    alice.sees("half a li");
    signal(alice.pid(), libc::SIGTERM);
    let (code, all) = alice.ends();
    assert_eq!(code, 0, "{all:?}");
    assert!(all.ends_with('\n'), "the shell's prompt begins a line: {all:?}");
    assert!(all.rfind("\x1b[?2004l") > all.rfind("\x1b[?2004h"), "pastes are bracketed no more: {all:?}");
    bob.types(CTRL_D);
    assert_eq!(bob.ends().0, 0);
}

#[test]
fn a_peer_without_a_name_is_asked_for_it_at_a_terminal() {
    let server = trade_and_shop_server();
    let mut command = program("peer");
    command.args(["--server", &server.addr.to_string(), "--data-dir"]).arg(server.dir.join("peer"));
    let mut carol = Terminal::start(&mut command);
    carol.sees("Your name: ");
    carol.types(ENTER);
    carol.sees("1 to 64 characters");
    carol.sees("Your name: ");
    carol.types("carol\r");
    carol.sees("registered as carol");
    carol.sees("carol> ");
    carol.types("quit\r");
    assert_eq!(carol.ends().0, 0);
}

#[test]
fn there_are_colours_at_a_terminal_alone() {
    let server = trade_and_shop_server();
    let red = "\x1b[31merror:\x1b[0m";
    let commands = || [client(&server, "buyer"), client(&server, "seller"), peer(&server, "alice")];
    for (mut command, prompt) in commands().into_iter().zip(["buyer> ", "seller> ", "alice> "]) {
        let mut terminal = Terminal::start(&mut command);
        terminal.sees(prompt);
        terminal.types("bogus\r");
        terminal.sees("error: there is no command");
        terminal.sees(prompt);
        terminal.types("help\r");
        terminal.sees("COMMAND");
        terminal.sees(prompt);
        terminal.types(CTRL_D);
        let (code, all) = terminal.ends();
        assert!(code == 0 && all.contains(red), "{all:?}");
    }
    let words = "bogus\nhelp\n\"open\nlogin nobody\n";
    for mut command in commands() {
        let said = run_piped(command.env("P2S2_PASSWORD", PASSWORD), words);
        assert!(said.contains("error: there is no command") && said.contains("COMMAND"), "{said}");
        assert!(!said.contains('\x1b') && !said.contains("buyer> "), "{said:?}");
    }
    // Nor at a terminal without escape codes.
    for mut command in commands() {
        let mut terminal = Terminal::start_as("dumb", &mut command);
        terminal.sees("`help` lists the commands");
        terminal.types("bogus\r");
        terminal.sees("error: there is no command");
        terminal.types(CTRL_D);
        let (code, all) = terminal.ends();
        assert!(code == 0 && !all.contains('\x1b'), "{all:?}");
    }
}

#[test]
fn a_terminal_for_the_input_alone_draws_nothing_into_a_pipe() {
    let server = trade_and_shop_server();
    for (command, name) in [(client(&server, "buyer"), "buyer"), (peer(&server, "alice"), "alice")] {
        // Standard output is redirected by a shell.
        let mut shell = Command::new("sh");
        shell.args(["-c", "exec \"$0\" \"$@\" >printed"]).arg(command.get_program()).args(command.get_args());
        for (variable, value) in command.get_envs() {
            match value {
                Some(value) => shell.env(variable, value),
                None => shell.env_remove(variable),
            };
        }
        let folder = server.dir.join(format!("{name}-folder"));
        fs::create_dir_all(&folder).unwrap();
        let mut terminal = Terminal::start(shell.current_dir(&folder));
        let printed = || fs::read_to_string(folder.join("printed")).unwrap_or_default();
        eventually("the program to begin", || printed().contains("`help` lists the commands").then_some(()));
        terminal.types("bogus\r");
        eventually("the error", || printed().contains("error: there is no command").then_some(()));
        terminal.types(CTRL_D);
        assert_eq!(terminal.ends().0, 0);
        assert!(!printed().contains('\x1b'), "{name}: {:?}", printed());
    }
}

/// The text as a terminal sends a bracketed paste.
fn paste(text: &str) -> String {
    format!("\x1b[200~{text}\x1b[201~")
}

#[test]
fn a_pasted_password_ends_at_its_line_break() {
    let server = trade_and_shop_server();
    let mut buyer = Terminal::start(client(&server, "buyer").args(["create-account", "bea"]));
    for prompt in ["Password: ", "The same again: "] {
        buyer.sees(prompt);
        buyer.types(&paste(&format!("{PASSWORD}\n")));
        buyer.types(ENTER);
    }
    buyer.sees("bea has an account");
    assert_eq!(buyer.ends().0, 0);
    let said = run_piped(client(&server, "buyer").env("P2S2_PASSWORD", PASSWORD), "login bea\n");
    assert!(said.contains("logged in as bea"), "{said}");
    // As from a file with Windows line endings.
    let said = run_piped(client(&server, "buyer").env("P2S2_PASSWORD", format!("{PASSWORD}\r\n")), "login bea\n");
    assert!(said.contains("logged in as bea"), "{said}");
}

#[test]
fn what_is_typed_ahead_goes_to_whoever_asks_next() {
    let server = trade_and_shop_server();
    let mut buyer = Terminal::start(&mut client(&server, "buyer"));
    buyer.sees("buyer> ");
    // All at once: commands and the answers to their prompts.
    buyer.types(&format!("create-account bea\r{PASSWORD}\r{PASSWORD}\rlogin bea\r{PASSWORD}\rcart\r"));
    buyer.sees("bea has an account");
    buyer.sees("logged in as bea");
    buyer.sees("the cart is empty");
    // The same as a paste.
    buyer.types(&paste(&format!("# a remark\nlogin bea\n{PASSWORD}\ncart\n")));
    buyer.types(ENTER);
    buyer.sees("logged in as bea");
    buyer.sees("the cart is empty");
    buyer.types(CTRL_D);
    let (code, all) = buyer.ends();
    assert!(code == 0 && !all.contains("error"), "{all:?}");
}

#[test]
fn an_end_of_input_that_is_typed_while_a_command_runs_is_kept() {
    let slow = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let home = Server::start(&["--services", "trade"]);
    let mut command = program("buyer");
    command.args(["--server", &slow.local_addr().unwrap().to_string()]);
    let mut buyer = Terminal::start(command.env("XDG_CONFIG_HOME", home.dir.join("home")).current_dir(&home.dir));
    buyer.sees("buyer> ");
    buyer.types("search 3 lamp\r");
    // The command is running and nobody reads the terminal.
    let (connection, _) = slow.accept().unwrap();
    buyer.types(CTRL_D);
    // The echo shows that it has arrived before the command ends.
    buyer.sees("^D");
    drop((connection, slow));
    buyer.sees("error: ");
    let (code, all) = buyer.ends();
    assert_eq!(code, 0, "{all:?}");
}
