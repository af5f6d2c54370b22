//! An attention layer as Llama's, in candle: forward and backward with ropejit's rotation, the same with a plain
//! formula, and times.
//!
//! `cargo run --release -p ropejit-candle --example attention`, on a GPU with `--features cuda`.

use std::time::{Duration, Instant};

use candle_core::{D, DType, Device, Result, Tensor, Var};
use ropejit_candle::{engine, qk_norm_rope, rope};

/// What rotates q and k.
type Turn<'a> = &'a dyn Fn(&Tensor, &Tensor) -> Result<(Tensor, Tensor)>;

struct Layer {
    wq: Var,
    wk: Var,
    wv: Var,
    heads: [usize; 2],
    head_dim: usize,
}

impl Layer {
    /// A step of attention over `x`, `[batch, tokens, width]`.
    /// `turn` rotates q and k, `[batch, heads, tokens, head_dim]`.
    fn forward(&self, x: &Tensor, turn: Turn<'_>) -> Result<Tensor> {
        let (batch, tokens, _) = x.dims3()?;
        let [heads, kv_heads] = self.heads;
        let project = |w: &Var, heads: usize| {
            x.broadcast_matmul(w)?.reshape((batch, tokens, heads, self.head_dim))?.transpose(1, 2)
        };
        let (q, k) = turn(&project(&self.wq, heads)?, &project(&self.wk, kv_heads)?)?;
        let shared = |x: Tensor| {
            let x = x.unsqueeze(2)?.broadcast_as((batch, kv_heads, heads / kv_heads, tokens, self.head_dim))?;
            x.reshape((batch, heads, tokens, self.head_dim))
        };
        let (k, v) = (shared(k)?, shared(project(&self.wv, kv_heads)?.contiguous()?)?);
        let scores = (q.contiguous()?.matmul(&k.t()?)? * (self.head_dim as f64).powf(-0.5))?;
        candle_nn::ops::softmax(&scores, D::Minus1)?.matmul(&v)
    }
}

/// The rotation in operations of candle's.
fn formula(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    let half = cos.dim(D::Minus1)?;
    let (a, b) = (x.narrow(D::Minus1, 0, half)?, x.narrow(D::Minus1, half, half)?);
    let y = (a.broadcast_mul(cos)? - b.broadcast_mul(sin)?)?;
    Tensor::cat(&[y, (b.broadcast_mul(cos)? + a.broadcast_mul(sin)?)?], D::Minus1)
}

fn timed<T>(device: &Device, mut f: impl FnMut() -> Result<T>) -> Result<(Duration, Duration)> {
    device.synchronize()?;
    let started = Instant::now();
    f()?;
    device.synchronize()?;
    let first = started.elapsed();
    let (started, calls) = (Instant::now(), if device.is_cpu() { 20 } else { 500 });
    for _ in 0..calls {
        f()?;
    }
    device.synchronize()?;
    Ok((first, started.elapsed() / calls))
}

fn main() -> Result<()> {
    let device = Device::cuda_if_available(0)?;
    let (batch, tokens, heads, kv_heads, head_dim) =
        if device.is_cpu() { (1, 64, 8, 2, 64) } else { (2, 1024, 32, 8, 128) };
    let width = heads * head_dim;
    let opened = Instant::now();
    println!("{}, engine opened in {:.1} ms", engine(&device)?.facts().name, opened.elapsed().as_secs_f64() * 1e3);

    let positions = Tensor::arange(0u32, tokens as u32, &device)?.to_dtype(DType::F32)?.reshape((tokens, 1))?;
    let powers = (0..head_dim / 2).map(|i| 500_000f32.powf(-2.0 * i as f32 / head_dim as f32)).collect::<Vec<_>>();
    let angles = positions.broadcast_mul(&Tensor::new(powers, &device)?)?;
    let (cos, sin) = (angles.cos()?, angles.sin()?);
    let weight = |heads: usize| Var::randn(0f32, 0.02, (width, heads * head_dim), &device);
    let (wq, wk, wv) = (weight(heads)?, weight(kv_heads)?, weight(kv_heads)?);
    let layer = Layer { wq, wk, wv, heads: [heads, kv_heads], head_dim };
    let x = Tensor::randn(0f32, 1., (batch, tokens, width), &device)?;
    let target = Tensor::randn(0f32, 1., (batch, heads, tokens, head_dim), &device)?;

    // Forward and backward, with the kernels, with a formula, and with candle's own.
    let step = |turn: Turn<'_>| {
        let y = layer.forward(&x, turn)?;
        let gradients = (&y * &target)?.sum_all()?.backward()?;
        Ok::<_, candle_core::Error>((y, gradients))
    };
    let own = |x: &Tensor| candle_nn::rotary_emb::rope(&x.contiguous()?, &cos, &sin);
    let (y, gradients) = step(&|q, k| rope(q, k, &cos, &sin))?;
    let (y_plain, plain) = step(&|q, k| Ok((formula(q, &cos, &sin)?, formula(k, &cos, &sin)?)))?;
    let (_, candles) = step(&|q, k| Ok((own(q)?, own(k)?)))?;
    let apart = |a: &Tensor, b: &Tensor| {
        let most = b.abs()?.max_all()?.to_scalar::<f32>()?;
        Ok::<_, candle_core::Error>((a - b)?.abs()?.max_all()?.to_scalar::<f32>()? / most)
    };
    println!("forward: {:.1e} apart, relative to the largest", apart(&y, &y_plain)?);
    for (name, weight) in [("wq", &layer.wq), ("wk", &layer.wk), ("wv", &layer.wv)] {
        let (Some(got), Some(want)) = (gradients.get(weight), plain.get(weight)) else {
            candle_core::bail!("{name} has no gradient");
        };
        let difference = apart(got, want)?;
        let lost = if candles.get(weight).is_none() { "lost" } else { "there" };
        println!("gradient of {name}: {difference:.1e} apart; with candle's own rope: {lost}");
        if difference.is_nan() || difference > 1e-3 {
            candle_core::bail!("the gradients of {name} do not agree");
        }
    }

    // The rotation alone, as a model has it in bf16.
    for dtype in [DType::F32, DType::BF16] {
        let of = |heads: usize| Tensor::randn(0f32, 1., (batch, heads, tokens, head_dim), &device)?.to_dtype(dtype);
        let (q, k) = (of(heads)?, of(kv_heads)?);
        let (cos, sin) = (cos.to_dtype(dtype)?, sin.to_dtype(dtype)?);
        let weight = Tensor::ones(head_dim, dtype, &device)?;
        let own = |x: &Tensor| candle_nn::rotary_emb::rope(x, &cos, &sin);
        let print = |what: &str, (first, steady): (Duration, Duration)| {
            let (first, steady) = (first.as_secs_f64() * 1e3, steady.as_secs_f64() * 1e6);
            println!("{dtype:?} {what}: first {first:.2} ms, steady {steady:.1} µs");
        };
        print("rope of q and k, ropejit", timed(&device, || rope(&q, &k, &cos, &sin))?);
        print("rope of q and k, candle-nn", timed(&device, || Ok((own(&q)?, own(&k)?)))?);
        let normed = || qk_norm_rope(&q, &k, &weight, &weight, &cos, &sin, 1e-6);
        print("norm and rope, ropejit", timed(&device, normed)?);
        let norm = |x: &Tensor| candle_nn::ops::rms_norm(x, &weight, 1e-6);
        print("norm and rope, candle-nn", timed(&device, || Ok((own(&norm(&q)?)?, own(&norm(&k)?)?)))?);
    }
    // What tuning has found meanwhile serves from here on.
    engine(&device)?.wait_tuned();
    let q = Tensor::randn(0f32, 1., (batch, heads, tokens, head_dim), &device)?.to_dtype(DType::BF16)?;
    let (cos, sin) = (cos.to_dtype(DType::BF16)?, sin.to_dtype(DType::BF16)?);
    let k = q.narrow(1, 0, kv_heads)?.contiguous()?;
    let (_, steady) = timed(&device, || rope(&q, &k, &cos, &sin))?;
    println!("BF16 rope of q and k, tuned: {:.1} µs", steady.as_secs_f64() * 1e6);
    let stats = engine(&device)?.stats();
    println!("compiled {}, tuned {}, shipped kernels taken {}", stats.compiles, stats.tunings, stats.embedded_hits);
    ropejit_candle::check(&device)
}
