"""A server on this machine that speaks real TLS with a certificate of its own and answers as a test tells it to."""

import contextlib
import http.server
import ssl
import threading

import trustme


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        """A client that hangs up is part of the tests."""


@contextlib.contextmanager
def serving(answer, folder=None):
    """Runs a server and yields its base URL, "https://127.0.0.1:PORT", or "http://..." without `folder`.

    Args:
      answer: function(handler) that answers every GET.
      folder: gets ca.pem, which a client has to trust.
    """

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            answer(self)

        def log_message(self, *arguments):
            pass

    server = _Server(("127.0.0.1", 0), Handler)
    if folder is not None:
        authority = trustme.CA()
        authority.cert_pem.write_to_path(folder / "ca.pem")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("127.0.0.1").configure_cert(context)
        # The handshake is each connection's own, so that one client cannot hold up the others.
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"{'http' if folder is None else 'https'}://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def send(content, *, length=True, announced=None):
    """An answer: the content, with its length, another one, or none."""

    def answer(handler):
        handler.send_response(200)
        if length:
            handler.send_header("Content-Length", str(len(content) if announced is None else announced))
        handler.end_headers()
        handler.wfile.write(content)

    return answer


def redirect(url, code=302):
    def answer(handler):
        handler.send_response(code)
        handler.send_header("Location", url)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    return answer
