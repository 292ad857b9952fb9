"""Certificates for tests, made by the openssl command."""

import shutil
import subprocess

import pytest

needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl command to make certificates with")


def make_certificate(folder, name, ca=None):
    """A CA's certificate, or one for 127.0.0.1 signed by `ca`; (cert, key)."""
    cert, key = folder / f"{name}.crt", folder / f"{name}.key"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
               "-days", "2", "-subj", f"/CN={name}", "-keyout", str(key), "-out", str(cert)]
    if ca is None:
        command += ["-addext", "basicConstraints=critical,CA:TRUE"]
    else:
        command += ["-addext", "subjectAltName=IP:127.0.0.1", "-addext", "basicConstraints=critical,CA:FALSE",
                    "-CA", str(ca[0]), "-CAkey", str(ca[1])]
    subprocess.run(command, check=True, capture_output=True)
    return cert, key
