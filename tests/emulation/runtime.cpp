// Runs blocks one after the other, and the threads of a block as fibers, one at a time. Checks the threads and launches.
//
// A thread runs until a barrier or a warp operation; then the next one runs. The order of blocks and threads alternates
// between launches: forward, backward, shuffled. Compilers insert calls of __tsan_* for every memory access and __ubsan_*
// for undefined behavior (-fsanitize); this file implements them with CUDA's rules instead of those of CPU threads.
#include "cuda_runtime.h"

#include <dlfcn.h>
#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <exception>
#include <map>
#include <memory>
#include <mutex>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

extern "C" __attribute__((visibility("hidden"))) char __ehdr_start, _end;  // of this library

namespace emulation {
namespace {

constexpr size_t kStack = 128 << 10;
constexpr int kMaxThreads = 1024;
constexpr size_t kSharedBytes = 48 << 10;     // static and dynamic, unless the kernel requests more
constexpr size_t kMaxSharedBytes = 64 << 10;  // maximum on compute capability 7.5, the lowest that is built
const char* const kTooMuchShared = "more static and dynamic shared memory than 48 KiB or the requested limit";
constexpr size_t kParameterBytes = 4 << 10;
constexpr size_t kArena = 256 << 10;
constexpr size_t kGap = 32;        // inaccessible gap between shared variables
constexpr size_t kRedZone = 1024;  // inaccessible memory around each tensor
constexpr size_t kPage = 4096;

enum class State { kReady, kAtBlockBarrier, kAtWarpOperation, kDone };

struct Fiber {
  ucontext_t start;
  jmp_buf resume;
  bool started;
  State state;
  Place place;
};

struct Warp {
  unsigned arrived, mask;
  const char* kind;
  Place place;
  int turn;  // index of one of two buffers: a fast lane may write its next value before a slow one has read
  alignas(16) char values[2][32][16];
  uint16_t epoch;  // counts __syncwarp, which orders memory accesses
};

// The last write to a byte and the reads since then. An interval is the time between two barriers of a block.
struct alignas(16) Shadow {
  uint32_t write_interval, read_interval;
  uint16_t write_epoch, read_epoch;
  uint16_t write_thread : 10, atomic : 1;
  uint16_t read_thread : 10, read_by_many : 1, read_by_other_blocks : 1;
};
static_assert(sizeof(Shadow) == 16 && kMaxThreads <= 1 << 10, "compared and copied as one vector");
bool same(const Shadow& a, const Shadow& b) { return memcmp(&a, &b, sizeof a) == 0; }

struct ShadowPage {
  Shadow of[kPage];
  bool live[kPage];  // does the byte belong to a tensor or to a constant of the kernels?
};
struct CachedPage {
  uintptr_t number;
  ShadowPage* page;
};

char* stacks;
alignas(128) char arena[kArena];
bool arena_declared[kArena];
size_t arena_used, dynamic_bytes, shared_used;
std::unordered_map<const void*, size_t> variables;
std::unordered_map<uintptr_t, std::unique_ptr<ShadowPage>> shadows;
CachedPage recent_pages[256];
std::map<uintptr_t, uintptr_t> live_memory;  // begin -> end
std::mutex memory_changes;
std::unordered_map<std::string, size_t> shared_limits;  // of kernels that request more
uint32_t interval, block_began, launch_began;

// Data written by one block may be read by another after: a fence and an atomic on global memory in the writer; an atomic
// on the same address and a fence in the reader.
struct
    Written {  // by one block until its atomic: all intervals before the current one, and the thread's own part of that
  uint32_t first, last;
  uint16_t thread;
};
std::unordered_map<uintptr_t, std::vector<Written>>
    handed_over;                       // in this launch, by address of the atomic
std::vector<Written> met, taken_over;  // by this block, before and after its fence
bool fenced;

Fiber fibers[kMaxThreads];
Warp warps[kMaxThreads / 32];
jmp_buf scheduler;
int current, threads, at_barrier, votes, vote_result;
bool in_kernel;
bool capturing;
const char* kernel_name;
Thread thread_body;
size_t shared_limit;
std::string failure;
std::string unchecked;  // the kernel whose launch has not been checked
std::string host_failure;
std::mutex one_launch;
unsigned launches;

std::string text(Place p) {
  const char* slash = strrchr(p.file, '/');
  return std::string(slash == nullptr ? p.file : slash + 1) + ":" + std::to_string(p.line);
}

std::string text_of_address(const void* address) {
  Dl_info info;
  if (!dladdr(address, &info)) return "?";
  char command[1024], line[256] = "?";
  snprintf(command, sizeof command, "addr2line -s -e '%s' %#zx", info.dli_fname,
           size_t((const char*)address - (const char*)info.dli_fbase) - 1);
  if (FILE* pipe = popen(command, "r")) {
    if (fgets(line, sizeof line, pipe) != nullptr) line[strcspn(line, "\n")] = 0;
    pclose(pipe);
  }
  return line;
}

void leave_fiber() {
  in_kernel = false;
  if (!_setjmp(fibers[current].resume)) _longjmp(scheduler, 1);
}

void yield() {
  leave_fiber();
  in_kernel = true;
}

[[noreturn]] void fail(const std::string& what) {
  in_kernel = false;
  failure = std::string(kernel_name) + ", block (" + std::to_string(blockIdx.x) + ", " +
            std::to_string(blockIdx.y) + "), thread " + std::to_string(current) + ": " + what;
  _longjmp(scheduler, 1);
}

void fiber_main() {
  for (;;) {
    thread_body.run(thread_body.closure);  // enter_kernel is called once the arguments are copied
    fibers[current].state = State::kDone;
    leave_fiber();
  }
}

void resume(int thread) {
  current = thread;
  threadIdx = {thread % blockDim.x, thread / blockDim.x % blockDim.y, thread / (blockDim.x * blockDim.y)};
  Fiber& fiber = fibers[thread];
  if (_setjmp(scheduler)) return;
  if (fiber.started) _longjmp(fiber.resume, 1);
  fiber.started = true;
  getcontext(&fiber.start);
  fiber.start.uc_stack.ss_sp = stacks + thread * kStack;
  fiber.start.uc_stack.ss_size = kStack;
  fiber.start.uc_link = nullptr;
  makecontext(&fiber.start, fiber_main, 0);
  setcontext(&fiber.start);
}

std::string who_waits() {
  std::string all;
  for (int t = 0; t < threads; ++t) {
    std::string where =
        fibers[t].state == State::kDone ? "left the kernel" : "waits at " + text(fibers[t].place);
    if (all.find(where) == std::string::npos) all += "; thread " + std::to_string(t) + " " + where;
  }
  return all;
}

void run_block(const std::vector<int>& order) {
  memset(arena, 0xCD, arena_used);
  memset(arena_declared, 0, arena_used);
  std::fill_n(arena_declared, dynamic_bytes, true);
  arena_used = dynamic_bytes + kGap;
  shared_used = dynamic_bytes;
  variables.clear();
  block_began = ++interval;
  met.clear();
  taken_over.clear();
  fenced = false;
  at_barrier = votes = 0;
  for (int t = 0; t < threads; ++t) fibers[t].state = State::kReady;
  for (Warp& warp : warps) warp.arrived = warp.turn = warp.epoch = 0;
  for (;;) {
    bool progress = false, done = true;
    for (int t : order) {
      if (fibers[t].state == State::kReady) {
        progress = true;
        resume(t);
        if (!failure.empty()) return;
      }
      done = done && fibers[t].state == State::kDone;
    }
    if (done) return;
    if (!progress) {
      failure = std::string(kernel_name) + ": some threads wait for others that never arrive" + who_waits();
      return;
    }
  }
}

std::vector<int> ordered(int count, unsigned turn, std::mt19937& random) {
  std::vector<int> order(count);
  std::iota(order.begin(), order.end(), 0);
  if (turn == 1) std::reverse(order.begin(), order.end());
  if (turn == 2) std::shuffle(order.begin(), order.end(), random);
  return order;
}

Warp& arrive(unsigned mask, const char* kind, Place here) {
  Warp& warp = warps[current / 32];
  const unsigned own = 1u << lane();
  const int there = std::min(32, threads - current / 32 * 32);
  if (!(mask & own)) fail(std::string(kind) + " at " + text(here) + " does not include the calling lane");
  if (there < 32 && mask >> there != 0)
    fail(std::string(kind) + " at " + text(here) + " includes lanes that do not exist");
  if (warp.arrived == 0) {
    warp.mask = mask;
    warp.kind = kind;
    warp.place = here;
  } else if (warp.mask != mask || warp.kind != kind || warp.place.line != here.line) {
    fail(std::string("lanes of one warp are at ") + kind + " " + text(here) + " and at " + warp.kind + " " +
         text(warp.place));
  }
  warp.arrived |= own;
  return warp;
}

void wait_for_lanes(Warp& warp, Place here) {
  Fiber& fiber = fibers[current];
  if (warp.arrived != warp.mask) {
    fiber.state = State::kAtWarpOperation;
    fiber.place = here;
    return yield();
  }
  const int first = current / 32 * 32;
  for (int i = 0; i < 32; ++i) {
    if (warp.mask >> i & 1) fibers[first + i].state = State::kReady;
  }
  warp.arrived = 0;
  warp.turn ^= 1;
}

std::unique_ptr<ShadowPage> new_page(uintptr_t number) {
  const uintptr_t begin = number * kPage, end = begin + kPage;
  auto page = std::make_unique<ShadowPage>();
  const std::lock_guard<std::mutex> lock(memory_changes);
  auto block = live_memory.lower_bound(end);
  while (block != live_memory.begin() && (--block)->second > begin) {
    const uintptr_t from = std::max(block->first, begin), to = std::min(block->second, end);
    std::fill_n(page->live + (from - begin), to - from, true);
  }
  return page;
}

ShadowPage& page_of(uintptr_t address) {
  const uintptr_t number = address / kPage;
  CachedPage& recent = recent_pages[number % std::size(recent_pages)];
  if (recent.page == nullptr || recent.number != number) {
    auto& page = shadows[number];
    if (page == nullptr) page = new_page(number);
    recent = {number, page.get()};
  }
  return *recent.page;
}

// Pages are recreated when a kernel accesses them.
void forget_pages(uintptr_t begin, uintptr_t end) {
  for (uintptr_t number = begin / kPage; number * kPage < end && !shadows.empty(); ++number) {
    shadows.erase(number);
    recent_pages[number % std::size(recent_pages)] = {};
  }
}

bool is_of_library(uintptr_t address) {
  return uintptr_t(&__ehdr_start) <= address && address < uintptr_t(&_end);
}

// Part of a tensor or of a constant of the kernels. The gap between tensors is larger than the step here.
bool is_live(uintptr_t address, size_t bytes) {
  if (is_of_library(address)) return true;
  for (size_t i = 0; i < bytes; i += kPage / 8) {
    if (!page_of(address + i).live[(address + i) % kPage]) return false;
  }
  return page_of(address + bytes - 1).live[(address + bytes - 1) % kPage];
}

bool is_declared(size_t in_arena, size_t bytes) {
  for (size_t i = 0; i < bytes; i += kGap) {
    if (!arena_declared[in_arena + i]) return false;
  }
  return in_arena + bytes <= kArena && arena_declared[in_arena + bytes - 1];
}

bool is_taken_over(uint32_t then, uint16_t thread) {
  return std::any_of(taken_over.rbegin(), taken_over.rend(), [=](const Written& w) {
    return w.first <= then && (then < w.last || (then == w.last && thread == w.thread));
  });
}

// Was this access by another thread, without any synchronization in between?
bool unordered(uint32_t then, uint16_t thread, uint16_t epoch, uint32_t since) {
  if (then < since) return false;
  if (then < block_began) return !is_taken_over(then, thread);  // another block of this launch
  return then == interval && thread != current &&
         !(thread / 32 == current / 32 && epoch < warps[current / 32].epoch);
}

void report(const char* what, uintptr_t address, const void* caller) {
  const bool is_shared = address - uintptr_t(arena) < kArena;
  in_kernel = false;
  const std::string where = text_of_address(caller);
  fail(std::string(what) + (is_shared ? " in shared memory" : " in global memory") + " at " + where);
}

}  // namespace

int lane() { return current % 32; }

void fail(const char* what, Place here) { fail(std::string(what) + " at " + text(here)); }

void* shared(const void* variable, size_t bytes) {
  auto [found, is_new] = variables.try_emplace(variable, 0);
  if (is_new) {
    found->second = arena_used;
    arena_used += (bytes + kGap + 15) / 16 * 16;
    shared_used += (bytes + 15) / 16 * 16;
    if (shared_used > shared_limit) fail(kTooMuchShared);
    std::fill_n(arena_declared + found->second, bytes, true);
  }
  return arena + found->second;
}
void* dynamic_shared() { return arena; }

int block_barrier(int value, Place here) {
  Fiber& fiber = fibers[current];
  fiber.place = here;
  fiber.state = State::kAtBlockBarrier;
  votes += value;
  if (++at_barrier < threads) {
    yield();
    return vote_result;
  }
  for (int t = 0; t < threads; ++t) {
    if (fibers[t].place.line != here.line || strcmp(fibers[t].place.file, here.file) != 0)
      fail("threads of one block are at the barriers " + text(here) + " and " + text(fibers[t].place));
    fibers[t].state = State::kReady;
  }
  vote_result = votes;
  votes = at_barrier = 0;
  ++interval;
  return vote_result;
}

void warp_barrier(unsigned mask, Place here) {
  Warp& warp = arrive(mask, "__syncwarp", here);
  if (warp.arrived == warp.mask) ++warp.epoch;
  wait_for_lanes(warp, here);
}

const void* warp_exchange(unsigned mask, const void* value, size_t bytes, const char* kind, Place here) {
  Warp& warp = arrive(mask, kind, here);
  char* values = &warp.values[warp.turn][0][0];
  memcpy(values + lane() * bytes, value, bytes);
  wait_for_lanes(warp, here);
  return values;
}

namespace {

struct Touch {
  uintptr_t address;
  Access access;
  const void* caller;
  bool is_shared;
};

void check_write(const Shadow& s, const Touch& t, uint32_t since) {
  if (t.access == Access::kAtomic && s.atomic) return;
  if (unordered(s.write_interval, s.write_thread, s.write_epoch, since))
    report(t.access == Access::kRead ? "race: read of another thread's write" : "race: second write",
           t.address, t.caller);
}

// Updates the shadow of a byte after the access.
Shadow after(Shadow s, const Touch& t) {
  const uint32_t since = t.is_shared ? block_began : launch_began;  // shared memory is per block
  const uint16_t epoch = warps[current / 32].epoch;
  if (t.is_shared && t.access != Access::kWrite && s.write_interval < block_began)
    report("uninitialized read", t.address, t.caller);
  check_write(s, t, since);
  if (t.access == Access::kRead) {
    const bool again = s.read_interval == interval;
    s.read_by_other_blocks = s.read_interval >= since &&
                             (s.read_by_other_blocks || (s.read_interval < block_began &&
                                                         !is_taken_over(s.read_interval, s.read_thread)));
    s.read_by_many = again && (s.read_by_many || s.read_thread != current);
    s.read_interval = interval;
    s.read_thread = uint16_t(current);
    s.read_epoch = epoch;
  } else {
    const bool other_blocks = s.read_interval >= since && s.read_by_other_blocks;
    const bool other_threads = s.read_interval == interval && s.read_by_many && s.read_epoch >= epoch;
    if (other_blocks || other_threads || unordered(s.read_interval, s.read_thread, s.read_epoch, since))
      report("race: write of data that another thread reads", t.address, t.caller);
    s.write_interval = interval;
    s.write_thread = uint16_t(current);
    s.write_epoch = epoch;
    s.atomic = t.access == Access::kAtomic;
  }
  return s;
}

void touch_by_host(uintptr_t address, const void* caller) {
  const std::lock_guard<std::mutex> lock(memory_changes);
  const auto next = live_memory.upper_bound(address);
  if (!host_failure.empty() || next == live_memory.begin() || std::prev(next)->second <= address) return;
  host_failure = "the host touches device memory at " + text_of_address(caller);
}

}  // namespace

namespace {

void hand_over(uintptr_t address) {
  std::vector<Written>& all = handed_over[address];
  met.insert(met.end(), all.begin(), all.end());
  if (!fenced) return;
  all.insert(all.end(), taken_over.begin(), taken_over.end());
  all.push_back({block_began, interval, uint16_t(current)});
}

}  // namespace

void fence() {
  fenced = true;
  taken_over.insert(taken_over.end(), met.begin(), met.end());
  met.clear();
}

void touch(const void* p, size_t bytes, Access access, const void* caller) {
  Touch t = {uintptr_t(p), access, caller, uintptr_t(p) - uintptr_t(arena) < kArena};
  if (!in_kernel) return touch_by_host(t.address, caller);
  if (t.address - uintptr_t(stacks) < kStack * kMaxThreads) return;
  if (t.is_shared ? !is_declared(t.address - uintptr_t(arena), bytes) : !is_live(t.address, bytes))
    report(t.is_shared ? "out of bounds" : "outside the tensors", t.address, caller);
  if (!t.is_shared && access == Access::kAtomic) hand_over(t.address);
  while (bytes > 0) {
    const size_t in_page = std::min(bytes, kPage - t.address % kPage);
    Shadow* s = page_of(t.address).of + t.address % kPage;
    Shadow before = s[0], now = after(before, t);
    for (size_t i = 0; i < in_page; ++i, ++t.address) {
      if (!same(s[i], before)) {
        before = s[i];
        now = after(before, t);
      }
      s[i] = now;
    }
    bytes -= in_page;
  }
}

void enter_kernel(size_t parameter_bytes, int max_threads) {
  in_kernel = true;
  if (parameter_bytes > kParameterBytes) fail("more than 4 KiB of parameters");
  if (threads > max_threads) fail("more threads in a block than its __launch_bounds__ allow");
}

void* current_stream() {
  static char stream;
  return &stream;
}

void check_stream(const char* what, void* stream) {
  if (stream == nullptr)
    throw std::runtime_error(std::string(what) + " is on the default stream, not on the current one");
  if (stream != current_stream())
    throw std::runtime_error(std::string(what) + " is on another stream, not on the current one");
}

void check_not_capturing(const char* what) {
  if (capturing) throw std::runtime_error(std::string(what) + ": synchronization during graph capture");
}

void launch_is_checked() { unchecked.clear(); }

void check_operator() {
  if (!host_failure.empty()) throw std::runtime_error(std::exchange(host_failure, {}));
  if (!unchecked.empty())
    throw std::runtime_error(std::exchange(unchecked, {}) + ": the launch is not checked for errors");
}

OperatorGuard::~OperatorGuard() noexcept(false) {
  if (std::uncaught_exceptions() == 0) check_operator();
}

void allow_shared(const char* arguments, int bytes) {
  if (size_t(bytes) > kMaxSharedBytes)
    throw std::runtime_error("more than 64 KiB of shared memory are requested");
  shared_limits[std::string(arguments, strcspn(arguments, "<,"))] = size_t(bytes);
}

void* allocate(size_t bytes) {
  const size_t padded = (bytes + kRedZone - 1) / kRedZone * kRedZone;
  char* block = static_cast<char*>(std::aligned_alloc(kRedZone, padded + 2 * kRedZone));
  if (block == nullptr) throw std::bad_alloc();
  char* memory = block + kRedZone;
  memset(memory, 0xFF, bytes);  // NaN, or -1
  const std::lock_guard<std::mutex> lock(memory_changes);
  live_memory[uintptr_t(memory)] = uintptr_t(memory + bytes);
  forget_pages(uintptr_t(memory), uintptr_t(memory + bytes));
  return memory;
}

void release(void* memory) {
  if (memory == nullptr) return;
  const std::lock_guard<std::mutex> lock(memory_changes);
  const auto block = live_memory.find(uintptr_t(memory));
  forget_pages(block->first, block->second);
  live_memory.erase(block);
  std::free(static_cast<char*>(memory) - kRedZone);
}

void launch(const char* kernel, Thread thread, dim3 grid, dim3 block, size_t shared_bytes, void* stream) {
  const std::lock_guard<std::mutex> lock(one_launch);
  check_operator();
  const auto reject = [&](const std::string& why) {
    throw std::runtime_error(std::string(kernel) + ": " + why);
  };
  check_stream(kernel, stream);
  const int64_t size = int64_t(block.x) * block.y * block.z;
  if (grid.x == 0 || grid.y == 0 || grid.z == 0 || size == 0) reject("there are no blocks or threads");
  if (grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535) reject("the grid is too large");
  if (size > kMaxThreads || block.z > 64) reject("the block is too large");
  const auto limit = shared_limits.find(kernel);
  shared_limit = limit == shared_limits.end() ? kSharedBytes : limit->second;
  if (shared_bytes > shared_limit) reject(kTooMuchShared);
  if (stacks == nullptr) {
    void* memory = mmap(nullptr, kStack * kMaxThreads, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) reject("no memory for the stacks");
    stacks = static_cast<char*>(memory);
  }
  kernel_name = kernel;
  thread_body = thread;
  dynamic_bytes = shared_bytes;
  blockDim = block;
  gridDim = grid;
  threads = int(size);
  launch_began = ++interval;
  handed_over.clear();
  std::mt19937 random(launches);
  const unsigned turn = launches++ % 3;
  const std::vector<int> order = ordered(threads, turn, random);
  for (int b : ordered(int(int64_t(grid.x) * grid.y * grid.z), turn, random)) {
    blockIdx = {b % grid.x, b / grid.x % grid.y, b / (grid.x * grid.y)};
    run_block(order);
    if (!failure.empty()) {
      for (Fiber& fiber : fibers) fiber.started = false;
      throw std::runtime_error(std::exchange(failure, {}));
    }
  }
  unchecked = kernel;
}

}  // namespace emulation

extern "C" {

__attribute__((visibility("default"))) void emulation_capture(bool begins) { emulation::capturing = begins; }

void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void*, void*) {}
void __tsan_read_range(void* p, size_t n) {
  emulation::touch(p, n, emulation::Access::kRead, __builtin_return_address(0));
}
void __tsan_write_range(void* p, size_t n) {
  emulation::touch(p, n, emulation::Access::kWrite, __builtin_return_address(0));
}
#define ACCESSES(n)                                                                 \
  void __tsan_read##n(void* p) {                                                    \
    emulation::touch(p, n, emulation::Access::kRead, __builtin_return_address(0));  \
  }                                                                                 \
  void __tsan_write##n(void* p) {                                                   \
    emulation::touch(p, n, emulation::Access::kWrite, __builtin_return_address(0)); \
  }                                                                                 \
  void __tsan_unaligned_read##n(void* p) { __tsan_read_range(p, n); }               \
  void __tsan_unaligned_write##n(void* p) { __tsan_write_range(p, n); }
// Used by std::shared_ptr on the host.
int __tsan_atomic32_fetch_add(volatile int* p, int x, int) {
  return __atomic_fetch_add(p, x, __ATOMIC_SEQ_CST);
}
ACCESSES(1)
ACCESSES(2)
ACCESSES(4)
ACCESSES(8)
ACCESSES(16)

// The first argument of every handler starts with the source location.
struct UndefinedBehaviour {
  const char* file;
  unsigned line, column;
};
static void undefined(const char* what, const UndefinedBehaviour* at) {
  const emulation::Place place = {at->file, int(at->line)};
  if (emulation::in_kernel) emulation::fail(what, place);
  throw std::runtime_error(std::string(what) + " at " + emulation::text(place));
}
#define HANDLER(name) \
  void __ubsan_handle_##name(UndefinedBehaviour* at) { undefined(#name, at); }
HANDLER(type_mismatch_v1)
HANDLER(out_of_bounds)
HANDLER(shift_out_of_bounds)
HANDLER(add_overflow)
HANDLER(sub_overflow)
HANDLER(mul_overflow)
HANDLER(negate_overflow)
HANDLER(divrem_overflow)
HANDLER(float_cast_overflow)
HANDLER(load_invalid_value)
}
