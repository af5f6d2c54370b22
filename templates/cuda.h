// The CUDA side of what differs between the two devices. No header of the toolkit is needed: conversions are inline PTX.

#define ROPE_INLINE __device__ __forceinline__
#define ROPE_MEMBER __device__ __forceinline__
#define ROPE_UNROLL _Pragma("unroll")
#define ROPE_UNROLL_TWO _Pragma("unroll 2")
#define ROPE_EACH_PAIR ROPE_UNROLL

ROPE_INLINE float mul(float a, float b) { return __fmul_rn(a, b); }
ROPE_INLINE float add(float a, float b) { return __fadd_rn(a, b); }
ROPE_INLINE float sub(float a, float b) { return __fsub_rn(a, b); }
ROPE_INLINE float fused(float a, float b, float c) { return __fmaf_rn(a, b, c); }
ROPE_INLINE float divided(float a, float b) { return __fdiv_rn(a, b); }
ROPE_INLINE float root(float x) { return __fsqrt_rn(x); }
ROPE_INLINE float absolute(float x) { return fabsf(x); }
ROPE_INLINE float float_max(float a, float b) { return fmaxf(a, b); }
ROPE_INLINE double mul(double a, double b) { return __dmul_rn(a, b); }
ROPE_INLINE double add(double a, double b) { return __dadd_rn(a, b); }
ROPE_INLINE double sub(double a, double b) { return __dadd_rn(a, -b); }
ROPE_INLINE u64 double_bits(double x) { return (u64)__double_as_longlong(x); }
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

template <int BYTES> struct WordOf;
template <> struct WordOf<16> { typedef uint4 Type; };
template <> struct WordOf<8> { typedef uint2 Type; };
template <> struct WordOf<4> { typedef u32 Type; };
template <> struct WordOf<2> { typedef u16 Type; };
template <> struct WordOf<1> { typedef unsigned char Type; };

// Accesses of one word. Hints by inline PTX exist for words of 16 bytes; narrower ones go without.
//
// No load is of the read-only kind (`ld.global.nc`, __ldg) and every hinted one is volatile: the compiler may move such
// loads to the front of griddepcontrol.wait, where the kernel ahead may still write what they read.
template <typename W> ROPE_INLINE W load_word(const W* p) { return *p; }

template <typename W> ROPE_INLINE void store_word(W* p, W x) {
    if (ROPE_STORE_HINT == 1) __stcs(p, x);
    else *p = x;
}

template <typename W> ROPE_INLINE W load_table_word(const W* p) { return *p; }

#if ROPE_LOAD_HINT == 1
template <> ROPE_INLINE uint4 load_word<uint4>(const uint4* p) {
    uint4 x;
    asm volatile("ld.global.cs.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
                 : "l"(p)
                 : "memory");
    return x;
}
#endif

#if __CUDA_ARCH__ >= 800
ROPE_INLINE u64 evict_first() {
    u64 policy;
    asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    return policy;
}

ROPE_INLINE u64 evict_last() {
    u64 policy;
    asm("createpolicy.fractional.L2::evict_last.b64 %0, 1.0;" : "=l"(policy));
    return policy;
}

#if ROPE_LOAD_HINT == 2
template <> ROPE_INLINE uint4 load_word<uint4>(const uint4* p) {
    uint4 x;
    asm volatile("ld.global.L1::no_allocate.L2::cache_hint.v4.u32 {%0, %1, %2, %3}, [%4], %5;"
                 : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
                 : "l"(p), "l"(evict_first())
                 : "memory");
    return x;
}
#endif

#if ROPE_STORE_HINT == 2
template <> ROPE_INLINE void store_word<uint4>(uint4* p, uint4 x) {
    asm volatile("st.global.L1::no_allocate.L2::cache_hint.v4.u32 [%0], {%1, %2, %3, %4}, %5;"
                 :
                 : "l"(p), "r"(x.x), "r"(x.y), "r"(x.z), "r"(x.w), "l"(evict_first())
                 : "memory");
}
#endif

#if ROPE_KEEP_TABLES
template <> ROPE_INLINE uint4 load_table_word<uint4>(const uint4* p) {
    uint4 x;
    asm volatile("ld.global.L2::cache_hint.v4.u32 {%0, %1, %2, %3}, [%4], %5;"
                 : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
                 : "l"(p), "l"(evict_last())
                 : "memory");
    return x;
}
#endif
#endif

// N elements, moved in words of at most WIDEST bytes, by which their address is aligned.
template <typename T, u32 N, u32 WIDEST> struct Piece {
    static constexpr u32 WORD_BYTES = N * sizeof(T) < WIDEST ? N * sizeof(T) : WIDEST;
    static constexpr u32 WORDS = N * sizeof(T) / WORD_BYTES;
    typedef typename WordOf<WORD_BYTES>::Type Word;
    union {
        Word words[WORDS];
        T elements[N];
        u32 pairs[(N * sizeof(T) + 3) / 4];
    };
};

template <typename T, u32 N, u32 WIDEST> ROPE_INLINE void load(Piece<T, N, WIDEST>& to, const T* at) {
    typedef Piece<T, N, WIDEST> P;
    ROPE_UNROLL for (u32 w = 0; w < P::WORDS; ++w) to.words[w] = load_word((const typename P::Word*)at + w);
}

template <typename T, u32 N, u32 WIDEST> ROPE_INLINE void store(T* at, const Piece<T, N, WIDEST>& from) {
    typedef Piece<T, N, WIDEST> P;
    ROPE_UNROLL for (u32 w = 0; w < P::WORDS; ++w) store_word((typename P::Word*)at + w, from.words[w]);
}

template <typename T, u32 N, u32 WIDEST> ROPE_INLINE void load_entries(Piece<T, N, WIDEST>& to, const T* at) {
    typedef Piece<T, N, WIDEST> P;
    ROPE_UNROLL for (u32 w = 0; w < P::WORDS; ++w) to.words[w] = load_table_word((const typename P::Word*)at + w);
}

// Any of several threads' reports will do.
ROPE_INLINE void report(u64* fault, u64 what) { *fault = what; }

// With ROPE_OVERLAP a kernel starts while the one ahead of it on the stream still runs, and waits for its end before it
// touches memory.
ROPE_INLINE void let_next_start() {
#if ROPE_OVERLAP
    asm volatile("griddepcontrol.launch_dependents;");
#endif
}

// Brings a line into the L2, where what the kernel ahead still writes is seen.
ROPE_INLINE void prefetch(const void* at) { asm volatile("prefetch.global.L2 [%0];" ::"l"(at)); }

ROPE_INLINE void wait_for_previous() {
#if ROPE_OVERLAP
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

#if ROPE_PORTABLE
#define ROPE_ARGUMENTS                                                                                                \
    const __grid_constant__ RopeParams p, const __grid_constant__ RopeAngles angles, const __grid_constant__ RopeShape shape
#elif ROPE_TABLELESS
#define ROPE_ARGUMENTS const __grid_constant__ RopeParams p, const __grid_constant__ RopeAngles angles
#else
#define ROPE_ARGUMENTS const __grid_constant__ RopeParams p
#endif

// Copies of 16 bytes into shared memory that the thread need not wait for: what it has asked for since is in a later group.
#if __CUDA_ARCH__ >= 800
#define ROPE_ASYNC 1
ROPE_INLINE void copy_async(void* to, const void* from) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"((u32)__cvta_generic_to_shared(to)), "l"(from) : "memory");
}
ROPE_INLINE void end_group() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int LATER> ROPE_INLINE void wait_for_group() { asm volatile("cp.async.wait_group %0;" ::"n"(LATER) : "memory"); }
#else
#define ROPE_ASYNC 0
#endif

#define ROPE_SHARED __shared__
ROPE_INLINE void meet() { __syncthreads(); }

// Of a whole warp, all threads of which are here.
ROPE_INLINE float from_lane(float x, u32 distance) { return __shfl_xor_sync(0xffffffffu, x, distance); }
ROPE_INLINE bool any_lane(bool x) { return __any_sync(0xffffffffu, x); }
ROPE_INLINE void meet_lanes() { __syncwarp(); }
ROPE_INLINE u32 low_halves(u32 a, u32 b) { return __byte_perm(a, b, 0x5410); }
ROPE_INLINE u32 high_halves(u32 a, u32 b) { return __byte_perm(a, b, 0x7632); }

ROPE_INLINE float rsqrt_approx(float x) {
    float y;
    asm("rsqrt.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

#define ROPE_ENTRY                                                                                                    \
    extern "C" __global__ void __launch_bounds__(ROPE_THREADS) rope_kernel(ROPE_ARGUMENTS) {                          \
        let_next_start();                                                                                             \
        rope_thread(p, ROPE_ANGLES(angles), ROPE_SHAPE(shape), blockIdx.x, threadIdx.x);                              \
    }

#if ROPE_PORTABLE
#define FUSED_ARGUMENTS                                                                                               \
    const __grid_constant__ RopeParams p, const __grid_constant__ FusedParams f,                                      \
        const __grid_constant__ RopeAngles angles, const __grid_constant__ RopeShape shape
#elif ROPE_TABLELESS
#define FUSED_ARGUMENTS                                                                                               \
    const __grid_constant__ RopeParams p, const __grid_constant__ FusedParams f, const __grid_constant__ RopeAngles angles
#else
#define FUSED_ARGUMENTS const __grid_constant__ RopeParams p, const __grid_constant__ FusedParams f
#endif

#define FUSED_ENTRY                                                                                                   \
    extern "C" __global__ void __launch_bounds__(ROPE_THREADS, ROPE_BLOCKS) rope_kernel(FUSED_ARGUMENTS) {                         \
        let_next_start();                                                                                             \
        fused_thread(p, f, ROPE_ANGLES(angles), ROPE_SHAPE(shape), blockIdx.x, threadIdx.x);                          \
    }
