#!/bin/sh
# One host, one process a GPU; a lost process restarts all of them from the last checkpoint, three times at most:
#   sh conf/launch/torchrun_one_host.sh 8 conf/mine.yaml [any option of laser fit]
set -eu
processes=$1 recipe=$2
shift 2
# A mistake in the recipe ends here. Later it would count as a failure, and be tried again.
python -m laser.cli fit -c "$recipe" "$@" --print_config > /dev/null
exec torchrun --standalone --nproc_per_node "$processes" --max_restarts 3 -m laser.cli fit -c "$recipe" \
  --trainer.devices "$processes" --ckpt_path auto "$@"
