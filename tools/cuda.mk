# The CUDA backend, included by the Makefile when nvcc is there (and not CUDA=0, SAN=1 or COV=1).
#   kernels/cuda/X.cu       -> sm_80 and sm_90a machine code, and compute_80 PTX for newer GPUs
#   kernels/cuda/X_sm90.cu  -> sm_90a machine code alone (wgmma, TMA); its PTX is kept beside the object for tools/check-cuda
# Beside every object: X.o.ptxas, what the assembler said (registers, spills, warnings), which tools/check-cuda judges.
# cudart is linked statically and finds the driver at run time; cuBLASLt is opened at run time (blas.cu): a program starts on a machine
# with neither.

# Compiling everything takes minutes, and one header is in every file: results are kept by their inputs; empty turns that off. A folder
# outside the tree may serve several checkouts.
NVCC_CACHE  ?= build/nvcc-cache
CUDA_HOME   := $(patsubst %/bin/nvcc,%,$(realpath $(NVCC)))
CUDA_LIB    := $(firstword $(wildcard $(CUDA_HOME)/lib64 $(CUDA_HOME)/targets/$(MACHINE)-linux/lib $(CUDA_HOME)/lib /usr/lib/$(MULTIARCH)))
CUDA_CFLAGS := -DGQAKIT_CUDA
CUDA_LIBS    = -L$(CUDA_LIB) -lcudart_static -lstdc++ -ldl -lrt
NVCC_FLAGS  := -std=c++17 -O3 -lineinfo --compress-mode=size -I. -DGQAKIT_CUDA -DGQAKIT_CUDA_LIB='"$(CUDA_LIB)"' -Xcompiler -Wall,-Wextra,-Wno-unused-parameter -Xptxas -v,--warn-on-spills
CUDA_SRC    := $(wildcard kernels/cuda/*.cu)
CUDA_OBJ    := $(CUDA_SRC:%.cu=$(OUT)/obj/%.o)
cuda_arch    = -gencode arch=compute_90a,code=sm_90a $(if $(filter %_sm90.cu,$(1)),,-gencode arch=compute_80,code=[sm_80,compute_80])
# Only the sm_90a files keep their PTX: the other intermediate files are large.
cuda_keep    = $(if $(filter %_sm90.cu,$(1)),--keep --keep-dir $(2).keep)

$(OUT)/obj/kernels/cuda/%.o: kernels/cuda/%.cu tools/cuda.mk
	$(call say,NVCC $<)
	$(Q)tools/nvcc-cached "$(NVCC_CACHE)" $@ $< -- $(NVCC) $(NVCC_FLAGS) $(call cuda_arch,$<) $(call cuda_keep,$<,$@) -MMD -MP -MF $(@:.o=.d) -c -o $@ $<
	@grep -E 'warning|C75[0-9][0-9]' $@.ptxas || true

# Tests of the kernels on a real GPU; tests/device/link_simt.c makes the same tests run in the executor.
DEVICE_TESTS := $(patsubst tests/device/test_%.c,%,$(filter-out tests/device/test_simt%,$(wildcard tests/device/test_*.c)))
DEVICE_CASE  := $(filter-out tests/device/test_% tests/device/link_%,$(wildcard tests/device/*.c))
CUDA_TESTS   := $(DEVICE_TESTS:%=$(OUT)/tests/cuda_%)
$(OUT)/tests/cuda_%: $(OUT)/obj/tests/device/test_%.o $(DEVICE_CASE:%.c=$(OUT)/obj/%.o) $(OUT)/obj/tests/device/link_cuda.o $(OUT)/libtests.a $(LIB)
	@mkdir -p $(@D)
	$(call say,LD $@)
	$(Q)$(CC) -o $@ $(filter %.o,$^) $(filter %.a,$^) $(ALL_LIBS) -lcmocka

# Kernels that only tests have.
$(OUT)/obj/tests/simt/%.o: tests/simt/%.cu tools/cuda.mk
	$(call say,NVCC $<)
	$(Q)tools/nvcc-cached "$(NVCC_CACHE)" $@ $< -- $(NVCC) $(NVCC_FLAGS) $(call cuda_arch,$<) -MMD -MP -MF $(@:.o=.d) -c -o $@ $<
	@grep -E 'warning|C75[0-9][0-9]' $@.ptxas || true
$(OUT)/tests/cuda_sm90_probe: $(OUT)/obj/tests/simt/probe_sm90.o

# The host side on a fake runtime (tests/cuda): its symbols take the place of cudart's, its cuBLASLt is found through the program's
# run path, which dlopen searches too.
FAKE_FLAGS := -isystem $(CUDA_HOME)/include
$(OUT)/obj/tests/cuda/%.o $(OUT)/tests/fake/libcublasLt.so.%: ALL_CFLAGS += $(FAKE_FLAGS)
CUBLAS_MAJOR := $(shell sed -n 's/^\#define CUBLAS_VER_MAJOR //p' $(CUDA_HOME)/include/cublas_api.h)
FAKE_BLAS    := $(OUT)/tests/fake/libcublasLt.so.$(CUBLAS_MAJOR)
$(FAKE_BLAS): tests/cuda/fake_blas.c tests/cuda/fake_cuda.h tools/cuda.mk
	@mkdir -p $(@D)
	$(call say,LD $@)
	$(Q)$(CC) -O2 $(ALL_CFLAGS) -fPIC -shared -Wl,-soname,$(@F) -o $@ $<
$(OUT)/tests/test_cuda_host: $(OUT)/obj/tests/test_cuda_host.o $(OUT)/obj/tests/cuda/fake_cuda.o $(OUT)/obj/tests/cuda/fake_launch.o $(OUT)/libtests.a $(LIB) | $(FAKE_BLAS)
	@mkdir -p $(@D)
	$(call say,LD $@)
	$(Q)$(CC) -rdynamic -Wl,-rpath,'$$ORIGIN/fake' -o $@ $^ $(ALL_LIBS) -lcmocka
