"""`octavo.quantize` with detectors: what computes is int8, what sorts out boxes stays the user's.

torchvision's classes run as they are, on a backbone that is small enough for a test.
"""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
import torchvision_operators  # noqa: F401  (before torchvision)
from decibel import sqnr_db
from torch import Tensor, nn
from torchvision.models import detection
from torchvision.models.detection import faster_rcnn, keypoint_rcnn, mask_rcnn
from torchvision.models.detection.anchor_utils import AnchorGenerator, DefaultBoxGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.ssd import SSD
from torchvision.models.detection.ssdlite import SSDLiteHead
from torchvision.ops import box_iou, nms

import octavo
from octavo.flow.regions import regions_of

Boxes = dict[str, Tensor]

CLASSES, WIDTH = 3, 32
SMALL, LARGE = (96, 96), (96, 128)


def block(before: int, after: int, stride: int = 2) -> nn.Sequential:
    conv = nn.Conv2d(before, after, 3, stride, padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(after), nn.ReLU())


def pyramid() -> BackboneWithFPN:
    """Maps of an eighth, a sixteenth, a 32nd, and a pooled one."""
    body = nn.Sequential(OrderedDict(stem=nn.Sequential(block(3, 16), block(16, 16))))
    for index, (before, after) in enumerate([(16, 24), (24, 32), (32, 48)]):
        body.add_module(f"stage{index}", block(before, after))
    kept = {f"stage{index}": str(index) for index in range(3)}
    return BackboneWithFPN(body, kept, [24, 32, 48], WIDTH)


def anchors(sizes: int = 4) -> AnchorGenerator:
    return AnchorGenerator(
        tuple((16 * 2**level,) for level in range(sizes)), ((0.5, 1.0, 2.0),) * sizes
    )


SIZES = {"min_size": 96, "max_size": 160}
FEW = {"score_thresh": 0.0, "detections_per_img": 20, "topk_candidates": 50}


def rcnn(make: Callable[..., nn.Module], **heads: object) -> nn.Module:
    """Of two stages, with heads that are narrow."""
    return make(
        pyramid(),
        rpn_anchor_generator=anchors(),
        rpn_pre_nms_top_n_test=50,
        rpn_post_nms_top_n_test=30,
        box_head=faster_rcnn.TwoMLPHead(WIDTH * 7**2, 64),
        box_predictor=faster_rcnn.FastRCNNPredictor(64, CLASSES),
        box_score_thresh=0.0,
        box_detections_per_img=20,
        **SIZES,
        **heads,
    )


def mask() -> nn.Module:
    head = mask_rcnn.MaskRCNNHeads(WIDTH, (16, 16), 1)
    predictor = mask_rcnn.MaskRCNNPredictor(16, 16, CLASSES)
    return rcnn(detection.MaskRCNN, mask_head=head, mask_predictor=predictor)


def keypoints() -> nn.Module:
    head = keypoint_rcnn.KeypointRCNNHeads(WIDTH, (16, 16))
    predictor = keypoint_rcnn.KeypointRCNNPredictor(16, 4)
    return rcnn(detection.KeypointRCNN, keypoint_head=head, keypoint_predictor=predictor)


def retinanet() -> nn.Module:
    return detection.RetinaNet(pyramid(), CLASSES, anchor_generator=anchors(), **SIZES, **FEW)


def fcos() -> nn.Module:
    one_each = AnchorGenerator(((8,), (16,), (32,), (64,)), ((1.0,),) * 4)
    return detection.FCOS(pyramid(), CLASSES, anchor_generator=one_each, **SIZES, **FEW)


def ssdlite() -> nn.Module:
    boxes = DefaultBoxGenerator([[2, 3]] * 4, min_ratio=0.2, max_ratio=0.95)
    head = SSDLiteHead([WIDTH] * 4, boxes.num_anchors_per_location(), CLASSES, nn.BatchNorm2d)
    return SSD(pyramid(), boxes, (96, 96), CLASSES, head=head, **FEW)


def images(*sizes: tuple[int, int], seed: int = 0) -> list[Tensor]:
    """Smooth ones: noise of a few pixels a cell."""
    generator = torch.Generator().manual_seed(seed)
    grids = [torch.rand(1, 3, h // 8, w // 8, generator=generator) for h, w in sizes]
    return [
        nn.functional.interpolate(grid, size=size, mode="bilinear")[0]
        for grid, size in zip(grids, sizes, strict=True)
    ]


def batches() -> list[list[Tensor]]:
    return [images(SMALL, SMALL, seed=1), images(LARGE, SMALL, seed=2), images(LARGE, seed=3)]


@torch.no_grad()
def built(make: Callable[[], nn.Module]) -> nn.Module:
    """The detector, with scores that differ from box to box as those of a trained one do."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = make().eval()
        for name, parameter in net.named_parameters():
            if parameter.dim() > 1:
                nn.init.kaiming_normal_(parameter)
                if any(part in name for part in ("bbox", "box_reg", "regression")):
                    parameter *= 0.2
    return net


def quantized(net: nn.Module, **settings: object) -> nn.Module:
    settings = {"calibration": [(batch, [{}]) for batch in batches()], **settings}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", octavo.OctavoWarning)
        return octavo.quantize(net, target=octavo.host_target(), progress=False, **settings)


def found(wanted: Sequence[Boxes], got: Sequence[Boxes]) -> float:
    """The share of boxes with one of their class in the same place."""
    hits = total = 0
    for a, b in zip(wanted, got, strict=True):
        same = box_iou(a["boxes"], b["boxes"]) > 0.7
        same &= a["labels"][:, None] == b["labels"]
        hits += int(same.any(1).sum())
        total += len(a["boxes"])
    assert total
    return hits / total


def maps(net: nn.Module, image: Tensor) -> list[Tensor]:
    """What the backbone finds in an image, and the head, where it is one for all places."""
    features = list(net.backbone(image[None]).values())
    return features + (list(net.head(features).values()) if hasattr(net, "head") else [])


def same(one: Sequence[Boxes], other: Sequence[Boxes]) -> bool:
    return all(torch.equal(a[key], b[key]) for a, b in zip(one, other, strict=True) for key in a)


BOTH = ("backbone", "head")
STAGES = ("backbone", "rpn.head", "roi_heads.box_head", "roi_heads.box_predictor")
MASKS = ("roi_heads.mask_head", "roi_heads.mask_predictor")
KEYPOINTS = ("roi_heads.keypoint_head", "roi_heads.keypoint_predictor")
# Faster R-CNN is those with masks and with keypoints, without these.
# Which are regions, and the least share of boxes found; none for FCOS, whose scores are all alike,
# so that which boxes come first is chance.
DETECTORS = {
    mask: ((*STAGES, *MASKS), 0.5),
    keypoints: ((*STAGES, *KEYPOINTS), 0.5),
    retinanet: (BOTH, 0.5),
    fcos: (BOTH, None),
    ssdlite: (BOTH, 0.5),
}


@pytest.mark.sweep
@pytest.mark.parametrize("make", DETECTORS)
def test_torchvisions_detectors_in_one_line(make: Callable[[], nn.Module]) -> None:
    net = built(make)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    q = quantized(net)
    assert type(q) is type(net)
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    expected, least = DETECTORS[make]
    assert set(regions_of(q)) == set(expected)
    assert octavo.summary(q).coverage.share >= 0.95
    with torch.no_grad():
        for shown in (images(SMALL, SMALL, seed=4), images(LARGE, (128, 96), seed=5)):
            wanted, got = net(shown), q(shown)
            assert [set(a) for a in got] == [set(a) for a in wanted]
            assert least is None or found(wanted, got) >= least
            pairs = zip(maps(net, shown[0]), maps(q, shown[0]), strict=True)
            assert min(sqnr_db(a, b) for a, b in pairs) > 15


def test_a_backbone_alone_and_saved(tmp_path: Path) -> None:
    net = built(retinanet)
    net.train()
    net.backbone.body.stem.eval()  # frozen, say
    flags = [module.training for module in net.modules()]
    q = quantized(net, only=["backbone"])
    assert [module.training for module in net.modules()] == flags
    assert list(regions_of(q)) == ["backbone"]
    assert type(q.head) is type(net.head)
    octavo.save(q, tmp_path / "detector.octavo")
    again = octavo.load(tmp_path / "detector.octavo", into=built(retinanet))
    shown = images(LARGE, SMALL, seed=6)
    with torch.no_grad():
        assert same(again(shown), q(shown))


class Yolo(nn.Module):
    """``[N, 3, H, W]`` -> for each image its boxes, by two scales and suppression in forward."""

    def __init__(self) -> None:
        super().__init__()
        self.fine = nn.Sequential(block(3, 16), block(16, 32), block(32, 32))
        self.coarse = block(32, 64)
        self.heads = nn.ModuleList(nn.Conv2d(width, 4 + CLASSES, 1) for width in (32, 64))

    def raw(self, x: Tensor) -> Tensor:
        """Places and scores of all cells: ``[N, cells, 4 + CLASSES]``."""
        fine = self.fine(x)
        found = []
        for head, level in zip(self.heads, (fine, self.coarse(fine)), strict=True):
            stride = x.shape[-1] // level.shape[-1]
            rows = torch.arange(level.shape[2]).repeat_interleave(level.shape[3])
            columns = torch.arange(level.shape[3]).repeat(level.shape[2])
            centres = torch.stack([columns, rows], 1) * float(stride)
            cells = head(level).flatten(2).transpose(1, 2)
            half = cells[..., 2:4].sigmoid() * 2 * stride
            middle = centres + cells[..., :2].sigmoid() * stride
            found.append(torch.cat([middle - half, middle + half, cells[..., 4:].sigmoid()], -1))
        return torch.cat(found, 1)

    def forward(self, x: Tensor) -> list[Tensor]:
        result = []
        for cells in self.raw(x):
            scores = cells[:, 4:].amax(1)
            result.append(cells[nms(cells[:, :4], scores, 0.5)[:10]])
        return result


def test_a_network_that_makes_its_anchors_and_suppresses_boxes_itself() -> None:
    net = built(Yolo)
    q = quantized(net, calibration=[torch.stack(images(SMALL, SMALL, seed=s)) for s in range(3)])
    assert type(q) is Yolo
    assert set(regions_of(q)) == {"fine", "coarse", "heads.0", "heads.1"}
    assert octavo.summary(q).coverage.share >= 0.95
    with torch.no_grad():
        for size, count in ((SMALL, 1), (LARGE, 3)):
            x = torch.stack(images(*[size] * count, seed=7))
            assert sqnr_db(net.raw(x), q.raw(x)) > 20
            assert [len(boxes) for boxes in q(x)] == [10] * count


@pytest.mark.sweep
def test_a_detector_without_suppression_is_one_graph_for_any_size() -> None:
    transformers = pytest.importorskip("transformers")
    made = {"layers": 1, "attention_heads": 2, "ffn_dim": 64}
    config = transformers.DetrConfig(
        use_timm_backbone=False,
        use_pretrained_backbone=False,
        backbone=None,
        backbone_config=transformers.ResNetConfig(
            embedding_size=16,
            hidden_sizes=[16, 24, 32, 48],
            depths=[1, 1, 1, 1],
            layer_type="basic",
            out_features=["stage4"],
        ),
        d_model=WIDTH,
        num_queries=8,
        num_labels=CLASSES,
        **{
            f"{half}_{key}": value for half in ("encoder", "decoder") for key, value in made.items()
        },
    )
    net = built(lambda: transformers.DetrForObjectDetection(config))

    def masked(*sizes: tuple[int, int]) -> dict[str, Tensor]:
        pixels = torch.stack(images(*sizes, seed=len(sizes)))
        return {"pixel_values": pixels, "pixel_mask": torch.ones_like(pixels[:, 0]).long()}

    q = quantized(net, calibration=[masked(SMALL, SMALL), masked(LARGE)])
    assert isinstance(q, octavo.QuantizedModel)
    assert octavo.summary(q).coverage.share >= 0.95
    with torch.no_grad():
        for sizes in ([SMALL], [LARGE] * 3, [(64, 160)] * 2):
            wanted, got = net(**masked(*sizes)), q(**masked(*sizes))
            assert sqnr_db(wanted.logits, got.logits) > 12
            assert sqnr_db(wanted.pred_boxes, got.pred_boxes) > 20
