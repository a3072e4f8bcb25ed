# SPDX-License-Identifier: Apache-2.0
"""host.toml is read strictly, and every mistake is named with its file, line and key."""

from __future__ import annotations

from pathlib import Path
from uuid import UUID

import pytest

from vfioapd.domain.apqn import parse_apqn
from vfioapd.domain.definition import Definition, Desired, Require, Start
from vfioapd.domain.matrix import Matrix
from vfioapd.domain.numbers import AdapterId, DomainId
from vfioapd.domain.problems import Problem, Refused
from vfioapd.store.host_file import parse, read
from vfioapd.store.toml_text import line_of, scan

EXAMPLE = Path(__file__).parents[2] / "etc" / "host.toml"

GOOD = """\
version = 1

[host]
keep = ["00.000d"]

[[matrix]]
name = "bastion"
uuid = "825b3872-0001-0003-0011-28a403f8b357"
adapters = [0x05, 7]
domains = [0x0011]
start = "manual"
guest = "bastion"
require = "any"

# a comment
[[matrix]]
name = "vault"
uuid = "825b3872-0001-0003-0011-28a403f8b358"
adapters = [
  8,
]
domains = [17, 18]
control_domains = [17, 18, 19]
"""


def adapters(*numbers: int) -> frozenset[AdapterId]:
    return frozenset(map(AdapterId, numbers))


def domains(*numbers: int) -> frozenset[DomainId]:
    return frozenset(map(DomainId, numbers))


def refusal(text: str) -> Refused:
    with pytest.raises(Refused) as refused:
        parse(text, "host.toml")
    return refused.value


def test_every_key_is_read() -> None:
    assert parse(GOOD, "x") == Desired(
        frozenset({parse_apqn("00.000d")}),
        (
            Definition(
                "bastion",
                UUID("825b3872-0001-0003-0011-28a403f8b357"),
                Matrix(adapters(5, 7), domains(17), domains(17)),
                Start.MANUAL,
                "bastion",
                Require.ANY,
            ),
            Definition(
                "vault",
                UUID("825b3872-0001-0003-0011-28a403f8b358"),
                Matrix(adapters(8), domains(17, 18), domains(17, 18, 19)),
                Start.AUTO,
                None,
                Require.ALL,
            ),
        ),
    )


@pytest.mark.parametrize("text", ["", "\n", "# nothing said\n", "version = 1\n", "version = 1\n[host]\n"])
def test_a_file_that_says_nothing_wants_nothing(text: str) -> None:
    assert parse(text, "x") == Desired()


def test_a_missing_file_wants_nothing(tmp_path: Path) -> None:
    found = read(tmp_path / "host.toml")

    assert (found.text, found.desired) == ("", Desired())


def test_the_packaged_example_is_accepted_and_so_is_each_line_of_it_when_uncommented() -> None:
    text = EXAMPLE.read_text()
    live = "".join(
        f"{line.removeprefix('#')}\n" if line.startswith("#") and not line.startswith("# ") else f"{line}\n"
        for line in text.splitlines()
    )

    assert parse(text, "x") == Desired()
    wanted = parse(live, "x")
    assert wanted.keep
    assert {"name", "uuid", "adapters", "domains", "control_domains", "start", "guest", "require"} <= set(
        live.replace("=", " ").split()
    )
    assert len(wanted.definitions) == 2


def test_text_that_is_not_utf_8_is_named_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "host.toml"
    path.write_bytes(b"version = 1\n# Gr\xfc\xdfe\n")

    with pytest.raises(Refused, match=r"host.toml:2: byte 0xfc is not UTF-8 text") as refused:
        read(path)

    assert refused.value.problem is Problem.BAD_HOST_FILE


def test_a_byte_order_mark_is_named() -> None:
    with pytest.raises(Refused, match=r"draft.toml:1: the file begins with a byte order mark") as refused:
        parse("\ufeffversion = 1\n", "draft.toml")
    assert refused.value.problem is Problem.BAD_HOST_FILE


# One changed line of GOOD each: (old, new, line, key, words of the sentence or the hint).
MISTAKES = [
    ("version = 1", "", 1, "version", "missing"),
    (
        "version = 1\n\n[host]",
        "[host]\nversion = 1",
        2,
        "version",
        "at the top of the file, before the first",
    ),
    ("version = 1", "\nkeep = []\nversion = 1", 2, "keep", "belongs under [host], not at the top"),
    ("[host]", "[host]\nversion = 1", 4, "version", "at the top of the file, before the first table"),
    ("[host]", '[host]\nname = "bastion"', 4, "name", "under the [[matrix]] that it is about, not in [host]"),
    ('name = "vault"', 'name = "vault"\nrepair = true', 18, "repair", "under [host], not in [[matrix]]"),
    ("version = 1", "version = 2", 1, "version", "must be 1"),
    ("version = 1", "version = true", 1, "version", "must be 1"),
    ("version = 1", 'version = "1"', 1, "version", "must be 1"),
    ("version = 1", "version = 1\nhots = 3", 2, "hots", "did you mean host?"),
    ("[host]", "[hots]", 3, "hots", "did you mean host?"),
    ('[host]\nkeep = ["00.000d"]', "host = 3", 3, "host", "must be a table"),
    ("[host]", "[[host]]", 3, "host", "write [host]"),
    ("keep =", "keeps =", 4, "keeps", "did you mean keep?"),
    ('["00.000d"]', '"00.000d"', 4, "keep", "must be a list of texts, not a text"),
    ('["00.000d"]', "[13]", 4, "keep", "must be a text, not a number"),
    ('["00.000d"]', '["0.13"]', 4, "keep", "write 00.0013 (adapter 0, domain 19) or 00.000d"),
    ('["00.000d"]', '["00.0100"]', 4, "keep", "out of range"),
    ('name = "bastion"', "", 6, "name", "missing in [[matrix]]"),
    ('name = "bastion"', 'name = "-x"', 7, "name", "cannot name a matrix"),
    ('name = "bastion"', "name = 5", 7, "name", "must be a text, not a number"),
    ('name = "vault"', '"name" = ""', 17, "name", "cannot name a matrix"),
    ('name = "vault"', 'names = "vault"', 17, "names", "did you mean name?"),
    ('name = "vault"', 'name = "vault"\nwhatever = 1', 18, "whatever", "known here: name, uuid"),
    ('name = "vault"', 'name = "vault"\n[matrix.sub]\nx = 1', 18, "sub", "unknown key"),
    ("28a403f8b358", "28a403f8b3", 18, "uuid", "is not a UUID"),
    ('uuid = "825b3872-0001-0003-0011-28a403f8b358"', "", 16, "uuid", "uuidgen"),
    ("adapters = [0x05, 7]", "", 6, "adapters", "missing"),
    ("adapters = [0x05, 7]", "adapters = 5", 9, "adapters", "must be a list of numbers, not a number"),
    ("adapters = [0x05, 7]", "adapters = [true]", 9, "adapters", "whole numbers, not a truth value"),
    ("adapters = [0x05, 7]", "adapters = [5.0]", 9, "adapters", "whole numbers, not a fraction"),
    ("adapters = [0x05, 7]", 'adapters = ["5"]', 9, "adapters", "without quotes"),
    ("adapters = [0x05, 7]", "adapters = [[5]]", 9, "adapters", "whole numbers, not a list"),
    ("adapters = [0x05, 7]", "adapters = [1979-05-27]", 9, "adapters", "not a date or time"),
    ("adapters = [0x05, 7]", "adapters = [256]", 9, "adapters", "adapter 256 is out of range"),
    ("adapters = [0x05, 7]", "adapters = [-1]", 9, "adapters", "adapter -1 is out of range"),
    ("domains = [17, 18]", "", 16, "domains", "missing"),
    ("domains = [17, 18]", "domains = [17, 0x100]", 22, "domains", "domain 256 is out of range"),
    ("[17, 18, 19]", "[17, 18, 300]", 23, "control_domains", "domain 300 is out of range"),
    ('"manual"', '"manuel"', 11, "start", "did you mean manual?"),
    ('"manual"', "true", 11, "start", 'must be "auto" or "manual", not a truth value'),
    ('"any"', '"some"', 13, "require", 'must be "all", "any" or "none", not \'some\''),
    ('guest = "bastion"', 'guest = ""', 12, "guest", "leave the line out"),
    ('guest = "bastion"', 'guest = "a/b"', 12, "guest", "cannot name a guest"),
    ('guest = "bastion"', "guest = ['bastion']", 12, "guest", "must be a text, not a list"),
]


@pytest.mark.parametrize(("old", "new", "line", "key", "words"), MISTAKES)
def test_a_mistake_is_named_with_line_and_key(old: str, new: str, line: int, key: str, words: str) -> None:
    text = GOOD.replace(old, new, 1)
    assert text != GOOD

    refused = refusal(text)

    assert str(refused).startswith(f"host.toml:{line}: {key}: ")
    assert words in f"{refused} {refused.hint}"
    assert refused.problem is Problem.BAD_HOST_FILE


@pytest.mark.parametrize(
    ("old", "new", "place", "words"),
    [
        ("[host]", "[host", "3: column 6", "not valid TOML: Expected ']'"),
        ("0x05, 7", "0x05, 071", "9: column 20", "write 71 (0x0047) or 113 (0x0071)"),
        ("[0x0011]", "[0x0011, 000d]", "10: column 21", "000d is not a number that can be read one way only"),
        ("  8,\n", "  08,\n", "20: column 4", "write 8 (0x0008)"),
        ('"manual"', "manual", "11: column 9", 'a text stands in double quotes: "manual"'),
        ('["00.000d"]', "[00.000d]", "4: column 10", 'a text stands in double quotes: "00.000d"'),
        ('"825b3872-0001-0003-0011-28a403f8b357"', "825b3872-0001", "8: column 11", '"825b3872-0001"'),
        ("adapters = [\n  8,\n]", "adapters = [\n  8,\n", "22: column 1", "not valid TOML"),
        (
            'name = "vault"',
            'name = "vault"\nname = "v"',
            "18: column",
            "not valid TOML: Cannot overwrite a value",
        ),
        ("control_domains = [17, 18, 19]\n", 'guest = """', "23: column 12", "not valid TOML: Unterminated"),
        ("[17, 18, 19]", "[" * 3000, "1: not readable", "nest too deeply"),
        ("[17, 18, 19]", f"[{'1' * 5000}]", "1: not readable", "too many digits"),
    ],
)
def test_a_syntax_error_is_named_with_line_and_column(old: str, new: str, place: str, words: str) -> None:
    text = GOOD.replace(old, new, 1)
    assert text != GOOD

    refused = refusal(text)

    assert str(refused).startswith(f"host.toml:{place}")
    assert words in f"{refused} {refused.hint}"
    assert refused.problem is Problem.BAD_HOST_FILE


@pytest.mark.parametrize(
    ("old", "new", "line", "problem", "words"),
    [
        ('"vault"', '"bastion"', 17, Problem.NAME_TAKEN, ["matrix bastion is defined already"]),
        ("b358", "b357", 18, Problem.UUID_TAKEN, ["matrix vault", "matrix bastion"]),
        ("  8,", "  7, 8,", 16, Problem.QUEUE_TAKEN, ["matrix vault", "07.0011 (held by matrix bastion)"]),
        (
            'name = "vault"',
            'name = "vault"\nguest = "bastion"',
            18,
            Problem.GUEST_HAS_MATRIX,
            ["matrix vault"],
        ),
        ("  8,", "", 16, Problem.INCOMPLETE_MATRIX, ["matrix vault has no adapter"]),
        (
            '"00.000d"',
            '"08.0012"',
            16,
            Problem.QUEUE_KEPT_BY_HOST,
            ["matrix vault", "08.0012", "kept by the host"],
        ),
    ],
)
def test_a_contradiction_names_both_owners_and_keeps_its_code(
    old: str, new: str, line: int, problem: Problem, words: list[str]
) -> None:
    refused = refusal(GOOD.replace(old, new, 1))

    assert str(refused).startswith(f"host.toml:{line}: ")
    assert refused.problem is problem
    for word in words:
        assert word in str(refused)


def test_a_contradiction_says_where_the_other_owner_stands() -> None:
    taken = refusal(GOOD.replace("  8,", "  7, 8,"))
    kept = refusal(GOOD.replace("00.000d", "08.0012"))

    assert taken.hint == "matrix bastion is in host.toml:6"
    assert taken.queues == ("07.0011",)
    assert taken.owners == ("matrix bastion",)
    assert kept.hint == "keep is in host.toml:4"


@pytest.mark.parametrize(
    ("text", "key", "line"),
    [
        ("version = 1\nhost.keep = [13]\n", "keep", 2),
        ("version = 1\n\n[matrix]\nname = 5\n", "matrix", 3),
        ("version = 1\n\nmatrix = [5]\n", "matrix", 3),
        ("version = 1\nhost = { keep = [13] }\n", "keep", 2),
        ('version = 1\n["host"] # here\n\n"keep" = [\n"00.0001",\n13]\n', "keep", 4),
        ('version = 1\nmatrix = [{}, \n{name = "x"}]\n', "name", 2),
        ('version = 1\n[[ "matrix" ]]\n"na\\u006de" = 5\nuuid=1\nadapters=1\ndomains=[]\n', "domains", 6),
        ('version = 1\n[[matrix]]\nguest = """\n[[matrix]]\nname = 3\n"""\nname = 1\n', "uuid", 2),
    ],
)
def test_no_way_of_writing_toml_gets_a_wrong_line(text: str, key: str, line: int) -> None:
    if key == "domains":
        assert line_of(scan(text), ("matrix", "name"), 0) == 3
        assert line_of(scan(text), ("matrix", key), 0) == line
    else:
        assert str(refusal(text)).startswith(f"host.toml:{line}: {key}: ")


def test_statements_cover_the_text_without_gaps() -> None:
    text = (
        GOOD + 'x = """a"""""\ny = \'\'\'\n[[matrix]] # "\'\'\'\nz = "\\"#" # \'"\nw = [ # ]\n"]", {a = 1}]'
    )

    statements = scan(text)

    assert "".join(text[one.start : one.end] for one in statements) == text
    assert [one.path[-1] for one in statements[-4:]] == ["x", "y", "z", "w"]
    assert all(one.line == text[: one.start].count("\n") + 1 for one in statements)


def test_a_version_below_the_last_matrix_is_told_where_it_belongs() -> None:
    text = GOOD.removeprefix("version = 1\n") + "version = 1\n"
    expected = "version: belongs at the top of the file, before the first table, not in [[matrix]]"
    assert str(refusal(text)) == f"host.toml:{text.count(chr(10))}: {expected}"
