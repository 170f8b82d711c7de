//! Programs that print the time in every way that their language has, one in a line, with `CLOCK_MONOTONIC_RAW` before and
//! after where they have that; in nanoseconds.

/// In a thread and in a child as well.
pub(super) const C: &str = r#"
#include <pthread.h>
#include <stdio.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static long raw(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC_RAW, &now);
	return now.tv_sec * 1000000000L + now.tv_nsec;
}

static void *tell(void *unused)
{
	struct timespec fine, coarse;
	struct timeval day;
	long whole, at[5];

	at[0] = raw();
	clock_gettime(CLOCK_REALTIME, &fine);
	at[1] = raw();
	clock_gettime(CLOCK_REALTIME_COARSE, &coarse);
	at[2] = raw();
	gettimeofday(&day, NULL);
	at[3] = raw();
	whole = time(NULL);
	at[4] = raw();
	printf("realtime %ld%09ld %ld %ld\n", (long)fine.tv_sec, (long)fine.tv_nsec, at[0], at[1]);
	printf("realtime_coarse %ld%09ld %ld %ld\n", (long)coarse.tv_sec, (long)coarse.tv_nsec, at[1], at[2]);
	printf("gettimeofday %ld%06ld000 %ld %ld\n", (long)day.tv_sec, (long)day.tv_usec, at[2], at[3]);
	printf("time %ld000000000 %ld %ld\n", whole, at[3], at[4]);
	fflush(stdout);
	return unused;
}

int main(void)
{
	pthread_t thread;
	pid_t child;

	tell(NULL);
	if (pthread_create(&thread, NULL, tell, NULL) || pthread_join(thread, NULL))
		return 1;
	child = fork();
	if (!child)
		tell(NULL);
	else
		return child < 0 || waitpid(child, NULL, 0) != child;
	return 0;
}
"#;

pub(super) const PYTHON: &str = "
import datetime, time
def raw():
    return time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW)
def micro(now):
    day = now.replace(tzinfo=datetime.timezone.utc) - datetime.datetime(1970, 1, 1, tzinfo=datetime.timezone.utc)
    return day // datetime.timedelta(microseconds=1) * 1000
for source, ask, ns in [
    ('realtime', time.time_ns, int),
    ('realtime', lambda: time.clock_gettime_ns(time.CLOCK_REALTIME), int),
    ('gettimeofday', datetime.datetime.utcnow, micro),
    ('time', lambda: time.mktime(time.localtime()), lambda now: int(now) * 1000000000),
]:
    ask()
    before, now, after = raw(), ask(), raw()
    print(source, ns(now), before, after)
";

pub(super) const GO: &str = r#"
package main

import (
	"fmt"
	"runtime"
	"syscall"
	"time"
	"unsafe"
)

func raw() int64 {
	var now syscall.Timespec
	syscall.Syscall(syscall.SYS_CLOCK_GETTIME, 4, uintptr(unsafe.Pointer(&now)), 0)
	return now.Nano()
}

func tell() string {
	before := raw()
	now := time.Now()
	return fmt.Sprint("realtime ", now.UnixNano(), " ", before, " ", raw())
}

func main() {
	fmt.Println(tell())
	done := make(chan string)
	go func() {
		runtime.LockOSThread()
		done <- tell()
	}()
	fmt.Println(<-done)
}
"#;

pub(super) const JAVA: &str = r#"
public class Tell {
	public static void main(String[] words) {
		System.out.println("gettimeofday " + System.currentTimeMillis() * 1000000);
		java.time.Instant now = java.time.Instant.now();
		System.out.println("realtime " + (now.getEpochSecond() * 1000000000 + now.getNano()));
	}
}
"#;
