//! Response fields that the client API and the server API have in common, as their route tables describe them.

use crate::net::http::routes::Schema::{Boolean, Integer, List, Map, Named, Number, Text, Tuple};
use crate::net::http::routes::{FieldSchema, field, optional};

/// An account as shown to its user.
pub const USER_FIELDS: &[FieldSchema] =
    &[field("username", Text), field("display_name", Text), field("created_at", Text), optional("last_login", Text)];
pub const SIGN_IN_RESPONSE: &[FieldSchema] = &[field("token", Text), field("user", Named("User", USER_FIELDS))];
/// A file as published at the registry.
pub const FILE_ENTRY_FIELDS: &[FieldSchema] = &[
    field("size", Integer),
    field("modified", Number),
    optional("created", Number),
    optional("published_at", Number),
    field("is_published", Boolean),
    optional("blake3", Text),
    optional("pieces_root", Text),
    optional("features", List(&Text)),
];
pub const DISCOVER_RESPONSE: &[FieldSchema] = &[
    field("hostname", Text),
    field("files", Map(&Named("Entry", FILE_ENTRY_FIELDS))),
    field("addr", Tuple(&[Text, Integer])),
];
