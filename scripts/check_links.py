#!/usr/bin/env python3
"""Checks the links of all pages (*.md), without a network: files, anchors, pictures, and whether the book has every page of docs/.

    python3 scripts/check_links.py          # exit status 1 and a line for each broken link
    python3 scripts/check_links.py --test   # whether it finds what is broken

What begins with a scheme (https:, mailto:) is not looked at. Pages of docs/ link to no page outside of docs/: mdBook would rename it to .html.
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path
from urllib.parse import unquote

INLINE = re.compile(r"\[(?:[^\]\[]|\[[^\]]*\])*\]\(\s*<?([^\s)>]+)>?(?:\s+\"[^\"]*\")?\s*\)")
REFERENCE = re.compile(r"^\s{0,3}\[[^\]]+\]:\s+<?(\S+?)>?\s*$", re.MULTILINE)
HTML = re.compile(r"<[a-z]+\s[^>]*?\b(?:href|src|srcset)=\"([^\"\s]+)\"", re.IGNORECASE)
IDS = re.compile(r"<[a-z]+\s[^>]*?\b(?:id|name)=\"([^\"]+)\"", re.IGNORECASE)


def prose(text):
    """The text without code: fenced blocks and spans."""
    kept, fence = [], None
    for line in text.split("\n"):
        mark = re.match(r"\s*(`{3,}|~{3,})", line)
        if fence:
            if mark and mark[1].startswith(fence) and not line.strip().strip(fence[0]):
                fence = None
            line = ""
        elif mark:
            fence, line = mark[1], ""
        kept.append(line)
    return re.sub(r"(`+)(?:(?!\1).)+?\1(?!`)", lambda code: re.sub(r"[^\n]", " ", code[0]), "\n".join(kept), flags=re.DOTALL)


def anchors(text):
    """The anchors of a page's headings, as GitHub and mdBook name them."""
    found, counts = set(IDS.findall(prose(text))), {}
    lines = prose(text).split("\n")
    for n, line in enumerate(text.split("\n")):
        # Code in a heading counts, a `#` in a block of code does not.
        if not (lines[n].startswith("#") and (heading := re.match(r"#{1,6}\s+(.*?)\s*#*$", line))):
            continue
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading[1]).lower()
        slug = re.sub(r"[^\w\- ]", "", words.strip()).replace(" ", "-")
        again = counts.get(slug, 0)
        counts[slug] = again + 1
        found.add(f"{slug}-{again}" if again else slug)
    return found


def broken(root, pages):
    """(page, line, link, what is wrong with it)."""
    texts = {page.resolve(): page.read_text(encoding="utf-8") for page in pages}
    book = (root / "docs").resolve()
    listed = set()
    for page, text in texts.items():
        plain = prose(text)
        for match in [m for pattern in (INLINE, REFERENCE, HTML) for m in pattern.finditer(plain)]:
            link = match[1]
            if re.match(r"[a-zA-Z][a-zA-Z0-9+.-]*:", link):
                continue
            line = plain.count("\n", 0, match.start(1)) + 1
            file, _, anchor = unquote(link).partition("#")
            target = (page.parent / file).resolve() if file else page
            if not target.is_relative_to(root.resolve()):
                yield page, line, link, "leads out of the repository"
            elif not target.exists():
                yield page, line, link, "there is no such file"
            elif page.is_relative_to(book) and target.suffix == ".md" and not target.is_relative_to(book):
                yield page, line, link, "leads out of the book: link to the folder instead"
            elif page.is_relative_to(book) and target.name == "README.md" and page.name != "SUMMARY.md":
                yield page, line, link, "mdBook makes an index.html of it: name the page index.md, or link to the folder"
            elif anchor and target.suffix == ".md" and anchor not in anchors(texts.get(target) or target.read_text(encoding="utf-8")):
                yield page, line, link, "there is no such heading"
            if page == book / "SUMMARY.md":
                listed.add(target)
    for page in sorted(texts):
        if page.is_relative_to(book) and page != book / "SUMMARY.md" and page not in listed:
            yield page, 1, "docs/SUMMARY.md", "does not list this page"


def report(root, pages):
    found = sorted(broken(root, pages))
    for page, line, link, what in found:
        print(f"{page.relative_to(root.resolve())}:{line}: {link}: {what}")
    return found


def test():
    """A page with a link of each kind, whole and broken."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "docs").mkdir()
        (root / "picture.svg").write_text("")
        (root / "other.md").write_text("# One `thing`: more\n\n# Twice\n\n# Twice\n\n```\n# no heading\n```\n")
        (root / "docs/SUMMARY.md").write_text("[in](in.md) [read](README.md)\n")
        (root / "docs/in.md").write_text("[out](../other.md) [picture](../picture.svg) [folder](..) [read](README.md)\n")
        (root / "docs/README.md").write_text("text\n")
        (root / "docs/lost.md").write_text("text\n")
        whole = ["other.md", "other.md#one-thing-more", "other.md#twice-1", "#here", "docs", "https://example.com/x"]
        wrong = ["gone.md", "other.md#two", "other.md#twice-2", "other.md#no-heading", "#gone", "../x", "docs/gone"]
        links = [f"[a [b] c]({link})" for link in whole + wrong]
        html = '<img src="picture.svg"> <img src="gone.svg">\n\n[r]: gone-too.md\n\n`[code](nowhere)`\n\n```\n[code](nowhere)\n```\n'
        (root / "page.md").write_text("# Here\n\n" + "\n".join(links) + "\n" + html)
        found = {link for _, _, link, _ in broken(root, sorted(root.rglob("*.md")))}
        expected = {*wrong, "gone.svg", "gone-too.md", "../other.md", "README.md", "docs/SUMMARY.md"}
        if found != expected:
            sys.exit(f"missed: {sorted(expected - found)}, found in vain: {sorted(found - expected)}")


def main():
    if sys.argv[1:] == ["--test"]:
        return test()
    root = Path(__file__).resolve().parent.parent
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "*.md"], cwd=root, capture_output=True, text=True
    )
    if listed.returncode:
        sys.exit(f"git ls-files: {listed.stderr.strip()}")
    pages = [root / name for name in sorted(set(listed.stdout.split("\0"))) if name and (root / name).is_file()]
    if report(root, pages):
        sys.exit(1)
    print(f"{len(pages)} pages, no broken link")


main()
