//! The world as it is: sockets, files, the clock. Everything else is pure and gets what it needs as a value.

pub mod files;
mod git;
pub mod host;
pub mod netlink;
mod owner;
pub mod programs;
pub mod resolv_conf;
pub mod resolver;
