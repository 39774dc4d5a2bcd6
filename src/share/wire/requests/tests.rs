use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::share::wire::FILE_SIZE_MAX;

fn refused(action: &str, data: Value) -> String {
    parse(json!({"action": action, "data": data}).to_string().as_bytes()).unwrap_err()
}

fn with(mut base: Value, field: &str, value: Value) -> Value {
    base[field] = value;
    base
}

fn without(mut base: Value, field: &str) -> Value {
    base.as_object_mut().unwrap().remove(field);
    base
}

#[test]
fn every_action_is_read_and_written() {
    let file = json!({"size": 1, "modified": 1_699_267_200.5, "created": 1, "published_at": 2, "is_published": false,
        "blake3": "ab".repeat(32), "pieces_root": "cd".repeat(32), "features": ["range", "x"]});
    let bare = json!({"size": 0, "modified": 0, "is_published": true});
    let published = without(with(with(file.clone(), "hostname", json!("ann")), "fname", json!("a")), "is_published");
    for (action, data) in [
        ("REGISTER", json!({"hostname": "ann", "port": 1024})),
        (
            "REGISTER",
            json!({"hostname": "ü".repeat(64), "port": 65535, "ip": "2001:db8::1", "display_name": "Ann",
                "files_metadata": {"a.txt": file, "b": bare}, "token": "t", "resume": "r"}),
        ),
        ("PUBLISH", with(published, "is_published", json!(true))),
        ("PUBLISH", json!({"hostname": "ann", "fname": "a", "size": 1, "modified": 2, "is_published": true})),
        ("UNPUBLISH", json!({"hostname": "ann", "fname": "a"})),
        ("REQUEST", json!({"fname": "a"})),
        ("DISCOVER", json!({"hostname": "ann"})),
        ("LIST", json!({"offset": 1, "limit": 0})),
        ("LIST", json!({})),
        ("PING", json!({"hostname": "ann", "state": "busy"})),
        ("UNREGISTER", json!({"hostname": "ann"})),
    ] {
        let line = json!({"action": action, "data": data});
        let read = parse(line.to_string().as_bytes()).unwrap();
        assert_eq!(serde_json::from_slice::<Value>(&read.write()).unwrap(), line);
        // Unknown fields are skipped, and null counts as absent.
        let more = with(with(line, "x", json!([1])), "data", with(with(data, "y", json!({})), "state", json!(null)));
        parse(more.to_string().as_bytes()).unwrap();
    }
    for line in [r#"{"action":"LIST"}"#, r#" {"action":"LIST","data":null} "#, r#"{"data":{},"action":"LIST"}"#] {
        assert!(matches!(parse(line.as_bytes()), Ok(RegistryRequest::List(list)) if list == ListRequest::default()));
    }
}

#[test]
fn errors_name_the_field() {
    let register = json!({"hostname": "ann", "port": 6001});
    let file = json!({"size": 1, "modified": 2, "is_published": true});
    let publish = json!({"hostname": "ann", "fname": "a", "size": 1, "modified": 2});
    for (field, action, data) in [
        ("hostname", "REGISTER", without(register.clone(), "hostname")),
        ("hostname", "REGISTER", with(register.clone(), "hostname", json!(""))),
        ("hostname", "REGISTER", with(register.clone(), "hostname", json!("x".repeat(65)))),
        ("hostname", "REGISTER", with(register.clone(), "hostname", json!("a\nb"))),
        ("hostname", "REGISTER", with(register.clone(), "hostname", json!(5))),
        ("port", "REGISTER", without(register.clone(), "port")),
        ("port", "REGISTER", with(register.clone(), "port", json!(1023))),
        ("port", "REGISTER", with(register.clone(), "port", json!(65536))),
        ("port", "REGISTER", with(register.clone(), "port", json!("6001"))),
        ("ip", "REGISTER", with(register.clone(), "ip", json!("localhost"))),
        ("ip", "REGISTER", with(register.clone(), "ip", json!(1))),
        ("display_name", "REGISTER", with(register.clone(), "display_name", json!("a\u{7}"))),
        ("token", "REGISTER", with(register.clone(), "token", json!(1))),
        ("token", "REGISTER", with(register.clone(), "token", json!("x".repeat(10_000)))),
        ("resume", "REGISTER", with(register.clone(), "resume", json!({}))),
        ("files_metadata", "REGISTER", with(register.clone(), "files_metadata", json!([]))),
        ("files_metadata: a", "REGISTER", with(register.clone(), "files_metadata", json!({"a": 1}))),
        ("files_metadata: a/b", "REGISTER", with(register.clone(), "files_metadata", json!({"a/b": file}))),
        ("fname", "PUBLISH", without(publish.clone(), "fname")),
        ("fname", "PUBLISH", with(publish.clone(), "fname", json!("../a"))),
        ("fname", "UNPUBLISH", json!({"hostname": "ann"})),
        ("fname", "REQUEST", json!({"fname": "x".repeat(256)})),
        ("fname", "REQUEST", json!({})),
        ("size", "PUBLISH", without(publish.clone(), "size")),
        ("size", "PUBLISH", with(publish.clone(), "size", json!(-1))),
        ("size", "PUBLISH", with(publish.clone(), "size", json!(1.5))),
        ("size", "PUBLISH", with(publish.clone(), "size", json!(FILE_SIZE_MAX + 1))),
        ("modified", "PUBLISH", without(publish.clone(), "modified")),
        ("modified", "PUBLISH", with(publish.clone(), "modified", json!("2026-01-01"))),
        ("created", "PUBLISH", with(publish.clone(), "created", json!(1e300))),
        ("published_at", "PUBLISH", with(publish.clone(), "published_at", json!([]))),
        ("blake3", "PUBLISH", with(publish.clone(), "blake3", json!("AB".repeat(32)))),
        ("pieces_root", "PUBLISH", with(publish.clone(), "pieces_root", json!("ab"))),
        ("features", "PUBLISH", with(publish.clone(), "features", json!("range"))),
        ("features", "PUBLISH", with(publish.clone(), "features", json!(vec!["x"; 17]))),
        ("features", "PUBLISH", with(publish.clone(), "features", json!(["x".repeat(33)]))),
        ("hostname", "DISCOVER", json!({})),
        ("hostname", "PING", json!({"state": "idle"})),
        ("state", "PING", json!({"hostname": "ann", "state": 1})),
        ("state", "PING", json!({"hostname": "ann", "state": "x".repeat(33)})),
        ("hostname", "UNREGISTER", json!({"hostname": [1]})),
        ("offset", "LIST", json!({"offset": -1})),
        ("limit", "LIST", json!({"limit": "all"})),
        ("action", "TELEPORT", json!({})),
        ("data", "LIST", json!([])),
        ("data", "LIST", json!("x")),
    ] {
        let reason = refused(action, data.clone());
        assert!(reason.starts_with(&format!("{field}: ")), "{action} {data}: {reason}");
        assert!(reason.contains("expected"), "{action} {data}: {reason}");
    }
    for field in ["size", "modified", "is_published"] {
        let files = json!({"a": without(file.clone(), field)});
        let reason = refused("REGISTER", with(register.clone(), "files_metadata", files));
        assert_eq!(reason, format!("files_metadata: a: {field}: expected, but missing"));
    }
    assert_eq!(parse(br#"{"data":{}}"#).unwrap_err(), "action: expected, but missing");
    assert_eq!(parse(b"\xff").unwrap_err(), "the message is not UTF-8");
    let twice = br#"{"action":"REGISTER","data":{"hostname":"a","port":6001,"port":6002}}"#;
    assert!(parse(twice).unwrap_err().contains("port"));
    let twice = br#"{"action":"REGISTER","data":{"hostname":"a","port":6001,"files_metadata":
        {"a":{"size":1,"modified":2,"is_published":true},"a":{"size":1,"modified":2,"is_published":true}}}}"#;
    assert_eq!(parse(twice).unwrap_err(), "files_metadata: a: expected once");
}

#[test]
fn what_was_said_is_not_said_back_at_length() {
    let long = "x".repeat(1 << 20);
    let reason = refused("REGISTER", json!({"hostname": "ann", "port": 6001, "files_metadata": {long.clone(): long}}));
    assert!(reason.len() < 1000, "{}", reason.len());
    let reason = refused("PUBLISH", json!({"hostname": "ann", "fname": "a", "size": 1, "modified": long}));
    assert!(reason.starts_with("modified: ") && reason.len() < 1000, "{}", reason.len());
    let deep = format!("{{\"action\":{}", "[".repeat(1 << 20));
    assert!(parse(deep.as_bytes()).unwrap_err().starts_with("expected {"));
}

#[test]
fn a_long_name_leaves_room_for_what_was_expected() {
    for name in ["x".repeat(256), "é".repeat(300), "x".repeat(1 << 20)] {
        let data = json!({"hostname": "a", "port": 6001, "files_metadata": {name: {}}});
        let reason = refused("REGISTER", data);
        assert!(reason.starts_with("files_metadata: ") && reason.contains("expected 1 to 255 bytes"), "{reason}");
    }
}

#[test]
fn types_are_called_as_in_json() {
    let publish = |field: &str, value| {
        let mut data = json!({"hostname": "ann", "fname": "a", "size": 1, "modified": 2});
        data[field] = value;
        refused("PUBLISH", data)
    };
    assert_eq!(publish("modified", json!("x")), r#"modified: invalid type: string "x", expected a number"#);
    assert_eq!(publish("features", json!("range")), r#"features: invalid type: string "range", expected a list"#);
}

#[test]
fn only_objects_are_requests() {
    for other in [r#"["UNREGISTER",{"hostname":"ann"}]"#, "[]", "7", r#""PING""#, "null"] {
        assert_eq!(parse(other.as_bytes()).unwrap_err(), r#"expected an object {"action":…,"data":{…}}"#, "{other}");
    }
    assert!(parse(br#"  {"action":"UNREGISTER","data":{"hostname":"ann"}} "#).is_ok());
    assert_eq!(parse(br#"{"action":"UNREGISTER","data":["ann"]}"#).unwrap_err(), "data: expected an object");
}

#[test]
fn a_host_may_have_so_many_files() {
    let files = |count: usize| {
        let files: Vec<String> =
            (0..count).map(|n| format!(r#""{n}":{{"size":1,"modified":2,"is_published":true}}"#)).collect();
        let list = files.join(",");
        parse(
            format!(r#"{{"action":"REGISTER","data":{{"hostname":"a","port":6001,"files_metadata":{{{list}}}}}}}"#)
                .as_bytes(),
        )
    };
    assert!(
        matches!(files(FILES_MAX), Ok(RegistryRequest::Register(register)) if register.files.as_ref().unwrap().len() == FILES_MAX)
    );
    assert_eq!(files(FILES_MAX + 1).unwrap_err(), "files_metadata: expected at most 100000 files");
}

proptest! {
    #[test]
    fn nonsense_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = parse(&bytes);
    }

    #[test]
    fn json_of_any_kind_never_panics(
        action in "REGISTER|PUBLISH|UNPUBLISH|REQUEST|DISCOVER|LIST|PING|UNREGISTER|x",
        fields in prop::collection::vec((
            "hostname|fname|port|ip|display_name|files_metadata|token|resume|offset|limit|state|size|modified|features",
            "[\\[\\]{}:,\"0-9a-c\\\\ .eE+-]{0,20}",
        ), 0..5),
    ) {
        let fields: Vec<String> = fields.iter().map(|(field, value)| format!("\"{field}\":{value}")).collect();
        let line = format!("{{\"action\":\"{action}\",\"data\":{{{}}}}}", fields.join(","));
        if let Ok(request) = parse(line.as_bytes()) {
            let written = request.write();
            prop_assert_eq!(parse(&written).unwrap().write(), written);
        }
    }
}
