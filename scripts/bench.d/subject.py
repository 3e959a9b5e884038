"""What every contestant is asked to enforce: two versions of the shipped default policy, and the same things ten thousand times.

Version A is the default policy. Version B lets another port in and names one more host. Both name the DNS server by its address,
so that the rendered rules are the whole of what `apply` loads."""

import datetime
import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path

from stage import DNS_SERVER

NAMES = {
    "api.openai.com": ["162.159.140.245", "172.66.0.243", "2606:4700:7::f3", "2a06:98c1:58::f3"],
    "eu.api.openai.com": ["162.159.140.246", "172.66.0.244", "2606:4700:7::f4", "2a06:98c1:58::f4"],
}


@dataclass
class Version:
    """A policy with what its names mean: its files, and the same as values for those who cannot read them."""

    label: str
    port: int
    names: dict
    policy: Path
    pins: Path

    def addresses(self, family):
        """Pairs of address and name of one family, 4 or 6."""
        colon = family == 6
        return [(address, name) for name, all in self.names.items() for address in all if (":" in address) == colon]


def small(tree, work):
    """Versions A and B."""
    shipped = (tree / "policies/openai.yaml").read_text()
    if not re.search(r"^dns:", shipped, re.M):
        shipped = f"{shipped.rstrip()}\n\ndns:\n  servers: [{DNS_SERVER}]\n"
    names = [name for name in NAMES if re.search(rf"\b(?<!\.){re.escape(name)}\b", shipped)] or list(NAMES)[:1]
    versions = [write(work, "a", 443, names, shipped)]
    # The inbound port stands in its own block and in the policy's tests of what may come in.
    changed = re.sub(r"(?m)^(inbound:.*\n(?:[ \t]+.*\n|[ \t]*#.*\n)*?[ \t]+port:[ \t]*)443", r"\g<1>8443", shipped)
    changed = re.sub(r"(?m)^(\s*-\s*(?:allow|deny):\s*['\"]?in\b.*:)443\b", r"\g<1>8443", changed)
    changed = re.sub(r"(?m)^([ \t]*)- to: api\.openai\.com[ \t]*(?:#.*)?$", r"\g<0>\n\1- to: eu.api.openai.com", changed, count=1)
    if "8443" not in changed or "eu.api.openai.com" not in changed:
        changed = f"version: 1\nname: openai\ninbound:\n  port: 8443\noutbound:\n  - to: api.openai.com\n  - to: eu.api.openai.com\n"
        changed += f"dns:\n  servers: [{DNS_SERVER}]\n"
    versions.append(write(work, "b", 8443, list(NAMES), changed))
    return versions


def write(work, label, port, names, policy):
    """Writes a version's policy and pins file."""
    version = Version(label, port, {name: NAMES[name] for name in names}, work / f"{label}.yaml", work / f"{label}.pins")
    version.policy.write_text(policy)
    version.pins.write_text(pins_file(version.names))
    return version


def pins_file(names):
    """A pins file in which every name was confirmed just now."""
    now = datetime.datetime.now(datetime.timezone.utc).replace(microsecond=0)
    said, ends = (time.strftime("%Y-%m-%dT%H:%M:%SZ") for time in (now, now + datetime.timedelta(hours=24)))
    lines = ["egressguard pins 1", ""]
    for name in sorted(names):
        lines += [f"name {name}", f"  confirmed {said}"]
        lines += [f"  address {address} ttl 300 server {DNS_SERVER}:53 first {said} expires {ends}" for address in in_order(names[name])]
        lines.append("")
    return "\n".join([*lines, f"end {len(names)}", ""])


def in_order(addresses):
    """IPv4 first, each family by number."""
    return sorted(addresses, key=lambda address: (":" in address, int(ipaddress.ip_address(address))))


def hosts_file(names):
    """The same for a DNS server: one line for each address."""
    return "".join(f"{address} {name}\n" for name, addresses in names.items() for address in addresses)


def many(work, count):
    """A policy of so many names with ten addresses each, five of either family."""
    names = {}
    for number in range(count):
        v4 = [f"20.{at >> 16 & 255}.{at >> 8 & 255}.{at & 255}" for at in range(number * 5, number * 5 + 5)]
        v6 = [f"2a01:4f8:0:{at >> 16:x}::{(at & 0xFFFF) + 1:x}" for at in range(number * 5, number * 5 + 5)]
        names[f"n{number:05}.example.net"] = v4 + v6
    label = f"many-{count}"
    version = Version(label, 443, names, work / f"{label}.yaml", work / f"{label}.pins")
    destinations = "".join(f"  - to: {name}\n" for name in names)
    head = f"version: 1\nname: many\ninbound:\n  port: 443\ndns:\n  servers: [{DNS_SERVER}]\noutbound:\n"
    version.policy.write_text(head + destinations)
    version.pins.write_text(pins_file(names))
    return version
