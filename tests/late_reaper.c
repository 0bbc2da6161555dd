/* late_reaper COMMAND...: runs a program as a debugger does, and takes note of each of its threads' ends 3 ms late: so
 * long the system counts a thread that was joined, as a busy machine may for a moment. Linux only. */
#include <signal.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { NOT_TRACED = 77 };

/* Lets the program run until it ends: its exit code, or 99 where a signal ended it. */
static int follow(pid_t program) {
    const struct timespec late = {0, 3000000};
    int status;
    for (;;) {
        nanosleep(&late, NULL);
        const pid_t which = waitpid(-1, &status, __WALL);
        if (which < 0) return 99;
        if (WIFSTOPPED(status)) {
            const int signal = WSTOPSIG(status), own = signal == SIGTRAP || signal == SIGSTOP;
            ptrace(PTRACE_CONT, which, 0, (long)(own ? 0 : signal));
        } else if (which == program)
            return WIFEXITED(status) ? WEXITSTATUS(status) : 99;
    }
}

int main(int count, char **arguments) {
    if (count < 2) return 2;
    const pid_t program = fork();
    if (program == 0) {
        if (ptrace(PTRACE_TRACEME, 0, 0, 0) != 0) _exit(NOT_TRACED);
        raise(SIGSTOP);
        execvp(arguments[1], arguments + 1);
        _exit(127);
    }
    int status;
    if (waitpid(program, &status, 0) < 0 || !WIFSTOPPED(status)) return NOT_TRACED;
    ptrace(PTRACE_SETOPTIONS, program, 0, (long)PTRACE_O_TRACECLONE);
    ptrace(PTRACE_CONT, program, 0, 0L);
    return follow(program);
}
