#!/usr/bin/env bash
# gaitjax in one command; works from any directory.
set -euo pipefail

usage() {
  cat <<'TXT'
usage: run.sh [COMMAND] [ARGS]

  (nothing)                 install, make the embedded data set, train and evaluate LMGait
  setup [cuda|tpu]          create .venv and install what training needs, with JAX for NVIDIA or TPU
  build NAME[/CONFIG] [ARGS]
                            prepare a data set (--manual_dir=DIR, --data_dir=DIR, --overwrite,
                            --beam_pipeline_options=...; build --help explains them)
  train CONFIG [ARGS]       prepare the data sets of the config, train (or continue), evaluate;
                            CONFIG is for instance configs/lmgait.py or configs/lmgait.py:cmu_walk,
                            ARGS are --config.train.steps=200 --workdir=DIR --manual_dir=DIR ...
  launch N CONFIG [ARGS]    train in N processes on this machine, one GPU each (docs/scaling.md)
  evaluate CONFIG [ARGS]    evaluate a trained run again
  target [TARGET CONFIG [ARGS]]
                            install XLA's compilers for NVIDIA and TPU in .venv-target and say what
                            a step of the config needs on such devices: h100x1, h100x8, v5e:4x4, ...
  test [ARGS]               install what the tests need and run them in two processes;
                            ARGS go to pytest: -n 8 for eight processes, -n 0 for none (--pdb)
  help                      print this text

Environment: PYTHON (the interpreter that creates .venv, 3.11 or newer),
GAITJAX_VENV (the folder of the virtual environment, default .venv).
TXT
}

root="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
venv="${GAITJAX_VENV:-$root/.venv}"
# Large pages: a step's memory comes in pages of 2 MB, not 4 kB (docs/scaling.md).
export GLIBC_TUNABLES="${GLIBC_TUNABLES-glibc.malloc.hugetlb=1}"

# Installs the requirement FILES into the venv, unless the same files were installed before.
install() {
  local file python options=() new=""
  if [ ! -x "$venv/bin/python" ]; then
    python="${PYTHON:-$(command -v python3.11 || command -v python3 || true)}"
    if [ -z "$python" ] || ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
      echo "run.sh: Python 3.11 or newer is needed, found ${python:-none}. Set PYTHON=/path/to/python." >&2
      exit 2
    fi
    echo "Creating $venv"
    "$python" -m venv "$venv"
  fi
  for file in "$@"; do
    options+=(-r "$root/$file")
    cmp -s "$root/$file" "$venv/.installed-$file" || new=yes
  done
  [ -n "$new" ] || return 0
  echo "Installing $* (one to three minutes, once)"
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "${options[@]}"
  for file in "$@"; do cp "$root/$file" "$venv/.installed-$file"; done
}

# Makes a path in an argument absolute: users give it relative to their folder, but the
# program runs in $root.
absolute() {
  local name="${1%%=*}" value="${1#*=}"
  case "$1" in
    --manual_dir=* | --data_dir=* | --workdir=* | --config.data.data_dir=* | --config.base_run=* | \
      --config.checkpoint=*)
      case "$value" in
        "" | /* | *://*) ;;
        "~/"*) value="$HOME/${value#"~/"}" ;; # a shell does not expand it after "="
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

# Huge pages for XLA's CPU buffers, where glibc and the kernel have them: fewer page faults.
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

# run_config train|evaluate|launch CONFIG ARGS: prepares the data, then runs the program.
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

# Runs COMMAND in $processes processes that meet on a free port of this machine. SIGTERM and
# Ctrl-C are passed on to all of them. If one fails, the others would wait for it for ever,
# so they are killed; the last checkpoint stays.
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
      [ "$code" != 0 ] || code=$ended # the first failure counts
    done
    [ ${#alive[@]} -gt 0 ] || exit "$code"
    if [ "$code" != 0 ]; then
      echo "run.sh: a process ended with code $code, so the others are ended too. Checkpoints stay; the same command continues the run." >&2
      kill -KILL "${alive[@]}" 2>/dev/null || true
    fi
    pids=("${alive[@]}")
    sleep 1 || true # Ctrl-C ends the sleep too
  done
}

case "$command" in
  default)
    echo "Estimate on 2 cores: data 2 minutes (once), training 10, evaluation and pictures 1."
    echo "The first run installs packages before that, in one to three minutes."
    run_config train configs/lmgait.py ;;
  setup)
    case "${args[*]-}" in
      "") install requirements.txt ;;
      cuda | tpu) install requirements.txt "requirements-${args[0]}.txt" ;;
      *)
        echo "run.sh: setup takes nothing, cuda or tpu; got '${args[*]}'" >&2
        exit 2 ;;
    esac ;;
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
  target)
    if [ ${#args[@]} -eq 1 ]; then
      echo "run.sh: target needs a target and a config, for instance: ./run.sh target h100x8 configs/lmgait.py:ccpg" >&2
      exit 2
    fi
    venv="$root/.venv-target"
    install requirements.txt requirements-target.txt
    [ ${#args[@]} -gt 0 ] || exit 0
    exec "$venv/bin/python" -m gaitjax.main "--config=${args[1]}" --dry_run "--target=${args[0]}" "${args[@]:2}" ;;
  test)
    install requirements.txt requirements-dev.txt
    # file by file: the tests of a file share what its fixtures computed
    exec "$venv/bin/python" -m pytest -n 2 --dist=loadfile --no-loadscope-reorder ${args[@]+"${args[@]}"} ;;
  help | -h | --help) usage ;;
  *)
    echo "run.sh: unknown command '$command'" >&2
    usage >&2
    exit 2 ;;
esac
