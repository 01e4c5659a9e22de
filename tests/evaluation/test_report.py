"""The page is well formed, escapes every text, loads nothing, and holds the pictures."""

import base64
import io
import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image

from rasterformer.errors import DataError, ShapeError
from rasterformer.evaluation.report import (
    Card,
    Cards,
    Commands,
    Curve,
    Heading,
    Picture,
    TableSection,
    Text,
    page,
    write_page,
)

VOID = {"meta", "img", "br", "hr", "link", "input"}
EVIL = "<script>alert('&')</script>\""


class Page(HTMLParser):
    """Checks that elements nest, and collects what is in them."""

    def __init__(self, document: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text = ""
        self.feed(document)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, text):
        self.text += text


def image() -> torch.Tensor:
    rng = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (3, 4, 6), dtype=torch.uint8, generator=rng)


def every_section(text: str):
    return [
        Cards([Card(text, text, text)]),
        Heading(text),
        Text(text),
        Picture(image(), text, scale=3),
        Picture(image(), text),
        Curve({text: [(0, 8.0), (1, 4.0)]}, text, text, lines={text: 5.0}, caption=text),
        TableSection([text, "bits/dim"], [[text, 3.5], ["PNG", 5.87]], caption=text, marked=0),
        Commands([(text, text)]),
    ]


def test_page_is_well_formed_and_shows_every_text_literally():
    parsed = Page(page(EVIL, every_section(EVIL), summary=EVIL))
    assert "script" not in parsed.tags
    title, card, heading, text, pictures, curve, table, command = 3, 3, 1, 1, 2, 5, 3, 2
    assert parsed.text.count(EVIL) == title + card + heading + text + pictures + curve + table + command
    assert [value for tag, name, value in parsed.attributes if (tag, name) == ("img", "alt")] == [EVIL, EVIL]


def test_page_loads_nothing_and_runs_nothing():
    document = page("Title", every_section("plain"))
    assert not re.search(r"https?:|//|url\(|@import", re.sub(r"data:image/png;base64,[A-Za-z0-9+/=]+", "", document))
    parsed = Page(document)
    assert not {"script", "link", "iframe", "object"} & set(parsed.tags)
    sources = [value for _, name, value in parsed.attributes if name in ("src", "href", "srcset", "xlink:href")]
    assert len(sources) == 2
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert not [name for _, name, _ in parsed.attributes if name.startswith("on")]


def test_embedded_picture_has_the_pixels_and_the_size_on_the_page():
    parsed = Page(page("Title", [Picture(image(), "Caption", scale=5)]))
    attributes = {name: value for tag, name, value in parsed.attributes if tag == "img"}
    payload = base64.b64decode(attributes["src"].partition(",")[2])
    pixels = torch.from_numpy(np.array(Image.open(io.BytesIO(payload)))).permute(2, 0, 1)
    assert torch.equal(pixels, image())
    assert (attributes["width"], attributes["height"], attributes["alt"]) == ("30", "20", "Caption")


def test_neighbouring_pictures_share_a_row():
    picture = Picture(image(), "Caption")
    document = page("Title", [picture, picture, Text("between"), picture])
    assert document.count('<div class="pictures">') == 2


def test_table_writes_numbers_and_marks_a_row():
    document = page("Title", [TableSection(["what", "n", "bits/dim"], [["a", 1017, 3.14159], ["b", 2, 4.0]], marked=1)])
    cells = re.findall(r"<td[^>]*>([^<]*)</td>", document)
    assert cells == ["a", "1,017", "3.142", "b", "2", "4.000"]
    assert document.index("<tr class=marked>") > document.index("3.142")


def test_table_refuses_a_row_of_another_length():
    with pytest.raises(ValueError, match="Row 1 has 1 cells, the header 2"):
        TableSection(["a", "b"], [["1", "2"], ["3"]])


def test_written_file_is_the_page_and_nothing_else_is_left(tmp_path):
    path = tmp_path / "demo" / "index.html"
    write_page(path, "Größe", [Text("日本")], summary="One sentence.")
    assert path.read_text(encoding="utf-8") == page("Größe", [Text("日本")], summary="One sentence.")
    assert [file.name for file in path.parent.iterdir()] == ["index.html"]


def test_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match="file/index.html cannot be written"):
        write_page(tmp_path / "file" / "index.html", "Title", [])


@pytest.mark.parametrize("write", [lambda _, *a: page(*a), write_page])
def test_wrong_picture_and_empty_curve_are_refused(tmp_path, write):
    with pytest.raises(ShapeError, match=r"shape \[1, 3, 4, 6\]"):
        write(tmp_path / "index.html", "Title", [Picture(image()[None], "batch")])
    with pytest.raises(ValueError, match=r"\['loss'\] have no finite point"):
        write(tmp_path / "index.html", "Title", [Curve({"loss": [(0.0, math.nan)]}, "minutes", "bits/dim")])
    assert list(tmp_path.iterdir()) == []
