"""What is done with violations: a report of a million records, and how many packets leave after the one that was too many."""

import datetime
import hashlib

from report import figure
from stage import Samples

RECORDS, ROUNDS = 1_000_000, 3
DESTINATIONS = 25_000
LIMIT, PACKETS = 20, 200_000
HOST, PEER, ALLOWED = "192.0.2.1", "192.0.2.2", "198.18.0.1"


def violations(stage, report):
    """Both parts."""
    books(stage, report)
    cut(stage, report)


def books(stage, report):
    """Times `report` of two full books, half of the records in each, as the program writes them."""
    state = stage.work / "books"
    (state / "watch").mkdir(parents=True)
    write(state / "ledger.jsonl", RECORDS // 2, count)
    write(state / "watch/watch.jsonl", RECORDS // 2, seen)
    namespace = stage.namespace("bench-report")
    rows = []
    for what, arguments, code in [
        ("report", [], 1),
        ("report --format json", ["--format", "json"], 1),
        ("report --format html", ["--format", "html"], 1),
        ("report --to 198.51.7.0/24", ["--to", "198.51.7.0/24"], 1),
    ]:
        command = [stage.binary, "--state-dir", state, "--quiet", "report", *arguments]
        samples = Samples([stage.measure(namespace, command, fine=(code,)) for _ in range(ROUNDS)])
        seconds = max(cost.ended for cost in samples.costs) / 1000
        rows.append([what, figure(seconds), figure(samples.peak())])
        report.at_most(f"{what}, {RECORDS} records: time", seconds, 2.0, " s")
    check = stage.measure(namespace, [stage.binary, "--state-dir", state, "--quiet", "report", "--check-journal"], fine=(0, 1))
    rows.append(["report --check-journal, once", figure(check.ended / 1000), figure(check.peak)])
    report.say(f"\n## A report of {RECORDS} records about {DESTINATIONS} destinations\n\nWorst of {ROUNDS} runs.")
    report.table(["", "s", "peak MiB"], rows)


def cut(stage, report):
    """Sends to a stranger and to the allowed address in turn, far more than the limit, and counts at the other end of the cable."""
    host, peer = stage.namespace("bench-cut"), stage.namespace("bench-cut-peer")
    stage.inside(host, "ip", "link", "add", "cable", "type", "veth", "peer", "name", "far", "netns", peer)
    for namespace, device, address in [(host, "cable", HOST), (peer, "far", PEER)]:
        stage.inside(namespace, "ip", "address", "add", f"{address}/24", "dev", device)
        stage.inside(namespace, "ip", "link", "set", device, "up")
    stage.inside(host, "ip", "route", "add", "198.18.0.0/15", "via", PEER)
    counting = (
        f"table ip wire {{ chain arriving {{ type filter hook prerouting priority -300; "
        f"ip daddr {ALLOWED} udp dport 7 counter drop; ip saddr {HOST} udp dport 7 counter drop; }} ; }}"
    )
    stage.inside(peer, "nft", counting)
    policy = stage.work / "cut.yaml"
    policy.write_text(
        f"version: 1\noutbound:\n  - {{to: {ALLOWED}, port: 7, protocol: udp}}\n"
        f"violations:\n  quarantine: {{after: {LIMIT}, within: 1m, for: 1h, scope: user}}\n"
    )
    send = stage.work / "send"
    stage.outside("cc", "-O2", "-Wall", "-o", send, stage.tree / "scripts/bench.d/send.c")
    # Nobody waits for a neighbour to be found: packets would be held back meanwhile, and some dropped.
    far = stage.inside(peer, "cat", "/sys/class/net/far/address").strip()
    stage.inside(host, "ip", "neighbour", "replace", PEER, "lladdr", far, "dev", "cable", "nud", "permanent")
    stage.inside(host, stage.binary, "--state-dir", stage.work / "cut-state", "apply", policy)
    took = float(stage.inside(host, send, PACKETS, 2, 0))
    allowed, others = (int(line.split("packets ")[1].split()[0]) for line in stage.inside(peer, "nft", "list", "ruleset").splitlines() if "packets" in line)
    # The sender begins with the stranger: before the refusal that is one too many it has sent so many to the allowed address.
    after = allowed - LIMIT
    report.say(f"\n## Cutting a user off\n\n{PACKETS} packets of one user, to a stranger and to an allowed address in turn, in {took * 1000:.0f} ms; the limit is {LIMIT} refusals.")
    report.table(["at the other end", "packets"], [["to the allowed address", allowed], ["to the stranger", others], ["after the limit was exceeded", after]])
    report.at_most("packets that leave after the limit", after + others, 0)
    report.at_least("packets that leave before it", allowed, LIMIT)


def write(path, records, line):
    """A book: each record with the chain of the one before."""
    now = datetime.datetime.now(datetime.timezone.utc).replace(microsecond=0)
    chain = b""
    with open(path, "wb") as file:
        for number in range(records):
            at = (now - datetime.timedelta(seconds=(records - number) * 80_000 // records)).strftime("%Y-%m-%dT%H:%M:%SZ")
            body = line(number, at).encode()
            chain = hashlib.sha256(chain + body).hexdigest().encode()
            file.write(body[:-1] + b',"chain":"' + chain + b'"}\n')


def destination(number):
    return f"198.51.{number // 250 % 100}.{number % 250}"


def count(number, at):
    """What a harvest counted."""
    return (
        f'{{"seq":{number + 1},"at":"{at}","kind":"count","from":"{at}","to":"{at}","direction":"out","protocol":"tcp",'
        f'"destination":"{destination(number)}","port":443,"uid":33,"packets":3,"bytes":180}}'
    )


def seen(number, at):
    """What the service saw."""
    return (
        f'{{"seq":{number + 1},"at":"{at}","kind":"seen","first":"{at}","last":"{at}","count":1,"direction":"out","protocol":"tcp",'
        f'"source":"10.0.0.5","source_port":5000,"destination":"{destination(number)}","port":443,"uid":33,"user":"www-data",'
        f'"process":{{"pid":12,"executable":"/usr/bin/node","command":"node x"}},"rule":"refuse-out"}}'
    )
