// What every kernel that turns heads shares: element types, the shape, where a token stands, cos and sin of its pairs.

#if ROPE_DTYPE == ROPE_F32
typedef float Element;
ROPE_INLINE float widen(Element x) { return x; }
ROPE_INLINE Element narrow(float x) { return x; }
#elif ROPE_DTYPE == ROPE_F16
typedef u16 Element;
ROPE_INLINE float widen(Element x) { return f16_to_f32(x); }
ROPE_INLINE Element narrow(float x) { return f32_to_f16(x); }
#else
typedef u16 Element;
ROPE_INLINE float widen(Element x) { return bf16_to_f32(x); }
ROPE_INLINE Element narrow(float x) { return f32_to_bf16(x); }
#endif

#if ROPE_TABLE_F32
typedef float TableElement;
ROPE_INLINE float widen_table(TableElement x) { return x; }
#else
typedef Element TableElement;
ROPE_INLINE float widen_table(TableElement x) { return widen(x); }
#endif

#if ROPE_TABLELESS
typedef RopeAngles Angles;
#define ROPE_ANGLES(given) given
#else
typedef NoAngles Angles;
#define ROPE_ANGLES(given) NoAngles()
#endif

constexpr u32 VEC = ROPE_VEC;                              // elements in a piece
constexpr u32 PAIRS = ROPE_INTERLEAVED ? VEC / 2 : VEC;    // pairs that a thread turns at once
constexpr u32 HEADS = ROPE_HEADS_PER_THREAD;

ROPE_INLINE u32 divide(u32 n, const Divider& d) { return (mul_high(n, d.multiplier) + n) >> d.shift; }

ROPE_INLINE u32 divide(u32 n, u32 d) { return n / d; }
ROPE_INLINE u32 count(const Divider& d) { return d.divisor; }
ROPE_INLINE u32 count(u32 d) { return d; }

#if ROPE_PORTABLE && ROPE_KNOWN_HEAD
// The head is known, all of which turns, by implicit positions; how many there are, and in which order, is told at run time.
struct Shape {
    static constexpr u32 rotary_dim = ROPE_ROTARY_DIM, rest = 0, per_op = ROPE_PER_OP, accurate = 0;
    static constexpr u32 positions = ROPE_IMPLICIT, mrope = 0, mrope_t = 0, mrope_h = 0, mrope_w = 0;
    static constexpr u32 lanes = rotary_dim / 2 / PAIRS;
    u32 num_heads, num_kv_heads, backward, head_major, threads, prefetch;
    Divider groups;
    ROPE_MEMBER Shape(const RopeShape& s)
        : num_heads(s.num_heads), num_kv_heads(s.num_kv_heads), backward(s.backward), head_major(s.head_major), threads(s.threads), prefetch(s.prefetch), groups(s.groups) {}
};
#define ROPE_SHAPE(given) Shape(given)
static_assert(Shape::rotary_dim / 2 % PAIRS == 0, "illegal variant");
#elif ROPE_PORTABLE
// Told at run time: one kernel for all shapes.
typedef RopeShape Shape;
#define ROPE_SHAPE(given) given
#else
// Known: the same names, as constants.
struct Shape {
    static constexpr u32 rotary_dim = ROPE_ROTARY_DIM, rest = ROPE_COPY_REST ? ROPE_HEAD_DIM - ROPE_ROTARY_DIM : 0;
    static constexpr u32 num_heads = ROPE_NUM_HEADS, num_kv_heads = ROPE_NUM_KV_HEADS;
    static constexpr u32 positions = ROPE_POSITIONS;
    static constexpr u32 mrope = ROPE_MROPE, mrope_t = ROPE_MROPE_T, mrope_h = ROPE_MROPE_H, mrope_w = ROPE_MROPE_W;
    static constexpr u32 backward = ROPE_BACKWARD, per_op = ROPE_PER_OP, accurate = ROPE_ACCURATE;
    static constexpr u32 head_major = ROPE_HEAD_MAJOR;
    static constexpr u32 threads = ROPE_THREADS, prefetch = ROPE_PREFETCH;
    static constexpr u32 lanes = ROPE_LANES ? ROPE_LANES : rotary_dim / 2 / PAIRS + rest / VEC;
    static constexpr u32 groups = ROPE_ITEMS / HEADS;  // a thread's heads lie so far apart
};
#define ROPE_SHAPE(given) Shape()
static_assert(Shape::rotary_dim / 2 % PAIRS == 0 && Shape::groups * HEADS == ROPE_ITEMS, "illegal variant");
#endif

template <bool PER_OP> ROPE_INLINE float rounded(float x) { return PER_OP ? widen(narrow(x)) : x; }

// cos or sin of the thread's pairs.
ROPE_INLINE void load_table(float (&values)[PAIRS], const TableElement* at) {
    Piece<TableElement, PAIRS, ROPE_TABLE_WORD> entries;
    load_entries(entries, at);
    ROPE_EACH_PAIR for (u32 i = 0; i < PAIRS; ++i) values[i] = widen_table(entries.elements[i]);
}

#if ROPE_CONTRACTED
// x·c − y·s and y·c + x·s, where one of the two products is not rounded.
ROPE_INLINE float contracted_first(float x, float y, float c, float s) { return fused(x, c, -mul(y, s)); }
ROPE_INLINE float contracted_second(float x, float y, float c, float s) { return fused(x, s, mul(y, c)); }
#endif

// a' = a·c − b·s, b' = b·c + a·s
template <bool PER_OP> ROPE_INLINE void rotate(Element& a, Element& b, float c, float s) {
    float x = widen(a), y = widen(b);
#if ROPE_CONTRACTED
    a = narrow(contracted_first(x, y, c, s));
    b = narrow(contracted_second(x, y, c, s));
#else
    a = narrow(sub(rounded<PER_OP>(mul(x, c)), rounded<PER_OP>(mul(y, s))));
    b = narrow(add(rounded<PER_OP>(mul(y, c)), rounded<PER_OP>(mul(x, s))));
#endif
}

// Which token; where sequences are packed, also which of them it is in.
struct Token {
    u32 batch, token, sequence;
};

ROPE_INLINE i64 integer_at(const void* numbers, bool wide, i64 at) {
    return wide ? ((const i64*)numbers)[at] : ((const int*)numbers)[at];
}

ROPE_INLINE bool is_packed(const Shape& shape) {
    return shape.positions == ROPE_CU_SEQLENS || shape.positions == ROPE_CU_SEQLENS64;
}

// Where packed sequence n begins; where the last ends, for as many as there are.
ROPE_INLINE i64 begin_of(const RopeParams& p, const Shape& shape, u32 n) {
    return integer_at(p.cu_seqlens, shape.positions == ROPE_CU_SEQLENS64, n);
}

// Finds the packed sequence that the token is in; false where it is in none: in front of the first, or behind the last.
ROPE_INLINE bool find_sequence(const RopeParams& p, const Shape& shape, Token& at) {
    u32 low = 0, high = p.packed_sequences;
    while (low < high) {
        u32 middle = (low + high) / 2;
        if (begin_of(p, shape, middle + 1) <= (i64)at.token) low = middle + 1;
        else high = middle;
    }
    at.sequence = low;
    return low < p.packed_sequences && begin_of(p, shape, low) <= (i64)at.token;
}

// The position of a token on one axis. Sums wrap around: what leaves 64 bits is as wrong as what leaves the table.
ROPE_INLINE i64 position_of(const RopeParams& p, const Shape& shape, const Token& at, u32 axis) {
    if (shape.positions == ROPE_IMPLICIT) return p.position_offset + at.token;
    if (shape.positions == ROPE_OFFSETS32 || shape.positions == ROPE_OFFSETS64) {
        const bool wide = shape.positions == ROPE_OFFSETS64;
        return (i64)((u64)integer_at(p.position_ids, wide, at.batch) + at.token);
    }
    if (!is_packed(shape)) {
        return integer_at(p.position_ids, shape.positions == ROPE_IDS64,
                          axis * p.position_axis_stride + at.batch * p.position_batch_stride +
                              at.token * p.position_token_stride);
    }
    const i64 offset = p.position_ids ? integer_at(p.position_ids, p.wide_offsets, at.sequence) : 0;
    return (i64)((u64)offset + at.token - (u64)begin_of(p, shape, at.sequence));
}

// The row of the table for a token on one axis, or −1 when its position lies outside.
ROPE_INLINE i64 table_row(const RopeParams& p, const Shape& shape, const Token& at, u32 axis) {
    i64 position = position_of(p, shape, at, axis);
    // An implicit position has been checked by the host.
    if (shape.positions == ROPE_IMPLICIT || (u64)position < (u64)p.table_rows) return position;
    report(p.fault, (u64)at.batch * p.tokens_total + at.token + 1);
    return -1;
}

// cos and sin of the thread's pairs in one row, or at the position that would be its number.
ROPE_INLINE void load_row(const RopeParams& p, const Angles& angles, const Shape& shape, u32 batch, i64 row, u32 lane,
                          float (&c)[PAIRS], float (&s)[PAIRS]) {
    // An implicit position has been checked by the host.
    if (shape.positions != ROPE_IMPLICIT && row < 0) {
        ROPE_UNROLL for (u32 i = 0; i < PAIRS; ++i) c[i] = s[i] = bits_float(0x7fffffffu);
        return;
    }
#if ROPE_TABLELESS
    ROPE_EACH_PAIR for (u32 i = 0; i < PAIRS; ++i) {
        angle(row, angles.inv_freq[lane * PAIRS + i], angles.factor, shape.accurate, c[i], s[i]);
    }
#else
    const i64 at = batch * p.table_batch_stride + row * p.table_row_stride + lane * PAIRS;
    load_table(c, (const TableElement*)p.cos_table + at);
    load_table(s, (const TableElement*)p.sin_table + at);
#endif
}

// Which axis a pair follows: chunked, sections one after the other; interleaved, pair c follows h if c mod 3 = 1 and
// c < 3·sections[1], w if c mod 3 = 2 and c < 3·sections[2], else t.
ROPE_INLINE u32 axis_of(const Shape& shape, u32 pair) {
    if (shape.mrope == 2) {
        if (pair % 3 == 1 && pair < 3 * shape.mrope_h) return 1;
        return pair % 3 == 2 && pair < 3 * shape.mrope_w ? 2 : 0;
    }
    return pair < shape.mrope_t ? 0 : pair < shape.mrope_t + shape.mrope_h ? 1 : 2;
}

// cos and sin of the thread's pairs for a token, as they stand in the table.
ROPE_INLINE void load_axes(const RopeParams& p, const Angles& angles, const Shape& shape, const Token& at, u32 lane,
                           float (&c)[PAIRS], float (&s)[PAIRS]) {
    if (ROPE_ONE_AXIS || !shape.mrope) {
        load_row(p, angles, shape, at.batch, table_row(p, shape, at, 0), lane, c, s);
        return;
    }
    // A token is outside as a whole when one of its axes is.
    i64 rows[3];
    ROPE_UNROLL for (u32 axis = 0; axis < 3; ++axis) rows[axis] = table_row(p, shape, at, axis);
    const bool outside = (rows[0] | rows[1] | rows[2]) < 0;
    const u32 first = lane * PAIRS;
    ROPE_UNROLL for (u32 axis = 0; axis < 3; ++axis) {
        bool used = false;
        ROPE_UNROLL for (u32 i = 0; i < PAIRS; ++i) used |= axis_of(shape, first + i) == axis;
        if (!used) continue;
        float ca[PAIRS], sa[PAIRS];
        load_row(p, angles, shape, at.batch, outside ? -1 : rows[axis], lane, ca, sa);
        ROPE_UNROLL for (u32 i = 0; i < PAIRS; ++i) {
            if (axis_of(shape, first + i) == axis) {
                c[i] = ca[i];
                s[i] = sa[i];
            }
        }
    }
}

// And as they are used: rounded where each operation is, and backward for the transpose, that is −s.
ROPE_INLINE void load_angles(const RopeParams& p, const Angles& angles, const Shape& shape, const Token& at, u32 lane,
                             float (&c)[PAIRS], float (&s)[PAIRS]) {
    load_axes(p, angles, shape, at, lane, c, s);
    if (shape.per_op) {
        ROPE_EACH_PAIR for (u32 i = 0; i < PAIRS; ++i) {
            c[i] = rounded<true>(c[i]);
            s[i] = rounded<true>(s[i]);
        }
    }
    if (shape.backward) {
        ROPE_EACH_PAIR for (u32 i = 0; i < PAIRS; ++i) s[i] = -s[i];
    }
}
