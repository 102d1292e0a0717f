#!/usr/bin/env bash
# mean@n and pass@n of a model folder, a hub name or a checkpoint of ours, and a dump of its responses.
#   CKPT_PATH=checkpoints/NAME DATA_PATH=datasets/SET EVAL_N=8 bash run_eval_sdpo.sh [suffix] [key=value ...]
source "$(dirname "${BASH_SOURCE[0]}")/scripts/launch.sh"
MODEL_PATH=${CKPT_PATH:-${MODEL_PATH:-}}
launch eval "$@"
