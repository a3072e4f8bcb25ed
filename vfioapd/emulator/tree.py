# SPDX-License-Identifier: Apache-2.0
"""A tree of files that is not kept anywhere: each path is looked up in the live state when asked for."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Generic, Protocol, TypeVar

from .numbers import refuse

S = TypeVar("S")
S_contra = TypeVar("S_contra", contravariant=True)

MAX_LINKS = 40


class Kind(Enum):
    DIRECTORY = "dir"
    FILE = "file"
    LINK = "link"
    DEVICE = "other"


@dataclass(slots=True)
class Wait:
    """What a store returns when its writer has to sleep: until `done`, for `seconds` at the most.

    `poke` is called every 10 s meanwhile and when a signal arrives, as vfio does with its request;
    `then` once it is over.
    """

    done: threading.Event = field(default_factory=threading.Event)
    seconds: float | None = None
    poke: Callable[[], None] | None = None
    then: Callable[[], None] | None = None


Show = Callable[[S], str]
Store = Callable[[S, str], Wait | None]


@dataclass(frozen=True, slots=True)
class File:
    """An attribute of one thing. Two lookups found the same file if `owner` is the same object."""

    mode: int
    owner: object
    show: Callable[[], str] | None
    store: Callable[[str], Wait | None] | None
    kind: Kind = Kind.FILE
    is_busy: Callable[[], bool] | None = None  # whether opening it is refused with EBUSY


@dataclass(frozen=True, slots=True)
class Link:
    target: str
    kind: Kind = Kind.LINK


class Directory(Protocol):
    @property
    def kind(self) -> Kind: ...

    def get(self, name: str) -> Node | None: ...

    def entries(self) -> Iterator[tuple[str, Kind]]: ...


Node = File | Link | Directory


class Entry(Protocol[S_contra]):
    """One name in a table that describes all directories of a sort."""

    @property
    def kind(self) -> Kind: ...

    def resolve(self, subject: S_contra) -> Node | None: ...


@dataclass(frozen=True, slots=True)
class Attribute(Generic[S]):
    mode: int
    show: Show[S] | None = None
    store: Store[S] | None = None
    when: Callable[[S], bool] | None = None
    kind: Kind = Kind.FILE

    def resolve(self, subject: S) -> Node | None:
        if self.when is not None and not self.when(subject):
            return None
        show, store = self.show, self.store
        return File(
            self.mode,
            subject,
            None if show is None else lambda: show(subject),
            None if store is None else lambda text: store(subject, text),
            self.kind,
        )


@dataclass(frozen=True, slots=True)
class Symlink(Generic[S]):
    target: Callable[[S], str | None]
    kind: Kind = Kind.LINK

    def resolve(self, subject: S) -> Node | None:
        target = self.target(subject)
        return None if target is None else Link(target)


@dataclass(frozen=True, slots=True)
class Below(Generic[S]):
    """A subdirectory."""

    directory: Callable[[S], Directory | None]
    kind: Kind = Kind.DIRECTORY

    def resolve(self, subject: S) -> Node | None:
        return self.directory(subject)


class Family(Protocol):
    """Names in a directory that come and go, such as devices."""

    def get(self, name: str) -> Node | None: ...

    def entries(self) -> Iterator[tuple[str, Kind]]: ...


@dataclass(frozen=True, slots=True)
class Folder(Generic[S]):
    """A directory: a table shared by all of its sort, and families of its own."""

    subject: S
    table: Mapping[str, Entry[S]]
    families: tuple[Family, ...] = ()
    kind: Kind = Kind.DIRECTORY

    def get(self, name: str) -> Node | None:
        entry = self.table.get(name)
        if entry is not None:
            return entry.resolve(self.subject)
        for family in self.families:
            node = family.get(name)
            if node is not None:
                return node
        return None

    def entries(self) -> Iterator[tuple[str, Kind]]:
        for name, entry in self.table.items():
            if entry.resolve(self.subject) is not None:
                yield name, entry.kind
        for family in self.families:
            yield from family.entries()


@dataclass(frozen=True, slots=True)
class Links:
    """A family of links, one per key of a live mapping."""

    names: Callable[[], Mapping[str, object]]
    target: Callable[[str], str]

    def get(self, name: str) -> Node | None:
        return Link(self.target(name)) if name in self.names() else None

    def entries(self) -> Iterator[tuple[str, Kind]]:
        return ((name, Kind.LINK) for name in list(self.names()))


@dataclass(frozen=True, slots=True)
class Folders(Generic[S]):
    """A family of directories, one per key of a live mapping."""

    names: Callable[[], Mapping[str, S]]
    folder: Callable[[S], Directory]

    def get(self, name: str) -> Node | None:
        subject = self.names().get(name)
        return None if subject is None else self.folder(subject)

    def entries(self) -> Iterator[tuple[str, Kind]]:
        return ((name, Kind.DIRECTORY) for name in list(self.names()))


class Tree:
    """Path lookup from a root directory. Paths have no leading slash."""

    def __init__(self, root: Directory) -> None:
        self.root = root

    def lookup(self, path: str) -> Node:
        """The node itself; a link is not followed, nor is one on the way expected. ENOENT, ENOTDIR."""
        node: Node = self.root
        for name in path.split("/"):
            if name:
                node = _child(node, name)
        return node

    def walk(self, path: str) -> tuple[str, Node]:
        """The path with every link followed, the last one included, and the node there."""
        done: list[tuple[str, Node]] = [("", self.root)]
        todo = [part for part in reversed(path.split("/")) if part]
        links = 0
        while todo:
            name = todo.pop()
            if name == "..":
                done[1:] = done[1:-1]
                continue
            node = _child(done[-1][1], name)
            if not isinstance(node, Link):
                done.append((name, node))
                continue
            links += 1
            if links > MAX_LINKS:
                raise refuse(errno.ELOOP)
            todo += [part for part in reversed(node.target.split("/")) if part]
        return "/".join([name for name, _ in done[1:]]), done[-1][1]


def _child(node: Node, name: str) -> Node:
    if isinstance(node, File | Link):
        raise refuse(errno.ENOTDIR)
    below = node.get(name)
    if below is None:
        raise refuse(errno.ENOENT)
    return below
