#!/usr/bin/env bash
#SBATCH --job-name=report
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --time=00:30:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
# Puts the runs of a folder side by side; sweep.sh submits it.
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
    amft_help "RUN_DIR=FOLDER sbatch slurm/report.sh: put the runs in FOLDER/* side by side, in FOLDER/report"
    exit 0
fi
RUN_DIR=${RUN_DIR:-runs/sweep}
amft_report
