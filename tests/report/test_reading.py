"""What the gates say in words, and the sequences that the page lets you read."""

from __future__ import annotations

from dataclasses import replace

from turnout.report.gates import GateSequence, GateSnapshot
from turnout.report.reading import query_words, sequence_data, sequence_payload, summary_words, token_rows
from turnout.report.run import Run

SEQUENCE = GateSequence(
    tokens=["k1", "n1", "n1", "n1", "n2", "n3", "n4", "n5", "n6", "k1"],
    taken=[[False] * 10, [False] * 9 + [True]],
    gate=[[0.01] * 10, [0.02] * 9 + [0.998]],
    at=[9],
    targets=["v2"],
    predictions=["v3"],
)
SHOT = GateSnapshot(
    step=5, phase="hold", length=10, mean=[[0.0] * 10, [0.0] * 9 + [1.0]], bin=1, groups=1, index=(0, 1), n=64,
    sequences=[SEQUENCE],
)  # fmt: skip


def plain(words: str) -> str:
    return words.replace("\xa0", " ")


def test_one_gate_is_named_with_its_layer_and_position() -> None:
    words = plain(summary_words(SHOT))
    assert words.startswith("1 of 20 gates are open in an average sequence.")
    assert "100 % of them sit at one slot: layer 1, position 9, open in 100 % of sequences" in words


def test_a_whole_open_layer_is_called_a_choice_of_layer() -> None:
    words = summary_words(replace(SHOT, mean=[[1.0] * 10, [0.0] * 10], index=(2, 5)))
    assert "layer 2 holds" in words and "a choice of layer rather than of tokens" in words


def test_no_open_gate_is_said() -> None:
    assert "No gate opens" in summary_words(replace(SHOT, mean=[[0.0] * 10]))


def test_open_gates_are_compared_with_query_positions_unless_all_positions_are_queries() -> None:
    assert "100 % of the open gates are at query positions" in plain(query_words(SHOT))
    everywhere = replace(SEQUENCE, at=list(range(10)), targets=[""] * 10, predictions=[""] * 10)
    assert query_words(replace(SHOT, sequences=[everywhere])) == ""


def test_tokens_are_ranked_by_how_often_they_took_attention() -> None:
    [row] = token_rows(SHOT)
    assert (row.token, row.seen, row.opened, row.gates) == ("k1", 2, 1, 1)


def test_the_payload_packs_each_probability_into_two_digits(tmp_path) -> None:
    entries, left_out = sequence_payload([("demo", Run(path=tmp_path, gates=SHOT))])
    packed = entries[0]["sequences"][0]
    assert left_out == 0 and packed["taken"][1] == "0000000001"
    assert [int(packed["gate"][1][i : i + 2], 36) for i in (0, 18)] == [20, 998]


def test_sequences_past_the_budget_are_left_out_evenly_and_counted(tmp_path) -> None:
    long = GateSequence(
        tokens=["x"] * 4096, taken=[[False] * 4096] * 16, gate=[[0.5] * 4096] * 16, at=[], targets=[], predictions=[]
    )
    runs = [(name, Run(path=tmp_path, gates=replace(SHOT, sequences=[long] * 4))) for name in ("a", "b")]
    entries, left_out = sequence_payload(runs)
    assert left_out > 0 and sum(len(entry["sequences"]) for entry in entries) + left_out == 8
    counts = [len(entry["sequences"]) for entry in entries]
    assert max(counts) - min(counts) <= 1


def test_the_table_of_sequences_lists_open_gates_and_queries_only(tmp_path) -> None:
    rows = sequence_data([("demo", Run(path=tmp_path, gates=SHOT))]).rows
    assert [list(row) for row in rows] == [["demo", 0, 9, "k1", "1", "0.010 0.998", True, "v2", "v3"]]
