"""The figures of `run.py` as a table and a picture.

    report.py OUT            draws OUT/peers.svg anew from OUT/peers.json
    report.py OUT --check    whether it is what they say
"""

import html
import json
import pathlib
import sys

#: When figures were measured that do not say it of themselves.
MADE = "November 2026"


def _shape(figure):
    batch, tokens, heads, kv_heads, head_dim = figure["shape"]
    return f"{batch}×{tokens}, {heads}/{kv_heads}/{head_dim}"


def _cases(results):
    """(layout, shape) in the order of measuring, and for each who was measured: (µs, share of the copy's speed)."""
    cases = {}
    for name, result in results.items():
        for figure in result["device"]:
            key = (figure["layout"], _shape(figure))
            cases.setdefault(key, {"bytes": figure["bytes"]})[name] = (figure["us"], figure["copy_us"] / figure["us"])
    return cases


def _row(cells):
    return "| " + " | ".join(cells) + " |\n"


def markdown(results):
    there = [name for name, result in results.items() if result["empty"]]
    about = next((r["peer"] for r in results.values() if r.get("peer")), {})
    text = f"{about.get('gpu', 'no GPU')}, torch {about.get('torch', '?')}, bf16. "
    text += ", ".join(f"{n} {results[n]['peer']['version']}" for n in there if results[n].get("peer")) + ".\n\n"
    absent = [f"{name} ({result.get('why', 'no reason')})" for name, result in results.items() if not result["empty"]]
    if absent:
        text += "Not measured: " + "; ".join(absent) + ".\n\n"
    text += "Device time of a call, µs (copy's time / its time: 1 is the speed of a copy of the same bytes in the same process).\n\n"
    text += _row(["case", "MB", *there]) + _row(["---"] * (2 + len(there)))
    for (layout, shape), figures in _cases(results).items():
        best = max((figures[n][1] for n in there if n in figures), default=0)
        cells = []
        for name in there:
            us, ratio = figures.get(name, (None, None))
            cell = "–" if us is None else f"{us:.2f} ({ratio:.3f})"
            cells.append(f"**{cell}**" if ratio is not None and ratio == best else cell)
        text += _row([f"{layout} {shape}", f"{figures['bytes'] / 1e6:.3g}", *cells])
    text += "\nHost time of a call of one token, first call of a process (1×8192, 32/32/128), error against f64 (1×512, 32/8/128).\n\n"
    text += _row(["", "host, µs", "first call, caches empty, ms", "caches warm, ms", "second call, ms", "its import, ms",
                  "greatest error", "mean error"]) + _row(["---"] * 8)  # fmt: skip
    for name in there:
        r = results[name]
        warm = [w["first_ms"] for w in r["warm"]]
        second = [w["second_ms"] for w in r["warm"]]
        text += _row([
            name,
            f"{r['host']['us']:.1f}" if "host" in r else "–",
            f"{r['empty']['first_ms']:.1f}",
            f"{min(warm):.1f}–{max(warm):.1f}" if warm else "–",
            f"{min(second):.2f}" if second else "–",
            f"{r['empty']['import_ms']:.0f}",
            f"{r['error']['greatest']:.2g}" if "error" in r else "–",
            f"{r['error']['mean']:.2g}" if "error" in r else "–",
        ])  # fmt: skip
    return text


#: The cases of the short table: layout, shape, what a reader calls it.
_SHORT = (("bshd", "1×8192, 32/32/128", "8192 tokens"), ("bshd", "128×1, 32/8/128", "128×1, decoding"))


def short(results):
    """One row a peer: what it costs to begin, to call, and to run."""
    cases = _cases(results)
    copies = [(layout, shape, name) for layout, shape, name in _SHORT if (layout, shape) in cases]
    text = _row(["", "first call, nothing cached", "first call, cache warm", "host time of a call",
                 *(f"{name}: time, speed of a copy = 1" for _, _, name in copies)])  # fmt: skip
    text += _row(["---"] * (4 + len(copies)))
    for name, r in results.items():
        if not r["empty"]:
            continue
        warm = [w["first_ms"] for w in r["warm"]]
        ms = lambda x: f"{x:.1f} ms" if x < 100 else f"{x:,.0f} ms"  # noqa: E731
        cells = [name, ms(r["empty"]["first_ms"]), ms(min(warm)) if warm else "–", f"{r['host']['us']:.1f} µs" if "host" in r else "–"]
        for layout, shape, _ in copies:
            us, ratio = cases[layout, shape].get(name, (None, None))
            cells.append("–" if us is None else f"{us:.2f} µs, {ratio:.2f}")
        text += _row([f"**{cell}**" for cell in cells] if name == "ropejit" else cells)
    return text


_COLOURS = ("#c0392b", "#d9730d", "#7f8c8d", "#2980b9", "#27ae60", "#8e44ad", "#16a085")
_STYLE = "text{fill:#1d2126}.faint{fill:#666}.paper{fill:#fff}.one{stroke:#888}@media(prefers-color-scheme:dark){text{fill:#e6e8ea}\
.faint{fill:#98a1aa}.paper{fill:#14171a}.one{stroke:#98a1aa}}"
#: Narrow, so that a narrow page shows it with letters that can be read.
_WIDTH, _RIGHT, _BAR = 480, 76, 14


def svg(results):
    """Bars: the share of the copy's speed, a group for each case, a colour for each peer; in the reader's colour scheme."""
    cases = _cases(results)
    there = [name for name, result in results.items() if result["device"]]
    about = next((r["peer"] for r in results.values() if r.get("peer")), {})
    most = max([1.0, *(f[n][1] for f in cases.values() for n in there if n in f)])
    scale = (_WIDTH - 12 - _RIGHT) / most
    # Two columns of names.
    top = 58 + 18 * -(-len(there) // 2)
    group = 24 + _BAR * len(there) + 10
    height = top + group * len(cases)
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}" '
           f'font-family="Helvetica, Arial, sans-serif" font-size="12">', f"<style>{_STYLE}</style>",
           '<rect class="paper" width="100%" height="100%"/>']  # fmt: skip

    def text(x, y, words, more=""):
        out.append(f'<text x="{x:.1f}" y="{y:.1f}"{more}>{html.escape(words)}</text>')

    text(12, 22, "Share of the speed of a copy of the same bytes", ' font-size="15" font-weight="600"')
    text(12, 42, f"{about.get('gpu', 'no GPU')}, torch {about.get('torch', '?')}, bf16; {about.get('made', MADE)}. Line: 1.0, the copy",
         ' class="faint"')  # fmt: skip
    for n, (name, colour) in enumerate(zip(there, _COLOURS, strict=False)):
        x, y = 12 + 230 * (n % 2), 54 + 18 * (n // 2)
        out.append(f'<rect x="{x}" y="{y}" width="11" height="11" fill="{colour}"/>')
        text(x + 17, y + 10, name)
    one = 12 + scale
    for i, ((layout, shape), figures) in enumerate(cases.items()):
        y = top + i * group
        text(12, y + 18, f"{layout} {shape}", ' font-weight="600"')
        for j, (name, colour) in enumerate(zip(there, _COLOURS, strict=False)):
            if name in figures:
                us, ratio = figures[name]
                at = y + 24 + j * _BAR
                out.append(f'<rect x="12" y="{at}" width="{ratio * scale:.1f}" height="{_BAR - 2}" fill="{colour}"/>')
                text(_WIDTH - 8, at + 10, f"{us:.1f} µs", ' text-anchor="end"')
        end = y + 24 + len(there) * _BAR
        out.append(f'<line class="one" x1="{one:.1f}" x2="{one:.1f}" y1="{y + 24}" y2="{end}" stroke-dasharray="3 3"/>')
    return "\n".join([*out, "</svg>", ""])


def write(results, folder):
    (folder / "peers.md").write_text(markdown(results))
    (folder / "peers-short.md").write_text(short(results))
    (folder / "peers.svg").write_text(svg(results))


def main():
    folder = pathlib.Path(sys.argv[1])
    drawn = svg(json.loads((folder / "peers.json").read_text()))
    picture = folder / "peers.svg"
    if sys.argv[2:] != ["--check"]:
        picture.write_text(drawn)
    elif picture.read_text() != drawn:
        sys.exit(f"{picture}: not what the results say; run python3 benches/peers/report.py {folder}")


if __name__ == "__main__":
    main()
