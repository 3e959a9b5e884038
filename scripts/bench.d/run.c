/*
 * Runs one command and prints what it cost, in one line on standard output:
 *
 *     EXIT-CODE  MICROSECONDS-TO-EXIT  MICROSECONDS-UNTIL-NOTHING-IS-LEFT  PEAK-RESIDENT-KIB
 *
 * usage: run NAMESPACE-FILE OUTPUT-FILE COMMAND [ARGUMENT...]
 *
 * It is this small, and not Python, because a process begins its life with the peak memory of whoever made it, and because the
 * things measured take less time than Python takes to start one. The second time counts children that outlive the command:
 * they become ours, and the clock runs until the last is gone.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <spawn.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

extern char **environ;

static int failed(const char *what)
{
	fprintf(stderr, "run: %s: %s\n", what, strerror(errno));
	return 125;
}

static long long microseconds(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000000LL + now.tv_nsec / 1000;
}

int main(int argc, char **argv)
{
	posix_spawn_file_actions_t files;
	struct rusage usage;
	long long began, ended, gone;
	long peak = 0;
	int code = -1, status, namespace;
	pid_t child, reaped;

	if (argc < 4) {
		fprintf(stderr, "usage: run NAMESPACE-FILE OUTPUT-FILE COMMAND [ARGUMENT...]\n");
		return 125;
	}
	namespace = open(argv[1], O_RDONLY | O_CLOEXEC);
	if (namespace < 0 || setns(namespace, CLONE_NEWNET) < 0)
		return failed(argv[1]);
	if (prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) < 0)
		return failed("PR_SET_CHILD_SUBREAPER");
	posix_spawn_file_actions_init(&files);
	posix_spawn_file_actions_addopen(&files, 0, "/dev/null", O_RDONLY, 0);
	posix_spawn_file_actions_addopen(&files, 1, argv[2], O_WRONLY | O_CREAT | O_TRUNC, 0644);
	posix_spawn_file_actions_adddup2(&files, 1, 2);

	began = ended = microseconds();
	errno = posix_spawnp(&child, argv[3], &files, NULL, argv + 3, environ);
	if (errno)
		return failed(argv[3]);
	while ((reaped = wait4(-1, &status, 0, &usage)) > 0 || errno == EINTR) {
		if (reaped <= 0)
			continue;
		if (usage.ru_maxrss > peak)
			peak = usage.ru_maxrss;
		if (reaped == child) {
			ended = microseconds();
			code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
		}
	}
	gone = microseconds();
	printf("%d %lld %lld %ld\n", code, ended - began, gone - began, peak);
	return 0;
}
