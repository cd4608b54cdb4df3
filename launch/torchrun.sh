#!/usr/bin/env bash
# One training run on this node, or on this node's share of a larger job:
#   launch/torchrun.sh --config-name RECIPE [key=value ...]
#   NPROC_PER_NODE=2 launch/torchrun.sh --config-name quickstart_stage1 parallel=tp2
#   NNODES=8 MASTER_ADDR=node0 launch/torchrun.sh --config-name qwen2vl_7b_stage2      (the same on every node)
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

NNODES=${NNODES:-1}
gpus=$(visible_gpus)
if [[ -z ${NPROC_PER_NODE:-} ]]; then
  NPROC_PER_NODE=$((gpus > 0 ? gpus : 1)) # one process a GPU
elif ((gpus > 0 && NPROC_PER_NODE > gpus)); then
  echo "NPROC_PER_NODE=$NPROC_PER_NODE, but this node shows $gpus GPU(s), and each process needs one of its own;" \
    "start $gpus or fewer, or set CUDA_VISIBLE_DEVICES= to run on the CPU" >&2
  exit 2
fi

if [[ ! $NPROC_PER_NODE =~ ^[1-9][0-9]*$ || ! $NNODES =~ ^[1-9][0-9]*$ ]]; then
  echo "NPROC_PER_NODE=$NPROC_PER_NODE and NNODES=$NNODES are counts of processes and nodes; both must be 1 or more" >&2
  exit 2
fi

# One message from one process, before any process group, instead of one from each of them.
"$PYTHON" -m launch.preflight "$((NNODES * NPROC_PER_NODE))" --files "$@" || exit 2

# Processes of one host share its cores: threads of several would fight over them.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
# Kernels of one stream run in the order in which they are launched, which the tensor axis counts on to hide its traffic.
export CUDA_DEVICE_MAX_CONNECTIONS=${CUDA_DEVICE_MAX_CONNECTIONS:-1}
# Every row has another length; fixed blocks would fragment.
export PYTORCH_CUDA_ALLOC_CONF=${PYTORCH_CUDA_ALLOC_CONF:-expandable_segments:True}
# megatron-core warns at import, in every process, of packages that are not used here.
export PYTHONWARNINGS=${PYTHONWARNINGS:-ignore::UserWarning,ignore::FutureWarning}
# Hydra shortens tracebacks to the user's own function, which hides where training failed.
export HYDRA_FULL_ERROR=1

if [[ $NNODES -eq 1 ]]; then
  rendezvous=(--standalone) # a free port of its own: several runs may share the host
else
  : "${MASTER_ADDR:?NNODES=$NNODES needs MASTER_ADDR, the name of one of the nodes, the same on all}"
  rendezvous=(--rdzv-backend=c10d --rdzv-endpoint="$MASTER_ADDR:${MASTER_PORT:-29400}" --rdzv-id="${RUN_ID:-triptych}")
fi

# No restarts inside: a run that fails goes on from its newest checkpoint by `triptych resume`, on purpose and logged.
# It leaves with 75 if the run was asked to end and can be started again (RUN/verdict.json).
exec "$PYTHON" -m launch.torchrun --nnodes="$NNODES" --nproc-per-node="$NPROC_PER_NODE" --max-restarts=0 \
  "${rendezvous[@]}" -m train "$@"
