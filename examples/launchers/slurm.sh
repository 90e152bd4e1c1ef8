#!/bin/bash
# A training on the nodes of a Slurm job:   sbatch --nodes 4 slurm.sh
# Yours to change: the lines below, DATA, RUNS and the command at the end. DATA, RUNS and $HOME must lie where all nodes see them.
#SBATCH --job-name=czsl
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@300
set -euo pipefail

DATA=${DATA:-/shared/mydata}
RUNS=${RUNS:-/shared/runs}
NAME=slurm-$SLURM_JOB_ID
PORT=$((20000 + SLURM_JOB_ID % 10000))

# This job's own token and state: other jobs, also on the same nodes, are not touched.
JOB_HOME=$HOME/.czsl/slurm-$SLURM_JOB_ID
mkdir -p -m 700 "$JOB_HOME"
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$JOB_HOME/auth_token CZSL_CACHE=${CZSL_CACHE:-$RUNS/.cache}

mapfile -t NODES < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
HEAD=$(srun --nodes=1 --ntasks=1 --nodelist="${NODES[0]}" hostname -I | awk '{print $1}')

on() { # on NODE COMMAND...: run a command there that keeps what it started until the job ends
    local node=$1
    shift
    srun --overlap --nodes=1 --ntasks=1 --nodelist="$node" --cpus-per-task="$SLURM_CPUS_PER_TASK" \
        --export="ALL,CZSL_HOME=$JOB_HOME/$node" "$@"
}

# Slurm ends what a step leaves behind, so each step stays until the job is over.
on "${NODES[0]}" bash -c "czsl cluster up --host $HEAD --port $PORT --cpus $SLURM_CPUS_PER_TASK --gpus \${SLURM_GPUS_ON_NODE:-0} && touch $JOB_HOME/head-is-up && exec sleep infinity" &
until [ -f "$JOB_HOME/head-is-up" ]; do sleep 2; done
for node in "${NODES[@]:1}"; do
    on "$node" bash -c "czsl cluster up --join $HEAD:$PORT --cpus $SLURM_CPUS_PER_TASK --gpus \${SLURM_GPUS_ON_NODE:-0} && exec sleep infinity" &
done

finish() {
    for node in "${NODES[@]}"; do on "$node" czsl cluster down || true; done
    rm -rf "$JOB_HOME"
}
trap finish EXIT

# At the time limit Slurm sends TERM to this script: it is passed on, and czsl saves a checkpoint (go on with: czsl train --resume RUN).
on "${NODES[0]}" czsl train --address "$HEAD:$PORT" --nodes "${#NODES[@]}" --wait 300 \
    --method clusPro --data "$DATA" --clip ViT-L-14 --out "$RUNS" --name "$NAME" &
TRAINING=$!
trap 'kill -TERM $TRAINING' TERM
code=0
wait "$TRAINING" || code=$?
while kill -0 "$TRAINING" 2> /dev/null; do # the trap ends a wait early
    code=0
    wait "$TRAINING" || code=$?
done
exit "$code"
