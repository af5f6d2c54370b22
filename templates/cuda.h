// The CUDA side of what differs between the two devices. No header of the toolkit is needed: conversions are inline PTX.

#define ROPE_INLINE __device__ __forceinline__
#define ROPE_UNROLL _Pragma("unroll")

ROPE_INLINE float mul(float a, float b) { return __fmul_rn(a, b); }
ROPE_INLINE float add(float a, float b) { return __fadd_rn(a, b); }
ROPE_INLINE float sub(float a, float b) { return __fsub_rn(a, b); }
ROPE_INLINE u32 mul_high(u32 a, u32 b) { return __umulhi(a, b); }
ROPE_INLINE u32 float_bits(float x) { return __float_as_uint(x); }
ROPE_INLINE float bits_float(u32 x) { return __uint_as_float(x); }

ROPE_INLINE float f16_to_f32(u16 x) {
    float y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x));
    return y;
}

ROPE_INLINE u16 f32_to_f16(float x) {
    u16 y;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y) : "f"(x));
    return y;
}

template <typename W> ROPE_INLINE W load(const W* p) {
#if ROPE_LOAD_STREAMING
    return __ldcs(p);
#else
    return *p;
#endif
}

template <typename W> ROPE_INLINE void store(W* p, W x) {
#if ROPE_STORE_STREAMING
    __stcs(p, x);
#else
    *p = x;
#endif
}

template <typename W> ROPE_INLINE W load_constant(const W* p) { return __ldg(p); }

#define ROPE_ENTRY                                                                                                    \
    extern "C" __global__ void __launch_bounds__(ROPE_THREADS) rope_kernel(const __grid_constant__ RopeParams p) {    \
        rope_thread(p, blockIdx.x, threadIdx.x, gridDim.x);                                                           \
    }
