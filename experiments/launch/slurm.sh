#!/usr/bin/env bash
# Trains on the GPUs of a SLURM cluster and queues the job again while that helps:
#   sbatch --nodes=4 experiments/launch/slurm.sh --config=imagenet:goyal90,resnet50 --workdir=SHARED/resnet50
# One process a GPU, each with its share of the cores: jax takes the GPU of SLURM_LOCALID, so all of a node's must be
# visible to each process (--gpus-per-node, not --gpus-per-task).
#SBATCH --job-name=resnet_jax
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=12
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
# TERM comes to every process so many seconds before the time is up, up to 60 sooner. The calls of the step at hand, an
# evaluation that is due and a checkpoint must fit in: at the end SLURM sends it again, and a second one does not wait.
#SBATCH --signal=TERM@300

# The processes end each other, in order; SLURM would interrupt the last checkpoint of those that are a little later.
srun --label --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" --kill-on-bad-exit=0 --wait=600 \
    resnet-jax train --joining_seconds=600 "$@"
code=$? # the highest of all processes'; 128 + N: one was ended by signal N

case $code in
    70 | 71 | 72 | 73 | 75 | 134 | 137 | 142 | 143)
        # Not for ever: where one process fails with 1, the others' 71 hides it.
        if ((${SLURM_RESTART_COUNT:-0} < 50)); then
            scontrol requeue "$SLURM_JOB_ID"
        fi
        ;;
esac
exit "$code"
