#!/usr/bin/env bash
# GRPO on the same data with the same rollouts.
#   bash run_local_grpo.sh [suffix] [key=value ...]
source "$(dirname "${BASH_SOURCE[0]}")/scripts/launch.sh"
launch grpo "$@"
