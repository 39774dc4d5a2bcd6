//! Files of other hosts that look like one that is about to be published.

use serde_json::{Value, json};

use crate::model::Name;
use crate::share::similarity::{Similarity, similarity};
use crate::share::wire::{FileName, HostEntry};

/// Most similar files of either kind that are reported: older registries return all files of the name.
const DUPLICATES_MAX: usize = 100;

/// A file of another host that is similar to one of ours.
#[derive(Debug, Clone, PartialEq)]
pub struct DuplicateMatch {
    /// Its name at that host.
    pub name: FileName,
    /// The host, and the file's properties.
    pub host: HostEntry,
}

impl DuplicateMatch {
    /// The client API's JSON form.
    fn json(&self) -> Value {
        let (host, file) = (&self.host, &self.host.file);
        json!({
            "hostname": host.hostname,
            "owner_hostname": host.hostname,
            "name": self.name,
            "size": file.size,
            "modified": file.modified,
            "created": file.created,
            "published_at": file.published_at,
            "blake3": file.blake3,
            "owner_name": host.display_name,
            "owner_ip": host.ip,
            "owner_port": host.port,
        })
    }
}

/// Files of other hosts that are similar to one that is about to be published.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Duplicates {
    /// Same size, and modified within two seconds.
    pub exact: Vec<DuplicateMatch>,
    /// Same size, or same name.
    pub partial: Vec<DuplicateMatch>,
}

impl Duplicates {
    /// Classifies what the registry found for a file of that size and modification time, leaving out our own files.
    pub fn of(own: &Name, size: u64, modified: Option<f64>, found: Vec<(FileName, HostEntry)>) -> Duplicates {
        let mut duplicates = Duplicates::default();
        for (name, host) in found.into_iter().filter(|(_, host)| host.hostname != *own) {
            let list = match similarity(size, modified, host.file.size, host.file.modified.get()) {
                Some(Similarity::Exact) => &mut duplicates.exact,
                Some(Similarity::SameSize) | None => &mut duplicates.partial,
            };
            if list.len() < DUPLICATES_MAX {
                list.push(DuplicateMatch { name, host });
            }
        }
        duplicates
    }

    /// Whether no similar file was found.
    pub fn is_empty(&self) -> bool {
        self.exact.is_empty() && self.partial.is_empty()
    }

    /// The client API's JSON form.
    pub fn json(&self) -> Value {
        let list = |files: &[DuplicateMatch]| files.iter().map(DuplicateMatch::json).collect::<Vec<_>>();
        json!({
            "has_exact_duplicate": !self.exact.is_empty(),
            "has_partial_duplicate": !self.partial.is_empty(),
            "exact_matches": list(&self.exact),
            "partial_matches": list(&self.partial),
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::from_value;

    use super::*;

    #[test]
    fn duplicates_are_others_files_of_the_same_size_or_name() {
        let found = |name: &str, host: &str, size: u64, modified: f64| {
            let entry = json!({"hostname": host, "ip": "192.0.2.1", "port": 6001, "size": size, "modified": modified});
            (FileName::new(name).unwrap(), from_value::<HostEntry>(entry).unwrap())
        };
        let all = vec![
            found("a", "ann", 5, 100.0),
            found("b", "bob", 5, 101.5),
            found("c", "bob", 5, 200.0),
            found("a", "cy", 6, 100.0),
        ];
        let ann = Name::new("ann").unwrap();
        let names = |list: &[DuplicateMatch]| {
            list.iter().map(|it| format!("{}@{}", it.name, it.host.hostname)).collect::<Vec<_>>()
        };
        let duplicates = Duplicates::of(&ann, 5, Some(100.0), all.clone());
        assert_eq!(
            (names(&duplicates.exact), names(&duplicates.partial)),
            (vec!["b@bob".to_owned()], vec!["c@bob".to_owned(), "a@cy".to_owned()])
        );
        let shown = duplicates.json();
        assert_eq!(
            (&shown["has_exact_duplicate"], &shown["exact_matches"][0]["hostname"]),
            (&json!(true), &json!("bob"))
        );
        assert_eq!(Duplicates::of(&ann, 5, None, all).partial.len(), 3);
        assert!(Duplicates::of(&ann, 5, None, Vec::new()).is_empty());
    }
}
