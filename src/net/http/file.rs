//! A file, or a part of one, as RFC 9110 has it: what a client has already is not sent again, and what it misses is
//! sent from there on.

use std::fmt::Write as _;
use std::fs::File;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hyper::header::{
    ACCEPT_RANGES, CACHE_CONTROL, CONTENT_DISPOSITION, CONTENT_RANGE, CONTENT_TYPE, ETAG, HeaderMap, HeaderName,
    HeaderValue, IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE, IF_UNMODIFIED_SINCE, LAST_MODIFIED, RANGE,
};
use hyper::{Method, StatusCode};

use super::answer::{self, Refusal};
use super::{Body, Request, Response};

/// What a client is told of a file beside its bytes.
#[derive(Debug, Clone)]
pub struct FileFacts {
    /// How long it is, bytes.
    pub length: u64,
    /// What no other content of it ever had and has: the strong ETag, without its quotes. None: nobody is told that
    /// what he has is still good.
    pub etag: Option<String>,
    /// When it was changed last.
    pub modified: Option<SystemTime>,
    /// Of which type it is.
    pub content_type: HeaderValue,
    /// Whether it is shown or saved, and under which name: see [`content_disposition`].
    pub disposition: Option<HeaderValue>,
}

/// Answers a GET of a file: all of it (200), the one part that was asked for (206), or that the client has it already
/// (304). Where several parts are asked for, all of it is the answer.
///
/// What is refused: a condition that does not hold (412), a part that is not there (416).
pub fn serve_file(request: &Request, file: File, facts: &FileFacts) -> Response {
    let now = SystemTime::now();
    let known = Known {
        etag: facts.etag.as_deref().filter(|etag| etag.bytes().all(is_etag_byte)),
        // One that lies ahead would make every later change look older (RFC 9110, 8.8.2.1).
        modified_s: facts.modified.and_then(|modified| unix_s(modified.min(now))),
    };
    let mut headers = known.headers();
    // Whoever has it may keep it, and asks each time whether it is still good.
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("private, no-cache"));
    let response = match known.judge(&request.method, &request.headers) {
        Verdict::Send => None,
        Verdict::NotModified => Some(Response {
            status: StatusCode::NOT_MODIFIED,
            headers: HeaderMap::new(),
            body: Body::Bytes(Vec::new()),
        }),
        Verdict::Failed(name) => {
            let reason = format!("{name}: the file is another one by now");
            Some(Refusal::new(StatusCode::PRECONDITION_FAILED, reason).into())
        }
    };
    if let Some(mut response) = response {
        response.headers.extend(headers);
        return response;
    }
    headers.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    let part = if request.method == Method::GET && known.may_range(&request.headers) {
        Part::of(&request.headers, facts.length)
    } else {
        Part::Whole
    };
    let (status, offset, length) = match part {
        Part::Whole => (StatusCode::OK, 0, facts.length),
        Part::Of { first, last } => {
            headers.insert(CONTENT_RANGE, ascii(format!("bytes {first}-{last}/{}", facts.length)));
            (StatusCode::PARTIAL_CONTENT, first, last - first + 1)
        }
        Part::None => {
            let reason = format!("Range: the file has {} bytes, and none of them there", facts.length);
            let mut response = answer::error(StatusCode::RANGE_NOT_SATISFIABLE, &reason);
            headers.insert(CONTENT_RANGE, ascii(format!("bytes */{}", facts.length)));
            response.headers.extend(headers);
            return response;
        }
    };
    headers.insert(CONTENT_TYPE, facts.content_type.clone());
    if let Some(disposition) = &facts.disposition {
        headers.insert(CONTENT_DISPOSITION, disposition.clone());
    }
    Response { status, headers, body: Body::File { file, offset, length } }
}

/// Whether the client has what bears this strong ETag (without quotes) already, by If-None-Match: then 304 is the
/// answer to GET.
pub fn has_already(headers: &HeaderMap, etag: &str) -> bool {
    matches_any(headers, IF_NONE_MATCH, |given| given == etag, false)
}

/// What is to be done with a file (`inline` to be shown, `attachment` to be saved), and its name (RFC 6266): in full
/// for whoever reads RFC 8187, and as ASCII for all others.
pub fn content_disposition(is_attachment: bool, name: &str) -> HeaderValue {
    let mut text = if is_attachment { "attachment" } else { "inline" }.to_owned();
    // What would end the quotes, or is read as something else by some: a part of a path, `%41`.
    let is_plain = |c: char| matches!(c, ' '..='~') && !matches!(c, '"' | '\\' | '%' | '/');
    let plain: String = name.chars().map(|c| if is_plain(c) { c } else { '_' }).collect();
    text.push_str("; filename=\"");
    text.push_str(&plain);
    text.push('"');
    if plain != name {
        text.push_str("; filename*=UTF-8''");
        for byte in name.bytes() {
            if byte.is_ascii_alphanumeric() || b"!#$&+-.^_`|~".contains(&byte) {
                text.push(char::from(byte));
            } else {
                // Writing into a text never fails.
                let _ = write!(text, "%{byte:02X}");
            }
        }
    }
    ascii(text)
}

/// A header's value of ours, all of it visible ASCII.
fn ascii(text: String) -> HeaderValue {
    HeaderValue::try_from(text).unwrap_or_else(|_| HeaderValue::from_static(""))
}

fn is_etag_byte(byte: u8) -> bool {
    matches!(byte, 0x21 | 0x23..=0x7e | 0x80..)
}

/// By what a client may say which content it means.
struct Known<'a> {
    etag: Option<&'a str>,
    /// To the second, as dates of HTTP are.
    modified_s: Option<u64>,
}

enum Verdict {
    Send,
    NotModified,
    Failed(HeaderName),
}

impl Known<'_> {
    fn headers(&self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        if let Some(etag) = self.etag
            && let Ok(value) = HeaderValue::try_from(format!("\"{etag}\""))
        {
            headers.insert(ETAG, value);
        }
        if let Some(seconds) = self.modified_s {
            let date = httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(seconds));
            headers.insert(LAST_MODIFIED, ascii(date));
        }
        headers
    }

    /// The conditions, in the order of RFC 9110, 13.2.2.
    fn judge(&self, method: &Method, headers: &HeaderMap) -> Verdict {
        if headers.contains_key(IF_MATCH) {
            if !matches_any(headers, IF_MATCH, |given| self.etag == Some(given), true) {
                return Verdict::Failed(IF_MATCH);
            }
        } else if let (Some(date), Some(modified)) = (date(headers, IF_UNMODIFIED_SINCE), self.modified_s)
            && modified > date
        {
            return Verdict::Failed(IF_UNMODIFIED_SINCE);
        }
        if headers.contains_key(IF_NONE_MATCH) {
            if matches_any(headers, IF_NONE_MATCH, |given| self.etag == Some(given), false) {
                return if *method == Method::GET { Verdict::NotModified } else { Verdict::Failed(IF_NONE_MATCH) };
            }
        } else if let (Some(date), Some(modified)) = (date(headers, IF_MODIFIED_SINCE), self.modified_s)
            && modified <= date
            && *method == Method::GET
        {
            return Verdict::NotModified;
        }
        Verdict::Send
    }

    /// Whether a part is of use to the client: it is if what it has is of the same content, as far as it says so.
    fn may_range(&self, headers: &HeaderMap) -> bool {
        let mut values = headers.get_all(IF_RANGE).iter();
        let (Some(value), None) = (values.next(), values.next()) else { return !headers.contains_key(IF_RANGE) };
        let Ok(value) = value.to_str() else { return false };
        let value = value.trim();
        if value.starts_with('"') || value.starts_with("W/") {
            // A weak one says too little, even where it is the same.
            return self.etag.is_some_and(|etag| value == format!("\"{etag}\""));
        }
        parse_date(value).is_some_and(|date| self.modified_s == Some(date))
    }
}

/// Whether a header names one of those (or all of them, by `*`).
fn matches_any(headers: &HeaderMap, name: HeaderName, is_it: impl Fn(&str) -> bool, strong: bool) -> bool {
    headers.get_all(name).iter().any(|value| {
        // What is no text may still be a tag, but none of ours.
        let Ok(text) = std::str::from_utf8(value.as_bytes()) else { return false };
        let mut rest = text.trim();
        if rest == "*" {
            return true;
        }
        // Tags may hold commas: so one after the other.
        loop {
            rest = rest.trim_start_matches([' ', '\t', ',']);
            let (is_weak, quoted) = match rest.strip_prefix("W/") {
                Some(quoted) => (true, quoted),
                None => (false, rest),
            };
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

/// The date of a header that is there once and holds one; else it is as if it were not there.
fn date(headers: &HeaderMap, name: HeaderName) -> Option<u64> {
    let mut values = headers.get_all(name).iter();
    let (Some(value), None) = (values.next(), values.next()) else { return None };
    parse_date(value.to_str().ok()?)
}

fn parse_date(text: &str) -> Option<u64> {
    unix_s(httpdate::parse_http_date(text.trim()).ok()?)
}

/// Whole seconds since 1970, as far as dates of HTTP go.
fn unix_s(time: SystemTime) -> Option<u64> {
    const FIRST_AFTER_S: u64 = 253_402_300_800;
    time.duration_since(UNIX_EPOCH).ok().map(|since| since.as_secs()).filter(|seconds| *seconds < FIRST_AFTER_S)
}

/// Which bytes were asked for.
#[derive(Debug, PartialEq, Eq)]
enum Part {
    Whole,
    /// From the first to the last, both of them there.
    Of {
        first: u64,
        last: u64,
    },
    /// What is not there.
    None,
}

impl Part {
    /// Of a file of that length. What is not understood, and more than one part, is as if it were not there.
    fn of(headers: &HeaderMap, length: u64) -> Part {
        let mut values = headers.get_all(RANGE).iter();
        let (Some(value), None) = (values.next(), values.next()) else { return Part::Whole };
        let text = value.to_str().unwrap_or_default();
        let Some((unit, set)) = text.split_once('=') else { return Part::Whole };
        if !unit.trim().eq_ignore_ascii_case("bytes") {
            return Part::Whole;
        }
        let mut ranges = set.split(',').map(|range| range.trim_matches([' ', '\t'])).filter(|range| !range.is_empty());
        let (Some(range), None) = (ranges.next(), ranges.next()) else { return Part::Whole };
        let Some((first, last)) = range.split_once('-') else { return Part::Whole };
        match (number(first), number(last)) {
            // The last so many: of an empty file nothing, which is all of it.
            (Number::Missing, Number::Is(_)) if length == 0 => Part::Whole,
            (Number::Missing, Number::Is(0)) => Part::None,
            (Number::Missing, Number::Is(most)) => Part::Of { first: length.saturating_sub(most), last: length - 1 },
            (Number::Is(first), Number::Is(last)) if last < first => Part::Whole,
            (Number::Is(first), Number::Missing | Number::Is(_)) if first >= length => Part::None,
            (Number::Is(first), Number::Missing) => Part::Of { first, last: length - 1 },
            (Number::Is(first), Number::Is(last)) => Part::Of { first, last: last.min(length - 1) },
            _ => Part::Whole,
        }
    }
}

enum Number {
    Missing,
    Is(u64),
    Wrong,
}

/// Digits alone; more than fit are as many as fit.
fn number(text: &str) -> Number {
    if text.is_empty() {
        Number::Missing
    } else if text.bytes().all(|byte| byte.is_ascii_digit()) {
        Number::Is(text.parse().unwrap_or(u64::MAX))
    } else {
        Number::Wrong
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
        let facts = FileFacts {
            length,
            etag: Some("abc".to_owned()),
            modified: Some(UNIX_EPOCH + Duration::from_millis(MODIFIED_S * 1000 + 600)),
            content_type: HeaderValue::from_static("text/plain"),
            disposition: Some(content_disposition(true, "a.txt")),
        };
        serve_file(&request, file, &facts)
    }

    /// Status, Content-Range, and which bytes.
    fn ask(headers: &[(&'static str, &str)]) -> (u16, Option<String>, Option<(u64, u64)>) {
        let response = ask_of(1000, headers);
        assert_eq!(response.headers[ETAG], "\"abc\"", "whatever is answered");
        assert_eq!(response.headers[LAST_MODIFIED], DATE);
        assert_eq!(response.headers[CACHE_CONTROL], "private, no-cache");
        let range = response.headers.get(CONTENT_RANGE).map(|range| range.to_str().unwrap().to_owned());
        let part = match &response.body {
            Body::File { offset, length, .. } => {
                assert_eq!(response.headers[ACCEPT_RANGES], "bytes");
                assert_eq!(response.headers[CONTENT_TYPE], "text/plain");
                assert_eq!(response.headers[CONTENT_DISPOSITION], "attachment; filename=\"a.txt\"");
                Some((*offset, *length))
            }
            _ => None,
        };
        (response.status.as_u16(), range, part)
    }

    #[test]
    fn one_part_is_sent_and_what_is_not_understood_is_the_whole() {
        let whole = (200, None, Some((0, 1000)));
        let part =
            |first: u64, last: u64| (206, Some(format!("bytes {first}-{last}/1000")), Some((first, last - first + 1)));
        let none = (416, Some("bytes */1000".to_owned()), None);
        assert_eq!(ask(&[]), whole);
        for (range, expected) in [
            ("bytes=0-0", part(0, 0)),
            ("bytes=0-499", part(0, 499)),
            ("bytes=500-", part(500, 999)),
            ("bytes=999-", part(999, 999)),
            ("bytes=990-5000", part(990, 999)),
            ("bytes=0-99999999999999999999999999", part(0, 999)),
            ("bytes=-1", part(999, 999)),
            ("bytes=-1000", part(0, 999)),
            ("bytes=-5000", part(0, 999)),
            ("Bytes=1-2", part(1, 2)),
            ("bytes= 1-2 ,", part(1, 2)),
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
        // Before any part is looked at.
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
            let facts = FileFacts {
                length: 1,
                etag: etag.map(str::to_owned),
                modified,
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
            serve_file(&request, tempfile::tempfile().unwrap(), &facts)
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
        assert!(has_already(&headers("W/\"abc\""), "abc") && has_already(&headers("\"abc\""), "abc"));
        assert!(!has_already(&headers("\"abd\""), "abc") && !has_already(&HeaderMap::new(), "abc"));
    }
}
