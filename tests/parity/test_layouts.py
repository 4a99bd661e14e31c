"""The list of layouts: names that can be typed, each of them legal; what is said of one that is not there."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pytest

from evo_core.errors import ConfigError
from evo_core.parity.job import job, small_model, training
from evo_core.parity.layouts import LAYOUTS, MODELS, ROWS, WAYS, chosen, ranks_of, rows_of_own, settings_of


def test_each_row_has_a_name_of_its_own_and_is_legal(tmp_path: Path) -> None:
    assert max(Counter(row.name for row in ROWS).values()) == 1
    for row in ROWS:
        cfg = job(training(tmp_path), small_model(), *settings_of(row), dtype="float64")
        cfg.check_world(row.layout.ranks)
        dp = cfg.dp(row.layout.ranks)
        assert cfg.micro_num(dp) > 1, f"{row.name} has one micro-batch"


def test_there_is_every_layout() -> None:
    names = {layout.name for layout in LAYOUTS}
    assert {"dp2", "dp2-zero2", "mtp2", "msp2", "fsp2"} < names
    assert {"dp4", "dp4-zero2", "dp4-zero4", "mtp4", "msp4", "fsp4"} < names
    assert {"dp2-fsdp1", "dp2-fsdp2", "dp4-fsdp1", "dp4-fsdp2", "dp4-fsdp4", "mtp2-dp2-fsdp2", "msp2-dp2-fsdp2"} < names
    assert {f"{mode}2-dp2{zero}" for mode in ("mtp", "msp", "fsp") for zero in ("", "-zero2")} < names
    assert {"isp1w2", "isp2w1", "isp2w2", "isp1w2-dp4-zero2", "isp2w2-dp2", "isp2w1-dp2-zero2"} < names
    assert {"isp1w4", "isp2w4", "isp4w4", "isp4w1", "isp4w1-zero4", "isp4w2", "isp4w2-zero2"} < names
    assert {"pp2", "pp2x2", "pp2zbh1", "pp2zbv", "pp4", "pp4zbh1"} < names
    beside = ("dp2", "dp2-zero2", "mtp2", "msp2", "fsp2", "isp1w2", "isp2w1", "isp2w1-zero2", "isp2w2")
    assert {f"pp2{schedule}-{other}" for schedule in ("", "x2", "zbh1", "zbv") for other in beside} < names


def test_each_model_and_way_is_another_and_is_tried_at_both_sizes(tmp_path: Path) -> None:
    def written(*blocks: dict) -> str:
        return json.dumps(job(training(tmp_path), small_model(), *blocks, dtype="float64").to_plain(), sort_keys=True)

    tried = {(row.layout.ranks, row.name.removeprefix(row.layout.name + "-")) for row in ROWS}
    for name, blocks in {**MODELS, **WAYS}.items():
        assert written(blocks) != written(), name
        assert {(2, name), (4, name)} <= tried, name


def test_names_patterns_and_all() -> None:
    assert [row.name for row in chosen(["mtp2", "dp2"], 2)] == ["dp2", "mtp2"]
    assert {row.name for row in chosen(["msp4*"], 4)} == {row.name for row in ROWS if row.name.startswith("msp4")}
    assert chosen(["all", "mtp2"], 2) == [row for row in ROWS if row.layout.ranks == 2]
    assert (ranks_of(["msp4"]), ranks_of(["mtp2"]), ranks_of(["all"]), ranks_of(["msp4", "mtp2"])) == (4, 2, 2, 2)


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("mtq2", 'no such layout: mtq2; did you mean "mtp2"?'),
        ("fsdq*", r"no such layout: fsdq\*"),
        ("msp4", "msp4 is for 4 ranks, not 2"),
    ],
)
def test_a_name_that_is_not_there(word: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as error:
        chosen(["dp2", word], 2)
    assert error.value.key == "--layouts"


def test_the_page_names_what_there_is() -> None:
    page = (Path(__file__).parents[2] / "docs" / "parity.md").read_text(encoding="utf-8")
    endings = re.findall(r"`-([a-z0-9][a-z0-9-]*)`", page)
    assert len(endings) >= 8 and set(endings) <= {*MODELS, *WAYS}
    names = re.findall(r"`((?:dp|mtp|msp|fsp|isp|pp)\d[a-z0-9-]*)`", page)
    assert len(names) >= 8 and set(names) <= {row.name for row in (*ROWS, *rows_of_own(4))}
