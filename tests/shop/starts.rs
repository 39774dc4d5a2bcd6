//! Starting components on a machine without any files yet.

use p2s2::internals::storage::backup::DataComponent;
use p2s2::internals::storage::lock::DataDirLock;
use serde_json::json;

use crate::shop::*;
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
        let ready_file = dir.path().join("ready.json");
        // In an empty directory, with no arguments but the port.
        let mut child = program(command)
            .current_dir(dir.path())
            .args(["--port", "0", "--ready-file"])
            .arg(&ready_file)
            .spawn()
            .unwrap();
        let ready = eventually(&format!("{command} to be ready"), || {
            assert!(child.try_wait().unwrap().is_none(), "{command} has ended");
            serde_json::from_str::<serde_json::Value>(&std::fs::read_to_string(&ready_file).ok()?).ok()
        });
        crate::support::signal(child.id(), libc::SIGTERM);
        assert!(child.wait().unwrap().success(), "{command}");
        assert!(ready[name].is_string(), "{command}: {ready}");
        assert!(dir.path().join("data/state/cluster.key").is_file(), "{command}");
    }
}

#[test]
fn each_component_makes_the_folder_for_its_certificate() {
    for (command, name) in [
        ("product-db", "product_db"),
        ("customer-db", "customer_db"),
        ("seller-server", "seller"),
        ("buyer-server", "buyer"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let ready_file = dir.path().join("ready.json");
        let mut child = KillOnDrop(
            program(command)
                .current_dir(dir.path())
                .args(["--port", "0", "--tls", "--ready-file"])
                .arg(&ready_file)
                .spawn()
                .unwrap(),
        );
        let ready = eventually(&format!("{command} to be ready"), || {
            assert!(child.0.try_wait().unwrap().is_none(), "{command} has ended");
            serde_json::from_str::<serde_json::Value>(&std::fs::read_to_string(&ready_file).ok()?).ok()
        });
        assert!(ready[name].is_string() && dir.path().join("data/state/identity.pem").is_file(), "{command}: {ready}");
    }
}

/// Kills the process when dropped.
struct KillOnDrop(std::process::Child);

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn nothing_is_written_into_a_data_dir_that_another_process_has() {
    let of_server = ("server", DataComponent::Customer);
    for (command, part) in [("product-db", DataComponent::Product), ("customer-db", DataComponent::Customer), of_server]
    {
        let dir = tempfile::tempdir().unwrap();
        let held = DataDirLock::acquire_component(dir.path(), part).unwrap();
        let refused =
            program(command).args(["--data-dir"]).arg(dir.path()).env("P2S2_SERVER_SERVICES", "shop").output().unwrap();
        let error = String::from_utf8_lossy(&refused.stderr);
        assert_eq!(refused.status.code(), Some(1), "{command}: {error}");
        assert!(error.contains("is in use by process"), "{command}: {error}");
        let left = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name());
        let left: Vec<_> = left.filter(|name| !name.to_string_lossy().starts_with("lock")).collect();
        assert!(left.is_empty(), "{command}: {left:?}");
        drop(held);
    }
}

#[test]
fn a_database_whose_address_cannot_be_one_is_refused_at_the_start() {
    for command in ["seller-server", "buyer-server"] {
        for flag in ["--product", "--customer"] {
            for wrong in ["nonsense", "host:0", "http://host:9001", "1.2.3:9001", "0.0.0.0:9001"] {
                let dir = tempfile::tempdir().unwrap();
                let refused =
                    program(command).current_dir(dir.path()).args(["--port", "0", flag, wrong]).output().unwrap();
                let error = String::from_utf8_lossy(&refused.stderr);
                assert_eq!(refused.status.code(), Some(2), "{command} {flag} {wrong}: {error}");
                assert!(error.contains(flag) && error.contains(wrong), "{error}");
            }
        }
    }
}

#[test]
fn a_database_that_does_not_answer_is_named_at_the_start_and_when_it_comes() {
    let dir = tempfile::tempdir().unwrap();
    let strings = |args: &[&str]| args.iter().map(|arg| (*arg).to_owned()).collect::<Vec<_>>();
    let state = dir.path().join("state").display().to_string();
    let key = dir.path().join("state/cluster.key").display().to_string();
    let mut customer = Component::start(dir.path(), "customer-db", &strings(&["--port", "0", "--data-dir", &state]));
    let mut product = Component::start(dir.path(), "product-db", &strings(&["--port", "0", "--data-dir", &state]));
    let at = [("--product", product.addr("product_db")), ("--customer", customer.addr("customer_db"))];
    product.kill();
    customer.kill();
    let mut args = strings(&["--port", "0", "--cluster-key", &key]);
    args.extend(at.iter().flat_map(|(flag, addr)| [(*flag).to_owned(), addr.to_string()]));
    let _seller = Component::start(dir.path(), "seller-server", &args);
    let log = || std::fs::read_to_string(dir.path().join("seller-server.log")).unwrap();
    for (flag, addr) in at {
        // No request has been made yet.
        eventually(&format!("{flag} to be named"), || {
            let named = format!("{addr} ({flag}) cannot be reached");
            log().lines().any(|line| line.contains("WARN") && line.contains(&named)).then_some(())
        });
    }
    product.kill_and_restart();
    customer.kill_and_restart();
    for (_, addr) in at {
        let there = format!("at {addr} is there");
        eventually(&there, || log().lines().any(|line| line.contains("INFO") && line.contains(&there)).then_some(()));
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

#[test]
fn databases_that_run_alone_take_a_backup_up_once_and_give_no_id_twice() {
    let dir = tempfile::tempdir().unwrap();
    let (archive, again) = (dir.path().join("backup.tar"), dir.path().join("again"));
    let admin = |arguments: &[&str], state: &std::path::Path| {
        let output = program("admin").args(arguments).arg(&archive).arg("--data-dir").arg(state).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    let sold = |shop: &Shop, name: &str| {
        let mut seller = Client::connect(shop.seller, Framing::Lines);
        let account = json!({"username": name, "password": "secret"});
        let id = seller.call("CreateAccount", account).unwrap()["seller_id"].as_u64().unwrap();
        seller.log_in(name);
        let item = seller.call("RegisterItemForSale", lamp(1.0, 1)).unwrap()["item_id"].clone();
        (id, item.as_str().unwrap().rsplit('-').next().unwrap().parse::<u64>().unwrap())
    };
    let joined = |shop: &Shop, name: &str| {
        let account = json!({"username": name, "password": "secret"});
        Client::connect(shop.buyer, Framing::Lines).call("CreateAccount", account).unwrap()["buyer_id"]
            .as_u64()
            .unwrap()
    };
    let shop = Shop::in_one_process(&[]);
    assert_eq!((sold(&shop, "before"), joined(&shop, "before")), ((1, 1), 1));
    admin(&["backup"], &shop.dir.path().join("state"));
    assert_eq!((sold(&shop, "after"), joined(&shop, "after")), ((2, 2), 2));
    drop(shop);

    admin(&["restore"], &again);
    let mut shop = Shop::in_four_processes_on(dir, [&again, &again], &[], &[]);
    let (seller, item) = sold(&shop, "anew");
    let buyer = joined(&shop, "anew");
    assert!(seller > 2 && item > 2 && buyer > 2, "{seller} {item} {buyer}");
    for part in [PRODUCT, CUSTOMER] {
        shop.components[part].kill_and_restart();
    }
    eventually("the shop to be whole again", || {
        let mut client = Client::connect(shop.seller, Framing::Lines);
        client.call("Login", json!({"username": "before", "password": "secret"})).ok()
    });
    // From here on the numbers are consecutive.
    assert_eq!((sold(&shop, "last"), joined(&shop, "last")), ((seller + 1, item + 1), buyer + 1));
}
