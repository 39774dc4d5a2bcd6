//! Stories and properties of the core.
