// The emulator's scheduler and what a host calls: see emulate.h. The kernels are compiled into the same library.
#include "emulate.h"

#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <vector>

#include "kernels.h"

namespace emulate {

Entry *Entry::first = nullptr;
thread_local Fiber *fiber;
thread_local uint3 grid, block, block_index;
thread_local unsigned char *dynamic_shared;
thread_local unsigned dynamic_bytes;

constexpr size_t STACK = 128 << 10;
constexpr unsigned GUARD = 1024; // bytes after a block's shared memory that must stay as they are

struct Free {
    void operator()(unsigned char *p) const { std::free(p); }
};
using Bytes = std::unique_ptr<unsigned char[], Free>;

static Bytes allocate(size_t bytes) {
    return Bytes(static_cast<unsigned char *>(std::aligned_alloc(128, (bytes + 127) / 128 * 128)));
}

struct Array {
    const void *tag;
    Bytes data;
    size_t bytes;
};

// What one host thread emulates with, kept from launch to launch.
struct Machine {
    std::vector<Fiber> fibers;
    std::vector<Warp> warps;
    std::vector<Array> arrays;
    std::vector<unsigned> lanes, order;
    Bytes stacks, shared;
    size_t stack_count = 0, shared_size = 0;
    void *stack_pointer = nullptr;
    const Entry *entry = nullptr;
    void **arguments = nullptr;
    unsigned arrived = 0, alive = 0, generation = 0;
    uint64_t seed = 0;
    bool failed = false;
    char error[512];
};

static thread_local Machine machine;

#if defined(__x86_64__)
extern "C" void karat_emulate_switch(void **save, void *load);
asm(R"(
.text
.type karat_emulate_switch,@function
karat_emulate_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size karat_emulate_switch, .-karat_emulate_switch
)");
static void start();
static void *prepare(unsigned char *stack) {
    auto top = reinterpret_cast<uintptr_t>(stack + STACK) & ~uintptr_t(63);
    void **p = reinterpret_cast<void **>(top);
    *--p = nullptr; // where a caller's return address would lie: `start` never returns
    *--p = reinterpret_cast<void *>(&start);
    for (int i = 0; i < 6; i++) *--p = nullptr;
    return p;
}
#elif defined(__aarch64__)
extern "C" void karat_emulate_switch(void **save, void *load);
asm(R"(
.text
.type karat_emulate_switch,%function
karat_emulate_switch:
    sub sp, sp, #176
    stp x19, x20, [sp, #0]
    stp x21, x22, [sp, #16]
    stp x23, x24, [sp, #32]
    stp x25, x26, [sp, #48]
    stp x27, x28, [sp, #64]
    stp x29, x30, [sp, #80]
    stp d8, d9, [sp, #96]
    stp d10, d11, [sp, #112]
    stp d12, d13, [sp, #128]
    stp d14, d15, [sp, #144]
    mov x9, sp
    str x9, [x0]
    mov sp, x1
    ldp x19, x20, [sp, #0]
    ldp x21, x22, [sp, #16]
    ldp x23, x24, [sp, #32]
    ldp x25, x26, [sp, #48]
    ldp x27, x28, [sp, #64]
    ldp x29, x30, [sp, #80]
    ldp d8, d9, [sp, #96]
    ldp d10, d11, [sp, #112]
    ldp d12, d13, [sp, #128]
    ldp d14, d15, [sp, #144]
    add sp, sp, #176
    ret
.size karat_emulate_switch, .-karat_emulate_switch
)");
static void start();
static void *prepare(unsigned char *stack) {
    auto top = reinterpret_cast<uintptr_t>(stack + STACK) & ~uintptr_t(63);
    void **p = reinterpret_cast<void **>(top - 176);
    std::memset(p, 0, 176);
    p[11] = reinterpret_cast<void *>(&start); // x30
    return p;
}
#else
#error "the emulator switches fibers on x86-64 and aarch64 only"
#endif

void yield() { karat_emulate_switch(&fiber->stack_pointer, machine.stack_pointer); }

// Keeps the first error of a launch.
static void report(const char *who, const char *format, va_list list) {
    if (machine.failed) return;
    char text[256];
    std::vsnprintf(text, sizeof text, format, list);
    std::snprintf(machine.error, sizeof machine.error, "%s, block (%u, %u, %u)%s: %s", machine.entry->name,
                  block_index.x, block_index.y, block_index.z, who, text);
    machine.failed = true;
}

void fail(const char *format, ...) {
    char who[64];
    std::snprintf(who, sizeof who, ", thread (%u, %u, %u)", fiber->index.x, fiber->index.y, fiber->index.z);
    va_list list;
    va_start(list, format);
    report(who, format, list);
    va_end(list);
    for (;;) yield();
}

static void fail_block(const char *format, ...) {
    va_list list;
    va_start(list, format);
    report("", format, list);
    va_end(list);
}

void meet_block() {
    fiber->state = Fiber::AtBlock;
    fiber->generation = machine.generation;
    machine.arrived++;
    yield();
}

void *static_shared(const void *tag, size_t bytes) {
    for (auto &array : machine.arrays)
        if (array.tag == tag) return array.data.get();
    Array array{tag, allocate(bytes + GUARD), bytes};
    poison(array.data.get(), bytes + GUARD);
    machine.arrays.push_back(std::move(array));
    return machine.arrays.back().data.get();
}

static void start() {
    machine.entry->invoke(machine.entry->function, machine.arguments);
    fiber->state = Fiber::Done;
    machine.alive--;
    fiber->warp->alive--;
    if (fiber->warp->arrived) fail("a lane returns while others of its warp wait at %s", fiber->warp->what);
    for (;;) yield();
}

static bool ready(const Fiber &f) {
    switch (f.state) {
    case Fiber::Ready: return true;
    case Fiber::AtWarp: return f.warp->generation != f.generation;
    case Fiber::AtBlock: return machine.generation != f.generation;
    default: return false;
    }
}

// Order in which `n` of something are resumed: 0 forwards, 1 backwards, else shuffled by that seed.
static void arrange(std::vector<unsigned> &order, unsigned n, uint64_t mode) {
    order.resize(n);
    for (unsigned i = 0; i < n; i++) order[i] = mode == 1 ? n - 1 - i : i;
    if (mode < 2) return;
    for (unsigned i = n; i > 1; i--) {
        machine.seed = machine.seed * 6364136223846793005u + 1442695040888963407u;
        std::swap(order[i - 1], order[(machine.seed >> 33) % i]);
    }
}

// Runs the lanes of a warp until each has returned or waits for the block.
static void run_warp(unsigned first, unsigned n, uint64_t mode) {
    for (bool moved = true; moved && !machine.failed;) {
        moved = false;
        arrange(machine.lanes, n, mode);
        for (unsigned lane : machine.lanes) {
            Fiber &f = machine.fibers[first + lane];
            if (!ready(f)) continue;
            f.state = Fiber::Ready;
            fiber = &f;
            karat_emulate_switch(&machine.stack_pointer, f.stack_pointer);
            moved = true;
            if (machine.failed) return;
        }
    }
}

static void run_block(uint64_t mode) {
    unsigned threads = block.x * block.y * block.z, warps = (threads + 31) / 32;
    for (unsigned w = 0; w < warps; w++) {
        std::memset(&machine.warps[w], 0, sizeof(Warp));
        machine.warps[w].alive = min(32u, threads - w * 32);
    }
    for (unsigned t = 0; t < threads; t++) {
        Fiber &f = machine.fibers[t];
        f.index = {t % block.x, t / block.x % block.y, t / block.x / block.y};
        f.lane = t % 32;
        f.warp = &machine.warps[t / 32];
        f.state = Fiber::Ready;
        f.pending = f.group = 0;
        f.stack_pointer = prepare(machine.stacks.get() + t * STACK);
    }
    machine.arrived = 0;
    machine.alive = threads;
    poison(dynamic_shared, dynamic_bytes + GUARD);
    for (auto &array : machine.arrays) poison(array.data.get(), array.bytes + GUARD);
    while (machine.alive && !machine.failed) {
        arrange(machine.order, warps, mode);
        for (unsigned w : machine.order) run_warp(w * 32, min(32u, threads - w * 32), mode);
        if (machine.failed || !machine.alive) break;
        if (machine.arrived != machine.alive) {
            fail_block("%u of %u threads wait at __syncthreads, the others never come", machine.arrived, machine.alive);
        }
        machine.arrived = 0;
        machine.generation++;
    }
    auto whole = [](const unsigned char *guard, size_t at) {
        unsigned char want[GUARD + 1];
        poison(want, GUARD + 1);
        return std::memcmp(guard, want + at % 2, GUARD) == 0;
    };
    if (machine.failed) return;
    bool kept = whole(dynamic_shared + dynamic_bytes, dynamic_bytes);
    for (auto &array : machine.arrays) kept = kept && whole(array.data.get() + array.bytes, array.bytes);
    if (!kept) fail_block("wrote past its shared memory");
}

} // namespace emulate

// The types of a kernel's parameters, separated by commas; null if there is no such kernel.
KARAT_EXPORT const char *karat_emulate_signature(const char *name) {
    for (auto *e = emulate::Entry::first; e; e = e->next)
        if (!std::strcmp(e->name, name)) return e->signature.c_str();
    return nullptr;
}

// The name of the kernel after this one (the first after null), null at the end.
KARAT_EXPORT const char *karat_emulate_next(const char *name) {
    auto *e = emulate::Entry::first;
    if (!name) return e ? e->name : nullptr;
    for (; e; e = e->next)
        if (!std::strcmp(e->name, name)) return e->next ? e->next->name : nullptr;
    return nullptr;
}

// Runs a kernel to its end. `arguments` as cuLaunchKernel takes them; `mode` is the order of threads. 0 if all went
// well, else `error` (of at least 512 bytes) says what did not.
KARAT_EXPORT int karat_emulate_launch(const char *name, const unsigned *grid, const unsigned *block, unsigned shared,
                                      void **arguments, uint64_t mode, char *error) {
    using namespace emulate;
    Machine &m = machine;
    m.failed = false;
    m.entry = nullptr;
    for (auto *e = Entry::first; e; e = e->next)
        if (!std::strcmp(e->name, name)) m.entry = e;
    size_t threads = size_t(block[0]) * block[1] * block[2];
    if (!m.entry) {
        std::snprintf(error, 512, "there is no kernel %s", name);
        return 1;
    }
    if (!threads || threads > m.entry->threads) {
        std::snprintf(error, 512, "%s: blocks of %zu threads, it is made for %u", name, threads, m.entry->threads);
        return 1;
    }
    if (m.stack_count < threads) {
        m.stacks = allocate(threads * STACK);
        m.stack_count = threads;
        m.fibers.resize(threads);
        m.warps.resize((threads + 31) / 32);
    }
    if (!m.shared || m.shared_size < shared) {
        m.shared = allocate(shared + GUARD);
        m.shared_size = shared;
    }
    m.arguments = arguments;
    m.arrays.clear();
    m.seed = mode;
    dynamic_shared = m.shared.get();
    dynamic_bytes = shared;
    emulate::grid = {grid[0], grid[1], grid[2]};
    emulate::block = {block[0], block[1], block[2]};
    for (unsigned z = 0; z < grid[2]; z++)
        for (unsigned y = 0; y < grid[1]; y++)
            for (unsigned x = 0; x < grid[0]; x++) {
                block_index = {x, y, z};
                run_block(mode);
                if (m.failed) {
                    std::memcpy(error, m.error, sizeof m.error);
                    return 1;
                }
            }
    return 0;
}
