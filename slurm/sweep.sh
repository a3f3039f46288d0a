#!/usr/bin/env bash
#SBATCH --job-name=sweep
#SBATCH --nodes=8
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@600
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%A_%a.log
# A job array over seeds or over a grid, and a job that puts the runs side by side once all have ended.
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

usage='bash slurm/sweep.sh [SBATCH OPTIONS] -- [--config-name NAME] KEY=A,B,C ... [key=value ...]
bash slurm/sweep.sh [SBATCH OPTIONS] -- --study FILE [key=value ...]

One run for each combination of the keys that have several values, or for each cell and seed of a study (studies/), each a task
of one job array, in a folder of its own under RUN_DIR (runs/sweep). The report comes to RUN_DIR/report. The same command again
continues what has not finished.

  three seeds       -- trainer.seed=1,2,3
  paper, Table 11   -- controller.eta_mu=5e-5,1e-4,2e-4 controller.eta_h=1e-4,5e-4,1e-3
  paper, Table 12   -- controller.meta_every=5,10,20,50,100
  two at a time     --array=0-8%2 --nodes=2 -- ...
  a study on CPUs   --nodes=1 --ntasks-per-node=1 --gpus-per-node=0 -- --study studies/amft.yaml'
if [[ $# -eq 0 || $1 == -h || $1 == --help ]]; then
    amft_help "$usage"
    exit 0
fi

options=()
while [[ $# -gt 0 && $1 != -- ]]; do options+=("$1"); shift; done
[[ $# -gt 0 ]] || { amft_error "sweep.sh: found no --, expected sbatch's options before it and the configuration after it"; exit 2; }
shift

# A study lists its runs, a line each, when it is submitted; a task's number is its line.
if [[ ${1:-} == --study ]]; then
    RUN_DIR=$(amft_absolute "${RUN_DIR:-runs/sweep}")
    list=$RUN_DIR/study.txt
    if [[ -z ${SLURM_ARRAY_TASK_ID:-} ]]; then
        mkdir -p "$RUN_DIR"
        python=${VENV:-$AMFT_HOME/.venv}/bin/python
        [[ -x $python ]] || {
            amft_error "VENV=${VENV:-$AMFT_HOME/.venv}: found no bin/python, expected an environment that lists the study's runs" \
                "(make venv), also where they run in a container"
            exit 2
        }
        "$python" -m nemo_amft.study "${@:2}" --out "$RUN_DIR" --list >"$list.new"
        mv "$list.new" "$list"
        export AMFT_HOME RUN_DIR
        lines=$(wc -l <"$list") first=1 wait=()
        if [[ $(head -n 1 "$list") == *"explicit_log_dir=$RUN_DIR/base" ]]; then
            # Every other run starts from the model that this one makes.
            first=2 base=$(sbatch --parsable --array=1 "${options[@]}" "${BASH_SOURCE[0]}" -- "$@")
            base=${base%%;*}
            [[ -z $base ]] || wait=(--dependency="afterok:$base" --kill-on-invalid-dep=yes)
            [[ -z $base ]] || echo "base: job $base"
        fi
        job=$(sbatch --parsable --array="$first-$lines" "${wait[@]}" "${options[@]}" "${BASH_SOURCE[0]}" -- "$@")
        [[ -n $job ]] || exit 0   # --test-only
        job=${job%%;*}
        echo "$((lines - first + 1)) runs: job array $job"
        echo "report: job $(sbatch --parsable --dependency="afterany:$job" --kill-on-invalid-dep=yes "$AMFT_HOME/slurm/report.sh")"
        exit 0
    fi
    line=$(sed -n "${SLURM_ARRAY_TASK_ID}p" "$list")
    # Written by Python's shlex.join, whose quotes xargs takes off.
    mapfile -t words < <(xargs -n 1 printf '%s\n' <<<"${line#* -m nemo_amft.train }")
    arguments=()
    for word in "${words[@]}"; do
        case $word in
            exp_manager.explicit_log_dir=*) RUN_DIR=${word#*=} ;;
            exp_manager.name=*) AMFT_NAME=${word#*=} ;;
            *) arguments+=("$word") ;;
        esac
    done
    amft_run train quickstart "${arguments[@]}"
fi

# KEY=A,B is a sweep, as for hydra's multirun; a value in brackets or quotes is one value.
sweeps=() fixed=() points=1
for argument; do
    if [[ $argument =~ ^[^=]+=[^][\{\}\(\)\"\']*,[^][\{\}\(\)\"\']*$ ]]; then
        sweeps+=("$argument")
        IFS=, read -r -a values <<<"${argument#*=}"
        points=$((points * ${#values[@]}))
    else
        fixed+=("$argument")
    fi
done
((points > 1)) || { amft_error "sweep.sh: found no KEY=A,B, expected at least one key with several values"; exit 2; }

if [[ -z ${SLURM_ARRAY_TASK_ID:-} ]]; then
    export AMFT_HOME
    job=$(sbatch --parsable --array="0-$((points - 1))" "${options[@]}" "${BASH_SOURCE[0]}" -- "$@")
    [[ -n $job ]] || exit 0   # --test-only
    job=${job%%;*}
    echo "$points runs: job array $job"
    # afterany: a failed run is a row of the report, too.
    echo "report: job $(sbatch --parsable --dependency="afterany:$job" --kill-on-invalid-dep=yes "$AMFT_HOME/slurm/report.sh")"
    exit 0
fi

# This task's point: its number, written in the base of each sweep's length.
number=$SLURM_ARRAY_TASK_ID point=() folder='' name=''
for sweep in "${sweeps[@]}"; do
    key=${sweep%%=*}
    IFS=, read -r -a values <<<"${sweep#*=}"
    value=${values[number % ${#values[@]}]}
    number=$((number / ${#values[@]}))
    point+=("$key=$value")
    label=${key##*.}-${value//[^A-Za-z0-9._+-]/_}
    folder+=${folder:+_}$label
    [[ $key == trainer.seed ]] || name+=${name:+_}$label   # seeds share a name, and so a row of the report
done
RUN_DIR=${RUN_DIR:-runs/sweep}/$folder
AMFT_NAME=${name:-$SLURM_JOB_NAME}
amft_run train amft_math "${fixed[@]}" "${point[@]}"
