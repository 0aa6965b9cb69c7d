"""nginx with the files of `deploy/`, in front of services. The tests use it too."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import httpx2 as httpx
import trustme
from service import Server, free_port

from msm4sr.errors import InputError

DEPLOY = Path(__file__).resolve().parents[1] / "deploy"
NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")


def replaced(text: str, *pairs: tuple[str, str]) -> str:
    for old, new in pairs:
        assert old in text
        text = text.replace(old, new)
    return text


class Proxy:
    """nginx with the files of `deploy/`, at other ports, and with replacements in nginx.conf.

    Raises InputError if nginx is not installed.
    """

    def __init__(self, folder: Path, services: Sequence[Server], *changes: tuple[str, str]) -> None:
        if NGINX is None:
            raise InputError("nginx is not installed; run apt-get install nginx")
        self.port, self.plain = free_port(), free_port()
        (folder / "logs").mkdir(parents=True)
        authority = trustme.CA()
        certificate = authority.issue_cert("shop.example", "127.0.0.1")
        certificate.private_key_pem.write_to_path(folder / "shop.key")
        for blob in certificate.cert_chain_pems:
            blob.write_to_path(folder / "shop.pem", append=True)
        text = replaced(
            (DEPLOY / "nginx.conf").read_text(),
            ("listen 443", f"listen 127.0.0.1:{self.port}"),
            ("listen 80", f"listen 127.0.0.1:{self.plain}"),
            ("/etc/ssl/msm4sr/", f"{folder}/"),
            ("rate=50r/s", "rate=10000r/s"),  # the callers of a test have one address
            ("worker_processes auto;", f"worker_processes 2; daemon off; pid {folder}/pid; error_log stderr;"),
            (
                "server_tokens off;",
                f"server_tokens off; access_log off; proxy_temp_path {folder}/proxied;"
                f" client_body_temp_path {folder}/bodies;",
            ),
            *changes,
        )
        (folder / "nginx.conf").write_text(text)
        if len(services) == 1:
            upstream = replaced((DEPLOY / "upstream.conf").read_text(), ("127.0.0.1:8000", services[0].address))
        else:
            names = [(f"replica-{number}:8000", one.address) for number, one in enumerate(services, start=1)]
            upstream = replaced((DEPLOY / "upstream.replicas.conf").read_text(), *names)
        (folder / "upstream.conf").write_text(upstream)
        command = [NGINX, "-p", str(folder), "-c", str(folder / "nginx.conf")]
        subprocess.run([*command, "-t"], check=True, capture_output=True)
        with (folder / "log").open("w") as log:
            self.process = subprocess.Popen(command, stderr=log)
        context = ssl.create_default_context()
        authority.configure_trust(context)
        self.context = context
        while not self._listens():
            assert self.process.poll() is None, (folder / "log").read_text()
            time.sleep(0.05)

    def _listens(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port)).close()
            return True
        except OSError:
            return False

    def client(self, host: str = "shop.example") -> httpx.Client:
        """A client that verifies the certificate of `host`, and connects here."""
        return httpx.Client(
            base_url=f"https://127.0.0.1:{self.port}",
            verify=self.context,
            timeout=None,
            headers={"Host": host},
            event_hooks={"request": [lambda request: request.extensions.update(sni_hostname=host)]},
        )

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait()
