//! A server that is bound to one address of a network offers everything that it offers on loopback.

use std::net::SocketAddr;
use std::process::Child;

use serde_json::Value;

use crate::netns::Lan;
use crate::support::{eventually, program};

/// A process that is killed when dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // Fails if it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_server_that_is_bound_to_one_address_has_a_shop_with_tls_and_without() {
    let Some(lan) = Lan::new(2) else { return };
    for guard in ["--insecure", "--tls"] {
        let dir = tempfile::tempdir().unwrap();
        let ready = dir.path().join("ready.json");
        let log = std::fs::File::create(dir.path().join("log")).unwrap();
        let mut command = program("server");
        command.args(["--services", "shop", "--bind", &lan.ip(0).to_string(), guard, "--no-announce"]);
        command.args(["--product-port", "0", "--customer-port", "0", "--seller-port", "0", "--buyer-port", "0"]);
        command.arg("--data-dir").arg(dir.path().join("state")).arg("--ready-file").arg(&ready);
        command.stdout(log.try_clone().unwrap()).stderr(log);
        let mut server = Running(lan.run_in(0, command).spawn().unwrap());
        let said = || std::fs::read_to_string(dir.path().join("log")).unwrap();
        let told: Value = eventually("the server to be ready", || {
            assert!(server.0.try_wait().unwrap().is_none(), "{}", said());
            serde_json::from_str(&std::fs::read_to_string(&ready).ok()?).ok()
        });
        let addr = |name: &str| told[name].as_str().unwrap().parse::<SocketAddr>().unwrap();
        assert_eq!(addr("buyer").ip(), lan.ip(0));
        for name in ["seller", "buyer"] {
            let mut client = program(name);
            client.args(["--server", &addr(name).to_string(), "create-account", "ann"]);
            client.env("P2S2_PASSWORD", "a secret").env("XDG_CONFIG_HOME", dir.path());
            if guard == "--tls" {
                client.arg("--tls");
            }
            // From the other host and from its own.
            let made = lan.run_in(usize::from(name == "buyer"), client).output().unwrap();
            let error = String::from_utf8_lossy(&made.stderr).into_owned();
            assert!(made.status.success(), "{guard} {name}: {error}; {}", said());
        }
        assert!(!said().contains("cannot be reached"), "{guard}: {}", said());
    }
}
