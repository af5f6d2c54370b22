#!/usr/bin/env python3
"""Whether the texts of all pictures can be read: none cut off, none over another, none too small or too pale.

    check_pictures.py ROPEJIT [--shots FOLDER]

The pictures are those in the repository (*.svg) and the pages of `ropejit inspect report --html`: one with measurements of this
machine's processor and choices that were not measured, one with long names, one of an empty cache. Each is looked at 400 and 1280
pixels wide, light and dark, and the pages as they are printed. --shots keeps what was seen.

Needs Playwright (PyPI) and a Chromium: CHROMIUM, or one in PATH. Where there is none, it says so and ends with status 0.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WIDTHS = (400, 1280)
# What a sheet of A4 has between margins of a centimetre.
PAPER = 718
# Of a page that shows a picture, such as GitHub's.
GROUNDS = {"light": "#ffffff", "dark": "#0d1117"}
# Pixels of a letter's box, and WCAG's contrast for texts.
SMALLEST, CONTRAST = 9, 4.5

# Returns a line for each text that cannot be read.
LOOK = """([smallest, contrast]) => {
  const found = [], texts = [];
  const say = (text, why) => found.push(`"${text.data.trim().slice(0, 60)}" ${why}`);
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let text; (text = walk.nextNode());) {
    const of = text.parentElement;
    if (!text.data.trim() || of.closest("title, style, script") || !of.checkVisibility()) continue;
    const range = document.createRange();
    range.selectNodeContents(text);
    for (const box of range.getClientRects()) if (box.width > 0) texts.push([text, of, box]);
  }
  const numbers = (colour) => {
    const parts = (colour.match(/[-.\\d]+(e-?\\d+)?/g) ?? [0, 0, 0, 0]).map(Number);
    const unit = colour.startsWith("color(") ? 255 : 1;
    return [...parts.slice(0, 3).map((part) => part * unit), parts[3] ?? 1];
  };
  const over = (top, below, opacity) => below.map((part, i) => part + (top[i] - part) * top[3] * opacity);
  const light = (rgb) => rgb.map((part) => part / 255)
    .map((part) => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4)
    .reduce((sum, part, i) => sum + part * [0.2126, 0.7152, 0.0722][i], 0);
  for (const [text, of, box] of texts) {
    const style = getComputedStyle(of), drawn = of instanceof SVGElement;
    // Cut off, or to be moved to: by the page, a picture, or whatever else does not show what leaves it.
    for (let around = of; around; around = around.parentElement) {
      const page = around === document.documentElement;
      if (!page && !(drawn && around.tagName === "svg") && getComputedStyle(around).overflowX === "visible") continue;
      if (around.tagName === "svg" && getComputedStyle(around).overflowX === "visible") continue;
      const edge = page ? { left: 0, right: around.clientWidth } : around.getBoundingClientRect();
      if (box.left < edge.left - 1 || box.right > edge.right + 1) say(text, `leaves <${around.tagName}>`);
    }
    const size = parseFloat(style.fontSize) * (drawn ? of.getScreenCTM().a : 1);
    if (size < smallest) say(text, `has letters of ${size.toFixed(1)} pixels`);
    // What lies below it, from the ground up.
    const below = document.elementsFromPoint(box.left + box.width / 2, box.top + box.height / 2).filter((e) => e !== of);
    let ground = [255, 255, 255];
    for (const element of [...below.reverse(), of]) {
      const its = getComputedStyle(element), shape = element instanceof SVGGeometryElement;
      if (element.tagName === "line" || element.tagName === "circle") continue;
      ground = over(numbers(shape ? its.fill : its.backgroundColor), ground, shape ? Number(its.opacity) : 1);
    }
    const ink = over(numbers(drawn ? style.fill : style.color), ground, 1);
    const [pale, dark] = [light(ink), light(ground)].sort((a, b) => b - a);
    const ratio = (pale + 0.05) / (dark + 0.05);
    if (ratio < contrast) say(text, `has a contrast of ${ratio.toFixed(1)} only`);
  }
  // Boxes have room above and below their letters.
  const inner = (box) => [box.left + 0.5, box.right - 0.5, box.top + box.height * 0.2, box.bottom - box.height * 0.2];
  texts.forEach(([text, , box], n) => {
    const [left, right, top, bottom] = inner(box);
    for (const [other, , its] of texts.slice(n + 1)) {
      const [l, r, t, b] = inner(its);
      if (other !== text && left < r && l < right && top < b && t < bottom) say(text, `lies over "${other.data.trim()}"`);
    }
  });
  return found;
}"""

# Each has one fault, which must be found.
FAULTY = {
    "leaves": '<p style="white-space: nowrap">' + "a long line " * 200,
    "leaves <svg>": '<svg width="100" height="20"><text x="60" y="15">cut off here</text></svg>',
    "letters": '<svg width="100" viewBox="0 0 400 80"><text y="40" font-size="16">small</text></svg>',
    "contrast": '<p style="color: #ccc; background: #fff">pale</p>',
    "lies over": '<div style="position: absolute; top: 9px">one</div><div style="position: absolute; top: 12px">two</div>',
}


def chromium():
    names = (os.environ.get("CHROMIUM"), "chromium", "chromium-browser", "google-chrome")
    return next((found for name in names if name and (found := shutil.which(name))), None)


def reports(ropejit):
    """(name, HTML) of each report."""
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"ROPEJIT_DEVICE": "host", "ROPEJIT_CACHE_DIR": f"{folder}/cache"}
        for name in ("ROPEJIT_CACHE_PATH", "ROPEJIT_LOCK", "COLUMNS"):
            environment.pop(name, None)

        def run(*arguments):
            return subprocess.run([ropejit, *arguments], env=environment, stdout=subprocess.PIPE, check=True, text=True).stdout

        yield "report-empty", run("inspect", "report", "--html", "-")
        run("prewarm", "--model", "llama-3.1-8b", "--tokens", "1,64,512")
        run("prewarm", "--model", "qwen3-8b", "--no-tune", "--tokens", ",".join(str(1 << n) for n in range(18)))
        report = run("inspect", "report", "--html", "-")
        yield "report", report
        # As long as they come on a GPU.
        yield "report-long-names", re.sub(r"(t\d+ v\d+ h\d+ w[bt]/w[bt])", r"\1 keep pdl pf shipped", report)


def pictures():
    listed = subprocess.run(["git", "ls-files", "*.svg"], cwd=ROOT, stdout=subprocess.PIPE, check=True, text=True)
    for path in listed.stdout.split():
        yield path, (ROOT / path).read_text()


def in_page(picture, scheme):
    """A picture on a page as narrow as it must be."""
    style = f"body {{ margin: 0; background: {GROUNDS[scheme]} }} svg {{ max-width: 100%; height: auto; display: block }}"
    return f"<!doctype html><meta name=viewport content='width=device-width'><style>{style}</style><body>{picture}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ropejit")
    parser.add_argument("--shots", type=Path)
    arguments = parser.parse_args()
    program = chromium()
    if not program:
        print("SKIPPED check_pictures: no Chromium; apt-get install chromium, or name one in CHROMIUM", file=sys.stderr)
        return 0
    from playwright.sync_api import sync_playwright

    wrong, seen = [], 0
    with sync_playwright() as playwright:
        # A sandbox cannot be had as root.
        browser = playwright.chromium.launch(executable_path=program, chromium_sandbox=os.geteuid() != 0)

        def look(name, page, html, width, media="screen"):
            page.set_viewport_size({"width": width, "height": 900})
            page.set_content(html)
            page.emulate_media(media=media)
            # All of it, so that every text is at a point of the view.
            page.set_viewport_size({"width": width, "height": max(page.evaluate("document.documentElement.scrollHeight"), 100)})
            if arguments.shots:
                page.screenshot(path=arguments.shots / f"{name}.png")
            return page.evaluate(LOOK, [SMALLEST, CONTRAST])

        if arguments.shots:
            arguments.shots.mkdir(parents=True, exist_ok=True)
        pages = list(reports(arguments.ropejit))
        for scheme in GROUNDS:
            page = browser.new_page(color_scheme=scheme)
            if scheme == "light":
                for fault, html in FAULTY.items():
                    assert any(fault in line for line in look("faulty", page, f"<!doctype html>{html}", 400)), f"not found: {fault}"
            # One that there is for each scheme is shown in its own.
            other = next(s for s in GROUNDS if s != scheme)
            shown = [(name, in_page(svg, scheme)) for name, svg in pictures() if not name.endswith(f"-{other}.svg")]
            for name, html in [*pages, *shown]:
                for width in WIDTHS:
                    shot = f"{Path(name).stem}-{width}-{scheme}"
                    wrong += [f"{name}, {width} pixels, {scheme}: {line}" for line in look(shot, page, html, width)]
                    seen += 1
            page.close()
        page = browser.new_page(color_scheme="dark")
        for name, html in pages:
            wrong += [f"{name}, printed: {line}" for line in look(f"{name}-printed", page, html, PAPER, "print")]
            seen += 1
        browser.close()
    print(*wrong, sep="\n", end="\n" if wrong else "")
    print(f"pictures: {seen} looked at, {len(wrong)} faults")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
