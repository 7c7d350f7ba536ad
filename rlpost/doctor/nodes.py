"""Judges the facts of a cluster's nodes together: pure functions from facts to findings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rlpost.doctor.cluster import ClusterFacts, Link, Node
from rlpost.doctor.finding import Finding, error, ok, warning
from rlpost.doctor.machine import machine_findings
from rlpost.record.versions import SAME_VERSIONS, differences

SKEW_S = 1.0  # clocks further apart make times in a run's record misleading
SLOW = 50.0  # MiB/s; a swap of an adapter of 40 MB then takes about a second


def node_findings(found: ClusterFacts, here: Mapping[str, Any]) -> Iterator[Finding]:
    """Findings of every node and of the links. `here`: the versions of the command's own machine."""
    for node in found.nodes:
        if node.facts is None:
            remedy = "look at Ray's log there (raylet.err), or take the node out of the cluster"
            yield error("node", "it did not answer", remedy, node.name)
            continue
        yield from machine_findings(node.facts, node.name)
        yield _versions(node, here)
        yield _clock(node)
        if len(found.nodes) > 1 and node.facts.name_is_loopback:
            remedy = "give the node's address to its name in /etc/hosts, or set GLOO_SOCKET_IFNAME to its interface"
            text = f"the name {node.facts.host} resolves to loopback: learner ranks of two nodes may not meet"
            yield warning("host name", text, remedy, node.name)
    for link in found.links:
        yield from _link(link)


def _versions(node: Node, here: Mapping[str, Any]) -> Finding:
    assert node.facts is not None
    if differ := differences(here, node.facts.versions):
        return error("versions", ", ".join(differ), SAME_VERSIONS, node.name)
    return ok("versions", "as on this machine", node.name)


def _clock(node: Node) -> Finding:
    if node.ahead_s is None:
        return warning("clock", "it could not be read in time", "look at the load of the node", node.name)
    text = f"{node.ahead_s:+.3f} s from this machine's, within {node.doubt_s:.3f} s"
    if abs(node.ahead_s) - node.doubt_s > SKEW_S:
        return warning("clock", text, "start a time service there (chrony, systemd-timesyncd)", node.name)
    return ok("clock", text, node.name)


def _link(link: Link) -> Iterator[Finding]:
    way = f"{link.source} to {link.target}"
    if link.mib_per_s is None:
        remedy = "open the ports of Ray's object manager between the nodes (ray start --object-manager-port)"
        yield error("object store", f"{way}: nothing arrived in time", remedy)
    elif link.mib_per_s < SLOW:
        text = f"{way}: {link.mib_per_s:.0f} MiB/s"
        yield warning("object store", text, "use a faster network, or a smaller adapter (lora.rank)")
    else:
        yield ok("object store", f"{way}: {link.mib_per_s:.0f} MiB/s")
    if link.port_fault is None:
        yield warning("ports", f"{way}: no port was opened in time", "look at the load of the nodes")
    elif link.port_fault:
        remedy = "open TCP ports between the nodes: learner ranks meet at a free port of rank 0's node"
        yield error("ports", f"{way}: {link.port_fault}", remedy)
