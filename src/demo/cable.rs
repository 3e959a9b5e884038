//! A cable between two network namespaces, laid with the `ip` program of iproute2, with addresses and routes on both ends.

use std::fmt::Write as _;
use std::io::Write as _;
use std::net::IpAddr;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::Context;

use crate::demo::namespace::{Missing, Namespace};

/// What lies at the ends of the cable.
#[derive(Debug, Clone)]
pub struct Cable {
    /// Addresses of the near end, the server's.
    pub near: Vec<IpAddr>,
    /// Addresses of the far end, one of each family; the server's gateways.
    pub far: Vec<IpAddr>,
    /// Addresses of others behind the far end.
    pub beyond: Vec<IpAddr>,
}

impl Cable {
    /// Lays the cable from the namespace of the calling thread to another one. Fails with a [`Missing`] when the machine lacks
    /// something.
    pub fn lay(&self, there: &Namespace) -> anyhow::Result<()> {
        run_ip(&format!(
            "link set lo up\nlink add uplink type veth peer name downlink\nlink set downlink netns {}\n",
            there.path().display()
        ))?;
        let mut far = String::from("link set lo up\n");
        for address in &self.far {
            far.push_str(&address_line(*address, near_prefix(*address), "downlink"));
        }
        for address in &self.beyond {
            far.push_str(&address_line(*address, if address.is_ipv4() { 32 } else { 128 }, "lo"));
        }
        far.push_str("link set downlink up\n");
        there.within(|| run_ip(&far)).context("cannot go into the other namespace")??;

        let mut near = String::new();
        for address in &self.near {
            near.push_str(&address_line(*address, near_prefix(*address), "uplink"));
        }
        near.push_str("link set uplink up\n");
        for gateway in &self.far {
            let everything = if gateway.is_ipv4() { "0.0.0.0/0" } else { "::/0" };
            writeln!(near, "route add {everything} via {gateway} dev uplink")?;
        }
        run_ip(&near)
    }
}

/// Length of the network on the cable itself.
fn near_prefix(address: IpAddr) -> u8 {
    if address.is_ipv4() { 24 } else { 64 }
}

fn address_line(address: IpAddr, prefix: u8, device: &str) -> String {
    // Duplicate address detection would hold an IPv6 address back for a second.
    let nodad = if address.is_ipv6() { " nodad" } else { "" };
    format!("addr add {address}/{prefix} dev {device}{nodad}\n")
}

/// Runs the lines as one batch in the namespace of the calling thread.
fn run_ip(lines: &str) -> anyhow::Result<()> {
    // An ordinary user's PATH often lacks the system directories.
    let program = ["/usr/sbin/ip", "/sbin/ip", "/usr/bin/ip", "/bin/ip"].into_iter().find(|path| Path::new(path).exists()).unwrap_or("ip");
    let mut child =
        match Command::new(program).args(["-batch", "-"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn() {
            Ok(child) => child,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(Missing::new("the program `ip` is missing", "install it: `sudo apt-get install iproute2`").into());
            }
            Err(error) => return Err(error).context("cannot run `ip`"),
        };
    if let Some(mut input) = child.stdin.take() {
        input.write_all(lines.as_bytes()).context("cannot speak to `ip`")?;
    }
    let output = child.wait_with_output().context("cannot wait for `ip`")?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).lines().map(str::trim).collect::<Vec<_>>().join("; ");
    Err(why_no_cable(&said).into())
}

fn why_no_cable(said: &str) -> Missing {
    if said.contains("Unknown device type") || said.contains("Operation not supported") {
        return Missing::new(format!("this kernel has no `veth` network devices ({said})"), "load the module: `sudo modprobe veth`");
    }
    if said.contains("-batch") || said.contains("BusyBox") {
        return Missing::new("the program `ip` here is not that of iproute2", "install it: `sudo apt-get install iproute2`");
    }
    Missing::new(format!("`ip` could not lay a cable between two namespaces: {said}"), "run the demo as root: `sudo egressguard demo`")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_without_veth_is_named_with_its_module() {
        let missing = why_no_cable("Error: Unknown device type.; Command failed -:2");
        assert!(missing.what.contains("`veth`") && missing.help.contains("modprobe veth"), "{missing:?}");
    }

    #[test]
    fn only_ipv6_addresses_need_no_duplicate_detection() {
        assert_eq!(address_line("192.0.2.1".parse().unwrap(), 24, "a"), "addr add 192.0.2.1/24 dev a\n");
        assert_eq!(address_line("2001:db8::1".parse().unwrap(), 64, "a"), "addr add 2001:db8::1/64 dev a nodad\n");
    }
}
