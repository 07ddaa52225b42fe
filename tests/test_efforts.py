"""The arithmetic of `benchmarks.efforts`: what is lost, by how much ours are ahead, the data."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.append(str(Path(__file__).parents[1]))

from benchmarks import efforts_table, hard_digits, keypoints, scenes, words
from benchmarks.report import write_table
from benchmarks.static_peers import FX, PT2E
from benchmarks.tasks import ERROR, MIOU, TOP1, WORDS_RIGHT


def test_what_is_lost_and_how_much_of_it_is_chance() -> None:
    truth = torch.zeros(2000, dtype=torch.long)
    before, after = torch.zeros(2000, 2), torch.zeros(2000, 2)
    before[:, 0] = after[:, 0] = 1.0
    after[:40, 1], before[40:60, 1] = 2.0, 2.0  # 40 lost, 20 won
    drop, chance = TOP1.drop(after, before, truth)
    assert drop == pytest.approx(1.0)
    assert chance == pytest.approx(1.96 * 100 * 60**0.5 / 2000, rel=0.1)
    assert TOP1.drop(before, before, truth) == (0.0, 0.0)


def test_mean_overlap_of_classes() -> None:
    truth = torch.tensor([[[0, 0, 1, 1]], [[0, 1, 1, 2]]])
    told = torch.tensor([[[0, 1, 1, 1]], [[0, 1, 1, 2]]])
    scores = torch.nn.functional.one_hot(told, 3).permute(0, 3, 1, 2).float()
    value = float(MIOU.value(MIOU.parts(scores, truth).sum(0)))
    assert value == pytest.approx(100 * (2 / 3 + 4 / 5 + 1) / 3)


def test_a_larger_error_is_a_drop() -> None:
    truth = torch.zeros(64, 8)
    half = torch.full((64, 8), 0.5)  # 8 pixels to the right, and 8 down
    drop, chance = ERROR.drop(half, truth, truth)
    assert drop == pytest.approx(8 * 2**0.5)
    assert chance == pytest.approx(0.0, abs=1e-6)


def test_corners_lie_where_the_digit_was_put() -> None:
    places = hard_digits.placed(5, torch.Generator().manual_seed(0))
    corners = keypoints.corners(places).view(5, 4, 2, 1)
    back = places[:, None, :, :2] @ corners + places[:, None, :, 2:]
    wanted = torch.tensor([(-1.0, -1.0), (1.0, -1.0), (1.0, 1.0), (-1.0, 1.0)])
    torch.testing.assert_close(back.squeeze(3), wanted.expand(5, 4, 2))


def test_words_are_right_to_the_letter() -> None:
    """Repetitions are one letter, unless a blank stands between them."""
    told = torch.tensor([[0, 5, 5, 0, 5, 9], [5, 0, 0, 9, 9, 9]])
    scores = torch.nn.functional.one_hot(told, 97).float()
    wanted = torch.tensor([[5, 5, 9, 0], [5, 9, 9, 0]])
    assert words.read_right(scores, wanted).tolist() == [True, False]
    assert float(WORDS_RIGHT.value(WORDS_RIGHT.parts(scores, wanted).sum(0))) == 50.0


def test_pixels_with_ink_belong_to_their_digit() -> None:
    digits, labels = torch.ones(8, 1, 32, 32), torch.arange(8)
    images, classes = scenes.composed(digits, labels, torch.Generator().manual_seed(3))
    assert images.shape == (2, 1, 48, 48)
    assert set(classes[0].unique().tolist()) <= {0, 1, 2, 3, 4}
    assert set(classes[1].unique().tolist()) <= {0, 5, 6, 7, 8}
    ink, background = images[:, 0][classes > 0], images[:, 0][classes == 0]
    assert float(ink.mean() - background.mean()) > 1.0


def rows(network: str, found: dict[str, list[float]], lost: float = 0.1) -> list[dict[str, Any]]:
    return [
        {"network": network, "way": way, "draw": draw, "SQNR dB": db, "cpu seconds": 1.0}
        | {"drop": lost, "+-": 0.2, "metric": "top-1 %", "value": 90.0}
        for way, values in found.items()
        for draw, db in enumerate(values)
    ]


FOUND = {
    "fp32": [99.0],
    "effort fast": [30.0, 31.0],
    "effort balanced": [32.0, 34.0],
    "effort best": [33.0, 35.0],
    FX: [30.0, 31.0],
    PT2E: [31.0, 30.0],
}


def test_each_draw_is_compared_with_its_best_peer() -> None:
    found = rows("small ResNet", FOUND)
    goals = {goal.name: goal for goal in efforts_table.goals_of(found)}
    ahead = goals["small ResNet: effort balanced: dB above peers"]
    assert (ahead.value, ahead.met) == (2.0, True)
    assert goals["small ResNet: effort best: drop"].value == pytest.approx(0.1)
    noise = goals["all networks: effort best: noise of the best peer's"]
    assert noise.value == pytest.approx(10**-0.3)
    assert goals["small ResNet: effort best: times the seconds of fast"].value == 1.0


def test_tables_for_the_docs() -> None:
    failed = {"network": "small GRU", "way": PT2E, "draw": 0, "error": "E: no"}
    alike = {f"{way}, float recurrence": FOUND[way] for way in FOUND if way.startswith("effort")}
    gru = rows("small GRU", {**FOUND, **alike, PT2E: [], FX: [32.0]})
    whole, some, lost = efforts_table.tables_of([*rows("small ResNet", FOUND), *gru, failed])
    assert whole.splitlines()[0] == "| SQNR in dB | small ResNet | small GRU |"
    assert "| effort best | 34.00 ± 1.41 | 34.00 ± 1.41 |" in whole
    assert f"| {FX} | 30.50 ± 0.71 |  |" in whole
    assert f"| {PT2E} | fails |" in some
    assert lost.splitlines()[-1].startswith("| small GRU | top-1 % 90.00 | 0.100 ± 0.200 |")
    assert lost.splitlines()[-1].endswith(f"| {FX}: 0.100 ± 0.200 | 0.00 | 1.00 |")


def test_a_table_takes_the_place_of_its_own(tmp_path: Path) -> None:
    file = tmp_path / "page.md"
    file.write_text("text\n\n| a | x |\n| --- | --- |\n| 1 | 2 |\n\n| b | x |\n| 3 | 4 |")
    write_table("| b | y |\n| 5 | 6 |", file)
    write_table("| a | y |", file)
    assert file.read_text() == "text\n\n| a | y |\n\n| b | y |\n| 5 | 6 |"
