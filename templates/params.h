// What one launch is told: shared with the host side, which mirrors it field by field (src/families/rope/params.rs).
// Strides count elements. A `Divider` divides numbers below 2^31 by multiplication.

#define ROPE_F32 0
#define ROPE_F16 1
#define ROPE_BF16 2
#define ROPE_IMPLICIT 0
#define ROPE_IDS32 1
#define ROPE_IDS64 2
#define ROPE_OFFSETS32 3
#define ROPE_OFFSETS64 4
#define ROPE_CU_SEQLENS 5
#define ROPE_CU_SEQLENS64 6
#define ROPE_WEIGHT_AFTER 0
#define ROPE_ONE_PLUS_WEIGHT 1
#define ROPE_WEIGHT_F32 2
#define ROPE_NO_WEIGHT 3
#define ROPE_AS_IT_IS 0
#define ROPE_DIVIDE 1
#define ROPE_MULTIPLY 2

typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

// In a fault word: what follows is a token whose slot lies outside of the cache, not one whose position lies outside the table.
constexpr u64 ROPE_NO_SLOT = 1ull << 63;

struct Divider {
    u32 multiplier;
    u32 shift;
    u32 divisor;
    u32 reserved;
};

struct RopeTensor {
    const void* in;
    void* out;
    i64 in_stride[3];   // batch, token, head
    i64 out_stride[3];
};

struct RopeParams {
    RopeTensor q;
    RopeTensor k;
    const void* cos_table;
    const void* sin_table;
    i64 table_batch_stride;
    i64 table_row_stride;
    i64 table_rows;
    const void* position_ids;  // or offsets, one a sequence
    const void* cu_seqlens;    // packed_sequences + 1 of them
    i64 position_axis_stride;
    i64 position_batch_stride;
    i64 position_token_stride;
    i64 position_offset;
    u64* fault;         // receives 1 + index of a token whose position lies outside the table
    u64 tokens_total;   // tokens of a sequence, to number them across the batch
    u32 packed_sequences;
    u32 wide_offsets;   // offsets of packed sequences are i64, not i32
    u32 batch_begin;    // the launch is for `sequences` sequences from here on,
    u32 sequences;
    u32 token_begin;    // and for `tokens.divisor` tokens of each from here on
    u32 units;          // work of the launch: one thread each
    Divider tokens;
};

// Where angles are computed and not read: the frequency of each pair, and the factor on cos and sin.
struct RopeAngles {
    float factor;
    float inv_freq[256];
};

// For kernels that read their tables.
struct NoAngles {};

// What a portable kernel is told of the spec and layout that others are compiled for.
struct RopeShape {
    u32 rotary_dim;
    u32 rest;          // elements of a head that are only copied
    u32 num_heads;
    u32 num_kv_heads;
    u32 positions;     // ROPE_IMPLICIT, …
    u32 mrope;         // 0 none, 1 chunked, 2 interleaved
    u32 mrope_t;       // pairs of each section
    u32 mrope_h;
    u32 mrope_w;
    u32 backward;
    u32 per_op;
    u32 accurate;
    u32 head_major;
    Divider lanes;     // threads that share a head
    Divider groups;    // heads of q and k
    u32 threads;       // of a block
    u32 prefetch;      // inputs are asked for before the wait
};

// What kernels are told beside that hold a head together.
struct FusedParams {
    // A norm.
    const void* q_weight;
    const void* k_weight;
    float* q_rsqrt;  // [batch, tokens, heads]; may be absent forward
    float* k_rsqrt;
    // Its gradient.
    const void* q_x;
    const void* k_x;
    i64 q_x_stride[3];
    i64 k_x_stride[3];
    void* q_weight_gradient;
    void* k_weight_gradient;
    float* nodes;  // partial sums of the weights' gradients: [q_nodes + k_nodes, head_dim]
    // A cache.
    const void* v;
    i64 v_stride[3];
    void* k_cache;
    void* v_cache;
    i64 k_cache_stride[3];  // block, slot, head
    i64 v_cache_stride[3];
    const void* slots;  // slot_mapping, or the positions of tokens in their requests
    const int* kv_indices;
    const int* kv_indptr;
    const int* batch_indices;
    const float* q_scale;
    const float* k_scale;
    const float* v_scale;
    Divider block_size;
    u32 slot_count;
    u32 requests;
    u32 pages;  // numbers of kv_indices
    float eps;
    u32 q_nodes;
    u32 k_nodes;
    u32 stage;  // 0: heads, 1: the sums of their tiles
    u32 reserved;
};

static_assert(sizeof(FusedParams) == 320, "src/families/rope/params.rs mirrors this struct");
static_assert(sizeof(RopeParams) == 272 && sizeof(RopeAngles) == 1028 && sizeof(RopeShape) == 92,
              "src/families/rope/params.rs mirrors these structs");
