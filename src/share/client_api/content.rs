//! What is in a user's own files, for a browser: as something to be saved, but for what a browser shows without
//! running anything of it.

use super::refusal;
use crate::net::http::{
    self, Answered, Call, FileFacts, HeaderValue, Refusal, Request, StatusCode, content_disposition,
};
use crate::share::files::{Facts, Tracked};
use crate::share::folders::Opened;
use crate::share::node::Node;
use crate::share::wire::FileName;

/// What endings stand for, and whether a browser shows it in a page: raster pictures, sound, film, PDF and plain text.
/// Whatever may hold a script (HTML, SVG, XML) is not among those.
const KINDS: &[(&[&str], &str, bool)] = &[
    (&["png", "apng"], "image/png", true),
    (&["jpg", "jpeg", "jpe", "jfif"], "image/jpeg", true),
    (&["gif"], "image/gif", true),
    (&["webp"], "image/webp", true),
    (&["avif"], "image/avif", true),
    (&["bmp"], "image/bmp", true),
    (&["ico"], "image/x-icon", true),
    (&["mp4", "m4v"], "video/mp4", true),
    (&["webm"], "video/webm", true),
    (&["ogv"], "video/ogg", true),
    (&["mov"], "video/quicktime", true),
    (&["mkv"], "video/x-matroska", true),
    (&["ogg", "oga"], "audio/ogg", true),
    (&["opus"], "audio/ogg", true),
    (&["mp3"], "audio/mpeg", true),
    (&["wav"], "audio/wav", true),
    (&["flac"], "audio/flac", true),
    (&["m4a"], "audio/mp4", true),
    (&["aac"], "audio/aac", true),
    (&["weba"], "audio/webm", true),
    (&["pdf"], "application/pdf", true),
    (&["txt", "text", "log", "md"], "text/plain; charset=utf-8", true),
    (&["zip"], "application/zip", false),
    (&["gz", "tgz"], "application/gzip", false),
    (&["json"], "application/json", false),
    (&["csv"], "text/csv; charset=utf-8", false),
];
/// Of everything else.
const UNKNOWN: &str = "application/octet-stream";

/// GET `files/{name}/content`.
///
/// # Errors
/// 404 for what is not one's own, unknown, or gone.
pub(super) fn content(node: &Node, call: &Call<'_>) -> Answered {
    serve(node, call.request, &name_of(call)?)
}

/// The file that a route names; what can be no name stands for no file.
pub(super) fn name_of(call: &Call<'_>) -> Result<FileName, Refusal> {
    FileName::new(call.param(0)).map_err(|_| no_such_file())
}

pub(super) fn no_such_file() -> Refusal {
    Refusal::new(StatusCode::NOT_FOUND, "there is no such file here")
}

/// A file's content, or the part of it that was asked for.
pub(super) fn serve(node: &Node, request: &Request, name: &FileName) -> Answered {
    let (file, opened) = node.open(name).map_err(|error| refusal(&error))?;
    let (kind, is_shown) = kind_of(file.name.as_str());
    let facts = FileFacts {
        length: opened.metadata.len(),
        etag: Some(etag(&file, &opened)),
        modified: opened.metadata.modified().ok(),
        content_type: HeaderValue::from_static(kind),
        disposition: Some(content_disposition(!is_shown, file.name.as_str())),
    };
    Ok(http::serve_file(request, opened.file, &facts))
}

/// The type that a name's ending stands for, and whether a browser shows it.
fn kind_of(name: &str) -> (&'static str, bool) {
    let ending = name.rsplit_once('.').map_or("", |(_, ending)| ending).to_ascii_lowercase();
    let known = KINDS.iter().find(|(endings, ..)| endings.contains(&&*ending));
    known.map_or((UNKNOWN, false), |(_, kind, is_shown)| (kind, *is_shown))
}

/// By the content's digest where that is known, and the file looks as it did when it was read; else by what the file
/// looks like. Any change of it gives another.
fn etag(file: &Tracked, opened: &Opened) -> String {
    let now = Facts::of(&opened.path, &opened.metadata);
    let is_as_read = (now.size, now.modified_ns) == (file.facts.size, file.facts.modified_ns);
    if let Some(blake3) = file.blake3.filter(|_| is_as_read) {
        return blake3.to_string();
    }
    #[cfg(unix)]
    let which = {
        use std::os::unix::fs::MetadataExt;
        let metadata = &opened.metadata;
        format!("{:x}-{:x}-{:x}.{:x}", metadata.dev(), metadata.ino(), metadata.ctime(), metadata.ctime_nsec())
    };
    #[cfg(not(unix))]
    let which = format!("{:x}", now.created_ns.unwrap_or_default());
    format!("{which}-{:x}-{:x}", now.size, now.modified_ns)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_browser_would_run_is_saved_and_what_it_shows_is_shown() {
        for (name, kind, is_shown) in [
            ("a.png", "image/png", true),
            ("A.JPEG", "image/jpeg", true),
            ("film.tar.mp4", "video/mp4", true),
            ("a.txt", "text/plain; charset=utf-8", true),
            ("a.pdf", "application/pdf", true),
            ("a.svg", UNKNOWN, false),
            ("a.html", UNKNOWN, false),
            ("a.htm", UNKNOWN, false),
            ("a.xhtml", UNKNOWN, false),
            ("a.xml", UNKNOWN, false),
            ("a.js", UNKNOWN, false),
            ("a.zip", "application/zip", false),
            ("png", UNKNOWN, false),
            ("a.", UNKNOWN, false),
            ("a.png.exe", UNKNOWN, false),
        ] {
            assert_eq!(kind_of(name), (kind, is_shown), "{name}");
        }
        assert!(KINDS.iter().all(|(_, kind, is_shown)| !is_shown || !kind.contains("svg") && !kind.contains("html")));
    }
}
