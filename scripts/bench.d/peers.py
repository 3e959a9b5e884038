"""The contestants. Each can be cleared, untimed, and can be asked for the one command that makes the kernel hold a version.

They get what is kind to them: addresses already resolved where they cannot ask, files already written, no modules to load, no
sysctl to set. What each does not do of the job stands beside its numbers."""

import os
import shutil
from pathlib import Path

import iptables_text
from stage import DNS_SERVER, HERE
from subject import hosts_file


class Contestant:
    """One way to make the kernel hold a version, in a namespace of its own."""

    slow = False
    asks_dns = False
    made = 0

    def __init__(self, stage, name, misses, environment=None):
        self.stage, self.name, self.misses, self.environment = stage, name, misses, environment or {}
        Contestant.made += 1
        self.namespace = stage.namespace(f"bench-{Contestant.made}")

    def clear(self):
        """Leaves nothing of it in the kernel."""
        self.stage.inside(self.namespace, "nft", "flush", "ruleset")

    def command(self, version):
        """What is measured."""
        raise NotImplementedError

    def load(self, version):
        """Loads a version and says what it cost."""
        return self.stage.measure(self.namespace, self.command(version), environment=self.environment)

    def held(self):
        """What the kernel holds, as text."""
        return self.stage.inside(self.namespace, "nft", "list", "ruleset")

    def prove(self, version):
        """Ends the bench when the kernel does not hold the version: the port, and every address or the set with it."""
        held = self.held()
        lacking = [str(version.port)] if str(version.port) not in held else []
        lacking += [address for address, _ in version.addresses(4) if address not in held]
        if lacking:
            raise AssertionError(f"{self.name}: after loading version {version.label} the kernel lacks {', '.join(lacking)}")


class Egressguard(Contestant):
    """`egressguard apply`, from a pins file or by asking DNS."""

    def __init__(self, stage, name, state, asks_dns=False):
        super().__init__(stage, name, "nothing: all of it")
        self.state, self.asks_dns = Path(state), asks_dns

    def clear(self):
        super().clear()
        shutil.rmtree(self.state, ignore_errors=True)
        self.state.mkdir(parents=True, mode=0o700)

    def command(self, version):
        pins = [] if self.asks_dns else ["--pins", version.pins]
        return [self.stage.binary, "apply", version.policy, *pins, "--state-dir", self.state, "--netns", self.namespace]

    def load(self, version):
        # Started outside of its namespace, which it enters by itself.
        return self.stage.measure(OUTSIDE, self.command(version))


OUTSIDE = "bench-outside"


class Nft(Contestant):
    """`nft -f` of the text that `egressguard render` writes."""

    def __init__(self, stage, versions):
        super().__init__(stage, "nft -f of the rendered text", "asking DNS, read-back, state for the next boot, knowing that nothing changed")
        self.texts = {}
        for version in versions:
            self.texts[version.label] = stage.work / f"{version.label}.nft"
            self.texts[version.label].write_text(stage.outside(stage.binary, "render", version.policy, "--pins", version.pins))

    def command(self, version):
        return ["nft", "-f", self.texts[version.label]]


class Iptables(Contestant):
    """Whoever leaves its rules with one of the two backends of iptables, and its pins with ipset."""

    def __init__(self, stage, name, misses, backend):
        environment = {"IPTABLES": f"iptables-{backend}", "IP6TABLES": f"ip6tables-{backend}", "DNS": DNS_SERVER}
        super().__init__(stage, f"{name} ({backend})", misses, environment)
        self.backend = backend

    def clear(self):
        for program in ("iptables", "ip6tables"):
            self.stage.inside(self.namespace, f"{program}-{self.backend}", "-F")
            self.stage.inside(self.namespace, f"{program}-{self.backend}", "-X")
        self.stage.inside(self.namespace, "ipset", "destroy")

    def held(self):
        return self.stage.inside(self.namespace, f"iptables-{self.backend}-save") + self.stage.inside(self.namespace, "ipset", "save")


class RestorePair(Iptables):
    """ipset restore, iptables-restore and ip6tables-restore, one after the other."""

    def __init__(self, stage, versions, backend):
        misses = "asking DNS, one transaction for all, users in the ledger, read-back, state for the next boot, knowing that nothing changed"
        super().__init__(stage, "ipset restore + iptables-restore + ip6tables-restore", misses, backend)
        self.files = {version.label: iptables_text.write(stage.work, version) for version in versions}

    def command(self, version):
        sets, v4, v6 = self.files[version.label]
        script = f"ipset restore <{sets} && iptables-{self.backend}-restore <{v4} && ip6tables-{self.backend}-restore <{v6}"
        return ["sh", "-c", script]


class ShellScript(Iptables):
    """A script that calls dig, ipset and iptables, rule by rule: what most people have."""

    slow = True
    asks_dns = True

    def __init__(self, stage, backend):
        misses = "any transaction (open or shut meanwhile), users in the ledger, read-back, state for the next boot, knowing that nothing changed"
        super().__init__(stage, "shell script with dig, ipset, iptables", misses, backend)

    def command(self, version):
        return ["sh", HERE / "firewall.sh", str(version.port), *version.names]


class Ufw(Contestant):
    """`ufw reload`, from a copy of ufw that never becomes part of this system and keeps its files where the bench does."""

    slow = True

    def __init__(self, stage, versions):
        misses = "names, sets, a ledger, one transaction, refusing with a reason, state of pins, knowing that nothing changed"
        self.root = stage.work / "ufw"
        environment = {"PYTHONPATH": str(self.root / "usr/lib/python3/dist-packages"), "PYTHONDONTWRITEBYTECODE": "1"}
        super().__init__(stage, "ufw reload", misses, environment)
        defaults = self.root / "etc/default/ufw"
        # Neither sysctls nor modules are part of the comparison.
        kept = [line for line in defaults.read_text().splitlines() if not line.startswith(("IPT_SYSCTL=", "IPT_MODULES="))]
        defaults.write_text("\n".join([*kept, "IPT_SYSCTL=", "IPT_MODULES=", ""]))
        self.ufw("default", "deny", "outgoing")
        self.rules, self.loaded = {}, False
        for version in versions:
            self.ufw("--force", "reset")
            self.ufw("default", "deny", "outgoing")
            self.ufw("allow", "in", f"{version.port}/tcp")
            for protocol in ("udp", "tcp"):
                self.ufw("allow", "out", "proto", protocol, "to", DNS_SERVER, "port", "53")
            for address, _ in version.addresses(4) + version.addresses(6):
                self.ufw("allow", "out", "proto", "tcp", "to", address, "port", "443")
            kept = [(self.root / f"etc/ufw/{name}") for name in ("user.rules", "user6.rules")]
            self.rules[version.label] = [(path, path.read_text()) for path in kept]

    def line(self, *words):
        return ["/usr/bin/python3", self.root / "usr/sbin/ufw", f"--rootdir={self.root}", f"--datadir={self.root}", *words]

    def ufw(self, *words):
        self.stage.inside(self.namespace, *self.line(*words), env={**os.environ, **self.environment})

    def clear(self):
        self.ufw("--force", "disable")
        self.loaded = False

    def command(self, version):
        for path, text in self.rules[version.label]:
            path.write_text(text)
        first, self.loaded = not self.loaded, True
        return self.line("--force", "enable") if first else self.line("reload")

    def held(self):
        return self.stage.inside(self.namespace, "iptables", "-S")


def all_of_them(stage, versions):
    """Every contestant of the small comparison that this machine can stage."""
    hosts = stage.work / "hosts"
    hosts.write_text(hosts_file(versions[-1].names))
    state = stage.work / "state"
    memory = Path("/run/netns/state")
    contestants = [
        Egressguard(stage, "egressguard apply --pins", state / "pins"),
        Egressguard(stage, "egressguard apply --pins, state on tmpfs", memory),
        Egressguard(stage, "egressguard apply, asking DNS", state / "dns", asks_dns=True),
        Nft(stage, versions),
    ]
    contestants += [RestorePair(stage, versions, backend) for backend in ("nft", "legacy")]
    contestants += [ShellScript(stage, backend) for backend in ("nft", "legacy")]
    if (stage.work / "ufw").is_dir():
        contestants.append(Ufw(stage, versions))
    for contestant in contestants:
        if contestant.asks_dns:
            stage.serve_dns(contestant.namespace, hosts)
    return contestants
