"""Jobs that take the shape of their model from the weights they start from."""

from __future__ import annotations

from pathlib import Path

import pytest

from evo_core.config import load_config
from evo_core.config.open_shape import OpenJob, differences, network_of, read_open_job, shape_conflict
from evo_core.errors import ConfigError
from tests.config.jobs import CONFIGS

SHAPES = sorted((CONFIGS / "models").glob("*.yaml"))


def open_job(folder: Path, text: str = "adam: {lr: 1e-5}\n") -> OpenJob:
    (folder / "job.yaml").write_text(text)
    found = read_open_job(folder / "job.yaml", [], {})
    assert found is not None
    return found


@pytest.mark.parametrize("path", SHAPES, ids=lambda path: path.stem)
def test_every_shipped_shape_closes_a_job(path: Path, tmp_path: Path) -> None:
    there = load_config(path)
    closed = open_job(tmp_path).closed(network_of(there))
    assert closed.adam.lr == 1e-5
    assert network_of(closed) == network_of(there)
    trained = {name: value for name, value in there.model if "init" not in name}
    assert {name: value for name, value in closed.model if "init" not in name} == trained
    assert list(differences(network_of(there), closed)) == []
    assert shape_conflict(network_of(there), closed, "") is None


def test_how_weights_were_trained_and_laid_out_is_not_taken_over(tmp_path: Path) -> None:
    there = load_config(CONFIGS / "train" / "demo.yaml", ["model.drop_rate=0.1", "model.checkpoint=true"])
    closed = open_job(tmp_path).closed(network_of(there))
    assert (closed.model.drop_rate, closed.model.checkpoint) == (0.0, 0.0)


def test_what_a_job_states_of_the_network_goes_first_and_is_told(tmp_path: Path) -> None:
    there = network_of(load_config(CONFIGS / "models" / "internlm2_7b.yaml"))
    closed = open_job(tmp_path, "model: {rope_base: 5e5, dtype: torch.float32}\n").closed(there)
    assert list(differences(there, closed)) == [
        ("model.dtype", "torch.bfloat16", "torch.float32"),
        ("model.rope_base", there["model"]["rope_base"], 5e5),
    ]
    assert shape_conflict(there, closed, "") is None


@pytest.mark.parametrize("stated", ["model: {num_layers: 2}\n", "model_type: my_package.mine:Model\n", "model: 5\n"])
def test_a_size_or_a_type_of_ones_own_leaves_nothing_open(tmp_path: Path, stated: str) -> None:
    (tmp_path / "job.yaml").write_text(stated)
    assert read_open_job(tmp_path / "job.yaml", [], {}) is None


_ISP = "{tensor: {size: 8, mode: isp}, weight: 64}"


@pytest.mark.parametrize("layout", ["{tensor: 8}", "{tensor: 7}", "{zero1: {size: 16}}", _ISP])
def test_a_layout_that_may_fit_is_not_refused_before_the_shape_is_known(tmp_path: Path, layout: str) -> None:
    assert open_job(tmp_path, f"parallel: {layout}\n").unshaped().parallel


def test_training_on_longer_texts_is_what_the_model_is_for_then(tmp_path: Path) -> None:
    """Dynamic NTK stretches positions beyond the trained length; that is the longer one once it was trained on."""
    long = "model.max_position_embeddings"
    there = network_of(load_config(CONFIGS / "models" / "internlm_7b.yaml", [f"{long}=2048"]))
    shorter = open_job(tmp_path, "data: {seq_len: 1024}\n").closed(there)
    assert (shorter.model.max_position_embeddings, list(differences(there, shorter))) == (2048, [])
    longer = open_job(tmp_path, "data: {seq_len: 2**12}\n").closed(there)
    assert longer.model.max_position_embeddings == 4096
    assert list(differences(there, longer)) == [(long, 2048, 4096)]
    stated = open_job(tmp_path, "data: {seq_len: 4096}\nmodel: {max_position_embeddings: 2048}\n").closed(there)
    assert stated.model.max_position_embeddings == 2048


def test_a_trained_length_that_nobody_stated_is_none_to_differ_from(tmp_path: Path) -> None:
    there = network_of(load_config(CONFIGS / "models" / "internlm_7b.yaml"))
    longer = open_job(tmp_path, "data: {seq_len: 16384}\n").closed(there)
    assert (longer.model.max_position_embeddings, list(differences(there, longer))) == (16384, [])


def test_the_rest_of_the_job_is_checked_all_the_same(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"job\.yaml:2: adam\.lrr: unknown key"):
        open_job(tmp_path, "seed: 1\nadam: {lrr: 1}\n").unshaped()


def test_another_size_is_named_with_both(tmp_path: Path) -> None:
    there = network_of(load_config(CONFIGS / "models" / "qwen3_8b.yaml"))
    conflict = shape_conflict(there, load_config(CONFIGS / "models" / "qwen3_4b.yaml"), "steps.model.params.")
    assert "steps.model.params.model.hidden_size: is 2560 here, and 4096 in the weights" in str(conflict)
