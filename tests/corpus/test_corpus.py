# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The image proof on real kernels."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.kvm.liveupdate.plugins.module_utils._errors import LiveUpdateError
from ansible_collections.kvm.liveupdate.plugins.module_utils.kernel import _image
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kvmlab.parts import bzimage
from kvmlab.parts.kernel import Kernel

Prove = Callable[[Path, Path], dict[str, Any]]
Pair = tuple[Kernel, Kernel]

# What the new kernel does that reads one string only and is handed another one.
LOSSES = {
    "kho": "boots as if nothing had been preserved",
    "luo": "panics while it boots",
    "memfd": "every open of /dev/liveupdate fails with EIO",
}
MEMORY_LIMIT_MIB = 200
# In a process of its own. Its own resource usage would count what the process that started it took before; VmHWM does not.
MEASURE = """
import json, re, resource, sys
from ansible_collections.kvm.liveupdate.plugins.module_utils.kernel import _image
found = _image.read(sys.argv[1])
own = int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1])
tool = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
print(json.dumps({"release": found["release"], "mib": (own + tool) >> 10}))
"""


def codes(way: dict[str, Any]) -> list[str]:
    """What speaks against one way."""
    return [reason["code"] for reason in way["reasons"]]


@pytest.mark.parametrize("series", ["6.12", "7.2", "7.3"])
def test_a_stock_kernel_is_refused(series: str, stock_kernels: dict[str, Path], lab_kernels: Pair, prove: Prove) -> None:
    if series not in stock_kernels:
        pytest.skip(f"the mirror has no stock kernel {series} any more, only {', '.join(stock_kernels)}")
    found = _image.read(str(stock_kernels[series]))
    assert (found["kind"], found["arch"], found["above_4g"], found["efi_kexec"]) == ("bzImage", "x86_64", True, True)
    assert found["release"].startswith(series + ".")
    proof = prove(lab_kernels[0].image, stock_kernels[series])
    assert (proof["there"]["verdict"], codes(proof["there"])) == ("refused", ["kexec-handover-off"])
    assert "built without KEXEC_HANDOVER (its configuration has no CONFIG_KEXEC_HANDOVER=y)" in proof["there"]["reasons"][0]["message"]
    assert (proof["back"]["verdict"], codes(proof["back"])) == ("refused", ["kexec-handover-off"])
    assert proof["back"]["reasons"][0]["message"].endswith("it preserves nothing")


def test_a_stock_kernel_as_the_running_one_is_refused(stock_kernels: dict[str, Path], lab_kernels: Pair, prove: Prove) -> None:
    proof = prove(list(stock_kernels.values())[-1], lab_kernels[1].image)
    assert (proof["there"]["verdict"], codes(proof["there"])) == ("refused", ["kexec-handover-off"])


@pytest.mark.parametrize("forward", [True, False])
def test_the_lab_s_kernels_are_proven_both_ways(lab_kernels: Pair, prove: Prove, forward: bool) -> None:
    old, new = lab_kernels if forward else reversed(lab_kernels)
    proof = prove(old.image, new.image)
    assert proof["there"] == proof["back"] == {"verdict": "proven", "reasons": []}


@pytest.mark.parametrize("name", LOSSES)
def test_a_patched_kernel_with_another_string_is_refused(name: str, lab_kernels: Pair, prove: Prove, tmp_path: Path) -> None:
    old, new = lab_kernels
    image = new.image.read_bytes()
    spoken = _image.read(str(new.image))["abi"][name]
    other = spoken[:-1] + ("8" if spoken[-1] == "9" else "9")
    patched = tmp_path / "patched"
    patched.write_bytes(bzimage.replace(image, bzimage.pack("gzip", bzimage.speak(bzimage.unpack(image), spoken, other))))
    proof = prove(old.image, patched)
    for way, preserves, reads in ((proof["there"], spoken, other), (proof["back"], other, spoken)):
        assert (way["verdict"], codes(way)) == ("refused", [f"abi-{name}"])
        assert f"preserves as {preserves}, and " in way["reasons"][0]["message"]
        assert f"reads {reads} only: it " in way["reasons"][0]["message"]
        assert LOSSES[name] in way["reasons"][0]["message"]


@pytest.fixture(scope="session")
def packed(lab_kernels: Pair, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Makes the lab's new kernel with another compression; each once."""
    folder = tmp_path_factory.mktemp("packed")
    image = lab_kernels[1].image.read_bytes()

    def make(compression: str) -> Path:
        path = folder / compression
        if not path.exists():
            path.write_bytes(bzimage.replace(image, bzimage.pack(compression, bzimage.unpack(image))))
        return path

    return make


@pytest.mark.parametrize("compression", bzimage.COMMANDS)
def test_every_compression_of_the_kernel_build(compression: str, packed: Callable[[str], Path], lab_kernels: Pair, prove: Prove) -> None:
    image = packed(compression)
    assert _image.read(str(image))["compression"] == compression
    proof = prove(lab_kernels[0].image, image)
    assert proof["there"] == proof["back"] == {"verdict": "proven", "reasons": []}


def test_the_kernel_before_it_is_compressed_tells_the_same_and_cannot_be_loaded(lab_kernels: Pair, prove: Prove, tmp_path: Path) -> None:
    image = lab_kernels[1].image
    vmlinux = tmp_path / "vmlinux"
    vmlinux.write_bytes(bzimage.unpack(image.read_bytes()))
    found, same = _image.read(str(vmlinux)), _image.read(str(image))
    assert found["kind"] == "vmlinux"
    for key in ("arch", "release", "version", "abi", "config", "page_size"):
        assert found[key] == same[key]
    assert set(found["build_ids"]) & set(same["build_ids"])
    proof = prove(lab_kernels[0].image, vmlinux)
    assert (proof["there"]["verdict"], codes(proof["there"])) == ("refused", ["image-kind"])


@pytest.mark.parametrize("compression", ["lzo"] if sys.version_info >= (3, 14) else ["lzo", "zstd"])
def test_a_compression_that_nothing_here_undoes(
    compression: str, packed: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = packed(compression)
    monkeypatch.setenv("PATH", str(tmp_path))
    tool = {"lzo": "lzop"}.get(compression, compression)
    with pytest.raises(LiveUpdateError, match=f"^kernel {image}: compressed with {tool}, and .*; install the package {tool}$"):
        _image.read(str(image))


def test_no_kernel_takes_more_memory_than_is_stated(
    packed: Callable[[str], Path], stock_kernels: dict[str, Path], lab_kernels: Pair
) -> None:
    images = [lab_kernels[0].image, *stock_kernels.values(), *map(packed, bzimage.COMMANDS)]
    taken = {}
    for image in images:
        command = [sys.executable, "-c", MEASURE, str(image)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        taken[str(image)] = json.loads(done.stdout)["mib"]
    assert {image: mib for image, mib in taken.items() if mib > MEMORY_LIMIT_MIB} == {}


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_kernel_is_never_more_than_an_error(data: st.DataObject, stock_kernels: dict[str, Path], tmp_path: Path) -> None:
    series = data.draw(st.sampled_from(sorted(stock_kernels)))
    image = bytearray(stock_kernels[series].read_bytes())
    # Half of the changes are in the headers, which are a small part of an image.
    positions = st.integers(0, 0x2000) | st.integers(0, len(image) - 1)
    for position, value in data.draw(st.lists(st.tuples(positions, st.integers(0, 255)), max_size=6)):
        image[position] = value
    del image[data.draw(st.integers(0, len(image)) | st.just(len(image))) :]
    path = tmp_path / "damaged"
    path.write_bytes(image)
    try:
        found = _image.read(str(path), root=str(tmp_path))
    except LiveUpdateError as err:
        assert err.message.startswith(f"kernel {path}: ")
    else:
        # What is left unharmed still has its name, and at most loses what it could have been taken for.
        assert found["kind"] in ("bzImage", "vmlinux", "arm64", "zboot", "uki")
        assert found["abi"] == dict.fromkeys(("kho", "luo", "memfd"))
