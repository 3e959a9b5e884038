"""Ten thousand names with a hundred thousand addresses: what each command takes, and what one changed address takes among them."""

import re
from collections import Counter

import iptables_text
import peers
import subject
from report import figure, range_of
from small import refresh_once
from stage import Samples

NAMES, FEW = 10_000, 10
ROUNDS = 3


def large(stage, report):
    """Times check, render, apply and verify, and counts the rules that a packet meets."""
    version, one = subject.many(stage.work, NAMES), subject.many(stage.work, 1)
    ours = peers.Egressguard(stage, "large", stage.work / "state/large")
    text = stage.work / "large.nft"
    text.write_text(stage.outside(stage.binary, "render", version.policy, "--pins", version.pins))
    nft = peers.Contestant(stage, "nft", "")
    pair = peers.Iptables(stage, "pair", "", "legacy")
    sets, v4, v6 = iptables_text.write(stage.work, version)
    restore = f"ipset restore <{sets} && iptables-legacy-restore <{v4} && ip6tables-legacy-restore <{v6}"
    again = ours.command(version)
    commands = {
        "egressguard check": (peers.OUTSIDE, [stage.binary, "check", version.policy]),
        "egressguard render --pins": (peers.OUTSIDE, [stage.binary, "render", version.policy, "--pins", version.pins]),
        "egressguard apply --pins, first load": (peers.OUTSIDE, again),
        "egressguard apply --pins, nothing changes": (peers.OUTSIDE, again),
        "egressguard verify": (peers.OUTSIDE, [stage.binary, "verify", "--state-dir", ours.state, "--netns", ours.namespace]),
        "nft -f of the rendered text, first load": (nft.namespace, ["nft", "-f", text]),
        "nft -f of the rendered text, replace": (nft.namespace, ["nft", "-f", text]),
        "ipset restore + both iptables-restore (legacy), first load": (pair.namespace, ["sh", "-c", restore]),
        "ipset restore + both iptables-restore (legacy), replace": (pair.namespace, ["sh", "-c", restore]),
    }
    samples = {what: Samples() for what in commands}
    for _ in range(ROUNDS):
        for contestant in (ours, nft, pair):
            contestant.clear()
        for what, (namespace, command) in commands.items():
            samples[what].costs.append(stage.measure(namespace, command))
    addresses = sum(len(all) for all in version.names.values())
    octets = version.policy.stat().st_size / 1024, version.pins.stat().st_size / 2**20, text.stat().st_size / 2**20
    report.say(f"\n## {NAMES} names, {addresses} addresses")
    report.say(f"\nPolicy {octets[0]:.0f} KiB, pins file {octets[1]:.1f} MiB, rendered text {octets[2]:.1f} MiB. Worst of {ROUNDS} runs.")
    rows = [[what, figure(max(cost.ended for cost in of.costs) / 1000), f"{of.peak():.0f}"] for what, of in samples.items()]
    report.table(["", "s", "peak MiB"], rows)
    for what, of in samples.items():
        if what.startswith("egressguard"):
            report.at_most(f"{what.removeprefix('egressguard ')}, {NAMES} names: time", max(cost.ended for cost in of.costs) / 1000, 1.0 if what.endswith("verify") else 2.0, " s")
            report.at_most(f"{what.removeprefix('egressguard ')}, {NAMES} names: memory", of.peak(), 200.0, " MiB")
    walked(report, stage.outside(stage.binary, "render", one.policy, "--pins", one.pins), text.read_text())


def walked(report, one, many):
    """The rules of every chain, for one name and for ten thousand."""
    few, lots = rules_by_chain(one), rules_by_chain(many)
    differing = [chain for chain in few.keys() | lots.keys() if few[chain] != lots[chain]]
    report.say(f"Rules of each chain with one name: {', '.join(f'{chain} {count}' for chain, count in few.items())}; {sum(few.values())} in all.")
    report.say(f"With {NAMES} names: {'the same, chain by chain' if not differing else f'others in {sorted(differing)}'}; {sum(lots.values())} in all.")
    report.aim(f"rules walked with {NAMES} names", f"{sum(few.values())}, as with one", str(sum(lots.values())), not differing)


def rules_by_chain(text):
    """How many rules each chain of a rendered text has."""
    chains, inside = Counter(), None
    for line in text.splitlines():
        begun = re.match(r"\tchain (\S+) \{", line)
        if begun:
            inside = begun[1]
            chains[inside] = 0
        elif line == "\t}":
            inside = None
        elif inside and line.strip() and not line.strip().startswith(("type ", "#", "comment ")):
            chains[inside] += 1
    return chains


def delta(stage, report, program, rounds):
    """One changed address in few and in many: the transaction alone, and whole processes."""
    stage.namespace("bench-delta-outside")
    said = stage.inside("bench-delta-outside", program)
    if said.startswith("skipped"):
        report.say(f"\n{said}")
        return
    sizes = {int(size): [float(time) for time in times] for size, *times in map(str.split, said.splitlines())}
    (few, few_times), (lots, lots_times) = sorted(sizes.items())
    report.say("\n## One changed address")
    report.say("\nThe transaction alone, from a process that holds the socket: send, commit, answer.")
    rows = [[f"{size} addresses", f"{figure(times[1])} ({range_of(times[0], times[2])})"] for size, times in sorted(sizes.items())]
    report.table(["in a set of", "us"], rows)
    report.at_most(f"one change in a set of {lots}: times that in {few}", lots_times[1] / few_times[1], 2.0)
    whole_processes(stage, report, max(3, rounds // 6))


def whole_processes(stage, report, rounds):
    """The same as people meet it: `refresh` asks DNS for every name, and beside it what nft and ipset take when told the change."""
    rows = []
    for count in (FEW, NAMES):
        version = subject.many(stage.work, count)
        ours = peers.Egressguard(stage, f"refresh of {count} names", stage.work / f"state/refresh-{count}", asks_dns=True)
        hosts = stage.work / f"hosts-{count}"
        hosts.write_text(subject.hosts_file(version.names))
        server = stage.serve_dns(ours.namespace, hosts)
        ours.clear()
        ours.load(version)
        samples = {what: Samples() for what in ("nothing", "change", "nft", "ipset")}
        others = {"nft": tell_nft(stage, version), "ipset": tell_ipset(stage, version)}
        name = next(iter(version.names))
        for number in range(rounds):
            samples["nothing"].costs.append(refresh_once(stage, ours))
            version.names[name][0] = f"20.200.0.{number + 1}"
            hosts.write_text(subject.hosts_file(version.names))
            stage.reload_dns(server)
            before = stage.generation(ours.namespace)
            samples["change"].costs.append(refresh_once(stage, ours))
            if stage.generation(ours.namespace) == before:
                raise AssertionError(f"refresh of {count} names did not tell the kernel of a changed address")
            for what, (namespace, command) in others.items():
                samples[what].costs.append(stage.measure(namespace, command))
        of = {what: f"{figure(sample.ended())} ({range_of(*sample.spread())})" for what, sample in samples.items()}
        rows.append([f"{count * 10} addresses of {count} names", of["nothing"], of["change"], of["nft"], of["ipset"]])
    report.say(f"Whole processes, ms, {rounds} runs. `refresh` asks DNS twice for every name; nft and ipset are told what to change.")
    report.table(["", "refresh, nothing", "refresh, one change", "nft -f, one change", "ipset restore, one change"], rows)


def tell_nft(stage, version):
    """A loaded ruleset, and a command that changes one element of it."""
    nft = peers.Contestant(stage, "nft", "")
    text, change = stage.work / "one.nft", stage.work / f"change-{len(version.names)}.nft"
    text.write_text(stage.outside(stage.binary, "render", version.policy, "--pins", version.pins))
    stage.inside(nft.namespace, "nft", "-f", text)
    address = version.addresses(4)[0][0]
    name = re.search(r"\tset (tcp_443_v4\S*) \{", text.read_text())[1]
    told = f"element inet egressguard {name} {{ {address}"
    change.write_text(f'delete {told} }}\nadd {told} timeout 86400s comment "changed" }}\n')
    return nft.namespace, ["nft", "-f", change]


def tell_ipset(stage, version):
    """The same with ipset."""
    pair = peers.Iptables(stage, "ipset", "", "legacy")
    sets, change = iptables_text.write(stage.work, version)[0], stage.work / f"change-{len(version.names)}.ipset"
    stage.inside(pair.namespace, "sh", "-c", f"ipset restore <{sets}")
    address = version.addresses(4)[0][0]
    change.write_text(f'del pins4 {address}\nadd pins4 {address} timeout 86400 comment "changed"\n')
    return pair.namespace, ["sh", "-c", f"ipset restore <{change}"]
