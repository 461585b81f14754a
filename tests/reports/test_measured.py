"""The reader of measured tables: what it takes, and that everything else is refused with file and line."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import numpy as np
import pytest

from einsight.reports.measured import COLUMNS, MeasuredError, codes, concatenate, group_ids, read, write

HEADER = "device,framework,kernel,phase,batch,seq_q,seq_kv,heads_q,heads_kv,head_dim,dtype,kv_dtype,window,latency_ms"
ROW = "NVIDIA A100-SXM4-80GB,VLLM 0.14.0,vllm_flash_attn,prefill,2,512,1024,32,8,128,bfloat16,bfloat16,0,0.25"
REFERENCE = Path(os.environ.get("EINSIGHT_REFERENCE", Path(__file__).parents[2].parent / "shared" / "reference")) / "measured"


def table(folder: Path, *rows: str, header: str = HEADER, name: str = "t.csv") -> Path:
    file = folder / name
    file.write_text("\n".join((header, *rows)) + "\n", encoding="utf-8")
    return file


def changed(**fields: object) -> str:
    values = dict(zip(COLUMNS, ROW.split(","), strict=True)) | {k: str(v) for k, v in fields.items()}
    return ",".join(values.values())


def test_a_row_becomes_columns(tmp_path: Path) -> None:
    m = read([table(tmp_path, ROW, changed(phase="decode", seq_q=1, latency_ms="1e-2"))])
    assert len(m) == 2 and m.kernel.tolist() == ["vllm_flash_attn"] * 2 and m.phase.tolist() == ["prefill", "decode"]
    assert (m.batch[0], m.seq_q[0], m.seq_kv[0], m.heads_q[0], m.heads_kv[0], m.head_dim[0]) == (2, 512, 1024, 32, 8, 128)
    assert m.latency_ms.tolist() == [0.25, 0.01]


def test_compressed_files_several_files_and_columns_in_any_order(tmp_path: Path) -> None:
    packed = tmp_path / "t.csv.gz"
    names, values = HEADER.split(",")[::-1], ROW.split(",")[::-1]
    packed.write_bytes(gzip.compress(f"{','.join(names)}\n{','.join(values)}\n".encode()))
    both = read([packed, table(tmp_path, changed(batch=7))])
    assert both.batch.tolist() == [2, 7] and both.device[0] == both.device[1]


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    m = read([table(tmp_path, ROW, changed(latency_ms="125.228479"))])
    for name in ("out.csv", "out.csv.gz"):
        write(tmp_path / name, m, {})
        again = read([tmp_path / name])
        assert all((again.column(c) == m.column(c)).all() for c in COLUMNS)


def test_no_rows_are_no_error(tmp_path: Path) -> None:
    assert len(read([table(tmp_path)])) == 0


REFUSED = [
    (changed(batch="two"), 3, "batch: found 'two'"),
    (changed(batch="0"), 3, "batch: found '0'; expected a whole number of at least 1"),
    (changed(seq_q="1.5"), 3, "seq_q: found '1.5'"),
    (changed(batch="1_0"), 3, "batch: found '1_0'"),
    (changed(window="-1"), 3, "window: found '-1'; expected a whole number of at least 0"),
    (changed(latency_ms="nan"), 3, "latency_ms: found 'nan'"),
    (changed(latency_ms="inf"), 3, "latency_ms: found 'inf'"),
    (changed(latency_ms="0"), 3, "latency_ms: found '0'; expected a time above 0"),
    (changed(latency_ms="1e300"), 3, "latency_ms: found '1e300'; expected a time above 0, below 2^40"),
    (changed(latency_ms=""), 3, "latency_ms: found ''"),
    (changed(heads_kv="5"), 3, "heads_kv: found '5'; expected a divisor of heads_q"),
    (changed(seq_q="2048"), 3, "seq_q: found '2048'; expected at most seq_kv"),
    (changed(phase="training"), 3, "phase: found 'training'; expected prefill or decode"),
    (ROW + ",1", 3, "found 15 fields; expected 14"),
    ("", 3, "found 0 fields"),
]


@pytest.mark.parametrize(("row", "line", "why"), REFUSED, ids=[why for _, _, why in REFUSED])
def test_a_bad_row_names_its_line(tmp_path: Path, row: str, line: int, why: str) -> None:
    file = table(tmp_path, ROW, row, ROW)
    with pytest.raises(MeasuredError) as caught:
        read([file])
    assert f"{file}:{line}: {why}" in str(caught.value)


@pytest.mark.parametrize(
    ("header", "why"),
    [
        (HEADER.replace("window", "windows"), "found unknown column 'windows'"),
        (HEADER.replace(",window", ""), "found no column 'window'"),
        (HEADER + ",batch", "found twice the column 'batch'"),
        ("", "found no column 'device'"),
    ],
)
def test_a_bad_header_is_refused(tmp_path: Path, header: str, why: str) -> None:
    file = table(tmp_path, header=header)
    with pytest.raises(MeasuredError) as caught:
        read([file])
    assert f"{file}:1: {why}" in str(caught.value)


def test_what_is_no_table_is_refused(tmp_path: Path) -> None:
    false_gzip, binary = tmp_path / "t.csv.gz", tmp_path / "b.csv"
    false_gzip.write_text(HEADER, encoding="utf-8")
    binary.write_bytes(b"\xff\xfe\x00")
    for file in (false_gzip, binary):
        with pytest.raises(MeasuredError, match=str(file)):
            read([file])
    with pytest.raises(FileNotFoundError):
        read([tmp_path / "none.csv"])


def test_codes_and_groups_number_in_order_of_appearance() -> None:
    texts = np.array(["b", "a", "b", "c"])
    assert codes(texts)[0] == ("b", "a", "c") and codes(texts)[1].tolist() == [0, 1, 0, 2]
    firsts, number = group_ids([texts, np.array([1.0, 1.0, 2.0, 1.0])])
    assert firsts.tolist() == [0, 1, 2, 3] and number.tolist() == [0, 1, 2, 3]
    firsts, number = group_ids([texts, np.ones(4)])
    assert firsts.tolist() == [0, 1, 3] and number.tolist() == [0, 1, 0, 2]


@pytest.mark.skipif(not REFERENCE.is_dir(), reason=f"no measured tables in {REFERENCE} (set EINSIGHT_REFERENCE)")
def test_the_published_tables_are_read_whole() -> None:
    file = REFERENCE / "a100_sxm-vllm-0.14.0.csv.gz"
    with gzip.open(file, "rt", encoding="utf-8") as text:
        lines = sum(1 for _ in text)
    assert len(concatenate([read([file])])) == lines - 1
