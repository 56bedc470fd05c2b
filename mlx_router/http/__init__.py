"""HTTP where aiohttp and uvicorn need a word more, the same for every process of ours.

exchange    as a client: an answer read to its end, a failure in words
connection  as a server: a request that offers another protocol is still a request
process     as a server: bind, drain, leave
"""
