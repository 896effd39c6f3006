import pyarrow as pa

from prm_ray.stages.lengths import length_figures


def table(*rows: tuple[str, int, bool]) -> pa.Table:
    columns = {"prompt_id": [key for key, _, _ in rows], "correct": [correct for *_, correct in rows]}
    return pa.table(columns | {"response_tokens": [[1] * length for _, length, _ in rows]})


def test_lengths_by_label_and_how_often_the_right_one_is_longer():
    """Right 2, 4 and wrong 3, 5, 3: of 6 pairs 2 have the longer right one; within p 1 of 2, within q 0 of 2 and none
    in r."""
    rows = [("p", 4, True), ("p", 3, False), ("p", 5, False), ("q", 2, True), ("q", 3, False)]
    figures = length_figures(table(*rows))
    assert figures["right"] == {"num": 2, "mean": 3.0, "p10": 2.2, "median": 3.0, "p90": 3.8, "max": 4}
    assert figures["wrong"]["num"] == 3 and figures["wrong"]["median"] == 3.0
    assert figures["right_is_longer"] == {"overall": 2 / 6, "within_problem": (1 / 2 + 0 / 1) / 2}


def test_equal_lengths_tell_nothing():
    assert length_figures(table(("p", 4, True), ("p", 4, False)))["right_is_longer"]["overall"] == 0.5


def test_without_wrong_responses_there_is_nothing_to_compare():
    figures = length_figures(table(("p", 4, True)))
    assert figures["wrong"] == {"num": 0, "mean": None, "p10": None, "median": None, "p90": None, "max": None}
    assert figures["right_is_longer"] == {"overall": None, "within_problem": None}
