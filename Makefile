# gqakit. `make help` lists the targets. Settings come first; each can be given on the command line (make CC=clang).

CC      ?= gcc
AR      ?= ar
PREFIX  ?= /usr/local
DESTDIR ?=
SAN     ?= 0#   1: AddressSanitizer and UBSan, in build/san
V       ?= 0#   1: print the whole commands
COV     ?= 0#   1: gcov, in build/cov
CUDA    ?= 1#   0: leave the CUDA backend out though nvcc is there (tools/cuda.mk has its settings)
OPT     ?= -O2
KOPT    ?= -O3# kernels/cpu and base/view*.c: loops worth vectorising
FUZZ_CC ?= $(firstword $(shell command -v clang clang-19 clang-16 clang-15 clang-14 2>/dev/null))
FUZZ_SECONDS ?= 60
TEST_TIMEOUT ?= 300
# Tests that make test-quick leaves out.
TEST_SLOW ?= test_calibration test_families_run test_resume test_pipeline test_pipeline_slow test_demo test_kill test_faults test_crash_points test_crash_convert test_crash_uptrain test_disk_full test_signals test_soak test_memory_checkpoints test_memory_convert test_memory_read test_memory_uptrain test_read_faults test_homes simt_attention_plain simt_attention_sm90 simt_model

# ---- nothing to change below ---------------------------------------------------------------------------------------

ifeq ($(origin CC),default)
CC := gcc
endif
.DEFAULT_GOAL := all
.SUFFIXES:
MAKEFLAGS += --no-builtin-rules

MACHINE   := $(shell uname -m)
MULTIARCH := $(shell $(CC) -print-multiarch 2>/dev/null)
PKG       := pkg-config
have_pkg   = $(shell $(PKG) --exists $(1) 2>/dev/null && echo $(1))
HDF5_PKG  := $(firstword $(call have_pkg,hdf5-serial) $(call have_pkg,hdf5))
LIB_PKGS  := yaml-0.1 jansson libpcre2-8 libutf8proc libxxhash libcrypto zlib

# The OpenMP build of OpenBLAS is linked by its own path: Debian's alternatives point elsewhere (the pthread build).
BLAS_DIR     := $(firstword $(wildcard /usr/lib/$(MULTIARCH)/openblas-openmp /usr/lib64/openblas-openmp /usr/lib/openblas-openmp))
BLAS_INC     := $(firstword $(wildcard /usr/include/$(MULTIARCH)/openblas-openmp /usr/include/openblas))
BLAS_CFLAGS  := $(addprefix -isystem ,$(BLAS_INC))
ifneq ($(BLAS_DIR),)
BLAS_LIBS    := -L$(BLAS_DIR) -Wl,-rpath,$(BLAS_DIR) -lopenblas
else
BLAS_LIBS    := -lopenblas
endif
# LAPACKE is linked statically: the shared one would load Debian's default BLAS beside ours. LAPACK itself is in OpenBLAS.
LAPACKE      := $(wildcard /usr/lib/$(MULTIARCH)/liblapacke.a /usr/lib64/liblapacke.a /usr/lib/liblapacke.a)
BLAS_LIBS    := $(or $(firstword $(LAPACKE)),-llapacke) $(BLAS_LIBS)
NVCC := $(firstword $(shell command -v nvcc 2>/dev/null) $(wildcard /usr/local/cuda/bin/nvcc))
# Sanitizers and gcov are the host code's business.
CUDA_ON := $(if $(NVCC),$(if $(filter 0,$(CUDA))$(filter 1,$(SAN) $(COV)),,1))

ifeq ($(SAN),1)
OUT      := build/san
SANFLAGS := -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer
else ifeq ($(COV),1)
OUT      := build/cov
SANFLAGS := --coverage -fprofile-update=atomic -include tests/coverage.h
OPT      := -O1
KOPT     := -O1
else
OUT      := build
SANFLAGS := -U_FORTIFY_SOURCE -D_FORTIFY_SOURCE=2 -fstack-protector-strong -fPIE# Ubuntu defines another level by itself
HARD_LD  := -pie -Wl,-z,relro,-z,now
endif

WARN   := -Wall -Wextra -Wshadow -Wdouble-promotion -Wstrict-prototypes -Wvla -Wconversion -Werror
# -fno-math-errno changes no result; -ffp-contract=off keeps the plain path the same on every compiler and machine.
BASE_FLAGS := -std=c11 -D_GNU_SOURCE $(WARN) -g -fopenmp -fno-math-errno -ffp-contract=off -pthread -I.
ifneq ($(filter x86_64 amd64,$(MACHINE)),)
SIMD := 1
else
SIMD :=
BASE_FLAGS += -DGQAKIT_NO_SIMD
endif
PKG_CFLAGS := $(patsubst -I%,-isystem %,$(shell $(PKG) --cflags $(HDF5_PKG) $(LIB_PKGS) 2>/dev/null)) $(BLAS_CFLAGS)
PKG_LIBS   := $(shell $(PKG) --libs $(HDF5_PKG) $(LIB_PKGS) 2>/dev/null)
ALL_CFLAGS  = $(BASE_FLAGS) $(PKG_CFLAGS) $(CUDA_CFLAGS) $(SANFLAGS) $(CFLAGS)
ALL_LIBS    = $(BLAS_LIBS) $(PKG_LIBS) $(CUDA_LIBS) -fopenmp -pthread -lm $(SANFLAGS) $(HARD_LD) $(LDFLAGS)

AVX512     := -mavx512f -mavx512bw -mavx512vl -mavx512dq -mfma -mf16c -mprefer-vector-width=512
AVX512BF16 := $(AVX512) -mavx512bf16
AVX2       := -mavx2 -mfma -mf16c
isa_flags   = $(if $(filter %_avx512bf16.c,$(1)),$(AVX512BF16),$(if $(filter %_avx512.c,$(1)),$(AVX512),$(if $(filter %_avx2.c,$(1)),$(AVX2))))
opt_flags   = $(if $(filter kernels/cpu/% base/view%,$(1)),$(KOPT),$(OPT))

LIB_DIRS := base data checkpoints kernels kernels/cpu model
ALL_SRC  := $(wildcard $(addsuffix /*.c,$(LIB_DIRS)))
LIB_SRC  := $(if $(SIMD),$(ALL_SRC),$(filter-out %_avx512bf16.c %_avx512.c %_avx2.c,$(ALL_SRC)))
LIB_OBJ  := $(LIB_SRC:%.c=$(OUT)/obj/%.o)
LIB      := $(OUT)/libgqakit.a

# A program is built when one of its folder's files has a main.
PROGRAM_NAMES := convert uptrain eval
program_src    = $(wildcard $(1)/*.c)
has_main       = $(if $(call program_src,$(1)),$(shell grep -lE '^int main' $(call program_src,$(1)) /dev/null))
PROGRAMS      := $(foreach p,$(PROGRAM_NAMES),$(if $(call has_main,$(p)),$(OUT)/gqa-$(p)))

HELPER_SRC := $(filter-out tests/canary.c tests/test_%.c tests/fault_%.c,$(wildcard tests/*.c)) $(wildcard tests/reference/*.c)
HELPER_OBJ := $(HELPER_SRC:%.c=$(OUT)/obj/%.o)
TEST_SRC   := $(filter-out $(if $(CUDA_ON),,tests/test_cuda_%),$(wildcard tests/test_*.c))
TESTS      := $(TEST_SRC:tests/%.c=$(OUT)/tests/%)
QUICK      := $(filter-out $(addprefix $(OUT)/tests/,$(TEST_SLOW)),$(TESTS))
FAULT_IO     := test_crash_points test_crash_convert test_crash_uptrain test_read_faults
FAULT_LIB    := test_disk_full test_signals test_soak
FAULT_MEMORY := test_memory_checkpoints test_memory_convert test_memory_read test_memory_uptrain
CANARY     := $(patsubst tests/%.c,$(OUT)/tests/%,$(wildcard tests/canary.c))
BENCH      := $(patsubst tools/bench/%.c,$(OUT)/bench/%,$(wildcard tools/bench/bench_*.c))
TOOL_SRC   := $(filter-out $(wildcard tools/bench_*.c),$(wildcard tools/*.c))
TOOLS      := $(TOOL_SRC:tools/%.c=$(OUT)/tools/%)
FUZZ_SRC   := $(wildcard tests/fuzz/fuzz_*.c)
FUZZ       := $(FUZZ_SRC:tests/fuzz/%.c=build/fuzz/%)

ifeq ($(CUDA_ON),1)
include tools/cuda.mk
endif
include tests/simt/simt.mk
# Only backend.c knows whether the CUDA backend is in: it is compiled again when that changes.
CUDA_STATE := $(OUT)/obj/cuda.state
$(shell [ -f $(CUDA_STATE) ] && [ "$$(cat $(CUDA_STATE))" = "$(CUDA_ON)" ] || { mkdir -p $(OUT)/obj; echo "$(CUDA_ON)" >$(CUDA_STATE); })
$(OUT)/obj/kernels/backend.o: $(CUDA_STATE)

Q   := $(if $(filter 1,$(V)),,@)
say  = $(if $(filter 1,$(V)),,@echo '  $(1)')

.PHONY: all help test test-quick bench info demo fuzz install coverage format clean programs tests-built
.SECONDARY:

all: $(LIB) $(PROGRAMS) ## build what this machine can: the library and the programs (the default)
programs: $(PROGRAMS)
tests-built: $(TESTS) $(SIMT_TESTS) $(CUDA_TESTS) $(CANARY) $(PROGRAMS) $(TOOLS)

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(firstword $(MAKEFILE_LIST)) | sed -E 's/^([a-z-]+):[^#]*## (.*)/  make \1\t\2/' | expand -t 20
	@echo "  Settings: SAN=1 (sanitizers), COV=1 (gcov), CC=, PREFIX=, DESTDIR=, FUZZ_SECONDS=; see the head of the Makefile."

$(LIB): $(LIB_OBJ) $(CUDA_OBJ)
	@mkdir -p $(@D)
	@rm -f $@
	$(call say,AR $@)
	$(Q)$(AR) rcs $@ $^

$(OUT)/obj/%.o: %.c Makefile
	@mkdir -p $(@D)
	$(call say,CC $<)
	$(Q)$(CC) $(call opt_flags,$<) $(ALL_CFLAGS) $(call isa_flags,$<) $(if $(filter tests/%,$<),-Itests) -MMD -MP -c -o $@ $<

# The Python files that this object embeds (.incbin).
$(OUT)/obj/checkpoints/family_gqakit.o build/fuzz/obj/checkpoints/family_gqakit.o: $(wildcard checkpoints/custom/*.py)

define program_rule
$(OUT)/gqa-$(1): $(patsubst %.c,$(OUT)/obj/%.o,$(call program_src,$(1))) $(LIB)
	$$(call say,LD $$@)
	$$(Q)$$(CC) -o $$@ $$^ $$(ALL_LIBS)
endef
$(foreach p,$(PROGRAM_NAMES),$(eval $(call program_rule,$(p))))

# An archive: a test links only the fixtures and references it uses.
$(OUT)/libtests.a: $(HELPER_OBJ)
	@mkdir -p $(@D)
	@rm -f $@
	$(call say,AR $@)
	$(Q)$(AR) rcs $@ $^

# What the programs consist of, without their mains, for the tests that run them inside.
CONVERT_OBJ := $(patsubst %.c,$(OUT)/obj/%.o,$(filter-out %/main.c,$(wildcard convert/*.c)))
$(addprefix $(OUT)/tests/,test_merge test_merge_models test_calibration test_newton test_auto test_budget): $(CONVERT_OBJ)
INSIDE_OBJ := $(patsubst %.c,$(OUT)/obj/%.o,$(filter-out %/main.c,$(wildcard uptrain/*.c eval/*.c)))
$(OUT)/tests/test_input_yaml: $(INSIDE_OBJ)
$(addprefix $(OUT)/tests/,test_device_memory test_distill_device test_ablate_answer test_ablate_budget test_ablate_report cuda_model simt_model): $(INSIDE_OBJ)

# Faults on demand (tests/faults.h): before libc's calls, and before malloc in our own code. Main functions under another name.
$(addprefix $(OUT)/tests/,$(FAULT_IO)): $(patsubst %,$(OUT)/obj/tests/fault_%.o,io play power)
$(addprefix $(OUT)/tests/,$(FAULT_LIB)): $(OUT)/obj/tests/fault_play.o $(OUT)/obj/tests/fault_io.o
$(addprefix $(OUT)/tests/,$(FAULT_MEMORY)): $(patsubst %,$(OUT)/obj/tests/fault_%.o,memory memory_play play io)
$(OUT)/tests/test_crash_convert $(OUT)/tests/test_memory_convert: $(CONVERT_OBJ) $(OUT)/obj/tests/main_convert.o
$(OUT)/tests/test_crash_uptrain $(OUT)/tests/test_memory_uptrain: $(INSIDE_OBJ)
ifeq ($(SAN),1) # plain loops that tests compare with; what is compared has the sanitizers
$(OUT)/obj/tests/reference/%.o: SANFLAGS := -fno-omit-frame-pointer
endif

$(OUT)/obj/tests/main_convert.o: convert/main.c Makefile
	@mkdir -p $(@D)
	$(call say,CC $< (as convert_main))
	$(Q)$(CC) $(OPT) $(ALL_CFLAGS) -Wno-missing-prototypes -Dmain=convert_main -MMD -MP -c -o $@ $<
wrapped = $(patsubst %,-Wl$(comma)--wrap=%,malloc calloc realloc strdup strndup asprintf __asprintf_chk posix_memalign aligned_alloc open_memstream)
comma   := ,
$(addprefix $(OUT)/tests/,$(FAULT_MEMORY)): LDFLAGS += $(wrapped)

$(OUT)/tests/%: $(OUT)/obj/tests/%.o $(OUT)/libtests.a $(LIB)
	@mkdir -p $(@D)
	$(call say,LD $@)
	$(Q)$(CC) -o $@ $(filter %.o,$^) $(filter %.a,$^) $(ALL_LIBS) -lcmocka

$(OUT)/bench/%: $(OUT)/obj/tools/bench/%.o $(LIB)
	@mkdir -p $(@D)
	$(call say,LD $@)
	$(Q)$(CC) -o $@ $^ $(ALL_LIBS)

$(OUT)/tools/%: $(OUT)/obj/tools/%.o $(LIB)
	@mkdir -p $(@D)
	$(call say,LD $@)
	$(Q)$(CC) -o $@ $^ $(ALL_LIBS)

# tools/deps may install the compiler and libraries this file has looked for above, so the rest runs in a second make.
test: ## every test, each in a process of its own; ends with 'N passed, N failed'
	@tools/deps
	@$(MAKE) --no-print-directory tests-built
	@BUILD=$(OUT) TEST_TIMEOUT=$(TEST_TIMEOUT) tools/run-tests all

test-quick: ## the tests that take seconds
	@tools/deps
	@$(MAKE) --no-print-directory tests-built
	@BUILD=$(OUT) TEST_TIMEOUT=$(TEST_TIMEOUT) TEST_SLOW="$(TEST_SLOW)" tools/run-tests quick

# The tests of what is never lost with every call, allocation and limit instead of some, and many random signals. About half an hour on two CPUs.
SOAK := $(addprefix $(OUT)/tests/,$(FAULT_IO) $(FAULT_LIB) $(FAULT_MEMORY) test_kill test_input_damage test_input_damage_data test_input_h5 test_input_yaml)
.PHONY: soak
soak: ## every crash point, power cut, allocation, limit and damage, 200 kills, 50 of each signal, 10000 saves (GQAKIT_SOAK=1)
	@tools/deps
	@$(MAKE) --no-print-directory all $(SOAK)
	@status=0; for t in $(SOAK); do echo "== $$t"; GQAKIT_SOAK=1 GQAKIT_KILLS=$${GQAKIT_KILLS:-200} $$t || status=1; done; exit $$status

demo: ## convert, uptrain and evaluate the sample checkpoint; ends with a table and a report
	@tools/deps
	@$(MAKE) --no-print-directory all
	@tools/demo

# Each script says what it skips when its Python packages are missing. PYTHON, LLAMACPP_PYTHON: of virtual environments that have them.
PYTHON ?= python3
LLAMACPP_PYTHON ?= $(PYTHON)
.PHONY: test-interop
test-interop: all ## what we write, run by other programs: Hugging Face transformers, llama.cpp (PYTHON=... with those packages)
	@status=0; for s in "$(PYTHON) tools/check-targets" "$(PYTHON) tools/check-transformers" "$(LLAMACPP_PYTHON) tools/check-llamacpp"; do \
	  echo "== $$s"; BUILD=$(OUT) $$s || status=1; done; exit $$status

# The CUDA benchmarks need a GPU; without one they are built (bench-built) and left out here.
GPU := $(wildcard /dev/nvidiactl)
BENCH_RUN := $(if $(and $(GPU),$(CUDA_ON)),$(BENCH) "tools/bench/cuda_peers.py attention" "tools/bench/cuda_peers.py train",$(filter-out $(OUT)/bench/bench_cuda_%,$(BENCH)))
.PHONY: bench-built
bench-built: $(BENCH)
bench: all $(BENCH) $(TOOLS) ## every benchmark program and script of tools/bench, briefly
	@for b in $(BENCH_RUN) "tools/bench/convert-vs-cp 1 3" "tools/bench/train-vs-torch 1 --steps 3"; do \
	  echo "== $$b"; BUILD=$(OUT) $$b || exit 1; done

# Fuzzers are built with clang, beside everything else; warnings are the other builds' business. OpenMP is off in them
# (clang's runtime may be absent): pragmas are ignored, and the omp_ functions come from gcc's runtime.
FUZZ_FLAGS = -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer
# The parsers live in these folders; the kernels would take minutes to build here for nothing.
FUZZ_OBJ   = $(patsubst %.c,build/fuzz/obj/%.o,$(filter base/% data/% checkpoints/%,$(LIB_SRC)))
build/fuzz/obj/%.o: %.c Makefile
	@mkdir -p $(@D)
	$(call say,CC $< (fuzz))
	$(Q)$(FUZZ_CC) -O1 $(filter-out -fopenmp,$(BASE_FLAGS)) -w -idirafter $(shell $(CC) -print-file-name=include) $(PKG_CFLAGS) \
	  -fsanitize=fuzzer-no-link,address,undefined -fno-sanitize-recover=undefined $(call isa_flags,$<) -Itests -MMD -MP -c -o $@ $<
build/fuzz/libgqakit.a: $(FUZZ_OBJ)
	@rm -f $@
	$(call say,AR $@)
	$(Q)$(AR) rcs $@ $^
build/fuzz/fuzz_task_line: build/fuzz/obj/eval/tasks_line.o
build/fuzz/%: build/fuzz/obj/tests/fuzz/%.o build/fuzz/libgqakit.a
	$(call say,LD $@)
	$(Q)$(FUZZ_CC) -o $@ $(filter %.o,$^) $(filter %.a,$^) $(FUZZ_FLAGS) $(BLAS_LIBS) $(PKG_LIBS) $(shell $(CC) -print-file-name=libgomp.so) -pthread -lm

# ASan keeps 256 MB of freed memory by default: with less, the limit is about what a parser itself holds.
# FUZZ_ONLY="json text": those alone. Dictionaries are tests/fuzz/dict/NAME.dict. What is found lies in build/fuzz/found/NAME-*.
# FUZZ_SEED=N: libFuzzer's choices from that number; without it other ones every time.
FUZZ_JOBS ?= $(shell nproc)
FUZZ_SEED ?= 0
FUZZ_RUN  := $(if $(FUZZ_ONLY),$(FUZZ_ONLY:%=fuzz-run-%),$(FUZZ_SRC:tests/fuzz/fuzz_%.c=fuzz-run-%))
.PHONY: $(FUZZ_RUN)
$(FUZZ_RUN): fuzz-run-%: build/fuzz/fuzz_%
	@mkdir -p tests/fuzz/corpus/$* build/fuzz/found/$*; dict=tests/fuzz/dict/$*.dict; [ -f $$dict ] && dict=-dict=$$dict || dict=; \
	  ASAN_OPTIONS=quarantine_size_mb=32 $< $$dict -max_total_time=$(FUZZ_SECONDS) -seed=$(FUZZ_SEED) -rss_limit_mb=512 -timeout=5 -verbosity=0 -print_final_stats=1 -close_fd_mask=2 \
	    -artifact_prefix=build/fuzz/found/$*- build/fuzz/found/$* tests/fuzz/corpus/$* >build/fuzz/$*.log 2>&1 || \
	    { tail -n 60 build/fuzz/$*.log; echo "fuzz $*: FOUND something, see above and build/fuzz/found/$*-*"; exit 1; }; \
	  echo "fuzz $*: nothing found in $(FUZZ_SECONDS) s, $$(sed -n 's/stat::number_of_executed_units: *//p' build/fuzz/$*.log) inputs"

fuzz: ## every fuzz target for FUZZ_SECONDS, FUZZ_JOBS at a time (needs clang)
	@if [ -z "$(FUZZ_CC)" ]; then echo "make fuzz needs clang with libFuzzer (Debian: clang); none found" >&2; exit 1; fi
	@$(MAKE) --no-print-directory -j$(FUZZ_JOBS) -k $(FUZZ_RUN)

info: ## what was found on this machine, and what was not
	@BUILD=$(OUT) CC="$(CC)" PKG="$(PKG)" HDF5_PKG="$(HDF5_PKG)" BLAS_DIR="$(BLAS_DIR)" BLAS_INC="$(BLAS_INC)" LAPACKE="$(firstword $(LAPACKE))" \
	  FUZZ_CC="$(FUZZ_CC)" NVCC="$(NVCC)" CUDA_ON="$(CUDA_ON)" CUDA="$(CUDA)" CUDA_HOME="$(CUDA_HOME)" MACHINE="$(MACHINE)" SIMD="$(SIMD)" PROGRAMS="$(PROGRAMS)" tools/info

install: all ## programs into PREFIX/bin, library and headers into PREFIX/lib and PREFIX/include/gqakit
	install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(PREFIX)/lib
	for p in $(PROGRAMS); do install -m 755 $$p $(DESTDIR)$(PREFIX)/bin/ || exit 1; done
	install -m 644 $(LIB) $(DESTDIR)$(PREFIX)/lib/
	for h in $(wildcard $(addsuffix /*.h,$(LIB_DIRS))); do \
	  install -D -m 644 $$h $(DESTDIR)$(PREFIX)/include/gqakit/$$h || exit 1; done

COVERED := base data checkpoints convert model kernels/cpu
coverage: ## line coverage of base, data, checkpoints, convert, model and kernels/cpu, from a COV=1 run of the tests (needs gcovr)
	@find build/cov -name '*.gcda' -delete 2>/dev/null || true
	-@$(MAKE) --no-print-directory COV=1 TEST_TIMEOUT=1800 test # a test that is stopped has run nothing
	@gcovr -r . --object-directory build/cov $(foreach d,$(COVERED),-f '$(d)/[^/]*\.c$$') --exclude-unreachable-branches \
	  --gcov-ignore-parse-errors

# From what git holds of the commit, so the same commit is the same bytes: git sorts the names and dates them by the commit, gzip adds neither.
VERSION = $(shell sed -n 's/.*GQAKIT_VERSION "\(.*\)".*/\1/p' base/host.h)
.PHONY: dist
dist: ## build/gqakit-VERSION.tar.gz of the last commit, the same bytes every time
	@mkdir -p build
	@git archive --format=tar --prefix=gqakit-$(VERSION)/ HEAD | gzip -9n >build/gqakit-$(VERSION).tar.gz
	@cd build && sha256sum gqakit-$(VERSION).tar.gz

format: ## clang-format over the C files (style in .clang-format)
	clang-format -i $$(git ls-files '*.c' '*.h')

clean: ## remove build/
	rm -rf build

-include $(shell find $(OUT)/obj build/fuzz/obj -name '*.d' 2>/dev/null)
