"""Finding the regions of a model: the largest of its submodules that can be captured.

From the outermost modules inwards, each that is called is captured by itself, and tried in its
place; where that fails, its children are.

Tested in tests/flow/test_regions.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field, replace

from torch import Tensor, nn

from octavo.errors import (
    CalibrationError,
    CaptureError,
    InputError,
    NothingQuantized,
    OctavoError,
    PlanError,
    first_line,
    warn_user,
)
from octavo.flow.running import Calls, Run
from octavo.flow.settings import Only, Settings
from octavo.flow.trials import Candidate, try_out
from octavo.flow.watching import Seen, watch
from octavo.flow.whole import few_samples
from octavo.flow.work import Work, work_of
from octavo.graph.batches import Signature
from octavo.graph.calls import flatten_call, with_seen
from octavo.graph.capture.capture import capture
from octavo.graph.capture.changes import undone
from octavo.graph.copying import copied
from octavo.graph.graph import Graph
from octavo.graph.quiet import quiet
from octavo.model.place import Place
from octavo.model.tree import children_of, near, outside
from octavo.progress import waiting
from octavo.quantization.plan import Plan
from octavo.quantization.qconfig import QConfigMapping, is_inside


@dataclass(frozen=True)
class Region:
    """A module that can be captured, and how it will be quantized."""

    module: nn.Module
    graph: Graph
    plan: Plan
    signature: Signature
    samples: tuple[Tensor, ...]
    place: Place


@dataclass
class Search:
    """The regions of a model, as far as they were found, and why other modules are none.

    Attributes:
        model: the float model.
        settings: how it will be quantized.
        regions: by their paths.
        reasons: path -> why the module there is no region.
        works: what each module does in the runs that they were found with.
        runs: how many these were.
    """

    model: nn.Module
    settings: Settings
    regions: dict[str, Region] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    works: dict[nn.Module, Work] = field(default_factory=dict)
    runs: int = 1

    @property
    def around(self) -> dict[str, int]:
        """The multiply-adds of what is in no region, as `Place` has them."""
        modules = [region.module for region in self.regions.values()]
        known = ((path, self.works.get(module)) for path, module in outside(self.model, modules))
        return {path: round(work.own / self.runs) for path, work in known if work and work.own}

    def planned(self, settings: Settings) -> Search:
        """The same regions, to be quantized in another way; without those that stay float.

        Raises:
            PlanError: a rule does not fit, or all would stay float.
        """
        regions = {}
        for path, region in self.regions.items():
            with suppress(NothingQuantized):
                regions[path] = replace(region, plan=settings.plan(region.graph, path))
        if not regions:
            raise NothingQuantized("nothing would be quantized: all regions stay float")
        return replace(self, settings=settings, regions=regions)

    def find(self, runs: Sequence[Run], starts: Mapping[str, nn.Module]) -> None:
        """Look at these modules, and inside of those that cannot be regions.

        Raises:
            PlanError: a rule does not fit.
            CalibrationError: the model cannot be run.
        """
        with self._afresh():
            self.works, self.runs = work_of(self.model, runs), len(runs)
        known: set[nn.Module] = set()
        while starts := {p: m for p, m in starts.items() if m not in known and _has_weights(m)}:
            known |= set(starts.values())
            called = {p: m for p, m in starts.items() if m in self.works}
            with self._afresh():
                seen = watch(self.model, called, runs)
            candidates = dict(self._candidates(starts, seen))
            with self._afresh():
                refused = try_out(self.model, candidates, runs)
            self.reasons |= refused
            for path, candidate in candidates.items():  # in the same order in every process
                if path not in refused:
                    self._take(path, candidate, seen[path])
            inside = [p for p in starts if p in refused or p not in candidates]
            starts = {
                path: module
                for parent in inside
                if self.reasons.get(parent) != NOTHING
                for path, module in children_of(parent, starts[parent]).items()
            }

    def _afresh(self) -> AbstractContextManager[None]:
        """Every time that the model is run it begins in the same state, if it keeps one."""
        return undone(self.model.modules())

    def _candidates(
        self, modules: Mapping[str, nn.Module], seen: Mapping[str, Seen]
    ) -> Iterator[tuple[str, Candidate]]:
        """Those that can be captured, and have something to quantize."""
        for path, module in modules.items():
            if path not in seen:
                self.reasons[path] = NOT_CALLED
            elif seen[path].problem:
                self.reasons[path] = seen[path].problem
            else:
                try:
                    with quiet():
                        graph = capture(module, seen[path].args, seen[path].kwargs, progress=False)
                    self.settings.plan(graph, path)
                    count = seen[path].count
                    calls = self.works[module].calls(self.runs) or count / self.runs
                    place = Place.of(path, module, calls)
                    yield path, Candidate(module, graph, place, count)
                except NothingQuantized:
                    self.reasons[path] = NOTHING
                except (CaptureError, InputError) as error:
                    self.reasons[path] = str(error)

    def _take(self, path: str, candidate: Candidate, seen: Seen) -> None:
        tensors = flatten_call(candidate.graph, seen.args, seen.kwargs)
        self.regions[path] = Region(
            candidate.module,
            with_seen(candidate.graph, tensors),
            self.settings.plan(candidate.graph, path),
            Signature.of(candidate.module, candidate.graph.given_arguments),
            few_samples(candidate.graph, tensors),
            candidate.place,
        )


def find_regions(model: nn.Module, calls: Calls, settings: Settings, why: str = "") -> Search:
    """The regions of a copy of the model.

    Args:
        model: the float model. It is left as it was.
        calls: how to run it, on the first batches.
        settings: how it will be quantized.
        why: the model is not captured whole, for messages.

    Raises:
        CaptureError: there is no region.
        CalibrationError: the model cannot be run on a batch, or a region does not run.
        PlanError: a rule or a path does not fit, or nothing would be quantized.
    """
    own = copied(model).eval()
    search = Search(own, settings)
    starts = _starts(own, settings.only)
    with waiting("finding regions", settings.progress), running("the first batches"):
        search.find(calls.first, starts)
    _check_found(search, starts, why)
    _check_rules(search)
    return search


SHOWN = 4  # reasons, or regions, in a message
NOT_CALLED = "it is not called on the first calibration batches"
NOTHING = "nothing in it would be quantized"


def _starts(model: nn.Module, only: Only | None) -> dict[str, nn.Module]:
    """The outermost modules that may be regions.

    Raises:
        PlanError: a path is that of no module, or a rule picks none.
    """
    if only is None:
        return children_of("", model)
    modules = {path: module for path, module in model.named_modules() if path}
    if callable(only):
        picked = [path for path, module in modules.items() if only(path, module)]
        if not picked:
            raise PlanError(f"only= picks no module; the model has {list(modules)[:8]}")
    else:
        picked = list(only)
        for path in picked:
            if path not in modules:
                raise PlanError(
                    f"only= names {path!r}, and no module is called so; {near(path, model)}"
                )
    outermost = (
        path
        for path in picked
        if not any(path != other and is_inside(path, other) for other in picked)
    )
    return {path: modules[path] for path in outermost}


def _has_weights(module: nn.Module) -> bool:
    tensors = (*module.parameters(), *module.buffers())
    return any(tensor.dim() > 1 and tensor.is_floating_point() for tensor in tensors)


def _check_found(search: Search, starts: Mapping[str, nn.Module], why: str) -> None:
    """Raise where there is no region, or none where the user asked for one."""
    only = search.settings.only
    for path in starts if only is not None and not callable(only) else ():
        if not any(is_inside(found, path) for found in search.regions):
            reason = search.reasons.get(path, NOTHING)
            if reason == NOT_CALLED:
                raise CalibrationError(
                    f"the region {path!r} never runs: {reason}; give batches that lead to it, or "
                    "leave it out of only="
                )
            raise CaptureError(f"only= names {path!r}, of which no part can be a region: {reason}")
    if not search.regions:
        told = [f"{path}: {reason}" for path, reason in search.reasons.items()]
        none = (
            f"no submodule of the {type(search.model).__name__} can be a region "
            f"({'; '.join(told[:SHOWN]) or 'it has none with weights'})"
        )
        if why:
            raise CaptureError(f"{why}. And {none}")
        raise NothingQuantized(f'{none}; to quantize the model as one graph, scope="model"')


def _check_rules(search: Search) -> None:
    """Rules have to find something to decide on, or are told of.

    Raises:
        PlanError: one is for a module that is not there, or that stays in Python.
    """
    modules = dict(search.model.named_modules())
    mapping = search.settings.mapping or QConfigMapping()
    # Captured, and then left in float: layers have the names that their graph gave them.
    left = [path for path, why in search.reasons.items() if why == NOTHING]
    for rule in mapping.rules:
        if rule.kind != "module name" or any(rule.concerns(path) for path in search.regions):
            continue
        if rule.precision is None and any(is_inside(rule.pattern, path) for path in left):
            continue
        if rule.pattern not in modules:
            hint = near(rule.pattern, search.model)
            raise PlanError(f"no module is called {rule.pattern!r}, as a rule has it; {hint}")
        if rule.precision is not None:
            raise PlanError(
                f"the rule for {rule.pattern!r} cannot be followed: the module stays in Python, "
                f"outside of every region ({_why(search, rule.pattern)}); leave the rule out. The "
                f"regions are {', '.join(search.regions)}"
            )
    plans = [region.plan for region in search.regions.values()]
    unmatched = [r for r in plans[0].unmatched if all(r in plan.unmatched for plan in plans)]
    if unmatched:
        warn_user(f"rules that match nothing in any region: {', '.join(unmatched)}")


def _why(search: Search, path: str) -> str:
    """Why a module is no region: its own reason, or that of the innermost around it."""
    around = [p for p in search.reasons if is_inside(path, p)]
    return search.reasons[max(around, key=len)] if around else "it has no weights to quantize"


@contextmanager
def running(what: str) -> Iterator[None]:
    """Errors inside say where the model was run."""
    try:
        yield
    except (PlanError, InputError, CaptureError):
        raise
    except OctavoError as error:
        raise CalibrationError(f"{what}: {error}") from error
    except Exception as error:
        raise CalibrationError(
            f"{what}: the model cannot be called so: {type(error).__name__}: {first_line(error)}; "
            "give what model(...) takes, or choose its arguments, inputs=lambda batch: ..."
        ) from error
