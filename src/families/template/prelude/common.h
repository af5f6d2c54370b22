// What every kernel of a user sees, on both kinds of device. Names that start with `ropejit` are not for kernels.

typedef signed char i8;
typedef unsigned char u8;
typedef short i16;
typedef unsigned short u16;
typedef int i32;
typedef unsigned int u32;
typedef long long i64;
typedef unsigned long long u64;
typedef float f32;
typedef double f64;

// Elements of half precision and bfloat16: 16-bit words, each type its own, so that to_f32 can tell them apart.
struct f16 {
    u16 bits;
};
struct bf16 {
    u16 bits;
};

ROPEJIT_INLINE f32 ropejit_bits_f32(u32 bits);
ROPEJIT_INLINE u32 ropejit_f32_bits(f32 x);

ROPEJIT_INLINE f32 bf16_to_f32(u16 word) { return ropejit_bits_f32((u32)word << 16); }

// Rounds to nearest, ties to even; NaN becomes 0x7fff.
ROPEJIT_INLINE u16 f32_to_bf16(f32 x) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    u16 word;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(word) : "f"(x));
    return word;
#else
    u32 bits = ropejit_f32_bits(x);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fffu;
    return (u16)((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
#endif
}

// An element as f32.
ROPEJIT_INLINE f32 to_f32(f32 x) { return x; }
ROPEJIT_INLINE f32 to_f32(f64 x) { return (f32)x; }
ROPEJIT_INLINE f32 to_f32(f16 x) { return f16_to_f32(x.bits); }
ROPEJIT_INLINE f32 to_f32(bf16 x) { return bf16_to_f32(x.bits); }

// An f32 as an element, rounded to nearest: from_f32<DTYPE>(x).
template <typename T> struct ropejit_from;
template <> struct ropejit_from<f32> {
    static ROPEJIT_METHOD f32 of(f32 x) { return x; }
};
template <> struct ropejit_from<f64> {
    static ROPEJIT_METHOD f64 of(f32 x) { return x; }
};
template <> struct ropejit_from<f16> {
    static ROPEJIT_METHOD f16 of(f32 x) { return f16{f32_to_f16(x)}; }
};
template <> struct ropejit_from<bf16> {
    static ROPEJIT_METHOD bf16 of(f32 x) { return bf16{f32_to_bf16(x)}; }
};
template <typename T> ROPEJIT_INLINE T from_f32(f32 x) { return ropejit_from<T>::of(x); }

// N elements that lie at an address which N * sizeof(T) divides, moved at once:
//     Pack<DTYPE, VEC> p = load_pack<VEC>(x + i);   p.at[0] …   store_pack(y + i, p);
template <typename T, int N> struct alignas(sizeof(T) * N) Pack {
    T at[N];
};
template <int N, typename T> ROPEJIT_INLINE Pack<T, N> load_pack(const T* from) { return *(const Pack<T, N>*)from; }
template <typename T, int N> ROPEJIT_INLINE void store_pack(T* to, const Pack<T, N>& pack) { *(Pack<T, N>*)to = pack; }
