#!/usr/bin/env bash
# Builds the engines on a GPU host: build/lib/libgpulet_torch.so with CUDA, against the LibTorch
# that comes with PyTorch, and build/lib/libgpulet_ref.so. Needs g++, the CUDA headers and a Python
# with a CUDA build of torch. Where jpeglib.h and libjpeg are (libjpeg-dev), the engine decodes JPEGs;
# elsewhere the worker does so in Go, several times slower.
#
# usage: scripts/gpu/build_engine.sh
#   PYTHON     the Python that has torch (default: python3)
#   CUDA_HOME  where CUDA's include/ and lib64/ are (default: /usr/local/cuda)
#   JPEG_HOME  where libjpeg-turbo's include/ and lib/ are, unless they are the system's (conda: $CONDA_PREFIX)
#   CXX, CC    compilers (default: g++, cc)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

python=${PYTHON:-python3}
cuda=${CUDA_HOME:-/usr/local/cuda}
cxx=${CXX:-g++}
objects=build/engine-cuda
die() { echo "build_engine: $*" >&2; exit 1; }

[[ -f $cuda/include/cuda_runtime_api.h ]] ||
  die "$cuda/include has no cuda_runtime_api.h: install the CUDA toolkit, or set CUDA_HOME"
facts=$("$python" - <<'PY'
import os, torch
print(os.path.dirname(torch.__file__), int(torch._C._GLIBCXX_USE_CXX11_ABI), torch.__version__, torch.version.cuda)
PY
) || die "$python cannot import torch: install PyTorch, or set PYTHON"
read -r torch abi version torch_cuda <<<"$facts"
[[ $torch_cuda != None ]] || die "torch $version in $torch is a build without CUDA"
echo "torch $version (CUDA $torch_cuda) in $torch"

mkdir -p "$objects" build/lib
flags=(-std=c++20 -O2 -fPIC -fvisibility=hidden -Wall -Wextra
  -DGLE_CUDA "-D_GLIBCXX_USE_CXX11_ABI=$abi" -Iworker/engine/include
  -isystem "$torch/include" -isystem "$torch/include/torch/csrc/api/include"
  -isystem "$cuda/include")
jpeg=(-ljpeg)
if [[ -n ${JPEG_HOME:-} ]]; then
  JPEG_HOME=$(realpath -m "$JPEG_HOME")
  jpeg=(-L"$JPEG_HOME/lib" -Wl,-rpath,"$JPEG_HOME/lib" -ljpeg)
fi
jpeg_flags=(-DGLE_JPEG ${JPEG_HOME:+-isystem "$JPEG_HOME/include"})
if echo 'int main() { return jpeg_std_error(nullptr) != nullptr; }' |
  "$cxx" "${jpeg_flags[@]}" -include cstdio -include jpeglib.h -x c++ -o /dev/null - "${jpeg[@]}" 2>/dev/null; then
  flags+=("${jpeg_flags[@]}")
  echo "libjpeg: found, the engine decodes JPEGs"
else
  jpeg=()
  echo "libjpeg: not found (apt-get install libjpeg-dev, or set JPEG_HOME): JPEGs are decoded in Go"
fi
link=(-shared -Wl,--version-script=worker/engine/exports.map)

compile() { # compile FILE.cc
  "$cxx" "${flags[@]}" -c -o "$objects/$(basename "$1" .cc).o" "$1"
}
running=()
for source in worker/engine/torch/*.cc; do
  compile "$source" &
  running+=($!)
done
failed=0
for pid in "${running[@]}"; do wait "$pid" || failed=1; done
((failed == 0)) || die "a file did not compile"

"$cxx" "${link[@]}" -o build/lib/libgpulet_torch.so "$objects"/*.o \
  -L"$torch/lib" -L"$cuda/lib64" -Wl,--no-as-needed \
  -ltorch -ltorch_cpu -ltorch_cuda -lc10 -lc10_cuda -lcudart "${jpeg[@]}" -ldl \
  -Wl,-rpath,"$torch/lib" -Wl,-rpath,"$cuda/lib64"
"${CC:-cc}" -std=gnu11 -O2 -fPIC -fvisibility=hidden -Wall -Wextra "${link[@]}" \
  -Iworker/engine/include -o build/lib/libgpulet_ref.so worker/engine/ref/ref.c -lm
ls -l build/lib/libgpulet_torch.so build/lib/libgpulet_ref.so
