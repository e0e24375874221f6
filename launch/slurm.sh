#!/usr/bin/env bash
# One node, all of its GPUs: sbatch launch/slurm.sh CONFIG WORKDIR [flags]
#SBATCH --job-name=sjft
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --requeue
#
# The command resumes, so a requeued job goes on where it was stopped.
# Not yet run on a cluster by us.
set -euo pipefail

config=${1:?'usage: sbatch launch/slurm.sh CONFIG WORKDIR [flags]'}
workdir=${2:?'usage: sbatch launch/slurm.sh CONFIG WORKDIR [flags]'}
shift 2
cd "${SLURM_SUBMIT_DIR:-.}"
exec srun .venv/bin/python -m sjft_jax.main \
  --config="$config" --workdir="$workdir" "$@"
