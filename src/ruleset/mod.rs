//! The rules as values: what is meant, how it is written for people, and how the kernel is told.

pub mod program;
