//! Which requests are accepted, by Host and Origin. A page of another site in a browser can send requests here and,
//! under a name that it makes resolve to this host (DNS rebinding), even read the responses. So a host name must be
//! known, while an address is always accepted; and the origin of another page must be allowed.

use std::net::{Ipv4Addr, Ipv6Addr};

use hyper::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_METHOD, AUTHORIZATION, HOST,
    HeaderMap, HeaderName, HeaderValue, ORIGIN, TRANSFER_ENCODING, VARY,
};
use hyper::http::request::Parts;
use hyper::{Method, StatusCode};

use super::response::HttpError;
use super::{Body, Response};
use crate::model::text;

const PREFLIGHT_MAX_AGE_S: &str = "600";
/// What pages of other origins may use.
const CORS_METHODS: &str = "GET, HEAD, POST, PUT, PATCH, DELETE";
const CORS_HEADERS: &str = "authorization, content-type, idempotency-key, range, last-event-id";
/// Response headers that they may read in addition to those that they always may.
const EXPOSED_HEADERS: &str = "accept-ranges, content-disposition, content-range, etag, retry-after";

/// What is accepted in addition to addresses, `localhost` and the same origin.
#[derive(Debug, Clone, Default)]
pub struct RequestPolicy {
    /// See [`parse_host_name`].
    pub http_hosts: Vec<String>,
    /// See [`parse_allowed_origin`].
    pub allow_origins: Vec<String>,
}

pub(super) enum PolicyOutcome {
    /// The response gets these headers.
    Proceed(HeaderMap),
    /// It was a CORS preflight, with this response.
    Preflight(Response),
}

/// Parses a host name without a port, as Host may have it; for `value_parser`.
pub fn parse_host_name(text: &str) -> Result<String, String> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
    if text.is_empty() || text.len() > 253 || !text.chars().all(is_name) {
        return Err("expected a host's name, such as share.example.org".to_owned());
    }
    Ok(text.to_ascii_lowercase())
}

/// Parses an origin: scheme, host and optionally a port; for `value_parser`.
pub fn parse_origin(text: &str) -> Result<String, String> {
    let wrong = || "expected an origin, such as https://share.example.org or http://127.0.0.1:8080".to_owned();
    let lower = text.trim_end_matches('/').to_ascii_lowercase();
    let (scheme, authority) = lower.split_once("://").ok_or_else(wrong)?;
    let (host, port) = split_authority(authority).ok_or_else(wrong)?;
    let host = without_last_dot(host);
    if !matches!(scheme, "http" | "https") || !is_address(host) && parse_host_name(host).is_err() {
        return Err(wrong());
    }
    // Without the default port, as browsers write it.
    let is_usual = matches!((scheme, port), ("http", Some(80)) | ("https", Some(443)));
    let port = port.filter(|_| !is_usual).map(|port| format!(":{port}")).unwrap_or_default();
    Ok(format!("{scheme}://{host}{port}"))
}

/// What browsers send for a page without an origin of its own: one from a file, or a sandboxed frame.
const OPAQUE_ORIGINS: [&str; 2] = ["null", "file://"];

/// Parses an origin to be allowed: `http://HOST[:PORT]`, `https://HOST[:PORT]`, `null` or `file://`; for
/// `value_parser`.
pub fn parse_allowed_origin(text: &str) -> Result<String, String> {
    match OPAQUE_ORIGINS.into_iter().find(|opaque| text.eq_ignore_ascii_case(opaque)) {
        Some(opaque) => Ok(opaque.to_owned()),
        None => parse_origin(text).map_err(|wrong| format!("{wrong}; or null, or file://")),
    }
}

impl RequestPolicy {
    /// Logs a warning for an origin that allows more than it seems to.
    pub fn from_flags(http_hosts: Vec<String>, allow_origins: Vec<String>) -> RequestPolicy {
        for origin in allow_origins.iter().filter(|origin| OPAQUE_ORIGINS.contains(&origin.as_str())) {
            log::warn!(
                "--allow-origin {origin}: pages of every file on a user's machine, and any page that is shut off from its \
                 own origin, may ask here; their users' tokens alone protect them"
            );
        }
        RequestPolicy { http_hosts, allow_origins }
    }

    /// Errors are 400, 403, 421 or 501.
    pub(super) fn check(&self, parts: &Parts, is_tls: bool) -> Result<PolicyOutcome, HttpError> {
        let host =
            single_header(&parts.headers, HOST)?.ok_or_else(|| HttpError::bad_request("the header Host is missing"))?;
        self.check_host(host)?;
        // An absolute URI names a host too, which then takes precedence.
        if let Some(authority) = parts.uri.authority() {
            self.check_host(authority.as_str())?;
        }
        check_transfer_encoding(&parts.headers)?;
        if parts.headers.get_all(AUTHORIZATION).iter().nth(1).is_some() {
            // A proxy that checked the other header would have authenticated a different user.
            return Err(HttpError::bad_request("the header authorization is there twice"));
        }
        let origin = single_header(&parts.headers, ORIGIN)?;
        let mut headers = HeaderMap::new();
        // Caches must not serve the response for one origin to another.
        headers.insert(VARY, HeaderValue::from_static("origin"));
        let Some(origin) = origin else { return Ok(PolicyOutcome::Proceed(headers)) };
        let scheme = if is_tls { "https" } else { "http" };
        let is_same = parse_origin(origin).ok() == parse_origin(&format!("{scheme}://{host}")).ok();
        let is_allowed = parse_allowed_origin(origin).is_ok_and(|origin| self.allow_origins.contains(&origin));
        if !is_same && !is_allowed {
            let reason =
                format!("pages of {} may not ask here; --allow-origin would allow that origin", excerpt(origin));
            return Err(HttpError::new(StatusCode::FORBIDDEN, reason));
        }
        // It was received as a header, so it is a valid one.
        if let Some(origin) = parts.headers.get(ORIGIN).filter(|_| is_allowed) {
            headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
            headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static(EXPOSED_HEADERS));
        }
        if parts.method != Method::OPTIONS || !parts.headers.contains_key(ACCESS_CONTROL_REQUEST_METHOD) {
            return Ok(PolicyOutcome::Proceed(headers));
        }
        if is_allowed {
            headers.insert(ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static(CORS_METHODS));
            headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, HeaderValue::from_static(CORS_HEADERS));
            headers.remove(ACCESS_CONTROL_EXPOSE_HEADERS);
            headers.insert(ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static(PREFLIGHT_MAX_AGE_S));
        }
        Ok(PolicyOutcome::Preflight(Response {
            status: StatusCode::NO_CONTENT,
            headers,
            body: Body::Bytes(Vec::new()),
        }))
    }

    fn check_host(&self, text: &str) -> Result<(), HttpError> {
        let lower = text.to_ascii_lowercase();
        let (host, _port) =
            split_authority(&lower).ok_or_else(|| HttpError::bad_request("the header Host names no host"))?;
        let host = without_last_dot(host);
        let is_good = is_address(host) || host == "localhost" || self.http_hosts.iter().any(|name| name == host);
        if is_good {
            return Ok(());
        }
        let reason =
            format!("{} is no host here: ask by its address, or allow the name with --http-host", excerpt(text));
        Err(HttpError::new(StatusCode::MISDIRECTED_REQUEST, reason))
    }
}

/// A body is sent as it is or in chunks: another coding would be stored as if it were the content (RFC 9112, 6.1).
fn check_transfer_encoding(headers: &HeaderMap) -> Result<(), HttpError> {
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    let is_chunked = |coding: &HeaderValue| coding.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked");
    if codings.next().is_none_or(is_chunked) && codings.next().is_none() {
        return Ok(());
    }
    let reason = "the header transfer-encoding: expected chunked alone";
    Err(HttpError::new(StatusCode::NOT_IMPLEMENTED, reason))
}

/// The dot only marks a name as fully qualified.
fn without_last_dot(host: &str) -> &str {
    host.strip_suffix('.').filter(|host| !host.is_empty()).unwrap_or(host)
}

/// A header's text as an error message repeats it: at most as long as a host name can be.
fn excerpt(said: &str) -> String {
    const SHOWN_MAX: usize = 253;
    text::escape_unsafe(said).chars().take(SHOWN_MAX).collect()
}

/// The header must not occur twice.
fn single_header(headers: &HeaderMap, name: HeaderName) -> Result<Option<&str>, HttpError> {
    let mut values = headers.get_all(&name).iter();
    let (first, second) = (values.next(), values.next());
    let text = first.map(|value| value.to_str()).transpose();
    match (text, second) {
        (Ok(text), None) => Ok(text),
        _ => Err(HttpError::bad_request(format!("the header {name} is there twice, or is no text"))),
    }
}

/// Host and port; the host of an IPv6 address keeps its brackets.
fn split_authority(text: &str) -> Option<(&str, Option<u16>)> {
    let host_len = if text.starts_with('[') { text.find(']')? + 1 } else { text.find(':').unwrap_or(text.len()) };
    let (host, rest) = text.split_at(host_len);
    let port = match rest.strip_prefix(':') {
        // Parsing a `u16` would accept a sign.
        Some(digits) if digits.bytes().all(|digit| digit.is_ascii_digit()) => Some(digits.parse().ok()?),
        None if rest.is_empty() => None,
        _ => return None,
    };
    (!host.is_empty()).then_some((host, port))
}

fn is_address(host: &str) -> bool {
    let inner = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    inner.map_or_else(|| host.parse::<Ipv4Addr>().is_ok(), |host| host.parse::<Ipv6Addr>().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(rules: &RequestPolicy, method: &str, uri: &str, headers: &[(&str, &str)], is_tls: bool) -> (u16, HeaderMap) {
        let mut request = hyper::Request::builder().method(method).uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        match rules.check(&request.body(()).unwrap().into_parts().0, is_tls) {
            Ok(PolicyOutcome::Proceed(headers)) => (200, headers),
            Ok(PolicyOutcome::Preflight(answer)) => (answer.status.as_u16(), answer.headers),
            Err(refusal) => (refusal.status.as_u16(), HeaderMap::new()),
        }
    }

    #[test]
    fn an_address_localhost_or_a_name_that_was_allowed() {
        let rules = RequestPolicy { http_hosts: vec!["share.example".to_owned()], ..RequestPolicy::default() };
        for (host, status) in [
            ("127.0.0.1:5500", 200),
            ("127.0.0.1", 200),
            ("192.0.2.7:80", 200),
            ("[::1]:5500", 200),
            ("[fe80::1]", 200),
            ("localhost:5500", 200),
            ("LocalHost", 200),
            ("Share.Example:5500", 200),
            ("evil.example", 421),
            ("localhost.evil.example", 421),
            ("share.example.evil", 421),
            ("127.0.0.1.evil.example", 421),
            ("localhost.", 200),
            ("share.example.:5500", 200),
            ("localhost..", 421),
            (".", 421),
            ("127.1", 421),
            ("2130706433", 421),
            ("[evil]", 421),
            ("", 400),
            (":5500", 400),
            ("[::1", 400),
            ("127.0.0.1:x", 400),
            ("127.0.0.1:+80", 400),
            ("127.0.0.1:70000", 400),
            ("user@127.0.0.1", 421),
        ] {
            assert_eq!(ask(&rules, "GET", "/", &[("host", host)], false).0, status, "{host}");
        }
        assert_eq!(ask(&rules, "GET", "/", &[], false).0, 400);
        assert_eq!(ask(&rules, "GET", "/", &[("host", "127.0.0.1"), ("host", "evil.example")], false).0, 400);
        let absolute = |uri| ask(&rules, "GET", uri, &[("host", "127.0.0.1")], false).0;
        assert_eq!((absolute("http://127.0.0.1/"), absolute("http://evil.example/")), (200, 421));
    }

    #[test]
    fn a_refusal_names_what_came() {
        let reason = |headers: &[(&str, &str)]| {
            let mut request = hyper::Request::builder().uri("/");
            for (name, value) in headers {
                request = request.header(*name, *value);
            }
            let parts = request.body(()).unwrap().into_parts().0;
            RequestPolicy::default().check(&parts, false).err().unwrap().reason
        };
        let misdirected = reason(&[("host", "evil.example:80")]);
        assert!(misdirected.starts_with("evil.example:80 is no host here"), "{misdirected}");
        let foreign = reason(&[("host", "127.0.0.1"), ("origin", "https://evil.example")]);
        assert!(foreign.starts_with("pages of https://evil.example may not"), "{foreign}");
        let long = reason(&[("host", &"x".repeat(5_000))]);
        assert!(long.len() < 400 && long.contains("--http-host"), "{long}");
    }

    #[test]
    fn the_same_origin_and_those_allowed_may_ask_and_no_other() {
        let rules = RequestPolicy {
            allow_origins: vec![parse_origin("https://Page.example/").unwrap()],
            ..RequestPolicy::default()
        };
        let host = ("host", "127.0.0.1:5501");
        for (origin, is_tls, status) in [
            ("http://127.0.0.1:5501", false, 200),
            ("http://127.0.0.1:5501", true, 403),
            ("https://127.0.0.1:5501", true, 200),
            ("https://127.0.0.1:5501", false, 403),
            ("http://127.0.0.1.:5501", false, 200),
            ("http://localhost:5501", false, 403),
            ("http://127.0.0.1:5500", false, 403),
            ("http://127.0.0.1", false, 403),
            ("https://page.example", false, 200),
            ("https://page.example:443", false, 200),
            ("http://page.example", false, 403),
            ("https://page.example.evil", false, 403),
            ("https://evil.example", false, 403),
            ("null", false, 403),
            ("", false, 403),
        ] {
            let (got, headers) = ask(&rules, "POST", "/", &[host, ("origin", origin)], is_tls);
            assert_eq!(got, status, "{origin} {is_tls}");
            let allowed = headers.get(ACCESS_CONTROL_ALLOW_ORIGIN).map(|value| value.to_str().unwrap());
            assert_eq!(allowed, (status == 200 && origin.contains("page")).then_some(origin), "{origin}");
            assert_eq!(headers.contains_key(ACCESS_CONTROL_EXPOSE_HEADERS), allowed.is_some());
            assert_eq!(headers.contains_key(VARY), status == 200);
        }
        // A page of nobody's only by its own word, and then that alone.
        for allowed in ["null", "file://"] {
            let allow_origins = vec![parse_allowed_origin(allowed).unwrap()];
            let rules = RequestPolicy::from_flags(Vec::new(), allow_origins);
            for origin in ["null", "file://", "http://null", "https://page.example"] {
                let (status, headers) = ask(&rules, "POST", "/", &[host, ("origin", origin)], false);
                assert_eq!(status, if origin == allowed { 200 } else { 403 }, "{allowed} {origin}");
                assert_eq!(headers.contains_key(ACCESS_CONTROL_ALLOW_ORIGIN), origin == allowed);
            }
        }
        let usual = ask(&rules, "GET", "/", &[("host", "127.0.0.1"), ("origin", "http://127.0.0.1:80")], false);
        assert_eq!(usual.0, 200);
    }

    #[test]
    fn a_preflight_is_answered_for_those_allowed_and_for_no_other() {
        let rules =
            RequestPolicy { allow_origins: vec!["https://page.example".to_owned()], ..RequestPolicy::default() };
        let preflight = |origin| {
            let headers = [
                ("host", "127.0.0.1:5501"),
                ("origin", origin),
                ("access-control-request-method", "POST"),
                ("access-control-request-headers", "authorization"),
            ];
            ask(&rules, "OPTIONS", "/api/client/publish", &headers, false)
        };
        let (status, headers) = preflight("https://page.example");
        assert_eq!((status, &headers[ACCESS_CONTROL_ALLOW_ORIGIN]), (204, &"https://page.example".parse().unwrap()));
        assert_eq!(
            headers[ACCESS_CONTROL_ALLOW_HEADERS],
            "authorization, content-type, idempotency-key, range, last-event-id"
        );
        assert_eq!(headers[ACCESS_CONTROL_ALLOW_METHODS], "GET, HEAD, POST, PUT, PATCH, DELETE");
        assert!(!headers.contains_key(ACCESS_CONTROL_EXPOSE_HEADERS), "that is said of answers");
        let (status, headers) = preflight("https://evil.example");
        assert!(status == 403 && headers.is_empty());
        let (status, headers) = preflight("http://127.0.0.1:5501");
        assert!(status == 204 && !headers.contains_key(ACCESS_CONTROL_ALLOW_ORIGIN), "the same needs no word");
    }

    #[test]
    fn origins_and_names_are_checked_when_they_are_given() {
        assert_eq!(parse_origin("HTTPS://Page.Example:443/"), Ok("https://page.example".to_owned()));
        assert_eq!(parse_origin("http://[::1]:80"), Ok("http://[::1]".to_owned()));
        assert_eq!(parse_allowed_origin("NULL"), Ok("null".to_owned()));
        assert_eq!(parse_allowed_origin("HTTP://a/"), Ok("http://a".to_owned()));
        assert!(parse_allowed_origin("file://x").is_err() && parse_allowed_origin("*").is_err());
        for wrong in ["", "*", "null", "page.example", "ftp://page.example", "http://", "http://a/b", "http://a b"] {
            assert!(parse_origin(wrong).is_err(), "{wrong}");
        }
        assert_eq!(parse_host_name("Share.Example"), Ok("share.example".to_owned()));
        for wrong in ["", "a b", "a:80", "http://a", "*"] {
            assert!(parse_host_name(wrong).is_err(), "{wrong}");
        }
    }
}
