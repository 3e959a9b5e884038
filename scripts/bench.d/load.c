/*
 * A bounded load over a pair of namespaces, and what it took. The server half ends by itself when its standard input does.
 *
 * usage: load serve ADDRESS PORT
 *        load connect|stream|turns|datagrams ADDRESS PORT COUNT
 *
 * Each client prints one number: how many a second of what COUNT counts (connections, MiB, round trips, datagrams).
 * The server closes connections to PORT at once. Those to the port behind it begin with what they are for: `s` is swallowed and
 * `e` is echoed. Datagrams to that port are swallowed.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { BATCH = 32, DATAGRAM = 64, CHUNK = 1 << 17 };

static struct sockaddr_in peer;
static char chunk[CHUNK];

static void die(const char *what)
{
	fprintf(stderr, "load: %s: %s\n", what, strerror(errno));
	exit(1);
}

static double now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec + time.tv_nsec / 1e9;
}

static int opened(int kind)
{
	int one = 1, fd = socket(AF_INET, kind | SOCK_CLOEXEC, 0);

	if (fd < 0)
		die("socket");
	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
	if (kind == SOCK_STREAM)
		setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
	return fd;
}

static int connected(int kind)
{
	int fd = opened(kind);

	if (connect(fd, (struct sockaddr *)&peer, sizeof peer) < 0)
		die("connect");
	return fd;
}

/* Closes with a reset, so that neither side keeps the connection in TIME_WAIT. */
static void cut(int fd)
{
	struct linger linger = { 1, 0 };

	setsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, sizeof linger);
	close(fd);
}

static void *answer(void *argument)
{
	int fd = (int)(long)argument;
	char purpose = 0;
	ssize_t got = recv(fd, &purpose, 1, 0);

	while (got > 0) {
		if (purpose == 'e' && send(fd, chunk, got, MSG_NOSIGNAL) < 0)
			break;
		got = recv(fd, chunk, purpose == 'e' ? 1 : CHUNK, purpose == 'e' ? 0 : MSG_TRUNC);
	}
	close(fd);
	return NULL;
}

static void *swallow(void *argument)
{
	int fd = (int)(long)argument;

	for (;;)
		recv(fd, NULL, 0, MSG_TRUNC);
	return NULL;
}

static int listening(int port)
{
	int fd = opened(SOCK_STREAM);

	peer.sin_port = htons(port);
	if (bind(fd, (struct sockaddr *)&peer, sizeof peer) < 0 || listen(fd, 4096) < 0)
		die("listen");
	return fd;
}

static void serve(int port)
{
	int datagrams = opened(SOCK_DGRAM);
	struct pollfd wanted[3] = { { 0, POLLIN, 0 }, { listening(port), POLLIN, 0 }, { listening(port + 1), POLLIN, 0 } };
	pthread_t thread;

	if (bind(datagrams, (struct sockaddr *)&peer, sizeof peer) < 0)
		die("bind");
	pthread_create(&thread, NULL, swallow, (void *)(long)datagrams);
	puts("ready");
	fflush(stdout);
	while (poll(wanted, 3, -1) > 0 && !wanted[0].revents) {
		if (wanted[1].revents)
			close(accept4(wanted[1].fd, NULL, NULL, SOCK_CLOEXEC));
		if (wanted[2].revents) {
			int fd = accept4(wanted[2].fd, NULL, NULL, SOCK_CLOEXEC);

			if (pthread_create(&thread, NULL, answer, (void *)(long)fd) != 0)
				die("thread");
			pthread_detach(thread);
		}
	}
	exit(0);
}

static double connects(long count)
{
	double began = now();

	for (long done = 0; done < count; done++)
		cut(connected(SOCK_STREAM));
	return count / (now() - began);
}

static double stream(long mib)
{
	int fd = connected(SOCK_STREAM);
	long long left = mib << 20;
	double began;
	char octet;

	send(fd, "s", 1, 0);
	began = now();
	while (left > 0) {
		ssize_t sent = send(fd, chunk, left < CHUNK ? left : CHUNK, MSG_NOSIGNAL);

		if (sent < 0)
			die("send");
		left -= sent;
	}
	/* The last octet has arrived when the peer has closed in answer. */
	shutdown(fd, SHUT_WR);
	recv(fd, &octet, 1, 0);
	close(fd);
	return mib / (now() - began);
}

static double turns(long count)
{
	int fd = connected(SOCK_STREAM);
	double began = now();

	for (long done = 0; done < count; done++) {
		char octet = 'e';

		if (send(fd, &octet, 1, MSG_NOSIGNAL) != 1 || recv(fd, &octet, 1, 0) != 1)
			die("echo");
	}
	began = count / (now() - began);
	close(fd);
	return began;
}

static double datagrams(long count)
{
	int fd = connected(SOCK_DGRAM);
	struct iovec piece = { chunk, DATAGRAM };
	struct mmsghdr batch[BATCH];
	double began = now();

	memset(batch, 0, sizeof batch);
	for (int at = 0; at < BATCH; at++) {
		batch[at].msg_hdr.msg_iov = &piece;
		batch[at].msg_hdr.msg_iovlen = 1;
	}
	for (long done = 0; done < count;) {
		int sent = sendmmsg(fd, batch, BATCH, 0);

		if (sent < 0 && errno != ENOBUFS)
			die("sendmmsg");
		done += sent > 0 ? sent : 0;
	}
	began = count / (now() - began);
	close(fd);
	return began;
}

int main(int argc, char **argv)
{
	long count = argc == 5 ? atol(argv[4]) : 0;

	if (argc < 4 || inet_pton(AF_INET, argv[2], &peer.sin_addr) != 1) {
		fprintf(stderr, "usage: load serve|connect|stream|turns|datagrams ADDRESS PORT [COUNT]\n");
		return 2;
	}
	peer.sin_family = AF_INET;
	memset(chunk, 'e', sizeof chunk);
	if (!strcmp(argv[1], "serve"))
		serve(atoi(argv[3]));
	peer.sin_port = htons(atoi(argv[3]) + (strcmp(argv[1], "connect") ? 1 : 0));
	if (!strcmp(argv[1], "connect"))
		printf("%.1f\n", connects(count));
	else if (!strcmp(argv[1], "stream"))
		printf("%.1f\n", stream(count));
	else if (!strcmp(argv[1], "turns"))
		printf("%.1f\n", turns(count));
	else if (!strcmp(argv[1], "datagrams"))
		printf("%.1f\n", datagrams(count));
	else
		return 2;
	return 0;
}
