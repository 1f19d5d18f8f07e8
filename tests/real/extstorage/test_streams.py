# SPDX-License-Identifier: BSD-2-Clause
"""Images from compressed files, standard input and URLs, with the real programs and a real server on loopback."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import hashlib
import http.server
import os
import ssl
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest

from extstorage import fetch, streams
from extstorage.confined import confined
from extstorage.images import import_from
from extstorage.names import BLOCK
from extstorage.progress import untold
from extstorage.session import Session
from extstorage.streams import Given, Terms
from ganeti_plugin.errors import Error, InputError, StateError
from ganeti_plugin.run import spawn
from tests.datapath.memory_store import MemoryStore

pytestmark = pytest.mark.timeout(120)

MIB = 1 << 20
SIZE = 2 * BLOCK + MIB + 5 * 512
TERMS = Terms(limit=64 << 20, networks=["127.0.0.0/8"])
PACKERS = {"gz": ["gzip", "-c"], "bz2": ["bzip2", "-c"], "xz": ["xz", "-0c"], "zst": ["zstd", "-cq"]}


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture(scope="module")
def disk(folder: Path) -> Path:
    path = folder / "disk.raw"
    path.write_bytes(os.urandom(MIB) + bytes(2 * BLOCK - MIB) + os.urandom(SIZE - 2 * BLOCK))
    return path


@pytest.fixture(scope="module", params=PACKERS)
def packed(request: pytest.FixtureRequest, disk: Path) -> Path:
    path = disk.with_suffix(f".raw.{request.param}")
    with path.open("wb") as stream:
        subprocess.run([*PACKERS[request.param], disk], stdout=stream, check=True)
    return path


def taken(given: Given, terms: Terms = TERMS) -> bytes:
    """Import it, and read the image."""
    store = MemoryStore()
    try:
        with streams.opened(given, terms) as source:
            import_from(store, "image", source, {}, untold)
    except BaseException:
        assert not store.exists("image")
        raise
    session = Session(store, "image")
    buffer = bytearray(session.size)
    session.readinto(memoryview(buffer), 0)
    return bytes(buffer)


def refused(given: Given, terms: Terms = TERMS) -> str:
    with pytest.raises(InputError) as caught:
        taken(given, terms)
    return str(caught.value)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


class TestFiles:
    def test_packed(self, packed: Path, disk: Path) -> None:
        assert taken(Given(str(packed), sha256=sha256(packed).upper())) == disk.read_bytes()

    def test_cut_short(self, packed: Path, folder: Path) -> None:
        short = folder / f"short{packed.suffix}"
        short.write_bytes(packed.read_bytes()[:-100])
        assert "can't be unpacked with" in refused(Given(str(short)))

    def test_with_something_behind(self, packed: Path, folder: Path) -> None:
        long = folder / f"long{packed.suffix}"
        long.write_bytes(packed.read_bytes() + b"something else")
        assert "can't be unpacked with" in refused(Given(str(long)))

    def test_larger_than_the_limit(self, packed: Path) -> None:
        """H21: it stops at the first byte too many, packed or unpacked."""
        assert "the limit (image_limit)" in refused(Given(str(packed)), TERMS._replace(limit=2 * BLOCK))
        assert "the limit (image_limit)" in refused(Given(str(packed)), TERMS._replace(limit=MIB))

    def test_declared_something_else(self, packed: Path) -> None:
        """H08: what is packed is no disk."""
        assert "carries the signature of" in refused(Given(str(packed), compression="none"))
        other = "xz" if packed.suffix != ".xz" else "gzip"
        assert f"can't be unpacked with {other}" in refused(Given(str(packed), compression=other))

    def test_a_wrong_digest(self, disk: Path) -> None:
        """H28."""
        assert "is not what it should be" in refused(Given(str(disk), sha256="0" * 64))
        assert "64 hexadecimal digits" in refused(Given(str(disk), sha256="0"))
        assert taken(Given(str(disk), sha256=sha256(disk))) == disk.read_bytes()

    def test_packed_twice(self, disk: Path, folder: Path) -> None:
        twice = folder / "twice.gz"
        twice.write_bytes(gzip.compress(gzip.compress(disk.read_bytes())))
        assert "carries the signature of gzip" in refused(Given(str(twice)))

    def test_many_members_are_one_stream(self, disk: Path, folder: Path) -> None:
        many = folder / "many.gz"
        data = disk.read_bytes()
        many.write_bytes(b"".join(gzip.compress(data[at : at + BLOCK], 1) for at in range(0, SIZE, BLOCK)))
        assert taken(Given(str(many))) == data

    def test_a_bomb(self, folder: Path) -> None:
        """H21, H22: a gibibyte of zeros in a few bytes, and a window of two gibibytes."""
        bomb, window = folder / "bomb.zst", folder / "window.zst"
        with bomb.open("wb") as stream:
            subprocess.run("head -c 1G /dev/zero | zstd -cq", shell=True, stdout=stream, check=True)
        assert bomb.stat().st_size < 1 << 20
        assert "the limit (image_limit)" in refused(Given(str(bomb)))
        with window.open("wb") as stream:
            subprocess.run("head -c 1M /dev/urandom | zstd -cq --long=31", shell=True, stdout=stream, check=True)
        assert "can't be unpacked with zstd" in refused(Given(str(window)))

    def test_too_slow_to_unpack(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """H22; the kernel kills it, which unshare(1) has its own words for."""
        slow = folder / "slow.bz2"
        slow.write_bytes(bz2.compress(os.urandom(MIB)) * 40)
        monkeypatch.setattr("extstorage.confined.seconds", lambda _size: 1)
        assert "s of CPU time, which image_limit decides" in refused(Given(str(slow)))

    def test_a_container_in_disguise(self, disk: Path, folder: Path) -> None:
        """H08, H09: judged by its head and by its tail, although nobody can look at a stream twice."""
        head, tail = folder / "head.gz", folder / "tail.gz"
        data = disk.read_bytes()
        head.write_bytes(gzip.compress(b"QFI\xfb\0\0\0\x03" + data[8:]))
        tail.write_bytes(gzip.compress(data[:-512] + b"conectix" + bytes(504)))
        assert "carries the signature of qcow2" in refused(Given(str(head)))
        assert "carries the signature of" in refused(Given(str(tail)))

    @pytest.mark.parametrize("length", [0, 100, 513])
    def test_a_length_that_no_disk_has(self, folder: Path, length: int) -> None:
        odd = folder / "odd.gz"
        odd.write_bytes(gzip.compress(b"x" * length))
        assert "the image is refused" in refused(Given(str(odd)))

    def test_qcow2_in_a_stream(self, disk: Path, folder: Path) -> None:
        """It is read here and there, so it is unpacked to a file first, and is judged there."""
        qcow2, backed = folder / "disk.qcow2", folder / "backed.qcow2"
        subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", disk, qcow2], check=True)
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", disk, "-F", "raw", backed], check=True)
        for path in (qcow2, backed):
            subprocess.run(["gzip", "-f", path], check=True)
        assert taken(Given(f"{qcow2}.gz", format="qcow2")) == disk.read_bytes()
        assert "the image is refused" in refused(Given(f"{backed}.gz", format="qcow2"))
        assert not list(streams.SPOOL.glob("snf-archipelago-spool-*"))
        assert "unpacks to more than" in refused(Given(f"{qcow2}.gz", format="qcow2"), TERMS._replace(limit=MIB))
        # H21: a small file that describes a large disk.
        large = folder / "large.qcow2"
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", large, "1T"], check=True)
        subprocess.run(["gzip", "-kf", large], check=True)
        assert "above the limit" in refused(Given(f"{large}.gz", format="qcow2"))


def test_what_reads_hostile_bytes_has_limits_and_nothing_else() -> None:
    """H22, H23: processor time, memory and files; another user without any right, and no network."""
    show = "cat /proc/self/limits /proc/self/status; readlink /proc/self/ns/net"
    process = spawn([*confined(1 << 40), "sh", "-c", show], stdout=subprocess.PIPE)
    text, _ = process.communicate(timeout=30)
    said = " ".join(text.decode().split())
    for fact in (
        *("Max cpu time 265744 265744", "Max address space 4294967296 4294967296"),
        *("Max file size 0 0", "Max core file size 0 0"),
        *("Uid: 65534 65534 65534 65534", "Gid: 65534 65534 65534 65534", "NoNewPrivs: 1"),
        *(f"Cap{kind}: {'0' * 16}" for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb")),
    ):
        assert fact in said, fact
    assert said.split()[-1] != os.readlink("/proc/self/ns/net")


def test_standard_input(disk: Path) -> None:
    saved = os.dup(0)
    try:
        with disk.open("rb") as stream:
            os.dup2(stream.fileno(), 0)
        assert taken(Given("-")) == disk.read_bytes()
    finally:
        os.dup2(saved, 0)
        os.close(saved)


class Handler(http.server.SimpleHTTPRequestHandler):
    """Files, and what servers do wrong."""

    protocol_version = "HTTP/1.1"
    seen: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        type(self).seen.append(self.path)
        path, _, query = self.path.partition("?")
        if path == "/away":
            self.send_response(302)
            self.send_header("Location", query)
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif path == "/short":
            self.send_response(200)
            self.send_header("Content-Length", "4096")
            self.end_headers()
            self.wfile.write(b"x" * 512)
            self.close_connection = True
        elif path == "/endless":
            self.send_response(200)
            self.end_headers()
            with contextlib.suppress(OSError):
                while True:
                    self.wfile.write(bytes(1 << 16))
        else:
            super().do_GET()

    def log_message(self, *_arguments: object) -> None:
        """Nobody wants to read it."""


@pytest.fixture(scope="module")
def port(folder: Path) -> Iterator[int]:
    def handler(*arguments: object) -> Handler:
        return Handler(*arguments, directory=str(folder))  # type: ignore[arg-type] # the server knows what it gives

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


@pytest.fixture
def terms(port: int) -> Terms:
    return TERMS._replace(hosts=[f"127.0.0.1:{port}"])


class TestUrls:
    def test_fetched(self, disk: Path, port: int, terms: Terms) -> None:
        given = Given(f"http://127.0.0.1:{port}/disk.raw?token=geheim", sha256=sha256(disk))
        assert taken(given, terms) == disk.read_bytes()

    def test_fetched_and_unpacked(self, packed: Path, disk: Path, port: int, terms: Terms) -> None:
        given = Given(f"http://127.0.0.1:{port}/{packed.name}", sha256=sha256(packed))
        assert taken(given, terms) == disk.read_bytes()

    def test_redirects_are_judged_anew(self, disk: Path, port: int, terms: Terms) -> None:
        """H50, H51: to a host that is not listed, to an address inside, to a file, in a circle."""
        here = f"http://127.0.0.1:{port}"
        digest = sha256(disk)
        assert taken(Given(f"{here}/away?/disk.raw", sha256=digest), terms) == disk.read_bytes()
        seen = len(Handler.seen)
        for target, reason in (
            (f"http://localhost:{port}/disk.raw", "its host is not listed"),
            ("file:///etc/shadow", "there are http and https"),
            (f"http://ann:geheim@127.0.0.1:{port}/disk.raw", "a user name or password"),
        ):
            message = refused(Given(f"{here}/away?{target}", sha256=digest), terms)
            assert reason in message
            assert "geheim" not in message
        assert len(Handler.seen) == seen + 3
        inside = terms._replace(networks=["10.0.0.0/8"])
        assert "no public address" in refused(Given(f"{here}/disk.raw", sha256=digest), inside)
        with pytest.raises(StateError, match="leads on more than"):
            taken(Given(f"{here}/away?/away?/away", sha256=digest)._replace(place=f"{here}/away?/away"), terms)

    @pytest.mark.parametrize(
        ("path", "reason"),
        [("short", "ends after 512 of 4096 bytes"), ("nothing", "answers 404"), ("endless", "the limit is|more than")],
    )
    def test_what_servers_do_wrong(self, port: int, terms: Terms, path: str, reason: str) -> None:
        """H24: too short, not there, without end."""
        with pytest.raises(Error, match=reason):
            taken(Given(f"http://127.0.0.1:{port}/{path}", sha256="0" * 64), terms)

    def test_too_slow(self, port: int, terms: Terms, monkeypatch: pytest.MonkeyPatch) -> None:
        """H24: less than the rate for a while."""
        monkeypatch.setattr(fetch, "_WINDOW", 0.0)
        monkeypatch.setattr(fetch, "MINIMUM_RATE", 1 << 50)
        job = fetch.Job(f"http://127.0.0.1:{port}/disk.raw", terms.hosts, terms.networks, True, terms.limit)
        with open(os.devnull, "wb") as nothing, pytest.raises(fetch.FetchError, match="slower than"):
            fetch.fetch(job, nothing.fileno())

    def test_no_digest_no_plain_http(self, port: int, terms: Terms) -> None:
        assert "needs a digest" in refused(Given(f"http://127.0.0.1:{port}/disk.raw"), terms)


def test_https(disk: Path, folder: Path) -> None:
    """H53: a certificate that nobody vouches for is refused; one that somebody does is fine without a digest."""
    certificate, key = folder / "certificate", folder / "key"
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    files: list[str | Path] = ["-keyout", key, "-out", certificate]
    command: list[str | Path] = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    subprocess.run([*command, *files, *subject], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)

    def handler(*arguments: object) -> Handler:
        return Handler(*arguments, directory=str(folder))  # type: ignore[arg-type] # the server knows what it gives

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        where = f"localhost:{server.server_port}"
        job = fetch.Job(f"https://{where}/disk.raw", [where], TERMS.networks, False, TERMS.limit)
        with tempfile.TemporaryFile() as output:
            with pytest.raises(fetch.FetchError, match="TLS failed"):
                fetch.fetch(job, output.fileno())
            fetch.fetch(job, output.fileno(), ssl.create_default_context(cafile=str(certificate)))
            output.seek(0)
            assert output.read() == disk.read_bytes()
        server.shutdown()
