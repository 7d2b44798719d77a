"""Decoding the images of Parquet files, on all cores and with bounded memory."""

import io
import json
import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from gradwise.errors import UserError
from gradwise.lab.data.catalog import ImageSet
from gradwise.lab.data.forms import MAX_ROWS, Split, join

_IMAGE_COLUMNS = ("img", "image")
_FORMATS = ("PNG", "JPEG", "WEBP")
# Images of at most 32x32 pixels have a few kilobytes in any format.
_MAX_ENCODED = 2**20
# Rows decoded by one task: long enough to hide the hand-over, short enough to share evenly.
_CHUNK = 256


def read_split(files: tuple[Path, ...], known: ImageSet) -> Split:
    """Read the Parquet files of one split, decoding on all cores.

    Args:
        files: the files in the order of their rows.
        known: the set they belong to.

    Returns:
        The decoded images and their labels.

    Raises:
        UserError: a file is damaged, lacks a column, or has a row that does not fit; names the
            file and the row.
    """
    workers = min(8, os.cpu_count() or 1)
    with ThreadPoolExecutor(workers, thread_name_prefix="gradwise-decode") as pool:
        try:
            return join([part for path in files for part in _read_file(path, known, pool, workers)])
        except UserError:
            raise
        except Exception as error:
            # Arrow fails on damaged files in many ways, and says why in its first line.
            reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
            raise UserError(
                f"cannot read the Parquet files of {known.name} in {files[0].parent}: {reason}"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _read_file(
    path: Path, known: ImageSet, pool: ThreadPoolExecutor, workers: int
) -> Iterator[Split]:
    """Decode one file in chunks, in order, with a bounded number of them under way."""
    # The system's own words on a file that may not be opened say more than Arrow's.
    path.open("rb").close()
    try:
        file = pq.ParquetFile(path)
    except Exception as error:
        raise UserError(f"cannot read {path}: it is truncated or no Parquet file") from error
    with file:
        rows = file.metadata.num_rows
        if not 1 <= rows <= MAX_ROWS:
            raise UserError(f"expected 1 to {MAX_ROWS} images in {path}, got {rows}")
        image_column, encoded = _image_column(file.schema_arrow, path)
        _check_label_column(file.schema_arrow, known, path)
        pending: deque[Future[Split]] = deque()
        first = 0
        for batch in file.iter_batches(_CHUNK, columns=[encoded, known.label_column]):
            images = batch.column(image_column)
            if pa.types.is_struct(images.type):
                images = images.field("bytes")
            labels = _labels(batch.column(known.label_column), known, path, first)
            values = images.to_pylist()
            pending.append(pool.submit(_decode_chunk, values, labels, known, path, first))
            first += len(values)
            if len(pending) > 4 * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
        if first != rows:
            raise UserError(f"{path} claims {rows} images and holds {first}")


def _image_column(schema: pa.Schema, path: Path) -> tuple[str, str]:
    """The image column's name, and the path of the encoded bytes in it."""
    for name in _IMAGE_COLUMNS:
        if name in schema.names:
            kind = schema.field(name).type
            if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
                return name, name
            if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
                return name, f"{name}.bytes"
            raise UserError(f"expected encoded images in column {name} of {path}, got {kind}")
    raise UserError(
        f"expected a column {' or '.join(_IMAGE_COLUMNS)} in {path}, "
        f"got {', '.join(schema.names[:20])}"
    )


def _check_label_column(schema: pa.Schema, known: ImageSet, path: Path) -> None:
    if known.label_column not in schema.names:
        raise UserError(
            f"expected a column {known.label_column} for {known.name} in {path}, "
            f"got {', '.join(schema.names[:20])}"
        )
    kind = schema.field(known.label_column).type
    if not pa.types.is_integer(kind):
        raise UserError(
            f"expected whole numbers in column {known.label_column} of {path}, got {kind}"
        )


def _labels(column: pa.Array, known: ImageSet, path: Path, first: int) -> NDArray[np.int64]:
    for offset, value in enumerate(column.to_pylist()):
        if value is None or not 0 <= value < known.num_classes:
            raise UserError(
                f"expected labels 0 to {known.num_classes - 1} in {path}, "
                f"got {'none' if value is None else value} in row {first + offset}"
            )
    labels: NDArray[np.int64] = column.to_numpy(zero_copy_only=False).astype(np.int64)
    return labels


def _decode_chunk(
    encoded: list[bytes | None],
    labels: NDArray[np.int64],
    known: ImageSet,
    path: Path,
    first: int,
) -> Split:
    channels, height, width = known.shape
    pixels = []
    for offset, data in enumerate(encoded):
        try:
            pixels.append(_decode(data, known))
        except UserError as error:
            raise UserError(
                f"cannot use the image in row {first + offset} of {path}: {error}"
            ) from error
    flat = np.frombuffer(b"".join(pixels), np.uint8)
    images = flat.reshape(-1, height, width, channels).transpose(0, 3, 1, 2)
    return Split(np.ascontiguousarray(images), labels)


def _decode(data: bytes | None, known: ImageSet) -> bytes:
    """One encoded image to `H * W * C` bytes, measured before it is decoded."""
    channels, height, width = known.shape
    mode = "RGB" if channels == 3 else "L"
    if not data:
        raise UserError("it is missing")
    if len(data) > _MAX_ENCODED:
        raise UserError(f"expected at most {_MAX_ENCODED} bytes, got {len(data)}")
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            if image.size != (width, height):
                raise UserError(
                    f"expected {width}x{height} pixels, got {image.size[0]}x{image.size[1]}"
                )
            if image.mode == mode:
                return image.tobytes()
            if image.mode not in ("1", "L", "P", "RGB", "RGBA"):
                raise UserError(f"expected mode {mode}, got {image.mode}")
            # Programs that shrink images store grey or few-coloured ones in other modes.
            plain = image.convert("RGBA") if image.mode == "P" else image
            return plain.convert(mode).tobytes()
    except UserError:
        raise
    except Exception as error:
        # Decoders of hostile bytes fail in many ways; each means that this is no image.
        raise UserError("it is truncated or no PNG, JPEG or WebP image") from error


def class_names(path: Path, known: ImageSet) -> tuple[str, ...]:
    """The names that the `datasets` library leaves in the schema, if they are there and fit."""
    try:
        notes = pq.read_schema(path).metadata or {}
        info = json.loads(notes.get(b"huggingface", b"{}"))
        names = info["info"]["features"][known.label_column]["names"]
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError, RecursionError):
        return ()
    if not isinstance(names, list) or len(names) != known.num_classes:
        return ()
    return tuple(names) if all(isinstance(name, str) for name in names) else ()
