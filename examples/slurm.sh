#!/usr/bin/env bash
# A run on all GPUs of one or more nodes under Slurm, one process for each GPU.
#
#   sbatch --nodes 2 --gpus-per-node 8 examples/slurm.sh CHECKPOINT TASKS FOLDER [model arguments]
#
# FOLDER lies where all nodes see it, and `dualfocus` is installed in the environment that sbatch was called in. A job that
# is requeued, or sent again with the same FOLDER, answers only what is missing. Data sets and checkpoints of the hub are
# fetched by every node: fetch them before.
#SBATCH --job-name=dualfocus
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=32
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail

checkpoint=$1 tasks=$2 folder=$3 more=${4:+,$4}
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)

srun torchrun --nnodes "$SLURM_JOB_NUM_NODES" --nproc_per_node "${PROCESSES:-gpu}" \
    --rdzv_backend c10d --rdzv_id "$SLURM_JOB_ID" --rdzv_endpoint "$head:${PORT:-29500}" \
    -m dualfocus_lmms eval --tasks "$tasks" --batch_size auto --output_path "$folder" --log_samples \
    --model_args "pretrained=$checkpoint,trace=$folder/traces,resume=True$more"
