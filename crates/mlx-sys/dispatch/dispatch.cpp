// libmlxc.so of a build with the feature `cuda`: hands every function of mlx-c to one of two libraries beside it.
//
//   libmlxc-cuda.so   for NVIDIA GPUs. Needs the driver's libcuda.so.1, without which no program that is linked against it
//                     starts.
//   libmlxc-cpu.so    for the CPU only.
//
// The first call of a function decides which of them the process uses until it ends. Each function is a jump to the address in
// its slot. At first all slots hold `mlx_sys_first_call`, which loads a library, puts the addresses of its functions into the
// slots and goes on with the call.
//
// `functions.def` is made by the build script (build/dispatch.rs): a row for each function of mlx-c.

#include <dlfcn.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <string>

// Each function begins with an instruction that marks the target of an indirect jump. Processors that check this refuse to jump
// to anything else, if the compiler marks this library as one that has these instructions; others ignore it.
#if defined(__x86_64__)
// A function may change r11, which holds no argument.
#define JUMP(slot) "endbr64\n lea " slot "(%rip), %r11\n jmp *(%r11)\n"
#elif defined(__aarch64__)
// A function may change x16 and x17, which hold no arguments. A load with acquire, since the library's data must not be
// older than the slot.
// `hint #34` is `bti c`, which older assemblers do not know by name.
#define JUMP(slot) "hint #34\n adrp x16, " slot "\n add x16, x16, :lo12:" slot "\n ldar x17, [x16]\n br x17\n"
#else
#error "dispatch.cpp has no code for this processor"
#endif

// Functions and their slots.
#define FUNCTION(name)                        \
  asm(".pushsection .text\n"                  \
      ".p2align 4\n"                          \
      ".globl " #name "\n"                    \
      ".type " #name ", %function\n" #name    \
      ":\n" JUMP("mlx_sys_slot_" #name)       \
      ".size " #name ", . - " #name "\n"      \
      ".popsection\n"                         \
      ".pushsection .data\n"                  \
      ".p2align 3\n"                          \
      ".globl mlx_sys_slot_" #name "\n"       \
      ".hidden mlx_sys_slot_" #name "\n"      \
      "mlx_sys_slot_" #name                   \
      ": .quad mlx_sys_first_call\n"          \
      ".popsection\n");                       \
  extern "C" std::atomic<void*> mlx_sys_slot_##name __attribute__((visibility("hidden")));
#include "functions.def"
#undef FUNCTION

// Saves what may hold arguments, has a library loaded, and jumps through the slot again.
#if defined(__x86_64__)
asm(R"(
.pushsection .text
.type mlx_sys_first_call, %function
mlx_sys_first_call:
  endbr64
  push %rbp
  mov %rsp, %rbp
  push %r11
  push %rax
  push %rdi
  push %rsi
  push %rdx
  push %rcx
  push %r8
  push %r9
  sub $128, %rsp
  movups %xmm0, (%rsp)
  movups %xmm1, 16(%rsp)
  movups %xmm2, 32(%rsp)
  movups %xmm3, 48(%rsp)
  movups %xmm4, 64(%rsp)
  movups %xmm5, 80(%rsp)
  movups %xmm6, 96(%rsp)
  movups %xmm7, 112(%rsp)
  call mlx_sys_load
  movups (%rsp), %xmm0
  movups 16(%rsp), %xmm1
  movups 32(%rsp), %xmm2
  movups 48(%rsp), %xmm3
  movups 64(%rsp), %xmm4
  movups 80(%rsp), %xmm5
  movups 96(%rsp), %xmm6
  movups 112(%rsp), %xmm7
  add $128, %rsp
  pop %r9
  pop %r8
  pop %rcx
  pop %rdx
  pop %rsi
  pop %rdi
  pop %rax
  pop %r11
  pop %rbp
  jmp *(%r11)
.size mlx_sys_first_call, . - mlx_sys_first_call
.popsection
)");
#else
asm(R"(
.pushsection .text
.type mlx_sys_first_call, %function
mlx_sys_first_call:
  hint #34
  stp x29, x30, [sp, #-224]!
  mov x29, sp
  stp x0, x1, [sp, #16]
  stp x2, x3, [sp, #32]
  stp x4, x5, [sp, #48]
  stp x6, x7, [sp, #64]
  stp x8, x16, [sp, #80]
  stp q0, q1, [sp, #96]
  stp q2, q3, [sp, #128]
  stp q4, q5, [sp, #160]
  stp q6, q7, [sp, #192]
  bl mlx_sys_load
  ldp q0, q1, [sp, #96]
  ldp q2, q3, [sp, #128]
  ldp q4, q5, [sp, #160]
  ldp q6, q7, [sp, #192]
  ldp x0, x1, [sp, #16]
  ldp x2, x3, [sp, #32]
  ldp x4, x5, [sp, #48]
  ldp x6, x7, [sp, #64]
  ldp x8, x16, [sp, #80]
  ldp x29, x30, [sp], #224
  ldar x17, [x16]
  br x17
.size mlx_sys_first_call, . - mlx_sys_first_call
.popsection
)");
#endif

namespace {

struct Function {
  const char* name;
  std::atomic<void*>* slot;
};

constexpr Function FUNCTIONS[] = {
#define FUNCTION(name) {#name, &mlx_sys_slot_##name},
#include "functions.def"
#undef FUNCTION
};

using SetKernels = void (*)(const void* table);

// What follows is read and written under this lock.
std::mutex lock;
// The library in use; null before the first call.
void* library = nullptr;
// Whether the user asks for the CPU.
bool is_turned_off = false;
// Why the process uses no GPU; null if it uses one. Never freed, since callers keep it.
const char* refusal = nullptr;
// The kernels for the CPU, which are handed over before `main` begins.
const void* kernels = nullptr;
SetKernels set_kernels = nullptr;

// The CUDA version of mlx-cuda-13's libraries, as the driver counts: a driver that knows an older one does not run them.
constexpr int CUDA_VERSION = 13000;
// MLX's kernels are compiled for this and newer.
constexpr int CAPABILITY = 75;

// Functions of the driver, by their names and types in NVIDIA's cuda.h.
struct Driver {
  int (*cuInit)(unsigned flags);
  int (*cuDriverGetVersion)(int* version);
  int (*cuDeviceGetCount)(int* count);
  int (*cuDeviceGet)(int* device, int ordinal);
  int (*cuDeviceGetAttribute)(int* value, int attribute, int device);
  int (*cuDeviceGetName)(char* name, int length, int device);
  int (*cuGetErrorString)(int error, const char** text);
};

std::string said(const char* text) {
  return text ? text : "no reason given";
}

template <typename F>
bool find(void* in, const char* name, F& function) {
  function = reinterpret_cast<F>(dlsym(in, name));
  return function;
}

std::string version(int number) {
  return std::to_string(number / 1000) + "." + std::to_string(number % 1000 / 10);
}

// Why MLX cannot use a GPU of this machine; empty if it can.
std::string refusal_of_the_driver() {
  void* handle = dlopen("libcuda.so.1", RTLD_NOW);
  if (!handle) {
    return "there is no NVIDIA driver on this machine (" + said(dlerror()) + ")";
  }
  Driver driver;
  if (!find(handle, "cuInit", driver.cuInit) ||
      !find(handle, "cuDriverGetVersion", driver.cuDriverGetVersion) ||
      !find(handle, "cuDeviceGetCount", driver.cuDeviceGetCount) ||
      !find(handle, "cuDeviceGet", driver.cuDeviceGet) ||
      !find(handle, "cuDeviceGetAttribute", driver.cuDeviceGetAttribute) ||
      !find(handle, "cuDeviceGetName", driver.cuDeviceGetName) ||
      !find(handle, "cuGetErrorString", driver.cuGetErrorString)) {
    return "libcuda.so.1 is not the library of an NVIDIA driver (" + said(dlerror()) + ")";
  }
  constexpr int NO_DEVICE = 100;
  int count = 0;
  int error = driver.cuInit(0);
  if (error == 0) {
    error = driver.cuDeviceGetCount(&count);
  }
  if (error == NO_DEVICE || (error == 0 && count == 0)) {
    return "the NVIDIA driver finds no GPU on this machine";
  }
  if (error != 0) {
    const char* text = nullptr;
    driver.cuGetErrorString(error, &text);
    return "the NVIDIA driver does not start: " + said(text) + " (error " + std::to_string(error) + ")";
  }
  int known = 0;
  driver.cuDriverGetVersion(&known);
  if (known < CUDA_VERSION) {
    return "the NVIDIA driver is too old: it knows CUDA " + version(known) + ", and MLX needs " +
        version(CUDA_VERSION);
  }
  constexpr int CAPABILITY_MAJOR = 75, CAPABILITY_MINOR = 76;
  int device = 0, major = 0, minor = 0;
  driver.cuDeviceGet(&device, 0);
  driver.cuDeviceGetAttribute(&major, CAPABILITY_MAJOR, device);
  driver.cuDeviceGetAttribute(&minor, CAPABILITY_MINOR, device);
  if (10 * major + minor < CAPABILITY) {
    char name[256] = "the GPU";
    driver.cuDeviceGetName(name, sizeof name, device);
    return std::string(name) + " is too old for MLX: its compute capability is " + std::to_string(major) +
        "." + std::to_string(minor) + ", and MLX needs 7.5";
  }
  return {};
}

// The path of a library in the folder of this one.
std::string beside(const char* name) {
  Dl_info self{};
  dladdr(FUNCTIONS, &self);
  std::string path = self.dli_fname ? self.dli_fname : "";
  path.resize(path.rfind('/') + 1);
  return path + name;
}

// Chooses a library and loads it. Called under the lock.
void load() {
  if (library) {
    return;
  }
  auto why = is_turned_off ? "this process uses the CPU" : refusal_of_the_driver();
  if (why.empty()) {
    library = dlopen(beside("libmlxc-cuda.so").c_str(), RTLD_NOW);
    if (!library) {
      why = "MLX's library for NVIDIA GPUs cannot be loaded (" + said(dlerror()) + ")";
    }
  }
  if (!library) {
    refusal = strdup(why.c_str());
    library = dlopen(beside("libmlxc-cpu.so").c_str(), RTLD_NOW);
  }
  // Like a library that a program is linked against and that is missing: nothing can go on.
  if (!library) {
    std::fprintf(stderr, "MLX cannot be loaded: %s\n", said(dlerror()).c_str());
    std::_Exit(127);
  }
  // Before the slots, since another thread may call a function as soon as its slot is filled.
  if (find(library, "mlx_sys_set_kernels", set_kernels)) {
    set_kernels(kernels);
  }
  for (auto& function : FUNCTIONS) {
    void* address = dlsym(library, function.name);
    if (!address) {
      std::fprintf(stderr, "MLX cannot be loaded: %s\n", said(dlerror()).c_str());
      std::_Exit(127);
    }
    function.slot->store(address, std::memory_order_release);
  }
}

// A function of the library that was chosen; null where it has none of this name.
template <typename Function>
Function chosen(const char* name) {
  std::lock_guard guard(lock);
  load();
  Function function = nullptr;
  find(library, name, function);
  return function;
}

// What functions of native/direct.cpp answer without a kernel.
constexpr int NO_KERNEL = 2;

} // namespace

#define EXPORTED __attribute__((visibility("default")))

extern "C" {

// Called by the first function of mlx-c that the process calls, if the process has not chosen before.
void mlx_sys_load() {
  std::lock_guard guard(lock);
  const char* device = std::getenv("MLX_MODELS_DEVICE");
  is_turned_off = is_turned_off || (device && std::strcmp(device, "cpu") == 0);
  load();
}

EXPORTED void mlx_sys_set_kernels(const void* table) {
  std::lock_guard guard(lock);
  kernels = table;
  if (set_kernels) {
    set_kernels(table);
  }
}

// Of native/allocate.cpp.
EXPORTED int mlx_sys_allocate(void* res, const int* shape, int dims, int dtype) {
  auto allocate = chosen<int (*)(void*, const int*, int, int)>("mlx_sys_allocate");
  return allocate ? allocate(res, shape, dims, dtype) : 1;
}

// Of native/direct.cpp.
EXPORTED int mlx_sys_gated(void* res, void* gate, void* up, bool is_gelu, void* stream) {
  static auto gated = chosen<int (*)(void*, void*, void*, bool, void*)>("mlx_sys_gated");
  return gated ? gated(res, gate, up, is_gelu, stream) : NO_KERNEL;
}

EXPORTED int mlx_sys_linear(void* res, void* x, void* w, void* stream) {
  static auto linear = chosen<int (*)(void*, void*, void*, void*)>("mlx_sys_linear");
  return linear ? linear(res, x, w, stream) : NO_KERNEL;
}

// Of native/record.cpp.
EXPORTED void mlx_sys_record() {
  if (auto record = chosen<void (*)()>("mlx_sys_record")) {
    record();
  }
}

EXPORTED void mlx_sys_recorded(void* visit, void* own) {
  if (auto recorded = chosen<void (*)(void*, void*)>("mlx_sys_recorded")) {
    recorded(visit, own);
  }
}

// Null if the process uses a GPU.
EXPORTED const char* mlx_sys_gpu_refusal() {
  std::lock_guard guard(lock);
  load();
  return refusal;
}

// False if the process uses a GPU already.
EXPORTED bool mlx_sys_gpu_turn_off() {
  std::lock_guard guard(lock);
  is_turned_off = true;
  load();
  return refusal;
}

} // extern "C"
