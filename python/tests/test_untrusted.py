"""What comes from places and files that nobody has vouched for."""

import os
import stat
import subprocess
import sys

import pytest


def test_a_configuration_that_is_no_file_is_not_waited_for(tmp_path):
    import ropejit

    pipe = tmp_path / "config.json"
    os.mkfifo(pipe)
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    for endless in (pipe, tmp_path, "/dev/zero"):
        with pytest.raises(ropejit.RopejitError, match="not a regular file"):
            ropejit.prewarm(str(endless), device="cpu")
    with pytest.raises(FileNotFoundError, match="none.json"):
        ropejit.prewarm(str(tmp_path / "none.json"), device="cpu")


def test_no_library_is_loaded_from_the_current_folder(tmp_path):
    """With ``-m`` and ``-c`` Python puts it on its path."""
    libraries = tmp_path / "nvidia" / "cu13" / "lib"
    libraries.mkdir(parents=True)
    source, ran = tmp_path / "planted.c", tmp_path / "ran"
    source.write_text(
        f'#include <stdio.h>\n__attribute__((constructor)) static void f(void) {{ FILE* o = fopen("{ran}", "w"); if (o) fclose(o); }}\n'
    )
    planted = libraries / "libnvrtc.so.13"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", planted, source], check=True)
    names = ("VIRTUAL_ENV", "CONDA_PREFIX", "CUDA_HOME", "CUDA_PATH", "CUDA_ROOT", "LD_LIBRARY_PATH")
    env = {k: v for k, v in os.environ.items() if not k.startswith("ROPEJIT_") and k not in names}
    env["ROPEJIT_CACHE_DIR"] = str(tmp_path / "cache")
    ask = "import ropejit; ropejit.inspect(); from ropejit._ropejit import command_line as c; c(['x'], ['ropejit', 'doctor'])"
    for arguments in (["-m", "ropejit", "doctor"], ["-c", ask]):
        done = subprocess.run([sys.executable, *arguments], cwd=tmp_path, env=env, capture_output=True, text=True)
        assert "nvrtc" in done.stdout and not ran.exists(), done.stdout + done.stderr
    os.chmod(tmp_path, 0o700)
    env["ROPEJIT_NVRTC"] = str(planted)
    subprocess.run([sys.executable, "-m", "ropejit", "doctor"], cwd=tmp_path, env=env, capture_output=True)
    assert ran.exists(), "named, it is loaded: the trap is sharp"
