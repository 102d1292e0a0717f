"""Prompts from Parquet: ids, order, and complaints that name file, row and remedy."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.preprocess import SCHEMA, to_row, write_parquet
from trainer.dataset import PromptOrder, load_prompts
from trainer.errors import UserError
from trainer.models import load_chat


@pytest.fixture(scope="module")
def chat(random_model):
    return load_chat(str(random_model), {})


def row(prompt="1+2", answer="3", source="tiny_chains", system=None, idx=0):
    return to_row({"kind": "tiny", "dataset": source, "prompt": prompt, "answer": answer, "idx": idx, "system": system}, "train", "test")


def load(files, chat, **options):
    return load_prompts([str(file) for file in files], chat, split="train", **{"max_prompt_length": 64, "drop_overlong": True, **options})


def test_rows_become_prompts(chat, tmp_path):
    write_parquet([row(), row("2+2", "4", system="1")], tmp_path / "train.parquet")
    loaded = load([tmp_path], chat)
    first, second = loaded.prompts
    assert first.messages == [{"role": "user", "content": "1+2"}] and first.ground_truth == "3" and first.extra_info["index"] == "0"
    assert [message["role"] for message in second.messages] == ["system", "user"]
    assert chat.tokenizer.decode(first.token_ids) == "<|im_start|>user\n1+2<|im_end|>\n<|im_start|>assistant\n"
    assert (first.index, second.index) == (0, 1)


def test_uids_are_of_the_content_and_unique_over_files(chat, tmp_path):
    """Two files whose rows share their index, and a row that comes three times: the published ids would merge them."""
    write_parquet([row("1+2", idx=0), row("1+2", idx=0)], tmp_path / "a.parquet")
    write_parquet([row("5+2", "7", idx=0), row("1+2", idx=9)], tmp_path / "b.parquet")
    prompts = load([tmp_path / "a.parquet", tmp_path / "b.parquet"], chat).prompts
    uids = [prompt.uid for prompt in prompts]
    assert len(set(uids)) == 4
    assert uids[1] == f"{uids[0]}-2" and uids[3] == f"{uids[0]}-3"
    (tmp_path / "elsewhere").mkdir()
    write_parquet([row("5+2", "7", idx=4)], tmp_path / "elsewhere" / "c.parquet")
    assert load([tmp_path / "elsewhere" / "c.parquet"], chat).prompts[0].uid == uids[2]


def test_overlong_prompts_are_counted_or_refused(chat, tmp_path):
    write_parquet([row(), row("1+2+3+4+5+6")], tmp_path / "train.parquet")
    loaded = load([tmp_path], chat, max_prompt_length=14)
    assert (len(loaded.prompts), loaded.too_long) == (1, 1)
    with pytest.raises(UserError, match=r"row 1: the prompt takes 19 tokens.*filter_overlong_prompts"):
        load([tmp_path], chat, max_prompt_length=14, drop_overlong=False)
    with pytest.raises(UserError, match=r"all 2 prompts are longer than data.max_prompt_length=3"):
        load([tmp_path], chat, max_prompt_length=3)


def test_complaints(chat, tmp_path):
    with pytest.raises(UserError, match=r"data.train_files=.*nowhere: no such file.*python data/preprocess.py --data_source"):
        load([tmp_path / "nowhere"], chat)
    with pytest.raises(UserError, match=r"holds no train.parquet.*python data/preprocess.py"):
        load([tmp_path], chat)
    broken = tmp_path / "broken.parquet"
    broken.write_bytes(b"PAR1 and nothing more")
    with pytest.raises(UserError, match=r"broken\.parquet cannot be read as Parquet"):
        load([broken], chat)
    table = pa.Table.from_pylist([row()], SCHEMA)
    pq.write_table(table.drop_columns(["reward_model"]), tmp_path / "short.parquet")
    with pytest.raises(UserError, match=r"short\.parquet has no column 'reward_model'"):
        load([tmp_path / "short.parquet"], chat)
    for name, prompt in (("none", None), ("empty", []), ("blank", [{"role": "user", "content": "  "}])):
        pq.write_table(pa.Table.from_pylist([row(), {**row(), "prompt": prompt}], SCHEMA), tmp_path / f"{name}.parquet")
        with pytest.raises(UserError, match=rf"{name}.parquet, row 1: .*empty"):
            load([tmp_path / f"{name}.parquet"], chat)
    malformed = {
        "data_source is None": {"data_source": None},
        "reward_model is '42'; it must hold": {"reward_model": "42"},
        "reward_model is .*it must hold style and ground_truth": {"reward_model": {"style": "tiny", "ground_truth": None}},
        "extra_info is 'x'": {"extra_info": "x"},
        "must be a list of chat messages": {"prompt": "text"},
        "has no role": {"prompt": [{"content": "1+2"}]},
        "has no content": {"prompt": [{"role": "user", "content": None}, {"role": "user", "content": "1"}]},
    }
    for message, change in malformed.items():
        pq.write_table(pa.Table.from_pylist([{**row(), **change}]), tmp_path / "odd.parquet")
        with pytest.raises(UserError, match=rf"odd\.parquet, row 0: .*{message}"):
            load([tmp_path / "odd.parquet"], chat)
    write_parquet([row()] * 500, tmp_path / "damaged.parquet")
    content = bytearray((tmp_path / "damaged.parquet").read_bytes())
    content[4:200] = bytes(196)  # the first page; the footer is whole
    (tmp_path / "damaged.parquet").write_bytes(content)
    with pytest.raises(UserError, match=r"damaged\.parquet is damaged"):
        load([tmp_path / "damaged.parquet"], chat)
    write_parquet([row(), row(source="sciknoweva")], tmp_path / "unknown.parquet")
    with pytest.raises(
        UserError, match=r"row 1: data_source='sciknoweva'.*Did you mean 'sciknoweval'.*Known: .*tiny_chains.*custom_reward_function"
    ):
        load([tmp_path / "unknown.parquet"], chat)
    assert len(load([tmp_path / "unknown.parquet"], chat, any_source=True).prompts) == 2
    write_parquet([], tmp_path / "norows.parquet")
    with pytest.raises(UserError, match="there are no rows"):
        load([tmp_path / "norows.parquet"], chat)


def test_order_is_a_function_of_the_step():
    order = PromptOrder(count=10, batch=3, seed=1, shuffle=True)
    assert order.steps_per_epoch == 3
    epoch = [i for step in (1, 2, 3) for i in order.batch_of(step)]
    assert len(set(epoch)) == 9
    assert epoch != [i for step in (4, 5, 6) for i in order.batch_of(step)]
    assert PromptOrder(10, 3, 1, True).batch_of(5) == order.batch_of(5)
    assert PromptOrder(10, 3, 2, True).batch_of(5) != order.batch_of(5)
    assert [PromptOrder(7, 3, 1, False).batch_of(step) for step in (1, 2, 3)] == [[0, 1, 2], [3, 4, 5], [0, 1, 2]]
    with pytest.raises(UserError, match="train_batch_size=32 is more than the 10 training prompts"):
        PromptOrder(10, 32, 1, True)


def test_records_are_json_clean(chat, tmp_path):
    write_parquet([row()], tmp_path / "train.parquet")
    assert json.dumps(load([tmp_path], chat).prompts[0].extra_info)
