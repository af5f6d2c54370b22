// cos and sin of a position's angle, for kernels that read no table and for the one that makes the tables: one function,
// so that both give the same bits. src/rope/scaling/angle.rs does the same operations. Only additions and
// multiplications of doubles: no slow path for large angles, no local memory, the same bits on every machine.

#if ROPE_TABLELESS

// By Taylor's series on [-pi/4, pi/4], after taking off multiples of pi/2 in four parts: three of 21 bits, whose products
// with the multiple are exact, and the rest.
ROPE_INLINE void sin_cos(double x, double& s, double& c) {
    const double shift = 6755399441055744.0;  // 1.5 * 2^52: adding it rounds to a whole number
    const double shifted = add(mul(x, 0.6366197723675814), shift);
    const double n = sub(shifted, shift);
    double r = sub(x, mul(n, 1.570796012878418));
    r = sub(r, mul(n, 3.139164164167596e-07));
    r = sub(r, mul(n, 6.223369259164557e-14));
    r = sub(r, mul(n, 2.912732056093356e-20));
    const double z = mul(r, r);
    double p = -1.0 / 1307674368000.0;
    p = add(mul(p, z), 1.0 / 6227020800.0);
    p = add(mul(p, z), -1.0 / 39916800.0);
    p = add(mul(p, z), 1.0 / 362880.0);
    p = add(mul(p, z), -1.0 / 5040.0);
    p = add(mul(p, z), 1.0 / 120.0);
    p = add(mul(p, z), -1.0 / 6.0);
    const double sine = add(r, mul(mul(r, z), p));
    double q = 1.0 / 20922789888000.0;
    q = add(mul(q, z), -1.0 / 87178291200.0);
    q = add(mul(q, z), 1.0 / 479001600.0);
    q = add(mul(q, z), -1.0 / 3628800.0);
    q = add(mul(q, z), 1.0 / 40320.0);
    q = add(mul(q, z), -1.0 / 720.0);
    q = add(mul(q, z), 1.0 / 24.0);
    q = add(mul(q, z), -0.5);
    const double cosine = add(1.0, mul(q, z));
    const u64 quarter = double_bits(shifted);
    s = (quarter & 1) ? cosine : sine;
    c = (quarter & 1) ? sine : cosine;
    if (quarter & 2) s = -s;
    if ((quarter + 1) & 2) c = -c;
}

// In f32 the angle is the f32 product, as transformers has it; accurate, everything is a double until one rounding.
ROPE_INLINE void angle(i64 position, float inv_freq, float factor, bool accurate, float& c, float& s) {
    double sine, cosine;
    sin_cos(accurate ? mul((double)position, (double)inv_freq) : (double)mul((float)position, inv_freq), sine, cosine);
    c = accurate ? (float)mul(cosine, (double)factor) : mul((float)cosine, factor);
    s = accurate ? (float)mul(sine, (double)factor) : mul((float)sine, factor);
}

#endif
