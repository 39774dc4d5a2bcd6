//! The other tests reach into the house, which only the feature `internals` lets them do. Cargo leaves them out without a
//! word where it is not given.

#[cfg(not(feature = "internals"))]
#[test]
fn no_test_is_left_out() {
    panic!("most tests were left out: run `make test`, or add `--features internals`");
}
