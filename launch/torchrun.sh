#!/usr/bin/env bash
# One training run on this node, or on this node's share of a larger job:
#   launch/torchrun.sh --config-name RECIPE [key=value ...]
#   launch/torchrun.sh --preflight --config-name RECIPE [key=value ...]                 look at all of it, and train nothing
#   launch/torchrun.sh --print --config-name RECIPE [key=value ...]     show the recipe and the command, and start nothing
#   launch/torchrun.sh --config-path FOLDER --config-name RECIPE ...                    a recipe that is not in recipes/
#   NPROC_PER_NODE=2 launch/torchrun.sh --config-name quickstart_stage1 parallel=tp2
#   NNODES=8 MASTER_ADDR=node0 launch/torchrun.sh --config-name qwen2vl_7b_stage2      (the same on every node)
#   RESTARTS=3 launch/torchrun.sh ...     start again from the newest commit when a process is lost or hangs (docs/clusters.md)
set -euo pipefail
cd "$(dirname "$0")/.." # the packages and recipes/ are found from here

if [[ -z ${PYTHON:-} ]]; then
  PYTHON=python
  [[ -x .venv/bin/python ]] && PYTHON=.venv/bin/python
fi

visible_gpus() {
  if [[ -n ${CUDA_VISIBLE_DEVICES+set} ]]; then
    tr ',' '\n' <<<"$CUDA_VISIBLE_DEVICES" | grep -c . || true
  elif command -v nvidia-smi >/dev/null; then
    nvidia-smi --list-gpus 2>/dev/null | grep -c '^GPU' || true
  else
    echo 0
  fi
}

module=train
look=--files
show=
words=()
for word in "$@"; do
  case $word in
    --preflight)
      module=launch.jobs.together
      look=--node # what else this node lacks is told in one table with what the others do
      ;;
    --print) show=--print ;;
    --config-name | --config-name=* | --config-path | --config-path=*) words+=("$word") ;;
    -*)
      echo "launch/torchrun.sh: there is no option $word, but --config-name, --config-path, --preflight and --print;" \
        "values of the recipe are key=value" >&2
      exit 2
      ;;
    *) words+=("$word") ;;
  esac
done
set -- ${words[@]+"${words[@]}"}

# Before anything reckons with them.
NNODES=${NNODES:-1}
if [[ ! ${NPROC_PER_NODE:-1} =~ ^[1-9][0-9]*$ || ! $NNODES =~ ^[1-9][0-9]*$ || ! ${RESTARTS:-0} =~ ^[0-9]+$ ]]; then
  echo "NPROC_PER_NODE=${NPROC_PER_NODE:-} and NNODES=$NNODES are counts of processes and nodes; both must be 1 or more" \
    "(without NPROC_PER_NODE there is one process a GPU), and RESTARTS=${RESTARTS:-0} must be 0 or more" >&2
  exit 2
fi
gpus=$(visible_gpus)
if [[ -z ${NPROC_PER_NODE:-} ]]; then
  NPROC_PER_NODE=$((gpus > 0 ? gpus : 1))
elif ((gpus > 0 && NPROC_PER_NODE > gpus)); then
  echo "NPROC_PER_NODE=$NPROC_PER_NODE, but this node shows $gpus GPU(s), and each process needs one of its own;" \
    "start $gpus or fewer, or set CUDA_VISIBLE_DEVICES= to run on the CPU" >&2
  exit 2
fi

if [[ $NNODES -eq 1 ]]; then
  rendezvous=(--standalone) # a free port of its own: several runs may share the host
else
  if [[ -z ${MASTER_ADDR:-} ]]; then
    echo "NNODES=$NNODES needs MASTER_ADDR, the name of one of the nodes, the same on all" >&2
    exit 2
  fi
  rendezvous=(--rdzv-backend=c10d --rdzv-endpoint="$MASTER_ADDR:${MASTER_PORT:-29400}" --rdzv-id="${RUN_ID:-triptych}")
fi

# One message from one process, before any process group, instead of one from each of them.
"$PYTHON" -m launch.jobs.preflight "$((NNODES * NPROC_PER_NODE))" "${show:-$look}" "$@" || exit 2

# It leaves with 0 done, 75 asked to end (or stuck) and can be started again, 2 something is to be mended first, 1 failed.
exec "$PYTHON" -m launch.jobs.torchrun ${show:+"$show"} --restarts="${RESTARTS:-0}" --nnodes="$NNODES" \
  --nproc-per-node="$NPROC_PER_NODE" "${rendezvous[@]}" -m "$module" "$@"
