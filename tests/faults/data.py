"""Mistakes in records and files of data."""

import gzip
import json
from collections.abc import Callable

from faults import Bench, Fault

ROWS = [f"Say {n},,It is {n}." for n in range(8)]
HEADER = "instruction,input,output"
MENDED = "; mend the record, or drop such records: -S data.on_bad_record=drop"
KNOWN = "completion, conversations, history, input, instruction, messages, output, prompt, system, tools"


def lines(*rows: str) -> str:
    return "".join(f"{row}\n" for row in rows)


def a_file(what: str, name: str, content: str | bytes, sentence: str) -> Fault:
    """A file that can't be read as a whole."""

    def cause(bench: Bench) -> str:
        bench.write(name, content)
        return bench.refused("prepare", "--model_name", bench.models["llama"], "--dataset", name)

    return Fault("data", what, sentence, cause)


def a_record(what: str, record: object, sentence: str) -> Fault:
    """A record, the first of its file, where `data.on_bad_record: error` asks for its name."""

    def cause(bench: Bench) -> str:
        bench.params(data={"on_bad_record": "error"})
        bench.write("mine.json", json.dumps([record]))
        return bench.refused("prepare", "--model_name", bench.models["llama"], "--dataset", "mine.json")

    return Fault("data", what, f"mine.json[0]: {sentence}{MENDED}", cause)


def a_parquet(what: str, columns: Callable[[], object], sentence: str) -> Fault:
    """A table that no pipeline can read."""

    def cause(bench: Bench) -> str:
        from pyarrow import parquet

        parquet.write_table(columns(), bench.folder / "a.parquet")
        return bench.refused("prepare", "--model_name", bench.models["llama"], "--dataset", "a.parquet")

    return Fault("data", what, sentence, cause)


def a_setting(what: str, sentence: str, model: str = "llama", **changes: object) -> Fault:
    """A setting that the data don't fit."""

    def cause(bench: Bench) -> str:
        bench.params(**changes)
        return bench.refused("prepare", "--model_name", bench.models[model])

    return Fault("data", what, sentence, cause)


def a_source(what: str, source: object, sentence: str) -> Fault:
    """A source that is none."""

    def cause(bench: Bench) -> str:
        (bench.folder / "empty").mkdir()
        bench.params(data={"source": source})
        return bench.refused("fetch", "data")

    return Fault("data", what, sentence, cause)


def twice() -> object:
    from pyarrow import Table, array

    texts = array(["a", "b", "c"])
    return Table.from_arrays([texts, texts, texts], ["instruction", "output", "output"])


def said(role: str, content: object, **more: object) -> dict:
    return {"role": role, "content": content, **more}


def unquoted(at: int, quoted: str, closed: str) -> str:
    return lines(HEADER, *ROWS[:at], quoted, *ROWS[at:-1], ROWS[-1] + closed)


FAULTS = [
    a_file(
        "CSV whose quote is never closed",
        "a.csv",
        unquoted(2, 'Go.,,"Gone.', ""),
        "a.csv: not valid CSV in the record that starts at line 4: unexpected end of data; a quote there isn't closed, "
        "or one within a cell isn't doubled",
    ),
    a_file(
        "CSV whose open quote is closed by that of a later row",
        "a.csv",
        unquoted(2, 'Go.,,"Gone.', '"'),
        "a.csv: the record that starts at line 4 has a cell that holds 6 whole rows, so a quote before them isn't closed; "
        "close it, or give the file as JSON if the cell is meant so",
    ),
    a_file(
        "CSV with a quote within a cell that isn't doubled",
        "a.csv",
        lines(HEADER, *ROWS, '"Say "hi" now",,Hi.'),
        "a.csv: not valid CSV in the record that starts at line 10: ',' expected after '\"'; a quote there isn't closed, "
        "or one within a cell isn't doubled",
    ),
    a_file(
        "CSV without a line of column names",
        "a.csv",
        lines(*ROWS),
        f"a.csv: its first line names no column that is known ({KNOWN}); put the columns' names there, or name your own "
        "with -S 'data.columns={instruction: …, output: …}'",
    ),
    a_file(
        "CSV with a column named twice",
        "a.csv",
        lines("instruction,output,output", *ROWS),
        "a.csv: its first line names the column 'output' twice; rename one of the two",
    ),
    a_file(
        "CSV that holds zero characters, as UTF-16 without its mark does",
        "a.csv",
        lines(HEADER, *ROWS).encode("utf-16-le"),
        "a.csv: holds a NUL character, so it is no text or not UTF-8; save it as UTF-8",
    ),
    a_file(
        "CSV in Latin-1",
        "a.csv",
        lines(HEADER, "Say café.,,Café.").encode("latin-1"),
        "a.csv: not UTF-8 text at byte 32; save it as UTF-8",
    ),
    a_file(
        "CSV of column names alone",
        "a.csv",
        lines(HEADER),
        "a.csv: holds no usable record: the files are empty",
    ),
    a_file("an empty file", "a.jsonl", "", "a.jsonl: is empty; give a file with records, or take it away"),
    a_file(
        "JSON that was cut off",
        "a.json",
        '[{"instruction": "Say hi.", "outp',
        "a.json: not valid JSON at line 1, column 29: Unterminated string starting at; mend it, or fetch it again if it "
        "was cut off",
    ),
    a_file(
        "JSON with a comma after its last record",
        "a.json",
        '[{"instruction": "a", "output": "b"},]',
        "a.json: not valid JSON at line 1, column 38: Expecting value; mend it, or fetch it again if it was cut off",
    ),
    a_file(
        "JSON with a key twice in one record",
        "a.json",
        '[{"instruction": "a", "output": "b", "output": "c"}]',
        "a.json: holds an object with the same key twice, so that one of the values would be lost; rename one",
    ),
    a_file(
        "JSON nested 100,000 deep",
        "a.json",
        "[" * 100_000,
        "a.json: is nested too deeply to be read; give a list of records",
    ),
    a_file(
        "JSON with a whole number of 5,000 digits",
        "a.json",
        f'[{{"instruction": "a", "output": {"9" * 5000}}}]',
        "a.json: holds a number of too many digits; write it as text",
    ),
    a_file(
        "JSON that is one record",
        "a.json",
        '{"instruction": "a", "output": "b"}',
        "a.json: must hold a list of records, [{…}, {…}], got an object; write it as such a list, or one record a line",
    ),
    a_file(
        "JSON that is a list for each column",
        "a.json",
        '{"instruction": ["a"], "output": ["b"]}',
        "a.json: must hold a list of records, [{…}, {…}], got an object; write it as such a list, or one record a line",
    ),
    a_file(
        "JSON with a list for each split",
        "a.json",
        '{"train": [{"instruction": "a", "output": "b"}], "test": []}',
        "a.json: holds several lists ('train', 'test'); put the records of one of them into a file of its own",
    ),
    a_file(
        "JSON that is null",
        "a.json",
        "null",
        "a.json: must hold a list of records, [{…}, {…}], got null; write it as such a list, or one record a line",
    ),
    a_file(
        "JSON lines with commas between them",
        "a.jsonl",
        ",\n".join(json.dumps({"instruction": f"Say {n}.", "output": "Yes."}) for n in range(6)),
        "data: 1 usable records are too few to split in three (dropped: 5 broken_line); give more, mend those, or raise "
        "data.max_length if they are too long",
    ),
    a_file(
        "a compressed file that was cut off",
        "a.json.gz",
        gzip.compress(b"[1, 2, 3]" * 99, mtime=0)[:-9],
        "a.json.gz: can't be decompressed (Compressed file ended before the end-of-stream marker was reached); it is "
        "damaged or no gzip file",
    ),
    a_file(
        "a file named .gz that isn't compressed",
        "a.json.gz",
        "[]",
        "a.json.gz: can't be decompressed (Not a gzipped file (b'[]')); it is damaged or no gzip file",
    ),
    a_file(
        "a Parquet file that was cut off",
        "a.parquet",
        b"PAR1 and no more",
        "a.parquet: not a Parquet file that can be read: …",
    ),
    a_parquet(
        "Parquet with a column twice",
        twice,
        "a.parquet: has the column 'output' twice; rename one of the two",
    ),
    a_file(
        "a kind of file that isn't read",
        "a.xlsx",
        b"PK",
        "a.xlsx: unknown kind of file; give one of .json, .jsonl, .csv, .tsv, .parquet, .json.gz, .jsonl.gz, .csv.gz, "
        ".tsv.gz",
    ),
    a_file(
        "columns of other names",
        "a.json",
        '[{"question": "a", "answer": "b"}]',
        "a.json: holds no usable record: 1 missing_instruction; a record has no 'instruction', nor 'messages', "
        "'conversations' or 'prompt'; name your own columns with -S 'data.columns={instruction: …, output: …}'",
    ),
    a_record(
        "a record that is a text",
        "hello",
        "is no object with the keys 'instruction', 'input', 'output'",
    ),
    a_record("a record without an output", {"instruction": "a"}, "has no 'output'"),
    a_record("a prompt without a completion", {"prompt": "a"}, "has a 'prompt', but no 'completion'"),
    a_record(
        "`output: 0`",
        {"instruction": "a", "output": 0},
        "has an 'instruction', 'input', 'output' or turn that is no text",
    ),
    a_record(
        "an output of white space",
        {"instruction": "a", "output": " \n"},
        "has an empty 'output' or assistant's turn",
    ),
    a_record(
        "an empty turn of the user",
        {"messages": [said("user", ""), said("assistant", "a")]},
        "has an empty 'instruction' or user's turn",
    ),
    a_record(
        "half of a surrogate pair",
        {"instruction": "a \ud83d", "output": "b"},
        "holds half of a surrogate pair (such as \\ud83d alone), which is no text",
    ),
    a_record(
        "a role that isn't known",
        {"messages": [said("user", "a"), said("narrator", "b"), said("assistant", "c")]},
        "has a turn whose role is none of system, user, assistant (or human, gpt)",
    ),
    a_record(
        "a system turn in the midst",
        {"messages": [said("user", "a"), said("system", "b"), said("assistant", "c")]},
        "has a system turn that isn't the first",
    ),
    a_record(
        "a conversation that starts with an answer",
        {"conversations": [{"from": "gpt", "value": "a"}, {"from": "human", "value": "b"}]},
        "has no user's turn before its first answer",
    ),
    a_record(
        "a conversation without an answer",
        {"messages": [said("user", "a")]},
        "has no assistant's turn to learn",
    ),
    a_record(
        "an answer that calls a tool",
        {"messages": [said("user", "a"), said("assistant", "b", tool_calls=[{"id": "1"}])]},
        "calls tools, which aren't supported",
    ),
    a_setting(
        "`data.template: chat` for a model without a chat template",
        "data.template: this model has no chat template; use -S data.template=alpaca",
        model="gpt2",
        data={"template": "chat"},
    ),
    a_file(
        "responses that are all longer than `data.max_length`",
        "a.json",
        json.dumps([{"instruction": f"Say {n}.", "output": "word " * 300} for n in range(8)]),
        "data.max_length: all 6 training responses are cut at 256 tokens, so the model would never learn to stop; raise "
        "it",
    ),
    a_setting(
        "`data.max_length` that leaves no prompt room for a response",
        "data: 0 usable records are too few to split in three (dropped: 48 prompt_too_long); give more, mend those, or "
        "raise data.max_length if they are too long",
        data={"max_length": 8},
    ),
    a_setting(
        "answers that the model has no positions for",
        "eval.max_new_tokens: 500 tokens after a prompt of … are more than the model's 512 positions; lower it, or "
        "data.max_length",
        eval={"max_new_tokens": 500},
    ),
    a_source(
        "a source that is nowhere",
        "nowhere.json",
        "data.source: 'nowhere.json' is no file or folder here; give an existing path, a hub id, or one of alpaca-demo, "
        "alpaca",
    ),
    a_source(
        "a folder without data",
        "empty",
        "data.source: empty holds no .json, .jsonl, .csv, .tsv, .parquet, .json.gz, .jsonl.gz, .csv.gz, .tsv.gz file of "
        "records; give one",
    ),
    a_source(
        "a source twice in a list",
        ["a.json", "a.json"],
        "data.source: names a source twice: 'a.json', 'a.json'; take one out",
    ),
    a_source(
        "a weight of 0",
        {"a.json": 0, "b.json": 1},
        "data.source: the weight of 'a.json' must be a number above 0 and at most 1000000000, got 0",
    ),
    a_source(
        "an empty list of sources",
        [],
        "data.source: must be a name, a list of names, or a mapping of names to weights, got []",
    ),
    a_setting(
        "a column that no form has",
        "data.columns: 'question' is none of the columns that are read (instruction, input, output, system, history, "
        "messages, conversations, prompt, completion)",
        data={"columns": {"question": "instruction"}},
    ),
    a_setting(
        "a column's name that is no text",
        "data.columns.output: must be the name of a column, got 3",
        data={"columns": {"output": 3}},
    ),
]
