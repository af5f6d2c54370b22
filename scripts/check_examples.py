#!/usr/bin/env python3
"""Runs the Rust programs of the pages, and checks that the commands in them exist: `make test-docs`.

    python3 scripts/check_examples.py COMMAND [OPTIONS OF CARGO BUILD]

COMMAND is a `ropejit` that has been built. Rust goes through rustdoc, as documentation of the crate does: what is marked `no_run` is compiled.
Of each line `ropejit …` in a block of shell, console or Dockerfile text, the subcommand and its options must be in the command's help.
"""

import functools
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
# Their crates test these themselves.
RUST_ELSEWHERE = {"candle.md"}
USED = ("ropejit", "half", "cudarc")
NESTED = ("inspect", "pack", "template")


def blocks(page, languages):
    """(first line, text) of each fenced block of these languages."""
    lines, start, kept = page.read_text(encoding="utf-8").split("\n"), None, []
    for n, line in enumerate(lines, 1):
        if start is None and (mark := re.match(r"```(\w*)", line)):
            start, kept, wanted = n, [], mark[1] in languages
        elif start is not None and line.startswith("```"):
            if wanted:
                yield start + 1, "\n".join(kept)
            start = None
        elif start is not None:
            kept.append(line)


def rust(options):
    """Compiles and runs the pages' programs against the library that cargo builds."""
    build = ["cargo", "build", "--lib", "--message-format=json-render-diagnostics", *options]
    built = subprocess.run(build, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout
    libraries = {}
    for message in map(json.loads, built.splitlines()):
        if message["reason"] == "compiler-artifact" and message["target"]["name"] in USED:
            libraries |= {message["target"]["name"]: f for f in message["filenames"] if f.endswith(".rlib")}
    externs = [f"--extern={name}={file}" for name, file in libraries.items()]
    search = {f"-Ldependency={Path(file).parent}" for file in libraries.values()} | {
        f"-Ldependency={Path(libraries['ropejit']).parent / 'deps'}"
    }
    failed = False
    for page in PAGES:
        if page.name not in RUST_ELSEWHERE and any(blocks(page, {"rust"})):
            with tempfile.TemporaryDirectory() as folder:
                # A cache of their own.
                environment = {**os.environ, "ROPEJIT_CACHE_DIR": f"{folder}/cache"}
                command = ["rustdoc", "--edition=2024", "--test", *search, *externs, str(page)]
                failed |= subprocess.run(command, cwd=ROOT, env=environment).returncode != 0
    return failed


@functools.cache
def options_of(command, *words):
    """The long options that the help of a subcommand names; None if there is no such subcommand."""
    asked = subprocess.run([command, *words, "--help"], capture_output=True, text=True)
    return set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", asked.stdout)) if asked.returncode == 0 else None


def commands(command):
    """What is wrong with the pages' commands."""
    for page in PAGES:
        for first, text in blocks(page, {"sh", "bash", "console", "dockerfile"}):
            for n, line in enumerate(text.replace("\\\n", "\0").split("\n"), first):
                line = line.replace("\0", " ")
                for call in re.finditer(r"(?:^|[\s/$(])ropejit (?!@)([^|;&>)\"]*)", line):
                    words = shlex.split(call[1].replace("'", " "), comments=True)
                    if not words or not re.fullmatch(r"[a-z]+", words[0]):
                        continue
                    path = words[:1]
                    if words[0] in NESTED and len(words) > 1 and options_of(command, *words[:2]):
                        path = words[:2]
                    known = options_of(command, *path)
                    if known is None:
                        yield f"{page.relative_to(ROOT)}:{n}: there is no command `ropejit {words[0]}`"
                        continue
                    given = {word.split("=")[0] for word in words if word.startswith("--")}
                    for option in sorted(given - known - {"--help"}):
                        yield f"{page.relative_to(ROOT)}:{n}: `ropejit {' '.join(path)}` has no option {option}"


def main():
    command, *options = sys.argv[1:]
    wrong = list(commands(command))
    print(*wrong, sep="\n", end="\n" if wrong else "")
    if rust(options) or wrong:
        sys.exit(1)


main()
