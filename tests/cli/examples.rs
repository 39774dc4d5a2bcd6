//! The programs in `examples/`, each against a server.

use std::fs;
use std::net::{Ipv4Addr, UdpSocket};
use std::process::Command;

use serde_json::Value;

use crate::support::{Server, build_example, program};

/// What an example prints.
fn output(name: &str, args: &[&str]) -> String {
    let output = Command::new(build_example(name).join(name)).args(args).output().unwrap();
    assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn each_example_does_what_it_says() {
    let ports = ["--seller-port", "0", "--buyer-port", "0", "--registry-port", "0", "--api-port", "0"];
    let links =
        ["--product-port", "0", "--customer-port", "0", "--offer-window", "100ms", "--services", "trade,shop,share"];
    let server = Server::start(&[&ports[..], &links].concat());
    let ready: Value = serde_json::from_str(&fs::read_to_string(server.dir.join("ready.json")).unwrap()).unwrap();
    let at = |key: &str| ready[key].as_str().unwrap_or_else(|| panic!("{key}: {ready}"));

    let trade = output("trade", &[at("trade_udp")]);
    assert!(trade.contains("desk lamp: nobody sells one\n"), "{trade}");
    let shop = output("shop", &[at("buyer"), at("seller")]);
    assert!(shop.contains("finds \"Desk lamp\" for 24.9") && shop.contains("\"quantity\":1"), "{shop}");
    let registry = output("registry", &[at("registry")]);
    assert!(registry.contains(" has 1234 bytes of notes.txt at 127.0.0.1:9100\n"), "{registry}");
    assert_eq!(server.stop(), 0);
}

#[test]
fn an_example_goes_where_a_server_is_by_default() {
    let help = String::from_utf8(program("server").arg("--help").output().unwrap().stdout).unwrap();
    let default_port = |flag: &str| {
        let after_flag = &help[help.find(flag).unwrap_or_else(|| panic!("{flag}: {help}"))..];
        let default = after_flag.split("[default: ").nth(1).unwrap();
        default[..default.find(']').unwrap()].to_owned()
    };
    let source = |name: &str| {
        fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/").to_owned() + name + ".rs").unwrap()
    };
    for (name, variable, flag) in [
        ("trade", "server", "--trade-port"),
        ("shop", "buyers", "--buyer-port"),
        ("shop", "sellers", "--seller-port"),
        ("registry", "at", "--registry-port"),
    ] {
        let source = source(name);
        let line = source.lines().find(|line| line.contains(&format!("let {variable}")) && line.contains("127.0.0.1:"));
        let port = default_port(flag);
        assert!(line.unwrap().contains(&format!("\"127.0.0.1:{port}\"")), "{name}: {flag} is {port}, but {line:?}");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn peers_of_the_example_meet() {
    // A discovery port that nobody uses now: only peers bind it as they do.
    let port = (30_000..31_000).find(|port| UdpSocket::bind((Ipv4Addr::new(127, 255, 255, 255), *port)).is_ok());
    let said = output("lan", &[&port.unwrap().to_string()]);
    assert!(said.contains("ann sees bob@127.0.0.1") && said.contains("bob reads: \"Hello, Bob\""), "{said}");
}
