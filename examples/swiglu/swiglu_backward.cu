// The gradients of y = silu(gate) · up, in place: gate becomes dgate, up becomes dup. With s = 1 / (1 + exp(−gate)):
// dup = dy · gate · s and dgate = dy · up · s · (1 + gate · (1 − s)), computed in f32 and rounded once.

extern "C" __global__ void __launch_bounds__(THREADS)
    swiglu_backward(const DTYPE* dy, DTYPE* gate, DTYPE* up, u32 rows) {
    const u64 at = ((u64)blockIdx.x * THREADS + threadIdx.x) * VEC;
    if (at >= (u64)rows * HIDDEN) return;
    const Pack<DTYPE, VEC> d = load_pack<VEC>(dy + at);
    Pack<DTYPE, VEC> g = load_pack<VEC>(gate + at), u = load_pack<VEC>(up + at);
#pragma unroll
    for (u32 i = 0; i < VEC; ++i) {
        const f32 dy_i = to_f32(d.at[i]), gate_i = to_f32(g.at[i]), up_i = to_f32(u.at[i]);
        const f32 s = 1.0f / (1.0f + expf(-gate_i));
        u.at[i] = from_f32<DTYPE>(dy_i * (gate_i * s));
        g.at[i] = from_f32<DTYPE>(dy_i * up_i * (s * (1.0f + gate_i * (1.0f - s))));
    }
    store_pack(gate + at, g);
    store_pack(up + at, u);
}
