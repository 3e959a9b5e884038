#!/bin/sh
# usage: firewall.sh PORT NAME...
#
# The firewall that most people write: it asks dig for the addresses, puts them into ipsets, and builds the rules one by one with
# iptables and ip6tables. Nothing of it is one transaction. It is measured by the bench and meant for nobody's machine.
set -eu
port=$1
shift
: "${IPTABLES:=iptables}" "${IP6TABLES:=ip6tables}" "${DNS:?}"

for family in 4 6; do
    inet=inet type=A
    [ "$family" = 4 ] || { inet=inet6 type=AAAA; }
    ipset create "pins$family" hash:ip family "$inet" timeout 86400 counters comment -exist
    ipset create "ledger$family" hash:ip,port family "$inet" timeout 86400 counters -exist
    for name in "$@"; do
        for address in $(dig +short "@$DNS" "$name" "$type"); do
            # A CNAME is answered with its target first.
            case $address in *.) continue ;; esac
            ipset add "pins$family" "$address" timeout 86400 comment "$name" -exist
        done
    done
done

rules() {
    table=$1 family=$2 icmp=$3 prohibited=$4
    for chain in INPUT FORWARD OUTPUT; do
        "$table" -P "$chain" DROP
    done
    "$table" -F
    "$table" -X
    for chain in OUTBOUND REFUSE-IN REFUSE-OUT; do
        "$table" -N "$chain"
    done
    for chain in INPUT FORWARD OUTPUT; do
        "$table" -A "$chain" -m conntrack --ctstate ESTABLISHED -j ACCEPT
        "$table" -A "$chain" -p "$icmp" -m conntrack --ctstate RELATED -j ACCEPT
    done
    "$table" -A INPUT -i lo -j ACCEPT
    "$table" -A OUTPUT -o lo -j ACCEPT
    if [ "$family" = 4 ]; then
        "$table" -A INPUT -p udp --sport 67 --dport 68 -j ACCEPT
        "$table" -A OUTPUT -p udp --sport 68 --dport 67 -j ACCEPT
        "$table" -A OUTBOUND -p udp -d "$DNS" --dport 53 -j ACCEPT
        "$table" -A OUTBOUND -p tcp -d "$DNS" --dport 53 -j ACCEPT
    else
        for kind in 134 135 136; do
            "$table" -A INPUT -p ipv6-icmp --icmpv6-type "$kind" -m hl --hl-eq 255 -j ACCEPT
        done
        for kind in 133 135 136 143; do
            "$table" -A OUTPUT -p ipv6-icmp --icmpv6-type "$kind" -j ACCEPT
        done
    fi
    "$table" -A INPUT -p tcp --dport "$port" -j ACCEPT
    "$table" -A INPUT -j REFUSE-IN
    "$table" -A OUTBOUND -p tcp --dport 443 -m set --match-set "pins$family" dst -j ACCEPT
    "$table" -A OUTPUT -j OUTBOUND
    "$table" -A OUTPUT -j REFUSE-OUT
    "$table" -A FORWARD -j OUTBOUND
    "$table" -A FORWARD -j REFUSE-OUT
    for chain in REFUSE-IN REFUSE-OUT; do
        for protocol in tcp udp; do
            "$table" -A "$chain" -p "$protocol" -j SET --add-set "ledger$family" dst,dst --exist
        done
        "$table" -A "$chain" -m limit --limit 10/sec --limit-burst 50 -j NFLOG --nflog-group 4947 --nflog-prefix "$chain"
    done
    "$table" -A REFUSE-IN -j DROP
    "$table" -A REFUSE-OUT -p tcp -j REJECT --reject-with tcp-reset
    "$table" -A REFUSE-OUT -j REJECT --reject-with "$prohibited"
}

rules "$IPTABLES" 4 icmp icmp-admin-prohibited
rules "$IP6TABLES" 6 ipv6-icmp icmp6-adm-prohibited
