"""Detects audio formats that libsndfile does not support, by the first bytes of a file."""

from __future__ import annotations

HEAD = 64  # bytes that `name_format` needs
_MAGIC = (
    (b"\x1aE\xdf\xa3", "Matroska or WebM"),
    (b"0&\xb2u\x8ef\xcf\x11", "Windows Media (WMA)"),
    (b"MAC ", "Monkey's Audio (APE)"),
    (b"wvpk", "WavPack"),
    (b"MPCK", "Musepack"),
    (b"MP+", "Musepack"),
    (b"TTA1", "True Audio"),
    (b"tBaK", "TAK"),
    (b"ajkg", "Shorten"),
    (b"#!AMR", "AMR"),
    (b".ra\xfd", "RealAudio"),
    (b".RMF", "RealMedia"),
    (b"DSD ", "DSD"),
    (b"FRM8", "DSD"),
    (b"\x0b\x77", "AC-3"),
    (b"\x7f\xfe\x80\x01", "DTS"),
    (b"ADIF", "AAC"),
    (b"FLV\x01", "Flash video"),
)
_CODECS = {0x02: "ADPCM", 0x0160: "WMA", 0x0161: "WMA", 0x0162: "WMA", 0x00FF: "AAC", 0x1610: "AAC", 0x2000: "AC-3"}


def name_format(head: bytes) -> str:
    """Return the name of the unsupported audio format that starts with `head`; "" for any other content."""
    for magic, name in _MAGIC:
        if head.startswith(magic):
            return name
    if head[4:8] == b"ftyp" or (head[4:8] in (b"moov", b"mdat", b"wide") and head[:4] < b"\x01"):
        return "MPEG-4 (AAC or ALAC)"
    if head[:1] == b"\xff" and len(head) > 1 and head[1] & 0xF6 == 0xF0:
        return "AAC"
    if head[:4] == b"OggS":
        packet = head[28:]
        return "Speex in Ogg" if packet.startswith(b"Speex") else "video in Ogg" if b"theora" in packet else ""
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        return "AVI video"
    if head[:4] == b"RIFF" and head[8:16] == b"WAVEfmt ":
        tag = int.from_bytes(head[20:22], "little")
        return f"{_CODECS.get(tag, f'format 0x{tag:04x}')} in WAV" if tag not in (0, 1, 3, 0xFFFE) else ""
    if head[:4] == b"caff" and head[8:12] == b"desc":
        return f"{_text(head[28:32])} in CAF"
    if head[:4] == b"FORM" and head[8:12] == b"AIFC" and b"COMM" in head:
        start = head.index(b"COMM") + 26
        return f"{_text(head[start : start + 4])} in AIFF-C"
    return ""


def _text(code: bytes) -> str:
    return repr(code.decode("latin-1").strip())
