//! Files from peer to peer over real sockets: between ours, and with peers that are written from SPEC.md alone.

mod faults;
mod fetching;
mod proxy;
mod serving;
mod sources;
mod speed;
mod world;
