//! What became of a question about one name: the input of the lease rules. How it was asked is not known here.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

/// What became of a question about one name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Addresses, of at least one family.
    Addresses {
        /// What the answer went through: see [`crate::pins::NamePins::chain`].
        chain: Vec<String>,
        /// Time to live in seconds and the server, by address.
        addresses: BTreeMap<IpAddr, (u32, String)>,
        /// What was wrong with the other family or other servers, in words.
        complaints: Vec<String>,
    },
    /// The name exists and has no address.
    Empty {
        /// Which server said so.
        server: String,
    },
    /// The name does not exist.
    NoSuchName {
        /// Which server said so.
        server: String,
    },
    /// Nobody answered usefully: time-outs, SERVFAIL, REFUSED, malformed answers.
    Failed {
        /// Server by server, in words.
        reasons: Vec<String>,
    },
}

impl fmt::Display for Answer {
    /// One clause, as a sentence about the name goes on with it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Answer::Addresses { addresses, .. } if addresses.len() == 1 => f.write_str("has 1 address"),
            Answer::Addresses { addresses, .. } => write!(f, "has {} addresses", addresses.len()),
            Answer::Empty { server } => write!(f, "exists and has no address, says {server}"),
            Answer::NoSuchName { server } => write!(f, "does not exist (NXDOMAIN), says {server}"),
            Answer::Failed { reasons } => write!(f, "was not answered: {}", reasons.join("; ")),
        }
    }
}
