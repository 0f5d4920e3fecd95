"""The processes of contenders, with the interpreters that they need.

Peers whose requirements do not resolve beside the others' get environments of their own, under the cache folder.
"""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

from mixer.system.files import cache_root

LITDATA = ["litdata==0.2.76", "boto3", "botocore", "s3transfer", "jmespath", "urllib3", "requests"]
LITDATA += ["charset-normalizer", "certifi", "tifffile", "obstore", "lightning-utilities", "torchvision", "pillow"]
MOSAIC = ["mosaicml-streaming==0.13.0", "Brotli", "python-snappy", "zstd", "cramjam", "catalogue"]
MEGATRON = ["megatron-core==0.16.1"]
DATATROVE = ["datatrove==0.10.1", "loguru", "humanize"]
OLMO = ["ai2-olmo-core==3.0.0", "dataclass-extensions", "bettermap", "cached-path", "boto3", "botocore", "jmespath"]
OLMO += ["s3transfer", "google-api-core", "google-auth", "google-cloud-core", "google-cloud-storage"]
OLMO += [
    "google-resumable-media",
    "google-crc32c",
    "googleapis-common-protos",
    "pyasn1",
    "pyasn1-modules",
    "cachetools",
]
OWN_ENVIRONMENT = {
    "LitData": LITDATA,
    "mosaicml-streaming": MOSAIC,
    "GPTDataset": MEGATRON,
    "DatatroveFolderDataset": DATATROVE,
    "NumpyFSLDataset": OLMO,
}


def python_of(name: str) -> str:
    """Return the interpreter that a contender runs with; its environment is made when first needed."""
    name = name.rpartition(": ")[2]  # behind the format that it reads
    packages = OWN_ENVIRONMENT.get(name)
    if packages is None:
        return sys.executable
    folder = cache_root() / "bench" / name
    python = folder / "bin" / "python"
    if not (folder / "made").exists():
        venv.create(folder, with_pip=True)
        site = next(folder.glob("lib/python*/site-packages"))
        (site / "ours.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")  # torch and numpy are those of all
        subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", *packages], check=True)
        (folder / "made").touch()
    return str(python)


class Contender:
    """A process that runs one contender."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        command = [python_of(name), "-m", "benchmarks.contenders.process", str(folder), name]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )

    def ask(self, command: str) -> dict[str, float]:
        """Return the answer to a command; empty if the process is gone."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            print(command, file=self._process.stdin, flush=True)
        except BrokenPipeError:
            return {}
        line = self._process.stdout.readline()
        return json.loads(line) if line else {}

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def opened(folder: Path, names: list[str]) -> tuple[list[Contender], list[str]]:
    """Return contenders that have written what they read, and the names of those that do not run here."""
    running, failed = [], []
    for name in names:
        try:
            contender = Contender(name, folder)
        except (OSError, subprocess.CalledProcessError):
            failed.append(name)
            continue
        if not contender.ask("first"):  # imports, and writes what the contender reads
            failed.append(name)
            contender.close()
            continue
        contender.close()
        running.append(Contender(name, folder))  # afresh: writing took memory that reading does not
    return running, failed
