"""Load a configuration: Hydra composes the YAML, the schema types and checks it.

Unknown keys are refused before anything else, with the nearest known one.
"""

import difflib
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from trainer.config.schema import Config
from trainer.errors import UserError

CONFIG_DIR = Path(__file__).parent

# Dictionaries a user may add keys to, with + or without.
OPEN_DICTS = ("data.apply_chat_template_kwargs",)

# Published keys whose feature is left out on purpose: said, not ignored.
_DISTILL = "actor_rollout_ref.actor.self_distillation"
REFUSED = {
    f"{_DISTILL}.reprompt_truncation": "cutting the rendered prompt loses its closing line and the assistant header; "
    "here the peers are cut to fit max_reprompt_len and the frame never is. Leave the key out",
    f"{_DISTILL}.step_level_kl": "averaging within steps and then summing over them changes nothing. Leave the key out",
}


def load(config_name: str, overrides: list[str] | None = None) -> Config:
    """Compose `config_name` with Hydra overrides and return it typed and checked.

    Raises UserError for an unknown config or key (naming the nearest), a value of the wrong type, or a refused value.
    """
    return typed(compose_config(config_name, overrides or []))


def compose_config(config_name: str, overrides: list[str]) -> DictConfig:
    """Compose the YAML and overrides without typing it."""
    known = sorted(path.stem for path in CONFIG_DIR.glob("*.yaml") if path.stem != "base")
    if config_name not in known:
        raise UserError(f"--config-name {config_name}: no such configuration. Known: {', '.join(known)}.")
    try:
        parsed = OverridesParser.create().parse_overrides(overrides)
    except HydraException as error:
        raise UserError(f"an override cannot be read: {_first_line(error)}. Overrides look like key=value.") from None
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        defaults = compose(config_name)
        accepted = [_check_override(override, defaults) for override in parsed]
        try:
            return compose(config_name, overrides=accepted)
        except (HydraException, OmegaConfBaseException) as error:
            raise UserError(f"the configuration cannot be composed: {_first_line(error)}") from None


def compose_recorded(recorded: dict[str, Any], config_name: str, overrides: list[str]) -> DictConfig:
    """Compose the settings a run recorded, nested or dotted, over today's defaults and under the overrides, without typing.

    A recorded key that is no longer one is passed over: its feature is gone, or has another name.
    """
    composed = compose_config(config_name, overrides)
    given = [override.lstrip("+~").split("=", 1)[0] for override in overrides]
    for key, value in _flatten(recorded).items():
        if OmegaConf.select(composed, key, default=...) is ... or any(f"{key}.".startswith(f"{name}.") for name in given):
            continue
        added = OmegaConf.to_container(OmegaConf.select(composed, key)) if key in OPEN_DICTS else None
        OmegaConf.update(composed, key, value if added is None else {**value, **added}, merge=False)
    return composed


def typed(composed: DictConfig) -> Config:
    """Turn a composed configuration into the checked dataclasses of `trainer.config.schema`."""
    try:
        merged = OmegaConf.merge(OmegaConf.structured(Config), composed)
        config = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        key = error.full_key or "configuration"
        value = OmegaConf.select(composed, key)
        if "ListConfig" in str(error):
            raise UserError(f"{key}={value}: must be a list: {key}=[{value}].") from None
        raise UserError(f"{key}: {_first_line(error)}") from None
    assert isinstance(config, Config)
    return config


def to_yaml(config: Config) -> str:
    """Return the resolved configuration as YAML, as written into a run's folder."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def flat(config: Config) -> dict[str, Any]:
    """Return the configuration as one dictionary of dotted keys and plain values."""
    return _flatten(OmegaConf.to_container(OmegaConf.structured(config)))


def _flatten(values: dict, prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in values.items():
        path = f"{prefix}{key}"
        out |= _flatten(value, f"{path}.") if isinstance(value, dict) and path not in OPEN_DICTS else {path: value}
    return out


def _check_override(override: Override, defaults: DictConfig) -> str:
    """Return the override as Hydra should see it; raise UserError if its key is not one of ours."""
    key = override.key_or_group
    if key in REFUSED:
        raise UserError(f"{key} is not a key here: {REFUSED[key]}.")
    if any(key.startswith(f"{prefix}.") for prefix in OPEN_DICTS):
        return f"++{override.input_line.lstrip('+')}"
    known = list(_flatten(OmegaConf.to_container(defaults)))
    if not any(name == key or name.startswith(f"{key}.") for name in known):
        raise UserError(f"unknown key {key!r}{_nearest(key, known)}")
    return override.input_line.lstrip("+")


def _nearest(key: str, known: list[str]) -> str:
    """Return the hint for an unknown key: a key whose last part is alike, else the nearest and what is known beside it."""
    parent, _, leaf = key.rpartition(".")
    alike = difflib.get_close_matches(leaf, {name.rpartition(".")[2] for name in known}, n=1, cutoff=0.6)
    if alike:
        meant = [name for name in known if name.rpartition(".")[2] == alike[0]]
        return f": did you mean {max(meant, key=lambda name: difflib.SequenceMatcher(None, name, key).ratio())!r}?"
    beside = [name.rpartition(".")[2] for name in known if name.rpartition(".")[0] == parent]
    near = difflib.get_close_matches(key, known, n=1, cutoff=0)[0]
    return f". Nearest: {near}. " + (f"Known in {parent}: {', '.join(beside)}." if beside else f"All keys: {CONFIG_DIR}/base.yaml.")


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0].rstrip(".")
