//! A line to the registry. What is understood, and written again, is understood as the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use p2s2::internals::share::wire::requests;

fuzz_target!(|line: &[u8]| {
    match requests::parse(line) {
        Ok(request) => {
            let again = requests::parse(&request.write()).unwrap();
            assert_eq!(format!("{again:?}"), format!("{request:?}"));
        }
        Err(error) => assert!(!error.is_empty() && !error.contains('\n'), "{error:?}"),
    }
});
