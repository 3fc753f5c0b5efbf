/*
 * Copyright: kvm.liveupdate contributors
 * SPDX-License-Identifier: GPL-3.0-or-later
 *
 * The whole user space of a lab guest. At least once a second it tells that it is alive, that it was never restarted (boot id,
 * tick number) and that its memory is what it was (checksum of a blob of random bytes).
 *
 * Words on the kernel's command line give it more to do: port=NAME, a virtio port on which it tells instead of the console, and
 * twice as often (an emulated UART costs the host an exit or more for each byte, a port one for each line); disk=DEVICE,
 * an ext4 file system to which it appends records, each synced before its number goes into the next tick; address=IP, at which it
 * sends back on port 7 whatever comes, by TCP or UDP; agent=NAME, a virtio port on which it is a guest agent; load=MIB, so much memory
 * that it writes all the time, and reads back before it writes it again.
 * On the power button it ends the records, unmounts and powers off.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/genetlink.h>
#include <net/if.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/random.h>
#include <sys/reboot.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

// Small, because the processor that reads it over and over is emulated twice.
#define BLOB_WORDS (4u * 1024 * 1024 / 8)
#define PASS_NS 4000000000L
#define TICKS_A_PASS 8
/* On a UART, where each byte costs. */
#define TICKS_A_PASS_SLOWLY 4
#define RECORD_SIZE 80
#define RECORD_PAUSE_US 400000
/* Under load. */
#define SHORT_RECORD_PAUSE_US 50000
#define LOAD_PAGE 4096
#define LOAD_PAUSE_US 20000
#define LOAD_PAGES_A_PAUSE 128
#define ECHO_PORT 7

static uint64_t blob[BLOB_WORDS];
static char boot[64];
static int heart = -1;
/* Shared with the process that writes: how many records are on the disk for certain. */
static volatile unsigned long *acknowledged;

static int64_t monotonic_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000000000LL + now.tv_nsec;
}

/* xorshift64*: fast, and no two words alike that a deduplicating or zero-skipping copy could make up. */
static void fill(uint64_t state)
{
	for (size_t i = 0; i < BLOB_WORDS; i++) {
		state ^= state >> 12;
		state ^= state << 25;
		state ^= state >> 27;
		blob[i] = state * 0x2545f4914f6cdd1dULL;
	}
}

/* Each step is a bijection of the sum, so that one changed word always changes the result. */
static uint64_t add_slice(uint64_t sum, size_t first, size_t words)
{
	for (size_t i = first; i < first + words; i++) {
		sum = (sum ^ blob[i]) * 0x9e3779b97f4a7c15ULL;
		sum ^= sum >> 29;
	}
	return sum;
}

static void read_boot_id(char *text, size_t size)
{
	int fd = open("/proc/sys/kernel/random/boot_id", O_RDONLY);
	ssize_t got = fd < 0 ? -1 : read(fd, text, size - 1);

	text[got > 0 ? got : 0] = '\0';
	text[strcspn(text, "\n")] = '\0';
	if (fd >= 0)
		close(fd);
}

/* One write: a line is either there or torn by the jump itself. Where the host does not take it now it waits. */
static void say(const char *line, size_t length)
{
	while (write(heart, line, length) < 0 && errno == EAGAIN)
		usleep(1000);
}

/* The virtio port of this name; -1 where there is none. The kernel tells of its ports some time after it has started us. */
static int open_port(const char *wanted, int flags)
{
	char path[512], name[64];

	for (int tries = 0; tries < 3000; tries++) {
		struct dirent *entry;
		DIR *ports = opendir("/sys/class/virtio-ports");

		while (ports && (entry = readdir(ports))) {
			snprintf(path, sizeof(path), "/sys/class/virtio-ports/%s/name", entry->d_name);
			int fd = entry->d_name[0] == '.' ? -1 : open(path, O_RDONLY);
			ssize_t got = fd < 0 ? -1 : read(fd, name, sizeof(name) - 1);

			if (fd >= 0)
				close(fd);
			name[got > 0 ? got : 0] = '\0';
			name[strcspn(name, "\n")] = '\0';
			if (strcmp(name, wanted) == 0) {
				snprintf(path, sizeof(path), "/dev/%s", entry->d_name);
				closedir(ports);
				return open(path, flags);
			}
		}
		if (ports)
			closedir(ports);
		usleep(10000);
	}
	return -1;
}

/* The end of a process that cannot do its work: its last words go where the ticks go. */
static void give_up(const char *what)
{
	char line[128];
	int length = snprintf(line, sizeof(line), "FAILED %s: %s\n", what, strerror(errno));

	say(line, length);
	_exit(1);
}

/* FNV-1a. */
static uint64_t sum_of(const char *text, size_t length)
{
	uint64_t sum = 0xcbf29ce484222325ULL;

	for (size_t i = 0; i < length; i++)
		sum = (sum ^ (unsigned char)text[i]) * 0x100000001b3ULL;
	return sum;
}

/* Append records for ever: number, boot id, checksum of both. What an earlier boot wrote stays in front of them. */
static void write_records(const char *device, useconds_t pause_us)
{
	char record[RECORD_SIZE + 1];
	struct stat seen;

	mkdir("/disk", 0755);
	if (mount(device, "/disk", "ext4", 0, NULL) < 0)
		give_up("mount");
	int fd = open("/disk/records", O_WRONLY | O_CREAT | O_APPEND, 0644);
	if (fd < 0 || fstat(fd, &seen) < 0)
		give_up("open");
	unsigned long number = seen.st_size / RECORD_SIZE;
	/* Half a record is what a power cut leaves: it was never acknowledged. */
	if (ftruncate(fd, number * RECORD_SIZE) < 0)
		give_up("truncate");
	for (;;) {
		number++;
		int length = snprintf(record, sizeof(record), "%025lu %36s ", number, boot);
		snprintf(record + length, sizeof(record) - length, "%016llx\n", (unsigned long long)sum_of(record, length));
		if (write(fd, record, RECORD_SIZE) != RECORD_SIZE)
			give_up("write");
		if (fsync(fd) < 0)
			give_up("fsync");
		*acknowledged = number;
		usleep(pause_us);
	}
}

/* What a page of the load has in its first and last word in this round. */
static uint64_t load_word(uint64_t round, size_t page)
{
	return round * 0x9e3779b97f4a7c15ULL + page;
}

/* Write so many MiB for ever. Before each write a page must have what the round before has written: nothing older, and nothing else. */
static void load_memory(size_t mib)
{
	size_t pages = mib * (1024 * 1024 / LOAD_PAGE), words = LOAD_PAGE / sizeof(uint64_t);
	uint64_t *region = mmap(NULL, pages * LOAD_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (region == MAP_FAILED)
		give_up("load");
	for (uint64_t round = 1;; round++) {
		for (size_t page = 0; page < pages; page++) {
			uint64_t *first = region + page * words, *last = first + words - 1;
			uint64_t expected = round == 1 ? 0 : load_word(round - 1, page);

			if (*first != expected || *last != expected) {
				errno = EIO;
				give_up("load: a page has other content");
			}
			*first = *last = load_word(round, page);
			if (page % LOAD_PAGES_A_PAUSE == 0)
				usleep(LOAD_PAUSE_US);
		}
	}
}

/* Send back each datagram. */
static void echo_datagrams(const struct sockaddr_in *any)
{
	int fd = socket(AF_INET, SOCK_DGRAM, 0);
	struct sockaddr_in peer;
	char data[1024];

	if (bind(fd, (const struct sockaddr *)any, sizeof(*any)) < 0)
		give_up("bind");
	for (;;) {
		socklen_t size = sizeof(peer);
		ssize_t got = recvfrom(fd, data, sizeof(data), 0, (struct sockaddr *)&peer, &size);

		/* One that cannot be sent is lost, as datagrams may be. */
		if (got >= 0 && sendto(fd, data, got, MSG_DONTWAIT, (struct sockaddr *)&peer, size) < 0)
			continue;
	}
}

/* Give the only network card an address, and send back what comes, each connection in a process of its own. */
static void echo(const char *address)
{
	struct ifreq card = {.ifr_name = "eth0"};
	struct sockaddr_in *in = (struct sockaddr_in *)&card.ifr_addr;
	struct sockaddr_in any = {.sin_family = AF_INET, .sin_port = htons(ECHO_PORT)};
	int listener = socket(AF_INET, SOCK_STREAM, 0);

	in->sin_family = AF_INET;
	inet_pton(AF_INET, address, &in->sin_addr);
	if (ioctl(listener, SIOCSIFADDR, &card) < 0)
		give_up("address");
	inet_pton(AF_INET, "255.255.255.0", &in->sin_addr);
	if (ioctl(listener, SIOCSIFNETMASK, &card) < 0)
		give_up("netmask");
	card.ifr_flags = IFF_UP | IFF_RUNNING;
	if (ioctl(listener, SIOCSIFFLAGS, &card) < 0)
		give_up("link");
	if (fork() == 0)
		echo_datagrams(&any);
	if (bind(listener, (struct sockaddr *)&any, sizeof(any)) < 0 || listen(listener, 8) < 0)
		give_up("listen");
	signal(SIGCHLD, SIG_IGN);
	for (;;) {
		int connection = accept(listener, NULL, NULL);

		if (connection >= 0 && fork() == 0) {
			char data[1024];
			ssize_t got;

			while ((got = read(connection, data, sizeof(data))) > 0)
				if (write(connection, data, got) != got)
					break;
			_exit(0);
		}
		close(connection);
	}
}

/* The number that follows a key in a line of JSON; 0 when the key is not in it. */
static long long number_at(const char *line, const char *key)
{
	const char *at = strstr(line, key);

	return at ? strtoll(at + strlen(key) + strspn(at + strlen(key), " :"), NULL, 10) : 0;
}

/* In nanoseconds; without a time by the hardware clock, which is what ran on while the guest stood still. */
static int set_clock(long long to)
{
	char text[32] = "";
	int fd = to ? -1 : open("/sys/class/rtc/rtc0/since_epoch", O_RDONLY | O_CLOEXEC);

	if (!to && read(fd, text, sizeof(text) - 1) > 0)
		to = strtoll(text, NULL, 10) * 1000000000LL;
	if (fd >= 0)
		close(fd);
	struct timespec now = {.tv_sec = to / 1000000000, .tv_nsec = to % 1000000000};
	return to > 0 ? clock_settime(CLOCK_REALTIME, &now) : -1;
}

/* What the agent answers to a line. Its file systems are frozen only by its own account. */
static int answer(const char *line, char *text, size_t size)
{
	static int frozen;
	const char *empty = "{\"return\": {}}\n";
	struct timespec now;

	if (strstr(line, "\"guest-sync-delimited\""))
		return snprintf(text, size, "\xff{\"return\": %lld}\n", number_at(line, "\"id\""));
	if (strstr(line, "\"guest-sync\""))
		return snprintf(text, size, "{\"return\": %lld}\n", number_at(line, "\"id\""));
	if (strstr(line, "\"guest-ping\""))
		return snprintf(text, size, "%s", empty);
	if (strstr(line, "\"guest-info\""))
		return snprintf(text, size, "{\"return\": {\"version\": \"lab\", \"supported_commands\": []}}\n");
	if (strstr(line, "\"guest-fsfreeze-status\""))
		return snprintf(text, size, "{\"return\": \"%s\"}\n", frozen ? "frozen" : "thawed");
	if (strstr(line, "\"guest-fsfreeze-thaw\"") || (!frozen && strstr(line, "\"guest-fsfreeze-freeze\""))) {
		frozen = strstr(line, "thaw") == NULL;
		return snprintf(text, size, "{\"return\": 1}\n");
	}
	if (!frozen && strstr(line, "\"guest-get-time\"")) {
		clock_gettime(CLOCK_REALTIME, &now);
		return snprintf(text, size, "{\"return\": %lld}\n", now.tv_sec * 1000000000LL + now.tv_nsec);
	}
	if (!frozen && strstr(line, "\"guest-set-time\"") && set_clock(number_at(line, "\"time\"")) == 0)
		return snprintf(text, size, "%s", empty);
	return snprintf(text, size, "{\"error\": {\"class\": \"CommandNotFound\", \"desc\": \"unknown, failed, or frozen\"}}\n");
}

/* What libvirt asks QEMU's guest agent for; the real one, with all that it links to, is too big for this initramfs. */
static void serve_agent(const char *port)
{
	char *line = NULL, text[256];
	size_t room = 0;
	int fd = open_port(port, O_RDWR);
	FILE *lines = fd < 0 ? NULL : fdopen(fd, "r");
	if (!lines)
		give_up("agent");
	for (;;) {
		if (getline(&line, &room, lines) > 0) {
			if (write(fd, text, answer(line, text, sizeof(text))) < 0)
				usleep(100000);
		} else {
			/* Nobody on the other side. */
			clearerr(lines);
			usleep(100000);
		}
	}
}

/* A socket on which the kernel tells of ACPI events. Generic netlink says which group they go to, in lists within lists. */
static int acpi_events(void)
{
	struct {
		struct nlmsghdr header;
		struct genlmsghdr command;
		struct nlattr attribute;
		char name[12];
	} request = {
		.header = {.nlmsg_len = sizeof(request), .nlmsg_type = GENL_ID_CTRL, .nlmsg_flags = NLM_F_REQUEST},
		.command = {.cmd = CTRL_CMD_GETFAMILY, .version = 1},
		.attribute = {.nla_len = NLA_HDRLEN + sizeof("acpi_event"), .nla_type = CTRL_ATTR_FAMILY_NAME},
		.name = "acpi_event",
	};
	char answer[2048];
	int fd = socket(AF_NETLINK, SOCK_RAW, NETLINK_GENERIC), inside = 0;
	int length = send(fd, &request, sizeof(request), 0) < 0 ? -1 : (int)recv(fd, answer, sizeof(answer), 0);

	for (int at = NLMSG_HDRLEN + GENL_HDRLEN; at + NLA_HDRLEN < length;) {
		struct nlattr *attribute = (struct nlattr *)(answer + at);

		if (inside && attribute->nla_type == CTRL_ATTR_MCAST_GRP_ID) {
			setsockopt(fd, SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, attribute + 1, sizeof(int));
			return fd;
		}
		inside |= attribute->nla_type == CTRL_ATTR_MCAST_GROUPS;
		/* From the list of groups on, first into the list and into its only group. */
		at += attribute->nla_type == CTRL_ATTR_MCAST_GROUPS ? 2 * NLA_HDRLEN : NLA_ALIGN(attribute->nla_len);
	}
	return fd;
}

/* Whether one of the events that came is the power button. */
static int power_button(int fd)
{
	char event[1024];
	ssize_t got;
	int pressed = 0;

	while ((got = recv(fd, event, sizeof(event), MSG_DONTWAIT)) > 0)
		pressed |= memmem(event, got, "button/power", 12) != NULL;
	return pressed;
}

static void power_off(pid_t writer)
{
	if (writer > 0) {
		kill(writer, SIGKILL);
		waitpid(writer, NULL, 0);
		if (umount("/disk") < 0)
			give_up("unmount");
	}
	sync();
	reboot(RB_POWER_OFF);
}

int main(void)
{
	uint64_t seed = 0, sum = 0, running = 0;
	unsigned long tick = 0, pass = 0;
	const char *disk = getenv("disk"), *address = getenv("address"), *port = getenv("port"), *agent = getenv("agent");
	const char *load = getenv("load");
	pid_t writer = 0;

	mkdir("/proc", 0755);
	mkdir("/dev", 0755);
	mount("proc", "/proc", "proc", 0, NULL);
	mount("devtmpfs", "/dev", "devtmpfs", 0, NULL);
	mkdir("/sys", 0755);
	mount("sysfs", "/sys", "sysfs", 0, NULL);
	/* Non-blocking: a write would spin until the host has taken the line. */
	heart = port ? open_port(port, O_WRONLY | O_NONBLOCK) : -1;
	long ticks_a_pass = heart < 0 ? TICKS_A_PASS_SLOWLY : TICKS_A_PASS, tick_ns = PASS_NS / ticks_a_pass;
	size_t slice = BLOB_WORDS / ticks_a_pass;
	if (heart < 0)
		heart = open("/dev/console", O_WRONLY | O_NOCTTY);

	read_boot_id(boot, sizeof(boot));
	while (seed == 0)
		if (getrandom(&seed, sizeof(seed), 0) != (ssize_t)sizeof(seed))
			seed = 0;
	acknowledged = mmap(NULL, sizeof(*acknowledged), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (disk && (writer = fork()) == 0)
		write_records(disk, load ? SHORT_RECORD_PAUSE_US : RECORD_PAUSE_US);
	if (address && fork() == 0)
		echo(address);
	if (agent && fork() == 0)
		serve_agent(agent);
	if (load && fork() == 0)
		load_memory(strtoul(load, NULL, 10));
	int events = acpi_events();
	fill(seed);

	for (;;) {
		char line[256], synced[32] = "";
		int64_t started = monotonic_ns();
		struct timespec real;
		int length;

		if (power_button(events))
			power_off(writer);
		tick++;
		if (disk)
			snprintf(synced, sizeof(synced), " disk=%lu", *acknowledged);
		clock_gettime(CLOCK_REALTIME, &real);
		length = snprintf(line, sizeof(line),
				  "TICK n=%lu mono=%lld.%06lld real=%lld.%06ld boot=%s sum=%016llx pass=%lu%s\n", tick,
				  (long long)(started / 1000000000), (long long)(started / 1000 % 1000000),
				  (long long)real.tv_sec, real.tv_nsec / 1000, boot, (unsigned long long)sum, pass, synced);
		say(line, length);

		running = add_slice(running, (tick - 1) % ticks_a_pass * slice, slice);
		if (tick % ticks_a_pass == 0) {
			sum = running;
			running = 0;
			pass++;
		}

		/* Relative, and never more than one tick: a clock that leaps makes no burst and no long silence. */
		int64_t rest = tick_ns - (monotonic_ns() - started);
		struct timespec pause = {.tv_nsec = rest < 1000000 ? 1000000 : rest > tick_ns ? tick_ns : rest};
		clock_nanosleep(CLOCK_MONOTONIC, 0, &pause, NULL);
	}
}
