#!/usr/bin/env bash
# Public data to datasets/NAME/{train,test}.parquet, in one go:   bash data/prepare_all.sh [NAME ...]
#
# Without a NAME all of them. One that fails does not stop the others; what failed is told at the end. RAW_DATA=DIR takes
# DIR/NAME (a file or folder, as data/load_dataset.py --local_path reads it) instead of the hub where it is there.
set -uo pipefail
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
source "$ROOT/scripts/env.sh"

NAMES=(
  sciknoweval/biology sciknoweval/chemistry sciknoweval/material sciknoweval/physics tooluse lcb_v6 lcb_v6_held_out math gsm8k
  gpqa mmlu_pro aime24 aime25 math500 amc23 hmmt25_feb hmmt25_nov codeforces code_elo humanevalplus mbppplus
)

usage="usage: bash data/prepare_all.sh [NAME ...]     NAME: sciknoweval (all four) ${NAMES[*]}"

# The --local_path of a name, if RAW_DATA has it.
raw() {
  [ -n "${RAW_DATA:-}" ] || return 0
  case "$1" in
    math_test) [ ! -e "$RAW_DATA/math500" ] || printf '%s\n' --local_path "$RAW_DATA" ;; # a folder for each of its sets
    *) [ ! -e "$RAW_DATA/$1" ] || printf '%s\n' --local_path "$RAW_DATA/$1" ;;
  esac
}

# Whether RAW_DATA has a test file of a name and no train file.
raw_test_only() { [ -n "${RAW_DATA:-}" ] && compgen -G "$RAW_DATA/$1/test*" >/dev/null && ! compgen -G "$RAW_DATA/$1/train*" >/dev/null; }

# load NAME FILE ARGUMENT ...: records of a source into datasets/FILE
load() {
  local name=$1 file=$2 more=()
  shift 2
  mapfile -t more < <(raw "$name")
  "$PYTHON" data/load_dataset.py --output_path "datasets/$file" "$@" "${more[@]}"
}

parquet() { "$PYTHON" data/preprocess.py --data_source "datasets/$1"; }

# A set to evaluate on only: no train.parquet.
test_only() { load "$1" "$1/test.json" --dataset_name "$2" && parquet "$1"; }

# LiveCodeBench v6 makes two folders: fetched once.
lcb() {
  [ -z "${lcb_there:-}" ] || return 0
  load lcb_v6 lcb_v6.json --dataset_name livecodebench/code_generation_lite-v6 && lcb_there=yes
}

prepare() {
  local domain
  case "$1" in
    sciknoweval/*)
      domain=${1#*/}
      load "$1" "$1.json" --dataset_name "${domain^}" &&
        "$PYTHON" data/split_tasks.py --json_path "datasets/$1.json" --output_dir "datasets/$1" --test_ratio 0.1 --seed 42 && parquet "$1" ;;
    tooluse)
      if raw_test_only tooluse; then
        say "tooluse: $RAW_DATA/tooluse holds no train file: the test alone is made"
      else
        load tooluse tooluse/train.json --dataset_name tooluse --split train || return 1
      fi
      load tooluse tooluse/test.json --dataset_name tooluse --split test && parquet tooluse ;;
    lcb_v6) lcb && "$PYTHON" data/split_tests.py --json_path datasets/lcb_v6.json --output_dir datasets/lcb_v6 && parquet lcb_v6 ;;
    lcb_v6_held_out)
      lcb && "$PYTHON" data/split_tests.py --json_path datasets/lcb_v6.json --output_dir datasets/lcb_v6_held_out --held_out && parquet "$1" ;;
    math) # DeepMath-103K to train on; MATH500, AIME24 and AIME25 to evaluate on
      load deepmath math/train.json --dataset_name zwhe99/DeepMath-103K &&
        load math_test math/test.json --dataset_name math-ai/math500,math-ai/aime24,math-ai/aime25 && parquet math ;;
    gsm8k)
      load gsm8k gsm8k/train.json --dataset_name openai/gsm8k --split train &&
        load gsm8k gsm8k/test.json --dataset_name openai/gsm8k --split test && parquet gsm8k ;;
    gpqa) test_only gpqa Idavidrein/gpqa-D ;;
    mmlu_pro) test_only mmlu_pro TIGER-Lab/MMLU-Pro ;;
    aime24 | aime25 | math500 | amc23) test_only "$1" "math-ai/$1" ;;
    hmmt25_feb) test_only hmmt25_feb MathArena/hmmt_feb_2025 ;;
    hmmt25_nov) test_only hmmt25_nov MathArena/hmmt_nov_2025 ;;
    codeforces) test_only codeforces open-r1/codeforces ;;
    code_elo) test_only code_elo Qwen/CodeElo ;;
    humanevalplus) test_only humanevalplus evalplus/humanevalplus ;;
    mbppplus) test_only mbppplus evalplus/mbppplus ;;
  esac
}

wanted=()
for name in "$@"; do
  name=${name%/}
  case " ${NAMES[*]} " in
    *" $name "*) wanted+=("$name") ;;
    *" $name/"*) for one in "${NAMES[@]}"; do case "$one" in "$name"/*) wanted+=("$one") ;; esac; done ;;
    *) die "unknown name $name; $usage" ;;
  esac
done
[ $# -gt 0 ] || wanted=("${NAMES[@]}")

[ -z "${RAW_DATA:-}" ] || RAW_DATA=$(cd "$RAW_DATA" && pwd) || die "RAW_DATA: no such folder"
cd "$ROOT" || exit 2
use_environment
failed=()
for name in "${wanted[@]}"; do
  say "== $name"
  prepare "$name" || failed+=("$name")
done
if [ ${#failed[@]} -gt 0 ]; then
  say "not made: ${failed[*]}"
  say "again, for these only: ${RAW_DATA:+RAW_DATA=$(printf %q "$RAW_DATA") }bash data/prepare_all.sh ${failed[*]}"
  exit 1
fi
