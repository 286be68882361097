import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from lmbench import machine
from lmbench.errors import UserError


def test_the_error_of_highest_is_that_of_float32_and_the_setting_stays() -> None:
    before = torch.get_float32_matmul_precision()
    error = machine.relative_error("highest")
    # at least one rounding to 24 bits; at most 512 of them, all of one sign
    assert 2**-26 < error < 512 * 2**-24
    assert torch.get_float32_matmul_precision() == before


@pytest.mark.usefixtures("matmul_precision")
def test_the_choice_keeps_float32_on_this_machine() -> None:
    machine.set_matmul_precision("auto", "cpu")
    assert machine.relative_error(torch.get_float32_matmul_precision()) < 1e-6


def test_bfloat16_support_is_what_the_kernel_lists() -> None:
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        pytest.skip("no /proc/cpuinfo")
    flags = cpuinfo.read_text("utf-8").split()
    listed = "avx512_bf16" in flags or "amx_tile" in flags
    assert machine.multiplies_bfloat16() == listed


THRESHOLD, TRIM, MMAP_MAX = (-3, 2**25), (-1, -1), (-4, 0)  # M_… of malloc.h


@pytest.mark.parametrize(
    ("variable", "expected"),
    [
        ("OTHER", {THRESHOLD, TRIM, MMAP_MAX}),
        ("MALLOC_MMAP_THRESHOLD_", {TRIM, MMAP_MAX}),
        ("MALLOC_TRIM_THRESHOLD_", {THRESHOLD, MMAP_MAX}),
        ("MALLOC_MMAP_MAX_", {THRESHOLD, TRIM}),
    ],
)
@pytest.mark.parametrize("keep_large", [False, True])
def test_the_environment_takes_precedence(
    monkeypatch: pytest.MonkeyPatch,
    variable: str,
    expected: set[tuple[int, int]],
    keep_large: bool,
) -> None:
    for name in ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_MAX_"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, "65536")
    calls: set[tuple[int, int]] = set()
    libc = SimpleNamespace(mallopt=lambda option, value: calls.add((option, value)))
    monkeypatch.setattr(machine.sys, "platform", "linux")
    monkeypatch.setattr(machine.ctypes, "CDLL", lambda name: libc)
    machine.set_up_allocator(keep_large=keep_large)
    assert calls == expected - (set() if keep_large else {MMAP_MAX})


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, "1000"),
        ({"GOMP_SPINCOUNT": "5"}, "5"),
        ({"OMP_WAIT_POLICY": "active"}, None),
    ],
)
def test_threads_wait_as_the_user_wants(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, str], expected: str | None
) -> None:
    monkeypatch.setattr(os, "environ", dict(given))
    machine.set_up_threads()
    assert os.environ.get("GOMP_SPINCOUNT") == expected


@pytest.mark.usefixtures("matmul_precision")
@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_an_lstm_on_a_gpu_has_the_precision_of_products(precision: str) -> None:
    machine.set_matmul_precision(precision, "cpu")
    assert torch.get_float32_matmul_precision() == precision
    assert torch.backends.cudnn.allow_tf32 == (precision != "highest")


def test_an_unknown_precision_of_products_is_refused() -> None:
    before = torch.get_float32_matmul_precision()
    with pytest.raises(UserError, match=r"^float32_matmul_precision='fast'"):
        machine.set_matmul_precision("fast", "cpu")
    assert torch.get_float32_matmul_precision() == before


@pytest.mark.parametrize(
    ("accelerator", "devices", "num_gpus", "message"),
    [
        ("cpu", 5, 0, r"^trainer\.devices=5, but this machine has 4 CPU cores\..* from 1 to 4\.$"),
        ("cpu", "5", 0, r"^trainer\.devices=5, but this machine has 4 CPU cores"),
        ("auto", 0, 0, r"^trainer\.devices=0, but this machine has 4 CPU cores"),
        ("auto", 3, 2, r"^trainer\.devices=3, but this machine has 2 GPUs\..* from 1 to 2\.$"),
        ("gpu", 1, 0, r"^trainer\.accelerator=gpu needs a CUDA device, and PyTorch sees none"),
        ("tpu", 1, 0, r"^trainer\.accelerator=tpu cannot be used"),
    ],
)
def test_devices_that_are_not_there_are_refused(
    monkeypatch: pytest.MonkeyPatch,
    accelerator: str,
    devices: int | str,
    num_gpus: int,
    message: str,
) -> None:
    monkeypatch.setattr(machine, "_num_cores", lambda: 4)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: num_gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: num_gpus)
    with pytest.raises(UserError, match=message):
        machine.require_devices(accelerator, devices, 1)
    assert machine.require_devices("auto", 1, 1) == ("cuda" if num_gpus else "cpu")


def test_all_threads_round_subnormal_numbers_to_zero() -> None:
    code = """
from lmbench.machine import set_up_threads
set_up_threads()
import torch
torch.set_num_threads(2)
product = torch.full((1_000_000,), 1e-30) * 1e-9
print(torch.set_flush_denormal(False), torch.count_nonzero(product).item())
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    is_supported, num_left = done.stdout.split()
    if is_supported == "False":
        pytest.skip("this processor cannot")
    assert num_left == "0"


@pytest.mark.parametrize("module", ["train", "evaluate", "generate", "score"])
def test_no_command_imports_torch_before_its_threads_are_set_up(module: str) -> None:
    """OpenMP reads its settings only once."""
    code = f"import sys, lmbench.cli.{module}; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("platform", ["darwin", "win32"])
def test_other_allocators_are_left_alone(monkeypatch: pytest.MonkeyPatch, platform: str) -> None:
    monkeypatch.setattr(machine.sys, "platform", platform)
    monkeypatch.setattr(machine.ctypes, "CDLL", None)  # a call would fail
    machine.set_up_allocator()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="counts page faults as Linux does")
@pytest.mark.parametrize(("mib", "keep_large"), [(16, False), (64, True)])
def test_freed_memory_is_taken_again_without_page_faults(mib: int, keep_large: bool) -> None:
    code = """
import resource, sys, torch
from lmbench.machine import set_up_allocator
def page_faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
how, mib, keep_large = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "True"
if how == "kept":
    set_up_allocator(keep_large=keep_large)
for _ in range(20):  # the heap was seen to grow for seven rounds
    [torch.ones(mib * 2**18) for _ in range(4)]
before = page_faults()
for _ in range(10):
    [torch.ones(mib * 2**18) for _ in range(4)]
print(page_faults() - before)
"""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "THP_"))}
    faults = {}
    for how in ("kept", "given back"):
        command = [sys.executable, "-c", code, how, str(mib), str(keep_large)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        faults[how] = int(done.stdout)
    num_bytes = 10 * 4 * mib * 2**20
    assert faults["kept"] < num_bytes / os.sysconf("SC_PAGE_SIZE") / 10
    # If the system gives everyone huge pages, one fault brings in 2 MiB at once.
    assert faults["given back"] >= num_bytes // 2**21


@pytest.mark.usefixtures("matmul_precision")
@pytest.mark.parametrize(
    ("error", "is_intel", "on_cpu"),
    [(6e-7, False, "medium"), (6e-7, True, "highest"), (2e-3, False, "highest")],
)
@pytest.mark.parametrize(
    ("accelerator", "has_gpu", "is_cpu"),
    [
        ("cpu", False, True),
        ("cpu", True, True),
        ("auto", False, True),
        ("auto", True, False),
        ("gpu", True, False),
    ],
)
def test_auto_takes_medium_only_if_faster_and_as_exact_and_leaves_a_gpu_alone(
    monkeypatch: pytest.MonkeyPatch,
    error: float,
    is_intel: bool,
    on_cpu: str,
    accelerator: str,
    has_gpu: bool,
    is_cpu: bool,
):
    monkeypatch.setattr(machine, "mkl_is_fast", lambda: is_intel)
    monkeypatch.setattr(machine, "relative_error", lambda precision: error)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    machine.set_matmul_precision("auto", accelerator)
    assert torch.get_float32_matmul_precision() == (on_cpu if is_cpu else "highest")


def test_a_device_that_is_not_there_is_refused():
    for name in ("cpu", torch.device("cpu")):
        assert machine.device_of(name).type == "cpu"
    assert machine.device_of("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    # hpu is a module that PyTorch looks for; meta holds no numbers.
    for name in ("tpu!", "cuda:99", "vulkan", "hpu", "meta", ""):
        with pytest.raises(UserError, match=f"^device={name} cannot be used: ") as error:
            machine.device_of(name)
        assert str(error.value).endswith(". cpu always works.")
        assert len(str(error.value)) < 300


def test_the_processor_is_described_by_its_name_and_instructions(monkeypatch):
    described = "processor\t: 0\ncpu family\t: 25\nmodel\t\t: 17\nmodel name\t: Some CPU\n"
    described += "flags\t\t: fpu avx2 avx512f avx512_bf16\nbugs\t\t:\n"
    monkeypatch.setattr(machine, "_cpuinfo", lambda: described)
    features = ["avx2", "avx512f", "avx512_bf16"]
    expected = {"name": "Some CPU", "family": "25", "model": "17", "features": features}
    assert machine.processor() == expected
    monkeypatch.setattr(machine, "_cpuinfo", lambda: "")  # not Linux
    assert machine.processor()["name"]
