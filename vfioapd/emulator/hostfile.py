# SPDX-License-Identifier: Apache-2.0
"""Host files: TOML that says which machine and which kernel are emulated. Strict; see docs/emulator.md."""

import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from .generation import GENERATIONS, LINUX_6_12, Generation
from .machine import DEFAULT_FUNCTIONS, Adapter, Machine, Mode, Status
from .numbers import MASK_BITS, mask_of

SHIPPED = Path(__file__).resolve().parent.parent / "lab" / "hosts"
MODULES = ("zcrypt_cex4", "vfio_ap")
FLAGS = ("apsc", "apxa", "qact", "rc8a", "apsb")

_TYPE = re.compile(r"CEX([4-8])([ACP])")
_MODES = {"A": Mode.ACCEL, "C": Mode.CCA, "P": Mode.EP11}
_KEY_LINES = {
    Mode.CCA: tuple(f"{kind} {age}" for kind in ("AES", "APKA", "ASYM") for age in ("NEW", "CUR", "OLD")),
    Mode.EP11: ("WK CUR", "WK NEW"),
    Mode.ACCEL: (),
}

T = TypeVar("T")


class HostFileError(Exception):
    """A host file that cannot be used. The text names file, key and fix."""


@dataclass(frozen=True, slots=True)
class Card:
    adapter: int
    type: str
    functions: int
    serial: str = ""
    api_ordinal: str = ""
    firmware: str = ""
    op_modes: tuple[str, ...] = ()
    depth: int = 8
    standby: bool = False
    checkstop: bool = False
    mkvps: Mapping[int, Mapping[str, str]] = field(default_factory=dict)

    @property
    def hwtype(self) -> int:
        return int(self.type[3]) + 6

    def plug(self) -> Adapter:
        """A fresh adapter as this card describes it."""
        status = Status.DECONFIGURED if self.standby else Status.OK
        return Adapter(
            hwtype=self.hwtype,
            functions=self.functions,
            depth=self.depth - 1,
            status=Status.CHECKSTOPPED if self.checkstop else status,
            serial=self.serial,
            api_ordinal=self.api_ordinal,
            firmware=self.firmware,
            op_modes=self.op_modes,
            mkvps={domain: dict(keys) for domain, keys in self.mkvps.items()},
        )


@dataclass(frozen=True, slots=True)
class BootParameters:
    apmask: str | None = None
    aqmask: str | None = None
    domain: int | None = None
    late_bindings: float = 0.0


@dataclass(frozen=True, slots=True)
class Host:
    """One host file."""

    name: str
    kernel: Generation = LINUX_6_12
    max_adapter: int = 255
    max_domain: int = 84
    flags: frozenset[str] = frozenset({"apsc", "apxa", "qact", "rc8a"})
    ap: bool = True
    qci: bool = True
    usage_domains: tuple[int, ...] = ()
    control_domains: tuple[int, ...] = ()
    cards: tuple[Card, ...] = ()
    modules: tuple[str, ...] = MODULES
    boot: BootParameters = BootParameters()
    sclp: bool = True
    interrupts: bool = True
    answers: bool = True
    plays: tuple[Mapping[str, object], ...] = ()

    def machine(self) -> Machine:
        """The hardware as the file describes it, ready to be changed by plays."""
        return Machine(
            max_adapter=self.max_adapter,
            max_domain=self.max_domain,
            flags=self.flags,
            has_ap=self.ap,
            has_qci=self.qci,
            usage=mask_of(self.usage_domains),
            control=mask_of(self.control_domains),
            adapters={card.adapter: card.plug() for card in self.cards},
            has_sclp=self.sclp,
            has_interrupts=self.interrupts,
            answers=self.answers,
            late_bindings=self.boot.late_bindings,
        )


def shipped_hosts() -> list[str]:
    """Names of the host files that come with the package."""
    return sorted(path.stem for path in SHIPPED.glob("*.toml"))


def load_host_file(name: str | Path) -> Host:
    """Read a host file by path, or a shipped one by its name. Raises HostFileError."""
    path = Path(name)
    if path.suffix != ".toml" and not path.exists():
        path = SHIPPED / f"{name}.toml"
    try:
        with path.open("rb") as file:
            tables = tomllib.load(file)
    except FileNotFoundError:
        known = ", ".join(shipped_hosts())
        raise HostFileError(f"host file {name} does not exist; shipped hosts are {known}") from None
    except tomllib.TOMLDecodeError as error:
        raise HostFileError(f"host file {path} is not valid TOML: {error}") from error
    return parse_host(tables, str(path))


def parse_host(tables: Mapping[str, object], source: str) -> Host:
    """Check the tables of a host file and make a Host of them. Raises HostFileError naming `source`."""
    top = _Table(dict(tables), source, "")
    machine, boot, limits = top.table("machine"), top.table("boot"), top.table("limits")
    usage = machine.numbers("usage_domains")
    host = Host(
        name=top.text("name", Path(source).stem),
        kernel=_kernel(top),
        max_adapter=machine.number("max_adapter", 255),
        max_domain=machine.number("max_domain", 84),
        flags=frozenset(machine.words("flags", FLAGS, ("apsc", "apxa", "qact", "rc8a"))),
        ap=machine.flag("ap", default=True),
        qci=machine.flag("qci", default=True),
        usage_domains=usage,
        control_domains=machine.numbers("control_domains", usage),
        cards=tuple(_card(table) for table in top.tables("card")),
        modules=top.words("modules", MODULES, MODULES),
        boot=BootParameters(
            boot.optional_text("apmask"),
            boot.optional_text("aqmask"),
            boot.optional_number("domain"),
            boot.seconds("late_bindings"),
        ),
        sclp=limits.flag("sclp", default=True),
        interrupts=limits.flag("interrupts", default=True),
        answers=limits.flag("answers", default=True),
        plays=tuple(table.rest() for table in top.tables("play")),
    )
    for table in (top, machine, boot, limits):
        table.end()
    _check_duplicates(host, source)
    return host


def _kernel(top: "_Table") -> Generation:
    name = top.text("kernel", "6.12")
    if name not in GENERATIONS:
        raise top.wrong("kernel", f"must be one of {', '.join(GENERATIONS)}, not {name!r}")
    return GENERATIONS[name]


def _check_duplicates(host: Host, source: str) -> None:
    seen: set[int] = set()
    for card in host.cards:
        if card.adapter in seen:
            raise HostFileError(f"{source}: [[card]] adapter {card.adapter} is given twice; remove one")
        seen.add(card.adapter)


def _card(table: "_Table") -> Card:
    kind = table.text("type", "")
    found = _TYPE.fullmatch(kind)
    if not found:
        raise table.wrong("type", f"must be CEX4A to CEX8P (A, C or P), not {kind!r}")
    mode = _MODES[found.group(2)]
    card = Card(
        adapter=table.number("adapter", None),
        type=kind,
        functions=table.number("functions", DEFAULT_FUNCTIONS[mode], limit=0xFFFFFFFF),
        serial=table.text("serial", ""),
        api_ordinal=table.text("api_ordinal", ""),
        firmware=table.text("firmware", ""),
        op_modes=table.words("op_modes", None, ()),
        depth=table.number("depth", 8),
        standby=table.flag("standby", default=False),
        checkstop=table.flag("checkstop", default=False),
        mkvps=_mkvps(table.table("mkvps"), mode),
    )
    table.end()
    return card


def _mkvps(table: "_Table", mode: Mode) -> dict[int, dict[str, str]]:
    keys: dict[int, dict[str, str]] = {}
    for domain in table.left():
        registers = table.table(domain)
        try:
            number = int(domain, 0)
        except ValueError:
            raise table.wrong(domain, "must be a domain number such as 13 or 0x000d") from None
        keys[number] = {line: registers.text(line, "") for line in registers.left()}
        for line in keys[number]:
            if line not in _KEY_LINES[mode]:
                raise registers.wrong(line, f"is no key register of a {mode} card")
        registers.end()
    table.end()
    return keys


class _Table:
    """One TOML table being taken apart: what is left over at the end is an unknown key."""

    def __init__(self, values: dict[str, object], source: str, where: str) -> None:
        self._values = values
        self._source = source
        self._where = where

    def wrong(self, key: str, problem: str) -> HostFileError:
        return HostFileError(f"{self._source}: {self._where}{key} {problem}")

    def left(self) -> list[str]:
        return list(self._values)

    def rest(self) -> dict[str, object]:
        rest, self._values = self._values, {}
        return rest

    def end(self) -> None:
        for key in self._values:
            raise self.wrong(key, "is not a key of host files; remove it or correct its spelling")

    def _take(self, key: str, kind: type[T], default: T | None, fits: Callable[[T], bool]) -> T | None:
        value = self._values.pop(key, None)
        if value is None:
            return default
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)) or not fits(value):
            raise self.wrong(key, f"has the impossible value {value!r}")
        return value

    def optional_text(self, key: str) -> str | None:
        return self._take(key, str, None, lambda text: "\n" not in text)

    def text(self, key: str, default: str) -> str:
        value = self.optional_text(key)
        return default if value is None else value

    def flag(self, key: str, *, default: bool) -> bool:
        return bool(self._take(key, bool, default, lambda _: True))

    def optional_number(self, key: str) -> int | None:
        return self._take(key, int, None, lambda n: 0 <= n < MASK_BITS)

    def number(self, key: str, default: int | None, limit: int = MASK_BITS - 1) -> int:
        value = self._take(key, int, default, lambda n: 0 <= n <= limit)
        if value is None:
            raise self.wrong(key, "is missing")
        return value

    def seconds(self, key: str) -> float:
        value = self._values.pop(key, 0.0)
        if not isinstance(value, int | float) or isinstance(value, bool) or value < 0:
            raise self.wrong(key, f"has the impossible value {value!r}")
        return float(value)

    def numbers(self, key: str, default: tuple[int, ...] = ()) -> tuple[int, ...]:
        value = self._take(key, list, list(default), lambda _: True) or []
        for number in value:
            if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < MASK_BITS:
                raise self.wrong(key, f"holds {number!r}, which is no number from 0 to 255")
        return tuple(sorted(set(value)))

    def words(self, key: str, known: tuple[str, ...] | None, default: tuple[str, ...]) -> tuple[str, ...]:
        value = self._take(key, list, list(default), lambda _: True) or []
        for word in value:
            if not isinstance(word, str) or (known is not None and word not in known):
                raise self.wrong(key, f"holds {word!r}; known are {', '.join(known or ())}")
        return tuple(value)

    def table(self, key: str) -> "_Table":
        value = self._take(key, dict, {}, lambda _: True) or {}
        return _Table(dict(value), self._source, f"{self._where}{key}.")

    def tables(self, key: str) -> list["_Table"]:
        values = self._take(key, list, [], lambda _: True) or []
        for value in values:
            if not isinstance(value, dict):
                raise self.wrong(key, f"must be written as [[{key}]] tables")
        return [_Table(dict(v), self._source, f"[[{key}]] ({i + 1}): ") for i, v in enumerate(values)]
