#!/usr/bin/env bash
# Teacher-student distillation: an external teacher (TEACHER_MODEL_PATH) is shown the peers and stays as it is.
#   bash run_ts_sdpo.sh [suffix] [key=value ...]
source "$(dirname "${BASH_SOURCE[0]}")/scripts/launch.sh"
launch ts "$@"
