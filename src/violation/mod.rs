//! Packets that no rule allowed: what the kernel says of them, and what is remembered.

pub mod decode;
