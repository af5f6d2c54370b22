"""Transformers of diffusers, patched and not, in one process: bits and times of a forward pass.

    python benches/diffusers_models.py OUT.json

Random weights, bf16, few layers of the real widths: Flux.1 (24 heads of 128, 4096 tokens of an image and 512 of a text) and Wan 2.1 (12 heads of 128,
8 frames of 60 × 104). Times are medians in ms.
"""

import json
import statistics
import sys
import time

import diffusers
import ropejit
import torch


def flux():
    model = diffusers.FluxTransformer2DModel(
        in_channels=64, num_layers=2, num_single_layers=4, attention_head_dim=128, num_attention_heads=24, joint_attention_dim=512,
        pooled_projection_dim=256, axes_dims_rope=(16, 56, 56),
    )  # fmt: skip
    side = torch.arange(64)
    ids = torch.stack([torch.zeros(64, 64), side[:, None].expand(64, 64), side.expand(64, 64)], dim=-1).reshape(-1, 3)
    return model, dict(
        hidden_states=torch.randn(1, 4096, 64), img_ids=ids, txt_ids=torch.zeros(512, 3), pooled_projections=torch.randn(1, 256),
        encoder_hidden_states=torch.randn(1, 512, 512), timestep=torch.tensor([7.0]),
    )  # fmt: skip


def wan():
    model = diffusers.WanTransformer3DModel(
        num_attention_heads=12, attention_head_dim=128, text_dim=512, ffn_dim=8960, num_layers=4,
    )  # fmt: skip
    return model, dict(
        hidden_states=torch.randn(1, 16, 8, 60, 104), encoder_hidden_states=torch.randn(1, 512, 512), timestep=torch.tensor([7.0])
    )


def timed(call):
    times = []
    for _ in range(12):
        torch.cuda.synchronize()
        start = time.perf_counter()
        call()
        torch.cuda.synchronize()
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times[2:])


def measure(make):
    torch.manual_seed(0)
    model, inputs = make()
    model = model.to("cuda", torch.bfloat16).eval()
    ids = ("img_ids", "txt_ids", "timestep")
    inputs = {k: x.cuda() if k in ids else x.to("cuda", torch.bfloat16) for k, x in inputs.items()}
    with torch.no_grad():
        call = lambda: model(**inputs).sample  # noqa: E731
        eager, again, eager_ms = call(), call(), timed(call)
        ropejit.patch("diffusers")
        before = ropejit.stats()
        call()
        ropejit.wait_tuned()
        patched, patched_ms = call(), timed(call)
        served = ropejit.stats().memory_hits - before.memory_hits
        ropejit.unpatch("diffusers")
    return {
        "eager_ms": eager_ms, "patched_ms": patched_ms, "differ": int((eager != patched).sum()), "of": eager.numel(),
        "eager_repeats": bool(torch.equal(eager, again)), "calls_served": served,
    }  # fmt: skip


def main():
    report = {"device": torch.cuda.get_device_name(), "torch": torch.__version__, "diffusers": diffusers.__version__}
    report |= {make.__name__: measure(make) for make in (flux, wan)}
    with open(sys.argv[1], "w") as file:
        json.dump(report, file, indent=1)
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
