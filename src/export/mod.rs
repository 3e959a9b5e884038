//! The rules in the language of other firewalls, for hosts without nf_tables. Values in, values and text out; nothing here runs a
//! program or asks the host.
//!
//! [`iptables::export`] turns a ruleset into what `iptables`, `ip6tables` and `ipset` hold, [`script`] writes it as one shell
//! script, [`observed`] reads what is really there, and [`plan`] says what has to change.

pub mod iptables;
pub mod names;
pub mod observed;
pub mod plan;
pub mod rule;
pub mod script;
pub mod set;
mod statement;
pub mod unsayable;
mod words;
