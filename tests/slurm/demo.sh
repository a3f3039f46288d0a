#!/usr/bin/env bash
# make slurm-demo: starts a real Slurm of two nodes on this machine, submits the quickstart to it as a user would, follows the log
# to the final table, and stops Slurm. Arguments are config overrides. Needs root, and Debian's Slurm packages (installed if absent).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
export LOCAL_SLURM_DIR LOCAL_SLURM_NODES=2 LOCAL_SLURM_GPUS=1 LOCAL_SLURM_CPUS=8 SLURM_CONF RUN_DIR=$PWD/runs/slurm_demo
LOCAL_SLURM_DIR=$(mktemp -d /tmp/amft-demo-XXXXXX)
SLURM_CONF=$LOCAL_SLURM_DIR/slurm.conf
chmod 755 "$LOCAL_SLURM_DIR"
rm -rf "$RUN_DIR"   # a finished run is not run again
mkdir -p "$RUN_DIR"
trap 'kill "${follower:-}" 2>/dev/null || true; tests/slurm/local_slurm.sh stop' EXIT
tests/slurm/local_slurm.sh start

set -x
job=$(sbatch --parsable --nodes=2 --ntasks-per-node=1 --gpus-per-node=1 --output="$RUN_DIR/job.log" \
    slurm/amft_math.sh --config-name quickstart "$@")
set +x
touch "$RUN_DIR/job.log"
tail --follow --lines=+1 "$RUN_DIR/job.log" &
follower=$!
state=PENDING
while [[ $state =~ ^(PENDING|CONFIGURING|RUNNING|COMPLETING|REQUEUED)$ ]]; do
    sleep 1
    state=$(scontrol show job "$job" | sed -n 's/.*JobState=\([A-Z_]*\).*/\1/p')
done
sleep 1
echo "job $job: $state"
[[ $state == COMPLETED ]]
