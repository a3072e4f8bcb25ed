# SPDX-License-Identifier: Apache-2.0
"""libvirt's XML: our two documents, filled from xml-templates/, and what a guest's document says.

lxml is untyped. Its objects stay inside this file; what goes in and out is text and our own values.
"""

from __future__ import annotations

import copy
import sys
import sysconfig
from functools import cache
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from lxml import etree

from vfioapd.domain.definition import parse_uuid
from vfioapd.domain.numbers import check_adapter, check_domain
from vfioapd.domain.problems import Problem, Refused
from vfioapd.plan.doctor_facts import GuestFacts, HostdevFacts

if TYPE_CHECKING:
    from uuid import UUID

    from vfioapd.domain.definition import Definition

_SHARE = "share/vfioapd/xml-templates"
_HOSTDEV = "devices/hostdev[@type='mdev'][@model='vfio-ap']/source/address"


def nodedev_name(uuid: UUID) -> str:
    """The name that libvirt (7.8 and newer) gives the device. Never read a UUID out of it again."""
    return f"mdev_{uuid}_matrix".replace("-", "_")


def nodedev_xml(definition: Definition) -> str:
    """The matrix as a node device, for virsh nodedev-define; valid against libvirt's nodedev.rng."""
    root = _template("nodedev.xml")
    capability = root.find("capability")
    root.find("name").text = nodedev_name(definition.uuid)
    capability.find("uuid").text = str(definition.uuid)
    for name, values in _attributes(definition).items():
        _repeat(capability, capability.find(f"attr[@name='{name}']"), values)
    etree.indent(root, space="  ")
    return _serialise(root)


def hostdev_xml(uuid: UUID) -> str:
    """The device for a guest's XML, as virsh attach-device takes it."""
    root = _template("hostdev.xml")
    root.find("source/address").set("uuid", str(uuid))
    return _serialise(root)


def vfio_ap_uuids(domain_xml: str) -> frozenset[UUID]:
    """The vfio-ap devices in a guest's document. Raises Refused when that is not what libvirt prints."""
    root = _parse_untrusted(domain_xml)
    return frozenset(parse_uuid(str(address.get("uuid"))) for address in root.iterfind(_HOSTDEV))


def ap_facts(domain_xml: str) -> GuestFacts:
    """What a guest's definition says of AP. Raises Refused when it is not what libvirt prints."""
    root = _parse_untrusted(domain_xml)
    cpu = root.find("cpu")
    feature = root.find("cpu/feature[@name='ap']")
    return GuestFacts(
        name=str(root.findtext("name")),
        kind=str(root.get("type")),
        cpu_mode="host-passthrough" if cpu is None else str(cpu.get("mode", "custom")),
        cpu_model=str(root.findtext("cpu/model") or ""),
        ap=None if feature is None else str(feature.get("policy", "require")),
        devices=tuple(
            HostdevFacts(parse_uuid(str(one.find("source/address").get("uuid"))), one.get("managed") == "yes")
            for one in root.iterfind("devices/hostdev[@type='mdev'][@model='vfio-ap']")
        ),
    )


def _parse_untrusted(text: str) -> etree._Element:
    """The hook gets its document from outside: no entity is resolved, no file and no network read."""
    parser = etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False)
    try:
        root = etree.fromstring(text.encode(), parser)
    except etree.XMLSyntaxError as error:
        raise _bad_document(f"not well-formed: {error}") from error
    if root.getroottree().docinfo.doctype:
        raise _bad_document("not libvirt's: it has a document type")
    return root


def _bad_document(why: str) -> Refused:
    return Refused(Problem.BAD_REQUEST, f"the guest's XML is {why}", hint="compare it with virsh dumpxml")


def _attributes(definition: Definition) -> dict[str, list[str]]:
    """What to assign. The check is libvirt's parser's: its schema lets domain 0x0100 pass."""
    matrix = definition.matrix
    return {
        "assign_adapter": [f"0x{check_adapter(number):02x}" for number in sorted(matrix.adapters)],
        "assign_domain": [f"0x{check_domain(number):04x}" for number in sorted(matrix.domains)],
        "assign_control_domain": [
            f"0x{check_domain(number):04x}" for number in sorted(matrix.control_domains)
        ],
    }


@cache
def _folder() -> Path:
    """Where the templates are: beside the package in a source tree, below the prefix when installed."""
    candidates = [
        Path(__file__).resolve().parents[2] / "xml-templates",
        Path(sys.prefix) / _SHARE,
        Path(sysconfig.get_path("data")) / _SHARE,  # Debian's pip installs below /usr/local
    ]
    for folder in candidates:
        if (folder / "nodedev.xml").is_file():
            return folder
    looked = ", ".join(map(str, dict.fromkeys(candidates)))
    raise FileNotFoundError(f"the XML templates are in none of {looked}: the installation is not whole")


@cache
def _parsed(name: str) -> etree._Element:
    parser = etree.XMLParser(resolve_entities=False, no_network=True, remove_comments=True)
    return etree.parse(str(_folder() / name), parser).getroot()


def _template(name: str) -> etree._Element:
    return copy.deepcopy(_parsed(name))


def _repeat(parent: etree._Element, prototype: etree._Element, values: list[str]) -> None:
    """Put one copy of the prototype, in its place, for each value."""
    for value in values:
        one = copy.deepcopy(prototype)
        one.set("value", value)
        prototype.addprevious(one)
    parent.remove(prototype)


def _serialise(element: etree._Element) -> str:
    """Write XML as libvirt prints it. lxml knows double quotes only, and texts are compared with dumps."""
    return f"{_inner(element)}\n"


def _inner(element: etree._Element) -> str:
    attributes = "".join(f" {name}='{_escape(value)}'" for name, value in element.attrib.items())
    content = escape(element.text or "", quote=False) + "".join(
        _inner(one) + (one.tail or "") for one in element
    )
    if not content:
        return f"<{element.tag}{attributes}/>"
    return f"<{element.tag}{attributes}>{content}</{element.tag}>"


def _escape(value: str) -> str:
    return escape(value).replace("&#x27;", "&apos;")  # as libvirt spells it
