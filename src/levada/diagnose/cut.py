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

# Functions that are constant but for their steps: autograd gives them a derivative of zero.
FLAT = frozenset({"round", "floor", "ceil", "trunc", "fix", "sign"})


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
        events, readers = self._events()
        site_of = {o.output: site for site, ops in execution.operations.items() for o in ops}
        reading = {name: [e for e in events if name in e.operation.parameters] for name in _all(unreached)}
        grouped: dict[tuple[bool, bool, tuple[int, ...]], list[tuple[str, str]]] = {}
        places: dict[int, Event] = {}
        for site, names in unreached.items():
            for name in names:
                found, _ = self._first_cuts(reading[name], readers)
                silent = bool(found) and all(self.quiet.issuperset(e.outputs) for e in found)
                # What was recorded up to there was meant to learn, whatever was meant by disabling gradients.
                paused = silent and any(n in self.followed for e in reading[name] for n in e.outputs)
                quiet = silent and not paused
                key = tuple(sorted(e.operation.output for e in found))
                places.update({e.operation.output: e for e in found})
                # Under no_grad every operation is cut off for itself: they are one.
                grouped.setdefault((quiet, paused, () if quiet else key), []).append((site, name))
        told = []
        for (quiet, paused, key), members in grouped.items():
            flat = bool(key) and all(self._is_flat(places[n]) for n in key)
            sites = tuple(dict.fromkeys(site for site, _ in members))
            told.append(
                Cut(
                    parameters=tuple(name for _, name in members),
                    sites=sites,
                    operations=tuple(_words(places[n], site_of.get(n)) for n in key),
                    quiet=quiet,
                    around=self._goes_around([places[n] for n in key], readers),
                    flat=flat,
                    paused=paused,
                    at=sites[-1] if flat else site_of.get(key[0], "") if paused else "",
                )
            )
        return tuple(told)

    def stilled(self, names: Iterable[str]) -> set[str]:
        """Return which parameters act through operations without a slope alone.

        Args:
            names: of parameters.
        """
        events, readers = self._events()
        if not any(self._is_flat(event) for event in events):
            return set()
        found = {}
        for name in names:
            cuts, arrives = self._first_cuts([e for e in events if name in e.operation.parameters], readers)
            found[name] = bool(cuts) and not arrives and all(self._is_flat(e) for e in cuts)
        return {name for name, alone in found.items() if alone}

    def _events(self) -> tuple[list[Event], dict[int, list[Event]]]:
        """Return what ran, and by number of a value what read it."""
        root = self.recorder.root
        events = list(root.walk()) if root is not None else []
        readers: dict[int, list[Event]] = {}
        for event in events:
            for number in event.operation.inputs:
                readers.setdefault(number, []).append(event)
        return events, readers

    def _is_flat(self, event: Event) -> bool:
        return event.operation.name in FLAT and any(n in self.followed for n in event.outputs)

    def _is_cut(self, event: Event) -> bool:
        operation = event.operation
        asked = any(n in self.followed for n in operation.inputs) or any(
            name in self.learning for name in operation.parameters
        )
        return asked and not any(n in self.followed for n in event.outputs)

    def _first_cuts(self, start: Iterable[Event], readers: Mapping[int, Sequence[Event]]) -> tuple[list[Event], bool]:
        """Return where a walk forward, along what has a gradient, ends, and whether it comes to an output too."""
        pending, seen, found = list(start), set(), []
        arrives = False
        while pending:
            event = pending.pop()
            if id(event) in seen:
                continue
            seen.add(id(event))
            if self._is_cut(event) or self._is_flat(event):
                found.append(event)
                continue
            arrives = arrives or not self.ends.isdisjoint(event.outputs)
            for number in event.outputs:
                pending.extend(readers.get(number, ()))
        # A comparison or an index carries no gradient in any network: it is a cut only if nothing else is.
        return [e for e in found if e.operation.output in self.recorder.floating] or found, arrives

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
