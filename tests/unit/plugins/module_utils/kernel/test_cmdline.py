# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import pytest
from ansible_collections.kvm.liveupdate.plugins.module_utils.kernel import _cmdline


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("", []),
        ("  ", []),
        ("quiet  root=/dev/vda1\tkho=on\n", [("quiet", None), ("root", "/dev/vda1"), ("kho", "on")]),
        ('dyndbg="file a.c +p; kho=on" x', [("dyndbg", "file a.c +p; kho=on"), ("x", None)]),
        ('a="b c kho=on', [("a", "b c kho=on")]),
        ('"a=b c" d', [("a", "b c"), ("d", None)]),
        ('a=b"c d"e f', [("a", 'b"c d"e'), ("f", None)]),
        ("a=b=c =d", [("a", "b=c"), ("=d", None)]),
        ("a= b", [("a", ""), ("b", None)]),
        ("quiet -- kho=on", [("quiet", None)]),
        ("--x --=y a", [("--x", None), ("--", "y"), ("a", None)]),
        ('"-- a" b', [("-- a", None), ("b", None)]),
    ],
)
def test_words_are_read_as_the_kernel_reads_them(line, words):
    """kernel/params.c, parse_args and next_arg."""
    assert _cmdline.words(line) == words


def test_the_last_value_of_a_name_counts_and_hyphens_are_underscores():
    assert _cmdline.value("a_b=1 a-b=2 a=3 -- a_b=4", "a_b") == "2"
    assert _cmdline.value("quiet", "quiet") is None


@pytest.mark.parametrize(
    ("line", "word", "there"),
    [
        ("a kho=on b", "kho=on", True),
        ('kho="on"', "kho=on", True),
        ("kho=on kho=off", "kho=on", False),
        ("-- kho=on", "kho=on", False),
        ("kho_scratch=1M", "kho-scratch=1M", True),
        ("quiet", "quiet", True),
        ("quiet=1", "quiet", False),
    ],
)
def test_a_word_that_is_in_force(line, word, there):
    assert _cmdline.is_in(line, word) is there


@pytest.mark.parametrize(
    ("cmdline", "missing"),
    [
        ("quiet kho=on liveupdate=on", []),
        ("kho=1 liveupdate=y", []),
        ("quiet", ["kho=on", "liveupdate=on"]),
        ("kho=on", ["liveupdate=on"]),
        ("kho=on liveupdate=on kho=off", ["kho=on"]),
        ("kho liveupdate=on", ["kho=on"]),
        ("root=/dev/vda1 quiet -- kho=on liveupdate=on", ["kho=on", "liveupdate=on"]),
        ('root=/dev/vda1 dyndbg="file a.c +p; kho=on liveupdate=on x"', ["kho=on", "liveupdate=on"]),
        ('root=/dev/vda1 kho="on" liveupdate="on"', []),
        ('acpi_osi="Windows 2015 initrd=x" kho=on liveupdate=on', []),
    ],
)
def test_missing_options(cmdline, missing):
    assert _cmdline.missing_options(cmdline) == missing


@pytest.mark.parametrize(
    ("running", "following"),
    [
        ("BOOT_IMAGE=/boot/vmlinuz-1 root=/dev/vda rw initrd=\\x kho=on", "root=/dev/vda rw kho=on"),
        ('acpi_osi="Windows 2015 initrd=x" kho=on liveupdate=on', 'acpi_osi="Windows 2015 initrd=x" kho=on liveupdate=on'),
        ('a="b  c"   initrd="x y"  d -- initrd=z', 'a="b  c"   d -- initrd=z'),
        ("initrd BOOT_IMAGE", "initrd BOOT_IMAGE"),
        ("systemd.unit=rescue.target rw", "systemd.unit=rescue.target rw"),
    ],
)
def test_the_next_command_line_drops_the_boot_loaders_own_words(running, following):
    assert _cmdline.next_cmdline(running) == following


@pytest.mark.parametrize(
    ("line", "longer"),
    [
        ("rw", "rw x=1 y"),
        ("rw -- single", "rw x=1 y -- single"),
        ('rw a="b c', 'rw x=1 y a="b c'),
    ],
)
def test_words_are_added_where_the_kernel_reads_them(line, longer):
    assert _cmdline.added(line, ["x=1", "y"]) == longer
    assert [word for word in _cmdline.words(longer) if word not in _cmdline.words(line)] == [("x", "1"), ("y", None)]
    assert _cmdline.added(line, []) == line


@pytest.mark.parametrize(
    ("config", "line"),
    [
        (None, "given"),
        ({}, "given"),
        ({"CMDLINE_BOOL": "n", "CMDLINE": "built"}, "given"),
        ({"CMDLINE_BOOL": "y", "CMDLINE": "built"}, "built given"),
        ({"CMDLINE_BOOL": "y", "CMDLINE": "built", "CMDLINE_OVERRIDE": "y"}, "built"),
        ({"CMDLINE": "built", "CMDLINE_FORCE": "y"}, "built"),
        ({"CMDLINE": "built", "CMDLINE_EXTEND": "y"}, "given built"),
        ({"CMDLINE": "built"}, "given"),
    ],
)
def test_what_the_kernel_was_built_to_read(config, line):
    assert _cmdline.effective("given", config) == line


def test_what_does_not_fit_into_the_kernels_buffer_is_not_read():
    built = {"CMDLINE_BOOL": "y", "CMDLINE": "x" * 2040}
    assert _cmdline.missing_options(_cmdline.effective("kho=on liveupdate=on", built)) == ["liveupdate=on"]
