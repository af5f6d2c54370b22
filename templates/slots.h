// How the threads of a head share it, and what they hold of it.
//
// A slot is two pieces of a head, so VEC pairs: a piece of each half, or neighbours where pairs are interleaved. LANES threads
// share the slots of a head; a thread that has one whole (LANES is 1, as on the host) meets nobody.

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
#if ROPE_CONTRACTED
        slot.x[i] = narrow_two(contracted_first(low(x), low(y), angle.c[j], s), contracted_first(high(x), high(y), angle.c[k], t));
        slot.y[i] = narrow_two(contracted_second(low(x), low(y), angle.c[j], s), contracted_second(high(x), high(y), angle.c[k], t));
#else
        slot.x[i] = narrow_two(sub(mul(low(x), angle.c[j]), mul(low(y), s)), sub(mul(high(x), angle.c[k]), mul(high(y), t)));
        slot.y[i] = narrow_two(add(mul(low(y), angle.c[j]), mul(low(x), s)), add(mul(high(y), angle.c[k]), mul(high(x), t)));
#endif
#endif
    }
}

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
