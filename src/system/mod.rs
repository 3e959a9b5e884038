//! The only sockets, clock, processes and files of the world: the kernel's packet filter, resolvers, this host.

pub mod files;
pub mod netlink;
