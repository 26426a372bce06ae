// Random numbers by counter: Philox4x32-10, the same as philox.rs of karat-kernels.
#pragma once

#include "common.h"

struct Words {
    u32 w[4];
};

__device__ __forceinline__ Words philox(u64 seed, u32 c0, u32 c1, u32 c2, u32 c3) {
    u32 k0 = u32(seed), k1 = u32(seed >> 32);
#pragma unroll
    for (int round = 0; round < 10; round++) {
        const u32 high0 = __umulhi(0xD2511F53u, c0), low0 = 0xD2511F53u * c0;
        const u32 high1 = __umulhi(0xCD9E8D57u, c2), low1 = 0xCD9E8D57u * c2;
        c0 = high1 ^ c1 ^ k0;
        c1 = low1;
        c2 = high0 ^ c3 ^ k1;
        c3 = low0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return {{c0, c1, c2, c3}};
}

// Uniform in [0, 1) with 53 bits.
__device__ __forceinline__ double uniform(u64 seed, u64 place, u32 a, u32 b) {
    const Words r = philox(seed, u32(place), u32(place >> 32), a, b);
    return double((u64(r.w[0]) << 21) ^ (u64(r.w[1]) >> 11)) / 9007199254740992.0;
}
