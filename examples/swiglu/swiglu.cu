// y = silu(gate) · up, with silu(x) = x / (1 + exp(−x)). silu is rounded to DTYPE before the product, as PyTorch does.

extern "C" __global__ void __launch_bounds__(THREADS) swiglu(const DTYPE* gate, const DTYPE* up, DTYPE* y, u32 rows) {
    const u64 at = ((u64)blockIdx.x * THREADS + threadIdx.x) * VEC;
    if (at >= (u64)rows * HIDDEN) return;
    const Pack<DTYPE, VEC> g = load_pack<VEC>(gate + at), u = load_pack<VEC>(up + at);
    Pack<DTYPE, VEC> out;
#pragma unroll
    for (u32 i = 0; i < VEC; ++i) {
        const f32 x = to_f32(g.at[i]);
        const f32 silu = to_f32(from_f32<DTYPE>(x / (1.0f + expf(-x))));
        out.at[i] = from_f32<DTYPE>(silu * to_f32(u.at[i]));
    }
    store_pack(y + at, out);
}
