"""The server as it runs: many workers, a kill in the middle, and nothing that gives the answer away."""

import shutil
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from subprocess import Popen

import httpx
import pytest

from rasterformer.cli.main import main
from rasterformer.errors import DataError
from rasterformer.study.create import create_study
from rasterformer.study.server import make_app
from rasterformer.study.store import Store

NewStudy = Callable[..., Path]
Serve = Callable[..., AbstractContextManager["Popen[str]"]]


class Worker(threading.Thread):
    """Answers pair after pair as the page does, sends some votes twice, and tries again where no answer came."""

    def __init__(self, address: str, number: int) -> None:
        super().__init__(daemon=True)
        self.address = address
        self.number = number
        self.acknowledged: dict[int, str] = {}
        self.path = ""
        self.failure: Exception | None = None

    def run(self) -> None:
        try:
            with httpx.Client(base_url=self.address, trust_env=False, timeout=60) as client:
                self.path = self.patiently(lambda: client.get("/")).headers["location"]
                state = self.patiently(lambda: client.get(f"{self.path}/state")).json()
                for position in range(1, state["total"] + 1):
                    choice = "left" if (position + self.number) % 3 else "right"
                    vote = {"position": position, "choice": choice, "claimed_ms": 10 * position}
                    for _ in range(2 if position % 4 == 0 else 1):
                        said = self.patiently(lambda: client.post(f"{self.path}/votes", json=vote))  # noqa: B023
                        assert said.status_code == 200 and said.json()["position"] == position + 1, said.text
                        self.acknowledged[position] = choice
        except Exception as error:
            self.failure = error

    @staticmethod
    def patiently(ask: Callable[[], httpx.Response]) -> httpx.Response:
        for _ in range(2000):
            try:
                return ask()
            except httpx.TransportError:
                time.sleep(0.05)
        raise AssertionError("the server did not come back")


def test_no_vote_is_lost_or_doubled_when_the_server_is_killed(
    new_study: NewStudy, serve: Serve, free_port: int, tmp_path: Path
) -> None:
    study = new_study(pairs=9, checks=1)
    workers = [Worker(f"http://127.0.0.1:{free_port}", number) for number in range(20)]

    def acknowledged() -> int:
        return sum(len(worker.acknowledged) for worker in workers)

    with serve(study, free_port) as server:
        for worker in workers:
            worker.start()
        while acknowledged() < 60:
            assert all(worker.failure is None for worker in workers)
            time.sleep(0.005)
        server.kill()  # SIGKILL
        server.wait()
    before = [dict(worker.acknowledged) for worker in workers]
    assert 60 <= sum(map(len, before)) < 200  # in the middle
    shutil.copy(study, tmp_path / "crashed.db")
    shutil.copy(f"{study}-wal", tmp_path / "crashed.db-wal")
    with serve(study, free_port):
        for worker in workers:
            worker.join(timeout=200)
    assert [worker.failure for worker in workers if worker.failure] == []

    def stored(path: Path) -> dict[str, dict[int, str]]:
        db = sqlite3.connect(path)
        rows = db.execute("SELECT token, position, choice FROM vote JOIN worker ON worker.id = vote.worker").fetchall()
        db.close()
        found: dict[str, dict[int, str]] = {}
        for token, position, choice in rows:
            assert position not in found.setdefault(f"/w/{token}", {}), "doubled"
            found[f"/w/{token}"][position] = choice
        return found

    crashed, final = stored(tmp_path / "crashed.db"), stored(study)
    for worker, earlier in zip(workers, before, strict=True):
        assert earlier.items() <= crashed.get(worker.path, {}).items()  # nothing that was acknowledged is lost
        assert final[worker.path] == worker.acknowledged and len(worker.acknowledged) == 10
    assert set(final) == {worker.path for worker in workers}


@pytest.fixture
def client(new_study: NewStudy, serve: Serve, free_port: int) -> Iterator[httpx.Client]:
    """A client of a served study of three pairs."""
    with (
        serve(new_study(pairs=3, checks=0), free_port),
        httpx.Client(base_url=f"http://127.0.0.1:{free_port}", trust_env=False, timeout=60) as client,
    ):
        yield client


def test_nothing_that_is_sent_tells_real_from_generated(
    real: Path, generated: Path, serve: Serve, free_port: int, tmp_path: Path
) -> None:
    study = tmp_path / "study.db"
    create_study(real, [generated], study, pairs=4, checks=2)
    with (
        serve(study, free_port),
        httpx.Client(base_url=f"http://127.0.0.1:{free_port}", trust_env=False, timeout=60) as client,
        Store(study) as store,
    ):
        link = client.get("/").headers["location"]
        seen = [client.get(path) for path in (link, "/page.js", "/page.css")]
        headers = set()
        for position in range(1, 11):
            seen.append(client.get(f"{link}/state"))
            for side in ("left", "right"):
                image = client.get(f"{link}/{position}/{side}.png")
                assert image.status_code == 200 and image.headers["cache-control"] == "no-store"
                headers.add(tuple((name, value) for name, value in image.headers.items() if name != "date"))
                seen.append(image)
            seen.append(client.post(f"{link}/votes", json={"position": position, "choice": "left"}))
        assert len(headers) == 1  # length included: real and generated are answered alike
        assert not {"etag", "last-modified", "content-disposition"} & {name for name, _ in headers.pop()}
        said = b"".join(response.content + str(response.headers).encode() for response in seen)
        names = [path.name for folder in (real, generated) for path in folder.iterdir()]
        assert not any(word.encode() in said for word in [*names, "runs/a", "temperature", "real_side", "photo-"])
        assert len(store.votes()) == 10


def test_requests_ahead_of_the_open_pair_are_refused(client: httpx.Client) -> None:
    link = client.get("/").headers["location"]
    status = [client.get(f"{link}/{position}/left.png").status_code for position in (1, 2, 3, 4)]
    assert status == [200, 200, 404, 404]
    assert client.post(f"{link}/votes", json={"position": 2, "choice": "left"}).status_code == 409
    for _ in range(2):  # a retry is answered alike
        said = client.post(f"{link}/votes", json={"position": 1, "choice": "left"})
        assert (said.status_code, said.json()["position"]) == (200, 2)
    status = [client.get(f"{link}/{position}/left.png").status_code for position in (1, 2, 3, 4)]
    assert status == [404, 200, 200, 404]


def test_nobody_and_nonsense_are_refused(client: httpx.Client) -> None:
    link = client.get("/").headers["location"]
    for path in ("/w/nobody", "/w/nobody/state", "/w/nobody/1/left.png", "/docs", "/openapi.json", "/study.db"):
        assert client.get(path).status_code == 404
    assert client.post("/w/nobody/votes", json={"position": 1, "choice": "left"}).status_code == 404
    for answer in ({"position": 1, "choice": "up"}, {"position": 0, "choice": "left"}, {"position": 2**70}, {}):
        assert client.post(f"{link}/votes", json=answer).status_code == 422
    assert client.get(f"{link}/{2**70}/left.png").status_code == 422


def test_the_page_may_load_nothing_from_elsewhere(client: httpx.Client) -> None:
    page = client.get("/", follow_redirects=True)
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert "unsafe" not in page.headers["content-security-policy"]
    assert page.headers["referrer-policy"] == "no-referrer"
    everything = page.text + client.get("/page.js").text + client.get("/page.css").text
    assert "http://" not in everything and "https://" not in everything and "@import" not in everything


def test_personal_links_are_the_same_at_every_start_and_nobody_else_joins(
    new_study: NewStudy, serve: Serve, free_port: int
) -> None:
    study = new_study()
    printed = []
    for _ in range(2):
        with serve(study, free_port, "--workers", "3") as server:
            assert httpx.get(f"http://127.0.0.1:{free_port}/", trust_env=False, timeout=60).status_code == 403
            server.kill()
            lines = server.communicate()[0].splitlines()
            printed.append([line for line in lines if line.startswith("worker ")])
    assert printed[0] == printed[1] and len(printed[0]) == 3
    assert all(f"http://127.0.0.1:{free_port}/w/" in line for line in printed[0])


def test_another_host_is_warned_of(new_study: NewStudy, serve: Serve, free_port: int) -> None:
    with serve(new_study(), free_port, "--host", "0.0.0.0") as server:
        server.kill()
        assert "warning: --host 0.0.0.0: everybody" in server.communicate()[0]


def test_a_port_in_use_is_named(
    new_study: NewStudy, serve: Serve, free_port: int, capsys: pytest.CaptureFixture[str]
) -> None:
    study = new_study()
    with serve(study, free_port):
        assert main(["study", "serve", str(study), "--port", str(free_port)]) == 2
    assert f"127.0.0.1:{free_port} cannot be listened at" in capsys.readouterr().err


@pytest.mark.parametrize(("option", "value"), [("--port", "0"), ("--port", "65536"), ("--workers", "0")])
def test_options_out_of_range_are_named(
    option: str, value: str, new_study: NewStudy, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["study", "serve", str(new_study()), option, value]) == 2
    assert f"{option} {value} must be" in capsys.readouterr().err


def test_a_missing_study_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.db: no such file"):
        make_app(tmp_path / "gone.db")


def test_a_missing_package_names_the_extra() -> None:
    import subprocess
    import sys

    program = (
        "import sys; sys.modules['uvicorn'] = None\n"  # as if it were not installed
        "from rasterformer.cli.main import main; sys.exit(main(['study', 'serve', 'study.db']))"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert ran.returncode == 2 and "uvicorn" in ran.stderr and "rasterformer[studio]" in ran.stderr
