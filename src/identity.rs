//! Who somebody is: what rooms with accounts share. It knows no room.
