//! Tuning of specs with a norm, a cache or pairs that move: every candidate runs on scratch data and gives the same bits.

use ropejit::engine::ChoiceMeta;
use ropejit::rope::{Append, Flavour, Fp8, Norm, RotaryPart, Rsqrt, ScaleUse, SlotForm, SumOrder};
use ropejit::store::Kind;
use ropejit::{DType, Direction, Engine, PairStyle, PositionForm, RopeSpec, Rounding, Tuning};

/// A spec of each form, with the reciprocal root of a device.
pub fn specs(root: Rsqrt) -> Vec<RopeSpec> {
    let plain = || RopeSpec::new(DType::BF16, 64, 4, 2);
    let norm = |flavour| Norm::new(flavour).with_rsqrt(root);
    let mut specs = vec![
        plain().with_norm(norm(Flavour::WeightAfter)).with_rounding(Rounding::PerOp),
        plain().with_norm(norm(Flavour::OnePlusWeight).with_order(SumOrder::Tree)).with_positions(PositionForm::Ids64),
        plain().with_norm(Norm { after_rope: true, ..norm(Flavour::NoWeight) }),
    ];
    for flavour in [Flavour::WeightAfter, Flavour::NoWeight] {
        let mut back = plain().with_norm(norm(flavour)).with_rounding(Rounding::PerOp);
        back.direction = Direction::Backward;
        specs.push(back);
    }
    let fp8 = |scale, per_head| Some(Fp8 { scale, per_head });
    let divided = Append { cache: fp8(ScaleUse::Divide, false), q: fp8(ScaleUse::Divide, true), ..Append::new(64) };
    let pages = Append { slots: SlotForm::Pages, cache: fp8(ScaleUse::Multiply, true), ..Append::new(32) };
    specs.push(plain().with_append(Append::new(64)));
    specs.push(plain().with_append(divided));
    specs.push(plain().with_norm(norm(Flavour::WeightF32)).with_append(pages));
    // MLA: q has a part that rests in front of one that turns, and one k_pe serves all heads.
    let mut mla = RopeSpec::new(DType::F16, 96, 4, 1).with_append(Append::new(128));
    (mla.rotary_dim, mla.k_head_dim, mla.part, mla.style) = (32, Some(32), RotaryPart::Last, PairStyle::Deinterleave);
    specs.push(mla);
    let mut moved = RopeSpec::new(DType::F32, 64, 4, 0);
    (moved.style, moved.direction) = (PairStyle::Deinterleave, Direction::Backward);
    specs.push(moved);
    let mut last = plain();
    (last.rotary_dim, last.part) = (32, RotaryPart::Last);
    specs.push(last.with_positions(PositionForm::CuSeqlens));
    specs
}

/// Tunes all of them, for one token and for some, and reads what was measured.
pub fn tunes(engine: &Engine, root: Rsqrt) {
    let specs = specs(root);
    let tokens = [1, 300];
    for head_major in [false, true] {
        let done = engine.prewarm(&specs, &tokens, head_major, true).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(done.len(), specs.len() * tokens.len(), "one class a call: nothing is copied by a class of its own");
        for done in &done {
            assert!(done.tuned && !done.class.copy_rest, "{} {}: {:?}", done.spec, done.class, done.origin);
        }
    }
    let records = engine.store().list(Kind::Choice).expect("listed");
    assert_eq!(records.len(), 2 * specs.len() * tokens.len());
    for listed in records {
        let meta: ChoiceMeta = serde_json::from_slice(&listed.entry.expect("sound").meta).expect("readable");
        let record = &meta.record;
        assert!(record.tuned && record.copy_ns.is_some() && record.bytes > 0, "{}", meta.spec);
        assert!(record.candidates.len() > 1, "{} has nothing to choose from", meta.spec);
        for c in &record.candidates {
            assert_eq!(c.bit_equal, Some(true), "{} for {} {}: {:?}", c.config, meta.spec, meta.class, c.dropped);
            assert!(!c.samples_ns.is_empty(), "{} was not measured", c.config);
        }
    }
}

#[test]
fn fused_specs_are_tuned_on_the_host() {
    tunes(&crate::host::engine(Tuning::BLOCKING), Rsqrt::Ieee);
}
