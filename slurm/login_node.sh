#!/usr/bin/env bash
# Starts a sweep from a login node so that it outlives the connection, and shows what it says:
#
#   bash slurm/login_node.sh layer=12,15,20,25 model_pair=r1_vs_qwen
#
# CLUSTER names the launcher (slurm, or a cluster file of yours). Closing this terminal, or Ctrl-C, leaves the sweep as it
# is; its log is multirun/<date>.log, and `python compare.py <sweep>` shows the state of the members.
set -euo pipefail
cd "$(dirname "$0")/.."
[ -f .venv/bin/activate ] && source .venv/bin/activate
log=multirun/$(date +%Y%m%d-%H%M%S).log
: >"$log"
nohup python train.py -m "hydra/launcher=${CLUSTER:-slurm}" "$@" >>"$log" 2>&1 </dev/null &
sweep=$!
echo "process $sweep, log $log"
tail -n +1 -f "$log" &
trap "kill $! 2>/dev/null" EXIT
status=0
wait "$sweep" || status=$?
sleep 1
exit "$status"
