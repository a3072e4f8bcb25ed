# SPDX-License-Identifier: Apache-2.0
"""`shell` lines of a recording: modules are loaded, other tools are played by the writes they make.

What the tools print is theirs, not the kernel's, and is not compared here; that the real tools say the
same on the emulated bus is for tests that run them.
"""

from __future__ import annotations

import re
import shlex
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from .snapshot import MATRIX, TYPE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .faces import Face
    from .kernel import Kernel

Line = dict[str, Any]
Attributes = list[tuple[str, str]]

_XML_ATTRIBUTE = re.compile(r"<attr name='(\w+)' value='(\w+)'/>")
_XML_UUID = re.compile(r"<uuid>([-0-9a-f]+)</uuid>")
_ECHO = re.compile(r'^echo "(.*)" > (\S+)$')
_SED = re.compile(r"""^sed -i "s/(.*)/(.*)/" (\S+)$""")
_CHZCRYPT_FILES = {"-q": "bus/ap/ap_domain", "-c": "bus/ap/config_time"}
# Commands whose exit status is the kernel's answer and not the tool's opinion.
_JUDGED = ("modprobe", "mdevctl start")


class ToolPlayer:
    """Keeps what the tools keep between commands: definitions of mdevs, files."""

    def __init__(self, kernel: Kernel, face: Face) -> None:
        self._kernel = kernel
        self._face = face
        self._definitions: dict[str, Attributes] = {}
        self._files: dict[str, str] = {}

    def play(self, line: Line) -> Line:
        """Carry out a recorded command line."""
        rc = 0
        for command in re.split(r";(?![^\"]*\"\s*>)", line["command"]):
            try:
                self._command(command.strip())
            except OSError:
                rc = 1
        judged = line["command"].startswith(_JUDGED)
        return {"errno": line.get("errno", 0), "rc": rc if judged else line.get("rc")}

    def _command(self, command: str) -> None:
        echo, sed = _ECHO.match(command), _SED.match(command)
        if echo:
            self._files[echo.group(2)] = echo.group(1)
            return
        if sed:
            self._files[sed.group(3)] = self._files[sed.group(3)].replace(sed.group(1), sed.group(2))
            return
        with suppress(ValueError):  # shell syntax beyond words does not touch the kernel
            words = shlex.split(command)
            players = {
                "modprobe": self._modprobe,
                "rmmod": self._rmmod,
                "chzcrypt": self._chzcrypt,
                "mdevctl": self._mdevctl,
                "virsh": self._virsh,
                "udevadm": self._udevadm,
            }
            if words and words[0] in players:
                players[words[0]](words[1:])

    def _write(self, path: str, text: str) -> None:
        self._face.write_bytes(path, text.encode())

    def _modprobe(self, words: Sequence[str]) -> None:
        if words[0] == "-r":
            self._kernel.unload_module(words[1])
        else:
            self._kernel.load_module(words[0])

    def _rmmod(self, words: Sequence[str]) -> None:
        self._kernel.unload_module(words[0], with_unused=False)

    def _chzcrypt(self, words: Sequence[str]) -> None:
        if words[0] in _CHZCRYPT_FILES:
            self._write(_CHZCRYPT_FILES[words[0]], words[1])
        elif words[0] in ("-e", "-d"):
            self._write(f"{_device(words[1])}/online", "1" if words[0] == "-e" else "0")
        elif words[0] == "--config-off":
            self._write(f"{_device(words[1])}/config", "0")

    def _mdevctl(self, words: Sequence[str]) -> None:
        options = _options(words[1:])
        uuid = options.get("-u", "")
        if words[0] == "start":
            self._start(uuid, self._definitions.get(uuid, []))
        elif words[0] == "stop":
            self._write(f"{MATRIX}/{uuid}/remove", "1")
        elif words[0] == "define":
            self._definitions.setdefault(uuid, [])
        elif words[0] == "undefine":
            self._definitions.pop(uuid, None)
        elif words[0] == "modify" and "--addattr" in options:
            self._definitions[uuid].append((options["--addattr"], options["--value"]))
        elif words[0] == "modify" and "--index" in options:
            del self._definitions[uuid][int(options["--index"])]

    def _start(self, uuid: str, attributes: Attributes) -> None:
        """mdevctl makes the device, writes its attributes in order, and takes it back if one is refused."""
        self._write(f"{TYPE}/create", uuid)
        try:
            for name, value in attributes:
                self._write(f"{MATRIX}/{uuid}/{name}", value)
        except OSError:
            self._write(f"{MATRIX}/{uuid}/remove", "1")
            raise

    def _virsh(self, words: Sequence[str]) -> None:
        command, arguments = words[2], words[3:]
        if command == "nodedev-create":
            self._start(*self._parse(arguments[0]))
        elif command == "nodedev-define":
            uuid, attributes = self._parse(arguments[0])
            self._definitions[uuid] = attributes
        elif command == "nodedev-start":
            uuid = _uuid(arguments[0])
            self._start(uuid, self._definitions[uuid])
        elif command == "nodedev-destroy":
            self._write(f"{MATRIX}/{_uuid(arguments[0])}/remove", "1")

    def _parse(self, file: str) -> tuple[str, Attributes]:
        found = _XML_UUID.search(self._files[file])
        assert found is not None
        return found.group(1), _XML_ATTRIBUTE.findall(self._files[file])

    def _udevadm(self, words: Sequence[str]) -> None:
        if words[0] != "trigger":
            return
        for path in self._devices():
            self._write(f"{path}/uevent", "change")

    def _devices(self) -> list[str]:
        paths = [MATRIX]
        for card in self._face.names("devices/ap"):
            if card.startswith("card"):
                paths.append(f"devices/ap/{card}")
                paths += [
                    f"devices/ap/{card}/{q}" for q in self._face.names(f"devices/ap/{card}") if "." in q
                ]
        return sorted(paths)


def _device(name: str) -> str:
    """The directory of what chzcrypt calls 3 or 05.0004."""
    adapter = int(name.partition(".")[0], 16)
    card = f"devices/ap/card{adapter:02x}"
    return f"{card}/{name}" if "." in name else card


def _uuid(name: str) -> str:
    """The UUID in libvirt's name of a node device."""
    return name.removeprefix("mdev_").removesuffix("_matrix").replace("_", "-")


def _options(words: Sequence[str]) -> dict[str, str]:
    options = {}
    for index, word in enumerate(words):
        if word.startswith("--") and "=" in word:
            name, _, value = word.partition("=")
            options[name] = value
        elif word.startswith("-") and index + 1 < len(words):
            options[word] = words[index + 1]
    return options
