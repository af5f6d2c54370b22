// residual += x, rounded to DTYPE; y = residual / sqrt(mean(residual²) + eps) · weight, rounded before the product with the
// weight, as transformers does. One block a row, which it holds in registers.
//
// The order of the sum is fixed: 8 neighbours in sequence are a piece, piece p belongs to lane p % LANES, a lane adds its
// pieces in sequence, and the lanes are folded by halves. A thread has LANES / THREADS lanes, so no tunable moves a bit.

#define LANES 1024
#define PIECE 8
#define PIECES (HIDDEN / PIECE)
#define LANES_HERE (LANES / THREADS)
#define ROUNDS ((PIECES + THREADS - 1) / THREADS)

struct Piece {
    Pack<DTYPE, VEC> packs[PIECE / VEC];

    __device__ __forceinline__ DTYPE& at(u32 i) { return packs[i / VEC].at[i % VEC]; }
};

__device__ __forceinline__ Piece load(const DTYPE* from) {
    Piece piece;
#pragma unroll
    for (u32 i = 0; i < PIECE / VEC; ++i) piece.packs[i] = load_pack<VEC>(from + i * VEC);
    return piece;
}

__device__ __forceinline__ void store(DTYPE* to, const Piece& piece) {
#pragma unroll
    for (u32 i = 0; i < PIECE / VEC; ++i) store_pack(to + i * VEC, piece.packs[i]);
}

// The sum of N values, folded by halves.
template <u32 N> __device__ __forceinline__ f32 fold(f32* v) {
#pragma unroll
    for (u32 i = 0; i < N / 2; ++i) v[i] += v[i + N / 2];
    if constexpr (N > 1) return fold<N / 2>(v);
    return v[0];
}

extern "C" __global__ void __launch_bounds__(THREADS)
    add_rmsnorm(const DTYPE* x, DTYPE* residual, const DTYPE* weight, DTYPE* y, u32 rows, f32 eps) {
    __shared__ f32 sums[THREADS];
    const u32 t = threadIdx.x;
    const u64 row = (u64)blockIdx.x * HIDDEN;
    Piece held[ROUNDS], added[ROUNDS];
#pragma unroll
    for (u32 i = 0; i < ROUNDS; ++i) {
        const u32 p = i * THREADS + t;
        if (p < PIECES) held[i] = load(residual + row + p * PIECE), added[i] = load(x + row + p * PIECE);
    }
    f32 lanes[LANES_HERE] = {};
#pragma unroll
    for (u32 i = 0; i < ROUNDS; ++i) {
        const u32 p = i * THREADS + t;
        if (p >= PIECES) break;
        f32 sum = 0.0f;
#pragma unroll
        for (u32 j = 0; j < PIECE; ++j) {
            held[i].at(j) = from_f32<DTYPE>(to_f32(held[i].at(j)) + to_f32(added[i].at(j)));
            const f32 r = to_f32(held[i].at(j));
            sum += r * r;
        }
        store(residual + row + p * PIECE, held[i]);
        lanes[i % LANES_HERE] += sum;
    }
    sums[t] = fold<LANES_HERE>(lanes);
    __syncthreads();
    if (t < 32) {
        f32 v[THREADS / 32];
#pragma unroll
        for (u32 i = 0; i < THREADS / 32; ++i) v[i] = sums[t + 32 * i];
        sums[t] = fold<THREADS / 32>(v);
    }
    __syncthreads();
    f32 v[32];
#pragma unroll
    for (u32 i = 0; i < 32; ++i) v[i] = sums[i];
    const f32 scale = 1.0f / sqrtf(fold<32>(v) / HIDDEN + eps);
#pragma unroll
    for (u32 i = 0; i < ROUNDS; ++i) {
        const u32 p = i * THREADS + t;
        if (p >= PIECES) break;
        Piece w = load(weight + p * PIECE);
#pragma unroll
        for (u32 j = 0; j < PIECE; ++j) {
            const f32 normed = to_f32(from_f32<DTYPE>(to_f32(held[i].at(j)) * scale));
            w.at(j) = from_f32<DTYPE>(normed * to_f32(w.at(j)));
        }
        store(y + row + p * PIECE, w);
    }
}
