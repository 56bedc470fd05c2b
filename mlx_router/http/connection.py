"""One client connection of our servers."""

from __future__ import annotations

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from mlx_router.http.head import HeadWithBody


class Connection(HttpToolsProtocol):
    """uvicorn's HTTP/1.1 protocol, which answers a request that offers an upgrade as if it did not (RFC 9110, 7.8).

    Java's HttpClient offers h2c with every first request. httptools then passes over the body and leaves it to the
    caller as bytes of the other protocol; here head and body are read again without the offer.
    """

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        while data:
            try:
                self.parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as upgrade:
                if not self._offers_upgrade() or self.transport.is_closing():
                    return
                data = self._plain_head() + data[upgrade.args[0] :]
            except httptools.HttpParserError:
                self.send_400_response("Invalid HTTP request received.")
                return

    def on_headers_complete(self) -> None:
        if self._offers_upgrade():
            return
        super().on_headers_complete()
        # To HEAD no body follows, and 100 Continue is not to wait.
        if not self.expect_100_continue and self.parser.get_method() != b"HEAD":
            self.cycle.transport = HeadWithBody(self.transport)

    def on_message_complete(self) -> None:
        if not self._offers_upgrade():
            super().on_message_complete()

    def _offers_upgrade(self) -> bool:
        """CONNECT is not an offer: without a tunnel there is no request."""
        return bool(self.parser.should_upgrade()) and self.parser.get_method() != b"CONNECT"

    def _plain_head(self) -> bytes:
        """The head of the request without its offer."""
        method, version = self.parser.get_method(), self.parser.get_http_version().encode()
        lines = [b"%b %b HTTP/%b" % (method, self.url, version)]
        lines += [b"%b: %b" % pair for pair in self.headers if pair[0] != b"upgrade"]
        return b"\r\n".join(lines) + b"\r\n\r\n"
