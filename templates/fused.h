// RoPE with its neighbours in one launch: a norm of each head before or after it, k and v to a paged cache, fp8, pairs that
// move within a head.
// Variants differ in speed, never in a bit.

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
        if (shape.prefetch && has(lane, dim / 2 / VEC)) {
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

#endif

FUSED_ENTRY
