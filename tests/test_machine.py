import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lmbench import machine
from lmbench.errors import UserError


def test_the_error_of_highest_is_that_of_float32_and_the_setting_stays() -> None:
    before = torch.get_float32_matmul_precision()
    error = machine.relative_error("highest")
    # one rounding of 24 bits at the least; 512 of them, all of one sign, at the most
    assert 2**-26 < error < 512 * 2**-24
    assert torch.get_float32_matmul_precision() == before


@pytest.mark.parametrize(("error", "expected"), [(6e-7, "medium"), (2e-3, "highest")])
def test_medium_only_where_it_is_float32(
    monkeypatch: pytest.MonkeyPatch, error: float, expected: str
) -> None:
    monkeypatch.setattr(machine, "relative_error", lambda precision: error)
    assert machine.float32_matmul_precision() == expected


def test_the_choice_keeps_float32_on_this_machine() -> None:
    assert machine.relative_error(machine.float32_matmul_precision()) < 1e-6


def test_bfloat16_is_what_the_kernel_lists() -> None:
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        pytest.skip("no /proc/cpuinfo")
    flags = cpuinfo.read_text("utf-8").split()
    listed = "avx512_bf16" in flags or "amx_tile" in flags
    assert machine.multiplies_bfloat16() == listed


class Libc:
    calls: list[tuple[int, int]]

    def __init__(self) -> None:
        self.calls = []

    def mallopt(self, option: int, value: int) -> int:
        self.calls.append((option, value))
        return 1


@pytest.mark.parametrize(
    ("huge_pages", "environment", "expected"),
    [
        ("always [madvise] never", {}, 1),
        ("always madvise [never]", {}, 0),
        (None, {}, 0),
        ("always [madvise] never", {"THP_MEM_ALLOC_ENABLE": "0"}, 0),
        ("always [madvise] never", {"MALLOC_MMAP_THRESHOLD_": "131072"}, 0),
    ],
)
def test_large_blocks_are_given_back_only_with_huge_pages(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    huge_pages: str | None,
    environment: dict[str, str],
    expected: int,
) -> None:
    for name in ("THP_MEM_ALLOC_ENABLE", "MALLOC_MMAP_THRESHOLD_"):
        monkeypatch.setenv(name, "")  # remembered, so that it is as before after the test
        monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    if huge_pages is not None:
        (tmp_path / "enabled").write_text(huge_pages, "utf-8")
    monkeypatch.setattr(machine, "HUGE_PAGES", tmp_path / "enabled")
    libc = Libc()
    monkeypatch.setattr(machine.ctypes, "CDLL", lambda name: libc)
    machine.set_up_allocator()
    assert len(libc.calls) == expected
    assert os.environ["THP_MEM_ALLOC_ENABLE"] == environment.get("THP_MEM_ALLOC_ENABLE", "1")


def test_the_allocator_is_set_up_before_torch() -> None:
    code = "import sys, lmbench.machine as m; m.set_up_allocator(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


@pytest.mark.usefixtures("matmul_precision")
def test_matmul_precision_is_set_for_the_process():
    for precision in ("medium", "high", "highest"):
        machine.set_matmul_precision(precision, "cpu")
        assert torch.get_float32_matmul_precision() == precision
    with pytest.raises(
        UserError, match=r"^float32_matmul_precision='fast' .*highest, high, medium"
    ):
        machine.set_matmul_precision("fast", "cpu")
    assert torch.get_float32_matmul_precision() == "highest"


@pytest.mark.usefixtures("matmul_precision")
@pytest.mark.parametrize("error", [6e-7, 2e-3])
def test_auto_takes_what_is_as_exact_and_leaves_a_gpu_alone(
    monkeypatch: pytest.MonkeyPatch, error: float
):
    monkeypatch.setattr(machine, "relative_error", lambda precision: error)
    on_cpu = "medium" if error < 1e-6 else "highest"
    for accelerator, has_gpu, expected in (
        ("cpu", False, on_cpu),
        ("cpu", True, on_cpu),
        ("auto", False, on_cpu),
        ("auto", True, "highest"),
        ("gpu", True, "highest"),
    ):
        monkeypatch.setattr(torch.accelerator, "is_available", lambda answer=has_gpu: answer)
        machine.set_matmul_precision("auto", accelerator)
        assert torch.get_float32_matmul_precision() == expected


def test_a_device_that_is_not_there_is_refused():
    for name in ("cpu", torch.device("cpu")):
        assert machine.device_of(name).type == "cpu"
    assert machine.device_of("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    # hpu is a module that PyTorch looks for; meta holds no numbers.
    for name in ("tpu!", "cuda:99", "vulkan", "hpu", "meta", ""):
        with pytest.raises(UserError, match=f"^device={name} cannot be used: ") as error:
            machine.device_of(name)
        assert str(error.value).endswith(". cpu always can.")
        assert len(str(error.value)) < 300
