use std::io::Write;

use flate2::Compression;
use flate2::write::GzEncoder;
use hyper::header::{
    ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_RANGE, CONTENT_TYPE, ETAG, HeaderMap, HeaderValue, VARY,
};

/// Shorter bodies are not worth compressing.
const COMPRESS_ABOVE_BYTES: usize = 1024;
/// Longer bodies would occupy a thread for too long; long lists are sent in chunks anyway.
const COMPRESS_UP_TO_BYTES: usize = 4 << 20;

/// Whether the client accepts gzip (RFC 9110, 12.5.3) and does not prefer the uncompressed body.
pub fn accepts_gzip(headers: &HeaderMap) -> bool {
    let (mut gzip, mut any, mut identity) = (None, None, None);
    for value in headers.get_all(ACCEPT_ENCODING) {
        for coding in value.to_str().unwrap_or_default().split(',') {
            let mut parts = coding.split(';').map(str::trim);
            let name = parts.next().unwrap_or_default().to_ascii_lowercase();
            let weight = parts.find_map(|part| part.strip_prefix("q=").or_else(|| part.strip_prefix("Q=")));
            // A malformed weight counts as 0.
            let weight = weight.map_or(1.0, |weight| weight.parse::<f32>().unwrap_or(0.0));
            match name.as_str() {
                "gzip" | "x-gzip" => gzip = Some(weight),
                "identity" => identity = Some(weight),
                "*" => any = Some(weight),
                _ => {}
            }
        }
    }
    let gzip = gzip.or(any).unwrap_or(0.0);
    gzip > 0.0 && gzip >= identity.unwrap_or(0.0)
}

/// Compresses the body if that is of use, and sets the headers accordingly. One that a handler has encoded is left
/// alone.
pub(super) fn compress(accepts_gzip: bool, headers: &mut HeaderMap, body: Vec<u8>) -> Vec<u8> {
    let is_whole = !headers.contains_key(CONTENT_ENCODING) && !headers.contains_key(CONTENT_RANGE);
    if !is_whole || !(COMPRESS_ABOVE_BYTES + 1..=COMPRESS_UP_TO_BYTES).contains(&body.len()) || !is_text(headers) {
        return body;
    }
    // Caches must not serve it to clients that cannot decode it.
    add_vary(headers, &HeaderValue::from_static("accept-encoding"));
    if !accepts_gzip {
        return body;
    }
    let mut encoder = GzEncoder::new(Vec::with_capacity(body.len() / 4), Compression::fast());
    let compressed = encoder.write_all(&body).and_then(|()| encoder.finish());
    // Writing into memory never fails.
    let Ok(compressed) = compressed else { return body };
    if compressed.len() >= body.len() {
        return body;
    }
    headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    // The bytes differ but the content is the same, which is what a weak ETag says.
    let weak = headers.get(ETAG).filter(|etag| !etag.as_bytes().starts_with(b"W/"));
    if let Some(weak) = weak.and_then(|etag| HeaderValue::from_bytes(&[b"W/", etag.as_bytes()].concat()).ok()) {
        headers.insert(ETAG, weak);
    }
    compressed
}

/// Adds a request header that the response depends on.
pub(super) fn add_vary(headers: &mut HeaderMap, more: &HeaderValue) {
    let is_it = |name: &str| more.to_str().is_ok_and(|more| name.trim().eq_ignore_ascii_case(more));
    if headers.get_all(VARY).iter().any(|all| all.to_str().is_ok_and(|all| all.split(',').any(is_it))) {
        return;
    }
    let all = match headers.get(VARY) {
        Some(before) => HeaderValue::from_bytes(&[before.as_bytes(), b", ", more.as_bytes()].concat()),
        None => Ok(more.clone()),
    };
    // Joined from header values, it is a valid one.
    if let Ok(all) = all {
        headers.insert(VARY, all);
    }
}

/// Only text gets much shorter.
fn is_text(headers: &HeaderMap) -> bool {
    let essence = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let essence = essence.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    match essence.split_once('/') {
        Some(("text", kind)) => kind != "event-stream",
        Some((_, kind)) => {
            matches!(kind, "json" | "javascript" | "xml" | "x-ndjson")
                || kind.ends_with("+json")
                || kind.ends_with("+xml")
        }
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn gzip_goes_to_who_takes_it() {
        for (accepted, expected) in [
            (&["gzip"][..], true),
            (&["gzip, deflate, br, zstd"], true),
            (&["br", "GZip"], true),
            (&["x-gzip"], true),
            (&["*"], true),
            (&["gzip;q=0.001"], true),
            (&["gzip ; q=1.0"], true),
            (&["identity;q=0.5, gzip;q=0.5"], true),
            (&["identity, gzip;q=0.5"], false),
            (&["gzip;q=0"], false),
            (&["gzip;q=0.000, *"], false),
            (&["*;q=0"], false),
            (&["gzip;q=x"], false),
            (&["br, deflate"], false),
            (&["gzipped"], false),
            (&[""], false),
            (&[], false),
        ] {
            let values = accepted.iter().map(|value| (ACCEPT_ENCODING, HeaderValue::from_str(value).unwrap()));
            let mut headers = HeaderMap::new();
            for (name, value) in values {
                headers.append(name, value);
            }
            assert_eq!(accepts_gzip(&headers), expected, "{accepted:?}");
        }
    }

    #[test]
    fn text_is_compressed_and_what_is_short_or_encoded_already_is_not() {
        let of =
            |length: usize, kind: &'static str, more: &[(hyper::header::HeaderName, &'static str)], accepts: bool| {
                let mut headers = HeaderMap::new();
                headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
                for (name, value) in more {
                    headers.insert(name, HeaderValue::from_static(value));
                }
                let body = vec![b'x'; length];
                let encoded = compress(accepts, &mut headers, body.clone());
                let is_gzip = headers.get(CONTENT_ENCODING).is_some_and(|coding| coding == "gzip") && encoded != body;
                if is_gzip {
                    let mut decoded = Vec::new();
                    flate2::read::GzDecoder::new(&*encoded).read_to_end(&mut decoded).unwrap();
                    assert_eq!(decoded, body);
                } else {
                    assert_eq!(encoded, body);
                }
                (is_gzip, headers)
            };
        for (kind, expected) in [
            ("application/json", true),
            ("text/html; charset=utf-8", true),
            ("TEXT/plain", true),
            ("text/javascript", true),
            ("application/javascript", true),
            ("image/svg+xml", true),
            ("application/manifest+json", true),
            ("image/png", false),
            ("application/octet-stream", false),
            ("text/event-stream", false),
            ("", false),
        ] {
            let (is_gzip, headers) = of(5000, kind, &[], true);
            assert_eq!((is_gzip, headers.contains_key(VARY)), (expected, expected), "{kind}");
        }
        let json = "application/json";
        assert!(!of(COMPRESS_ABOVE_BYTES, json, &[], true).0 && of(COMPRESS_ABOVE_BYTES + 1, json, &[], true).0);
        assert!(of(COMPRESS_UP_TO_BYTES, json, &[], true).0 && !of(COMPRESS_UP_TO_BYTES + 1, json, &[], true).0);
        let (is_gzip, headers) = of(5000, json, &[(ETAG, "\"a\"")], false);
        assert!(!is_gzip && headers[VARY] == "accept-encoding" && headers[ETAG] == "\"a\"");
        assert_eq!(of(5000, json, &[(ETAG, "\"a\"")], true).1[ETAG], "W/\"a\"");
        assert_eq!(of(5000, json, &[(ETAG, "W/\"a\"")], true).1[ETAG], "W/\"a\"");
        assert_eq!(of(5000, json, &[(VARY, "cookie")], true).1[VARY], "cookie, accept-encoding");
        assert_eq!(of(5000, json, &[(VARY, "a, Accept-Encoding")], true).1[VARY], "a, Accept-Encoding");
        assert!(!of(5000, json, &[(CONTENT_ENCODING, "gzip")], true).1.contains_key(VARY));
        assert!(!of(5000, json, &[(CONTENT_RANGE, "bytes 0-4999/9999")], true).0);
        // What gets no shorter goes as it is.
        let mut headers = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static(json))]);
        let noise: Vec<u8> = (0_u32..3000).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        let encoded = compress(true, &mut headers, noise.clone());
        assert!(encoded == noise || encoded.len() < noise.len());
    }
}
