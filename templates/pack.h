// Two elements at once. With 16-bit types a GPU multiplies and adds two in one instruction, with the bits of the operation in
// f32 and one rounding: a product of two is exact in f32 but where it is below all of the type's numbers, and a sum is rounded
// by f32 so finely that rounding it once more changes nothing (24 bits are at least 2·11 + 2).

struct Two {
#if ROPE_DTYPE == ROPE_F32
    float low, high;
#else
    u32 bits;
#endif
};

#if ROPE_DTYPE == ROPE_F32
ROPE_INLINE float low(Two x) { return x.low; }
ROPE_INLINE float high(Two x) { return x.high; }
ROPE_INLINE Two pack(Element a, Element b) { return {a, b}; }
ROPE_INLINE Element first(Two x) { return x.low; }
ROPE_INLINE Element second(Two x) { return x.high; }
// The first of two, and the second of two.
ROPE_INLINE Two lows(Two a, Two b) { return {a.low, b.low}; }
ROPE_INLINE Two highs(Two a, Two b) { return {a.high, b.high}; }
#else
ROPE_INLINE Two pack(Element a, Element b) { return {(u32)a | (u32)b << 16}; }
ROPE_INLINE Element first(Two x) { return (Element)x.bits; }
ROPE_INLINE Element second(Two x) { return (Element)(x.bits >> 16); }
ROPE_INLINE Two lows(Two a, Two b) { return {low_halves(a.bits, b.bits)}; }
ROPE_INLINE Two highs(Two a, Two b) { return {high_halves(a.bits, b.bits)}; }
#if ROPE_DTYPE == ROPE_BF16
ROPE_INLINE float low(Two x) { return bits_float(x.bits << 16); }
ROPE_INLINE float high(Two x) { return bits_float(x.bits & 0xffff0000u); }
#else
ROPE_INLINE float low(Two x) { return widen(first(x)); }
ROPE_INLINE float high(Two x) { return widen(second(x)); }
#endif
#endif

#if ROPE_DTYPE == ROPE_F32
ROPE_INLINE Two negated(Two x) { return {-x.low, -x.high}; }
#else
ROPE_INLINE Two negated(Two x) { return {x.bits ^ 0x80008000u}; }
#endif

#if ROPE_DTYPE != ROPE_F32 && defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
#define PACKED 1
#else
#define PACKED 0
#endif

// Rounds two numbers.
ROPE_INLINE Two narrow_two(float a, float b) {
#if PACKED
    Two x;
#if ROPE_DTYPE == ROPE_BF16
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(x.bits) : "f"(b), "f"(a));
#else
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(x.bits) : "f"(b), "f"(a));
#endif
    return x;
#else
    return pack(narrow(a), narrow(b));
#endif
}

// Each operation is rounded to the type. Before sm_90 there is only a fused operation for bf16: with −0 added, or one as a factor.
ROPE_INLINE Two mul(Two a, Two b) {
#if PACKED
    Two x;
#if ROPE_DTYPE == ROPE_F16
    asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(x.bits) : "r"(a.bits), "r"(b.bits));
#elif __CUDA_ARCH__ >= 900
    asm("mul.rn.bf16x2 %0, %1, %2;" : "=r"(x.bits) : "r"(a.bits), "r"(b.bits));
#else
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(x.bits) : "r"(a.bits), "r"(b.bits), "r"(0x80008000u));
#endif
    return x;
#else
    return narrow_two(mul(low(a), low(b)), mul(high(a), high(b)));
#endif
}

ROPE_INLINE Two add(Two a, Two b) {
#if PACKED
    Two x;
#if ROPE_DTYPE == ROPE_F16
    asm("add.rn.f16x2 %0, %1, %2;" : "=r"(x.bits) : "r"(a.bits), "r"(b.bits));
#elif __CUDA_ARCH__ >= 900
    asm("add.rn.bf16x2 %0, %1, %2;" : "=r"(x.bits) : "r"(a.bits), "r"(b.bits));
#else
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(x.bits) : "r"(a.bits), "r"(0x3f803f80u), "r"(b.bits));
#endif
    return x;
#else
    return narrow_two(add(low(a), low(b)), add(high(a), high(b)));
#endif
}

ROPE_INLINE Two sub(Two a, Two b) {
#if PACKED
    Two x;
#if ROPE_DTYPE == ROPE_F16
    asm("sub.rn.f16x2 %0, %1, %2;" : "=r"(x.bits) : "r"(a.bits), "r"(b.bits));
#elif __CUDA_ARCH__ >= 900
    asm("sub.rn.bf16x2 %0, %1, %2;" : "=r"(x.bits) : "r"(a.bits), "r"(b.bits));
#else
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(x.bits) : "r"(b.bits), "r"(0xbf80bf80u), "r"(a.bits));
#endif
    return x;
#else
    return narrow_two(sub(low(a), low(b)), sub(high(a), high(b)));
#endif
}

// The larger of two magnitudes, its sign being of no meaning; NaN only where both are.
ROPE_INLINE Two larger(Two a, Two b) {
#if PACKED && __CUDA_ARCH__ >= 860
    Two x;
#if ROPE_DTYPE == ROPE_F16
    asm("max.xorsign.abs.f16x2 %0, %1, %2;" : "=r"(x.bits) : "r"(a.bits), "r"(b.bits));
#else
    asm("max.xorsign.abs.bf16x2 %0, %1, %2;" : "=r"(x.bits) : "r"(a.bits), "r"(b.bits));
#endif
    return x;
#else
    return narrow_two(float_max(absolute(low(a)), absolute(low(b))), float_max(absolute(high(a)), absolute(high(b))));
#endif
}

// fp8, e4m3fn: to nearest, ties to even; saturating; NaN is 0x7f.
ROPE_INLINE u32 f32_to_e4m3(float x) {
    const u32 bits = float_bits(x), magnitude = bits & 0x7fffffffu, sign = bits >> 24 & 0x80u;
    if (magnitude > 0x7f800000u) return 0x7fu;
    if (magnitude >= 0x43e00000u) return sign | 0x7eu;  // 448
    if (magnitude < 0x3c800000u) {                      // 2^-6: below, steps are of 2^-9, as those of 2^14 + x
        return sign | (float_bits(add(bits_float(magnitude), 16384.0f)) - 0x46800000u);
    }
    return sign | (((magnitude + 0x7ffffu + (magnitude >> 20 & 1u)) >> 20) - (120u << 3));
}

// Two of them, the first in the low byte.
ROPE_INLINE u16 two_e4m3(float a, float b) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 890
    u16 x;
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(x) : "f"(b), "f"(a));
    return x;
#else
    return (u16)(f32_to_e4m3(a) | f32_to_e4m3(b) << 8);
#endif
}
