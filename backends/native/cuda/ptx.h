// All inline PTX, one small function each, beside what it means for the emulator. Everything here is in sm_80.
#pragma once

// Copies 16 bytes from device to shared memory in the background; with `whole` false it writes zeros and reads nothing.
__device__ __forceinline__ void copy_async_16(void *shared, const void *global, bool whole) {
#ifdef KARAT_EMULATE
    auto &f = *emulate::fiber;
    emulate::check_aligned(static_cast<char *>(shared), 16);
    emulate::check_aligned(static_cast<const char *>(global), 16);
    if (f.pending == 64) emulate::fail("more copies in the background than the emulator keeps");
    emulate::poison(shared, 16);
    f.copies[f.pending++] = {shared, global, whole ? 16u : 0u, f.group};
#else
    unsigned to = static_cast<unsigned>(__cvta_generic_to_shared(shared));
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(global), "r"(whole ? 16 : 0) : "memory");
#endif
}

// Ends a group of copies.
__device__ __forceinline__ void commit_copies() {
#ifdef KARAT_EMULATE
    emulate::fiber->group++;
#else
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits for this thread's copies but for those of the last `LEFT` groups.
template <int LEFT> __device__ __forceinline__ void wait_copies() {
#ifdef KARAT_EMULATE
    auto &f = *emulate::fiber;
    unsigned kept = 0;
    for (unsigned i = 0; i < f.pending; i++) {
        auto c = f.copies[i];
        if (c.group + LEFT < f.group) {
            std::memset(c.to, 0, 16);
            std::memcpy(c.to, c.from, c.bytes);
        } else {
            f.copies[kept++] = c;
        }
    }
    f.pending = kept;
#else
    asm volatile("cp.async.wait_group %0;" ::"n"(LEFT) : "memory");
#endif
}

// Four 8 x 8 matrices of 16-bit elements from shared memory: lane `l` names row `l % 8` of matrix `l / 8` (16 bytes) and
// gets in `r[m]` the elements `2 (l % 4)` and `2 (l % 4) + 1` of row `l / 4` of matrix `m`; transposed, of its column.
template <bool TRANSPOSED> __device__ __forceinline__ void load_matrices(unsigned (&r)[4], const void *row) {
#ifdef KARAT_EMULATE
    emulate::check_aligned(static_cast<const char *>(row), 16);
    auto &w = *emulate::fiber->warp;
    auto &slot = w.slot[w.generation & 1];
    unsigned lane = emulate::fiber->lane;
    std::memcpy(slot[lane], row, 16);
    emulate::meet_warp(TRANSPOSED ? "ldmatrix.trans" : "ldmatrix", [] {});
    for (unsigned m = 0; m < 4; m++) {
        uint16_t part[2];
        for (unsigned i = 0; i < 2; i++) {
            unsigned at_row = TRANSPOSED ? lane % 4 * 2 + i : lane / 4, column = TRANSPOSED ? lane / 4 : lane % 4 * 2 + i;
            std::memcpy(&part[i], reinterpret_cast<char *>(slot[m * 8 + at_row]) + column * 2, 2);
        }
        r[m] = part[0] | unsigned(part[1]) << 16;
    }
#else
    unsigned from = static_cast<unsigned>(__cvta_generic_to_shared(row));
    if (TRANSPOSED)
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                     : "r"(from)
                     : "memory");
    else
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                     : "r"(from)
                     : "memory");
#endif
}

// `c[16, 8] += a[16, 16] b[16, 8]` by a warp: bf16 operands, f32 sums. Lane `l` holds, with g = l / 4 and t = 2 (l % 4):
// of `a` the pairs (g, t), (g + 8, t), (g, t + 8), (g + 8, t + 8); of `b` the pairs (t, g), (t + 8, g) down its columns;
// of `c` the elements (g, t), (g, t + 1), (g + 8, t), (g + 8, t + 1).
__device__ __forceinline__ void multiply_add(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
#ifdef KARAT_EMULATE
    auto &w = *emulate::fiber->warp;
    auto &slot = w.slot[w.generation & 1];
    auto &tile = w.tile[w.generation & 1];
    unsigned lane = emulate::fiber->lane;
    unsigned mine[6] = {a[0], a[1], a[2], a[3], b0, b1};
    std::memcpy(slot[lane], mine, sizeof mine);
    emulate::meet_warp("mma", [&] {
        float left[16][16], right[16][8];
        for (unsigned l = 0; l < 32; l++) {
            unsigned g = l / 4, t = l % 4 * 2;
            for (unsigned i = 0; i < 4; i++) {
                left[g + i % 2 * 8][t + i / 2 * 8] = __uint_as_float(slot[l][i] << 16);
                left[g + i % 2 * 8][t + i / 2 * 8 + 1] = __uint_as_float(slot[l][i] & 0xffff0000u);
            }
            for (unsigned i = 0; i < 2; i++) {
                right[t + i * 8][g] = __uint_as_float(slot[l][4 + i] << 16);
                right[t + i * 8 + 1][g] = __uint_as_float(slot[l][4 + i] & 0xffff0000u);
            }
        }
        for (unsigned i = 0; i < 16; i++) {
            float sum[8] = {};
            for (unsigned k = 0; k < 16; k++)
                for (unsigned j = 0; j < 8; j++) sum[j] += left[i][k] * right[k][j];
            std::memcpy(tile[i], sum, sizeof sum);
        }
    });
    for (unsigned i = 0; i < 4; i++) c[i] += tile[lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2];
#else
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#endif
}

// `2^x` within 2 units in the last place of f32; 2^-infinity is 0.
__device__ __forceinline__ float exp2_fast(float x) {
#ifdef KARAT_EMULATE
    return std::exp2(x);
#else
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#endif
}

// The bits of a pair of bf16, each rounded to the nearest (ties to even): `low` in the low half.
__device__ __forceinline__ unsigned pack_bf16(float low, float high) {
#ifdef KARAT_EMULATE
    auto round = [](float x) {
        unsigned bits = __float_as_uint(x);
        if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fffu;
        return (bits + 0x7fffu + (bits >> 16 & 1)) >> 16;
    };
    return round(low) | round(high) << 16;
#else
    unsigned pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
#endif
}
