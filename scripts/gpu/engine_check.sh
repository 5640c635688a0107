#!/usr/bin/env bash
# Checks the CUDA engine on this host's GPU: the conformance suite on the CPU and on the GPU, the
# GPU's answers (eager, captured, padded, staged, NHWC) against the CPU's, and, for model repositories
# with samples, against Python's, in fp32 (1e-3) and fp16 (2e-2 of the outputs' magnitude). Needs no
# Go: the test binary is built elsewhere. Prints a line of PASS or FAIL for every check, and exits 1
# when one failed; logs go to build/engine-check/.
#
# usage: scripts/gpu/engine_check.sh [--memcheck] [TEST_BINARY]
#   --memcheck          also runs the suite on the GPU under compute-sanitizer (minutes)
#   TEST_BINARY         default build/engine.test, which is made on a machine with Go by
#                       CGO_ENABLED=1 go test -c -o build/engine.test ./worker/internal/engine
#   GPULET_TEST_DEVICE  default cuda:0
#   GPULET_TEST_MODELS  a model repository whose samples are run too (scripts/export_models.py)
#   COMPUTE_SANITIZER   default compute-sanitizer, else the one of CUDA_HOME (/usr/local/cuda)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

memcheck=false
if [[ ${1:-} == --memcheck ]]; then
  memcheck=true
  shift
fi
binary=$(realpath -m "${1:-build/engine.test}")
device=${GPULET_TEST_DEVICE:-cuda:0}
logs=$(realpath -m build/engine-check)
[[ -x $binary ]] || { echo "engine_check: $binary is not there: see the head of this script" >&2; exit 2; }
[[ -f build/lib/libgpulet_torch.so ]] || scripts/gpu/build_engine.sh
mkdir -p "$logs"
export GPULET_REQUIRE_TORCH=1
[[ -z ${GPULET_TEST_MODELS:-} ]] || GPULET_TEST_MODELS=$(realpath "$GPULET_TEST_MODELS")

status=0
log_of() { echo "$logs/${1//[^a-z0-9]/-}.log"; }
check() { # check NAME COMMAND...
  local name=$1 log
  log=$(log_of "$1")
  shift
  if "$@" >"$log" 2>&1; then
    echo "PASS  $name"
  else
    echo "FAIL  $name (exit $?, $log)"
    grep -E -- '--- FAIL|_test\.go:|suite\.go:|staging\.go:|panic|ERROR SUMMARY|^=+ (Invalid|Error|Program)' "$log" | head -n 40 || tail -n 20 "$log"
    status=1
  fi
}
on() { # on DEVICE FLAGS...: the tests of a device
  local device=$1
  shift
  GPULET_TEST_DEVICE=$device "$binary" -test.timeout 9m "$@"
}

cd worker/internal/engine # where the tests look for their archives
check "suite on cpu" on cpu -test.v -test.skip 'AnswersSamples'
check "suite on $device" on "$device" -test.v -test.run Torch -test.skip 'AnswersSamples'
for samples in cpu "$device"; do
  check "samples on $samples" on "$samples" -test.v -test.run AnswersSamples
  grep -E -- 'largest error|note: |--- SKIP' "$(log_of "samples on $samples")" | sed 's/^ *samples_test.go:[0-9]*: /      /' || true
done

if $memcheck; then
  sanitizer=${COMPUTE_SANITIZER:-$(command -v compute-sanitizer || echo "${CUDA_HOME:-/usr/local/cuda}/bin/compute-sanitizer")}
  # Errors that CUDA returns are part of the suite: batches that cannot be captured, memory that is
  # not there. What is looked for is kernels and copies that touch what is not theirs.
  memory() {
    GPULET_TEST_DEVICE=$device "$sanitizer" --tool memcheck --report-api-errors no --error-exitcode 99 \
      "$binary" -test.v -test.timeout 9m -test.run 'TestTorchEngineConforms|TestTorchEqualsPython|TestTorchDeviceAgreesWithCPU'
  }
  check "memcheck on $device" memory
  grep -E 'ERROR SUMMARY' "$(log_of "memcheck on $device")" | sed 's/^/      /' || true
fi

echo "times on $device"
on "$device" -test.run '^$' -test.bench . -test.benchmem | grep -E '^Benchmark' || status=1
exit $status
