"""The batch script of a job and the options it is submitted with.

The script runs the command on all nodes, restarts it after a crash inside the same allocation (no second wait in the
queue), asks to be requeued when the wall time is near, and leaves word of how it ended. Everything that comes from a
configuration is quoted; values that come from the submitting environment travel in it and are not written here.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from evo_core.config.durations import seconds
from tasks.launch.cluster import SlurmCluster
from tasks.launch.environment import job_variables
from tasks.launch.follow import NOTE
from tasks.launch.launcher import Job
from tasks.launch.record import ARRAY, exit_marker_path
from tasks.launch.restarts import STALLED, budgets
from tasks.launch.script_causes import causes_part

SAVING = 20
"""Seconds kept back from the notice for the requeue itself; the rest is the job's for its checkpoint."""


def sbatch_arguments(cluster: SlurmCluster, job: Job, name: str, left_out: Sequence[str] = ()) -> list[str]:
    """Options of `sbatch` for this job, without the script.

    Args:
        left_out: nodes that it must not get, beside the cluster's own `exclude`.
    """
    runtime = job.runtime
    threads = runtime.cpus_per_rank or 1
    per_rank = cluster.launch == "srun"
    given = {
        "job-name": name,
        "output": task_log(job, "%a") if job.tasks else _escaped(job.log),
        "array": f"0-{job.tasks - 1}" if job.tasks else None,
        "open-mode": "append",
        "chdir": str(Path.cwd()),
        "export": "ALL",
        "nodes": str(runtime.nodes),
        "ntasks-per-node": str(runtime.ranks if per_rank else 1),
        "cpus-per-task": str(threads if per_rank else threads * runtime.ranks),
        "signal": f"B:USR1@{_notice(cluster, job)}",
        "time": slurm_time(seconds(runtime.time)) if runtime.time else None,
        "partition": cluster.partition,
        "account": cluster.account,
        "qos": cluster.qos,
        "exclude": ",".join([*cluster.exclude, *left_out]) or None,
    }
    options = [f"--{option}={value}" for option, value in given.items() if value is not None]
    return [*options, "--requeue", *_gpu_options(cluster, job), *cluster.sbatch_args]


def batch_script(cluster: SlurmCluster, job: Job, arguments: list[str]) -> bytes:
    """The script, for `bash`, with names of files as the file system has them: they need not be UTF-8."""
    runtime = job.runtime
    references = cluster.references()
    written = {**cluster.variables(), **job.environment}
    written = {k: v for k, v in written.items() if k not in references or k in job.environment}
    exports = job_variables(str(job.state), runtime.cpus_per_rank or 1, written)
    exports["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] = str(_notice(cluster, job) - SAVING)
    settings = {
        "state": str(job.state),
        "key_state": str(job.state),  # for all tasks of an array: theirs is a folder in it
        "exit_file": str(exit_marker_path(job.state, job.attempt)),
        "attempt": str(job.attempt),
        "log": str(job.log),
        "excluded": " ".join(cluster.exclude),
        "stalled_tries": str(STALLED),
        "on_walltime": runtime.on_walltime,
        "saving_seconds": str(_notice(cluster, job) - SAVING),
    }
    own = [f"{name}={value}" for name, value in task_settings(job).items()] if job.tasks else []
    lines = [
        "#!/bin/bash",
        f"# {_one_line(job.name)}: written by Evo, submitted with",
        f"#   sbatch {_one_line(shlex.join(arguments))}",
        *(f"# {name}: from the submitting environment" for name in sorted(references)),
        "",
        *_assignments(settings),
        *_assignments(exports, "export "),
        *own,
        "",
        _BOOKKEEPING.replace("@NOTE@", NOTE.strip()),
        causes_part(budgets(runtime.max_restarts)),
        "after_node_failure",
        "settingup=1",
        "set -e",
        *cluster.setup,
        "set +e",
        "settingup=''",
        "",
        f"command=({shlex.join(_command(cluster, job))})",
        _RUN_TORCHRUN if cluster.launch == "torchrun" and runtime.ranks > 1 else _RUN_RANKS,
        _TRIES,
    ]
    return "\n".join(lines).encode(errors="surrogateescape")


def task_settings(job: Job) -> dict[str, str]:
    """What each task of an array has for itself, in shell words: as `task_folder` and `exit_marker_path` name it."""
    return {
        "state": f'"$state/{ARRAY}/$SLURM_ARRAY_TASK_ID"',
        "exit_file": f'"$state/{exit_marker_path(job.state, job.attempt).name}"',
        "log": f'"$state/{job.log.name}"',
        "EVO_JOB_FOLDER": '"$state"',
    }


def task_log(job: Job, task: str) -> str:
    """The log of a task in the form that `sbatch --output` takes."""
    return f"{_escaped(job.state / ARRAY)}/{task}/{job.log.name}"


def _escaped(path: Path) -> str:
    return str(path).replace("%", "%%")


def slurm_time(duration: float) -> str:
    """Seconds as ``D-HH:MM:SS``, the form that every Slurm reads the same way."""
    minutes, rest = divmod(int(duration), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    return f"{days}-{hours:02d}:{minutes:02d}:{rest:02d}"


def _notice(cluster: SlurmCluster, job: Job) -> int:
    """Seconds before the end at which the job is told: the cluster's notice, at most a quarter of a short job."""
    if job.runtime.time is None:
        return cluster.walltime_notice
    return max(SAVING + 5, min(cluster.walltime_notice, int(seconds(job.runtime.time)) // 4))


def _gpu_options(cluster: SlurmCluster, job: Job) -> list[str]:
    count = job.runtime.gpus_per_node
    if not count:
        return []
    kind = f"{cluster.gpu_type}:" if cluster.gpu_type else ""
    if cluster.gpus == "gres":
        return [f"--gres=gpu:{kind}{count}"]
    if cluster.gpus == "gpus_per_node":
        return [f"--gpus-per-node={kind}{count}"]
    tasks = job.runtime.ranks if cluster.launch == "srun" else 1
    return [f"--gpus-per-task={kind}{count // tasks}"]


def _command(cluster: SlurmCluster, job: Job) -> list[str]:
    """One rank's command line, or one node's where torchrun starts the ranks."""
    python = shlex.split(cluster.python) if cluster.python else ["python" if cluster.container else sys.executable]
    prefix = [*shlex.split(cluster.container or ""), *python]
    module = ["-m", job.module, *job.args]
    if cluster.launch == "srun" or job.runtime.ranks == 1:
        return [*prefix, *module]
    torchrun = ["-m", "torch.distributed.run", "--max-restarts=0", f"--nnodes={job.runtime.nodes}"]
    return [*prefix, *torchrun, f"--nproc-per-node={job.runtime.ranks}", "--rdzv-backend=c10d", *module]


def _assignments(values: Mapping[str, str], prefix: str = "") -> list[str]:
    return [f"{prefix}{name}={shlex.quote(value)}" for name, value in values.items()]


def _one_line(text: str) -> str:
    """For a comment: nothing in it may begin a line of its own."""
    return text.replace("\n", " ").replace("\r", " ")


_BOOKKEEPING = r"""
# In an array the last task has the array's own number: what is said to that number reaches every task.
job=$SLURM_JOB_ID
if [ -n "$SLURM_ARRAY_TASK_ID" ]; then job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID; fi

say() { printf '@NOTE@ %s\n' "$*"; }

# The word of how this job ended. Written beside and renamed, so that nobody reads half of it.
leave_word() { # reason exit_code
  printf '{"job_id": "%s", "restart": %d, "reason": "%s", "exit_code": %d, "nodes": "%s", ' \
    "$job" "${SLURM_RESTART_COUNT:-0}" "$1" "$2" "$SLURM_JOB_NODELIST" > "$exit_file.$SLURM_JOB_ID"
  printf '"cause": "%s", "where": "%s", "restarts": %d, ' "$cause" "$where" "$(restarts_for '')" \
    >> "$exit_file.$SLURM_JOB_ID"
  printf '"started": %d, "ended": %d}\n' "$started" "$(date +%s)" >> "$exit_file.$SLURM_JOB_ID"
  mv -f "$exit_file.$SLURM_JOB_ID" "$exit_file"
}

# How many restarts there were, all of them or those for one cause.
restarts_for() { cat "$state/restarts-$attempt" 2>/dev/null | grep -c "^$1"; }
number_in() { sed -n 's/^\([0-9][0-9]*\).*/\1/p' "$1" 2>/dev/null | head -n1; }
progress_done() { sed -n 's/.*"done": *\([0-9][0-9]*\).*/\1/p' "$state/progress.json" 2>/dev/null | head -n1; }

started=$(date +%s)
reason=exit
walltime='' terminated='' interrupted='' requeued='' settingup='' cause='' where=''
rm -f "$exit_file"

# Nobody else tells the ranks. Only what never reached the controller is sent again: ranks that are told twice, more
# than a few seconds apart, end at once and save nothing.
tell_ranks() {
  for try in 1 2 3 4 5; do
    told=$(scancel --quiet --signal=TERM "$job" 2>&1) && return
    case "$told" in *"Unable to contact"*) sleep 1 ;; *) break ;; esac
  done
  say "Slurm did not take the signal that has the ranks save: $told"
}

at_exit() {
  code=$?
  if [ -n "$settingup" ] && [ "$code" -eq 0 ]; then
    say "a line under setup: ended the script before the command was started"
    code=1
  fi
  [ -n "$requeued" ] || leave_word "$reason" "$code"
  exit "$code"
}
trap at_exit EXIT
# From Slurm, when the wall time is nearly up: let the ranks save and end. The step's processes get the signal, the
# batch shell does not.
trap 'walltime=1; interrupted=1; tell_ranks' USR1
# From scancel, or before the nodes go to a job of higher priority: Slurm tells the ranks itself.
trap 'terminated=1; interrupted=1' TERM

say "job $job on $SLURM_JOB_NODELIST${SLURM_RESTART_COUNT:+, requeued $SLURM_RESTART_COUNT times}"
"""

_RUN_TORCHRUN = r"""
# One torchrun a node; they meet at the first node, which is told that it is the host.
on_each_node='
export PET_RDZV_CONF="is_host=$((SLURM_NODEID == 0))"
case "$EVO_NODES" in
  *" $SLURMD_NODENAME="*) own=${EVO_NODES#* "$SLURMD_NODENAME"=}; export PET_LOCAL_ADDR="${own%% *}" ;;
esac
exec "$@"'
start_ranks() {
  export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
  export PET_RDZV_ENDPOINT="$address:$port" PET_RDZV_ID="$SLURM_JOB_ID-${SLURM_RESTART_COUNT:-0}-$restarts"
  srun --export=ALL --kill-on-bad-exit=1 --ntasks-per-node=1 --cpus-per-task="$SLURM_CPUS_PER_TASK" \
    bash -c "$on_each_node" evo "${command[@]}" &
}
"""

_RUN_RANKS = r"""
# One task a rank; the ranks find their numbers in Slurm's variables.
start_ranks() {
  export MASTER_ADDR="$address" MASTER_PORT="$port"
  srun --export=ALL --kill-on-bad-exit=1 --ntasks-per-node="$SLURM_NTASKS_PER_NODE" \
    --cpus-per-task="$SLURM_CPUS_PER_TASK" "${command[@]}" &
}
"""

_TRIES = r"""
# " name=address name=address ..." of all nodes, as Slurm itself reaches them: names need not resolve.
EVO_NODES=" $(scontrol show node "$SLURM_JOB_NODELIST" -o |
  sed -n 's/^NodeName=\([^ ]*\).* NodeAddr=\([^ ]*\).*/\1=\2/p' | tr '\n' ' ')"
export EVO_NODES
address=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n1)
case "$EVO_NODES" in *" $address="*) address=${EVO_NODES#* "$address"=}; address=${address%% *} ;; esac

# The job's time for its checkpoint is over: what is left is the requeue's.
kill_later() {
  sleep "$saving_seconds"
  scancel --quiet --signal=KILL "$job.$step"
  sleep 5
  kill -KILL "$ranks"
}

# Waits for the ranks to the end, however often a signal interrupts the waiting.
wait_for_ranks() {
  while :; do
    interrupted=''
    wait "$ranks"; code=$?
    [ -n "$interrupted" ] || break
    if [ -n "$walltime" ] && [ -z "$killer" ]; then
      kill_later 2>/dev/null &
      killer=$!
    fi
  done
  [ -z "$killer" ] || kill "$killer" 2>/dev/null
}

# Ends this script if Slurm takes the job back into its queue.
requeue() { # why
  say "$1: requeued"
  requeued=1
  rm -f "$state/nodes-$attempt"
  if scontrol requeue "$job"; then
    trap '' TERM
    keep_away
    trap 'exit 0' TERM
    sleep 60 & wait $!
    exit 0
  fi
  requeued=''
  say "Slurm did not take the job back into its queue"
}

restarts=$(restarts_for ''); restarts=${restarts:-0}
without_progress=0
step=0
killer=''

while :; do
  rm -f "$state/error.json" "$state/progress.json"
  port=$((20000 + (SLURM_JOB_ID * 16 + restarts + ${SLURM_RESTART_COUNT:-0}) % 10000))
  log_before=$(wc -c < "$log" 2>/dev/null); log_before=${log_before:-0}
  start_ranks
  ranks=$!
  wait_for_ranks
  [ "$code" -eq 0 ] && exit 0
  sleep 1 # the signal that ended the ranks may reach this shell a moment later

  if [ -n "$walltime" ] && [ "$on_walltime" = requeue ]; then
    # Requeued only if this turn came further than the one before: a job that cannot save would go round for ever.
    now=$(progress_done); before=$(number_in "$state/walltime-$attempt")
    if [ -z "$before" ] || [ "${now:-0}" -gt "$before" ]; then
      printf '%s\n' "${now:-0}" > "$state/walltime-$attempt"
      requeue "the wall time is nearly up"
    else
      say "no progress since the wall time was up before"
    fi
  fi
  if [ -n "$walltime" ]; then reason=walltime; exit "$code"; fi
  if [ -n "$terminated" ]; then reason=terminated; exit "$code"; fi
  # While another job is given time to push this one aside, the ranks get SIGTERM and this shell nothing.
  if scontrol show job "$job" -o | grep -q ' PreemptTime=[0-9]'; then requeue "another job needs the nodes"; fi

  if [ "$code" -eq 2 ] || grep -q '"user_error": *true' "$state/error.json" 2>/dev/null; then
    exit 2 # a mistake of the user's stays one however often it is tried
  fi
  find_cause
  if [ -e "$state/progress.json" ]; then without_progress=0; fi
  if [ "$cause" != node ] && [ ! -e "$state/progress.json" ]; then without_progress=$((without_progress + 1)); fi
  if [ "$without_progress" -ge "$stalled_tries" ] || ! may_restart; then exit "$code"; fi
  restarts=$((restarts + 1)); step=$((step + 1))
  why="${words[$cause]}${where:+ on $where}"
  [ "$cause" != crash ] || why="$why, exit status $code"
  say "$why; restart $(restarts_for "$cause") of ${most[$cause]}"
  if [ "$cause" = node ] && [ -n "$lost" ]; then
    leave_out_lost
    requeue "$why"
  fi
  cause='' where=''
done
"""
