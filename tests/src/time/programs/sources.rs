//! Programs that print the time in whole seconds, in every way that their language has, one in a line.

/// In a thread and in a child as well.
pub(super) const C: &str = r#"
#include <pthread.h>
#include <stdio.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static void *tell(void *unused)
{
	struct timespec fine, coarse;
	struct timeval day;

	clock_gettime(CLOCK_REALTIME, &fine);
	clock_gettime(CLOCK_REALTIME_COARSE, &coarse);
	gettimeofday(&day, NULL);
	printf("%ld\n%ld\n%ld\n%ld\n", (long)fine.tv_sec, (long)coarse.tv_sec, (long)day.tv_sec, (long)time(NULL));
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
print(int(time.time()))
print(int(time.clock_gettime(time.CLOCK_REALTIME)))
print(int(datetime.datetime.now(datetime.timezone.utc).timestamp()))
print(int(time.mktime(time.localtime())))
";

pub(super) const GO: &str = r#"
package main

import (
	"fmt"
	"runtime"
	"time"
)

func main() {
	fmt.Println(time.Now().Unix())
	done := make(chan int64)
	go func() {
		runtime.LockOSThread()
		done <- time.Now().Unix()
	}()
	fmt.Println(<-done)
}
"#;

pub(super) const JAVA: &str = r#"
public class Tell {
	public static void main(String[] words) {
		System.out.println(System.currentTimeMillis() / 1000);
		System.out.println(java.time.Instant.now().getEpochSecond());
	}
}
"#;
