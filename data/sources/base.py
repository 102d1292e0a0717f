"""What a source is: where its rows come from, and how one of them becomes a record."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Options:
    """What is asked of the conversion: the published wording, the seed of option shuffles."""

    published_prompts: bool = False
    seed: int = 42


@dataclass(frozen=True)
class Source:
    """A data set under its `--dataset_name`.

    `convert(row, options)` returns a record; it raises RecordError naming the field of a malformed row, and Skip for a
    row that is left out and counted. `keep` chooses rows before that (a domain, a time window). `columns` are those of
    the raw rows that `convert` reads; `recognised` says that they are enough to tell the source. `data_files` are read
    as they are from the hub repository instead of its `config`; `pattern` is the name of the file in a local copy.
    `spare_config` is taken where the hub asks for a config and none is the default. `urls` are the files of a source
    that is not on the hub, per split. `category` returns what `--category` is compared with.
    """

    name: str
    dataset: str
    hub: str
    columns: tuple[str, ...]
    convert: Callable[[Row, Options], dict[str, Any]]
    split: str = "test"
    splits: tuple[str, ...] = ()
    config: str | None = None
    spare_config: str | None = None
    data_files: tuple[str, ...] = ()
    pattern: str | None = None
    urls: Mapping[str, str] | None = None
    gated: bool = False
    keep: Callable[[Row], bool] | None = None
    category: Callable[[Row], str] | None = None
    recognised: bool = False

    def download(self) -> str:
        """Return the command that fetches a local copy."""
        if self.urls:
            return " && ".join(f"curl -L --fail -o DIR/{split}.json {url}" for split, url in self.urls.items())
        files = "".join(f" {file}" for file in self.data_files)
        if not files and self.config:
            files = f' --include "*{self.pattern}"' if self.pattern else f' --include "{self.config}/*"'
        return f"hf download {self.hub} --repo-type dataset{files} --local-dir DIR"
