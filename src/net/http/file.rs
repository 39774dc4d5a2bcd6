//! A file or a range of it, according to RFC 9110: what a client has already is not sent again, and an interrupted
//! download is continued.

use std::fmt::Write as _;
use std::fs::File;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hyper::header::{
    ACCEPT_RANGES, CACHE_CONTROL, CONTENT_DISPOSITION, CONTENT_RANGE, CONTENT_TYPE, ETAG, HeaderMap, HeaderName,
    HeaderValue, IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE, IF_UNMODIFIED_SINCE, LAST_MODIFIED, RANGE,
};
use hyper::{Method, StatusCode};

use super::response::{self, HttpError};
use super::{Body, Request, Response};

/// What a response says about a file in addition to its bytes.
#[derive(Debug, Clone)]
pub struct FileMetadata {
    pub length: u64,
    /// The strong ETag without its quotes, unique to this content. `None`: conditional requests by ETag never match.
    pub etag: Option<String>,
    pub modified_at: Option<SystemTime>,
    pub content_type: HeaderValue,
    /// See [`content_disposition`].
    pub disposition: Option<HeaderValue>,
}

/// Responds to a GET: with all of the file (200; also if several ranges are requested), with the requested range (206),
/// or with the fact that the client has it already (304). Errors: a condition does not hold (412); the range is not
/// satisfiable (416).
pub fn serve_file(request: &Request, file: File, metadata: &FileMetadata) -> Response {
    let now = SystemTime::now();
    let validators = Validators {
        etag: metadata.etag.as_deref().filter(|etag| etag.bytes().all(is_etag_byte)),
        // A date in the future would make every later change look older (RFC 9110, 8.8.2.1).
        modified_s: metadata.modified_at.and_then(|modified| unix_s(modified.min(now))),
    };
    let mut headers = validators.headers();
    // Clients may cache it, but must revalidate it each time.
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("private, no-cache"));
    let response = match validators.evaluate(&request.method, &request.headers) {
        Precondition::Send => None,
        Precondition::NotModified => Some(Response {
            status: StatusCode::NOT_MODIFIED,
            headers: HeaderMap::new(),
            body: Body::Bytes(Vec::new()),
        }),
        Precondition::Failed(name) => {
            let reason = format!("{name}: the file is another one by now");
            Some(HttpError::new(StatusCode::PRECONDITION_FAILED, reason).into())
        }
    };
    if let Some(mut response) = response {
        response.headers.extend(headers);
        return response;
    }
    headers.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    let range = if request.method == Method::GET && validators.may_send_range(&request.headers) {
        ByteRange::from_headers(&request.headers, metadata.length)
    } else {
        ByteRange::Whole
    };
    let (status, offset, length) = match range {
        ByteRange::Whole => (StatusCode::OK, 0, metadata.length),
        ByteRange::Range { first, last } => {
            headers.insert(CONTENT_RANGE, header_value(format!("bytes {first}-{last}/{}", metadata.length)));
            (StatusCode::PARTIAL_CONTENT, first, last - first + 1)
        }
        ByteRange::Unsatisfiable => {
            let reason = format!("Range: the file has {} bytes, and none of them there", metadata.length);
            let mut response = response::error(StatusCode::RANGE_NOT_SATISFIABLE, &reason);
            headers.insert(CONTENT_RANGE, header_value(format!("bytes */{}", metadata.length)));
            response.headers.extend(headers);
            return response;
        }
    };
    headers.insert(CONTENT_TYPE, metadata.content_type.clone());
    if let Some(disposition) = &metadata.disposition {
        headers.insert(CONTENT_DISPOSITION, disposition.clone());
    }
    Response { status, headers, body: Body::File { file, offset, length } }
}

/// Whether the client has the content with this strong ETag (without quotes) already: then the response to GET is 304.
pub fn if_none_match(headers: &HeaderMap, etag: &str) -> bool {
    matches_any(headers, IF_NONE_MATCH, |given| given == etag, false)
}

/// Content-Disposition, which displays the file (`inline`) or saves it, under its name (RFC 6266): in full for clients
/// that support RFC 8187, and in ASCII for all others.
pub fn content_disposition(is_attachment: bool, name: &str) -> HeaderValue {
    let kind = if is_attachment { "attachment" } else { "inline" };
    // Not characters that would end the quotes or that some clients interpret: path separators, `%41`.
    let is_plain = |c: char| matches!(c, ' '..='~') && !matches!(c, '"' | '\\' | '%' | '/');
    let plain: String = name.chars().map(|c| if is_plain(c) { c } else { '_' }).collect();
    let mut text = format!("{kind}; filename=\"{plain}\"");
    if plain != name {
        text.push_str("; filename*=UTF-8''");
        for byte in name.bytes() {
            if byte.is_ascii_alphanumeric() || b"!#$&+-.^_`|~".contains(&byte) {
                text.push(char::from(byte));
            } else {
                // Writing to a String never fails.
                let _ = write!(text, "%{byte:02X}");
            }
        }
    }
    header_value(text)
}

/// The text must be visible ASCII, as all that we make is.
fn header_value(text: String) -> HeaderValue {
    HeaderValue::try_from(text).unwrap_or_else(|_| HeaderValue::from_static(""))
}

fn is_etag_byte(byte: u8) -> bool {
    matches!(byte, 0x21 | 0x23..=0x7e | 0x80..)
}

/// What the conditions of a request are compared with.
struct Validators<'a> {
    etag: Option<&'a str>,
    /// In whole seconds, as HTTP dates are.
    modified_s: Option<u64>,
}

enum Precondition {
    Send,
    NotModified,
    Failed(HeaderName),
}

impl Validators<'_> {
    fn headers(&self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        if let Some(etag) = self.etag
            && let Ok(value) = HeaderValue::try_from(format!("\"{etag}\""))
        {
            headers.insert(ETAG, value);
        }
        if let Some(seconds) = self.modified_s {
            let date = httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(seconds));
            headers.insert(LAST_MODIFIED, header_value(date));
        }
        headers
    }

    /// Evaluates the conditions in the order of RFC 9110, 13.2.2.
    fn evaluate(&self, method: &Method, headers: &HeaderMap) -> Precondition {
        if headers.contains_key(IF_MATCH) {
            if !matches_any(headers, IF_MATCH, |given| self.etag == Some(given), true) {
                return Precondition::Failed(IF_MATCH);
            }
        } else if let (Some(date), Some(modified)) = (date(headers, IF_UNMODIFIED_SINCE), self.modified_s)
            && modified > date
        {
            return Precondition::Failed(IF_UNMODIFIED_SINCE);
        }
        if headers.contains_key(IF_NONE_MATCH) {
            if matches_any(headers, IF_NONE_MATCH, |given| self.etag == Some(given), false) {
                return if *method == Method::GET {
                    Precondition::NotModified
                } else {
                    Precondition::Failed(IF_NONE_MATCH)
                };
            }
        } else if let (Some(date), Some(modified)) = (date(headers, IF_MODIFIED_SINCE), self.modified_s)
            && modified <= date
            && *method == Method::GET
        {
            return Precondition::NotModified;
        }
        Precondition::Send
    }

    /// What the client has must be of the same content, as far as If-Range says.
    fn may_send_range(&self, headers: &HeaderMap) -> bool {
        let mut values = headers.get_all(IF_RANGE).iter();
        let (Some(value), None) = (values.next(), values.next()) else { return !headers.contains_key(IF_RANGE) };
        let Ok(value) = value.to_str() else { return false };
        let value = value.trim();
        if value.starts_with('"') || value.starts_with("W/") {
            // A weak ETag is not sufficient, even if it is the same.
            return self.etag.is_some_and(|etag| value == format!("\"{etag}\""));
        }
        parse_date(value).is_some_and(|date| self.modified_s == Some(date))
    }
}

/// Whether a header contains a matching ETag (or `*`).
fn matches_any(headers: &HeaderMap, name: HeaderName, is_it: impl Fn(&str) -> bool, strong: bool) -> bool {
    headers.get_all(name).iter().any(|value| {
        // A value that is not UTF-8 may be an ETag, but not one of ours.
        let Ok(text) = std::str::from_utf8(value.as_bytes()) else { return false };
        let mut rest = text.trim();
        if rest == "*" {
            return true;
        }
        // ETags may contain commas, so they are parsed one after the other.
        loop {
            rest = rest.trim_start_matches([' ', '\t', ',']);
            let (is_weak, quoted) = rest.strip_prefix("W/").map_or((false, rest), |quoted| (true, quoted));
            let Some((tag, after)) = quoted.strip_prefix('"').and_then(|opened| opened.split_once('"')) else {
                return false;
            };
            if is_it(tag) && !(strong && is_weak) {
                return true;
            }
            rest = after;
        }
    })
}

/// `None` if the header is missing, occurs twice or is malformed.
fn date(headers: &HeaderMap, name: HeaderName) -> Option<u64> {
    let mut values = headers.get_all(name).iter();
    let (Some(value), None) = (values.next(), values.next()) else { return None };
    parse_date(value.to_str().ok()?)
}

fn parse_date(text: &str) -> Option<u64> {
    unix_s(httpdate::parse_http_date(text.trim()).ok()?)
}

/// Whole seconds since 1970, up to the year 9999, the last of HTTP dates.
fn unix_s(time: SystemTime) -> Option<u64> {
    const FIRST_AFTER_S: u64 = 253_402_300_800;
    time.duration_since(UNIX_EPOCH).ok().map(|since| since.as_secs()).filter(|seconds| *seconds < FIRST_AFTER_S)
}

#[derive(Debug, PartialEq, Eq)]
enum ByteRange {
    Whole,
    /// Both bytes are within the file.
    Range {
        first: u64,
        last: u64,
    },
    Unsatisfiable,
}

impl ByteRange {
    /// A header that is malformed or has several ranges is ignored.
    fn from_headers(headers: &HeaderMap, length: u64) -> ByteRange {
        let mut values = headers.get_all(RANGE).iter();
        let (Some(value), None) = (values.next(), values.next()) else { return ByteRange::Whole };
        let text = value.to_str().unwrap_or_default();
        let Some((unit, set)) = text.split_once('=') else { return ByteRange::Whole };
        if !unit.trim().eq_ignore_ascii_case("bytes") {
            return ByteRange::Whole;
        }
        let mut ranges = set.split(',').map(|range| range.trim_matches([' ', '\t'])).filter(|range| !range.is_empty());
        let (Some(range), None) = (ranges.next(), ranges.next()) else { return ByteRange::Whole };
        let Some((first, last)) = range.split_once('-') else { return ByteRange::Whole };
        match (range_number(first), range_number(last)) {
            // A suffix range. Of an empty file it is empty, which is all of it.
            (RangeNumber::Missing, RangeNumber::Value(_)) if length == 0 => ByteRange::Whole,
            (RangeNumber::Missing, RangeNumber::Value(0)) => ByteRange::Unsatisfiable,
            (RangeNumber::Missing, RangeNumber::Value(most)) => {
                ByteRange::Range { first: length.saturating_sub(most), last: length - 1 }
            }
            (RangeNumber::Value(first), RangeNumber::Value(last)) if last < first => ByteRange::Whole,
            (RangeNumber::Value(first), RangeNumber::Missing | RangeNumber::Value(_)) if first >= length => {
                ByteRange::Unsatisfiable
            }
            (RangeNumber::Value(first), RangeNumber::Missing) => ByteRange::Range { first, last: length - 1 },
            (RangeNumber::Value(first), RangeNumber::Value(last)) => {
                ByteRange::Range { first, last: last.min(length - 1) }
            }
            _ => ByteRange::Whole,
        }
    }
}

enum RangeNumber {
    Missing,
    Value(u64),
    Invalid,
}

/// Only digits are a number; one that does not fit becomes the largest that does.
fn range_number(text: &str) -> RangeNumber {
    if text.is_empty() {
        RangeNumber::Missing
    } else if text.bytes().all(|byte| byte.is_ascii_digit()) {
        RangeNumber::Value(text.parse().unwrap_or(u64::MAX))
    } else {
        RangeNumber::Invalid
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MODIFIED_S: u64 = 784_111_777;
    const DATE: &str = "Sun, 06 Nov 1994 08:49:37 GMT";
    const LATER: &str = "Sun, 06 Nov 1994 08:49:38 GMT";
    const EARLIER: &str = "Sun, 06 Nov 1994 08:49:36 GMT";

    fn ask_of(length: u64, headers: &[(&'static str, &str)]) -> Response {
        let file = tempfile::tempfile().unwrap();
        let mut request = Request {
            method: Method::GET,
            path: "/".to_owned(),
            query: String::new(),
            headers: HeaderMap::new(),
            body: Vec::new(),
            source: ([127, 0, 0, 1], 1).into(),
        };
        for (name, value) in headers {
            request.headers.append(*name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        let metadata = FileMetadata {
            length,
            etag: Some("abc".to_owned()),
            modified_at: Some(UNIX_EPOCH + Duration::from_millis(MODIFIED_S * 1000 + 600)),
            content_type: HeaderValue::from_static("text/plain"),
            disposition: Some(content_disposition(true, "a.txt")),
        };
        serve_file(&request, file, &metadata)
    }

    /// Status, Content-Range, and which bytes.
    fn ask(headers: &[(&'static str, &str)]) -> (u16, Option<String>, Option<(u64, u64)>) {
        let response = ask_of(1000, headers);
        assert_eq!(response.headers[ETAG], "\"abc\"", "whatever is answered");
        assert_eq!(response.headers[LAST_MODIFIED], DATE);
        assert_eq!(response.headers[CACHE_CONTROL], "private, no-cache");
        let range = response.headers.get(CONTENT_RANGE).map(|range| range.to_str().unwrap().to_owned());
        let sent = match &response.body {
            Body::File { offset, length, .. } => {
                assert_eq!(response.headers[ACCEPT_RANGES], "bytes");
                assert_eq!(response.headers[CONTENT_TYPE], "text/plain");
                assert_eq!(response.headers[CONTENT_DISPOSITION], "attachment; filename=\"a.txt\"");
                Some((*offset, *length))
            }
            _ => None,
        };
        (response.status.as_u16(), range, sent)
    }

    #[test]
    fn one_part_is_sent_and_what_is_not_understood_is_the_whole() {
        let whole = (200, None, Some((0, 1000)));
        let range =
            |first: u64, last: u64| (206, Some(format!("bytes {first}-{last}/1000")), Some((first, last - first + 1)));
        let none = (416, Some("bytes */1000".to_owned()), None);
        assert_eq!(ask(&[]), whole);
        for (range, expected) in [
            ("bytes=0-0", range(0, 0)),
            ("bytes=0-499", range(0, 499)),
            ("bytes=500-", range(500, 999)),
            ("bytes=999-", range(999, 999)),
            ("bytes=990-5000", range(990, 999)),
            ("bytes=0-99999999999999999999999999", range(0, 999)),
            ("bytes=-1", range(999, 999)),
            ("bytes=-1000", range(0, 999)),
            ("bytes=-5000", range(0, 999)),
            ("Bytes=1-2", range(1, 2)),
            ("bytes= 1-2 ,", range(1, 2)),
            ("bytes=1000-", none.clone()),
            ("bytes=1000-2000", none.clone()),
            ("bytes=99999999999999999999999999-", none.clone()),
            ("bytes=-0", none),
            // Several, none, nonsense, other units.
            ("bytes=0-0,2-3", whole.clone()),
            ("bytes=5000-,6000-", whole.clone()),
            ("bytes=5-4", whole.clone()),
            ("bytes=-", whole.clone()),
            ("bytes=", whole.clone()),
            ("bytes=a-b", whole.clone()),
            ("bytes=+1-2", whole.clone()),
            ("bytes=1--2", whole.clone()),
            ("bytes=1 - 2", whole.clone()),
            ("bytes 1-2", whole.clone()),
            ("bytes", whole.clone()),
            ("", whole.clone()),
            ("items=0-1", whole.clone()),
        ] {
            assert_eq!(ask(&[("range", range)]), expected, "{range}");
        }
        assert_eq!(ask(&[("range", "bytes=0-1"), ("range", "bytes=2-3")]), whole);
        for (range, status) in [("bytes=0-", 416), ("bytes=0-0", 416), ("bytes=-1", 200), ("bytes=-0", 200)] {
            assert_eq!(ask_of(0, &[("range", range)]).status.as_u16(), status, "{range} of nothing");
        }
    }

    #[test]
    fn conditions_hold_or_not() {
        let status = |headers: &[(&'static str, &str)]| ask(headers).0;
        for (name, value, expected) in [
            ("if-none-match", "\"abc\"", 304),
            ("if-none-match", "W/\"abc\"", 304),
            ("if-none-match", "\"x\", \"abc\"", 304),
            ("if-none-match", "\"a,b\" , W/\"abc\",", 304),
            ("if-none-match", "*", 304),
            ("if-none-match", "\"ABC\"", 200),
            ("if-none-match", "abc", 200),
            ("if-none-match", "\"abc", 200),
            ("if-none-match", "", 200),
            ("if-match", "\"abc\"", 200),
            ("if-match", "\"x\",\"abc\"", 200),
            ("if-match", "*", 200),
            ("if-match", "W/\"abc\"", 412),
            ("if-match", "\"x\"", 412),
            ("if-match", "abc", 412),
            ("if-modified-since", DATE, 304),
            ("if-modified-since", LATER, 304),
            ("if-modified-since", EARLIER, 200),
            ("if-modified-since", "Sunday, 06-Nov-94 08:49:37 GMT", 304),
            ("if-modified-since", "Sun Nov  6 08:49:37 1994", 304),
            ("if-modified-since", "yesterday", 200),
            ("if-unmodified-since", DATE, 200),
            ("if-unmodified-since", LATER, 200),
            ("if-unmodified-since", EARLIER, 412),
            ("if-unmodified-since", "yesterday", 200),
        ] {
            assert_eq!(status(&[(name, value)]), expected, "{name}: {value}");
        }
        // Which one counts.
        assert_eq!(status(&[("if-none-match", "\"x\""), ("if-modified-since", DATE)]), 200);
        assert_eq!(status(&[("if-match", "\"abc\""), ("if-unmodified-since", EARLIER)]), 200);
        assert_eq!(status(&[("if-match", "\"x\""), ("if-none-match", "\"abc\"")]), 412);
        assert_eq!(status(&[("if-match", "\"abc\""), ("if-none-match", "\"abc\"")]), 304);
        assert_eq!(status(&[("if-none-match", "\"x\""), ("if-none-match", "\"abc\"")]), 304);
        // Checked before the range is parsed.
        assert_eq!(status(&[("if-none-match", "\"abc\""), ("range", "bytes=5000-")]), 304);
        assert_eq!(status(&[("if-match", "\"x\""), ("range", "bytes=0-1")]), 412);
    }

    #[test]
    fn a_part_goes_only_to_who_has_the_same_content() {
        for (value, expected) in [
            ("\"abc\"", 206),
            ("W/\"abc\"", 200),
            ("\"x\"", 200),
            ("*", 200),
            ("abc", 200),
            (DATE, 206),
            (LATER, 200),
            (EARLIER, 200),
            ("yesterday", 200),
        ] {
            assert_eq!(ask(&[("range", "bytes=0-1"), ("if-range", value)]).0, expected, "{value}");
            assert_eq!(ask(&[("if-range", value)]).0, 200, "{value} without a part");
        }
        // Else 416 would tell of another content.
        assert_eq!(ask(&[("range", "bytes=5000-"), ("if-range", "\"x\"")]).0, 200);
        assert_eq!(ask(&[("range", "bytes=5000-"), ("if-range", "\"abc\"")]).0, 416);
    }

    #[test]
    fn strange_times_and_tags_are_left_out() {
        let ask = |etag: Option<&str>, modified: Option<SystemTime>| {
            let metadata = FileMetadata {
                length: 1,
                etag: etag.map(str::to_owned),
                modified_at: modified,
                content_type: HeaderValue::from_static("text/plain"),
                disposition: None,
            };
            let request = Request {
                method: Method::GET,
                path: "/".to_owned(),
                query: String::new(),
                headers: HeaderMap::from_iter([
                    (IF_NONE_MATCH, HeaderValue::from_static("\"x\"")),
                    (RANGE, HeaderValue::from_static("bytes=0-")),
                ]),
                body: Vec::new(),
                source: ([127, 0, 0, 1], 1).into(),
            };
            serve_file(&request, tempfile::tempfile().unwrap(), &metadata)
        };
        for etag in [None, Some("a\"b"), Some("a b"), Some("a\r\nb")] {
            let response = ask(etag, None);
            assert_eq!(response.status, StatusCode::PARTIAL_CONTENT);
            assert!(!response.headers.contains_key(ETAG) && !response.headers.contains_key(LAST_MODIFIED));
        }
        let before = UNIX_EPOCH.checked_sub(Duration::from_secs(5));
        assert!(!ask(None, before).headers.contains_key(LAST_MODIFIED));
        let ahead = SystemTime::now() + Duration::from_secs(1 << 40);
        let said = ask(None, Some(ahead)).headers[LAST_MODIFIED].to_str().unwrap().to_owned();
        assert!(httpdate::parse_http_date(&said).unwrap() <= SystemTime::now());
    }

    #[test]
    fn names_of_files_say_nothing_else() {
        for (name, expected) in [
            ("a b.txt", "attachment; filename=\"a b.txt\""),
            ("é.txt", "attachment; filename=\"_.txt\"; filename*=UTF-8''%C3%A9.txt"),
            ("a\"; x=\"b", "attachment; filename=\"a_; x=_b\"; filename*=UTF-8''a%22%3B%20x%3D%22b"),
            ("a\\b", "attachment; filename=\"a_b\"; filename*=UTF-8''a%5Cb"),
            ("a\r\nb\u{7f}", "attachment; filename=\"a__b_\"; filename*=UTF-8''a%0D%0Ab%7F"),
            ("100%41", "attachment; filename=\"100_41\"; filename*=UTF-8''100%2541"),
            ("日本", "attachment; filename=\"__\"; filename*=UTF-8''%E6%97%A5%E6%9C%AC"),
        ] {
            assert_eq!(content_disposition(true, name), expected, "{name}");
        }
        assert_eq!(content_disposition(false, "a"), "inline; filename=\"a\"");
    }

    #[test]
    fn who_has_a_page_already_is_known_by_its_tag() {
        let headers = |value| HeaderMap::from_iter([(IF_NONE_MATCH, HeaderValue::from_static(value))]);
        assert!(if_none_match(&headers("W/\"abc\""), "abc") && if_none_match(&headers("\"abc\""), "abc"));
        assert!(!if_none_match(&headers("\"abd\""), "abc") && !if_none_match(&HeaderMap::new(), "abc"));
    }
}
