"""Where the graph is cut between a parameter that acts and the loss, and whether the gradient goes around the cut."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor
from torch.autograd.graph import Node

from levada.diagnose.facts import Cut
from levada.probe import Execution
from levada.probe.recorder import Event, Recorder, tensors

__all__ = ["Graph"]


@final
@dataclass(slots=True)
class Graph:
    """One recorded forward pass, and which of its values autograd follows.

    Attributes:
        recorder: what was recorded.
        learning: parameters that ask for a gradient.
        followed: values that carry a graph.
        quiet: values that were made while gradients were disabled.
        ends: outputs of the model that the loss reads.
    """

    recorder: Recorder
    learning: frozenset[str]
    followed: set[int] = field(default_factory=set)
    quiet: set[int] = field(default_factory=set)
    ends: frozenset[int] = frozenset()

    def see(self, number: int, tensor: Tensor) -> None:
        """Take a value as it is produced."""
        if tensor.requires_grad:
            self.followed.add(number)
        if not torch.is_grad_enabled():
            self.quiet.add(number)

    def end_in(self, outputs: object, target: Tensor) -> None:
        """Note which outputs the loss reads: those in its graph, and those without a graph, which may be targets.

        Args:
            outputs: what the recorded pass returned.
            target: what is derived.
        """
        root = self.recorder.root
        if root is None:
            return
        nodes = _nodes(target)
        found = list(tensors(outputs)) or list(tensors(getattr(outputs, "__dict__", None)))
        unread = {id(t) for t in found if t.grad_fn is not None and t.grad_fn not in nodes}
        numbered = zip(root.outputs, dict.fromkeys(id(t) for t in found), strict=False)
        self.ends = frozenset(number for number, key in numbered if key not in unread) or frozenset(root.outputs)

    def cuts(self, execution: Execution, unreached: Mapping[str, Sequence[str]]) -> tuple[Cut, ...]:
        """Return where each of the parameters is cut off, those of one place together.

        Args:
            execution: the blocks of the recorded pass.
            unreached: site -> parameters that act and get no gradient.
        """
        root = self.recorder.root
        events = list(root.walk()) if root is not None else []
        readers: dict[int, list[Event]] = {}
        for event in events:
            for number in event.operation.inputs:
                readers.setdefault(number, []).append(event)
        site_of = {o.output: site for site, ops in execution.operations.items() for o in ops}
        reading = {name: [e for e in events if name in e.operation.parameters] for name in _all(unreached)}
        grouped: dict[tuple[bool, tuple[int, ...]], list[tuple[str, str]]] = {}
        places: dict[int, Event] = {}
        for site, names in unreached.items():
            for name in names:
                found = self._first_cuts(reading[name], readers)
                quiet = bool(found) and all(self.quiet.issuperset(e.outputs) for e in found)
                key = tuple(sorted(e.operation.output for e in found))
                places.update({e.operation.output: e for e in found})
                # Under no_grad every operation is cut off for itself: they are one.
                grouped.setdefault((quiet, () if quiet else key), []).append((site, name))
        told = []
        for (quiet, key), members in grouped.items():
            told.append(
                Cut(
                    parameters=tuple(name for _, name in members),
                    sites=tuple(dict.fromkeys(site for site, _ in members)),
                    operations=tuple(_words(places[n], site_of.get(n)) for n in key),
                    quiet=quiet,
                    around=self._goes_around([places[n] for n in key], readers),
                )
            )
        return tuple(told)

    def _is_cut(self, event: Event) -> bool:
        operation = event.operation
        asked = any(n in self.followed for n in operation.inputs) or any(
            name in self.learning for name in operation.parameters
        )
        return asked and not any(n in self.followed for n in event.outputs)

    def _first_cuts(self, start: Iterable[Event], readers: Mapping[int, Sequence[Event]]) -> list[Event]:
        """Return the operations at which a walk forward, along what autograd follows, ends."""
        pending, seen, found = list(start), set(), []
        while pending:
            event = pending.pop()
            if id(event) in seen:
                continue
            seen.add(id(event))
            if self._is_cut(event):
                found.append(event)
                continue
            for number in event.outputs:
                pending.extend(readers.get(number, ()))
        # A comparison or an index carries no gradient in any network: it is a cut only if nothing else is.
        return [e for e in found if e.operation.output in self.recorder.floating] or found

    def _goes_around(self, cuts: Sequence[Event], readers: Mapping[int, Sequence[Event]]) -> bool:
        """Whether what enters the cuts reaches the loss on another way too; True if no cut or no end was seen."""
        if not cuts or not self.ends:
            return True
        before: set[int] = set()
        pending = [n for event in cuts for n in event.operation.inputs]
        while pending:
            number = pending.pop()
            if number in before:
                continue
            before.add(number)
            producer = self.recorder.producers.get(number)
            pending.extend(producer.operation.inputs if producer is not None else ())
        closed = {id(event) for event in cuts}
        pending, seen = list(before), set()
        while pending:
            number = pending.pop()
            if number in self.ends:
                return True
            if number in seen:
                continue
            seen.add(number)
            pending.extend(n for e in readers.get(number, ()) if id(e) not in closed for n in e.outputs)
        return False


def _all(unreached: Mapping[str, Sequence[str]]) -> set[str]:
    return {name for names in unreached.values() for name in names}


def _words(event: Event, site: str | None) -> str:
    where = f"the forward of {event.frame.name}" if event.frame.name else "the model's own forward"
    return f"{event.function or event.operation.name} in {where}{f', block {site}' if site else ''}"


def _nodes(target: Tensor) -> set[Node]:
    """Return all nodes of a tensor's graph."""
    pending: list[Node | None] = [target.grad_fn]
    seen: set[Node] = set()
    while pending:
        node = pending.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        pending.extend(following for following, _ in node.next_functions)
    return seen
