"""Identifies the current boot of this machine, so that processes can tell whether they run on the same one."""

from __future__ import annotations

from pathlib import Path


def boot_id() -> str:
    """The kernel's random id of this boot; empty if unknown. Containers on one machine share it."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    except OSError:
        return ""
