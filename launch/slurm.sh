#!/usr/bin/env bash
# One process for every GPU of every node:
#   sbatch [--nodes=N] launch/slurm.sh CONFIG WORKDIR [flags]
#SBATCH --job-name=sjft
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=4
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=TERM@120
#
# JAX finds coordinator, number and index of the processes in Slurm's
# variables, and gives each process the GPU of its local index. WORKDIR and the
# images must lie on a file system that all nodes share, or be gs:// or s3://
# paths. Give sbatch in the root of the project.
#
# Slurm sends SIGTERM before the time is over and when it preempts the job: the
# run saves and ends with code 0, and, if updates are left, the job is queued
# again here. The command resumes, also with another number of nodes.
# Not run by us on a cluster; checked by shellcheck only.
set -euo pipefail

usage='usage: sbatch launch/slurm.sh CONFIG WORKDIR [flags]'
config=${1:?$usage}
workdir=${2:?$usage}
shift 2
cd "${SLURM_SUBMIT_DIR:-.}"

# A process that fails ends the step, and so all others. Since Slurm 22.05 a step
# has to be told of the processors.
srun --kill-on-bad-exit=1 --cpus-per-task="${SLURM_CPUS_PER_TASK:-4}" \
  .venv/bin/python -m sjft_jax.main --multihost \
  --config="$config" --workdir="$workdir" "$@"

# A workdir in a bucket has no file that the shell could see.
unfinished=0
.venv/bin/python -c '
import sys
from sjft_jax import paths
page = paths.path(sys.argv[1]) / "report" / "index.html"
sys.exit(0 if page.exists() else 3)
' "$workdir" || unfinished=$?
if ((unfinished == 3)); then
  echo 'Stopped before the end: queued again.'
  scontrol requeue "$SLURM_JOB_ID"
fi
exit $((unfinished == 3 ? 0 : unfinished))
