// RoPE with its neighbours in one launch: a norm of each head before or after it, k and v to a paged cache, fp8, pairs that
// move within a head.
//
// A slot is two pieces of a head, so VEC pairs: a piece of each half, or neighbours where pairs are interleaved. LANES threads
// share the slots of a head; a thread that has one whole (LANES is 1, as on the host) meets nobody. The order in which squares
// are added does not depend on that: variants differ in speed, never in a bit.

constexpr u32 LANES = ROPE_LANES;
constexpr u32 DIM = ROPE_HEAD_DIM, TURNING = ROPE_ROTARY_DIM;
constexpr u32 SLOTS = DIM / 2 / VEC, TURNING_SLOTS = TURNING / 2 / VEC;
constexpr u32 OWN = (SLOTS + LANES - 1) / LANES;  // slots of a thread
constexpr u32 WORDS = (VEC + 1) / 2;              // of two elements, in a piece
constexpr bool EVEN = OWN * LANES == SLOTS;       // no thread is without a slot
constexpr bool WHOLE = TURNING == DIM;
// How pairs lie in what is read and written.
constexpr bool IN_PAIRS = ROPE_IN_PAIRS, OUT_PAIRS = ROPE_OUT_PAIRS;
// In what is normalised.
constexpr bool NORM_PAIRS = (ROPE_AFTER != ROPE_BACKWARD) ? OUT_PAIRS : IN_PAIRS;
constexpr u32 GROUPS = ROPE_THREADS / LANES;  // heads that a block has at a time

// Both elements of VEC pairs.
struct Slot {
    Two x[WORDS], y[WORDS];
};

// Where the pieces of a slot lie in a head.
struct Place {
    u32 a, b;
};

ROPE_INLINE bool turns(u32 slot) { return WHOLE || slot < TURNING_SLOTS; }

template <bool PAIRED> ROPE_INLINE Place place_of(u32 slot, u32 dim) {
    if (!turns(slot)) {
        const u32 at = (ROPE_LAST ? 0 : TURNING) + (slot - TURNING_SLOTS) * 2 * VEC;
        return {at, at + VEC};
    }
    const u32 first = ROPE_LAST ? dim - TURNING : 0;
    return PAIRED ? Place{first + 2 * VEC * slot, first + 2 * VEC * slot + VEC}
                  : Place{first + VEC * slot, first + VEC * slot + TURNING / 2};
}

typedef Piece<Element, VEC, ROPE_WORD> ElementPiece;
typedef unsigned char Byte;
typedef Piece<Byte, VEC, (ROPE_WORD / sizeof(Element) < 1 ? 1 : ROPE_WORD / sizeof(Element))> BytePiece;

template <typename P> ROPE_INLINE Two two_of(const P& piece, u32 word) {
#if ROPE_DTYPE == ROPE_F32
    return {piece.elements[2 * word], VEC == 1 ? 0.0f : piece.elements[(2 * word + 1) % VEC]};
#else
    return VEC == 1 ? pack(piece.elements[0], 0) : Two{piece.pairs[word]};
#endif
}

ROPE_INLINE void set_two(ElementPiece& piece, u32 word, Two x) {
#if ROPE_DTYPE == ROPE_F32
    piece.elements[2 * word] = x.low;
    if (VEC > 1) piece.elements[(2 * word + 1) % VEC] = x.high;
#else
    if (VEC == 1) piece.elements[0] = first(x);
    else piece.pairs[word] = x.bits;
#endif
}

// Pieces to pairs, and back.
template <bool PAIRED> ROPE_INLINE void gather(Slot& slot, const ElementPiece& a, const ElementPiece& b) {
    Two all[2 * WORDS];
    ROPE_UNROLL for (u32 i = 0; i < WORDS; ++i) {
        all[i] = two_of(a, i);
        all[WORDS + i] = two_of(b, i);
    }
    ROPE_UNROLL for (u32 i = 0; i < WORDS; ++i) {
        slot.x[i] = PAIRED && VEC > 1 ? lows(all[2 * i], all[2 * i + 1]) : all[i];
        slot.y[i] = PAIRED && VEC > 1 ? highs(all[2 * i], all[2 * i + 1]) : all[WORDS + i];
    }
}

template <bool PAIRED> ROPE_INLINE void scatter(const Slot& slot, ElementPiece& a, ElementPiece& b) {
    Two all[2 * WORDS];
    ROPE_UNROLL for (u32 i = 0; i < WORDS; ++i) {
        all[PAIRED && VEC > 1 ? 2 * i : i] = PAIRED && VEC > 1 ? lows(slot.x[i], slot.y[i]) : slot.x[i];
        all[PAIRED && VEC > 1 ? 2 * i + 1 : WORDS + i] = PAIRED && VEC > 1 ? highs(slot.x[i], slot.y[i]) : slot.y[i];
    }
    ROPE_UNROLL for (u32 i = 0; i < WORDS; ++i) {
        set_two(a, i, all[i]);
        set_two(b, i, all[WORDS + i]);
    }
}

// A slot's elements of a head. A resting slot's are neighbours, and stay in their order.
template <bool PAIRED> ROPE_INLINE void load_slot(Slot& slot, const Element* head, u32 number, u32 dim) {
    const Place at = place_of<PAIRED>(number, dim);
    ElementPiece a, b;
    load(a, head + at.a);
    load(b, head + at.b);
    if (turns(number)) gather<PAIRED>(slot, a, b);
    else gather<false>(slot, a, b);
}

// Neighbours, in their order: of v, where nothing turns.
ROPE_INLINE void load_resting(Slot& slot, const Element* at) {
    ElementPiece a, b;
    load(a, at);
    load(b, at + VEC);
    gather<false>(slot, a, b);
}

// The number of a thread's n-th slot, and whether a head of so many slots has it.
ROPE_INLINE u32 number_of(u32 lane, u32 n) { return n * LANES + lane; }
ROPE_INLINE bool has(u32 number, u32 slots) { return EVEN && slots == SLOTS ? true : number < slots; }

// cos and sin of a slot's pairs.
struct Angle {
#if ROPE_PER_OP
    Two c[WORDS], s[WORDS];
#else
    float c[VEC], s[VEC];
#endif
};

ROPE_INLINE void load_angle(Angle& angle, const RopeParams& p, const Angles& angles, const Shape& shape, const Token& at,
                            u32 number) {
#if ROPE_PER_OP && !ROPE_TABLE_F32 && !ROPE_TABLELESS && ROPE_ONE_AXIS
    // As they stand in the table.
    const i64 row = table_row(p, shape, at, 0), entry = at.batch * p.table_batch_stride + row * p.table_row_stride + number * VEC;
    const bool outside = shape.positions != ROPE_IMPLICIT && row < 0;
    Piece<TableElement, VEC, ROPE_TABLE_WORD> c, s;
    if (!outside) {
        load_entries(c, (const TableElement*)p.cos_table + entry);
        load_entries(s, (const TableElement*)p.sin_table + entry);
    }
    const float nan = bits_float(0x7fffffffu);
    ROPE_UNROLL for (u32 i = 0; i < WORDS; ++i) {
        angle.c[i] = outside ? narrow_two(nan, nan) : two_of(c, i);
        angle.s[i] = outside ? narrow_two(nan, nan) : two_of(s, i);
        if (shape.backward) angle.s[i] = negated(angle.s[i]);
    }
#else
    float c[VEC], s[VEC];
    load_axes(p, angles, shape, at, number, c, s);
    ROPE_UNROLL for (u32 i = 0; i < VEC; ++i) {
        if (shape.backward) s[i] = -s[i];
    }
    ROPE_UNROLL for (u32 i = 0; i < VEC; ++i) {
#if ROPE_PER_OP
        if (i % 2) continue;
        angle.c[i / 2] = narrow_two(c[i], VEC == 1 ? 0.0f : c[(i + 1) % VEC]);
        angle.s[i / 2] = narrow_two(s[i], VEC == 1 ? 0.0f : s[(i + 1) % VEC]);
#else
        angle.c[i] = c[i];
        angle.s[i] = s[i];
#endif
    }
#endif
}

// a' = a·c − b·s, b' = b·c + a·s; with `BACK` the rotation back.
template <bool BACK> ROPE_INLINE void turn(Slot& slot, const Angle& angle) {
    ROPE_UNROLL for (u32 i = 0; i < WORDS; ++i) {
        const Two x = slot.x[i], y = slot.y[i];
#if ROPE_PER_OP
        const Two xc = mul(x, angle.c[i]), ys = mul(y, angle.s[i]), yc = mul(y, angle.c[i]), xs = mul(x, angle.s[i]);
        slot.x[i] = BACK ? add(xc, ys) : sub(xc, ys);
        slot.y[i] = BACK ? sub(yc, xs) : add(yc, xs);
#else
        const u32 j = 2 * i, k = VEC == 1 ? 0 : 2 * i + 1;
        const float s = BACK ? -angle.s[j] : angle.s[j], t = BACK ? -angle.s[k] : angle.s[k];
        slot.x[i] = narrow_two(sub(mul(low(x), angle.c[j]), mul(low(y), s)), sub(mul(high(x), angle.c[k]), mul(high(y), t)));
        slot.y[i] = narrow_two(add(mul(low(y), angle.c[j]), mul(low(x), s)), add(mul(high(y), angle.c[k]), mul(high(x), t)));
#endif
    }
}

#if ROPE_NORM

// Numbers of a slot in f32.
struct Wide {
    float x[VEC], y[VEC];
};

ROPE_INLINE Wide widened(const Slot& slot) {
    Wide wide;
    ROPE_UNROLL for (u32 i = 0; i < VEC; ++i) {
        wide.x[i] = i % 2 ? high(slot.x[i / 2]) : low(slot.x[i / 2]);
        wide.y[i] = i % 2 ? high(slot.y[i / 2]) : low(slot.y[i / 2]);
    }
    return wide;
}

// What is added up: products a·b of a thread's slots, each rounded before it is added. EXACT: they are numbers of f32, so that
// one fused operation does both.
template <bool EXACT> struct Products {
    const Wide* a;
    const Wide* b;
    ROPE_MEMBER float of(u32 n, bool second, u32 i) const {
        return second ? mul(a[n].y[i], b[n].y[i]) : mul(a[n].x[i], b[n].x[i]);
    }
    ROPE_MEMBER float plus(float sum, u32 n, bool second, u32 i) const {
        if (EXACT) return second ? fused(a[n].y[i], b[n].y[i], sum) : fused(a[n].x[i], b[n].x[i], sum);
        return add(sum, of(n, second, i));
    }
    // Element i of a piece as it lies in memory.
    ROPE_MEMBER float piece(u32 n, u32 i) const {
        return NORM_PAIRS ? of(n, i % 2, i / 2) : i < VEC ? of(n, false, i) : of(n, true, i - VEC);
    }
    ROPE_MEMBER float plus_piece(float sum, u32 n, u32 i) const {
        return NORM_PAIRS ? plus(sum, n, i % 2, i / 2) : i < VEC ? plus(sum, n, false, i) : plus(sum, n, true, i - VEC);
    }
};

ROPE_INLINE constexpr u32 ceil_power(u32 n) { return n <= 1 ? 1 : 2 * ceil_power((n + 1) / 2); }
constexpr bool POWER = (DIM & (DIM - 1)) == 0;
constexpr u32 HALF = NORM_PAIRS ? 2 * VEC : VEC;  // neighbours that a thread has

// Lane i += lane i + n for n = 16, 8, 4, 2, 1, a thread having `COUNT` neighbouring ones of the COUNT · LANES that are left.
template <u32 COUNT> ROPE_INLINE float fold(float (&part)[COUNT]) {
    ROPE_UNROLL for (u32 n = COUNT * LANES / 2; n >= COUNT && n > 0; n /= 2) {
        ROPE_UNROLL for (u32 i = 0; i < COUNT; ++i) part[i] = add(part[i], from_lane(part[i], n / COUNT));
    }
    ROPE_UNROLL for (u32 n = COUNT / 2; n > 0; n /= 2) {
        ROPE_UNROLL for (u32 i = 0; i < n; ++i) part[i] = add(part[i], part[i + n]);
    }
    return part[0];
}

// The same the other way: neighbours first.
template <u32 COUNT> ROPE_INLINE float fold_neighbours(float (&part)[COUNT]) {
    ROPE_UNROLL for (u32 n = 1; n < COUNT; n *= 2) {
        ROPE_UNROLL for (u32 i = 0; i + n < COUNT; i += 2 * n) part[i] = add(part[i], part[i + n]);
    }
    ROPE_UNROLL for (u32 n = 1; n < LANES; n *= 2) part[0] = add(part[0], from_lane(part[0], n));
    return part[0];
}

// Whether the sum can be taken from registers: each thread has one slot, and all that is added before lanes are folded.
constexpr bool FOURS = DIM >= 128 && DIM % 4 == 0;  // four neighbours are a lane of PyTorch's
constexpr bool DIRECT = POWER && WHOLE && LANES > 1 && OWN == 1 && EVEN && VEC >= 2 &&
                        (!FOURS || (HALF % 4 == 0 && DIM <= (NORM_PAIRS ? 128 : 256)));

template <typename P> ROPE_INLINE float sum_direct(const P& products) {
    if (ROPE_TREE) {
        if (NORM_PAIRS) {
            float part[2 * VEC];
            ROPE_UNROLL for (u32 i = 0; i < 2 * VEC; ++i) part[i] = products.piece(0, i);
            return fold_neighbours<2 * VEC>(part);
        }
        float x[VEC], y[VEC];
        ROPE_UNROLL for (u32 i = 0; i < VEC; ++i) {
            x[i] = products.of(0, false, i);
            y[i] = products.of(0, true, i);
        }
        return add(fold_neighbours<VEC>(x), fold_neighbours<VEC>(y));
    }
    if (!FOURS) {
        // Elements i, i + 32 are of one lane; of fewer than 64, the second half meets the first when lanes are folded.
        float part[HALF];
        ROPE_UNROLL for (u32 i = 0; i < HALF; ++i) {
            part[i] = products.piece(0, i);
            if (!NORM_PAIRS) part[i] = products.plus_piece(part[i], 0, VEC + i);
        }
        return fold<HALF>(part);
    }
    float part[HALF < 4 ? 1 : HALF / 4];
    ROPE_UNROLL for (u32 i = 0; i < HALF / 4; ++i) {
        if (NORM_PAIRS || DIM == 128) {
            part[i] = products.piece(0, 4 * i);
            ROPE_UNROLL for (u32 e = 1; e < 4; ++e) part[i] = products.plus_piece(part[i], 0, 4 * i + e);
            if (NORM_PAIRS) continue;
            float other = products.piece(0, VEC + 4 * i);
            ROPE_UNROLL for (u32 e = 1; e < 4; ++e) other = products.plus_piece(other, 0, VEC + 4 * i + e);
            part[i] = add(part[i], other);
        } else {
            // Two runs of 128: each element of the second is added to that of the first.
            float run[4];
            ROPE_UNROLL for (u32 e = 0; e < 4; ++e) {
                run[e] = products.plus_piece(products.piece(0, 4 * i + e), 0, VEC + 4 * i + e);
            }
            part[i] = add(add(add(run[0], run[1]), run[2]), run[3]);
        }
    }
    return fold<(HALF < 4 ? 1 : HALF / 4)>(part);
}

// From all products of a head in memory, in its order: any head_dim.
ROPE_INLINE float sum_all(const float* all, u32 lane) {
    if (ROPE_TREE) {
        constexpr u32 COUNT = ceil_power(DIM) / LANES < 1 ? 1 : ceil_power(DIM) / LANES;
        float part[COUNT];
        ROPE_UNROLL for (u32 i = 0; i < COUNT; ++i) {
            const u32 at = lane * COUNT + i;
            part[i] = at < DIM ? all[at] : 0.0f;
        }
        return fold_neighbours<COUNT>(part);
    }
    constexpr u32 COUNT = 32 / LANES;
    float part[COUNT];
    ROPE_UNROLL for (u32 i = 0; i < COUNT; ++i) {
        const u32 at = lane * COUNT + i;
        if (FOURS) {
            float run[4] = {0.0f, 0.0f, 0.0f, 0.0f};
            for (u32 begin = 4 * at; begin < DIM; begin += 128) {
                ROPE_UNROLL for (u32 e = 0; e < 4; ++e) run[e] = add(run[e], all[begin + e]);
            }
            part[i] = add(add(add(run[0], run[1]), run[2]), run[3]);
        } else {
            part[i] = 0.0f;
            for (u32 e = at; e < DIM; e += 32) part[i] = add(part[i], all[e]);
        }
    }
    return fold<COUNT>(part);
}

// `all` is for the products of one head.
template <typename P> ROPE_INLINE float sum(const P& products, float* all, u32 lane) {
    if (DIRECT) return sum_direct(products);
    ROPE_UNROLL for (u32 n = 0; n < OWN; ++n) {
        const u32 number = number_of(lane, n);
        if (!has(number, SLOTS)) continue;
        const Place at = place_of<NORM_PAIRS>(number, DIM);
        const bool paired = NORM_PAIRS && turns(number);
        ROPE_UNROLL for (u32 i = 0; i < VEC; ++i) {
            all[paired ? at.a + 2 * i : at.a + i] = products.of(n, false, i);
            all[paired ? at.a + 2 * i + 1 : at.b + i] = products.of(n, true, i);
        }
    }
    meet_lanes();
    const float total = sum_all(all, lane);
    meet_lanes();
    return total;
}

// Squares of f16 are numbers of f32, and those of bf16 but for the smallest.
ROPE_INLINE float sum_of_squares(const Wide* x, float* all, u32 lane) {
    constexpr bool EXACT = ROPE_DTYPE != ROPE_F32;
    const float total = sum(Products<EXACT>{x, x}, all, lane);
    if (ROPE_DTYPE != ROPE_BF16 || !DIRECT || !any_lane(total < 7.9e-31f)) return total;  // 2^-100
    return sum(Products<false>{x, x}, all, lane);
}

ROPE_INLINE float reciprocal_root(float squares, float eps) {
    const float v = add(mul(squares, 1.0f / DIM), eps);
#if ROPE_IEEE
    return divided(1.0f, root(v));
#else
    return rsqrt_approx(v);
#endif
}

// The weight of a slot, as it is used.
struct Weight {
#if ROPE_FLAVOUR == ROPE_WEIGHT_AFTER
    Slot as_it_is;
#elif ROPE_FLAVOUR != ROPE_NO_WEIGHT
    Wide wide;
#endif
};

ROPE_INLINE void load_weight(Weight& weight, const Element* all, u32 number) {
#if ROPE_FLAVOUR != ROPE_NO_WEIGHT
    Slot slot;
    load_slot<NORM_PAIRS>(slot, all, number, DIM);
#if ROPE_FLAVOUR == ROPE_WEIGHT_AFTER
    weight.as_it_is = slot;
#else
    weight.wide = widened(slot);
    ROPE_UNROLL for (u32 i = 0; i < VEC; ++i) {
        if (ROPE_FLAVOUR != ROPE_ONE_PLUS_WEIGHT) continue;
        weight.wide.x[i] = add(1.0f, weight.wide.x[i]);
        weight.wide.y[i] = add(1.0f, weight.wide.y[i]);
    }
#endif
#endif
}

ROPE_INLINE Two normalised(Two x, float r) { return narrow_two(mul(low(x), r), mul(high(x), r)); }

// x·r, with the weight.
ROPE_INLINE void normalise(Slot& slot, const Weight& weight, float r) {
    ROPE_UNROLL for (u32 i = 0; i < WORDS; ++i) {
#if ROPE_FLAVOUR == ROPE_WEIGHT_AFTER
        slot.x[i] = mul(weight.as_it_is.x[i], normalised(slot.x[i], r));
        slot.y[i] = mul(weight.as_it_is.y[i], normalised(slot.y[i], r));
#elif ROPE_FLAVOUR == ROPE_NO_WEIGHT
        slot.x[i] = normalised(slot.x[i], r);
        slot.y[i] = normalised(slot.y[i], r);
#else
        const u32 j = 2 * i, k = VEC == 1 ? 0 : 2 * i + 1;
        const Wide& w = weight.wide;
        slot.x[i] = narrow_two(mul(mul(low(slot.x[i]), r), w.x[j]), mul(mul(high(slot.x[i]), r), w.x[k]));
        slot.y[i] = narrow_two(mul(mul(low(slot.y[i]), r), w.y[j]), mul(mul(high(slot.y[i]), r), w.y[k]));
#endif
    }
}

#endif

// The token and group of heads that a unit is of.
struct Unit {
    Token at;
    u32 group, lane;
};

ROPE_INLINE Unit unit_of(const RopeParams& p, const Shape& shape, u32 unit) {
    const u32 groups = count(shape.groups), rest = unit / LANES;
    u32 batch, token, group;
    if (shape.head_major) {
        const u32 outer = divide(rest, p.tokens);
        token = rest - outer * p.tokens.divisor;
        batch = divide(outer, shape.groups);
        group = outer - batch * groups;
    } else {
        const u32 outer = divide(rest, shape.groups);
        group = rest - outer * groups;
        batch = divide(outer, p.tokens);
        token = outer - batch * p.tokens.divisor;
    }
    return {{batch + p.batch_begin, token + p.token_begin, 0}, group, unit % LANES};
}

ROPE_INLINE i64 offset(const i64 (&stride)[3], u32 batch, u32 token, u32 head) {
    return batch * stride[0] + token * stride[1] + head * stride[2];
}

#if ROPE_APPEND

// A place in the cache.
struct CacheSlot {
    bool is;
    u32 block, slot;
};

ROPE_INLINE CacheSlot cache_slot(const RopeParams& p, const FusedParams& f, const Token& at) {
    const u64 token = at.batch * p.tokens_total + at.token;
#if ROPE_PAGES
    const int position = ((const int*)f.slots)[token], request = f.batch_indices[token];
    if (position == -1) return {false, 0, 0};
    if (position >= 0 && (u32)request < f.requests) {
        const u32 page = divide((u32)position, f.block_size);
        const i64 index = (i64)f.kv_indptr[request] + page;
        if (index >= 0 && index < (i64)f.kv_indptr[request + 1] && index < (i64)f.pages) {
            const int block = f.kv_indices[index];
            const u32 slot = (u32)position - page * f.block_size.divisor;
            if (block >= 0 && (u64)block * f.block_size.divisor + slot < f.slot_count) return {true, (u32)block, slot};
        }
    }
#else
    const i64 slot = ((const i64*)f.slots)[token];
    if (slot == -1) return {false, 0, 0};
    if ((u64)slot < f.slot_count) {
        const u32 block = divide((u32)slot, f.block_size);
        return {true, block, (u32)slot - block * f.block_size.divisor};
    }
#endif
    report(p.fault, ROPE_NO_SLOT | (token + 1));
    return {false, 0, 0};
}

#endif

// x / scale, rounded once: by the reciprocal and one step of correction (Markstein, "IA-64 and elementary functions", 2000, 8.3),
// which is right where fp8 sees the quotient. A scale below 2^-60 or above 2^60 is multiplied by `factor`, and so is x; an
// infinite one is taken for zero times infinity.
struct Scale {
    float scale, reciprocal, factor;
};

template <u32 USE> ROPE_INLINE Scale scale_of(const float* scales, u32 at) {
    Scale by = {1.0f, 1.0f, 1.0f};
    if (USE == ROPE_AS_IT_IS) return by;
    by.scale = scales[at];
    if (USE == ROPE_MULTIPLY) return by;
    const float magnitude = absolute(by.scale);
    if (magnitude < 8.7e-19f) by.factor = 1.2676506e30f;   // 2^-60, 2^100
    if (magnitude > 1.15e18f) by.factor = 7.888609e-31f;   // 2^60, 2^-100
    by.scale = mul(by.scale, by.factor);
    by.reciprocal = divided(1.0f, by.scale);
    if (magnitude == bits_float(0x7f800000u)) by.scale = 0.0f;
    return by;
}

// That of a head.
ROPE_INLINE Scale scale_for(const FusedParams& f, bool is_k, bool is_v, u32 head) {
    if (is_k || is_v) return scale_of<ROPE_CACHE_FP8>(is_v ? f.v_scale : f.k_scale, ROPE_CACHE_PER_HEAD ? head : 0);
    return scale_of<ROPE_Q_FP8>(f.q_scale, ROPE_Q_PER_HEAD ? head : 0);
}

// The correction of −0 is +0.
ROPE_INLINE float with_sign_of(float sign, float x) { return bits_float(float_bits(x) | (float_bits(sign) & 0x80000000u)); }

// `plain`: no factor, and quotients that f32 has.
template <u32 USE> ROPE_INLINE float scaled(float x, const Scale& by, bool plain) {
    if (USE == ROPE_MULTIPLY) return mul(x, by.scale);
    if (plain) {
        const float q = mul(x, by.reciprocal);
        return with_sign_of(q, fused(fused(-q, by.scale, x), by.reciprocal, q));
    }
    const float most = 1099511627776.0f;  // fp8 sees no difference above
    x = mul(x, by.factor);
    float q = mul(x, by.reciprocal);
    q = q > most ? most : q < -most ? -most : q;
    return with_sign_of(q, fused(fused(-q, by.scale, x), by.reciprocal, q));
}

ROPE_INLINE bool is_plain(const ElementPiece& a, const ElementPiece& b, const Scale& by) {
    Two largest = two_of(a, 0);
    ROPE_UNROLL for (u32 i = 0; i < WORDS; ++i) {
        largest = larger(largest, two_of(a, i));
        largest = larger(largest, two_of(b, i));
    }
    const float most = float_max(absolute(low(largest)), absolute(high(largest)));
    return by.factor == 1.0f && mul(most, absolute(by.reciprocal)) < 1099511627776.0f;
}

template <u32 USE>
ROPE_INLINE void to_bytes(BytePiece& c, BytePiece& d, const ElementPiece& a, const ElementPiece& b, const Scale& by, bool plain) {
    u32 x[WORDS], y[WORDS];  // two bytes each
    ROPE_UNROLL for (u32 i = 0; i < WORDS; ++i) {
        const Two p = two_of(a, i), q = two_of(b, i);
        x[i] = two_e4m3(scaled<USE>(low(p), by, plain), scaled<USE>(high(p), by, plain));
        y[i] = two_e4m3(scaled<USE>(low(q), by, plain), scaled<USE>(high(q), by, plain));
    }
    if (VEC >= 4) {
        ROPE_UNROLL for (u32 i = 0; i < VEC / 4; ++i) {
            c.pairs[i] = low_halves(x[2 * i], x[(2 * i + 1) % WORDS]);
            d.pairs[i] = low_halves(y[2 * i], y[(2 * i + 1) % WORDS]);
        }
        return;
    }
    ROPE_UNROLL for (u32 i = 0; i < VEC; ++i) {
        c.elements[i] = (Byte)(x[0] >> 8 * i);
        d.elements[i] = (Byte)(y[0] >> 8 * i);
    }
}

// Stores two pieces: as they are, or as fp8.
template <u32 USE> ROPE_INLINE void put_pieces(void* to, i64 at_a, i64 at_b, const ElementPiece& a, const ElementPiece& b,
                                               const Scale& by) {
    if (USE == ROPE_AS_IT_IS) {
        store((Element*)to + at_a, a);
        store((Element*)to + at_b, b);
        return;
    }
    BytePiece c, d;
    if (USE == ROPE_MULTIPLY || is_plain(a, b, by)) to_bytes<USE>(c, d, a, b, by, true);
    else to_bytes<USE>(c, d, a, b, by, false);
    store((Byte*)to + at_a, c);
    store((Byte*)to + at_b, d);
}

// Stores a slot: in pairs or not, or neighbours in their order.
template <u32 USE> ROPE_INLINE void put(void* to, i64 head, const Place& at, const Slot& slot, bool paired, const Scale& by) {
    ElementPiece a, b;
    if (paired) scatter<true>(slot, a, b);
    else scatter<false>(slot, a, b);
    put_pieces<USE>(to, head + at.a, head + at.b, a, b, by);
}

#if ROPE_ASYNC
#define ROPE_STAGES(stages) ROPE_SHARED Stage stages[STAGES];
#else
#define ROPE_STAGES(stages)
#endif

// Where a head's products are added up that are not in registers.
#if !ROPE_NORM
#define ROPE_PRODUCTS(own) float* const own = 0;
#elif ROPE_LANES == 1
#define ROPE_PRODUCTS(own) float own[DIM];
#else
#define ROPE_PRODUCTS(own)                                                                                            \
    ROPE_SHARED float products[DIRECT ? 1 : GROUPS][DIRECT ? 1 : DIM];                                                \
    float* const own = products[DIRECT ? 0 : thread / LANES];
#endif

#if !(ROPE_NORM && ROPE_BACKWARD)

ROPE_INLINE void turn_all(Slot (&slot)[OWN], const Angle (&angle)[OWN], u32 lane, u32 count, bool stays) {
    ROPE_UNROLL for (u32 n = 0; n < OWN; ++n) {
        if (!stays && has(number_of(lane, n), count) && turns(number_of(lane, n))) turn<false>(slot[n], angle[n]);
    }
}

// Forward, for a group of heads of one token; and what has no norm, in both directions. Threads without work (`is` is false)
// do that of others, and write nothing.
ROPE_INLINE void fused_unit(const RopeParams& p, const FusedParams& f, const Angles& angles, const Shape& shape, u32 unit,
                            bool is, float* all) {
    Unit own = unit_of(p, shape, unit);
    Token& at = own.at;
    const u32 groups = count(shape.groups), lane = own.lane;
    const u32 num_heads = shape.num_heads, num_kv_heads = shape.num_kv_heads;

    // Which of q, k and v a head is of, and its number there.
    bool is_k[HEADS], is_v[HEADS];
    u32 head[HEADS];
    const Element* in[HEADS];
    ROPE_UNROLL for (u32 h = 0; h < HEADS; ++h) {
        head[h] = own.group + h * groups;
        is_v[h] = ROPE_APPEND && head[h] >= num_heads + num_kv_heads;
        is_k[h] = num_kv_heads != 0 && !is_v[h] && head[h] >= num_heads;
        if (is_v[h]) head[h] -= num_heads + num_kv_heads;
        if (is_k[h]) head[h] -= num_heads;
        in[h] = is_v[h]   ? (const Element*)f.v + offset(f.v_stride, at.batch, at.token, head[h])
                : is_k[h] ? (const Element*)p.k.in + offset(p.k.in_stride, at.batch, at.token, head[h])
                          : (const Element*)p.q.in + offset(p.q.in_stride, at.batch, at.token, head[h]);
        const u32 dim = is_v[h] ? ROPE_V_DIM : is_k[h] ? ROPE_K_DIM : DIM;
        if (has(lane, dim / 2 / VEC)) {
            prefetch(in[h] + place_of<IN_PAIRS>(lane, dim).a);
            prefetch(in[h] + place_of<IN_PAIRS>(lane, dim).b);
        }
    }
    wait_for_previous();

    Slot slots[HEADS][OWN] = {};
    ROPE_UNROLL for (u32 h = 0; h < HEADS; ++h) {
        const u32 dim = is_v[h] ? ROPE_V_DIM : is_k[h] ? ROPE_K_DIM : DIM;
        ROPE_UNROLL for (u32 n = 0; n < OWN; ++n) {
            const u32 number = number_of(lane, n);
            if (!has(number, dim / 2 / VEC)) continue;
            if (is_v[h]) load_resting(slots[h][n], in[h] + 2 * VEC * number);
            else load_slot<IN_PAIRS>(slots[h][n], in[h], number, dim);
        }
    }
#if ROPE_APPEND
    bool stored = false;
    ROPE_UNROLL for (u32 h = 0; h < HEADS; ++h) stored |= is_k[h] || is_v[h];
    CacheSlot cache = {false, 0, 0};
    if (stored) cache = cache_slot(p, f, at);
    Scale scales[HEADS];
    ROPE_UNROLL for (u32 h = 0; h < HEADS; ++h) {
        if (ROPE_EARLY) scales[h] = scale_for(f, is_k[h], is_v[h], head[h]);
    }
#endif
    // A token of no packed sequence stays as it is: copied out of place, not written in place.
    const bool stays = is_packed(shape) && !find_sequence(p, shape, at);
    Angle angle[OWN];
    ROPE_UNROLL for (u32 n = 0; n < OWN; ++n) {
        const u32 number = number_of(lane, n);
        if (has(number, SLOTS) && turns(number) && !stays) load_angle(angle[n], p, angles, shape, at, number);
    }
    ROPE_UNROLL for (u32 h = 0; h < HEADS; ++h) {
        Slot(&slot)[OWN] = slots[h];
        const u32 dim = is_v[h] ? ROPE_V_DIM : is_k[h] ? ROPE_K_DIM : DIM, count = dim / 2 / VEC;
#if ROPE_NORM
        // Early, weights are there when the sum is; late, they do not stand in line with what comes from memory meanwhile, and
        // more of that is on its way.
        const Element* const weights = (const Element*)(is_k[h] ? f.k_weight : f.q_weight);
        Weight weight[OWN];
        ROPE_UNROLL for (u32 n = 0; n < OWN; ++n) {
            if (ROPE_EARLY && has(number_of(lane, n), count)) load_weight(weight[n], weights, number_of(lane, n));
        }
#endif
        if (ROPE_AFTER || !ROPE_NORM) turn_all(slot, angle, lane, count, stays || is_v[h]);
#if ROPE_NORM
        // All threads of a warp are here, whatever their heads are of.
        Wide wide[OWN];
        ROPE_UNROLL for (u32 n = 0; n < OWN; ++n) wide[n] = widened(slot[n]);
        const float r = reciprocal_root(sum_of_squares(wide, all, lane), f.eps);
        if (!stays && !is_v[h] && is) {
            float* const saved = is_k[h] ? f.k_rsqrt : f.q_rsqrt;
            if (saved && lane == 0) {
                saved[(at.batch * p.tokens_total + at.token) * (is_k[h] ? num_kv_heads : num_heads) + head[h]] = r;
            }
            ROPE_UNROLL for (u32 n = 0; n < OWN; ++n) {
                if (!has(number_of(lane, n), count)) continue;
                if (!ROPE_EARLY) load_weight(weight[n], weights, number_of(lane, n));
                normalise(slot[n], weight[n], r);
            }
        }
        if (!ROPE_AFTER) turn_all(slot, angle, lane, count, stays || is_v[h]);
#endif
        // Pairs that move are written where other threads have read.
        if (IN_PAIRS != OUT_PAIRS) meet_lanes();
        if (!is) continue;
        // Where the head goes.
        void* to = is_k[h] ? p.k.out : p.q.out;
        const bool in_place = to == (is_k[h] ? p.k.in : p.q.in);
        i64 start;
        Scale by = {1.0f, 1.0f, 1.0f};
#if ROPE_APPEND
        const bool appended = is_k[h] || is_v[h];
        if (appended && !cache.is) continue;
        if (appended) {
            to = is_v[h] ? f.v_cache : f.k_cache;
            start = is_v[h] ? offset(f.v_cache_stride, cache.block, cache.slot, head[h])
                            : offset(f.k_cache_stride, cache.block, cache.slot, head[h]);
        } else {
            start = offset(p.q.out_stride, at.batch, at.token, head[h]);
        }
        by = ROPE_EARLY ? scales[h] : scale_for(f, is_k[h], is_v[h], head[h]);
#else
        const bool appended = false;
        start = is_k[h] ? offset(p.k.out_stride, at.batch, at.token, head[h])
                        : offset(p.q.out_stride, at.batch, at.token, head[h]);
#endif
        if (stays && in_place && !appended) continue;
        ROPE_UNROLL for (u32 n = 0; n < OWN; ++n) {
            const u32 number = number_of(lane, n);
            const bool moves = turns(number) && !is_v[h];
            if (!has(number, count) || (!ROPE_NORM && in_place && !appended && !moves)) continue;
            const Place place = is_v[h]  ? Place{2 * VEC * number, 2 * VEC * number + VEC}
                                : stays ? place_of<IN_PAIRS>(number, dim)
                                        : place_of<OUT_PAIRS>(number, dim);
            const bool paired = moves && (stays ? IN_PAIRS : OUT_PAIRS);
            if (ROPE_Q_FP8 == ROPE_CACHE_FP8 || !appended) put<ROPE_Q_FP8>(to, start, place, slot[n], paired, by);
            else put<ROPE_CACHE_FP8>(to, start, place, slot[n], paired, by);
        }
        // Where heads of v are longer.
        if (!is_v[h]) continue;
        for (u32 number = number_of(lane, OWN); number < ROPE_V_DIM / 2 / VEC; number += LANES) {
            Slot more;
            load_resting(more, in[h] + 2 * VEC * number);
            put<ROPE_CACHE_FP8>(to, start, Place{2 * VEC * number, 2 * VEC * number + VEC}, more, false, by);
        }
    }
}

ROPE_INLINE void fused_thread(const RopeParams& p, const FusedParams& f, const Angles& angles, const Shape& shape, u32 block,
                              u32 thread) {
    ROPE_PRODUCTS(own)
    const u32 unit = block * ROPE_THREADS + thread;
    const bool is = unit < p.units;
#if ROPE_LANES == 1
    if (is) fused_unit(p, f, angles, shape, unit, true, own);
#else
    if (p.units) fused_unit(p, f, angles, shape, is ? unit : p.units - LANES + unit % LANES, is, own);
#endif
}

#else

// The gradient. Heads are rows, numbered as (token, head). A group of threads works off a tile of 32 rows in sequence, so that
// the gradient of the weight is added up in registers. Then tiles are added up as a balanced tree, neighbours first: those of
// a block by the block, what is left, a node a block, by a second launch.

constexpr bool WEIGHTED = ROPE_FLAVOUR != ROPE_NO_WEIGHT;
constexpr u32 TILE = 32;

// Rows come through shared memory, where a few are on their way while one is worked off; a thread reads only what it has asked
// for itself. Not where a thread has a head whole, or accesses are narrow.
#if ROPE_ASYNC && ROPE_LANES > 1 && ROPE_WORD == 16
constexpr bool STAGED = VEC * sizeof(Element) == 16;
#else
constexpr bool STAGED = false;
#endif
constexpr u32 STAGES = STAGED ? 2 : 1;
struct alignas(16) Sixteen {
    u32 words[4];
};
typedef Sixteen Stage[STAGED ? 4 * OWN : 1][STAGED ? ROPE_THREADS : 1];

// Of q or of k: what is read and written, and how far apart.
struct Side {
    const Element *gradient, *x;
    Element* out;
    const float* r;
    i64 gradient_stride[3], x_stride[3], out_stride[3];
    u32 heads;
};

ROPE_INLINE Side side_of(const RopeParams& p, const FusedParams& f, const Shape& shape, bool is_k) {
    Side side;
    const RopeTensor& t = is_k ? p.k : p.q;
    side.gradient = (const Element*)t.in;
    side.out = (Element*)t.out;
    side.x = (const Element*)(is_k ? f.k_x : f.q_x);
    side.r = is_k ? f.k_rsqrt : f.q_rsqrt;
    side.heads = is_k ? shape.num_kv_heads : shape.num_heads;
    ROPE_UNROLL for (u32 i = 0; i < 3; ++i) {
        side.gradient_stride[i] = t.in_stride[i];
        side.out_stride[i] = t.out_stride[i];
        side.x_stride[i] = is_k ? f.k_x_stride[i] : f.q_x_stride[i];
    }
    return side;
}

// A row: its token and head.
struct At {
    u32 batch, token, head;
};

ROPE_INLINE At row_at(const RopeParams& p, u32 number, u32 heads) {
    const u32 of_token = number / heads, batch = divide(of_token, p.tokens);
    return {batch, of_token - batch * p.tokens.divisor, number - of_token * heads};
}

// The next row; whether it is of another token.
ROPE_INLINE bool advance(At& at, const RopeParams& p, u32 heads) {
    if (++at.head < heads) return false;
    at.head = 0;
    if (++at.token == p.tokens.divisor) {
        at.token = 0;
        ++at.batch;
    }
    return true;
}

// Asks for a row.
ROPE_INLINE void ask(Stage& stage, const Element* gradient, const Element* x, u32 lane, u32 thread) {
#if ROPE_ASYNC
    ROPE_UNROLL for (u32 n = 0; n < OWN; ++n) {
        const u32 slot = number_of(lane, n);
        if (!STAGED || !has(slot, SLOTS)) continue;
        const Place in = place_of<IN_PAIRS>(slot, DIM), out = place_of<OUT_PAIRS>(slot, DIM);
        copy_async(&stage[4 * n][thread], gradient + in.a);
        copy_async(&stage[4 * n + 1][thread], gradient + in.b);
        copy_async(&stage[4 * n + 2][thread], x + out.a);
        copy_async(&stage[4 * n + 3][thread], x + out.b);
    }
#endif
}

// A slot of a row that has come.
template <bool PAIRED> ROPE_INLINE void take(Slot& slot, const Stage& stage, u32 n, u32 number, u32 thread) {
    const Sixteen a = stage[n][thread], b = stage[n + 1][thread];
    ElementPiece c, d;
    ROPE_UNROLL for (u32 i = 0; i < VEC * sizeof(Element) / 4; ++i) {
        c.pairs[i] = a.words[i];
        d.pairs[i] = b.words[i];
    }
    if (turns(number)) gather<PAIRED>(slot, c, d);
    else gather<false>(slot, c, d);
}

// The rotation back, not rounded.
#if !ROPE_PER_OP
ROPE_INLINE Wide turned(const Slot& slot, const Angle& angle) {
    Wide wide = widened(slot);
    ROPE_UNROLL for (u32 i = 0; i < VEC; ++i) {
        const float x = wide.x[i], y = wide.y[i];
        wide.x[i] = sub(mul(x, angle.c[i]), mul(y, angle.s[i]));
        wide.y[i] = add(mul(y, angle.c[i]), mul(x, angle.s[i]));
    }
    return wide;
}
#endif

ROPE_INLINE void row_back(const Slot (&gradient)[OWN], const Slot (&own_x)[OWN], float r, Element* out, bool in_place,
                          const Angle (&angle)[OWN], bool stays, bool is, const Weight (&weight)[OWN], Wide (&sums)[OWN],
                          u32 lane, float* all) {
    const Scale by = {1.0f, 1.0f, 1.0f};
    const bool counts = is && !stays;
    // Of what was normalised: x, or what x was turned to.
    Wide x[OWN], inner[OWN];
    ROPE_UNROLL for (u32 n = 0; n < OWN; ++n) {
        const u32 number = number_of(lane, n);
        Slot normed = own_x[n], outer = gradient[n];
        if (ROPE_AFTER && turns(number)) turn<true>(normed, angle[n]);
        x[n] = widened(normed);
#if ROPE_PER_OP
        if (!ROPE_AFTER && turns(number)) turn<false>(outer, angle[n]);
        const Wide dm = widened(outer);
#else
        const Wide dm = !ROPE_AFTER && turns(number) ? turned(outer, angle[n]) : widened(outer);
#endif
        // With the weight, and what is added to its gradient.
#if ROPE_FLAVOUR == ROPE_WEIGHT_AFTER && ROPE_PER_OP
        Slot scaled_by, term;
        ROPE_UNROLL for (u32 i = 0; i < WORDS; ++i) {
            scaled_by.x[i] = mul(outer.x[i], weight[n].as_it_is.x[i]);
            scaled_by.y[i] = mul(outer.y[i], weight[n].as_it_is.y[i]);
            term.x[i] = mul(outer.x[i], normalised(normed.x[i], r));
            term.y[i] = mul(outer.y[i], normalised(normed.y[i], r));
        }
        inner[n] = widened(scaled_by);
        const Wide terms = widened(term);
#elif ROPE_FLAVOUR == ROPE_WEIGHT_AFTER
        const Wide w = widened(weight[n].as_it_is);
        Wide terms;
        ROPE_UNROLL for (u32 i = 0; i < VEC; ++i) {
            inner[n].x[i] = mul(dm.x[i], w.x[i]);
            inner[n].y[i] = mul(dm.y[i], w.y[i]);
            terms.x[i] = mul(dm.x[i], widen(narrow(mul(x[n].x[i], r))));
            terms.y[i] = mul(dm.y[i], widen(narrow(mul(x[n].y[i], r))));
        }
#elif ROPE_FLAVOUR != ROPE_NO_WEIGHT
        Wide terms;
        ROPE_UNROLL for (u32 i = 0; i < VEC; ++i) {
            inner[n].x[i] = mul(dm.x[i], weight[n].wide.x[i]);
            inner[n].y[i] = mul(dm.y[i], weight[n].wide.y[i]);
            terms.x[i] = mul(dm.x[i], mul(x[n].x[i], r));
            terms.y[i] = mul(dm.y[i], mul(x[n].y[i], r));
        }
#else
        inner[n] = dm;
#endif
#if ROPE_FLAVOUR != ROPE_NO_WEIGHT
        ROPE_UNROLL for (u32 i = 0; i < VEC; ++i) {
            if (counts) sums[n].x[i] = add(sums[n].x[i], terms.x[i]);
            if (counts) sums[n].y[i] = add(sums[n].y[i], terms.y[i]);
        }
#endif
    }
    // Of r: its gradient, then that of the mean, of which each element has a part.
    constexpr bool EXACT = ROPE_FLAVOUR == ROPE_WEIGHT_AFTER && ROPE_PER_OP && ROPE_DTYPE != ROPE_F32;
    // PyTorch's order begins with zero: a sum of nothing but -0 is 0.
    const float products = sum(Products<EXACT>{inner, x}, all, lane), of_r = ROPE_TREE ? products : add(products, 0.0f);
    const float of_mean = mul(mul(mul(-0.5f, of_r), mul(mul(r, r), r)), 1.0f / DIM);
    if (IN_PAIRS != OUT_PAIRS) meet_lanes();
    if (!is) return;
    ROPE_UNROLL for (u32 n = 0; n < OWN; ++n) {
        const u32 number = number_of(lane, n);
        if (!has(number, SLOTS)) continue;
        if (stays) {
            if (!in_place) put<ROPE_AS_IT_IS>(out, 0, place_of<IN_PAIRS>(number, DIM), gradient[n], IN_PAIRS && turns(number), by);
            continue;
        }
        Slot result;
        ROPE_UNROLL for (u32 i = 0; i < WORDS; ++i) {
            const u32 j = 2 * i, k = VEC == 1 ? 0 : 2 * i + 1;
            const Wide &d = inner[n], &v = x[n];
            result.x[i] = narrow_two(add(mul(d.x[j], r), mul(of_mean, 2.0f * v.x[j])), add(mul(d.x[k], r), mul(of_mean, 2.0f * v.x[k])));
            result.y[i] = narrow_two(add(mul(d.y[j], r), mul(of_mean, 2.0f * v.y[j])), add(mul(d.y[k], r), mul(of_mean, 2.0f * v.y[k])));
        }
        if (ROPE_AFTER && turns(number)) turn<false>(result, angle[n]);
        put<ROPE_AS_IT_IS>(out, 0, place_of<OUT_PAIRS>(number, DIM), result, OUT_PAIRS && turns(number), by);
    }
}

ROPE_INLINE void tiles_back(const RopeParams& p, const FusedParams& f, const Angles& angles, const Shape& shape, u32 block,
                            u32 thread, float* products) {
    const u32 tokens = p.sequences * p.tokens.divisor, lane = thread % LANES;
    const u32 q_tiles = (tokens * shape.num_heads + TILE - 1) / TILE, q_blocks = (q_tiles + GROUPS - 1) / GROUPS;
    const bool is_k = block >= q_blocks;
    const Side side = side_of(p, f, shape, is_k);
    const u32 rows = tokens * side.heads, node = is_k ? block - q_blocks : block, tile = node * GROUPS + thread / LANES;

    wait_for_previous();
    Weight weight[OWN];
    Wide sums[OWN];
    ROPE_UNROLL for (u32 n = 0; n < OWN; ++n) {
        ROPE_UNROLL for (u32 i = 0; i < VEC; ++i) sums[n].x[i] = sums[n].y[i] = 0.0f;
        if (has(number_of(lane, n), SLOTS)) {
            load_weight(weight[n], (const Element*)(is_k ? f.k_weight : f.q_weight), number_of(lane, n));
        }
    }
    const u32 begin = tile * TILE, mine_rows = begin < rows ? (rows - begin < TILE ? rows - begin : TILE) : 0;
    At at = row_at(p, mine_rows ? begin : 0, side.heads);
    const Element* gradient = side.gradient + offset(side.gradient_stride, at.batch, at.token, at.head);
    const Element* x = side.x + offset(side.x_stride, at.batch, at.token, at.head);
    Element* out = side.out + offset(side.out_stride, at.batch, at.token, at.head);
    const bool in_place = side.out == side.gradient;
    const float* const roots = side.r + begin;
    At ahead = at;
    ROPE_STAGES(stages)
#if ROPE_ASYNC
    ROPE_UNROLL for (u32 i = 0; i + 1 < STAGES; ++i) {
        if (i < mine_rows) ask(stages[i], gradient, x, lane, thread);
        end_group();
        gradient += side.gradient_stride[2];
        x += side.x_stride[2];
        if (i + 1 < mine_rows && advance(ahead, p, side.heads)) {
            gradient = side.gradient + offset(side.gradient_stride, ahead.batch, ahead.token, 0);
            x = side.x + offset(side.x_stride, ahead.batch, ahead.token, 0);
        }
    }
#endif
    Angle angle[OWN];
    bool stays = false, is_new = true;
    float next_r = mine_rows ? roots[0] : 0.0f;
    for (u32 i = 0; i < TILE; ++i) {
        const bool is = i < mine_rows;
        Slot own_gradient[OWN] = {}, own_x[OWN] = {};
        const float r = next_r;
        if (i + 1 < mine_rows) next_r = roots[i + 1];
#if ROPE_ASYNC
        if (STAGED) {
            wait_for_group<STAGED ? (int)STAGES - 2 : 0>();
            ROPE_UNROLL for (u32 n = 0; n < OWN; ++n) {
                const u32 slot = number_of(lane, n);
                if (!has(slot, SLOTS)) continue;
                take<IN_PAIRS>(own_gradient[n], stages[i % STAGES], 4 * n, slot, thread);
                take<OUT_PAIRS>(own_x[n], stages[i % STAGES], 4 * n + 2, slot, thread);
            }
            if (i + STAGES - 1 < mine_rows) ask(stages[(i + STAGES - 1) % STAGES], gradient, x, lane, thread);
            end_group();
        }
#endif
        ROPE_UNROLL for (u32 n = 0; n < OWN; ++n) {
            const u32 slot = number_of(lane, n);
            if (STAGED || !is || !has(slot, SLOTS)) continue;
            load_slot<IN_PAIRS>(own_gradient[n], gradient, slot, DIM);
            load_slot<OUT_PAIRS>(own_x[n], x, slot, DIM);
        }
        gradient += side.gradient_stride[2];
        x += side.x_stride[2];
        if (i + STAGES < mine_rows && advance(ahead, p, side.heads)) {
            gradient = side.gradient + offset(side.gradient_stride, ahead.batch, ahead.token, 0);
            x = side.x + offset(side.x_stride, ahead.batch, ahead.token, 0);
        }
        // Where the token is the same, so are cos and sin.
        if (is_new && is) {
            Token token = {at.batch, at.token, 0};
            stays = is_packed(shape) && !find_sequence(p, shape, token);
            ROPE_UNROLL for (u32 n = 0; n < OWN; ++n) {
                const u32 slot = number_of(lane, n);
                if (has(slot, SLOTS) && turns(slot) && !stays) load_angle(angle[n], p, angles, shape, token, slot);
            }
        }
        row_back(own_gradient, own_x, r, out, in_place, angle, stays, is, weight, sums, lane, products);
        out += side.out_stride[2];
        is_new = advance(at, p, side.heads);
        if (is_new) out = side.out + offset(side.out_stride, at.batch, at.token, 0);
    }
    if (!WEIGHTED) return;

    float* const nodes = f.nodes + (i64)(is_k ? f.q_nodes : 0) * DIM;
#if ROPE_LANES == 1
    if (begin >= rows) return;
    float* const mine = nodes + (i64)tile * DIM;
#else
    ROPE_SHARED float of_tiles[GROUPS][DIM];
    float* const mine = of_tiles[thread / LANES];
#endif
    ROPE_UNROLL for (u32 n = 0; n < OWN; ++n) {
        const u32 number = number_of(lane, n);
        if (!has(number, SLOTS)) continue;
        const Place at = place_of<NORM_PAIRS>(number, DIM);
        const bool paired = NORM_PAIRS && turns(number);
        ROPE_UNROLL for (u32 i = 0; i < VEC; ++i) {
            mine[paired ? at.a + 2 * i : at.a + i] = sums[n].x[i];
            mine[paired ? at.a + 2 * i + 1 : at.b + i] = sums[n].y[i];
        }
    }
#if ROPE_LANES != 1
    meet();
    for (u32 column = thread; column < DIM; column += ROPE_THREADS) {
        float part[GROUPS];
        ROPE_UNROLL for (u32 i = 0; i < GROUPS; ++i) part[i] = of_tiles[i][column];
        ROPE_UNROLL for (u32 n = 1; n < GROUPS; n *= 2) {
            ROPE_UNROLL for (u32 i = 0; i < GROUPS; i += 2 * n) part[i] = add(part[i], part[i + n]);
        }
        nodes[(i64)node * DIM + column] = part[0];
    }
#endif
}

// Adds up the nodes of a few columns: `PARTS` threads each a run of them, then their sums.
ROPE_INLINE void nodes_back(const FusedParams& f, const Shape& shape, u32 block, u32 thread) {
    constexpr u32 WIDTH = 4, PARTS = ROPE_LANES == 1 ? 1 : ROPE_THREADS / WIDTH, BLOCKS = (DIM + WIDTH - 1) / WIDTH, CHUNK = 16;
    const bool is_k = block >= BLOCKS;
    const u32 column = (is_k ? block - BLOCKS : block) * WIDTH + thread % WIDTH, part = thread / WIDTH;
    const u32 count = is_k ? f.k_nodes : f.q_nodes;
    const float* const nodes = f.nodes + (i64)(is_k ? f.q_nodes : 0) * DIM + column;
    wait_for_previous();
    float total = 0.0f;
    if (part < PARTS && column < DIM) {
        u32 chunks = 1;  // a power of two, so that runs are subtrees
        while (chunks * CHUNK * PARTS < count) chunks *= 2;
        float waiting[32];  // sums of 1, 2, 4, … chunks that wait for their neighbour
        for (u32 chunk = 0; chunk < chunks; ++chunk) {
            float leaf[CHUNK];
            ROPE_UNROLL for (u32 i = 0; i < CHUNK; ++i) {
                const u32 at = (part * chunks + chunk) * CHUNK + i;
                leaf[i] = at < count ? nodes[(i64)at * DIM] : 0.0f;
            }
            ROPE_UNROLL for (u32 n = 1; n < CHUNK; n *= 2) {
                ROPE_UNROLL for (u32 i = 0; i < CHUNK; i += 2 * n) leaf[i] = add(leaf[i], leaf[i + n]);
            }
            total = leaf[0];
            u32 level = 0;
            for (u32 done = chunk; done & 1; done /= 2) total = add(waiting[level++], total);
            waiting[level] = total;
        }
    }
#if ROPE_LANES != 1
    ROPE_SHARED float of_parts[PARTS][WIDTH];
    of_parts[part][thread % WIDTH] = total;
    for (u32 n = 1; n < PARTS; n *= 2) {
        meet();
        if (part % (2 * n) == 0) of_parts[part][thread % WIDTH] = add(of_parts[part][thread % WIDTH], of_parts[part + n][thread % WIDTH]);
    }
    total = of_parts[part][thread % WIDTH];
#endif
    if (part != 0 || column >= DIM || (is_k && shape.num_kv_heads == 0)) return;
    ((Element*)(is_k ? f.k_weight_gradient : f.q_weight_gradient))[column] = narrow(total);
}

ROPE_INLINE void fused_thread(const RopeParams& p, const FusedParams& f, const Angles& angles, const Shape& shape, u32 block,
                              u32 thread) {
    ROPE_PRODUCTS(own)
    if (f.stage) nodes_back(f, shape, block, thread);
    else tiles_back(p, f, angles, shape, block, thread, own);
}

#endif

FUSED_ENTRY
