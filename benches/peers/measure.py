"""Runs one command and writes what it cost as JSON.

    python measure.py REPORT.json -- COMMAND [ARGUMENT...]

REPORT.json gets `wall_seconds`, `cpu_seconds` (user and system time of the command and of every process it started,
from rusage), `peak_pss_bytes` (largest sum of the proportional set sizes of all its processes, sampled),
`max_rss_bytes` (largest resident size of a single process, from rusage), `num_memory_samples`, `exit_code`, and
`figures`: the last line of the command's standard output if it is a JSON object, else null.

Both sides of a comparison are run by this same script.
"""

import ctypes
import json
import os
import resource
import subprocess
import sys
import threading
import time

# Shortest pause between two looks at memory; looks that take long are made rarer, so that they stay cheap.
SHORTEST_PAUSE_SECONDS = 0.01
# A look may take this share of the time.
LOOKING_SHARE = 0.05
# How long processes that outlive the command are waited for.
ORPHAN_SECONDS = 10.0

PR_SET_CHILD_SUBREAPER = 36


def descendants(pid):
    """`pid` and everything below it."""
    found, pending = [], [pid]
    while pending:
        current = pending.pop()
        found.append(current)
        try:
            for task in os.listdir(f"/proc/{current}/task"):
                with open(f"/proc/{current}/task/{task}/children", encoding="ascii") as file:
                    pending.extend(int(child) for child in file.read().split())
        except OSError:
            pass  # it has ended
    return found


def pss_bytes(pid):
    """Proportional set size of a process, 0 once it has ended."""
    try:
        with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as file:
            for line in file:
                if line.startswith("Pss:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


class MemorySampler(threading.Thread):
    """Looks at the memory of a process tree until it is told to stop."""

    def __init__(self, pid):
        super().__init__(daemon=True)
        self.pid = pid
        self.peak_bytes = 0
        self.num_samples = 0
        self.stopped = threading.Event()

    def run(self):
        pause = 0.0
        while not self.stopped.wait(pause):
            started = time.monotonic()
            total = sum(pss_bytes(pid) for pid in descendants(self.pid))
            self.peak_bytes = max(self.peak_bytes, total)
            self.num_samples += 1
            pause = max(SHORTEST_PAUSE_SECONDS, (time.monotonic() - started) / LOOKING_SHARE)


def reap_orphans():
    """Waits for processes the command left behind, so that their time is counted."""
    deadline = time.monotonic() + ORPHAN_SECONDS
    while time.monotonic() < deadline:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            time.sleep(0.01)


def figures_in(output):
    """The JSON object on the last line, if there is one."""
    lines = output.decode("utf-8", "replace").strip().splitlines()
    try:
        value = json.loads(lines[-1])
    except (IndexError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def main():
    report, separator, command = sys.argv[1], sys.argv[2], sys.argv[3:]
    if separator != "--" or not command:
        sys.exit(__doc__)
    # What the command leaves running becomes a child of this process instead of escaping its account.
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    started = time.monotonic()
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    sampler = MemorySampler(process.pid)
    sampler.start()
    output = process.stdout.read()
    exit_code = process.wait()
    wall_seconds = time.monotonic() - started
    sampler.stopped.set()
    sampler.join()
    reap_orphans()
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    result = {
        "wall_seconds": wall_seconds,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "peak_pss_bytes": sampler.peak_bytes,
        "max_rss_bytes": usage.ru_maxrss * 1024,
        "num_memory_samples": sampler.num_samples,
        "exit_code": exit_code,
        "figures": figures_in(output),
    }
    with open(report, "w", encoding="utf-8") as file:
        json.dump(result, file)
    sys.exit(0 if exit_code == 0 else 1)


if __name__ == "__main__":
    main()
