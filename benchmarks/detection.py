"""Detectors: which of the float model's boxes the quantized one finds, and what of it is in int8.

A detector cannot be captured whole: it is quantized by regions, the rest stays Python. There are no
trained weights here: weights are random (fixed seed), norms are settled on the photos, and the
last layers are scaled until the scores spread as a trained detector's do. Images are parts of two
photos, of two sizes, so that the regions run at sizes that they were not captured at. A float box
is found where a quantized one of its class overlaps it with an IoU over 0.9. How many of the float
model's own boxes it finds again if its input moves by half a step of 255 says what is chance.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

import octavo
from benchmarks import nets
from benchmarks.report import Goal, Report, parsed, parser

importlib.import_module("torchvision_operators")

from torchvision.models import detection  # noqa: E402
from torchvision.models.resnet import Bottleneck  # noqa: E402
from torchvision.ops import box_iou  # noqa: E402

Boxes = dict[str, Tensor]

CLASSES = 5
PROPOSALS = 50  # of an image, 1000 by default
SIZES = ((128, 128), (128, 176))
IMAGES_OF_A_SIZE = 10
IOU = 0.9
LEAST_IN_INT8 = 0.95
_BRANCH = 0.2  # of a residual branch, beside what it is added to
_SPREAD = 2.0  # of the scores' logits, their standard deviation


def retinanet() -> nn.Module:
    """RetinaNet, its scores as far apart as those of a trained one."""
    net = _made(detection.retinanet_resnet50_fpn)
    return _alive(net, net.head.classification_head.cls_logits)


def fasterrcnn() -> nn.Module:
    """Faster R-CNN with few proposals, each of which costs as much as a small image."""
    net = _made(detection.fasterrcnn_resnet50_fpn, rpn_post_nms_top_n_test=PROPOSALS)
    head = net.rpn.head
    return _alive(_alive(net, head.cls_logits), net.roi_heads.box_predictor.cls_score)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "retinanet_resnet50_fpn": retinanet,
    "fasterrcnn_resnet50_fpn": fasterrcnn,
}


def photos(sizes: Sequence[tuple[int, int]], each: int, seed: int) -> list[Tensor]:
    """Parts of scikit-learn's two photos: float32 ``[3, height, width]`` from 0 to 1."""
    from sklearn.datasets import load_sample_images

    whole = [torch.tensor(image).permute(2, 0, 1) / 255 for image in load_sample_images().images]
    generator = torch.Generator().manual_seed(seed)

    def part(height: int, width: int) -> Tensor:
        photo = whole[_below(len(whole), generator)]
        top = _below(photo.shape[1] - height + 1, generator)
        left = _below(photo.shape[2] - width + 1, generator)
        return photo[:, top : top + height, left : left + width]

    return [part(*size) for size in sizes for _ in range(each)]


def _below(end: int, generator: torch.Generator) -> int:
    return int(torch.randint(end, (1,), generator=generator))


def _made(make: Callable[..., nn.Module], **settings: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(nets.SEED)
        return make(
            weights=None,
            weights_backbone=None,
            num_classes=CLASSES,
            min_size=SIZES[0][0],
            max_size=2 * SIZES[0][0],
            **settings,
        )


@torch.no_grad()
def _alive(net: nn.Module, scores: nn.Module) -> nn.Module:
    """The network with settled norms, and a layer of scores that tells its inputs apart."""
    for module in net.modules():
        if isinstance(module, Bottleneck):  # as training leaves them: a branch changes little
            module.bn3.weight.fill_(_BRANCH)
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    images = photos(SIZES, 2, seed=1)
    net.eval()
    for norm in norms:
        norm.train()
        norm.momentum = None  # the plain average
    seen: list[Tensor] = []
    hook = scores.register_forward_hook(lambda module, args, result: seen.append(result.flatten()))
    for image in images:
        net([image])
    net.eval()
    seen.clear()
    net(images[:1])
    hook.remove()
    scores.weight *= _SPREAD / torch.cat(seen).std()
    return net


def found(boxes: Boxes, others: Boxes) -> int:
    """How many boxes have one of their class among the others that is in the same place."""
    same = box_iou(boxes["boxes"], others["boxes"]) > IOU
    same &= boxes["labels"][:, None] == others["labels"]
    return int(same.any(1).sum())


def share(boxes: Sequence[Boxes], others: Sequence[Boxes]) -> float:
    """The share of all boxes that are found."""
    hits = sum(found(a, b) for a, b in zip(boxes, others, strict=True))
    return hits / max(1, sum(len(a["boxes"]) for a in boxes))


@torch.no_grad()
def answers(net: nn.Module, images: Sequence[Tensor]) -> list[Boxes]:
    """The boxes in each image."""
    return [net([image])[0] for image in images]


def rows(names: Sequence[str], samples: int) -> Iterator[dict[str, object]]:
    """A network a row."""
    images = photos(SIZES, IMAGES_OF_A_SIZE, seed=2)
    batches = [[image] for image in photos(SIZES, samples // len(SIZES), seed=3)]
    for name in names:
        net = NETWORKS[name]()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", octavo.OctavoWarning)
            q = octavo.quantize(
                net,
                calibration=batches,
                inputs=lambda batch: (batch,),
                target=octavo.host_target(),
                progress=False,
            )
        wanted = answers(net, images)
        generator = torch.Generator().manual_seed(4)
        noise = [(torch.rand(i.shape, generator=generator) - 0.5) / 255 for i in images]
        moved = answers(net, [i + n for i, n in zip(images, noise, strict=True)])
        yield {
            "network": name,
            "float boxes": sum(len(boxes["boxes"]) for boxes in wanted),
            "found in int8": share(wanted, answers(q, images)),
            "found in float, input half a step off": share(wanted, moved),
            "multiply-adds in int8": octavo.summary(q).share,
        }


def main(words: Sequence[str] | None = None) -> None:
    """Measure and report."""
    made = parser(__doc__)
    made.add_argument("--networks", nargs="*", default=list(NETWORKS))
    made.add_argument("--samples", type=int, default=8, help="images to calibrate with")
    options = parsed(made, words)
    title = "Detectors: boxes found, and the share of int8"
    report = Report("detection", title, {"calibration": options.samples})
    report.rows = list(rows(options.networks, options.samples))
    least = min(float(str(row["multiply-adds in int8"])) for row in report.rows)
    goal = Goal("share of multiply-adds in int8, least", least, LEAST_IN_INT8, at_most=False)
    report.goals = [goal]
    report.finish(options.out)


if __name__ == "__main__":
    main()
