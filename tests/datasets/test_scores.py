"""How each dataset scores an answer, worked by hand."""

import json
from pathlib import Path

import pytest

from memskill_cli.datasets.hotpotqa import extract_answer
from memskill_cli.datasets.locomo import locomo_f1
from memskill_cli.datasets.registry import get
from memskill_cli.types import Query

REAL = Path(__file__).parents[2].parent / "shared/data/locomo/locomo10.json"


def query(i, category="single-hop", gold_answers=("x",), scored=True):
    return Query(f"q{i}", "t", category, "?", gold_answers, scored=scored)


def test_multi_hop_answers_are_lists():
    # "pottery" is found, "long hikes" half of it, "camping" not at all
    assert locomo_f1("hikes, pottery", "pottery, long hikes, camping", "multi-hop") == pytest.approx(
        (1 + 2 / 3 + 0) / 3
    )
    assert locomo_f1("pottery, dancing, chess", "pottery", "multi-hop") == 1.0
    assert locomo_f1("pottery, dancing, chess", "pottery", "single-hop") == pytest.approx(0.5)
    assert locomo_f1(" , ", "pottery", "multi-hop") == 0.0


def test_open_domain_truths_end_at_the_semicolon():
    truth = "likely yes; she said so twice"
    assert locomo_f1("Likely yes", truth, "open-domain") == 1.0
    assert locomo_f1("Likely yes", truth, "temporal") < 1.0


@pytest.mark.parametrize(
    ("reply", "answer"),
    [
        ("I think\n<answer> Paris </answer> because", "Paris"),
        ("**Answer:**\nParis", "Paris"),
        ("**Answer:** Paris", "Paris"),
        ("I put it in <answer></answer> tags. Answer: Paris", "Paris"),
        ("<answer></answer>", ""),
        ("<answer>Paris</answer> or <answer>Rome</answer>", "Paris"),
        ("in <answer></answer> tags: <Answer>Rome</ANSWER>", "Rome"),
        ("so <answer>Rome", "Rome"),
        ("so <Answer>New\nYork", "New\nYork"),
        ("Reason: x.\nAnswer: Oslo", "Oslo"),
        (" Oslo ", "Oslo"),
    ],
)
def test_the_answer_in_a_reply(reply, answer):
    assert extract_answer(reply) == answer


def test_hotpot_takes_the_best_of_all_answers():
    asked = query(0, "", ("NYC", "New York City"))
    assert get("hotpotqa").score(asked, "<answer>New York City</answer>") == 1.0


def test_each_dataset_has_its_rule():
    assert get("locomo").score(query(0, "open-domain", ("yes; why",)), "yes") == 1.0
    assert get("hotpotqa").score(query(0, "", ("no", "yes")), "Hm. <answer>Yes</answer>") == 1.0
    assert get("longmemeval").score(query(0, "", ("cat", "black cat")), "black cat") == 1.0


@pytest.mark.skipif(not REAL.exists(), reason="the real LoCoMo is not here")
def test_every_real_truth_is_like_itself():
    names = {1: "multi-hop", 2: "temporal", 3: "open-domain", 4: "single-hop"}
    for conversation in json.loads(REAL.read_text("utf-8")):
        for item in conversation["qa"]:
            if item["category"] in names:
                truth, category = str(item["answer"]), names[item["category"]]
                answer = truth.split(";")[0] if category == "open-domain" else truth
                assert locomo_f1(answer, truth, category) == 1.0, (conversation["sample_id"], item)
