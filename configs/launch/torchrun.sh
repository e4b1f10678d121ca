#!/bin/bash
# torchrun, without accelerate: the whole model on every process (DistributedDataParallel). On one machine:
#   bash configs/launch/torchrun.sh
# On several, the same command on each, with NNODES, NODE_RANK and MASTER_ADDR set. ZeRO and FSDP need --accelerate.
set -e

if [ "${NNODES:-1}" -eq 1 ]; then
    rendezvous=(--standalone)
else
    rendezvous=(--nnodes "$NNODES" --node-rank "$NODE_RANK" --master-addr "$MASTER_ADDR" --master-port "${MASTER_PORT:-29500}")
fi

exec torchrun "${rendezvous[@]}" --nproc-per-node "${NPROC:-2}" -m sft.train --config "${CONFIG:-configs/quickstart/sft.yaml}" "$@"
