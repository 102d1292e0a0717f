#!/usr/bin/env bash
# Set-up and all tests (under ten minutes on two cores); `bash run_tests.sh fast` the pure ones (under one).
# Further arguments go to pytest.
set -euo pipefail
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
source "$ROOT/scripts/env.sh"
cd "$ROOT"
use_environment requirements_test.txt
if [ "${1:-}" = fast ]; then
  shift
  exec "$PYTHON" -m pytest -m "not slow" "$@"
fi
exec "$PYTHON" -m pytest "$@"
