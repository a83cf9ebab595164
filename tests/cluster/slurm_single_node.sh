#!/usr/bin/env bash
# A throw-away Slurm of one node on loopback, without systemd, docker or cgroups.
#
#   slurm_single_node.sh start|stop|restart-controller|fail-node|resume-node
#
# Needs Debian's slurm-wlm and munge. Everything (key, sockets, configuration, spool, logs, pids) lies
# in $SLURM_LAB, nothing in /etc or /run, so that a test has a cluster of its own. Runs as root or as
# an ordinary user, who is then SlurmUser; jobs run as the caller.
set -euo pipefail

: "${SLURM_LAB:?a folder, with a short path: it holds sockets}"
: "${CTLD_PORT:?a free port}" "${SLURMD_PORT:?a free port}"
cpus=${NODE_CPUS:-8} # slots offered; may exceed the real cores
export SLURM_CONF=$SLURM_LAB/slurm.conf
node=$(hostname -s)
user=$(id -un)

configure() {
  mkdir -p "$SLURM_LAB"/{munge,controller,spool,log,run,dev}
  chmod 755 "$SLURM_LAB"
  chmod 700 "$SLURM_LAB/munge"
  [[ -s $SLURM_LAB/munge/key ]] || (
    umask 077
    dd if=/dev/urandom of="$SLURM_LAB/munge/key" bs=1024 count=1 status=none
  )
  # Two GPUs that are plain files (or /dev/null by another name): enough for Slurm to share them out.
  local each
  for each in 0 1; do
    [[ -e $SLURM_LAB/dev/gpu$each ]] || mknod "$SLURM_LAB/dev/gpu$each" c 1 3 2>/dev/null ||
      touch "$SLURM_LAB/dev/gpu$each"
    echo "NodeName=$node Name=gpu File=$SLURM_LAB/dev/gpu$each"
  done >"$SLURM_LAB/gres.conf"
  cat >"$SLURM_CONF" <<CONF
ClusterName=lab
SlurmctldHost=$node(127.0.0.1)
SlurmUser=$user
SlurmdUser=$user
AuthType=auth/munge
AuthInfo=socket=$SLURM_LAB/run/munge.sock,cred_expire=5
CredType=cred/munge
SlurmctldPort=$CTLD_PORT
SlurmdPort=$SLURMD_PORT
StateSaveLocation=$SLURM_LAB/controller
SlurmdSpoolDir=$SLURM_LAB/spool
SlurmctldPidFile=$SLURM_LAB/run/slurmctld.pid
SlurmdPidFile=$SLURM_LAB/run/slurmd.pid
SlurmctldLogFile=$SLURM_LAB/log/slurmctld.log
SlurmdLogFile=$SLURM_LAB/log/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SwitchType=switch/none
SlurmdParameters=config_overrides
ReturnToService=2
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
MinJobAge=300
SchedulerType=sched/backfill
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1
# a job in "urgent" puts one in "main" back into the queue: SIGCONT, SIGTERM, GraceTime, then SIGKILL
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
KillWait=5
MessageTimeout=30
SlurmctldTimeout=30
SlurmdTimeout=30
MaxArraySize=${MAX_ARRAY:-1001}
GresTypes=gpu
NodeName=$node NodeAddr=127.0.0.1 CPUs=$cpus RealMemory=4000 Gres=gpu:2 State=UNKNOWN
PartitionName=main Nodes=$node Default=YES MaxTime=1:00:00 State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=5
PartitionName=urgent Nodes=$node MaxTime=1:00:00 State=UP PriorityTier=10 PreemptMode=OFF
CONF
}

wait_for() {
  local tries=0
  until "$@" &>/dev/null; do
    ((++tries < 300)) || {
      echo "waited 30 s in vain for: $*" >&2
      return 1
    }
    sleep 0.1
  done
}

dead() { ! kill -0 "$1" || grep -q '^State:.Z' "/proc/$1/status"; } # its parent may ask for it late
up() { sinfo -h -o %T | grep -qE '^(idle|mixed|allocated)'; }
queue_empty() { [[ -z $(squeue -h) ]]; }

start() {
  configure
  rm -f "$SLURM_LAB"/run/munge.sock*
  munged --force --num-threads=2 --key-file="$SLURM_LAB/munge/key" \
    --socket="$SLURM_LAB/run/munge.sock" --pid-file="$SLURM_LAB/run/munged.pid" \
    --log-file="$SLURM_LAB/log/munged.log" --seed-file="$SLURM_LAB/munge/seed"
  wait_for munge -n -S "$SLURM_LAB/run/munge.sock"
  slurmctld
  slurmd -N "$node"
  wait_for scontrol ping
  wait_for up
}

stop() { # DAEMON SIGNAL
  local file=$SLURM_LAB/run/$1.pid pid
  [[ -s $file ]] || return 0
  pid=$(<"$file")
  kill "-$2" "$pid" 2>/dev/null || return 0
  wait_for dead "$pid" || kill -KILL "$pid"
}

case ${1-} in
  start) start ;;
  stop)
    scancel -u "$user" 2>/dev/null || true
    wait_for queue_empty || true
    for daemon in slurmd slurmctld munged; do # nothing of it is kept, so there is nothing to wait for
      stop "$daemon" KILL
    done
    ;;
  restart-controller)
    stop slurmctld TERM
    slurmctld
    wait_for scontrol ping
    ;;
  fail-node) scontrol update NodeName="$node" State=DOWN Reason=test ;; # its jobs end as NODE_FAIL
  resume-node)
    scontrol update NodeName="$node" State=RESUME 2>/dev/null || true # may have come back by itself
    wait_for up
    ;;
  *)
    echo "usage: $0 start|stop|restart-controller|fail-node|resume-node" >&2
    exit 2
    ;;
esac
