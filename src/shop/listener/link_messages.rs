//! The content of a link's frames: a request is an operation, a response `{"ok":…}` or
//! `{"error":{"code":…,"message":…}}`.

use serde::de::DeserializeOwned;

use crate::model::Token;
use crate::shop::ops::{ErrorCode, Refusal, ShopResult};

/// Executes what arrives over links.
pub trait Database<Op>: Send + Sync + 'static {
    /// Executes the operation on the calling thread and returns the JSON of its result.
    fn handle(&self, op: Op) -> ShopResult<String>;
}

const OK_PREFIX: &[u8] = b"{\"ok\":";

pub fn execute_operation<Op: DeserializeOwned>(database: &(impl Database<Op> + ?Sized), request: &[u8]) -> Vec<u8> {
    let result = match serde_json::from_slice(request) {
        Ok(op) => database.handle(op),
        // The error's text may quote the request.
        Err(_) => Err(Refusal::new(ErrorCode::BadRequest, "the components are of different versions")),
    };
    encode_response(&result)
}

fn encode_response(result: &ShopResult<String>) -> Vec<u8> {
    match result {
        Ok(json) => [OK_PREFIX, json.as_bytes(), b"}"].concat(),
        // Serialising strings to memory cannot fail.
        Err(refusal) => serde_json::to_vec(&serde_json::json!({ "error": refusal })).unwrap_or_default(),
    }
}

/// The JSON of the result is not parsed, because most of it is passed on to a client as it is.
pub fn decode_response(mut response: Vec<u8>) -> ShopResult<String> {
    #[derive(serde::Deserialize)]
    struct LinkErrorResponse {
        error: Refusal,
    }
    if response.starts_with(OK_PREFIX) && response.last() == Some(&b'}') {
        response.pop();
        response.drain(..OK_PREFIX.len());
        return String::from_utf8(response).map_err(|_| Refusal::no_proper_answer());
    }
    let refused = serde_json::from_slice::<LinkErrorResponse>(&response);
    Err(refused.map_or_else(|_| Refusal::no_proper_answer(), |refused| refused.error))
}

/// An operation that is not idempotent has such an id.
pub fn request_id() -> String {
    Token::random().reveal().to_owned()
}

pub fn parse_response<T: DeserializeOwned>(json: &str) -> ShopResult<T> {
    serde_json::from_str(json).map_err(|_| Refusal::no_proper_answer())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shop::customer::CustomerOp;
    use proptest::prelude::*;

    #[test]
    fn answers_pass_through_as_they_are() {
        for json in ["null", "{\"items\":[],\"total\":0}", "\"ü\"", ""] {
            assert_eq!(decode_response(encode_response(&Ok(json.to_owned()))), Ok(json.to_owned()));
        }
        let refusal = Refusal::new(ErrorCode::OutOfStock, "there are \"two\" left");
        assert_eq!(decode_response(encode_response(&Err(refusal.clone()))), Err(refusal));
        for nonsense in [&b""[..], b"{\"ok\":", b"{\"ok\":\xff}", b"[]", b"{\"error\":{\"code\":\"X\"}}"] {
            assert_eq!(decode_response(nonsense.to_vec()).unwrap_err().code, ErrorCode::Unavailable);
        }
    }

    proptest! {
        #[test]
        fn nonsense_on_a_link_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            struct EchoDatabase;
            impl Database<CustomerOp> for EchoDatabase {
                fn handle(&self, op: CustomerOp) -> ShopResult<String> {
                    Ok(format!("{op:?}"))
                }
            }
            let _ = decode_response(bytes.clone());
            let _ = decode_response(execute_operation(&EchoDatabase, &bytes));
        }
    }
}
