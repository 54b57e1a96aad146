"""Train, explain and analyse sparse autoencoders on language models.

Everything a user needs is here: `import sae_analysis as sa`, then `sa.` and tab. Each name is
imported when it is first used, so that importing the package is quick and loads no torch.

In the examples `model` is a language model, `texts` a list of strings, `store` the activations
after layer 2, `run` a training on them with its `sae`, `quality` and `features` what `evaluate`
and `interpret` gave, `prompts` a list of `Prompt`, and `sources` a list of `LoadedSource`.
"""

__version__ = "0.1.0"

import importlib as _importlib
from typing import TYPE_CHECKING as _TYPE_CHECKING
from typing import Any as _Any

# Where each public name is defined, in the order in which one meets them.
_HOME = {
    "core.config": ["SAEConfig", "TrainConfig", "load_config"],
    "core.errors": ["InputError"],
    "loaders.corpora": ["TextCorpus", "WikipediaCorpus"],
    "loaders.docs": ["DocsCorpus"],
    "loaders.prompts": ["Prompt", "load_prompts"],
    "loaders.truthfulqa": ["load_truthfulqa"],
    "models.chat": ["inspect_positions"],
    "models.language_model": ["GPT2WithResidualHooks", "LanguageModel", "load_model"],
    "extractor.extraction": ["HiddenStateExtractor", "extract"],
    "extractor.live": ["live_stores"],
    "extractor.store": ["ActivationStore", "open_store"],
    "saes.download": ["load_source"],
    "saes.families": ["SAEFamily", "Source", "register_family"],
    "saes.formats": ["convert", "open_sae"],
    "saes.jumprelu": ["JumpReLUSAE"],
    "saes.sae": ["SAE"],
    "saes.saelens": ["from_pretrained", "save_pretrained"],
    "saes.topk": ["TopKSAE"],
    "trainer.curves": ["live_plot"],
    "trainer.health": ["health"],
    "trainer.publish": ["push_to_hub"],
    "trainer.runs": ["train", "train_sae_for_layer", "train_saes"],
    "interpreter.directions": ["match_features"],
    "interpreter.evaluation": ["checklist", "evaluate"],
    "interpreter.evidence": ["EvidenceConfig"],
    "interpreter.features": [
        "Features",
        "analyze_sae",
        "explain_features",
        "interpret",
        "print_feature_summary",
        "test_descriptions",
    ],
    "analysis.labels": ["compare_labels"],
    "analysis.sources": ["LoadedSource"],
    "analysis.specific": ["specific_features"],
    "analysis.steering": ["compare_answers", "steering_edits", "typical_activations"],
    "analysis.universal": ["universal_features"],
    "explorer.feature_explorer": ["FeatureExplorer"],
    "explorer.label_explorer": ["LabelExplorer"],
    "explorer.position_explorer": ["PositionExplorer"],
    "explorer.prompt_explorer": ["PromptExplorer"],
    "explorer.training_explorer": ["TrainingExplorer"],
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = list(_MODULE_OF)


def __getattr__(name: str) -> _Any:
    """Imports a public name when it is first used."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = _importlib.import_module(f"{__name__}.{_MODULE_OF[name]}")
    value = getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The public names, for tab completion."""
    return sorted([*__all__, "__version__"])


if _TYPE_CHECKING:  # for type checkers and editors: the same names, imported plainly
    from .core.config import (
        SAEConfig as SAEConfig,
        TrainConfig as TrainConfig,
        load_config as load_config,
    )
    from .core.errors import InputError as InputError
    from .loaders.corpora import TextCorpus as TextCorpus, WikipediaCorpus as WikipediaCorpus
    from .loaders.docs import DocsCorpus as DocsCorpus
    from .loaders.prompts import Prompt as Prompt, load_prompts as load_prompts
    from .loaders.truthfulqa import load_truthfulqa as load_truthfulqa
    from .models.chat import inspect_positions as inspect_positions
    from .models.language_model import (
        GPT2WithResidualHooks as GPT2WithResidualHooks,
        LanguageModel as LanguageModel,
        load_model as load_model,
    )
    from .extractor.extraction import (
        HiddenStateExtractor as HiddenStateExtractor,
        extract as extract,
    )
    from .extractor.live import live_stores as live_stores
    from .extractor.store import ActivationStore as ActivationStore, open_store as open_store
    from .saes.download import load_source as load_source
    from .saes.families import (
        SAEFamily as SAEFamily,
        Source as Source,
        register_family as register_family,
    )
    from .saes.formats import convert as convert, open_sae as open_sae
    from .saes.jumprelu import JumpReLUSAE as JumpReLUSAE
    from .saes.sae import SAE as SAE
    from .saes.saelens import from_pretrained as from_pretrained, save_pretrained as save_pretrained
    from .saes.topk import TopKSAE as TopKSAE
    from .trainer.curves import live_plot as live_plot
    from .trainer.health import health as health
    from .trainer.publish import push_to_hub as push_to_hub
    from .trainer.runs import (
        train as train,
        train_sae_for_layer as train_sae_for_layer,
        train_saes as train_saes,
    )
    from .interpreter.directions import match_features as match_features
    from .interpreter.evaluation import checklist as checklist, evaluate as evaluate
    from .interpreter.evidence import EvidenceConfig as EvidenceConfig
    from .interpreter.features import (
        Features as Features,
        analyze_sae as analyze_sae,
        explain_features as explain_features,
        interpret as interpret,
        print_feature_summary as print_feature_summary,
        test_descriptions as test_descriptions,
    )
    from .analysis.labels import compare_labels as compare_labels
    from .analysis.sources import LoadedSource as LoadedSource
    from .analysis.specific import specific_features as specific_features
    from .analysis.steering import (
        compare_answers as compare_answers,
        steering_edits as steering_edits,
        typical_activations as typical_activations,
    )
    from .analysis.universal import universal_features as universal_features
    from .explorer.feature_explorer import FeatureExplorer as FeatureExplorer
    from .explorer.label_explorer import LabelExplorer as LabelExplorer
    from .explorer.position_explorer import PositionExplorer as PositionExplorer
    from .explorer.prompt_explorer import PromptExplorer as PromptExplorer
    from .explorer.training_explorer import TrainingExplorer as TrainingExplorer
