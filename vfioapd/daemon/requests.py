# SPDX-License-Identifier: Apache-2.0
"""What an admin writes on a command line, made into a definition or refused."""

from __future__ import annotations

from dataclasses import replace
from enum import StrEnum
from typing import TYPE_CHECKING, TypeVar
from uuid import uuid4

from vfioapd.domain.apqn import parse_apqns
from vfioapd.domain.definition import Definition, Require, Start, check_name, parse_uuid
from vfioapd.domain.matrix import Matrix, matrix_of_queues
from vfioapd.domain.numbers import parse_adapters, parse_domains
from vfioapd.domain.problems import Problem, Refused

if TYPE_CHECKING:
    from vfioapd.domain.numbers import DomainId
    from vfioapd.rpc.interface import DefineRequest

Word = TypeVar("Word", bound=StrEnum)

NO_DOMAINS = "none"  # the one word that --control-domains takes besides numbers


def definition_of(request: DefineRequest) -> Definition:
    """The definition that a request asks for; the first thing that cannot be read is refused."""
    return Definition(
        check_name(request.name),
        parse_uuid(request.uuid) if request.uuid is not None else uuid4(),
        _matrix(request),
        parse_word(request.start, Start, "start") or Start.AUTO,
        request.guest,
        parse_word(request.require, Require, "require") or Require.ALL,
    )


def edited(request: DefineRequest, old: Definition) -> Definition:
    """A definition with what a request names put in the place of what it was."""
    return replace(
        old,
        matrix=_edited_matrix(request, old.matrix),
        start=parse_word(request.start, Start, "start") or old.start,
        require=parse_word(request.require, Require, "require") or old.require,
    )


def _edited_matrix(request: DefineRequest, old: Matrix) -> Matrix:
    """Control domains that were the usage domains follow them; others stay unless they are named."""
    if request.queues is not None or request.adapters is not None or request.domains is not None:
        adapters = old.adapters if request.adapters is None else parse_adapters(request.adapters)
        domains = old.domains if request.domains is None else parse_domains(request.domains)
        new = _matrix(request) if request.queues is not None else Matrix(adapters, domains, domains)
        kept = new.domains if old.control_domains == old.domains else old.control_domains
    else:
        new, kept = old, old.control_domains
    control = _control(request.control_domains)
    return Matrix(new.adapters, new.domains, kept if control is None else control)


def parse_word(text: str | None, words: type[Word], what: str) -> Word | None:
    """One of a few words; None stays None."""
    if text is None:
        return None
    try:
        return words(text)
    except ValueError:
        known = ", ".join(words)
        raise Refused(
            Problem.BAD_REQUEST, f"{what} cannot be {text!r}", hint=f"it is one of: {known}"
        ) from None


def _matrix(request: DefineRequest) -> Matrix:
    if request.queues is not None:
        if request.adapters is not None or request.domains is not None:
            raise Refused(
                Problem.BAD_REQUEST,
                f"matrix {request.name} is given both as queues and as adapters and domains",
                hint="use --queues, or --adapters with --domains",
            )
        matrix = matrix_of_queues(parse_apqns(request.queues))
    else:
        matrix = _cross(request)
    control = _control(request.control_domains)
    return matrix if control is None else Matrix(matrix.adapters, matrix.domains, control)


def _cross(request: DefineRequest) -> Matrix:
    adapters = parse_adapters(request.adapters) if request.adapters is not None else frozenset()
    domains = parse_domains(request.domains) if request.domains is not None else frozenset()
    if not adapters or not domains:
        missing = "domain" if adapters else "adapter" if domains else "queue"
        raise Refused(
            Problem.INCOMPLETE_MATRIX,
            f"matrix {request.name} has no {missing}, so it holds no queue",
            hint="name queues (--queues 05.0011), or adapters and domains (--adapters 5,7 --domains 17)",
        )
    return Matrix(adapters, domains, domains)


def _control(text: str | None) -> frozenset[DomainId] | None:
    if text is None:
        return None
    return frozenset() if text == NO_DOMAINS else parse_domains(text)
