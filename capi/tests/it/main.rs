//! The library from C, and its header.

mod c;
mod header;
mod neighbours;
