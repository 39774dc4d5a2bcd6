//! What both APIs answer alike, as their tables describe it.

use crate::net::http::routes::Shape::{Flag, List, Map, Named, Number, Row, Text, Whole};
use crate::net::http::routes::{Field, field, optional};

/// An account, as it is shown to its user.
pub const USER: &[Field] =
    &[field("username", Text), field("display_name", Text), field("created_at", Text), optional("last_login", Text)];
/// Who has signed in.
pub const SIGNED_IN: &[Field] = &[field("token", Text), field("user", Named("User", USER))];
/// A file as the registry has it.
pub const ENTRY: &[Field] = &[
    field("size", Whole),
    field("modified", Number),
    optional("created", Number),
    optional("published_at", Number),
    field("is_published", Flag),
    optional("blake3", Text),
    optional("pieces_root", Text),
    optional("features", List(&Text)),
];
/// What one host has, and where it is.
pub const DISCOVERED: &[Field] =
    &[field("hostname", Text), field("files", Map(&Named("Entry", ENTRY))), field("addr", Row(&[Text, Whole]))];
