"""Sources: ranked by the documented sum of features, computed here a second time from the definition."""

from __future__ import annotations

import asyncio
import math
from pathlib import Path

import numpy as np
import pytest

from memskill_cli.memory.encoders import CachedEncoder, load_encoder
from memskill_cli.memory.lexical import K1, Analyzer, B
from memskill_cli.memory.sources import NEIGHBOUR_WEIGHTS, WEIGHTS, SourceIndex
from memskill_cli.types import Source

TALK = [
    ("s1:0", "Ivo", "Hi Mara! Did you move to Porto?"),
    ("s1:1", "Mara", "Yes, I moved to Porto yesterday and I live near the harbour."),
    ("s1:2", "Ivo", "Great. My sister paints boats there."),
    ("s2:0", "Mara", "What is your cat called?"),
    ("s2:1", "Ivo", "My cat is called Bento, he sleeps all day."),
    ("s2:2", "Mara", "Bento! I had a dog."),
]
SOURCES = [Source(ref, "8 May 2023", speaker, text) for ref, speaker, text in TALK]


@pytest.fixture
def encoder(tmp_path: Path) -> CachedEncoder:
    return load_encoder("hashing", cache_dir=tmp_path)


def indexed(encoder: CachedEncoder, *batches: list[Source]) -> SourceIndex:
    async def make() -> SourceIndex:
        index = SourceIndex(encoder)
        for batch in batches:
            await index.add(batch)
        return index

    return asyncio.run(make())


def search(index: SourceIndex, encoder: CachedEncoder, question: str, ranking: str = "hybrid") -> dict[str, float]:
    vector = encoder.encode([question], "query")[0]
    return {source.ref: score for source, score in index.search(ranking, question, vector, 99)}  # type: ignore[arg-type]


def z(values: list[float]) -> np.ndarray:
    array = np.array(values)
    return (array - array.mean()) / array.std() if array.std() else array * 0


def neighbours(row: int, reach: int) -> list[tuple[int, int]]:
    """(row, distance) of the rows of the same session within ``reach``."""
    session = SOURCES[row].ref.split(":")[0]
    near = [(other, abs(other - row)) for other in range(row - reach, row + reach + 1)]
    return [(o, d) for o, d in near if 0 <= o < len(SOURCES) and SOURCES[o].ref.split(":")[0] == session]


def bm25(bags: list[dict[str, float]], asked: set[str]) -> list[float]:
    mean, scores = sum(sum(bag.values()) for bag in bags) / len(bags), []
    for bag in bags:
        norm, score = K1 * (1 - B + B * sum(bag.values()) / mean), 0.0
        for term in asked:
            df = sum(term in other for other in bags)
            tf = bag.get(term, 0.0)
            score += math.log(1 + (len(bags) - df + 0.5) / (df + 0.5)) * tf * (K1 + 1) / (tf + norm)
        scores.append(score)
    return scores


def by_definition(encoder: CachedEncoder, question: str) -> dict[str, float]:
    terms = Analyzer().terms
    lines = [f"{s.speaker}: {s.text}" for s in SOURCES]
    asked = encoder.encode([question], "query")[0]
    own = [float(v @ asked) for v in encoder.encode(lines)]
    windows = ["\n".join(lines[o] for o, _ in neighbours(row, 1)) for row in range(len(SOURCES))]
    around = [float(v @ asked) for v in encoder.encode(windows)]
    bags: list[dict[str, float]] = []
    for row in range(len(SOURCES)):
        bag: dict[str, float] = {}
        for other, distance in neighbours(row, 3):
            for term in terms(f"{SOURCES[other].speaker} {SOURCES[other].text}"):
                bag[term] = bag.get(term, 0) + (1.0, *NEIGHBOUR_WEIGHTS)[distance]
        bags.append(bag)
    labels = [source.ref.split(":")[0] for source in SOURCES]
    whole: dict[str, dict[str, float]] = {label: {} for label in labels}
    for source, label in zip(SOURCES, labels, strict=True):
        for term in terms(f"{source.speaker} {source.text}"):
            whole[label][term] = whole[label].get(term, 0) + 1.0
    by_session = dict(zip(whole, bm25(list(whole.values()), set(terms(question))), strict=True))
    named = {name for name in ("Ivo", "Mara") if name.lower() in question.lower()}
    features = {
        "dense": z(own),
        "window": z(around),
        "lexical": z(bm25(bags, set(terms(question)))),
        "session": z([by_session[label] for label in labels]),
        "length": z([math.log(1 + len(s.text)) for s in SOURCES]),
        "speaker": np.array([float(len(named) == 1 and s.speaker in named) for s in SOURCES]),
        "reply": np.array([0.0, 1.0, 0.0, 0.0, 1.0, 0.0]),
    }
    total = sum(WEIGHTS[name] * values for name, values in features.items())
    return {source.ref: float(value) for source, value in zip(SOURCES, total, strict=True)}


@pytest.mark.parametrize(
    "question", ["What is Ivo's cat called?", "Where does Mara live?", "Do Ivo and Mara like boats?", "harbour", "zzz"]
)
def test_the_score_is_the_documented_sum(encoder: CachedEncoder, question: str) -> None:
    found, expected = search(indexed(encoder, SOURCES), encoder, question), by_definition(encoder, question)
    assert found == pytest.approx(expected, abs=1e-5)
    assert list(found) == sorted(expected, key=lambda ref: -expected[ref])


@pytest.mark.parametrize("cut", range(len(SOURCES) + 1))
def test_sources_that_come_in_two_parts_are_ranked_as_if_they_came_together(encoder: CachedEncoder, cut: int) -> None:
    """Windows and neighbours reach over the cut; spans overlap, so some sources come twice."""
    question = "What is Ivo's cat called?"
    parts = indexed(encoder, SOURCES[:cut], SOURCES[max(0, cut - 1) :])
    assert len(parts) == len(SOURCES)
    assert search(parts, encoder, question) == pytest.approx(search(indexed(encoder, SOURCES), encoder, question))


def test_dense_is_the_cosine_of_a_source_alone(encoder: CachedEncoder) -> None:
    question = "Bento the cat"
    found = search(indexed(encoder, SOURCES), encoder, question, "dense")
    asked = encoder.encode([question], "query")[0]
    lines = encoder.encode([f"{s.speaker}: {s.text}" for s in SOURCES])
    assert found == pytest.approx({s.ref: float(v @ asked) for s, v in zip(SOURCES, lines, strict=True)}, abs=1e-6)


@pytest.mark.parametrize(("question", "named"), [("Whose mother is it?", ""), ("What did IVO do?", "Ivo")])
def test_a_name_within_a_word_is_no_speaker(encoder: CachedEncoder, question: str, named: str) -> None:
    talk = [Source(f"s:{i}", "", speaker, "text") for i, speaker in enumerate(("Ivo", "Mo", ""))]
    features = indexed(encoder, talk).features(question, encoder.encode([question], "query")[0])
    assert features["speaker"].tolist() == [float(bool(named) and source.speaker == named) for source in talk]


def test_nothing_read_finds_nothing(encoder: CachedEncoder) -> None:
    assert search(indexed(encoder), encoder, "cat") == {}
