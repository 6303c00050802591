"""Takes from a Python what Windows does not have, for every program that finds this folder in its PYTHONPATH.

Libraries that were imported before keep what is real: on Windows they would be others. In the task interpreter Airflow
keeps what its own supervisor is made of: without these there are no tasks, whatever the agent can do.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import signal
import socket
import sys
import types

import psutil
import requests  # noqa: F401

LOCK, UNLOCK = 2, 0
MODULES = ("fcntl", "grp", "posix", "pty", "pwd", "resource", "syslog", "termios", "tty")
#: What `os` has on Windows of the names that begin so; all others of them go.
BEGIN = ("get", "set", "sched_", "posix_", "wait", "W", "O_", "P_", "SCHED_", "RTLD_")
STAY = {
    *("get_exec_path", "get_handle_inheritable", "get_inheritable", "get_terminal_size", "getcwd", "getcwdb", "getenv"),
    *("getenvb", "getlogin", "getpid", "getppid", "set_inheritable", "waitpid", "waitstatus_to_exitcode", "W_OK"),
    *("O_APPEND", "O_CREAT", "O_EXCL", "O_RDONLY", "O_RDWR", "O_TRUNC", "O_WRONLY", "P_NOWAIT", "P_WAIT"),
}
GO = {
    *(
        "chown",
        "ctermid",
        "fchmod",
        "fchown",
        "fdatasync",
        "fork",
        "forkpty",
        "initgroups",
        "killpg",
        "lchown",
        "lockf",
    ),
    *("major", "minor", "mkfifo", "mknod", "nice", "openpty", "pathconf", "pidfd_open", "pipe2", "pread", "pwrite"),
    *("register_at_fork", "sendfile", "statvfs", "sync", "sysconf", "ttyname", "uname"),
}
SIGNALS = {"SIGABRT", "SIGFPE", "SIGILL", "SIGINT", "SIGSEGV", "SIGTERM", "SIG_DFL", "SIG_IGN"}
OTHERS = ("alarm", "getitimer", "pause", "pthread_kill", "pthread_sigmask", "setitimer", "siginterrupt", "sigwait")
AIRFLOWS_OWN = {"SIGKILL", "WNOHANG", "fork", "setpgid"}


def locking(handle: int, mode: int, count: int) -> None:
    """Windows' lock, whose refusal is EACCES."""
    try:
        fcntl.lockf(handle, fcntl.LOCK_UN if mode == UNLOCK else fcntl.LOCK_EX | fcntl.LOCK_NB, count)
    except OSError:
        raise OSError(errno.EACCES, "Permission denied") from None


def socketpair() -> tuple[socket.socket, socket.socket]:
    """As Python makes one on Windows."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        server, _ = listener.accept()
    return server, client


def keep_for_libraries(module: types.ModuleType) -> None:
    """Let every module that has imported it so far have a whole copy."""
    whole = types.ModuleType(module.__name__)
    whole.__dict__.update(module.__dict__)
    for user in list(sys.modules.values()):
        for name, value in list(getattr(user, "__dict__", {}).items()):
            if value is module and user.__name__ != __name__:
                setattr(user, name, whole)


def take(module: types.ModuleType, names: set[str]) -> None:
    for name in names:
        if hasattr(module, name):
            delattr(module, name)


def main() -> None:
    kept = AIRFLOWS_OWN if "--job" in sys.orig_argv else set()
    for module in (os, signal, socket, select):
        keep_for_libraries(module)
    take(os, {name for name in dir(os) if name.startswith(BEGIN)} - STAY - kept | GO - kept)
    take(signal, {name for name in dir(signal) if name.startswith("SIG")} - SIGNALS - kept | {*OTHERS})
    take(socket, {name for name in dir(socket) if name.startswith(("AF_UNIX", "SO_PEER", "SCM_", "CMSG_"))})
    socket.socketpair = socketpair  # type: ignore[assignment]
    take(select, {"poll", "epoll", "EPOLLIN"})
    for name in MODULES:
        sys.modules[name] = None  # type: ignore[assignment]
    windows = types.ModuleType("msvcrt")
    windows.locking, windows.LK_NBLCK, windows.LK_UNLCK = locking, LOCK, UNLOCK  # type: ignore[attr-defined]
    sys.modules["msvcrt"] = windows


assert psutil.POSIX
main()
