"""The packet log: how many records a second `watch --service` reads without losing one, and at what cost, beside ulogd2 that writes
JSON. Both get the same room to receive (8 MiB) and the same rules: every packet is logged, 64 to a datagram."""

import json
import os
import signal
import subprocess
import time

from report import figure

GROUP = 4947
RULES = f"""table inet bench {{
 chain o {{
  type filter hook output priority 0; policy accept;
  udp dport 7 log prefix "egressguard refuse-out " group {GROUP} snaplen 128 queue-threshold 64
  udp dport 7 drop
 }}
}}
"""
RATES = [25_000, 50_000, 100_000, 200_000, 300_000, 400_000]
BURST = 400_000
ROOM = 8 << 20
ADDRESSES = [1, 65_536]
# ulogd2 writes by blocks of 4 KiB: so many of its records may be in its memory still, and are not lost.
BUFFERED = 32


def ulogd(stage):
    """Debian's ulogd2 with its JSON output, which scripts/bench has unpacked; None when it could not be had."""
    place = stage.work / "ulogd"
    if not place.exists():
        return None
    plugins = next(place.glob("usr/lib/*/ulogd"))
    names = ["inppkt_NFLOG", "raw2packet_BASE", "filter_IFINDEX", "filter_IP2STR", "output_JSON"]
    lines = ["[global]", f'logfile="{place}/log"', "loglevel=5"]
    lines += [f'plugin="{plugins}/ulogd_{name}.so"' for name in names]
    lines += ["stack=log1:NFLOG,base1:BASE,ifi1:IFINDEX,ip2str1:IP2STR,json1:JSON"]
    lines += ["[log1]", f"group={GROUP}", f"netlink_socket_buffer_size={ROOM}", f"netlink_socket_buffer_maxsize={ROOM}"]
    lines += ["netlink_qthreshold=64", "netlink_qtimeout=10", "[json1]", f'file="{place}/records"', "sync=0"]
    (place / "conf").write_text("\n".join(lines) + "\n")
    return place, [place / "usr/sbin/ulogd", "-c", place / "conf"], {"LD_LIBRARY_PATH": str(plugins.parent)}


class Reader:
    """A program that follows the packet log of a namespace."""

    def __init__(self, namespace, command, environment, count, buffered=0):
        command = ["ip", "netns", "exec", namespace, *map(str, command)]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, **environment})
        self.count, self.buffered = count, buffered
        time.sleep(1.5)
        assert self.process.poll() is None, f"{command} has ended"

    def status(self, word):
        lines = open(f"/proc/{self.process.pid}/status").read().splitlines()
        return int(next(line for line in lines if line.startswith(word)).split()[1]) / 1024

    def processor(self):
        """Seconds of processor that it has used."""
        fields = open(f"/proc/{self.process.pid}/stat").read().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def settle(self, wanted):
        """Waits until it has told of so many, or of no more for two seconds."""
        told, since = -1, time.monotonic()
        while time.monotonic() - since < 2.5:
            now = self.count()
            if now >= wanted - self.buffered:
                return now
            if now != told:
                told, since = now, time.monotonic()
            time.sleep(0.1)
        return told

    def close(self):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(timeout=20)


def told_by_watch(book):
    """Packets that the book tells of one by one or as a number, and those that it says were lost."""
    told = lost = 0
    for file in sorted(book.glob("watch*.jsonl")):
        for line in open(file):
            record = json.loads(line)
            told += record["count"] if record["kind"] in ("seen", "other") else 0
            lost += record["count"] if record["kind"] == "lost" else 0
    return told, lost


def lines_of(file):
    return sum(1 for _ in open(file, "rb")) if file.exists() else 0


def contest(stage, name, start, addresses):
    """One contestant: the highest rate without loss, then a burst."""
    send = stage.work / "send"
    namespace = stage.namespace(f"log-{name}-{addresses}")
    stage.inside(namespace, "sh", "-c", f"printf '%s' '{RULES}' | nft -f -")
    stage.inside(namespace, "ip", "route", "add", "198.18.0.0/15", "dev", "lo")
    reader = start(namespace)
    rest = reader.status("VmRSS:")
    best, sent = 0, 0
    for rate in RATES:
        sent += rate
        took = float(stage.inside(namespace, send, rate, addresses, rate))
        told = reader.settle(sent)
        if told < sent - reader.buffered or took > 1.15:
            sent = told
            break
        best = rate
    before, told_before = reader.processor(), reader.count()
    stage.inside(namespace, send, BURST, addresses, 0)
    told = reader.settle(told_before + BURST) - told_before
    cost = (reader.processor() - before) / max(told, 1) * 1e6
    peak = reader.status("VmHWM:")
    reader.close()
    return {"rate": best, "told": told, "lost": max(0, BURST - told - reader.buffered), "cost": cost, "rest": rest, "peak": peak}


def nflog(stage, report):
    stage.outside("cc", "-O2", "-Wall", "-o", stage.work / "send", stage.tree / "scripts/bench.d/send.c")
    other = ulogd(stage)

    def watch(addresses):
        def start(namespace):
            state = stage.work / f"watch-{addresses}"
            command = [stage.binary, "--state-dir", state, "watch", "--service"]
            return Reader(namespace, command, {}, lambda: told_by_watch(state / "watch")[0])
        return start

    results = {}
    for addresses in ADDRESSES:
        results["egressguard", addresses] = contest(stage, "egressguard", watch(addresses), addresses)
        if other:
            place, command, environment = other
            (place / "records").unlink(missing_ok=True)
            start = lambda namespace: Reader(namespace, command, environment, lambda: lines_of(place / "records"), BUFFERED)  # noqa: E731
            results["ulogd2", addresses] = contest(stage, "ulogd2", start, addresses)
    report.say("\n## Packet log")
    report.say(
        f"\n`watch --service` writes its book, one record a second for each destination and 4096 destinations at a time, and counts the others; "
        f"ulogd2 writes a JSON object for each packet. Bursts are {BURST} packets as fast as they can be sent, on the same cores."
    )
    names = {"egressguard": "egressguard watch --service", "ulogd2": "ulogd2, JSON"}
    rows = []
    for (name, addresses), figures in results.items():
        numbers = [str(figures["rate"]), str(figures["told"]), str(figures["lost"]), figure(figures["cost"]), figure(figures["rest"]), figure(figures["peak"])]
        rows.append([f"{names[name]}, {addresses} destinations", *numbers])
    report.table(["reader", "records/s without loss", "told of a burst", "lost", "us of processor each", "MiB at rest", "peak MiB"], rows)
    for addresses in ADDRESSES:
        ours, theirs = results["egressguard", addresses], results.get(("ulogd2", addresses))
        if theirs:
            what = f"packet log, {addresses} destinations"
            report.at_least(f"{what}: records/s without loss, times ulogd2's", ours["rate"] / max(theirs["rate"], 1), 2.0)
            report.at_most(f"{what}: processor for each record, times ulogd2's", ours["cost"] / theirs["cost"], 1.0)
        report.at_most(f"packet log, {addresses} destinations: memory at rest", ours["rest"], 20.0, " MiB")
        report.at_most(f"packet log, {addresses} destinations: memory in a flood", ours["peak"], 64.0, " MiB")
