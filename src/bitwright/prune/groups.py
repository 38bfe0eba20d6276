"""Groups of channels that go together, and the edits that take some of their units out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from bitwright.prune.edit import Cut, Edit, merged


@dataclass(frozen=True)
class Member:
    """A module's part in a group.

    Attributes:
        path: of the module.
        out: whether its output channels, or its input channels.
        channels: of each unit, which channels of the module.
    """

    path: str
    out: bool
    channels: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Group:
    """Channels that are removed together, unit by unit.

    Attributes:
        name: path of the first layer that makes them.
        kind: `channels`, or `heads` of an attention.
        members: every module with a part.
        counts: (path, attribute, now) of numbers that a forward reads, proportional to the units.
    """

    name: str
    kind: str
    members: tuple[Member, ...]
    counts: tuple[tuple[str, str, int], ...] = ()

    @property
    def units(self) -> int:
        """What can be removed by itself."""
        return len(self.members[0].channels)

    @property
    def consumers(self) -> tuple[Member, ...]:
        """Members that read the channels."""
        return tuple(m for m in self.members if not m.out)


@dataclass(frozen=True)
class Coupling:
    """What of a model can be removed.

    Attributes:
        groups: in the order of the forward pass.
        whole: layer path -> why its channels stay.
        filters: paths of the convolutions whose k×k filters an implant can replace.
    """

    groups: tuple[Group, ...]
    whole: Mapping[str, str]
    filters: frozenset[str] = frozenset()

    def edit(
        self,
        removed: Mapping[str, Iterable[int]],
        implanted: Mapping[str, Iterable[int]] | None = None,
        *,
        rank: int = 0,
    ) -> Edit:
        """The edit that takes units out and gives others implants: group name -> units.

        `rank` is that of the implants.
        """
        cuts: list[Cut] = []
        attributes: list[tuple[str, str, int]] = []
        orders: list[Cut] = []
        implants: list[tuple[str, int, int]] = []
        for group in self.groups:
            units = sorted(set(removed.get(group.name, ())))
            last = sorted(set((implanted or {}).get(group.name, ())))
            if last:
                stay = [u for u in range(group.units) if u not in units and u not in last] + last
                for m in group.members:
                    orders.append(_order(m, stay))
                    if m.out and m.path in self.filters:
                        implants.append((m.path, len(last), rank))
            if not units:
                continue
            for m in group.members:
                cuts.append(Cut(m.path, m.out, tuple(c for u in units for c in m.channels[u])))
            left = group.units - len(units)
            attributes += [(path, name, n * left // group.units) for path, name, n in group.counts]
        return Edit(merged(cuts), tuple(attributes), (), tuple(orders), tuple(implants))


def _order(member: Member, units: Sequence[int]) -> Cut:
    """Places, among the channels that stay, of the units in a new order."""
    stays = sorted(c for u in units for c in member.channels[u])
    place = {c: i for i, c in enumerate(stays)}
    return Cut(member.path, member.out, tuple(place[c] for u in units for c in member.channels[u]))
