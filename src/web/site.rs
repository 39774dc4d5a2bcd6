//! The handler of one HTTP port: an API, its OpenAPI description and its pages.

use super::openapi;
use super::operator::ServerHandler;
use super::pages::{self, Pages};
use crate::net::http::routes::{RouteAccess, RouteSpec};
use crate::net::http::{BodySink, HttpHandler, Method, Request, Response, StatusCode, header, method_not_allowed};
use crate::share::client_api::ClientApi;

const DESCRIPTION_PATH: &str = "/api/openapi.json";

pub struct Site<A> {
    api: A,
    description: Vec<u8>,
    pages: Pages,
}

impl Site<ClientApi> {
    pub fn of_node(api: ClientApi) -> Site<ClientApi> {
        let about = "What a user's programs and pages ask of a node: the user's files, the network's, and what is \
                     fetched from it.";
        Site::new("P2S2 client API", about, ClientApi::route_specs(), api, pages::NODE_PAGES)
    }
}

impl Site<ServerHandler> {
    pub fn of_server(api: ServerHandler) -> Site<ServerHandler> {
        let about = "Accounts, and what the operator sees.";
        Site::new("P2S2 server API", about, ServerHandler::route_specs(), api, pages::SERVER_PAGES)
    }
}

impl<A: HttpHandler> Site<A> {
    fn new(
        title: &str,
        about: &str,
        specs: impl Iterator<Item = (RouteAccess, &'static RouteSpec)>,
        api: A,
        entries: &'static [pages::PageRoute],
    ) -> Site<A> {
        let description = openapi::describe(title, about, specs).to_string().into_bytes();
        Site { api, description, pages: Pages::new(entries) }
    }
}

/// Whether a browser navigates to this path: requests of programs and of scripts do not accept HTML explicitly.
fn wants_page(request: &Request) -> bool {
    let accepts = |value: &str| value.split(',').any(|kind| kind.split(';').next().unwrap_or("").trim() == "text/html");
    let accept = request.headers.get_all(header::ACCEPT);
    request.method == Method::GET && accept.iter().any(|value| value.to_str().is_ok_and(accepts))
}

impl<A: HttpHandler> HttpHandler for Site<A> {
    fn handle(&self, request: Request) -> Response {
        let is_read = request.method == Method::GET;
        if request.path == DESCRIPTION_PATH {
            if !is_read {
                return method_not_allowed(&[Method::GET]);
            }
            return Response::new(StatusCode::OK, "application/json", self.description.clone());
        }
        if let Some(page) = self.pages.get(&request) {
            return if is_read { page } else { method_not_allowed(&[Method::GET]) };
        }
        let wants_page = wants_page(&request);
        let answer = self.api.handle(request);
        if wants_page && answer.status == StatusCode::NOT_FOUND { self.pages.not_found() } else { answer }
    }

    fn upload(&self, head: &Request) -> Option<Result<Box<dyn BodySink>, Response>> {
        if head.path == DESCRIPTION_PATH || self.pages.get(head).is_some() {
            return Some(Err(method_not_allowed(&[Method::GET])));
        }
        self.api.upload(head)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::http::{HeaderMap, not_found};
    use std::io::Read;

    fn site() -> Site<impl HttpHandler> {
        let api = |request: Request| {
            if request.path == "/api/there" { Response::new(StatusCode::OK, "text/plain", "api") } else { not_found() }
        };
        Site::new("Test", "A test.", std::iter::empty(), api, pages::NODE_PAGES)
    }

    fn ask(site: &Site<impl HttpHandler>, method: Method, path: &str, headers: &[(&'static str, &str)]) -> Response {
        let headers: HeaderMap =
            headers.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect();
        let (path, query, source) = (path.to_owned(), String::new(), ([127, 0, 0, 1], 1).into());
        site.handle(Request { method, path, query, headers, body: Vec::new(), source })
    }

    fn text(answer: &Response) -> String {
        let bytes = answer.body.as_bytes().unwrap();
        if answer.headers.get(header::CONTENT_ENCODING).is_some() {
            let mut text = String::new();
            flate2::read::GzDecoder::new(bytes).read_to_string(&mut text).unwrap();
            return text;
        }
        String::from_utf8(bytes.to_vec()).unwrap()
    }

    #[test]
    fn the_page_names_what_it_is_made_of_by_content_and_nothing_else_may_be_loaded() {
        let site = site();
        let page = ask(&site, Method::GET, "/", &[("accept", "text/html")]);
        assert_eq!(page.status, 200);
        assert_eq!(page.headers[header::CACHE_CONTROL], "no-cache");
        let policy = page.headers[header::CONTENT_SECURITY_POLICY].to_str().unwrap();
        assert!(policy.starts_with("default-src 'self';") && policy.contains("frame-ancestors 'none'"), "{policy}");
        assert!(!policy.contains("unsafe") && !policy.contains('*'), "{policy}");
        let html = text(&page);
        assert!(!html.contains("{hash}") && html.contains("/assets/"), "{html}");
        for inline in ["<style", " style=", "onclick=", "javascript:", "http://", "https://"] {
            assert!(!html.contains(inline), "{inline}: {html}");
        }
        // Every asset that it refers to exists and may be cached for ever.
        let mut named = 0;
        for part in html.split('"').filter(|part| part.starts_with("/assets/")) {
            for encoding in ["gzip, br", "identity"] {
                let asset = ask(&site, Method::GET, part, &[("accept-encoding", encoding)]);
                assert_eq!(asset.status, 200, "{part}");
                assert_eq!(asset.headers[header::CACHE_CONTROL], "public, max-age=31536000, immutable");
                assert_eq!(asset.headers[header::VARY], "accept-encoding");
                assert!(!text(&asset).is_empty());
                named += 1;
            }
        }
        assert!(named >= 4, "{html}");
        // A page with a known ETag is not sent again; other methods are refused.
        let tag = page.headers[header::ETAG].to_str().unwrap().to_owned();
        let known = ask(&site, Method::GET, "/", &[("if-none-match", &tag)]);
        assert_eq!((known.status.as_u16(), known.body.as_bytes()), (304, Some(&b""[..])));
        assert_eq!(ask(&site, Method::POST, "/", &[]).status, 405);
        assert_eq!(ask(&site, Method::GET, "/assets/0123456789abcdef/style.css", &[]).status, 404);
    }

    #[test]
    fn a_path_that_is_none_leads_a_browser_on_and_tells_programs_in_json() {
        let site = site();
        let browser = ("accept", "text/html,application/xhtml+xml;q=0.9,*/*;q=0.8");
        for path in ["/nonsense", "/api/nonsense", "/assets/x/y", "/admin"] {
            let page = ask(&site, Method::GET, path, &[browser]);
            assert_eq!(page.status.as_u16(), 404);
            assert_eq!(page.headers[header::CONTENT_TYPE], pages::HTML_CONTENT_TYPE);
            assert!(page.headers.contains_key(header::CONTENT_SECURITY_POLICY));
            assert!(text(&page).contains("href=\"/\""), "it leads on");
            for headers in [&[][..], &[("accept", "*/*")], &[("accept", "application/json")]] {
                let answer = ask(&site, Method::GET, path, headers);
                assert_eq!(answer.status.as_u16(), 404);
                assert_eq!(answer.headers[header::CONTENT_TYPE], "application/json");
            }
            let posted = ask(&site, Method::POST, path, &[browser]);
            assert_eq!(posted.headers[header::CONTENT_TYPE], "application/json");
        }
        assert_eq!(text(&ask(&site, Method::GET, "/api/there", &[browser])), "api");
    }
}
