# SPDX-License-Identifier: Apache-2.0
"""Our XML is what libvirt takes: its schemas, and the rules that its schemas do not hold."""

from __future__ import annotations

import re
import shutil
import sys
import sysconfig
from pathlib import Path
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lxml import etree

from vfioapd.domain.definition import Definition
from vfioapd.domain.matrix import EMPTY_MATRIX, Matrix
from vfioapd.domain.numbers import AdapterId, DomainId
from vfioapd.domain.problems import Problem, Refused
from vfioapd.virt import xml

SCHEMAS = Path("/usr/share/libvirt/schemas")
TEMPLATES = Path(__file__).parents[2] / "xml-templates"
needs_schemas = pytest.mark.skipif(
    not (SCHEMAS / "nodedev.rng").is_file(), reason="needs libvirt's schemas (Debian: libvirt0)"
)

U = UUID("825b3872-0001-0003-0011-28a403f8b357")
V = UUID("825b3872-0001-0003-0011-28a403f8b358")

# A bare <hostdev> has no grammar of its own: this one begins at libvirt's define of it.
HOSTDEV_GRAMMAR = f"""\
<grammar xmlns='http://relaxng.org/ns/structure/1.0'>
  <include href='{SCHEMAS}/domaincommon.rng'/>
  <start><ref name='hostdev'/></start>
</grammar>"""


def definition(adapters: set[int], domains: set[int], control: set[int]) -> Definition:
    return Definition(
        "bastion",
        U,
        Matrix(
            frozenset(map(AdapterId, adapters)),
            frozenset(map(DomainId, domains)),
            frozenset(map(DomainId, control)),
        ),
    )


@pytest.fixture(scope="module")
def nodedev_schema() -> etree.RelaxNG:
    return etree.RelaxNG(etree.parse(str(SCHEMAS / "nodedev.rng")))


@pytest.fixture(scope="module")
def hostdev_schema(tmp_path_factory: pytest.TempPathFactory) -> etree.RelaxNG:
    grammar = tmp_path_factory.mktemp("grammar") / "hostdev.rng"
    grammar.write_text(HOSTDEV_GRAMMAR)
    return etree.RelaxNG(etree.parse(str(grammar)))


def test_a_node_device_is_written_as_libvirt_prints_it() -> None:
    assert (
        xml.nodedev_xml(definition({7, 5}, {171, 17}, {17}))
        == """\
<device>
  <name>mdev_825b3872_0001_0003_0011_28a403f8b357_matrix</name>
  <parent>ap_matrix</parent>
  <capability type='mdev'>
    <type id='vfio_ap-passthrough'/>
    <uuid>825b3872-0001-0003-0011-28a403f8b357</uuid>
    <attr name='assign_adapter' value='0x05'/>
    <attr name='assign_adapter' value='0x07'/>
    <attr name='assign_domain' value='0x0011'/>
    <attr name='assign_domain' value='0x00ab'/>
    <attr name='assign_control_domain' value='0x0011'/>
  </capability>
</device>
"""
    )


def test_a_guest_device_is_written_as_libvirt_prints_it() -> None:
    assert (
        xml.hostdev_xml(U)
        == """\
<hostdev mode='subsystem' type='mdev' managed='no' model='vfio-ap'>
  <source>
    <address uuid='825b3872-0001-0003-0011-28a403f8b357'/>
  </source>
  <alias name='ua-vfioap'/>
</hostdev>
"""
    )


def test_one_document_does_not_leak_into_the_next() -> None:
    first = xml.nodedev_xml(definition({5}, {17}, {17})), xml.hostdev_xml(U)
    xml.nodedev_xml(definition({1, 2, 3}, set(), set()))
    xml.hostdev_xml(V)

    assert (xml.nodedev_xml(definition({5}, {17}, {17})), xml.hostdev_xml(U)) == first


numbers = st.sets(st.integers(0, 255), max_size=6)


@needs_schemas
@settings(max_examples=40, deadline=None)
@given(st.builds(definition, numbers, numbers, numbers))
def test_every_matrix_is_valid_and_reads_back(nodedev_schema: etree.RelaxNG, wanted: Definition) -> None:
    root = etree.fromstring(xml.nodedev_xml(wanted))

    nodedev_schema.assertValid(root)
    pairs = [(attr.get("name"), int(attr.get("value"), 16)) for attr in root.iter("attr")]
    assert pairs == [
        *(("assign_adapter", number) for number in sorted(wanted.matrix.adapters)),
        *(("assign_domain", number) for number in sorted(wanted.matrix.domains)),
        *(("assign_control_domain", number) for number in sorted(wanted.matrix.control_domains)),
    ]


@needs_schemas
def test_a_guest_device_is_valid(hostdev_schema: etree.RelaxNG) -> None:
    hostdev_schema.assertValid(etree.fromstring(xml.hostdev_xml(U)))


@needs_schemas
def test_the_schemas_are_awake(nodedev_schema: etree.RelaxNG, hostdev_schema: etree.RelaxNG) -> None:
    nameless = etree.fromstring(xml.nodedev_xml(definition({5}, {17}, set())))
    nameless.remove(nameless.find("name"))
    modelless = etree.fromstring(xml.hostdev_xml(U))
    del modelless.attrib["model"]

    assert not nodedev_schema.validate(nameless)
    assert not hostdev_schema.validate(modelless)


@needs_schemas
def test_the_templates_are_valid_documents_themselves(
    nodedev_schema: etree.RelaxNG, hostdev_schema: etree.RelaxNG
) -> None:
    nodedev_schema.assertValid(etree.parse(str(TEMPLATES / "nodedev.xml")))
    hostdev_schema.assertValid(etree.parse(str(TEMPLATES / "hostdev.xml")))


@needs_schemas
@pytest.mark.parametrize("number", [256, 65535, -1])
def test_a_number_that_the_schema_lets_pass_and_libvirt_refuses_is_refused(
    nodedev_schema: etree.RelaxNG, number: int
) -> None:
    valid = xml.nodedev_xml(definition({5}, {17}, set()))
    assert nodedev_schema.validate(etree.fromstring(valid.replace("0x0011", "0xffff")))  # asleep here

    for one in (definition({number}, {17}, set()), definition({5}, {number}, set())):
        with pytest.raises(Refused, match="out of range") as refused:
            xml.nodedev_xml(one)
        assert refused.value.problem is Problem.BAD_NUMBER
    with pytest.raises(Refused, match="out of range"):
        xml.nodedev_xml(definition({5}, {17}, {number}))


def test_no_attribute_is_empty_or_holds_what_libvirt_would_not_escape() -> None:
    everything = set(range(256))
    root = etree.fromstring(xml.nodedev_xml(definition(everything, everything, everything)))

    attrs = root.findall("capability/attr")
    assert len(attrs) == 3 * 256
    assert all(list(attr.attrib) == ["name", "value"] and len(attr) == 0 for attr in attrs)
    assert all(attr.text is None for attr in attrs)
    assert all(re.fullmatch("0x[0-9a-f]+", attr.get("value")) for attr in attrs)
    assert "attr" not in xml.nodedev_xml(Definition("empty", U, EMPTY_MATRIX))


def test_a_guest_device_holds_nothing_that_means_nothing_to_it() -> None:
    root = etree.fromstring(xml.hostdev_xml(U))

    assert sorted(root.attrib) == ["managed", "mode", "model", "type"]
    assert [element.tag for element in root.iter()] == ["hostdev", "source", "address", "alias"]
    assert list(root.find("source/address").attrib) == ["uuid"]


def guest(*devices: str) -> str:
    inside = "".join(devices)
    return f"<domain type='kvm'><name>bastion</name><devices>{inside}</devices></domain>"


def test_a_guest_with_two_devices_shows_both() -> None:
    # Schema and older libvirt let a second one into the XML; who plans must see it.
    document = guest("<disk type='file'/>", xml.hostdev_xml(U), xml.hostdev_xml(V))

    assert xml.vfio_ap_uuids(document) == {U, V}


def test_only_vfio_ap_devices_of_the_guest_count() -> None:
    other = xml.hostdev_xml(V).replace("vfio-ap", "vfio-ccw")
    pci = "<hostdev mode='subsystem' type='pci'><source><address bus='1'/></source></hostdev>"
    upper = xml.hostdev_xml(U).replace(str(U), str(U).upper())

    assert xml.vfio_ap_uuids(guest()) == frozenset()
    assert xml.vfio_ap_uuids("<domain/>") == frozenset()
    assert xml.vfio_ap_uuids(guest(other, pci)) == frozenset()
    assert xml.vfio_ap_uuids(guest(other, upper, pci)) == {U}
    assert (
        xml.vfio_ap_uuids(f"<domain><metadata>{guest(xml.hostdev_xml(U))}</metadata></domain>") == frozenset()
    )


def test_a_guest_document_cannot_make_us_read_files_or_swell(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text(str(U))
    body = guest(xml.hostdev_xml(V).replace(str(V), "&x;"))
    outside = f"<!DOCTYPE domain [<!ENTITY x SYSTEM 'file://{secret}'>]>{body}"
    swell = "<!DOCTYPE d [<!ENTITY a '{}'>{}]><domain>&k;</domain>".format(
        "lol" * 100,
        "".join(f"<!ENTITY {chr(98 + n)} '{f'&{chr(97 + n)};' * 10}'>" for n in range(10)),
    )

    for document in (outside, swell, f"<!DOCTYPE domain>{guest()}"):
        with pytest.raises(Refused) as refused:
            xml.vfio_ap_uuids(document)
        assert refused.value.problem is Problem.BAD_REQUEST


@pytest.mark.parametrize("document", ["", "<domain>", "no XML", "<a/><b/>", "\x00", guest("<hostdev>")])
def test_what_is_no_xml_is_refused(document: str) -> None:
    with pytest.raises(Refused, match="not well-formed") as refused:
        xml.vfio_ap_uuids(document)

    assert refused.value.problem is Problem.BAD_REQUEST


def test_an_installed_package_finds_its_templates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    share = tmp_path / "share" / "vfioapd" / "xml-templates"
    shutil.copytree(TEMPLATES, share)
    monkeypatch.setattr(xml, "__file__", str(tmp_path / "lib" / "vfioapd" / "virt" / "xml.py"))
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    xml._folder.cache_clear()
    try:
        assert xml._folder() == share
        shutil.rmtree(share)
        xml._folder.cache_clear()
        monkeypatch.setattr(sysconfig, "get_path", lambda _: str(tmp_path / "local"))
        with pytest.raises(FileNotFoundError, match="installation is not whole"):
            xml._folder()
        shutil.copytree(TEMPLATES, tmp_path / "local" / "share" / "vfioapd" / "xml-templates")
        assert xml._folder() == tmp_path / "local" / "share" / "vfioapd" / "xml-templates"
    finally:
        xml._folder.cache_clear()


def test_texts_are_escaped_as_libvirt_escapes_them() -> None:
    root = etree.fromstring("<a><b/></a>")
    root.find("b").set("c", "<'\"&>")

    assert xml._serialise(root) == "<a><b c='&lt;&apos;&quot;&amp;&gt;'/></a>\n"
