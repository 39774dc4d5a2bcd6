//! The web pages, the OpenAPI descriptions of the HTTP APIs and the operator's API. See `docs/spec/share.md`.
//!
//! | file | holds |
//! |---|---|
//! | `site.rs` | the handler of one HTTP port: an API, its description and its pages |
//! | `pages.rs` | serves the pages and their assets, which are compiled into the program |
//! | `openapi.rs` | generates an API's description from its route table |
//! | `operator/` | the API with which the operator watches and administers a server |
//! | `assets/` | HTML, CSS, JavaScript and SVG files of the pages |

mod openapi;
pub mod operator;
mod pages;
mod site;

pub use site::Site;
