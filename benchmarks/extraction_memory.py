"""The peak of memory while activations are extracted, for `extraction`.

A module of its own, so that the process that is measured imports nothing else. Not a benchmark by
itself.
"""

from harness import process_memory

from sae_analysis.extractor.extraction import extract
from sae_analysis.loaders.docs import DocsCorpus
from sae_analysis.models.language_model import load_model


def extraction_peak(tokens: int, folder: str) -> float:
    """MB that this process held at most while it extracted all layers of the pocket model."""
    extract(load_model("pocket", "cpu"), DocsCorpus(), [0, 1, 2, 3], tokens, folder)
    return process_memory("VmHWM")
