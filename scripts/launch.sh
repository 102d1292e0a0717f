# What the run_local_*.sh scripts share: environment flags and arguments to Hydra overrides, then the trainer.
#
#   launch KIND ARGUMENT ...       KIND is sdpo, grpo, ts or eval; arguments are [suffix] [key=value ...]
#
# Every flag below is a default only: an environment variable wins over it, a key=value argument over both.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
source "$ROOT/scripts/env.sh"

FLAGS=(DATA_PATH VAL_DATA_PATH MODEL_PATH TEACHER_MODEL_PATH CKPT_PATH EVAL_N INCLUDE_PRIMARY_SOLUTION INCLUDE_ANOTHER_SOLUTION
  INCLUDE_FAILURE_SOLUTION FAILURE_SOLUTION_CONDITION DONTS_REPROMPT_ON_SELF_SUCCESS ALPHA LR SEED TRAIN_BATCH_SIZE ROLLOUT_BATCH_SIZE
  ROLLOUT_BACKEND ROLLOUT_PROMPT_LENGTH ROLLOUT_RESPONSE_LENGTH N_GPUS_PER_NODE NNODES CKPT_DIR ROLLOUT_DATA_DIR VALIDATION_DATA_DIR
  WANDB_MODE WANDB_PROJECT)

# The path as seen from where the script was called, if it is one there; else as it is (a hub name, a path in the project).
from_here() { if [ -e "$CALLED_FROM/$1" ] && [ "${1#/}" = "$1" ]; then printf '%s' "$CALLED_FROM/$1"; else printf '%s' "$1"; fi; }
out_here() { if [ "${1#/}" = "$1" ]; then printf '%s' "$CALLED_FROM/$1"; else printf '%s' "$1"; fi; }

# A value in quotes, as Hydra reads it back.
quoted() { printf "'%s'" "${1//\'/\\\'}"; }

# A comma-separated list of paths as a Hydra list; a path that is there as a whole is one.
hydra_list() {
  local part out=()
  if [ -e "$(from_here "$1")" ]; then
    printf '[%s]' "$(quoted "$(from_here "$1")")"
    return
  fi
  while IFS= read -r part; do [ -z "$part" ] || out+=("$(quoted "$(from_here "$part")")"); done < <(tr ',' '\n' <<<"$1")
  (IFS=,; printf '[%s]' "${out[*]}")
}

# What a run on a model or data path is called after: the part that says which one it is.
name_of() {
  local path=${1%/}
  case "$(basename "$path")" in
    huggingface | actor | train.parquet | test.parquet) name_of "$(dirname "$path")" ;;
    global_step_*) printf '%s-%s' "$(name_of "$(dirname "$path")")" "$(basename "$path")" ;;
    *) basename "$path" .parquet ;;
  esac
}

# An override whose value is a path, as seen from where the script was called; others as they are.
override_from_here() {
  local key=${1%%=*} value=${1#*=}
  case "$value" in null | "" | *[\'\"\$]*) printf '%s' "$1" && return ;; esac
  case "$key" in
    data.train_files | data.val_files) value=${value#\[} && printf '%s=%s' "$key" "$(hydra_list "${value%\]}")" ;;
    custom_reward_function.path | actor_rollout_ref.model.path | actor_rollout_ref.ref.model.path | trainer.resume_from_path)
      printf '%s=%s' "$key" "$(quoted "$(from_here "$value")")" ;;
    trainer.default_local_dir | trainer.rollout_data_dir | trainer.validation_data_dir | trainer.log_dir)
      printf '%s=%s' "$key" "$(quoted "$(out_here "$value")")" ;;
    *) printf '%s' "$1" ;;
  esac
}

max() { local m=$1; for n in "$@"; do [ "$n" -le "$m" ] || m=$n; done; printf '%s' "$m"; }

launch() {
  local kind=$1 suffix="" overrides=() options=() argument flag set_flags="" preflight=false looking=()
  shift
  local script usage name=""
  script=$(basename "$0") usage="usage: bash $(basename "$0") [suffix] [key=value ...] [--cfg | --preflight [--prompts=N] [--out=FILE] [--in-process]]     flags and keys: README.md"
  CALLED_FROM=$PWD
  cd "$ROOT" || exit 2
  [ "$CALLED_FROM" = "$ROOT" ] || script=$(printf %q "$ROOT/$script")
  for flag in "${FLAGS[@]}" CUDA_VISIBLE_DEVICES RAY_ADDRESS; do [ -z "${!flag+x}" ] || set_flags+="$flag=$(printf %q "${!flag}") "; done
  MOPD_COMMAND="${set_flags}bash $script$([ $# -eq 0 ] || printf ' %q' "$@")"
  export MOPD_COMMAND
  for argument in "$@"; do
    case "$argument" in
      -h | --help) say "$usage" && exit 0 ;;
      --cfg) options+=("$argument") ;;
      --preflight) preflight=true ;; # look at the run before it is started (docs/preflight.md)
      --prompts=* | --in-process) looking+=("$argument") ;;
      --out=*) looking+=("--out=$(out_here "${argument#*=}")") ;;
      -*) die "unknown option $argument; $usage" ;;
      trainer.experiment_name=*) name=${argument#*=} ;;
      *=*) overrides+=("$(override_from_here "$argument")") ;;
      *)
        [ -z "$suffix" ] || die "two suffixes: '$suffix' and '$argument'; $usage"
        suffix=$argument
        ;;
    esac
  done
  if [ -n "${CKPT_PATH:-}" ] && [ "$kind" != eval ]; then
    die "CKPT_PATH is what run_eval_sdpo.sh evaluates. To train on from weights: MODEL_PATH=$CKPT_PATH/global_step_N/huggingface; to resume a run: its own command again."
  fi
  if [ -n "${TEACHER_MODEL_PATH:-}" ] && [ "$kind" != ts ]; then
    say "note: TEACHER_MODEL_PATH counts in run_ts_sdpo.sh only; here the teacher is the student's own average, if there is one"
  fi

  local gpu=false tiny=false
  if has_gpu; then gpu=true; fi
  if [ "${MODEL_PATH:-}" = tiny ]; then
    tiny=true
  elif [ -z "${MODEL_PATH:-}${DATA_PATH:-}${CKPT_PATH:-}" ]; then
    if ! [ -e datasets/lcb_v6 ]; then
      tiny=true
    elif ! $gpu; then
      tiny=true
      say "no GPU here: running the embedded default instead of Qwen/Qwen3-4B on datasets/lcb_v6 (MODEL_PATH and DATA_PATH choose otherwise)"
    fi
  fi
  if [ -z "${ROLLOUT_BACKEND:-}" ]; then ROLLOUT_BACKEND=$(if $gpu; then echo vllm; else echo hf; fi); fi
  if [ "$ROLLOUT_BACKEND" = vllm ]; then use_environment "$(vllm_requirements)"; else use_environment; fi
  if [ "$kind" = eval ] && [ -n "${CKPT_PATH:-}" ] && [ -z "${DATA_PATH:-}${VAL_DATA_PATH:-}" ]; then
    CKPT_PATH=$(from_here "$CKPT_PATH")
    { read -r VAL_DATA_PATH && read -r PROMPT_LENGTH && read -r RESPONSE_LENGTH; } < <("$PYTHON" -m trainer.checkpoint "$CKPT_PATH") || true
    ROLLOUT_PROMPT_LENGTH=${ROLLOUT_PROMPT_LENGTH:-${PROMPT_LENGTH:-}} ROLLOUT_RESPONSE_LENGTH=${ROLLOUT_RESPONSE_LENGTH:-${RESPONSE_LENGTH:-}}
    [ -z "$VAL_DATA_PATH" ] || say "evaluating on what it was validated on: $VAL_DATA_PATH"
  fi

  N_GPUS_PER_NODE=${N_GPUS_PER_NODE:-$(if $gpu; then visible_gpus; else echo 1; fi)}

  # Model, data and sizes: the embedded default has its own
  local recipe=() made=() model_name data_name
  if $tiny; then
    say "the embedded default: a tiny model that really learns (its base model makes built-in mistakes)"
    made=(--models models --datasets datasets)
    case "$kind" in ts) made+=(--teacher) ;; esac
    if [ -n "${DATA_PATH:-}" ]; then data_name=$(name_of "${DATA_PATH%%,*}"); else data_name=chains; fi
    MODEL_PATH=models/tiny-chains DATA_PATH=${DATA_PATH:-datasets/tiny_chains}
    if [ -z "${TEACHER_MODEL_PATH:-}" ]; then TEACHER_MODEL_PATH=models/tiny-chains-teacher; else TEACHER_MODEL_PATH=$(from_here "$TEACHER_MODEL_PATH"); fi
    ROLLOUT_PROMPT_LENGTH=${ROLLOUT_PROMPT_LENGTH:-32} ROLLOUT_RESPONSE_LENGTH=${ROLLOUT_RESPONSE_LENGTH:-48}
    TRAIN_BATCH_SIZE=${TRAIN_BATCH_SIZE:-4} LR=${LR:-1e-3}
    model_name=tiny
    recipe=(
      trainer.total_training_steps=40 trainer.test_freq=20 trainer.save_freq=20
      actor_rollout_ref.actor.optim.lr_warmup_steps=0 actor_rollout_ref.actor.optim.lr_scheduler_type=linear
      actor_rollout_ref.actor.optim.min_lr_ratio=0.1 'actor_rollout_ref.actor.optim.betas=[0.9,0.95]'
      actor_rollout_ref.actor.self_distillation.max_reprompt_len=256
      actor_rollout_ref.actor.self_distillation.distillation_topk=16 # of 54 words: the tail is exercised
    )
  else
    MODEL_PATH=$(from_here "${MODEL_PATH:-Qwen/Qwen3-4B}") DATA_PATH=${DATA_PATH:-datasets/lcb_v6}
    TEACHER_MODEL_PATH=$(from_here "${TEACHER_MODEL_PATH:-Qwen/Qwen3-14B}")
    ROLLOUT_PROMPT_LENGTH=${ROLLOUT_PROMPT_LENGTH:-2048} ROLLOUT_RESPONSE_LENGTH=${ROLLOUT_RESPONSE_LENGTH:-4096}
    TRAIN_BATCH_SIZE=${TRAIN_BATCH_SIZE:-32} LR=${LR:-1e-5}
    model_name=$(name_of "$MODEL_PATH") data_name=${DATA_PATH%%,*}
    if [ "$kind" = eval ] && [ -n "${VAL_DATA_PATH:-}" ]; then data_name=${VAL_DATA_PATH%%,*}; fi
    data_name=$(name_of "$data_name")
    recipe=(
      actor_rollout_ref.actor.optim.lr_warmup_steps=10
      "actor_rollout_ref.actor.self_distillation.max_reprompt_len=$(max 10240 $((ROLLOUT_PROMPT_LENGTH + 2 * ROLLOUT_RESPONSE_LENGTH)))"
      "actor_rollout_ref.actor.ppo_max_token_len_per_gpu=$(max 18944 $((ROLLOUT_PROMPT_LENGTH + 3 * ROLLOUT_RESPONSE_LENGTH)) $((10240 + ROLLOUT_RESPONSE_LENGTH)))"
    )
  fi
  local val=${VAL_DATA_PATH:-}
  if [ -z "$val" ]; then # the test.parquet beside the training data
    val=$DATA_PATH
    [ -e "$(from_here "$val")" ] || val=${DATA_PATH%%,*}
    [ "${val%.parquet}" = "$val" ] || val=$(dirname "$val")/test.parquet
  fi

  # Where a run's outputs go, and its sinks
  local sinks="[console]"
  name=${name:-$kind-$model_name-$data_name${suffix:+-$suffix}}
  if [ -z "${WANDB_MODE:-}" ]; then
    WANDB_MODE=offline
    if [ -n "${WANDB_API_KEY:-}" ] || grep -qs 'machine api.wandb.ai' "$HOME/.netrc"; then WANDB_MODE=online; fi
  fi
  export WANDB_MODE
  [ "$WANDB_MODE" = disabled ] || sinks="[console,wandb]"

  local common=(
    "data.train_files=$(hydra_list "$DATA_PATH")" "data.val_files=$(hydra_list "$val")"
    "actor_rollout_ref.model.path=$(quoted "$MODEL_PATH")"
    "actor_rollout_ref.rollout.name=$ROLLOUT_BACKEND" "actor_rollout_ref.rollout.n=${ROLLOUT_BATCH_SIZE:-8}"
    "data.max_prompt_length=$ROLLOUT_PROMPT_LENGTH" "data.max_response_length=$ROLLOUT_RESPONSE_LENGTH"
    "data.train_batch_size=$TRAIN_BATCH_SIZE" "actor_rollout_ref.actor.ppo_mini_batch_size=$TRAIN_BATCH_SIZE"
    "data.seed=${SEED:-42}" "actor_rollout_ref.actor.optim.lr=$LR"
    "trainer.n_gpus_per_node=$N_GPUS_PER_NODE" "trainer.nnodes=${NNODES:-1}"
    "trainer.experiment_name=$(quoted "$name")" "trainer.project_name=$(quoted "${WANDB_PROJECT:-mopd}")" "trainer.logger=$sinks"
    "trainer.default_local_dir=$(quoted "$(out_here "${CKPT_DIR:-$ROOT/checkpoints/$name}")")"
    "trainer.rollout_data_dir=$(quoted "$(out_here "${ROLLOUT_DATA_DIR:-$ROOT/rollouts/$name}")")"
    "trainer.validation_data_dir=$(quoted "$(out_here "${VALIDATION_DATA_DIR:-$ROOT/validation/$name}")")"
    "trainer.log_dir=$(quoted "$ROOT/logs/$name")"
  )
  local distill=actor_rollout_ref.actor.self_distillation
  local peers=(
    "$distill.include_primary_solution=${INCLUDE_PRIMARY_SOLUTION:-True}"
    "$distill.include_another_solution=${INCLUDE_ANOTHER_SOLUTION:-True}"
    "$distill.include_failure_solution=${INCLUDE_FAILURE_SOLUTION:-True}"
    "$distill.failure_solution_condition=${FAILURE_SOLUTION_CONDITION:-always}"
    "$distill.dont_reprompt_on_self_success=${DONTS_REPROMPT_ON_SELF_SUCCESS:-True}"
    "$distill.alpha=${ALPHA:-0.5}"
  )
  local config=sdpo
  case "$kind" in
    sdpo) common+=("${peers[@]}") ;;
    grpo) config=baseline_grpo ;;
    ts) common+=("${peers[@]}" "actor_rollout_ref.ref.model.path=$(quoted "$TEACHER_MODEL_PATH")" "$distill.teacher_update_rate=0") ;;
    eval) common+=(trainer.val_only=True "actor_rollout_ref.rollout.val_kwargs.n=${EVAL_N:-8}") ;;
  esac
  local trainer=("$PYTHON" -m trainer.main --config-name "$config" "${recipe[@]}" "${common[@]}" "${overrides[@]}")
  if $tiny && [ ${#options[@]} -eq 0 ]; then
    "${trainer[@]}" --cfg >/dev/null || exit 2 # before minutes are spent on the model
    "$PYTHON" -m experiments.tiny.make "${made[@]}" || exit 2
  fi
  if $preflight && [ ${#options[@]} -eq 0 ]; then
    exec "$PYTHON" -m analysis.preflight --out "$CALLED_FROM/preflight-$name.html" "${looking[@]}" "${trainer[@]:3}"
  fi
  [ ${#looking[@]} -eq 0 ] || die "${looking[0]} goes with --preflight; $usage"
  exec "${trainer[@]}" "${options[@]}"
}
