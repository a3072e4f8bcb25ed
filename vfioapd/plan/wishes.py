# SPDX-License-Identifier: Apache-2.0
"""Each command as a wish: where the host and host.toml shall be, or a refusal. Pure."""

from __future__ import annotations

from dataclasses import replace
from enum import StrEnum
from typing import TYPE_CHECKING

from vfioapd.domain.definition import Definition, Desired, Start, check_desired
from vfioapd.domain.problems import Problem, Refused
from vfioapd.plan.checks import (
    check_documents,
    check_free,
    check_guest_takes,
    check_on_host,
    check_seen,
    check_undefinable,
    check_unused,
    check_vfio_ap,
    foreign_claims,
    guest_of,
)
from vfioapd.plan.planner import Target
from vfioapd.plan.steps import Plug, Unplug, Where
from vfioapd.plan.wish import State, Wish, wish_for

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from uuid import UUID

    from vfioapd.domain.snapshot import Guest


class Scope(StrEnum):
    """Which of a guest's documents a command means."""

    BOTH = "both"
    LIVE = "live"
    CONFIG = "config"


def define(state: State, new: Definition) -> Wish:
    """Add a definition; one that starts by itself is started and plugged into its guest."""
    after = state.desired.added(new)
    if state.desired.find(new.name) is None:  # else check_desired names the taken name
        check_free(new, foreign_claims(state.snapshot, _uuids(state.desired)), state.desired.definitions)
    check_desired(after)
    check_on_host(new, state.snapshot)
    if new.guest is not None:
        check_guest_takes(guest_of(new.guest, state.snapshot), new, state.snapshot, after)
    wanted = replace(state, desired=after)
    return wish_for(wanted) if new.start is Start.MANUAL else _started(wanted, [new])


def undefine(state: State, names: Iterable[str]) -> Wish:
    """Drop definitions: their devices go, and their queues go back to the host."""
    gone = [state.desired.get(name) for name in names]
    unplugs = _let_go(state, gone, tuple(Where))
    after = state.desired
    for one in gone:
        check_unused(one, state.snapshot, unplugs)
        check_undefinable(one, state.snapshot, unplugs)
        after = after.without(one.name)
    left = _without_notes(replace(state, desired=after), {one.name for one in gone})
    return wish_for(left, touched=gone, released=gone, unplugs=unplugs)


def start(state: State, names: Iterable[str]) -> Wish:
    """Make the devices of matrices and plug them into their guests."""
    definitions = [state.desired.get(name) for name in names]
    foreign = foreign_claims(state.snapshot, _uuids(state.desired))
    for one in definitions:
        check_free(one, foreign)
    return _started(state, definitions)


def stop(state: State, names: Iterable[str], *, guest_ended: bool = False) -> Wish:
    """Remove the devices of matrices. One that starts by itself keeps its queues away from the host."""
    ended = [state.desired.get(name) for name in names]
    unplugs = _let_go(state, ended, (Where.LIVE,))
    for one in ended:
        check_unused(one, state.snapshot, unplugs)
        if not guest_ended:
            check_seen(one, state.snapshot)
    stopped = replace(state, stopped=state.stopped | {one.name for one in ended})
    back = [one for one in ended if one.start is Start.MANUAL]
    return wish_for(stopped, touched=ended, released=back, unplugs=unplugs)


def attach(state: State, name: str, guest_name: str, scope: Scope) -> Wish:
    """Give a matrix to a guest; in the guest's definition it is for good, and host.toml says so."""
    definition = state.desired.get(name)
    guest = guest_of(guest_name, state.snapshot)
    check_guest_takes(guest, definition, state.snapshot, state.desired)
    places = _places(scope, guest)
    plugs = tuple(_missing(guest, definition, places))
    after = state
    if Where.CONFIG in places:
        definition = replace(definition, guest=guest.name)
        after = replace(state, desired=state.desired.with_definition(definition))
        check_desired(after.desired)
    if Where.LIVE in places:
        return _started(after, [definition], plugs)
    active = [definition] if state.is_active(definition) else []
    return wish_for(after, active=active, plugs=plugs)


def detach(state: State, name: str, guest_name: str, scope: Scope) -> Wish:
    """Take a matrix from a guest. Where it is not, there is nothing to do."""
    definition = state.desired.get(name)
    if definition.guest != guest_name or state.snapshot.guests is None:
        guest_of(guest_name, state.snapshot)
    guest = state.snapshot.guest(guest_name)
    places = {Scope.LIVE: (Where.LIVE,), Scope.CONFIG: (Where.CONFIG,)}.get(scope, tuple(Where))
    if Where.CONFIG in places and definition.guest == guest_name:
        changed = replace(definition, guest=None)
        state = replace(state, desired=state.desired.with_definition(changed))
    elif Where.LIVE in places and definition.guest == guest_name:
        state = replace(state, unplugged=state.unplugged | {name})  # else it would be given back at once
    unplugs = tuple(_present(guest, definition, places)) if guest else ()
    # Who detaches a matrix from a running guest has said whom it hurts.
    return replace(wish_for(state, unplugs=unplugs), decided=True)


def apply(state: State, new: Desired) -> Wish:
    """Make a whole host.toml true: what is new, what changed, what is gone, and who has what.

    A device that exists and that the new file names by its UUID is taken over.
    """
    old = state.desired
    _check_new(state, new)
    gone = [one for one in old.definitions if new.by_uuid(one.uuid) is None]
    after = replace(
        state,
        desired=new,
        stopped=state.stopped & {one.name for one in new.definitions},
        unplugged=frozenset(),  # every guest gets what the file says
    )
    running = [one for one in new.definitions if _runs(after, one)]
    unplugs, plugs = tuple(_links_to_cut(state, new)), tuple(_links_to_make(state, new))
    check_documents(state.snapshot, plugs, unplugs, new)
    for one in gone:
        check_unused(one, state.snapshot, unplugs)
    if running:
        check_vfio_ap(state.snapshot)
    wish = wish_for(
        after,
        touched=[*gone, *new.definitions],
        active=running,
        released=[one for one in old.definitions if one not in new.definitions],
        plugs=plugs,
        unplugs=unplugs,
    )
    return replace(wish, target=replace(wish.target, convert=True))


def edit(state: State, new: Definition) -> Wish:
    """One definition as it shall be; its device, if it has or should have one, follows."""
    old = state.desired.get(new.name)
    after = replace(state, desired=state.desired.with_definition(new))
    _check_new(state, after.desired)
    running = [new] if _runs(after, new) else []
    if running:
        check_vfio_ap(state.snapshot)
    plugs = tuple(plug for one in running for plug in _plugs_into_its_guest(after, one))
    released = [old] if old != new else []
    return wish_for(after, touched=[new], active=running, released=released, plugs=plugs)


def adopt(state: State, found: Iterable[Definition]) -> Wish:
    """Take over what others made, as it is: a plan for it has no step, only files are written."""
    new = tuple(found)
    after = replace(state.desired, definitions=(*state.desired.definitions, *new))
    check_desired(after)
    active = tuple(one for one in new if state.is_active(one))
    target = Target(new, active, active, after.keep, binding=after.binding)
    return Wish(target, after, state.stopped, state.unplugged)


def _check_new(state: State, new: Desired) -> None:
    check_desired(new)
    foreign = foreign_claims(state.snapshot, _uuids(state.desired) | _uuids(new))
    applied = {one.uuid: one.matrix for one in state.desired.definitions}
    for one in new.definitions:
        check_free(one, foreign)
        if applied.get(one.uuid) != one.matrix:
            check_on_host(one, state.snapshot)


def restore(state: State, definitions: Iterable[Definition]) -> Wish:
    """Make the devices that should be there. Guests are not touched: their XML has lasted.

    Nobody is asked: the admin has decided when the definition was made.
    """
    wanted = tuple(definitions)
    if wanted:
        check_vfio_ap(state.snapshot)
    held = tuple(one for one in state.desired.definitions if one in wanted or state.is_active(one))
    target = Target(wanted, wanted, held, state.desired.keep, binding=state.desired.binding)
    return Wish(target, state.desired, state.stopped, state.unplugged, decided=True)


def keep_guest(state: State, definition: Definition) -> Wish:
    """The same for one matrix, and its guest gets it where it lacks it. Refused when the guest cannot."""
    wish = restore(state, [definition])
    return replace(wish, target=replace(wish.target, plugs=tuple(_plugs_into_its_guest(state, definition))))


def rename_guest(state: State, old: str, new: str) -> Wish:
    """libvirt knows a guest by another name; on the host nothing changes."""
    after = state.desired
    for one in state.desired.definitions:
        if one.guest == old:
            after = after.with_definition(replace(one, guest=new))
    check_desired(after)
    return wish_for(replace(state, desired=after))


def should_run(state: State) -> list[Definition]:
    """The definitions whose device should exist without anybody asking for it."""
    return [
        one for one in state.desired.definitions if one.start is Start.AUTO and one.name not in state.stopped
    ]


def _runs(state: State, definition: Definition) -> bool:
    """Whether the device should exist after an apply: by itself, or because somebody started it."""
    if definition.start is Start.AUTO:
        return definition.name not in state.stopped
    return state.is_active(definition)


def _started(state: State, definitions: list[Definition], plugs: tuple[Plug, ...] | None = None) -> Wish:
    check_vfio_ap(state.snapshot)
    running = _without_notes(state, {one.name for one in definitions})
    if plugs is None:
        plugs = tuple(plug for one in definitions for plug in _plugs_into_its_guest(running, one))
    return wish_for(running, active=definitions, plugs=plugs)


def _plugs_into_its_guest(state: State, definition: Definition) -> Iterator[Plug]:
    """What is missing in the guest that the definition names; a guest that is not there has no say."""
    guest = state.snapshot.guest(definition.guest) if definition.guest else None
    if guest is not None:
        check_guest_takes(guest, definition, state.snapshot, state.desired)
        places = _places(Scope.BOTH, guest)
        if definition.name in state.unplugged:
            places = tuple(place for place in places if place is not Where.LIVE)
        yield from _missing(guest, definition, places)


def _without_notes(state: State, names: set[str]) -> State:
    """What an admin took out before is in again."""
    return replace(state, stopped=state.stopped - names, unplugged=state.unplugged - names)


def _let_go(state: State, definitions: Iterable[Definition], places: tuple[Where, ...]) -> tuple[Unplug, ...]:
    """With --disrupt guests are made to let go of what is to vanish; without it they are not touched."""
    if not state.disrupt:
        return ()
    return tuple(
        unplug
        for one in definitions
        for guest in state.snapshot.guests or ()
        for unplug in _present(guest, one, places)
    )


def _links_to_cut(state: State, new: Desired) -> Iterator[Unplug]:
    """Guests let go of matrices that are gone or are to be another guest's."""
    for old in state.desired.definitions:
        after = new.by_uuid(old.uuid)
        if state.snapshot.guests is None and old.guest and (after is None or after.guest != old.guest):
            guest_of(old.guest, state.snapshot)  # refuses: nobody could make that guest let go
        for guest in state.snapshot.guests or ():
            if after is None or (old.guest == guest.name and after.guest != guest.name):
                yield from _present(guest, old, tuple(Where))


def _links_to_make(state: State, new: Desired) -> Iterator[Plug]:
    """Guests take the matrices that name them, where that is new or has come undone."""
    for one in new.definitions:
        if one.guest is None:
            continue
        before = state.desired.by_uuid(one.uuid)
        if before is None or before.guest != one.guest:
            guest_of(one.guest, state.snapshot)
        guest = state.snapshot.guest(one.guest)
        if guest is not None and one.start is Start.AUTO:
            yield from _missing(guest, one, _places(Scope.BOTH, guest))


def _uuids(desired: Desired) -> frozenset[UUID]:
    return frozenset(one.uuid for one in desired.definitions)


def _missing(guest: Guest, definition: Definition, places: Iterable[Where]) -> Iterator[Plug]:
    for place in places:
        if not _has(guest, definition, place):
            yield Plug(guest.name, definition.uuid, place)


def _present(guest: Guest, definition: Definition, places: Iterable[Where]) -> Iterator[Unplug]:
    for place in places:
        if _has(guest, definition, place):
            yield Unplug(guest.name, definition.uuid, place)


def _places(scope: Scope, guest: Guest) -> tuple[Where, ...]:
    if scope is Scope.LIVE and not guest.running:
        raise Refused(
            Problem.GUEST_NOT_RUNNING,
            f"guest {guest.name} is not running, so nothing can be attached to it live",
            hint="start it, or attach for its next start: --config instead of --live",
        )
    if scope is Scope.CONFIG and not guest.persistent:
        raise Refused(
            Problem.GUEST_NOT_DEFINED,
            f"guest {guest.name} is transient: it has no definition to attach to",
            hint="attach to the running guest: --live instead of --config",
        )
    live = (Where.LIVE,) if guest.running and scope is not Scope.CONFIG else ()
    config = (Where.CONFIG,) if guest.persistent and scope is not Scope.LIVE else ()
    return live + config


def _has(guest: Guest, definition: Definition, place: Where) -> bool:
    return definition.uuid in (guest.live if place is Where.LIVE else guest.config)
