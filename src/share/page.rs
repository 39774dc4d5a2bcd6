//! Which part of a list is asked for: `?q=&offset=&limit=`.

use crate::model::text::Sought;
use crate::net::http::{Refusal, Request, query_pairs};

/// Most entries of one answer.
pub const PAGE_MAX: usize = 1000;

/// A part of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// What an entry must have in it.
    pub sought: Sought,
    /// So many are passed over.
    pub offset: usize,
    /// So many at most.
    pub limit: usize,
}

impl Page {
    /// What a request asks for; `usual` many, at most [`PAGE_MAX`], where it does not say.
    ///
    /// # Errors
    /// 400, with the field's name.
    pub fn of(request: &Request, usual: usize) -> Result<Page, Refusal> {
        Page::named(request, "", usual)
    }

    /// The same; nothing where the request says none of the three.
    ///
    /// # Errors
    /// 400, with the field's name.
    pub fn if_asked(request: &Request, usual: usize) -> Result<Option<Page>, Refusal> {
        Page::read(request, "", usual)
    }

    /// That of a second list of one answer, of which the fields of the query begin with this.
    ///
    /// # Errors
    /// 400, with the field's name.
    pub fn named(request: &Request, prefix: &str, usual: usize) -> Result<Page, Refusal> {
        let whole = Page { sought: Sought::default(), offset: 0, limit: usual.min(PAGE_MAX) };
        Ok(Page::read(request, prefix, usual)?.unwrap_or(whole))
    }

    fn read(request: &Request, prefix: &str, usual: usize) -> Result<Option<Page>, Refusal> {
        let pairs = query_pairs(&request.query).ok_or_else(|| Refusal::bad("the query: expected UTF-8 behind %XX"))?;
        let mut page = Page { sought: Sought::default(), offset: 0, limit: usual.min(PAGE_MAX) };
        let mut is_asked = false;
        for (name, value) in pairs {
            let number =
                || value.parse::<usize>().map_err(|_| Refusal::bad(format!("{name}: expected a whole number")));
            match name.strip_prefix(prefix).unwrap_or_default() {
                "q" => page.sought = Sought::new(&value),
                "offset" => page.offset = number()?,
                "limit" => page.limit = number()?.min(PAGE_MAX),
                _ => continue,
            }
            is_asked = true;
        }
        Ok(is_asked.then_some(page))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::http::{HeaderMap, Method};

    fn asked(query: &str) -> Result<Option<Page>, String> {
        let request = Request {
            method: Method::GET,
            path: "/".to_owned(),
            query: query.to_owned(),
            headers: HeaderMap::new(),
            body: Vec::new(),
            source: ([127, 0, 0, 1], 1).into(),
        };
        Page::if_asked(&request, 100).map_err(|refusal| refusal.reason)
    }

    #[test]
    fn a_part_is_what_was_asked_for_or_the_usual() {
        let page = |q: &str, offset, limit| Ok(Some(Page { sought: Sought::new(q), offset, limit }));
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
