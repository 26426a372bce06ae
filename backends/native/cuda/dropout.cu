// Dropout whose mask is a pure function of a key and the element's place: the same bits as ops/dropout.rs.
//
// A thread makes one block of the generator, which decides 8 elements 16 apart; 16 threads decide 128 in a row.
#include "philox.h"

template <class T>
__device__ void dropout(const T *x, T *y, u64 n, u64 first, u32 threshold, float scale, u64 seed, u32 step, u32 module,
                        int add) {
    const u64 counter = first / 128 * 16 + u64(blockIdx.x) * blockDim.x + threadIdx.x;
    const u64 place = counter / 16 * 128 + counter % 16;
    if (place >= first + n) return;
    const Words words = philox(seed, u32(counter), u32(counter >> 32), step, module);
#pragma unroll
    for (int h = 0; h < 8; h++) {
        const u64 at = place + 16 * h;
        if (at < first || at >= first + n) continue;
        const u32 bits = h % 2 ? words.w[h / 2] >> 16 : words.w[h / 2] & 0xffffu;
        const float v = bits >= threshold ? widen(x[at - first]) * scale : 0.0f;
        y[at - first] = narrow<T>(add ? widen(y[at - first]) + v : v);
    }
}

#define KERNELS(T, S)                                                                                                  \
    KERNEL(256, karat_dropout_##S, const T *x, T *y, u64 n, u64 first, u32 threshold, float scale, u64 seed, u32 step, \
           u32 module, int add) {                                                                                      \
        dropout<T>(x, y, n, first, threshold, scale, seed, step, module, add);                                         \
    }
KERNELS(float, f32)
KERNELS(bf16, bf16)
#undef KERNELS
