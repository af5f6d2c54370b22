// residual += x, and y is its RMS norm. The sum of squares has one order, whatever the tunables are: 128 partial sums, then a
// tree over them.

#define PARTS 128

extern "C" __global__ void __launch_bounds__(THREADS)
add_rmsnorm(const DTYPE* __restrict__ x, DTYPE* __restrict__ residual, const DTYPE* __restrict__ weight,
            DTYPE* __restrict__ y, u32 rows, f32 eps) {
    __shared__ f32 parts[PARTS];
    const u64 row = (u64)blockIdx.x * HIDDEN;
    for (u32 i = threadIdx.x * VEC; i < HIDDEN; i += THREADS * VEC) {
        Pack<DTYPE, VEC> a = load_pack<VEC>(x + row + i), r = load_pack<VEC>(residual + row + i);
        for (int v = 0; v < VEC; ++v) r.at[v] = from_f32<DTYPE>(to_f32(a.at[v]) + to_f32(r.at[v]));
        store_pack(residual + row + i, r);
    }
    __syncthreads();
    if (threadIdx.x < PARTS) {
        f32 sum = 0.0f;
        for (u32 i = threadIdx.x; i < HIDDEN; i += PARTS) {
            f32 r = to_f32(residual[row + i]);
            sum += r * r;
        }
        parts[threadIdx.x] = sum;
    }
    __syncthreads();
    for (u32 half = PARTS / 2; half > 0; half /= 2) {
        if (threadIdx.x < half) parts[threadIdx.x] += parts[threadIdx.x + half];
        __syncthreads();
    }
    const f32 scale = 1.0f / sqrtf(parts[0] / (f32)HIDDEN + eps);
    for (u32 i = threadIdx.x * VEC; i < HIDDEN; i += THREADS * VEC) {
        Pack<DTYPE, VEC> r = load_pack<VEC>(residual + row + i), w = load_pack<VEC>(weight + i);
        for (int v = 0; v < VEC; ++v) r.at[v] = from_f32<DTYPE>(to_f32(r.at[v]) * scale * to_f32(w.at[v]));
        store_pack(y + row + i, r);
    }
}
