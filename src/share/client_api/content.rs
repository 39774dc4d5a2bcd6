//! The content of a user's own files for a browser: as an attachment, except for types that a browser displays without
//! executing anything.

use crate::net::http::{
    self, FileMetadata, HandlerResult, HeaderValue, HttpError, Request, RouteCall, StatusCode, content_disposition,
};
use crate::share::files::{FileStat, TrackedFile};
use crate::share::folders::OpenedFile;
use crate::share::node::Node;
use crate::share::wire::FileName;

/// Content types by file extension, and whether a browser may display them inline: raster images, audio, video, PDF
/// and plain text. Types that can contain scripts (HTML, SVG, XML) are not included.
const CONTENT_TYPES: &[(&[&str], &str, bool)] = &[
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
const DEFAULT_CONTENT_TYPE: &str = "application/octet-stream";

/// 404 if the file is unknown, gone, or not the user's own.
pub(super) fn content(node: &Node, call: &RouteCall<'_>) -> HandlerResult {
    serve(node, call.request, &file_name_of(call)?)
}

/// An invalid name gives 404.
pub(super) fn file_name_of(call: &RouteCall<'_>) -> Result<FileName, HttpError> {
    FileName::new(call.param(0)).map_err(|_| file_not_found())
}

pub(super) fn file_not_found() -> HttpError {
    HttpError::new(StatusCode::NOT_FOUND, "there is no such file here")
}

pub(super) fn serve(node: &Node, request: &Request, name: &FileName) -> HandlerResult {
    let (file, opened) = node.open(name)?;
    let (content_type, is_inline) = content_type_of(file.name.as_str());
    let facts = FileMetadata {
        length: opened.metadata.len(),
        etag: Some(etag(&file, &opened)),
        modified_at: opened.metadata.modified().ok(),
        content_type: HeaderValue::from_static(content_type),
        disposition: Some(content_disposition(!is_inline, file.name.as_str())),
    };
    Ok(http::serve_file(request, opened.file, &facts))
}

/// The content type, and whether it may be displayed inline.
fn content_type_of(name: &str) -> (&'static str, bool) {
    let ending = name.rsplit_once('.').map_or("", |(_, ending)| ending).to_ascii_lowercase();
    let known = CONTENT_TYPES.iter().find(|(endings, ..)| endings.contains(&&*ending));
    known.map_or((DEFAULT_CONTENT_TYPE, false), |(_, content_type, is_inline)| (content_type, *is_inline))
}

/// The content's digest if it is known and the file is unchanged since it was hashed; else a tag of the file's
/// metadata, which any change of the file changes.
fn etag(file: &TrackedFile, opened: &OpenedFile) -> String {
    let now = FileStat::of(&opened.path, &opened.metadata);
    let is_as_read = (now.size, now.modified_ns) == (file.stat.size, file.stat.modified_ns);
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
        for (name, content_type, is_inline) in [
            ("a.png", "image/png", true),
            ("A.JPEG", "image/jpeg", true),
            ("film.tar.mp4", "video/mp4", true),
            ("a.txt", "text/plain; charset=utf-8", true),
            ("a.pdf", "application/pdf", true),
            ("a.svg", DEFAULT_CONTENT_TYPE, false),
            ("a.html", DEFAULT_CONTENT_TYPE, false),
            ("a.htm", DEFAULT_CONTENT_TYPE, false),
            ("a.xhtml", DEFAULT_CONTENT_TYPE, false),
            ("a.xml", DEFAULT_CONTENT_TYPE, false),
            ("a.js", DEFAULT_CONTENT_TYPE, false),
            ("a.zip", "application/zip", false),
            ("png", DEFAULT_CONTENT_TYPE, false),
            ("a.", DEFAULT_CONTENT_TYPE, false),
            ("a.png.exe", DEFAULT_CONTENT_TYPE, false),
        ] {
            assert_eq!(content_type_of(name), (content_type, is_inline), "{name}");
        }
        assert!(CONTENT_TYPES.iter().all(|(_, content_type, is_inline)| !is_inline
            || !content_type.contains("svg") && !content_type.contains("html")));
    }
}
