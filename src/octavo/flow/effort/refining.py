"""A draft goes through the steps of a recipe; each is kept where held-back data say so.

Tested in tests/flow/effort/test_refining.py.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from octavo.display import Table
from octavo.errors import CalibrationError, OctavoError, first_line, warn_user
from octavo.flow.effort.draft import Batch, Draft, Judge, Samples
from octavo.flow.effort.islands import Planner
from octavo.flow.effort.recipes import Step, learning_of, steps_of
from octavo.graph.batches import NO_BATCH, Signature, iterated, split_batch
from octavo.graph.calls import flatten_call
from octavo.graph.graph import Graph
from octavo.numerics.sqnr import sqnr_db
from octavo.progress import track
from octavo.qat.reconstruction import Chunks, Reconstructed, Reconstruction, reconstructed
from octavo.quantization.calibrate import check_batch
from octavo.quantization.nonfinite_inputs import masks_of
from octavo.quantization.plan import Plan
from octavo.quantization.weights import WeightMethod

_INTERRUPTED = "interrupted"
_NO_DATA = (
    "effort= and octavo.Reconstruction try on data what they do: pass calibration=loader, an "
    "iterable of about 100 representative batches"
)
_CHANCE_DB = 0.5  # by which two models differ that are equally good


@dataclass(frozen=True)
class StepTaken:
    """What a step brought.

    Attributes:
        step: its name.
        before_db, after_db: SQNR of the outputs on held-back data; the same where it could not be
            taken.
        seconds: that it took, judging included.
        kept: whether the model went on with it.
        why: it could not be taken; of what is done block by block, in how many.
    """

    step: str
    before_db: float
    after_db: float
    seconds: float
    kept: bool
    why: str = ""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def table_of(taken: Sequence[StepTaken], title: str = "") -> Table:
    """A row for each step."""
    rows = (
        (t.step, f"{t.before_db:.2f}", f"{t.after_db:.2f}", f"{t.seconds:.1f}", _verdict(t))
        for t in taken
    )
    return Table(("step", "dB before", "dB after", "seconds", "kept"), tuple(rows), title)


def _verdict(taken: StepTaken) -> str:
    return taken.why or ("yes" if taken.kept else "no")


def refined(
    draft: Draft,
    folds: Sequence[Samples],
    steps: Sequence[Step],
    progress: bool = False,
) -> tuple[Draft, list[StepTaken]]:
    """The draft that the good ones of the steps lead to, and what each of them brought.

    In the end the best one takes in what the samples for judging show, too. Should these,
    which it has seen then, say that it got worse by more than chance, it stays as it was.

    An interruption (Ctrl-C) ends the steps; what they have brought until then is kept.

    Args:
        draft: of plain static quantization, for its graph, plan and methods.
        folds: what steps are fitted to, and judged on; the draft is of the first one.
        steps: in order; each goes on from the best so far.
        progress: show a progress bar on a terminal.

    Raises:
        InputError: the model has no output in float, by which steps are judged.
    """
    judges = [Judge(draft.graph, fold) for fold in folds]

    def judged(drafts: Sequence[Draft]) -> tuple[float, float]:
        """Of all folds, and of the first one."""
        shares = [judge.noise(each) for judge, each in zip(judges, drafts, strict=True)]
        return sqnr_db(float(len(shares)), sum(shares)), sqnr_db(1.0, shares[0])

    drafts = [draft, *(draft.changed(fold) for fold in folds[1:])]
    (best, best_of_first), taken = judged(drafts), list[StepTaken]()
    for step in track(steps, "trying methods", progress):
        started = time.perf_counter()
        why, after, of_first = "", best, best_of_first
        try:
            pairs = zip(drafts, folds, strict=True)
            candidates = [step.change(each, fold) for each, fold in pairs]
            after, of_first = judged(candidates)
        except OctavoError as error:
            why = first_line(error)
        except KeyboardInterrupt:
            why = _INTERRUPTED
        kept = after > best
        seconds = time.perf_counter() - started
        taken.append(StepTaken(step.name, best, after, seconds, kept, why))
        if kept:
            drafts, best, best_of_first = candidates, after, of_first
        if why == _INTERRUPTED:
            break
    if not folds[0].has_unseen:
        return drafts[0], taken
    others = drafts[1:] or [drafts[0].changed(folds[0].swapped)]
    whole = drafts[0].joined(others[0].observed)
    better = judges[0](whole) > best_of_first - _CHANCE_DB
    return (whole if better else drafts[0]), taken


def finished(
    draft: Draft,
    batches: Sequence[Batch],
    is_open: bool,
    method: Reconstruction,
    progress: bool = False,
) -> tuple[Draft, StepTaken]:
    """The draft with blocks that have learned, if its outputs are nearer to float then on samples
    that no block has learned from, if there are any; and what that brought.

    An interruption (Ctrl-C) ends it; blocks that are done count.

    Args:
        draft: that all methods have led to.
        batches: all of them.
        is_open: whether the model takes batches of any size.
        method: how blocks learn.
        progress: say which block it is.
    """
    started = time.perf_counter()
    chunks = Chunks.of(batches, is_open, method.samples)
    has_unseen = chunks.held is not chunks.fitted
    if not has_unseen:
        warn_user(
            f"octavo.{type(method).__name__} is judged on what it learned from: one batch of a "
            "fixed size leaves nothing to hold back; give two or more"
        )
    judge = Judge(draft.graph, Samples(chunks.fitted, chunks.held))
    before = judge(draft)
    changed, after, words = draft, before, _INTERRUPTED
    try:
        found = reconstructed(draft.graph, draft.plan, draft.quantized, chunks, method, progress)
        changed = replace(draft, made=found.quantized, last=(*draft.last, method.name))
        after, words = judge(changed), _in_words(found, has_unseen)
    except KeyboardInterrupt:
        pass
    kept = after > before
    spent = time.perf_counter() - started
    return (changed if kept else draft), StepTaken(
        method.name, before, after, spent, kept, f"{'yes' if kept else 'no'}: {words}"
    )


def _in_words(found: Reconstructed, has_unseen: bool) -> str:
    """How many of the blocks have learned, and whether all together; why others have not, and what
    that is judged on.
    """
    learned = sum(block.kept for block in found.blocks)
    diverged = ", ".join(block.block for block in found.blocks if block.diverged)
    words = [f"{learned} of {found.count} blocks"]
    words += ["then all together"] if found.together is not None and found.together.kept else []
    words += [] if has_unseen else ["judged on what they learned from"]
    words += [f"not finite, and as before: {diverged}"] if diverged else []
    words += [_INTERRUPTED] if found.was_interrupted else []
    return "; ".join(words)


def refined_on(
    graph: Graph,
    plan: Plan,
    data: Iterable[Any] | None,
    weights: Sequence[WeightMethod],
    effort: str,
    signature: Signature | None,
    inputs: Callable[[Any], Any] | None,
    progress: bool,
    planner: Planner | None = None,
) -> tuple[Draft, list[StepTaken]]:
    """`refined` by the recipe of an effort, and `finished`, on a user's data.

    Arguments and errors as for `octavo.calibrate`.
    """
    if data is None:
        raise CalibrationError(_NO_DATA)
    reading = signature or Signature(tuple(graph.arguments), len(graph.arguments))
    masks = masks_of(graph)
    is_kept = isinstance(data, list | tuple)  # others may fill the same memory again
    batches = []
    for index, batch in enumerate(track(iterated(data), "reading", progress)):
        try:
            call = split_batch(batch, reading, inputs)
            tensors = flatten_call(graph, call.args, call.kwargs)
            check_batch(graph, tensors, masks)
            batches.append(tensors if is_kept else [tensor.clone() for tensor in tensors])
        except OctavoError as error:
            raise CalibrationError(f"calibration batch {index}: {error}") from error
    if not batches:
        raise CalibrationError(NO_BATCH)
    is_open = all(entry.batch_axis == 0 for entry in graph.inputs)
    own = tuple(method for method in weights if isinstance(method, Reconstruction))
    last = own or learning_of(effort, plan)
    steps = steps_of(effort, plan)
    samples = Samples.of(batches, is_open, [method for step in steps for method in step.methods])
    first = [method for method in weights if method not in own]
    draft = Draft.of(graph, plan, first, samples, planner)
    draft, taken = refined(draft, samples.folds, steps, progress)
    for method in last:
        if all(_INTERRUPTED not in step.why for step in taken):
            draft, step = finished(draft, batches, is_open, method, progress)
            taken.append(step)
    if progress:
        judged_on = (
            "held-back data" if samples.has_unseen else "the data that methods saw, one batch"
        )
        sys.stderr.write(f"{table_of(taken, f'effort {effort!r}, outputs on {judged_on}')}\n")
    return draft, taken
