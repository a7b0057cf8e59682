"""Download, against both hubs on loopback: what is fetched, what survives a failure, and what is never left behind."""
from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from hub_service import COMMIT, HubService, served

from kinograph.checkpoints import download as downloads
from kinograph.checkpoints import fetch as fetching
from kinograph.checkpoints.download import MANIFEST, STAGING, carry_out, find_cached, is_complete, plan_download
from kinograph.cli.main import COMMANDS, Command, main
from kinograph.config import MODELS, S2V_14B, T2V_A14B, TI2V_5B
from kinograph.errors import CheckpointError, MissingExtraError, RequestError

BIG = "models_t5_umt5-xxl-enc-bf16.pth"
VARIABLES = (
    "HF_ENDPOINT", "HF_TOKEN", "HF_HUB_OFFLINE", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE",
    "MODELSCOPE_ENDPOINT", "MODELSCOPE_API_TOKEN",
)  # fmt: skip


def contents(*, experts: tuple[str, ...], vae: str) -> dict[str, bytes]:
    """Small files under the published names, and what is published beside them."""
    draw = random.Random(0)
    files = {BIG: draw.randbytes(900_000), vae: draw.randbytes(50_000)}
    shards = ["diffusion_pytorch_model-00001-of-00002.safetensors", "diffusion_pytorch_model-00002-of-00002.safetensors"]
    for folder in experts:
        index = {"weight_map": {"a": shards[0], "b": shards[1]}}
        files[f"{folder}config.json"] = json.dumps({"dim": 1, "of": folder}).encode()
        files[f"{folder}diffusion_pytorch_model.safetensors.index.json"] = json.dumps(index).encode()
        files |= {folder + shard: draw.randbytes(30_000) for shard in shards}
    for name in ("tokenizer.json", "spiece.model"):
        files[f"google/umt5-xxl/{name}"] = b"{}" + name.encode()
    return files


EXTRAS = {"README.md": b"# hi", "assets/chart.png": b"png", "examples/input.JPG": b"jpg", ".gitattributes": b"*", "nohup.out": b"x"}
TI2V = contents(experts=("",), vae="Wan2.2_VAE.pth")
T2V = contents(experts=("high_noise_model/", "low_noise_model/"), vae="Wan2.1_VAE.pth")


@pytest.fixture(autouse=True)
def alone(monkeypatch, tmp_path) -> None:
    """No settings, no caches and no pauses of the machine the tests run on."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path / "ms"))
    monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")
    monkeypatch.setattr(fetching, "time", SimpleNamespace(sleep=lambda seconds: None))


@pytest.fixture
def hub(monkeypatch):
    """ti2v-5B on both hubs."""
    with served(HubService(TI2V_5B.hub, {**TI2V, **EXTRAS})) as service:
        monkeypatch.setenv("HF_ENDPOINT", service.url)
        monkeypatch.setenv("MODELSCOPE_ENDPOINT", service.url)
        yield service


def holds(folder: Path, files: dict[str, bytes]) -> bool:
    """Whether `folder` holds exactly `files`."""
    found = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    found.pop(MANIFEST, None)
    return {name: path.read_bytes() for name, path in found.items()} == files


def test_of_the_speech_encoder_only_what_is_read(monkeypatch, tmp_path):
    """Its published folder holds the same weights three times, and a language model."""
    folder = S2V_14B.files.speech_encoder
    read = {f"{folder}/{name}": name.encode() for name in ("model.safetensors", "config.json", "vocab.json")}
    others = {f"{folder}/{name}": b"x" * 99 for name in ("pytorch_model.bin", "flax_model.msgpack", "language_model/lm.binary")}
    files = contents(experts=("",), vae="Wan2.1_VAE.pth") | read
    with served(HubService(S2V_14B.hub, {**files, **others, **EXTRAS})) as service:
        monkeypatch.setenv("HF_ENDPOINT", service.url)
        assert holds(carry_out(plan_download(S2V_14B, local_dir=tmp_path / "s2v")), files)
    assert is_complete(S2V_14B, tmp_path / "s2v")


SOURCES = pytest.mark.parametrize("source", ["hf", "modelscope"])

# -------------------------------------------------------------------------------------------------- what is fetched


@SOURCES
def test_a_folder_gets_what_the_model_needs_and_no_more(hub, source, tmp_path) -> None:
    plan = plan_download(TI2V_5B, source=source, local_dir=tmp_path / "ckpt")
    assert plan.total_bytes == plan.bytes_left == sum(map(len, TI2V.values()))
    seen: list[int] = []
    assert carry_out(plan, on_bytes=seen.append) == tmp_path / "ckpt"
    assert holds(tmp_path / "ckpt", TI2V) and is_complete(TI2V_5B, tmp_path / "ckpt")
    assert sum(seen) == plan.total_bytes
    manifest = json.loads((tmp_path / "ckpt" / MANIFEST).read_text())
    assert (manifest["repo"], manifest["revision"]) == (TI2V_5B.hub, COMMIT if source == "hf" else "master")
    assert manifest["files"][BIG]["size"] == 900_000


def test_both_experts_come(monkeypatch, tmp_path) -> None:
    with served(HubService(T2V_A14B.hub, {**T2V, **EXTRAS})) as service:
        monkeypatch.setenv("HF_ENDPOINT", service.url)
        folder = carry_out(plan_download(T2V_A14B, local_dir=tmp_path / "ckpt"))
    assert holds(folder, T2V) and is_complete(T2V_A14B, folder)


@SOURCES
def test_the_second_time_nothing_is_fetched(hub, source, tmp_path) -> None:
    for _ in range(2):
        carry_out(plan_download(TI2V_5B, source=source, local_dir=tmp_path))
    assert hub.sent == {path: len(data) for path, data in TI2V.items()}


def test_the_cache_is_the_one_of_huggingface_hub(hub) -> None:
    import huggingface_hub

    assert find_cached(TI2V_5B) is None
    folder = carry_out(plan_download(TI2V_5B))
    assert find_cached(TI2V_5B) == folder and folder.name == COMMIT
    assert holds(folder, TI2V)
    assert not (folder.parents[1] / STAGING).exists()
    assert all(hub.sent[path] == len(data) for path, data in TI2V.items())  # huggingface_hub fetched nothing again
    cache = downloads.hub_cache()
    offline = huggingface_hub.snapshot_download(TI2V_5B.hub, cache_dir=cache, local_files_only=True)
    assert Path(offline) == folder
    (repo,) = huggingface_hub.scan_cache_dir(cache).repos
    assert repo.repo_id == TI2V_5B.hub and repo.size_on_disk == sum(map(len, TI2V.values()))


def test_the_cache_of_modelscope_is_found(hub, tmp_path) -> None:
    folder = carry_out(plan_download(TI2V_5B, source="modelscope"))
    assert folder == tmp_path / "ms" / "models" / TI2V_5B.hub == find_cached(TI2V_5B)


@pytest.mark.parametrize(
    "gone", [BIG, "Wan2.2_VAE.pth", "diffusion_pytorch_model-00002-of-00002.safetensors", "google/umt5-xxl/tokenizer.json"]
)
def test_a_cache_with_a_gap_is_not_found(hub, gone) -> None:
    folder = carry_out(plan_download(TI2V_5B))
    (folder / gone).resolve().unlink()
    assert find_cached(TI2V_5B) is None
    assert carry_out(plan_download(TI2V_5B)) == find_cached(TI2V_5B)
    assert hub.sent[gone] == 2 * len(TI2V[gone])


def test_models_without_a_repository_are_in_no_cache() -> None:
    assert find_cached(MODELS["ti2v-nano"]) is None


# ------------------------------------------------------------------------------------------------------- failures


@SOURCES
@pytest.mark.parametrize("redirect", [False, True])
def test_a_dropped_connection_goes_on_where_it_stopped(hub, source, redirect, tmp_path) -> None:
    hub.redirect = redirect
    hub.drops = {BIG: [300_000, 1, 250_000], "Wan2.2_VAE.pth": [0, 0]}
    assert holds(carry_out(plan_download(TI2V_5B, source=source, local_dir=tmp_path / "ckpt")), TI2V)
    assert hub.sent[BIG] == 900_000  # no byte twice
    ranges = [asked for _, path, asked, _ in hub.requests if (BIG in path and "storage" in path) or (BIG in path and not redirect)]
    assert [asked for asked in ranges if asked] == ["bytes=300000-", "bytes=300001-", "bytes=550001-"]


def test_a_hub_that_stops_leaves_nothing_to_mistake_and_is_resumed_later(hub, tmp_path) -> None:
    folder = tmp_path / "ckpt"
    hub.drops = {BIG: [400_000] + [0] * fetching.ATTEMPTS}
    with pytest.raises(CheckpointError, match=r"does not get any further .*run the same command again"):
        carry_out(plan_download(TI2V_5B, local_dir=folder))
    assert [path.name for path in folder.iterdir()] == [STAGING] and not is_complete(TI2V_5B, folder)
    plan = plan_download(TI2V_5B, local_dir=folder)
    assert plan.bytes_left <= plan.total_bytes - 400_000
    assert holds(carry_out(plan), TI2V)
    assert hub.sent[BIG] == 900_000


def test_the_same_for_the_cache(hub) -> None:
    hub.drops = {BIG: [400_000] + [0] * fetching.ATTEMPTS}
    with pytest.raises(CheckpointError):
        carry_out(plan_download(TI2V_5B))
    assert find_cached(TI2V_5B) is None
    assert holds(carry_out(plan_download(TI2V_5B)), TI2V)
    assert hub.sent[BIG] == 900_000


def test_stopped_by_the_user(hub, tmp_path) -> None:
    def stop(count: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        carry_out(plan_download(TI2V_5B, local_dir=tmp_path), on_bytes=stop)
    assert not is_complete(TI2V_5B, tmp_path) and not (tmp_path / MANIFEST).exists()
    assert holds(carry_out(plan_download(TI2V_5B, local_dir=tmp_path)), TI2V)


def test_a_server_without_ranges_starts_over(hub, tmp_path) -> None:
    hub.ranges, hub.drops = False, {BIG: [300_000, 500_000]}
    seen: list[int] = []
    plan = plan_download(TI2V_5B, local_dir=tmp_path)
    assert holds(carry_out(plan, on_bytes=seen.append), TI2V)
    assert sum(seen) == plan.total_bytes


@SOURCES
@pytest.mark.parametrize("path", [BIG, "config.json"])
def test_a_damaged_file_is_fetched_again(hub, source, path, tmp_path) -> None:
    hub.corrupt[path] = 1
    assert holds(carry_out(plan_download(TI2V_5B, source=source, local_dir=tmp_path)), TI2V)


@SOURCES
@pytest.mark.parametrize("path", [BIG, "config.json"])
def test_a_file_that_stays_damaged_is_refused(hub, source, path, tmp_path) -> None:
    hub.corrupt[path] = 2
    with pytest.raises(CheckpointError, match=f"{path} arrived damaged twice"):
        carry_out(plan_download(TI2V_5B, source=source, local_dir=tmp_path))
    assert not (tmp_path / path).exists() and not is_complete(TI2V_5B, tmp_path)


def test_a_damaged_file_in_the_folder_is_replaced(hub, tmp_path) -> None:
    (tmp_path / BIG).write_bytes(bytes(900_000))  # of the right size
    (tmp_path / "mine.txt").write_text("kept")
    plan = plan_download(TI2V_5B, local_dir=tmp_path)
    assert BIG in [file.path for file in plan.missing]
    assert holds(carry_out(plan), {**TI2V, "mine.txt": b"kept"})


def test_files_that_are_there_and_right_are_kept(hub, tmp_path) -> None:
    (tmp_path / BIG).write_bytes(TI2V[BIG])
    carry_out(plan_download(TI2V_5B, local_dir=tmp_path))
    assert hub.sent[BIG] == 0


def test_a_new_revision_replaces_what_changed(hub, tmp_path) -> None:
    carry_out(plan_download(TI2V_5B, local_dir=tmp_path))
    changed = {**TI2V, "Wan2.2_VAE.pth": bytes(50_000)}
    hub.files = changed
    plan = plan_download(TI2V_5B, local_dir=tmp_path)
    assert [file.path for file in plan.missing] == ["Wan2.2_VAE.pth"]
    assert holds(carry_out(plan), changed)


def test_a_disk_too_small(hub, monkeypatch, tmp_path) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(downloads.shutil, "disk_usage", lambda path: usage._replace(free=500_000))
    with pytest.raises(RequestError, match=r"needs 1\.0 MB more in .*ckpt, and 500\.0 KB are free there"):
        plan_download(TI2V_5B, local_dir=tmp_path / "ckpt")
    assert not (tmp_path / "ckpt").exists()


def test_two_at_once_are_refused(hub, tmp_path) -> None:
    plan = plan_download(TI2V_5B, local_dir=tmp_path)
    with downloads._alone(plan.staging), pytest.raises(RequestError, match="another download into"):
        carry_out(plan)


def test_places_that_are_no_folder(hub, tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RequestError, match="is a file"):
        plan_download(TI2V_5B, local_dir=tmp_path / "file")
    with pytest.raises(RequestError, match="cannot write to"):
        carry_out(plan_download(TI2V_5B, local_dir=tmp_path / "file" / "below"))


# ------------------------------------------------------------------------------------------------ hubs that refuse


@SOURCES
def test_no_network(source, monkeypatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(CheckpointError, match=r"127\.0\.0\.1:9.* cannot be reached .*--source"):
        plan_download(TI2V_5B, source=source)


@SOURCES
def test_an_unknown_revision(hub, source) -> None:
    with pytest.raises((RequestError, CheckpointError), match="revision 'gone'"):
        plan_download(TI2V_5B, source=source, revision="gone")


@SOURCES
def test_a_repository_that_lacks_a_file(hub, source) -> None:
    del hub.files["Wan2.2_VAE.pth"]
    with pytest.raises(CheckpointError, match=r"lacks Wan2\.2_VAE\.pth"):
        plan_download(TI2V_5B, source=source)


@SOURCES
def test_a_repository_that_names_files_outside(hub, source) -> None:
    hub.files["google/umt5-xxl/../../../evil"] = b"x"
    with pytest.raises(CheckpointError, match="outside its repository"):
        plan_download(TI2V_5B, source=source)


def test_a_listing_that_is_none(hub) -> None:
    hub.modelscope_listing = lambda: {"Code": 10010, "Message": "busy"}  # type: ignore[method-assign]
    with pytest.raises(CheckpointError, match="not a list of files"):
        plan_download(TI2V_5B, source="modelscope")


def test_the_wrong_token(hub, tmp_path) -> None:
    plan = plan_download(TI2V_5B, local_dir=tmp_path)
    hub.refuse = 403
    with pytest.raises(CheckpointError, match="does not let this account download"):
        carry_out(plan)


@SOURCES
def test_the_token_goes_to_the_hub_and_not_to_the_storage(hub, source, monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("MODELSCOPE_API_TOKEN", "hf_secret")
    hub.redirect = True
    carry_out(plan_download(TI2V_5B, source=source, local_dir=tmp_path))
    for _, path, _, authorization in hub.requests:
        assert authorization == (None if path.startswith("/storage/") else "Bearer hf_secret"), path


def test_offline(hub, monkeypatch) -> None:
    folder = carry_out(plan_download(TI2V_5B))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    hub.requests.clear()
    with pytest.raises(RequestError, match="HF_HUB_OFFLINE is set"):
        plan_download(TI2V_5B)
    assert find_cached(TI2V_5B) == folder and hub.requests == []


def test_without_huggingface_hub(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.setitem(sys.modules, "huggingface_hub.errors", None)
    with pytest.raises(MissingExtraError, match=r"kinograph\[hub\]"):
        plan_download(TI2V_5B)


def test_what_cannot_be_downloaded() -> None:
    with pytest.raises(RequestError, match="'s3' is not known; choose one of hf, modelscope"):
        plan_download(TI2V_5B, source="s3")
    with pytest.raises(RequestError, match="ships with Kinograph"):
        plan_download(MODELS["ti2v-nano"])


# ------------------------------------------------------------------------------------------------------ the command


@pytest.fixture
def command(monkeypatch, capsys):
    monkeypatch.setitem(COMMANDS, "download", Command("kinograph.cli.download", "fetch the weights of a model"))

    def run(*argv: str) -> tuple[int, str, str]:
        status = main(["download", *argv])
        return status, *capsys.readouterr()

    return run


def test_command_shows_the_sizes_first(command, hub, tmp_path) -> None:
    status, out, _ = command("ti2v-5B", "--local-dir", str(tmp_path / "ckpt"))
    assert status == 0 and holds(tmp_path / "ckpt", TI2V)
    lines = out.splitlines()
    assert lines[0] == f"{TI2V_5B.hub} at {COMMIT} from hf"
    assert any(line.split() == ["diffusion_pytorch_model*", "60.1", "KB"] for line in lines)
    assert any(line.split() == ["together", "1.0", "MB"] for line in lines)
    assert lines[-1] == f"use it with: kinograph generate --task ti2v-5B --ckpt_dir {tmp_path / 'ckpt'}"


def test_command_for_machines(command, hub, tmp_path) -> None:
    status, out, _ = command(TI2V_5B.hub, "--source", "modelscope", "--json")
    events = [json.loads(line) for line in out.splitlines()]
    assert status == 0
    assert events[0]["event"] == "plan" and events[0]["files"] == {path: len(data) for path, data in TI2V.items()}
    size = sum(map(len, TI2V.values()))
    assert events[-1] == {"event": "result", "path": str(find_cached(TI2V_5B)), "model": "ti2v-5B", "bytes": size, "received": size}
    assert "progress" in {event["event"] for event in events}


def test_command_killed_and_started_again(hub, tmp_path) -> None:
    folder = tmp_path / "ckpt"
    script = "from kinograph.cli.download import run; import sys; sys.exit(run(sys.argv[1:]))"
    argv = [sys.executable, "-c", script, "ti2v-5B", "--local_dir", str(folder)]
    hub.drops, hub.stall = {BIG: [400_000]}, threading.Event()
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
    try:
        assert hub.stalled.wait(60)
        while not (parts := list(folder.glob(f"{STAGING}/*{BIG}.part"))) or parts[0].stat().st_size < 400_000:
            time.sleep(0.02)
    finally:
        process.kill()
        process.communicate()
        hub.stall.set()
    assert [path.name for path in folder.iterdir()] == [STAGING]
    subprocess.run(argv, check=True, capture_output=True, timeout=120)
    assert holds(folder, TI2V) and hub.sent[BIG] == 900_000


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ((), "which model?"),
        (("ti2v-5b",), "did you mean ti2v-5B"),
        (("ti2v-5B", "--source", "s3"), "--source must be one of hf, modelscope; got 's3'"),
        (("ti2v-5B", "--folder", "x"), "there is no flag --folder"),
    ],
)
def test_command_refuses_with_a_sentence(command, argv, message) -> None:
    status, _, errors = command(*argv)
    assert status == 2 and message in errors and "Traceback" not in errors
