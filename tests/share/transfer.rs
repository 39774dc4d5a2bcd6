//! File transfer between peers over real sockets: between this implementation's peers, and with peers written from the
//! specification (`docs/spec/share.md`) alone.

mod faults;
mod fetching;
mod proxy;
mod serving;
mod sources;
mod speed;
mod world;
