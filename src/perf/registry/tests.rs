use super::*;

#[test]
fn the_limit_has_as_many_connections_as_are_left() {
    assert_eq!(limit_connections(1_000, 20_000).unwrap(), 1_000);
    assert_eq!(limit_connections(10_000, 20_000).unwrap(), 20_000 - 10_000 - SPARE_CONNECTIONS);
    assert_eq!(limit_connections(10_000, u64::MAX).unwrap(), 10_000);
    let error = limit_connections(10_000, 10_000).unwrap_err().to_string();
    assert!(error.contains("10564 open files") && error.contains("ulimit"), "{error}");
}

#[test]
fn calls_are_lines_of_json_about_those_who_are_there() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let at = listener.local_addr().unwrap();
    let population = HostPopulation { name_prefix: "perf-0000001".to_owned(), connections: 3 };
    let host = HostConnection::connect(at, name(&population.name_prefix, "host", ARRIVAL_BATCH + 1)).unwrap();
    for operation in OPERATIONS.iter().filter(|operation| **operation != "ARRIVAL") {
        for nth in 0..10 {
            let mut line = Vec::new();
            population.write(operation, &host, nth, &mut line);
            assert_eq!(line.pop(), Some(b'\n'));
            let call: Value = serde_json::from_slice(&line).unwrap();
            let action = call["action"].as_str().unwrap();
            assert!(operation.starts_with(action) || action == "PING", "{call}");
            if action == "DISCOVER" {
                let host = call["data"]["hostname"].as_str().unwrap();
                assert!(
                    (ARRIVAL_BATCH..ARRIVAL_BATCH + 3)
                        .any(|there| host == name(&population.name_prefix, "host", there)),
                    "{host}"
                );
            }
        }
    }
}

#[test]
fn every_member_of_every_crew_is_connected_and_calls_once() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let at = listener.local_addr().unwrap();
    // The thread ends with the test process.
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            std::thread::spawn(move || {
                let mut buffer = [0; 1024];
                while let Ok(1..) = stream.read(&mut buffer) {
                    stream.write_all(b"{\"status\":\"OK\"}\n").unwrap();
                }
            });
        }
    });
    let population = HostPopulation { name_prefix: "b".to_owned(), connections: 150 };
    let mut all = connect_workers(150, |nth| HostConnection::connect(at, name("b", "held", nth))).unwrap();
    let mut names: Vec<usize> = all.iter().flat_map(|worker| worker.hosts.iter().map(|one| one.nth)).collect();
    names.sort_unstable();
    assert_eq!(names, (0..150).collect::<Vec<_>>());
    let stop = StopFlag::default();
    let once = |operation| {
        let call = population.call(operation);
        let each = |_nth, worker: &mut Worker| worker.drive_each(&call, MeasurementLength::Calls(1), &stop);
        load::run_all(&mut all, each).unwrap()
    };
    let [registered, pinged] = ["REGISTER", "PING"].map(once);
    assert_eq!((registered.done, registered.failed), (150, 0));
    // An unexpected response is a failure.
    assert_eq!((pinged.done, pinged.failed), (0, 150));
}
