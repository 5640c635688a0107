# The engines: shared libraries that the worker opens at run time.
#   build/lib/libgpulet_torch.so  LibTorch (Debian: libtorch-dev libopenblas0-serial). Without
#                                 OpenBLAS, LibTorch falls back to a reference BLAS, 10x slower.
#                                 With libjpeg-turbo (libjpeg-dev) it decodes JPEGs; without, the
#                                 worker does so in Go, several times slower.
#   build/lib/libgpulet_ref.so    the reference engine, plain C
# On a GPU host use scripts/gpu/build_engine.sh, which builds against PyTorch's own LibTorch.

ENGINE_DIR   := worker/engine
ENGINE_OBJ   := build/engine
ENGINE_SRC   := $(sort $(wildcard $(ENGINE_DIR)/torch/*.cc))
ENGINE_OBJS  := $(ENGINE_SRC:$(ENGINE_DIR)/torch/%.cc=$(ENGINE_OBJ)/%.o)
ENGINE_LINK  := -shared -Wl,--version-script=$(ENGINE_DIR)/exports.map -Wl,-z,defs

CXX          ?= g++
CC           ?= cc
TORCH_INC    ?= -isystem /usr/include/torch/csrc/api/include
TORCH_LIBS   ?= -ltorch_cpu -lc10
ENGINE_CXX   := -std=c++20 -O2 -fPIC -fvisibility=hidden -Wall -Wextra
# -DGLE_JPEG -ljpeg where libjpeg can be compiled against and linked; make JPEG= leaves it out. Asked
# whenever it is used, and not when make begins: "make test" installs libjpeg first.
ifeq ($(origin JPEG),undefined)
JPEG          = $(shell echo 'int main() { return jpeg_std_error(nullptr) != nullptr; }' | \
                $(CXX) -include cstdio -include jpeglib.h -x c++ -o /dev/null - -ljpeg 2>/dev/null && echo -DGLE_JPEG)
endif
JPEG_LIBS     = $(if $(strip $(JPEG)),-ljpeg)
ENGINE_C     := -std=gnu11 -O2 -fPIC -fvisibility=hidden -Wall -Wextra -Wconversion

##@ Engine
.PHONY: engine engine-ref engine-sanitize
engine: build/lib/libgpulet_torch.so build/lib/libgpulet_ref.so ## the engines, into build/lib/ (needs libtorch-dev, libopenblas0-serial, g++; libjpeg-dev if there)

engine-ref: build/lib/libgpulet_ref.so ## the reference engine only: needs a C compiler, no LibTorch

build/lib/libgpulet_torch.so: $(ENGINE_OBJS) $(ENGINE_DIR)/exports.map
	@mkdir -p $(@D)
	$(CXX) $(ENGINE_LINK) -o $@ $(ENGINE_OBJS) $(TORCH_LIBS) $(JPEG_LIBS) -ldl

# Objects are made again when libjpeg comes or goes.
$(ENGINE_OBJ)/flags: FORCE
	@mkdir -p $(@D)
	@echo '$(JPEG)' | cmp -s - $@ || echo '$(JPEG)' >$@
FORCE:

$(ENGINE_OBJ)/%.o: $(ENGINE_DIR)/torch/%.cc $(ENGINE_OBJ)/flags
	@mkdir -p $(@D)
	@echo 'int main(){}' | $(CXX) $(TORCH_INC) -include torch/version.h -x c++ -o /dev/null - 2>/dev/null || \
	{ echo "LibTorch is missing: apt-get install libtorch-dev libopenblas0-serial g++" >&2; exit 1; }
	$(CXX) $(ENGINE_CXX) $(JPEG) $(TORCH_INC) -I$(ENGINE_DIR)/include -MMD -MP -c -o $@ $<

build/lib/libgpulet_ref.so: $(ENGINE_DIR)/ref/ref.c $(ENGINE_DIR)/include/engine.h $(ENGINE_DIR)/exports.map
	@mkdir -p $(@D)
	$(CC) $(ENGINE_C) $(ENGINE_LINK) -I$(ENGINE_DIR)/include -o $@ $< -lm

engine-sanitize: build/asan/libgpulet_ref.so ## the reference engine and the Go side of the ABI under ASan and UBSan
	GPULET_TEST_REF_LIB=$(abspath $<) ASAN_OPTIONS=detect_leaks=0 go test -asan -count=1 -run 'Reference|Library' ./worker/internal/engine/

build/asan/libgpulet_ref.so: $(ENGINE_DIR)/ref/ref.c $(ENGINE_DIR)/include/engine.h $(ENGINE_DIR)/exports.map
	@mkdir -p $(@D)
	$(CC) $(ENGINE_C) -g -O1 -fsanitize=address,undefined -fno-sanitize-recover=all -shared \
	-Wl,--version-script=$(ENGINE_DIR)/exports.map -I$(ENGINE_DIR)/include -o $@ $< -lm

-include $(ENGINE_OBJS:.o=.d)
