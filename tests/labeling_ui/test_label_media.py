"""Images and recordings of pairs: what is shown is harmless, has no metadata, and reaches the export as it came."""

from __future__ import annotations

import base64
import io
import json
import struct
import wave
import zlib
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from PIL import Image
from test_label_api import Campaign, no_pages, run  # noqa: F401 - a fixture

from labeling_ui.configuration import LabelConfig
from labeling_ui.database.schema import MEDIA_FILES
from labeling_ui.exchange.export import write_labels
from labeling_ui.exchange.media import BadMediaError, MediaConfig, add_media, clean
from labeling_ui.label import add_answers, add_pairs, read_some_answers, read_some_pairs
from labeling_ui.quality.aggregate import AggregationConfig
from labeling_ui.steering import correct
from labeling_ui.store.pairs.media import describe_media
from labeling_ui.store.store import Store
from labeling_ui.store.verify import verify
from labeling_ui.web.context import SESSION_COOKIE
from tiebreak.data.pairs import read_pairs
from tiebreak.data.reading import Rules, read_demonstrations
from tiebreak.errors import DataError
from tiebreak.records import Demonstration, Pair


def jpeg(size: tuple[int, int] = (40, 20), orientation: int = 6) -> bytes:
    """A photo with a place, a name and a rotation in its EXIF, and a comment."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif[0x010E] = "SECRET-NAME"
    exif.get_ifd(0x8825)[1] = "N"
    out = io.BytesIO()
    Image.new("RGB", size, "red").save(out, "JPEG", exif=exif, comment=b"SECRET-COMMENT")
    return out.getvalue() + b"<script>SECRET-TAIL</script>"


def png(size: tuple[int, int] = (8, 8), colour: str = "blue") -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, colour).save(out, "PNG")
    return out.getvalue()


def png_of(width: int, height: int) -> bytes:
    """A bomb: a header that claims a size, and a few bytes."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(1_000))) + chunk(b"IEND", b"")
    )


def wav(seconds: int = 1, rate: int = 8_000) -> bytes:
    out = io.BytesIO()
    with wave.open(out, "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(1)
        sound.setframerate(rate)
        sound.writeframes(bytes([128]) * seconds * rate)
    return out.getvalue()


def gif(frames: int) -> bytes:
    out = io.BytesIO()
    pictures = [Image.new("RGB", (4, 4), (n % 250, n % 3, 200)) for n in range(frames)]
    pictures[0].save(out, "GIF", save_all=True, append_images=pictures[1:], comment=b"SECRET")
    return out.getvalue()


MP3 = b"\xff\xfb\x90\x00" + bytes(413)
"""A frame of 128 kbit/s, MPEG-1 layer III."""


def test_what_is_shown_is_the_pixels_alone() -> None:
    """Upright, as EXIF says; without EXIF, comment, or what follows the image."""
    shown = clean(jpeg(), "image")
    assert (shown.media_type, shown.width, shown.height) == ("image/jpeg", 20, 40)
    assert b"SECRET" not in shown.content
    again = Image.open(io.BytesIO(shown.content))
    assert not again.getexif()
    red, green, blue = again.convert("RGB").getpixel((10, 20))  # type: ignore[misc]
    assert red > 240
    assert max(green, blue) < 20
    moving = clean(gif(3), "image")
    assert getattr(Image.open(io.BytesIO(moving.content)), "n_frames", 1) == 3
    assert b"SECRET" not in moving.content
    transparent = io.BytesIO()
    Image.new("RGBA", (2, 2), (0, 0, 0, 0)).save(transparent, "WEBP", lossless=True)
    kept = Image.open(io.BytesIO(clean(transparent.getvalue(), "image").content))
    assert kept.convert("RGBA").getpixel((0, 0))[3] == 0  # type: ignore[index]


def test_a_recording_is_told_by_its_bytes_and_loses_its_tags() -> None:
    tag = b"ID3\x04\x00\x00\x00\x00\x00\x0bSECRET-NAME"
    assert clean(tag + MP3 + b"TAG" + b"SECRET".ljust(125), "audio").content == MP3
    flac = b"fLaC\x00\x00\x00\x22" + bytes(10) + (44_100 << 44 | 44_100 * 60).to_bytes(8, "big") + bytes(16)
    ogg = (
        b"OggS\x00\x02"
        + bytes(20)
        + b"\x01\x13OpusHead"
        + b"OggS\x00\x04"
        + (48_000 * 5).to_bytes(8, "little")
        + bytes(14)
    )
    kinds = [clean(raw, "audio").media_type for raw in (MP3, wav(), flac, ogg)]
    assert kinds == ["audio/mpeg", "audio/wav", "audio/flac", "audio/ogg"]


SVG = b"<svg xmlns='http://www.w3.org/2000/svg' onload='window.pwned=1'><script>window.pwned=1</script></svg>"
FLAC_OF_A_DAY = b"fLaC\x00\x00\x00\x22" + bytes(10) + (8_000 << 44 | 8_000 * 86_400).to_bytes(8, "big") + bytes(16)
HOSTILE = {
    "svg": ("image", SVG, "no PNG, JPEG, WebP or GIF"),
    "html": ("image", b"<html><script>window.pwned=1</script>", "no PNG, JPEG, WebP or GIF"),
    "html with an image's first bytes": ("image", b"GIF89a<script>window.pwned=1</script>" + bytes(20), "image"),
    "tiff": ("image", b"II*\x00" + bytes(100), "no PNG, JPEG, WebP or GIF"),
    "pdf": ("image", b"%PDF-1.7\n", "no PNG, JPEG, WebP or GIF"),
    "a bomb": ("image", png_of(60_000, 60_000), "too many"),
    "a wide bomb": ("image", png_of(2**31 - 1, 1), "too many"),
    "cut off": ("image", png_of(3_000, 3_000), "damaged"),
    "many frames": ("image", gif(400), "too many"),
    "nothing": ("image", b"", "no PNG, JPEG, WebP or GIF"),
    "too many bytes": ("image", b"\xff\xd8\xff" + bytes(20_000_000), "bytes: at most"),
    "an image as a recording": ("audio", png(), "no WAV, MP3, Ogg or FLAC"),
    "text as a recording": ("audio", b"ID3 is a tag, and this is text", "no WAV, MP3, Ogg or FLAC"),
    "half a wav": ("audio", wav()[:30], "damaged"),
    "a day of sound": ("audio", FLAC_OF_A_DAY, "minutes: at most"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused(name: str) -> None:
    kind, raw, reason = HOSTILE[name]
    with pytest.raises(BadMediaError, match=reason):
        clean(raw, kind)


def asked(image: str, alt: str | None = "a leaf") -> list[dict[str, Any]]:
    part = {"type": "image", "image": image} | ({"alt": alt} if alt else {})
    return [{"role": "user", "content": [{"type": "text", "text": "What is this?"}, part]}]


@pytest.fixture
def campaign(tmp_path: Path) -> tuple[Campaign, LabelConfig]:
    """One pair with an image in its prompt, an image in one answer and a recording in the other."""
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / "leaf.jpg").write_bytes(jpeg())
    (folder / "model-x.png").write_bytes(png())
    (folder / "model-y.wav").write_bytes(wav())
    row = {
        "prompt": asked("leaf.jpg"),
        "response_a": [
            {
                "role": "assistant",
                "content": [
                    {"type": "text", "text": "A leaf:"},
                    {"type": "image", "image": "model-x.png", "alt": "blue"},
                ],
            }
        ],
        "response_b": [
            {
                "role": "assistant",
                "content": [{"type": "text", "text": "Listen:"}, {"type": "audio", "audio": "model-y.wav"}],
            }
        ],
    }
    (tmp_path / "pairs.jsonl").write_text(json.dumps(row) + "\n")
    config = LabelConfig(output=str(tmp_path / "label"), pairs=str(tmp_path / "pairs.jsonl"), media=str(folder))
    store = Store.open(config.store_url, create=True)
    assert add_pairs(store, config, read_some_pairs(config)) == 1
    assert add_pairs(store, config, read_some_pairs(config)) == 0
    return Campaign(store), config


def test_a_pair_has_its_files_and_no_name_of_them(campaign: tuple[Campaign, LabelConfig], tmp_path: Path) -> None:
    site, config = campaign
    pair = site.call("one", "GET", "/api/next").json()
    text = json.dumps(pair)
    assert "model-x" not in text
    assert "model-y" not in text
    assert "leaf.jpg" not in text
    sides = {side["text"]: side["html"] for side in (pair["left"], pair["right"])}
    assert set(sides) == {"A leaf: [image 1]", "Listen: [audio 1]"}
    files = [html.partition("data-file='")[2][:64] for html in (pair["messages"][0]["html"], *sides.values())]
    replies = [site.call("one", "GET", f"/api/media/{file}") for file in files]
    assert sorted(reply.headers["content-type"] for reply in replies) == ["audio/wav", "image/jpeg", "image/png"]
    assert all(reply.headers["x-content-type-options"] == "nosniff" for reply in replies)
    assert all(reply.headers["content-security-policy"] == "default-src 'none'; sandbox" for reply in replies)
    assert b"SECRET" not in replies[0].content
    part = site.call("one", "GET", f"/api/media/{files[0]}", Range="bytes=2-4")
    assert (part.status_code, part.content) == (206, replies[0].content[2:5])
    assert site.call("nobody", "GET", f"/api/media/{files[0]}").status_code == 401
    assert site.call("one", "GET", f"/api/media/{'0' * 64}").status_code == 404
    assert site.call("one", "GET", "/api/media/..%2f..%2fetc%2fpasswd").status_code in (404, 422)
    edited = {"client_id": "c", "pair_id": pair["pair_id"], "answer": -1, "edited_text": "x"}
    assert "cannot be edited" in site.call("one", "POST", "/api/judgments", edited).text
    assert site.call("one", "POST", "/api/judgments", edited | {"edited_text": None}).status_code == 200
    opened = site.call("lead", "GET", f"/api/lead/items/{pair['pair_id']}").json()
    assert files[0] in opened["messages"][0]["html"]
    assert not verify(site.store).faults
    the_export_keeps_the_parts(site.store, config, tmp_path / "final")
    the_export_describes_the_files(site.store, tmp_path / "described")


def the_export_describes_the_files(store: Store, folder: Path) -> None:
    """With the lead's words where the pair has none; in Label Studio's and Argilla's files beside the texts."""
    folder.mkdir()
    store.transact(lambda tx: describe_media(tx, "model-y.wav", "a blackbird"))
    store.transact(lambda tx: describe_media(tx, "model-x.png", "not shown: the pair says blue"))
    write_labels(store, folder, AggregationConfig(), ("argilla", "label_studio"))
    (row,) = map(json.loads, (folder / "preferences.jsonl").read_text().splitlines())
    alts = {part["type"]: part["alt"] for side in ("chosen", "rejected") for part in row[side][0]["content"][1:]}
    assert alts == {"audio": "a blackbird", "image": "blue"}
    assert row["prompt_id"] == store.pairs()[0].prompt_id
    files = ["[image leaf.jpg]: a leaf", "[image model-x.png]: blue", "[audio model-y.wav]: a blackbird"]
    assert json.loads((folder / "argilla.json").read_text())[0]["metadata"]["files"] == files
    assert json.loads((folder / "label_studio.json").read_text())[0]["meta"]["files"] == files


def the_export_keeps_the_parts(store: Store, config: LabelConfig, folder: Path) -> None:
    folder.mkdir()
    write_labels(store, folder, AggregationConfig(), ())
    (row,) = map(json.loads, (folder / "preferences.jsonl").read_text().splitlines())
    assert row["prompt"] == asked("leaf.jpg")
    contents = sorted(json.dumps(row[side][0]["content"][1]) for side in ("chosen", "rejected"))
    assert contents == [
        '{"type": "audio", "audio": "model-y.wav"}',
        '{"type": "image", "image": "model-x.png", "alt": "blue"}',
    ]
    (again,) = read_pairs(config.pairs, media=True)
    assert again == Pair.model_validate_json(again.model_dump_json())


def test_files_are_local_unchanged_and_described(campaign: tuple[Campaign, LabelConfig], tmp_path: Path) -> None:
    """Every fault is listed at once, and nothing is fetched."""
    site, config = campaign
    folder = Path(config.media or "")
    (tmp_path / "outside.png").write_bytes(png())
    (folder / "link.png").symlink_to(tmp_path / "outside.png")
    (folder / "leaf.jpg").write_bytes(jpeg((8, 8)))
    inside = f"data:image/png;base64,{base64.b64encode(png((3, 3))).decode()}"
    names = [
        "../outside.png",
        "link.png",
        "http://pictures.invalid/x.png",
        "none.png",
        "leaf.jpg",
        inside,
        str(tmp_path / "outside.png"),
    ]
    rows = [{"prompt": asked(name, None), "response_a": "a", "response_b": "b"} for name in names]
    file = tmp_path / "more.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError) as caught:
        add_media(site.store, read_pairs(str(file), media=True), MediaConfig(folder))
    faults = str(caught.value)
    assert "media: 6 errors" in faults
    for reason in ("outside the media folder", "never fetched", "cannot be read", "changed since"):
        assert reason in faults
    with pytest.raises(DataError, match="has no alt text"):
        add_media(site.store, read_pairs(str(file), media=True)[5:6], MediaConfig(folder, require_alt=True))
    with pytest.raises(DataError, match="set media to the folder"):
        read_pairs(str(file))


def test_leads_upload_pairs_with_files_that_are_there(campaign: tuple[Campaign, LabelConfig]) -> None:
    site, _ = campaign
    rows = [{"prompt": asked(name), "response_a": "a", "response_b": "b"} for name in ("leaf.jpg", "new.png")]

    added, refused = (run(send_rows(site, [row])) for row in rows)
    notes = ["rows.jsonl: 1 row read as pairs (response_a, response_b)"]
    assert added.json() == {"pairs": 1, "new": 1, "shown": [], "notes": notes}
    assert (refused.status_code, "new.png: no such file" in refused.text) == (422, True)


def put_file(site: Campaign, name: str, raw: bytes, alt: str = "", who: str = "lead") -> httpx.Response:
    session = site.sessions[who]

    async def send() -> httpx.Response:
        about = {"cookies": {SESSION_COOKIE: session.token}, "headers": {"X-CSRF-Token": session.csrf_token}}
        transport = httpx.ASGITransport(app=site.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost", **about) as client:
            return await client.post("/api/lead/media", params={"name": name, "alt": alt}, content=raw)

    reply: httpx.Response = run(send())
    return reply


def test_leads_add_files_and_describe_them(campaign: tuple[Campaign, LabelConfig]) -> None:
    """Checked and cleaned as those of a folder; a name is one file; the description is shown where a pair has none."""
    site, _ = campaign
    added = put_file(site, "new/flower.jpg", jpeg(), "a <b>red</b> flower")
    assert added.json() == {
        "name": "new/flower.jpg",
        "new": True,
        "media_type": "image/jpeg",
        "width": 20,
        "height": 40,
    }
    assert put_file(site, "new/flower.jpg", jpeg()).json()["new"] is False
    assert put_file(site, "birds", wav()).json()["media_type"] == "audio/wav"
    taken = put_file(site, "birds", wav(2))
    assert (taken.status_code, "give it another name" in taken.text) == (422, True)
    for name, (_, raw, _reason) in HOSTILE.items():
        if name not in ("an image as a recording", "half a wav"):
            assert put_file(site, "bad", raw).status_code in (413, 422), name
    for name in ("http://pictures.invalid/x.png", "data:image/png;base64,", "n" * 201, ""):
        assert put_file(site, name, png()).status_code == 422, name
    assert put_file(site, "mine", png(), who="one").status_code in (403, 413)
    listed = site.call("lead", "GET", "/api/lead/media").json()
    assert [one["name"] for one in listed["files"]] == [
        "birds",
        "leaf.jpg",
        "model-x.png",
        "model-y.wav",
        "new/flower.jpg",
    ]
    assert listed["limits"] == {"bytes": 20_000_000, "pixels": 40_000_000, "minutes": 30}
    assert site.call("lead", "GET", "/api/lead/media?after=model-y.wav").json()["files"][0]["name"] == "new/flower.jpg"
    assert b"SECRET" not in site.call("one", "GET", f"/api/media/{listed['files'][-1]['sha256']}").content
    row = {"prompt": asked("new/flower.jpg", None), "response_a": "a", "response_b": "b"}
    shown = run(send_rows(site, [row], preview=True)).json()["shown"][0]["messages"][0]["html"]
    assert 'title="a &lt;b&gt;red&lt;/b&gt; flower"' in shown
    assert site.call("lead", "PUT", "/api/lead/media", {"name": "none", "alt": ""}).status_code == 404
    assert site.call("lead", "PUT", "/api/lead/media", {"name": "new/flower.jpg", "alt": "a rose"}).status_code == 200
    assert run(send_rows(site, [row])).json()["new"] == 1
    found = site.call("lead", "GET", "/api/lead/items?text=What is this").json()["items"]
    pages = [
        site.call("lead", "GET", f"/api/lead/items/{one['item_id']}").json()["messages"][0]["html"] for one in found
    ]
    assert sorted('title="a rose"' in page for page in pages) == [False, True]  # the other pair has its own
    assert not verify(site.store).faults


async def send_rows(site: Campaign, rows: list[dict[str, Any]], *, preview: bool = False) -> httpx.Response:
    session = site.sessions["lead"]
    about = {"cookies": {SESSION_COOKIE: session.token}, "headers": {"X-CSRF-Token": session.csrf_token}}
    transport = httpx.ASGITransport(app=site.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost", **about) as client:
        where = {"name": "rows.jsonl", "batch": "", "preview": preview}
        return await client.post(
            "/api/lead/pairs/upload", params=where, content="".join(json.dumps(row) + "\n" for row in rows)
        )


def test_single_answers_have_files_and_keep_them(campaign: tuple[Campaign, LabelConfig], tmp_path: Path) -> None:
    site, config = campaign
    answer: list[dict[str, Any]] = [
        {
            "role": "assistant",
            "content": [{"type": "text", "text": "A leaf:"}, {"type": "image", "image": "model-x.png"}],
        }
    ]
    rows = [{"prompt": asked("leaf.jpg"), "completion": answer, "task": task} for task in ("review", "rate")]
    file = tmp_path / "answers.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    text_only = config.model_copy(update={"answers": str(file), "media": None})
    with pytest.raises(DataError, match="set media to the folder of the files"):
        read_some_answers(text_only)
    with_files = config.model_copy(update={"answers": str(file)})
    assert add_answers(site.store, with_files, read_some_answers(with_files)) == 2
    site.call(
        "one",
        "POST",
        "/api/judgments",
        {"client_id": "p", "pair_id": site.call("one", "GET", "/api/next").json()["pair_id"], "answer": 1},
    )
    reviewed = site.call("one", "GET", "/api/next").json()
    assert (reviewed["task"], reviewed["left"]["text"]) == ("review", "A leaf: [image 1]")
    assert reviewed["left"]["html"].count("data-file='") == 1
    assert "model-x" not in json.dumps(reviewed)
    edited = {"client_id": "r", "pair_id": reviewed["pair_id"], "value": "edit", "edited_text": "x"}
    assert "cannot be edited" in site.call("one", "POST", "/api/judgments", edited).text
    accepted = {"client_id": "r", "pair_id": reviewed["pair_id"], "value": "accept"}
    rated = site.call("one", "POST", "/api/judgments", accepted).json()["next"]
    assert (
        site.call(
            "one", "POST", "/api/judgments", {"client_id": "s", "pair_id": rated["pair_id"], "value": 4}
        ).status_code
        == 200
    )
    folder = tmp_path / "final"
    folder.mkdir()
    site.store.transact(lambda tx: describe_media(tx, "model-x.png", "blue, as a lead wrote"))
    write_labels(site.store, folder, AggregationConfig(), ())
    for name in ("reviews", "ratings"):
        (row,) = map(json.loads, (folder / f"{name}.jsonl").read_text().splitlines())
        assert row["prompt"] == asked("leaf.jpg")
        text, image = answer[0]["content"]
        assert row["completion"][0]["content"] == [text, {**image, "alt": "blue, as a lead wrote"}]
    (demonstration,) = map(json.loads, (folder / "demonstrations.jsonl").read_text().splitlines())
    assert Demonstration.model_validate(demonstration).answers[0].images[0].file == "model-x.png"
    with pytest.raises(DataError, match="takes only text"):
        read_demonstrations(str(folder / "demonstrations.jsonl"), Rules(stage="sft"))  # no stage trains on images


def test_a_corrected_pair_has_its_files_and_a_changed_file_is_found(
    campaign: tuple[Campaign, LabelConfig], tmp_path: Path
) -> None:
    site, config = campaign
    (pair,) = site.store.pairs()
    record = pair.model_dump(mode="json") | {"messages": asked("new.png")}
    refused = site.call("lead", "POST", "/api/lead/pairs/correct", {"pairs": [record]})
    assert (refused.status_code, "new.png: not in the store" in refused.text) == (409, True)
    file = tmp_path / "corrected.jsonl"
    file.write_text(json.dumps(record) + "\n")
    words = ["--pairs", str(file), "--store", config.store_url]
    with pytest.raises(DataError, match=r"new\.png: no such file"):
        correct(words)
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "new.png").write_bytes(png((5, 5)))
    correct([*words, "--media", str(tmp_path / "new")])
    assert [part.file for part in site.store.pairs()[-1].media][:1] == ["new.png"]
    assert not verify(site.store).faults
    with site.store.engine.begin() as connection:
        connection.execute(sa.update(MEDIA_FILES).where(MEDIA_FILES.c.media_type == "image/png").values(content=b"x"))
    assert sum("was changed" in fault for fault in verify(site.store).faults) == 2
