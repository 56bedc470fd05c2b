"""Starting processes, keeping them alive, stopping them. Never imports mlx: `serve` and `status` start at once.

states      a child's life as a table, and its back-off        spec     which processes there are
child       one process: start, look, log, stop                probe    asking it over HTTP
supervisor  all of them, reload, drain                         record   $HOME/run/status.json
lock, ports, memory, known   what is looked at before anything starts
adapters    a changed list of adapters, put into force         traffic  figures of /metrics
"""
