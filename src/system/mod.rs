//! The world as it is: sockets, files, the clock. Everything else is pure and gets what it needs as a value.

pub mod attribution;
#[allow(unsafe_code)] // maps the kernel's rings
pub mod connects;
pub mod files;
mod git;
pub mod hook;
pub mod host;
pub mod netlink;
mod owner;
mod process;
pub mod programs;
pub mod resolv_conf;
pub mod resolver;
#[allow(unsafe_code)] // asks prctl, which nix lacks
pub mod rights;
pub mod scrape;
pub mod signals;
pub mod supervisor;
