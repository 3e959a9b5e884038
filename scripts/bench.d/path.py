"""What a packet pays: the same loads over a veth pair under no firewall, under ours, and under what else people would load.

One pair of namespaces for each contestant, all there at once; in every round each contestant carries each load once, so whatever
else the machine does meets all of them. A ratio is the median of the ratios of the rounds."""

import statistics
import subprocess
from dataclasses import dataclass

import peers
import subject
from report import figure

HOST, PEER = "20.200.0.1", "20.200.0.2"
PORT = 443
# What is counted, and how many of it each run moves.
LOADS = {"stream": ("MiB/s", 1024), "connect": ("connections/s", 5000), "turns": ("round trips/s", 10_000), "datagrams": ("datagrams/s", 200_000)}

POLICY = f"""version: 1
name: path
inbound:
  port: {PORT}
outbound:
  - to: api.openai.com
    port: [{PORT}, {PORT + 1}]
  - to: {PEER}
    port: {PORT + 1}
    protocol: udp
dns:
  servers: [192.0.2.53]
"""

# What both rulesets by hand look destinations up in.
API = f"""	set api {{
		type ipv4_addr
		flags timeout
		elements = {{ {PEER} timeout 1d }}
	}}
"""

# What somebody who knows nft writes for the same policy.
BY_HAND = f"""table inet by_hand {{
{API}	chain input {{
		type filter hook input priority filter; policy drop;
		ct state established,related accept
		iif "lo" accept
		icmpv6 type {{ nd-router-advert, nd-neighbor-solicit, nd-neighbor-advert }} accept
		udp sport 67 udp dport 68 accept
		tcp dport {PORT} accept
	}}
	chain forward {{
		type filter hook forward priority filter; policy drop;
		ct state established,related accept
	}}
	chain output {{
		type filter hook output priority filter; policy drop;
		ct state established,related accept
		oif "lo" accept
		icmpv6 type {{ nd-router-solicit, nd-neighbor-solicit, nd-neighbor-advert, mld2-listener-report }} accept
		udp sport 68 udp dport 67 accept
		ip daddr 192.0.2.53 meta l4proto {{ tcp, udp }} th dport 53 accept
		ip daddr @api tcp dport {{ {PORT}, {PORT + 1} }} accept
		ip daddr @api udp dport {PORT + 1} accept
		limit rate 10/second log group 4947
		meta l4proto tcp reject with tcp reset
		reject
	}}
}}
"""

# Nothing but the tracking of connections: what is left when every rule of a stateful firewall is taken away.
TRACKING = """table inet tracking {
	chain output {
		type filter hook output priority filter; policy accept;
		ct state invalid counter
	}
}
"""

# Without tracking: every packet is looked up, and answers are told by their ports. It is no equal: whoever has the address of a
# named host may send anything but a SYN to any port, and the resolver's address may send datagrams to any.
STATELESS = f"""table inet stateless {{
{API}	chain input {{
		type filter hook input priority filter; policy drop;
		ip saddr @api tcp sport {{ {PORT}, {PORT + 1} }} tcp flags & (syn | ack) != syn accept
		tcp dport {PORT} accept
		iif "lo" accept
	}}
	chain output {{
		type filter hook output priority filter; policy drop;
		ip daddr @api tcp dport {{ {PORT}, {PORT + 1} }} accept
		ip daddr @api udp dport {PORT + 1} accept
		tcp sport {PORT} tcp flags & (syn | ack) != syn accept
		oif "lo" accept
	}}
}}
"""

# What a mirror for raw frames does to every frame that leaves: one look-up for each family and protocol.
MIRROR = f"""table netdev mirror {{
	set api {{
		type ipv4_addr
		elements = {{ {PEER} }}
	}}
	chain uplink {{
		type filter hook egress device "uplink" priority filter; policy drop;
		ether type arp accept
		ip daddr @api tcp dport {{ {PORT}, {PORT + 1} }} accept
		ip daddr @api udp dport {PORT + 1} accept
		tcp sport {PORT} accept
	}}
}}
"""


@dataclass
class Contestant:
    """A pair of namespaces, and what is loaded on the side that is protected."""

    name: str
    host: str
    server: subprocess.Popen


def path(stage, report, rounds):
    """Measures every contestant under every load."""
    load = stage.work / "load"
    stage.outside("cc", "-O2", "-Wall", "-pthread", "-o", load, stage.tree / "scripts/bench.d/load.c")
    version = subject.Version("path", PORT, {"api.openai.com": [PEER]}, stage.work / "path.yaml", stage.work / "path.pins")
    version.policy.write_text(POLICY)
    version.pins.write_text(subject.pins_file(version.names))

    def ours(namespace, state):
        stage.outside(stage.binary, "apply", version.policy, "--pins", version.pins, "--netns", namespace, "--state-dir", stage.work / state)

    def ours_and_mirror(namespace):
        ours(namespace, "state/mirror")
        nft(stage, namespace, MIRROR)

    rendered = stage.outside(stage.binary, "render", version.policy, "--pins", version.pins)
    loaders = {
        "no firewall": lambda namespace: None,
        "egressguard": lambda namespace: ours(namespace, "state/path"),
        "by hand, stateful": lambda namespace: nft(stage, namespace, BY_HAND),
        "connection tracking alone": lambda namespace: nft(stage, namespace, TRACKING),
        "by hand, stateless (no equal)": lambda namespace: nft(stage, namespace, STATELESS),
        "egressguard and a mirror for raw frames": ours_and_mirror,
        "tried: established before everything": lambda namespace: nft(stage, namespace, established_first(rendered)),
        "tried: without quarantine": lambda namespace: nft(stage, namespace, without_quarantine(rendered)),
    }
    contestants = [pair(stage, load, number, name, loader) for number, (name, loader) in enumerate(loaders.items())]
    if (stage.work / "ufw").is_dir():
        ufw = peers.Ufw(stage, [version])
        ufw.ufw("allow", "out", "proto", "tcp", "to", PEER, "port", str(PORT + 1))
        ufw.ufw("allow", "out", "proto", "udp", "to", PEER, "port", str(PORT + 1))
        connect(stage, ufw.namespace, "bench-path-ufw")
        ufw.ufw("--force", "enable")
        contestants.append(Contestant("ufw", ufw.namespace, serve(stage, load, "bench-path-ufw")))
    samples = {(contestant.name, kind): [] for contestant in contestants for kind in LOADS}
    for number in range(rounds + 1):
        # Each takes its turn at being first.
        turned = contestants[number % len(contestants) :] + contestants[: number % len(contestants)]
        for kind, (_, count) in LOADS.items():
            for contestant in turned:
                said = stage.inside(contestant.host, "taskset", "-c", "0", load, kind, PEER, PORT, count)
                # The first round warms up.
                if number:
                    samples[contestant.name, kind].append(float(said))
    show(report, contestants, samples, rounds)


def established_first(text):
    """The rules with tracked packets asked for first: whoever is cut off would keep the connections that are open."""
    established = '\t\tct state established accept comment "established"\n'
    parts = text.replace(established, "").split("policy drop;\n")
    return f"policy drop;\n{established}".join(parts)


def without_quarantine(text):
    """The rules without the look-ups that cut somebody off: every tracked packet meets two fewer."""
    return "".join(line for line in text.splitlines(keepends=True) if "@quarantined" not in line)


def pair(stage, load, number, name, loader):
    """The namespaces of one contestant, with its rules loaded."""
    host, peer = f"bench-path-{number}", f"bench-path-{number}-peer"
    stage.namespace(host)
    connect(stage, host, peer)
    loader(host)
    return Contestant(name, host, serve(stage, load, peer))


def connect(stage, host, peer):
    """A cable between a namespace that is there and a new one."""
    stage.namespace(peer)
    stage.inside(host, "ip", "link", "add", "name", "uplink", "type", "veth", "peer", "name", "downlink", "netns", peer)
    for namespace, device, address in ((host, "uplink", HOST), (peer, "downlink", PEER)):
        stage.inside(namespace, "ip", "address", "add", f"{address}/30", "dev", device)
        stage.inside(namespace, "ip", "link", "set", device, "up")


def serve(stage, load, peer):
    """Starts the server half on the other core; it ends with the bench."""
    command = ["ip", "netns", "exec", peer, "taskset", "-c", "1", load, "serve", PEER, str(PORT)]
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    stage.children.append(server)
    if server.stdout.readline().strip() != "ready":
        raise AssertionError(f"the server in {peer} did not start")
    return server


def nft(stage, namespace, text):
    """Loads a text."""
    file = stage.work / "path.nft"
    file.write_text(text)
    stage.inside(namespace, "nft", "-f", file)


def ratio(samples, kind, one, other):
    """The median over the rounds of one's figure by the other's."""
    return statistics.median(a / b for a, b in zip(samples[one, kind], samples[other, kind]))


def show(report, contestants, samples, rounds):
    """The figures, as shares of what passes without a firewall, and the aims."""
    report.say("\n## The data path")
    report.say(f"\nOver a veth pair, client and server on a core each; medians of {rounds} rounds, and in brackets the share of no firewall.")
    rows = []
    for contestant in contestants:
        cells = []
        for kind in LOADS:
            share = ratio(samples, kind, contestant.name, "no firewall")
            cells.append(f"{figure(statistics.median(samples[contestant.name, kind]))} ({share:.2f})")
        rows.append([contestant.name, *cells])
    report.table(["", *(unit for unit, _ in LOADS.values())], rows)
    report.at_least("throughput, share of no firewall", ratio(samples, "stream", "egressguard", "no firewall"), 0.98)
    for kind in ("connect", "turns", "datagrams"):
        report.at_least(f"{LOADS[kind][0]}, share of the ruleset by hand", ratio(samples, kind, "egressguard", "by hand, stateful"), 0.98)
        if any(contestant.name == "ufw" for contestant in contestants):
            report.at_least(f"{LOADS[kind][0]}, times ufw's", ratio(samples, kind, "egressguard", "ufw"), 1.0)
    extra = ratio(samples, "connect", "egressguard and a mirror for raw frames", "egressguard")
    more = ratio(samples, "datagrams", "egressguard and a mirror for raw frames", "egressguard")
    report.say(f"A mirror for raw frames leaves {extra:.2f} of the connections and {more:.2f} of the datagrams that pass without it.")
