"""Takes from a process what the code of a Hub folder does not need: the network, core dumps, endless resources.

`Workplace.run` puts the text of this file before every program, so it imports the standard library only. It is no
sandbox: the process still reads every file that the account may read.

    problems = isolate(seconds=3600, memory=16 * 2**30)
"""

import os
import sys

FILE_BYTES = 2**30  # most bytes of a file: a folder's code writes caches, and the findings of a few MB
# Processes and threads of the account. A machine with many cores has thousands of threads in honest use.
MOST_PROCESSES = 32768


def isolate(seconds: float, memory: float) -> list[str]:
    """Give up the network and set limits, for this process and all that it starts.

    Args:
        seconds: the most CPU time.
        memory: the most memory that the process can write to, in bytes.

    Returns:
        What could not be done, one sentence for each.
    """
    return [*_leave_network(), *_limit(seconds, memory)]


def _leave_network() -> list[str]:
    """Move to a network namespace that has no interface. It needs a user namespace, which some systems forbid."""
    new_user, new_network = 0x10000000, 0x40000000  # CLONE_NEWUSER and CLONE_NEWNET of <sched.h>
    user, group = (os.geteuid(), os.getegid()) if hasattr(os, "geteuid") else (0, 0)
    try:
        import ctypes

        if sys.platform != "linux":
            raise OSError("only Linux has network namespaces")
        if ctypes.CDLL(None, use_errno=True).unshare(new_user | new_network):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    except (ImportError, OSError, AttributeError) as error:
        return [f"the code can reach the network, because this system gives no network namespace ({error})"]
    try:
        for name, text in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
    except OSError:
        pass  # the process then has no name for its account; files still know it
    return []


def _limit(seconds: float, memory: float) -> list[str]:
    try:
        import resource
    except ImportError:
        return ["the code has no limits on memory, time and files, because this system has none"]
    limits = {"CPU": seconds, "DATA": memory, "FSIZE": FILE_BYTES, "NPROC": MOST_PROCESSES, "CORE": 0}
    problems = []
    for name, value in limits.items():
        kind = getattr(resource, f"RLIMIT_{name}", None)
        try:
            if kind is None:
                raise ValueError("unknown here")
            _, most = resource.getrlimit(kind)
            bound = int(value) if most == resource.RLIM_INFINITY else min(int(value), most)
            resource.setrlimit(kind, (bound, bound))
        except (OSError, ValueError) as error:
            problems.append(f"the code has no limit RLIMIT_{name} ({error})")
    return problems
