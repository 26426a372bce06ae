// What the attention kernels on tensor cores share: tiles of rows in shared memory and their fragments.
//
// Rows of D bf16 are padded by 16 bytes, so that the eight rows of an ldmatrix lie in different banks for every D here.
#pragma once

#include "common.h"

constexpr int ATTENTION_THREADS = 128;
constexpr int TILE = 64; // rows of q (forward, dq) or of k and v (dk, dv) that a block takes: 16 a warp
constexpr float LOG2E = 1.44269504088896340736f;

template <int D> constexpr int STRIDE = D + 8;

// Starts to copy ROWS rows of a matrix whose rows lie `stride` apart into a tile; rows from `valid` on are zeros.
template <int D, int ROWS>
__device__ __forceinline__ void load_tile(bf16 *tile, const bf16 *rows, i64 stride, int valid) {
    constexpr int PARTS = D / 8;
    static_assert(ROWS * PARTS % ATTENTION_THREADS == 0 || ROWS * PARTS < ATTENTION_THREADS);
#pragma unroll
    for (int i = threadIdx.x; i < ROWS * PARTS; i += ATTENTION_THREADS) {
        const int row = i / PARTS, column = i % PARTS * 8;
        const bool given = row < valid;
        copy_async_16(tile + row * STRIDE<D> + column, given ? rows + row * stride + column : rows, given);
    }
}

// The 16 x 16 block at (row, column) as the left operand of a product.
template <int D> __device__ __forceinline__ void left_operand(unsigned (&a)[4], const bf16 *tile, int row, int column) {
    const int lane = threadIdx.x % 32;
    load_matrices<false>(a, tile + (row + lane % 16) * STRIDE<D> + column + lane / 16 * 8);
}

// Two right operands from 16 rows and columns of a tile whose rows are the product's columns (q k^T reads k so): b[0], b[1]
// belong to the first 8 rows, b[2], b[3] to the others.
template <int D> __device__ __forceinline__ void right_by_rows(unsigned (&b)[4], const bf16 *tile, int row, int column) {
    const int lane = threadIdx.x % 32;
    load_matrices<false>(b, tile + (row + lane / 16 * 8 + lane % 8) * STRIDE<D> + column + lane / 8 % 2 * 8);
}

// The same where the tile's columns are the product's columns (p v reads v so): b[0], b[1] belong to the first 8 columns.
template <int D> __device__ __forceinline__ void right_by_columns(unsigned (&b)[4], const bf16 *tile, int row, int column) {
    const int lane = threadIdx.x % 32;
    load_matrices<true>(b, tile + (row + lane / 8 % 2 * 8 + lane % 8) * STRIDE<D> + column + lane / 16 * 8);
}

// sums[16, 8 N] += left[16 rows from `row`, D] right[8 N rows, D]^T.
template <int D, int N>
__device__ __forceinline__ void product_by_rows(float (&sums)[N][4], const bf16 *left, int row, const bf16 *right) {
#pragma unroll
    for (int d = 0; d < D; d += 16) {
        unsigned a[4], b[4];
        left_operand<D>(a, left, row, d);
#pragma unroll
        for (int n = 0; n < N; n += 2) {
            right_by_rows<D>(b, right, n * 8, d);
            multiply_add(sums[n], a, b[0], b[1]);
            multiply_add(sums[n + 1], a, b[2], b[3]);
        }
    }
}

// sums[16, D] += weights[16, 8 N] right[8 N rows, D]; the weights are rounded to bf16.
template <int D, int N>
__device__ __forceinline__ void product_by_columns(float (&sums)[D / 8][4], const float (&weights)[N][4], const bf16 *right) {
#pragma unroll
    for (int n = 0; n < N; n += 2) {
        // What a product left in a warp is what the next takes as its left operand.
        const unsigned a[4] = {pack_bf16(weights[n][0], weights[n][1]), pack_bf16(weights[n][2], weights[n][3]),
                               pack_bf16(weights[n + 1][0], weights[n + 1][1]),
                               pack_bf16(weights[n + 1][2], weights[n + 1][3])};
#pragma unroll
        for (int d = 0; d < D; d += 16) {
            unsigned b[4];
            right_by_columns<D>(b, right, n * 8, d);
            multiply_add(sums[d / 8], a, b[0], b[1]);
            multiply_add(sums[d / 8 + 1], a, b[2], b[3]);
        }
    }
}

// Writes a warp's sums[16, D], row by row times `first` and `second` (rows g and g + 8 of lane l, g = l / 4), to the rows
// from `row` on of a matrix whose rows lie `stride` apart. Goes through rows of `tile` that only this warp uses.
template <int D>
__device__ __forceinline__ void store_rows(bf16 *tile, int row, const float (&sums)[D / 8][4], float first, float second,
                                           bf16 *to, i64 stride, int valid) {
    const int lane = threadIdx.x % 32;
    tile += row * STRIDE<D>;
    __syncwarp();
#pragma unroll
    for (int n = 0; n < D / 8; n++) {
        const int column = n * 8 + lane % 4 * 2;
        *reinterpret_cast<unsigned *>(tile + lane / 4 * STRIDE<D> + column) = pack_bf16(sums[n][0] * first, sums[n][1] * first);
        *reinterpret_cast<unsigned *>(tile + (lane / 4 + 8) * STRIDE<D> + column) =
            pack_bf16(sums[n][2] * second, sums[n][3] * second);
    }
    __syncwarp();
    constexpr int PARTS = D / 8;
#pragma unroll
    for (int i = lane; i < 16 * PARTS; i += 32) {
        const int r = i / PARTS, column = i % PARTS * 8;
        if (row + r < valid)
            *reinterpret_cast<uint4 *>(to + (row + r) * stride + column) =
                *reinterpret_cast<const uint4 *>(tile + r * STRIDE<D> + column);
    }
}

template <int N> __device__ __forceinline__ void clear(float (&x)[N][4]) {
#pragma unroll
    for (int n = 0; n < N; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) x[n][i] = 0.0f;
}
