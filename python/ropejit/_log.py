"""`ROPEJIT_LOG` for what the Python part logs, to `logging.getLogger("ropejit")`: imported only where the variable is set."""

import logging

_LEVELS = {
    "off": logging.CRITICAL + 1, "error": logging.ERROR, "warn": logging.WARNING, "info": logging.INFO,
    "debug": logging.DEBUG, "trace": logging.DEBUG,
}  # fmt: skip


def level(directives):
    """Of text such as ``debug`` or ``warn,ropejit=info``: the last level for all or for ropejit; None where there is none."""
    found = None
    for directive in directives.split(","):
        target, _, word = directive.strip().rpartition("=")
        if target in ("", "ropejit"):
            found = _LEVELS.get(word.lower(), found)
    return found


def follow(directives):
    """Has the logger say as much as the directives ask for. A program that sets a level of its own later is followed."""
    wanted = level(directives)
    if wanted is not None:
        logging.getLogger("ropejit").setLevel(wanted)
