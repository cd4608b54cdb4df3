#!/usr/bin/env bash
# One rank, as torchrun starts it:  launch/rank.sh FOLDER COMMAND ...
# What it and its children say is added to FOLDER/rank_00003.log, whatever ends them, and is on the console too: of every
# rank on one node, of each node's first on several, since a thousand ranks would bury what matters.
set -euo pipefail
log=$1/rank_$(printf %05d "$RANK").log
shift
mkdir -p "${log%/*}"
printf -- '--- %s, %s, process %d\n' "$(date -u +%FT%TZ)" "${SLURMD_NODENAME:-$(hostname)}" $$ >>"$log" || true # a full disk ends no run

# Ends with the last who writes to it, and by nothing else: it has a session of its own, for what ends the rank's process
# group, and no signal, for SLURM, which asks every process of a job step to end. A rank without it could say nothing more.
keep() {
  trap '' HUP INT TERM USR1 USR2
  exec setsid tee -ap -- "$log"
}
if ((WORLD_SIZE > LOCAL_WORLD_SIZE && LOCAL_RANK > 0)); then
  exec "$@" > >(keep >/dev/null) 2>&1
fi
exec "$@" > >(keep) 2> >(keep >&2)
