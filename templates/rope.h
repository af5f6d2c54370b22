// Rotary position embedding of q and k in one launch.
//
// A unit of work is one access ("piece") of each half of a head, for ROPE_HEADS_PER_THREAD heads of one token. Units run
// through memory as it lies, so that a warp reads whole lines: over (token, head, lane), or (head, token, lane) when
// ROPE_HEAD_MAJOR. Every piece width, every number of heads and every hint computes the same operations on the same
// operands: variants differ in speed, never in a bit.
//
// No barrier, no shuffle, no shared memory: the same text is a host program. With ROPE_PORTABLE it is one kernel for all
// shapes, which are then arguments.

// Turns the thread's pairs of one head.
template <bool PER_OP, typename P> ROPE_INLINE void turn(P& a, P& b, const float (&c)[PAIRS], const float (&s)[PAIRS]) {
    ROPE_EACH_PAIR for (u32 i = 0; i < PAIRS; ++i) {
#if ROPE_INTERLEAVED
        rotate<PER_OP>(a.elements[2 * i], a.elements[2 * i + 1], c[i], s[i]);
#else
        rotate<PER_OP>(a.elements[i], b.elements[i], c[i], s[i]);
#endif
    }
}

ROPE_INLINE void rope_unit(const RopeParams& p, const Angles& angles, const Shape& shape, u32 unit) {
    const u32 turning = shape.rotary_dim / 2 / PAIRS;  // lanes of a head that turn; the others only copy
    const u32 groups = count(shape.groups);
    u32 rest = divide(unit, shape.lanes), lane = unit - rest * count(shape.lanes);
    u32 batch, token, group;
    if (shape.head_major) {
        u32 outer = divide(rest, p.tokens);
        token = rest - outer * p.tokens.divisor;
        batch = divide(outer, shape.groups);
        group = outer - batch * groups;
    } else {
        u32 outer = divide(rest, shape.groups);
        group = rest - outer * groups;
        batch = divide(outer, p.tokens);
        token = outer - batch * p.tokens.divisor;
    }
    batch += p.batch_begin;
    token += p.token_begin;

    const bool turns = shape.rest == 0 || lane < turning;
    // First elements of the thread's pieces in a head. A resting lane moves only the first.
    const u32 at_a = turns ? lane * (ROPE_INTERLEAVED ? VEC : PAIRS) : shape.rotary_dim + (lane - turning) * VEC;
    const u32 at_b = at_a + shape.rotary_dim / 2;
    const bool two = !ROPE_INTERLEAVED && turns;

    const Element* in[HEADS];
    Element* out[HEADS];
    ROPE_UNROLL for (u32 h = 0; h < HEADS; ++h) {
        u32 head = group + h * groups;
        const bool is_k = shape.num_kv_heads != 0 && head >= shape.num_heads;
        if (is_k) head -= shape.num_heads;
        const i64 in_batch = is_k ? p.k.in_stride[0] : p.q.in_stride[0];
        const i64 in_token = is_k ? p.k.in_stride[1] : p.q.in_stride[1];
        const i64 in_head = is_k ? p.k.in_stride[2] : p.q.in_stride[2];
        const i64 out_batch = is_k ? p.k.out_stride[0] : p.q.out_stride[0];
        const i64 out_token = is_k ? p.k.out_stride[1] : p.q.out_stride[1];
        const i64 out_head = is_k ? p.k.out_stride[2] : p.q.out_stride[2];
        in[h] = (const Element*)(is_k ? p.k.in : p.q.in) + batch * in_batch + token * in_token + head * in_head;
        out[h] = (Element*)(is_k ? p.k.out : p.q.out) + batch * out_batch + token * out_token + head * out_head;
        if (shape.prefetch) prefetch(in[h] + at_a);
        if (shape.prefetch && two) prefetch(in[h] + at_b);
    }
    wait_for_previous();

    Piece<Element, VEC, ROPE_WORD> a[HEADS], b[HEADS];
    ROPE_UNROLL for (u32 h = 0; h < HEADS; ++h) {
        load(a[h], in[h] + at_a);
        if (two) load(b[h], in[h] + at_b);
    }
    Token at = {batch, token, 0};
    // A token of no packed sequence stays as it is: copied out of place, not written in place.
    const bool stays = is_packed(shape) && !find_sequence(p, shape, at);
    float c[PAIRS], s[PAIRS];
    if (turns && !stays) load_angles(p, angles, shape, at, lane, c, s);
    ROPE_UNROLL for (u32 h = 0; h < HEADS; ++h) {
        if (stays && in[h] == out[h]) continue;
        if (turns && !stays && shape.per_op) turn<true>(a[h], b[h], c, s);
        if (turns && !stays && !shape.per_op) turn<false>(a[h], b[h], c, s);
        store(out[h] + at_a, a[h]);
        if (two) store(out[h] + at_b, b[h]);
    }
}

ROPE_INLINE void rope_thread(const RopeParams& p, const Angles& angles, const Shape& shape, u32 block, u32 thread) {
    u32 unit = block * shape.threads + thread;
    if (unit < p.units) rope_unit(p, angles, shape, unit);
}

ROPE_ENTRY
