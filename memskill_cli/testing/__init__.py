"""A scripted model server over real HTTP, for this project's tests and for those of its users.

>>> from memskill_cli.testing.server import ScriptedServer
>>> with ScriptedServer({"judge": '{"explanation": "same", "score": 1}'}) as server:
...     print(server.url)  # doctest: +SKIP
"""
