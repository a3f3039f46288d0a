#!/usr/bin/env bash
# local_slurm.sh - a throw-away real Slurm (munged + slurmctld + N x slurmd) on one Debian 12
# machine: no systemd, no cgroups, loopback only, everything under one temp folder.
#
#   local_slurm.sh install              apt-get the Debian packages, and what builds a SPANK plugin (idempotent)
#   local_slurm.sh start                set up and start (idempotent; < 20 s); prints `export SLURM_CONF=...`
#   local_slurm.sh stop                 stop every process it started (by pid) and delete the folder
#   local_slurm.sh status               exit 0 when all nodes answer
#   local_slurm.sh kill-node NODE       SIGKILL that node's slurmd and everything it runs (a node crash)
#   local_slurm.sh fail-node NODE       the same, and tell slurmctld at once (else: after SlurmdTimeout, ~30 s)
#   local_slurm.sh start-node NODE      bring the node back
#
# Settings (environment):
#   LOCAL_SLURM_DIR    folder            (default /tmp/local-slurm.$UID)
#   LOCAL_SLURM_NODES  number of nodes   (default 2)
#   LOCAL_SLURM_CPUS   CPUs *declared* per node, need not exist    (default 8)
#   LOCAL_SLURM_GPUS   fake GPUs declared per node, 0 for none     (default 2)
#   LOCAL_SLURM_NETNS  1: each node in its own network namespace on a 10.203.0.0/24 bridge of its own
#   LOCAL_SLURM_PRIVATE  folders each node has a copy of its own of, empty at first, as a node's local disk (needs root)
#   LOCAL_SLURM_EXTRA  extra lines for slurm.conf
#   LOCAL_SLURM_PLUGSTACK  file used as plugstack.conf (SPANK)
set -euo pipefail

D=${LOCAL_SLURM_DIR:-/tmp/local-slurm.$(id -u)}
N=${LOCAL_SLURM_NODES:-2}
CPUS=${LOCAL_SLURM_CPUS:-8}
GPUS=${LOCAL_SLURM_GPUS:-2}
NETNS=${LOCAL_SLURM_NETNS:-0}
CTLD_PORT=${LOCAL_SLURM_CTLD_PORT:-16817}
NODE_PORT=${LOCAL_SLURM_NODE_PORT:-17000}      # node i listens on NODE_PORT + i
export SLURM_CONF=$D/slurm.conf
PATH=$PATH:/usr/sbin:/sbin
NS_PREFIX=lslurm
SUBNET=10.203.0

die() { echo "local_slurm: $*" >&2; exit 1; }
alive() { [[ -s $1 ]] && kill -0 "$(cat "$1")" 2>/dev/null; }

install_packages() {
    local missing=() p
    for p in slurmctld slurmd slurm-client munge iproute2 gcc libc6-dev libslurm-dev; do
        dpkg-query -W -f='${Status}' "$p" 2>/dev/null | grep -q 'ok installed' || missing+=("$p")
    done
    [[ ${#missing[@]} -eq 0 ]] && return 0
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -q
    apt-get install -y -q --no-install-recommends "${missing[@]}"
}

node_addr() { if [[ $NETNS == 1 ]]; then echo "$SUBNET.$((10 + $1))"; else echo 127.0.0.1; fi; }

write_config() {
    local ctl_addr=127.0.0.1 mem i g
    [[ $NETNS == 1 ]] && ctl_addr=$SUBNET.1
    mem=$(awk '/MemTotal/ {print int($2 / 1024 / 2)}' /proc/meminfo)
    mkdir -p "$D"/{run,log,state,dev,job} ; chmod 755 "$D"; chmod 1777 "$D/job"
    [[ -s $D/munge.key ]] || (umask 077; head -c 128 /dev/urandom >"$D/munge.key")
    {
        cat <<CONF
ClusterName=local
SlurmctldHost=$(hostname -s)($ctl_addr)
SlurmctldPort=$CTLD_PORT
SlurmUser=$(id -un)
SlurmdUser=$(id -un)
AuthType=auth/munge
AuthInfo=socket=$D/run/munge.socket,cred_expire=${LOCAL_SLURM_REQUEUE_DELAY:-5}
CredType=cred/munge
StateSaveLocation=$D/state
SlurmdSpoolDir=$D/spool.%n
SlurmctldPidFile=$D/run/slurmctld.pid
SlurmdPidFile=$D/run/slurmd.%n.pid
SlurmctldLogFile=$D/log/slurmctld.log
SlurmdLogFile=$D/log/slurmd.%n.log
SlurmctldDebug=info
SlurmdDebug=info
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/filetxt
JobCompLoc=$D/log/jobcomp.txt
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SwitchType=switch/none
MpiDefault=none
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0
SlurmdParameters=config_overrides
JobRequeue=1
ReturnToService=2
SlurmctldTimeout=30
SlurmdTimeout=${LOCAL_SLURM_SLURMD_TIMEOUT:-10}
InactiveLimit=0
KillWait=${LOCAL_SLURM_KILLWAIT:-5}
MinJobAge=3600
Waittime=0
MessageTimeout=10
MailProg=/bin/true
PlugStackConfig=$D/plugstack.conf
CONF
        [[ $GPUS -gt 0 ]] && echo "GresTypes=gpu"
        for ((i = 1; i <= N; i++)); do
            echo -n "NodeName=node$i NodeHostname=$(hostname -s) NodeAddr=$(node_addr $i) Port=$((NODE_PORT + i))" \
                "CPUs=$CPUS RealMemory=$mem State=UNKNOWN"
            [[ $GPUS -gt 0 ]] && echo -n " Gres=gpu:$GPUS"
            echo
        done
        echo "PartitionName=batch Nodes=ALL Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO"
        echo "${LOCAL_SLURM_EXTRA:-}"
    } >"$D/slurm.conf"
    { echo "127.0.0.1 localhost"; echo "$ctl_addr $(hostname -s)"; for ((i = 1; i <= N; i++)); do echo "$(node_addr $i) node$i"; done; } >"$D/hosts"
    : >"$D/gres.conf"
    if [[ $GPUS -gt 0 ]]; then       # stand-ins (copies of /dev/null): Slurm wants char devices to count and index
        for ((g = 0; g < GPUS; g++)); do [[ -c $D/dev/nvidia$g ]] || mknod -m 666 "$D/dev/nvidia$g" c 1 3; done
        if [[ $GPUS -eq 1 ]]; then g=0; else g="[0-$((GPUS - 1))]"; fi
        echo "NodeName=node[1-$N] Name=gpu File=$D/dev/nvidia$g" >"$D/gres.conf"
    fi
    if [[ -n ${LOCAL_SLURM_PLUGSTACK:-} ]]; then cp "$LOCAL_SLURM_PLUGSTACK" "$D/plugstack.conf"; else : >"$D/plugstack.conf"; fi
}

netns_up() {
    [[ $NETNS == 1 ]] || return 0
    local i ns
    ip link show ${NS_PREFIX}br >/dev/null 2>&1 || {
        ip link add ${NS_PREFIX}br type bridge
        ip addr add $SUBNET.1/24 dev ${NS_PREFIX}br
        ip link set ${NS_PREFIX}br up
    }
    for ((i = 1; i <= N; i++)); do
        ns=${NS_PREFIX}$i
        ip netns list | grep -qw "$ns" && continue
        ip netns add "$ns"
        ip link add "${NS_PREFIX}v$i" type veth peer name eth0 netns "$ns"
        ip link set "${NS_PREFIX}v$i" master ${NS_PREFIX}br up
        ip -n "$ns" addr add "$(node_addr "$i")/24" dev eth0
        ip -n "$ns" link set lo up
        ip -n "$ns" link set eth0 up
    done
}
netns_down() {
    local i
    command -v ip >/dev/null || return 0
    for i in $(ip netns list 2>/dev/null | awk -v p="^${NS_PREFIX}[0-9]+$" '$1 ~ p {print $1}'); do ip netns del "$i"; done
    ip link del ${NS_PREFIX}br 2>/dev/null || true
}

# A node is a slurmd in mount + PID + UTS (+ network) namespaces of its own where that is allowed (root):
# `hostname` is the node's name, /etc/hosts knows all nodes, and one SIGKILL takes the node and all it runs.
can_unshare() { unshare --mount --uts --pid --fork --mount-proc true 2>/dev/null; }

start_node() {
    local name=$1 i=${1#node} wrap=()
    alive "$D/run/$name.pid" && return 0
    mkdir -p "$D/spool.$name"
    if can_unshare; then
        [[ $NETNS == 1 ]] && wrap=(nsenter "--net=/run/netns/${NS_PREFIX}$i")   # not `ip netns exec`: it hides /sys/fs/cgroup, which slurmd wants
        # shellcheck disable=SC2016
        setsid "${wrap[@]}" unshare --mount --uts --pid --fork --kill-child --mount-proc bash -c '
            hostname "$1" && mount --bind "$2/hosts" /etc/hosts || exit 1
            for d in $4; do
                mkdir -p "$d" "$2/spool.$1/private$d" && chmod --reference="$d" "$2/spool.$1/private$d" &&
                    mount --bind "$2/spool.$1/private$d" "$d" || exit 1
            done
            slurmd -D $3 -N "$1" -f "$2/slurm.conf" & trap "kill $!" TERM; wait $!' \
            node "$name" "$D" "${2:-}" "${LOCAL_SLURM_PRIVATE:-}" </dev/null >>"$D/log/slurmd.$name.out" 2>&1 &
        echo $! >"$D/run/$name.pid"
    else
        [[ $NETNS == 1 ]] && die "LOCAL_SLURM_NETNS=1 needs namespaces"
        # shellcheck disable=SC2086
        setsid slurmd -D ${2:-} -N "$name" -f "$D/slurm.conf" </dev/null >>"$D/log/slurmd.$name.out" 2>&1 &
        echo $! >"$D/run/$name.pid"
    fi
}

descendants() { local c; for c in $(cat /proc/"$1"/task/*/children 2>/dev/null || true); do echo "$c"; descendants "$c"; done; }

kill_node() {
    local pid pids=() p q
    pid=$(cat "$D/run/$1.pid" 2>/dev/null) || return 0
    rm -f "$D/run/$1.pid"
    # a slurmstepd leaves slurmd's tree but holds the node's log open (needed only without a PID namespace)
    for p in $(pgrep -x slurmstepd); do
        [[ -n $(find "/proc/$p/fd" -lname "$D/log/slurmd.$1.log" 2>/dev/null) ]] || continue
        pids+=("$p"); for q in $(descendants "$p"); do pids+=("$q"); done
    done
    for q in $(descendants "$pid"); do pids+=("$q"); done
    kill -KILL "$pid" ${pids[@]+"${pids[@]}"} 2>/dev/null || true
}

status() {
    if ! { alive "$D/run/munged.pid" && alive "$D/run/slurmctld.pid"; }; then echo "local_slurm: down"; return 1; fi
    local up
    up=$(timeout 10 sinfo -h -N -o '%N %t' 2>/dev/null | awk '$2 ~ /^(idle|mix|alloc|comp)$/' | sort -u | wc -l)
    echo "local_slurm: $up/$N nodes up; export SLURM_CONF=$SLURM_CONF"
    [[ $up -eq $N ]]
}

start() {
    if ! { command -v slurmctld && command -v munged; } >/dev/null; then install_packages >&2; fi
    local i t=0
    write_config
    netns_up
    alive "$D/run/munged.pid" || munged --force --key-file="$D/munge.key" --socket="$D/run/munge.socket" \
        --pid-file="$D/run/munged.pid" --log-file="$D/log/munged.log" --seed-file="$D/run/munged.seed"
    alive "$D/run/slurmctld.pid" || slurmctld -f "$D/slurm.conf" </dev/null >>"$D/log/slurmctld.out" 2>&1 \
        || die "slurmctld did not start: $(tail -3 "$D/log/slurmctld.log" 2>/dev/null)"
    for ((i = 1; i <= N; i++)); do start_node "node$i"; done
    until status >/dev/null; do
        for ((i = 1; i <= N; i++)); do alive "$D/run/node$i.pid" || die "slurmd node$i died: $(tail -n 3 "$D/log/slurmd.node$i.log")"; done
        t=$((t + 1)); [[ $t -gt 75 ]] && { sinfo -N -l >&2 || true; tail -n 5 "$D"/log/slurm*.log >&2; die "nodes did not come up"; }
        sleep 0.2
    done
    echo "export SLURM_CONF=$SLURM_CONF"
}

stop() {
    [[ -d $D ]] || return 0
    local i f p
    if alive "$D/run/slurmctld.pid"; then timeout 10 scancel -u "$(id -un)" 2>/dev/null || true; sleep 0.3; fi
    for f in "$D"/run/node*.pid; do
        [[ -e $f ]] || continue
        i=${f##*/}; kill_node "${i%.pid}"
    done
    for f in slurmctld munged; do
        alive "$D/run/$f.pid" || continue
        p=$(cat "$D/run/$f.pid"); kill "$p" 2>/dev/null || true
        for ((i = 0; i < 20; i++)); do kill -0 "$p" 2>/dev/null || break; sleep 0.1; done
        kill -KILL "$p" 2>/dev/null || true
    done
    netns_down
    for f in "$D"/spool.*; do [[ -d $f ]] && { umount -q -R "$f" 2>/dev/null || true; }; done
    rm -rf --one-file-system "$D"
}

case ${1:-} in
    install) install_packages ;;
    start) start ;;
    stop) stop ;;
    status) status ;;
    kill-node) kill_node "${2:?node}" ;;
    fail-node) kill_node "${2:?node}"; scontrol update "NodeName=$2" State=DOWN Reason=killed ;;
    start-node) start_node "${2:?node}" -b ;;      # -b: register as rebooted, as a crashed node would
    *) sed -n '2,25p' "$0"; exit 2 ;;
esac
