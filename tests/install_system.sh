#!/usr/bin/env bash
# Chromium for the tests of the pages and Slurm for those of sweeps, where apt and root are at hand; elsewhere these
# tests say that they were skipped.
set -u
[ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || exit 0
if ! command -v chromium >/dev/null; then
  apt-get update -qq >/dev/null 2>&1
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium >/dev/null 2>&1
fi
bash "$(dirname "$0")/../slurm/single_host.sh" install >/dev/null 2>&1
exit 0
