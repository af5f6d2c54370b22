// The host side of what differs between the two devices: any C++14 compiler, no header. Contraction of a product and a
// sum is switched off on the command line.

#define ROPE_INLINE static inline
#define ROPE_MEMBER inline
#define ROPE_UNROLL
#define ROPE_UNROLL_TWO
#define ROPE_EACH_PAIR _Pragma("omp simd")

ROPE_INLINE float mul(float a, float b) { return a * b; }
ROPE_INLINE float add(float a, float b) { return a + b; }
ROPE_INLINE float sub(float a, float b) { return a - b; }
ROPE_INLINE float fused(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
ROPE_INLINE float divided(float a, float b) { return a / b; }
ROPE_INLINE float root(float x) { return __builtin_sqrtf(x); }
ROPE_INLINE float absolute(float x) { return __builtin_fabsf(x); }
ROPE_INLINE float float_max(float a, float b) { return __builtin_fmaxf(a, b); }
ROPE_INLINE double mul(double a, double b) { return a * b; }
ROPE_INLINE double add(double a, double b) { return a + b; }
ROPE_INLINE double sub(double a, double b) { return a - b; }
ROPE_INLINE u32 mul_high(u32 a, u32 b) { return (u32)(((u64)a * b) >> 32); }

ROPE_INLINE u32 float_bits(float x) {
    u32 y;
    __builtin_memcpy(&y, &x, 4);
    return y;
}

ROPE_INLINE u64 double_bits(double x) {
    u64 y;
    __builtin_memcpy(&y, &x, 8);
    return y;
}

ROPE_INLINE float bits_float(u32 x) {
    float y;
    __builtin_memcpy(&y, &x, 4);
    return y;
}

ROPE_INLINE float f16_to_f32(u16 x) {
    u32 sign = (u32)(x & 0x8000u) << 16, magnitude = x & 0x7fffu;
    if (magnitude >= 0x7c00u) return bits_float(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);
    if (magnitude >= 0x0400u) return bits_float(sign | (magnitude << 13) + 0x38000000u);
    return bits_float(sign | float_bits((float)magnitude * bits_float(0x33800000u)));  // subnormal: times 2^-24, exact
}

ROPE_INLINE u16 f32_to_f16(float x) {
    u32 bits = float_bits(x), magnitude = bits & 0x7fffffffu;
    u16 sign = (u16)(bits >> 16 & 0x8000u);
    if (magnitude > 0x7f800000u) return 0x7fffu;
    if (magnitude >= 0x477ff000u) return sign | 0x7c00u;  // from 65520 on it rounds to infinity
    if (magnitude < 0x38800000u) {                        // subnormal: one ulp is 2^-24, which 0.5 + x rounds to
        return sign | (u16)(float_bits(bits_float(magnitude) + 0.5f) - 0x3f000000u);
    }
    u32 odd = magnitude >> 13 & 1u;
    return sign | (u16)((magnitude + 0xc8000000u + 0xfffu + odd) >> 13);
}

// N elements; the compiler finds the widest access itself.
template <typename T, u32 N, u32 WIDEST> struct Piece {
    union {
        T elements[N];
        u32 pairs[(N * sizeof(T) + 3) / 4];
    };
};

template <typename T, u32 N, u32 WIDEST> ROPE_INLINE void load(Piece<T, N, WIDEST>& to, const T* at) {
    __builtin_memcpy(to.elements, at, N * sizeof(T));
}

template <typename T, u32 N, u32 WIDEST> ROPE_INLINE void store(T* at, const Piece<T, N, WIDEST>& from) {
    __builtin_memcpy(at, from.elements, N * sizeof(T));
}

template <typename T, u32 N, u32 WIDEST> ROPE_INLINE void load_entries(Piece<T, N, WIDEST>& to, const T* at) {
    load(to, at);
}

ROPE_INLINE void report(u64* fault, u64 what) { __atomic_store_n(fault, what, __ATOMIC_RELAXED); }

ROPE_INLINE void prefetch(const void*) {}
ROPE_INLINE void wait_for_previous() {}

// A thread has a head whole: it meets nobody.
#define ROPE_SHARED
#define ROPE_ASYNC 0
ROPE_INLINE void meet() {}
ROPE_INLINE float from_lane(float x, u32) { return x; }
ROPE_INLINE bool any_lane(bool x) { return x; }
ROPE_INLINE void meet_lanes() {}
ROPE_INLINE u32 low_halves(u32 a, u32 b) { return (a & 0xffffu) | b << 16; }
ROPE_INLINE u32 high_halves(u32 a, u32 b) { return a >> 16 | (b & 0xffff0000u); }

// Compiled for wider vectors as well, which the loader takes where the processor has them. The same operations, the same bits.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(__SANITIZE_ADDRESS__)
#define ROPE_CLONES __attribute__((target_clones("avx2", "default")))
#else
#define ROPE_CLONES
#endif

#define ROPE_ENTRY                                                                                                    \
    extern "C" ROPE_CLONES void rope_kernel(const RopeParams* p, const RopeAngles* angles, const RopeShape* shape,    \
                                            u32 first_block, u32 last_block) {                                        \
        (void)angles;                                                                                                 \
        (void)shape;                                                                                                  \
        const Shape& known = ROPE_SHAPE(*shape);                                                                      \
        for (u32 block = first_block; block < last_block; ++block)                                                    \
            for (u32 thread = 0; thread < known.threads; ++thread)                                                    \
                rope_thread(*p, ROPE_ANGLES(*angles), known, block, thread);                                          \
    }

#define FUSED_ENTRY                                                                                                   \
    extern "C" void rope_kernel(const RopeParams* p, const FusedParams* f, const RopeAngles* angles,                  \
                                const RopeShape* shape, u32 first_block, u32 last_block) {                            \
        (void)angles;                                                                                                 \
        (void)shape;                                                                                                  \
        for (u32 block = first_block; block < last_block; ++block)                                                    \
            for (u32 thread = 0; thread < ROPE_THREADS; ++thread)                                                     \
                fused_thread(*p, *f, ROPE_ANGLES(*angles), ROPE_SHAPE(*shape), block, thread);                        \
    }
