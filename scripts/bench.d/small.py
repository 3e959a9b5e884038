"""The default policy: how long it takes to load, to change and to find unchanged, beside everybody else; and the program's size."""

import subprocess
from collections import Counter

import peers
import subject
from report import figure, range_of
from stage import Samples

SCENES = ["first load", "change", "nothing changes"]


def apply(stage, report, rounds):
    """Measures every contestant in every scene. Returns egressguard's peak memory in MiB."""
    versions = subject.small(stage.tree, stage.work)
    contestants = peers.all_of_them(stage, versions)
    floor, samples = Samples(), {(contestant, scene): Samples() for contestant in contestants for scene in SCENES}
    for number in range(rounds):
        floor.costs.append(stage.measure(peers.OUTSIDE, ["true"]))
        for contestant in contestants:
            if contestant.slow and number % 10:
                continue
            one_round(contestant, versions, lambda scene: samples[contestant, scene].costs, prove=number == 0)
    show(report, contestants, samples, floor)
    judge(report, contestants, samples)
    return max(samples[contestants[0], scene].peak() for scene in SCENES)


def one_round(contestant, versions, costs, prove):
    """First load, two changes, and nothing to do after each."""
    contestant.clear()
    first, second = versions
    costs("first load").append(contestant.load(first))
    if prove:
        contestant.prove(first)
    for version in (second, first):
        costs("change").append(contestant.load(version))
        if prove:
            contestant.prove(version)
        costs("nothing changes").append(contestant.load(version))


def show(report, contestants, samples, floor):
    report.say("\n## The default policy, two names")
    for scene in SCENES:
        base = samples[contestants[0], scene].ended()
        rows = []
        for contestant in contestants:
            of = samples[contestant, scene]
            ended = f"{figure(of.ended())} ({range_of(*of.spread())})"
            rows.append([contestant.name, ended, figure(of.gone()), f"{of.ended() / base:.2f}", f"{of.peak():.1f}", len(of.costs)])
        rows.append(["(a process that does nothing)", f"{figure(floor.ended())} ({range_of(*floor.spread())})", "", "", f"{floor.peak():.1f}", len(floor.costs)])
        report.say(f"\n### {scene.capitalize()}")
        report.table(["", "ms to exit", "ms until all of it is gone", "x egressguard", "peak MiB", "runs"], rows)
    report.say("What each leaves out of the job:\n")
    for contestant in contestants:
        report.say(f"- {contestant.name}: {contestant.misses}")


def judge(report, contestants, samples):
    """Compares with what was aimed at. Those who get addresses are compared with `--pins`, those who ask DNS with DNS."""

    def median(kind, scene, **wanted):
        fitting = [c for c in contestants if isinstance(c, kind) and all(getattr(c, key) == value for key, value in wanted.items())]
        return fitting and min((samples[contestant, scene].ended(), contestant.name) for contestant in fitting)

    def ours(scene):
        return samples[contestants[0], scene].ended()

    replace, _ = median(peers.Nft, "change")
    report.at_most("apply, change: share of `nft -f` replace", ours("change") / replace, 0.7)
    until_gone = samples[contestants[0], "change"].gone() / samples[next(c for c in contestants if isinstance(c, peers.Nft)), "change"].gone()
    report.aim("the same until the child that closes the socket is gone", "(no aim)", figure(until_gone), None)
    report.at_most("apply, nothing changes: share of `nft -f` replace", ours("nothing changes") / replace, 0.3)
    asking = next(contestant for contestant in contestants if isinstance(contestant, peers.Egressguard) and contestant.asks_dns)
    time, name = median(peers.ShellScript, "change")
    report.at_least(f"change with DNS, times as fast as: {name}", time / samples[asking, "change"].ended(), 5.0)
    for kind in (peers.Ufw, peers.RestorePair):
        best = median(kind, "change")
        if best:
            report.at_least(f"change from addresses, times as fast as: {best[1]}", best[0] / ours("change"), 5.0)


def refresh(stage, report, rounds):
    """A refresh that has nothing to do, and how many writes the kernel saw of it."""
    versions = subject.small(stage.tree, stage.work)
    contestant = peers.Egressguard(stage, "refresh", stage.work / "state/refresh", asks_dns=True)
    hosts = stage.work / "hosts-refresh"
    hosts.write_text(subject.hosts_file(versions[0].names))
    stage.serve_dns(contestant.namespace, hosts)
    contestant.clear()
    contestant.load(versions[0])
    before = stage.generation(contestant.namespace)
    samples = Samples([refresh_once(stage, contestant) for _ in range(rounds)])
    writes = stage.generation(contestant.namespace) - before
    report.say("\n## Refresh with nothing to do")
    report.say(f"\n{rounds} runs, each asking DNS: {figure(samples.ended())} ms ({range_of(*samples.spread())}), peak {samples.peak():.1f} MiB.")
    report.say(f"The kernel saw {writes} transactions of nf_tables meanwhile (its generation id before and after).")
    report.at_most("refresh with nothing to do: transactions", writes, 0)


def refresh_once(stage, contestant):
    """Measures one `egressguard refresh`."""
    command = [stage.binary, "refresh", "--state-dir", contestant.state, "--netns", contestant.namespace]
    return stage.measure(peers.OUTSIDE, command)


def explain(stage, report, rounds):
    """One question about one packet: the whole process."""
    version = subject.small(stage.tree, stage.work)[0]
    asked = ["explain", "tcp to 1.2.3.4:443", version.policy, "--state-dir", stage.work / "nothing"]
    questions = {"by its pins": [*asked, "--pins", version.pins], "as JSON, every step": [*asked, "--json"]}
    samples = {what: Samples() for what in questions}
    for _ in range(rounds):
        for what, question in questions.items():
            samples[what].costs.append(stage.measure(peers.OUTSIDE, [stage.binary, *question], fine=(1,)))
    report.say("\n## explain")
    report.table(["one packet", "ms", "peak MiB"], [[what, f"{figure(of.ended())} ({range_of(*of.spread())})", f"{of.peak():.1f}"] for what, of in samples.items()])
    for what, of in samples.items():
        report.at_most(f"explain {what}", of.ended(), 10.0, " ms")


def binary(stage, report, chosen, peak):
    """The program itself: its size, its memory, its build."""
    size = stage.binary.stat().st_size / 2**20
    libraries = [line.split()[0] for line in stage.outside("ldd", stage.binary).splitlines() if "=>" in line]
    report.say("\n## The program")
    report.say(f"\nStripped: {size:.2f} MiB. Shared libraries: {', '.join(libraries)}.")
    report.at_most("release binary, stripped", size, 8.0, " MiB")
    if peak is not None:
        report.at_most("peak memory of apply, default policy", peak, 15.0, " MiB")
    if chosen.build_seconds is None:
        report.say("What DNS over TLS costs, and a build from nothing: not measured; `--clean-build` does both.")
        report.aim("release build from nothing", "<= 120 s", "-", None)
        return
    report.at_most("release build from nothing", chosen.build_seconds, 120.0, " s")
    crates = octets_by_crate(chosen.unstripped)
    tls = {name: octets for name, octets in crates.items() if name.startswith(("rustls", "ring", "webpki", "tokio_rustls", "untrusted"))}
    report.say(
        f"\nA build from nothing took {chosen.build_seconds:.0f} s. By its symbols, the unstripped program holds {sum(crates.values()) / 2**20:.2f} MiB, of which"
        f" crates that only TLS needs hold {sum(tls.values()) / 2**20:.2f} MiB. The optimiser moves code between crates, and TLS serves the"
        " demo's server too, so this is an estimate from above of what DNS over TLS costs."
    )
    report.table(["crate", "KiB"], [[name, figure(octets / 1024)] for name, octets in crates.most_common(15)])


def octets_by_crate(unstripped):
    """Octets of the symbols of each crate. A symbol belongs to the crate that its demangled name begins with."""
    listing = subprocess.run(["nm", "--print-size", "--demangle=rust", unstripped], capture_output=True, text=True, check=True).stdout
    crates = Counter()
    for line in listing.splitlines():
        words = line.split(maxsplit=3)
        if len(words) == 4 and words[2] in "tTrRdDbB":
            name = words[3].lstrip("<&( ").removeprefix("dyn ").removeprefix("mut ")
            crate = "ring" if name.startswith("ring_core") else name.split("::")[0].split(" ")[0]
            crates[crate if crate.isidentifier() and "::" in name or crate == "ring" else "(C, assembler and the rest)"] += int(words[1], 16)
    return crates
