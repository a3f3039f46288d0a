#!/usr/bin/env bash
#SBATCH --job-name=evaluate
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --time=04:00:00
#SBATCH --signal=B:USR1@600
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
# Accuracy of a run, a checkpoint or a hub model on the test problems.
set -euo pipefail
# sbatch runs a copy of this file, so the project is looked for where it was submitted from.
for AMFT_HOME in "${AMFT_HOME:-}" "${SLURM_SUBMIT_DIR:-}" "$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)" ""; do
    [[ ! -f $AMFT_HOME/slurm/common.sh ]] || break
done
if [[ -z $AMFT_HOME ]]; then
    echo "nemo_amft: error: slurm/common.sh: not found; submit from the project's folder, or set AMFT_HOME" >&2
    exit 2
fi
# shellcheck source=slurm/common.sh
source "$AMFT_HOME/slurm/common.sh"

if [[ ${1:-} == -h || ${1:-} == --help ]]; then
    amft_help "sbatch [OPTIONS] slurm/evaluate.sh [--config-name NAME] [key=value ...]: evaluate checkpoint=PATH

The configuration is amft_math where none is named; --config-name evaluate is what python -m nemo_amft.evaluate takes by itself."
    exit 0
fi
amft_run evaluate amft_math "$@"
