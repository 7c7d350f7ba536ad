"""Every Triton kernel down to machine code of two GPU generations, without a GPU: that it compiles, and that it fits.

Triton's wheel brings NVIDIA's assembler `ptxas` and its reader of machine code `cuobjdump`. Skipped where it does not.
What the kernels compute is test_linear_logprob's business.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

triton = pytest.importorskip("triton")
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from rlpost.kernels import linear_logprob_triton  # noqa: E402
from rlpost.kernels.linear_logprob_triton import COLUMNS  # noqa: E402

CAPABILITIES = {"A100": 80, "H100": 90}
LOGITS = ("bf16", "fp16", "fp32")
# dtype of the logits, GPU, whether all memory and sizes divide by 16, as they do for most vocabularies
CASES = [*((dtype, gpu, True) for dtype in LOGITS for gpu in CAPABILITIES), ("bf16", "H100", False)]
REGISTERS = 128  # a thread of 128 may have so many, if four such programs shall share a multiprocessor
ROWS = {"targets": "*i64", "logits": "*{dtype}"}  # arguments that are no float32 numbers, one a row
SCALARS = {"begin": "i32", "width": "i32", "scale": "fp32", "COLUMNS": "constexpr"}
ALIGNED = [["tt.divisibility", 16]]  # what a launch tells of PyTorch's memory, and of whole blocks of words


def _tools() -> dict[str, str]:
    """Paths of ptxas and cuobjdump; an empty one where Triton has none that runs here."""
    found = {}
    for name in ("ptxas", "cuobjdump"):
        try:
            found[name] = str(getattr(triton.knobs.nvidia, name).path)
        except (AttributeError, RuntimeError):
            found[name] = ""
    return found


pytestmark = [
    pytest.mark.skipif(
        not all(_tools().values()), reason="this build of Triton has no ptxas or no cuobjdump"
    ),
    pytest.mark.skipif(
        os.environ.get("TRITON_INTERPRET") == "1", reason="TRITON_INTERPRET=1 compiles nothing"
    ),
]


def kernels() -> dict[str, Any]:
    return {
        name: kernel
        for name, kernel in vars(linear_logprob_triton).items()
        if isinstance(kernel, triton.JITFunction)
    }


def compiled(
    kernel: Any, dtype: str, capability: int, aligned: bool, columns: int = COLUMNS, **options: Any
) -> bytes:
    """Machine code of `kernel` for logits of `dtype`; `options` are Triton's."""
    kinds = {name: (ROWS | SCALARS).get(name, "*fp32").format(dtype=dtype) for name in kernel.arg_names}
    whole = [i for i, kind in enumerate(kinds.values()) if kind == "i32" or kind.startswith("*")]
    attributes = {(i,): ALIGNED for i in whole} if aligned else {}
    source = ASTSource(kernel, kinds, {"COLUMNS": columns}, attributes)
    made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    code: bytes = made.asm["cubin"]
    return code


def resources(code: bytes, folder: Path) -> Mapping[str, int]:
    """What cuobjdump reads from the machine code: registers a thread, bytes of stack (where spills go) and so on."""
    (folder / "kernel.cubin").write_bytes(code)
    command = [_tools()["cuobjdump"], "--dump-resource-usage", str(folder / "kernel.cubin")]
    told = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    return {name: int(value) for name, value in re.findall(r"(REG|STACK|SHARED|LOCAL):(\d+)", told)}


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))


@pytest.mark.parametrize(("dtype", "gpu", "aligned"), CASES)
@pytest.mark.parametrize("name", sorted(kernels()))
def test_a_kernel_compiles_and_spills_nothing(
    name: str, dtype: str, gpu: str, aligned: bool, tmp_path: Path
) -> None:
    code = compiled(kernels()[name], dtype, CAPABILITIES[gpu], aligned)
    assert code.startswith(b"\x7fELF")
    assert name.encode() in code
    used = resources(code, tmp_path)
    print(f"{name} {dtype} {gpu}: {len(code)} bytes, {dict(used)}")
    assert 0 < used["REG"] <= REGISTERS
    assert (used["STACK"], used["LOCAL"]) == (0, 0)


def test_a_kernel_short_of_registers_is_seen_to_spill(tmp_path: Path) -> None:
    """The reading above can fail: sixteen times the columns in the fewest registers that ptxas gives."""
    code = compiled(kernels()["_absorb"], "fp32", 80, True, columns=16 * COLUMNS, maxnreg=24)
    used = resources(code, tmp_path)
    assert used["REG"] == 24
    assert used["STACK"] > 0


def test_all_kernels_of_the_project_are_compiled_here() -> None:
    sources = Path(linear_logprob_triton.__file__).parents[1].rglob("*.py")
    jitted = [name for path in sources for name in re.findall(r"@triton\.jit\s+def (\w+)", path.read_text())]
    assert sorted(jitted) == sorted(kernels())
    assert jitted
