"""What revocation costs among many tracked flows: an apply that tightens the policy where nearly everything may stay."""

import json
import sys

import peers
from report import figure, range_of
from stage import HERE, DNS_SERVER, Samples

FEW, MANY, GONE = 100, 50_000, 10
STAYS, GOES = "198.18.0.1", "198.18.0.2"


def revoke(stage, report, rounds):
    """Measures applies in a namespace with few tracked flows and in one with many."""
    rounds = max(3, rounds // 3)
    scenes = ["tighter: 10 flows go", "wider: none goes", "nothing changes"]
    samples = {(count, scene): Samples() for count in (FEW, MANY) for scene in scenes}
    hosts = {count: Host(stage, count) for count in (FEW, MANY)}
    for _ in range(rounds):
        for count, host in hosts.items():
            host.fill()
            tighter, said = host.apply(host.tight)
            if said["revoked"]["flows"] != GONE or host.tracked() < count - GONE:
                raise AssertionError(f"of {count} flows {said['revoked']} were revoked and {host.tracked()} are left")
            nothing, said = host.apply(host.tight)
            wider, _ = host.apply(host.wide)
            for scene, cost in zip(scenes, (tighter, wider, nothing)):
                samples[count, scene].costs.append(cost)
    report.say("\n## Revocation among tracked flows")
    report.say(f"\nWhole processes, ms, {rounds} runs; half of the flows are UDP, half TCP connections that were begun. An apply that changes nothing looks at no flow.")
    rows = []
    for scene in scenes:
        of = {count: samples[count, scene] for count in (FEW, MANY)}
        added = of[MANY].ended() - of[FEW].ended()
        rows.append([scene, *(f"{figure(of[count].ended())} ({range_of(*of[count].spread())})" for count in (FEW, MANY)), f"{1000 * added / (MANY - FEW):.2f}", f"{of[MANY].peak():.0f}"])
    report.table(["apply", f"ms, {FEW} flows", f"ms, {MANY} flows", "us for each flow", "peak MiB"], rows)
    report.at_most(f"apply, {GONE} of {MANY} flows revoked: time for each flow", 1000 * (samples[MANY, scenes[0]].ended() - samples[FEW, scenes[0]].ended()) / MANY, 5.0, " us")
    report.at_most(f"apply, nothing changes, {MANY} flows: times that with {FEW}", samples[MANY, scenes[2]].ended() / samples[FEW, scenes[2]].ended(), 1.5)


class Host:
    """A namespace with so many flows, which end nowhere, and two policies for it."""

    def __init__(self, stage, count):
        self.stage, self.count = stage, count
        self.contestant = peers.Egressguard(stage, f"{count} flows", stage.work / f"state/flows-{count}")
        self.namespace = self.contestant.namespace
        for line in (
            f"link add out type veth peer name nowhere-{count}",
            "address add 198.18.0.254/24 dev out",
            "link set out up",
            f"link set nowhere-{count} up",
            f"neighbour add {STAYS} lladdr 02:00:00:00:00:01 dev out nud permanent",
            f"neighbour add {GOES} lladdr 02:00:00:00:00:01 dev out nud permanent",
        ):
            stage.inside(self.namespace, "ip", *line.split())
        self.wide, self.tight = self.policy("wide", [STAYS, GOES]), self.policy("tight", [STAYS])
        self.contestant.clear()
        self.apply(self.wide)
        # Flows that nobody answers are forgotten within half a minute otherwise.
        for name in ("udp_timeout", "tcp_timeout_syn_sent"):
            stage.inside(self.namespace, "sysctl", "-qw", f"net.netfilter.nf_conntrack_{name}=3600")

    def policy(self, name, addresses):
        path = self.stage.work / f"flows-{name}.yaml"
        ways = "".join(f"  - {{to: {address}, port: 1024-65535, protocol: {protocol}}}\n" for address in addresses for protocol in ("tcp", "udp"))
        path.write_text(f"version: 1\nname: flows\ndns: {{servers: [{DNS_SERVER}]}}\noutbound:\n{ways}")
        return path

    def fill(self):
        """Makes flows up to the number, and those that are to go."""
        for address, count in ((STAYS, self.count - GONE), (GOES, GONE)):
            self.stage.inside(self.namespace, sys.executable, "-B", HERE / "flows.py", "198.18.0.254", address, count)

    def tracked(self):
        return int(self.stage.inside(self.namespace, "cat", "/proc/sys/net/netfilter/nf_conntrack_count"))

    def apply(self, policy):
        """What it cost, and what it said."""
        command = [self.stage.binary, "apply", policy, "--json", "--quiet", "--state-dir", self.contestant.state, "--netns", self.namespace]
        cost = self.stage.measure(self.namespace, command)
        return cost, json.loads((self.stage.work / "said").read_text())
