"""Makes tracked flows that nobody answers: flows.py FROM TO COUNT. Half are datagrams, half the first segments of connections.

Raw sockets, one packet for each: fifty thousand real connections would measure the machine's sockets instead."""

import socket
import struct
import sys

FIRST_PORT = 1024


def checksum(octets):
    total = sum(struct.unpack(f">{len(octets) // 2}H", octets))
    total = (total & 0xFFFF) + (total >> 16)
    return ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF


def main():
    source, destination, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
    ends = socket.inet_aton(source) + socket.inet_aton(destination)
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP) as tcp, socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_UDP) as udp:
        for number in range(count):
            port = FIRST_PORT + number
            if number % 2:
                udp.sendto(struct.pack(">HHHH", 40000, port, 8, 0), (destination, 0))
                continue
            segment = struct.pack(">HHIIHHHH", 40000, port, 1, 0, 0x5002, 1024, 0, 0)
            sum_of_it = checksum(ends + struct.pack(">HH", socket.IPPROTO_TCP, len(segment)) + segment)
            tcp.sendto(segment[:16] + struct.pack(">H", sum_of_it) + segment[18:], (destination, 0))


main()
