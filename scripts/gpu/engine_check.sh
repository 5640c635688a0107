#!/usr/bin/env bash
# Checks the CUDA engine on this host's GPU: the conformance suite on the CPU and on the GPU, the
# GPU's answers (eager, captured and padded) against the CPU's, and, for model repositories with
# samples, against Python's. Needs no Go: the test binary is built elsewhere.
#
# usage: scripts/gpu/engine_check.sh [TEST_BINARY]
#   TEST_BINARY         default build/engine.test, which is made on a machine with Go by
#                       CGO_ENABLED=1 go test -c -o build/engine.test ./worker/internal/engine
#   GPULET_TEST_DEVICE  default cuda:0
#   GPULET_TEST_MODELS  a model repository whose samples are run too (scripts/export_models.py)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

binary=$(realpath -m "${1:-build/engine.test}")
device=${GPULET_TEST_DEVICE:-cuda:0}
[[ -x $binary ]] || { echo "engine_check: $binary is not there: see the head of this script" >&2; exit 2; }
[[ -f build/lib/libgpulet_torch.so ]] || scripts/gpu/build_engine.sh
export GPULET_REQUIRE_TORCH=1
[[ -z ${GPULET_TEST_MODELS:-} ]] || GPULET_TEST_MODELS=$(realpath "$GPULET_TEST_MODELS")

cd worker/internal/engine # where the tests look for their archives
status=0
for on in cpu "$device"; do
  echo "== on $on"
  GPULET_TEST_DEVICE=$on "$binary" -test.v -test.timeout 5m 2>&1 |
    grep -E '^(--- |FAIL|PASS|ok|panic)|^ +--- (FAIL|SKIP)|_test.go|suite.go' || status=1
done
echo "== times on $device"
GPULET_TEST_DEVICE=$device "$binary" -test.run '^$' -test.bench . -test.benchmem || status=1
exit $status
