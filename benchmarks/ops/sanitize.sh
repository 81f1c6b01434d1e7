#!/bin/sh
# Every Triton kernel, small, under NVIDIA's compute-sanitizer; exits with 1 if it finds anything:
#   PYTHONPATH=src sh benchmarks/ops/sanitize.sh [TOOLS [CHECKS]]
# TOOLS: "memcheck racecheck synccheck" (default memcheck); CHECKS: names with this in them, as check_gpu.py --only.
set -eu
tools=${1:-memcheck} checks=${2:-D=40}
sanitizer=$(command -v compute-sanitizer || echo /usr/local/cuda/bin/compute-sanitizer)
[ -x "$sanitizer" ] || { echo "compute-sanitizer is not on the PATH nor in /usr/local/cuda/bin; install CUDA's" >&2; exit 2; }
# Without PyTorch's pool each tensor is an allocation of its own, whose ends the tool knows.
export PYTORCH_NO_CUDA_MEMORY_CACHING=1
out=$(mktemp -d)
trap 'rm -r "$out"' EXIT
for tool in $tools; do
  echo "== $tool"
  "$sanitizer" --tool "$tool" --error-exitcode 1 --print-limit 20 \
    "${PYTHON:-python}" benchmarks/ops/check_gpu.py --checks --only "$checks" --seconds 500 --out "$out"
done
