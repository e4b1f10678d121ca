"""Images and recordings of a campaign: checked, cleaned, and copied into the label store by their hash.

The files are untrusted. Their bytes decide their kind, never their name. Images are decoded within limits and written anew,
which removes EXIF and appended data; recordings lose ID3 tags. SVG, which can run scripts, is not accepted.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import warnings
import wave
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

from labeling_ui.database.event_log import Transaction
from labeling_ui.store.pairs.media import MediaFile, MediaType, describe_media, keep_media, known_media
from labeling_ui.store.store import Store
from tiebreak.errors import DataError, counted
from tiebreak.records import Pair

MAX_BYTES = 20_000_000
MAX_PIXELS = 40_000_000
MAX_FRAMES = 300
MAX_FRAME_PIXELS = 400_000_000
"""Of all frames of a moving image."""
MAX_AUDIO_SECONDS = 1_800
_IMAGE_FORMATS: dict[str, MediaType] = {
    "PNG": "image/png",
    "JPEG": "image/jpeg",
    "WEBP": "image/webp",
    "GIF": "image/gif",
}


class BadMediaError(ValueError):
    """A file that is not shown; the message says why."""


class NotThatKindError(BadMediaError):
    """A file in none of the accepted image or audio formats."""


@dataclass(frozen=True)
class MediaConfig:
    """Where a campaign's files are, and whether each needs an alternative text."""

    folder: Path | None
    require_alt: bool = False


def add_media(store: Store, pairs: Sequence[Pair], config: MediaConfig) -> int:
    """Copy the files of these pairs into the store; returns how many parts have no alternative text.

    Raises:
        DataError: with every file that is missing, too large, of another kind, or changed since it was added.
    """
    parts = [(pair.id, part) for pair in pairs for part in pair.media]
    faults = [f"{pair_id}: {part.mark} has no alt text" for pair_id, part in parts if not part.alt]
    without = len(faults)
    if not config.require_alt:
        faults.clear()
    names = list(dict.fromkeys((part.file or "", part.type) for _, part in parts))
    with store.reading() as connection:
        there = known_media(connection, [name for name, _ in names])
    for name, kind in names:
        try:
            raw = _read(name, config.folder)
        except BadMediaError as error:
            if name not in there:  # the store's copy counts, whether or not the file is still there
                faults.append(f"{_short(name)}: {error}")
            continue
        try:
            source = hashlib.sha256(raw).hexdigest()
            if name not in there:
                keep = partial(keep_media, name=name, source_sha256=source, file=clean(raw, kind))
                store.transact(keep)
            elif there[name] != source:
                raise BadMediaError("has changed since it was added: give the new file another name")
        except BadMediaError as error:
            faults.append(f"{_short(name)}: {error}")
    if faults:
        raise DataError(f"media: {counted(len(faults), 'error')}", faults)
    return without


def _short(name: str) -> str:
    return f"{name[:40]}…" if name.startswith("data:") else name


def _read(name: str, folder: Path | None) -> bytes:
    if name.startswith("data:"):
        return _decode(name)
    if not name:
        raise BadMediaError("a placeholder without a file")
    if "://" in name:
        raise BadMediaError("an address: files are never fetched; put it into the media folder, and its name here")
    if folder is None:
        raise BadMediaError("set media to the folder of the files")
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise BadMediaError(f"is outside the media folder {folder}")
    try:
        if path.stat().st_size > MAX_BYTES:
            raise BadMediaError(f"has {path.stat().st_size:,} bytes: at most {MAX_BYTES:,}")
        return path.read_bytes()
    except (OSError, ValueError) as error:
        raise BadMediaError(f"cannot be read in {folder}: {getattr(error, 'strerror', error)}") from error


def _decode(url: str) -> bytes:
    if len(url) > MAX_BYTES * 4 // 3 + 100:
        raise BadMediaError(f"has more than {MAX_BYTES:,} bytes")
    head, _, body = url.partition(",")
    try:
        return base64.b64decode(body, validate=True) if head.endswith(";base64") else body.encode()
    except binascii.Error as error:
        raise BadMediaError(f"is no base64: {error}") from error


# --- what a file is, and what of it is shown ---


def clean(raw: bytes, kind: str) -> MediaFile:
    """A file as it is shown.

    Args:
        kind: `image` or `audio`.

    Raises:
        BadMediaError: it is something else, or beyond the limits.
    """
    if len(raw) > MAX_BYTES:
        raise BadMediaError(f"has {len(raw):,} bytes: at most {MAX_BYTES:,}")
    return _clean_image(raw) if kind == "image" else _clean_audio(raw)


def clean_either(raw: bytes) -> MediaFile:
    """An image or a recording, by its bytes.

    Raises:
        BadMediaError: it is neither, or beyond the limits.
    """
    kinds = []
    for kind in ("image", "audio"):
        try:
            return clean(raw, kind)
        except NotThatKindError as error:
            kinds.append(str(error))
    raise BadMediaError(" and ".join(kinds))


def _clean_image(raw: bytes) -> MediaFile:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's own limit of pixels: ours is stricter, and refuses
            image = Image.open(io.BytesIO(raw), formats=tuple(_IMAGE_FORMATS))
            frames = getattr(image, "n_frames", 1)
            pixels = image.width * image.height
            if pixels > MAX_PIXELS or frames > MAX_FRAMES or pixels * frames > MAX_FRAME_PIXELS:
                raise BadMediaError(
                    f"has {image.width:,} × {image.height:,} pixels in {counted(frames, 'frame')}: too many"
                )
            return _written_anew(image, image.format or "", frames)
    except BadMediaError:
        raise
    except Image.DecompressionBombError:
        raise BadMediaError(f"has too many pixels: at most {MAX_PIXELS:,}") from None
    except UnidentifiedImageError:
        raise NotThatKindError("is no PNG, JPEG, WebP or GIF image") from None
    except (OSError, ValueError, SyntaxError, EOFError, MemoryError) as error:
        raise BadMediaError(f"is a damaged image: {error}") from error


def _written_anew(image: Image.Image, kind: str, frames: int) -> MediaFile:
    """The pixels alone: no EXIF, comments, colour profiles or bytes after the end. EXIF's rotation is applied first."""
    out = io.BytesIO()
    if frames > 1 and kind in ("GIF", "WEBP"):
        image.save(out, kind, save_all=True, exif=b"", comment=b"", icc_profile=None)
        size = image.size
    else:
        upright = ImageOps.exif_transpose(image)
        size = upright.size
        bare = upright.convert("RGB") if kind == "JPEG" else upright.convert("RGBA" if _has_alpha(upright) else "RGB")
        bare.info.clear()
        bare.save(out, kind, **({"quality": 95} if kind == "JPEG" else {"lossless": True} if kind == "WEBP" else {}))
    return MediaFile(_IMAGE_FORMATS[kind], out.getvalue(), *size)


def _has_alpha(image: Image.Image) -> bool:
    return image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info


def _clean_audio(raw: bytes) -> MediaFile:
    kind, body = _audio_kind(raw)
    seconds = _SECONDS[kind](body)
    if seconds is not None and seconds > MAX_AUDIO_SECONDS:
        raise BadMediaError(f"lasts {seconds / 60:.0f} minutes: at most {MAX_AUDIO_SECONDS // 60}")
    return MediaFile(kind, body)


def _audio_kind(raw: bytes) -> tuple[MediaType, bytes]:
    """The kind by its first bytes, and the bytes without ID3 tags."""
    body = _without_id3(raw)
    if body[:4] == b"RIFF" and body[8:12] == b"WAVE":
        return "audio/wav", body
    if body[:4] == b"OggS":
        return "audio/ogg", body
    if body[:4] == b"fLaC":
        return "audio/flac", body
    if len(body) > 4 and body[0] == 0xFF and body[1] & 0xE6 == 0xE2:  # a frame of MPEG audio, layer III
        return "audio/mpeg", body
    raise NotThatKindError("is no WAV, MP3, Ogg or FLAC recording")


def _without_id3(raw: bytes) -> bytes:
    if raw[:3] == b"ID3" and len(raw) > 10:
        size = sum((byte & 0x7F) << shift for byte, shift in zip(raw[6:10], (21, 14, 7, 0), strict=True))
        raw = raw[10 + size :].lstrip(b"\0")
    return raw[:-128] if raw[-128:-125] == b"TAG" else raw


def _wav_seconds(body: bytes) -> float:
    try:
        with wave.open(io.BytesIO(body)) as sound:
            return float(sound.getnframes() / sound.getframerate())
    except (wave.Error, EOFError, ZeroDivisionError) as error:
        raise BadMediaError(f"is a damaged WAV recording: {error}") from error


def _flac_seconds(body: bytes) -> float:
    """From STREAMINFO (RFC 9639, 8.2): 20 bits of sample rate, 36 of the number of samples."""
    if len(body) < 42 or body[4] & 0x7F != 0:
        raise BadMediaError("is a damaged FLAC recording")
    packed = int.from_bytes(body[18:26])
    rate, samples = packed >> 44, packed & (2**36 - 1)
    return samples / rate if rate else 0.0


def _ogg_seconds(body: bytes) -> float | None:
    """From the last page's position, in samples of 48 kHz (Opus) or of the stream's rate (Vorbis)."""
    last = body.rfind(b"OggS")
    position = int.from_bytes(body[last + 6 : last + 14], "little")
    if b"OpusHead" in body[:200]:
        return position / 48_000
    begin = body[:200].find(b"\x01vorbis")
    rate = int.from_bytes(body[begin + 12 : begin + 16], "little") if begin >= 0 else 0
    return position / rate if rate else None


_MP3_KBITS = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 0)


def _mp3_seconds(body: bytes) -> float | None:
    """By the first frame's bit rate: a bound is enough here."""
    kbits = _MP3_KBITS[body[2] >> 4]
    return len(body) * 8 / (1_000 * kbits) if kbits else None


_SECONDS: dict[MediaType, Callable[[bytes], float | None]] = {
    "audio/wav": _wav_seconds,
    "audio/flac": _flac_seconds,
    "audio/ogg": _ogg_seconds,
    "audio/mpeg": _mp3_seconds,
}


def upload_media(store: Store, name: str, raw: bytes, alt: str) -> tuple[MediaFile, bool]:
    """Keep a file under a name; returns it as it is shown, and whether it is new. A description replaces the one there.

    Raises:
        BadMediaError: it is neither an image nor a recording, or beyond the limits; or another file has this name.
    """
    if "://" in name or name.startswith("data:"):
        raise BadMediaError("has an address for a name: rename it")
    source = hashlib.sha256(raw).hexdigest()
    with store.reading() as connection:
        there = known_media(connection, [name])
    if there.get(name, source) != source:
        raise BadMediaError("is not the file that the store has under this name: give it another name")
    file = clean_either(raw)

    def keep(tx: Transaction) -> None:
        if name not in there:
            keep_media(tx, name, source, file, alt)
        elif alt:
            describe_media(tx, name, alt)

    store.transact(keep)
    return file, name not in there


def refuse_missing_media(store: Store, pairs: Iterable[Pair]) -> None:
    """Refuse pairs with files that the store does not have.

    Raises:
        DataError: with every such file.
    """
    if missing := missing_media(store, pairs):
        faults = [f"{_short(name)}: no such file in the store" for name in missing]
        raise DataError(f"media: {counted(len(faults), 'error')}: name the folder of the files", faults)


def missing_media(store: Store, pairs: Iterable[Pair]) -> list[str]:
    """Names of files that pairs refer to and the store does not have."""
    names = list(dict.fromkeys(part.file or "" for pair in pairs for part in pair.media))
    with store.reading() as connection:
        there = known_media(connection, names)
    return [name for name in names if name not in there]
