"""Draws the README's picture of first calls: docs/first-calls-light.svg and docs/first-calls-dark.svg.

    python3 benches/first_calls.py          # writes both
    python3 benches/first_calls.py --check  # fails if they are not what the results say

From Python: benches/results/python/peers.json (one process with empty caches, the quickest of those with warm ones). From Rust: the
median of benches/results/h200/first-call.json. Nothing is measured here.
"""

import json
import math
import statistics
import sys
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# What the results do not say of themselves.
CONDITIONS = (
    "NVIDIA H200, driver 580.159, bf16, 1×8192 tokens; November 2026. Logarithmic scale.",
    "From Python: torch 2.11, 32/32 heads of 128, after PyTorch has opened the GPU.",
    "From Rust: 32/8 heads of 128, GPU open.",
)
COLOURS = {
    "light": {"text": "#1f2328", "faint": "#59636e", "grid": "#d8dee4", "ours": "#1a7f37", "theirs": "#8c959f"},
    "dark": {"text": "#e6edf3", "faint": "#9198a1", "grid": "#30363d", "ours": "#3fb950", "theirs": "#768390"},
}
# Narrow, so that a narrow page shows it with letters that can be read: names above their bars.
WIDTH, RIGHT = 480, 76
TOP, ROW, BAR, NAME = 80, 56, 14, 17
LEAST, MOST = 0.5, 10_000


def rows():
    """(name, ours, ms with nothing cached, ms with a warm cache)."""
    first = json.loads((ROOT / "benches/results/h200/first-call.json").read_text())
    processes = {name: first[name] for name in ("empty_cache_without_nvrtc", "warm")}
    rust = {name: statistics.median(p["first_result_ms"] for p in all_) for name, all_ in processes.items()}
    yield "ropejit, from Rust", True, *rust.values()
    for name, peer in json.loads((ROOT / "benches/results/python/peers.json").read_text()).items():
        if name != "ropejit, in place":
            warm = min(run["first_ms"] for run in peer["warm"])
            yield name if name != "ropejit" else "ropejit, from Python", name == "ropejit", peer["empty"]["first_ms"], warm


def at(ms):
    share = math.log(ms / LEAST) / math.log(MOST / LEAST)
    return share * (WIDTH - RIGHT)


def said(ms):
    if ms >= 10:
        return f"{ms:,.0f} ms"
    return f"{ms:.2f} ms" if ms < 2 else f"{ms:.1f} ms"


def drawing(theme):
    colour = COLOURS[theme]
    measured = list(rows())
    bottom = TOP + ROW * len(measured)
    height = bottom + 10 + 17 * len(CONDITIONS)
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" role="img" '
        'font-family="-apple-system, Segoe UI, Helvetica, Arial, sans-serif" font-size="13">',
        f"<title>{escape('How long the first call of a process takes: ' + '; '.join(f'{n} {said(c)}, warm {said(w)}' for n, _, c, w in measured))}</title>",
    ]

    def text(x, y, words, fill="text", anchor="start", more=""):
        out.append(f'<text x="{x:.1f}" y="{y}" fill="{colour[fill]}" text-anchor="{anchor}"{more}>{escape(words)}</text>')

    text(0, 18, "First call of a new process", more=' font-size="16" font-weight="600"')
    for x, opacity, words in ((0, 1, "nothing cached"), (160, 0.5, "cache warm")):
        for n, kind in enumerate(("ours", "theirs")):
            out.append(f'<rect x="{x + 14 * n}" y="33" width="11" height="11" fill="{colour[kind]}" opacity="{opacity}"/>')
        text(x + 32, 43, words, "faint")
    for ms in (1, 10, 100, 1000, 10_000):
        x = at(ms)
        out.append(f'<line x1="{x:.1f}" y1="{TOP - 8}" x2="{x:.1f}" y2="{bottom - 6}" stroke="{colour["grid"]}"/>')
        text(x, TOP - 14, f"{ms // 1000} s" if ms >= 1000 else f"{ms} ms", "faint", "middle", ' font-size="11"')
    for n, (name, ours, *times) in enumerate(measured):
        y = TOP + ROW * n
        text(0, y + 11, name, more=' font-weight="600"' if ours else "")
        for ms, top, opacity in zip(times, (y + NAME, y + NAME + BAR + 2), (1, 0.5)):
            fill = colour["ours" if ours else "theirs"]
            out.append(
                f'<rect x="0" y="{top}" width="{at(ms):.1f}" height="{BAR}" fill="{fill}" opacity="{opacity}"/>'
            )
            text(WIDTH, top + 11, said(ms), "text", "end", ' font-size="12"')
    for n, line in enumerate(CONDITIONS):
        text(0, bottom + 14 + 17 * n, line, "faint", more=' font-size="11"')
    out.append("</svg>")
    return "\n".join(out) + "\n"


def main():
    for theme in COLOURS:
        path = ROOT / f"docs/first-calls-{theme}.svg"
        if sys.argv[1:] == ["--check"]:
            if path.read_text() != drawing(theme):
                sys.exit(f"{path}: not what the results say; run python3 benches/first_calls.py")
        else:
            path.write_text(drawing(theme))


main()
