#!/bin/sh
# Several hosts that share a file system; start it on each of them, all with the same ADDRESS:PORT of one of them:
#   sh conf/launch/torchrun_hosts.sh ADDRESS:PORT HOSTS PROCESSES_A_HOST conf/mine.yaml [any option of laser fit]
# trainer.default_root_dir must lie on the shared file system: checkpoints are written by all processes.
# Hosts also talk over gloo, at the addresses of their own names; where these lead nowhere: export GLOO_SOCKET_IFNAME=eth0
set -eu
address=$1 hosts=$2 processes=$3 recipe=$4
shift 4
# A mistake in the recipe ends here. Later it would count as a failure, and be tried again.
python -m laser.cli fit -c "$recipe" "$@" --print_config > /dev/null
exec torchrun --nnodes "$hosts" --nproc_per_node "$processes" --rdzv_backend c10d --rdzv_endpoint "$address" \
  --rdzv_id laser --max_restarts 3 -m laser.cli fit -c "$recipe" \
  --trainer.devices "$processes" --trainer.num_nodes "$hosts" --ckpt_path auto "$@"
