"""What `patch` recognises of the installed transformers: `make coverage`.

Prints the functions by form and what is left alone, with the digest of its text and the reason. ``--check`` fails where fewer
are recognised than were in a version that is known here.
"""

import re
import sys
from collections import Counter, defaultdict
from typing import NamedTuple

import every
import transformers
from ropejit import _forms

#: How many functions were recognised, by version; of 241 and 121.
KNOWN = {"5.24": 237, "4.57": 110}


class Found(NamedTuple):
    module: str
    name: str
    #: A `_forms.Match`, or why it is left alone.
    match: object
    digest: str

    @property
    def family(self):
        return self.module.split(".")[-2]


def _digest(function):
    try:
        return _forms.digest(_forms.trees_of(function))
    except Exception:  # noqa: BLE001 - whatever hides a text
        return "unreadable"


def _is_called(module, name):
    """Whether the text of a module calls it anywhere, or another module has it."""
    method = name.rpartition(".")[2]
    text = every.text(module)
    return len(re.findall(rf"\b{method}\(", text)) > 1 or (module.__name__, name) in every.borrowed()


def found():
    """Each function that rotates. Helpers go with those that call them; what no model calls is left out."""
    each = []
    for module, name, slot in every.functions():
        function = slot and slot.get()
        match = _forms.of(function, module.__name__) if slot else "what is wrapped around it does not show it"
        each.append((module, name, function, match))
    helpers = defaultdict(set)
    for module, _, function, match in each:
        if isinstance(match, _forms.Match):
            helpers[module].update(function.__code__.co_names)
    return [
        Found(module.__name__, name, match, _digest(function))
        for module, name, function, match in each
        if isinstance(match, _forms.Match) or (name not in helpers[module] and _is_called(module, name))
    ]


def version():
    return ".".join(transformers.__version__.split(".")[:2])


def fallen(each):
    """What has become worse since the figures of this version were written down; None where nothing has, or it is not known."""
    recognised = sum(isinstance(f.match, _forms.Match) for f in each)
    least = KNOWN.get(version(), 0)
    return f"transformers {version()}: {recognised} functions are recognised, {least} were" if recognised < least else None


def main(arguments):
    each = found()
    matches = [f for f in each if isinstance(f.match, _forms.Match)]
    left = [f for f in each if f not in matches]
    families = {f.family for f in each}
    print(f"transformers {transformers.__version__}: {len(matches)} of {len(each)} functions that rotate are recognised,")
    print(f"all of them in {len(families - {f.family for f in left})} of {len(families)} families of models")
    for form, n in Counter(f.match.form.name for f in matches).most_common():
        names = sorted({f.family for f in matches if f.match.form.name == form})
        print(f"{n:5} {form}: {', '.join(names[:6])}{', …' if len(names) > 6 else ''}")
    print("left alone:")
    for f in left:
        print(f"      {f.module.removeprefix('transformers.models.')}.{f.name} [{f.digest}]: {f.match}")
    worse = fallen(each)
    if version() not in KNOWN:
        print(f"no figures of transformers {version()} are written down in {__file__}")
    if "--check" in arguments and worse:
        sys.exit(worse)


if __name__ == "__main__":
    main(sys.argv[1:])
