// What all kernels share: element types, vector accesses, sums over warps and blocks.
//
// The element type T of activations is float or bf16; every computation is in f32. Sums have a fixed shape, so results
// are the same bits from run to run. The sources are compiled with -fmad=false (nvcc) or -ffp-contract=off (g++): where
// a multiplication and an addition shall be one, fmaf says so.
#pragma once

#ifdef KARAT_EMULATE
#include "emulate.h"
#else
#define KERNEL(threads, name, ...) extern "C" __global__ void __launch_bounds__(threads) name(__VA_ARGS__)
#define SHARED(type, name, count) __shared__ type name[count]
extern __shared__ unsigned char karat_dynamic[];
#define DYNAMIC_SHARED(name) unsigned char *const name = karat_dynamic
#endif

#include "ptx.h"

typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

constexpr u32 WHOLE_WARP = 0xffffffffu;
#define INFINITE __uint_as_float(0x7f800000u)

// bfloat16 by its bits.
struct bf16 {
    u16 bits;
};

__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ float widen(bf16 x) { return __uint_as_float(u32(x.bits) << 16); }
template <class T> __device__ __forceinline__ T narrow(float x);
template <> __device__ __forceinline__ float narrow<float>(float x) { return x; }
template <> __device__ __forceinline__ bf16 narrow<bf16>(float x) { return bf16{u16(pack_bf16(x, 0.0f))}; }

// Elements of T in 16 bytes.
template <class T> constexpr int WIDE = 16 / sizeof(T);

// N elements from `p`, widened. N is 1, or a multiple of WIDE<T> with `p` on 16 bytes.
template <int N, class T> __device__ __forceinline__ void load(float (&x)[N], const T *p) {
    if constexpr (N == 1) {
        x[0] = widen(*p);
    } else if constexpr (N > WIDE<T>) {
        float(&tail)[N - WIDE<T>] = *reinterpret_cast<float(*)[N - WIDE<T>]>(x + WIDE<T>);
        load<WIDE<T>>(*reinterpret_cast<float(*)[WIDE<T>]>(x), p);
        load<N - WIDE<T>>(tail, p + WIDE<T>);
    } else {
        static_assert(N == WIDE<T>);
#ifdef KARAT_EMULATE
        emulate::check_aligned(p, 16);
#endif
        union {
            uint4 whole;
            u32 word[4];
        } v;
        v.whole = *reinterpret_cast<const uint4 *>(p);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            if constexpr (sizeof(T) == 4) {
                x[i] = __uint_as_float(v.word[i]);
            } else {
                x[2 * i] = __uint_as_float(v.word[i] << 16);
                x[2 * i + 1] = __uint_as_float(v.word[i] & 0xffff0000u);
            }
        }
    }
}

// N elements to `p`, narrowed.
template <int N, class T> __device__ __forceinline__ void store(T *p, const float (&x)[N]) {
    if constexpr (N == 1) {
        *p = narrow<T>(x[0]);
    } else if constexpr (N > WIDE<T>) {
        store<WIDE<T>>(p, *reinterpret_cast<const float(*)[WIDE<T>]>(x));
        store<N - WIDE<T>>(p + WIDE<T>, *reinterpret_cast<const float(*)[N - WIDE<T>]>(x + WIDE<T>));
    } else {
        static_assert(N == WIDE<T>);
#ifdef KARAT_EMULATE
        emulate::check_aligned(p, 16);
#endif
        uint4 v;
        if constexpr (sizeof(T) == 4)
            v = {__float_as_uint(x[0]), __float_as_uint(x[1]), __float_as_uint(x[2]), __float_as_uint(x[3])};
        else
            v = {pack_bf16(x[0], x[1]), pack_bf16(x[2], x[3]), pack_bf16(x[4], x[5]), pack_bf16(x[6], x[7])};
        *reinterpret_cast<uint4 *>(p) = v;
    }
}

// A split f32: the bf16 nearest to it (ties away from zero), which products read, and the distance of their bits, a signed
// 16-bit number. Nothing is lost and nothing is stored twice.
__device__ __forceinline__ bf16 upper_half(float x) { return bf16{u16((__float_as_uint(x) + 0x8000u) >> 16)}; }
__device__ __forceinline__ float join(bf16 upper, u16 lower) {
    return __uint_as_float((u32(upper.bits) << 16) + u32(int(short(lower))));
}

// N split elements; N is 1, or 4 with both pointers on 8 bytes.
template <int N> __device__ __forceinline__ void load_split(float (&x)[N], const bf16 *upper, const u16 *lower) {
    if constexpr (N == 1) {
        x[0] = join(*upper, *lower);
    } else {
        static_assert(N == 4);
        const uint2 u = *reinterpret_cast<const uint2 *>(upper), l = *reinterpret_cast<const uint2 *>(lower);
        const u32 us[2] = {u.x, u.y}, ls[2] = {l.x, l.y};
#pragma unroll
        for (int i = 0; i < 4; i++) x[i] = join(bf16{u16(us[i / 2] >> 16 * (i % 2))}, u16(ls[i / 2] >> 16 * (i % 2)));
    }
}

// N elements, split; N as above.
template <int N> __device__ __forceinline__ void store_split(bf16 *upper, u16 *lower, const float (&x)[N]) {
    if constexpr (N == 1) {
        *upper = upper_half(x[0]);
        *lower = u16(__float_as_uint(x[0]));
    } else {
        static_assert(N == 4);
        u32 us[2] = {0, 0}, ls[2] = {0, 0};
#pragma unroll
        for (int i = 0; i < 4; i++) {
            us[i / 2] |= u32(upper_half(x[i]).bits) << 16 * (i % 2);
            ls[i / 2] |= (__float_as_uint(x[i]) & 0xffffu) << 16 * (i % 2);
        }
        *reinterpret_cast<uint2 *>(upper) = uint2{us[0], us[1]};
        *reinterpret_cast<uint2 *>(lower) = uint2{ls[0], ls[1]};
    }
}

// N elements of a gradient, f32 or, with `narrow`, bf16; N is 1, or 4 with the pointer on 16 or 8 bytes.
template <int N> __device__ __forceinline__ void load_gradient(float (&x)[N], const void *p, u64 first, bool narrow) {
    if (!narrow) {
        load<N>(x, static_cast<const float *>(p) + first);
    } else if constexpr (N == 1) {
        x[0] = widen(static_cast<const bf16 *>(p)[first]);
    } else {
        static_assert(N == 4);
        const uint2 v = *reinterpret_cast<const uint2 *>(static_cast<const bf16 *>(p) + first);
        const u32 word[2] = {v.x, v.y};
#pragma unroll
        for (int i = 0; i < 4; i++) x[i] = widen(bf16{u16(word[i / 2] >> 16 * (i % 2))});
    }
}

// Calls `f` with a compile-time 1 or WIDE<T>, the latter if `width` allows for it.
template <int N> struct Lanes {
    static constexpr int value = N;
};
template <class T, class F> __device__ __forceinline__ void by_width(int width, F &&f) {
    if (width % WIDE<T> == 0) f(Lanes<WIDE<T>>());
    else f(Lanes<1>());
}

// The sum over a warp, the same in every lane.
template <class V> __device__ __forceinline__ V warp_sum(V x) {
#pragma unroll
    for (int with = 16; with > 0; with /= 2) x += __shfl_xor_sync(WHOLE_WARP, x, with);
    return x;
}
__device__ __forceinline__ float warp_max(float x) {
#pragma unroll
    for (int with = 16; with > 0; with /= 2) {
        float y = __shfl_xor_sync(WHOLE_WARP, x, with);
        x = y > x ? y : x;
    }
    return x;
}

// The sum over a block of at most 1024 threads in whole warps, the same in every thread.
template <class V> __device__ __forceinline__ V block_sum(V x) {
    SHARED(V, parts, 32);
    const int warps = blockDim.x / 32;
    x = warp_sum(x);
    __syncthreads(); // whoever still reads an earlier sum
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = x;
    __syncthreads();
    V sum = 0;
    for (int w = 0; w < warps; w++) sum += parts[w];
    return sum;
}
