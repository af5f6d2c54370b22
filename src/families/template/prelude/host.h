// The processor's side: CUDA's words for C++14. Blocks run one after another on each core. Where no thread of a block waits
// for another, its threads do as well; else they are fibers (fibers.h). Contraction of a product and a sum is switched off on
// the command line.

#include <math.h>
#include <stddef.h>
#include <stdint.h>

#define ROPEJIT_INLINE static inline
#define ROPEJIT_METHOD inline
#define ROPEJIT_HOST 1

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(n) __attribute__((aligned(n)))
#define __constant__ static const
#define __shared__ static thread_local

struct uint3 { unsigned int x, y, z; };
struct dim3 { unsigned int x, y, z; };
struct alignas(8) int2 { int x, y; };
struct alignas(16) int4 { int x, y, z, w; };
struct alignas(8) uint2 { unsigned int x, y; };
struct alignas(16) uint4 { unsigned int x, y, z, w; };
struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
static inline int2 make_int2(int x, int y) { return int2{x, y}; }
static inline int4 make_int4(int x, int y, int z, int w) { return int4{x, y, z, w}; }
static inline uint2 make_uint2(unsigned x, unsigned y) { return uint2{x, y}; }
static inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return uint4{x, y, z, w}; }
static inline float2 make_float2(float x, float y) { return float2{x, y}; }
static inline float4 make_float4(float x, float y, float z, float w) { return float4{x, y, z, w}; }

// Which thread runs here.
static thread_local struct {
    uint3 thread, block;
    dim3 threads, blocks;
} ropejit_here;
#define threadIdx ropejit_here.thread
#define blockIdx ropejit_here.block
#define blockDim ropejit_here.threads
#define gridDim ropejit_here.blocks
static const int warpSize = 32;

ROPEJIT_INLINE float ropejit_bits_f32(unsigned int bits) {
    float x;
    __builtin_memcpy(&x, &bits, 4);
    return x;
}
ROPEJIT_INLINE unsigned int ropejit_f32_bits(float x) {
    unsigned int bits;
    __builtin_memcpy(&bits, &x, 4);
    return bits;
}
static inline unsigned int __float_as_uint(float x) { return ropejit_f32_bits(x); }
static inline int __float_as_int(float x) { return (int)ropejit_f32_bits(x); }
static inline float __uint_as_float(unsigned int x) { return ropejit_bits_f32(x); }
static inline float __int_as_float(int x) { return ropejit_bits_f32((unsigned int)x); }

static inline float __fadd_rn(float a, float b) { return a + b; }
static inline float __fsub_rn(float a, float b) { return a - b; }
static inline float __fmul_rn(float a, float b) { return a * b; }
static inline float __fdiv_rn(float a, float b) { return a / b; }
static inline float __frcp_rn(float a) { return 1.0f / a; }
static inline float __fsqrt_rn(float a) { return sqrtf(a); }
static inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
static inline float __fdividef(float a, float b) { return a / b; }
static inline float rsqrtf(float a) { return 1.0f / sqrtf(a); }
static inline double rsqrt(double a) { return 1.0 / sqrt(a); }
// The C library has functions of these names, which it does not show.
#define __expf expf
#define __logf logf
#define __log2f log2f
#define __exp10f(a) powf(10.0f, a)
#define __powf powf
#define __sinf sinf
#define __cosf cosf
#define __tanf tanf
static inline float __saturatef(float a) { return a > 0.0f ? (a < 1.0f ? a : 1.0f) : 0.0f; }

template <typename T> static inline T min(T a, T b) { return b < a ? b : a; }
template <typename T> static inline T max(T a, T b) { return a < b ? b : a; }
static inline float min(float a, float b) { return fminf(a, b); }
static inline float max(float a, float b) { return fmaxf(a, b); }
static inline unsigned int __umulhi(unsigned int a, unsigned int b) { return (unsigned)((unsigned long long)a * b >> 32); }
static inline int __clz(unsigned int x) { return x ? __builtin_clz(x) : 32; }
static inline int __popc(unsigned int x) { return __builtin_popcount(x); }
static inline int __ffs(int x) { return __builtin_ffs(x); }

// Hints to caches mean nothing here.
template <typename T> static inline T __ldg(const T* at) { return *at; }
template <typename T> static inline T __ldcs(const T* at) { return *at; }
template <typename T> static inline T __ldcg(const T* at) { return *at; }
template <typename T> static inline T __ldca(const T* at) { return *at; }
template <typename T> static inline void __stcs(T* at, T x) { *at = x; }
template <typename T> static inline void __stcg(T* at, T x) { *at = x; }
template <typename T> static inline void __stwb(T* at, T x) { *at = x; }
static inline void __threadfence() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
static inline void __threadfence_block() {}

ROPEJIT_INLINE float f16_to_f32(unsigned short word) {
    unsigned int sign = (unsigned int)(word & 0x8000u) << 16, magnitude = word & 0x7fffu;
    if (magnitude >= 0x7c00u) return ropejit_bits_f32(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);
    if (magnitude >= 0x0400u) return ropejit_bits_f32(sign | ((magnitude << 13) + 0x38000000u));
    // Subnormal: times 2^-24, exact.
    return ropejit_bits_f32(sign | ropejit_f32_bits((float)magnitude * ropejit_bits_f32(0x33800000u)));
}

ROPEJIT_INLINE unsigned short f32_to_f16(float x) {
    unsigned int bits = ropejit_f32_bits(x), magnitude = bits & 0x7fffffffu;
    unsigned short sign = (unsigned short)(bits >> 16 & 0x8000u);
    if (magnitude > 0x7f800000u) return 0x7fffu;
    if (magnitude >= 0x477ff000u) return sign | 0x7c00u;  // from 65520 on it rounds to infinity
    if (magnitude < 0x38800000u) {                        // subnormal: one ulp is 2^-24, which 0.5 + x rounds to
        return sign | (unsigned short)(ropejit_f32_bits(ropejit_bits_f32(magnitude) + 0.5f) - 0x3f000000u);
    }
    unsigned int odd = magnitude >> 13 & 1u;
    return sign | (unsigned short)((magnitude + 0xc8000000u + 0xfffu + odd) >> 13);
}
