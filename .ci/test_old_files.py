"""Files that an earlier version wrote still load, and runs that it left unfinished still resume.

`old_files/version_0.1.0.tar.gz` was written by the package before its modules moved into folders:
a tiny language model with its text; activations, checkpoints, interpretations and results of
finished runs; and an extraction, a training and an interpretation that were interrupted. For each
of these `expected/` or the finished run beside it holds what the earlier version made of it.
Numbers are compared within a tolerance, because processors add up in different orders.
"""

import json
import os
import shutil
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file

import sae_analysis as sa
from sae_analysis.cli.run_sae_analysis import run_sae_analysis
from sae_analysis.saes.families import read_families
from sae_analysis.trainer.health import read_history

ARCHIVE = Path(__file__).parent / "old_files" / "version_0.1.0.tar.gz"
SAE_CONFIG = sa.SAEConfig(d_model=16, d_hidden=32, target_l0=4)
TRAIN_CONFIG = sa.TrainConfig(epochs=3, batch_size=64, seed=1)
TOLERANCE = {"rtol": 1e-3, "atol": 1e-4}


def assert_close(ours, theirs, where: str) -> None:
    """Compare nested values; numbers within the tolerance, everything else exactly."""
    if isinstance(theirs, dict):
        missing = theirs.keys() - ours.keys()
        assert not missing, f"{where}: without {missing}"
        for key, value in theirs.items():
            assert_close(ours[key], value, f"{where}.{key}")
    elif isinstance(theirs, list):
        assert len(ours) == len(theirs), f"{where}: {len(ours)} and {len(theirs)} values"
        for index, value in enumerate(theirs):
            assert_close(ours[index], value, f"{where}[{index}]")
    elif isinstance(theirs, float):
        assert np.isclose(ours, theirs, **TOLERANCE), f"{where}: {ours} and {theirs}"
    else:
        assert ours == theirs, f"{where}: {ours!r} and {theirs!r}"


def assert_same_sae(ours: sa.SAE, theirs: sa.SAE) -> None:
    """Both have the same weights."""
    weights = theirs.state_dict()
    for name, tensor in ours.state_dict().items():
        assert torch.allclose(tensor, weights[name], **TOLERANCE), name


class CountingModel(sa.LanguageModel):
    """Counts its forward passes."""

    def __init__(self, loaded: sa.LanguageModel):
        super().__init__(loaded.model, loaded.tokenizer, loaded.name, loaded.revision)
        self.passes = 0

    def residuals(self, *args, **kwargs):
        self.passes += 1
        return super().residuals(*args, **kwargs)


def test_stores() -> None:
    for layer in (0, 1):
        store = sa.open_store(f"states/layer_{layer}_states")
        assert len(store) == 1_500
        assert store.layer == layer
        assert store.manifest["model"] == "model"
        row = store.rows(np.arange(1_500))
        assert torch.allclose(row.float().norm(dim=1), torch.from_numpy(store.norms), rtol=0.01)


def test_resumed_extraction() -> None:
    """Shards that were there are kept; those that were missing come out as before."""
    shutil.copytree("unfinished_states", "resumed_states")
    kept = sorted(Path("resumed_states").rglob("*.safetensors"))
    times = {path: path.stat().st_mtime_ns for path in kept}
    model = sa.load_model("model", "cpu")
    sa.extract(
        model, sa.TextCorpus("texts.jsonl"), [0, 1], 1_500, "resumed_states", context_length=32
    )
    assert times == {path: path.stat().st_mtime_ns for path in kept}, "written again"
    files = sorted(Path("expected/states").rglob("*.safetensors"))
    assert len(files) > len(kept)
    for path in files:
        resumed = load_file(Path("resumed_states") / path.relative_to("expected/states"))
        for name, tensor in load_file(path).items():
            assert torch.allclose(resumed[name].float(), tensor.float(), rtol=0.02, atol=0.02), path


def test_checkpoints() -> None:
    for layer in (0, 1):
        for kind in ("best", "final"):
            sae = sa.open_sae(f"checkpoints/sae_layer_{layer}_{kind}.pt")
            assert sae.metadata["layer"] == layer
            assert sae.config.d_hidden == 32
    assert_same_sae(
        sa.from_pretrained("saelens_folder"), sa.open_sae("checkpoints/sae_layer_0_best.pt")
    )
    report = sa.health("checkpoints", layer=1)
    assert report.check.tolist()[0] == "L0"


def test_finished_training_is_not_repeated() -> None:
    """The same settings find the finished run of the earlier version."""
    written = Path("checkpoints/sae_layer_1_best.pt").stat().st_mtime_ns
    run = sa.train("states/layer_1_states", SAE_CONFIG, TRAIN_CONFIG, "checkpoints", device="cpu")
    assert Path("checkpoints/sae_layer_1_best.pt").stat().st_mtime_ns == written
    assert run.history["best_epoch"] == read_history("checkpoints", 1)["best_epoch"]


def test_resumed_training() -> None:
    """A snapshot of the earlier version is taken up where it was, and ends as it would have."""
    before = read_history("unfinished_checkpoints", 1)
    assert 0 < before["curve"]["step"][-1] < 60, "the run is under way"
    shutil.copytree("unfinished_checkpoints", "resumed_checkpoints")
    seen = []
    run = sa.train(
        "states/layer_1_states",
        SAE_CONFIG,
        TRAIN_CONFIG,
        "resumed_checkpoints",
        device="cpu",
        watch=lambda history: seen.append(list(history["curve"]["step"])),
    )
    assert seen[0][: len(before["curve"]["step"])] == before["curve"]["step"], "started anew"
    expected = json.loads(Path("expected/checkpoints/sae_layer_1_history.json").read_text())
    expected.pop("finished")
    assert_close(run.history, expected, "history")
    ours = sa.open_sae("resumed_checkpoints/sae_layer_1_best.pt")
    assert_same_sae(ours, sa.open_sae("expected/checkpoints/sae_layer_1_best.pt"))


def test_interpretations() -> None:
    features = sa.Features.load("interpretations/layer_1_interpretations.json")
    assert len(features) == 32
    sa.print_feature_summary(features[3])


def test_resumed_interpretation() -> None:
    """A snapshot of the earlier version is taken up, not thrown away."""
    lines = Path("texts.jsonl").read_text().splitlines()
    texts = [json.loads(line)["text"] for line in lines] * 4
    shutil.copytree("unfinished_interpretations", "resumed_interpretations")
    checkpoint = "checkpoints/sae_layer_1_best.pt"
    model = CountingModel(sa.load_model("model", "cpu"))
    sa.analyze_sae(checkpoint, model, 1, texts, "repeated_interpretations")
    passes_of_whole_run = model.passes
    model.passes = 0
    sa.analyze_sae(checkpoint, model, 1, texts, "resumed_interpretations")
    assert model.passes < passes_of_whole_run, "started anew"
    name = "layer_1_interpretations.json"
    ours = json.loads((Path("resumed_interpretations") / name).read_text())
    theirs = json.loads((Path("interpretations") / name).read_text())
    for features in (ours, theirs):
        name_equal_texts_alike(features, len(lines))
    assert_close(ours, theirs, "features")


def name_equal_texts_alike(value: Any, texts: int) -> None:
    """Replace the names of documents by those of their first copies, in place.

    Every text occurs four times. Which copy has the largest activation is decided by the last
    digits, which differ from one kind of processor to another.
    """
    if isinstance(value, list):
        for entry in value:
            name_equal_texts_alike(entry, texts)
    if isinstance(value, dict):
        if str(value.get("document", "")).startswith("text-"):
            number = int(value["document"].removeprefix("text-"))
            value["document"] = f"text-{number % texts}"
        for entry in value.values():
            name_equal_texts_alike(entry, texts)


def test_results() -> None:
    """A features CSV of the earlier version is analysed, with the results that it had."""
    (family,) = read_families("families.yaml")
    assert family.layers == (0, 1)
    flags = ["--families", "families.yaml", "--prompts-path", "prompts", "--device", "cpu"]
    flags += ["--features-csv", "results/universal.csv", "--specific-output", "new/specific.csv"]
    assert run_sae_analysis(["--analysis", "specific", "--record-prompts", *flags]) == 0
    ours = pd.read_csv("new/specific.csv")
    theirs = pd.read_csv("results/specific.csv")
    pd.testing.assert_frame_equal(ours, theirs, rtol=1e-3, atol=1e-4)


TESTS = [
    test_stores,
    test_resumed_extraction,
    test_checkpoints,
    test_finished_training_is_not_repeated,
    test_resumed_training,
    test_interpretations,
    test_resumed_interpretation,
    test_results,
]


def main() -> int:
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(ARCHIVE) as archive:
            archive.extractall(folder, filter="data")
        os.chdir(folder)
        for test in TESTS:
            try:
                test()
            except Exception as error:
                failed += 1
                print(f"FAILED {test.__name__}: {type(error).__name__}: {error}")
        os.chdir(ARCHIVE.parent)
    print(f"{len(TESTS) - failed} passed, {failed} failed")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
