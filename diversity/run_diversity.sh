#!/usr/bin/env bash
# Diversity and pass@k of SDPO, MOPD and the base model: tables, case studies and plots (docs/diversity.md).
#   SDPO_CANDIDATES=FILE MOPD_CANDIDATES=FILE BASE_CANDIDATES=FILE bash diversity/run_diversity.sh [option of compute_metrics.py ...]
#
# Files not named are looked for in rollouts/{sdpo,mopd,base}/candidate_responses.jsonl; which of those are not there
# are left out. Further runs: --run NAME=FILE. GENERATE_SDPO=1 first makes SDPO_CANDIDATES from the checkpoint CKPT_PATH, with
# run_eval_sdpo.sh (DATA_PATH, VAL_DATA_PATH, EVAL_N, VALIDATION_DATA_DIR) and analysis/prepare_rollout_dataset.py (ROLLOUT_INPUT_DIR).
set -euo pipefail
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
source "$ROOT/scripts/env.sh"

case " $* " in
  *" -h "* | *" --help "*) sed -n '2,7s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" && exit 0 ;;
  *" --output-dir"*) die "the folder is given as OUTPUT_DIR=..., since the plots go there too" ;;
esac

OUTPUT_DIR=${OUTPUT_DIR:-$ROOT/analysis_outputs/diversity_lcbv6}
EVAL_N=${EVAL_N:-8}

# Shows a command as it could be typed, then runs it.
run() {
  say "+$(printf ' %q' "$@")"
  "$@"
}

# A method's run: the file given for it, or the default one if it is there.
runs=()
add_run() {
  local name=$1 given=$2 default=$ROOT/rollouts/$3/candidate_responses.jsonl
  if [ -n "$given" ]; then
    [ -e "$given" ] || die "$name: $given is not there"
    runs+=(--run "$name=$given")
  elif [ -e "$default" ]; then
    runs+=(--run "$name=$default")
  else
    say "$name is left out: $default is not there"
  fi
}

use_environment
if [ "${GENERATE_SDPO:-0}" = 1 ]; then
  [ -n "${CKPT_PATH:-}" ] || die "GENERATE_SDPO=1 needs CKPT_PATH, the checkpoint (or model folder) to sample from"
  SDPO_CANDIDATES=${SDPO_CANDIDATES:-$ROOT/rollouts/sdpo/candidate_responses.jsonl}
  case "$SDPO_CANDIDATES" in
    */candidate_responses.jsonl | candidate_responses.jsonl) ;;
    *) die "SDPO_CANDIDATES=$SDPO_CANDIDATES: what GENERATE_SDPO=1 makes is called candidate_responses.jsonl" ;;
  esac
  VALIDATION_DATA_DIR=${VALIDATION_DATA_DIR:-$ROOT/validation/diversity-$(tr -s '/' '-' <<<"${CKPT_PATH#/}")} # its own: no other's dumps in it
  settings=("CKPT_PATH=$CKPT_PATH" "EVAL_N=$EVAL_N" "VALIDATION_DATA_DIR=$VALIDATION_DATA_DIR")
  [ -z "${DATA_PATH:-}" ] || settings+=("DATA_PATH=$DATA_PATH")
  [ -z "${VAL_DATA_PATH:-}" ] || settings+=("VAL_DATA_PATH=$VAL_DATA_PATH")
  run env "${settings[@]}" bash "$ROOT/run_eval_sdpo.sh" diversity "trainer.log_dir=$OUTPUT_DIR/logs"
  run "$PYTHON" "$ROOT/analysis/prepare_rollout_dataset.py" --input "${ROLLOUT_INPUT_DIR:-$VALIDATION_DATA_DIR}" \
    --output-dir "$(dirname "$SDPO_CANDIDATES")" --max-responses-per-prompt "$EVAL_N"
fi

add_run SDPO "${SDPO_CANDIDATES:-}" sdpo
add_run MOPD "${MOPD_CANDIDATES:-}" mopd
add_run base "${BASE_CANDIDATES:-}" base
case "${#runs[@]}$*" in 0*--run*) ;; 0*) die "no run: name files by SDPO_CANDIDATES, MOPD_CANDIDATES, BASE_CANDIDATES or --run NAME=FILE" ;; esac

run "$PYTHON" "$ROOT/diversity/compute_metrics.py" "${runs[@]}" --task code --ks 1 2 4 8 --intersect-prompts \
  --max-responses-per-prompt "$EVAL_N" --output-dir "$OUTPUT_DIR" "$@"
run "$PYTHON" "$ROOT/diversity/plot_metrics.py" --summary "$OUTPUT_DIR/summary.json" --per-prompt "$OUTPUT_DIR/per_prompt.jsonl" \
  --output-dir "$OUTPUT_DIR/plots"
