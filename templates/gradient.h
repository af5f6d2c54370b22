// The gradient of a norm with RoPE.

#if ROPE_NORM && ROPE_BACKWARD

#if ROPE_ASYNC
#define ROPE_STAGES(stages) ROPE_SHARED Stage stages[STAGES];
#else
#define ROPE_STAGES(stages)
#endif

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
#if ROPE_CONTRACTED
        wide.x[i] = contracted_first(x, y, angle.c[i], angle.s[i]);
        wide.y[i] = contracted_second(x, y, angle.c[i], angle.s[i]);
#else
        wide.x[i] = sub(mul(x, angle.c[i]), mul(y, angle.s[i]));
        wide.y[i] = add(mul(y, angle.c[i]), mul(x, angle.s[i]));
#endif
    }
    return wide;
}
#endif

// The gradient of x: fl(fl(d·r) + fl(of_mean · 2x)).
template <bool TWICE> ROPE_INLINE void through(Slot& to, const Wide& d, const Wide& x, float r, float of_mean) {
    const auto one = [=](float d, float x) { return add(mul(d, r), mul(of_mean, TWICE ? x : 2.0f * x)); };
    ROPE_UNROLL for (u32 i = 0; i < WORDS; ++i) {
        const u32 j = 2 * i, k = VEC == 1 ? 0 : 2 * i + 1;
        to.x[i] = narrow_two(one(d.x[j], x.x[j]), one(d.x[k], x.x[k]));
        to.y[i] = narrow_two(one(d.y[j], x.y[j]), one(d.y[k], x.y[k]));
    }
}

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
    // Twice that, times x, is the same number as that times twice x, but where either leaves f32.
    const float twice = add(of_mean, of_mean);
    const bool usual = r > 0.0f && absolute(twice) < bits_float(0x7f000000u);
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
        if (usual) through<true>(result, inner[n], x[n], r, twice);
        else through<false>(result, inner[n], x[n], r, of_mean);
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
    ROPE_UNROLL_TWO for (u32 i = 0; i < TILE; ++i) {
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
