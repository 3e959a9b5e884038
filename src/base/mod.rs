//! Words shared by every room: names, addresses, ports, times, packets, diagnostics. No effects, no policy.

pub mod diagnostic;
pub mod name;
pub mod net;
pub mod packet;
pub mod port;
pub mod time;
