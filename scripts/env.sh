# The Python environment of the project; sourced by the run_*.sh scripts.
#
#   use_environment [extra requirements file ...]     sets $PYTHON, installing only what is missing
#
# An active environment (VIRTUAL_ENV, CONDA_PREFIX, a container) in which the project's packages are there is used as
# it is. Otherwise .venv is made beside this file's folder; a second call installs nothing.

TORCH=2.13.0
VENV=$ROOT/.venv
TORCH_CPU_INDEX=https://download.pytorch.org/whl/cpu

say() { printf '%s\n' "$*" >&2; }
die() { say "error: $*"; exit 2; }

has_gpu() {
  case "${CUDA_VISIBLE_DEVICES-unset}" in "" | -1) return 1 ;; esac
  command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L 2>/dev/null | grep -q .
}

visible_gpus() {
  case "${CUDA_VISIBLE_DEVICES-unset}" in
    unset) nvidia-smi -L | wc -l ;;
    *) tr ',' '\n' <<<"$CUDA_VISIBLE_DEVICES" | grep -c . ;;
  esac
}

# Prints the packages of the requirements files that the given Python lacks, without importing them.
missing_packages() {
  local python=$1
  shift
  "$python" - "$TORCH" "$@" <<'PY'
import re, sys
from importlib.metadata import PackageNotFoundError, version
wanted = ["torch"]
for file in sys.argv[2:]:
    for line in open(file):
        line = line.removeprefix("# --no-deps: ")
        name = re.match(r"[A-Za-z0-9_.-]+", line.split("#")[0].strip())
        if name:
            wanted.append(name.group())
lacking = []
for name in wanted:
    try:
        version(name)
    except PackageNotFoundError:
        lacking.append(name)
if not (3, 11) <= sys.version_info[:2] <= (3, 13):
    lacking.insert(0, "Python 3.11 to 3.13 (this is %d.%d)" % sys.version_info[:2])
print(" ".join(lacking))
PY
}

active_python() {
  if [ -n "${VIRTUAL_ENV:-}" ]; then
    printf '%s' "$VIRTUAL_ENV/bin/python"
  elif [ -n "${CONDA_PREFIX:-}" ]; then
    printf '%s' "$CONDA_PREFIX/bin/python"
  elif [ -e /.dockerenv ] || [ -e /run/.containerenv ] || [ -n "${container:-}${APPTAINER_CONTAINER:-}${SINGULARITY_CONTAINER:-}" ]; then
    command -v python3 || command -v python || true
  fi
}

newest_python() {
  local name
  for name in python3.13 python3.12 python3.11 python3 python; do
    # a name on the PATH may be a shim of a version that is not switched on: ask it
    if "$name" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' >/dev/null 2>&1; then
      command -v "$name"
      return
    fi
  done
  die "no Python from 3.11 to 3.13 found (3.10 is too old for the vLLM that fits). Get one, for example:
  apt-get install python3.12 python3.12-venv      Debian, Ubuntu
  conda create -n mopd python=3.12 && conda activate mopd
  uv python install 3.12 && export PATH=\"\$(dirname \"\$(uv python find 3.12)\"):\$PATH\""
}

cpu_index_answers() {
  "$1" - "$TORCH_CPU_INDEX" <<'PY' >/dev/null 2>&1
import sys, urllib.request
urllib.request.urlopen(sys.argv[1] + "/torch/", timeout=4).read(1)
PY
}

use_environment() {
  local files=("$ROOT/requirements.txt") extra active lacking file needed=()
  for extra in "$@"; do files+=("$ROOT/$extra"); done

  active=$(active_python)
  if [ -n "$active" ] && [ -x "$active" ]; then
    lacking=$(missing_packages "$active" "${files[@]}")
    if [ -z "$lacking" ]; then
      PYTHON=$active
      return
    fi
    say "the active environment ($active) lacks: $lacking; using $VENV instead"
  fi

  PYTHON=$VENV/bin/python
  for file in "${files[@]}"; do
    if ! [ -e "$(stamp_of "$file")" ] || ! [ -x "$PYTHON" ]; then needed+=("$file"); fi
  done
  if [ ${#needed[@]} -eq 0 ]; then return; fi
  (
    exec 9>"$VENV.lock"
    ! command -v flock >/dev/null 2>&1 || flock 9
    install_environment "${needed[@]}"
  ) || exit 2
}

# The file that says that .venv holds what a requirements file asks for, as it stands now.
stamp_of() {
  printf '%s/installed-%s-%s' "$VENV" "$(basename "$1" .txt)" "$(cat "$1" "$ROOT/setup.py" <(echo "$TORCH") | cksum | cut -d' ' -f1)"
}

# What the machine's rollouts with vLLM need.
vllm_requirements() { if has_gpu; then printf requirements_vllm.txt; else printf requirements_vllm_cpu.txt; fi; }

install_environment() {
  local file base bare
  if ! [ -x "$PYTHON" ]; then
    base=$(newest_python) || exit 2
    say "making .venv with $("$base" --version) (once)"
    "$base" -m venv "$VENV" || die "$base cannot make a virtual environment; on Debian and Ubuntu: apt-get install python3-venv"
  fi
  local pip=("$PYTHON" -m pip --disable-pip-version-check --quiet install)
  if [ "$("$PYTHON" -c 'from importlib.metadata import version; print(version("torch").split("+")[0])' 2>/dev/null)" != "$TORCH" ]; then
    # torch goes in first and alone: pulled in by another package it brings several GB of CUDA along
    if ! has_gpu && cpu_index_answers "$PYTHON"; then
      say "installing torch $TORCH for CPU"
      "${pip[@]}" "torch==$TORCH" --index-url "$TORCH_CPU_INDEX" || die "torch $TORCH could not be installed"
    else
      say "installing torch $TORCH"
      "${pip[@]}" "torch==$TORCH" || die "torch $TORCH could not be installed"
    fi
  fi
  for file in "$@"; do
    if [ -e "$(stamp_of "$file")" ]; then continue; fi # another launch has installed it meanwhile
    say "installing $(basename "$file")"
    "${pip[@]}" -r "$file" || die "$(basename "$file") could not be installed"
    bare=$(sed -n 's/^# --no-deps: //p' "$file")
    # shellcheck disable=SC2086  one word for each package
    [ -z "$bare" ] || "${pip[@]}" --no-deps $bare || die "$bare could not be installed"
    "${pip[@]}" --no-deps -e "$ROOT" || die "the project itself could not be installed (pip install -e .)"
    rm -f "$VENV/installed-$(basename "$file" .txt)"-*
    : >"$(stamp_of "$file")"
  done
}
