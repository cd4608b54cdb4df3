#!/usr/bin/env bash
# One rank, as torchrun starts it:  launch/rank.sh FOLDER COMMAND ...
# What it and its children say is added to FOLDER/rank_00003.log, whatever ends them, and is on the console too: of every
# rank on one node, of each node's first on several, since a thousand ranks would bury what matters.
set -euo pipefail
log=$1/rank_$(printf %05d "$RANK").log
shift
mkdir -p "${log%/*}"
printf -- '--- %s, %s, process %d\n' "$(date -u +%FT%TZ)" "${SLURMD_NODENAME:-$(hostname)}" $$ >>"$log" || true # a full disk ends no run

# tee has a session of its own: what ends the rank's process group must not end what still writes its last words.
if ((WORLD_SIZE > LOCAL_WORLD_SIZE && LOCAL_RANK > 0)); then
  exec "$@" > >(exec setsid tee -ap -- "$log" >/dev/null) 2>&1
fi
exec "$@" > >(exec setsid tee -ap -- "$log") 2> >(exec setsid tee -ap -- "$log" >&2)
