"""The default policy as ipset and iptables can say it: what iptables-restore and ipset restore read. What a person who knows both
would write by hand: sets for the pins, swapped in whole; a ledger by address and port; a limited log; a refusal with a reason."""

from stage import DNS_SERVER


def write(work, version):
    """Writes the three files of a version: for ipset, iptables-restore and ip6tables-restore."""
    files = [work / f"{version.label}.{kind}" for kind in ("ipset", "iptables", "ip6tables")]
    for path, text in zip(files, (sets(version), rules(version, 4), rules(version, 6))):
        path.write_text(text)
    return files


def sets(version):
    """Pins with a time, a counter and their name, made beside the old ones and swapped; the ledgers stay as they are."""
    lines = []
    for family, inet in ((4, "inet"), (6, "inet6")):
        made = f"hash:ip family {inet} timeout 86400 counters comment maxelem 131072"
        lines += [f"create pins{family} {made} -exist", f"create ledger{family} hash:ip,port family {inet} timeout 86400 counters -exist"]
        lines.append(f"create fresh{family} {made}")
        lines += [f'add fresh{family} {address} timeout 86400 comment "{name}"' for address, name in version.addresses(family)]
        lines += [f"swap fresh{family} pins{family}", f"destroy fresh{family}"]
    return "\n".join([*lines, ""])


def rules(version, family):
    """The rules of one family."""
    icmp, prohibited = ("icmp", "icmp-admin-prohibited") if family == 4 else ("ipv6-icmp", "icmp6-adm-prohibited")
    lines = ["*filter", ":INPUT DROP [0:0]", ":FORWARD DROP [0:0]", ":OUTPUT DROP [0:0]"]
    lines += [f":{chain} - [0:0]" for chain in ("ESSENTIAL-IN", "ESSENTIAL-OUT", "OUTBOUND", "REFUSE-IN", "REFUSE-OUT")]
    tracked = ["-m conntrack --ctstate ESTABLISHED -j ACCEPT", f"-p {icmp} -m conntrack --ctstate RELATED -j ACCEPT"]
    lines += ["-A INPUT -i lo -j ACCEPT", *(f"-A INPUT {rule}" for rule in tracked), "-A INPUT -j ESSENTIAL-IN"]
    lines += [f"-A INPUT -p tcp -m tcp --dport {version.port} -j ACCEPT", "-A INPUT -j REFUSE-IN"]
    lines += ["-A OUTPUT -o lo -j ACCEPT", *(f"-A OUTPUT {rule}" for rule in tracked), "-A OUTPUT -j ESSENTIAL-OUT", "-A OUTPUT -j OUTBOUND"]
    lines += [f"-A OUTPUT -p tcp -m tcp --sport {version.port} --tcp-flags RST,ACK {flags} -j DROP" for flags in ("ACK", "RST", "RST,ACK")]
    lines += ["-A OUTPUT -m conntrack --ctstate INVALID -j DROP", "-A OUTPUT -j REFUSE-OUT"]
    lines += [*(f"-A FORWARD {rule}" for rule in tracked), "-A FORWARD -j OUTBOUND"]
    lines += [f"-A FORWARD -p tcp -m conntrack --ctstate DNAT --ctorigdstport {version.port} -j ACCEPT", "-A FORWARD -j REFUSE-OUT"]
    lines += essentials(family)
    if family == 4:
        lines += [f"-A OUTBOUND -d {DNS_SERVER} -p {protocol} --dport 53 -j ACCEPT" for protocol in ("udp", "tcp")]
    lines.append(f"-A OUTBOUND -p tcp -m tcp --dport 443 -m set --match-set pins{family} dst -j ACCEPT")
    for chain, direction in (("REFUSE-IN", "src,dst"), ("REFUSE-OUT", "dst,dst")):
        counted = [f"-A {chain} -p {protocol} -j SET --add-set ledger{family} {direction} --exist" for protocol in ("tcp", "udp")]
        lines += [*counted, f'-A {chain} -m limit --limit 10/sec --limit-burst 50 -j NFLOG --nflog-group 4947 --nflog-prefix "{chain}"']
    lines += ["-A REFUSE-IN -j DROP", "-A REFUSE-OUT -p tcp -j REJECT --reject-with tcp-reset", f"-A REFUSE-OUT -j REJECT --reject-with {prohibited}"]
    return "\n".join([*lines, "COMMIT", ""])


def essentials(family):
    """Without these a host loses its lease and its neighbours."""
    if family == 4:
        return [
            "-A ESSENTIAL-IN -p udp -m udp --sport 67 --dport 68 -j ACCEPT",
            "-A ESSENTIAL-OUT -d 255.255.255.255/32 -p udp -m udp --sport 68 --dport 67 -j ACCEPT",
            "-A ESSENTIAL-OUT -p udp -m udp --sport 68 --dport 67 -j DROP",
        ]
    icmp = "-p ipv6-icmp -m icmp6 --icmpv6-type"
    lines = [f"-A ESSENTIAL-IN {icmp} {kind} -m hl --hl-eq 255 -j ACCEPT" for kind in (134, 135, 136)]
    lines += [f"-A ESSENTIAL-IN -s fe80::/10 {icmp} 130 -j ACCEPT", "-A ESSENTIAL-IN -s fe80::/10 -p udp -m udp --sport 547 --dport 546 -j ACCEPT"]
    for net in ("fe80::/10", "ff02::/16"):
        lines += [f"-A ESSENTIAL-OUT -d {net} {icmp} {kind} -j ACCEPT" for kind in (131, 132, 133, 135, 136, 143)]
        lines.append(f"-A ESSENTIAL-OUT -d {net} -p udp -m udp --sport 546 --dport 547 -j ACCEPT")
    return lines
