//! Questions about rules: what differs from what is there.

pub mod plan;
