#!/usr/bin/env bash
# Shows that this GPU host can serve: the SMs that a process sees at several shares, then the whole
# system under load, a gpu-let killed meanwhile, and what the programs leave behind.
#
# usage: scripts/gpu/serve_check.sh [OUT]
#   OUT                 folder for logs and reports (default build/serve-check)
#   GPULET_CHECK_DEVICE what to serve on (default cuda)
#   GPULET_CHECK_MODELS model repository (default build/gpu-models, made with scripts/export_models.py)
# Needs bin/ (make build, here or on a machine of the same kind) and build/lib (scripts/gpu/build_engine.sh).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

out=$(realpath -m "${1:-build/serve-check}")
models=$(realpath -m "${GPULET_CHECK_MODELS:-build/gpu-models}")
device=${GPULET_CHECK_DEVICE:-cuda}
state=$(mktemp -d)
mkdir -p "$out"
say() { printf '\n== %s\n' "$*"; }

[[ -f build/lib/libgpulet_torch.so ]] || scripts/gpu/build_engine.sh
if [[ ! -d $models/resnet50 ]]; then
  say "exporting models into $models"
  scripts/python.sh scripts/export_models.py "$models" lenet mobilenet_v2 resnet50
fi

say "SMs by share"
for share in 100 50 20 10; do
  bin/worker exec resnet50 100 1 0 "$share" --models "$models" --device "$device" --json 2>"$out/exec.log" |
    tee -a "$out/exec.json" | python3 -c 'import json, sys; r = json.load(sys.stdin); print(r["share"], "%:", r.get("sms", 0), "SMs, p50", r["p50_ms"], "ms, memory", r["mem_bytes"] >> 20, "MiB")' ||
    { cat "$out/exec.log"; exit 1; }
done

pids=()
start() { # start NAME COMMAND...
  local name=$1
  shift
  "$@" >"$out/$name.log" 2>&1 &
  pids+=($!)
}
finish() {
  trap - EXIT
  for ((i = ${#pids[@]} - 1; i >= 0; i--)); do # the frontend, which has the bus, last
    kill -INT "${pids[i]}" 2>/dev/null && wait "${pids[i]}" || true
  done
}
trap finish EXIT
export GPULET_STATE_DIR=$state GPULET_NATS_URL=nats://127.0.0.1:4622 GPULET_MODELS=$models
GPULET_NATS_URL='' start frontend bin/frontend serve --http-addr 127.0.0.1:8600 --grpc-addr 127.0.0.1:8601 --metrics-addr 127.0.0.1:8602 --nats-port 4622 --nats-monitor-port 0
start planner bin/planner run --metrics-addr 127.0.0.1:8604 --epoch 2s
start worker bin/worker run --device "$device" --metrics-addr 127.0.0.1:8603

say "load on the whole system"
load() { # load NAME SECONDS
  bin/loadgen run --rates lenet=500,mobilenet_v2=200,resnet50=100 --duration "$2s" --json "$out/$1.json" || true
}
until bin/planner status --json 2>/dev/null | grep -q '"state": *"ready"'; do
  kill -0 "${pids[@]}" || { tail -n 20 "$out"/*.log; exit 1; }
done
load warm 6
load steady 8
bin/planner status || true

say "one gpu-let killed under load"
load killed 8 &
sleep 3
pkill -9 -o -f 'worker (gpulet|standby)' && date +%T.%N
wait $!
bin/planner status || true

say "stopping"
finish
nvidia-smi --query-compute-apps=pid,name,used_memory --format=csv || true
pgrep -af 'nvidia-cuda-mps|worker (gpulet|standby)' || echo "nothing is left"
grep -hE 'level=(WARN|ERROR)' "$out"/*.log | head -n 40 || true
