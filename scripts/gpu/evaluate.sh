#!/usr/bin/env bash
# The experiments on one GPU, the most telling first, within a budget of time: the goodput of every way
# to share the GPU, and how gpu-lets start, die and slow each other down. Every part writes its JSON as
# soon as it is measured; run it again and it goes on where it ended. Two can run at once on two GPUs.
#
# usage: scripts/gpu/evaluate.sh [--gpu N | --device DEVICE] [--budget TIME] [--out DIR] [--parts "PART..."]
#                                [--arms "ARM..."] [--mixes "MIX..."] [--cores LIST] [GOODPUT_FLAG...]
#   --gpu N      index of the GPU (default 0); --device sim:h100 or cpu tries the experiments out
#   --budget     for everything together (default 8m)
#   --out        default build/gpu/results
#   --parts      default "goodput start kill fault shares graphs splits corun"; a part may carry a budget
#                of its own: "goodput:5m start:40s"
#   --arms       default all: gpulet sbp elastic even mps uncapped streams
#   --mixes      default all: game traffic scen1 scen2 scen3 scen4 scen5 all9
#   --cores      CPUs to run on, as taskset takes them
# Whatever else is given goes to evaluate goodput (bin/evaluate goodput -h). Needs scripts/gpu/prepare.sh.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

device=cuda:0 budget=8m out=build/gpu/results cores=''
parts='goodput start kill fault shares graphs splits corun'
goodput=()
while (($#)); do
  case $1 in
  --gpu) device=cuda:$2 ;;
  --device) device=$2 ;;
  --budget) budget=$2 ;;
  --out) out=$2 ;;
  --parts) parts=$2 ;;
  --cores) cores=$2 ;;
  -h | --help) sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "$0"; exit 0 ;;
  *) goodput+=("$1" "${2?$1: expected a value}") ;;
  esac
  shift 2
done
[[ -x bin/evaluate ]] || { echo "evaluate: bin/evaluate is missing: run scripts/gpu/prepare.sh, or make build" >&2; exit 2; }
[[ -z $cores ]] || taskset -pc "$cores" $$ >/dev/null

seconds() { # seconds TIME: 8m, 90s, 1m30s
  local rest=$1 sum=0
  while [[ $rest =~ ^([0-9]+)([hms])(.*)$ ]]; do
    case ${BASH_REMATCH[2]} in h) ((sum += BASH_REMATCH[1] * 3600)) ;; m) ((sum += BASH_REMATCH[1] * 60)) ;; s) ((sum += BASH_REMATCH[1])) ;; esac
    rest=${BASH_REMATCH[3]}
  done
  [[ -z $rest ]] || { echo "evaluate: time $1: expected one like 8m or 1m30s" >&2; exit 2; }
  echo "$sum"
}

total=$(seconds "$budget")
status=0
for part in $parts; do
  name=${part%%:*}
  left=$((total - SECONDS))
  if [[ $part == *:* ]]; then
    own=$(seconds "${part#*:}")
    ((left = own < left ? own : left))
  fi
  ((left > 5)) || { echo "evaluate: no time is left for $name" >&2; status=1; break; }
  flags=(--device "$device" --out "$out" --budget "${left}s")
  [[ $name != goodput ]] || flags+=("${goodput[@]}")
  echo "== $name (${left} s)"
  bin/evaluate "$name" "${flags[@]}" || status=1
done
exit $status
