//! Which part of a list is asked for: `?q=&offset=&limit=`.

use serde::{Serialize, Serializer};
use serde_json::Value;

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

/// The entries of a list as they are shown, each made as it is written: all of them beside the text would take ten
/// times the memory.
pub struct Each<'a, T>(pub &'a [T], pub fn(&T) -> Value);

impl<T> Serialize for Each<'_, T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.iter().map(self.1))
    }
}

impl Page {
    /// Its part of a list.
    pub fn part<'a, T>(&self, all: &'a [T]) -> &'a [T] {
        let rest = all.get(self.offset..).unwrap_or_default();
        &rest[..rest.len().min(self.limit)]
    }

    /// What a request asks for; `usual` many, at most [`PAGE_MAX`], where it does not say.
    ///
    /// # Errors
    /// 400, with the field's name.
    pub fn of(request: &Request, usual: usize) -> Result<Page, Refusal> {
        Page::named(request, "", usual)
    }

    /// The same with at most so many, and as many where the request does not say.
    ///
    /// # Errors
    /// 400, with the field's name.
    pub fn up_to(request: &Request, most: usize) -> Result<Page, Refusal> {
        Ok(Page::read(request, "", most, most)?.0)
    }

    /// The same; nothing where the request says none of the three.
    ///
    /// # Errors
    /// 400, with the field's name.
    pub fn if_asked(request: &Request, usual: usize) -> Result<Option<Page>, Refusal> {
        let (page, is_asked) = Page::read(request, "", usual, PAGE_MAX)?;
        Ok(is_asked.then_some(page))
    }

    /// That of a second list of one answer, of which the fields of the query begin with this.
    ///
    /// # Errors
    /// 400, with the field's name.
    pub fn named(request: &Request, prefix: &str, usual: usize) -> Result<Page, Refusal> {
        Ok(Page::read(request, prefix, usual, PAGE_MAX)?.0)
    }

    /// What a request asks for, and whether it says anything of it.
    fn read(request: &Request, prefix: &str, usual: usize, most: usize) -> Result<(Page, bool), Refusal> {
        let pairs = query_pairs(&request.query).ok_or_else(|| Refusal::bad("the query: expected UTF-8 behind %XX"))?;
        let mut page = Page { sought: Sought::default(), offset: 0, limit: usual.min(most) };
        let mut is_asked = false;
        for (name, value) in pairs {
            let number =
                || value.parse::<usize>().map_err(|_| Refusal::bad(format!("{name}: expected a whole number")));
            match name.strip_prefix(prefix).unwrap_or_default() {
                "q" => page.sought = Sought::new(&value),
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

    fn asked(query: &str) -> Result<Option<Page>, String> {
        Page::if_asked(&request(query), 100).map_err(|refusal| refusal.reason)
    }

    #[test]
    fn a_list_may_have_a_bound_of_its_own() {
        let of = |query: &str| {
            let page = Page::up_to(&request(query), 5_000);
            page.map(|page| (page.sought, page.offset, page.limit)).map_err(|refusal| refusal.reason)
        };
        assert_eq!(of(""), Ok((Sought::default(), 0, 5_000)));
        assert_eq!(of("q=a+b&offset=5&limit=7&other=x"), Ok((Sought::new("a b"), 5, 7)));
        assert_eq!(of("limit=999999"), Ok((Sought::default(), 0, 5_000)));
        assert_eq!(of("offset=-1"), Err("offset: expected a whole number".to_owned()));
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
