//! egressguard: one inbound port, outbound TLS to named hosts only, held by the kernel.
//!
//! ```text
//!  policy.yaml --parse--> Policy --+
//!  pins file ---load----> Pins ----+--compile--> Ruleset --+--text-----> nft script (people, CI, oracle)
//!  Facts (uids, cgroups, servers) -+                       +--lower----> Program --encode--> netlink batch --> kernel
//!                                                          +--export---> iptables, ip6tables, ipset
//!  kernel --dump--> decode --> Program --lift--> Ruleset  (what is really there)
//!  Ruleset, Packet   --judge--> Trace (verdict, rule, why)
//!  Ruleset, Ruleset  --compare--> Changes (witness, before, after)
//!  Observed, Ruleset --plan--> Plan (nothing, sets, rules)
//!  Underway, Ruleset --revoke--> flows and sockets that are to end
//! ```
//!
//! Everything between two arrows is a plain value and every arrow is a pure function, except the netlink socket, DNS,
//! files and the clock, which live in [`system`] behind the traits of [`world`].
//!
//! # Floors
//!
//! A room imports only rooms on lower floors. `tests/floors.rs` reads this table.
//!
//! | room | floor | also imports |
//! |---|---|---|
//! | base | 0 | |
//! | policy | 1 | |
//! | pins | 1 | |
//! | ruleset | 2 | |
//! | judge | 3 | |
//! | violation | 3 | judge |
//! | export | 3 | |
//! | world | 4 | |
//! | state | 5 | |
//! | simulated | 5 | |
//! | system | 5 | |
//! | command | 6 | |
//! | demo | 7 | |
#![deny(unsafe_code)]
#![warn(missing_docs)]

pub mod base;
pub mod command;
pub mod demo;
pub mod export;
pub mod judge;
pub mod pins;
pub mod policy;
pub mod ruleset;
pub mod simulated;
pub mod state;
pub mod system;
pub mod violation;
pub mod world;
