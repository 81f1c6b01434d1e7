#!/bin/sh
# Slurm: one torchrun a host. A host that is lost ends the job, which Slurm queues again; it goes on from the last checkpoint.
#   sbatch --nodes 8 conf/launch/slurm.sh conf/mine.yaml [any option of laser fit]
# Before the script: sbatch's own options for other hosts than these, such as --gpus-per-node 4 --cpus-per-task 32.
# Hosts also talk over gloo, at the addresses of their own names; where these lead nowhere: export GLOO_SOCKET_IFNAME=eth0
# trainer.default_root_dir must lie on a file system that all hosts share.
#SBATCH --job-name=laser
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --exclusive
#SBATCH --requeue
#SBATCH --open-mode=append
set -eu
recipe=$1
shift
# A mistake in the recipe ends here. Later it would count as a failure, and be tried again.
python -m laser.cli fit -c "$recipe" "$@" --print_config > /dev/null
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
gpus=${SLURM_GPUS_ON_NODE:-8}
# `|| scontrol requeue` also after a failure that Slurm does not take for one of the host's.
srun --kill-on-bad-exit=1 torchrun --nnodes "$SLURM_JOB_NUM_NODES" --nproc_per_node "$gpus" --rdzv_backend c10d \
  --rdzv_endpoint "$first:29500" --rdzv_id "$SLURM_JOB_ID" --max_restarts 3 -m laser.cli fit -c "$recipe" \
  --trainer.devices "$gpus" --trainer.num_nodes "$SLURM_JOB_NUM_NODES" --ckpt_path auto "$@" ||
  { [ "${SLURM_RESTART_COUNT:-0}" -lt 5 ] && scontrol requeue "$SLURM_JOB_ID"; }
