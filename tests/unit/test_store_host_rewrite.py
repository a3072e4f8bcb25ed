# SPDX-License-Identifier: Apache-2.0
"""host.toml is changed without losing anything that the admin wrote."""

from __future__ import annotations

import re
from dataclasses import replace
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vfioapd.domain.apqn import Apqn, parse_apqn
from vfioapd.domain.definition import Definition, Desired, Require, Start, check_desired
from vfioapd.domain.matrix import Matrix
from vfioapd.domain.numbers import AdapterId, DomainId
from vfioapd.domain.problems import Problem, Refused
from vfioapd.store.host_file import parse, rewrite

ADMIN = """\
# LPAR 7, test
version = 1      # the format

[host]
keep = [ "00.000d" ,  # the master key terminal
  "01.000d" ]

# The bastion: ask Ute before you touch it.
[[matrix]]
name     = 'bastion'      # aligned
uuid = "825b3872-0001-0003-0011-28A403F8B357"
adapters = [5, 7]    # both cages
domains  = [
  17,   # production
  # test comes later
]
start = "auto"
guest = "bastion"
# require = "any"

# ---- second shift ----

# The vault.
[[matrix]]
name = "vault"
uuid = "825b3872-0001-0003-0011-28a403f8b358"
adapters = [0x8]
domains = [0x11, 0x0_012]
control_domains = [0x11]

# The end.
"""
BASTION, VAULT = parse(ADMIN, "host.toml").definitions
NEW = Definition(
    "new",
    UUID("825b3872-0001-0003-0011-28a403f8b359"),
    Matrix(frozenset({AdapterId(5)}), frozenset({DomainId(18)}), frozenset({DomainId(18)})),
)
COMMENT = re.compile(r"#[^\n]*")


def desired(*definitions: Definition, keep: str = "00.000d 01.000d") -> Desired:
    return Desired(frozenset(map(parse_apqn, keep.split())), definitions)


def changed_lines(before: str, after: str) -> tuple[list[str], list[str]]:
    old, new = before.splitlines(), after.splitlines()
    return [line for line in old if line not in new], [line for line in new if line not in old]


def test_no_change_leaves_every_byte() -> None:
    assert rewrite(ADMIN, desired(BASTION, VAULT)) == ADMIN


def test_setting_a_guest_adds_one_line_below_the_matrix() -> None:
    after = rewrite(ADMIN, desired(BASTION, replace(VAULT, guest='it\'s "x"')))

    assert changed_lines(ADMIN, after) == ([], ['guest = "it\'s \\"x\\""'])
    assert after.index('guest = "it') < after.index("# The end.")


def test_taking_the_guest_away_takes_one_line() -> None:
    after = rewrite(ADMIN, desired(replace(BASTION, guest=None), VAULT))

    assert changed_lines(ADMIN, after) == (['guest = "bastion"'], [])


def test_a_changed_word_keeps_the_rest_of_its_line() -> None:
    text = ADMIN.replace('start = "auto"', 'start = "auto"   # since March')

    after = rewrite(text, desired(replace(BASTION, start=Start.MANUAL), VAULT))

    assert changed_lines(text, after) == (
        ['start = "auto"   # since March'],
        ['start = "manual"   # since March'],
    )


def test_numbers_that_stay_keep_their_spelling_and_new_ones_follow_it() -> None:
    more = frozenset({DomainId(17), DomainId(18), DomainId(64)})
    bigger = replace(VAULT, matrix=replace(VAULT.matrix, domains=more))
    other = replace(BASTION, matrix=replace(BASTION.matrix, adapters=frozenset({AdapterId(7), AdapterId(9)})))

    after = rewrite(ADMIN, desired(other, bigger))

    assert changed_lines(ADMIN, after) == (
        ["adapters = [5, 7]    # both cages", "domains = [0x11, 0x0_012]"],
        ["adapters = [7, 9]    # both cages", "domains = [0x11, 0x0_012, 0x0040]"],
    )


def test_a_number_joins_a_list_of_many_lines_without_losing_its_comments() -> None:
    domains = frozenset({DomainId(17), DomainId(19)})

    after = rewrite(
        ADMIN, desired(replace(BASTION, matrix=Matrix(BASTION.matrix.adapters, domains, domains)), VAULT)
    )

    assert "  17, 19,   # production\n" in after
    assert COMMENT.findall(after) == COMMENT.findall(ADMIN)


def test_a_new_matrix_is_appended_with_hexadecimal_numbers() -> None:
    after = rewrite(ADMIN, desired(BASTION, VAULT, NEW))

    assert after.replace("\n# The end.\n", "").endswith(
        """control_domains = [0x11]

[[matrix]]
name = "new"
uuid = "825b3872-0001-0003-0011-28a403f8b359"
adapters = [0x05]
domains = [0x0012]
start = "auto"
require = "all"
"""
    )
    assert changed_lines(ADMIN, after)[0] == []


def test_a_removed_matrix_takes_its_own_comments_and_no_others() -> None:
    without_bastion = rewrite(ADMIN, desired(VAULT))
    without_vault = rewrite(ADMIN, desired(BASTION))

    assert "\n\n# ---- second shift ----\n\n# The vault.\n[[matrix]]" in without_bastion
    assert "bastion" not in without_bastion
    assert "require" not in without_bastion  # the comment right below its last key was its own
    assert COMMENT.findall(without_vault)[-2:] == ["# ---- second shift ----", "# The end."]
    assert without_vault.startswith(ADMIN[: ADMIN.index("# The vault.")])


def test_a_comment_between_two_tables_with_no_blank_line_survives_the_removal_of_either() -> None:
    text = ADMIN.replace("control_domains = [0x11]\n\n# The end.\n", "# whose am I?\n") + (
        '[[matrix]]\nname = "new"\nuuid = "825b3872-0001-0003-0011-28a403f8b359"\n'
        "adapters = [5]\ndomains = [18]\n"
    )
    vault = parse(text, "x").definitions[1]

    assert "# whose am I?" in rewrite(text, desired(BASTION, vault))
    assert "# whose am I?" in rewrite(text, desired(BASTION, NEW))


def test_a_renamed_matrix_keeps_its_place_and_comments() -> None:
    after = rewrite(ADMIN, desired(replace(BASTION, name="gate"), VAULT))

    assert changed_lines(ADMIN, after) == (
        ["name     = 'bastion'      # aligned"],
        ['name     = "gate"      # aligned'],
    )


def test_matrices_change_places_with_their_comments() -> None:
    after = rewrite(ADMIN, desired(VAULT, BASTION))

    assert after.index("# The vault.\n[[matrix]]") < after.index("# The bastion: ask Ute")
    assert sorted(COMMENT.findall(after)) == sorted(COMMENT.findall(ADMIN))


def test_keep_changes_in_place() -> None:
    after = rewrite(ADMIN, desired(BASTION, VAULT, keep="00.000d 01.000d 02.000d"))

    assert 'keep = [ "00.000d" ,  # the master key terminal\n  "01.000d"' in after
    assert changed_lines(ADMIN, after)[0] == ['  "01.000d" ]']


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("", '[host]\nkeep = ["00.0000"]\n\n# one\n[[matrix]]'),
        ("[host] # mine\n# nothing yet\n", '[host] # mine\nkeep = ["00.0000"]\n# nothing yet\n'),
        ("host.keep = [] # none\n", 'host.keep = ["00.0000"] # none\n'),
        ("host = { } # none\n", 'host = { keep = ["00.0000"] } # none\n'),
    ],
)
def test_keep_is_added_where_it_belongs(host: str, expected: str) -> None:
    matrix = ADMIN[ADMIN.index("[[matrix]]\nname     =") : ADMIN.index("# require")]
    text = f"version = 1\n{host}\n# one\n{matrix}"

    after = rewrite(text, desired(BASTION, keep="00.0000"))

    assert expected in after
    assert COMMENT.findall(after) == COMMENT.findall(text)


def test_an_empty_file_gets_version_and_a_header() -> None:
    after = rewrite("", desired(NEW, keep=""))

    assert re.fullmatch(r"(#[^\n]*\n)+version = 1\n\n\[\[matrix\]\]\nname = \"new\"\n(.+\n)+", after)


def test_a_file_of_comments_keeps_them_and_gets_version() -> None:
    assert rewrite("# mine", desired(keep="00.0000")) == '# mine\nversion = 1\n\n[host]\nkeep = ["00.0000"]\n'


def test_inline_matrices_are_not_rewritten_but_named() -> None:
    text = (
        f'version = 1\n\nmatrix = [{{name = "new", uuid = "{NEW.uuid}", adapters = [5], domains = [18]}}]\n'
    )

    assert parse(text, "x") == desired(NEW, keep="")
    with pytest.raises(Refused, match=r"^/etc/vfioapd/host.toml:3: matrix: ") as refused:
        rewrite(text, desired(keep=""))
    assert refused.value.problem is Problem.BAD_HOST_FILE
    assert "[[matrix]]" in str(refused.value.hint)


def test_a_contradiction_is_never_written() -> None:
    with pytest.raises(Refused) as refused:
        rewrite(ADMIN, desired(BASTION, VAULT, replace(NEW, name="vault")))

    assert refused.value.problem is Problem.NAME_TAKEN


def test_line_ends_of_another_system_stay() -> None:
    text = ADMIN.replace("\n", "\r\n")
    matrix = replace(BASTION.matrix, adapters=frozenset({AdapterId(5)}))

    after = rewrite(text, desired(replace(BASTION, matrix=matrix, guest=None), VAULT))

    assert parse(text, "x") == desired(BASTION, VAULT)
    expected = ADMIN.replace("[5, 7]", "[5]").replace('guest = "bastion"\n', "")
    assert after == expected.replace("\n", "\r\n")


def test_lines_that_are_new_end_as_the_others_do() -> None:
    after = replace(BASTION, require=Require.ANY)
    crlf = rewrite(ADMIN.replace("\n", "\r\n"), desired(after, VAULT, NEW))
    assert crlf == rewrite(ADMIN, desired(after, VAULT, NEW)).replace("\n", "\r\n")
    mixed = rewrite(ADMIN.replace("\n", "\r\n", 1), desired(after, VAULT, NEW))
    assert mixed.count("\r") == 1, "a file of both kinds has none to follow"


# --- properties -------------------------------------------------------------------------------------

numbers = st.sets(st.integers(0, 255), min_size=1, max_size=4)
names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,8}", fullmatch=True)
guests = st.none() | st.text(st.sampled_from("ab'\"\\ #[]=é"), min_size=1, max_size=6)


@st.composite
def matrices(draw: st.DrawFn) -> Matrix:
    adapters = frozenset(map(AdapterId, draw(numbers)))
    domains = frozenset(map(DomainId, draw(numbers)))
    control = draw(st.just(domains) | st.frozensets(st.integers(0, 255).map(DomainId), max_size=3))
    return Matrix(adapters, domains, control)


definitions = st.builds(
    Definition,
    name=names,
    uuid=st.uuids(),
    matrix=matrices(),
    start=st.sampled_from(Start),
    guest=guests,
    require=st.sampled_from(Require),
)
queues = st.builds(Apqn, st.integers(0, 255).map(AdapterId), st.integers(0, 255).map(DomainId))


@st.composite
def states(draw: st.DrawFn) -> Desired:
    return consistent(draw(st.frozensets(queues, max_size=3)), draw(st.lists(definitions, max_size=4)))


@st.composite
def edits(draw: st.DrawFn, state: Desired) -> Desired:
    """Another state that shares much with the first: some removed, moved, changed, some new."""
    old = draw(st.permutations(state.definitions)) if state.definitions else []
    kept = [one for one in old if draw(st.booleans())]
    changed = [replace(one, **draw(changes)) for one in kept]
    more = draw(st.lists(definitions, max_size=2))
    keep = draw(st.just(state.keep) | st.frozensets(queues, max_size=3))
    return consistent(keep, draw(st.permutations([*changed, *more])))


changes = st.fixed_dictionaries(
    {},
    optional={
        "name": names,
        "uuid": st.uuids(),
        "matrix": matrices(),
        "start": st.sampled_from(Start),
        "guest": guests,
        "require": st.sampled_from(Require),
    },
)


def consistent(keep: frozenset[Apqn], wanted: list[Definition]) -> Desired:
    """Leave out what would contradict the rest."""
    found = Desired(keep)
    for one in wanted:
        candidate = Desired(keep, (*found.definitions, one))
        try:
            check_desired(candidate)
        except Refused:
            continue
        found = candidate
    return found


def decorate(text: str, data: st.DataObject) -> str:
    """Write as admins do: comments and blank lines anywhere, other bases, lists over many lines."""
    lines = []
    serial = iter(range(1000))
    for line in text.splitlines():
        lines.extend(
            data.draw(st.sampled_from([[], [""], [f"# c{next(serial)}"], ["", f"  # c{next(serial)}", ""]]))
        )
        if "[0x" in line and data.draw(st.booleans()):
            line = re.sub(r"0x([0-9a-f]+)", lambda match: str(int(match[1], 16)), line)
        if line.endswith("]") and " = [" in line and data.draw(st.booleans()):
            line = line.replace("[", f"[ # c{next(serial)}\n  ").replace(", ", f", # c{next(serial)}\n  ")
            if line.endswith("]") and not line.endswith("  ]"):
                line = line.removesuffix("]") + data.draw(
                    st.sampled_from(["]", ",\n]", f" # c{next(serial)}\n]"])
                )
        if data.draw(st.booleans()):
            line += f"  # c{next(serial)}"
        lines.append(line)
    return "\n".join(lines) + data.draw(st.sampled_from(["", "\n", "\n\n# end"]))


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_what_is_written_is_what_was_wanted(data: st.DataObject) -> None:
    before = data.draw(states())
    text = decorate(rewrite("", before), data) if before != Desired() else ""
    assert parse(text, "x") == before
    assert rewrite(text, before) == text

    after = data.draw(edits(before))
    result = rewrite(text, after)

    assert parse(result, "x") == after


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_comments_survive_when_nothing_is_removed(data: st.DataObject) -> None:
    before = data.draw(states())
    text = decorate(rewrite("", before), data) if before != Desired() else "# only a comment\n"
    more = [*before.definitions, *data.draw(st.lists(definitions, min_size=1, max_size=2))]
    flipped = [
        replace(one, start=data.draw(st.sampled_from(Start)), require=data.draw(st.sampled_from(Require)))
        for one in more
    ]

    result = rewrite(text, consistent(before.keep, flipped))

    assert set(re.findall(r"# c\d+", result)) == set(re.findall(r"# c\d+", text))
