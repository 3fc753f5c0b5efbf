# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import pytest
from ansible_collections.kvm.liveupdate.plugins.module_utils.vmm import _options


@pytest.mark.parametrize(
    ("words", "options"),
    [
        ("qemu -S -m 1G", [("S", ""), ("m", "1G")]),
        ("-S --m 1G", [("S", ""), ("m", "1G")]),
        ("qemu -snapshot /srv/a.img -k de", [("snapshot", ""), ("", "/srv/a.img"), ("k", "de")]),
        ("qemu -append -S -daemonize", [("append", "-S"), ("daemonize", "")]),
        ("qemu -of-tomorrow -S", [("of-tomorrow", ""), ("S", "")]),
        ("qemu -of-tomorrow word -S", [("of-tomorrow", "word"), ("S", "")]),
        ("qemu -m", [("m", "")]),
        ("", []),
    ],
)
def test_a_word_belongs_to_the_option_before_it_only_where_that_takes_one(words, options):
    assert _options.split(words.split()) == options


@pytest.mark.parametrize(
    ("option", "word", "keys"),
    [
        ("device", "edu,id=a", {"driver": "edu", "id": "a"}),
        ("device", "id=a,driver=edu", {"driver": "edu", "id": "a"}),
        ("drive", "file=/a,,b=c,readonly,nosnapshot", {"file": "/a,b=c", "readonly": "on", "snapshot": "off"}),
        ("blockdev", "raw,file.filename=/a", {"driver": "raw", "file.filename": "/a"}),
        ("blockdev", '{"driver": "raw", "file": {"filename": "/a"}}', {"driver": "raw", "file.filename": "/a"}),
        (
            "device",
            "{'a': 'it\\'s \"b\"', \"c\": \"it's\", 'd': [1, true, null, 'x']}",
            {"a": 'it\'s "b"', "c": "it's", "d.0": "1", "d.1": "on", "d.3": "x"},
        ),
        ("netdev", "", {}),
    ],
)
def test_each_dialect_gives_the_same_keys(option, word, keys):
    assert _options.keys_of(option, word) == keys


@pytest.mark.parametrize("word", ["{", "{'a': 1", '{"a": 1, "a": 2}', '{"a": NaN}', "{a: 1}"])
def test_what_is_no_json_is_told(word):
    with pytest.raises(ValueError):
        _options.keys_of("device", word)
    options, unread = _options.read(["-m", "1G", "-device", word])
    assert [option.name for option in options] == ["m"]
    assert len(unread) == 1 and unread[0].startswith(f"-device {word}: ")


def test_what_is_too_deep_is_told():
    assert len(_options.read(["-device", '{"a":' * 100_000])[1]) == 1


def test_a_command_line_that_its_process_may_have_changed_opens_no_file(tmp_path):
    (tmp_path / "file").write_text('[memory]\n  size = "2G"\n')
    words = ["-readconfig", str(tmp_path / "file"), "-m", "1G"]
    assert [option.keys["size"] for option in _options.read(words)[0]] == ["2G", "1G"]
    assert [option.keys["size"] for option in _options.read(words, opens=False)[0]] == ["1G"]


@pytest.mark.parametrize(
    ("word", "keys"),
    [
        ("unix:/run/s,server,nowait", {"backend": "socket", "path": "/run/s", "server": "on", "wait": "off"}),
        ("telnet:127.0.0.1:4444,server=on", {"backend": "socket", "host": "127.0.0.1", "port": "4444", "server": "on"}),
        ("mon:stdio", {"backend": "stdio", "": ""}),
        ("file:/var/log/a,b", {"backend": "file", "path": "/var/log/a,b"}),
        ("chardev:c", {"chardev": "c"}),
        ("/dev/ttyS1", {"backend": "serial", "path": "/dev/ttyS1"}),
    ],
)
def test_the_short_form_of_a_character_device(word, keys):
    (option,) = _options.read(["-serial", word])[0]
    assert option.keys == keys


def test_a_later_option_changes_an_earlier_one():
    option, other = _options.read(["-drive", "id=a,file=/a", "-drive", "id=b", "-set", "drive.a.file=/c"])[0]
    assert (option.keys, other.keys) == ({"id": "a", "file": "/c"}, {"id": "b"})
    assert option.text == "-drive id=a,file=/a -set drive.a.file=/c"
