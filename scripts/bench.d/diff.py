"""What the exact comparison of two large policies takes: a thousand rules of every kind, ports that all overlap, ten thousand names."""

import random

from report import figure
from stage import Samples

RULES, NAMES, ROUNDS = 1_000, 10_000, 3


def diff(stage, report):
    """Times `diff` of pairs of policies, and holds the worst run against what was meant to be reached."""
    policies = {
        "rules": mixed(0),
        "one rule changed": mixed(0).replace("10.244.1.0/24", "11.244.1.0/24"),
        "other ports": mixed(1),
        "overlapping": overlapping(0),
        "overlapping, shifted": overlapping(1),
        "names": named(NAMES),
        "one name changed": named(NAMES).replace("host-5000.", "other-5000."),
        "all names changed": named(NAMES).replace("host-", "other-"),
    }
    files = {}
    for number, (what, text) in enumerate(policies.items()):
        files[what] = stage.work / f"diff-{number}.yaml"
        files[what].write_text(text)
    pairs = [
        ("rules", "one rule changed", 1.0),
        ("rules", "other ports", 1.0),
        ("overlapping", "overlapping, shifted", 1.0),
        ("names", "one name changed", 2.0),
        ("names", "all names changed", 2.0),
    ]
    report.say(f"\n## Comparing policies: {RULES} rules, {NAMES} names")
    namespace = stage.namespace("bench-diff")
    rows, aims = [], []
    for old, new, limit in pairs:
        command = [stage.binary, "diff", files[old], files[new], "--json", "--quiet"]
        samples = Samples([stage.measure(namespace, command, fine=(1,)) for _ in range(ROUNDS)])
        seconds = max(cost.ended for cost in samples.costs) / 1000
        rows.append([f"{old} / {new}", figure(seconds), f"{samples.peak():.0f}"])
        aims.append((f"diff, {old} / {new}", seconds, limit, samples.peak()))
    report.say(f"\nWorst of {ROUNDS} runs.")
    report.table(["", "s", "peak MiB"], rows)
    for what, seconds, limit, peak in aims:
        report.at_most(f"{what}: time", seconds, limit, " s")
        report.at_most(f"{what}: memory", peak, 200.0, " MiB")


def mixed(seed):
    """Rules of every kind: networks, names and both, TCP and UDP, ports and ranges, users, services."""
    chance = random.Random(seed)
    lines = ["version: 1", "outbound:"]
    for number in range(RULES):
        low = chance.randrange(1, 60_000)
        lines.append(f"  - id: rule-{number}")
        match number % 5:
            case 0:
                lines += [f"    to: 10.{number % 256}.{number // 256}.0/24", f"    port: {1000 + number}"]
            case 1:
                lines += [f"    to: a{number}.example.com", f"    for: {{uid: {1000 + number}}}"]
            case 2:
                lines += [f"    to: [172.16.{number % 256}.{number // 256}, b{number}.example.com]"]
                lines += [f'    port: ["{low}-{low + 500}", 443]', "    protocol: udp"]
            case 3:
                lines += [f"    to: 2001:db8:{number:x}::/48", f"    port: {1000 + number}", f"    for: {{service: s{number}.service}}"]
            case _:
                lines += [f"    to: c{number}.example.com", f'    port: "{low}-{low + 20}"', f"    for: {{user: user-{number}}}"]
    return "\n".join([*lines, ""])


def overlapping(shift):
    """Rules whose ports all overlap, so that no port tells them apart."""
    lines = ["version: 1", "outbound:"]
    for number in range(RULES):
        lines += [f"  - id: rule-{number}", f"    to: 10.{number % 256}.{number // 256}.0/24", f'    port: "{number + 1 + shift}-65535"']
    return "\n".join([*lines, ""])


def named(count):
    """As many names, each a rule of its own."""
    return "version: 1\noutbound:\n" + "".join(f"  - to: host-{number}.example.com\n" for number in range(count))
