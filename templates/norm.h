// The norm of a head: the sum of its squares in an order that no variant changes, the root, the weight.

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
