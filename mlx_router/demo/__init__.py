"""`mlx-router demo`: the whole system once, on the embedded default, as a story that checks itself.

prepare  a router version, the demo base, its adapters      stage  a real `serve` on free ports
client   the gateway as a client sees it                    story  what is asked, shown and claimed
"""
