//! Paging and searching in lists: `?q=&offset=&limit=`.

use serde::{Serialize, Serializer};
use serde_json::Value;

use crate::model::text::TextFilter;
use crate::net::http::{HttpError, Request, query_pairs};

pub const PAGE_MAX: usize = 1000;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PageRequest {
    /// What an entry must contain.
    pub query: TextFilter,
    pub offset: usize,
    pub limit: usize,
}

/// Serializes a list, converting each entry to JSON only when it is written: converting all of them first would take
/// ten times the memory.
pub struct LazyJsonList<'a, T>(pub &'a [T], pub fn(&T) -> Value);

impl<T> Serialize for LazyJsonList<'_, T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.iter().map(self.1))
    }
}

impl PageRequest {
    /// The page's entries of a list that is already filtered.
    pub fn slice<'a, T>(&self, all: &'a [T]) -> &'a [T] {
        let rest = all.get(self.offset..).unwrap_or_default();
        &rest[..rest.len().min(self.limit)]
    }

    /// The limit defaults to `usual`, at most [`PAGE_MAX`].
    pub fn from_request(request: &Request, usual: usize) -> Result<PageRequest, HttpError> {
        PageRequest::from_prefixed(request, "", usual)
    }

    /// The same with a limit of at most `most`, which is also the default.
    pub fn from_request_up_to(request: &Request, most: usize) -> Result<PageRequest, HttpError> {
        Ok(PageRequest::read(request, "", most, most)?.0)
    }

    /// The same; `None` if the request has none of the three parameters.
    pub fn from_request_if_given(request: &Request, usual: usize) -> Result<Option<PageRequest>, HttpError> {
        let (page, is_asked) = PageRequest::read(request, "", usual, PAGE_MAX)?;
        Ok(is_asked.then_some(page))
    }

    /// The page of a second list in the same response, whose query parameters have this prefix.
    pub fn from_prefixed(request: &Request, prefix: &str, usual: usize) -> Result<PageRequest, HttpError> {
        Ok(PageRequest::read(request, prefix, usual, PAGE_MAX)?.0)
    }

    /// Also returns whether the request has any of the parameters.
    fn read(request: &Request, prefix: &str, usual: usize, most: usize) -> Result<(PageRequest, bool), HttpError> {
        let pairs = query_pairs(&request.query)
            .ok_or_else(|| HttpError::bad_request("the query: expected UTF-8 behind %XX"))?;
        let mut page = PageRequest { query: TextFilter::default(), offset: 0, limit: usual.min(most) };
        let mut is_asked = false;
        for (name, value) in pairs {
            let number = || {
                value.parse::<usize>().map_err(|_| HttpError::bad_request(format!("{name}: expected a whole number")))
            };
            match name.strip_prefix(prefix).unwrap_or_default() {
                "q" => page.query = TextFilter::new(&value),
                "offset" => page.offset = number()?,
                "limit" => page.limit = number()?.min(most),
                _ => continue,
            }
            is_asked = true;
        }
        Ok((page, is_asked))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::http::{HeaderMap, Method};

    fn request(query: &str) -> Request {
        Request {
            method: Method::GET,
            path: "/".to_owned(),
            query: query.to_owned(),
            headers: HeaderMap::new(),
            body: Vec::new(),
            source: ([127, 0, 0, 1], 1).into(),
        }
    }

    fn asked(query: &str) -> Result<Option<PageRequest>, String> {
        PageRequest::from_request_if_given(&request(query), 100).map_err(|refusal| refusal.reason)
    }

    #[test]
    fn a_list_may_have_a_bound_of_its_own() {
        let of = |query: &str| {
            let page = PageRequest::from_request_up_to(&request(query), 5_000);
            page.map(|page| (page.query, page.offset, page.limit)).map_err(|refusal| refusal.reason)
        };
        assert_eq!(of(""), Ok((TextFilter::default(), 0, 5_000)));
        assert_eq!(of("q=a+b&offset=5&limit=7&other=x"), Ok((TextFilter::new("a b"), 5, 7)));
        assert_eq!(of("limit=999999"), Ok((TextFilter::default(), 0, 5_000)));
        assert_eq!(of("offset=-1"), Err("offset: expected a whole number".to_owned()));
    }

    #[test]
    fn a_part_is_what_was_asked_for_or_the_usual() {
        let page = |q: &str, offset, limit| Ok(Some(PageRequest { query: TextFilter::new(q), offset, limit }));
        assert_eq!(asked(""), Ok(None));
        assert_eq!(asked("x=1"), Ok(None));
        assert_eq!(asked("q="), page("", 0, 100));
        assert_eq!(asked("q=An%20n&offset=7"), page("an n", 7, 100));
        assert_eq!(asked("limit=5000&y="), page("", 0, PAGE_MAX));
        assert_eq!(asked("limit=0"), page("", 0, 0));
        for wrong in ["limit=-1", "limit=", "limit=1e3", "limit=99999999999999999999999"] {
            assert_eq!(asked(wrong), Err("limit: expected a whole number".to_owned()), "{wrong}");
        }
        assert_eq!(asked("offset=x").unwrap_err(), "offset: expected a whole number");
        assert!(asked("q=%ff").unwrap_err().starts_with("the query"));
    }
}
