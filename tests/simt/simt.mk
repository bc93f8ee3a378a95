# The kernels of kernels/cuda in the SIMT executor: every tests/device/test_X.c becomes a program simt_X. Needs g++ and no CUDA. Included
# by the Makefile.
#   kernels/cuda/*.cu   compiled as C++17 with the hooks of -fsanitize=thread before every load and store; hooks.cpp defines them, so
#                       the sanitizers' runtimes are not linked. Files that talk to the CUDA runtime or cuBLAS are left out.
#   tests/simt/*.cpp    the executor, without that flag
CXX       ?= g++
SIMT_OUT  := $(OUT)/simt
HAVE_CXX  := $(shell command -v $(CXX) 2>/dev/null)
# A file that includes CUDA headers is skipped, unless it says GQAKIT_SIMT itself.
SIMT_SKIP := kernels/cuda/backend.cu $(shell grep -LE '^\#ifn?def GQAKIT_SIMT' \
  $$(grep -lE '^\#include [<"](cuda_runtime|cublas|cuda\.h|device\.cuh|blas\.cuh)' kernels/cuda/*.cu))
SIMT_CU   := $(filter-out $(SIMT_SKIP),$(wildcard kernels/cuda/*.cu)) $(wildcard tests/simt/*.cu)
SIMT_CPP  := $(wildcard tests/simt/*.cpp)
SIMT_OBJ  := $(SIMT_CU:%.cu=$(SIMT_OUT)/%.o) $(SIMT_CPP:%.cpp=$(SIMT_OUT)/%.o)
SIMT_WARN := -Wall -Wextra -Wno-unknown-pragmas -Wno-unused-parameter -Werror
SIMT_BASE := -std=c++17 -D_GNU_SOURCE -DGQAKIT_SIMT -I. -Itests/simt -g -fno-exceptions -fno-rtti -fno-math-errno -ffp-contract=off -fno-strict-aliasing -Wno-psabi
SIMT_HOOK := -fsanitize=thread,alignment,bounds,integer-divide-by-zero --param tsan-instrument-func-entry-exit=0 -Wno-tsan
SIMT_TESTS := $(if $(HAVE_CXX),$(patsubst tests/device/test_%.c,$(OUT)/tests/simt_%,$(wildcard tests/device/test_*.c)))
SIMT_CASE  := $(filter-out tests/device/test_% tests/device/link_%,$(wildcard tests/device/*.c)) tests/device/link_simt.c

$(SIMT_OUT)/%.o: %.cu tests/simt/simt.mk
	@mkdir -p $(@D)
	$(call say,SIMT $<)
	$(Q)$(CXX) -x c++ -O2 $(SIMT_BASE) $(SIMT_WARN) $(SIMT_HOOK) -MMD -MP -c -o $@ $<

$(SIMT_OUT)/%.o: %.cpp tests/simt/simt.mk
	@mkdir -p $(@D)
	$(call say,CXX $<)
	$(Q)$(CXX) -O2 $(SIMT_BASE) $(SIMT_WARN) -MMD -MP -c -o $@ $<

# Not the CUDA objects: a simt_ program carries the table of the executor alone, whatever the library holds.
$(OUT)/tests/simt_%: $(OUT)/obj/tests/device/test_%.o $(SIMT_CASE:%.c=$(OUT)/obj/%.o) $(SIMT_OBJ) $(OUT)/libtests.a $(LIB)
	@mkdir -p $(@D)
	$(call say,LD $@)
	$(Q)$(CC) -o $@ $(filter %.o,$^) $(filter %.a,$^) $(ALL_LIBS) -lcmocka -lstdc++

.PHONY: simt simt-orders
simt: $(SIMT_TESTS) $(CANARY) ## the CUDA kernels on the CPU: builds and runs build/tests/simt_*
	@BUILD=$(OUT) TEST_TIMEOUT=$(TEST_TIMEOUT) tools/run-tests $(notdir $(SIMT_TESTS))

# Values and faults must not depend on the order of threads, nor on when copies land.
simt-orders: $(SIMT_TESTS) $(CANARY) ## make simt with the threads of a block in other orders, copies landing early
	@for order in reverse random:1 random:2; do echo "== threads $$order, copies early"; GQAKIT_SIMT_ORDER=$$order GQAKIT_SIMT_ASYNC=early \
	  BUILD=$(OUT) TEST_TIMEOUT=$(TEST_TIMEOUT) tools/run-tests $(notdir $(SIMT_TESTS)) || exit 1; done

$(OUT)/obj/tests/device/%.o: ALL_CFLAGS += -Itests/simt
-include $(SIMT_OBJ:.o=.d)
