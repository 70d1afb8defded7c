"""Reports: what they say, that they are whole and small, and how a real browser shows them."""

import base64
import html.parser
import itertools
import os
import re
import shutil
import subprocess
import time
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
import synthetic

from jaxrl.analysis import report_figures, sensitivity
from jaxrl.analysis.report import write_markdown, write_report
from jaxrl.analysis.settings import settings_of

EVIL = "<script>alert(1)</script> $x_1$ & \"quoted\" 'too' | `b` \x07"
RECORD = {
    "config": {"num_envs": 16, "hidden": [64, 64]},
    "hyperparams": {"learning_rate": 1e-3, "clip": 0.2},
    "environment": {"device": "cpu", "versions": {"jax": "0.10.2"}},
    "command": ["jaxrl", "sweep", "ppo"],
}


class Page(html.parser.HTMLParser):
    """The parts of a page, as a browser would see them."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.text = " ".join(" ".join(self.words).split())
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "link", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.words.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]

    def pictures(self):
        return [base64.b64decode(image["src"].split("base64,")[1]) for image in self.all("img")]


def page_of(tmp_path, *datasets) -> Page:
    return Page(write_report(datasets, tmp_path / "report.html").read_text())


def words_of(svg: bytes) -> str:
    return " ".join(
        element.text or "" for element in ElementTree.fromstring(svg).iter() if element.tag.endswith("text")
    )


def test_the_summary_gives_the_numbers(tmp_path):
    dataset = synthetic.sweep(num_seeds=8, noise=1.0, record=RECORD, diverged=[(0, 0, 0, 0, 1)])
    page = page_of(tmp_path, ("sweeps/a", dataset))
    for expected in (
        "6 settings × 8 seeds (48 members) of ppo on gymnax/CartPole-v1, 5,120 env steps each.",
        "Best setting: learning_rate = 0.01, clip = 0.",
        "Chosen on seeds 0 to 3; its IQM on the 4 held-out seeds (4 to 7) is 1",
        "95% interval",
        "It wins in",
        "rank correlation between both sets of seeds is ",
        "The default setting (learning_rate = 0.001, clip = 0.2) has 11",
        "1 member of 48 diverged (2.1%) and count as the lowest score.",
        "config.num_envs",
        "jaxrl sweep ppo",
    ):
        assert expected in page.text
    best = sensitivity.best_setting(dataset)
    shown = re.search(r"is ([\d.]+) \(95% interval ([\d.]+) to ([\d.]+)\)", page.text).groups()
    assert [float(number) for number in shown] == pytest.approx([best.score, best.low, best.high], abs=0.06)
    assert [
        heading for heading in ("Learning curves", "What matters", "All settings") if heading not in page.text
    ] == []


def test_the_table_ranks_by_the_tuning_seeds_and_holds_every_setting_as_csv(tmp_path):
    dataset = synthetic.sweep({"a": list(range(14))}, effect=lambda v: -abs(v["a"] - 9.0), noise=0.01)
    content = write_report([("x", dataset)], tmp_path / "report.html").read_text()
    table = content[content.index("The 10 best of 14 settings") :]
    cells = [re.findall(r"<td[^>]*>([^<]*)</td>", row) for row in re.findall(r"<tr.*?</tr>", table)[1:11]]
    assert cells[0][:2] == ["1", "9"]
    assert sorted(int(row[1]) for row in cells[:5]) == [7, 8, 9, 10, 11]
    assert float(cells[0][2].split()[0]) == pytest.approx(100.0, abs=0.05)
    data = re.search(r'download="settings.csv" href="data:text/csv;base64,([^"]+)"', content).group(1)
    assert len(base64.b64decode(data).decode().splitlines()) == 15


def test_curves_are_those_of_the_held_out_seeds(tmp_path):
    dataset = synthetic.sweep({"a": [1, 2]}, effect=lambda v: v["a"], noise=0.0, num_seeds=4)
    dataset["return"][:, :, :, :2] = 1e6
    curves = page_of(tmp_path, ("x", dataset)).all("img")[0]
    assert re.findall(r"a = (\d) ends at ([\d.]+)", curves["alt"]) == [("2", "100.1"), ("1", "99.15")]
    assert "1000000" not in curves["alt"].replace(",", "")


def test_every_figure_is_inside_and_is_told_in_words(tmp_path):
    page = page_of(tmp_path, ("x", synthetic.sweep(num_seeds=4)))
    images = page.all("img")
    assert len(images) == len(page.all("figure")) == 5
    for image, picture in zip(images, page.pictures(), strict=True):
        assert image["src"].startswith("data:image/svg+xml;base64,")
        assert len(image["alt"]) > 20
        assert int(image["width"]) <= 1056
        ElementTree.fromstring(picture)
    assert page.all("html")[0]["lang"] == "en"
    assert not page.all("script")
    # Nothing is fetched: every address is inside of the page.
    assert all(link["href"].startswith(("#", "data:")) for link in page.all("a") + page.all("link"))
    # Anchors lead somewhere.
    ids = {attributes.get("id") for _, attributes in page.tags}
    assert {link["href"][1:] for link in page.all("a") if link["href"].startswith("#")} <= ids
    words = words_of(page.pictures()[0])
    assert "environment steps of a member" in words
    assert "undiscounted episode return" in words
    assert "median" in words


def test_names_are_text_and_never_markup(tmp_path):
    dataset = synthetic.sweep({EVIL: ["_a", EVIL]}, effect=lambda _: 0.0, algorithms=("ppo", EVIL), envs=(EVIL,))
    dataset.attrs["record"] = '{"note": "<script>alert(2)</script>"}'
    content = write_report([(EVIL, dataset)], tmp_path / "a.html").read_text()
    page = Page(content)
    assert "<script" not in content
    assert "<script>alert(1)</script> $x_1$ & \"quoted\" 'too' | `b`" in page.text
    for picture in page.pictures():
        ElementTree.fromstring(picture)
        assert b"<script" not in picture
    assert "<script>" in words_of(page.pictures()[0])
    markdown = write_markdown([(EVIL, dataset)], tmp_path / "a.md").read_text()
    # Fenced text is shown as it is; elsewhere every bracket is escaped.
    outside = re.sub(r"(?ms)^(`{3,})$.*?^\1$", "", markdown)
    assert "<script" not in outside.replace("\\<", "")
    rows = [line for line in outside.splitlines() if line.startswith("|")]
    for above, row in itertools.pairwise(rows):
        if set(row) <= set("| -"):
            assert len(re.findall(r"(?<!\\)\|", row)) == len(re.findall(r"(?<!\\)\|", above))


def test_markdown_says_the_same_with_figures_beside_it(tmp_path):
    dataset = synthetic.sweep(num_seeds=4, record=RECORD)
    content = write_markdown([("x", dataset)], tmp_path / "deep" / "report.md").read_text()
    links = re.findall(r"!\[[^\n]+\]\(<([^>]+)>\)", content)
    assert len(links) == 5
    for link in links:
        ElementTree.parse(tmp_path / "deep" / link)
    assert "6 settings × 4 seeds" in content
    assert "| rank | learning\\_rate | clip |" in content


def test_the_same_datasets_give_the_same_bytes(tmp_path):
    dataset = synthetic.sweep()
    first, second = (write_report([("x", dataset)], tmp_path / name).read_bytes() for name in ("a.html", "b.html"))
    assert first == second


def test_algorithms_are_compared_on_normalized_scores(tmp_path):
    dataset = synthetic.sweep(algorithms=("ppo", "dqn", "sac"), envs=("x/A", "x/B"), num_seeds=8, noise=1.0)
    page = page_of(tmp_path, ("x", dataset))
    for expected in (
        "optimality gap",
        "median of means",
        "Probability of improvement",
        "x/A",
        "x/B",
        "All environments",
    ):
        assert expected in page.text
    assert "sac ppo 1 (1 to 1)" in page.text
    assert any("share of runs that score above" in words_of(picture) for picture in page.pictures())


def test_drawn_settings_are_points(tmp_path):
    page = page_of(tmp_path, ("x", synthetic.sweep(samples=20)))
    assert any(image["alt"].startswith("Scatter of") for image in page.all("img"))
    assert "Permutation p-values: learning_rate 0.001" in page.text


@pytest.mark.parametrize("dataset", [
    synthetic.run(record={"env": "x/A"}),
    synthetic.run(num_seeds=1),
    synthetic.sweep(num_seeds=1),
    synthetic.sweep(num_seeds=2, num_steps=1),
    synthetic.sweep({"a": [1]}, effect=lambda _: 0.0),
    synthetic.sweep(effect=lambda _: 0.0, noise=0.0),
    synthetic.sweep().drop_vars("return"),
    synthetic.sweep().drop_vars("score"),
    synthetic.sweep(diverged=[(0, 0, i, j, s) for i in range(3) for j in range(2) for s in range(6)]),
    synthetic.sweep().where(lambda d: (d["learning_rate"] < 5e-3) | (d["clip"] < 0.15)),
    synthetic.sweep({"a": [1, 2, 3]}, effect=lambda v: v["a"]).assign_coords(b=("a", [8, 4, 2])),
    synthetic.sweep({"a": [True, False], "b": [0, 1]}, effect=lambda _: 0.0).assign_attrs(record="{}"),
], ids=["run", "one seed", "sweep of one seed", "one step", "one setting", "all equal", "no returns", "no score",
        "all diverged", "left out", "zipped", "truth values"])  # fmt: skip
def test_any_sweep_has_a_report(tmp_path, dataset):
    page = page_of(tmp_path, ("x", dataset))
    assert f"{len(settings_of(dataset))} setting" in page.text
    assert not re.search(r"\bnan\b", page.text)
    write_markdown([("x", dataset)], tmp_path / "report.md")


def test_several_sweeps_share_a_page(tmp_path):
    page = page_of(tmp_path, ("first", synthetic.sweep()), ("second", synthetic.run()))
    assert "Report of 2 sweeps" in page.text
    assert page.text.index("first") < page.text.index("second")


def test_a_thousand_members_are_small_and_fast(tmp_path):
    grid = {"learning_rate": [1e-4, 3e-4, 1e-3, 3e-3], "clip": [0.1, 0.2, 0.3, 0.4], "config.num_envs": [8, 16, 32, 64]}
    dataset = synthetic.sweep(grid, num_seeds=16, num_steps=100, noise=10.0)
    assert dataset["score"].size == 1024
    began = time.monotonic()
    path = write_report([("x", dataset)], tmp_path / "report.html")
    assert time.monotonic() - began < 30
    assert path.stat().st_size < 1_000_000


def test_many_drawn_settings_stay_small(tmp_path):
    dataset = synthetic.sweep(samples=2500, num_seeds=2, num_steps=10, noise=10.0)
    path = write_report([("x", dataset)], tmp_path / "report.html")
    assert path.stat().st_size < 2_000_000
    page = Page(path.read_text())
    pictures = dict(zip([image["alt"].split()[0] for image in page.all("img")], page.pictures(), strict=True))
    # Points become pixels, and of the lines a selection is drawn.
    assert b"<image" in pictures["Score"]
    assert b"<image" in pictures["Scatter"]
    assert 1000 <= pictures["Parallel"].count(b"<path") < 1100
    assert "1,000 of them, evenly over the ranking" in page.text


def test_errors(tmp_path):
    with pytest.raises(ValueError, match="at least one dataset"):
        write_report([], tmp_path / "a.html")
    with pytest.raises(ValueError, match="must have `score`"):
        write_report([("x", synthetic.sweep()[["loss/value"]])], tmp_path / "a.html")
    assert not (tmp_path / "a.html").exists()


BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
# Runs in a copy of the page: what a person would have to notice.
PROBE = """
<script>
window.addEventListener("load", () => {
  const root = document.documentElement;
  const seen = {
    title: document.title,
    overflow: root.scrollWidth - root.clientWidth,
    figures: document.querySelectorAll("figure").length,
    drawn: [...document.images].filter((image) => image.naturalWidth > 0).length,
    stretched: [...document.images].filter((i) =>
      Math.abs(i.clientWidth / i.clientHeight - i.naturalWidth / i.naturalHeight) > 0.02).length,
    smallest: Math.min(
      ...[...document.querySelectorAll("main *")].map((e) => parseFloat(getComputedStyle(e).fontSize))),
  };
  for (const name in seen) root.dataset[name] = seen[name];
});
</script>
"""


def browse(browser, path, folder):
    """What the browser makes of a page: its document, and what it complained about."""
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
               f"--user-data-dir={folder / 'profile'}", "--window-size=1280,900", "--enable-logging=stderr", "--v=0",
               "--virtual-time-budget=10000", "--dump-dom", path.as_uri()]  # fmt: skip
    # Its own helpers may outlive it; what it needs of the environment is little.
    environment = {**os.environ, "DBUS_SESSION_BUS_ADDRESS": "disabled:"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    complaints = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return dict(re.findall(r'data-(\w+)="([^"]*)"', re.search(r"<html[^>]*>", done.stdout).group())), complaints


@pytest.fixture(scope="module")
def browser():
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip(f"no headless browser is installed ({', '.join(BROWSERS)})")
    return found


def test_a_browser_shows_the_page_without_a_complaint(tmp_path, browser):
    dataset = synthetic.sweep(
        {"learning_rate": [1e-4, 1e-3], "config.network.torso.hidden_sizes": ["(64, 64)", "(256, 256, 256, 256)"]},
        algorithms=("ppo", EVIL),
        envs=("gymnax/CartPole-v1", "gymnax/Acrobot-v1"),
        record={**RECORD, "word": "x" * 500},
    )
    # More columns than fit on a page.
    names = {f"objective.coefficient_of_term_{i}": [0.1] for i in range(12)}
    wide = synthetic.sweep({"a": [1, 2], **names}, effect=lambda v: v["a"])
    path = write_report([("x" * 200, dataset), ("wide & whole", wide)], tmp_path / "report.html")
    # The page allows no script, so the copy that is asked must.
    content = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", path.read_text())
    probed = tmp_path / "probed.html"
    probed.write_text(content.replace("</body>", PROBE + "</body>"))
    seen, complaints = browse(browser, probed, tmp_path)
    assert complaints == []
    assert seen["title"] == "Report of 2 sweeps"
    assert seen["overflow"] == "0"
    assert int(seen["figures"]) == int(seen["drawn"]) == content.count("<figure>") > 10
    assert seen["stretched"] == "0"
    assert float(seen["smallest"]) >= 13
    # With its policy in force the page as written has no complaint either.
    assert browse(browser, path, tmp_path)[1] == []


def test_the_probe_sees_what_is_wrong(tmp_path, browser):
    bad = tmp_path / "bad.html"
    bad.write_text(
        '<!doctype html><html><title>t</title><body><main><div style="width:2000px;font-size:5px">x</div>'
        '<figure><img src="data:image/svg+xml;base64,AAAA"></figure></main>'
        f'<script>console.error("planted")</script>{PROBE}</body></html>'
    )
    seen, complaints = browse(browser, bad, tmp_path)
    assert any("planted" in line for line in complaints)
    assert int(seen["overflow"]) > 0
    assert (seen["figures"], seen["drawn"], seen["smallest"]) == ("1", "0", "5")
    assert np.isfinite(float(seen["overflow"]))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.geomspace(0.101, 1.94, 64), True),  # a range of factor 19, drawn evenly in its logarithm
        (np.linspace(0.05, 0.4, 64), False),
        ([1e-4, 1e-3, 1e-2], True),
        ([0.9, 0.95, 0.99], False),
        ([16, 64, 256], True),
        ([1, 2, 3, 4], False),
        ([0.0, 0.1, 10.0], False),
        ([0.5], False),
    ],
)
def test_an_axis_is_logarithmic_where_its_values_lie_evenly_so(values, expected):
    assert bool(report_figures._Axis(list(map(float, values))).log) is expected
