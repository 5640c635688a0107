#!/usr/bin/env bash
# Prepares a GPU host for the experiments (scripts/gpu/evaluate.sh): unpacks the programs, builds the
# engine, exports the models for half precision, all at the same time, and sets their SLOs from the
# profiles. About a minute on 16 cores. What is there already is kept.
#
# usage: scripts/gpu/prepare.sh [MODEL...]
#   MODEL           models to export (default: the nine of the gpu-lets paper)
#   GPU_TYPE        folder below profiles/ that SLOs come from (default h100)
#   GPULET_MODELS   model repository to make (default build/gpu/models)
#   GPULET_PROFILES profiles (default profiles)
#   PYTHON          a Python with torch, torchvision and msgpack (default python3); what it lacks may be
#                   in PYTHONPATH
# Programs are taken from bin/ or, where that is older or missing, from build/gpu-kit.tar.gz, which
# make gpu-kit packs on a machine that has Go.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

models=${GPULET_MODELS:-build/gpu/models}
profiles=${GPULET_PROFILES:-profiles}/${GPU_TYPE:-h100}
python=${PYTHON:-python3}
nine=(vgg16 bert densenet161 resnet50 googlenet mobilenet_v2 mnasnet1_0 ssd-mobilenetv1 lenet) # the slowest first
die() { echo "prepare: $*" >&2; exit 1; }

if [[ build/gpu-kit.tar.gz -nt bin/evaluate ]]; then
  tar -xzf build/gpu-kit.tar.gz
fi
for program in frontend planner worker loadgen evaluate; do
  [[ -x bin/$program ]] || die "bin/$program is missing: run make gpu-kit where there is Go, and bring build/gpu-kit.tar.gz"
done
"$python" -c 'import torch, torchvision, msgpack' ||
  die "$python lacks a module: install torch, torchvision and msgpack, or put them into PYTHONPATH"

building=
if [[ ! -f build/lib/libgpulet_torch.so ]]; then
  mkdir -p build
  PYTHON=$python scripts/gpu/build_engine.sh >build/engine.log 2>&1 &
  building=$!
fi
(($# > 0)) || set -- "${nine[@]}"
"$python" scripts/export_models.py "$models" "$@" --precision fp16 --jobs "$(nproc)"
if [[ -n $building ]]; then
  wait "$building" || { tail -n 20 build/engine.log >&2; die "the engine was not built"; }
fi
if [[ -d $profiles ]]; then
  "$python" scripts/gpu/slos.py "$profiles" "$models"
else
  echo "no profiles in $profiles: the models keep the SLOs of the paper"
fi
# Reading every archive once leaves it in the file cache: starts are measured with it warm.
cat "$models"/*/*/model.pt build/lib/*.so >/dev/null
echo "ready after $SECONDS s"
