//! Serves the pages and their assets, which are compiled into the program.
//!
//! A page's HTML is revalidated on every request. It refers to its assets below `/assets/HASH/`, where HASH covers all
//! of the files: assets can therefore be cached for ever, and a page never mixes files of two program versions.

use std::io::Write;

use flate2::Compression;
use flate2::write::GzEncoder;

use crate::net::http::{HeaderValue, Request, Response, StatusCode, accepts_gzip, header, if_none_match};

pub(super) const HTML_CONTENT_TYPE: &str = "text/html; charset=utf-8";
/// Content-Security-Policy of the pages: everything comes from this origin, no inline scripts or styles, no framing.
/// Images and media may also come from `data:` and `blob:` URLs that the page itself has made.
const PAGE_SECURITY_POLICY: &str = "default-src 'self'; img-src 'self' data: blob:; media-src 'self' data: blob:; base-uri 'none'; \
                      form-action 'self'; frame-ancestors 'none'";
const NOT_FOUND_PAGE: &str = "error.html";
/// Smaller files are not compressed, as that would save too little.
const COMPRESS_MIN_BYTES: usize = 1024;
/// Length of the hash in asset paths. It needs no collision resistance: all files are our own.
const HASH_CHARS: usize = 16;

/// A page: its path and the name of its HTML file.
pub(super) type PageRoute = (&'static str, &'static str);

pub(super) const NODE_PAGES: &[PageRoute] = &[("/", "node.html")];
pub(super) const SERVER_PAGES: &[PageRoute] = &[("/", "home.html"), ("/admin", "admin.html")];

macro_rules! assets {
    ($($name:literal)*) => { &[$(($name, include_bytes!(concat!("assets/", $name)))),*] };
}

const ASSET_FILES: &[(&str, &[u8])] = assets!("admin-data.js" "admin-list.js" "admin-lists.js" "admin-overview.js" "admin.css" "admin.html" "admin.js" "api.js" "charts.js" "device.js" "error.html" "favicon.svg" "files.js" "home.css" "home.html" "home.js" "network.js" "node.css" "node.html" "node.js" "paged.js" "people.js" "picker.js" "qr.js" "rows.js" "state.js" "style.css" "transfers.js" "ui.js" "uploads.js");

fn content_type(name: &str) -> &'static str {
    match name.rsplit_once('.').map_or("", |(_, extension)| extension) {
        "html" => HTML_CONTENT_TYPE,
        "css" => "text/css; charset=utf-8",
        "js" => "text/javascript; charset=utf-8",
        "svg" => "image/svg+xml",
        _ => "application/octet-stream",
    }
}

/// A file with `{hash}` filled in, and its compressed form if that is worth having.
struct Asset {
    name: &'static str,
    bytes: Vec<u8>,
    gzip: Option<Vec<u8>>,
}

pub(super) struct Pages {
    entries: &'static [PageRoute],
    hash: String,
    assets: Vec<Asset>,
}

impl Pages {
    pub(super) fn new(entries: &'static [PageRoute]) -> Pages {
        let mut hasher = blake3::Hasher::new();
        for (name, bytes) in ASSET_FILES {
            // With lengths, so that no two sets of files give the same input.
            hasher.update(&(name.len() as u64).to_le_bytes()).update(name.as_bytes());
            hasher.update(&(bytes.len() as u64).to_le_bytes()).update(bytes);
        }
        let hash = hasher.finalize().to_hex()[..HASH_CHARS].to_owned();
        let assets = ASSET_FILES.iter().map(|(name, bytes)| Asset::new(name, bytes, &hash)).collect();
        Pages { entries, hash, assets }
    }

    /// The response to a request for a page or an asset; `None` for any other path.
    pub(super) fn get(&self, request: &Request) -> Option<Response> {
        let path = request.path.as_str();
        if let Some((_, file)) = self.entries.iter().find(|(entry, _)| *entry == path) {
            return Some(self.page(request, file));
        }
        let (hash, name) = path.strip_prefix("/assets/")?.split_once('/')?;
        if hash != self.hash {
            return None;
        }
        let asset = self.asset(name)?;
        let kept = HeaderValue::from_static("public, max-age=31536000, immutable");
        Some(asset.response(Some(request)).with(header::CACHE_CONTROL, kept))
    }

    /// The response for a browser that asks for an unknown path.
    pub(super) fn not_found(&self) -> Response {
        match self.asset(NOT_FOUND_PAGE) {
            Some(asset) => with_security_headers(Response { status: StatusCode::NOT_FOUND, ..asset.response(None) }),
            None => crate::net::http::not_found(),
        }
    }

    fn page(&self, request: &Request, file: &str) -> Response {
        let Some(asset) = self.asset(file) else { return self.not_found() };
        // Weak, as the same content is sent plain and compressed.
        let tag = format!("W/\"{}\"", self.hash);
        let is_known = if_none_match(&request.headers, &self.hash);
        let mut page = asset.response(Some(request));
        if is_known {
            page =
                Response { status: StatusCode::NOT_MODIFIED, ..Response::new(StatusCode::OK, HTML_CONTENT_TYPE, "") };
        }
        if let Ok(tag) = HeaderValue::from_str(&tag) {
            page = page.with(header::ETAG, tag);
        }
        with_security_headers(page.with(header::CACHE_CONTROL, HeaderValue::from_static("no-cache")))
    }

    fn asset(&self, name: &str) -> Option<&Asset> {
        self.assets.iter().find(|asset| asset.name == name)
    }
}

/// Adds the headers that keep foreign content out of a page.
fn with_security_headers(page: Response) -> Response {
    page.with(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(PAGE_SECURITY_POLICY))
        .with(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"))
}

impl Asset {
    fn new(name: &'static str, bytes: &[u8], hash: &str) -> Asset {
        let bytes = match std::str::from_utf8(bytes) {
            Ok(text) if name.ends_with(".html") => text.replace("{hash}", hash).into_bytes(),
            _ => bytes.to_vec(),
        };
        let gzip = (bytes.len() >= COMPRESS_MIN_BYTES).then(|| gzip_compress(&bytes)).flatten();
        Asset { name, bytes, gzip }
    }

    /// The file in full, compressed if the request accepts gzip; `None` stands for a client that does not.
    fn response(&self, request: Option<&Request>) -> Response {
        let kind = content_type(self.name);
        let answer = match (&self.gzip, request) {
            (Some(gzip), Some(request)) if accepts_gzip(&request.headers) => {
                let answer = Response::new(StatusCode::OK, kind, gzip.clone());
                answer.with(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"))
            }
            _ => Response::new(StatusCode::OK, kind, self.bytes.clone()),
        };
        answer.with(header::VARY, HeaderValue::from_static("accept-encoding"))
    }
}

fn gzip_compress(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(bytes).and_then(|()| encoder.finish()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    /// Bytes that a browser downloads.
    fn transfer_size(name: &str) -> usize {
        let (name, bytes) = ASSET_FILES.iter().find(|(known, _)| *known == name).unwrap();
        let asset = Asset::new(name, bytes, "0123456789abcdef");
        asset.gzip.unwrap_or(asset.bytes).len()
    }

    #[test]
    fn every_file_of_the_folder_is_in_the_program() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/src/web/assets");
        let there: BTreeSet<String> =
            std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        let known: BTreeSet<String> = ASSET_FILES.iter().map(|(name, _)| (*name).to_owned()).collect();
        assert_eq!(there, known);
    }

    #[test]
    fn all_that_a_page_loads_is_little() {
        const MOST: usize = 60 * 1024;
        let entries = NODE_PAGES.iter().chain(SERVER_PAGES).map(|(_, file)| *file).chain([NOT_FOUND_PAGE]);
        let mut unused: BTreeSet<&str> = ASSET_FILES.iter().map(|(name, _)| *name).collect();
        for entry in entries {
            let (mut loaded, mut left) = (BTreeSet::new(), vec![entry]);
            while let Some(name) = left.pop() {
                if loaded.insert(name) {
                    let (_, bytes) = ASSET_FILES.iter().find(|(known, _)| *known == name).unwrap();
                    let text = std::str::from_utf8(bytes).unwrap();
                    let names_it = |file: &&str| {
                        text.contains(&format!("\"./{file}\"")) || text.contains(&format!("/{{hash}}/{file}\""))
                    };
                    left.extend(ASSET_FILES.iter().map(|(file, _)| *file).filter(names_it));
                }
            }
            unused.retain(|name| !loaded.contains(name));
            let sent: usize = loaded.iter().map(|name| transfer_size(name)).sum();
            assert!(sent <= MOST, "{entry}: {sent} bytes in {loaded:?}");
        }
        assert!(unused.is_empty(), "no page loads {unused:?}");
    }

    #[test]
    fn nothing_is_written_into_pages_and_nothing_comes_from_elsewhere() {
        for (name, bytes) in ASSET_FILES {
            let text = std::str::from_utf8(bytes).unwrap();
            for wrong in ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function"] {
                assert!(!text.contains(wrong), "{name}: {wrong}");
            }
            // XML namespaces are URLs that nobody requests.
            let foreign = text.replace("http://www.w3.org/", "").contains("://");
            assert!(!foreign, "{name} names another place");
        }
    }
}
