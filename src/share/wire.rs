//! The registry's messages; see `docs/spec/share.md`. This file has the files and hosts that they carry, `requests.rs`
//! the requests, and `responses.rs` the responses.

use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, OnceLock};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::model::text::{self, NormalizedText};

pub use crate::model::digest::Digest;

pub mod requests;
pub mod responses;

pub use requests::{
    Action, ChangesRequest, DiscoverRequest, FileMap, FileRequest, ListRequest, PingRequest, PublishRequest,
    RegisterRequest, RegistryRequest, UnpublishRequest, UnregisterRequest,
};
pub use responses::{ChangeEntry, ChangesResponse, ListResponse, ListedHost};

/// The longest file name in bytes.
pub const FILE_NAME_MAX: usize = 255;
/// The largest file in bytes: 128 GB, rounded up to the binary unit.
pub const FILE_SIZE_MAX: u64 = 128 << 30;
/// The most features that a file may list.
pub const FEATURES_MAX: usize = 16;
/// The longest feature in characters.
pub const FEATURE_LENGTH_MAX: usize = 32;
/// The feature of files for which the host accepts META and RANGE requests.
pub const RANGE_FEATURE: &str = "range";
/// The lowest port that a peer may register.
pub const PORT_MIN: u16 = 1024;

/// The name under which a file is known on the network: 1–255 bytes, no separator of any system, no control
/// character, and not `.` or `..`. Cheap to clone: names are keys of every table in memory.
///
/// It is stored and shown as given, but compared in Unicode Normalization Form C, since systems encode the same name
/// differently.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileName(NormalizedText);

impl FileName {
    pub fn new(text: &str) -> Result<FileName, String> {
        if text.is_empty() || text.len() > FILE_NAME_MAX {
            return Err(format!("expected 1 to {FILE_NAME_MAX} bytes, not {}", text.len()));
        }
        if text.contains(['/', '\\']) {
            return Err("expected a name without / and \\".to_owned());
        }
        if text.chars().any(char::is_control) {
            return Err("expected no control characters".to_owned());
        }
        if text == "." || text == ".." {
            return Err("expected a file's name, not a folder's".to_owned());
        }
        Ok(FileName(NormalizedText::new(text)))
    }

    /// An empty pseudo-name that sorts before all names.
    pub(super) fn minimum() -> FileName {
        FileName(NormalizedText::new(""))
    }

    /// The name as given.
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }

    /// The name as compared: in Normalization Form C.
    pub fn key(&self) -> &str {
        self.0.key()
    }
}

impl Serialize for FileName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl fmt::Display for FileName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for FileName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.as_str())
    }
}

impl<'de> Deserialize<'de> for FileName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<FileName, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        FileName::new(&text).map_err(serde::de::Error::custom)
    }
}

/// A file's time: Unix seconds with an optional fraction. Whole numbers are serialized as integers.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd)]
pub struct Seconds(f64);

impl Seconds {
    /// A finite number within ±2^53, the range in which JSON readers represent integers exactly.
    pub fn new(seconds: f64) -> Result<Seconds, String> {
        const EXACT: f64 = (1u64 << 53) as f64;
        if !seconds.is_finite() || seconds.abs() > EXACT {
            return Err("expected Unix seconds".to_owned());
        }
        Ok(Seconds(seconds))
    }

    pub fn whole(seconds: u32) -> Seconds {
        Seconds(f64::from(seconds))
    }

    pub fn get(self) -> f64 {
        self.0
    }
}

impl Serialize for Seconds {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        // Within 2^53, so the conversion is exact.
        if self.0.fract() == 0.0 { serializer.serialize_i64(self.0 as i64) } else { serializer.serialize_f64(self.0) }
    }
}

impl<'de> Deserialize<'de> for Seconds {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Seconds, D::Error> {
        Seconds::new(f64::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

/// What a host publishes about one of its files.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "responses::EntryFields")]
pub struct FileEntry {
    /// In bytes, at most [`FILE_SIZE_MAX`].
    pub size: u64,
    /// When its content was last modified.
    pub modified: Seconds,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created: Option<Seconds>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub published_at: Option<Seconds>,
    /// Other hosts see the file.
    pub is_published: bool,
    /// BLAKE3 of the whole content.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub blake3: Option<Digest>,
    /// BLAKE3 of the concatenated piece digests.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pieces_root: Option<Digest>,
    /// The requests besides GET that the host accepts for this file.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    pub features: Arc<[Arc<str>]>,
}

impl FileEntry {
    /// Whether the host accepts META and RANGE for it.
    pub fn has_range(&self) -> bool {
        self.features.iter().any(|feature| &**feature == RANGE_FEATURE)
    }
}

/// The lists that nearly all files have are shared.
fn features(listed: Vec<String>) -> Result<Arc<[Arc<str>]>, String> {
    static NONE: OnceLock<Arc<[Arc<str>]>> = OnceLock::new();
    static RANGE: OnceLock<Arc<[Arc<str>]>> = OnceLock::new();
    if listed.is_empty() {
        return Ok(Arc::clone(NONE.get_or_init(|| Arc::new([]))));
    }
    if matches!(&listed[..], [only] if only == RANGE_FEATURE) {
        return Ok(Arc::clone(RANGE.get_or_init(|| Arc::new([RANGE_FEATURE.into()]))));
    }
    if listed.len() > FEATURES_MAX {
        return Err(format!("expected at most {FEATURES_MAX}, not {}", listed.len()));
    }
    for feature in &listed {
        text::check(feature, 1, FEATURE_LENGTH_MAX)?;
    }
    Ok(listed.into_iter().map(Arc::from).collect())
}

/// A host that has a file, as in the response to REQUEST.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct HostEntry {
    pub hostname: crate::model::Name,
    pub display_name: Arc<str>,
    /// The address of its peer server.
    pub ip: IpAddr,
    pub port: u16,
    #[serde(flatten)]
    pub file: Arc<FileEntry>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn file_names_are_names_and_nothing_else() {
        for good in ["a", "report.pdf", " x ", "…", "..a", &"é".repeat(127)] {
            assert_eq!(FileName::new(good).unwrap().as_str(), good);
        }
        for bad in ["", ".", "..", "a/b", "a\\b", "a\nb", "a\0b", "\u{85}", &"é".repeat(128)] {
            assert!(FileName::new(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn seconds_are_written_whole_where_they_are() {
        let written = |seconds| serde_json::to_string(&Seconds::new(seconds).unwrap()).unwrap();
        assert_eq!(written(1_699_267_200.0), "1699267200");
        assert_eq!(written(1_699_267_200.25), "1699267200.25");
        assert_eq!(written(-1.0), "-1");
        // And parsed exactly as they were written.
        let read: Seconds = serde_json::from_str("1795289039.7055743").unwrap();
        assert_eq!(written(read.get()), "1795289039.7055743");
        assert!(Seconds::new(f64::NAN).is_err() && Seconds::new(1e300).is_err());
        assert!(serde_json::from_value::<Seconds>(json!("1")).is_err());
    }

    #[test]
    fn an_entry_leaves_out_what_is_not_known() {
        let bare = FileEntry {
            size: 5,
            modified: Seconds::new(7.0).unwrap(),
            created: None,
            published_at: None,
            is_published: true,
            blake3: None,
            pieces_root: None,
            features: Arc::new([]),
        };
        assert_eq!(serde_json::to_value(&bare).unwrap(), json!({"size": 5, "modified": 7, "is_published": true}));
        assert!(!bare.has_range());
        let host = HostEntry {
            hostname: crate::model::Name::new("ann").unwrap(),
            display_name: "Ann".into(),
            ip: [127, 0, 0, 1].into(),
            port: 6001,
            file: Arc::new(FileEntry { features: Arc::new(["range".into()]), ..bare }),
        };
        assert!(host.file.has_range());
        assert_eq!(
            serde_json::to_value(&host).unwrap(),
            json!({"hostname": "ann", "display_name": "Ann", "ip": "127.0.0.1", "port": 6001,
                "size": 5, "modified": 7, "is_published": true, "features": ["range"]})
        );
    }
}
