//! What a policy says about a packet, read off the policy itself: no rules, no chains, no field table, no judge. Naive on purpose, and
//! independent of everything that it is held against.

use std::net::IpAddr;

use egressguard::base::net::IpNet;
use egressguard::base::packet::{Direction, State};
use egressguard::judge::Packet;
use egressguard::judge::packet::{Link, Payload};
use egressguard::pins::Pins;
use egressguard::policy::{DnsServer, Forward, Mode, Outbound, Policy, Scope, Sources, Target, Transport};
use egressguard::ruleset::compile::Facts;

/// `IPS_DST_NAT`.
const TRANSLATED: u32 = 0x20;

/// Whether the policy lets the packet pass.
pub fn allows(policy: &Policy, pins: &Pins, facts: &Facts, packet: &Packet) -> bool {
    if policy.mode == Mode::Observe {
        return true;
    }
    match packet.direction {
        Direction::In => comes_in(policy, packet),
        Direction::Out => goes_out(policy, pins, facts, packet),
        Direction::Forward => passes(policy, pins, facts, packet),
    }
}

fn comes_in(policy: &Policy, packet: &Packet) -> bool {
    if packet.link == Link::Loopback || belongs(packet) {
        return true;
    }
    if let Payload::Icmpv6(kind) = packet.payload
        && is_v6(packet)
    {
        let advertised = [134, 135, 136].contains(&kind) && packet.hop_limit == 255;
        let queried = kind == 130 && link_scope(packet.source);
        if advertised || queried {
            return true;
        }
    }
    if policy.host.dhcp
        && let Payload::Udp { source, destination, .. } = packet.payload
    {
        let v4 = !is_v6(packet) && (source, destination) == (67, 68);
        let v6 = is_v6(packet) && (source, destination) == (547, 546) && link_scope(packet.source);
        if v4 || v6 {
            return true;
        }
    }
    if let (Some(management), Payload::Tcp { destination, .. }) = (&policy.management, packet.payload)
        && destination == management.port
        && holds(&management.from, packet.source)
    {
        return true;
    }
    let echo = match packet.payload {
        Payload::Icmp(kind) => kind == 8 && !is_v6(packet),
        Payload::Icmpv6(kind) => kind == 128 && is_v6(packet),
        _ => false,
    };
    if policy.host.ping && echo {
        return true;
    }
    policy.inbound.as_ref().is_some_and(|inbound| {
        let (tcp, udp) = ports(packet);
        let port = if inbound.protocol == Transport::Tcp { tcp } else { udp };
        port == Some(inbound.port) && welcome(&inbound.from, packet.source)
    })
}

fn goes_out(policy: &Policy, pins: &Pins, facts: &Facts, packet: &Packet) -> bool {
    if packet.link == Link::Loopback {
        return true;
    }
    // A client that only ever calls out loudly has no conversation with one server.
    if policy.host.dhcp
        && !is_v6(packet)
        && matches!(packet.payload, Payload::Udp { source: 68, destination: 67 })
        && packet.destination != "255.255.255.255".parse::<IpAddr>().unwrap()
    {
        return false;
    }
    let resets = matches!(packet.payload, Payload::Tcp { flags, .. } if flags & 0x04 != 0);
    if belongs(packet) || (resets && packet.tracking.state == State::Related) {
        return true;
    }
    if let Payload::Icmpv6(kind) = packet.payload
        && is_v6(packet)
    {
        let to_link = [131, 132, 133, 135, 136, 143].contains(&kind) && link_scope(packet.destination);
        let probe = packet.socket.is_none() && [135, 136].contains(&kind) && packet.hop_limit == 255;
        if to_link || probe {
            return true;
        }
    }
    if policy.host.dhcp
        && let Payload::Udp { source, destination, .. } = packet.payload
    {
        if !is_v6(packet) && (source, destination) == (68, 67) {
            return true;
        }
        if is_v6(packet) && (source, destination) == (546, 547) && link_scope(packet.destination) {
            return true;
        }
    }
    if let (Some(management), Payload::Tcp { source, flags, .. }) = (&policy.management, packet.payload)
        && source == management.port
        && flags & 0x14 != 0
        && holds(&management.from, packet.destination)
    {
        return true;
    }
    listed(policy, pins, facts, packet)
}

fn passes(policy: &Policy, pins: &Pins, facts: &Facts, packet: &Packet) -> bool {
    if policy.host.forward == Forward::Deny {
        return false;
    }
    if belongs(packet) {
        return true;
    }
    let translated = packet.tracking.state != State::Invalid && packet.tracking.status & TRANSLATED != 0;
    if !translated {
        return listed(policy, pins, facts, packet);
    }
    // What comes to a published port of this host is no way out, wherever it is sent on to.
    policy.inbound.as_ref().is_some_and(|inbound| {
        let (tcp, udp) = ports(packet);
        let carries = if inbound.protocol == Transport::Tcp { tcp } else { udp };
        carries.is_some() && packet.tracking.original_port == Some(inbound.port) && welcome(&inbound.from, packet.source)
    })
}

/// Whether it belongs to a connection that was allowed.
fn belongs(packet: &Packet) -> bool {
    let error = match packet.payload {
        Payload::Icmp(kind) => !is_v6(packet) && [3, 11, 12].contains(&kind),
        Payload::Icmpv6(kind) => is_v6(packet) && [1, 2, 3, 4].contains(&kind),
        _ => false,
    };
    packet.tracking.state == State::Established || (error && packet.tracking.state == State::Related)
}

/// Whether resolvers, time servers or the list of ways out name it.
fn listed(policy: &Policy, pins: &Pins, facts: &Facts, packet: &Packet) -> bool {
    let (tcp, udp) = ports(packet);
    let served = facts.servers.iter().any(|server| match server {
        DnsServer::System => false,
        DnsServer::Plain { address, port } => *address == packet.destination && (tcp == Some(*port) || udp == Some(*port)),
        DnsServer::Tls { address, port, .. } => *address == packet.destination && tcp == Some(*port),
    });
    let time = udp == Some(123) && policy.host.ntp.iter().any(|server| meant(&server.target, pins, packet.destination));
    served || time || policy.outbound.iter().any(|way| leads(way, pins, facts, packet))
}

fn leads(way: &Outbound, pins: &Pins, facts: &Facts, packet: &Packet) -> bool {
    let (tcp, udp) = ports(packet);
    let port = if way.protocol == Transport::Tcp { tcp } else { udp };
    port.is_some_and(|port| way.ports.contains(port))
        && way.to.iter().any(|to| meant(&to.target, pins, packet.destination))
        && way.scope.as_ref().is_none_or(|scope| is_of(scope, facts, packet))
}

fn meant(target: &Target, pins: &Pins, address: IpAddr) -> bool {
    match target {
        Target::Name(name) => pins.names.get(name).is_some_and(|pins| pins.leases.contains_key(&address)),
        Target::Net(net) => net.contains(&address),
    }
}

fn is_of(scope: &Scope, facts: &Facts, packet: &Packet) -> bool {
    let Some(socket) = &packet.socket else { return false };
    match scope {
        Scope::User(name) => facts.users.get(name.as_ref()) == Some(&socket.user),
        Scope::Uid(number) => socket.user == *number,
        Scope::Group(name) => facts.groups.get(name.as_ref()) == Some(&socket.group),
        Scope::Gid(number) => socket.group == *number,
        Scope::Service(unit) => facts.units.get(unit.as_ref()).is_some_and(|(_, id)| socket.cgroups.values().any(|held| held == id)),
    }
}

/// Its destination port, as TCP's and as UDP's.
fn ports(packet: &Packet) -> (Option<u16>, Option<u16>) {
    match packet.payload {
        Payload::Tcp { destination, .. } => (Some(destination), None),
        Payload::Udp { destination, .. } => (None, Some(destination)),
        _ => (None, None),
    }
}

fn welcome(from: &Sources, source: IpAddr) -> bool {
    match from {
        Sources::Any => true,
        Sources::Nets(nets) => holds(nets, source),
    }
}

fn holds(nets: &[IpNet], address: IpAddr) -> bool {
    nets.iter().any(|net| net.contains(&address))
}

fn is_v6(packet: &Packet) -> bool {
    packet.destination.is_ipv6()
}

/// fe80::/10 and ff02::/16.
fn link_scope(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(_) => false,
        IpAddr::V6(v6) => v6.segments()[0] & 0xffc0 == 0xfe80 || v6.segments()[0] == 0xff02,
    }
}
