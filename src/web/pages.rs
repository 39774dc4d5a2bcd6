//! The pages and what they are made of, out of the program itself.
//!
//! An entry (a page's HTML) is asked for anew each time, and names what it is made of below `/assets/HASH/`, where the
//! hash is that of all of it: so that may be kept for ever, and a page never gets half of an older program's files.

use std::fmt;
use std::io::Write;

use flate2::Compression;
use flate2::write::GzEncoder;

use crate::net::http::{HeaderValue, Request, Response, StatusCode, accepts_gzip, has_already, header};

/// The type of a page.
pub(super) const HTML: &str = "text/html; charset=utf-8";
/// Everything comes from here, nothing is written into the page, and nobody frames it. Pictures and media may be what
/// the page itself has made.
const POLICY: &str = "default-src 'self'; img-src 'self' data: blob:; media-src 'self' data: blob:; base-uri 'none'; \
                      form-action 'self'; frame-ancestors 'none'";
/// The page for a path that is none.
const NOTHING_HERE: &str = "error.html";
/// Below this, bytes, compressing saves nothing worth it.
const COMPRESSED_FROM: usize = 1024;
/// Characters of the hash: nobody has to be kept from finding two of one hash.
const HASH_CHARS: usize = 16;

/// A page: its path, and the file that it is.
pub(super) type Entry = (&'static str, &'static str);

/// A node's pages.
pub(super) const NODE: &[Entry] = &[("/", "node.html")];
/// A server's pages.
pub(super) const SERVER: &[Entry] = &[("/", "home.html"), ("/admin", "admin.html")];

macro_rules! assets {
    ($($name:literal)*) => { &[$(($name, include_bytes!(concat!("assets/", $name)))),*] };
}

/// Every file.
const FILES: &[(&str, &[u8])] = assets!("admin-data.js" "admin-list.js" "admin-lists.js" "admin-overview.js" "admin.css" "admin.html" "admin.js" "api.js" "charts.js" "device.js" "error.html" "favicon.svg" "files.js" "home.css" "home.html" "home.js" "network.js" "node.css" "node.html" "node.js" "paged.js" "people.js" "picker.js" "qr.js" "rows.js" "state.js" "style.css" "transfers.js" "ui.js" "uploads.js");

fn type_of(name: &str) -> &'static str {
    match name.rsplit_once('.').map_or("", |(_, extension)| extension) {
        "html" => HTML,
        "css" => "text/css; charset=utf-8",
        "js" => "text/javascript; charset=utf-8",
        "svg" => "image/svg+xml",
        _ => "application/octet-stream",
    }
}

/// A file as it is sent.
struct Asset {
    name: &'static str,
    bytes: Vec<u8>,
    gzip: Option<Vec<u8>>,
}

/// The pages of a port.
pub(super) struct Pages {
    entries: &'static [Entry],
    hash: String,
    assets: Vec<Asset>,
}

impl Pages {
    pub(super) fn new(entries: &'static [Entry]) -> Pages {
        let mut hasher = blake3::Hasher::new();
        for (name, bytes) in FILES {
            // With lengths, so that no two sets of files look the same.
            hasher.update(&(name.len() as u64).to_le_bytes()).update(name.as_bytes());
            hasher.update(&(bytes.len() as u64).to_le_bytes()).update(bytes);
        }
        let hash = hasher.finalize().to_hex()[..HASH_CHARS].to_owned();
        let assets = FILES.iter().map(|(name, bytes)| Asset::new(name, bytes, &hash)).collect();
        Pages { entries, hash, assets }
    }

    /// What is at a path, if that is a page or a part of one.
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
        Some(asset.send(Some(request)).with(header::CACHE_CONTROL, kept))
    }

    /// The page for a path that is none.
    pub(super) fn nothing_here(&self) -> Response {
        match self.asset(NOTHING_HERE) {
            Some(asset) => guarded(Response { status: StatusCode::NOT_FOUND, ..asset.send(None) }),
            None => crate::net::http::not_found(),
        }
    }

    fn page(&self, request: &Request, file: &str) -> Response {
        let Some(asset) = self.asset(file) else { return self.nothing_here() };
        // Weak, as the same content is sent in two forms.
        let tag = format!("W/\"{}\"", self.hash);
        let is_known = has_already(&request.headers, &self.hash);
        let mut page = asset.send(Some(request));
        if is_known {
            page = Response { status: StatusCode::NOT_MODIFIED, ..Response::new(StatusCode::OK, HTML, "") };
        }
        if let Ok(tag) = HeaderValue::from_str(&tag) {
            page = page.with(header::ETAG, tag);
        }
        guarded(page.with(header::CACHE_CONTROL, HeaderValue::from_static("no-cache")))
    }

    fn asset(&self, name: &str) -> Option<&Asset> {
        self.assets.iter().find(|asset| asset.name == name)
    }
}

/// A page with what keeps others' things out of it.
fn guarded(page: Response) -> Response {
    page.with(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY))
        .with(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"))
}

impl Asset {
    fn new(name: &'static str, bytes: &[u8], hash: &str) -> Asset {
        let bytes = match std::str::from_utf8(bytes) {
            Ok(text) if name.ends_with(".html") => text.replace("{hash}", hash).into_bytes(),
            _ => bytes.to_vec(),
        };
        let gzip = (bytes.len() >= COMPRESSED_FROM).then(|| compressed(&bytes)).flatten();
        Asset { name, bytes, gzip }
    }

    /// Compressed, if whoever asks takes that.
    fn send(&self, request: Option<&Request>) -> Response {
        let kind = type_of(self.name);
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

fn compressed(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(bytes).and_then(|()| encoder.finish()).ok()
}

impl fmt::Debug for Pages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pages").field("entries", &self.entries).field("hash", &self.hash).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    /// As a browser gets it.
    fn sent_size(name: &str) -> usize {
        let (name, bytes) = FILES.iter().find(|(known, _)| *known == name).unwrap();
        let asset = Asset::new(name, bytes, "0123456789abcdef");
        asset.gzip.unwrap_or(asset.bytes).len()
    }

    #[test]
    fn every_file_of_the_folder_is_in_the_program() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/src/web/assets");
        let there: BTreeSet<String> =
            std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        let known: BTreeSet<String> = FILES.iter().map(|(name, _)| (*name).to_owned()).collect();
        assert_eq!(there, known);
    }

    #[test]
    fn all_that_a_page_loads_is_little() {
        const MOST: usize = 60 * 1024;
        let entries = NODE.iter().chain(SERVER).map(|(_, file)| *file).chain([NOTHING_HERE]);
        let mut unused: BTreeSet<&str> = FILES.iter().map(|(name, _)| *name).collect();
        for entry in entries {
            let (mut loaded, mut left) = (BTreeSet::new(), vec![entry]);
            while let Some(name) = left.pop() {
                if loaded.insert(name) {
                    let (_, bytes) = FILES.iter().find(|(known, _)| *known == name).unwrap();
                    let text = std::str::from_utf8(bytes).unwrap();
                    let names_it = |file: &&str| {
                        text.contains(&format!("\"./{file}\"")) || text.contains(&format!("/{{hash}}/{file}\""))
                    };
                    left.extend(FILES.iter().map(|(file, _)| *file).filter(names_it));
                }
            }
            unused.retain(|name| !loaded.contains(name));
            let sent: usize = loaded.iter().map(|name| sent_size(name)).sum();
            assert!(sent <= MOST, "{entry}: {sent} bytes in {loaded:?}");
        }
        assert!(unused.is_empty(), "no page loads {unused:?}");
    }

    #[test]
    fn nothing_is_written_into_pages_and_nothing_comes_from_elsewhere() {
        for (name, bytes) in FILES {
            let text = std::str::from_utf8(bytes).unwrap();
            for wrong in ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function"] {
                assert!(!text.contains(wrong), "{name}: {wrong}");
            }
            // The names of XML's own kinds are addresses that nobody asks.
            let foreign = text.replace("http://www.w3.org/", "").contains("://");
            assert!(!foreign, "{name} names another place");
        }
    }
}
