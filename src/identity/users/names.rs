//! The names of all accounts, in memory.

use std::collections::{HashMap, HashSet};

use crate::model::Name;

/// Names are spelled as on disk. An earlier version created two accounts for two spellings of one name.
#[derive(Default)]
pub(super) struct AccountNames {
    /// The oldest account of each name, compared without regard to spelling. It has the hostname, because the registry
    /// has one host for all spellings.
    pub oldest: HashSet<Name>,
    /// The other accounts, by their exact spelling.
    pub other_spellings: HashMap<Box<str>, Name>,
}

impl AccountNames {
    pub fn from_oldest_first(names_by_age: Vec<Name>) -> AccountNames {
        let mut names = AccountNames::default();
        for name in names_by_age {
            if names.oldest.contains(&name) {
                names.other_spellings.insert(name.as_str().into(), name);
            } else {
                names.oldest.insert(name);
            }
        }
        names
    }

    /// The account with exactly this spelling, else the oldest.
    pub fn resolve(&self, name: &Name) -> Option<&Name> {
        self.other_spellings.get(name.as_str()).or_else(|| self.oldest.get(name))
    }

    /// `account` is as it is spelled on disk.
    pub fn has_hostname(&self, account: &Name) -> bool {
        self.oldest.get(account).is_some_and(|oldest| oldest.as_str() == account.as_str())
    }

    pub fn len(&self) -> usize {
        self.oldest.len() + self.other_spellings.len()
    }
}
