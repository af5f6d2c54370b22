"""Runs a reference on inputs that `ropejit test` has written, and writes what it returns.

Each folder given holds a call: `call.json` names its tensors and numbers, `NAME.in` holds a tensor's elements. A reference
gets arrays and numbers by their names; those of [spec] that it asks for as well. It returns its outputs: by name, in the order
of [args], or one alone.
"""

import importlib.util
import inspect
import json
import os
import pathlib
import sys

try:
    import numpy as np
except ImportError:
    sys.exit("NumPy is missing: " + sys.executable + " -m pip install numpy")

TYPES = {
    "f32": "<f4", "f16": "<f2", "f64": "<f8", "i8": "i1", "u8": "u1", "i16": "<i2", "u16": "<u2", "i32": "<i4",
    "u32": "<u4", "i64": "<i8", "u64": "<u8",
}  # fmt: skip


def read(folder, tensor):
    data = (folder / (tensor["name"] + ".in")).read_bytes()
    if tensor["element"] == "bf16":
        # NumPy has no such type: the same values as float32.
        array = (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)
    else:
        array = np.frombuffer(data, TYPES[tensor["element"]])
    return array.reshape(tensor["shape"]).copy()


def outputs(returned, wanted):
    if isinstance(returned, dict):
        missing = [t["name"] for t in wanted if t["name"] not in returned]
        if missing:
            sys.exit("the reference returned no " + ", ".join(missing))
        return [returned[t["name"]] for t in wanted]
    returned = list(returned) if isinstance(returned, (tuple, list)) else [returned]
    if len(returned) != len(wanted):
        names = ", ".join(t["name"] for t in wanted)
        sys.exit(f"the reference returned {len(returned)} outputs, and should return {len(wanted)}: {names}")
    return returned


def main(path, name, folders):
    spec = importlib.util.spec_from_file_location("reference", path)
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(pathlib.Path(path).parent))
    spec.loader.exec_module(module)
    function = getattr(module, name, None)
    if function is None:
        sys.exit(f"it has no function {name}")
    parameters = inspect.signature(function).parameters
    everything = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    for folder in map(pathlib.Path, folders):
        call = json.loads((folder / "call.json").read_text())
        arguments = {t["name"]: read(folder, t) for t in call["tensors"] if t["role"] in ("in", "inout")}
        arguments.update(call["numbers"])
        arguments.update({k: v for k, v in call["spec"].items() if k in parameters or everything})
        arguments = {k: v for k, v in arguments.items() if k in parameters or everything}
        wanted = [t for t in call["tensors"] if t["role"] in ("out", "inout")]
        for tensor, array in zip(wanted, outputs(function(**arguments), wanted)):
            is_float = tensor["element"] in ("f32", "f16", "bf16", "f64")
            array = np.ascontiguousarray(np.asarray(array), "<f8" if is_float else "<i8")
            if list(array.shape) != tensor["shape"]:
                sys.exit(f"{tensor['name']} has the shape {list(array.shape)}, and should have {tensor['shape']}")
            (folder / (tensor["name"] + ".out")).write_bytes(array.tobytes())


# What it writes is for this user, who must be able to read it.
os.umask(0o077)
main(sys.argv[1], sys.argv[2], sys.argv[3:])
