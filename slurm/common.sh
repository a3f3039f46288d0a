#!/usr/bin/env bash
# What the job scripts of this folder share. Sourced by them, with AMFT_HOME set to the folder above this one.
#
# A job: settings -> container or venv -> every node sees the run directory -> doctor -> one process a GPU under srun -> the
# exit status decides: finished, failed, or stopped on request, in which case the same job is put back into the queue.

AMFT_STOPPED=75    # nemo_amft/parallel/signals.py: stopped at a step boundary because it was asked to, can be continued
AMFT_KILLED=138    # 128 + SIGUSR1: the signal came before Python could listen, so nothing was lost

amft_help() {
    cat <<TEXT
$1

Settings, from the environment:
  RUN_DIR            the run directory, on storage that all nodes see         runs/<job name>
  CONTAINER_IMAGE    .sqsh file, folder or registry reference                 none: the virtual environment
  CONTAINER_RUNTIME  pyxis (srun --container-image) or apptainer              pyxis
  MOUNTS             further folders for the container, SRC:DST[:ro],...      none
  VENV               virtual environment, where there is no container         .venv of the project
  HF_HOME            cache of hub models and data                             ~/.cache/huggingface
  MAX_REQUEUES       how often a job may be put back into the queue           20
  AMFT_HOME          the project's folder                                     where sbatch was called
  OMP_NUM_THREADS    threads a process for work on the CPU                    1

Resources are sbatch's: --nodes, --ntasks-per-node with as many --gpus-per-node, --time, --partition and --account, or
SBATCH_PARTITION, SBATCH_ACCOUNT and so on. Secrets (WANDB_API_KEY, HF_TOKEN) come from the environment and are not printed.
The same command again continues a run that has not finished. Signals to a job: scancel --batch --signal=USR1 JOB saves, puts
the job back and continues; scancel --signal=USR2 JOB prints the stacks of all processes.
TEXT
}

amft_error() { echo "nemo_amft: error: $*" >&2; }

amft_say() { echo "== $(date +%Y-%m-%dT%H:%M:%S) job $AMFT_JOB, restart $AMFT_RESTART: $*"; }

amft_absolute() { if [[ $1 == /* ]]; then echo "$1"; else echo "$PWD/$1"; fi; }

# --- settings ---------------------------------------------------------------------------------------------------------------

amft_settings() {
    AMFT_ASKED='' AMFT_STEP='' AMFT_FORWARD='' AMFT_STATUS=0
    trap amft_ask USR1 TERM   # before anything that takes time
    if [[ -z ${SLURM_JOB_ID:-} ]]; then
        amft_error "not in a Slurm job: sbatch $0 [key=value ...], or bash $0 --help"
        exit 2
    fi
    AMFT_JOB=$SLURM_JOB_ID
    # The last task of an array has the array's own number: only this form names the task alone.
    [[ -z ${SLURM_ARRAY_TASK_ID:-} ]] || AMFT_JOB=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
    AMFT_RESTART=${SLURM_RESTART_COUNT:-0}
    AMFT_NODES=$SLURM_JOB_NUM_NODES
    AMFT_TASKS=${SLURM_NTASKS_PER_NODE:-1}
    RUN_DIR=$(amft_absolute "${RUN_DIR:-runs/$SLURM_JOB_NAME}")
    CONTAINER_IMAGE=${CONTAINER_IMAGE:-}
    CONTAINER_RUNTIME=${CONTAINER_RUNTIME:-pyxis}
    MOUNTS=${MOUNTS:-}
    VENV=${VENV:-$AMFT_HOME/.venv}
    MAX_REQUEUES=${MAX_REQUEUES:-20}
    export HF_HOME=${HF_HOME:-${HOME:-$PWD}/.cache/huggingface} OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} PYTHONUNBUFFERED=1
    if [[ -z ${SLURM_JOB_START_TIME:-} ]]; then   # set by Slurm since 23.02; the clock of exp_manager.max_time_per_run
        local start
        start=$(scontrol show job "$AMFT_JOB" | sed -n 's/.*StartTime=\([^ ]*\).*/\1/p')
        SLURM_JOB_START_TIME=$(date +%s -d "$start")
        export SLURM_JOB_START_TIME
    fi
    mkdir -p "$RUN_DIR/logs" "$HF_HOME"
}

# Everything goes to the job's log, and to one file a restart.
amft_log() {
    AMFT_LOG=$RUN_DIR/logs/${SLURM_JOB_NAME}_${AMFT_JOB}_r$AMFT_RESTART.log
    exec > >(trap '' TERM USR1; exec tee -a "$AMFT_LOG") 2>&1   # Slurm signals every process of a step
    AMFT_TEE=$!
    trap 'exec >&- 2>&-; wait $AMFT_TEE || true' EXIT
}

amft_show_settings() {
    amft_say "settings"
    local name
    for name in RUN_DIR CONTAINER_IMAGE CONTAINER_RUNTIME MOUNTS VENV HF_HOME MAX_REQUEUES AMFT_HOME OMP_NUM_THREADS; do
        printf '  %-18s %s\n' "$name" "${!name:-(none)}"
    done
    printf '  %-18s %s\n' nodes "$AMFT_NODES x $AMFT_TASKS processes, $SLURM_JOB_NODELIST"
    printf '  %-18s %s\n' log "$AMFT_LOG"
}

# --- the way into a process ---------------------------------------------------------------------------------------------------

# Sets AMFT_SRUN, options of every srun, and AMFT_PYTHON, the command that runs Python in the container or the environment.
amft_enter() {
    # srun has not taken --cpus-per-task from sbatch since Slurm 22.05; without it a process may be bound to one core.
    local cpus=${SLURM_CPUS_PER_TASK:-$((${SLURM_CPUS_ON_NODE:-$AMFT_TASKS} / AMFT_TASKS))}
    AMFT_SRUN=(--kill-on-bad-exit=1 --wait=60 --cpus-per-task="$((cpus > 0 ? cpus : 1))")
    if [[ -z $CONTAINER_IMAGE ]]; then
        AMFT_PYTHON=("$VENV/bin/python")
        [[ ! -x ${AMFT_PYTHON[0]} ]] || return 0
        amft_error "VENV=$VENV: found no bin/python, expected CONTAINER_IMAGE, or an environment:" \
            "containers/install.sh (GPU; see containers/README.md) or make venv (CPU)"
        exit 2
    fi
    # The dependencies are the image's, the code is this folder's: what was submitted is what runs.
    local folder mounts=$MOUNTS
    for folder in "$PWD" "$AMFT_HOME" "$RUN_DIR" "$HF_HOME"; do
        [[ ,$mounts, == *",$folder:$folder,"* ]] || mounts+=${mounts:+,}$folder:$folder
    done
    export PYTHONPATH=$AMFT_HOME
    case $CONTAINER_RUNTIME in
        pyxis)
            AMFT_SRUN+=(--container-image="$CONTAINER_IMAGE" --container-mounts="$mounts")
            AMFT_SRUN+=(--container-workdir="$PWD" --no-container-mount-home)
            AMFT_PYTHON=(python)
            ;;
        apptainer)
            AMFT_PYTHON=(apptainer exec --nv --no-home --bind "$mounts" --pwd "$PWD" "$CONTAINER_IMAGE" python)
            ;;
        *)
            amft_error "CONTAINER_RUNTIME: found $CONTAINER_RUNTIME, expected pyxis or apptainer"
            exit 2
            ;;
    esac
}

# --- before the start ---------------------------------------------------------------------------------------------------------

# A run directory on a node's own disk would lose checkpoints, and ranks would wait for files that never come.
amft_check_storage() {
    amft_say "every node sees RUN_DIR"
    local token=$RUN_DIR/.seen_by_every_node
    echo "$AMFT_JOB.$AMFT_RESTART" >"$token"
    # shellcheck disable=SC2016
    srun --nodes="$AMFT_NODES" --ntasks="$AMFT_NODES" --ntasks-per-node=1 bash -c '
        for attempt in 1 2 3; do   # a network file system may take a moment
            [[ $(cat "$1" 2>/dev/null) == "$2" ]] && exit 0
            sleep "$attempt"
        done
        echo "nemo_amft: error: RUN_DIR: $(hostname) does not see ${1%/*} as $3 does, expected storage all nodes share" >&2
        exit 2' check "$token" "$AMFT_JOB.$AMFT_RESTART" "$(hostname)" || AMFT_STATUS=$?
    rm -f "$token"
    [[ $AMFT_STATUS != 2 ]] || exit 2
    if [[ $AMFT_STATUS != 0 ]]; then amft_requeue "Slurm cannot start a step on every node"; fi
}

amft_doctor() {
    amft_say "doctor"
    srun "${AMFT_SRUN[@]}" --nodes=1 --ntasks=1 "${AMFT_PYTHON[@]}" -m nemo_amft.doctor || exit 1
}

# --- the run ------------------------------------------------------------------------------------------------------------------

# amft_run MODULE CONFIG ARGUMENT...: the whole job. CONFIG is used where the arguments have no --config-name.
amft_run() {
    local module=$1 config=$2 argument
    shift 2
    amft_settings
    for argument; do
        case $argument in
            --config-name | --config-name=*) config= ;;
            exp_manager.explicit_log_dir=* | exp_manager.exp_dir=*)
                amft_error "$argument: the run directory of a job is set by RUN_DIR=..."
                exit 2
                ;;
        esac
    done
    amft_log
    amft_show_settings
    amft_enter
    amft_check_storage
    [[ -n $AMFT_ASKED ]] || amft_doctor
    [[ -n $AMFT_ASKED ]] || amft_say "$module"
    amft_step srun "${AMFT_SRUN[@]}" "${AMFT_PYTHON[@]}" -m "nemo_amft.$module" ${config:+--config-name "$config"} \
        trainer.num_nodes="$AMFT_NODES" trainer.devices="$AMFT_TASKS" exp_manager.explicit_log_dir="'$RUN_DIR'" \
        exp_manager.name="'${AMFT_NAME:-$SLURM_JOB_NAME}'" "$@"
    amft_end
}

# The whole job of report.sh.
amft_report() {
    amft_settings
    amft_log
    amft_show_settings
    amft_enter
    local runs=() files=("$RUN_DIR"/*/metrics.jsonl) file
    [[ ! -f $RUN_DIR/study.txt ]] || files=("$RUN_DIR"/*/seed_*/metrics.jsonl)   # without its base, which is no cell
    for file in "${files[@]}"; do [[ ! -f $file ]] || runs+=("${file%/*}"); done
    ((${#runs[@]})) || { amft_error "RUN_DIR=$RUN_DIR: found no */metrics.jsonl, expected run directories"; exit 2; }
    amft_say "report"
    amft_step srun "${AMFT_SRUN[@]}" "${AMFT_PYTHON[@]}" -m nemo_amft.report "${runs[@]}" --out "$RUN_DIR/report"
    amft_end
}

# Runs its arguments as the job's main step, forwards requests to stop, and leaves the exit status in AMFT_STATUS.
amft_step() {
    if [[ -n $AMFT_ASKED ]]; then AMFT_STATUS=$AMFT_STOPPED; return; fi
    "$@" &
    AMFT_STEP=$!
    [[ -z $AMFT_ASKED ]] || amft_forward
    AMFT_INTERRUPTED=yes
    while [[ -n $AMFT_INTERRUPTED ]]; do   # a signal ends the wait, not the step
        AMFT_INTERRUPTED=''
        wait "$AMFT_STEP" && AMFT_STATUS=0 || AMFT_STATUS=$?
    done
    trap '' USR1 TERM
    [[ -z $AMFT_FORWARD ]] || kill "$AMFT_FORWARD" 2>/dev/null || true
}

amft_ask() {
    AMFT_ASKED=yes AMFT_INTERRUPTED=yes
    amft_say "asked to stop"
    [[ -z $AMFT_STEP ]] || amft_forward
}

# Passes the request on until the step ends: a process that is just being started may miss one. By way of srun, which sends it to
# its own tasks only; a scancel that Slurm keeps waiting could hit the job's next life.
amft_forward() {
    [[ -z $AMFT_FORWARD ]] || return 0
    (
        trap - USR1 TERM EXIT
        exec >/dev/null 2>&1
        while kill -USR1 "$AMFT_STEP"; do sleep 5; done
    ) &
    AMFT_FORWARD=$!
}

# Whether a node is gone that Slurm still takes for good: it puts the job back only once SlurmdTimeout is over, and srun gives up
# before that.
amft_lost_node() {
    [[ $AMFT_STATUS -ne 2 && $AMFT_NODES -gt 1 ]] || return 1   # 2: a mistake in the configuration
    ! timeout --kill-after=5 60 \
        srun --overlap --nodes="$AMFT_NODES" --ntasks="$AMFT_NODES" --ntasks-per-node=1 true >/dev/null 2>&1
}

amft_end() {
    case $AMFT_STATUS in
        0) amft_say "finished"; exit 0 ;;
        "$AMFT_STOPPED" | "$AMFT_KILLED") amft_requeue "stopped on request" ;;
    esac
    # A process that is killed while it starts, because the job was asked to stop, did not fail.
    if [[ -n $AMFT_ASKED && $AMFT_STATUS -ge 128 ]]; then amft_requeue "stopped on request"; fi
    if amft_lost_node; then amft_requeue "a node does not answer"; fi
    amft_say "failed with status $AMFT_STATUS"
    exit "$AMFT_STATUS"
}

# amft_requeue REASON: ends this life of the job, and puts it back into the queue where that is still possible.
amft_requeue() {
    if ((AMFT_RESTART >= MAX_REQUEUES)); then
        amft_say "$1; put back $AMFT_RESTART times already (MAX_REQUEUES=$MAX_REQUEUES): the same command continues"
    elif [[ $(scontrol show job "$AMFT_JOB") != *JobState=RUNNING* ]]; then
        amft_say "$1; the job was cancelled: the same command continues"
    else
        amft_say "$1: back into the queue"
        scontrol requeue "$AMFT_JOB" || amft_say "Slurm does not put it back: the same command continues"
    fi
    exit "$AMFT_STOPPED"
}
