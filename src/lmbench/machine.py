"""What suits this machine: decided by rules, so that the same machine gives the same numbers.

torch is imported late, since that is slow.
"""

import ctypes
import os
import platform
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmbench.errors import UserError

if TYPE_CHECKING:
    import torch

FLOAT32_ERROR = 1e-6


def set_up_threads() -> None:
    """Imports torch so that its CPU threads wait only briefly and round subnormal numbers to zero.

    Call it before torch is imported. GNU's OpenMP lets a waiting thread hold its core for
    milliseconds, which is fast on an idle machine; on a busy one, that can keep the very thread it
    waits for off the core. The environment variables ``OMP_WAIT_POLICY`` and ``GOMP_SPINCOUNT``
    take precedence.

    Numbers between 0 and 1e-38, such as products of closed gates, are slow on many processors.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    import torch

    # New threads inherit this, so it comes before the first operation that starts them.
    torch.set_flush_denormal(True)


def set_up_allocator(*, keep_large: bool = False) -> None:
    """Makes glibc keep the memory that tensors free, so that the next step's need no new pages.

    New pages are filled with zeros first, and a virtual machine may have to ask its host for them:
    at every step, which took a fifth of the training time on one such machine. The environment
    variables ``MALLOC_MMAP_THRESHOLD_``, ``MALLOC_TRIM_THRESHOLD_`` and ``MALLOC_MMAP_MAX_`` take
    precedence.

    Args:
        keep_large: Keep the memory of tensors over 32 MiB, too. Where their sizes vary, as in
            training, the peak can be much higher.
    """
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if not hasattr(libc, "mallopt"):  # not glibc
        return
    m_trim_threshold, m_mmap_threshold, m_mmap_max = -1, -3, -4  # from malloc.h
    if "MALLOC_MMAP_THRESHOLD_" not in os.environ:
        libc.mallopt(m_mmap_threshold, 32 * 2**20)  # the most it allows
    if "MALLOC_TRIM_THRESHOLD_" not in os.environ:
        libc.mallopt(m_trim_threshold, -1)  # never
    if keep_large and "MALLOC_MMAP_MAX_" not in os.environ:
        libc.mallopt(m_mmap_max, 0)


def set_matmul_precision(precision: str, accelerator: str) -> None:
    """Sets how PyTorch multiplies matrices of float32.

    Args:
        precision: A setting of ``torch.set_float32_matmul_precision``, or ``auto``: ``highest``,
            and on a CPU that is not Intel's the faster ``medium`` where that is as exact.
        accelerator: Lightning's name for the accelerator, or a device type.

    Raises:
        UserError: The setting is unknown.
    """
    import torch

    choices = ("auto", "highest", "high", "medium")
    if precision not in choices:
        raise UserError(
            f"float32_matmul_precision={precision!r} must be one of {', '.join(choices)} (see "
            "torch.set_float32_matmul_precision)."
        )
    if precision == "auto":
        on_cpu = accelerator == "cpu" or (accelerator == "auto" and not torch.cuda.is_available())
        # medium sends products to oneDNN, which is faster than MKL on processors that MKL does not
        # know, and computes in bfloat16 only where the processor has matrix units for it.
        is_exact = on_cpu and not mkl_is_fast() and relative_error("medium") < FLOAT32_ERROR
        precision = "medium" if is_exact else "highest"
    torch.set_float32_matmul_precision(precision)
    # For cuDNN's LSTM the default is TF32, whatever is set for products.
    torch.backends.cudnn.allow_tf32 = precision != "highest"


def mkl_is_fast() -> bool:
    """Whether this processor is Intel's, which MKL is made for."""
    return "GenuineIntel" in (_cpuinfo() or platform.processor())


def processor() -> dict[str, Any]:
    """The processor, as its maker calls it, and the instructions that a speed depends on."""
    values = dict(re.findall(r"^(.+?)\s*: (.*)$", _cpuinfo(), re.MULTILINE))
    flags = values.get("flags", "").split()
    return {
        "name": values.get("model name") or platform.processor() or platform.machine(),
        "family": values.get("cpu family"),
        "model": values.get("model"),
        "features": [
            name for name in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if name in flags
        ],
    }


def _cpuinfo() -> str:
    try:
        return Path("/proc/cpuinfo").read_text("utf-8", "replace")
    except OSError:  # not Linux
        return ""


def device_of(name: "str | torch.device") -> "torch.device":
    """The device of that name; ``auto`` is a CUDA device if there is one, else the CPU.

    Raises:
        UserError: PyTorch knows no such device, or this machine has none that can hold a tensor.
    """
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(name)
        torch.zeros(1, device=chosen).cpu()
    except (RuntimeError, AssertionError, TypeError, ImportError) as error:
        # What comes after the first sentence is a list of all that PyTorch was built with.
        reason = str(error).partition("\n")[0].partition(". ")[0].rstrip(".!")
        raise UserError(f"device={name} cannot be used: {reason}. cpu always works.") from error
    return chosen


def require_devices(accelerator: str, devices: int | str | list[int], num_nodes: int) -> str:
    """Refuses devices that are not there: Lightning starts any number of processes on a CPU.

    Returns:
        The accelerator to train on, without ``auto``.

    Raises:
        UserError: Naming what this machine has, or the accelerators that lmbench trains on; or
            nothing starts the processes of other nodes.
    """
    import torch

    if accelerator not in ("auto", "cpu", "gpu", "cuda"):
        raise UserError(
            f"trainer.accelerator={accelerator} cannot be used: lmbench sums in float64, which "
            "not every accelerator supports. Set it to cpu, cuda, or auto."
        )
    if accelerator == "auto":  # Lightning's could choose one without float64
        accelerator = "cuda" if torch.cuda.is_available() else "cpu"
    on_cuda = accelerator in ("gpu", "cuda")
    if on_cuda and not torch.cuda.is_available():
        raise UserError(
            f"trainer.accelerator={accelerator} needs a CUDA device, and PyTorch sees none. "
            "Set trainer.accelerator=cpu, or install a CUDA build of PyTorch."
        )
    if isinstance(devices, str) and re.fullmatch(r"-?\d+", devices):
        devices = int(devices)  # as Lightning reads it
    there, name = (torch.cuda.device_count(), "GPUs") if on_cuda else (_num_cores(), "CPU cores")
    if isinstance(devices, int) and not (1 <= devices <= there or (on_cuda and devices == -1)):
        raise UserError(
            f"trainer.devices={devices}, but this machine has {there} {name}. "
            f"Set trainer.devices to a number from 1 to {there}."
        )
    if num_nodes != 1 and not {"SLURM_NTASKS", "MASTER_ADDR"} & os.environ.keys():
        raise UserError(
            f"trainer.num_nodes={num_nodes}: nothing starts the processes of the other nodes, and "
            "this one would wait for them. Start lmbench-train with srun or torchrun."
        )
    return accelerator


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def relative_error(precision: str) -> float:
    """Error of a product of float32 matrices on the CPU: in Frobenius norm, against float64.

    Args:
        precision: A setting of ``torch.set_float32_matmul_precision``, which stays as it is.
    """
    import torch

    generator = torch.Generator().manual_seed(0)
    left, right = torch.rand(2, 512, 512, generator=generator) - 0.5
    exact = left.double() @ right.double()
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        return float(((left @ right).double() - exact).norm() / exact.norm())
    finally:
        torch.set_float32_matmul_precision(before)


def multiplies_bfloat16() -> bool:
    """Whether this CPU has instructions for products of bfloat16, which are slow without them."""
    import torch

    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
