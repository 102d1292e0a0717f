#!/usr/bin/env bash
# MOPD: every rollout is re-scored by a teacher that is shown 2 successes and 1 failure of its group.
#   bash run_local_sdpo.sh [suffix] [key=value ...]
# Flags, defaults and what runs without any: README.md.
source "$(dirname "${BASH_SOURCE[0]}")/scripts/launch.sh"
launch sdpo "$@"
