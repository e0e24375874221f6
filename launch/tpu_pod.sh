#!/usr/bin/env bash
# All workers of a Cloud TPU slice:
#   launch/tpu_pod.sh TPU_NAME ZONE CONFIG WORKDIR [flags]
#
# Installs what is committed here (commit your config first) on every worker of
# an existing slice, which needs Python 3.11, then gives the one command on all. JAX finds coordinator, number and index of the
# processes in the TPU's metadata. WORKDIR and the images must be gs:// paths, or
# lie on a file system that all workers mount (Filestore, or gcsfuse).
#
# The command resumes: after a preemption make the slice anew, of the same or
# another size, and give it again. A slice is made, for instance, by
#   gcloud compute tpus tpu-vm create TPU_NAME --zone=ZONE \
#     --accelerator-type=v5litepod-32 --version=v2-alpha-tpuv5-lite
# Not run by us on TPUs; checked by shellcheck only.
set -euo pipefail

usage='usage: launch/tpu_pod.sh TPU_NAME ZONE CONFIG WORKDIR [flags]'
name=${1:?$usage}
zone=${2:?$usage}
config=${3:?$usage}
workdir=${4:?$usage}
shift 4
cd "$(dirname "${BASH_SOURCE[0]}")/.."

on_all() {
  gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all \
    --command="$1"
}

# What git knows, without .venv and runs.
archive=$(mktemp --suffix=.tar.gz)
trap 'rm -f "$archive"' EXIT
git archive --format=tar.gz --output="$archive" HEAD
gcloud compute tpus tpu-vm scp "$archive" "$name:sjft.tar.gz" \
  --zone="$zone" --worker=all
# Expanded there, not here.
# shellcheck disable=SC2016
on_all 'set -e
  mkdir -p sjft && tar -xzf sjft.tar.gz -C sjft && cd sjft
  python=$(command -v python3.11 || command -v python3)
  .venv/bin/python -c "import pip, sys; assert sys.version_info >= (3, 11)" \
    2>/dev/null || "$python" -m venv --clear .venv
  .venv/bin/python -m pip install --quiet --editable ".[cloud,tpu]" \
    --find-links=https://storage.googleapis.com/jax-releases/libtpu_releases.html'

# Quoted once here, since the remote shell reads it again.
command=$(printf '%q ' .venv/bin/python -m sjft_jax.main --multihost \
  --config="$config" --workdir="$workdir" "$@")
on_all "cd sjft && exec $command"
