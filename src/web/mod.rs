//! What stands on HTTP and belongs to no room: the pages, and the description of the APIs. SPEC.md section 6.
//!
//! | file | holds |
//! |---|---|
//! | `site.rs` | a port: an API, its description and its pages |
//! | `pages.rs` | the pages and what they are made of, out of the program itself |
//! | `openapi.rs` | an API's description, made from the table that its requests are matched by |
//! | `operator/` | what a server's operator sees, and what he may do |
//! | `assets/` | the pages as plain files |

mod openapi;
pub mod operator;
mod pages;
mod site;

pub use site::Site;
