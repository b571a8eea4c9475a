#!/usr/bin/env bash
# A Slurm of its own on one machine, in seconds: for trying a sweep before the real cluster, and for the tests.
#
#   bash slurm/single_host.sh install     Debian's slurm-wlm and munge, with apt (needs root)
#   eval "$(bash slurm/single_host.sh up)"    starts it and sets SLURM_CONF for this shell
#   bash slurm/single_host.sh status
#   bash slurm/single_host.sh down
#
# SLURM_LAB        its folder (default: $TMPDIR/tunediff-slurm)      SLURM_LAB_NODES   how many nodes it pretends to have (4)
# SLURM_LAB_PORT   first of the ports it listens on (16817)
#
# Everything lives in that folder: no system service, no file of the system's own Slurm is touched. There is no
# accounting database, so `sacct` has nothing to say. Jobs are held back by nothing but their number of CPUs.
set -euo pipefail

LAB=${SLURM_LAB:-${TMPDIR:-/tmp}/tunediff-slurm}
NODES=${SLURM_LAB_NODES:-4}
PORT=${SLURM_LAB_PORT:-16817}
export SLURM_CONF=$LAB/slurm.conf
PATH=$PATH:/usr/sbin:/sbin

answers() { [ -f "$SLURM_CONF" ] && timeout 5 scontrol ping 2>/dev/null | grep -q "is UP"; }

configure() {
  mkdir -p "$LAB"/{state,spool,run,log,munge}
  chmod 700 "$LAB/munge"
  local host user
  host=$(hostname -s)
  user=$(id -un)
  {
    echo "ClusterName=single
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$PORT
SlurmUser=$user
SlurmdUser=$user
AuthType=auth/munge
AuthInfo=socket=$LAB/munge/socket,cred_expire=5
CredType=cred/munge
StateSaveLocation=$LAB/state
SlurmdSpoolDir=$LAB/spool/%n
SlurmctldPidFile=$LAB/run/slurmctld.pid
SlurmdPidFile=$LAB/run/slurmd.%n.pid
SlurmctldLogFile=$LAB/log/slurmctld.log
SlurmdLogFile=$LAB/log/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=1,bf_interval=2,batch_sched_delay=0,sched_min_interval=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
ReturnToService=2
MinJobAge=3600
KillWait=5
MailProg=/bin/true
SlurmdParameters=config_overrides"
    for n in $(seq "$NODES"); do
      echo "NodeName=n$n NodeHostname=$host NodeAddr=127.0.0.1 Port=$((PORT + 10 + n)) CPUs=4 CoresPerSocket=4 RealMemory=8000 State=UNKNOWN"
    done
    echo "PartitionName=dev Nodes=ALL Default=YES MaxTime=1-00:00:00 PriorityTier=1 State=UP OverSubscribe=NO
PartitionName=high Nodes=ALL Default=NO MaxTime=1-00:00:00 PriorityTier=10 PreemptMode=off State=UP OverSubscribe=NO"
  } >"$SLURM_CONF"
}

start_munge() {
  [ -f "$LAB/munge/key" ] || { head -c 1024 /dev/urandom >"$LAB/munge/key"; chmod 600 "$LAB/munge/key"; }
  if ! munge --socket="$LAB/munge/socket" -n >/dev/null 2>&1; then
    munged --force --key-file="$LAB/munge/key" --socket="$LAB/munge/socket" --pid-file="$LAB/munge/pid" \
      --log-file="$LAB/munge/log" --seed-file="$LAB/munge/seed" >/dev/null 2>&1
  fi
}

case ${1:-} in
  install)
    command -v slurmctld >/dev/null 2>&1 && command -v munged >/dev/null 2>&1 && exit 0
    export DEBIAN_FRONTEND=noninteractive
    apt-get install -qq -y --no-install-recommends slurm-wlm munge >/dev/null || {
      apt-get update -qq && apt-get install -qq -y --no-install-recommends slurm-wlm munge >/dev/null
    }
    ;;
  up)
    if ! answers; then
      configure
      start_munge
      slurmctld -c >&2
      for n in $(seq "$NODES"); do slurmd -c -N "n$n" >&2; done
      for _ in $(seq 100); do
        [ "$(sinfo -h -p dev -t idle,mixed,allocated -o %D 2>/dev/null)" = "$NODES" ] && break
        sleep 0.1
      done
      answers || { echo "Slurm did not start; see $LAB/log" >&2; exit 1; }
    fi
    echo "export SLURM_CONF=$SLURM_CONF"
    ;;
  down)
    for file in "$LAB"/run/*.pid "$LAB"/munge/pid; do
      [ -f "$file" ] && kill "$(cat "$file")" 2>/dev/null || true
    done
    ;;
  status)
    answers && sinfo && squeue
    ;;
  *)
    sed -n '2,14s/^# \{0,1\}//p' "$0"
    exit 2
    ;;
esac
