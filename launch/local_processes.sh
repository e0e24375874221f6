#!/usr/bin/env bash
# N processes of DEVICES_EACH CPU devices on this machine, as if on N hosts:
#   launch/local_processes.sh N DEVICES_EACH CONFIG WORKDIR [flags]
#
# To try things out, and to find faults before a cluster does. Ends when all
# processes have; its exit code is the largest of theirs. The same command
# resumes, also with another N. SIGTERM and SIGINT are passed on to all.
# Run by us on Linux, with one and two processes.
set -euo pipefail

usage='usage: launch/local_processes.sh N DEVICES_EACH CONFIG WORKDIR [flags]'
processes=${1:?$usage}
devices=${2:?$usage}
config=${3:?$usage}
workdir=${4:?$usage}
shift 4
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-.venv/bin/python}

port=$("$python" -c '
import socket
with socket.socket() as free:
  free.bind(("localhost", 0))
  print(free.getsockname()[1])
')
export JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES=$devices
export JAX_COORDINATOR_ADDRESS=localhost:$port JAX_NUM_PROCESSES=$processes

pids=() stopped=0
pass_on() {
  stopped=1
  ((${#pids[@]} == 0)) || kill -TERM "${pids[@]}" 2>/dev/null || true
}
trap pass_on TERM INT
for ((i = 0; i < processes; i++)); do
  JAX_PROCESS_ID=$i "$python" -m sjft_jax.main --multihost \
    --config="$config" --workdir="$workdir" "$@" &
  pids+=($!)
done
# Those that were started after it came.
((stopped == 0)) || pass_on

worst=0
for pid in "${pids[@]}"; do
  code=0
  # A trapped signal ends `wait`, not the process.
  while wait "$pid" || code=$?; ((code > 128)) && kill -0 "$pid" 2>/dev/null; do
    code=0
  done
  ((code <= worst)) || worst=$code
done
exit "$worst"
