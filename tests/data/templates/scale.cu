extern "C" __global__ void scale(const DTYPE* x, DTYPE* y, f32 factor, u32 n) {
    const u32 i = (blockIdx.x * THREADS + threadIdx.x) * VEC;
    if (i + VEC <= n) {
        Pack<DTYPE, VEC> p = load_pack<VEC>(x + i);
        for (int v = 0; v < VEC; ++v) p.at[v] = from_f32<DTYPE>(to_f32(p.at[v]) * factor);
        store_pack(y + i, p);
    } else {
        for (u32 j = i; j < n; ++j) y[j] = from_f32<DTYPE>(to_f32(x[j]) * factor);
    }
}
