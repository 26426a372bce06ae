// The CUDA that Karat's kernels use, for a host compiler: the same sources run on a CPU, where every test can reach them.
//
// A block's threads are fibers on one host thread, blocks run one after another. A fiber runs until it meets the others
// of its warp (shuffle, mma, ldmatrix, __syncwarp) or of its block (__syncthreads) and is resumed when all have come.
// What a GPU would leave to chance is made to show:
//   - threads may be resumed forwards, backwards or shuffled, so a missing barrier changes the result;
//   - shared memory is full of NaN when a block starts, and the target of a cp.async holds NaN until it is waited for;
//   - a warp's collective that not all lanes reach together, or barriers at which a block never meets, are errors;
//   - misaligned vector accesses are errors.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define KARAT_EXPORT extern "C" __attribute__((visibility("default")))

struct uint3 {
    unsigned x, y, z;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
struct alignas(8) uint2 {
    unsigned x, y;
};

namespace emulate {

// 32 lanes and what they exchange. Two buffers: a lane can be at most one collective ahead of another.
struct Warp {
    unsigned arrived, generation, alive;
    const char *what;
    alignas(16) uint32_t slot[2][32][8];
    alignas(16) float tile[2][16][8];
};

struct Copy {
    void *to;
    const void *from;
    unsigned bytes, group;
};

struct Fiber {
    uint3 index;
    unsigned lane;
    Warp *warp;
    void *stack_pointer;
    enum { Ready, AtWarp, AtBlock, Done } state;
    unsigned generation;
    // cp.async: pending copies and the group that is being filled.
    Copy copies[64];
    unsigned pending, group;
};

// A signaling NaN in every element type: it poisons results, and arithmetic never gives it, so what was overwritten shows.
inline void poison(void *p, size_t bytes) {
    const unsigned char pattern[2] = {0xa0, 0x7f};
    auto *to = static_cast<unsigned char *>(p);
    for (size_t i = 0; i < bytes; i++) to[i] = pattern[i % 2];
}

extern thread_local Fiber *fiber;
extern thread_local uint3 grid, block, block_index;
extern thread_local unsigned char *dynamic_shared;
extern thread_local unsigned dynamic_bytes;

// Ends the launch with this as its error.
[[noreturn]] void fail(const char *format, ...) __attribute__((format(printf, 1, 2)));
// Waits for the block.
void meet_block();
// Space for a `__shared__` array of this block; the tag tells arrays apart.
void *static_shared(const void *tag, size_t bytes);
// Leaves the processor to the others until this fiber's warp or block has met.
void yield();

// Meets the warp; the last to come does `work`, for all.
template <class F> inline void meet_warp(const char *what, F &&work) {
    Warp &w = *fiber->warp;
    if (w.alive != 32) fail("%s where only %u lanes of the warp are left", what, w.alive);
    if (w.arrived == 0) w.what = what;
    else if (std::strcmp(w.what, what) != 0) fail("lanes of a warp are at %s and at %s", w.what, what);
    if (++w.arrived == w.alive) {
        work();
        w.arrived = 0;
        w.generation++;
    } else {
        fiber->state = Fiber::AtWarp;
        fiber->generation = w.generation;
        yield();
    }
}

inline void check_mask(unsigned mask) {
    if (mask != 0xffffffffu) fail("a collective of a part of a warp (mask %08x)", mask);
}

template <class T> inline T exchange(const char *what, T value, unsigned from) {
    static_assert(sizeof(T) <= 8);
    Warp &w = *fiber->warp;
    auto &slot = w.slot[w.generation & 1];
    std::memcpy(slot[fiber->lane], &value, sizeof(T));
    meet_warp(what, [] {});
    std::memcpy(&value, slot[from], sizeof(T));
    return value;
}

template <class T> inline void check_aligned(const T *p, size_t to) {
    if (reinterpret_cast<uintptr_t>(p) % to) fail("an access of %zu bytes at %p is not aligned", to, (const void *)p);
}

// A kernel as `cuLaunchKernel` sees it: a name, the types of its parameters and pointers to their values.
struct Entry {
    const char *name;
    unsigned threads; // most of a block
    std::string signature;
    void (*function)();
    void (*invoke)(void (*)(), void **);
    Entry *next;
    static Entry *first;

    template <class... P> Entry(const char *name, unsigned threads, void (*f)(P...)) : name(name), threads(threads) {
        ((signature += signature.empty() ? "" : ",", signature += type_name<P>()), ...);
        function = reinterpret_cast<void (*)()>(f);
        invoke = [](void (*f)(), void **arguments) {
            call(reinterpret_cast<void (*)(P...)>(f), arguments, std::index_sequence_for<P...>());
        };
        next = first;
        first = this;
    }

  private:
    template <class... P, size_t... I> static void call(void (*f)(P...), void **a, std::index_sequence<I...>) {
        f(*static_cast<P *>(a[I])...);
    }
    template <class T> static std::string type_name() {
        if constexpr (std::is_pointer_v<T>) {
            using E = std::remove_pointer_t<T>;
            return std::string(std::is_const_v<E> ? "const " : "") + "*";
        } else if constexpr (std::is_same_v<T, float>) {
            return "f32";
        } else {
            static_assert(std::is_integral_v<T> && (sizeof(T) == 4 || sizeof(T) == 8));
            return std::string(std::is_signed_v<T> ? "i" : "u") + (sizeof(T) == 4 ? "32" : "64");
        }
    }
};

} // namespace emulate

#define threadIdx (emulate::fiber->index)
#define blockIdx (emulate::block_index)
#define blockDim (emulate::block)
#define gridDim (emulate::grid)

#define KERNEL(threads, name, ...)                                                                                     \
    KARAT_EXPORT void name(__VA_ARGS__);                                                                               \
    static emulate::Entry entry_##name(#name, threads, &name);                                                                  \
    KARAT_EXPORT void name(__VA_ARGS__)

#define SHARED(type, name, count)                                                                                      \
    static const char tag_##name = 0;                                                                                  \
    type *const name = static_cast<type *>(emulate::static_shared(&tag_##name, sizeof(type) * (count)))
#define DYNAMIC_SHARED(name) unsigned char *const name = emulate::dynamic_shared

inline void __syncthreads() { emulate::meet_block(); }
inline void __syncwarp() {
    emulate::meet_warp("__syncwarp", [] {});
}
template <class T> inline T __shfl_sync(unsigned mask, T value, int from) {
    emulate::check_mask(mask);
    return emulate::exchange("__shfl_sync", value, from & 31);
}
template <class T> inline T __shfl_xor_sync(unsigned mask, T value, int with) {
    emulate::check_mask(mask);
    return emulate::exchange("__shfl_xor_sync", value, emulate::fiber->lane ^ with);
}
template <class T> inline T __shfl_up_sync(unsigned mask, T value, unsigned by) {
    emulate::check_mask(mask);
    unsigned lane = emulate::fiber->lane;
    return emulate::exchange("__shfl_up_sync", value, lane < by ? lane : lane - by);
}
inline unsigned atomicAdd(unsigned *p, unsigned v) {
    unsigned was = *p;
    *p += v;
    return was;
}
inline unsigned long long atomicAdd(unsigned long long *p, unsigned long long v) {
    unsigned long long was = *p;
    *p += v;
    return was;
}
inline float __uint_as_float(unsigned bits) {
    float x;
    std::memcpy(&x, &bits, 4);
    return x;
}
inline unsigned __float_as_uint(float x) {
    unsigned bits;
    std::memcpy(&bits, &x, 4);
    return bits;
}
inline double __longlong_as_double(long long bits) {
    double x;
    std::memcpy(&x, &bits, 8);
    return x;
}
inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned((unsigned long long)a * b >> 32); }
template <class T> inline T min(T a, T b) { return b < a ? b : a; }
template <class T> inline T max(T a, T b) { return a < b ? b : a; }
using std::isnan;
