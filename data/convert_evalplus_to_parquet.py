"""EvalPlus's and HMMT's own JSON-lines files to Parquet, in the schema of data/preprocess.py.

python data/convert_evalplus_to_parquet.py --dataset humaneval --input_path HumanEvalPlus.jsonl --output_path humanevalplus/test.parquet
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a script, from any folder

from data.preprocess import Part, rows_of
from data.records import RecordError
from data.rows import write_parquet
from data.sources import Options, source_named

NAMES = {
    "humaneval": "evalplus/humanevalplus",
    "mbpp": "evalplus/mbppplus",
    "hmmt25_feb": "MathArena/hmmt_feb_2025",
    "hmmt25_nov": "MathArena/hmmt_nov_2025",
}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", choices=sorted(NAMES), required=True)
    parser.add_argument("--input_path", type=Path, required=True, help="raw rows: JSON lines, a JSON array or Parquet")
    parser.add_argument("--output_path", type=Path, required=True, help="the Parquet file to write")
    parser.add_argument("--published_prompts", action="store_true", help="the published wording of prompts, for comparisons")
    options = parser.parse_args(arguments)
    part = Part("test", [options.input_path], source_named(NAMES[options.dataset]))
    try:
        count = write_parquet(rows_of(part, {}, Options(options.published_prompts)), options.output_path)
    except RecordError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{options.output_path}: {count} rows")
    for reason, dropped in part.dropped.most_common():
        print(f"  left out {dropped}: {reason}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
