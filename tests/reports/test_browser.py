"""The pages in a real browser: nothing runs, nothing is fetched, nothing sticks out, everything can be read."""

from __future__ import annotations

import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from memskill_cli.reports.eval_report import write_eval_report
from memskill_cli.reports.run_report import write_run_report
from memskill_cli.skills.seeds import seed_bank
from memskill_cli.skills.stages import Stage

from .conftest import Made, Seen, call, metrics, result, with_skill, write_jsonl

pytestmark = pytest.mark.slow

LONG = "a_skill_with_a_very_long_name_that_no_phone_can_show_in_one_line"
UNBROKEN = "Donaudampfschifffahrtsgesellschaftskapitän" * 12
HOSTILE = f"</style><script>document.title='owned'</script><img src=http://evil.test/x onerror=alert(1)> {UNBROKEN}"

CONTRAST = """
() => {
  const linear = v => v <= 10 ? v / 3294.6 : ((v / 255 + .055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => .2126 * linear(r) + .7152 * linear(g) + .0722 * linear(b);
  const parts = s => s.match(/[\\d.]+/g).map(Number);
  const ground = e => { for (; e; e = e.parentElement) { const c = parts(getComputedStyle(e).backgroundColor);
                        if (c.length < 4 || c[3] > 0) return c.slice(0, 3); } return null; };
  const low = [];
  for (const e of document.querySelectorAll("body *")) {
    const own = [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
    if (!own || !e.getClientRects().length || e.tagName === "title") continue;
    const style = getComputedStyle(e);
    const ink = parts(e.namespaceURI.endsWith("svg") ? style.fill : style.color).slice(0, 3);
    const [a, b] = [light(ink), light(ground(e) || [255, 255, 255])].sort((x, y) => y - x);
    const ratio = (a + .05) / (b + .05);
    if (ratio < 4.5) low.push([e.tagName, e.getAttribute("class"), e.textContent.slice(0, 30), ratio.toFixed(2)]);
  }
  return low;
}
"""

CUT_OFF = """
() => [...document.querySelectorAll("svg")].filter(s => s.getClientRects().length).flatMap(s => {
  const box = s.getBoundingClientRect();
  return [...s.querySelectorAll("text")].filter(t => { const r = t.getBoundingClientRect();
    return r.left < box.left - 1 || r.right > box.right + 1 || r.top < box.top - 1 || r.bottom > box.bottom + 1; })
    .map(t => [s.querySelector("title").textContent.slice(0, 40), t.textContent]);
})
"""

SMALL_TEXT = """
() => Math.min(99, ...[...document.querySelectorAll("svg text")].filter(t => t.getClientRects().length)
  .map(t => parseFloat(getComputedStyle(t).fontSize) * t.getScreenCTM().a))
"""


def full_run(made: Made) -> Path:
    """Seven stages with hostile words wherever a run has words."""
    bank, known, rows = seed_bank(noop=False), [], []
    for n in range(7):
        bank = with_skill(bank, n, f"{LONG[:58]}_{n}", f"## Purpose\n{HOSTILE}")
        known.append(
            Stage(n, bank, 0.2 + n / 50, n == 6, n, {"summary": HOSTILE}, HOSTILE, n % 3 != 2, n - 1 if n else None)
        )
        usage = {name: 5 + i for i, name in enumerate(bank.names)}
        rows += [metrics(n, i, 0.1 + n / 50, skill_usage=usage, rejected={HOSTILE: 2}) for i in range(6)]
    made.staged(*known).learned(rows).called([call(model=HOSTILE), call(role=HOSTILE, key=HOSTILE, usd=None)])
    return write_run_report(made.path)


def full_evaluation(made: Made) -> Path:
    rows = [result(at, at % 4 / 3, at % 3 / 2, question=HOSTILE, prediction=HOSTILE) for at in range(40)]
    rows += [result(41, None, None, error=HOSTILE), result(42, 0.0, 0.0, gold_answers=[HOSTILE], category=UNBROKEN)]
    rows[0]["retrieved"][0]["text"] = HOSTILE
    made.called([call("e", "executor", model=HOSTILE), call("e", "answer")])
    folder = made.evaluated("e", rows)
    made.evaluated("f", rows, method=LONG)
    (made.path / "report.html").touch()
    return write_eval_report(folder)


def full_trace(made: Made) -> Path:
    """The page of a trace with hostile words in all its texts."""
    skills = [{"name": f"{LONG}_{n}", "action": "update", "probability": 0.2} for n in range(7)]
    changes = [{"action": "update", "id": "m000001", "text": HOSTILE, "before": HOSTILE}]
    changes += [{"action": "insert", "id": UNBROKEN, "text": UNBROKEN}, {"action": "delete", "id": UNBROKEN}]
    row = {"trace_id": "t", "text": HOSTILE, "skills": skills, "actions": changes, "rejected": {UNBROKEN: 1}}
    counts = {"memories_before": 10**9, "memories_after": 10**9, "prompt_tokens": 10**9, "sources": [UNBROKEN]}
    report = full_evaluation(made)
    lost = {"refs": [UNBROKEN] * 3, "recall": {"5": 0.5, "10": 1.0}, "stage": "not_retrieved"}
    rows = [result(at, at % 2 / 2, None, question=HOSTILE, evidence=lost, error=HOSTILE) for at in range(5)]
    write_jsonl(report.parent / "results.jsonl", rows)
    write_jsonl(report.parent / "steps.jsonl", [{**row, **counts, "span": at} for at in range(30)])
    write_eval_report(report.parent)
    (file,) = (report.parent / "traces").iterdir()
    return file


@pytest.fixture(params=["run", "evaluation", "begun", "trace"])
def file(request: pytest.FixtureRequest, made: Made) -> Path:
    if request.param == "begun":
        return write_run_report(made.path)
    if request.param == "trace":
        return full_trace(made)
    return full_run(made) if request.param == "run" else full_evaluation(made)


def unfold(seen: Any) -> None:
    seen.page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")


@pytest.mark.parametrize("width", [390, 700, 1280])
def test_nothing_runs_nothing_is_fetched_nothing_sticks_out(file: Path, look: Seen, width: int) -> None:
    seen = look(file, width)
    unfold(seen)
    seen.page.wait_for_load_state("networkidle")
    assert seen.console == []
    assert seen.requests == []
    assert seen.overflow == 0
    assert "owned" not in seen.page.title()
    assert seen.page.evaluate("document.scripts.length + document.images.length") == 0
    assert seen.page.evaluate(CUT_OFF) == []
    assert seen.page.evaluate(SMALL_TEXT) > 9


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everything_can_be_read(file: Path, look: Seen, scheme: str) -> None:
    seen = look(file, 1280, scheme)
    unfold(seen)
    assert seen.page.evaluate(CONTRAST) == []
    ground = seen.page.evaluate("getComputedStyle(document.body).backgroundColor")
    red = int(ground.split("(")[1].split(",")[0])
    assert (red < 60) is (scheme == "dark")


def test_the_page_would_stop_a_script_that_got_in(file: Path, look: Seen) -> None:
    text = file.read_text("utf-8").replace("</main>", "<script>document.title='owned'</script><img src='x.png'></main>")
    file.with_name("forged.html").write_text(text, "utf-8")
    seen = look(file.with_name("forged.html"))
    assert seen.page.title() != "owned"
    assert len(seen.console) == 2
    assert all("Content Security Policy" in line for line in seen.console)


def test_drawings_have_names_and_tables_have_heads(file: Path, look: Seen) -> None:
    page = look(file).page
    assert page.evaluate("[...document.querySelectorAll('svg')].every(s => s.querySelector('title').textContent)")
    assert page.evaluate("[...document.querySelectorAll('table')].every(t => t.querySelector('thead th[scope=col]'))")
    assert page.evaluate("document.querySelectorAll('h1').length") == 1
    assert page.evaluate("document.documentElement.lang") == "en"


def test_links_between_the_reports_work_over_http(made: Made, browser: Any) -> None:
    full_evaluation(made)
    full_run(made)
    handler = partial(SimpleHTTPRequestHandler, directory=str(made.path.parent))
    handler.log_message = lambda *_: None  # type: ignore[attr-defined]
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    page = browser.new_page()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    try:
        page.goto(f"http://127.0.0.1:{server.server_port}/a/report.html")
        page.click("#evaluations ~ .scroll a")
        assert page.title().startswith("memskill evaluation")
        page.click("header a[href='../../report.html']")
        assert page.title().startswith("memskill run")
        assert len(asked) == 3, "three pages and nothing else, not even an icon"
    finally:
        page.close()
        server.shutdown()
        server.server_close()


def test_on_paper_it_is_dark_on_light(file: Path, look: Seen) -> None:
    page = look(file, 1280, "dark").page
    page.emulate_media(media="print", color_scheme="light")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor").startswith("rgb(25")
    assert len(page.pdf()) > 10_000
