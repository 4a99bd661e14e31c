"""Layouts train as one process does: a few of two ranks here, every one of two and four in the long form."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from evo_core.config.resolve import merge
from evo_core.errors import ConfigError
from evo_core.parity.job import STEPS, VOCAB_SIZE, small_model, training, write_documents
from evo_core.parity.layouts import OWN, chosen
from evo_core.parity.matrix import Matrix, Result
from evo_core.parity.show import summary

pytestmark = pytest.mark.parity

SHORT = (
    "dp2-zero2-overlap",
    "dp2-zero2-ep2-moe-overlap",
    "dp2-fsdp2-recompute-half",
    "mtp2-one-kv-head",
    "msp2-moe-recompute",
    "fsp2-internlm",
    "isp2w2-memory-pool-recompute-half",
    "pp2zbv-six-layers",
)
FOUR_IN_NARROW_TYPES = [
    "dp4*",
    "mtp4",
    "msp4",
    "fsp4",
    "isp?w?",
    "*2-dp2*-recompute",
    "*4-tied",
    "*4-fp32-*",
    "mtp4-one-kv-head",
    "pp2*p2",
]


def results(folder: Path, ranks: int, dtype: str, *names: str) -> Iterator[Result]:
    write_documents(folder, VOCAB_SIZE)
    with Matrix(ranks, merge(training(folder), small_model()), dtype) as matrix:
        yield from matrix.results(chosen(names, ranks))


def test_layouts_of_two_ranks_train_as_one_process_does(tmp_path: Path) -> None:
    done = list(results(tmp_path, 2, "float64", *SHORT))
    assert [result.row.name for result in done] == [row.name for row in chosen(SHORT, 2)]
    for result in done:
        assert result.why is None, f"{result.row.name}: {result.why}"
        assert result.found is not None and 0 < result.found.worst.value <= 1e-12
        assert {each.step for each in result.found.gradients} == set(range(STEPS))


@pytest.mark.slow
def test_float32_deviates_no_more_than_twice_as_much_as_one_process(tmp_path: Path) -> None:
    (result,) = results(tmp_path, 2, "float32", "msp2")
    assert result.why is None
    assert result.found is not None and 1e-8 < result.found.worst.value <= result.bar < 1e-4
    assert "says little" not in summary([result], "float32")
    assert "\nin msp2 one process is as far" in summary([replace(result, bar=2.0)], "float32")


def test_what_a_job_cannot_have_is_left_out_with_the_reason(tmp_path: Path) -> None:
    """Dropout of attention weights is drawn inside kernels, so heads cannot be shared out."""
    model = merge(small_model(), {"model": {"attn_drop_rate": 0.1}})
    rows = [row for row in chosen(["all"], 2) if not row.model]
    with Matrix(2, merge(training(tmp_path), model), "float64") as matrix:
        legal, left_out = matrix.legal(rows, ["msp*"])
        with pytest.raises(ConfigError, match="attn_drop_rate"):
            matrix.results(rows)
        with pytest.raises(ConfigError, match="attn_drop_rate"):
            matrix.legal([rows[0], next(replace(row, name=OWN) for row in rows if row.name == "msp2")], [])
        with pytest.raises(ConfigError, match="attn_drop_rate"):
            matrix.legal(rows, ["dp2", "msp2"])
        with pytest.raises(ConfigError, match="attn_drop_rate"):
            matrix.legal([row for row in rows if row.name.startswith("mtp")], ["mtp*"])
    assert {row.name for row in legal} == {row.name for row in rows if row.name.startswith(("dp2", "isp1", "pp2"))}
    assert len(left_out) == len(rows) - len(legal)
    assert any(re.match("without mtp2: model.attn_drop_rate: ", line) for line in left_out)


def test_one_process_that_gets_nowhere_is_named(tmp_path: Path) -> None:
    write_documents(tmp_path, VOCAB_SIZE)
    endless = merge(small_model(), {"model": {"attn_wqkv_init_std": 1e308}})
    with Matrix(2, merge(training(tmp_path), endless), "float64") as matrix:
        (result,) = matrix.results(chosen(["dp2"], 2))
    assert not result.equal and result.found is None
    assert result.why is not None and re.match("one process has loss nan .* in step 0 in float64", result.why)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("ranks", "dtype", "names"),
    [
        (2, "float64", ["all"]),
        (4, "float64", ["all"]),
        (2, "float32", ["all"]),
        (2, "bfloat16", ["all"]),
        (4, "float32", FOUR_IN_NARROW_TYPES),
        (4, "bfloat16", FOUR_IN_NARROW_TYPES),
    ],
)
def test_every_layout(tmp_path: Path, ranks: int, dtype: str, names: list[str]) -> None:
    missed = [f"{r.row.name}: {r.why}" for r in results(tmp_path, ranks, dtype, *names) if not r.equal]
    assert not missed, "\n".join(missed)
