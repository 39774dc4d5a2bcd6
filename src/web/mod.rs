//! What is served over HTTP for all services: pages, OpenAPI descriptions, the operator's API (docs/spec/share.md).

mod openapi;
pub mod operator;
mod pages;
mod site;

pub use site::Site;
