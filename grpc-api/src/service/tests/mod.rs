//! The API over real sockets.

mod bad_input;
mod connections;
mod described;
mod roles;
mod streams;
mod support;
