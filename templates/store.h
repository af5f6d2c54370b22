// Where a head is stored: in a cache or in a tensor, as it is or as fp8.

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
