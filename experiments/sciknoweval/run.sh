#!/usr/bin/env bash
# A dozen MOPD steps on real SciKnowEval questions with a small model made on the spot.
#   bash experiments/sciknoweval/run.sh DIR [key=value ...]      DIR holds train.json and test.json of one domain
set -euo pipefail
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
source "$ROOT/scripts/env.sh"
[ $# -ge 1 ] || die "usage: bash experiments/sciknoweval/run.sh DIR [key=value ...]"
SOURCE=$(cd "$1" && pwd)
shift
cd "$ROOT"
use_environment
DOMAIN=$(basename "$SOURCE")
"$PYTHON" data/preprocess.py --data_source "$SOURCE" --output_dir "datasets/sciknoweval/$DOMAIN"
"$PYTHON" -m experiments.sciknoweval.make_model --data "datasets/sciknoweval/$DOMAIN" --out "models/sciknoweval-$DOMAIN"

MODEL_PATH=models/sciknoweval-$DOMAIN DATA_PATH=datasets/sciknoweval/$DOMAIN \
  ROLLOUT_PROMPT_LENGTH=${ROLLOUT_PROMPT_LENGTH:-1024} ROLLOUT_RESPONSE_LENGTH=${ROLLOUT_RESPONSE_LENGTH:-96} \
  TRAIN_BATCH_SIZE=${TRAIN_BATCH_SIZE:-8} LR=${LR:-2e-4} \
  exec bash run_local_sdpo.sh trainer.total_training_steps=12 trainer.test_freq=12 trainer.save_freq=12 "$@"
