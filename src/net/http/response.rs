//! The format of both APIs (`{"success":true,…}`, `{"success":false,"error":…}`), and the parts of a request: JSON
//! fields, path segments, query parameters, the bearer token.

use serde::Serialize;
use serde_json::{Map, Value, json};

use super::{Body, HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use crate::model::{Token, number, text};

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct HttpError {
    pub status: StatusCode,
    /// For the user; it names the field.
    pub reason: String,
    /// The seconds after which trying again is worthwhile.
    pub retry_after_s: Option<u64>,
}

impl HttpError {
    pub fn new(status: StatusCode, reason: impl Into<String>) -> HttpError {
        HttpError { status, reason: reason.into(), retry_after_s: None }
    }

    #[must_use]
    pub fn retry_after(self, seconds: u64) -> HttpError {
        HttpError { retry_after_s: Some(seconds), ..self }
    }

    pub fn bad_request(reason: impl Into<String>) -> HttpError {
        HttpError::new(StatusCode::BAD_REQUEST, reason)
    }
}

impl From<HttpError> for Response {
    fn from(refusal: HttpError) -> Response {
        let mut response = error(refusal.status, &refusal.reason);
        if refusal.status == StatusCode::UNAUTHORIZED {
            response = response.with(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        match refusal.retry_after_s {
            Some(seconds) => response.with(header::RETRY_AFTER, HeaderValue::from(seconds)),
            None => response,
        }
    }
}

pub fn json(status: StatusCode, value: &impl Serialize) -> Response {
    match serde_json::to_vec(value) {
        Ok(body) => Response::new(status, "application/json", body),
        Err(failed) => {
            log::error!("an answer could not be written: {failed}");
            error(StatusCode::INTERNAL_SERVER_ERROR, "the answer could not be written")
        }
    }
}

/// A response of status 200 with these fields (of an object) and `"success":true`.
pub fn success(fields: Value) -> Response {
    let mut all = match fields {
        Value::Object(fields) => fields,
        _ => Map::new(),
    };
    all.insert("success".to_owned(), true.into());
    json(StatusCode::OK, &all)
}

pub fn error(status: StatusCode, reason: &str) -> Response {
    json(status, &json!({"success": false, "error": reason}))
}

/// The response (404) for an unknown path.
pub fn not_found() -> Response {
    error(StatusCode::NOT_FOUND, "there is nothing at this path")
}

/// The response (405) for a path that has other methods.
pub fn method_not_allowed(allowed: &[Method]) -> Response {
    let mut names: Vec<&str> = allowed.iter().map(Method::as_str).collect();
    if allowed.contains(&Method::GET) {
        names.push("HEAD");
    }
    let list = names.join(", ");
    let response = error(StatusCode::METHOD_NOT_ALLOWED, &format!("this path takes {list}"));
    // Method names are valid header values.
    match HeaderValue::from_str(&list) {
        Ok(list) => response.with(header::ALLOW, list),
        Err(_) => response,
    }
}

/// A whole error response as bytes, for when there is no request that hyper could respond to.
pub(super) fn raw_error(status: StatusCode, reason: &str) -> Vec<u8> {
    let body = json!({"success": false, "error": reason}).to_string();
    let reason = status.canonical_reason().unwrap_or_default();
    let head = format!(
        "HTTP/1.1 {} {reason}\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        status.as_u16(),
        body.len(),
    );
    [head, body].concat().into_bytes()
}

/// The segments of a path, percent-decoded; `None` if one is not UTF-8.
pub fn path_segments(path: &str) -> Option<Vec<String>> {
    path.strip_prefix('/')?.split('/').map(|segment| decode(segment, false)).collect()
}

/// The names and values of a query, in order; `None` if one is not UTF-8.
pub fn query_pairs(query: &str) -> Option<Vec<(String, String)>> {
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            Some((decode(name, true)?, decode(value, true)?))
        })
        .collect()
}

fn decode(text: &str, plus_is_blank: bool) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let mut digit = || char::from(rest.next()?).to_digit(16);
                // Two digits are at most 255.
                (digit()? * 16 + digit()?) as u8
            }
            b'+' if plus_is_blank => b' ',
            byte => byte,
        });
    }
    String::from_utf8(bytes).ok()
}

/// The token of `Authorization: Bearer …`.
pub fn bearer(headers: &HeaderMap) -> Option<Token> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then(|| Token::from_text(token))
}

/// The fields of a request's JSON object. Unknown fields are ignored. Each error is a 400 that names the field.
#[derive(Debug, Clone)]
pub struct JsonFields(Map<String, Value>);

impl JsonFields {
    /// The content type was checked before.
    pub fn from_body(request: &Request) -> Result<JsonFields, HttpError> {
        match serde_json::from_slice(text::without_bom(&request.body)) {
            Ok(Value::Object(fields)) => Ok(JsonFields(fields)),
            Ok(_) => Err(HttpError::bad_request("the body: expected a JSON object")),
            Err(error) => Err(HttpError::bad_request(format!(
                "the body: expected a JSON object; {}",
                describe_json_error(&error)
            ))),
        }
    }

    /// An empty body has no fields.
    pub fn from_optional_body(request: &Request) -> Result<JsonFields, HttpError> {
        if text::without_bom(&request.body).is_empty() {
            Ok(JsonFields(Map::new()))
        } else {
            JsonFields::from_body(request)
        }
    }

    /// `None` if it is missing or null.
    pub fn get(&self, field: &str) -> Option<&Value> {
        self.0.get(field).filter(|value| !value.is_null())
    }

    fn require(&self, field: &str) -> Result<&Value, HttpError> {
        self.get(field).ok_or_else(|| HttpError::bad_request(format!("{field}: missing")))
    }

    /// A string of any length and with any characters.
    pub fn any_text(&self, field: &str) -> Result<&str, HttpError> {
        self.require(field)?.as_str().ok_or_else(|| HttpError::bad_request(format!("{field}: expected a text")))
    }

    /// A string; `None` if it is missing, null or empty, as a form sends a field that was not filled in.
    pub fn non_empty_text(&self, field: &str) -> Result<Option<&str>, HttpError> {
        let text = self.get(field).map(|_| self.any_text(field)).transpose()?;
        Ok(text.filter(|text| !text.is_empty()))
    }

    /// A string of `min` to `max` characters without control characters.
    pub fn text(&self, field: &str, min: usize, max: usize) -> Result<&str, HttpError> {
        let value = self.any_text(field)?;
        text::check(value, min, max).map_err(|wrong| HttpError::bad_request(format!("{field}: {wrong}")))?;
        Ok(value)
    }

    pub fn optional_text(&self, field: &str, min: usize, max: usize) -> Result<Option<&str>, HttpError> {
        self.get(field).map(|_| self.text(field, min, max)).transpose()
    }

    /// A boolean; `default` if it is missing.
    pub fn boolean(&self, field: &str, default: bool) -> Result<bool, HttpError> {
        let Some(value) = self.get(field) else { return Ok(default) };
        value.as_bool().ok_or_else(|| HttpError::bad_request(format!("{field}: expected true or false")))
    }

    /// A whole number up to `max`, however it is written (`5`, `5.0`, `5e0`).
    pub fn integer(&self, field: &str, max: u64) -> Result<u64, HttpError> {
        let number: Option<u64> = number::integer_as(self.require(field)?);
        number
            .filter(|number| *number <= max)
            .ok_or_else(|| HttpError::bad_request(format!("{field}: expected a whole number from 0 to {max}")))
    }

    pub fn optional_integer(&self, field: &str, max: u64) -> Result<Option<u64>, HttpError> {
        self.get(field).map(|_| self.integer(field, max)).transpose()
    }
}

/// Describes the error without what serde would quote of the body, which may contain a password.
fn describe_json_error(error: &serde_json::Error) -> String {
    match error.classify() {
        serde_json::error::Category::Eof => "it ends too early".to_owned(),
        _ => format!("syntax error at line {}, column {}", error.line(), error.column()),
    }
}

impl Body {
    /// `None` unless the body is in memory as a whole.
    pub fn as_bytes(&self) -> Option<&[u8]> {
        if let Body::Bytes(bytes) = self { Some(bytes) } else { None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_and_queries_are_decoded_part_by_part() {
        let strings = |list: &[&str]| Some(list.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>());
        assert_eq!(path_segments("/api/admin/ping/a%20b%2Fc+d"), strings(&["api", "admin", "ping", "a b/c+d"]));
        assert_eq!(path_segments("/"), strings(&[""]));
        assert_eq!(path_segments("/a//b/"), strings(&["a", "", "b", ""]));
        for wrong in ["", "a", "/%ff", "/%", "/%4", "/%+4", "/%zz"] {
            assert_eq!(path_segments(wrong), None, "{wrong}");
        }
        let pairs = query_pairs("q=a+b%26&offset=5&&flag&x=1=2").unwrap();
        let pairs: Vec<(&str, &str)> = pairs.iter().map(|(name, value)| (&**name, &**value)).collect();
        assert_eq!(pairs, [("q", "a b&"), ("offset", "5"), ("flag", ""), ("x", "1=2")]);
        assert_eq!(query_pairs("q=%ff"), None);
        assert_eq!(query_pairs(""), Some(Vec::new()));
    }

    #[test]
    fn the_token_stands_behind_bearer() {
        let of = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::AUTHORIZATION, value.parse().unwrap());
            bearer(&headers).map(|token| token.reveal().to_owned())
        };
        assert_eq!(of("Bearer abc").as_deref(), Some("abc"));
        assert_eq!(of("bearer  abc ").as_deref(), Some("abc"));
        for wrong in ["Basic abc", "Bearer", "Bearer ", "abc"] {
            assert_eq!(of(wrong), None, "{wrong}");
        }
        assert!(bearer(&HeaderMap::new()).is_none());
    }

    #[test]
    fn fields_that_are_wrong_are_named() {
        let of = |body: &str| {
            JsonFields::from_body(&Request {
                method: Method::POST,
                path: "/".to_owned(),
                query: String::new(),
                headers: HeaderMap::new(),
                body: body.as_bytes().to_vec(),
                source: "127.0.0.1:1".parse().unwrap(),
            })
        };
        let fields = of(r#"{"name":"ann","n":7,"yes":true,"none":null,"extra":[]}"#).unwrap();
        assert_eq!(fields.text("name", 1, 3), Ok("ann"));
        assert_eq!(fields.optional_text("none", 1, 3), Ok(None));
        assert_eq!((fields.non_empty_text("name"), fields.non_empty_text("none")), (Ok(Some("ann")), Ok(None)));
        assert_eq!(
            (of(r#"{"a":""}"#).unwrap().non_empty_text("a"), fields.non_empty_text("n").is_err()),
            (Ok(None), true)
        );
        assert_eq!((fields.integer("n", 7), fields.optional_integer("m", 7)), (Ok(7), Ok(None)));
        let marked = of("\u{feff}{\"n\":7.0,\"half\":0.5}").unwrap();
        assert_eq!(marked.integer("n", 7), Ok(7), "a byte order mark is skipped, and a whole number is one");
        assert!(marked.integer("half", 7).is_err());
        assert_eq!((fields.boolean("yes", false), fields.boolean("no", true)), (Ok(true), Ok(true)));
        let reason = |wrong: Result<(), HttpError>| wrong.unwrap_err().reason;
        assert_eq!(reason(fields.text("other", 1, 3).map(drop)), "other: missing");
        assert_eq!(reason(fields.text("none", 1, 3).map(drop)), "none: missing");
        assert_eq!(reason(fields.text("n", 1, 3).map(drop)), "n: expected a text");
        assert_eq!(reason(fields.text("name", 4, 9).map(drop)), "name: expected 4 to 9 characters, not 3");
        assert_eq!(reason(fields.integer("n", 6).map(drop)), "n: expected a whole number from 0 to 6");
        assert_eq!(reason(fields.boolean("n", false).map(drop)), "n: expected true or false");
        for wrong in ["", "[]", "5", "{", "{\"a\":\"hunter2\",}", "\u{0}"] {
            let refusal = of(wrong).unwrap_err();
            assert_eq!(refusal.status, StatusCode::BAD_REQUEST);
            assert!(refusal.reason.contains("expected a JSON object") && !refusal.reason.contains("hunter2"));
        }
        assert!(of(&format!("{}1{}", "[".repeat(100_000), "]".repeat(100_000))).is_err(), "no depth ends the thread");
    }

    #[test]
    fn errors_and_successes_have_one_form() {
        let text = |response: Response| String::from_utf8(response.body.as_bytes().unwrap().to_vec()).unwrap();
        assert_eq!(text(success(json!({"a": 1}))), r#"{"a":1,"success":true}"#);
        let refused = Response::from(HttpError::bad_request("a: missing"));
        assert_eq!(refused.status, StatusCode::BAD_REQUEST);
        assert_eq!(text(refused), r#"{"error":"a: missing","success":false}"#);
        let refused = Response::from(HttpError::new(StatusCode::UNAUTHORIZED, "").retry_after(5));
        assert_eq!(refused.headers[header::WWW_AUTHENTICATE], "Bearer");
        assert_eq!(refused.headers[header::RETRY_AFTER], "5");
        let response = method_not_allowed(&[Method::GET, Method::POST]);
        assert_eq!(response.headers[header::ALLOW], "GET, POST, HEAD");
        let raw = String::from_utf8(raw_error(StatusCode::REQUEST_TIMEOUT, "late")).unwrap();
        assert!(raw.starts_with("HTTP/1.1 408 Request Timeout\r\n") && raw.ends_with("}"), "{raw}");
    }
}
