"""Which models there are to be asked: checked on the driver, loaded where they are asked."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prm_ray.config import RunConfig
from prm_ray.errors import UserError
from prm_ray.models import check_vocabularies, read_prm_json, resolve_model
from prm_ray.objectstore import check_reachable, is_remote
from prm_ray.scoring.asks import ModelFacts
from prm_ray.tables import StageFolder

if TYPE_CHECKING:
    from prm_ray.scoring.replica import AnyScorer


@dataclass(frozen=True)
class ServedModel:
    """A model by name, and how it is loaded."""

    facts: ModelFacts
    folder: str
    """Or an address: whoever loads it copies it to its own machine."""
    is_published: bool
    dtype: str
    token_budget: int
    cache_tokens: int
    trust_remote_code: bool = False
    """Runs code that lies in the folder; never that of a published model."""


def served_models(config: RunConfig) -> list[ServedModel]:
    """The run's own model first, then those of `serve.models`.

    Raises `UserError` for a folder that is no checkpoint, a reference that is not there, or a name that is taken.
    """
    own = config.run.dir.name
    if own in config.serve.models:
        raise UserError(f"serve.models has the name {own!r}, which is this run's own")
    others = [_trained(config, name, folder) for name, folder in config.serve.models.items()]
    return [own_model(config), *others]


def own_model(config: RunConfig) -> ServedModel:
    """The run's own model. Raises `UserError` as `served_models` does."""
    name = config.run.dir.name
    if config.score.model is not None and config.score.style is not None:
        from prm_ray.publishedscorer import load_format

        load_format(config.score.model, config.score.style)
        facts = ModelFacts(name, config.score.style, False, config.aggregation, config.reference.step_rule)
        return _served(config, facts, config.score.model, is_published=True)
    if is_remote(config.run.dir):
        check_reachable(config.run.dir)
    folder = StageFolder(config.run.dir, "train")
    folder.manifest()
    # Not resolved: where a link of this machine leads to need not be there on those that load it.
    model = _trained(config, name, folder.path.absolute())
    if model.facts.reward == "log_ratio" and model.facts.with_reference != config.score.with_reference:
        raise UserError(
            f"score.with_reference is {str(config.score.with_reference).lower()}, but {model.folder!r} was scored "
            f"with {str(model.facts.with_reference).lower()}: set it to that, or score again with --fresh score"
        )
    return replace(model, facts=replace(model.facts, aggregation=config.aggregation))  # prm.json has that of training


def _trained(config: RunConfig, name: str, folder: Path) -> ServedModel:
    path = resolve_model(str(folder))
    facts = read_prm_json(path)
    reward = facts.get("reward", "log_ratio")
    with_reference = reward == "log_ratio" and facts.get("with_reference", True)
    if with_reference:
        resolve_model(str(facts["reference"]))
    aggregation = facts.get("aggregation", config.aggregation)
    shown = ModelFacts(name, reward, with_reference, aggregation, facts["step_rule"])
    return _served(config, shown, str(folder) if is_remote(folder) else path, is_published=False)


def _served(config: RunConfig, facts: ModelFacts, folder: str, is_published: bool) -> ServedModel:
    return ServedModel(
        facts,
        folder,
        is_published,
        config.model.dtype,
        config.score.token_budget,
        config.serve.cache_tokens,
        config.model.trust_remote_code,
    )


def reads_tokens_of(model: ServedModel, generator: str) -> bool:
    """Whether the model reads the token ids of that generator; if not, it has to be asked with texts."""
    if model.is_published:
        return False
    try:
        check_vocabularies(resolve_model(model.folder), generator, model.trust_remote_code)
    except UserError:
        return False
    return True


def load_scorer(model: ServedModel) -> AnyScorer:
    """Raises `UserError` for what does not load."""
    from prm_ray.headscorer import HeadScorer
    from prm_ray.publishedscorer import PublishedScorer
    from prm_ray.scorer import Scorer

    if model.is_published:
        return PublishedScorer.from_pretrained(
            model.folder,
            style=model.facts.reward,  # type: ignore[arg-type]  # the style it was checked with
            dtype=model.dtype,
            token_budget=model.token_budget,
            step_rule=model.facts.step_rule,
        )
    options: dict[str, Any] = {
        "dtype": model.dtype,
        "token_budget": model.token_budget,
        "trust_remote_code": model.trust_remote_code,
    }
    if model.facts.reward != "log_ratio":
        return HeadScorer.from_pretrained(model.folder, **options)
    return Scorer.from_pretrained(model.folder, cache_tokens=model.cache_tokens, **options)
