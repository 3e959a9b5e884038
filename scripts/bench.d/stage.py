"""Where the contestants stand: network namespaces, a DNS server, and a stop watch. Decides nothing about who runs or why."""

import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).parent


class Trouble(Exception):
    """The bench cannot go on; the text says why."""


@dataclass
class Cost:
    """What one run of one command took: milliseconds until it ended, until nothing of it was left, and MiB of memory."""

    ended: float
    gone: float
    peak: float


@dataclass
class Samples:
    """What many runs of one thing took."""

    costs: list = field(default_factory=list)

    def ended(self):
        return statistics.median(cost.ended for cost in self.costs)

    def gone(self):
        return statistics.median(cost.gone for cost in self.costs)

    def peak(self):
        return max(cost.peak for cost in self.costs)

    def spread(self):
        """First and third quartile of the time to the end."""
        times = sorted(cost.ended for cost in self.costs)
        if len(times) < 2:
            return times[0], times[0]
        quartiles = statistics.quantiles(times, n=4, method="inclusive")
        return quartiles[0], quartiles[2]


class Stage:
    """A throw-away network namespace for each contestant, all inside the one that the bench was started into."""

    def __init__(self, tree, work, outside):
        here = os.readlink("/proc/self/ns/net")
        if here == outside:
            raise Trouble("this is the network namespace that the bench was started in; scripts/bench makes another")
        try:
            if here == os.readlink("/proc/1/ns/net"):
                raise Trouble("this is the network namespace of process 1")
        except PermissionError:
            pass  # The namespace of process 1 cannot be seen from here; it is none that we made.
        self.tree, self.work = Path(tree), Path(work)
        self.binary = self.tree / "target/release/egressguard"
        self.children = []

    def namespace(self, name):
        """Makes a network namespace with a loopback interface that also answers to the DNS server's address."""
        self.outside("ip", "netns", "add", name)
        self.inside(name, "ip", "link", "set", "lo", "up")
        self.inside(name, "ip", "address", "add", f"{DNS_SERVER}/32", "dev", "lo")
        return name

    def outside(self, *command, **options):
        """Runs a command that is not measured."""
        done = subprocess.run([str(word) for word in command], stdin=subprocess.DEVNULL, capture_output=True, text=True, **options)
        if done.returncode:
            raise Trouble(f"`{' '.join(map(str, command))}` ended with {done.returncode}: {(done.stdout + done.stderr).strip()[-800:]}")
        return done.stdout

    def inside(self, namespace, *command, **options):
        """The same in a namespace of ours."""
        return self.outside("ip", "netns", "exec", namespace, *command, **options)

    def measure(self, namespace, command, fine=(0,), environment=None):
        """Runs a command in a namespace and says what it cost. An exit code that is not among `fine` ends the bench."""
        said = self.work / "said"
        runner = [self.work / "run", f"/run/netns/{namespace}", said, *command]
        line = self.outside(*runner, env={**os.environ, **(environment or {})})
        code, ended, gone, peak = (int(word) for word in line.split())
        if code not in fine:
            words = said.read_text(errors="replace").strip()[-800:]
            raise Trouble(f"`{' '.join(map(str, command))}` ended with {code}: {words}")
        return Cost(ended / 1000, gone / 1000, peak / 1024)

    def generation(self, namespace):
        """How many nf_tables transactions the namespace has seen: every write to the packet filter makes it one more."""
        return int(self.inside(namespace, sys.executable, "-B", HERE / "generation.py"))

    def serve_dns(self, namespace, hosts):
        """Starts a DNS server that knows the names of a hosts file, and waits until it answers. Ended by `close`."""
        command = ["dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts", "--user=root", "--pid-file="]
        command += ["--bind-interfaces", f"--listen-address={DNS_SERVER}", f"--addn-hosts={hosts}", "--local-ttl=300"]
        command += ["--cache-size=0", "--dns-forward-max=10000"]
        said = open(self.work / f"dns-{namespace}", "w")
        server = subprocess.Popen(["ip", "netns", "exec", namespace, *command], stdin=subprocess.DEVNULL, stdout=said, stderr=said)
        self.children.append(server)
        name = hosts.read_text().splitlines()[0].split()[1]
        for _ in range(100):
            asked = ["ip", "netns", "exec", namespace, "dig", "+short", "+tries=1", "+time=1", f"@{DNS_SERVER}", name, "A"]
            if subprocess.run(asked, capture_output=True, text=True).stdout.strip()[:1].isdigit():
                return server
            if server.poll() is not None:
                break
            time.sleep(0.1)
        raise Trouble(f"dnsmasq does not answer in {namespace}: {(self.work / f'dns-{namespace}').read_text()[-400:]}")

    def reload_dns(self, server):
        """Makes the DNS server read its names again."""
        server.send_signal(signal.SIGHUP)
        time.sleep(0.5)

    def close(self):
        """Ends what was started."""
        for child in self.children:
            child.terminate()
        for child in self.children:
            child.wait(timeout=10)


DNS_SERVER = "192.0.2.53"


def machine():
    """This machine in general terms."""
    release = ".".join(os.uname().release.split(".")[:2])
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    said = [f"{os.cpu_count()} cores ({os.uname().machine})", f"{memory:.0f} GiB", f"kernel {release}"]
    for program in (["nft", "--version"], ["iptables", "--version"], ["ipset", "--version"], ["rustc", "--version"]):
        if shutil.which(program[0]):
            words = subprocess.run(program, capture_output=True, text=True).stdout.split()
            said.append(" ".join(words[:2]).rstrip(","))
    return "; ".join(said)


def interfering():
    """What else keeps this machine busy: the load of the last minute."""
    load, cores = os.getloadavg()[0], os.cpu_count()
    if load > cores / 2:
        return f"load {load:.1f} on {cores} cores when it began: take the ratios with care"
    return f"load {load:.1f} when it began"
