"""Files of a dataset arrive in order, a few ahead, each once; copies are verified before they are used."""

import json
import threading
from pathlib import Path

import pytest
from tests.data.downloading import FIRST, NAME, SECOND, Run, files, hashes, hub, run, start
from tests.data.misbehaving import COMMIT, Misbehaving

__all__ = ["files", "hub", "run", "start"]


def test_the_files_come_whole_in_order_and_go_when_released(
    hub: Misbehaving, run: Run, tmp_path: Path
) -> None:
    done = run()
    assert (done.returncode, done.stderr) == (0, "")
    total = sum(len(content) for content in hub.repositories[NAME].files.values())
    assert done.stdout.split() == [*hashes(hub), str(total)]
    assert sum(hub.sent.values()) == total
    assert not (tmp_path / "downloads").exists()


@pytest.mark.parametrize("link", ["downloads", "downloads/data"])
def test_a_link_among_the_folders_is_refused(hub: Misbehaving, run: Run, tmp_path: Path, link: str) -> None:
    mine = [
        tmp_path / "treasure" / Path("downloads", path).relative_to(link)
        for path in hub.repositories[NAME].files
    ]
    for path in mine:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
    (tmp_path / link).parent.mkdir(exist_ok=True)
    (tmp_path / link).symlink_to(tmp_path / "treasure")
    done = run()
    assert done.returncode != 0
    assert "it is a symbolic link" in done.stderr
    assert [path.read_text() for path in mine] == ["mine"] * len(mine)
    assert sorted(path for path in (tmp_path / "treasure").rglob("*") if path.is_file()) == sorted(mine)


def test_several_files_at_once_and_no_more_than_allowed(
    hub: Misbehaving, run: Run, files: dict[str, bytes], tmp_path: Path
) -> None:
    hub.repositories[NAME].files = files
    hub.meeting = threading.Barrier(3, timeout=20)
    for path in list(files)[:3]:
        hub.will(f"{NAME}/{path}", ("meet",))  # nothing comes before three are asked for
    look = f"""
folder = Path('downloads')
with Downloads(list_files({NAME!r}), folder, ahead=2, base=0.01) as downloads:
    for number in range(8):
        downloads.fetch(number)
        last = min(number + 2, 7)
        while not downloads.path(last).exists():
            time.sleep(0.01)
        time.sleep(0.02)  # for what should not come
        print(json.dumps(sorted(path.name for path in folder.rglob('*') if path.is_file())))
        downloads.release(number)
        downloads.release(number)
"""
    done = run(look)
    assert (done.returncode, done.stderr) == (0, "")
    seen = [json.loads(line) for line in done.stdout.splitlines()]
    names = [path.removeprefix("data/") for path in files]
    assert seen == [names[number : number + 3] for number in range(8)]
    assert not (tmp_path / "downloads").exists()


def test_what_is_there_is_not_fetched_again(hub: Misbehaving, run: Run, tmp_path: Path) -> None:
    """Kept files serve without the hub, given the listing; damaged ones do not."""
    write = f"""
listing = list_files({NAME!r})
Path('listing').write_bytes(pickle.dumps(listing))
"""
    kept = """
listing = pickle.loads(Path('listing').read_bytes())
read_all(listing, Path('kept'), keep=True)
"""
    assert run(write + kept).returncode == 0
    assert len(list((tmp_path / "kept" / "data").iterdir())) == 2
    sent = sum(hub.sent.values())
    offline = run(kept, HF_HUB_OFFLINE="1")
    assert (offline.returncode, offline.stdout.split()) == (0, [*hashes(hub), "0"])
    assert sum(hub.sent.values()) == sent
    file = tmp_path / "kept" / "data" / "train-1.parquet"
    file.write_bytes(bytes(len(file.read_bytes())))
    offline = run(kept, HF_HUB_OFFLINE="1")
    assert offline.returncode == 2
    assert "HF_HUB_OFFLINE is set" in offline.stderr
    again = run(kept)
    assert (again.returncode, again.stdout.split()[:-1]) == (0, hashes(hub))
    assert sum(hub.sent.values()) == sent + file.stat().st_size


def test_files_before_the_first_are_never_fetched_and_do_not_stay(
    hub: Misbehaving, run: Run, tmp_path: Path
) -> None:
    left = tmp_path / "downloads" / "data" / "train-0.parquet"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"its tokens are safe")
    done = run(f"read_all(list_files({NAME!r}), Path('downloads'), first=1)")
    assert (done.returncode, done.stdout.split()[:-1]) == (0, hashes(hub)[1:])
    assert hub.asked(FIRST) == []
    assert not (tmp_path / "downloads").exists()


def test_the_token_goes_to_the_hub_and_to_nobody_else(hub: Misbehaving, run: Run) -> None:
    hub.repositories[NAME].gated = True
    assert "asks for an agreement" in run().stderr
    done = run(HF_TOKEN="hf_secret")
    assert (done.returncode, done.stderr) == (0, "")
    assert {token for path, token in hub.tokens if path.startswith("api/")} == {"", "Bearer hf_secret"}
    assert {token for path, token in hub.tokens if path.startswith(NAME)} == {""}


def test_parts_of_two_versions_are_never_put_together(hub: Misbehaving, run: Run, tmp_path: Path) -> None:
    part = tmp_path / "downloads" / "data" / f".train-0.parquet.{COMMIT[:8]}.partial"
    part.parent.mkdir(parents=True)
    part.write_bytes(hub.repositories[NAME].files["data/train-0.parquet"][:5000])
    part.with_name(".train-1.parquet.fedcba98.partial").write_bytes(b"of another commit")
    done = run()
    assert (done.returncode, done.stdout.split()[:-1]) == (0, hashes(hub))
    assert hub.asked(FIRST) == ["bytes=5000-"]
    assert hub.asked(SECOND) == [""]


def test_who_waits_sees_how_far_it_is_and_why_it_stands_still(hub: Misbehaving, run: Run) -> None:
    hub.will(FIRST, ("status", 503, {"Retry-After": "1"}), ("slow", 0.1))
    done = run(f"""
status = Status(plain_every=0)
status._last = 0  # at once, where it would wait two seconds
read_all(list_files({NAME!r}), Path('downloads'), status=status)
""")
    assert done.returncode == 0
    assert (
        "downloading file 1 of 2: it answers 503 Service Unavailable and asks to wait 1 s; again in"
        in done.stderr
    )
    assert "kB/s, " in done.stderr
    assert " left\n" in done.stderr
