//! Files of other hosts that look like one that is about to be published.

use std::net::IpAddr;

use serde_json::{Value, json};

use crate::model::Name;
use crate::share::similarity::{Similarity, similarity};
use crate::share::wire::{FileEntry, FileName, HostEntry};

/// So many of either kind are reported: older registries return all files of the name.
const DUPLICATES_MAX: usize = 100;

/// A file of a host, in the client API's JSON form.
pub(super) fn file_json(
    name: &FileName,
    file: &FileEntry,
    hostname: &Name,
    display_name: &str,
    (ip, port): (IpAddr, u16),
) -> Value {
    json!({
        "name": name, "size": file.size, "modified": file.modified, "created": file.created,
        "published_at": file.published_at, "blake3": file.blake3,
        "hostname": hostname,
        "owner_hostname": hostname, "owner_name": display_name, "owner_ip": ip, "owner_port": port,
    })
}

/// Each file has its name at the host.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Duplicates {
    /// Same size, and modified within two seconds.
    pub exact: Vec<(FileName, HostEntry)>,
    /// Same size, or same name.
    pub partial: Vec<(FileName, HostEntry)>,
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
                list.push((name, host));
            }
        }
        duplicates
    }

    pub fn is_empty(&self) -> bool {
        self.exact.is_empty() && self.partial.is_empty()
    }

    pub fn json(&self) -> Value {
        let one = |(name, host): &(FileName, HostEntry)| {
            file_json(name, &host.file, &host.hostname, &host.display_name, (host.ip, host.port))
        };
        let list = |files: &[(FileName, HostEntry)]| files.iter().map(one).collect::<Vec<_>>();
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
    use crate::share::wire::responses::FileHolder;

    #[test]
    fn duplicates_are_others_files_of_the_same_size_or_name() {
        let found = |name: &str, host: &str, size: u64, modified: f64| {
            let entry = json!({"hostname": host, "ip": "192.0.2.1", "port": 6001, "size": size, "modified": modified});
            (FileName::new(name).unwrap(), from_value::<FileHolder>(entry).unwrap().host)
        };
        let all = vec![
            found("a", "ann", 5, 100.0),
            found("b", "bob", 5, 101.5),
            found("c", "bob", 5, 200.0),
            found("a", "cy", 6, 100.0),
        ];
        let ann = Name::new("ann").unwrap();
        let names = |list: &[(FileName, HostEntry)]| {
            list.iter().map(|(name, host)| format!("{name}@{}", host.hostname)).collect::<Vec<_>>()
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
