"""Which tensors may be missing in a checkpoint, or be left over in it."""

from __future__ import annotations

from pathlib import Path

import pytest

from evo_core.checkpoint.allowed import NOTHING, Allow, Difference, differing
from evo_core.errors import CheckpointError

MODEL = {f"layers.{n}.{part}.weight": (2, 3) for n in range(12) for part in ("wo", "norm")} | {"head.weight": (5, 3)}
HERE = Path("there")


def without(*endings: str) -> dict[str, tuple[int, ...]]:
    return {name: shape for name, shape in MODEL.items() if not name.endswith(endings)}


def refused(wanted: dict, stored: dict, allow: Allow | None = NOTHING) -> str:
    with pytest.raises(CheckpointError) as caught:
        differing(wanted, stored, allow, HERE)
    return str(caught.value)


def test_what_differs_is_one_error_with_what_to_write() -> None:
    said = refused(MODEL, without("norm.weight") | {"value.weight": (1, 3), "value.bias": (1,)})
    assert said == (
        "there: lacks layers.0.norm.weight, layers.1.norm.weight, layers.10.norm.weight, layers.11.norm.weight, "
        "layers.2.norm.weight and 7 more; has value.bias, value.weight, which this model does not have (to draw first "
        "weights for what it lacks and leave what is left over, write allow: "
        '{missing: ["layers.*.norm.weight"], unexpected: ["value.bias", "value.weight"]} in ckpt.load_ckpt_info)'
    )
    assert "allow" not in refused(MODEL, without("head.weight"), None)


def test_what_a_message_says_to_write_is_enough() -> None:
    """Whole layers that are new: no pattern for them takes in a tensor that is there."""
    stored = {name: shape for name, shape in MODEL.items() if not name.startswith(("layers.3.", "layers.11."))}
    assert 'write allow: {missing: ["layers.11.*", "layers.3.*"]}' in refused(MODEL, stored)
    difference = differing(MODEL, stored, Allow(missing=("layers.11.*", "layers.3.*")), HERE)
    assert difference == Difference(
        ("layers.11.norm.weight", "layers.11.wo.weight", "layers.3.norm.weight", "layers.3.wo.weight")
    )


def test_options_are_named_where_they_say_it() -> None:
    said = refused(MODEL, without("norm.weight") | {"value.weight": (1,)}, Allow(as_options=True))
    assert said.endswith(
        "to draw first weights for what it lacks and leave what is left over, give "
        "--init-allow-missing 'layers.*.norm.weight' --init-allow-unexpected 'value.weight')"
    )
    assert refused(MODEL, MODEL, Allow(missing=("heads",), as_options=True)).startswith("there: --init-allow-missing: ")


def test_what_is_allowed_already_stays_in_what_to_write() -> None:
    said = refused(MODEL, without("norm.weight", "head.weight"), Allow(missing=("head.*",)))
    assert '{missing: ["head.*", "layers.*.norm.weight"]}' in said
    assert "lacks layers.0.norm.weight" in said


def test_a_shape_differs_whatever_is_allowed() -> None:
    stored = without("norm.weight") | {"head.weight": (6, 3)}
    said = refused(MODEL, stored, Allow(missing=("*",), unexpected=("*",)))
    assert said == "there: head.weight has shape [6, 3] there and [5, 3] here"


def test_a_pattern_that_means_no_tensor_is_refused() -> None:
    assert refused(MODEL, MODEL, Allow(missing=("head.wieght",))) == (
        'there: ckpt.load_ckpt_info.allow.missing: head.wieght is no tensor of this model; did you mean "head.weight"? '
        "(its names are like layers.0.wo.weight, layers.0.norm.weight, layers.1.wo.weight)"
    )
    assert "allow.unexpected: layers.12.* is no tensor of this checkpoint" in refused(
        MODEL, MODEL, Allow(unexpected=("layers.12.*",))
    )


def test_a_pattern_for_what_is_there_is_told(caplog: pytest.LogCaptureFixture) -> None:
    difference = differing(MODEL, MODEL, Allow(missing=("head.*",), unexpected=("layers.*",)), HERE)
    assert difference == Difference(idle=("head.*", "layers.*"))
    difference.tell(HERE)
    assert [(record.levelname, record.message) for record in caplog.records] == [
        ("WARNING", "there: nothing differs there of head.*, layers.*, which is allowed to")
    ]


def test_nothing_in_common_is_another_model_whatever_is_allowed() -> None:
    """As where every name there begins with a prefix that the model does not have: all would be drawn."""
    stored = {f"model.{name}": shape for name, shape in MODEL.items()}
    said = refused(MODEL, stored, Allow(missing=("*",), unexpected=("*",)))
    assert "lacks head.weight" in said
    assert "has model.head.weight" in said
    assert "(no tensor there has a name of this model's: it is of another family (model_type), or all have" in said


def test_letters_of_patterns_in_names_mean_themselves() -> None:
    assert differing({"a[0]": (1,), "b": (1,)}, {"b": (1,)}, Allow(missing=("a[0]",)), HERE).missing == ("a[0]",)


def test_a_tensor_without_elements_is_not_missing() -> None:
    assert differing({"a": (0, 3), "b": (1,)}, {"b": (1,)}, None, HERE) == Difference()
