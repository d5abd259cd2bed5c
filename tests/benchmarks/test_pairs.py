import json

import pytest

from pancreas_mtl.benchmarks.pairs import Rounds, in_turn, row, table, write_result


def test_rounds_alternate_after_a_warm_up():
    calls = []

    def ask(name):
        return lambda: calls.append(name) or {"seconds": len(calls)}

    first, warm = in_turn({"a": ask("a"), "b": ask("b")}, pairs=3)
    assert calls == ["a", "b"] * 4
    assert first == {"a": {"seconds": 1}, "b": {"seconds": 2}}
    assert [one["seconds"] for one in warm["b"]] == [4, 6, 8]


def test_another_warm_up_takes_the_place_of_the_first_round(capsys):
    asked = {"a": lambda: {"seconds": 9.0}}
    first, warm = in_turn(asked, pairs=1, warm_up={"a": lambda: {"seconds": 1.0}})
    assert (first, warm) == ({"a": {"seconds": 1.0}}, {"a": [{"seconds": 9.0}]})
    assert capsys.readouterr().out == "warm-up a: 1.00 s\n1/1 a: 9.00 s\n"


def test_an_interrupted_benchmark_goes_on_with_its_rounds_unless_settings_differ(tmp_path):
    answers = iter([1.0, 2.0, KeyboardInterrupt, 3.0, 4.0, 5.0, 6.0])

    def ask():
        value = next(answers)
        if value is KeyboardInterrupt:
            raise value
        return {"seconds": value}

    def measure(pairs, **settings):
        rounds = Rounds(tmp_path / "rounds.json", settings)
        return in_turn({"a": ask}, pairs=pairs, rounds=rounds)[1]["a"], rounds

    with pytest.raises(KeyboardInterrupt):
        measure(3, engine="torch")
    warm, rounds = measure(2, engine="torch")  # 3.0 warms up
    assert [one["seconds"] for one in warm] == [2, 4]
    assert [one["seconds"] for one in measure(1, engine="openvino")[0]] == [6]
    rounds.forget()
    assert list(tmp_path.iterdir()) == []


def test_the_ratio_is_taken_pair_by_pair():
    compared = row("x", [10, 20, 90], [5, 4, 10])
    assert (compared.stock, compared.ours) == (20, 5)
    assert (compared.ratio, compared.ratio_low, compared.ratio_high) == (5, 2, 9)
    rates = row("y", [2, 2], [6, 8], unit="/s", more_is_better=True)
    assert (rates.ratio, rates.ratio_low) == (3.5, 3)


def test_the_table_and_the_json_say_the_same(tmp_path):
    rows = [row("a step", [3.0], [1.5], note="same loss")]
    text = write_result(tmp_path / "x.json", rows, {"precision": "fp32"}, {})
    assert text == table(rows) == (tmp_path / "x.md").read_text().rstrip()
    assert "| a step | 3 s | 1.5 s | 2.0 | same loss |" in text
    content = json.loads((tmp_path / "x.json").read_text())
    assert content["rows"][0]["ratio"] == pytest.approx(2)
    assert content["precision"] == "fp32"
    assert content["machine"]["cores"] >= 1
