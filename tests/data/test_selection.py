"""Which files of a dataset hold its training text."""

from pathlib import Path

import pytest

from overnight.data.selection import common_folder, matching, patterns_of, with_text
from overnight.errors import UserError

PATHS = [
    "README.md",
    ".gitattributes",
    "data/train-00000.parquet",
    "data/train-00001.parquet",
    "data/test-00000.parquet",
    "data/more/train-00000.parquet",
    "data/more/deeper/a[1].parquet",
    "en/part.1.json.gz",
    "en/part.2.json.gz",
    "train.txt",
]


@pytest.mark.parametrize(
    "pattern",
    ["data/train-*", "data/*", "data/*/*", "data/**/*.parquet", "**/train-*", "**", "*.txt",
     "data/train-0000?.parquet", "en/part.[12].json.gz", "en/part.[!1].json.gz", "train.txt",
     "*/*.parquet", "**/*.json.gz", "data/more/**", "**/deeper/*"],
)  # fmt: skip
def test_patterns_mean_what_they_mean_to_datasets(pattern: str, tmp_path: Path) -> None:
    """The oracle is the library that cards are written for."""
    from datasets.data_files import resolve_pattern

    for path in PATHS:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    theirs = {
        Path(found).relative_to(tmp_path).as_posix() for found in resolve_pattern(pattern, str(tmp_path))
    }
    assert set(matching(PATHS, [pattern])) - {"README.md"} == theirs
    folder = common_folder([pattern])
    assert all(path.startswith(f"{folder}/" if folder else "") for path in theirs)


def test_a_folder_means_all_in_it() -> None:
    assert matching(PATHS, ["en"]) == ["en/part.1.json.gz", "en/part.2.json.gz"]
    assert matching(PATHS, ["data/more"]) == [
        "data/more/train-00000.parquet",
        "data/more/deeper/a[1].parquet",
    ]


TRAIN_AND_TEST = [{"split": "train", "path": "a/train-*"}, {"split": "test", "path": "a/test-*"}]


@pytest.mark.parametrize(
    ("config", "patterns"),
    [
        ({"data_files": "a.jsonl"}, ["a.jsonl"]),
        ({"data_files": ["a.jsonl", "./b/*.jsonl"]}, ["a.jsonl", "b/*.jsonl"]),
        ({"data_files": TRAIN_AND_TEST}, ["a/train-*"]),
        ({"data_files": [{"split": "train", "path": ["a", "b"]}]}, ["a", "b"]),
        ({"data_files": {"train": "a", "test": "b"}}, ["a"]),
        ({"data_files": [{"split": "en", "path": "en/*"}, {"split": "dev", "path": "dev/*"}]}, ["en/*"]),
        ({"data_files": [{"path": "/a"}]}, ["a"]),
        ({"data_dir": "here", "data_files": "*.jsonl"}, ["here/*.jsonl"]),
        ({"data_dir": "here"}, ["here/**"]),
        ({}, ["**"]),
    ],
)
def test_every_way_to_write_data_files(config: dict, patterns: list[str]) -> None:
    card = {"configs": [{"config_name": "only"} | config]}
    assert patterns_of("night/corpus", "only", card) == patterns
    assert patterns_of("night/corpus", None, card) == patterns


def test_which_config_is_meant_when_none_is_named() -> None:
    def card(*names: str, default: str | None = None) -> dict:
        entries = [
            {"config_name": name, "data_files": f"{name}/*", "default": name == default} for name in names
        ]
        return {"configs": entries}

    assert patterns_of("night/corpus", None, card("a", "default")) == ["default/*"]
    assert patterns_of("night/corpus", None, card("a", "b", "default", default="b")) == ["b/*"]
    assert patterns_of("night/corpus", None, {}) == []
    with pytest.raises(UserError, match="several configs: say which \\(a, b\\)"):
        patterns_of("night/corpus", None, card("a", "b"))
    with pytest.raises(UserError, match=r"no config englsh\. Did you mean english\?"):
        patterns_of("night/corpus", "englsh", card("english", "deutsch"))
    with pytest.raises(UserError, match="has no configs: leave out english"):
        patterns_of("night/corpus", "english", {})
    only_test = {"configs": [{"config_name": "a", "data_files": [{"split": "test", "path": "x"}]}]}
    with pytest.raises(UserError, match="nothing to train on there, only test"):
        patterns_of("night/corpus", "a", only_test)
    many = card(*(f"crawl-{number}" for number in range(100)))
    with pytest.raises(UserError, match=r"crawl-7 \.\.\. 100 in all") as caught:
        patterns_of("night/corpus", None, many)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("config", "pattern"),
    [
        ("sample-10BT", "sample/10BT/*.parquet"),
        ("sample-350BT", "sample/350BT/*.parquet"),
        ("CC-MAIN-2024-10", "data/CC-MAIN-2024-10/*.parquet"),
        ("default", "data/*/*.parquet"),
    ],
)
def test_the_finewebs_are_known_without_their_card(config: str, pattern: str) -> None:
    assert patterns_of("HuggingFaceFW/fineweb-edu", config, {}) == [pattern]
    assert patterns_of("HuggingFaceFW/fineweb", config, {}) == [pattern]
    with pytest.raises(UserError, match=r"Did you mean sample-10BT\?"):
        patterns_of("HuggingFaceFW/fineweb", "sample10BT", {})


@pytest.mark.parametrize(
    ("there", "chosen"),
    [
        (["a.parquet", "b.jsonl", "c.txt"], ["a.parquet"]),
        (["b.jsonl", "b.jsonl.gz", "c.jsonl.zst", "c.txt"], ["b.jsonl", "b.jsonl.gz", "c.jsonl.zst"]),
        (["en/a.json.gz", "dataset_infos.json", "LICENSE.txt"], ["en/a.json.gz"]),
        (["data/train-0.parquet", "data/test-0.parquet", "data/dev.parquet"], ["data/train-0.parquet"]),
        (["train/a.parquet", "validation/a.parquet", "c.parquet"], ["train/a.parquet", "c.parquet"]),
        (["test/a.parquet", "dev/a.parquet"], ["test/a.parquet", "dev/a.parquet"]),
        (["latest.parquet", "train.parquet"], ["latest.parquet", "train.parquet"]),
        ([".cache/a.parquet", "__MACOSX/a.parquet", "a.txt"], ["a.txt"]),
        (["a.csv", "b.arrow"], []),
    ],
)
def test_without_a_card_the_names_tell(there: list[str], chosen: list[str]) -> None:
    assert with_text(there, []) == chosen
