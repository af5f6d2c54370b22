"""The lines of docs/integrations.md that need no GPU, pasted into a new process."""

import pathlib
import re
import subprocess
import sys

import pytest
from conftest import library

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "integrations.md"


@pytest.mark.skipif(not PAGE.exists(), reason="the documentation is not beside the tests")
@pytest.mark.parametrize("section", ["transformers", "diffusers"])
def test_lines_work_when_pasted(section):
    library(section, optional=True)
    text = PAGE.read_text(encoding="utf-8").partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    (lines,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert "torch.equal" in lines
    subprocess.run([sys.executable, "-c", lines], check=True)
