"""The part of the batch script that finds out why a try failed, and keeps the job away from nodes that were lost."""

from __future__ import annotations

import shlex
from collections.abc import Mapping

from tasks.launch.causes import CAUSES, KILLED_FOR_MEMORY, NODE_LOST, RANK_KILLED, THEN_ENDED, in_words
from tasks.launch.left_out import LEFT_OUT


def causes_part(most: Mapping[str, int]) -> str:
    """The functions of this part with what they need to know.

    Args:
        most: restarts for each cause.
    """
    patterns = {
        "killed_for_memory": KILLED_FOR_MEMORY,
        "node_lost": NODE_LOST,
        "rank_killed": RANK_KILLED,
        "then_ended": THEN_ENDED,
    }
    lines = [
        "declare -A most=(" + " ".join(f"[{cause}]={most[cause]}" for cause in CAUSES) + ")",
        "declare -A words=(" + " ".join(f"[{cause}]={shlex.quote(in_words(cause))}" for cause in CAUSES) + ")",
        *(f"{name}={shlex.quote(pattern)}" for name, pattern in patterns.items()),
    ]
    return "\n".join(lines) + _FUNCTIONS.replace("@LEFT_OUT@", LEFT_OUT)


_FUNCTIONS = r"""
from_error() { sed -n 's/.*"'"$1"'": *"\{0,1\}\([^",}]*\).*/\1/p' "$state/error.json" 2>/dev/null | head -n1; }
printed() { tail -c +"$((log_before + 1))" "$log" 2>/dev/null; }
# Nodes of a list that are down, do not answer, or were left out meanwhile.
lost_nodes() {
  {
    sinfo -h -N -n "$1" -o '%N %T' 2>/dev/null | sed -nE 's/^([^ ]+) (down.*|fail.*|.*\*)$/\1/p'
    for node in $(scontrol show hostnames "$1"); do grep -o "^$node " "$key_state/@LEFT_OUT@" 2>/dev/null; done
  } | tr -d ' ' | sort -u
}

# Why the try that has just ended failed: $cause, $where and, if nodes were lost, $lost. A rank that was killed says
# nothing, and what its peers say of it (communication) is an echo: the words of Slurm and of the kernel come first.
find_cause() {
  cause=$(from_error cause) where='' lost=''
  case "$cause" in
    '' | crash | communication)
      lost=$(printed | sed -nE 's/.*Node failure on ([^ ,]+).*/\1/p; s/.*failed on node ([^: ]+):.*/\1/p' | sort -u)
      [ -n "$lost" ] || lost=$(lost_nodes "$SLURM_JOB_NODELIST")
      if [ -n "$lost" ] || printed | grep -aEq "$node_lost"; then
        cause=node where=$(echo $lost)
      elif printed | grep -aEq "$killed_for_memory"; then
        cause=out_of_memory
        where=$(printed | sed -nE 's/.*error: ([^ :]+): tasks? [0-9,-]+: Out Of Memory.*/\1/p' | head -n1)
      elif [ "$code" -eq 124 ]; then
        cause=no_progress
      elif [ "$cause" = communication ] && printed | sed -E "/$then_ended/q" | grep -aEq "$rank_killed"; then
        cause=crash
      else
        cause=${cause:-crash} where=place
      fi
      ;;
    *) where=place ;;
  esac
  [ "$where" != place ] || { where=$(from_error rank); where=${where:+rank $where ($(from_error host))}; }
  [ -n "${words[$cause]}" ] || cause=crash
  # A node whose ranks failed for its sake once before is lost as well.
  if [ "$cause" = node ] && [ -z "$lost" ] && grep -qF "($(from_error host))" "$state/restarts-$attempt" 2>/dev/null
  then
    lost=$(from_error host)
  fi
}

# Counts a restart for $cause, if its budget allows one more.
may_restart() {
  [ "$(restarts_for "$cause")" -lt "${most[$cause]}" ] || return 1
  printf '%s %s\n' "$cause" "$where" >> "$state/restarts-$attempt"
}

leave_out_lost() {
  for node in $lost; do
    grep -q "^$node " "$key_state/@LEFT_OUT@" 2>/dev/null && continue
    printf '%s %s of job %s, %s\n' "$node" "${words[node]}" "$job" "$(date '+%F %R')" >> "$key_state/@LEFT_OUT@"
  done
}

# Keeps the job, which waits in the queue again, away from the nodes of the list, where enough others are left.
keep_away() {
  all=$(sinfo -h -N -p "$SLURM_JOB_PARTITION" -o %N | sort -u)
  out=$(sed -n 's/^\([^ ][^ ]*\) .*/\1/p' "$key_state/@LEFT_OUT@" 2>/dev/null | grep -xF "$all")
  [ -n "$out" ] || return
  left=$(echo "$all" | grep -cvxF "$out")
  if [ "$left" -lt "$SLURM_JOB_NUM_NODES" ]; then
    say "$(echo $out) cannot be left out: the job needs $SLURM_JOB_NUM_NODES nodes, and $left would remain"
  else
    say "left out from now on: $(echo $out) (see $key_state/@LEFT_OUT@)"
    scontrol update JobId="$job" ExcNodeList="$(echo $excluded $out | tr ' ' ,)"
  fi
}

# After a node failure Slurm itself puts a job back: counts it, and sees to it that it does not go round for ever.
after_node_failure() {
  nodes_before=$(cat "$state/nodes-$attempt" 2>/dev/null)
  printf '%s\n' "$SLURM_JOB_NODELIST" > "$state/nodes-$attempt"
  [ "${SLURM_RESTART_COUNT:-0}" -gt 0 ] && [ -n "$nodes_before" ] || return
  lost=$(lost_nodes "$nodes_before")
  [ -n "$lost" ] || return
  cause=node where=$(echo $lost)
  leave_out_lost
  if may_restart; then
    say "${words[node]} on $where; restart $(restarts_for node) of ${most[node]}"
    cause='' where=''
  else
    say "${words[node]} on $where, and there were ${most[node]} restarts for that"
    exit 1
  fi
}
"""
