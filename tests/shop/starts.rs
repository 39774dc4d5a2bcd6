//! Components on a machine that has nothing yet.

use crate::shop::Component;
use crate::support::{eventually, program};

#[test]
fn each_component_makes_what_it_needs() {
    for (command, name) in [
        ("product-db", "product_db"),
        ("customer-db", "customer_db"),
        ("seller-server", "seller"),
        ("buyer-server", "buyer"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let ready = dir.path().join("ready.json");
        // In an empty folder, with nothing said but the port.
        let mut child =
            program(command).current_dir(dir.path()).args(["--port", "0", "--ready-file"]).arg(&ready).spawn().unwrap();
        let told = eventually(&format!("{command} to be ready"), || {
            assert!(child.try_wait().unwrap().is_none(), "{command} has ended");
            serde_json::from_str::<serde_json::Value>(&std::fs::read_to_string(&ready).ok()?).ok()
        });
        crate::support::signal(child.id(), libc::SIGTERM);
        assert!(child.wait().unwrap().success(), "{command}");
        assert!(told[name].is_string(), "{command}: {told}");
        assert!(dir.path().join("data/state/cluster.key").is_file(), "{command}");
    }
}

#[test]
fn every_flag_may_be_an_environment_variable() {
    let dir = tempfile::tempdir().unwrap();
    let refused = program("buyer-server")
        .current_dir(dir.path())
        .args(["--port", "0"])
        .env("P2S2_BUYER_SERVER_BIND", "192.0.2.1")
        .output()
        .unwrap();
    let error = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && error.contains("192.0.2.1") && error.contains("--insecure"), "{error}");
    let key = dir.path().join("own.key");
    let args = ["--port", "0", "--data-dir"].map(str::to_owned).into_iter();
    let args: Vec<String> = args.chain([dir.path().join("state").display().to_string()]).collect();
    let product = Component::start_with(dir.path(), "product-db", &args, &[("P2S2_PRODUCT_DB_CLUSTER_KEY", &*key)]);
    assert!(key.is_file() && product.addr("product_db").port() > 0);
}
