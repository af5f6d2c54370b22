// loss = log(Σ exp(logits)) − logits[label] of a row, and the row becomes its gradient:
// (softmax(logits) − onehot(label)) · scale. A label equal to ignore_index gives loss 0 and gradient 0.
//
// One block a row, in two passes: the sum, then the gradient, the end of the row first, which is the most likely to be in
// the L2 still.
//
// The order of the sum is fixed: 8 neighbours in sequence are a piece, piece p belongs to lane p % LANES, a lane adds its
// pieces in sequence, scaled by its own maximum, and the lanes are folded by halves. So no tunable moves a bit.

#define LANES 1024
#define PIECE 8
#define PIECES (VOCAB / PIECE)
#define LANES_HERE (LANES / THREADS)
#define LOG2_E 1.44269504f
#define LN_2 0.69314718f
// Above −inf and the masks that stand for it, so that the difference to it is no NaN.
#define LEAST -1e38f

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

// exp(x − max), where max_2 = max · log2(e). With --ftz=true exp2f is one instruction.
__device__ __forceinline__ f32 exp_less(f32 x, f32 max_2) { return exp2f(fmaf(x, LOG2_E, -max_2)); }

struct Sum {
    static __device__ __forceinline__ f32 of(f32 a, f32 b) { return a + b; }
};
struct Max {
    static __device__ __forceinline__ f32 of(f32 a, f32 b) { return fmaxf(a, b); }
};

// That of N values, folded by halves.
template <typename Op, u32 N> __device__ __forceinline__ f32 fold(f32* v) {
#pragma unroll
    for (u32 i = 0; i < N / 2; ++i) v[i] = Op::of(v[i], v[i + N / 2]);
    if constexpr (N > 1) return fold<Op, N / 2>(v);
    return v[0];
}

// That of all threads, folded by halves, in every thread.
template <typename Op> __device__ __forceinline__ f32 fold_block(f32 x, f32* shared) {
    const u32 t = threadIdx.x;
    shared[t] = x;
    __syncthreads();
    if (t < 32) {
        f32 v[THREADS / 32];
#pragma unroll
        for (u32 i = 0; i < THREADS / 32; ++i) v[i] = shared[t + 32 * i];
        shared[t] = fold<Op, THREADS / 32>(v);
    }
    __syncthreads();
    f32 v[32];
#pragma unroll
    for (u32 i = 0; i < 32; ++i) v[i] = shared[i];
    return fold<Op, 32>(v);
}

extern "C" __global__ void __launch_bounds__(THREADS)
    cross_entropy(DTYPE* logits, const i64* labels, f32* loss, u32 rows, i64 ignore_index, f32 scale) {
    __shared__ f32 maxima[THREADS], sums[THREADS];
    const u32 t = threadIdx.x;
    DTYPE* row = logits + (u64)blockIdx.x * VOCAB;
    const i64 label = labels[blockIdx.x];
    if (label == ignore_index) {
        for (u32 i = t; i < VOCAB; i += THREADS) row[i] = from_f32<DTYPE>(0.0f);
        if (t == 0) loss[blockIdx.x] = 0.0f;
        return;
    }
    const f32 wanted = to_f32(row[label]);
    f32 max[LANES_HERE], sum[LANES_HERE];
#pragma unroll
    for (u32 i = 0; i < LANES_HERE; ++i) max[i] = LEAST, sum[i] = 0.0f;
    for (u32 first = 0; first < PIECES; first += THREADS * UNROLL) {
        Piece pieces[UNROLL];
#pragma unroll
        for (u32 i = 0; i < UNROLL; ++i) {
            const u32 p = first + i * THREADS + t;
            if (p < PIECES) pieces[i] = load(row + p * PIECE);
        }
#pragma unroll
        for (u32 i = 0; i < UNROLL; ++i) {
            const u32 p = first + i * THREADS + t, lane = i % LANES_HERE;
            if (p >= PIECES) break;
            f32 most = max[lane], part = 0.0f;
#pragma unroll
            for (u32 j = 0; j < PIECE; ++j) most = fmaxf(most, to_f32(pieces[i].at(j)));
            const f32 most_2 = most * LOG2_E;
#pragma unroll
            for (u32 j = 0; j < PIECE; ++j) part += exp_less(to_f32(pieces[i].at(j)), most_2);
            sum[lane] = sum[lane] * exp_less(max[lane], most_2) + part;
            max[lane] = most;
        }
    }
    f32 of_lanes[LANES_HERE];
#pragma unroll
    for (u32 i = 0; i < LANES_HERE; ++i) of_lanes[i] = max[i];
    const f32 most_2 = fold_block<Max>(fold<Max, LANES_HERE>(of_lanes), maxima) * LOG2_E;
#pragma unroll
    for (u32 i = 0; i < LANES_HERE; ++i) sum[i] *= exp_less(max[i], most_2);
    const f32 total = fold_block<Sum>(fold<Sum, LANES_HERE>(sum), sums);
    if (t == 0) loss[blockIdx.x] = most_2 * LN_2 + logf(total) - wanted;
    const f32 factor = scale / total;
    const u32 last = (PIECES - 1) / (THREADS * UNROLL) * (THREADS * UNROLL);
    for (u32 behind = 0; behind <= last; behind += THREADS * UNROLL) {
        const u32 first = last - behind;
        Piece pieces[UNROLL];
#pragma unroll
        for (u32 i = 0; i < UNROLL; ++i) {
            const u32 p = first + i * THREADS + t;
            if (p < PIECES) pieces[i] = load(row + p * PIECE);
        }
#pragma unroll
        for (u32 i = 0; i < UNROLL; ++i) {
            const u32 p = first + i * THREADS + t;
            if (p >= PIECES) break;
#pragma unroll
            for (u32 j = 0; j < PIECE; ++j)
                pieces[i].at(j) = from_f32<DTYPE>(exp_less(to_f32(pieces[i].at(j)), most_2) * factor);
            store(row + p * PIECE, pieces[i]);
            if (p == (u32)label / PIECE) row[label] = from_f32<DTYPE>(exp_less(wanted, most_2) * factor - scale);
        }
    }
}
