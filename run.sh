#!/usr/bin/env bash
# gaitjax in one command; works from any directory.
set -euo pipefail

usage() {
  cat <<'TXT'
usage: run.sh [COMMAND] [ARGS]

  (nothing)                 set up, prepare the embedded data set, train and evaluate LMGait
  setup                     create .venv and install what training needs
  build NAME[/CONFIG] [ARGS]
                            prepare a data set (--manual_dir=DIR, --data_dir=DIR, --overwrite,
                            --beam_pipeline_options=...; build --help lists them)
  train CONFIG [ARGS]       prepare what the config needs, train (or continue), evaluate
                            CONFIG like configs/lmgait.py or configs/lmgait.py:cmu_walk;
                            ARGS like --config.train.steps=200 --workdir=DIR --manual_dir=DIR
  launch N CONFIG [ARGS]    train, in N processes of this machine (a GPU each; docs/scaling.md)
  evaluate CONFIG [ARGS]    evaluate a trained run again
  test [ARGS]               install what the tests need, run them (ARGS go to pytest)
  help                      this text

Settings: PYTHON (interpreter to create .venv with, 3.11 or newer), GAITJAX_VENV (default .venv).
TXT
}

root="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
venv="${GAITJAX_VENV:-$root/.venv}"

# Installs REQUIREMENTS into the venv unless exactly these were installed before.
install() {
  local file="$root/$1" stamp="$venv/.installed-$1" python
  if [ ! -x "$venv/bin/python" ]; then
    python="${PYTHON:-$(command -v python3.11 || command -v python3 || true)}"
    if [ -z "$python" ] || ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
      echo "run.sh: Python 3.11 or newer is needed, found ${python:-none}. Set PYTHON=/path/to/python." >&2
      exit 2
    fi
    echo "Creating $venv"
    "$python" -m venv "$venv"
  fi
  cat "$root"/requirements*.txt | cmp -s - "$stamp" && return
  echo "Installing $1 (one to three minutes, once)"
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -r "$file"
  cat "$root"/requirements*.txt > "$stamp"
}

# Paths that a user gives relative to where they stand, made absolute: we run in $root.
absolute() {
  local name="${1%%=*}" value="${1#*=}"
  case "$1" in
    --manual_dir=* | --data_dir=* | --workdir=* | --config.data.data_dir=* | --config.base_run=* | \
      --config.checkpoint=*)
      case "$value" in
        "" | /* | *://*) ;;
        "~/"*) value="$HOME/${value#"~/"}" ;; # shells leave it as it is behind a "="
        *) value="$from/$value" ;;
      esac
      printf '%s' "$name=$value" ;;
    --config.pretrained.*=*) # a file, a folder or a hub id
      if [ -n "$value" ] && [ -e "$from/$value" ]; then value="$from/$value"; fi
      printf '%s' "$name=$value" ;;
    *.py | *.py:*)
      if [ -f "$from/${1%%:*}" ]; then printf '%s' "$from/$1"; else printf '%s' "$1"; fi ;;
    *) printf '%s' "$1" ;;
  esac
}

# XLA's CPU buffers in huge pages where glibc and the kernel offer them: fewer page faults.
export GLIBC_TUNABLES="${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}"

from="$PWD"
cd "$root"
command="${1:-default}"
[ $# -eq 0 ] || shift
args=()
while [ $# -gt 0 ]; do
  case "$1" in # "--workdir DIR" is "--workdir=DIR"
    --manual_dir | --data_dir | --workdir) [ $# -lt 2 ] || { set -- "$1=$2" "${@:3}"; } ;;
  esac
  args+=("$(absolute "$1")")
  shift
done

# train|evaluate CONFIG ARGS: data first, then the program.
run_config() {
  local mode="$1" config="${2:-}" prepare=() program=() argument
  if [ -z "$config" ] || [ "${config#-}" != "$config" ]; then
    echo "run.sh: $mode needs a config, for instance: ./run.sh $mode configs/lmgait.py" >&2
    exit 2
  fi
  shift 2
  for argument in "$@"; do
    case "$argument" in
      --manual_dir=*) prepare+=("$argument") ;;
      --data_dir=*) prepare+=("$argument"); program+=("--config.data.data_dir=${argument#*=}") ;;
      --config.*=*) prepare+=("$argument"); program+=("$argument") ;;
      *) program+=("$argument") ;;
    esac
  done
  install requirements.txt
  "$venv/bin/python" -m tfds_builders.prepare "--config=$config" ${prepare[@]+"${prepare[@]}"}
  [ "$mode" != evaluate ] || program+=("--config.mode=evaluate")
  program=("$venv/bin/python" -m gaitjax.main "--config=$config" ${program[@]+"${program[@]}"})
  [ "$mode" = launch ] || exec "${program[@]}"
  launch "${program[@]}"
}

# COMMAND in $processes processes that find each other on a free port of this machine. A
# signal to stop reaches all of them; where one fails the others, which would wait for it,
# are ended too (the last checkpoint stays).
launch() {
  local pids=() code=0 ended alive pid port i
  port="$("$venv/bin/python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')"
  trap 'kill -TERM ${pids[@]+"${pids[@]}"} 2>/dev/null || true' TERM INT
  for ((i = 0; i < processes; i++)); do
    JAX_LOCAL_DEVICE_IDS="${JAX_LOCAL_DEVICE_IDS:-$i}" "$@" --multihost \
      "--coordinator=127.0.0.1:$port" "--num_processes=$processes" "--process_id=$i" &
    pids+=($!)
  done
  while :; do
    alive=()
    for pid in "${pids[@]}"; do
      if kill -0 "$pid" 2>/dev/null; then alive+=("$pid"); continue; fi
      ended=0
      wait "$pid" || ended=$?
      [ "$code" != 0 ] || code=$ended # of the first that failed
    done
    [ ${#alive[@]} -gt 0 ] || exit "$code"
    if [ "$code" != 0 ]; then
      echo "run.sh: a process ended with code $code, so the others are ended too. Checkpoints stay: the same command goes on." >&2
      kill -KILL "${alive[@]}" 2>/dev/null || true
    fi
    pids=("${alive[@]}")
    sleep 1 || true # a signal to the whole group (Ctrl-C) ends it too
  done
}

case "$command" in
  default)
    echo "Estimate on 2 cores: data 2 minutes (once), training 7, evaluation and pictures 1;"
    echo "before that, at the first run, one to three minutes of installing."
    run_config train configs/lmgait.py ;;
  setup) install requirements.txt ;;
  build)
    install requirements.txt
    exec "$venv/bin/python" -m tfds_builders.prepare ${args[@]+"${args[@]}"} ;;
  train | evaluate) run_config "$command" ${args[@]+"${args[@]}"} ;;
  launch)
    processes="${args[0]:-}"
    if ! [[ "$processes" =~ ^[1-9][0-9]*$ ]]; then
      echo "run.sh: launch needs a number of processes, for instance: ./run.sh launch 2 configs/lmgait.py" >&2
      exit 2
    fi
    run_config launch ${args[@]+"${args[@]:1}"} ;;
  test)
    install requirements-dev.txt
    exec "$venv/bin/python" -m pytest ${args[@]+"${args[@]}"} ;;
  help | -h | --help) usage ;;
  *)
    echo "run.sh: unknown command '$command'" >&2
    usage >&2
    exit 2 ;;
esac
