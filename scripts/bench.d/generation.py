"""Prints how many nf_tables transactions this network namespace has seen (NFT_MSG_GETGEN of linux/netfilter/nf_tables.h)."""

import socket
import struct

NETLINK_NETFILTER, NFNL_SUBSYS_NFTABLES, NFT_MSG_GETGEN, NFTA_GEN_ID, NLM_F_REQUEST = 12, 10, 16, 1, 1
NLMSG_ERROR = 2

with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER) as netlink:
    netlink.bind((0, 0))
    netlink.send(struct.pack("=IHHII", 20, NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETGEN, NLM_F_REQUEST, 1, 0) + struct.pack("=BBH", 0, 0, 0))
    answer = netlink.recv(8192)
if struct.unpack_from("=H", answer, 4)[0] == NLMSG_ERROR:
    raise SystemExit(f"the kernel answers with error {-struct.unpack_from('=i', answer, 16)[0]}")
at = 20
while at + 4 <= len(answer):
    length, kind = struct.unpack_from("=HH", answer, at)
    if kind & 0x3FFF == NFTA_GEN_ID:
        print(struct.unpack_from(">I", answer, at + 4)[0])
        break
    at += (length + 3) & ~3
