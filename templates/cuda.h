// The CUDA side of what differs between the two devices. No header of the toolkit is needed: conversions are inline PTX.

#define ROPE_INLINE __device__ __forceinline__
#define ROPE_UNROLL _Pragma("unroll")
#define ROPE_EACH_PAIR ROPE_UNROLL

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

template <int BYTES> struct WordOf;
template <> struct WordOf<16> { typedef uint4 Type; };
template <> struct WordOf<8> { typedef uint2 Type; };
template <> struct WordOf<4> { typedef u32 Type; };
template <> struct WordOf<2> { typedef u16 Type; };

// N elements, moved in words of at most WIDEST bytes, by which their address is aligned.
template <typename T, u32 N, u32 WIDEST> struct Piece {
    static constexpr u32 WORD_BYTES = N * sizeof(T) < WIDEST ? N * sizeof(T) : WIDEST;
    static constexpr u32 WORDS = N * sizeof(T) / WORD_BYTES;
    typedef typename WordOf<WORD_BYTES>::Type Word;
    union {
        Word words[WORDS];
        T elements[N];
    };
};

template <typename T, u32 N, u32 WIDEST> ROPE_INLINE void load(Piece<T, N, WIDEST>& to, const T* at) {
    typedef Piece<T, N, WIDEST> P;
    ROPE_UNROLL for (u32 w = 0; w < P::WORDS; ++w) {
        const typename P::Word* from = (const typename P::Word*)at + w;
        to.words[w] = ROPE_LOAD_STREAMING ? __ldcs(from) : *from;
    }
}

template <typename T, u32 N, u32 WIDEST> ROPE_INLINE void store(T* at, const Piece<T, N, WIDEST>& from) {
    typedef Piece<T, N, WIDEST> P;
    ROPE_UNROLL for (u32 w = 0; w < P::WORDS; ++w) {
        typename P::Word* to = (typename P::Word*)at + w;
        if (ROPE_STORE_STREAMING) __stcs(to, from.words[w]);
        else *to = from.words[w];
    }
}

// From memory that no kernel writes meanwhile.
template <typename T, u32 N, u32 WIDEST> ROPE_INLINE void load_constants(Piece<T, N, WIDEST>& to, const T* at) {
    typedef Piece<T, N, WIDEST> P;
    ROPE_UNROLL for (u32 w = 0; w < P::WORDS; ++w) to.words[w] = __ldg((const typename P::Word*)at + w);
}

template <typename T> ROPE_INLINE T load_constant(const T* at) { return __ldg(at); }

#define ROPE_ENTRY                                                                                                    \
    extern "C" __global__ void __launch_bounds__(ROPE_THREADS) rope_kernel(const __grid_constant__ RopeParams p) {    \
        rope_thread(p, blockIdx.x, threadIdx.x);                                                                      \
    }
