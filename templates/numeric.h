// bfloat16, which needs a device only to be fast.

ROPE_INLINE float bf16_to_f32(u16 x) { return bits_float((u32)x << 16); }

// Round to nearest, ties to even; NaN becomes 0x7fff.
ROPE_INLINE u16 f32_to_bf16(float x) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    u16 y;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y) : "f"(x));
    return y;
#else
    u32 bits = float_bits(x);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fffu;
    return (u16)((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
#endif
}
