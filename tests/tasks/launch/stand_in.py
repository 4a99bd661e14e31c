"""A job that does as it is told: what a launched command looks like from outside, without torch.

    python -m tests.tasks.launch.stand_in ACTION...      each action is WORD or WORD:VALUE, done in order

print:TEXT        print a line
sleep:SECONDS     sleep (SIGTERM ends the process with status 143, after a line)
until:FILE        sleep until the file exists
touch:FILE        create a file
count:FILE        append a line with this process's number
progress:N        leave progress.json with done = N of 10
error:MESSAGE     leave error.json as a crash does, and exit with status 1
user-error:TEXT   the same for a user's mistake, status 2
cause:NAME        the same for a crash with a cause of its own
of-rank:N:ACTION  do the action on this rank only
echo              leave the error that a rank leaves which hears of another's end, and go on
node-is-broken:N  fail for that cause on the node of this name
hog:MEGABYTES     use as much memory, and sleep
killed            end by SIGKILL
exit:STATUS       exit
fail-first:N:FILE exit with status 1 the first N times (counted in FILE)
environment:NAME  print NAME=value
length:NAME       print how long a variable's value is
child:FILE        start a child in a session of its own that sleeps; its number goes to FILE
slow-stop:SECONDS from here on SIGTERM is followed by that much work and the line "saved"
deaf              from here on SIGTERM is ignored
advance           progress one further than last time, kept in the job folder
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any


def say(line: str) -> None:
    """In one write, so that ranks do not print into each other's lines."""
    os.write(1, f"{line}\n".encode())


def leave(name: str, content: dict[str, Any]) -> None:
    path = Path(os.environ["EVO_JOB_FOLDER"]) / name
    draft = path.with_name(f".{name}.{os.getpid()}")
    draft.write_text(json.dumps(content))
    draft.replace(path)


def fail(kind: str, message: str, user_error: bool, cause: str | None = None) -> None:
    rank = int(os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or 0)
    error = {"type": kind, "message": message, "rank": rank, "host": "here", "user_error": user_error}
    leave("error.json", error | ({"cause": cause} if cause else {}))
    sys.exit(2 if user_error else 1)


def terminated(number: int, frame: object) -> None:
    say("told to stop")
    sys.exit(143)


def save(seconds: float) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun repeats what Slurm said
    time.sleep(seconds)
    say("saved")
    sys.exit(143)


def do(action: str) -> None:
    word, _, value = action.partition(":")
    if word == "print":
        say(value)
    elif word == "sleep":
        time.sleep(float(value))
    elif word == "until":
        while not Path(value).exists():
            time.sleep(0.05)
    elif word == "touch":
        Path(value).touch()
    elif word == "count":
        with Path(value).open("a") as out:
            out.write(f"{os.getpid()}\n")
    elif word == "progress":
        leave("progress.json", {"done": int(value), "total": 10, "unit": "steps", "updated": time.time()})
    elif word == "advance":
        kept = Path(os.environ["EVO_JOB_FOLDER"]) / "kept"
        done = int(kept.read_text()) + 1 if kept.exists() else 1
        own = kept.with_name(f"kept.{os.getpid()}")  # all ranks do this at once: none may read a half
        own.write_text(str(done))
        own.replace(kept)
        do(f"progress:{done}")
    elif word == "error":
        fail("RuntimeError", value, False)
    elif word == "user-error":
        fail("ConfigError", value, True)
    elif word == "cause":
        fail("RuntimeError", f"for {value}", False, value)
    elif word == "of-rank":
        rank, _, own = value.partition(":")
        if os.environ.get("RANK", "0") == rank:
            do(own)
    elif word == "echo":
        leave("error.json", {"type": "DistError", "message": "closed", "rank": 0, "cause": "communication"})
    elif word == "node-is-broken":
        if os.environ.get("SLURMD_NODENAME") == value:
            error = {"type": "RuntimeError", "message": "uncorrectable ECC error", "user_error": False}
            leave("error.json", {**error, "rank": 0, "host": value, "cause": "node"})
            sys.exit(1)
    elif word == "hog":
        taken = b"x" * (int(value) << 20)
        time.sleep(30)
        del taken
    elif word == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    elif word == "exit":
        sys.exit(int(value))
    elif word == "fail-first":
        times, _, file = value.partition(":")
        before = Path(file).read_text().count("\n") if Path(file).exists() else 0
        do(f"count:{file}")
        if before < int(times):
            fail("RuntimeError", f"try {before}", False)
    elif word == "environment":
        say(f"{value}={os.environ.get(value)}")
    elif word == "length":
        say(f"{value} has {len(os.environ[value])} characters")
    elif word == "child":
        child = subprocess.Popen(["sleep", "300"], start_new_session=True)
        Path(value).write_text(str(child.pid))
    elif word == "slow-stop":
        signal.signal(signal.SIGTERM, lambda *_: save(float(value)))
    elif word == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    else:
        raise SystemExit(f"unknown action {action}")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, terminated)
    for argument in sys.argv[1:]:
        do(argument)
